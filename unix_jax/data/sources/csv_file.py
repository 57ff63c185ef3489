"""`csv:FILE?images=DIR&image=COLUMN&findings=COLUMN&...`: one record per row of a table.

FILE is CSV (.csv, .tsv, also .gz) or JSON lines (.jsonl, .json). A directory is read as Hugging
Face's ImageFolder: its metadata.csv or metadata.jsonl, whose `file_name` is the path of the image.

Each option except `images` names a column; the default is the first existing one of these:

* image: image, file_name, path, Path, filename, image_path; findings; impression
* report: report, text (a text with or without headings, see `report_sections`)
* captions: captions, caption, annotated_prompt (JSON as in `parquet:`, or the text itself)
* labels: labels, chexpert_labels, Finding Labels (a list, names separated by "|", or
  the {name: 0 or 1} of CheXGenBench); view; patient; split; key; prompt; answer

Of several rows with the same `annotated_prompt` only the first is used, as in the original's
evaluation of images; the others are counted and skipped. The original's `synthetic_filename` names
the record. In a file without the `path` of real images, it is the image, if `images` is given.
"""

import ast
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unix_jax.data.records import Record, checked_index
from unix_jax.data.report_sections import sections_with_problem
from unix_jax.data.sources.fields import (
    image_path,
    parse_json,
    text_field,
    texts_field,
)
from unix_jax.data.sources.lines import JsonLines
from unix_jax.data.sources.splits import rows_of_split
from unix_jax.data.sources.tables import is_table, read_header, row_of_cells, table_rows
from unix_jax.errors import DataError
from unix_jax.storage.bucket_path import any_path, local_file

_PROMPT, _SYNTHETIC = "annotated_prompt", "synthetic_filename"
COLUMNS = {
    "image": ("image", "file_name", "path", "Path", "filename", "image_path"),
    "findings": ("findings",),
    "impression": ("impression",),
    "report": ("report", "text"),
    "captions": ("captions", "caption", _PROMPT),
    "labels": ("labels", "chexpert_labels", "Finding Labels"),
    "view": ("view", "ViewPosition"),
    "patient": ("patient", "subject_id", "Patient ID"),
    "split": ("split",),
    "key": ("key", "id", _SYNTHETIC),
    "prompt": ("prompt",),
    "answer": ("answer",),
}
"""The options that name a column, and the columns that are tried without it."""

_METADATA = ("metadata.csv", "metadata.jsonl")
_MAX_LITERAL = 10_000


class CsvSource:
    """Records of a table; the rows of a CSV file are in memory, those of JSON lines are not."""

    def __init__(
        self,
        path: str | Path,
        split: str | None = None,
        image_root: str | Path | None = None,
        columns: Mapping[str, str] | None = None,
    ) -> None:
        """Reads the table.

        Args:
          path: a file, or a directory with a metadata file.
          split: selects the rows of one split; see `rows_of_split`.
          image_root: the directory of relative image paths; by default the file's directory.
          columns: names of columns, by the keys of `COLUMNS`.

        Raises:
          DataError: no such file, a column that it does not have, no column of images or texts, or
            no rows of this split.

        Warns of rows with a prompt or a key that an earlier one has.
        """
        file = _metadata_file(any_path(path))
        self._root = file.parent if image_root is None else any_path(image_root)
        self._file = local_file(file)
        self._rows: CsvRows | JsonLines
        if is_table(self._file):
            self._rows = CsvRows(self._file)
            found = self._rows.header
        else:
            self._rows = JsonLines(self._file, None)
            found = _fields_of(self._rows)
        self._column = _chosen_columns(self._file, found, columns or {}, image_root is not None)
        self._indices = np.arange(len(self._rows))
        if self._column.get("captions") == _PROMPT:
            self._indices = self._without_repeats()
        self.unsplit = False
        if split is not None:
            splits = [self._split_of(int(index)) for index in self._indices]
            chosen = rows_of_split(splits, split, str(self._file))
            self.unsplit, self._indices = chosen.unsplit, self._indices[chosen.indices]
        self._warn_of_repeated_keys()

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Record:
        number = int(self._indices[checked_index(index, len(self))])
        row, where = self._rows.row(number)
        values = {name: row.get(column) for name, column in self._column.items()}
        texts: dict[str, Any] = {
            name: _text(values, name, where)
            for name in (
                "findings", "impression", "report", "view", "patient", "split", "key", "prompt",
                "answer", "image",
            )
        }  # fmt: skip
        report, image, key = texts.pop("report"), texts.pop("image"), texts.pop("key")
        if report and not (texts["findings"] or texts["impression"]):
            names = ("findings", "impression", "report_problem")
            texts |= dict(zip(names, sections_with_problem(report), strict=True))
        return Record(
            key=key or image or self._rows.key(number),
            image=image_path(image, self._root, where) if image else None,
            captions=_captions(values.get("captions"), where),
            labels=_labels(values.get("labels"), where),
            **texts,
        )

    def _split_of(self, number: int) -> str | None:
        """The row's split, "" where it has none; None where it cannot be read."""
        column = self._column.get("split")
        try:
            row, where = self._rows.row(number)
            return text_field(row, column, where) if column is not None else ""
        except DataError:
            return None

    def _warn_of_repeated_keys(self) -> None:
        """Warns of repeated keys; without a column of keys, a row's image is its key.

        Rows with questions may share an image.
        """
        column = self._column.get("key")
        if column is None and not {"prompt", "answer"} & set(self._column):
            column = self._column.get("image")
        if column is None:
            return
        seen, repeated, first = set[str](), 0, ""
        for number in self._indices:
            try:
                row, where = self._rows.row(int(number))
                key = text_field(row, column, where)
            except DataError:  # told when the row is read
                continue
            if key and key in seen:
                repeated += 1
                first = first or f"{where}: {key!r}"
            seen.add(key)
        if repeated:
            warnings.warn(
                f"{self._file}: {repeated} of {len(self)} rows have the {column} of an earlier "
                f"row, which is the key of the record; the first is {first:.200}",
                stacklevel=3,
            )

    def _without_repeats(self) -> np.ndarray:
        seen, kept = set[str](), list[int]()
        for number in range(len(self._rows)):
            try:
                row, where = self._rows.row(number)
                prompt = text_field(row, _PROMPT, where)
            except DataError:
                prompt = ""
            if not prompt or prompt not in seen:
                kept.append(number)
                seen.add(prompt)
        if len(kept) < len(self._rows):
            warnings.warn(
                f"{self._file}: {len(self._rows) - len(kept)} of {len(self._rows)} rows have an "
                f"{_PROMPT} that an earlier row has; they are skipped",
                stacklevel=3,
            )
        return np.array(kept, np.int64)


class CsvRows:
    """The rows of a CSV file, each checked when it is read."""

    def __init__(self, file: Path) -> None:
        self.file = file
        rows = table_rows(file)
        self.header = read_header(rows)
        repeated = sorted({name for name in self.header if self.header.count(name) > 1})
        if repeated:
            raise DataError(f"{file}: expected each column once, found more of {repeated[:10]}")
        self._rows = list(rows)
        if not self._rows:
            raise DataError(f"{file}: expected rows, found none")

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, index: int) -> tuple[dict[str, Any], str]:
        line, cells = self._rows[index]
        where = f"{self.file}: line {line}"
        return row_of_cells(self.header, cells, where), where

    def key(self, index: int) -> str:
        return f"{self.file.name}:{self._rows[index][0]}"


def _metadata_file(path: Path) -> Path:
    if not path.is_dir():
        if is_table(path) or path.suffix.lower() in (".jsonl", ".ndjson", ".json"):
            return path
        raise DataError(f"{path}: expected a .csv, .tsv or .jsonl file, or a directory")
    found = [path / name for name in _METADATA if (path / name).is_file()]
    if len(found) != 1:
        names = [file.name for file in found] or "neither"
        raise DataError(f"{path}: expected {' or '.join(_METADATA)}, found {names}")
    return found[0]


def _fields_of(rows: JsonLines) -> list[str]:
    """The fields of all rows that can be parsed."""
    fields: dict[str, None] = {}
    for index in range(len(rows)):
        try:
            fields |= dict.fromkeys(rows.row(index)[0])
        except DataError:  # told when the row is read
            continue
    return list(fields)


def _chosen_columns(
    file: Path, found: Sequence[str], given: Mapping[str, str], images_given: bool
) -> dict[str, str]:
    missing = [f"{name}={column}" for name, column in given.items() if column not in found]
    if missing:
        raise DataError(
            f"{file}: no column for {', '.join(missing)}; its columns are {list(found)[:40]}"
        )
    chosen = dict(given)
    for name, tried in COLUMNS.items():
        column = next((column for column in tried if column in found), None)
        if name not in chosen and column is not None:
            chosen[name] = column
    if "image" not in chosen and _SYNTHETIC in found and images_given:
        chosen["image"] = _SYNTHETIC
    if not {"image", "findings", "impression", "report", "captions", "answer"} & set(chosen):
        separator = next((mark for mark in ";\t|," if mark in found[0]), "") if found else ""
        if len(found) == 1 and separator:
            expected = "tabs (.tsv)" if ".tsv" in file.suffixes else "commas (.csv) or tabs (.tsv)"
            raise DataError(
                f"{file}: expected columns separated by {expected}, found one column with "
                f"{separator!r} in its name: {found[0]!r:.80}"
            )
        raise DataError(
            f"{file}: expected a column of images or texts, found {list(found)[:40]}; name them, "
            "for example ?image=COLUMN&findings=COLUMN"
        )
    return chosen


def _text(values: Mapping[str, Any], name: str, where: str) -> str:
    text = text_field(values, name, where)
    # How pandas writes an empty cell.
    return "" if text.strip().lower() == "nan" else text


def _captions(value: Any, where: str) -> tuple[str, ...]:
    text = value.strip() if isinstance(value, str) else None
    if text is not None:
        value = parse_json(text, f"{where}: captions") if text[:1] in ("[", "{") else [text]
    if isinstance(value, dict):
        value = list(value.values())
    return texts_field({"captions": value}, "captions", where)


def _labels(value: Any, where: str) -> tuple[str, ...]:
    if isinstance(value, str):
        value = value.strip()
        value = _literal(value, where) if value[:1] in ("[", "{") else value.split("|")
    if isinstance(value, dict):
        # CheXpert's -1 means uncertain: only present findings are labels.
        value = [name for name, present in value.items() if present in (1, True)]
    return texts_field({"labels": value}, "labels", where)


def _literal(text: str, where: str) -> Any:
    """A list or dict as Python or JSON writes it; parsed as a literal, never executed."""
    try:
        if len(text) > _MAX_LITERAL:
            raise ValueError
        return ast.literal_eval(text.replace("nan", "None"))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise DataError(
            f"{where}: labels: expected a list or a dict, found {text[:60]!r}"
        ) from None

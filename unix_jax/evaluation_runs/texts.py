"""Reader of reports from other software: predictions and references from CSV or JSON lines.

Known columns are those of this project's files, those of the original's `understanding_results.csv`
("Report Impression", "Ground Truth"), and common names.
"""

import csv
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unix_jax.data.records import Record, report_text
from unix_jax.data.sources.lines import JsonLines
from unix_jax.errors import DataError

PREDICTIONS = ("prediction", "Report Impression", "generated", "hypothesis", "report", "text")
REFERENCES = ("reference", "Ground Truth", "ground_truth", "answer", "report", "text")
KEYS = ("key", "id", "study_id", "dicom_id", "image")


@dataclasses.dataclass(frozen=True)
class Texts:
    """Reports of one file; `keys` is () if its rows have no keys."""

    file: Path
    reports: Sequence[str]
    keys: Sequence[str]


def read_texts(path: str | Path, fields: Sequence[str], key_field: str = "") -> Texts:
    """The reports of a .csv or .jsonl file.

    Args:
      path: the file.
      fields: possible columns of the report; the first one that the first row has is used. Without
        one, `findings` and `impression` are joined.
      key_field: column of the keys; "" uses the first known one, if any.

    Raises:
      DataError: a file of another kind, that cannot be read, or without such a field; a row
        without a text.
    """
    file = Path(path)
    suffix = file.suffix.lower()
    if suffix == ".csv":
        rows = _csv_rows(file)
    elif suffix in (".jsonl", ".json"):
        lines = JsonLines(file, None)
        rows = [lines.row(index) for index in range(len(lines))]
    else:
        raise DataError(f"{file}: expected a .csv or .jsonl file")
    first = rows[0][0]
    field = next((name for name in fields if name in first), "")
    sections = not field and ("findings" in first or "impression" in first)
    if not field and not sections:
        raise DataError(
            f"{file}: expected a field {' or '.join(fields)}, found {', '.join(first) or 'none'}"
        )
    key = key_field or next((name for name in KEYS if name in first), "")
    reports = [
        _sections(row, where) if sections else _text(row, field, where) for row, where in rows
    ]
    return Texts(file, reports, [_key(row, key, where) for row, where in rows] if key else ())


def pair(predictions: Texts, references: Texts) -> tuple[list[str], list[str], list[str]]:
    """(keys, predictions, references): by key if both files have keys, else by their order.

    Raises:
      DataError: a key without its counterpart, a key twice, or files of different lengths.
    """
    if not predictions.keys or not references.keys:
        if len(predictions.reports) != len(references.reports):
            raise DataError(
                f"{references.file}: expected {len(predictions.reports)} reports as in "
                f"{predictions.file}, found {len(references.reports)}"
            )
        keys = predictions.keys or references.keys or map(str, range(len(predictions.reports)))
        return list(keys), list(predictions.reports), list(references.reports)
    found = _by_key(references)
    missing = [key for key in _by_key(predictions) if key not in found]
    extra = len(found) - (len(predictions.keys) - len(missing))
    if missing or extra:
        first = missing[0] if missing else next(iter(found.keys() - set(predictions.keys)))
        raise DataError(
            f"{references.file}: expected the keys of {predictions.file}, found {len(missing)} "
            f"missing and {extra} more, such as {first!r}"
        )
    order = [found[key] for key in predictions.keys]
    return list(predictions.keys), list(predictions.reports), order


def _by_key(texts: Texts) -> dict[str, str]:
    found = dict(zip(texts.keys, texts.reports, strict=True))
    if len(found) < len(texts.keys):
        twice = next(key for key in found if list(texts.keys).count(key) > 1)
        raise DataError(f"{texts.file}: key {twice!r} occurs twice")
    return found


def _csv_rows(file: Path) -> list[tuple[dict[str, Any], str]]:
    try:
        # The original's files may contain invalid characters, which the original replaces as well.
        with file.open(encoding="utf-8-sig", errors="replace", newline="") as opened:
            reader = csv.DictReader(opened, strict=True)
            rows = [(row, f"{file}: line {reader.line_num}") for row in reader]
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}") from error
    except csv.Error as error:
        raise DataError(f"{file}: expected CSV, found: {error}") from None
    if not rows:
        raise DataError(f"{file}: expected rows, found none")
    return [({k: v for k, v in row.items() if k is not None}, where) for row, where in rows]


def _text(row: dict[str, Any], field: str, where: str) -> str:
    value = row.get(field)
    if not isinstance(value, str):
        raise DataError(f"{where}: {field}: expected a text, found {type(value).__name__}")
    return value.strip()


def _sections(row: dict[str, Any], where: str) -> str:
    parts = {name: row.get(name) or "" for name in ("findings", "impression")}
    texts = {name: _text(parts, name, where) for name in parts}
    return report_text(Record("", findings=texts["findings"], impression=texts["impression"]))


def _key(row: dict[str, Any], field: str, where: str) -> str:
    value = row.get(field)
    if not isinstance(value, str | int):
        raise DataError(f"{where}: {field}: expected a text, found {type(value).__name__}")
    return str(value)

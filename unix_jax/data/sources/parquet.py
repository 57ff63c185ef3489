"""`parquet:DIR_OR_FILE_OR_GLOB?image=COLUMN&...`: the original's files for generation, and others.

Columns: `image` (the file's bytes, {bytes, path}, or a path), and at least one of `captions` (JSON:
a list of strings, an object whose values are strings, or one string; or a native list), `findings`,
`impression` and `report` (a text with or without headings, see `report_sections`). `key`, `labels`,
`view`, `patient`, `split` are read if they exist. An option with the name of a field names its
column in the file.

Parquet is read one row group at a time, and a few stay in memory: sequential access is fast, a
shuffled order is not. Write ArrayRecord once (`unix-jax data write`) to train on it.
"""

import functools
import glob
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unix_jax.data.records import Record, checked_index
from unix_jax.data.report_sections import sections_with_problem
from unix_jax.data.sources.fields import (
    image_path,
    parse_json,
    report_fields,
    text_field,
    texts_field,
)
from unix_jax.data.sources.splits import rows_of_split
from unix_jax.errors import DataError
from unix_jax.extras import needed
from unix_jax.storage.bucket_path import BucketPath, any_path, local_file

with needed("pyarrow", "A parquet source", "unix-jax[data]"):
    import pyarrow as pa
    import pyarrow.parquet as pq

_TEXTS = ("captions", "findings", "impression", "report")
COLUMNS = ("image", *_TEXTS, "key", "labels", "view", "patient", "split")
"""The fields of a record that a column may hold, and the options that name its column."""
_CACHED_ROW_GROUPS = 4


class ParquetSource:
    """Records of one or more Parquet files, in the order of their names."""

    def __init__(
        self,
        pattern: str | Path | Sequence[Path],
        split: str | None = None,
        image_root: str | Path | None = None,
        columns: Mapping[str, str] | None = None,
    ) -> None:
        """Reads the files' footers, and the column `split` if one split is asked for.

        Args:
          pattern: a file, a directory of `*.parquet`, a glob pattern, or several files.
          split: selects the rows with this value in the column `split`; see `rows_of_split`.
          image_root: the directory of relative image paths; by default the file's directory.
          columns: the names of the columns in the files, by those of `COLUMNS`.

        Raises:
          DataError: no such file, not Parquet, a missing column, or no rows.
        """
        self._files: list[Path]
        if isinstance(pattern, str | Path):
            self._files, where = _matching_files(pattern), str(pattern)
        else:
            self._files, where = list(pattern), str(pattern[0].parent)
        self._columns = dict(columns or {})
        # Where relative image paths start, of each file.
        given = None if image_root is None else any_path(image_root)
        self._roots = [given or file.parent for file in self._files]
        self._files = [local_file(file) for file in self._files]
        # Of each row group: file, number within the file, first row within the file, rows.
        groups: list[tuple[int, int, int, int]] = []
        for number, file in enumerate(self._files):
            metadata = _checked_metadata(file, self._columns)
            first = 0
            for group in range(metadata.num_row_groups):
                count = metadata.row_group(group).num_rows
                groups.append((number, group, first, count))
                first += count
        self._groups = np.array(groups, np.int64).reshape(-1, 4)
        self._ends = np.cumsum(self._groups[:, 3])
        rows = int(self._ends[-1]) if len(self._ends) else 0
        if not rows:
            raise DataError(f"{where}: expected rows, found none")
        self._rows, self.unsplit = np.arange(rows), False
        if split is not None:
            self._rows, self.unsplit = rows_of_split(self._splits(), split, where)

    def _column(self, field: str) -> str:
        return self._columns.get(field, field)

    def _splits(self) -> list[str | None]:
        """The split of each row, "" where it has none."""
        found: list[str | None] = []
        for file in self._files:
            with pq.ParquetFile(file) as opened:
                if (name := self._column("split")) not in opened.schema_arrow.names:
                    found += [""] * opened.metadata.num_rows
                    continue
            column = pq.read_table(file, columns=[name], partitioning=None)[name]
            found += [str(value or "") for value in column.to_pylist()]
        return found

    def __len__(self) -> int:
        return len(self._rows)

    def keys(self) -> Iterator[str]:
        """The keys of all records, from the column `key` alone.

        Raises:
          DataError: a file cannot be read any more.
        """
        chosen, start = self._rows, 0
        for file in self._files:
            names = _keys_of(file, self._column("key"))
            for row in chosen[(chosen >= start) & (chosen < start + len(names))] - start:
                yield names[row] or f"{file.name}:{row}"
            start += len(names)

    def __getitem__(self, index: int) -> Record:
        row = int(self._rows[checked_index(index, len(self))])
        place = int(np.searchsorted(self._ends, row, side="right"))
        number, group, first, count = (int(x) for x in self._groups[place])
        offset = row - (int(self._ends[place]) - count)
        file = self._files[number]
        where = f"{file}: row {first + offset}"
        try:
            columns = tuple(self._column(field) for field in COLUMNS)
            row_values = _row_group(file, group, columns).slice(offset, 1).to_pylist()[0]
        except (pa.ArrowException, OSError, ValueError) as error:
            raise DataError(f"{where}: cannot be read: {_one_line(error)}") from error
        values = {field: row_values.get(self._column(field)) for field in COLUMNS}
        captions = _captions(values.pop("captions"), where)
        fields = report_fields(values, where) | {"captions": captions}
        report = text_field(values, "report", where)
        if report and not (fields["findings"] or fields["impression"]):
            names = ("findings", "impression", "report_problem")
            fields |= dict(zip(names, sections_with_problem(report), strict=True))
        image = _image(values["image"], self._roots[number], where)
        key = text_field(values, "key", where) or f"{file.name}:{first + offset}"
        return Record(key=key, image=image, **fields)


@functools.lru_cache(maxsize=_CACHED_ROW_GROUPS)
def _row_group(file: Path, group: int, names: tuple[str, ...]) -> pa.Table:
    with pq.ParquetFile(file) as opened:
        found = set(opened.schema_arrow.names)
        columns = [name for name in dict.fromkeys(names) if name in found]
        return opened.read_row_group(group, columns=columns, use_threads=False)


def _keys_of(file: Path, column: str) -> list[str]:
    """The column of keys of a file, "" where it has none."""
    try:
        with pq.ParquetFile(file) as opened:
            if column not in opened.schema_arrow.names:
                return [""] * opened.metadata.num_rows
            return [str(key or "") for key in opened.read(columns=[column])[column].to_pylist()]
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file}: cannot be read: {_one_line(error)}") from error


def _matching_files(pattern: str | Path) -> list[Path]:
    path = any_path(pattern)
    if path.is_dir():
        files = sorted(path.glob("*.parquet"))
    elif isinstance(path, BucketPath):
        files = [path] if path.is_file() else sorted(path.parent.glob(path.name))
    else:
        files = [path] if path.is_file() else sorted(Path(f) for f in glob.glob(str(pattern)))
    if not files:
        raise DataError(f"{pattern}: expected Parquet files, found none")
    return files


def _checked_metadata(file: Path, columns: Mapping[str, str]) -> pq.FileMetaData:
    try:
        with pq.ParquetFile(file) as opened:
            metadata, found = opened.metadata, opened.schema_arrow.names
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file}: not a Parquet file: {_one_line(error)}") from error
    if missing := [f"{field}={name}" for field, name in columns.items() if name not in found]:
        raise DataError(f"{file}: {', '.join(missing)}: expected one of its columns, {found}")
    names = {field: columns.get(field, field) for field in COLUMNS}
    if names["image"] not in found or not any(names[field] in found for field in _TEXTS):
        raise DataError(
            f"{file}: expected the columns 'image' and one of {list(_TEXTS)}, found {found}; "
            "options such as image=COLUMN&report=COLUMN name others"
        )
    return metadata


def _captions(value: Any, where: str) -> tuple[str, ...]:
    if isinstance(value, str | bytes):
        value = parse_json(value, f"{where}: captions")
    if isinstance(value, str):
        value = [value]
    elif isinstance(value, dict):
        value = list(value.values())
    return texts_field({"captions": value}, "captions", where)


def _image(value: Any, root: Path, where: str) -> bytes | Path | None:
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if value is None or isinstance(value, bytes):
        return value or None
    return image_path(value, root, where)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]

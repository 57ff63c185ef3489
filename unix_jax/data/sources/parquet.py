"""`parquet:DIR_OR_FILE_OR_GLOB`: the original's files for generation.

Columns: `image` (the file's bytes, {bytes, path}, or a path) and `captions` (JSON: a list of
strings, an object whose values are strings, or one string; or a native list). `key`, `findings`,
`impression`, `labels`, `view`, `patient`, `split` are read if they exist.

Parquet is read one row group at a time, and a few stay in memory: sequential access is fast, a
shuffled order is not. Write ArrayRecord once (`unix-jax data write`) to train on it.
"""

import functools
import glob
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from unix_jax.data.records import Record, checked_index
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

with needed("pyarrow", "A parquet source", "unix-jax[data]"):
    import pyarrow as pa
    import pyarrow.parquet as pq

_REQUIRED = ("image", "captions")
_OPTIONAL = ("key", "findings", "impression", "labels", "view", "patient", "split")
_CACHED_ROW_GROUPS = 4


class ParquetSource:
    """Records of one or more Parquet files, in the order of their names."""

    def __init__(
        self, pattern: str | Path, split: str | None = None, image_root: str | Path | None = None
    ) -> None:
        """Reads the files' footers, and the column `split` if one split is asked for.

        Args:
          pattern: a file, a directory of `*.parquet`, or a glob pattern.
          split: selects the rows with this value in the column `split`; see `rows_of_split`.
            image_root: the directory of relative image paths; by default the file's directory.

        Raises:
          DataError: no such file, not Parquet, a missing column, or no rows.
        """
        self._files = _matching_files(pattern)
        self._root = None if image_root is None else Path(image_root)
        # Of each row group: file, number within the file, first row within the file, rows.
        groups: list[tuple[int, int, int, int]] = []
        for number, file in enumerate(self._files):
            metadata = _checked_metadata(file)
            first = 0
            for group in range(metadata.num_row_groups):
                count = metadata.row_group(group).num_rows
                groups.append((number, group, first, count))
                first += count
        self._groups = np.array(groups, np.int64).reshape(-1, 4)
        self._ends = np.cumsum(self._groups[:, 3])
        rows = int(self._ends[-1]) if len(self._ends) else 0
        if not rows:
            raise DataError(f"{pattern}: expected rows, found none")
        self._rows, self.unsplit = np.arange(rows), False
        if split is not None:
            self._rows, self.unsplit = rows_of_split(self._splits(), split, str(pattern))

    def _splits(self) -> list[str | None]:
        """The split of each row, "" where it has none."""
        found: list[str | None] = []
        for file in self._files:
            with pq.ParquetFile(file) as opened:
                if "split" not in opened.schema_arrow.names:
                    found += [""] * opened.metadata.num_rows
                    continue
            column = pq.read_table(file, columns=["split"], partitioning=None)["split"]
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
            names = _keys_of(file)
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
            values = _row_group(file, group).slice(offset, 1).to_pylist()[0]
        except (pa.ArrowException, OSError, ValueError) as error:
            raise DataError(f"{where}: cannot be read: {_one_line(error)}") from error
        captions = _captions(values.pop("captions"), where)
        fields = report_fields(values, where) | {"captions": captions}
        image = _image(values["image"], self._root or file.parent, where)
        key = text_field(values, "key", where) or f"{file.name}:{first + offset}"
        return Record(key=key, image=image, **fields)


@functools.lru_cache(maxsize=_CACHED_ROW_GROUPS)
def _row_group(file: Path, group: int) -> pa.Table:
    with pq.ParquetFile(file) as opened:
        found = set(opened.schema_arrow.names)
        columns = [name for name in (*_REQUIRED, *_OPTIONAL) if name in found]
        return opened.read_row_group(group, columns=columns, use_threads=False)


def _keys_of(file: Path) -> list[str]:
    """The column `key` of a file, "" where it has none."""
    try:
        with pq.ParquetFile(file) as opened:
            if "key" not in opened.schema_arrow.names:
                return [""] * opened.metadata.num_rows
            return [str(key or "") for key in opened.read(columns=["key"])["key"].to_pylist()]
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file}: cannot be read: {_one_line(error)}") from error


def _matching_files(pattern: str | Path) -> list[Path]:
    path = Path(pattern)
    if path.is_dir():
        files = sorted(path.glob("*.parquet"))
    else:
        files = [path] if path.is_file() else sorted(Path(f) for f in glob.glob(str(pattern)))
    if not files:
        raise DataError(f"{pattern}: expected Parquet files, found none")
    return files


def _checked_metadata(file: Path) -> pq.FileMetaData:
    try:
        with pq.ParquetFile(file) as opened:
            metadata, columns = opened.metadata, opened.schema_arrow.names
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file}: not a Parquet file: {_one_line(error)}") from error
    missing = [name for name in _REQUIRED if name not in columns]
    if missing:
        raise DataError(f"{file}: expected columns {list(_REQUIRED)}, found {columns}")
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

"""JSON rows of one file with random access: one object per line, or a list of objects.

For lines only an index of offsets is kept in memory; a list (a file named .json) is kept
completely.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from unix_jax.data.records import checked_index
from unix_jax.data.sources.fields import parse_json, parse_object
from unix_jax.data.sources.splits import rows_of_split
from unix_jax.errors import DataError


class JsonLines:
    """The rows of one file, blank lines skipped; a line is parsed when it is read.

    unsplit: a split was requested and the file has none, so these are all rows.
    """

    def __init__(self, file: Path, split: str | None) -> None:
        """Indexes the file.

        Args:
          file: JSON lines in UTF-8, or a JSON list where its name ends in .json.
          split: keeps the rows whose field `split` is this; see `rows_of_split`.

        Raises:
          DataError: the file cannot be read, holds no rows, or none of this split.
        """
        self.file = file
        self._items = _list_of(file) if file.suffix.lower() == ".json" else None
        self._unit = "line" if self._items is None else "item"
        offsets, numbers, splits = [], [], list[str | None]()
        for number, offset, split_of in self._found(split is not None):
            numbers.append(number)
            offsets.append(offset)
            splits.append(split_of)
        if not numbers:
            raise DataError(f"{file}: expected rows, found none")
        self._offsets, self._numbers = np.array(offsets, np.int64), np.array(numbers, np.int64)
        self.unsplit = False
        if split is not None:
            chosen = rows_of_split(splits, split, str(file))
            self.unsplit = chosen.unsplit
            self._offsets = self._offsets[chosen.indices]
            self._numbers = self._numbers[chosen.indices]

    def _found(self, with_splits: bool) -> Iterator[tuple[int, int, str | None]]:
        """(number from 1, offset, split) of each row; no split unless it is needed."""
        if self._items is not None:
            for number, item in enumerate(self._items, 1):
                yield number, 0, _split_of(item) if with_splits else None
            return
        try:
            with self.file.open("rb") as opened:
                offset = 0
                for number, line in enumerate(opened, 1):
                    if line.strip():
                        yield number, offset, _split_of_line(line) if with_splits else None
                    offset += len(line)
        except OSError as error:
            raise DataError(f"{self.file}: cannot be read: {error.strerror}") from error

    def __len__(self) -> int:
        return len(self._numbers)

    def row(self, index: int) -> tuple[dict[str, Any], str]:
        """(the object of row `index`, what errors call it).

        Raises:
          DataError: the row is not a JSON object, or the file cannot be read any more.
        """
        index = checked_index(index, len(self))
        number = int(self._numbers[index])
        where = f"{self.file}: {self._unit} {number}"
        if self._items is not None:
            item = self._items[number - 1]
            if not isinstance(item, dict):
                raise DataError(f"{where}: expected a JSON object, found {type(item).__name__}")
            return item, where
        try:
            with self.file.open("rb") as opened:
                opened.seek(int(self._offsets[index]))
                line = opened.readline()
        except OSError as error:
            raise DataError(f"{where}: cannot be read: {error.strerror}") from error
        return parse_object(line, where), where

    def rows(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """(index, object) of all rows in order, by one pass; {} for a line that cannot be parsed.

        Raises:
          DataError: the file cannot be read any more.
        """
        if self._items is not None:
            for index, number in enumerate(self._numbers):
                item = self._items[number - 1]
                yield index, item if isinstance(item, dict) else {}
            return
        wanted = iter(self._numbers)
        following = next(wanted, None)
        index = 0
        try:
            with self.file.open("rb") as opened:
                for number, line in enumerate(opened, 1):
                    if number != following:
                        continue
                    try:
                        yield index, parse_object(line, "")
                    except DataError:
                        yield index, {}
                    index, following = index + 1, next(wanted, None)
        except OSError as error:
            raise DataError(f"{self.file}: cannot be read: {error.strerror}") from error

    def key(self, index: int) -> str:
        """The key of a row that has none of its own."""
        return f"{self.file.name}:{self._numbers[checked_index(index, len(self))]}"


def _list_of(file: Path) -> list[Any]:
    try:
        value = parse_json(file.read_bytes(), str(file))
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}") from error
    if not isinstance(value, list):
        raise DataError(
            f"{file}: expected a JSON list, found {type(value).__name__}; a file of one object per "
            "line is named .jsonl"
        )
    return value


def _split_of(row: Any) -> str | None:
    return str(row.get("split") or "") if isinstance(row, dict) else None


def _split_of_line(line: bytes) -> str | None:
    """The row's split, "" where it has none; None where the line cannot be parsed."""
    try:
        return _split_of(parse_object(line, ""))
    except DataError:
        return None

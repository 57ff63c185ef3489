"""A file of one JSON object a line, with random access: an index of offsets, no text in memory."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from unix_jax.data.records import checked_index
from unix_jax.data.sources.fields import parse_object
from unix_jax.errors import DataError


class JsonLines:
    """The lines of one file, blank ones left out; each is parsed when it is read."""

    def __init__(self, file: Path, split: str | None) -> None:
        """Indexes the file.

        Args:
          file: JSON lines in UTF-8.
          split: keeps the rows whose field `split` is this. A line that cannot be parsed may belong
            to any split; it is kept, so that whoever reads it learns of it.

        Raises:
          DataError: the file cannot be read, holds no rows, or none of this split.
        """
        self.file = file
        self._offsets, self._numbers, splits = self._index(split)
        if not len(self._offsets):
            found = f"splits {sorted(splits)}" if splits else "no rows"
            expected = "rows" if split is None else f"rows of split {split!r}"
            raise DataError(f"{file}: expected {expected}, found {found}")

    def _index(self, split: str | None) -> tuple[np.ndarray, np.ndarray, set[str]]:
        offsets, numbers, splits = [], [], set()
        for number, offset, line in self._lines():
            if split is not None:
                found = _split_of(line)
                if found is not None and found != split:
                    splits.add(found)
                    continue
            offsets.append(offset)
            numbers.append(number)
        return np.array(offsets, np.int64), np.array(numbers, np.int64), splits

    def _lines(self) -> Iterator[tuple[int, int, bytes]]:
        try:
            with self.file.open("rb") as opened:
                offset = 0
                for number, line in enumerate(opened, 1):
                    if line.strip():
                        yield number, offset, line
                    offset += len(line)
        except OSError as error:
            raise DataError(f"{self.file}: cannot be read: {error.strerror}") from error

    def __len__(self) -> int:
        return len(self._offsets)

    def row(self, index: int) -> tuple[dict[str, Any], str]:
        """(the object of row `index`, what errors call it).

        Raises:
          DataError: the line is no JSON object, or the file cannot be read any more.
        """
        index = checked_index(index, len(self))
        where = f"{self.file}: line {self._numbers[index]}"
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
        wanted = iter(self._numbers)
        following = next(wanted, None)
        index = 0
        for number, _, line in self._lines():
            if number != following:
                continue
            try:
                yield index, parse_object(line, "")
            except DataError:
                yield index, {}
            index, following = index + 1, next(wanted, None)

    def key(self, index: int) -> str:
        """The key of a row that has none of its own."""
        return f"{self.file.name}:{self._numbers[checked_index(index, len(self))]}"


def _split_of(line: bytes) -> str | None:
    """The row's split, "" where it has none; None where the line cannot be parsed."""
    try:
        return str(parse_object(line, "").get("split") or "")
    except DataError:
        return None

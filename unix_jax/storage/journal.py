"""Journal: what a long run has done, one appended JSON line per item, so that a killed run resumes.

A journal may begin with a line of settings. A line that a crash tore is dropped when the journal is
opened again. One process at a time writes a journal; several processes write one each, and all
read them together.
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from unix_jax.errors import UniXError
from unix_jax.storage.line_file import LineFile, whole_lines

Status = Literal["done", "rejected", "failed"]
_STATUSES = ("done", "rejected", "failed")
_HEADER = "journal"


@dataclasses.dataclass(frozen=True)
class Entry:
    """One item's outcome.

    index: its number in the source.
    key: its name in the source.
    status: done; rejected, for good; or failed, which a later entry of the item replaces.
    error: why it was not done.
    values: what was made of it, JSON by name; stored beside the other fields.
    """

    index: int
    key: str = ""
    status: Status = "done"
    error: str = ""
    values: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class Journal:
    """One journal, open for appending; use as a context manager."""

    def __init__(self, path: Path, settings: Mapping[str, Any] | None = None) -> None:
        """Opens or begins the journal.

        Args:
          path: the file.
          settings: JSON by name, for the first line; a journal that exists must have the same.

        Raises:
          UniXError: it cannot be written, has other settings, is open in another process, or has a
            damaged line. The file then stays as it was.
        """
        self.path = path
        self._file = LineFile(path)
        try:
            self._first: bytes | None = None
            if settings is not None:
                self._first = _encode({_HEADER: json.loads(json.dumps(dict(settings)))})
            self._offsets: dict[int, tuple[int, Status]] = {}
            self._counts: Counter[Status] = Counter()
            for offset, entry in self._written():
                self._keep(entry, offset)
            self._file.cut()
            if self._first is not None and not self._file.size:
                self._file.append(self._first)
        except BaseException:
            self._file.close()
            raise

    def _written(self) -> Iterator[tuple[int, Entry]]:
        """(offset, entry) of each line after the settings."""
        offset = 0
        for number, line in enumerate(whole_lines(self.path), 1):
            if number == 1 and self._first is not None:
                if problem := _settings_problem(line, self._first):
                    raise UniXError(f"{self.path}: {problem}, or remove the file to start anew")
            else:
                yield offset, _decode(self.path, number, line)
            offset += len(line)

    def _keep(self, entry: Entry, offset: int) -> None:
        if entry.index in self._offsets:
            self._counts[self._offsets[entry.index][1]] -= 1
        self._offsets[entry.index] = offset, entry.status
        self._counts[entry.status] += 1

    def append(self, entries: Sequence[Entry]) -> None:
        """Adds outcomes in one write; they are on the disk when this returns.

        Raises:
          UniXError: they cannot be written. What was there before stays whole.
        """
        lines = [_encode_entry(entry) for entry in entries]
        offset = self._file.append(b"".join(lines))
        for entry, line in zip(entries, lines, strict=True):
            self._keep(entry, offset)
            offset += len(line)

    def settled(self, index: int) -> bool:
        """Whether an item is done or rejected for good."""
        return index in self._offsets and self._offsets[index][1] != "failed"

    def count(self, status: Status) -> int:
        """Number of items whose last outcome is this."""
        return self._counts[status]

    def history(self) -> Iterator[Entry]:
        """Every outcome in the order of writing, those that a later one replaced included."""
        return (entry for _, entry in self._written())

    def entries(self) -> Iterator[Entry]:
        """The last outcome of each item, in the order of the source."""
        with self.path.open("rb") as opened:
            for index in sorted(self._offsets):
                opened.seek(self._offsets[index][0])
                yield _entry(json.loads(opened.readline()))

    def remove(self) -> None:
        """Deletes the file, once its contents are elsewhere."""
        self.path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def read_entries(paths: Iterable[Path]) -> dict[int, Entry]:
    """The outcomes of journals without settings together, by index, in the order of the source.

    Raises:
      UniXError: a file cannot be read, a line before the last is damaged, or an item is there
        twice.
    """
    found: dict[int, Entry] = {}
    for path in paths:
        for number, line in enumerate(whole_lines(path), 1):
            entry = _decode(path, number, line)
            if entry.index in found:
                raise UniXError(f"{path}: line {number}: item {entry.index} is there twice")
            found[entry.index] = entry
    return dict(sorted(found.items()))


def settings_difference(found: Any, wanted: Mapping[str, Any]) -> str:
    """What differs between settings of a file and those wanted; "" if nothing does."""
    if found == wanted:
        return ""
    if not isinstance(found, dict):
        return "expected the settings of a run"
    names = [name for name in (*wanted, *found) if found.get(name) != wanted.get(name)]
    differing = ", ".join(
        f"{name} {json.dumps(found.get(name))} (now {json.dumps(wanted.get(name))})"
        for name in dict.fromkeys(names)
    )
    return f"was started with {differing}"


def _settings_problem(line: bytes, expected: bytes) -> str:
    try:
        value = json.loads(line)
        found = value.get(_HEADER) if isinstance(value, dict) else None
    except (ValueError, RecursionError):
        found = None
    problem = settings_difference(found, json.loads(expected)[_HEADER])
    return problem and f"line 1: {problem}; use the same settings, name another output"


def _decode(path: Path, number: int, line: bytes) -> Entry:
    try:
        return _entry(json.loads(line))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise UniXError(
            f"{path}: line {number}: expected an item's outcome in JSON; "
            "remove the line to do that item again"
        ) from None


def _entry(value: Any) -> Entry:
    entry = Entry(
        value.pop("index"),
        value.pop("key", ""),
        value.pop("status"),
        value.pop("error", ""),
        value,
    )
    known = isinstance(entry.index, int) and isinstance(entry.key, str)
    if not known or entry.status not in _STATUSES or not isinstance(entry.error, str):
        raise ValueError("not an outcome")
    return entry


def _encode_entry(entry: Entry) -> bytes:
    value: dict[str, Any] = {"index": entry.index}
    if entry.key:
        value["key"] = entry.key
    value["status"] = entry.status
    if entry.error:
        value["error"] = entry.error
    return _encode({**value, **entry.values})


def _encode(value: Mapping[str, Any]) -> bytes:
    # ASCII: a lone surrogate in a text has no other form in a file.
    return json.dumps(value).encode() + b"\n"

"""What a run has done so far: one appended JSON line a report, so that a killed run goes on.

The first line names the input and the settings. A line that was torn by a crash is cut off when
the journal is opened again. One process at a time holds it.
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from unix_jax.cleaning.endpoint import Tokens
from unix_jax.errors import UniXError
from unix_jax.storage.line_file import LineFile, whole_lines

Status = Literal["done", "rejected", "failed"]


@dataclasses.dataclass(frozen=True)
class Entry:
    """One report's outcome.

    index: its number in the input.
    status: done; rejected for good; or failed, to be tried again by a later run.
    report, reason: the cleaned report, or why there is none.
    """

    index: int
    status: Status
    report: str = ""
    reason: str = ""
    tries: int = 0
    tokens: Tokens = dataclasses.field(default_factory=Tokens)


class Journal:
    """The file, open for appending; use as a context manager."""

    def __init__(self, path: Path, header: dict[str, Any]) -> None:
        """Opens or begins the journal.

        Raises:
          UniXError: it cannot be written, belongs to another input or other settings, is open in
            another process, or is damaged before its last line.
        """
        self.path = path
        self._file = LineFile(path)
        try:
            self._places: dict[int, tuple[int, Status]] = {}
            self._counts: Counter[Status] = Counter()
            self.tokens = Tokens()
            self._read(header)
        except BaseException:
            self._file.close()
            raise

    def _read(self, header: dict[str, Any]) -> None:
        expected = {"journal": header}
        end = 0
        for number, line in enumerate(whole_lines(self.path), 1):
            self._take(number, end, line, expected)
            end += len(line)
        self._file.cut()
        if not end:
            self._file.append(_line(expected))

    def _take(self, number: int, place: int, line: bytes, expected: dict[str, Any]) -> None:
        try:
            value = json.loads(line)
            if number > 1:
                entry = _entry(value)
        except (ValueError, TypeError, KeyError):
            raise UniXError(
                f"{self.path}: line {number} is damaged; remove the file to start anew"
            ) from None
        if number > 1:
            self._keep(entry, place)
        elif value != expected:
            found = value.get("journal") if isinstance(value, dict) else None
            raise UniXError(f"{self.path}: {_difference(found, expected['journal'])}")

    def _keep(self, entry: Entry, place: int) -> None:
        if entry.index in self._places:
            self._counts[self._places[entry.index][1]] -= 1
        self._places[entry.index] = place, entry.status
        self._counts[entry.status] += 1
        self.tokens += entry.tokens

    def append(self, entry: Entry) -> None:
        """Adds an outcome; it is on the disk when this returns.

        Raises:
          UniXError: it cannot be written. What was there before stays whole.
        """
        self._keep(entry, self._file.append(_line(dataclasses.asdict(entry))))

    def settled(self, index: int) -> bool:
        """Whether a report is done or rejected for good."""
        return index in self._places and self._places[index][1] != "failed"

    def count(self, status: Status) -> int:
        """Reports whose last outcome is this."""
        return self._counts[status]

    def entries(self) -> Iterator[Entry]:
        """The last outcome of each report, in the order of the input."""
        with self.path.open("rb") as opened:
            for index in sorted(self._places):
                opened.seek(self._places[index][0])
                yield _entry(json.loads(opened.readline()))

    def remove(self) -> None:
        """Deletes the file, once its contents are elsewhere."""
        self.path.unlink(missing_ok=True)

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _entry(value: Any) -> Entry:
    entry = Entry(**{**value, "tokens": Tokens(**value["tokens"])})
    if not isinstance(entry.index, int) or entry.status not in ("done", "rejected", "failed"):
        raise ValueError("not an outcome")
    return entry


def _difference(found: Any, expected: dict[str, Any]) -> str:
    if not isinstance(found, dict):
        return "not a journal of this program"
    differing = [name for name in expected if found.get(name) != expected[name]]
    return (
        f"was begun with another {', '.join(differing) or 'version'}; "
        "use the same, name another OUT, or remove the file to start anew"
    )


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode() + b"\n"

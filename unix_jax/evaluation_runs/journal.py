"""Journal of an evaluation: one appended JSON line per item, so that a killed run can resume.

Each process appends to its own file and locks it; a run reads the files of all processes. An
incomplete last line is ignored, and removed when its process starts again.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from unix_jax.errors import UniXError
from unix_jax.storage.files import atomic_write
from unix_jax.storage.json_file import read_json, write_json
from unix_jax.storage.line_file import LineFile, unwritable, whole_lines

SETTINGS = "settings.json"
_PATTERN = "items-*.jsonl"


@dataclasses.dataclass(frozen=True)
class Entry:
    """One item's outcome.

    index: its index in the source.
    key: its name in the source.
    status: done, or failed for good, with the `error`.
    values: its results, JSON by name; stored next to the other fields.
    """

    index: int
    key: str
    status: Literal["done", "failed"] = "done"
    error: str = ""
    values: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class Journal:
    """One process's file, open for appending; use as a context manager."""

    def __init__(self, directory: Path, process: int = 0) -> None:
        """Opens or creates `items-PROCESS.jsonl`.

        Raises:
          UniXError: it cannot be written, or another process writes it.
        """
        self.path = directory / f"items-{process}.jsonl"
        self._file = LineFile(self.path)
        self._file.cut()

    def append(self, entries: Sequence[Entry]) -> None:
        """Adds outcomes in one write; they are on the disk when this returns.

        Raises:
          UniXError: they cannot be written. Earlier lines stay intact.
        """
        self._file.append(b"".join(_line(entry) for entry in entries))

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def read_entries(directory: Path) -> dict[int, Entry]:
    """The outcomes of all processes so far, by index, in the order of the source.

    Raises:
      UniXError: a file cannot be read, a line before the last is damaged, or an item occurs twice.
    """
    found: dict[int, Entry] = {}
    for path in sorted(directory.glob(_PATTERN)):
        for number, line in enumerate(whole_lines(path), 1):
            try:
                entry = _entry(json.loads(line))
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
                raise UniXError(
                    f"{path}: line {number}: expected an item's outcome in JSON; "
                    "remove the line to compute that item again"
                ) from None
            if entry.index in found:
                raise UniXError(f"{path}: line {number}: item {entry.index} occurs twice")
            found[entry.index] = entry
    return dict(sorted(found.items()))


def remember(directory: Path, settings: Mapping[str, Any]) -> None:
    """Writes the settings of a new directory; compares them with those of one that exists.

    `items`, the number of records to take, may be larger than before: the first ones are done, and
    the new number is stored. Every other setting must be the same.

    Raises:
      UniXError: the directory was started with others, is not one of this program, or cannot be
        written.
    """
    path = directory / SETTINGS
    wanted = json.loads(json.dumps(dict(settings)))
    if path.exists():
        found = read_json(path, UniXError)
        if not _continues(found, wanted):
            raise UniXError(f"{path}: {_difference(found, wanted)}")
        if found == wanted:
            return
    elif any(directory.glob(_PATTERN)):
        raise UniXError(
            f"{path}: expected this file together with {_PATTERN}, found none; choose another --out"
        )
    try:
        with atomic_write(path) as temporary:
            write_json(temporary, wanted)
    except OSError as error:
        raise unwritable(path, error) from None


def _continues(found: Any, wanted: dict[str, Any]) -> bool:
    """Whether a directory with the settings `found` holds the beginning of what is `wanted`."""
    if not isinstance(found, dict):
        return False
    if "records" not in found:  # a directory of an earlier version
        wanted = {name: value for name, value in wanted.items() if name != "records"}
    before, now = found.get("items"), wanted.get("items")
    grown = isinstance(before, int) and isinstance(now, int) and before < now
    return found == wanted or (grown and found | {"items": now} == wanted)


def _difference(found: Any, wanted: dict[str, Any]) -> str:
    if not isinstance(found, dict):
        return "expected settings of an evaluation; choose another --out"
    names = [n for n in (*wanted, *found) if found.get(n) != wanted.get(n)]
    differing = ", ".join(
        f"{name} {json.dumps(found.get(name))} (now {json.dumps(wanted.get(name))})"
        for name in dict.fromkeys(names)
    )
    return f"was started with {differing}; use the same settings, or choose another --out"


def _line(entry: Entry) -> bytes:
    value = {"index": entry.index, "key": entry.key, "status": entry.status}
    if entry.error:
        value["error"] = entry.error
    # ASCII: a lone surrogate in a text has no other form in a file.
    return json.dumps({**value, **entry.values}).encode() + b"\n"


def _entry(value: Any) -> Entry:
    entry = Entry(
        value.pop("index"), value.pop("key"), value.pop("status"), value.pop("error", ""), value
    )
    known = isinstance(entry.index, int) and isinstance(entry.key, str)
    if not known or entry.status not in ("done", "failed"):
        raise ValueError("not an outcome")
    return entry

"""Files in the directory of an evaluation: its settings, and one journal per process."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unix_jax.errors import UniXError
from unix_jax.storage import journal
from unix_jax.storage.files import atomic_write
from unix_jax.storage.journal import Entry, settings_difference
from unix_jax.storage.json_file import read_json, write_json
from unix_jax.storage.line_file import unwritable

SETTINGS = "settings.json"
# What a directory of an earlier version does not say.
_BEFORE = {"quantization": "none"}
_PATTERN = "items-*.jsonl"


def journal_file(directory: Path, process: int = 0) -> Path:
    """The journal that a process writes."""
    return directory / f"items-{process}.jsonl"


def read_entries(directory: Path) -> dict[int, Entry]:
    """The finished items of all processes, by index, in the order of the source.

    Raises:
      UniXError: as `unix_jax.storage.journal.read_entries`.
    """
    return journal.read_entries(sorted(directory.glob(_PATTERN)))


def remember(directory: Path, settings: Mapping[str, Any]) -> None:
    """Writes the settings of a new directory; compares them with those of one that exists.

    `items`, the number of records to use, may be larger than before: the first records are done,
    and the new number is stored. Every other setting must be the same.

    Raises:
      UniXError: the directory was started with other settings, was not written by this program, or
        cannot be written.
    """
    path = directory / SETTINGS
    wanted = json.loads(json.dumps(dict(settings)))
    if path.exists():
        found = read_json(path, UniXError)
        if isinstance(found, dict):
            found = {name: _BEFORE[name] for name in _BEFORE if name in wanted} | found
        if found == wanted:
            return
        if not _continues(found, wanted):
            problem = settings_difference(found, wanted)
            raise UniXError(f"{path}: {problem}; use the same, or choose another --out")
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
    """Whether a directory with the settings `found` contains the beginning of the wanted run."""
    if not isinstance(found, dict):
        return False
    if "records" not in found:  # a directory of an earlier version
        wanted = {name: value for name, value in wanted.items() if name != "records"}
    before, now = found.get("items"), wanted.get("items")
    grown = isinstance(before, int) and isinstance(now, int) and before < now
    return found == wanted or (grown and found | {"items": now} == wanted)

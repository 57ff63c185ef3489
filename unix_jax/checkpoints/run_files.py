"""Files of training checkpoints: listing with checksums, verification, moving damaged ones."""

import itertools
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zlib_ng import zlib_ng

from unix_jax.errors import CheckpointError
from unix_jax.storage.files import atomic_write
from unix_jax.storage.json_file import read_json, seal_problem, sealed

LISTING = "files.json"
DAMAGED = "damaged"
ITEMS = ("state", "progress")
_BLOCK = 1 << 22
_FIELDS = frozenset({"metrics", "files"})


def require_writable(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe = directory / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise CheckpointError(f"{directory}: cannot be written: {error.strerror}") from error


def steps(directory: Path) -> list[int]:
    """Steps of the checkpoints in a directory, usable or not; none if it is absent.

    Raises:
      CheckpointError: the system cannot read the directory.
    """
    try:
        found = [entry.name for entry in os.scandir(directory) if entry.is_dir()]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise _unreadable(error, directory) from error
    return sorted(int(name) for name in found if name.isdecimal())


class _DamageError(Exception):
    """A checkpoint whose files have changed since they were written."""


def set_aside_damaged(directory: Path) -> list[str]:
    """Moves checkpoints that are newer than the newest usable one aside; yields a line for each.

    Older ones are verified only when a newer one fails. Nothing is moved or removed unless a usable
    checkpoint, or no checkpoint at all, exists.

    Raises:
      CheckpointError: there are checkpoints, and all of them are damaged; or the system cannot read
        one, which does not prove damage.
    """
    found = steps(directory)
    damaged: list[tuple[int, str]] = []
    for step in reversed(found):
        path = directory / str(step)
        try:
            _verify(path)
            break
        except _DamageError as error:
            damaged.append((step, str(error)))
        except OSError as error:
            raise _unreadable(error, path) from error
    if found and len(damaged) == len(found):
        reasons = "; ".join(f"step {step}: {reason}" for step, reason in damaged)
        what = "the only checkpoint is" if len(found) == 1 else f"all {len(found)} checkpoints are"
        raise CheckpointError(
            f"{directory}: {what} damaged ({reasons}). Nothing was changed. Restore it from a "
            "copy, or start a new run with another --out"
        )
    for leftover in directory.glob("*.*tmp*"):
        shutil.rmtree(leftover, ignore_errors=True)
    return [_set_aside(directory, step, reason) for step, reason in damaged]


def _set_aside(directory: Path, step: int, reason: str) -> str:
    aside = directory / DAMAGED / str(step)
    for number in itertools.count(2):
        if not aside.exists():
            break
        aside = aside.with_name(f"{step}-{number}")
    aside.parent.mkdir(exist_ok=True)
    (directory / str(step)).rename(aside)
    return f"checkpoint of step {step} is damaged, kept as {aside}: {reason}"


def _unreadable(error: OSError, path: Path) -> CheckpointError:
    file = error.filename or path
    return CheckpointError(
        f"{file}: cannot be read: {error.strerror or error}. Nothing was changed; start again when "
        "the file can be read"
    )


def _relative_files(path: Path) -> list[Path]:
    """Files of the items; Orbax touches its own beside them once more after they are listed."""
    found = (file for item in ITEMS for file in (path / item).rglob("*") if file.is_file())
    return sorted(file.relative_to(path) for file in found)


def _crc32(file: Path) -> int:
    value = 0
    with open(file, "rb") as stream:
        while block := stream.read(_BLOCK):
            value = zlib_ng.crc32(block, value)
    return value


def write_listing(path: Path, metrics: Mapping[str, float]) -> None:
    files = {
        str(file): [(path / file).stat().st_size, _crc32(path / file)]
        for file in _relative_files(path)
    }
    with atomic_write(path / LISTING) as temporary:
        temporary.write_text(json.dumps(sealed({"metrics": dict(metrics), "files": files})))


def listing(path: Path) -> dict[str, Any]:
    """files.json, or an empty dictionary if it is broken (`verify` reports the problem)."""
    try:
        value = read_json(path / LISTING, CheckpointError)
    except CheckpointError:
        return {}
    whole = isinstance(value, dict) and isinstance(value.get("metrics"), dict)
    return value if whole and not seal_problem(value, _FIELDS) else {}


def listed_files(path: Path) -> dict[str, int]:
    """Bytes by name of the files that files.json lists; none where it is broken."""
    files = listing(path).get("files")
    files = files if isinstance(files, dict) else {}
    return {name: entry[0] for name, entry in files.items() if isinstance(entry, list) and entry}


def verify(path: Path) -> None:
    """Raises a CheckpointError that names the first file that has changed since it was written."""
    try:
        _verify(path)
    except _DamageError as error:
        raise CheckpointError(str(error)) from None
    except OSError as error:
        raise _unreadable(error, path) from error


def _verify(path: Path) -> None:
    """Raises a _DamageError that names the first file that has changed since it was written.

    OSError: the system cannot read an existing file.
    """
    try:
        text = (path / LISTING).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise _DamageError(f"{path / LISTING}: no such file") from None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _DamageError(f"{path / LISTING}: expected JSON, found: {error}") from None
    if isinstance(value, dict) and (problem := seal_problem(value, _FIELDS)):
        raise _DamageError(f"{path / LISTING}: {problem}")
    files = value.get("files") if isinstance(value, dict) else None
    if not isinstance(files, dict) or not files:
        raise _DamageError(f"{path / LISTING}: files: expected an object")
    for name, entry in files.items():
        file = path / name
        if not isinstance(entry, list) or len(entry) != 2 or ".." in Path(name).parts:
            raise _DamageError(f"{path / LISTING}: {name}: expected [size, crc32]")
        try:
            size = file.stat().st_size
            if size != entry[0]:
                raise _DamageError(f"{file}: expected {entry[0]} bytes, found {size}")
            content = _crc32(file)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise _DamageError(f"{file}: no such file") from None
        if content != entry[1]:
            raise _DamageError(f"{file}: content changed (CRC-32)")

"""The files of training checkpoints: listed with their checksums, verified, moved aside."""

import json
import os
import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unix_jax.errors import CheckpointError
from unix_jax.files import atomic_write
from unix_jax.json_file import read_json

LISTING = "files.json"
ITEMS = ("state", "progress")
_BLOCK = 1 << 22


def require_writable(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe = directory / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise CheckpointError(f"{directory}: cannot be written: {error.strerror}") from error


def steps(directory: Path) -> list[int]:
    found = (entry.name for entry in os.scandir(directory) if entry.is_dir())
    return sorted(int(name) for name in found if name.isdecimal())


def set_aside_unusable(directory: Path) -> list[str]:
    """Leaves a newest checkpoint that is whole; gives one line for each that was damaged.

    Older ones are verified only when a newer one fails.
    """
    for leftover in directory.glob("*.*tmp*"):
        shutil.rmtree(leftover, ignore_errors=True)
    lines = []
    for step in reversed(steps(directory)):
        path = directory / str(step)
        try:
            verify(path)
        except CheckpointError as error:
            damaged = directory / "damaged" / str(step)
            shutil.rmtree(damaged, ignore_errors=True)
            damaged.parent.mkdir(exist_ok=True)
            path.rename(damaged)
            lines.append(f"checkpoint of step {step} is damaged, kept as {damaged}: {error}")
            continue
        break
    return lines


def _relative_files(path: Path) -> list[Path]:
    """Files of the items; Orbax touches its own beside them once more after they are listed."""
    found = (file for item in ITEMS for file in (path / item).rglob("*") if file.is_file())
    return sorted(file.relative_to(path) for file in found)


def _crc32(file: Path) -> int:
    value = 0
    with open(file, "rb") as stream:
        while block := stream.read(_BLOCK):
            value = zlib.crc32(block, value)
    return value


def write_listing(path: Path, metrics: Mapping[str, float]) -> None:
    files = {
        str(file): [(path / file).stat().st_size, _crc32(path / file)]
        for file in _relative_files(path)
    }
    with atomic_write(path / LISTING) as temporary:
        temporary.write_text(json.dumps({"metrics": dict(metrics), "files": files}))


def listing(path: Path) -> dict[str, Any]:
    """files.json, or an empty dictionary where it is broken (`verify` says how)."""
    try:
        value = read_json(path / LISTING, CheckpointError)
    except CheckpointError:
        return {}
    return value if isinstance(value, dict) and isinstance(value.get("metrics"), dict) else {}


def verify(path: Path) -> None:
    """Raises a CheckpointError that names the first file that is not as it was written."""
    files = read_json(path / LISTING, CheckpointError)
    files = files.get("files") if isinstance(files, dict) else None
    if not isinstance(files, dict) or not files:
        raise CheckpointError(f"{path / LISTING}: files: expected an object")
    for name, entry in files.items():
        file = path / name
        if not isinstance(entry, list) or len(entry) != 2 or ".." in Path(name).parts:
            raise CheckpointError(f"{path / LISTING}: {name}: expected [size, crc32]")
        if not file.is_file():
            raise CheckpointError(f"{file}: no such file")
        if (size := file.stat().st_size) != entry[0]:
            raise CheckpointError(f"{file}: expected {entry[0]} bytes, found {size}")
        if _crc32(file) != entry[1]:
            raise CheckpointError(f"{file}: content changed (CRC-32)")

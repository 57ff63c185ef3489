"""What a checkpoint directory of this project says of itself: index.json and config.json.

Nothing here reads weights or imports JAX: `unix-jax info` answers at once.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unix_jax.config import FORMAT as CONFIG_FORMAT
from unix_jax.config import UniXConfig
from unix_jax.errors import CheckpointError, ConfigError
from unix_jax.storage import recorded_files
from unix_jax.storage.json_file import read_json, seal_problem, sealed, write_json

FORMAT = "unix-jax-checkpoint-1"
PARTS = ("params", "vae", "text_encoder", "extras")
_FIELDS = frozenset({"format", "layout", "training", recorded_files.FIELD, *PARTS})


def is_checkpoint(path: str | os.PathLike[str]) -> bool:
    """Whether `path` looks like a directory written by `save`, also if a part of it is missing."""
    directory = Path(path)
    found = [(directory / "index.json").is_file(), (directory / "params").is_dir()]
    return all(found) or (any(found) and _has_own_config(directory))


def _has_own_config(directory: Path) -> bool:
    try:
        values = read_json(directory / "config.json")
    except ConfigError:
        return False
    return isinstance(values, dict) and values.get("format") == CONFIG_FORMAT


def load_config(path: str | os.PathLike[str]) -> UniXConfig:
    """The configuration of a checkpoint directory.

    Raises:
      CheckpointError: not a directory of this kind, or config.json changed since it was written.
      ConfigError: config.json is broken.
    """
    _require_directory(Path(path))
    recorded_files.verified(path, recorded_files.CONFIG)
    return read_config(path)


def read_config(path: str | os.PathLike[str]) -> UniXConfig:
    """The configuration in config.json, whether or not it changed since it was written.

    Raises:
      ConfigError: the file is broken.
    """
    file = Path(path) / "config.json"
    values = read_json(file)
    if not isinstance(values, Mapping):
        raise ConfigError(f"{file}: expected a JSON object, found {type(values).__name__}")
    return UniXConfig.from_dict(values, str(file))


def read_index(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The checked content of index.json.

    Raises:
      CheckpointError: no such directory, or the file is missing or broken.
    """
    directory = Path(path)
    _require_directory(directory)
    file = directory / "index.json"
    if not file.is_file():
        raise CheckpointError(
            f"{file}: expected this file, which lists the arrays of a checkpoint, found none"
        )
    index = read_json(file, CheckpointError)
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        found = index.get("format") if isinstance(index, dict) else type(index).__name__
        raise CheckpointError(f"{file}: format: expected {FORMAT!r}, found {found!r}")
    if problem := seal_problem(index, _FIELDS):
        raise CheckpointError(f"{file}: {problem}")
    entries = [(part, _entries(index, part, file)) for part in PARTS]
    # Checkpoints of earlier versions have no checksums at all; one entry without is damage.
    summed = any(isinstance(e, dict) and "crc32" in e for _, part in entries for e in part.values())
    for part, listed in entries:
        for name, entry in listed.items():
            sizes = entry.get("shape") if isinstance(entry, dict) else None
            whole = isinstance(sizes, list) and all(isinstance(n, int) and n >= 0 for n in sizes)
            if not whole or not isinstance(entry.get("dtype"), str):
                raise CheckpointError(f"{file}: {part}.{name}: expected shape and dtype")
            sums = entry.get("crc32", {})
            if (summed and "crc32" not in entry) or not _are_checksums(sums):
                raise CheckpointError(f"{file}: {part}.{name}: crc32: expected file: number")
    if "params" not in index:
        raise CheckpointError(f"{file}: params: missing")
    recorded_files.listed(index, file)
    return index


def write_index(directory: Path, index: Mapping[str, Any]) -> None:
    """Writes index.json with the checksums of the files other than arrays, and its own."""
    files = {recorded_files.FIELD: recorded_files.record(directory)}
    write_json(directory / "index.json", sealed({**index, **files}))


def has_vae(path: str | os.PathLike[str]) -> bool:
    """Whether the checkpoint carries an autoencoder."""
    return "vae" in read_index(path)


def has_checksums(path: str | os.PathLike[str]) -> bool:
    """Whether index.json has the checksums of the arrays, as all except old checkpoints do."""
    index = read_index(path)
    return any("crc32" in entry for part in PARTS for entry in index.get(part, {}).values())


def _are_checksums(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(crc, int) and not isinstance(crc, bool) for crc in value.values()
    )


def _entries(index: Mapping[str, Any], part: str, file: Path) -> dict[str, Any]:
    entries = index.get(part, {})
    if not isinstance(entries, dict):
        raise CheckpointError(f"{file}: {part}: expected an object")
    # Names become directories: only what `save` itself can have written is accepted.
    for name in entries:
        if not name or name.startswith(".") or "\0" in name or ".." in name:
            raise CheckpointError(f"{file}: {part}: not the name of an array: {name!r}")
    return entries


def _require_directory(path: Path) -> None:
    if not path.is_dir():
        raise CheckpointError(f"{path}: expected a checkpoint directory, found no such directory")

"""Files of a checkpoint other than its arrays, listed in index.json with their size and CRC-32.

These are config.json, the tokenizer files and those in `source/`. Each is verified before it is
used. Checkpoints of earlier versions list none, and a file that was added later is not listed; such
files are used without verification.
"""

import os
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from unix_jax.errors import CheckpointError
from unix_jax.storage.json_file import read_json

INDEX = "index.json"
FIELD = "files"
CONFIG = "config.json"
SOURCE = "source"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
)


def kept_names(directory: Path) -> list[str]:
    """The names of all such files in a checkpoint."""
    names = [name for name in (CONFIG, *TOKENIZER_FILES) if (directory / name).is_file()]
    return names + source_names(directory)


def source_names(directory: Path) -> list[str]:
    """The names of the files in `source/`, such as `source/vae/config.yaml`."""
    below = sorted((directory / SOURCE).rglob("*"))
    return [file.relative_to(directory).as_posix() for file in below if file.is_file()]


def record(directory: Path) -> dict[str, dict[str, int]]:
    """Size and CRC-32 of every such file by name, ready for JSON.

    Raises:
      CheckpointError: a file cannot be read.
    """
    return {name: _measure(directory / name) for name in kept_names(directory)}


def _measure(file: Path) -> dict[str, int]:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror}") from None
    return {"size": len(data), "crc32": zlib.crc32(data)}


def listed(index: Any, file: Path) -> dict[str, dict[str, int]]:
    """The files listed in a parsed index.json; empty if it lists none.

    Raises:
      CheckpointError: the list is broken.
    """
    entries = index.get(FIELD, {}) if isinstance(index, Mapping) else {}
    if not isinstance(entries, dict):
        raise CheckpointError(f"{file}: {FIELD}: expected an object")
    for name, entry in entries.items():
        parts = PurePosixPath(name).parts
        plain = parts and ".." not in parts and not name.startswith("/") and "\0" not in name
        sizes = [entry.get(key) for key in ("size", "crc32")] if isinstance(entry, dict) else []
        if not plain or len(sizes) != 2 or not all(type(size) is int for size in sizes):
            raise CheckpointError(f"{file}: {FIELD}: {name!r}: expected size and crc32")
    return entries


def read_listed(directory: str | os.PathLike[str]) -> dict[str, dict[str, int]]:
    """The files listed in the index.json of a directory; empty without that file.

    Raises:
      CheckpointError: index.json is broken.
    """
    file = Path(directory) / INDEX
    return listed(read_json(file, CheckpointError), file) if file.is_file() else {}


def has_file(directory: str | os.PathLike[str], name: str) -> bool:
    """Whether a directory has such a file, or lists it."""
    return (Path(directory) / name).is_file() or name in read_listed(directory)


def verified(directory: str | os.PathLike[str], name: str) -> Path:
    """The path of such a file, after its content was verified against index.json.

    A file that is not listed, or a directory without index.json, is not compared.

    Raises:
      CheckpointError: a listed file is missing or changed.
    """
    require(Path(directory), read_listed(directory), [name])
    return Path(directory) / name


def require(
    directory: Path, entries: Mapping[str, Mapping[str, int]], names: Iterable[str]
) -> None:
    """Raises a CheckpointError for the first of the names whose file is missing or changed."""
    for name in names:
        if name in entries and (line := difference(directory, name, entries[name])):
            raise CheckpointError(
                f"{line}. Fetch the checkpoint again; or, if the file was edited on purpose, "
                f"record it as it is with `unix-jax convert accept {directory}`"
            )


def difference(directory: Path, name: str, entry: Mapping[str, int]) -> str | None:
    """The problem of a listed file, in one line that names it; None if there is none."""
    file = directory / name
    if not file.is_file():
        return f"{file}: expected a file that {INDEX} lists, found none"
    found = _measure(file)
    if found["size"] != entry["size"]:
        return (
            f"{file}: content changed since it was written: expected {entry['size']} bytes "
            f"({INDEX}), found {found['size']}"
        )
    if found["crc32"] != entry["crc32"]:
        return (
            f"{file}: content changed since it was written: expected CRC-32 {entry['crc32']} "
            f"({INDEX}), found {found['crc32']}"
        )
    return None

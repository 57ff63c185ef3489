"""Opens the tensors of any checkpoint that PyTorch projects publish, lazily and without torch.

`open_tensors` recognises a file by its first bytes, an index of shards by its JSON, and a directory
by the names the hub uses.
"""

from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np

from convert.safetensors_file import SafetensorsFile, parse_json_object
from convert.sources import MappedFile, TensorInfo, TensorSource, missing_key, quoted
from convert.torch_file import LEGACY_START, TorchFile
from convert.zip_members import ZIP_START
from unix_jax.errors import CheckpointError

__all__ = ["DIRECTORY_NAMES", "TensorInfo", "TensorSource", "open_tensors"]

# The names looked for in a directory, best first.
DIRECTORY_NAMES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)

_MAX_INDEX_BYTES = 64 * 2**20
_PICKLE_SUFFIXES = (".bin", ".ckpt", ".pt", ".pth")


def open_tensors(path: str | Path) -> TensorSource:
    """Opens a checkpoint of tensors; nothing but its table of contents is read.

    Args:
      path: a `.safetensors` file, a file of `torch.save`, an index of shards
        (`model.safetensors.index.json`, `pytorch_model.bin.index.json`), or a directory that
        holds one of `DIRECTORY_NAMES`.

    Returns:
      The tensors; close it, or use it in a `with` statement.

    Raises:
      CheckpointError: there is no such file, or it is broken, of another kind, or not safe.
    """
    path = Path(path)
    try:
        if path.is_dir():
            for name in DIRECTORY_NAMES:
                if (path / name).exists():
                    return open_tensors(path / name)
            raise CheckpointError(
                f"{path}: expected one of {', '.join(DIRECTORY_NAMES)} in it, found none"
            )
        return _Sharded(path) if path.suffix == ".json" else _open_file(path)
    except (OSError, ValueError) as error:  # a path that cannot be: too long, with a null byte
        raise CheckpointError(f"{quoted(str(path))}: cannot be read: {error}") from error


def _open_file(path: Path) -> TensorSource:
    """Opens one file; its first bytes tell the format, its suffix only words the error."""
    file = MappedFile(path)
    try:
        start = file.bytes(0, 64)
        if start.startswith(ZIP_START) or start.startswith(LEGACY_START):
            return TorchFile(file)
        if start.startswith(b"version https://git-lfs"):
            raise CheckpointError(f"{path}: is a Git LFS pointer; fetch the file itself first")
        if path.suffix in _PICKLE_SUFFIXES and start[8:9] != b"{":
            raise CheckpointError(
                f"{path}: expected a file of torch.save (a zip, or torch's older format), "
                f"found one that begins with {start[:8]!r}"
            )
        return SafetensorsFile(file)
    except BaseException:
        file.close()
        raise


class _Sharded(TensorSource):
    """The shards that an index lists, as one checkpoint; together they hold what it lists."""

    def __init__(self, path: Path):
        self.path = path
        self.metadata = {}
        self.skipped = []
        self._shards: dict[str, TensorSource] = {}
        self._map = _weight_map(path)
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        for name in dict.fromkeys(self._map.values()):
            shard = _open_file(self.path.parent / name)
            self._shards[name] = shard
            self.skipped += shard.skipped
            self.metadata.update(shard.metadata)
            expected = {key for key, where in self._map.items() if where == name}
            found = set(shard.keys())
            if expected != found:
                lists = [
                    f"{what}: {', '.join(quoted(key) for key in sorted(keys)[:20])}"
                    for what, keys in (
                        ("missing", expected - found),
                        ("not in the index", found - expected),
                    )
                    if keys
                ]
                raise CheckpointError(
                    f"{shard.path}: does not hold what {self.path.name} says: {'; '.join(lists)}"
                )

    def _shard(self, key: str) -> TensorSource:
        if key not in self._map:
            raise missing_key(self.path, key, self.keys())
        return self._shards[self._map[key]]

    def keys(self) -> list[str]:
        return list(self._map)

    def info(self, key: str) -> TensorInfo:
        return self._shard(key).info(key)

    def read(self, key: str) -> np.ndarray:
        return self._shard(key).read(key)

    def release(self, key: str) -> None:
        self._shard(key).release(key)

    def close(self) -> None:
        for shard in self._shards.values():
            shard.close()


def _weight_map(path: Path) -> dict[str, str]:
    """The index's table from tensor to shard; shards are plain names beside the index."""
    file = MappedFile(path)
    try:
        if file.size > _MAX_INDEX_BYTES:
            raise CheckpointError(
                f"{path}: {file.size} bytes, expected an index of at most {_MAX_INDEX_BYTES}"
            )
        index = parse_json_object(path, file.bytes(0, file.size), "index of shards")
    finally:
        file.close()
    table = index.get("weight_map")
    if not isinstance(table, dict) or not table:
        raise CheckpointError(f"{path}: expected an object `weight_map`, found {quoted(table)}")
    for key, name in table.items():
        if not isinstance(name, str) or not _is_plain_name(name):
            raise CheckpointError(
                f"{path}: {quoted(key)}: expected the name of a shard beside the index, "
                f"found {quoted(name)}"
            )
    return table


def _is_plain_name(name: str) -> bool:
    return (
        name not in ("", ".", "..")
        and name.isprintable()
        and PurePosixPath(name).name == name
        and PureWindowsPath(name).name == name
    )

"""Opens the tensors of any checkpoint that PyTorch projects publish, lazily and without torch.

`open_tensors` recognises a file by its first bytes, an index of shards by its JSON, and a directory
by the names that `unix_jax.checkpoints.formats.weight_files` knows.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from unix_jax.checkpoints.formats.safetensors_file import SafetensorsFile
from unix_jax.checkpoints.formats.tensor_source import (
    MappedFile,
    TensorInfo,
    TensorSource,
    missing_key,
    quoted,
)
from unix_jax.checkpoints.formats.torch_file import LEGACY_START, TorchFile
from unix_jax.checkpoints.formats.weight_files import (
    DIRECTORY_NAMES,
    WeightFiles,
    find_weights,
    read_weight_map,
)
from unix_jax.checkpoints.formats.zip_members import ZIP_START
from unix_jax.errors import CheckpointError, shortened

__all__ = ["DIRECTORY_NAMES", "TensorInfo", "TensorSource", "open_tensors", "open_weights"]

_PICKLE_SUFFIXES = (".bin", ".ckpt", ".pt", ".pth")


def open_tensors(
    path: str | Path, wanted: str | None = None, known: frozenset[str] = frozenset()
) -> TensorSource:
    """Opens a checkpoint of tensors; nothing but its table of contents is read.

    Args:
      path: a `.safetensors` file, a file of `torch.save`, an index of shards
        (`model.safetensors.index.json`, `pytorch_model.bin.index.json`), or a directory of which
        `find_weights` selects the files.
      wanted: `ema` for the average of a file or directory that also contains the weights; another
        name for the entry of that name in a file of `torch.save`.
      known: names of the model's tensors (`prefixes.known_names`), which distinguish weights from
        other tensors in such a file.

    Returns:
      The tensors; close it, or use it in a `with` statement.

    Raises:
      CheckpointError: there is no such file, or it is broken, of another kind, or not safe.
    """
    path = Path(path)
    try:
        if path.is_dir():
            return open_weights(find_weights(path, wanted), wanted, known)
        return open_weights(WeightFiles((path,), path.name), wanted, known)
    except (OSError, ValueError) as error:  # a path that cannot be: too long, with a null byte
        raise CheckpointError(f"{quoted(str(path))}: cannot be read: {error}") from error


def open_weights(
    files: WeightFiles, wanted: str | None = None, known: frozenset[str] = frozenset()
) -> TensorSource:
    """Opens one set of weights; arguments and errors as `open_tensors`."""
    path = files.paths[0]
    if path.suffix == ".json":
        return _Sharded(path, read_weight_map(path), wanted, known)
    if len(files.paths) > 1:
        return _Sharded(path.parent / files.name, files.paths, wanted, known)
    return _open_file(path, wanted, known)


def _open_file(path: Path, wanted: str | None, known: frozenset[str]) -> TensorSource:
    """Opens one file; its first bytes determine the format, its suffix only the error message."""
    file = MappedFile(path)
    try:
        start = file.bytes(0, 64)
        if start.startswith(ZIP_START) or start.startswith(LEGACY_START):
            return TorchFile(file, wanted, known)
        if start.startswith(b"version https://git-lfs"):
            raise CheckpointError(f"{path}: is a Git LFS pointer; download the file itself first")
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
    """Shards as one checkpoint; an index, if any, must list exactly their tensors."""

    def __init__(
        self,
        path: Path,
        parts: Mapping[str, str] | tuple[Path, ...],
        wanted: str | None,
        known: frozenset[str],
    ):
        self.path = path
        self._wanted, self._known = wanted, known
        self.metadata = {}
        self.skipped = []
        self._shards: dict[str, TensorSource] = {}
        self._map: dict[str, str] = {}
        try:
            if isinstance(parts, Mapping):
                self._open_listed(parts)
            else:
                self._open_all(parts)
        except BaseException:
            self.close()
            raise
        shards = self._shards.values()
        self.averaged = any(shard.averaged for shard in shards)
        self.named = any(shard.named for shard in shards)
        self.checksums = all(shard.checksums for shard in shards)
        self.sets = tuple(dict.fromkeys(name for shard in shards for name in shard.sets))

    def _open(self, name: str) -> TensorSource:
        shard = _open_file(self.path.parent / name, self._wanted, self._known)
        self._shards[name] = shard
        self.skipped += shard.skipped
        self.metadata.update(shard.metadata)
        return shard

    def _open_listed(self, table: Mapping[str, str]) -> None:
        self._map = dict(table)
        listed: dict[str, set[str]] = {}
        for key, name in table.items():
            listed.setdefault(name, set()).add(key)
        for name, expected in listed.items():
            shard = self._open(name)
            found = set(shard.keys())
            if expected != found:
                raise _not_as_listed(shard.path, self.path.name, expected, found)

    def _open_all(self, paths: tuple[Path, ...]) -> None:
        for path in paths:
            for key in self._open(path.name).keys():  # noqa: SIM118
                if key in self._map:
                    raise CheckpointError(
                        f"{path}: {quoted(key)}: is in {self._map[key]} as well, "
                        "expected it in one shard"
                    )
                self._map[key] = path.name

    def files(self) -> list[tuple[str, list[str]]]:
        return [(name, shard.keys()) for name, shard in self._shards.items()]

    def file_of(self, key: str) -> Path:
        return self._shard(key).path

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


def _not_as_listed(path: Path, index: str, expected: set[str], found: set[str]) -> CheckpointError:
    groups = (("missing", expected - found), ("not in the index", found - expected))

    def text(limit: Callable[[Sequence[str]], Sequence[str]]) -> str:
        lists = (
            f"{what}: {', '.join(limit([quoted(key) for key in sorted(keys)]))}"
            for what, keys in groups
            if keys
        )
        return f"{path}: does not contain what {index} lists: {'; '.join(lists)}"

    return CheckpointError(text(shortened), text(list))

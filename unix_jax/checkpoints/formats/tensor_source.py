"""Common interface of the tensor readers: names, shapes and dtypes first, bytes only on request.

A file is memory-mapped, not loaded. Mapped pages count as resident memory of the process once they
are touched, so a caller that iterates over a large file calls `release` after each tensor: the
pages leave the process and the peak stays near the size of one tensor.
"""

import abc
import dataclasses
import mmap
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from unix_jax.errors import CheckpointError, SourceNote

# numpy's own limits on an array's rank and byte size: beyond them it raises, so readers refuse.
MAX_RANK = 32
MAX_BYTES = 2**62

# Linux maps up to this much around a page fault, so that much is dropped around a tensor.
_FAULT_AROUND = 64 * 1024


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """Shape and type of a tensor that may not have been read.

    Attributes:
      shape: the sizes of its axes, outermost first; `()` for a scalar.
      dtype: its numpy type; bfloat16 and the float8 types are those of `ml_dtypes`.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def count(self) -> int:
        """Number of elements."""
        count = 1
        for size in self.shape:
            count *= size
        return count

    @property
    def nbytes(self) -> int:
        """Size in bytes of the tensor laid out contiguously."""
        return self.count * self.dtype.itemsize


class TensorSource(abc.ABC):
    """Named tensors in a file, or in the shards of one checkpoint; a context manager.

    Attributes:
      path: what was opened.
      metadata: the strings in the file's `__metadata__` (safetensors).
      skipped: names in the file's state dict whose values are not tensors.
      averaged: whether the file says that these weights are an average (EMA).
      named: whether a requested name (`--weights NAME`) selected one of several sets.
      checksums: whether each tensor's bytes are compared with a checksum when they are read.
      sets: the names of the sets of weights in the file, if it has several.
    """

    path: Path
    metadata: dict[str, str]
    skipped: list[str]
    averaged: bool = False
    named: bool = False
    checksums: bool = False
    sets: Sequence[str] = ()

    @abc.abstractmethod
    def keys(self) -> list[str]:
        """Names of all tensors, in the order of the file's own table."""

    @abc.abstractmethod
    def info(self, key: str) -> TensorInfo:
        """Shape and type of one tensor, without reading it.

        Raises:
          CheckpointError: there is no such tensor.
        """

    @abc.abstractmethod
    def read(self, key: str) -> np.ndarray:
        """One tensor, as a read-only view of the mapped file wherever the file allows it.

        The view stays valid after `release` and after `close`.

        Raises:
          CheckpointError: there is no such tensor, or its bytes cannot be read.
        """

    @abc.abstractmethod
    def release(self, key: str) -> None:
        """Drops the tensor's pages from this process; reading it again maps them again."""

    def file_of(self, key: str) -> Path:
        """The file that holds a tensor."""
        return self.path

    def files(self) -> list[tuple[str, list[str]]]:
        """(name of a file, its keys in order) for every file that holds a part."""
        return [(self.path.name, self.keys())]

    @abc.abstractmethod
    def close(self) -> None:
        """Closes the files. Views that are still in use keep their mapping alive."""

    def __contains__(self, key: str) -> bool:
        return key in self.keys()

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self.keys())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class MappedFile:
    """A regular file, mapped read-only.

    Attributes:
      path: the file's path.
      size: its size in bytes, at least 1.

    Raises:
      CheckpointError: the path is missing, empty, unreadable or not a regular file.
    """

    def __init__(self, path: Path):
        self.path = path
        if not path.is_file():
            found = "it does not exist" if not path.exists() else "it is not a regular file"
            raise CheckpointError(f"{path}: expected a tensor file, but {found}")
        try:
            with path.open("rb") as file:
                self.size = os.fstat(file.fileno()).st_size
                if self.size == 0:
                    raise CheckpointError(f"{path}: expected a tensor file, but it is empty")
                access = mmap.ACCESS_READ
                self._mapping: mmap.mmap | None = mmap.mmap(file.fileno(), self.size, access=access)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path}: cannot be read: {error}") from error

    def bytes(self, offset: int, size: int) -> bytes:
        """A copy of at most `size` bytes at `offset`; fewer at the end of the file."""
        return self._map[offset : offset + size]

    def array(
        self,
        offset: int,
        shape: Sequence[int],
        dtype: np.dtype[Any],
        strides: Sequence[int] | None = None,
    ) -> np.ndarray:
        """A read-only view of `shape` and `dtype`, row-major unless `strides` (bytes) are given.

        The caller has checked the range; numpy checks it again.
        """
        return np.ndarray(tuple(shape), dtype, self._map, offset, strides)

    def release(self, offset: int, size: int) -> None:
        """Drops the pages of a byte range from this process (a no-op where unsupported)."""
        if not hasattr(mmap, "MADV_DONTNEED") or self._mapping is None or size <= 0:
            return
        grain = max(_FAULT_AROUND, mmap.PAGESIZE)
        start = offset // grain * grain
        end = min(-(-(offset + size) // grain) * grain, self.size)
        self._map.madvise(mmap.MADV_DONTNEED, start, end - start)

    def close(self) -> None:
        """Releases the mapping; it ends with the last view of it.

        It is not unmapped here: a numpy view of a buffer does not stop `mmap.close`, and would
        point at nothing after it.
        """
        self._mapping = None

    @property
    def _map(self) -> mmap.mmap:
        if self._mapping is None:
            raise ValueError(f"{self.path}: is closed")
        return self._mapping


def note(line: str) -> None:
    """Emits a note of one line; the command line prints it on standard error."""
    warnings.warn(line, SourceNote, stacklevel=3)


# Words by which trainings name an average of their weights.
AVERAGE_WORDS = ("ema", "averaged", "average", "avg", "swa", "polyak", "shadow")


def is_average(name: str) -> bool:
    """Whether the name of a file, an entry or a prefix denotes an average of weights.

    One of `AVERAGE_WORDS` is a word of the name: `ema_model`, `modelEMA`, `params-ema.pt`.
    """
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)
    return not set(AVERAGE_WORDS).isdisjoint(word.lower() for word in words)


def quoted(value: object, limit: int = 120) -> str:
    """A value from a file for an error message: one printable line of bounded length.

    Only strings, numbers, booleans and None are shown. For anything else only the type is shown,
    because formatting a container from a hostile file may take for ever.
    """
    if isinstance(value, str):
        return repr(value) if len(value) <= limit else f"{value[:limit]!r}..."
    if isinstance(value, int) and abs(value) >= 2**64:
        return "an integer beyond 64 bits"
    if value is None or isinstance(value, (bool, int, float)):
        return repr(value)
    return f"a {type(value).__name__}"


def missing_key(path: Path, key: str, keys: Sequence[str]) -> CheckpointError:
    """The error for a tensor that a file does not contain."""
    return CheckpointError(f"{path}: has no tensor {quoted(key)} (it contains {len(keys)} tensors)")

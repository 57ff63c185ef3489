"""Reads the arrays of a tree that `orbax_tree` wrote, on demand and in parts, without Orbax.

Arrays are uncompressed zarr chunks, so that a file's size tells whether it is whole. The CRC-32 of
every file of an array is verified as the file is read: a device that reads a part of an array
verifies the chunks of that part.
"""

import concurrent.futures
import itertools
import math
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from zlib_ng import zlib_ng

from unix_jax.checkpoints.leaves import Index, Leaf, array_leaf
from unix_jax.errors import CheckpointError
from unix_jax.storage.json_file import read_json

Progress = Callable[[int], None]
HEADER = ".zarray"
# Reading and summing release the interpreter's lock; more threads than this do not read faster.
THREADS = min(8, os.cpu_count() or 1)


def array_folder(directory: Path, name: str) -> Path:
    """Where an array of a tree is; `name` is its path."""
    # Orbax joins the names of nested keys with dots.
    return directory / name.replace("/", ".")


def open_leaf(
    directory: Path,
    name: str,
    shape: tuple[int, ...],
    dtype: np.dtype,
    checksums: Mapping[str, int] | None,
) -> Leaf:
    """One array of a tree that `save_tree` wrote, verified to be whole, read on demand.

    Args:
      directory: of the tree.
      name: the array's path.
      shape, dtype: as index.json has them.
      checksums: CRC-32 of each of its files, verified as they are read; None where the checkpoint
        has none.

    Raises:
      CheckpointError: a file is missing, truncated, changed, or disagrees; the message names it.
        So does `Leaf.read`.
    """
    folder = array_folder(directory, name)
    if 0 in shape:
        return array_leaf(np.zeros(shape, dtype))
    header = _read_header(folder, shape, dtype, checksums)
    if _is_plain(header):
        _check_sizes(folder, shape, dtype, header["chunks"])
        return Leaf(shape, dtype, _Reader(folder, shape, dtype, header["chunks"], checksums))
    if checksums is not None:
        raise CheckpointError(f"{folder}/{HEADER}: expected uncompressed chunks in row-major order")
    return Leaf(shape, dtype, tensorstore_reader(folder))


def _read_header(
    folder: Path, shape: tuple[int, ...], dtype: np.dtype, checksums: Mapping[str, int] | None
) -> dict[str, Any]:
    file = folder / HEADER
    header = read_json(file, CheckpointError)
    if checksums is not None:
        _require_same(file, file.read_bytes(), checksums)
    if not isinstance(header, dict):
        raise CheckpointError(f"{file}: expected a JSON object")
    if header.get("shape") != list(shape):
        raise CheckpointError(
            f"{folder}: expected shape {list(shape)} (index.json), found {header.get('shape')}"
        )
    if not _is_type(header.get("dtype"), dtype):
        raise CheckpointError(
            f"{folder}: expected dtype {dtype.name} (index.json), found {header.get('dtype')!r}"
        )
    chunks = header.get("chunks")
    if not (
        isinstance(chunks, list)
        and len(chunks) == len(shape)
        and all(isinstance(size, int) and size > 0 for size in chunks)
    ):
        raise CheckpointError(f"{file}: chunks: found {chunks!r}")
    return header


def _is_type(written: Any, dtype: np.dtype) -> bool:
    """Zarr's name of a type: `<f4`, or `bfloat16` where numpy has no such type itself."""
    try:
        return written == dtype.name or np.dtype(written) == dtype
    except TypeError:
        return False


def _is_plain(header: Mapping[str, Any]) -> bool:
    return (
        header.get("compressor") is None
        and not header.get("filters")
        and header.get("order", "C") == "C"
        and header.get("dimension_separator", ".") == "."
    )


def _check_sizes(
    folder: Path, shape: tuple[int, ...], dtype: np.dtype, chunks: Sequence[int]
) -> None:
    """Every chunk of an uncompressed zarr array must be there with its full size."""
    expected = math.prod(chunks) * dtype.itemsize
    sizes = {entry.name: entry.stat().st_size for entry in os.scandir(folder)}
    grid = [-(-size // chunk) for size, chunk in zip(shape, chunks, strict=True)]
    for cell in np.ndindex(*grid):
        name = _chunk_name(cell)
        if sizes.get(name) != expected:
            found = "no such file" if name not in sizes else f"{sizes[name]} bytes"
            raise CheckpointError(f"{folder / name}: expected {expected} bytes, found {found}")


def _chunk_name(cell: Sequence[int]) -> str:
    return ".".join(map(str, cell)) or "0"


def _require_same(file: Path, data: Any, checksums: Mapping[str, int]) -> None:
    found, expected = zlib_ng.crc32(data), checksums.get(file.name)
    if found != expected:
        raise CheckpointError(
            f"{file}: content changed since it was written: expected CRC-32 {expected} "
            f"(index.json), found {found}"
        )


class _Reader:
    """Reads boxes of an uncompressed zarr array, chunk files in parallel, each verified whole."""

    def __init__(
        self,
        folder: Path,
        shape: tuple[int, ...],
        dtype: np.dtype,
        chunks: Sequence[int],
        checksums: Mapping[str, int] | None,
    ) -> None:
        self._folder, self._shape, self._dtype = folder, shape, dtype
        self._chunks, self._checksums = tuple(chunks), checksums
        self._scratch = threading.local()

    def __call__(self, index: Index) -> np.ndarray:
        spans = [part.indices(size)[:2] for part, size in zip(index, self._shape, strict=True)]
        array = np.empty([max(stop - start, 0) for start, stop in spans], self._dtype)
        cells = itertools.product(
            *(
                range(start // chunk, -(-stop // chunk))
                for (start, stop), chunk in zip(spans, self._chunks, strict=True)
            )
        )
        try:
            if math.prod(self._chunks) >= array.size:
                for cell in cells:
                    self._read_chunk(cell, spans, array)
            else:
                with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
                    list(pool.map(lambda cell: self._read_chunk(cell, spans, array), cells))
        except OSError as error:
            raise CheckpointError(f"{self._folder}: cannot be read: {error.strerror}") from error
        return array

    def _read_chunk(
        self, cell: Sequence[int], spans: Sequence[tuple[int, int]], array: np.ndarray
    ) -> None:
        file = self._folder / _chunk_name(cell)
        target: list[Any] = []
        source: list[Any] = []
        for number, chunk, (start, stop) in zip(cell, self._chunks, spans, strict=True):
            first = max(number * chunk, start)
            last = min((number + 1) * chunk, stop)
            target.append(slice(first - start, last - start))
            source.append(slice(first - number * chunk, last - number * chunk))
        part = array[(*target, ...)]
        if part.shape == self._chunks and part.flags.c_contiguous:
            self._read_file(file, part)
            return
        whole = self._scratch_chunk()
        self._read_file(file, whole)
        part[...] = whole[tuple(source)]

    def _scratch_chunk(self) -> np.ndarray:
        """A buffer of the thread's own: fresh memory for each chunk costs more than the read."""
        if not hasattr(self._scratch, "chunk"):
            self._scratch.chunk = np.empty(self._chunks, self._dtype)
        return self._scratch.chunk

    def _read_file(self, file: Path, into: np.ndarray) -> None:
        data = memoryview(into.reshape(-1).view(np.uint8))  # type: ignore[arg-type]
        with open(file, "rb", buffering=0) as stream:
            done = 0
            while done < len(data):
                count = stream.readinto(data[done:])
                if not count:
                    raise CheckpointError(f"{file}: expected {len(data)} bytes, found {done}")
                done += count
        if self._checksums is not None:
            _require_same(file, data, self._checksums)


def tensorstore_reader(folder: Path) -> Callable[[Index], np.ndarray]:
    """For arrays that another program wrote, compressed or in another order."""
    import tensorstore as ts

    opened: list[Any] = []

    def read(index: Index) -> np.ndarray:
        try:
            if not opened:
                spec = {
                    "driver": "zarr",
                    "kvstore": {"driver": "file", "path": str(folder.absolute())},
                }
                opened.append(ts.open(spec, open=True, read=True).result())
            return opened[0][index].read().result()
        except (ValueError, OSError) as error:
            raise CheckpointError(f"{folder}: cannot be read: {error}") from error

    return read

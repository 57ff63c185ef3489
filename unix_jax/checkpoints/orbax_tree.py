"""A tree of leaves on disk in Orbax's format, written and read one leaf at a time.

Orbax's own handlers keep the complete tree in memory while they write it; this module has its own
handler that iterates over it. Arrays are uncompressed zarr chunks, so that a file's size shows
whether it is complete, and plain Orbax reads the result. `save_tree` returns the CRC-32 of every
file of an array, and `open_leaf` verifies it as the file is read: a device that reads a part of an
array verifies the chunks of that part.
"""

import asyncio
import concurrent.futures
import contextlib
import itertools
import logging
import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from orbax.checkpoint import type_handlers
from zlib_ng import zlib_ng

from unix_jax.checkpoints.leaves import Index, Leaf, array_leaf, is_stacked, unflatten
from unix_jax.errors import CheckpointError
from unix_jax.storage.json_file import read_json

Progress = Callable[[int], None]
CHUNK_BYTES = 4 << 20
BATCH_BYTES = 64 << 20
HEADER = ".zarray"
# Reading and summing release the interpreter's lock; more threads than this do not read faster.
_THREADS = min(8, os.cpu_count() or 1)


class _LeafHandler(type_handlers.NumpyHandler):
    """Writes leaves batch by batch, reading the next batch while the last is written."""

    def __init__(self, progress: Progress | None) -> None:
        super().__init__(deepcopy_host_arrays=False)
        self._progress = progress

    async def serialize(
        self, values: Sequence[Any], infos: Sequence[Any], args: Sequence[Any] | None = None
    ) -> Sequence[Any]:
        loop = asyncio.get_running_loop()
        batches = _batches(values)
        # The reader is a thread, since transposing releases the interpreter's lock.
        with concurrent.futures.ThreadPoolExecutor(1) as reader:

            def start(batch: range) -> asyncio.Future[list[np.ndarray]]:
                return loop.run_in_executor(reader, lambda: [values[i].read_all() for i in batch])

            pending = start(batches[0])
            for number, batch in enumerate(batches):
                arrays = await pending
                if number + 1 < len(batches):
                    pending = start(batches[number + 1])
                part = slice(batch.start, batch.stop)
                arguments = None if args is None else args[part]
                for commit in await super().serialize(arrays, infos[part], arguments):
                    await asyncio.to_thread(commit.result)
                del arrays
                if self._progress:
                    self._progress(sum(values[i].nbytes for i in batch))
        return []


def _batches(leaves: Sequence[Leaf]) -> list[range]:
    """Runs of leaves of at most BATCH_BYTES together, or of one larger leaf."""
    starts, size = [0], 0
    for number, leaf in enumerate(leaves):
        if number > starts[-1] and size + leaf.nbytes > BATCH_BYTES:
            starts.append(number)
            size = 0
        size += leaf.nbytes
    return [range(*ends) for ends in itertools.pairwise([*starts, len(leaves)])]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppresses Orbax's warnings about features that this checkpoint omits on purpose."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def save_tree(
    directory: Path, leaves: Mapping[str, Leaf], progress: Progress | None, nested: bool = True
) -> dict[str, Any]:
    """Writes leaves as one Orbax tree, with two of them (or two batches of small ones) in memory.

    Args:
      directory: a new directory.
      leaves: by path; a path's parts become nested keys unless `nested` is off.
      progress: called with the bytes of each leaf written.

    Returns:
      Shape, type and checksums of each leaf, ready for JSON.
    """
    registry = type_handlers.create_type_handler_registry((Leaf, _LeafHandler(progress)))
    # Of several processes only the caller writes: Orbax must not wait for the others.
    alone = ocp.options.MultiprocessingOptions(
        primary_host=jax.process_index(),
        active_processes={jax.process_index()},
        barrier_sync_key_prefix=f"process-{jax.process_index()}",
    )
    with _quiet():
        handler = ocp.PyTreeCheckpointHandler(
            use_ocdbt=False,
            use_compression=False,
            type_handler_registry=registry,
            multiprocessing_options=alone,
        )
    # Orbax refuses arrays without elements; their entry in index.json says all there is to say.
    written = {path: leaf for path, leaf in leaves.items() if 0 not in leaf.shape}
    # One layer to a chunk where layers are large, so that export reads one layer at a time.
    save_args = {
        path: ocp.SaveArgs(
            chunk_byte_size=CHUNK_BYTES,
            shard_axes=(0,) if is_stacked(path) and leaf.nbytes > CHUNK_BYTES else (),
        )
        for path, leaf in written.items()
    }
    build = unflatten if nested else dict
    with _quiet(), ocp.Checkpointer(handler, multiprocessing_options=alone) as writer:
        writer.save(
            directory.absolute(),
            args=ocp.args.PyTreeSave(build(written), save_args=build(save_args)),
        )
    return {
        path: {
            "shape": list(leaf.shape),
            "dtype": leaf.dtype.name,
            "crc32": _checksums(_folder(directory, path)) if path in written else {},
        }
        for path, leaf in leaves.items()
    }


def array_checksums(directory: Path, name: str) -> dict[str, int]:
    """CRC-32 by file name of the files of an array that `save_tree` wrote."""
    folder = _folder(directory, name)
    return _checksums(folder) if folder.is_dir() else {}


def _folder(directory: Path, name: str) -> Path:
    # Orbax joins the names of nested keys with dots.
    return directory / name.replace("/", ".")


def _checksums(folder: Path) -> dict[str, int]:
    names = sorted(entry.name for entry in os.scandir(folder))
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        sums = pool.map(lambda name: zlib_ng.crc32((folder / name).read_bytes()), names)
        return dict(zip(names, sums, strict=True))


def open_leaf(
    directory: Path,
    name: str,
    shape: tuple[int, ...],
    dtype: np.dtype,
    checksums: Mapping[str, int] | None,
) -> Leaf:
    """One array of a tree that `save_tree` wrote, verified to be complete, read on demand.

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
    folder = _folder(directory, name)
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
    """Every chunk of an uncompressed zarr array must exist with its full size."""
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
                with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
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

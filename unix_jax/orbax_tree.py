"""A tree of leaves on disk in Orbax's format, written and read one leaf at a time.

Orbax's own handlers hold a whole tree in memory while they write it; here a handler of our own
walks through it. Arrays are uncompressed zarr chunks, so that a file's size tells whether it is
whole, and plain Orbax reads the result.
"""

import asyncio
import concurrent.futures
import contextlib
import itertools
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from orbax.checkpoint import type_handlers

from unix_jax.errors import CheckpointError
from unix_jax.json_file import read_json
from unix_jax.leaves import Index, Leaf, array_leaf, unflatten

Progress = Callable[[int], None]
CHUNK_BYTES = 4 << 20
BATCH_BYTES = 64 << 20


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


def _is_stacked(path: str) -> bool:
    return "/layers/" in f"/{path}" or "/blocks/" in f"/{path}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without Orbax's warnings about features that this checkpoint leaves out on purpose."""
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
    """Writes leaves as one Orbax tree, two of them (or two batches of small ones) in memory.

    Args:
      directory: a new directory.
      leaves: by path; a path's parts become nested keys unless `nested` is off.
      progress: called with the bytes of each leaf written.

    Returns:
      Shape and type of each leaf, ready for JSON.
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
            shard_axes=(0,) if _is_stacked(path) and leaf.nbytes > CHUNK_BYTES else (),
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
        path: {"shape": list(leaf.shape), "dtype": leaf.dtype.name} for path, leaf in leaves.items()
    }


def open_leaf(directory: Path, name: str, shape: tuple[int, ...], dtype: np.dtype) -> Leaf:
    """One array of a tree that `save_tree` wrote, verified to be whole, read on demand.

    Raises:
      CheckpointError: a file is missing, truncated, or disagrees; the message names it.
    """
    # Orbax joins the names of nested keys with dots.
    folder = directory / name.replace("/", ".")
    if 0 in shape:
        return array_leaf(np.zeros(shape, dtype))
    _check_chunks(folder, shape, dtype)
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

    return Leaf(shape, dtype, read)


def _check_chunks(folder: Path, shape: tuple[int, ...], dtype: np.dtype) -> None:
    """Every chunk of an uncompressed zarr array must be there with its full size."""
    header = read_json(folder / ".zarray", CheckpointError)
    if not isinstance(header, dict):
        raise CheckpointError(f"{folder}/.zarray: expected a JSON object")
    if header.get("shape") != list(shape):
        raise CheckpointError(
            f"{folder}: expected shape {list(shape)} (index.json), found {header.get('shape')}"
        )
    chunks = header.get("chunks")
    if not (
        isinstance(chunks, list)
        and len(chunks) == len(shape)
        and all(isinstance(size, int) and size > 0 for size in chunks)
    ):
        raise CheckpointError(f"{folder}/.zarray: chunks: found {chunks!r}")
    if header.get("compressor") is not None:
        return
    expected = math.prod(chunks) * dtype.itemsize
    sizes = {entry.name: entry.stat().st_size for entry in os.scandir(folder)}
    grid = [-(-size // chunk) for size, chunk in zip(shape, chunks, strict=True)]
    for cell in np.ndindex(*grid):
        name = ".".join(map(str, cell)) or "0"
        if sizes.get(name) != expected:
            found = "no such file" if name not in sizes else f"{sizes[name]} bytes"
            raise CheckpointError(f"{folder / name}: expected {expected} bytes, found {found}")

"""Writes a tree of leaves in Orbax's format, one leaf at a time.

Orbax's own handlers keep the complete tree in memory while they write it; this module has its own
handler that iterates over it. Plain Orbax reads the result; `zarr_arrays` reads it without Orbax,
which takes half a second to import.
"""

import asyncio
import concurrent.futures
import contextlib
import itertools
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import type_handlers
from zlib_ng import zlib_ng

from unix_jax.checkpoints.leaves import Leaf, is_stacked, unflatten
from unix_jax.checkpoints.zarr_arrays import THREADS, Progress, array_folder

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
            "crc32": _checksums(array_folder(directory, path)) if path in written else {},
        }
        for path, leaf in leaves.items()
    }


def _checksums(folder: Path) -> dict[str, int]:
    names = sorted(entry.name for entry in os.scandir(folder))
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        sums = pool.map(lambda name: zlib_ng.crc32((folder / name).read_bytes()), names)
        return dict(zip(names, sums, strict=True))

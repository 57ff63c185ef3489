"""Checkpoints of a training run: written in the background, atomically, and verified when read.

    DIR/checkpoints/STEP/state/      Orbax: every array of the state by its path, EMA included
    DIR/checkpoints/STEP/progress/   Orbax: JSON, the data iterator, the configuration, open meters
    DIR/checkpoints/STEP/files.json  size and CRC-32 of each file, written last; the metrics
    DIR/checkpoints/damaged/STEP     checkpoints that failed verification

Orbax writes under a temporary name, `files.json` is added there, and one rename completes the
checkpoint. Older checkpoints are deleted only after that rename, so a process that is killed at any
moment leaves a usable one. Works with any pytree of arrays.

Several processes write the arrays of a checkpoint together into a directory that they share. Where
each has a directory of its own (`shared=False`), process 0 gathers the arrays on its host, one by
one, and writes all of them; the others read what their directories hold at the start.
"""

import logging
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import PreservationPolicy

from unix_jax.checkpoints.leaves import unflatten
from unix_jax.checkpoints.run_files import (
    listing,
    require_writable,
    set_aside_damaged,
    steps,
    write_listing,
)
from unix_jax.errors import CheckpointError
from unix_jax.training.distributed import agree, is_primary, to_host

FOLDER = "checkpoints"


class Restored(NamedTuple):
    """What a checkpoint held. `skipped` has one line for each newer one that was not usable."""

    step: int
    state: Any
    progress: dict[str, Any]
    skipped: list[str]


class CheckpointStore:
    """The checkpoints of one run. Use as a context manager: leaving waits for the last one."""

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        keep_last: int = 2,
        keep_best: int = 1,
        upload: Callable[[], None] = lambda: None,
        shared: bool = True,
    ) -> None:
        """Opens `directory`/checkpoints; moves damaged checkpoints away, deletes unfinished ones.

        Damaged ones are moved only if an older usable one exists.

        Args:
          directory: of the run; created if absent.
          keep_last: the number of newest checkpoints to keep, at least 1.
          keep_best: the number of further ones to keep: those with the least validation loss.
          upload: called when a checkpoint is on disk, before the next one is written; what it
            raises is raised by `save` and `wait`.
          shared: whether all processes see the same directory.

        Raises:
          CheckpointError: the directory cannot be created, written or read, or all of its
            checkpoints are damaged; nothing is changed then.
        """
        if keep_last < 1 or keep_best < 0:
            raise CheckpointError(
                f"checkpoints: expected keep_last >= 1 and keep_best >= 0, "
                f"found {keep_last} and {keep_best}"
            )
        self.directory = (Path(directory) / FOLDER).absolute()
        require_writable(self.directory)
        self.skipped: list[str] = agree(lambda: set_aside_damaged(self.directory))
        self._log_filter = _OrbaxFilter()
        logging.getLogger("absl").addFilter(self._log_filter)
        self._upload = upload
        self._apart = not shared and jax.process_count() > 1
        self._policy = _KeepLastAndBest(keep_last, keep_best)
        for step in steps(self.directory):
            self._policy.metrics[step] = listing(self.directory / str(step)).get("metrics", {})
        self._pending: tuple[int, Mapping[str, float]] | None = None
        processes = _alone() if self._apart else ocp.options.MultiprocessingOptions()
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=self._policy,
                lightweight_initialize=True,
                save_root_metadata=False,
                create=not self._apart,
                async_options=ocp.options.AsyncOptions(post_finalization_callback=self._list_files),
                multiprocessing_options=processes,
            ),
            item_handlers={
                # Compression takes most of the time and saves 8 % of the bytes of random weights.
                "state": ocp.PyTreeCheckpointHandler(
                    use_compression=False, multiprocessing_options=processes
                ),
                "progress": ocp.JsonCheckpointHandler(multiprocessing_options=processes),
            },
        )

    def __enter__(self) -> "CheckpointStore":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.wait()
            else:
                # The current error is more informative than one about the last checkpoint.
                self._quietly_finish()
        finally:
            logging.getLogger("absl").removeFilter(self._log_filter)

    def steps(self) -> list[int]:
        """Steps of the existing checkpoints, oldest first."""
        return sorted(self._manager.all_steps())

    def path(self, step: int) -> Path:
        """Where the checkpoint of a step is."""
        return self.directory / str(step)

    def save(
        self,
        step: int,
        state: Any,
        progress: Mapping[str, Any],
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Copies the state off the devices and writes it in the background.

        An existing step is not written again: equal steps of a run are equal.

        Args:
          step: number of optimiser steps done.
          state: any pytree of arrays; the caller may donate them as soon as this returns.
          progress: any JSON.
          metrics: numbers to choose the best ones by.

        Raises:
          CheckpointError: this checkpoint or the one before could not be written (full disk, no
            permission); nothing half-written is left.
        """
        self.wait()
        if self._apart:
            if agree(lambda: step in self._manager.all_steps()):
                return
            state = _gathered(state)
            if not is_primary():
                return
        elif step in self._manager.all_steps():
            return
        self._require_space(state, step)
        self._pending = (step, dict(metrics or {}))
        self._policy.metrics[step] = self._pending[1]
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeSave(unflatten(_flat(state))),
                    progress=ocp.args.JsonSave(dict(progress)),
                ),
            )
        except Exception as error:
            raise self._failed(error) from error

    def wait(self) -> None:
        """Blocks until the last checkpoint is on disk and listed, and uploaded.

        Raises:
          CheckpointError: it could not be written.
          UniXError: it could not be uploaded.
        """
        if self._apart:
            agree(self._wait)
        else:
            self._wait()

    def _wait(self) -> None:
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        except Exception as error:
            raise self._failed(error) from error
        self._upload()

    def close(self) -> None:
        """Waits, and lets go of threads."""
        self.__exit__(None)
        self._manager.close()

    def restore(self, target: Any) -> Restored | None:
        """The newest usable checkpoint; None if there is none.

        Args:
          target: the state's pytree with arrays or `jax.ShapeDtypeStruct`s that carry shardings;
            those of the run that wrote the checkpoint do not matter.

        Raises:
          CheckpointError: the state has other arrays than the checkpoint (another configuration);
            or it cannot be read.
        """
        # Opening the store has verified the newest one.
        steps = self.steps()
        if not steps:
            return None
        newest, path = steps[-1], self.path(steps[-1])
        flat = {name: _abstract(leaf) for name, leaf in _flat(target).items()}
        self._require_same_arrays(newest, flat)
        tree = unflatten(flat)
        try:
            found = self._manager.restore(
                newest,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeRestore(
                        tree, restore_args=ocp.checkpoint_utils.construct_restore_args(tree)
                    ),
                    progress=ocp.args.JsonRestore(),
                ),
            )
        except Exception as error:
            raise CheckpointError(f"{path}: cannot be read: {first_line(error)}") from error
        leaves, treedef = jax.tree.flatten(target)
        restored = _flat(found["state"])
        assert len(leaves) == len(restored)
        state = jax.tree.unflatten(treedef, [restored[name] for name in flat])
        return Restored(newest, state, found["progress"], self.skipped)

    # ------------------------------------------------------------------------- inside

    def _require_same_arrays(self, step: int, expected: Mapping[str, Any]) -> None:
        metadata = self._manager.item_metadata(step)["state"]
        found = {} if metadata is None else _flat(getattr(metadata, "tree", metadata))
        problems = [f"{name}: not in the checkpoint" for name in sorted(set(expected) - set(found))]
        problems += [f"{name}: not in this run" for name in sorted(set(found) - set(expected))]
        problems += [
            f"{name}: expected {leaf.dtype}{list(leaf.shape)}, "
            f"found {found[name].dtype}{list(found[name].shape)}"
            for name, leaf in expected.items()
            if name in found
            and (tuple(found[name].shape), str(found[name].dtype)) != (leaf.shape, str(leaf.dtype))
        ]
        if problems:
            shown = "; ".join(problems[:5]) + ("; ..." if len(problems) > 5 else "")
            raise CheckpointError(
                f"{self.path(step)}: does not fit this configuration in {len(problems)} "
                f"array{'s' if len(problems) > 1 else ''}: {shown}"
            )

    def _require_space(self, state: Any, step: int) -> None:
        """Raises CheckpointError early if the disk is too small; the write is checked as well."""
        needed = sum(_local_bytes(leaf) for leaf in jax.tree.leaves(state))
        free = shutil.disk_usage(self.directory).free
        if needed > free:
            raise CheckpointError(
                f"{self.path(step)}: cannot be written: needs {needed / 1e6:.1f} MB, "
                f"the disk has {free / 1e6:.1f} MB free"
            )

    def _list_files(self) -> None:
        """Called by Orbax when all processes have written, and before it renames."""
        assert self._pending is not None
        step, metrics = self._pending
        if is_primary():
            (unnamed,) = self.directory.glob(f"{step}.*tmp*")
            write_listing(unnamed, metrics)

    def _failed(self, error: Exception) -> CheckpointError:
        step = self._pending[0] if self._pending else 0
        if is_primary():
            for leftover in self.directory.glob(f"{step}.*tmp*"):
                shutil.rmtree(leftover, ignore_errors=True)
        return CheckpointError(f"{self.path(step)}: cannot be written: {first_line(error)}")

    def _quietly_finish(self) -> None:
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            self._failed(error)


class _KeepLastAndBest(PreservationPolicy):
    """The newest `last` checkpoints, and those with the `best` least losses of validation."""

    def __init__(self, last: int, best: int) -> None:
        self.metrics: dict[int, Mapping[str, float]] = {}
        self._last, self._best = last, best

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        steps = sorted(info.step for info in checkpoints)
        scored = [s for s in steps if "loss" in self.metrics.get(s, {})]
        scored.sort(key=lambda s: (self.metrics[s]["loss"], -s))
        kept = {*steps[-self._last :], *scored[: self._best]}
        return [info.step in kept for info in checkpoints]


class _OrbaxFilter(logging.Filter):
    """Drops Orbax's own log records; this project's errors contain what a user needs."""

    def filter(self, record: logging.LogRecord) -> bool:
        return f"{os.sep}orbax{os.sep}" not in record.pathname


def _alone() -> ocp.options.MultiprocessingOptions:
    """For a process that does not wait for the others."""
    index = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=index, active_processes={index}, barrier_sync_key_prefix=f"process-{index}"
    )


# --- pytrees -----------------------------------------------------------------------------------


def _flat(tree: Any) -> dict[str, Any]:
    """Leaves by `/`-joined path; the same for dictionaries, dataclasses and tuples."""
    return {
        "/".join(_name(key) for key in path) or "value": leaf
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    }


def _name(key: Any) -> str:
    for attribute in ("name", "key", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    raise TypeError(f"state: no name for the key {key!r}")


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _gathered(tree: Any) -> Any:
    """The whole arrays on the host of process 0, None elsewhere; every process calls it."""

    def gather(leaf: Any) -> np.ndarray | None:
        whole = to_host(leaf)
        return whole if is_primary() else None

    return jax.tree.map(gather, tree)


def _local_bytes(leaf: Any) -> int:
    """Bytes that this process writes of an array: one replica of what it holds."""
    if isinstance(leaf, jax.Array):
        return sum(s.data.nbytes for s in leaf.addressable_shards if s.replica_id == 0)
    return int(leaf.nbytes)


def first_line(error: BaseException) -> str:
    """The innermost reason in one line of bounded length."""
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).split()) or type(error).__name__
    for reason in ("No space left on device", "File too large", "Permission denied",
                   "Disk quota exceeded", "Read-only file system"):  # fmt: skip
        # TensorStore adds a page of context to the system's message.
        if reason in text:
            return reason
    return text[:200]

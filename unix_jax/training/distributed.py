"""Several processes that train as one: start, agreement, and who writes files.

Each process holds its own devices; process 0 writes what is not an Orbax array.
"""

import importlib.util
import json
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding

from unix_jax.errors import ConfigError, UniXError
from unix_jax.sharding import ShardingRules, batch_shards

# Set by schedulers and pods that run one process per host.
_CLUSTER_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "SLURM_NTASKS", "TPU_WORKER_HOSTNAMES")
# The device files of a TPU machine's chips, of older and of newer kinds.
_DEVICES = Path("/dev")
_TPU_CHIPS = ("accel[0-9]*", "vfio/[0-9]*")


def initialise(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> None:
    """Joins the other processes, if there are any; to be called before any device is touched.

    Args:
      coordinator: host:port of process 0. None: as the scheduler's environment says (SLURM, GKE,
        JAX_COORDINATOR_ADDRESS), on a machine with TPUs as its metadata say, or one process where
        neither says anything.
      num_processes, process_id: with `coordinator`.

    Warns:
      UserWarning: this machine has TPUs and no metadata; it runs alone.

    Raises:
      ConfigError: only some of the three are given, or the others do not answer.
    """
    given = (coordinator, num_processes, process_id)
    if given == (None, None, None):
        if not _in_cluster(os.environ):
            if _has_tpu(os.environ):
                _join_slice()
            return
    elif None in given:
        raise ConfigError(
            "distributed: expected coordinator, num_processes and process_id together, "
            f"found {coordinator}, {num_processes}, {process_id}"
        )
    try:
        jax.distributed.initialize(coordinator, num_processes, process_id)
    except (ValueError, RuntimeError) as error:
        raise _not_found(error) from error


def _join_slice() -> None:
    """Joins the other machines of a TPU slice, which JAX finds in the metadata of this one."""
    try:
        jax.distributed.initialize()
    except RuntimeError as error:
        raise _not_found(error) from error
    except (ValueError, OSError, ImportError) as error:
        # No metadata: a single machine, or a cluster of another kind.
        warnings.warn(
            "distributed: this machine has TPUs, but nothing says whether others belong to them "
            f"({_one_line(error)}): it works alone; train.py takes --distributed.coordinator if it "
            "should not",
            stacklevel=3,
        )


def _not_found(error: Exception) -> ConfigError:
    return ConfigError(f"distributed: the processes do not find each other: {_one_line(error)}")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _has_tpu(environment: Mapping[str, str]) -> bool:
    """Whether JAX will take TPUs of this machine. Asking JAX itself would start them."""
    platforms = environment.get("JAX_PLATFORMS", "")
    if platforms and "tpu" not in platforms.split(","):
        return False
    chips = any(True for pattern in _TPU_CHIPS for _ in _DEVICES.glob(pattern))
    return chips and importlib.util.find_spec("libtpu") is not None


def _in_cluster(environment: Mapping[str, str]) -> bool:
    address, tasks, hosts = (environment.get(name, "") for name in _CLUSTER_VARIABLES)
    many_tasks = tasks.isdecimal() and int(tasks) > 1
    return bool(address) or many_tasks or "," in hosts


def is_primary() -> bool:
    """Whether this process writes the files that one process writes."""
    return jax.process_index() == 0


def agree(compute: Callable[[], Any]) -> Any:
    """`compute()` of the primary process, which must be JSON, in every process.

    Raises:
      UniXError: `compute` raised one; it is raised in every process.
    """
    if jax.process_count() == 1:
        return compute()
    answer: dict[str, Any] = {}
    if is_primary():
        try:
            answer = {"value": compute()}
        except UniXError as error:
            answer = {"error": str(error)}
    answer = _broadcast(answer)
    if "error" in answer:
        raise UniXError(answer["error"])
    return answer["value"]


def _broadcast(value: Any) -> Any:
    text = json.dumps(value).encode() if is_primary() else b""
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    buffer = np.zeros(length, np.uint8)
    if is_primary():
        buffer[:] = np.frombuffer(text, np.uint8)
    return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(buffer)).tobytes())


def collect(value: Any) -> list[Any]:
    """The JSON values of all processes, in their order, in every process."""
    if jax.process_count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = np.asarray(multihost_utils.process_allgather(np.int32(len(text))))
    padded = np.pad(text, (0, int(sizes.max()) - len(text)))
    texts = np.asarray(multihost_utils.process_allgather(padded))
    return [json.loads(row[:size].tobytes()) for row, size in zip(texts, sizes, strict=True)]


def raise_together(error: UniXError | None) -> None:
    """Raises `error`, or that of another process, so that all processes end at the same point.

    Every process calls it, with None where all is well.

    Raises:
      UniXError: this process's own, else that of the first process that has one.
    """
    if jax.process_count() > 1:
        failed = np.asarray(multihost_utils.process_allgather(np.bool_(error is not None)))
        if failed.any():
            texts = collect(None if error is None else str(error))
            first = int(failed.argmax())
            error = error or UniXError(f"process {first}: {texts[first]}")
    if error is not None:
        raise error


def row_share(mesh: Mesh, rows: int) -> tuple[int, int]:
    """The rows of a global batch that this process's devices hold, as (first, one past the last).

    Processes that differ only along the tensor axis hold the same rows.

    Raises:
      ConfigError: the mesh does not divide the rows, or gives a process rows that are not one run.
    """
    shards = batch_shards(mesh)
    if rows % shards:
        raise ConfigError(f"data.rows: expected a multiple of {shards} (mesh), found {rows}")
    held = {
        index[0].indices(rows)[:2]
        for index in _batch_sharding(mesh).addressable_devices_indices_map((rows,)).values()
        if index is not None
    }
    first, last = min(a for a, _ in held), max(b for _, b in held)
    if sum(b - a for a, b in held) != last - first or rows % (last - first):
        raise ConfigError(f"mesh: expected each process to hold a run of rows, found {held}")
    return first, last


def place_batch(batch: Any, mesh: Mesh, rows: int, share: tuple[int, int]) -> Any:
    """A process's rows [first, last) of a global batch of `rows`, as global arrays on the mesh."""
    sharding = _batch_sharding(mesh)

    def place(leaf: np.ndarray) -> jax.Array:
        def read(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None
            start, stop, _ = index[0].indices(rows)
            return leaf[start - share[0] : stop - share[0]]

        return jax.make_array_from_callback((rows, *leaf.shape[1:]), sharding, read)

    return jax.tree.map(place, batch)


def _batch_sharding(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, ShardingRules().spec(["batch"]))


def to_host(leaf: Any) -> np.ndarray:
    """A whole array on the host of every process, wherever its parts are."""
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
    return np.asarray(leaf)

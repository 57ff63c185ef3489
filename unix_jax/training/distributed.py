"""Several processes that train as one: start, agreement, and who writes files.

Each process holds its own devices; process 0 writes what is not an Orbax array.
"""

import dataclasses
import importlib.util
import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding

from unix_jax.errors import ConfigError, UniXError
from unix_jax.sharding import ShardingRules, batch_shards

# Variables that name the number of processes, this one's index, and its index on its machine.
_RANKS = (
    ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID", None),
    # Open MPI, and MPICH or Intel MPI.
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK"),
    ("PMI_SIZE", "PMI_RANK", "MPI_LOCALRANKID"),
)
# Where JAX finds process 0: in a step of SLURM, and of Open MPI up to 4.
_SLURM_STEP = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID")
_OPEN_MPI_4 = "OMPI_MCA_orte_hnp_uri"
# The device files of a TPU machine's chips, of older and of newer kinds.
_DEVICES = Path("/dev")
_TPU_CHIPS = ("accel[0-9]*", "vfio/[0-9]*")
# JAX ends the processes that remain in this time; `liveness` does it earlier, and says which.
_HEARTBEAT_SECONDS = 60
_SHUTDOWN_SECONDS = 60


@dataclasses.dataclass(frozen=True)
class Place:
    """A process among others, as its environment says; None: JAX asks the cluster itself."""

    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    local_device_ids: list[int] | None = None


def initialise(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> None:
    """Joins the other processes, if there are any; to be called before any device is touched.

    Args:
      coordinator: host:port of process 0. None: as the environment says, see `find_place`; on a
        machine with TPUs as its metadata say; or one process where neither says anything.
      num_processes, process_id: with `coordinator`.

    Warns:
      UserWarning: this machine has TPUs and no metadata; it runs alone.

    Raises:
      ConfigError: only some of the three are given, variables that contradict each other, or the
        others do not answer.
    """
    given = (coordinator, num_processes, process_id)
    if given == (None, None, None):
        place = find_place(os.environ)
        if place is None:
            if _has_tpu(os.environ):
                _join_slice()
            return
    elif None in given:
        raise ConfigError(
            "distributed: expected coordinator, num_processes and process_id together, "
            f"found {coordinator}, {num_processes}, {process_id}"
        )
    else:
        place = Place(coordinator, num_processes, process_id)
    try:
        _join(place)
    except (ValueError, RuntimeError, OSError, ImportError) as error:
        # OSError: JAX asks the metadata server, also under GKE.
        raise _not_found(error) from error


def _join(place: Place) -> None:
    jax.distributed.initialize(
        place.coordinator,
        place.num_processes,
        place.process_id,
        local_device_ids=place.local_device_ids,
        heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
        shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
    )


def find_place(environment: Mapping[str, str]) -> Place | None:
    """What the variables of a scheduler say about this process; None: it is alone.

    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID come first. Then SLURM, GKE with
    TPUs and Open MPI 4, whose variables JAX reads itself; then other kinds of MPI, which say
    everything except where process 0 is: JAX_COORDINATOR_ADDRESS must.

    Raises:
      ConfigError: variables that are no numbers or contradict each other, or that are not enough.
    """
    address = environment.get("JAX_COORDINATOR_ADDRESS") or None
    own = _ranks(environment, *_RANKS[0])
    if own is not None:
        if address is None:
            raise ConfigError(
                "distributed: expected JAX_COORDINATOR_ADDRESS=HOST:PORT with JAX_NUM_PROCESSES "
                "and JAX_PROCESS_ID, found none"
            )
        return dataclasses.replace(own, coordinator=address)
    tasks = environment.get("SLURM_NTASKS", "")
    if tasks.isdecimal() and int(tasks) > 1:
        missing = [name for name in _SLURM_STEP if name not in environment]
        if missing and address is None:
            raise ConfigError(
                f"distributed: expected a process that srun started, since SLURM_NTASKS is "
                f"{tasks}, found no {', '.join(missing)}: start the command with srun, or unset "
                "SLURM_NTASKS for a single process"
            )
        return Place(coordinator=address)
    workers = environment.get("TPU_PROCESS_ADDRESSES") or environment.get(
        "TPU_WORKER_HOSTNAMES", ""
    )
    slices = environment.get("MEGASCALE_NUM_SLICES", "")
    if "," in workers or (slices.isdecimal() and int(slices) > 1):
        return Place(coordinator=address)
    for names in _RANKS[1:]:
        found = _ranks(environment, *names)
        if found is None or found.num_processes == 1:
            continue
        if address is None and _OPEN_MPI_4 in environment:
            return Place()
        if address is None:
            raise ConfigError(
                f"distributed: expected JAX_COORDINATOR_ADDRESS=HOST:PORT, the address of process "
                f"0, since {names[0]} is {found.num_processes} and MPI does not say it, found none"
            )
        return dataclasses.replace(found, coordinator=address)
    return Place(coordinator=address) if address else None


def _ranks(environment: Mapping[str, str], size: str, rank: str, local: str | None) -> Place | None:
    """Number and index from two variables; None if neither is set."""
    texts = [environment.get(name) for name in (size, rank)]
    if texts == [None, None]:
        return None
    found = f"found {size}={texts[0]}, {rank}={texts[1]}"
    if not all(text is not None and text.isdecimal() for text in texts):
        raise ConfigError(f"distributed: expected two numbers, {found}")
    count, index = (int(str(text)) for text in texts)
    if not 0 <= index < count:
        raise ConfigError(f"distributed: expected {rank} below {size}, {found}")
    card = environment.get(local, "") if local else ""
    return Place(None, count, index, [int(card)] if card.isdecimal() else None)


def _join_slice() -> None:
    """Joins the other machines of a TPU slice, which JAX finds in the metadata of this one."""
    try:
        _join(Place())
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


def row_share(mesh: Mesh, rows: int) -> tuple[int, ...]:
    """Indices, in ascending order, of the rows of a global batch that this process's devices hold.

    They need not be adjacent: a mesh follows the links between the chips of a TPU slice, and a ring
    through them leaves a machine and comes back to it. Processes that differ only along the tensor
    axis hold the same rows.

    Raises:
      ConfigError: the mesh does not divide the rows.
    """
    shards = batch_shards(mesh)
    if rows % shards:
        raise ConfigError(f"data.rows: expected a multiple of {shards} (mesh), found {rows}")
    held: set[int] = set()
    indices = _batch_sharding(mesh).addressable_devices_indices_map((rows,))
    for index in indices.values():
        assert index is not None
        held.update(range(*index[0].indices(rows)))
    return tuple(sorted(held))


def place_batch(batch: Any, mesh: Mesh, rows: int, share: Sequence[int]) -> Any:
    """This process's rows of a global batch of `rows`, as global arrays on the mesh.

    Args:
      share: indices of the rows in `batch`, see `row_share`.
    """
    sharding = _batch_sharding(mesh)
    local = {row: position for position, row in enumerate(share)}

    def place(leaf: np.ndarray) -> jax.Array:
        def read(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None
            start, stop, _ = index[0].indices(rows)
            # The rows of a shard are adjacent in the global batch, and so they are in the share.
            return leaf[local[start] : local[start] + stop - start]

        return jax.make_array_from_callback((rows, *leaf.shape[1:]), sharding, read)

    return jax.tree.map(place, batch)


def _batch_sharding(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, ShardingRules().spec(["batch"]))


def to_host(leaf: Any) -> np.ndarray:
    """A whole array on the host of every process, wherever its parts are."""
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
    return np.asarray(leaf)

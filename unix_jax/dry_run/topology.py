"""TPU slices for ahead-of-time compilation, and the performance of their chips."""

import dataclasses
import importlib.util
import math
import os
import re
from typing import Any

from unix_jax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Chip:
    """flops: dense bfloat16 peak in FLOP/s. hbm: usable bytes, as the compiler counts them.
    hbm_bandwidth: B/s. ici_bandwidth: B/s that a chip can send on all of its links together.
    """

    name: str
    dimensions: int
    flops: float
    hbm: float
    hbm_bandwidth: float
    ici_bandwidth: float


_GIB = 2.0**30
# Peaks and HBM bandwidths are those of the maker's data sheets. ICI is an assumption: 45 (v5p, v6e:
# 90) GB/s a link and direction, on 4 links in a plane and 6 in a cube, all of them busy.
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v5e", 2, 197e12, 15.75 * _GIB, 819e9, 4 * 45e9),
        Chip("v5p", 3, 459e12, 95.74 * _GIB, 2765e9, 6 * 90e9),
        Chip("v6e", 2, 918e12, 31.25 * _GIB, 1640e9, 4 * 90e9),
    )
}
_KINDS = {
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
}


def chip_of(device: Any) -> Chip | None:
    """The performance of a device's chip; None if unknown, as for a CPU."""
    name = _KINDS.get(device.device_kind)
    return None if name is None else CHIPS[name]


def parse_topology(text: str) -> tuple[Chip, tuple[int, ...]]:
    """(chip, chips along each dimension) of `v5e:4x4` or `v5p:2x2x2`.

    Raises:
      ConfigError: another form, or a chip that is not in the table.
    """
    found = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", text)
    chip = CHIPS.get(found.group(1)) if found else None
    sizes = tuple(int(size) for size in found.group(2).split("x")) if found else ()
    if chip is None or len(sizes) != chip.dimensions or min(sizes) < 1:
        expected = ", ".join(
            f"{chip.name}:{'x'.join('N' * chip.dimensions)}" for chip in CHIPS.values()
        )
        raise ConfigError(f"topology: expected one of {expected}, found {text!r}")
    return chip, sizes


def topology_devices(text: str) -> list[Any]:
    """Devices of a TPU slice for which programs can be compiled without having it.

    Raises:
      ConfigError: libtpu is not installed, or knows no such slice.
    """
    chip, sizes = parse_topology(text)
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError(
            "topology: expected the package libtpu, which compiles for TPUs; found none: "
            "install unix-jax[tpu]"
        )
    # Without these libtpu asks the network which TPU this machine is.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", f"{chip.name}-{math.prod(sizes)}")
    # Nor does a program for chips elsewhere wait for those that another process holds.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    from jax.experimental import topologies

    # A host of a slice has at most four chips, in a square.
    bounds = (min(sizes[0], 2), min(sizes[1], 2), 1)
    try:
        topology = topologies.get_topology_desc(
            platform="tpu", topology_name=text, chips_per_host_bounds=bounds, num_slices=1
        )
    except Exception as error:
        # libtpu's own kinds of error: an unknown slice, or a machine that it does not run on.
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"topology: libtpu refuses {text!r}: {reason}") from error
    return list(topology.devices)

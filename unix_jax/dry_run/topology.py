"""TPU slices for ahead-of-time compilation, and the performance of their chips.

Imports no JAX: a name is checked before anything slow is loaded.
"""

import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Sequence
from typing import Any

from unix_jax.errors import ConfigError

_GIB = 2.0**30
# The largest number of slices that a name may have; more would only be a mistyped number.
MAX_SLICES = 256


@dataclasses.dataclass(frozen=True)
class Chip:
    """A kind of TPU. The performance is that of one device, as JAX counts devices.

    kinds: `device_kind` of its devices. library: libtpu's name of it. configuration: libtpu's
    name of how the cores of a chip are used; None: its default.
    pod: the largest slice, chips along each dimension.
    devices: per chip.
    flops: dense bfloat16 peak in FLOP/s. clock: of its cores, in Hz.
    hbm: usable bytes, as the compiler counts them.
    hbm_bandwidth: B/s. ici_bandwidth: B/s that a device can send on all of its links together.
    dcn_bandwidth: B/s that a device can send to other slices.
    """

    name: str
    kinds: tuple[str, ...]
    library: str
    pod: tuple[int, ...]
    flops: float
    clock: float
    hbm: float
    hbm_bandwidth: float
    ici_bandwidth: float
    dcn_bandwidth: float
    configuration: str | None = None
    devices: int = 1

    @property
    def dimensions(self) -> int:
        return len(self.pod)


# Peaks and HBM bandwidths are those of the maker's data sheets, usable memory is what libtpu says
# when a program is too large. ICI is an assumption: 45 (v5p, v6e: 90; v7x: 100) GB/s a link and
# direction, on 4 links in a plane and 6 in a cube, all of them busy. DCN per chip: "How to Scale
# Your Model" (jax-ml.github.io/scaling-book/tpus), for v4 and v7x the value that it calls typical.
# A v7x chip has two devices, which share its links. The clock is the peak divided by what the
# matrix units of a device do in a cycle: four of 128 x 128 in v5e, eight in v4 and v5p, four of
# 256 x 256 in v6e and in a device of v7x.
CHIPS = {
    chip.name: chip
    for chip in (
        Chip(
            "v4", ("TPU v4",), "v4", (16, 16, 16),
            275e12, 1.05e9, 30.75 * _GIB, 1228e9, 6 * 45e9, 6.25e9, configuration="megacore",
        ),
        Chip(
            "v5e", ("TPU v5 lite", "TPU v5e"), "v5e", (16, 16),
            197e12, 1.5e9, 15.75 * _GIB, 819e9, 4 * 45e9, 3.125e9,
        ),
        Chip(
            "v5p", ("TPU v5", "TPU v5p"), "v5p", (16, 20, 28),
            459e12, 1.75e9, 95.74 * _GIB, 2765e9, 6 * 90e9, 6.25e9,
        ),
        Chip(
            "v6e", ("TPU v6 lite", "TPU v6e"), "v6e", (16, 16),
            918e12, 1.75e9, 31.25 * _GIB, 1640e9, 4 * 90e9, 12.5e9,
        ),
        Chip(
            "v7x", ("TPU7x",), "tpu7x", (16, 24, 24),
            1153.5e12, 2.2e9, 94.75 * _GIB, 3690e9, 6 * 100e9 / 2, 6.25e9 / 2, devices=2,
        ),
    )
}  # fmt: skip
# Other names that their users know.
ALIASES = {"v5litepod": "v5e", "trillium": "v6e", "tpu7x": "v7x", "ironwood": "v7x"}
_KINDS = {kind: chip for chip in CHIPS.values() for kind in chip.kinds}


@dataclasses.dataclass(frozen=True)
class Topology:
    """`count` slices of a chip, each with `sizes` chips along each dimension."""

    chip: Chip
    sizes: tuple[int, ...]
    count: int = 1

    @property
    def library_name(self) -> str:
        """The name of one slice in libtpu."""
        return f"{self.chip.library}:{'x'.join(map(str, self.sizes))}"


def chip_of(device: Any) -> Chip | None:
    """The performance of a device's chip; None if unknown, as for a CPU."""
    return _KINDS.get(device.device_kind)


def parse_topology(text: str) -> Topology:
    """The slices of `v5e:4x4`, `v5p:2x2x2` or `2xv5e:4x4`.

    Raises:
      ConfigError: another form, a chip that is not in the table, or a slice that its pod cannot
        have.
    """
    found = re.fullmatch(r"(?:(\d{1,6})x)?([a-z]\w*):(\d{1,6}(?:x\d{1,6})*)", text.strip().lower())
    if found is None:
        raise ConfigError(_unknown(text, "another form"))
    chip = CHIPS.get(ALIASES.get(found[2], found[2]))
    if chip is None:
        raise ConfigError(_unknown(text, f"the chip {found[2]!r}"))
    sizes = tuple(int(size) for size in found[3].split("x"))
    count = int(found[1] or 1)
    if not 1 <= count <= MAX_SLICES:
        raise ConfigError(_unknown(text, f"{count} slices"))
    if len(sizes) != chip.dimensions:
        raise ConfigError(_unknown(text, f"{len(sizes)} dimensions"))
    if not all(map(_is_side, sizes)) or any(
        size > most for size, most in zip(sorted(sizes), sorted(chip.pod), strict=True)
    ):
        raise ConfigError(_unknown(text, f"a slice of {'x'.join(map(str, sizes))} chips"))
    return Topology(chip, sizes, count)


def _is_side(size: int) -> bool:
    """Slices are cut along machines of 2 chips a side, and cubes of 4."""
    return size in (1, 2) or (size > 0 and size % 4 == 0)


def _unknown(text: str, what: str) -> str:
    forms = ", ".join(
        f"{chip.name}:{'x'.join('ABC'[: chip.dimensions])} (at most {'x'.join(map(str, chip.pod))})"
        for chip in CHIPS.values()
    )
    names = ", ".join(f"{alias} = {name}" for alias, name in ALIASES.items())
    return (
        f"topology: expected a TPU slice such as v5e:4x4, or 2xv5e:4x4 for 2 slices (at most "
        f"{MAX_SLICES}), found {what} in {text!r}. Known are {forms}; each number is 1, 2 or a "
        f"multiple of 4. Other names: {names}"
    )


def check_arguments(arguments: Sequence[str]) -> None:
    """Checks the value of `--topology` in a command line, if it is there.

    Raises:
      ConfigError: as `parse_topology`.
    """
    for argument, following in zip(arguments, [*arguments, None][1:], strict=True):
        name, equals, value = argument.partition("=")
        if name == "--topology" and (equals or following is not None):
            parse_topology(value if equals else str(following))


def topology_devices(text: str) -> list[Any]:
    """Devices of TPU slices for which programs can be compiled without having them.

    Raises:
      ConfigError: libtpu is not installed, or knows no such slice.
    """
    topology = parse_topology(text)
    chip, sizes = topology.chip, topology.sizes
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError(
            "topology: expected the package libtpu, which compiles for TPUs; found none: "
            "install unix-jax[tpu]"
        )
    # Without these libtpu asks the network which TPU this machine is.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", f"{chip.library}-{math.prod(sizes)}")
    # Nor does a program for chips elsewhere wait for those that another process holds.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    from jax.experimental import topologies

    # A host of a slice has at most four chips, in a square.
    bounds = (min(sizes[0], 2), min(sizes[1], 2), 1)
    options: dict[str, Any] = {"chips_per_host_bounds": bounds, "num_slices": topology.count}
    if chip.configuration is not None:
        options["chip_config_name"] = chip.configuration
    try:
        found = topologies.get_topology_desc(
            platform="tpu", topology_name=topology.library_name, **options
        )
    except Exception as error:
        # libtpu's own kinds of error: an unknown slice, or a machine that it does not run on.
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"topology: libtpu refuses {text!r}: {reason}") from error
    return list(found.devices)

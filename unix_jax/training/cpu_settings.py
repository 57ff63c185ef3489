"""Settings of the C library's memory for training on a CPU, made before JAX starts its threads.

XLA takes the temporary memory of a step in one piece. The C library of most Linux systems, glibc,
asks the kernel for a piece of that size and returns it after the step, so the kernel has to clear
its pages anew in each step. docs/training.md says how much time that takes.
"""

import ctypes
import importlib.util
import os
import platform
from collections.abc import Mapping

# Variable of glibc -> (its number for mallopt, value); see mallopt(3). One arena, since JAX's
# threads would otherwise have small ones, which take large pieces from the kernel.
_SETTINGS = {
    "MALLOC_ARENA_MAX": (-8, 1),
    "MALLOC_MMAP_MAX_": (-4, 0),
    "MALLOC_TRIM_THRESHOLD_": (-1, -1),
}
_ACCELERATORS = ("jax_plugins", "libtpu")  # where JAX looks for them


def set_cpu_defaults(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Makes glibc keep freed memory for what comes next, if JAX is going to use the CPU.

    Call it before the first use of a device. Nothing is changed where the C library is another one,
    where a plugin of JAX for accelerators is installed and `JAX_PLATFORMS` is not `cpu`, or where
    the user has decided on memory: by a variable of malloc's, or by an allocator in `LD_PRELOAD`
    whose name contains `malloc`.

    Args:
      environment: the variables of this process.

    Returns:
      The settings that were made, as `NAME=VALUE` of the variables with the same effect.
    """
    platforms = environment.get("JAX_PLATFORMS", "")
    if platforms != "cpu" and (platforms or any(map(importlib.util.find_spec, _ACCELERATORS))):
        return []
    decided = any(name.startswith("MALLOC_") for name in environment) or any(
        "malloc" in environment.get(name, "") for name in ("GLIBC_TUNABLES", "LD_PRELOAD")
    )
    if decided or platform.libc_ver()[0] != "glibc":
        return []
    library = ctypes.CDLL(None)
    return [
        f"{name}={value}"
        for name, (number, value) in _SETTINGS.items()
        if library.mallopt(number, value) == 1
    ]

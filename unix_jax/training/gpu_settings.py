"""Settings of XLA for training on NVIDIA GPUs, made before JAX touches a device.

Only what NVIDIA's own documentation of JAX recommends for every training run is set, and only where
the user has not decided. docs/training.md gives the reasons, and lists what has to be measured
first.
"""

import importlib.util
import os
from collections.abc import MutableMapping

SCHEDULER = "--xla_gpu_enable_latency_hiding_scheduler"
FRACTION = "XLA_CLIENT_MEM_FRACTION"
# Any of these decides on the memory.
_MEMORY = (
    FRACTION,
    "XLA_PYTHON_CLIENT_MEM_FRACTION",  # its former name
    "XLA_PYTHON_CLIENT_PREALLOCATE",
    "XLA_PYTHON_CLIENT_ALLOCATOR",
)
_PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin")


def set_gpu_defaults(environment: MutableMapping[str, str] = os.environ) -> list[str]:
    """Sets what is not set, if JAX is going to use CUDA.

    Call it before the first use of a device: XLA reads both variables once. Without a CUDA plugin,
    or with a `JAX_PLATFORMS` that leaves it out, nothing is changed.

    Args:
      environment: where the variables are set; default: that of this process.

    Returns:
      The settings that were added, as `NAME=VALUE`.
    """
    platforms = environment.get("JAX_PLATFORMS", "")
    wanted = not platforms or any(name in platforms.split(",") for name in ("cuda", "gpu"))
    if not wanted or not any(importlib.util.find_spec(name) for name in _PLUGINS):
        return []
    added = []
    flags = environment.get("XLA_FLAGS", "")
    # A flag that XLA does not know ends the process. This one is as old as jaxlib 0.4.
    if SCHEDULER not in flags:
        environment["XLA_FLAGS"] = f"{flags} {SCHEDULER}=true".strip()
        added.append(f"XLA_FLAGS={SCHEDULER}=true")
    if not any(name in environment for name in _MEMORY):
        environment[FRACTION] = "0.9"
        added.append(f"{FRACTION}=0.9")
    return added

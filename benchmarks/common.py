"""Side-by-side timing, and the limits of the machine."""

import dataclasses
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds of repeated runs."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def interleaved(
    runs: dict[str, Callable[[], object]],
    repeats: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Runs the alternatives in turn, A B A B ..., after one warm-up each.

    A run must block on its result. Taking turns spreads the machine's drift over all of them.
    `clock` is `time.process_time` for CPU seconds, which other programs of the machine affect less.
    """
    for run in runs.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            begin = clock()
            run()
            seconds[name].append(clock() - begin)
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def ratio(slow: Timing, fast: Timing) -> str:
    """Median of the pairwise ratios with their spread: how many times faster `fast` is."""
    ratios = sorted(a / b for a, b in zip(slow.seconds, fast.seconds, strict=True))
    return f"{statistics.median(ratios):.2f}x ({ratios[0]:.2f} to {ratios[-1]:.2f})"


def use_torch_device() -> str:
    """Makes PyTorch use the kind of device that JAX uses, and gives its name."""
    import jax
    import torch

    name = "cuda" if jax.default_backend() == "gpu" else "cpu"
    torch.set_default_device(name)
    return torch.cuda.get_device_name() if name == "cuda" else name


def torch_wait() -> None:
    """Until PyTorch's device has done its work."""
    import torch

    if torch.get_default_device().type == "cuda":
        torch.cuda.synchronize()


def copy_bandwidth(megabytes: int | None = None, repeats: int = 7) -> float:
    """Bytes read and written per second by a large copy on PyTorch's device."""
    import torch

    megabytes = megabytes or (512 if torch.get_default_device().type == "cpu" else 8192)
    source = torch.ones(megabytes * 2**20 // 4)
    target = torch.empty_like(source)

    def copy() -> None:
        target.copy_(source)
        torch_wait()

    timing = interleaved({"copy": copy}, repeats)["copy"]
    return 2 * source.numel() * 4 / min(timing.seconds)


def matmul_rate(dtype: str = "float32", repeats: int = 7) -> float:
    """FLOP/s of the faster of PyTorch's and XLA's large matrix products of random numbers."""
    import jax
    import jax.numpy as jnp
    import torch

    size = 2048 if jax.default_backend() == "cpu" else 8192
    ja, jb = (jax.random.normal(jax.random.key(i), (size, size), dtype) for i in (0, 1))
    ta, tb = to_torch(ja), to_torch(jb)
    product = jax.jit(jnp.dot)

    def theirs() -> None:
        torch.mm(ta, tb)
        torch_wait()

    timings = interleaved(
        {"torch": theirs, "xla": lambda: product(ja, jb).block_until_ready()}, repeats
    )
    return 2 * size**3 / min(min(t.seconds) for t in timings.values())


def to_torch(x: Any) -> Any:
    """A copy of an array on PyTorch's device."""
    import jax
    import torch

    if isinstance(x, jax.Array):
        return torch.from_dlpack(x).clone()
    return torch.from_numpy(np.array(x)).to(torch.get_default_device())


def machine() -> str:
    """One line about where the figures come from."""
    import jax

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    devices = jax.devices()
    return (
        f"{platform.machine()}, {cores} cores, jax {jax.__version__} on "
        f"{len(devices)} x {devices[0].device_kind}, Python {platform.python_version()}"
    )


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(title=title, title_justify="left", box=None, header_style="bold")
    for i, name in enumerate(header):
        table.add_column(name, justify="left" if i == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console(width=140).print(table)


def decode_state(cache: Any, context: int, ring: int) -> Any:
    """`decoding.DecodeState` before the first greedy token of each of the cache's rows."""
    import jax
    import jax.numpy as jnp

    from unix_jax.inference import decoding

    batch = cache.valid.shape[0]
    zeros = jnp.zeros(batch, jnp.int32)
    rows = decoding.NewRows(
        cache, zeros, jax.random.split(jax.random.key(0), batch), limit=zeros,
        temperature=jnp.zeros(batch), top_p=jnp.ones(batch),
        prompts=jnp.zeros((batch, 0), jnp.int32),
    )  # fmt: skip
    return decoding.start(rows, context=context, bos=0, eos=1, buffer=ring)

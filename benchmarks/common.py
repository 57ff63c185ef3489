"""Timing side by side, and the machine's own limits."""

import dataclasses
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence

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


def interleaved(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, Timing]:
    """Runs the alternatives in turn, A B A B ..., after one warm-up each.

    A run must block on its result. Taking turns spreads the machine's drift over all of them.
    """
    for run in runs.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            begin = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - begin)
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def ratio(slow: Timing, fast: Timing) -> str:
    """Median of the pairwise ratios with their spread: how many times faster `fast` is."""
    ratios = sorted(a / b for a, b in zip(slow.seconds, fast.seconds, strict=True))
    return f"{statistics.median(ratios):.2f}x ({ratios[0]:.2f} to {ratios[-1]:.2f})"


def copy_bandwidth(megabytes: int = 512, repeats: int = 7) -> float:
    """Bytes read and written per second by a large multi-threaded copy."""
    import torch

    source = torch.ones(megabytes * 2**20 // 4)
    target = torch.empty_like(source)
    timing = interleaved({"copy": lambda: target.copy_(source)}, repeats)["copy"]
    return 2 * source.numel() * 4 / min(timing.seconds)


def matmul_rate(size: int = 2048, repeats: int = 7) -> float:
    """float32 FLOP/s of the faster of PyTorch's and XLA's large matrix products."""
    import jax
    import jax.numpy as jnp
    import torch

    a, b = (np.random.default_rng(i).standard_normal((size, size), np.float32) for i in (0, 1))
    ta, tb, ja, jb = torch.from_numpy(a), torch.from_numpy(b), jnp.asarray(a), jnp.asarray(b)
    product = jax.jit(jnp.dot)
    timings = interleaved(
        {"torch": lambda: ta @ tb, "xla": lambda: product(ja, jb).block_until_ready()}, repeats
    )
    return 2 * size**3 / min(min(t.seconds) for t in timings.values())


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

"""Fréchet distance, kernel distance and PRDC, compared with widely used libraries.

    pip install torchmetrics prdc scipy     # the other side, with the extra [torch]
    python benchmarks/metrics.py            # 5,000 x 768 features, and PRDC of 10,000 x 768

Both sides get the same random float32 features and take turns in one process. Time is CPU seconds
of all threads, which other jobs of the machine disturb least; a ratio is the median of the pairwise
ratios. Memory is the peak of a process of its own above what it held once packages and features
were loaded. The difference is that of the values, relative.
"""

import dataclasses
import functools
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tyro
from common import Timing, machine, print_table, ratio

from unix_jax.evaluation import image


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Sizes and effort."""

    rows: int = 5000
    columns: int = 768
    large: int = 10_000
    """Rows of the PRDC whose memory is bounded."""
    limit_gb: float = 2.0
    """The bound, on the whole process."""
    repeats: int = 5
    processes: int = 3
    """In which the memory of each alternative is measured."""
    memory: str | None = None
    """Measures the memory of one alternative (used by the script itself)."""


@functools.cache
def features(rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Two sets whose means and scales differ a little in every column."""
    rng = np.random.default_rng(0)
    real = rng.standard_normal((rows, columns), np.float32)
    scale = rng.uniform(0.8, 1.2, columns).astype(np.float32)
    return real, real[rng.permutation(rows)] * 0.5 + rng.standard_normal(real.shape, "f4") * scale


def identity(columns: int) -> Any:
    """torchmetrics' "network" for features that are already computed."""
    import torch

    class Features(torch.nn.Module):
        num_features = columns

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    return Features()


def torchmetrics_fid(real: np.ndarray, fake: np.ndarray) -> float:
    import torch
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(feature=identity(real.shape[1]))
    metric.update(torch.from_numpy(real), real=True)
    metric.update(torch.from_numpy(fake), real=False)
    return float(metric.compute())


def torchmetrics_kid(real: np.ndarray, fake: np.ndarray, double: bool) -> float:
    import torch
    from torchmetrics.image.kid import KernelInceptionDistance

    metric = KernelInceptionDistance(
        feature=identity(real.shape[1]), subsets=1, subset_size=len(real)
    )
    for array, is_real in ((real, True), (fake, False)):
        tensor = torch.from_numpy(array)
        metric.update(tensor.double() if double else tensor, real=is_real)
    return float(metric.compute()[0])


def scipy_fid(real: np.ndarray, fake: np.ndarray) -> float:
    """The textbook's form: the trace of scipy's matrix square root."""
    import scipy.linalg

    a, b = (np.asarray(x, np.float64) for x in (real, fake))
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(first @ second).real
    shift = a.mean(0) - b.mean(0)
    return float(shift @ shift + np.trace(first + second - 2 * root))


def prdc_package(real: np.ndarray, fake: np.ndarray) -> dict[str, float]:
    import contextlib
    import io

    from prdc import compute_prdc

    with contextlib.redirect_stdout(io.StringIO()):
        return compute_prdc(real_features=real, fake_features=fake, nearest_k=5)


# Metric: ours first, then the others.
Alternative = Callable[[np.ndarray, np.ndarray], Any]
ALTERNATIVES: dict[str, dict[str, Alternative]] = {
    "Fréchet distance": {
        "unix_jax": image.frechet_distance,
        "torchmetrics": torchmetrics_fid,
        "scipy sqrtm": scipy_fid,
    },
    "kernel distance": {
        "unix_jax": image.kernel_distance,
        "torchmetrics": functools.partial(torchmetrics_kid, double=True),
    },
    "kernel distance, float32": {
        "unix_jax": functools.partial(image.kernel_distance, precision="float32"),
        "torchmetrics": functools.partial(torchmetrics_kid, double=False),
    },
    "PRDC, k = 5": {"unix_jax": image.prdc, "prdc": prdc_package},
}


def in_turns(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, Timing]:
    """CPU seconds of the alternatives, run A B A B ... after one warm-up each."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, run in runs.items():
            begin = time.process_time()
            run()
            if turn:
                seconds[name].append(time.process_time() - begin)
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def resident(field: str) -> int:
    """VmRSS (now) or VmHWM (the peak) in bytes."""
    with open("/proc/self/status", encoding="ascii") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def measure_memory(name: str, rows: int, columns: int) -> None:
    """Prints bytes above the start, and in all, of one run at the peak."""
    metric, _, library = name.partition("/")
    run = ALTERNATIVES[metric][library]
    small = features(8, columns)
    run(*small)  # packages are imported and threads started
    pair = features(rows, columns)
    with open("/proc/self/clear_refs", "w", encoding="ascii") as reset:
        reset.write("5")
    before = resident("VmRSS")
    run(*pair)
    print(json.dumps([resident("VmHWM") - before, resident("VmHWM")]))


def peak(metric: str, library: str, rows: int, columns: int) -> tuple[int, int]:
    """Of a fresh process: (bytes above its start, bytes in all)."""
    command = [sys.executable, __file__, "--memory", f"{metric}/{library}", "--rows", str(rows)]
    done = subprocess.run(
        [*command, "--columns", str(columns)], stdout=subprocess.PIPE, text=True, check=True
    )
    above, whole = json.loads(done.stdout.splitlines()[-1])
    return above, whole


def difference(ours: Any, theirs: Any) -> float:
    """The largest relative difference of a number, or of numbers by name."""
    if isinstance(ours, Mapping):
        return max(difference(ours[name], float(theirs[name])) for name in ours)
    return abs(ours - theirs) / abs(theirs)


def main(a: Arguments) -> None:
    if a.memory:
        measure_memory(a.memory, a.rows, a.columns)
        return
    pair = features(a.rows, a.columns)
    print(machine())
    table = []
    for metric, runs in ALTERNATIVES.items():
        values = {library: run(*pair) for library, run in runs.items()}
        calls = {name: functools.partial(run, *pair) for name, run in runs.items()}
        timings = in_turns(calls, a.repeats)
        peaks = {
            library: [peak(metric, library, a.rows, a.columns)[0] for _ in range(a.processes)]
            for library in runs
        }
        ours = peaks["unix_jax"]
        for library in runs:
            ratios = sorted(b / o for b, o in zip(peaks[library], ours, strict=True))
            own = library == "unix_jax"
            table.append(
                [
                    f"{metric}: {library}",
                    "" if own else f"{difference(values['unix_jax'], values[library]):.1e}",
                    f"{timings[library].median:.2f}",
                    "" if own else ratio(timings[library], timings["unix_jax"]),
                    f"{sorted(peaks[library])[a.processes // 2] / 1e6:.0f}",
                    ""
                    if own
                    else f"{ratios[len(ratios) // 2]:.2f}x ({ratios[0]:.2f} to {ratios[-1]:.2f})",
                ]
            )
    print_table(
        f"{a.rows} x {a.columns} random float32 features, {a.repeats} runs in turns",
        ["", "difference", "CPU s", "time / unix_jax", "MB", "memory / unix_jax"],
        table,
    )
    above, whole = peak("PRDC, k = 5", "unix_jax", a.large, a.columns)
    print(
        f"PRDC of {a.large} x {a.large} x {a.columns}: {above / 1e9:.2f} GB above the start, "
        f"{whole / 1e9:.2f} GB in all; limit {a.limit_gb} GB "
        f"{'held' if whole < a.limit_gb * 1e9 else 'EXCEEDED'}"
    )


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))

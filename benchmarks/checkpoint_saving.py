"""Saves and restores a training checkpoint: ours, Orbax alone, and a plain write, in one run.

    python benchmarks/checkpoint_saving.py
    python benchmarks/checkpoint_saving.py --megabytes 800 --repeats 5

Ours is `CheckpointStore`: uncompressed, listed with checksums; restoring includes the verification
of the files by their checksums. Orbax is `ocp.StandardCheckpointer` with its defaults, which
compress. The plain write is `write` of the bytes, the plain read `numpy.fromfile`. Files stay in
the page cache. Every way takes its turn in each repeat, and ratios are of the turns of one repeat.
CPU seconds count all threads of the process; wall time depends on the disk and on other jobs.
"""

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tyro
from common import machine, print_table

from unix_jax.training.checkpoint_store import CheckpointStore

State = dict[str, jax.Array]


@dataclasses.dataclass
class Arguments:
    """Size and effort."""

    megabytes: int = 400
    """Size of the state."""
    arrays: int = 12
    """Number of arrays."""
    repeats: int = 3


def random_state(a: Arguments) -> State:
    """Normal numbers, as weights are: nearly incompressible."""
    rng = np.random.default_rng(0)
    rows = round(a.megabytes * 1e6 / a.arrays / 4 / 1024)
    return {
        f"array{i}": jax.device_put(0.02 * rng.standard_normal((rows, 1024), np.float32))
        for i in range(a.arrays)
    }


def ours(directory: Path, state: State, target: Any) -> tuple[Callable[[], Any], ...]:
    def save() -> None:
        with CheckpointStore(directory) as store:
            store.save(1, state, {})
            store.wait()

    def restore() -> None:
        with CheckpointStore(directory) as store:
            found = store.restore(target)
            assert found is not None
            jax.block_until_ready(found.state)

    return save, restore


def orbax(directory: Path, state: State, target: Any) -> tuple[Callable[[], Any], ...]:
    def save() -> None:
        with ocp.StandardCheckpointer() as saver:
            saver.save(directory / "state", state)

    def restore() -> None:
        with ocp.StandardCheckpointer() as saver:
            jax.block_until_ready(saver.restore(directory / "state", target))

    return save, restore


def plain(directory: Path, state: State, target: Any) -> tuple[Callable[[], Any], ...]:
    def save() -> None:
        for name, array in state.items():
            with open(directory / name, "wb") as file:
                file.write(memoryview(np.asarray(array)).cast("B"))

    def restore() -> None:
        for name in target:
            np.fromfile(directory / name, np.float32)

    return save, restore


WAYS = {"ours": ours, "Orbax alone": orbax, "plain write": plain}


def seconds(run: Callable[[], Any]) -> tuple[float, float]:
    """(wall, CPU)."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - cpu


def spread(values: list[float], form: str) -> str:
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def main(a: Arguments) -> None:
    print(machine())
    state = random_state(a)
    gigabytes = sum(array.nbytes for array in state.values()) / 1e9
    target = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )
    times: dict[tuple[str, str], list[tuple[float, float]]] = {}
    size: dict[str, float] = {}
    for repeat in range(a.repeats + 1):
        for name, way in WAYS.items():
            with tempfile.TemporaryDirectory() as directory:
                for what, run in zip(
                    ("save", "restore"), way(Path(directory), state, target), strict=True
                ):
                    found = seconds(run)
                    # The first turn warms up.
                    if repeat:
                        times.setdefault((name, what), []).append(found)
                files = [file for file in Path(directory).rglob("*") if file.is_file()]
                size[name] = sum(file.stat().st_size for file in files) / 1e9
    for what in ("save", "restore"):
        rows = []
        for name in WAYS:
            of_way = times[name, what]
            reference = times["Orbax alone", what]
            rows.append(
                [
                    name,
                    spread([gigabytes / wall for wall, _ in of_way], ".2f"),
                    spread([cpu for _, cpu in of_way], ".2f"),
                    spread([r[1] / f[1] for f, r in zip(of_way, reference, strict=True)], ".2f"),
                    f"{size[name]:.3f}",
                ]
            )
        header = ["", "GB/s, wall", "CPU s", "CPU of Orbax alone / this", "GB on disk"]
        print_table(f"{what}: {gigabytes:.2f} GB in {a.arrays} arrays", header, rows)


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))

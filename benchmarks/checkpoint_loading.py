"""Cost of verification: the time to load a checkpoint with and without it.

    python benchmarks/checkpoint_loading.py                # 6.4 GB of random bf16
    python benchmarks/checkpoint_loading.py --layers 6     # a smaller one

Writes a random checkpoint of the published shapes and reads all of it in bfloat16 in three ways,
one after the other, several times: with checksums and the search for NaN as
`native.load_params` does it, with neither, and through TensorStore as versions before checksums
did. Other work on a machine falls on all three alike; what counts is the ratio within a
round. CPU time, summed over threads, is printed too: other work changes it less. The files are in
the page cache, where reading is fastest and verification weighs most.
"""

import dataclasses
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import tyro

from unix_jax.checkpoints import native
from unix_jax.checkpoints.leaves import Leaf, flatten, place
from unix_jax.checkpoints.zarr_arrays import open_leaf, tensorstore_reader
from unix_jax.config import UniXConfig
from unix_jax.models import unix


@dataclasses.dataclass(frozen=True)
class Loading:
    """Loading of a random checkpoint of the published shapes."""

    layers: int | None = None
    """Layers of the decoder and the vision tower; the published number by default."""
    directory: Path | None = None
    """Where to write the checkpoint (temporary; removed)."""
    repeats: int = 5
    """Rounds; median, least and most are shown."""


def random_leaf(shape: tuple[int, ...], seed: int) -> Leaf:
    """Random bfloat16 numbers, made when they are read."""
    kind = np.dtype(ml_dtypes.bfloat16)

    def read(index: Any) -> np.ndarray:
        rng = np.random.default_rng(seed)
        bits = rng.integers(0, 2**16, shape, np.uint16) & np.uint16(0xBFFF)
        return bits.view(kind)[index]

    return Leaf(shape, kind, read)


def load_verified(path: Path) -> Any:
    """As a user loads it."""
    return native.load_params(path)


def load_unverified(path: Path) -> Any:
    """The same reader without checksums, and without the search for NaN."""
    leaves = (
        open_leaf(path / "params", name, info.shape, info.dtype, None)
        for name, info in infos(path).items()
    )
    return [place(leaf).block_until_ready() for leaf in leaves]


def load_tensorstore(path: Path) -> Any:
    """As it was before checksums."""
    leaves = (
        Leaf(info.shape, info.dtype, tensorstore_reader(path / "params" / name.replace("/", ".")))
        for name, info in infos(path).items()
    )
    return [place(leaf).block_until_ready() for leaf in leaves]


def infos(path: Path) -> dict[str, native.ArrayInfo]:
    """The parameters' shapes and types."""
    found = native.tensor_infos(path)
    return {k.removeprefix("params/"): v for k, v in found.items() if k.startswith("params/")}


def measure(path: Path, repeats: int) -> None:
    """Prints seconds and ratios."""
    ways = {"verified": load_verified, "unverified": load_unverified, "before": load_tensorstore}
    wall: dict[str, list[float]] = {name: [] for name in ways}
    cpu: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(repeats + 1):
        for name, load in ways.items():
            start, used = time.perf_counter(), time.process_time()
            loaded = load(path)
            if number:  # the first round fills the page cache
                wall[name].append(time.perf_counter() - start)
                cpu[name].append(time.process_time() - used)
            del loaded

    def spread(values: list[float]) -> str:
        return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"

    size = sum(leaf.nbytes for leaf in native.open_leaves(path, "params").values())
    print(f"{size / 1e9:.2f} GB, {repeats} rounds: median (least to most)")
    for name in ways:
        rate = size / 1e9 / statistics.median(wall[name])
        print(f"  {name:10} {spread(wall[name])} s, {rate:.2f} GB/s, CPU {spread(cpu[name])} s")
    for other in ("unverified", "before"):
        for said, times in (("time", wall), ("CPU time", cpu)):
            pairs = zip(times["verified"], times[other], strict=True)
            print(f"  verified / {other:10} {said:8} {spread([a / b for a, b in pairs])}")


def main() -> None:
    """Writes, measures, removes."""
    options = tyro.cli(Loading, description=__doc__)
    config = UniXConfig.preset("published")
    if options.layers is not None:
        config = dataclasses.replace(
            config,
            decoder=dataclasses.replace(config.decoder, num_layers=options.layers),
            vision=dataclasses.replace(config.vision, num_layers=options.layers),
        )
    shapes = flatten(unix.param_shapes(config))
    leaves = {name: random_leaf(leaf.shape, i) for i, (name, leaf) in enumerate(shapes.items())}
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        path = Path(directory) / "checkpoint"
        native.save(path, config, leaves)
        jax.devices()
        measure(path, options.repeats)


if __name__ == "__main__":
    main()

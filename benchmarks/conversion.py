"""Time and peak memory of `convert import` and `convert export` at the published size.

    python benchmarks/conversion.py                  # 6.4 GB of random bf16; about 5 minutes
    python benchmarks/conversion.py --layers 2       # a small run

Writes a random published directory, copies its weight file (the yardstick), imports and exports
it in processes of their own, compares the exported file with the first bit for bit, and removes
all of it. Every time includes `fsync` of what was written.
"""

import dataclasses
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
import tyro

from unix_jax.checkpoints.formats.tensor_source import TensorInfo
from unix_jax.checkpoints.formats.writers import Entry, write_safetensors, write_torch_zip
from unix_jax.checkpoints.published_config import to_published
from unix_jax.checkpoints.table import unix_table, vae_table
from unix_jax.config import UniXConfig
from unix_jax.storage.json_file import write_json

LIMIT_GB = 3.0
# Runs one conversion and prints its peak resident memory; `import` is part of the cost.
_CHILD = """
import json, resource, sys
from unix_jax.commands.convert import main
code = main(sys.argv[1:])
print(json.dumps({"code": code, "kib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}))
"""


@dataclasses.dataclass(frozen=True)
class Conversion:
    """Import and export of a random file of the published shapes."""

    layers: int | None = None
    """Layers of the decoder and the vision tower; the published number by default."""
    directory: Path | None = None
    """Where to write about three times the file (temporary; removed)."""
    repeats: int = 3
    """Runs of each measurement; the fastest and the slowest are shown."""


def config_of(layers: int | None) -> UniXConfig:
    """The published sizes, with fewer layers if asked."""
    config = UniXConfig.preset("published")
    if layers is None:
        return config
    return dataclasses.replace(
        config,
        decoder=dataclasses.replace(config.decoder, num_layers=layers),
        vision=dataclasses.replace(config.vision, num_layers=layers),
    )


def random_tensors(shapes: dict[str, tuple[int, ...]], dtype: np.dtype) -> Iterator[Entry]:
    """Random weights in [-0.04, 0.04), different in every tensor, made when they are written."""
    pool = np.random.default_rng(0).uniform(-0.04, 0.04, 1 << 24).astype(dtype)

    def make(shape: tuple[int, ...], start: int) -> np.ndarray:
        return np.resize(np.roll(pool, start), shape)

    for number, (key, shape) in enumerate(shapes.items()):
        yield key, TensorInfo(shape, dtype), functools.partial(make, shape, 7919 * number)


def write_source(directory: Path, config: UniXConfig) -> None:
    """A published directory with random weights: bf16 model, float32 autoencoder."""
    bf16, side = np.dtype(ml_dtypes.bfloat16), config.vit_max_num_patch_per_side
    published, vae = to_published(config)
    (directory / "vae").mkdir(parents=True)
    write_json(directory / "config.json", published)
    write_json(directory / "vae" / "config.yaml", vae)  # JSON is YAML
    shapes = {key: e.file_shape for e in unix_table(config) for key in e.keys}
    shapes["vit_pos_embed.pos_embed"] = (side**2, config.decoder.hidden_size)
    write_safetensors(
        directory / "model.safetensors", random_tensors(shapes, bf16), {"format": "pt"}
    )
    shapes = {key: e.file_shape for e in vae_table(config.vae) for key in e.keys}
    write_torch_zip(
        directory / "vae" / "kl-f16d16.ckpt", random_tensors(shapes, np.dtype(np.float32))
    )


def synced(path: Path) -> None:
    """Waits until every file below `path` is on the disk."""
    for file in [path] if path.is_file() else path.rglob("*"):
        if file.is_file():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())


def copy_seconds(source: Path, target: Path) -> float:
    """A plain copy of all weight files: read and write, no shortcut of the file system."""
    start = time.perf_counter()
    for file in (source / "model.safetensors", source / "vae" / "kl-f16d16.ckpt"):
        with file.open("rb") as read, (target / file.name).open("wb") as write:
            shutil.copyfileobj(read, write, 16 << 20)
    synced(target)
    return time.perf_counter() - start


def convert(*arguments: str | Path) -> tuple[float, float]:
    """(seconds, peak resident GB) of one command in a fresh process."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    synced(Path(arguments[-1]))
    seconds = time.perf_counter() - start
    result = json.loads(done.stdout.splitlines()[-1])
    if result["code"]:
        raise SystemExit(f"{arguments[0]} failed")
    return seconds, result["kib"] * 1024 / 1e9


def same_bytes(first: Path, second: Path) -> bool:
    """Whether two files are equal, compared 16 MiB at a time."""
    with first.open("rb") as a, second.open("rb") as b:
        while True:
            left, right = a.read(16 << 20), b.read(16 << 20)
            if left != right:
                return False
            if not left:
                return True


def run(options: Conversion) -> int:
    """Measures, prints, removes; 1 if a peak is over the limit or a bit differs."""
    work = Path(tempfile.mkdtemp(prefix="conversion-", dir=options.directory))
    try:
        source = work / "source"
        write_source(source, config_of(options.layers))
        synced(source)
        files = (source / "model.safetensors", source / "vae" / "kl-f16d16.ckpt")
        size = sum(file.stat().st_size for file in files) / 1e9
        times: dict[str, list[float]] = {"copy": [], "import": [], "export": []}
        peaks: dict[str, float] = {"import": 0.0, "export": 0.0}
        equal = True
        for _ in range(options.repeats):
            # Interleaved, so that a slow phase of a shared disk falls on all three.
            (work / "copy").mkdir()
            times["copy"].append(copy_seconds(source, work / "copy"))
            shutil.rmtree(work / "copy")
            for name, origin, target in (
                ("import", source, "jax"),
                ("export", work / "jax", "out"),
            ):
                seconds, peak = convert(name, origin, work / target)
                times[name].append(seconds)
                peaks[name] = max(peaks[name], peak)
            equal &= all(same_bytes(f, work / "out" / f.relative_to(source)) for f in files[:1])
            shutil.rmtree(work / "jax")
            shutil.rmtree(work / "out")
    finally:
        shutil.rmtree(work, ignore_errors=True)
    baseline = min(times["copy"])
    print(f"{size:.2f} GB of weights, {options.repeats} runs, times with fsync\n")
    print("| | fastest s | slowest s | GB/s | times a plain copy | peak resident GB |")
    print("|---|---|---|---|---|---|")
    for name, runs in times.items():
        best, memory = min(runs), f"{peaks[name]:.2f}" if name in peaks else ""
        print(
            f"| {name} | {best:.1f} | {max(runs):.1f} | {size / best:.2f} "
            f"| {best / baseline:.2f} | {memory} |"
        )
    print(f"\nmodel.safetensors after import and export: {'equal' if equal else 'DIFFERENT'} bytes")
    print(f"peak limit {LIMIT_GB} GB: {'held' if max(peaks.values()) < LIMIT_GB else 'EXCEEDED'}")
    return int(not equal or max(peaks.values()) >= LIMIT_GB)


if __name__ == "__main__":
    sys.exit(run(tyro.cli(Conversion, description=__doc__)))

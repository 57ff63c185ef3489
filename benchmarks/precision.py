"""Deviation of other precisions from the original's float32 results: losses, states, gradients.

    python benchmarks/precision.py
    python benchmarks/precision.py --golden DIR

Runs the packed training row of a golden directory in float32 with exact products, in float32 as the
device multiplies it by default (TF32 on NVIDIA GPUs), and in bfloat16 with each implementation of
attention that the device has. Each figure is |ours - the original's| / |the original's|, Euclidean,
over all numbers of its kind. bfloat16 keeps 8 bits: 2e-3 is one rounding. Then, how far bfloat16
moves the latents of the bundled X-rays.
"""

import collections
import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from common import machine, print_table
from PIL import Image

from unix_jax.checkpoints.load import load_model
from unix_jax.models.attention import Implementation
from unix_jax.models.autoencoder import Autoencoder
from unix_jax.models.unix import UniX
from unix_jax.parity.check import read_golden_directory
from unix_jax.parity.golden import Golden
from unix_jax.parity.golden_training import training_tensors

# Names of golden tensors, all those that begin so.
KINDS = {
    "cross-entropy": "train.ce", "squared error": "train.mse", "hidden states": "train.last_hidden",
    "gradients": "train.grad.",
}  # fmt: skip
EXAMPLES = Path(__file__).parent.parent / "examples"
COUNTED = ("train.ce_loss", "train.mse_loss")  # places, not numbers


@dataclasses.dataclass
class Arguments:
    """What is compared."""

    golden: Path = Path(__file__).parent.parent / "tests/golden/tiny"
    attention: tuple[Implementation, ...] | None = None
    """In bfloat16; by default what the device has."""


@dataclasses.dataclass(frozen=True)
class ComputedOtherwise(Golden):
    """The golden model with another type or implementation."""

    changes: dict[str, Any] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def model(self) -> UniX:
        return UniX(self.config, **self.changes)


def distances(golden: Golden) -> dict[str, float]:
    """By kind."""
    ours = training_tensors(golden)
    errors: collections.Counter[str] = collections.Counter()
    sizes: collections.Counter[str] = collections.Counter()
    for name, value in ours.items():
        for kind, prefix in KINDS.items():
            if name.startswith(prefix) and not name.startswith(COUNTED):
                expected = np.asarray(golden[name], np.float64)
                difference = np.asarray(value, np.float64) - expected
                errors[kind] += float(np.square(difference).sum())
                sizes[kind] += float(np.square(expected).sum())
    return {kind: (errors[kind] / sizes[kind]) ** 0.5 for kind in KINDS}


def latents(checkpoint: Path) -> list[list[str]]:
    """Root mean squares of the means of the bundled X-rays' latents in float32, of what bfloat16
    moves them by, and of the posterior's own standard deviation."""
    config, _, params = load_model(checkpoint, dtype=jnp.float32)
    side = config.vae.resolution
    pixels = [
        np.asarray(Image.open(file).convert("RGB").resize((side, side)), np.float32) / 127.5 - 1
        for file in sorted(EXAMPLES.glob("*.jpg"))
    ]

    def moments(dtype: Any) -> list[np.ndarray]:
        run = functools.partial(Autoencoder(config.vae, dtype).apply, method=Autoencoder.moments)
        found = jax.jit(run)({"params": params}, np.stack(pixels))
        return np.split(np.asarray(found, np.float64), 2, axis=-1)

    (mean, logvar), (moved, _) = moments(jnp.float32), moments(jnp.bfloat16)
    parts = (mean, moved - mean, np.exp(logvar / 2))
    return [[str(len(pixels)), *(f"{np.sqrt(np.square(x).mean()):.2g}" for x in parts)]]


def main(a: Arguments) -> None:
    print(machine())
    config, params, vae_params = load_model(a.golden / "checkpoint", dtype=jnp.float32)
    tensors, info = read_golden_directory(a.golden)
    gpu = jax.default_backend() == "gpu"
    names = a.attention or (("xla", "chunked", "cudnn") if gpu else ("xla", "chunked"))
    runs = [("float32", "xla", "highest"), ("float32", "xla", None)]
    runs += [("bfloat16", name, None) for name in names]
    rows = []
    for dtype, attention, precision in runs:
        changes = {"dtype": jnp.dtype(dtype), "attention_implementation": attention}
        golden = ComputedOtherwise(config, params, vae_params, tensors, info, changes)
        with jax.default_matmul_precision(precision or "default"):
            found = distances(golden)
        products = "exact" if precision else "default"
        rows.append([dtype, products, attention, *(f"{x:.1e}" for x in found.values())])
    print_table("Distance to the original", ["type", "products", "attention", *KINDS], rows)
    print_table(
        "Latents of the nano autoencoder, root mean squares",
        ["X-rays", "mean in float32", "moved by bfloat16", "posterior's own deviation"],
        latents(EXAMPLES / "nano"),
    )


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))

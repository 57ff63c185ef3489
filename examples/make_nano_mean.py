"""Averages the weights of checkpoints of the nano model that were trained from each other.

    python examples/make_nano_mean.py runs/nano_mean runs/nano_reading_2 runs/nano_reading_1

The mean of a model that knows its training X-rays by heart and of the one that it was trained from
knows most of them, and reads more of the validation split. Arrays that are equal in all stay as
they are. Config and tokenizer are those of the first checkpoint.
"""

import argparse
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from unix_jax.checkpoints import native
from unix_jax.checkpoints.load import load_model
from unix_jax.checkpoints.run_export import resolve_checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, help="a new directory")
    parser.add_argument("checkpoints", nargs="+", help="checkpoints, or directories of runs")
    parser.add_argument("--weights", nargs="+", type=float, help="one for each; equal if absent")
    a = parser.parse_args()
    weights = a.weights or [1.0] * len(a.checkpoints)
    if len(weights) != len(a.checkpoints):
        parser.error(f"--weights: expected {len(a.checkpoints)}, found {len(weights)}")
    if not all(0 < weight < math.inf for weight in weights):
        parser.error(f"--weights: expected positive numbers, found {weights}")
    config, first, vae = load_model(a.checkpoints[0])
    others = [load_model(path)[1] for path in a.checkpoints[1:]]

    def mean(*arrays: Array) -> Array:
        if all(np.array_equal(arrays[0], array) for array in arrays[1:]):
            return arrays[0]
        total = sum(w * x.astype(jnp.float32) for w, x in zip(weights, arrays, strict=True))
        return jnp.asarray(total / sum(weights), arrays[0].dtype)

    copies = native.carried_files(resolve_checkpoint(a.checkpoints[0]))
    native.save(a.out, config, jax.tree.map(mean, first, *others), vae, copies=copies)


if __name__ == "__main__":
    main()

"""Teaches the nano model's ViT to see findings, before it learns to write about them.

    python examples/make_nano_vision.py runs/nano_autoencoder runs/nano_reports runs/nano_vision

A linear layer reads every finding off the mean of the ViT's features; ViT and layer are trained
together, at a tenth of the cost per image of training on reports. The layer is then dropped: the
checkpoint is the initial one, or that of `--into`, with another ViT. docs/nano.md has the recipe.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from einops import rearrange
from jaxtyping import Array, Float
from PIL import Image

from unix_jax.checkpoints import native
from unix_jax.checkpoints.load import load_model
from unix_jax.checkpoints.run_export import resolve_checkpoint
from unix_jax.data.augmentation import AugmentationConfig, augment
from unix_jax.data.records import record_image
from unix_jax.data.sources import open_source
from unix_jax.evaluation.bootstrap import mean_interval
from unix_jax.models.vision import VisionTransformer
from unix_jax.preprocessing.transforms import to_model_image
from unix_jax.training.linear_path import block_components
from unix_jax.training.optimizer import OptimizerConfig, make_optimizer

# Limits of the changes of training images. With small ones, the cross-entropy of findings on X-rays
# that the ViT has not seen rises after 200 steps; with large ones it does not learn all by heart.
CHANGES = {
    "small": AugmentationConfig(shift=0.015, scale=0.02, rotation=1.5, contrast=0.1, noise=0.01),
    "large": AugmentationConfig(shift=0.06, scale=0.12, rotation=6.0, contrast=0.3, noise=0.03),
}
WEIGHT_DECAY = {"small": 0.02, "large": 0.1}
# A little more than the ViT sees: changes are cheaper on it than on the pixels of the file.
SIDE = 144


def load(source: str, split: str) -> tuple[list[Image.Image], list[tuple[str, ...]]]:
    """(small images, labels) of the records of a split."""
    records = open_source(source, split)
    images = []
    for i in range(len(records)):
        image = record_image(records[i]).convert("L")
        image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        images.append(image)
    return images, [records[i].labels for i in range(len(records))]


def whitened_patches(vision: Any, params: Any, images: list[Image.Image]) -> Any:
    """The ViT's parameters with patches that start at their whitened principal components.

    Brightness varies 20 times as much as detail. From random projections, which see little else, a
    small ViT needs many times as many steps.
    """
    side = vision.patch_size
    pixels = np.stack([to_model_image(image, vision.image_size)[..., 0] for image in images])
    patches = rearrange(pixels, "n (h i) (w j) -> (n h w) (i j)", i=side, j=side)
    mean, components, spread = block_components(patches, vision.width)
    kernel = (0.5 * components / np.maximum(spread, 0.01 * spread[0])[:, None]).T
    thirds = np.repeat(kernel.reshape(side, side, 1, -1) / 3, 3, axis=2)
    patch = {"kernel": jnp.asarray(thirds, jnp.float32), "bias": jnp.asarray(-mean @ kernel)}
    # Positions must not vanish beside such patches.
    return dict(params) | {"patch_embed": patch, "pos_embed": 10 * params["pos_embed"]}


def train(
    config: Any,
    params: Any,
    source: str,
    steps: int,
    rows: int,
    seed: int,
    trained: bool,
    changes: str,
) -> Any:
    """The ViT's parameters after `steps` steps of `rows` images; `trained`: not from fresh ones."""
    images, labels = load(source, "train")
    held_images, held_labels = load(source, "validate")
    names = sorted({name for found in labels for name in found})

    def targets(labels: list[tuple[str, ...]]) -> np.ndarray:
        return np.array([[name in found for name in names] for found in labels], np.float32)

    if not trained:
        params = whitened_patches(config.vision, params, images[:: len(images) // 200 or 1])
    truth, held_truth = targets(labels), targets(held_labels)
    model = VisionTransformer(config.vision)
    tx, _ = make_optimizer(
        OptimizerConfig(
            name="muon", learning_rate=3e-3, warmup_steps=min(20, steps // 2), schedule="cosine",
            final_fraction=0.02, b2=0.99, eps=1e-8,
            weight_decay=WEIGHT_DECAY[changes],
        ),
        steps,
    )  # fmt: skip
    width = config.vision.width
    # The bias starts at the frequencies of the findings, which would take hundreds of steps.
    frequency = truth.mean(axis=0)
    state: Any = {
        "vit": params,
        "head": jnp.zeros((width, len(names))),
        "bias": jnp.asarray(np.log(frequency / (1 - frequency))),
    }
    optimizer = tx.init(state)

    def logits(state: Any, pixels: Array) -> Float[Array, "B K"]:
        found = model.apply({"params": state["vit"]}, pixels)
        assert isinstance(found, jax.Array)
        return found.mean(axis=1) @ state["head"] + state["bias"]

    @jax.jit
    def step(state: Any, optimizer: Any, pixels: Array, truth: Array) -> tuple[Any, Any, Array]:
        def loss(state: Any) -> Array:
            return optax.sigmoid_binary_cross_entropy(logits(state, pixels), truth).mean()

        value, grads = jax.value_and_grad(loss)(state)
        updates, optimizer = tx.update(grads, optimizer, state)
        return optax.apply_updates(state, updates), optimizer, value

    def right(state: Any, images: list[Image.Image], truth: np.ndarray) -> str:
        found = []
        for start in range(0, len(images), rows):
            part = [
                to_model_image(i, config.vision.image_size) for i in images[start : start + rows]
            ]
            found.append(np.asarray(jax.jit(logits)(state, np.stack(part))) > 0)
        exact = (np.concatenate(found) == truth.astype(bool)).all(axis=1)
        interval = mean_interval(exact.astype(float))
        return f"{interval.value:.1%} ({interval.low:.1%} to {interval.high:.1%})"

    rng, began, order = np.random.default_rng(seed), time.monotonic(), list[int]()
    losses = list[Array]()
    for number in range(steps):
        while len(order) < rows:
            order += rng.permutation(len(images)).tolist()
        chosen, order = order[:rows], order[rows:]
        pixels = [
            to_model_image(augment(images[i], CHANGES[changes], rng), config.vision.image_size)
            for i in chosen
        ]
        state, optimizer, value = step(state, optimizer, np.stack(pixels), truth[chosen])
        losses.append(value)
        if (number + 1) % 100 == 0 or number + 1 == steps:
            print(
                f"step {number + 1}/{steps} loss {np.mean(losses[-100:]):.4f} "
                f"{time.monotonic() - began:.0f} s",
                flush=True,
            )
        if (number + 1) % 200 == 0 or number + 1 == steps:
            print(f"  all findings right: training rows {right(state, images, truth)}", flush=True)
            print(f"  validation {right(state, held_images, held_truth)}", flush=True)
    return state["vit"]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("init", help="checkpoint, or directory of a run")
    parser.add_argument("reports", type=Path, help="what make_nano_reports.py wrote")
    parser.add_argument("out", type=Path, help="a new directory")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--rows", type=int, default=16, help="number of images in a step")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--trained", action="store_true",
        help="start from the ViT of the checkpoint, which this script has trained before",
    )  # fmt: skip
    parser.add_argument(
        "--changes", choices=list(CHANGES), default="small", help="limits of the changes of images"
    )
    parser.add_argument(
        "--into", help="checkpoint, or run, that the ViT is put into, if not the initial one"
    )
    a = parser.parse_args()
    config, params, vae = load_model(a.init)
    source = f"manifest:{a.reports}"
    vision = train(config, params["vision"], source, a.steps, a.rows, a.seed, a.trained, a.changes)
    if a.into:
        config, params, vae = load_model(a.into)
    copies = native.carried_files(resolve_checkpoint(a.into or a.init))
    native.save(a.out, config, params | {"vision": vision}, vae, copies=copies)


if __name__ == "__main__":
    main()

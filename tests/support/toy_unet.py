"""A small model whose generation backbone is a U-Net, and packed rows of prompts with images."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from support.toy_pipelines import SMALL, random_params
from unix_jax.config import UNetBackbone
from unix_jax.data.batch import TrainingBatch
from unix_jax.models import autoencoder, unix
from unix_jax.preprocessing.layout import Layout, TextSplit, VaeSplit, lay_out

BACKBONE = UNetBackbone(
    widths=(16, 24), attention=(True, True), layers=(1, 1), depths=(1, 1), norm_groups=8
)
# Two layers: the blocks of the U-Net do not all read the same one.
CONFIG = dataclasses.replace(
    SMALL, decoder=dataclasses.replace(SMALL.decoder, num_layers=2), generation=BACKBONE
)
GRID = (2, 3)
TOKENS = GRID[0] * GRID[1]


def unet_params(seed: int = 0) -> Any:
    """Parameters of which every one matters, unlike fresh ones."""
    return random_params(unix.param_shapes(CONFIG), seed)


@functools.cache
def unet_pipe() -> Any:
    from unix_jax.inference.pipeline import UniXPipeline

    return UniXPipeline(
        CONFIG, unet_params(), random_params(autoencoder.param_shapes(CONFIG.vae), 1)
    )


def packed(rows: list[list[list[int]]]) -> Layout:
    """Each text (token ids) followed by its noised image."""
    splits: Any = [
        [[TextSplit(ids), VaeSplit(*GRID, noised=True)] for ids in texts] for texts in rows
    ]
    return lay_out(splits, CONFIG)


def latent_index(layout: Layout) -> np.ndarray:
    """Images follow one another, so a latent's index says whose it is."""
    real = np.asarray(layout.gen.segment) > 0
    return np.where(real, np.arange(real.shape[1]), -1).astype(np.int32)


def make_batch(rows: int = 4, images: int = 2, seed: int = 0) -> TrainingBatch:
    """Rows of `images` prompts with an image each, in moments."""
    rng = np.random.default_rng(seed)
    texts = [
        [[600, *rng.integers(1, 90, 1 + (r + j) % 3).tolist(), 601] for j in range(images)]
        for r in range(rows)
    ]
    layout = packed(texts)
    p = CONFIG.latent_patch_size
    shape = (rows, images, GRID[0] * p, GRID[1] * p, 2 * CONFIG.vae.z_channels)
    index: Any = latent_index(layout)
    zeros = np.zeros(layout.token_ids.shape)
    return TrainingBatch(
        token_ids=layout.token_ids,  # type: ignore[arg-type]
        und=layout.und,
        labels=zeros.astype(np.int32),  # type: ignore[arg-type]
        ce_weights=zeros.astype(np.float32),  # type: ignore[arg-type]
        gen=layout.gen,
        vae_moments=rng.normal(size=shape).astype(np.float32),  # type: ignore[arg-type]
        latent_index=index,
        latent_position_ids=layout.latent_position_ids,  # type: ignore[arg-type]
        noised=np.ones((rows, images), bool),  # type: ignore[arg-type]
        mse_weights=(index >= 0).astype(np.float32),
    )


def init_unix(key: jax.Array) -> Any:
    return unix.init_params(CONFIG, key, boxed=True)

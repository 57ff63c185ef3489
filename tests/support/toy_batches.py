"""A small model and packed batches of every kind of split, for the tests of training."""

import jax
import numpy as np

from unix_jax.config import (
    AutoencoderConfig,
    DecoderConfig,
    SpecialTokens,
    UniXConfig,
    VisionConfig,
)
from unix_jax.data.batch import TrainingBatch
from unix_jax.models.unix import init_params, param_shapes
from unix_jax.preprocessing.layout import TextSplit, VaeSplit, VitSplit, lay_out

# GQA, 2 x 2 latents a token, interpolated positions, a shift: nothing is as in the published size.
CONFIG = UniXConfig(
    decoder=DecoderConfig(32, 48, 2, 4, 2, 8, 64, 64, 1e-5, 5e5),
    vision=VisionConfig(16, 8, 16, 1, 2, 2.0),
    vae=AutoencoderConfig(
        ch=32, ch_mult=(1, 1), num_res_blocks=1, attn_resolutions=(), z_channels=4, embed_dim=4
    ),
    special_tokens=SpecialTokens(58, 59, 60, 61, 62),
    latent_patch_size=2,
    max_latent_size=4,
    vit_max_num_patch_per_side=2,
    interpolate_pos=True,
    timestep_shift=1.7,
)
SIDE = 8  # pixels of a VAE image: 2 x 2 latent tokens
TOKENS = 4


def init_unix(key):
    return init_params(CONFIG, key, boxed=True)


def unix_params(seed=0):
    """Numbers made on the host, which compile nothing; llm2vae is not zero, unlike at a start."""
    rng = np.random.default_rng(seed)

    def fill(path, leaf):
        name = path[-1].key
        if name == "scale":
            return 1 + 0.1 * rng.normal(size=leaf.shape).astype(np.float32)
        fan = leaf.shape[-2] if len(leaf.shape) > 1 else 16
        return (rng.normal(size=leaf.shape) * fan**-0.5).astype(np.float32)

    return jax.tree_util.tree_map_with_path(fill, param_shapes(CONFIG))


def make_batch(rows=8, seed=0, *, pixels=False):
    """Packed rows: a report to write, an image to draw from a text and (mostly) from an image.

    Rows have different numbers of loss tokens of both kinds. `pixels` instead of moments.
    """
    rng = np.random.default_rng(seed)
    samples, noised = [], np.zeros((rows, 2), bool)
    for row in range(rows):
        report = TextSplit([58, *rng.integers(0, 58, 2 + row % 3).tolist(), 59])
        prompt = TextSplit([58, *rng.integers(0, 58, 2).tolist(), 59])
        clean = [] if row % 4 == 3 else [VaeSplit(2, 2, noised=False)]
        drawing = [*clean, prompt, VaeSplit(2, 2, noised=True)]
        samples.append([[VitSplit(), report], drawing])
        noised[row, len(clean)] = True
    layout = lay_out(samples, CONFIG)
    labels = np.roll(layout.token_ids, -1, axis=1)
    # Text of the first sample, its last token excepted, predicts the next one.
    text = (layout.und.segment == 1) & (layout.und.split == 1) & (layout.token_ids != 59)
    weights = np.where(text, rng.uniform(0.5, 1.0, labels.shape), 0).astype(np.float32)
    place = np.cumsum(layout.gen.segment > 0, axis=1) - 1
    index = np.where(layout.gen.segment > 0, place, -1).astype(np.int32)
    token_noised = np.take_along_axis(noised, np.maximum(index, 0) // TOKENS, axis=1)
    images = {"vae_moments": rng.normal(size=(rows, 2, 4, 4, 8)).astype(np.float32)}
    if pixels:
        images = {"vae_pixels": rng.uniform(-1, 1, (rows, 2, SIDE, SIDE, 3)).astype(np.float32)}
    return TrainingBatch(
        token_ids=layout.token_ids,
        und=layout.und,
        labels=labels,
        ce_weights=weights,
        vit_pixels=rng.normal(size=(rows, 1, 16, 16, 3)).astype(np.float32),
        vit_index=layout.vit_index,
        gen=layout.gen,
        latent_index=index,
        latent_position_ids=layout.latent_position_ids,
        noised=noised,
        mse_weights=(token_noised & (index >= 0)).astype(np.float32),
        **images,
    )


def named(tree):
    """Leaves of nested dictionaries, boxes or optax states by their path."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in flat}

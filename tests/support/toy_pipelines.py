"""Pipelines for tests: the golden toy checkpoint, and a smaller one with unusual settings."""

import functools
import math
from typing import Any

import jax
import numpy as np
from safetensors.numpy import load_file

from support.paths import GOLDEN
from unix_jax.config import (
    AutoencoderConfig,
    DecoderConfig,
    SpecialTokens,
    UniXConfig,
    VisionConfig,
)
from unix_jax.inference.pipeline import UniXPipeline
from unix_jax.models import autoencoder, unix
from unix_jax.preprocessing.text import Tokenizer

# Of five rows: short, one token, long, the first one again, empty.
PROMPTS = [[5, 6, 7], [8], list(range(40)), [5, 6, 7], []]

CHECKPOINT = GOLDEN / "tiny" / "checkpoint"

# GQA, 2 x 2 latents a token, interpolated positions; one layer of each kind, so that it compiles
# quickly (several layers: the golden model). Its tokens are those of the golden tokenizer.
SMALL = UniXConfig(
    decoder=DecoderConfig(48, 64, 1, 4, 2, 12, 640, 512, 1e-5, 5e5),
    vision=VisionConfig(32, 16, 24, 1, 3, 2.0),
    vae=AutoencoderConfig(
        ch=32, ch_mult=(1, 1), num_res_blocks=1, attn_resolutions=(), z_channels=4, embed_dim=4
    ),
    special_tokens=SpecialTokens(600, 601, 602, 603, 608),
    latent_patch_size=2,
    max_latent_size=5,
    vit_max_num_patch_per_side=2,
    interpolate_pos=True,
    timestep_shift=1.7,
)


def random_params(shapes: Any, seed: int) -> Any:
    """Numbers that keep activations near 1 and every output dependent on every input."""
    rng = np.random.default_rng(seed)

    def fill(path: Any, leaf: Any) -> jax.Array:
        name = str(path[-1].key)
        values = rng.normal(size=leaf.shape)
        if name == "scale":
            values = 1 + 0.1 * values
        elif name == "kernel":
            # The layers of a stack are a leading axis; convolutions have their fan-in in front.
            values /= math.sqrt(
                math.prod(leaf.shape[-4:-1] if leaf.ndim == 4 else leaf.shape[-2:-1])
            )
        elif name == "bias":
            values *= 0.1
        return jax.numpy.asarray(values, np.float32)

    return jax.tree_util.tree_map_with_path(fill, shapes)


def small_params() -> tuple[Any, Any]:
    """(UniX parameters, stacked; the autoencoder's), fresh trees at each call."""
    return (
        random_params(unix.param_shapes(SMALL), 0),
        random_params(autoencoder.param_shapes(SMALL.vae), 1),
    )


@functools.cache
def small_pipe() -> UniXPipeline:
    return UniXPipeline(SMALL, *small_params())


@functools.cache
def small_writing_pipe() -> UniXPipeline:
    """`small_pipe` with the golden tokenizer."""
    tokenizer = Tokenizer.from_directory(CHECKPOINT, SMALL.special_tokens)
    return UniXPipeline(SMALL, *small_params(), tokenizer)


@functools.cache
def tiny_pipe() -> UniXPipeline:
    return UniXPipeline.from_pretrained(CHECKPOINT, dtype="float32", compilation_cache=False)


@functools.cache
def golden() -> dict[str, np.ndarray]:
    return load_file(GOLDEN / "tiny" / "golden.safetensors")


def pictures(count: int, seed: int = 0) -> list[np.ndarray]:
    """Different grayscale pictures of different sizes."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(16, 70, (count, 2))
    return [rng.integers(0, 256, size, dtype=np.uint8) for size in sizes]


# 3 x 5 latent tokens; few steps.
DRAW = {"height": 12, "width": 20, "num_inference_steps": 3, "output_type": "latent"}


def draw(prompts, pipe=None, **options):
    return (pipe or small_pipe()).generate_image(prompts, **(DRAW | options))

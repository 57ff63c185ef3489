"""A small configuration, tokenizer and in-memory sources for the data tests."""

import dataclasses
import functools
import io

import numpy as np
from PIL import Image

from support.paths import GOLDEN
from unix_jax.config import AutoencoderConfig, UniXConfig, VisionConfig
from unix_jax.data.config import DataConfig
from unix_jax.data.records import Record
from unix_jax.errors import DataError
from unix_jax.preprocessing.text import Tokenizer

CHECKPOINT = GOLDEN / "tiny" / "checkpoint"

# 4 patches an image; 2 x 2 latents of 2 x 2 pixels a token: 4 pixels along each side.
CONFIG = dataclasses.replace(
    UniXConfig.preset("tiny"),
    vision=VisionConfig(image_size=32, patch_size=16, width=32),
    vae=AutoencoderConfig(
        ch=32, ch_mult=(1, 1), num_res_blocks=1, attn_resolutions=(), z_channels=4, embed_dim=4
    ),
    latent_patch_size=2,
    max_latent_size=5,
)
UNDERSTANDING = DataConfig(
    rows=4, und_tokens=160, vit_images=5, prompts=("Report.", "Write it down."), epochs=1
)
GENERATION = DataConfig(
    task="generation",
    rows=4,
    und_tokens=90,
    vit_images=0,
    vae_images=3,
    vae_height=12,
    vae_width=8,
    epochs=1,
)


@functools.cache
def tokenizer() -> Tokenizer:
    return Tokenizer.from_directory(CHECKPOINT, CONFIG.special_tokens)


def picture(seed: int, width: int = 24, height: int = 20) -> bytes:
    """A PNG file of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


class ListSource(list):
    """Records in memory; an entry that is a string is a broken row with that error."""

    def __getitem__(self, index):
        found = super().__getitem__(index)
        if isinstance(found, str):
            raise DataError(found)
        return found


def records(count: int, seed: int = 0) -> ListSource:
    """Records with reports and captions of unequal length."""
    lengths = np.random.default_rng(seed).integers(1, 40, (count, 3))
    return ListSource(
        Record(
            f"r{i}",
            picture(i),
            findings="x" * int(a),
            impression="y" * int(b),
            captions=("z" * int(c), "an effusion " * (int(c) % 4 + 1)),
        )
        for i, (a, b, c) in enumerate(lengths)
    )

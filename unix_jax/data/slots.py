"""Rows whose images are in fixed slots: `data.text_tokens` chooses them, the collator places them.

What a token is does not change, only where its row stores it: see
`unix_jax.models.attention.slots`.

Letters: B rows, U und tokens.
"""

from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from unix_jax.config import UniXConfig
from unix_jax.data.batch import TrainingBatch
from unix_jax.data.config import DataConfig
from unix_jax.errors import ConfigError
from unix_jax.models.attention.mask import CAUSAL, FULL, NOISE, TokenMetadata
from unix_jax.models.attention.slots import BOUNDARIES, Slots


def slots_of(config: UniXConfig, data: DataConfig) -> Slots | None:
    """The slots of the rows, None if the rows have their tokens in the order of the samples.

    Raises:
      ConfigError: a row without room for text.
    """
    if data.text_tokens is None:
        return None
    room = data.und_tokens - BOUNDARIES * data.vae_images
    if room < 1:
        raise ConfigError(
            f"data.und_tokens: expected more than the {BOUNDARIES * data.vae_images} boundary "
            f"tokens of {data.vae_images} VAE images, found {data.und_tokens}"
        )
    tokens = config.vision.num_patches + BOUNDARIES
    count = min(data.vit_images, room // tokens)
    text = max(min(data.text_tokens, room), room - count * tokens)
    return Slots(data.und_tokens, count, tokens, data.vae_images, text)


def in_slots(batch: TrainingBatch, slots: Slots) -> TrainingBatch:
    """A batch of numpy arrays in the order of its samples, with its und stream in slots.

    Raises:
      ValueError: a row that does not fit.
    """
    order = slot_order(batch.und, slots)

    def reordered(x: Any, padding: int = 0) -> np.ndarray:
        found = np.take_along_axis(np.asarray(x), np.maximum(order, 0), axis=1)
        return np.where(order >= 0, found, found.dtype.type(padding))

    und = (batch.token_ids, batch.und, batch.labels, batch.ce_weights)
    token_ids, metadata, labels, weights = jax.tree.map(reordered, und)
    return batch.replace(  # type: ignore[attr-defined]
        token_ids=token_ids,
        und=metadata,
        labels=labels,
        ce_weights=weights,
        vit_index=None if batch.vit_index is None else reordered(batch.vit_index, -1),
        slots=slots,
    )


def slot_order(und: TokenMetadata, slots: Slots) -> Int[np.ndarray, "B U"]:
    """For each position of rows in slots, the position in the order of the samples; -1: padding.

    Args:
      und: of rows in the order of their samples.

    Raises:
      ValueError: a row that does not fit.
    """
    segment, split, mode = (np.asarray(x) for x in (und.segment, und.split, und.mode))
    order = np.full((len(segment), slots.und_tokens), -1, np.int32)
    for row, target in enumerate(order):
        real = segment[row] > 0
        kinds = (real & (mode[row] == kind) for kind in (FULL, CAUSAL, NOISE))
        images, text, edges = (np.flatnonzero(kind) for kind in kinds)
        begin = max(len(images), slots.text_begin)
        if len(images) > slots.vit_end or len(images) % max(slots.vit_tokens, 1):
            raise ValueError(
                f"row {row}: expected at most {slots.vit_slots} ViT images of {slots.vit_tokens} "
                f"tokens and no clean VAE images, found {len(images)} tokens of images"
            )
        if split[row, images].any():
            raise ValueError(f"row {row}: expected images at the beginning of their samples")
        if begin + len(text) > slots.text_end or len(edges) > BOUNDARIES * slots.vae_images:
            raise ValueError(
                f"row {row}: expected at most {slots.text_end - begin} tokens of text and "
                f"{slots.vae_images} VAE images, found {len(text)} and {len(edges) // BOUNDARIES}"
            )
        target[: len(images)] = images
        target[begin : begin + len(text)] = text
        target[slots.text_end : slots.text_end + len(edges)] = edges
    return order

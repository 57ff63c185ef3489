"""Contexts: splits laid out on the host, and one run of the model that fills a KV cache.

Letters: B rows, U und tokens, G latent tokens, S cache slots.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from unix_jax.config import UniXConfig
from unix_jax.errors import NonFiniteError
from unix_jax.inference.sampling import ImageContext
from unix_jax.models.attention.cache import KVCache
from unix_jax.models.embeddings import latent_position_ids
from unix_jax.models.unix import TwoStreamBatch, UniX
from unix_jax.preprocessing.layout import (
    Layout,
    Sample,
    Split,
    TextSplit,
    VaeSplit,
    VitSplit,
    lay_out,
    stream_lengths,
)

_NAMED_ROWS = 10

# Few capacities mean few compilations; steps of about a third limit the reads of unused slots.
_BUCKETS = (64, 128, 192, 256, 384, 512, 640, 768, 1024, 1280, 1536, 2048, 2560, 3072, 4096)


def bucket(length: int) -> int:
    """The smallest standard length of at least `length` tokens."""
    fitting = [b for b in _BUCKETS if b >= length]
    return fitting[0] if fitting else -(-length // _BUCKETS[-1]) * _BUCKETS[-1]


def as_batch(
    layout: Layout,
    vit_pixels: Float[Array, "B I H W 3"] | None = None,
    latents: Float[Array, "B G C"] | None = None,
) -> TwoStreamBatch:
    """The model's input from a layout, with clean latents (t = 0)."""
    has_gen = latents is not None
    clean = np.zeros(layout.gen.position.shape, np.float32) if has_gen else None
    return TwoStreamBatch(
        token_ids=layout.token_ids,  # type: ignore[arg-type]
        und=layout.und,
        vit_pixels=vit_pixels,
        vit_index=None if vit_pixels is None else layout.vit_index,  # type: ignore[arg-type]
        gen=layout.gen if has_gen else None,
        latents=latents,
        timesteps=clean,  # type: ignore[arg-type]
        latent_position_ids=layout.latent_position_ids if has_gen else None,  # type: ignore[arg-type]
    )


@functools.partial(jax.jit, static_argnames=("model", "capacity"))
def prefill(
    model: UniX, params: Any, batch: TwoStreamBatch, capacity: int
) -> tuple[KVCache, tuple[Array | None, Array | None]]:
    """Runs a context once.

    Returns:
      (cache, hidden): a cache of `capacity` slots, of which the first ones contain the und tokens
      and then the latents, and the final (und, gen) hidden states. Padding occupies slots but is
      not valid.
    """
    output: Any = model.apply({"params": params}, batch, method=UniX.forward)
    streams, (keys, values), _ = output
    valid = batch.und.segment > 0
    if batch.gen is not None:
        valid = jnp.concatenate([valid, batch.gen.segment > 0], axis=1)
    dtype = jax.tree.leaves(keys)[0].dtype
    cache = KVCache.create(
        model.config.decoder, valid.shape[0], capacity, dtype, merged=not model.scan_layers
    )
    return cache.append(keys, values, valid), streams


@jax.jit
def finite_rows(cache: KVCache) -> Bool[Array, " B"]:
    """Whether all keys and values of each row's context are finite."""
    return cache.finite_rows()


def require_finite(
    finite: Any, argument: str, numbers: str, members: Sequence[int] | None = None
) -> None:
    """Checks that rows of results are finite.

    Args:
      finite: [B] of bool, whether all numbers of a row are finite.
      argument: name of the argument that has an item per row.
      numbers: description of the numbers, for the error.
      members: the index of each row in `argument`; None for 0, 1, ...

    Raises:
      NonFiniteError: some rows are not finite; the error names them.
    """
    rows = np.flatnonzero(~finite)
    if not len(rows):
        return
    indices = [int(row) if members is None else members[row] for row in rows[:_NAMED_ROWS]]
    named = ", ".join(f"{argument}[{i}]" for i in indices)
    raise NonFiniteError(
        f"{named}{', ...' if len(rows) > _NAMED_ROWS else ''}: {numbers} are NaN or infinite "
        f"(in {len(rows)} of {len(finite)} rows): the weights are damaged or the computation "
        "overflows; `unix-jax info --verify CHECKPOINT` tests the weights"
    )


def _text_slots(layout: Layout, split: int, capacity: int) -> Bool[np.ndarray, "B S"]:
    """Slots of the und stream that belong to the split `index`."""
    slots = (np.asarray(layout.und.split) == split) & (np.asarray(layout.und.segment) > 0)
    return np.pad(slots, ((0, 0), (0, capacity - slots.shape[1])))


def image_context(
    model: UniX,
    params: Any,
    texts: Sequence[Sequence[int]],
    grid: tuple[int, int],
    *,
    vit_pixels: Float[Array, "B H W 3"] | None = None,
    clean_latents: Float[Array, "B h*w C"] | None = None,
    clean_grid: tuple[int, int] | None = None,
    guided: bool = False,
    image_rows: bool = False,
) -> ImageContext:
    """The context of each row, for which one image is generated: [clean image, ViT image,] text.

    Args:
      texts: token ids of each row's text split, including bos and eos.
      grid: (height, width) of the image to generate, in latent tokens.
      vit_pixels, clean_latents, clean_grid: the condition image of each row for both encoders (or
        for one of them); None for text to image.
      guided: append rows for the empty text.
      image_rows: append rows for the empty image (the text alone).

    The empty-text rows share the conditional keys and values with the text's slots masked. This is
    exact, because images precede the text and do not attend to it.
    """
    config = model.config
    images: list[Split] = []
    if clean_latents is not None and clean_grid is not None:
        images.append(VaeSplit(*clean_grid, noised=False))
    if vit_pixels is not None:
        images.append(VitSplit())
    layout = _bucketed([[[*images, TextSplit(ids)]] for ids in texts], config)
    batch = as_batch(layout, None if vit_pixels is None else vit_pixels[:, None], clean_latents)
    capacity = layout.token_ids.shape[1] + layout.latent_position_ids.shape[1]
    cache, _ = prefill(model, params, batch, capacity)
    positions = [layout.next_position]
    if guided:
        hidden = _text_slots(layout, len(images), capacity)
        cache = cache.repeat([cache.valid, cache.valid & ~hidden])
        positions.append(np.full_like(layout.next_position, len(images)))
    if image_rows:
        text_layout = _bucketed([[[TextSplit(ids)]] for ids in texts], config)
        text_cache, _ = prefill(model, params, as_batch(text_layout), capacity)
        cache = cache.join(text_cache)
        positions.append(text_layout.next_position)
    ids = latent_position_ids(*grid, config.max_latent_size, config.interpolate_pos)
    return ImageContext(
        cache=cache,
        positions=jnp.asarray(np.concatenate(positions)),
        latent_position_ids=jnp.asarray(ids)[None],
        grid=grid,
    )


def _bucketed(rows: Sequence[Sequence[Sample]], config: UniXConfig) -> Layout:
    return lay_out(rows, config, bucket(max(stream_lengths(row, config)[0] for row in rows)))

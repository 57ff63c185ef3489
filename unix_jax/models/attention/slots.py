"""Attention of packed rows whose images are in fixed slots, so that only text needs the mask rule.

An image that nothing precedes in its sample sees itself alone: its queries attend inside its slot,
without a mask. A generated image sees itself and the text of its sample: its keys are its latents,
its two boundary tokens and then that text, so that their number says it all.

The und stream of a row is [ViT slots | text | boundary tokens of the VAE images], the gen stream
[latents of VAE image 0 | 1 | ...]. The text is longer than what the slots leave where a row of
fewer images may have more text: it then reaches into the last slots.

Letters: B batch, U und tokens, G latent tokens, I ViT slots of a row, S tokens of a slot (patches
and boundaries), J VAE images of a row, T latent tokens of an image, Q positions for text, N query
heads, K key heads, H head_dim.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import einops
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from unix_jax.models.attention.key_blocks import KeyBlock
from unix_jax.models.attention.mask import CAUSAL, TokenMetadata, may_attend

# (queries, blocks, their metadata) -> attended.
Attend = Callable[[Array, Sequence[KeyBlock], TokenMetadata | None], Array]

# Boundary tokens of an image.
BOUNDARIES = 2


@dataclasses.dataclass(frozen=True)
class Slots:
    """The sizes of a row in slots; static, so that a program is compiled for one of them.

    und_tokens: U. vit_slots: I. vit_tokens: S. vae_images: J. text_tokens: Q.
    """

    und_tokens: int
    vit_slots: int
    vit_tokens: int
    vae_images: int
    text_tokens: int

    def __post_init__(self) -> None:
        if not 0 <= self.text_begin <= self.vit_end <= self.text_end:
            raise ValueError(
                f"slots: expected every position of a row in a ViT slot or among the text, "
                f"found {self}"
            )

    @property
    def vit_end(self) -> int:
        """The position after the last ViT slot."""
        return self.vit_slots * self.vit_tokens

    @property
    def text_end(self) -> int:
        """The position after the text, where the boundary tokens of VAE images begin."""
        return self.und_tokens - BOUNDARIES * self.vae_images

    @property
    def text_begin(self) -> int:
        """The first position that may have text."""
        return self.text_end - self.text_tokens


class Projected(NamedTuple):
    """Queries, keys and values of one stream."""

    query: Float[Array, "B T N H"]
    key: Float[Array, "B T K H"]
    value: Float[Array, "B T K H"]


@struct.dataclass
class SlotMetadata:
    """What attention in slots reads besides queries, keys and values.

    und: of the und stream, in its order. text_index, text_length: where the text that each VAE
    image sees is among the text's positions, and the number of its tokens.
    """

    und: TokenMetadata
    text_index: Int[Array, "B J Q"]
    text_length: Int[Array, "B J"]
    slots: Slots = struct.field(pytree_node=False)

    @classmethod
    def create(cls, und: TokenMetadata, slots: Slots) -> "SlotMetadata":
        """From the metadata of an und stream whose images are in `slots`."""

        def part(begin: int, end: int | None, step: int = 1) -> TokenMetadata:
            return jax.tree.map(lambda x: jnp.asarray(x)[:, begin:end:step], und)

        images = part(slots.text_end, None, BOUNDARIES)
        seen = may_attend(images, part(slots.text_begin, slots.text_end))
        # The text of a sample is contiguous.
        length = seen.sum(axis=-1, dtype=jnp.int32)
        index = jnp.argmax(seen, axis=-1)[..., None] + jnp.arange(slots.text_tokens)
        return cls(und, jnp.minimum(index, slots.text_tokens - 1), length, slots)


def attend_in_slots(
    und: Projected,
    gen: Projected | None,
    metadata: SlotMetadata,
    attend: Attend,
    *,
    freeze_und: bool = False,
    multiple: int = 1,
) -> tuple[Float[Array, "B U N H"], Float[Array, "B G N H"] | None]:
    """Attention of both streams; numbers at padding are finite and without meaning.

    Args:
      gen: the latents of all J images; None where they do not run.
      attend: attention of queries over blocks of keys.
      freeze_und: und's queries, keys and values are constants: nothing is kept for them, and only
        gen's attention has a backward pass.
      multiple: a number of queries and keys of which `attend` prefers multiples.
    """
    slots = metadata.slots
    constant = Projected(*map(jax.lax.stop_gradient, und)) if freeze_und else und
    pieces = [_attend_text(constant, metadata, attend)]
    if slots.vit_slots:
        pieces = _with_images(pieces[0], constant, metadata, attend, multiple)
    if not slots.vae_images:
        return jnp.concatenate(pieces, axis=1), None

    def by_image(x: Array) -> Array:
        return einops.rearrange(x, "b (j t) n h -> (b j) t n h", j=slots.vae_images)

    def by_row(x: Array) -> Array:
        return einops.rearrange(x, "(b j) t n h -> b (j t) n h", j=slots.vae_images)

    query, *edges = (by_image(x[:, slots.text_end :]) for x in constant)
    context = _context(constant, edges, metadata)
    if gen is None:
        pieces.append(by_row(attend(query, [context], None)))
        return jnp.concatenate(pieces, axis=1), None
    latents = Projected(*map(by_image, gen))
    # Two blocks that share a softmax: joined keys would all get gradients.
    blocks = [KeyBlock(latents.key, latents.value), context]
    if freeze_und:
        pieces.append(by_row(attend(query, jax.lax.stop_gradient(blocks), None)))
        of_gen = attend(latents.query, blocks, None)
    else:
        both = attend(jnp.concatenate([latents.query, query], axis=1), blocks, None)
        of_gen, of_edges = jnp.split(both, [latents.query.shape[1]], axis=1)
        pieces.append(by_row(of_edges))
    return jnp.concatenate(pieces, axis=1), by_row(of_gen)


def _attend_text(und: Projected, metadata: SlotMetadata, attend: Attend) -> Float[Array, "B Q N H"]:
    """By the rule, over ViT images and text: no text sees the boundaries of a noised image."""
    slots = metadata.slots
    own = jax.tree.map(lambda x: x[:, slots.text_begin : slots.text_end], metadata.und)
    seen = jax.tree.map(lambda x: x[:, : slots.text_end], metadata.und)
    key, value = (x[:, : slots.text_end] for x in und[1:])
    block = KeyBlock(key, value, metadata=seen, causal_from=slots.text_begin)
    return attend(und.query[:, slots.text_begin : slots.text_end], [block], own)


def _with_images(
    text: Float[Array, "B Q N H"],
    und: Projected,
    metadata: SlotMetadata,
    attend: Attend,
    multiple: int,
) -> list[Array]:
    """Of the row's positions before the boundaries: ViT images by their slots, then the text."""
    slots = metadata.slots
    pieces, begin = [], 0
    for images in _attend_images(und, slots, attend, multiple):
        end = begin + images.shape[1]
        # From here on, a position has an image in some rows and text in others.
        common = min(max(slots.text_begin, begin), end)
        pieces.append(images[:, : common - begin])
        if common < end:
            shared = slice(common - slots.text_begin, end - slots.text_begin)
            in_slot = _is_image(metadata.und, slots)[:, shared, None, None]
            pieces.append(jnp.where(in_slot, images[:, common - begin :], text[:, shared]))
        begin = end
    return [*pieces, text[:, slots.vit_end - slots.text_begin :]]


def _attend_images(
    und: Projected, slots: Slots, attend: Attend, multiple: int
) -> list[Float[Array, "B _ N H"]]:
    """The attended images, as successive parts of the row up to the last slot's end."""
    size, count = slots.vit_tokens, slots.vit_slots
    window = -(-size // multiple) * multiple
    if window == size or slots.vit_end - size + window > slots.und_tokens:
        query, key, value = (
            einops.rearrange(x[:, : slots.vit_end], "b (i s) n h -> (b i) s n h", i=count)
            for x in und
        )
        images = attend(query, [KeyBlock(key, value)], None)
        return [einops.rearrange(images, "(b i) s n h -> b (i s) n h", i=count)]
    # A slot and what comes after it: a TPU copies less than for padding all slots together.
    found = []
    for begin in range(0, slots.vit_end, size):
        query, key, value = (x[:, begin : begin + window] for x in und)
        block = KeyBlock(key, value, lengths=jnp.full(key.shape[0], size))
        found.append(attend(query, [block], None)[:, :size])
    return found


def _is_image(und: TokenMetadata, slots: Slots) -> Bool[Array, "B common"]:
    """Of the positions that a slot and the text share."""
    # Only text is causal, and padding counts as it.
    return und.mode[:, slots.text_begin : slots.vit_end] != CAUSAL


def _context(und: Projected, edges: Sequence[Array], metadata: SlotMetadata) -> KeyBlock:
    """For each VAE image its boundaries, then the text that it sees, then padding."""
    slots = metadata.slots
    index = metadata.text_index.reshape(metadata.text_index.shape[0], -1)[..., None, None]

    def joined(x: Array, edge: Array) -> Array:
        text = jnp.take_along_axis(x[:, slots.text_begin : slots.text_end], index, axis=1)
        text = einops.rearrange(text, "b (j q) n h -> (b j) q n h", j=slots.vae_images)
        return jnp.concatenate([edge, text], axis=1)

    key, value = (joined(x, edge) for x, edge in zip(und[1:], edges, strict=True))
    return KeyBlock(key, value, lengths=BOUNDARIES + metadata.text_length.reshape(-1))

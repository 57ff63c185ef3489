"""Latent tokens of images: from the packed stream of a row to its images, and back.

Letters: B rows, J images of a row, T latent tokens of an image, G latent tokens of a row,
C numbers of a token.
"""

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int


@struct.dataclass
class PackedImages:
    """Which latent token of a row belongs to which image.

    index: image * T + token, -1 for padding. images: J. grid: rows and columns of an image, in
    tokens.
    """

    index: Int[Array, "B G"]
    images: int = struct.field(pytree_node=False)
    grid: tuple[int, int] = struct.field(pytree_node=False)

    def split(self, stream: Float[Array, "B G C"]) -> Float[Array, "B J T C"]:
        """The stream by image; see `to_images`."""
        return to_images(stream, self.index, self.images, self.grid[0] * self.grid[1])

    def packed(self, images: Float[Array, "B J T C"]) -> Float[Array, "B G C"]:
        """The inverse of `split`; see `to_stream`."""
        return to_stream(images, self.index)


def to_stream(
    images: Float[Array, "B J T C"], latent_index: Int[Array, "B G"]
) -> Float[Array, "B G C"]:
    """The images' tokens where the gen stream has them, zeros at padding."""
    flat = images.reshape(images.shape[0], -1, images.shape[-1])
    places = jnp.maximum(latent_index, 0)[..., None]
    return jnp.where((latent_index >= 0)[..., None], jnp.take_along_axis(flat, places, axis=1), 0.0)


def to_images(
    stream: Float[Array, "B G C"], latent_index: Int[Array, "B G"], images: int, tokens: int
) -> Float[Array, "B J T C"]:
    """The inverse of `to_stream`: tokens of the gen stream by image, zeros where none points."""
    places = jnp.where(latent_index >= 0, latent_index, images * tokens)

    def one(row: Array, place: Array) -> Array:
        empty = jnp.zeros((images * tokens, row.shape[-1]), row.dtype)
        return empty.at[place].set(row, mode="drop")

    flat = jax.vmap(one)(stream, places)
    return flat.reshape(flat.shape[0], images, tokens, -1)

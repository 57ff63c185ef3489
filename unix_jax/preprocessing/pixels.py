"""Normalises the images of a batch on the devices.

A batch holds 8-bit pixels, one channel for grayscale: a twelfth of the bytes of three in float32 to
copy on the host and to send. A table gives each level the number that the host would compute: a
compiler may replace a division by a multiplication and fuse operations, which rounds differently.

Shapes: N any leading axes, H height, W width, C 1 or 3 channels.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from unix_jax.preprocessing.transforms import (
    SIGLIP_MEAN,
    SIGLIP_STD,
    VAE_MEAN,
    VAE_STD,
    level_table,
)

Pixels = (
    UInt8[Array, "*N H W C"]
    | Float[Array, "*N H W 3"]
    | UInt8[np.ndarray, "*N H W C"]
    | Float[np.ndarray, "*N H W 3"]
)


def vit_input(pixels: Pixels) -> Float[Array, "*N H W 3"]:
    """The ViT's input in float32, equal to that of `to_model_image` in all bits.

    Floats are returned unchanged: they are normalised already.
    """
    return _normalised(pixels, SIGLIP_MEAN, SIGLIP_STD)


def vae_input(pixels: Pixels) -> Float[Array, "*N H W 3"]:
    """The autoencoder's input in [-1, 1]; otherwise as `vit_input`."""
    return _normalised(pixels, VAE_MEAN, VAE_STD)


def _normalised(pixels: Pixels, mean: float, std: float) -> Float[Array, "*N H W 3"]:
    if pixels.dtype != jnp.uint8:
        return jnp.asarray(pixels)
    table = jnp.asarray(level_table(mean, std))
    # All levels have an entry: no index needs to be checked.
    values = table.at[pixels].get(mode="promise_in_bounds")
    return jnp.broadcast_to(values, (*pixels.shape[:-1], 3))

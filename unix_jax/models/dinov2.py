"""DINOv2 ViT of RAD-DINO: class token, LayerScale, position table resampled to the image.

A frozen encoder for the alignment of generated images (REPA) and for image metrics.

Letters: B batch, H W pixels, h w patches along the sides, P = h * w, D width.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from unix_jax.models.attention import Implementation
from unix_jax.models.encoder_block import BlockSizes, EncoderBlock, patch_embedding, stacked
from unix_jax.models.layers import Dtype, layer_norm
from unix_jax.models.shapes import traced_once

RAD_DINO_MEAN, RAD_DINO_STD = 0.5307, 0.2583  # of chest X-rays in [0, 1]


@dataclasses.dataclass(frozen=True)
class Dinov2Config:
    """Sizes; the defaults are RAD-DINO's (ViT-B/14 at 518 px).

    `image_size` in pixels is that of the position table; other images resample the table.
    """

    image_size: int = 518
    patch_size: int = 14
    hidden_size: int = 768
    num_layers: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    layer_norm_eps: float = 1e-6
    qkv_bias: bool = True

    @property
    def mlp_size(self) -> int:
        return int(self.hidden_size * self.mlp_ratio + 1e-6)

    @property
    def grid(self) -> int:
        """Patches along a side of the position table."""
        return self.image_size // self.patch_size


def bicubic_matrix(size: int, new_size: int) -> Float[np.ndarray, "new old"]:
    """Weights that resample a line of `size` points to `new_size`, as torch's bicubic does.

    Cubic convolution with a = -0.75, half-pixel centres, no antialias, and points beyond the ends
    taken from the ends. (`jax.image.resize` has a = -0.5 and renormalises at the ends.)
    """
    a = -0.75
    centres = (np.arange(new_size) + 0.5) * (size / new_size) - 0.5
    first = np.floor(centres)
    matrix = np.zeros((new_size, size))
    for offset in (-1, 0, 1, 2):
        distance = np.abs(centres - (first + offset))
        near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
        far = a * (((distance - 5) * distance + 8) * distance - 4)
        places = np.clip(first + offset, 0, size - 1).astype(int)
        np.add.at(matrix, (np.arange(new_size), places), np.where(distance <= 1, near, far))
    return matrix.astype(np.float32)


def position_table(
    table: Float[Array, "1 1+S D"], height: int, width: int
) -> Float[Array, "1 1+P D"]:
    """Positions of a class token and `height` x `width` patches, from a table of a square grid."""
    side = round((table.shape[1] - 1) ** 0.5)
    if (height, width) == (side, side):
        return table
    patches = table[0, 1:].astype(jnp.float32).reshape(side, side, -1)
    resampled = jnp.einsum(
        "ya,xb,abd->yxd",
        bicubic_matrix(side, height),
        bicubic_matrix(side, width),
        patches,
        precision=jax.lax.Precision.HIGHEST,
    )
    resampled = resampled.reshape(1, height * width, -1).astype(table.dtype)
    return jnp.concatenate([table[:, :1], resampled], axis=1)


class Dinov2(nn.Module):
    """Normalised pixels to the class token and patch tokens after the final norm."""

    config: Dinov2Config = Dinov2Config()
    dtype: Dtype = jnp.float32
    attention_implementation: Implementation = "auto"

    @nn.compact
    def __call__(self, pixels: Float[Array, "B H W 3"]) -> Float[Array, "B 1+P D"]:
        """The class token first, then the patches row-major; see `pooled` and `patch_grid`.

        Pixels at the right and at the bottom that do not fill a patch are ignored, as in the
        original.

        Raises:
          ValueError: an image smaller than a patch.
        """
        c = self.config
        if min(pixels.shape[1:3]) < c.patch_size:
            raise ValueError(
                f"pixels: expected sides of at least {c.patch_size} px, "
                f"found {pixels.shape[1]} x {pixels.shape[2]}"
            )
        x = patch_embedding(c.hidden_size, c.patch_size, self.dtype)(pixels)
        batch, height, width = x.shape[:3]
        init = nn.with_logical_partitioning(nn.initializers.normal(0.02), (None, None, "embed"))
        cls: Any = self.param("cls_token", init, (1, 1, c.hidden_size))
        table: Any = self.param("pos_embed", init, (1, 1 + c.grid**2, c.hidden_size))
        cls = jnp.broadcast_to(cls.astype(x.dtype), (batch, 1, c.hidden_size))
        x = jnp.concatenate([cls, x.reshape(batch, -1, c.hidden_size)], axis=1)
        x = x + position_table(table, height, width).astype(x.dtype)
        # Otherwise XLA may keep the width sharded, like the weights, and all-reduce every product.
        x = nn.with_logical_constraint(x, ("batch", "length", "embed_act"))
        sizes = BlockSizes(
            c.num_heads, c.mlp_size, c.layer_norm_eps, qkv_bias=c.qkv_bias, layer_scale=True
        )
        x, _ = stacked(EncoderBlock, c.num_layers)(
            sizes, self.dtype, self.attention_implementation, name="blocks"
        )(x)
        return layer_norm(c.layer_norm_eps, self.dtype, "norm")(x)


def pooled(tokens: Float[Array, "B 1+P D"]) -> Float[Array, "B D"]:
    """The class token: the original's `pooler_output`."""
    return tokens[:, 0]


def patch_grid(
    tokens: Float[Array, "B 1+P D"], config: Dinov2Config, height: int, width: int
) -> Float[Array, "B h w D"]:
    """The patch tokens of images of `height` x `width` pixels, as a grid."""
    rows, columns = height // config.patch_size, width // config.patch_size
    return tokens[:, 1:].reshape(tokens.shape[0], rows, columns, -1)


def encoder_size(height: int, width: int, target: int, patch_size: int) -> tuple[int, int]:
    """(height, width) of the encoder's input for a complete image: the shorter side is `target`.

    The longer one keeps the aspect except for rounding to whole patches. RAD-DINO's own processor
    resizes likewise and then crops the centre, whose tokens would not cover the image.

    Raises:
      ValueError: `target` is not a positive multiple of the patch.
    """
    if target < 1 or target % patch_size:
        raise ValueError(
            f"target: expected a positive multiple of the patch size {patch_size}, found {target}"
        )
    shorter = min(height, width)

    def side(length: int) -> int:
        return round(length * target / shorter / patch_size) * patch_size

    return side(height), side(width)


def rad_dino_pixels(
    pixels: Float[Array, "B H W 3"], size: tuple[int, int] | None = None
) -> Float[Array, "B h w 3"]:
    """The encoder's inputs from images in [-1, 1] (the autoencoder's range).

    Args:
      pixels: images as inputs or outputs of the autoencoder; values outside [-1, 1] are clipped, as
        an image file would.
      size: (height, width) to resize to, bicubic with antialias; None keeps the size.

    Returns:
      ((x + 1) / 2 - mean) / std in float32, with RAD-DINO's statistics.
    """
    unit = (jnp.clip(pixels.astype(jnp.float32), -1.0, 1.0) + 1.0) / 2.0
    if size is not None and size != unit.shape[1:3]:
        shape = (unit.shape[0], *size, unit.shape[3])
        unit = jnp.clip(jax.image.resize(unit, shape, "cubic", antialias=True), 0.0, 1.0)
    return (unit - RAD_DINO_MEAN) / RAD_DINO_STD


@traced_once
def param_shapes(config: Dinov2Config) -> dict[str, Any]:
    """The parameter tree as `jax.ShapeDtypeStruct` leaves, boxed with their logical axes."""
    pixels = jax.ShapeDtypeStruct((1, config.image_size, config.image_size, 3), jnp.float32)
    return jax.eval_shape(Dinov2(config).init, jax.random.key(0), pixels)["params"]

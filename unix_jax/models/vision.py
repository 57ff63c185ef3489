"""SigLIP ViT in timm layout: patches, learned positions, pre-norm blocks, final norm, no pool.

Letters: B batch, S image side in pixels, P patches, W width.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from unix_jax.config import VisionConfig
from unix_jax.models.attention import Implementation
from unix_jax.models.encoder_block import BlockSizes, EncoderBlock, patch_embedding, stacked
from unix_jax.models.layers import Dtype, layer_norm
from unix_jax.models.remat import RematPolicy, rematerialised


class VisionTransformer(nn.Module):
    """Pixels to patch features; `unroll` as in `Decoder`."""

    config: VisionConfig
    dtype: Dtype = jnp.float32
    attention_implementation: Implementation = "auto"
    remat_policy: RematPolicy = "none"
    unroll: int = 1

    @nn.compact
    def __call__(self, pixels: Float[Array, "B H W 3"]) -> Float[Array, "B P W"]:
        """Features after the final norm, patches row-major.

        Args:
          pixels: normalised images. Non-square ones are taken as they are when their patches
            number as many as the position table's.

        Raises:
          ValueError: the number of patches is not that of the position table.
        """
        c = self.config
        x = patch_embedding(c.width, c.patch_size, self.dtype)(pixels)
        x = x.reshape(x.shape[0], -1, c.width)
        if x.shape[1] != c.num_patches:
            raise ValueError(
                f"pixels: expected {c.num_patches} patches of {c.patch_size} px "
                f"({c.image_size} x {c.image_size}), found {pixels.shape[1]} x {pixels.shape[2]}"
            )
        table: Any = self.param(
            "pos_embed",
            nn.with_logical_partitioning(nn.initializers.normal(0.02), (None, None, "embed")),
            (1, c.num_patches, c.width),
        )
        # Otherwise the images may be gathered, since the kernel before is split along its outputs.
        x = nn.with_logical_constraint(
            x + table.astype(self.dtype), ("batch", "length", "embed_act")
        )
        block = rematerialised(EncoderBlock, self.remat_policy, prevent_cse=self.unroll > 1)
        sizes = BlockSizes(c.num_heads, c.mlp_size, c.layer_norm_eps, fused_qkv=True)
        x, _ = stacked(block, c.num_layers, self.unroll)(
            sizes, self.dtype, self.attention_implementation, name="blocks"
        )(x)
        return layer_norm(c.layer_norm_eps, self.dtype, "norm")(x)

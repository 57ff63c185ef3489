"""SigLIP ViT in timm layout: patches, learned positions, pre-norm blocks, final norm, no pool.

Letters: B batch, S image side in pixels, P patches, W width, N heads.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from unix_jax.config import VisionConfig
from unix_jax.models.attention import Implementation, attention
from unix_jax.models.attention.key_blocks import KeyBlock
from unix_jax.models.layers import Dtype, dense, gelu, layer_norm
from unix_jax.models.remat import RematPolicy, rematerialised


class VisionBlock(nn.Module):
    """Pre-norm attention with fused qkv, and an exact-GELU MLP."""

    config: VisionConfig
    dtype: Dtype = jnp.float32
    attention_implementation: Implementation = "auto"

    @nn.compact
    def __call__(self, x: Float[Array, "B P W"], _: None = None) -> tuple[Array, None]:
        c = self.config
        y = layer_norm(c.layer_norm_eps, self.dtype, "norm1")(x)
        qkv = dense(3 * c.width, ("embed", "heads"), dtype=self.dtype, name="qkv")(y)
        query, key, value = (
            part.reshape(*x.shape[:2], c.num_heads, -1) for part in jnp.split(qkv, 3, axis=-1)
        )
        y = attention(
            query, [KeyBlock(key, value)], implementation=self.attention_implementation
        ).reshape(x.shape)
        x = x + dense(c.width, ("heads", "embed"), dtype=self.dtype, name="proj")(y)
        y = layer_norm(c.layer_norm_eps, self.dtype, "norm2")(x)
        y = dense(c.mlp_size, ("embed", "mlp"), dtype=self.dtype, name="fc1")(y)
        y = gelu(y)
        x = x + dense(c.width, ("mlp", "embed"), dtype=self.dtype, name="fc2")(y)
        return nn.with_logical_constraint(x, ("batch", "length", "embed_act")), None


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
        x = nn.Conv(
            c.width,
            (c.patch_size, c.patch_size),
            strides=(c.patch_size, c.patch_size),
            padding="VALID",
            dtype=self.dtype,
            kernel_init=nn.with_logical_partitioning(
                nn.initializers.normal(0.02), (None, None, None, "embed")
            ),
            name="patch_embed",
        )(pixels)
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
        # Without it the images may be gathered: the kernel before is split along its outputs.
        x = nn.with_logical_constraint(
            x + table.astype(self.dtype), ("batch", "length", "embed_act")
        )
        block = rematerialised(VisionBlock, self.remat_policy, prevent_cse=self.unroll > 1)
        x, _ = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=c.num_layers,
            unroll=self.unroll,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(c, self.dtype, self.attention_implementation, name="blocks")(x, None)
        return layer_norm(c.layer_norm_eps, self.dtype, "norm")(x)

"""The transformer block of the encoders: SigLIP, DINOv2, BERT and CLIP's text encoder.

Letters: B batch, T tokens, D width, N heads, H head dim.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float

from unix_jax.models.attention import Implementation, attention
from unix_jax.models.attention.key_blocks import KeyBlock
from unix_jax.models.attention.mask import TokenMetadata
from unix_jax.models.layers import Dtype, dense, gelu, layer_norm, linear
from unix_jax.models.remat import ATTENTION_INPUT, PRODUCT
from unix_jax.sharding import gathered_kernel

_PATCH_AXES = (None, None, None, "embed")


@dataclasses.dataclass(frozen=True)
class BlockSizes:
    """Sizes of a block and the parameters that it has.

    fused_qkv: one matrix for queries, keys and values, instead of three.
    qkv_bias: of the three.
    layer_scale: a factor per channel on each branch (LayerScale).
    """

    num_heads: int
    mlp_size: int
    layer_norm_eps: float
    activation: Callable[[Array], Array] = gelu
    fused_qkv: bool = False
    qkv_bias: bool = True
    layer_scale: bool = False


class EncoderBlock(nn.Module):
    """Pre-norm: x + attention(norm(x)), then x + MLP(norm(x))."""

    sizes: BlockSizes
    dtype: Dtype = jnp.float32
    attention_implementation: Implementation = "auto"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        tokens: TokenMetadata | None = None,
        valid: Bool[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T D"], None]:
        """The block as a step of `nn.scan`.

        Args:
          x: the tokens.
          tokens: metadata for the mask rule; None: every token attends to all.
          valid: the tokens that may be attended to; None: all.
        """
        eps = self.sizes.layer_norm_eps
        y = self._attend(layer_norm(eps, self.dtype, "norm1")(x), tokens, valid)
        x = x + self._scaled("layer_scale1", y)
        y = self._mlp(layer_norm(eps, self.dtype, "norm2")(x))
        x = x + self._scaled("layer_scale2", y)
        return nn.with_logical_constraint(x, ("batch", "length", "embed_act")), None

    def _attend(
        self, x: Float[Array, "B T D"], tokens: TokenMetadata | None, valid: Array | None
    ) -> Float[Array, "B T D"]:
        width, axes, sizes = x.shape[-1], ("embed", "heads"), self.sizes
        if sizes.fused_qkv:
            projected = dense(3 * width, axes, dtype=self.dtype, name="qkv")(x)
            parts = jnp.split(checkpoint_name(projected, PRODUCT), 3, axis=-1)
        else:
            parts = [
                dense(width, axes, use_bias=sizes.qkv_bias, dtype=self.dtype, name=name)(x)
                for name in ("query", "key", "value")
            ]
            parts = checkpoint_name(parts, PRODUCT)
        query, key, value = checkpoint_name(
            [part.reshape(*x.shape[:2], sizes.num_heads, -1) for part in parts], ATTENTION_INPUT
        )
        y = attention(
            query,
            [KeyBlock(key, value, tokens, valid)],
            tokens,
            implementation=self.attention_implementation,
        ).reshape(x.shape)
        y = dense(width, ("heads", "embed"), dtype=self.dtype, name="proj")(y)
        return checkpoint_name(y, PRODUCT)

    def _mlp(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        y = dense(self.sizes.mlp_size, ("embed", "mlp"), dtype=self.dtype, name="fc1")(x)
        y = self.sizes.activation(checkpoint_name(y, PRODUCT))
        y = dense(x.shape[-1], ("mlp", "embed"), dtype=self.dtype, name="fc2")(y)
        return checkpoint_name(y, PRODUCT)

    def _scaled(self, name: str, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        if not self.sizes.layer_scale:
            return x
        init = nn.with_logical_partitioning(nn.initializers.ones, ("norm",))
        scale: Any = self.param(name, init, (x.shape[-1],))
        return x * scale.astype(self.dtype)


class PostNormBlock(EncoderBlock):
    """Post-norm, as BERT's: norm(x + attention(x)), then norm(x + MLP(x))."""

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        tokens: TokenMetadata | None = None,
        valid: Bool[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T D"], None]:
        """As `EncoderBlock`."""
        eps = self.sizes.layer_norm_eps
        x = layer_norm(eps, self.dtype, "norm1")(x + self._attend(x, tokens, valid))
        return layer_norm(eps, self.dtype, "norm2")(x + self._mlp(x)), None


def stacked(block: Any, num_layers: int, unroll: int = 1) -> Any:
    """The block class as a scan over `num_layers` of it, weights stacked [L, ...].

    What is passed beside the tokens is common to all layers.
    """
    return nn.scan(
        block,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=nn.broadcast,
        length=num_layers,
        unroll=unroll,
        metadata_params={nn.PARTITION_NAME: "layers"},
        check_constancy_invariants=False,  # otherwise each block is traced twice
    )


def patch_embedding(width: int, patch_size: int, dtype: Dtype) -> nn.Conv:
    """The convolution `patch_embed`: [B, H, W, 3] to [B, H / patch, W / patch, width]."""
    return nn.Conv(
        width,
        (patch_size, patch_size),
        strides=(patch_size, patch_size),
        padding="VALID",
        dtype=dtype,
        kernel_init=nn.with_logical_partitioning(nn.initializers.normal(0.02), _PATCH_AXES),
        conv_general_dilated=_patch_product,
        name="patch_embed",
    )


def _patch_product(
    pixels: Float[Array, "B H W C"],
    kernel: Float[Array, "S S C D"],
    *arguments: Any,
    **options: Any,
) -> Float[Array, "B h w D"]:
    """The convolution, or as a product of whole patches where these weights are gathered."""
    side, width = kernel.shape[0], kernel.shape[-1]
    split = gathered_kernel(pixels.shape[0], kernel.shape, _PATCH_AXES)
    if split is None or any(size % side for size in pixels.shape[1:3]):
        return jax.lax.conv_general_dilated(pixels, kernel, *arguments, **options)
    patches = einops.rearrange(pixels, "b (h p) (w q) c -> b h w (p q c)", p=side, q=side)
    return linear(dataclasses.replace(split, dim=1), patches, kernel.reshape(-1, width))

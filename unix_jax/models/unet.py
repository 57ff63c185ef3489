"""Diffusion U-Net: diffusers' `UNet2DConditionModel` in the form of Stable Diffusion 1.x and 2.x.

The kind of its context is chosen once, by the type of `UNetConfig.context`: cross-attention to a
text encoder's hidden states, or UniX's cross-modal attention, in which a block's own keys and the
und stream's cached ones of the matching decoder layer share one softmax.

Letters: B batch, h w latent rows and columns, C width of a level, T = h * w, S context tokens,
E time embedding, D width of the context, N heads, K kv heads, H head dim.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from unix_jax.models.attention import Implementation, attention
from unix_jax.models.attention.cache import KVCache
from unix_jax.models.attention.key_blocks import KeyBlock
from unix_jax.models.attention.rope import apply_rope, rope_angles
from unix_jax.models.embeddings import timestep_sinusoid
from unix_jax.models.layers import Dtype, RMSNorm, dense, gelu, group_norm, layer_norm
from unix_jax.models.remat import PRODUCT, RematPolicy, rematerialised
from unix_jax.models.shapes import traced_once
from unix_jax.models.unet_config import JointAttention, TextAttention, UNetConfig

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": nn.silu, "swish": nn.silu, "gelu": gelu, "mish": jax.nn.mish, "relu": nn.relu,
}  # fmt: skip
_STREAM = ("batch", "length", "embed_act")


@struct.dataclass
class JointContext:
    """The und stream's cache of the prompt, and the image's rotary position."""

    cache: KVCache
    position: Int[Array, " B"]


# Hidden states [B, S, D] for `TextAttention`, the cache for `JointAttention`.
Context = Any


def _conv(features: int, kernel: int, dtype: Dtype, name: str, axes: Any, **options: Any) -> Any:
    init = options.pop("kernel_init", nn.initializers.lecun_normal())
    init = nn.with_logical_partitioning(init, (None, None, *axes))
    bias = nn.with_logical_partitioning(nn.initializers.zeros, axes[1:])
    options = {"padding": kernel // 2, "dtype": dtype, "name": name} | options
    return nn.Conv(features, (kernel, kernel), kernel_init=init, bias_init=bias, **options)


class ResnetBlock(nn.Module):
    """norm, activation, conv, twice, with the time embedding between; a 1x1 shortcut if needed."""

    config: UNetConfig
    features: int
    dtype: Dtype

    @nn.compact
    def __call__(
        self, x: Float[Array, "B h w I"], time: Float[Array, "B E"]
    ) -> Float[Array, "B h w O"]:
        c, act, hidden = self.config, ACTIVATIONS[self.config.activation], ("embed", "mlp")
        y = act(group_norm(c.norm_groups, self.dtype, "norm1", c.norm_eps)(x))
        y = checkpoint_name(_conv(self.features, 3, self.dtype, "conv1", hidden)(y), PRODUCT)
        width = self.features * (2 if c.scale_shift_norm else 1)
        time = dense(width, hidden, dtype=self.dtype, name="time_emb_proj")(act(time))
        time = checkpoint_name(time, PRODUCT)
        norm2 = group_norm(c.norm_groups, self.dtype, "norm2", c.norm_eps)
        if c.scale_shift_norm:
            scale, shift = jnp.split(time[:, None, None], 2, axis=-1)
            y = norm2(y) * (1 + scale) + shift
        else:
            y = norm2(y + time[:, None, None])
        y = nn.with_logical_constraint(act(y), ("batch", None, None, "mlp"))
        y = _conv(self.features, 3, self.dtype, "conv2", hidden[::-1])(y)
        if x.shape[-1] != self.features:
            x = _conv(self.features, 1, self.dtype, "conv_shortcut", ("embed", None))(x)
        return nn.with_logical_constraint(x + y, ("batch", None, None, "embed_act"))


class Attention(nn.Module):
    """Multi-head attention of x to `source` and to the keys of `cached`, if any.

    With `angles`, queries and keys are normed over head_dim and rotated, as in UniX's decoder.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    dtype: Dtype
    implementation: Implementation
    rms_norm_eps: float = 1e-6

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T C"],
        source: Float[Array, "B S D"],
        cached: tuple[Any, ...] = (),
        angles: tuple[Array, Array] | None = None,
    ) -> Float[Array, "B T C"]:
        def heads(name: str, y: Array, count: int, axis: str) -> Array:
            width, axes = count * self.head_dim, ("embed", axis)
            y = dense(width, axes, use_bias=False, dtype=self.dtype, name=name)(y)
            y = checkpoint_name(y, PRODUCT).reshape(*y.shape[:2], count, self.head_dim)
            return nn.with_logical_constraint(y, ("batch", "length", f"{axis}_act", None))

        query = heads("to_q", x, self.num_heads, "heads")
        key = heads("to_k", source, self.num_kv_heads, "kv_heads")
        value = heads("to_v", source, self.num_kv_heads, "kv_heads")
        if angles is not None:
            norms = (RMSNorm(self.rms_norm_eps, self.dtype, None, name=f"norm_{x}") for x in "qk")
            query, key = (apply_rope(next(norms)(y), angles) for y in (query, key))
        blocks = [*cached, KeyBlock(key, value)]
        y = attention(query, blocks, implementation=self.implementation)
        y = y.reshape(*y.shape[:2], -1)
        y = dense(x.shape[-1], ("heads", "embed"), dtype=self.dtype, name="to_out")(y)
        return checkpoint_name(y, PRODUCT)


class TransformerBlock(nn.Module):
    """Attention of the context's kind, then a GEGLU feed-forward, each with norm and residual."""

    config: UNetConfig
    num_heads: int
    index: int
    dtype: Dtype
    implementation: Implementation

    @nn.compact
    def __call__(self, x: Float[Array, "B T C"], context: Context) -> Float[Array, "B T C"]:
        width = x.shape[-1]
        x = (self._text if isinstance(self.config.context, TextAttention) else self._joint)(
            x, layer_norm(1e-5, self.dtype, "norm1")(x), context
        )
        y = layer_norm(1e-5, self.dtype, "norm3")(x)
        y = dense(8 * width, ("embed", "mlp"), dtype=self.dtype, name="ff_proj")(y)
        up, gate = jnp.split(checkpoint_name(y, PRODUCT), 2, axis=-1)
        y = dense(width, ("mlp", "embed"), dtype=self.dtype, name="ff_out")(up * gelu(gate))
        x = x + checkpoint_name(y, PRODUCT)
        return nn.with_logical_constraint(x, _STREAM)

    def _text(self, x: Array, normed: Array, hidden: Float[Array, "B S D"]) -> Array:
        sizes = (self.num_heads, self.num_heads, x.shape[-1] // self.num_heads)
        attend = (*sizes, self.dtype, self.implementation)
        x = x + Attention(*attend, name="attn1")(normed, normed)
        normed = layer_norm(1e-5, self.dtype, "norm2")(x)
        return x + Attention(*attend, name="attn2")(normed, hidden.astype(self.dtype))

    def _joint(self, x: Array, normed: Array, context: JointContext) -> Array:
        assert isinstance(self.config.context, JointAttention)
        d = self.config.context.decoder
        # All positions of an image share one rotary position, as latents do in the decoder.
        angles = rope_angles(context.position[:, None], d.head_dim, d.rope_theta)
        layer = self.config.matching_layer(self.index, d.num_layers)
        # The und stream is frozen, so its cache is a constant.
        cache = jax.lax.stop_gradient(context.cache)
        block = cache.block(cache.keys[layer], cache.values[layer])
        sizes = (d.num_heads, d.num_kv_heads, d.head_dim, self.dtype, self.implementation)
        attend = Attention(*sizes, rms_norm_eps=d.rms_norm_eps, name="attn1")
        return x + attend(normed, normed, (block,), angles)


class SpatialTransformer(nn.Module):
    """Transformer blocks over a feature map; `first` is the index of their first in the U-Net."""

    config: UNetConfig
    level: int
    depth: int
    first: int
    dtype: Dtype
    implementation: Implementation

    @nn.compact
    def __call__(self, x: Float[Array, "B h w C"], context: Context) -> Float[Array, "B h w C"]:
        c, width = self.config, x.shape[-1]
        y = group_norm(c.norm_groups, self.dtype, "norm")(x).reshape(x.shape[0], -1, width)
        y = dense(width, ("embed", None), dtype=self.dtype, name="proj_in")(y)
        y = checkpoint_name(y, PRODUCT)
        for j in range(self.depth):
            sizes = (c, c.num_heads[self.level], self.first + j, self.dtype, self.implementation)
            y = TransformerBlock(*sizes, name=f"transformer_blocks_{j}")(y, context)
        y = dense(width, ("embed", None), dtype=self.dtype, name="proj_out")(y)
        return x + y.reshape(x.shape)


def _upsampled(x: Float[Array, "B h w C"], height: int, width: int) -> Float[Array, "B H W C"]:
    """The nearest neighbour of each position of a finer map."""
    if (height, width) == (2 * x.shape[1], 2 * x.shape[2]):
        return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
    rows, columns = np.arange(height) * x.shape[1] // height, np.arange(width) * x.shape[2] // width
    return x[:, rows][:, :, columns]


class UNet(nn.Module):
    """Maps noisy latents, their time and a context to the trained prediction.

    `dtype` is that of the computation; norms' statistics, softmax, the time sinusoid and the result
    are float32. `remat_policy` trades memory for recomputation in the backward pass.
    """

    config: UNetConfig = UNetConfig()
    dtype: Dtype = jnp.float32
    attention_implementation: Implementation = "auto"
    remat_policy: RematPolicy = "none"

    @nn.compact
    def __call__(
        self, latents: Float[Array, "B h w I"], timesteps: Float[Array, " B"], context: Context
    ) -> Float[Array, "B h w O"]:
        """Any h and w; `timesteps` per row, in steps of the noise schedule (0 to 999 for SD)."""
        c, dtype, act = self.config, self.dtype, ACTIVATIONS[self.config.activation]
        levels, blocks, wide = len(c.widths), 0, ("embed", None)
        resnet = rematerialised(ResnetBlock, self.remat_policy, prevent_cse=True)
        transformer = rematerialised(SpatialTransformer, self.remat_policy, prevent_cse=True)

        wave = timestep_sinusoid(timesteps, c.widths[0], freq_shift=c.freq_shift)
        if c.sines_first:
            wave = jnp.roll(wave, c.widths[0] // 2, axis=-1)
        time = dense(c.time_width, (None, "mlp"), dtype=dtype, name="time_embedding_1")(wave)
        time = dense(c.time_width, ("mlp", None), dtype=dtype, name="time_embedding_2")(act(time))

        def layer(x: Array, name: str, level: int, depth: int, number: int) -> Array:
            """A resnet, and attention after it where `depth` is not 0."""
            nonlocal blocks
            x = resnet(c, c.widths[level], dtype, name=f"{name}_resnets_{number}")(x, time)
            if depth:
                sizes = (c, level, depth, blocks, dtype, self.attention_implementation)
                x = transformer(*sizes, name=f"{name}_attentions_{number}")(x, context)
            blocks += depth
            return x

        x = (2 * latents - 1 if c.center_input else latents).astype(dtype)
        x = _conv(c.widths[0], c.conv_in_kernel, dtype, "conv_in", (None, "embed"))(x)
        skips = [x]
        for i in range(levels):
            name = f"down_blocks_{i}"
            for j in range(c.layers[i]):
                x = layer(x, name, i, c.depths[i] * c.down_attention[i], j)
                skips.append(x)
            if i < levels - 1:
                options = {"strides": 2, "padding": ((c.downsample_padding, 1),) * 2}
                x = _conv(c.widths[i], 3, dtype, f"{name}_downsamplers_0_conv", wide, **options)(x)
                skips.append(x)
        if c.mid_attention is not None:
            x = layer(x, "mid_block", levels - 1, c.depths[-1] * c.mid_attention, 0)
        if c.mid_attention:
            x = layer(x, "mid_block", levels - 1, 0, 1)
        for i, level in enumerate(reversed(range(levels))):
            name = f"up_blocks_{i}"
            for j in range(c.layers[level] + 1):
                x = jnp.concatenate([x, skips.pop()], axis=-1)
                x = layer(x, name, level, c.up_depths[i] * c.up_attention[i], j)
            if level:
                x = _upsampled(x, *skips[-1].shape[1:3])
                x = _conv(c.widths[level], 3, dtype, f"{name}_upsamplers_0_conv", wide)(x)
        x = act(group_norm(c.norm_groups, dtype, "conv_norm_out", c.norm_eps)(x))
        # Fresh weights predict 0, like those of UniX's own backbone.
        zeros = {"kernel_init": nn.initializers.zeros}
        x = _conv(c.out_channels, c.conv_out_kernel, dtype, "conv_out", wide, **zeros)(x)
        return x.astype(jnp.float32)


@traced_once
def param_shapes(config: UNetConfig) -> dict[str, Any]:
    """The parameter tree as `jax.ShapeDtypeStruct` leaves, boxed with their logical axes."""

    def init(key: Array) -> Any:
        kind, side = config.context, 2 ** (len(config.widths) - 1)
        context: Context = jnp.zeros((1, 1, getattr(kind, "width", 1)))
        if isinstance(kind, JointAttention):
            context = JointContext(KVCache.create(kind.decoder, 1, 1), jnp.zeros(1, jnp.int32))
        latents = jnp.zeros((1, side, side, config.in_channels))
        return UNet(config).init(key, latents, jnp.zeros(1), context)

    return jax.eval_shape(init, jax.random.key(0))["params"]

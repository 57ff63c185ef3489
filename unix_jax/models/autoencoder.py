"""KL variational autoencoder (CompVis layout), frozen except in its own stage.

Letters: B batch, H W pixels, h w latents (H / downsample), C z_channels, I O channels of a layer.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

from unix_jax.config import AutoencoderConfig
from unix_jax.models.layers import Dtype, group_norm
from unix_jax.models.shapes import traced_once


def _conv(features: int, kernel: int, dtype: Dtype, name: str) -> nn.Conv:
    return nn.Conv(features, (kernel, kernel), padding=kernel // 2, dtype=dtype, name=name)


class ResnetBlock(nn.Module):
    """norm, swish, conv, twice; a 1x1 shortcut where the channels change."""

    features: int
    norm_groups: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B h w I"]) -> Float[Array, "B h w O"]:
        y = nn.silu(group_norm(self.norm_groups, self.dtype, "norm1")(x))
        y = _conv(self.features, 3, self.dtype, "conv1")(y)
        y = nn.silu(group_norm(self.norm_groups, self.dtype, "norm2")(y))
        y = _conv(self.features, 3, self.dtype, "conv2")(y)
        if x.shape[-1] != self.features:
            x = _conv(self.features, 1, self.dtype, "nin_shortcut")(x)
        return x + y


class AttentionBlock(nn.Module):
    """Single-head attention over all positions of the feature map."""

    norm_groups: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B h w C"]:
        batch, height, width, channels = x.shape
        y = group_norm(self.norm_groups, self.dtype, "norm")(x)
        query, key, value = (
            _conv(channels, 1, self.dtype, name)(y).reshape(batch, -1, channels)
            for name in ("q", "k", "v")
        )
        logits = jnp.einsum("btc,bsc->bts", query, key, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(logits * channels**-0.5, axis=-1).astype(self.dtype)
        y = jnp.einsum("bts,bsc->btc", weights, value).reshape(batch, height, width, channels)
        return x + _conv(channels, 1, self.dtype, "proj_out")(y)


def _middle(x: Array, norm_groups: int, dtype: Dtype) -> Array:
    channels = x.shape[-1]
    x = ResnetBlock(channels, norm_groups, dtype, name="mid_block_1")(x)
    x = AttentionBlock(norm_groups, dtype, name="mid_attn_1")(x)
    return ResnetBlock(channels, norm_groups, dtype, name="mid_block_2")(x)


def level_resolutions(config: AutoencoderConfig) -> list[int]:
    """Nominal resolution of each level: decides which levels carry attention."""
    return [config.resolution // 2**i for i in range(len(config.ch_mult))]


class Encoder(nn.Module):
    """Pixels to the features from which the moments are read."""

    config: AutoencoderConfig
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W I"]) -> Float[Array, "B h w 2C"]:
        c = self.config
        x = _conv(c.ch, 3, self.dtype, "conv_in")(x)
        for i, (multiplier, resolution) in enumerate(
            zip(c.ch_mult, level_resolutions(c), strict=True)
        ):
            for j in range(c.num_res_blocks):
                x = ResnetBlock(
                    c.ch * multiplier, c.norm_groups, self.dtype, name=f"down_{i}_block_{j}"
                )(x)
                if resolution in c.attn_resolutions:
                    x = AttentionBlock(c.norm_groups, self.dtype, name=f"down_{i}_attn_{j}")(x)
            if i != len(c.ch_mult) - 1:
                # As in the original, padded only on the right and at the bottom.
                x = jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))
                x = nn.Conv(
                    x.shape[-1], (3, 3), strides=(2, 2), padding="VALID", dtype=self.dtype,
                    name=f"down_{i}_downsample",
                )(x)  # fmt: skip
        x = nn.silu(
            group_norm(c.norm_groups, self.dtype, "norm_out")(_middle(x, c.norm_groups, self.dtype))
        )
        return _conv(2 * c.z_channels, 3, self.dtype, "conv_out")(x)


class Decoder(nn.Module):
    """Latents to pixels."""

    config: AutoencoderConfig
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, z: Float[Array, "B h w C"]) -> Float[Array, "B H W O"]:
        c = self.config
        x = _middle(
            _conv(c.ch * c.ch_mult[-1], 3, self.dtype, "conv_in")(z), c.norm_groups, self.dtype
        )
        for i, resolution in reversed(list(enumerate(level_resolutions(c)))):
            for j in range(c.num_res_blocks + 1):
                x = ResnetBlock(
                    c.ch * c.ch_mult[i], c.norm_groups, self.dtype, name=f"up_{i}_block_{j}"
                )(x)
                if resolution in c.attn_resolutions:
                    x = AttentionBlock(c.norm_groups, self.dtype, name=f"up_{i}_attn_{j}")(x)
            if i != 0:
                x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
                x = _conv(x.shape[-1], 3, self.dtype, f"up_{i}_upsample")(x)
        x = nn.silu(group_norm(c.norm_groups, self.dtype, "norm_out")(x))
        return _conv(c.out_ch, 3, self.dtype, "conv_out")(x)


class Autoencoder(nn.Module):
    """Images in [-1, 1] to scaled latents and back."""

    config: AutoencoderConfig
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        c = self.config
        self.encoder = Encoder(c, self.dtype)
        self.decoder = Decoder(c, self.dtype)
        self.quant_conv = nn.Conv(2 * c.embed_dim, (1, 1), dtype=self.dtype)
        self.post_quant_conv = nn.Conv(c.z_channels, (1, 1), dtype=self.dtype)
        if c.linear_window:
            window = (c.linear_window, c.linear_window)
            self.linear_encoder = nn.Conv(c.embed_dim, window, dtype=self.dtype)
            self.linear_decoder = nn.Conv(c.downsample**2 * c.out_ch, window, dtype=self.dtype)

    def moments(self, pixels: Float[Array, "B H W 3"]) -> Float[Array, "B h w 2C"]:
        """Mean and log-variance of the posterior, stacked on the channel axis, unclamped."""
        if self.config.in_channels == 1:
            pixels = jnp.mean(pixels, axis=-1, keepdims=True)
        moments = self.quant_conv(self.encoder(pixels)).astype(jnp.float32)
        if not self.config.linear_window:
            return moments
        side = self.config.downsample
        blocks = rearrange(pixels, "b (h i) (w j) c -> b h w (i j c)", i=side, j=side)
        mean, logvar = jnp.split(moments, 2, axis=-1)
        mean = mean + self.linear_encoder(blocks).astype(jnp.float32)
        return jnp.concatenate([mean, logvar], axis=-1)

    def encode(
        self, pixels: Float[Array, "B H W 3"], noise: Float[Array, "B h w C"] | None = None
    ) -> Float[Array, "B h w C"]:
        """Scaled latent of the posterior's mean, or of a sample drawn with `noise` ~ N(0, I)."""
        return self.latent(self.moments(pixels), noise)

    def latent(
        self, moments: Float[Array, "B h w 2C"], noise: Float[Array, "B h w C"] | None = None
    ) -> Float[Array, "B h w C"]:
        """Scaled latent from moments: scale * (z - shift), logvar clamped to [-30, 20]."""
        mean, logvar = jnp.split(moments, 2, axis=-1)
        if noise is not None:
            mean = mean + jnp.exp(0.5 * jnp.clip(logvar, -30.0, 20.0)) * noise
        return self.config.scale_factor * (mean - self.config.shift_factor)

    def decode(self, latents: Float[Array, "B h w C"]) -> Float[Array, "B H W 3"]:
        """Pixels, nominally in [-1, 1], of scaled latents."""
        z = latents / self.config.scale_factor + self.config.shift_factor
        pixels = self.decoder(self.post_quant_conv(z)).astype(jnp.float32)
        if self.config.linear_window:
            side = self.config.downsample
            blocks = self.linear_decoder(z).astype(jnp.float32)
            pixels += rearrange(blocks, "b h w (i j c) -> b (h i) (w j) c", i=side, j=side)
        return jnp.repeat(pixels, 3, axis=-1) if self.config.out_ch == 1 else pixels

    def __call__(self, pixels: Float[Array, "B H W 3"]) -> Float[Array, "B H W 3"]:
        """Encodes and decodes: touches every parameter, for `init`."""
        return self.decode(self.encode(pixels))


@traced_once
def param_shapes(config: AutoencoderConfig) -> dict[str, Any]:
    """The parameter tree as `jax.ShapeDtypeStruct` leaves."""
    side = config.downsample * 2
    pixels = jax.ShapeDtypeStruct((1, side, side, config.in_channels), jnp.float32)
    variables = jax.eval_shape(Autoencoder(config).init, jax.random.key(0), pixels)
    return nn.unbox(variables["params"])

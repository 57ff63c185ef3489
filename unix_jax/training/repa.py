"""REPA: latent tokens in the middle of the decoder are aligned with a frozen encoder's patches.

Hidden state of a latent token -> three-layer projector -> negative cosine to the RAD-DINO feature
at the token's position in the image. Both are grids over one image; the encoder's is resampled in
two dimensions to the latents'.

Source: Yu et al., arXiv 2410.06940; the original model taps the eighth layer.

Letters: B rows, J VAE images of a row, G latent tokens of a row, T latent tokens of an image in
h rows and w columns, D width of the decoder, E of the encoder, H W pixels.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from unix_jax.config import UniXConfig
from unix_jax.data.batch import TrainingBatch
from unix_jax.errors import ConfigError
from unix_jax.models.dinov2 import (
    Dinov2,
    Dinov2Config,
    encoder_size,
    patch_grid,
    rad_dino_pixels,
)
from unix_jax.models.layers import Dtype, dense
from unix_jax.models.packed_images import to_images
from unix_jax.preprocessing.pixels import vae_input
from unix_jax.training.draws import Params

# (all parts, gen stream after a layer [B, G, D], batch) -> loss of each VAE image [B, J].
RepaLoss = Callable[[Params, Float[Array, "B G D"], TrainingBatch], Float[Array, "B J"]]


@dataclasses.dataclass(frozen=True)
class RepaConfig:
    """REPA, the alignment of latents with RAD-DINO in stages that generate: the one place where it
    is turned on."""

    encoder: str | None = None
    """Directory of RAD-DINO, or microsoft/rad-dino to download it; REPA is off if absent."""
    weight: float = 0.5
    """Weight of the alignment in the loss."""
    layer: int = 8
    """Decoder layer, counted from 1, after which the gen stream is read."""
    image_size: int = 518
    """Shorter side in pixels at which RAD-DINO sees an image, a multiple of its patch."""
    hidden_size: int | None = None
    """Width inside the projector; the decoder's if absent."""

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise ConfigError(
                f"weight: expected above 0 (without an encoder there is no REPA), "
                f"found {self.weight}"
            )
        for name in ("layer", "image_size", "hidden_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}: expected at least 1, found {value}")


class RepaProjector(nn.Module):
    """Linear, SiLU, Linear, SiLU, Linear."""

    hidden_size: int
    features: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch E"]:
        # Also for small models: the scale of the features does not depend on the width.
        init = nn.initializers.lecun_normal()
        for name, features, axes in (
            ("fc1", self.hidden_size, ("embed", "mlp")),
            ("fc2", self.hidden_size, ("mlp", "embed")),
            ("fc3", self.features, ("embed", None)),
        ):
            x = dense(features, axes, dtype=self.dtype, kernel_init=init, name=name)(x)
            if name != "fc3":
                x = nn.silu(x)
        return x


def resample_grid(
    features: Float[Array, "N a b E"], height: int, width: int
) -> Float[Array, "N h w E"]:
    """Features at the centres of another grid over the same image.

    Bilinear; where the grid shrinks, the triangle widens to average what it skips (antialias), so
    that every patch counts. The same grid is returned as it is.
    """
    if features.shape[1:3] == (height, width):
        return features
    shape = (features.shape[0], height, width, features.shape[3])
    return jax.image.resize(features.astype(jnp.float32), shape, "linear", antialias=True)


def negative_cosine(
    ours: Float[Array, "*batch E"], target: Float[Array, "*batch E"]
) -> Float[Array, "*batch"]:
    """Minus the cosine of the last axes, in float32; 0 for a vector of zeros."""

    def unit(x: Array) -> Array:
        x = x.astype(jnp.float32)
        square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
        # The lower bound is inside the square root, whose derivative at 0 is infinite.
        return x * jax.lax.rsqrt(jnp.maximum(square, 1e-24))

    return -jnp.sum(unit(ours) * unit(target), axis=-1)


def mean_over_tokens(
    losses: Float[Array, "B J T"], weights: Float[Array, "B J T"]
) -> Float[Array, "B J"]:
    """Mean of each image's tokens of weight above 0; 0 for an image without any."""
    counted = (weights > 0).astype(jnp.float32)
    return jnp.sum(losses * counted, axis=-1) / jnp.maximum(counted.sum(axis=-1), 1.0)


def encode_images(
    encoder: Dinov2, params: Any, pixels: Float[Array, "N H W 3"], image_size: int
) -> Float[Array, "N a b E"]:
    """Patch features, without gradient, of images in [-1, 1] seen at `image_size` pixels."""
    _, height, width, _ = pixels.shape
    height, width = encoder_size(height, width, image_size, encoder.config.patch_size)
    inputs = rad_dino_pixels(pixels, (height, width)).astype(encoder.dtype)
    tokens: Any = encoder.apply({"params": jax.lax.stop_gradient(params)}, inputs)
    return jax.lax.stop_gradient(patch_grid(tokens, encoder.config, height, width))


def make_repa(
    model_config: UniXConfig,
    encoder_config: Dinov2Config,
    config: RepaConfig | None = None,
    dtype: Dtype = jnp.float32,
) -> RepaLoss:
    """(all parts, gen stream after a layer, batch) -> loss of each VAE image [B, J].

    Each is the mean over the tokens of the image that have a velocity loss, so that padding and
    clean images give 0 (`mse_weights`). It reads `params["repa"]`, which is trained, and
    `params["rad_dino"]`, which is not.

    Args:
      dtype: of the computation in the encoder and the projector.

    Raises:
      ConfigError: an image size that the encoder's patch does not divide. The loss itself raises
        it for batches without pixels (precomputed moments contain no image to compare with).
    """
    config = _checked(config, encoder_config)
    encoder = Dinov2(encoder_config, dtype)
    projector = _projector(model_config, encoder_config, config, dtype)

    def repa(
        params: Params, hidden: Float[Array, "B G D"], batch: TrainingBatch
    ) -> Float[Array, "B J"]:
        if batch.vae_pixels is None or batch.latent_index is None or batch.mse_weights is None:
            raise ConfigError(
                "REPA: expected a batch with vae_pixels, latent_index and mse_weights, found none: "
                "precomputed moments cannot be used with repa.encoder"
            )
        rows, images, height, width, _ = batch.vae_pixels.shape
        pixels = vae_input(batch.vae_pixels.reshape(rows * images, height, width, -1))
        features = encode_images(encoder, params["rad_dino"], pixels, config.image_size)
        side = model_config.latent_downsample
        features = resample_grid(features, height // side, width // side)
        tokens = features.shape[1] * features.shape[2]
        features = features.reshape(rows, images, tokens, -1)
        projected: Any = projector.apply({"params": params["repa"]}, hidden)
        losses = negative_cosine(to_images(projected, batch.latent_index, images, tokens), features)
        weights = to_images(batch.mse_weights[..., None], batch.latent_index, images, tokens)
        return mean_over_tokens(losses, weights[..., 0])

    return repa


def repa_parts(
    model_config: UniXConfig, encoder_config: Dinov2Config, config: RepaConfig | None = None
) -> dict[str, Callable[[Array], Any]]:
    """What makes the parameters of the parts `repa` and `rad_dino` from a key, boxed."""
    config = _checked(config, encoder_config)
    projector = _projector(model_config, encoder_config, config, jnp.float32)
    width, size = model_config.decoder.hidden_size, encoder_config.image_size

    def init_projector(key: Array) -> Any:
        return projector.init(key, jnp.zeros((1, width)))["params"]

    def init_encoder(key: Array) -> Any:
        return Dinov2(encoder_config).init(key, jnp.zeros((1, size, size, 3)))["params"]

    return {"repa": init_projector, "rad_dino": init_encoder}


def _projector(
    model_config: UniXConfig, encoder_config: Dinov2Config, config: RepaConfig, dtype: Dtype
) -> RepaProjector:
    hidden = config.hidden_size or model_config.decoder.hidden_size
    return RepaProjector(hidden, encoder_config.hidden_size, dtype)


def _checked(config: RepaConfig | None, encoder_config: Dinov2Config) -> RepaConfig:
    config = config or RepaConfig()
    if config.image_size % encoder_config.patch_size:
        raise ConfigError(
            f"image_size: expected a multiple of the encoder's patch {encoder_config.patch_size}, "
            f"found {config.image_size}"
        )
    return config

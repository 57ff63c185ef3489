"""The linear path of a small autoencoder, fitted before training: the floor of what is trained.

An autoencoder with `linear_window` adds the outputs of a linear encoder and decoder to those of its
networks. The principal components of blocks of pixels start it, a short descent on whole images
lets neighbouring blocks share their numbers, and networks that start at zero then learn what is
left.

Letters: N images, H W pixels, h w latents (H / downsample), C embed_dim, P numbers in a block.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from einops import rearrange
from jaxtyping import Array, Float

from unix_jax.config import AutoencoderConfig
from unix_jax.errors import ConfigError, DataError

BATCH = 32
LEARNING_RATE = 1.5e-3
# Principal components differ by a factor of 20 in spread. Whitened halfway, no latent is drowned by
# the noise of rectified flow, and brightness still weighs more than detail.
WHITENING = 0.5
START_LOGVAR = -8.0


def block_components(
    blocks: Float[np.ndarray, "M P"], count: int
) -> tuple[Float[np.ndarray, "P"], Float[np.ndarray, "C P"], Float[np.ndarray, "C"]]:
    """(mean, the first principal components as rows, their standard deviations)."""
    mean = blocks.mean(axis=0)
    centred = (blocks - mean).astype(np.float64)
    values, vectors = np.linalg.eigh(centred.T @ centred / len(centred))
    largest = np.argsort(values)[::-1][:count]
    return mean, vectors[:, largest].T.astype(np.float32), np.sqrt(values[largest])


def fit_linear_path(
    config: AutoencoderConfig, pixels: Float[np.ndarray, "N H W C"], steps: int = 600
) -> dict[str, Any]:
    """Parameters of `linear_encoder` and `linear_decoder` with the least squared error.

    Args:
      config: sizes, with a `linear_window`.
      pixels: training images in [-1, 1], `config.in_channels` channels, sides that are multiples of
        the downsampling.
      steps: of the descent after the principal components; 0 leaves these as they are.

    Returns:
      The two convolutions' parameters. The same images give the same numbers.

    Raises:
      ConfigError: no linear window, or other channels in than out.
      DataError: fewer blocks of pixels than latent channels.
    """
    if not config.linear_window or config.in_channels != config.out_ch:
        raise ConfigError(
            "vae.linear_window: expected an odd number, and as many channels in as out, found "
            f"{config.linear_window}, {config.in_channels} and {config.out_ch}"
        )
    side, window = config.downsample, (config.linear_window, config.linear_window)
    images = rearrange(pixels, "n (h i) (w j) c -> n h w (i j c)", i=side, j=side)
    numbers = images.shape[-1]
    blocks = images.reshape(-1, numbers)
    if len(blocks) <= config.embed_dim:
        raise DataError(
            f"linear path: expected more than {config.embed_dim} blocks of {side} x {side} pixels, "
            f"found {len(blocks)}"
        )
    mean, components, spread = block_components(blocks, config.embed_dim)
    scale = np.maximum(spread, 1e-6) ** WHITENING
    middle = config.linear_window // 2
    encode = np.zeros((*window, numbers, config.embed_dim), np.float32)
    decode = np.zeros((*window, config.embed_dim, numbers), np.float32)
    encode[middle, middle] = components.T / scale
    decode[middle, middle] = components * scale[:, None]
    params: Any = {
        "linear_encoder": {"kernel": encode, "bias": -mean @ encode[middle, middle]},
        "linear_decoder": {"kernel": decode, "bias": mean},
    }
    params = jax.tree.map(jnp.asarray, params)
    encoder, decoder = nn.Conv(config.embed_dim, window), nn.Conv(numbers, window)

    def error(params: Any, images: Array) -> Array:
        latents = encoder.apply({"params": params["linear_encoder"]}, images)
        decoded: Any = decoder.apply({"params": params["linear_decoder"]}, latents)
        return jnp.mean(jnp.square(decoded - images))

    tx = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, max(steps, 1)))

    @jax.jit
    def step(params: Any, state: Any, images: Array) -> tuple[Any, Any]:
        updates, state = tx.update(jax.grad(error)(params, images), state)
        return optax.apply_updates(params, updates), state

    state, rng = tx.init(params), np.random.default_rng(0)
    for _ in range(steps):
        chosen = rng.choice(len(images), min(BATCH, len(images)), replace=False)
        params, state = step(params, state, images[chosen])
    return jax.tree.map(np.asarray, params)


def start_from_linear_path(
    config: AutoencoderConfig, params: Mapping[str, Any], linear: Mapping[str, Any]
) -> dict[str, Any]:
    """Fresh parameters whose images are those of the linear path alone.

    The last convolution of the decoder and the encoder's moments start at zero, and so does, but
    for `START_LOGVAR`, the posterior's spread: noise must not cover what is already encoded.
    """
    started = jax.tree.map(np.array, dict(params)) | dict(linear)
    started["decoder"]["conv_out"] = jax.tree.map(np.zeros_like, started["decoder"]["conv_out"])
    started["quant_conv"] = jax.tree.map(np.zeros_like, started["quant_conv"])
    started["quant_conv"]["bias"][config.embed_dim :] = START_LOGVAR
    return started

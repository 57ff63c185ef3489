"""Random inputs of a step: latents from their posterior, noise and times.

Each number depends on the run's key, the step, the row's place in the batch of the whole step and
the image's place in its row, on nothing else: neither the mesh nor the split into microbatches
changes it.

Letters: B rows, J VAE images of a row, T latent tokens of an image, G latent tokens of a row,
C numbers in a latent token, z channels of the autoencoder.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from unix_jax.data.batch import TrainingBatch
from unix_jax.models.autoencoder import Autoencoder
from unix_jax.models.embeddings import patchify
from unix_jax.models.packed_images import to_stream
from unix_jax.models.unix import UniX
from unix_jax.preprocessing.flow import shift_timestep
from unix_jax.preprocessing.pixels import vae_input

Params = dict[str, Any]


@struct.dataclass
class FlowDraw:
    """x_0, epsilon and t of the gen stream; None where the batch has no such stream.

    grid: (rows, columns) of latent tokens of an image.
    """

    latents: Float[Array, "B G C"] | None = None
    noise: Float[Array, "B G C"] | None = None
    timesteps: Float[Array, "B G"] | None = None
    grid: tuple[int, int] | None = struct.field(pytree_node=False, default=None)


def draw_flow(
    model: UniX, params: Params, batch: TrainingBatch, key: Array, row_ids: Int[Array, " B"]
) -> FlowDraw:
    """Draws for one (micro)batch.

    t is the shifted sigmoid of one normal number per image, 0 for images that are not noised.
    Latents are a sample of the autoencoder's posterior, which is given (`vae_moments`) or
    computed from `vae_pixels` with `params["autoencoder"]`, without gradient.

    Args:
      key: that of the step.
      row_ids: each row's place in the batch of the whole step.

    Raises:
      ValueError: a gen stream without images.
    """
    if batch.gen is None:
        return FlowDraw()
    if batch.noised is None or batch.latent_index is None:
        raise ValueError("batch: expected noised and latent_index with a gen stream, found None")
    config, images = model.config, batch.noised.shape[1]
    moments = _moments(model, params, batch)
    keys = jax.vmap(lambda row: jax.vmap(lambda j: _image_key(key, row, j))(jnp.arange(images)))(
        row_ids
    )
    time_keys, posterior_keys, noise_keys = jnp.moveaxis(
        jax.vmap(jax.vmap(lambda k: jax.random.split(k, 3)))(keys), -1, 0
    )

    def normal(keys: Array, shape: tuple[int, ...]) -> Array:
        return jax.vmap(jax.vmap(lambda k: jax.random.normal(k, shape)))(keys)

    height, width, double_z = moments.shape[2:]
    latent: Any = Autoencoder(config.vae).apply(
        {"params": {}}, moments, normal(posterior_keys, (height, width, double_z // 2)),
        method=Autoencoder.latent,
    )  # fmt: skip
    p = config.latent_patch_size
    # A remaining odd row or column does not form a token, as in inference.
    whole = latent[:, :, : height // p * p, : width // p * p]
    tokens = jax.vmap(lambda x: patchify(x, p))(whole)
    noise = normal(noise_keys, tokens.shape[2:])
    times = shift_timestep(jax.nn.sigmoid(normal(time_keys, ())), config.timestep_shift)
    times = jnp.where(batch.noised, times, 0.0)
    per_token = jnp.broadcast_to(times[..., None], tokens.shape[:3])
    return FlowDraw(
        latents=to_stream(tokens, batch.latent_index),
        noise=to_stream(noise, batch.latent_index),
        timesteps=to_stream(per_token[..., None], batch.latent_index)[..., 0],
        grid=(height // p, width // p),
    )


def _image_key(key: Array, row: Array, image: Array) -> Array:
    return jax.random.fold_in(jax.random.fold_in(key, row), image)


def _moments(model: UniX, params: Params, batch: TrainingBatch) -> Float[Array, "B J h w 2*z"]:
    """The posterior's moments of every image."""
    if batch.vae_moments is not None:
        return batch.vae_moments.astype(jnp.float32)
    if batch.vae_pixels is None:
        raise ValueError(
            "batch: expected vae_pixels or vae_moments with a gen stream, found neither"
        )
    rows, images = batch.vae_pixels.shape[:2]
    pixels = vae_input(batch.vae_pixels.reshape(-1, *batch.vae_pixels.shape[2:]))
    moments: Any = Autoencoder(model.config.vae, model.dtype).apply(
        {"params": jax.lax.stop_gradient(params["autoencoder"])},
        pixels,
        method=Autoencoder.moments,
    )
    return moments.reshape(rows, images, *moments.shape[1:])

"""Training of a small KL autoencoder: L1, squared error, KL and an optional perceptual term.

The published autoencoder is always frozen; this trains one for models of other sizes. A step is
pure: the same state, pixels and key give the same state, and a step's noise and crops depend on
`fold_in(key, step)`, so that a restarted run continues as the uninterrupted one. On a mesh, pixels
are split along their first axis and the state is replicated; losses are means over the whole batch.

Letters: B batch, H W pixels, h w latents (H / downsample), C z_channels, T feature tokens,
E features.
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from flax import struct
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from unix_jax.config import AutoencoderConfig
from unix_jax.errors import ConfigError, DataError
from unix_jax.models.autoencoder import Autoencoder
from unix_jax.models.layers import Dtype
from unix_jax.training.accumulation import check_rows, sum_over_microbatches
from unix_jax.training.average import update_average

Metrics = dict[str, Float[Array, ""]]
Features = Callable[[Float[Array, "B H W 3"]], Float[Array, "B T E"]]


@dataclasses.dataclass(frozen=True)
class AutoencoderObjective:
    """Weights of the terms, and what of each image is seen.

    loss = l1 + mse_weight * mse + kl_weight * kl + perceptual_weight * perceptual, where `l1` and
    `mse` are the means over pixels and channels in [-1, 1], `kl` the mean over latent numbers in
    nats, and `perceptual` the mean over feature tokens of 1 - cosine. CompVis has no squared error
    and sums `l1` and `kl` over an image instead: its KL weight k is k * h * w * C / (H * W * 3)
    here.

    Crops train the convolutions in a fraction of the time; the norms' statistics and the attention
    of the lowest levels are then those of crops, and adapt to whole images after `crop_steps`.
    """

    kl_weight: float = 1e-3
    """Weight of the KL divergence to the standard normal, mean over latent numbers in nats."""
    mse_weight: float = 0.0
    """Weight of the squared error, mean over pixels in [-1, 1]; 30 or more raises the PSNR."""
    perceptual_weight: Annotated[float, tyro.conf.Fixed, tyro.conf.Suppress] = 0.0
    """Weight of the perceptual term for callers that pass `features`. No option of `train.py`."""
    crop: int | None = None
    """Side in pixels of the random squares trained on, a multiple of the downsampling; whole images
    if absent."""
    crop_steps: int | None = None
    """Number of first steps that see crops, before the rest sees whole images; all steps see crops
    if absent."""

    def __post_init__(self) -> None:
        for name in ("kl_weight", "mse_weight", "perceptual_weight"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}: expected at least 0, found {getattr(self, name)}")
        if self.crop_steps is not None and (self.crop is None or self.crop_steps < 0):
            raise ConfigError(
                f"crop_steps: expected none or at least 0, with a crop, found {self.crop_steps}"
            )


@struct.dataclass
class AutoencoderState:
    """Everything that a step changes; `ema` has the tree of `params`, or is None.

    halted: a step was not finite, and since then no step changes anything; not in checkpoints.
    """

    step: Int[Array, ""]
    params: Any
    ema: Any
    opt_state: Any
    halted: Bool[Array, ""]


def init_autoencoder_state(
    config: AutoencoderConfig,
    tx: optax.GradientTransformation,
    key: PRNGKeyArray,
    *,
    ema: bool = True,
) -> AutoencoderState:
    """Fresh float32 weights, their average if `ema`, and the optimiser's state, at step 0."""
    side = 2 * config.downsample

    @jax.jit
    def init(key: PRNGKeyArray) -> AutoencoderState:
        pixels = jnp.zeros((1, side, side, config.in_channels))
        params = nn.unbox(Autoencoder(config).init(key, pixels)["params"])
        # A copy: the step donates the state, and one buffer cannot be donated twice.
        average = jax.tree.map(jnp.copy, params) if ema else None
        start, halted = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.bool_)
        return AutoencoderState(start, params, average, tx.init(params), halted)

    return init(key)


def kl_divergence(moments: Float[Array, "B h w 2C"]) -> Float[Array, ""]:
    """KL(N(mean, var) || N(0, 1)) in nats, mean over latent numbers; logvar as when sampling."""
    mean, logvar = jnp.split(moments.astype(jnp.float32), 2, axis=-1)
    logvar = jnp.clip(logvar, -30.0, 20.0)
    return 0.5 * jnp.mean(jnp.square(mean) + jnp.exp(logvar) - 1.0 - logvar)


def perceptual_distance(
    ours: Float[Array, "B T E"], target: Float[Array, "B T E"]
) -> Float[Array, ""]:
    """1 - cosine of feature tokens, mean over tokens and images."""
    ours, target = ours.astype(jnp.float32), target.astype(jnp.float32)
    return 1.0 - jnp.mean(optax.losses.cosine_similarity(ours, target, epsilon=1e-6))


def psnr(ours: Float[Array, "B H W 3"], target: Float[Array, "B H W 3"]) -> Float[Array, ""]:
    """Peak signal-to-noise ratio in dB, mean over images in [-1, 1]; `ours` is clipped."""
    error = jnp.mean(jnp.square(jnp.clip(ours, -1.0, 1.0) - target), axis=(1, 2, 3))
    return jnp.mean(10.0 * jnp.log10(4.0 / jnp.maximum(error, 1e-10)))


def random_crops(
    key: PRNGKeyArray, pixels: Float[Array, "B H W 3"], side: int
) -> Float[Array, "B side side 3"]:
    """One square of `side` pixels from each image, at a place of its own."""
    batch, height, width, channels = pixels.shape
    row_key, column_key = jax.random.split(key)
    rows = jax.random.randint(row_key, (batch,), 0, height - side + 1)
    columns = jax.random.randint(column_key, (batch,), 0, width - side + 1)

    def cut(image: Array, row: Array, column: Array) -> Array:
        return jax.lax.dynamic_slice(image, (row, column, 0), (side, side, channels))

    return jax.vmap(cut)(pixels, rows, columns)


def autoencoder_loss(
    config: AutoencoderConfig,
    objective: AutoencoderObjective,
    params: Any,
    pixels: Float[Array, "B H W 3"],
    noise: Float[Array, "B h w C"],
    features: Features | None = None,
    dtype: Dtype = jnp.float32,
) -> tuple[Float[Array, ""], Metrics]:
    """The loss and its terms, the posterior sampled with `noise` (reparameterised).

    Source: Kingma & Welling, arXiv 1312.6114; the terms as in CompVis' KL autoencoders, without the
    adversarial one.
    """
    model = Autoencoder(config, dtype)
    moments: Any = model.apply({"params": params}, pixels, method="moments")
    # `decode` inverts the scale and shift of `latent`, so they may be measured after training.
    latents = model.apply({}, moments, noise, method="latent")
    decoded: Any = model.apply({"params": params}, latents, method="decode")
    metrics = {
        "l1": jnp.mean(jnp.abs(decoded - pixels)),
        "mse": jnp.mean(jnp.square(decoded - pixels)),
        "kl": kl_divergence(moments),
    }
    loss = metrics["l1"] + objective.mse_weight * metrics["mse"]
    loss += objective.kl_weight * metrics["kl"]
    if features is not None and objective.perceptual_weight > 0:
        target = jax.lax.stop_gradient(features(pixels))
        metrics["perceptual"] = perceptual_distance(features(decoded), target)
        loss += objective.perceptual_weight * metrics["perceptual"]
    return loss, metrics | {"loss": loss}


def posterior_noise(
    config: AutoencoderConfig, key: PRNGKeyArray, pixels: Float[Array, "B H W 3"]
) -> Float[Array, "B h w C"]:
    """Standard normal numbers for one sample of the posterior of each image."""
    batch, height, width, _ = pixels.shape
    side = config.downsample
    return jax.random.normal(key, (batch, height // side, width // side, config.embed_dim))


def make_autoencoder_step(
    config: AutoencoderConfig,
    tx: optax.GradientTransformation,
    objective: AutoencoderObjective | None = None,
    features: Features | None = None,
    dtype: Dtype = jnp.float32,
    *,
    ema_decay: float = 0.9999,
    accumulation: int = 1,
) -> Any:
    """The jitted function (state, pixels, key) -> (state, metrics); `state` is donated.

    From the first step on that is not finite, the state comes back as it was.

    Args:
      config: sizes; its scale and shift have no effect on training.
      tx: the optimiser, clipping included.
      objective: the terms' weights, and crops; `crop_steps` is the caller's to heed.
      features: a frozen encoder of images in [-1, 1], differentiable in them; needed if
        `perceptual_weight` is above 0.
      dtype: of the computation; parameters and losses stay float32.
      ema_decay: of the average, where the state has one, see `average`.
      accumulation: microbatches that a batch is computed in; changes memory, not numbers.

    Returns:
      A step whose metrics are `l1`, `mse`, `kl`, `loss`, `grad_norm` (before clipping) and
      `perceptual` where there is one. `pixels` are in [-1, 1]; the same `key` is passed at every
      step.

    Raises:
      ConfigError: a perceptual weight without features, or a crop that is no multiple of the
        downsampling (the step itself raises it for images smaller than the crop, and for a
        number of images that `accumulation` does not divide).
    """
    objective = objective or AutoencoderObjective()
    if objective.perceptual_weight > 0 and features is None:
        raise ConfigError(
            f"perceptual_weight: expected 0 without a feature encoder, "
            f"found {objective.perceptual_weight}"
        )
    crop = objective.crop
    if crop is not None and (crop < 1 or crop % config.downsample):
        raise ConfigError(
            f"crop: expected a positive multiple of the downsampling {config.downsample}, "
            f"found {crop}"
        )

    def train_step(
        state: AutoencoderState, pixels: Array, key: PRNGKeyArray
    ) -> tuple[AutoencoderState, Metrics]:
        check_rows(pixels.shape[0], accumulation)
        crop_key, noise_key = jax.random.split(jax.random.fold_in(key, state.step))
        if crop is not None:
            if min(pixels.shape[1:3]) < crop:
                raise ConfigError(
                    f"crop: expected at most the images' side, found {crop} "
                    f"for images of {pixels.shape[1]} x {pixels.shape[2]}"
                )
            pixels = random_crops(crop_key, pixels, crop)

        def gradients(pixels: Array, noise: Array) -> tuple[Any, Metrics]:
            def loss(params: Any) -> tuple[Array, Metrics]:
                return autoencoder_loss(config, objective, params, pixels, noise, features, dtype)

            return jax.grad(loss, has_aux=True)(state.params)

        # Every term is a mean over images, and all microbatches have the same number of images.
        grads, metrics = jax.tree.map(
            lambda total: total / accumulation,
            sum_over_microbatches(
                gradients, accumulation, pixels, posterior_noise(config, noise_key, pixels)
            ),
        )
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema is not None:
            ema = update_average(ema, params, ema_decay, state.step)
        metrics |= {"grad_norm": optax.tree.norm(grads)}
        halted = state.halted
        for name in ("loss", "grad_norm"):
            halted |= ~jnp.isfinite(metrics[name])
        new = AutoencoderState(state.step + 1, params, ema, opt_state, halted)
        kept = state.replace(halted=halted)  # type: ignore[attr-defined]
        return jax.tree.map(lambda x, old: jnp.where(halted, old, x), new, kept), metrics

    return jax.jit(train_step, donate_argnums=0)


def make_autoencoder_evaluation(
    config: AutoencoderConfig, dtype: Dtype = jnp.float32, *, accumulation: int = 1
) -> Callable[[Any, Float[Array, "B H W 3"]], Metrics]:
    """The compiled `(params, pixels) -> l1, mse, kl, psnr`: whole images, the posterior's mean.

    The images are computed in `accumulation` microbatches, as in a step.
    """
    model = Autoencoder(config, dtype)

    @jax.jit
    def evaluate(params: Any, pixels: Array) -> Metrics:
        check_rows(pixels.shape[0], accumulation)

        def one(pixels: Array) -> Metrics:
            moments: Any = model.apply({"params": params}, pixels, method="moments")
            latents = model.apply({}, moments, method="latent")
            decoded: Any = model.apply({"params": params}, latents, method="decode")
            return {
                "l1": jnp.mean(jnp.abs(decoded - pixels)),
                "mse": jnp.mean(jnp.square(decoded - pixels)),
                "kl": kl_divergence(moments),
                "psnr": psnr(decoded, pixels),
            }

        total = sum_over_microbatches(one, accumulation, pixels)
        return jax.tree.map(lambda value: value / accumulation, total)

    return evaluate


def measure_latent_statistics(
    config: AutoencoderConfig,
    params: Any,
    batches: Iterable[Float[Array, "B H W 3"]],
    dtype: Dtype = jnp.float32,
) -> tuple[float, float]:
    """(scale_factor, shift_factor) that give sampled latents of these images mean 0 and variance 1.

    One number each over all channels, as the published autoencoder has it. The posterior's own
    variance is counted exactly, not by sampling; sums are in float64.

    Raises:
      DataError: no images, or latents without spread.
    """
    model = Autoencoder(config, dtype)

    @jax.jit
    def sums(params: Any, pixels: Array) -> Float[Array, "3 C"]:
        moments: Any = model.apply({"params": params}, pixels, method="moments")
        mean, logvar = jnp.split(moments, 2, axis=-1)
        variance = jnp.exp(jnp.clip(logvar, -30.0, 20.0))
        return jnp.stack([x.sum((0, 1, 2)) for x in (mean, jnp.square(mean), variance)])

    count, total = 0, np.zeros(3)
    for pixels in batches:
        total += np.asarray(sums(params, pixels), np.float64).sum(-1)
        batch, height, width, _ = pixels.shape
        count += batch * (height // config.downsample) * (width // config.downsample)
    if not count:
        raise DataError("latent statistics: expected at least one image, found none")
    mean, square, variance = total / (count * config.embed_dim)
    spread = square - mean**2 + variance
    if not (np.isfinite(spread) and spread > 0):
        raise DataError(f"latent statistics: expected a positive variance, found {spread}")
    return float(spread**-0.5), float(mean)


def with_latent_statistics(
    config: AutoencoderConfig, scale_factor: float, shift_factor: float
) -> AutoencoderConfig:
    """The configuration under which latents are scale_factor * (z - shift_factor)."""
    return dataclasses.replace(config, scale_factor=scale_factor, shift_factor=shift_factor)

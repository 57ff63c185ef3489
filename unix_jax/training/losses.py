"""The losses of a packed batch: cross-entropy of text, velocity error of latents, REPA.

Every function is pure and keeps the losses per token; what they are divided by is counted over
the whole step, not over the rows at hand. So a step gives the same numbers however its rows are
spread over devices or microbatches.

Letters: B rows, U und tokens, G latent tokens, J VAE images of a row, T latent tokens of an
image, C numbers in a latent token, D width.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

from unix_jax.data.batch import TrainingBatch
from unix_jax.errors import ConfigError
from unix_jax.models.unix import TwoStreamBatch, UniX
from unix_jax.preprocessing.flow import interpolate
from unix_jax.training.cross_entropy import chunked_cross_entropy

Params = dict[str, Any]
# (all parts, gen stream after a layer [B, G, D], batch) -> loss of each VAE image [B, J].
RepaLoss = Callable[[Params, Float[Array, "B G D"], TrainingBatch], Float[Array, "B J"]]


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Weights of the losses; a loss of weight 0 is not computed."""

    ce_weight: float = 1.0
    """Weight of the cross-entropy of text."""
    mse_weight: float = 1.0
    """Weight of the squared error of the velocity."""
    repa_weight: float = 0.0
    """Weight of REPA, the alignment of latents with RAD-DINO; above 0 it needs --rad-dino."""
    repa_layer: int = 8
    """Decoder layer, counted from 1, after which REPA reads the gen stream."""
    ce_chunk: int = 128
    """Positions of each row whose logits exist at one time; fewer take less memory."""

    def __post_init__(self) -> None:
        for name in ("ce_weight", "mse_weight", "repa_weight"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name}: expected at least 0, found {getattr(self, name)}")
        for name in ("repa_layer", "ce_chunk"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected at least 1, found {getattr(self, name)}")


@struct.dataclass
class LossTotals:
    """What the summed losses of a step are divided by, and the counts that are reported."""

    ce: Float[Array, ""]
    mse: Float[Array, ""]
    repa: Float[Array, ""]
    ce_tokens: Float[Array, ""]
    mse_tokens: Float[Array, ""]


@struct.dataclass
class LossTerms:
    """Losses before any sum; None where one is not computed.

    ce [B, U]: of each place, 0 without a loss. squared_error [B, G, C]: of each number of the
    velocity. repa [B, J]: of each VAE image. und, gen: final hidden states.
    """

    ce: Float[Array, "B U"] | None
    squared_error: Float[Array, "B G C"] | None
    repa: Float[Array, "B J"] | None
    und: Float[Array, "B U D"] | None
    gen: Float[Array, "B G D"] | None


def count_totals(batch: TrainingBatch) -> LossTotals:
    """Sums of the weights of all rows: call it with the batch of a whole step."""

    def total(weights: Array | None) -> tuple[Array, Array]:
        if weights is None:
            return jnp.float32(0), jnp.float32(0)
        return weights.sum(dtype=jnp.float32), (weights > 0).sum(dtype=jnp.float32)

    ce, ce_tokens = total(batch.ce_weights)
    mse, mse_tokens = total(batch.mse_weights)
    noised = jnp.float32(0) if batch.noised is None else batch.noised.sum(dtype=jnp.float32)
    return LossTotals(ce, mse, noised, ce_tokens, mse_tokens)


def loss_terms(
    model: UniX,
    params: Params,
    batch: TrainingBatch,
    latents: Float[Array, "B G C"] | None,
    noise: Float[Array, "B G C"] | None,
    timesteps: Float[Array, "B G"] | None,
    config: LossConfig,
    repa: RepaLoss | None = None,
) -> LossTerms:
    """Every loss per token, for given noise and times.

    Args:
      params: all parts; `params["unix"]` are the model's.
      latents, noise, timesteps: x_0, epsilon and t of the gen stream (see `draw_flow`); None
        where the batch has none. The model sees (1 - t) x_0 + t epsilon and is to give
        epsilon - x_0.
      repa: gives the loss of each VAE image; needed if `config.repa_weight` is not 0.

    Raises:
      ValueError: `repa` is missing.
    """
    wants_repa = config.repa_weight > 0 and batch.gen is not None
    if wants_repa and repa is None:
        raise ValueError("repa: expected a function, since repa_weight is not 0, found None")
    has_gen = batch.gen is not None
    streams = TwoStreamBatch(
        token_ids=batch.token_ids,
        und=batch.und,
        vit_pixels=batch.vit_pixels,
        vit_index=batch.vit_index,
        gen=batch.gen,
        latents=interpolate(latents, noise, timesteps) if has_gen else None,  # type: ignore[arg-type]
        timesteps=timesteps if has_gen else None,
        latent_position_ids=batch.latent_position_ids,
    )
    applied: Any = model.apply(
        {"params": params["unix"]}, streams, config.repa_layer if wants_repa else None,
        method=UniX.with_hidden,
    )  # fmt: skip
    (und, gen), hidden = applied
    ce = squared_error = image_losses = None
    if config.ce_weight > 0:
        ce = chunked_cross_entropy(
            und, params["unix"]["lm_head"]["kernel"], batch.labels, batch.ce_weights > 0,
            chunk=config.ce_chunk, dtype=model.dtype,
        )  # fmt: skip
    if config.mse_weight > 0 and has_gen:
        velocity: Any = model.apply({"params": params["unix"]}, gen, method=UniX.velocity)
        squared_error = jnp.square(velocity - (noise - latents))  # type: ignore[operator]
    if wants_repa:
        image_losses = repa(params, hidden, batch)  # type: ignore[misc]
    return LossTerms(ce, squared_error, image_losses, und, gen)


def reduce_losses(
    terms: LossTerms, batch: TrainingBatch, totals: LossTotals, config: LossConfig
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """(the loss, {ce, mse, repa}): the rows' share of the step's weighted means.

    Shares of several sets of rows add up to the loss of the step.
    """

    def share(values: Array | None, weights: Array | None, total: Array) -> Array:
        if values is None or weights is None:
            return jnp.float32(0)
        # Not a product alone: places without a loss may hold anything, infinities too.
        summed = jnp.where(weights > 0, weights * values, 0.0).sum()
        return summed / jnp.where(total > 0, total, 1.0)

    error = None if terms.squared_error is None else terms.squared_error.mean(axis=-1)
    parts = {
        "ce": share(terms.ce, batch.ce_weights, totals.ce),
        "mse": share(error, batch.mse_weights, totals.mse),
        "repa": share(terms.repa, batch.noised, totals.repa),
    }
    loss = (
        config.ce_weight * parts["ce"]
        + config.mse_weight * parts["mse"]
        + config.repa_weight * parts["repa"]
    )
    return loss, jax.tree.map(jax.lax.stop_gradient, parts)

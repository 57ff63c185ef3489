"""The loss of a packed batch, in one place: `unix_loss`.

What the sums are divided by is counted over the whole step, not over the rows at hand, so that a
step gives the same numbers however its rows are spread over devices or microbatches.

Letters: B rows, U und tokens, G latent tokens, J VAE images of a row, C numbers in a latent token,
D width.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from unix_jax.data.batch import TrainingBatch
from unix_jax.errors import ConfigError
from unix_jax.models.packed_images import PackedImages
from unix_jax.models.unix import TwoStreamBatch, UniX
from unix_jax.preprocessing.flow import interpolate
from unix_jax.preprocessing.pixels import vit_input
from unix_jax.training.cross_entropy import chunked_cross_entropy
from unix_jax.training.draws import FlowDraw, Params, draw_flow

Metrics = dict[str, Float[Array, ""]]


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Weights of the losses; a loss of weight 0 is not computed."""

    ce_weight: float = 1.0
    """Weight of the cross-entropy of text."""
    mse_weight: float = 1.0
    """Weight of the squared error of the velocity."""
    ce_chunk: int = 128
    """Positions of each row whose logits exist at one time; fewer take less memory."""

    def __post_init__(self) -> None:
        for name in ("ce_weight", "mse_weight"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name}: expected at least 0, found {getattr(self, name)}")
        if self.ce_chunk < 1:
            raise ConfigError(f"ce_chunk: expected at least 1, found {self.ce_chunk}")


@dataclasses.dataclass(frozen=True)
class Alignment:
    """REPA as a term of the loss, see `repa.make_repa`.

    loss: (all parts, gen stream after `layer` [B, G, D], batch) -> loss of each VAE image [B, J].
    """

    loss: Callable[[Params, Float[Array, "B G D"], TrainingBatch], Float[Array, "B J"]]
    weight: float
    layer: int


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


def unix_loss(
    model: UniX,
    params: Params,
    batch: TrainingBatch,
    key: Array,
    config: LossConfig,
    *,
    row_ids: Int[Array, " B"] | None = None,
    totals: LossTotals | None = None,
    repa: Alignment | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """The loss of a batch, and its parts `ce`, `mse` and `repa` without their weights.

    Args:
      model: computes in its `dtype`; the losses are float32.
      params: all parts: those of `model` under "unix"; "autoencoder" where the batch has pixels
        to encode; what `repa` reads.
      batch: packed rows.
      key: of the step; noise and times depend on it, the row and the image alone.
      row_ids: each row's index in the batch of the whole step; 0, 1, ... if absent.
      totals: `count_totals` of the whole step, of which this batch is a part; the batch's own if
        absent. The losses of the parts of a step add up to that of the step.
      repa: the alignment with a frozen encoder; none if absent.

    Raises:
      ValueError: a gen stream without images.
    """
    row_ids = jnp.arange(batch.rows) if row_ids is None else row_ids
    drawn = draw_flow(model, params, batch, key, row_ids)
    totals = count_totals(batch) if totals is None else totals
    loss, metrics, _ = loss_and_terms(model, params, batch, drawn, totals, config, repa)
    return loss, metrics


def loss_and_terms(
    model: UniX,
    params: Params,
    batch: TrainingBatch,
    drawn: FlowDraw,
    totals: LossTotals,
    config: LossConfig,
    repa: Alignment | None = None,
) -> tuple[Float[Array, ""], Metrics, LossTerms]:
    """As `unix_loss` for given latents, noise and times; returns the losses per token besides."""
    ce = mean_ce = squared_error = error = alignment = x_t = None
    repa = None if batch.gen is None else repa

    # Rectified flow: x_t = (1 - t) x_0 + t noise, whose velocity dx_t / dt is noise - x_0.
    x_0, noise, t = drawn.latents, drawn.noise, drawn.timesteps
    if x_0 is not None and noise is not None and t is not None:
        x_t = interpolate(x_0, noise, t)

    # One pass over both streams; REPA reads gen after one of the layers.
    streams = TwoStreamBatch(
        token_ids=batch.token_ids, und=batch.und,
        vit_pixels=None if batch.vit_pixels is None else vit_input(batch.vit_pixels),
        vit_index=batch.vit_index,
        gen=batch.gen, latents=x_t, timesteps=t, latent_position_ids=batch.latent_position_ids,
        images=_packed_images(batch, drawn), slots=batch.slots,
    )  # fmt: skip
    layer = None if repa is None else repa.layer
    output: Any = model.apply({"params": params["unix"]}, streams, layer, method=UniX.predict)

    # -log softmax(und @ head)[label] of each token of text that has a weight.
    if config.ce_weight > 0:
        mean_ce, ce = _cross_entropy(model, params, batch, output.und, totals.ce, config.ce_chunk)

    # |velocity - (noise - x_0)|^2 of each latent token, averaged over its channels.
    if config.mse_weight > 0 and x_0 is not None and noise is not None:
        squared_error = jnp.square(output.velocity - (noise - x_0))
        error = squared_error.mean(axis=-1)

    # -cos(projected gen stream, features of the frozen encoder) of each noised image.
    if repa is not None:
        alignment = repa.loss(params, output.hidden, batch)

    # Weighted means over the whole step, and their weighted sum.
    metrics = {
        "ce": jnp.float32(0) if mean_ce is None else mean_ce,
        "mse": _weighted_mean(error, batch.mse_weights, totals.mse),
        "repa": _weighted_mean(alignment, batch.noised, totals.repa),
    }
    loss = config.ce_weight * metrics["ce"] + config.mse_weight * metrics["mse"]
    if repa is not None:
        loss += repa.weight * metrics["repa"]
    metrics = jax.tree.map(jax.lax.stop_gradient, metrics)
    return loss, metrics, LossTerms(ce, squared_error, alignment, output.und, output.gen)


def _cross_entropy(
    model: UniX,
    params: Params,
    batch: TrainingBatch,
    und: Float[Array, "B U D"],
    total: Float[Array, ""],
    chunk: int,
) -> tuple[Float[Array, ""], Float[Array, "B U"]]:
    """(weighted mean, its values): the sum of this batch's, divided by the `total` of weights."""
    kernel, length = params["unix"]["lm_head"]["kernel"], und.shape[1]
    # Only text has a loss, and rows in slots say where it may be.
    slots = batch.slots
    text = slice(0, length) if slots is None else slice(slots.text_begin, slots.text_end)
    weights = batch.ce_weights / jnp.where(total > 0, total, 1.0)
    mean, ce = chunked_cross_entropy(
        und[:, text], kernel, batch.labels[:, text], weights[:, text],
        chunk=chunk, dtype=model.dtype,
    )  # fmt: skip
    return mean, jnp.pad(ce, ((0, 0), (text.start, length - text.stop)))


def _packed_images(batch: TrainingBatch, drawn: FlowDraw) -> PackedImages | None:
    if batch.latent_index is None or batch.noised is None or drawn.grid is None:
        return None
    return PackedImages(batch.latent_index, batch.noised.shape[1], drawn.grid)


def _weighted_mean(
    values: Array | None, weights: Array | None, total: Float[Array, ""]
) -> Float[Array, ""]:
    """sum(weights * values) / total; 0 where there are no values or no weights."""
    if values is None or weights is None:
        return jnp.float32(0)
    # Not only a product: positions without a loss may contain any value, also infinity.
    summed = jnp.where(weights > 0, weights * values, 0.0).sum()
    return summed / jnp.where(total > 0, total, 1.0)

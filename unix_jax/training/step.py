"""One update, and one evaluation: compiled functions of (state, batch, key).

Letters: B rows of the step, k microbatches.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from unix_jax.data.batch import TrainingBatch
from unix_jax.errors import ConfigError
from unix_jax.models.unix import UniX
from unix_jax.sharding import ShardingRules, use_mesh
from unix_jax.training.accumulation import check_rows, sum_over_microbatches
from unix_jax.training.average import update_average
from unix_jax.training.draws import draw_flow
from unix_jax.training.groups import merge_params
from unix_jax.training.lora import LoraConfig, merge_lora
from unix_jax.training.losses import (
    LossConfig,
    LossTotals,
    Params,
    RepaLoss,
    count_totals,
    loss_terms,
    reduce_losses,
)
from unix_jax.training.state import TrainState

Metrics = dict[str, Float[Array, ""]]


@dataclasses.dataclass(frozen=True)
class StepConfig:
    """Of an update and of an evaluation.

    accumulation: microbatches of a step, in an evaluation as in an update.
    ema_decay: of the running mean, see `average`.
    lora: adapters to merge, None without any.
    """

    losses: LossConfig = dataclasses.field(default_factory=LossConfig)
    accumulation: int = 1
    ema_decay: float = 0.9999
    lora: LoraConfig | None = None

    def __post_init__(self) -> None:
        if self.accumulation < 1:
            raise ConfigError(f"accumulation: expected at least 1, found {self.accumulation}")
        if not 0 <= self.ema_decay < 1:
            raise ConfigError(f"ema_decay: expected a number in [0, 1), found {self.ema_decay}")


@dataclasses.dataclass
class CompiledStep:
    """A function of (state, batch, key), compiled on the mesh when it is first called.

    `build(state)` makes the jitted function of (state without `frozen`, frozen, batch, key).
    """

    build: Callable[[TrainState], Any]
    mesh: Mesh | None = None
    rules: ShardingRules | None = None
    _jitted: Any = None

    def _arguments(self, state: TrainState, batch: TrainingBatch, key: Array) -> tuple[Any, ...]:
        if self._jitted is None:
            self._jitted = self.build(state)
        return state.replace(frozen=None), state.frozen, batch, key  # type: ignore[attr-defined]

    def lower(self, state: TrainState, batch: TrainingBatch, key: Array) -> Any:
        """The lowered program, from arrays or their shapes: to compile ahead of time."""
        arguments = self._arguments(state, batch, key)
        with use_mesh(self.mesh, self.rules):
            return self._jitted.lower(*arguments)

    def run(self, state: TrainState, batch: TrainingBatch, key: Array) -> Any:
        arguments = self._arguments(state, batch, key)
        with use_mesh(self.mesh, self.rules):
            return self._jitted(*arguments)


class TrainStep(CompiledStep):
    """(state, batch, key) -> (state, metrics). All of the state but `frozen` is donated."""

    def __call__(
        self, state: TrainState, batch: TrainingBatch, key: Array
    ) -> tuple[TrainState, Metrics]:
        """See `make_train_step`."""
        new, metrics = self.run(state, batch, key)
        return new.replace(frozen=state.frozen), metrics


class EvalStep(CompiledStep):
    """(state, batch, key) -> metrics. One program for the trained weights and their mean."""

    def __call__(
        self, state: TrainState, batch: TrainingBatch, key: Array, *, ema: bool = False
    ) -> Metrics:
        """See `make_eval_step`."""
        if ema:
            if state.ema is None:
                raise ValueError("ema: expected a state with a running mean, found None")
            state = state.replace(trained=state.ema)  # type: ignore[attr-defined]
        return self.run(state, batch, key)

    def _arguments(self, state: TrainState, batch: TrainingBatch, key: Array) -> tuple[Any, ...]:
        # What an evaluation does not read is not handed to it.
        alone = state.replace(ema=None, opt_state=None)  # type: ignore[attr-defined]
        return super()._arguments(alone, batch, key)


def make_train_step(
    model: UniX,
    config: StepConfig,
    tx: optax.GradientTransformation,
    schedule: optax.Schedule,
    *,
    mesh: Mesh | None = None,
    rules: ShardingRules | None = None,
    repa: RepaLoss | None = None,
) -> TrainStep:
    """An update of the trained parameters by the losses of one batch.

    The key is the run's, the same at every step: the step's number is folded into it. Losses and
    gradients are means over the whole step, so that `accumulation` changes memory, not numbers;
    microbatch i takes the rows i, i + k, i + 2k, ..., which moves nothing between devices.

    Metrics are float32 scalars: loss, ce, mse, repa, grad_norm (before clipping), learning_rate,
    ce_tokens, mse_tokens. If the loss or the gradient is not finite, the state comes back as it
    was, its step included; the metrics tell.

    Raises (at the first call):
      ConfigError: the rows do not divide into microbatches, or these not over the mesh.
    """

    def update(
        state: TrainState, frozen: Params, batch: TrainingBatch, key: Array, shardings: Any
    ) -> tuple[TrainState, Metrics]:
        totals = count_totals(batch)
        loss, parts, gradients = _gradients(
            model, config, state.trained, frozen, batch, totals,
            jax.random.fold_in(key, state.step), repa, shardings,
        )  # fmt: skip
        grad_norm = optax.global_norm(gradients)
        updates, opt_state = tx.update(gradients, state.opt_state, state.trained)
        trained = optax.apply_updates(state.trained, updates)
        ema = state.ema
        if ema is not None:
            ema = update_average(ema, trained, config.ema_decay, state.step)
        new = TrainState(state.step + 1, trained, None, ema, opt_state)  # type: ignore[arg-type]
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        new = jax.tree.map(lambda x, old: jnp.where(finite, x, old), new, state)
        metrics = _reported(loss, parts, totals) | {
            "grad_norm": grad_norm,
            "learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
        }
        return new, metrics

    def build(state: TrainState) -> Any:
        shardings = None
        out: Any = None
        if mesh is not None:
            variable = state.replace(frozen=None)  # type: ignore[attr-defined]
            of_state = jax.tree.map(lambda x: x.sharding, variable)
            shardings, out = of_state.trained, (of_state, NamedSharding(mesh, PartitionSpec()))

        def function(
            state: TrainState, frozen: Params, batch: TrainingBatch, key: Array
        ) -> tuple[TrainState, Metrics]:
            check_rows(batch.rows, config.accumulation, mesh, rules)
            return update(state, frozen, batch, key, shardings)

        return jax.jit(function, donate_argnums=0, out_shardings=out)

    return TrainStep(build, mesh, rules)


def make_eval_step(
    model: UniX,
    config: StepConfig,
    *,
    mesh: Mesh | None = None,
    rules: ShardingRules | None = None,
    repa: RepaLoss | None = None,
) -> EvalStep:
    """The losses of one batch without an update; the key alone decides the noise and the times.

    Metrics: loss, ce, mse, repa, ce_tokens, mse_tokens; of the running mean if the step is called
    with `ema`. The batch is computed in the microbatches of the update, so that an evaluation
    takes no more memory than that.

    Raises (at the first call):
      ConfigError: as the update does.
    """

    def function(state: TrainState, frozen: Params, batch: TrainingBatch, key: Array) -> Metrics:
        check_rows(batch.rows, config.accumulation, mesh, rules)
        params = merge_params(state.trained, frozen)
        totals = count_totals(batch)

        def one(rows: TrainingBatch, row_ids: Array) -> tuple[Array, Metrics]:
            return _loss(model, config, params, rows, row_ids, totals, key, repa)

        loss, parts = sum_over_microbatches(one, config.accumulation, batch, jnp.arange(batch.rows))
        return _reported(loss, parts, totals)

    return EvalStep(lambda state: jax.jit(function), mesh, rules)


def _loss(
    model: UniX,
    config: StepConfig,
    params: Params,
    batch: TrainingBatch,
    row_ids: Int[Array, " B"],
    totals: LossTotals,
    key: Array,
    repa: RepaLoss | None,
) -> tuple[Float[Array, ""], Metrics]:
    if ("lora" in params) != (config.lora is not None):
        raise ValueError(
            f"StepConfig.lora: expected it with a state that has adapters and only then, "
            f"found {config.lora} and the parts {sorted(params)}"
        )
    if config.lora is not None:
        params = params | {"unix": merge_lora(params["unix"], params["lora"], config.lora)}
    draw = draw_flow(model, params, batch, key, row_ids)
    terms = loss_terms(
        model, params, batch, draw.latents, draw.noise, draw.timesteps, config.losses, repa
    )
    return reduce_losses(terms, batch, totals, config.losses)


def _gradients(
    model: UniX,
    config: StepConfig,
    trained: Params,
    frozen: Params,
    batch: TrainingBatch,
    totals: LossTotals,
    key: Array,
    repa: RepaLoss | None,
    shardings: Any,
) -> tuple[Float[Array, ""], Metrics, Params]:
    """(loss, its parts, gradients of the trained parameters alone) of the whole step."""
    working = _working_copy(model, config, trained)

    def one(rows: TrainingBatch, row_ids: Array) -> tuple[Array, Metrics, Params]:
        def loss_of(working: Params) -> tuple[Array, Metrics]:
            params = merge_params(working, frozen)
            return _loss(model, config, params, rows, row_ids, totals, key, repa)

        (loss, parts), gradients = jax.value_and_grad(loss_of, has_aux=True)(working)
        gradients = jax.tree.map(lambda x, master: x.astype(master.dtype), gradients, trained)
        if shardings is not None:
            # Where the parameters lie: sums over devices may then be scattered, not repeated.
            gradients = jax.lax.with_sharding_constraint(gradients, shardings)
        return loss, parts, gradients

    return sum_over_microbatches(one, config.accumulation, batch, jnp.arange(batch.rows))


def _working_copy(model: UniX, config: StepConfig, trained: Params) -> Params:
    """The parameters with the kernels of all layers in the type that these compute in.

    They cast them anyway, but each layer in each microbatch and pass anew, and cut out of float32
    stacks; so it is done once a step, with the same numbers. What is summed within a microbatch, as
    the head's gradient over chunks, stays float32.
    """
    if config.lora is not None:
        return trained

    def one(path: Any, x: Array) -> Array:
        names = [str(getattr(key, "key", "")) for key in path]
        stacked = names[:1] == ["unix"] and names[2:3] in (["layers"], ["blocks"])
        return x.astype(model.dtype) if stacked and names[-1] == "kernel" else x

    return jax.tree_util.tree_map_with_path(one, trained)


def _reported(loss: Array, parts: Metrics, totals: LossTotals) -> Metrics:
    return {
        "loss": loss,
        **parts,
        "ce_tokens": totals.ce_tokens,
        "mse_tokens": totals.mse_tokens,
    }

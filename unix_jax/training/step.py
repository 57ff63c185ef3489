"""One update, and one evaluation: jitted functions of (state, batch, key).

Letters: B rows of the step, k microbatches.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from unix_jax.data.batch import TrainingBatch
from unix_jax.errors import ConfigError
from unix_jax.models.unix import UniX
from unix_jax.sharding import platform_in_use, traced_on
from unix_jax.training.accumulation import check_rows, sum_over_microbatches
from unix_jax.training.average import update_average
from unix_jax.training.draws import Params
from unix_jax.training.lora import LoraConfig, merge_lora
from unix_jax.training.losses import (
    Alignment,
    LossConfig,
    LossTotals,
    Metrics,
    count_totals,
    unix_loss,
)
from unix_jax.training.parameter_groups import merge_params
from unix_jax.training.state import TrainState


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


def make_train_step(
    model: UniX,
    config: StepConfig,
    tx: optax.GradientTransformation,
    schedule: optax.Schedule,
    *,
    shardings: TrainState | None = None,
    repa: Alignment | None = None,
) -> Any:
    """The jitted function (state, batch, key) -> (state, metrics); the state is donated.

    It updates the trained parameters by the losses of one batch. The key is the run's, the same at
    every step: the step's number is folded into it. Losses and gradients are means over the whole
    step, so that `accumulation` changes memory, not numbers; microbatch i takes the rows i, i + k,
    i + 2k, ..., which moves nothing between devices.

    Metrics are float32 scalars: loss, ce, mse, repa, grad_norm (before clipping), learning_rate,
    ce_tokens, mse_tokens. From the first step on whose loss or gradient is not finite, the state
    comes back as it was, its step included; the metrics of that step tell.

    Args:
      shardings: of the state, see `state_shardings`; None for one device.

    Raises (at the first call):
      ConfigError: the rows do not divide into microbatches, or these not over the mesh.
    """
    mesh = None if shardings is None else jax.tree.leaves(shardings)[0].mesh

    def train_step(state: TrainState, batch: TrainingBatch, key: Array) -> tuple[TrainState, Any]:
        check_rows(batch.rows, config.accumulation, mesh)
        with traced_on(mesh):
            key = jax.random.fold_in(key, state.step)
            of_trained = None if shardings is None else shardings.trained
            loss, parts, totals, gradients = _gradients(
                model, config, state.trained, state.frozen, batch, key, repa, of_trained
            )
            grad_norm = optax.global_norm(gradients)
            halted = state.halted | ~jnp.isfinite(loss) | ~jnp.isfinite(grad_norm)

            def unless_halted(new: Any, old: Any) -> Any:
                return jax.tree.map(lambda new, old: jnp.where(halted, old, new), new, old)

            updates, opt_state = _computed_once(
                tx.update(gradients, state.opt_state, state.trained)
            )
            trained = optax.apply_updates(state.trained, updates)
            trained = _computed_once(unless_halted(trained, state.trained))
            ema = state.ema
            if ema is not None:
                ema = unless_halted(update_average(ema, trained, config.ema_decay, state.step), ema)
            step, opt_state = unless_halted(
                (state.step + 1, opt_state), (state.step, state.opt_state)
            )
        metrics = _reported(loss, parts, totals) | {
            "grad_norm": grad_norm,
            "learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
        }
        return TrainState(step, trained, state.frozen, ema, opt_state, halted), metrics

    out = None
    if mesh is not None:
        out = (shardings, NamedSharding(mesh, PartitionSpec()))
    return jax.jit(train_step, donate_argnums=0, out_shardings=out)


def make_eval_step(
    model: UniX,
    config: StepConfig,
    *,
    mesh: Mesh | None = None,
    repa: Alignment | None = None,
) -> Any:
    """The jitted function (state, batch, key) -> metrics: the losses of one batch, no update.

    The key alone decides the noise and the times. For the running mean call it with
    `state.averaged()`: the program is the same.

    Metrics: loss, ce, mse, repa, ce_tokens, mse_tokens. The batch is computed in the microbatches
    of the update, so that an evaluation takes no more memory than that.

    Raises (at the first call):
      ConfigError: as the update does.
    """

    def eval_step(state: TrainState, batch: TrainingBatch, key: Array) -> Metrics:
        check_rows(batch.rows, config.accumulation, mesh)
        with traced_on(mesh):
            params = merge_params(state.trained, state.frozen)
            totals = count_totals(batch)

            def one(rows: TrainingBatch, row_ids: Array) -> tuple[Array, Metrics]:
                return _loss(model, config, params, rows, row_ids, totals, key, repa)

            loss, parts = sum_over_microbatches(
                one, config.accumulation, batch, jnp.arange(batch.rows)
            )
            return _reported(loss, parts, totals)

    return jax.jit(eval_step)


def _loss(
    model: UniX,
    config: StepConfig,
    params: Params,
    batch: TrainingBatch,
    row_ids: Int[Array, " B"],
    totals: LossTotals,
    key: Array,
    repa: Alignment | None,
) -> tuple[Float[Array, ""], Metrics]:
    """`unix_loss` with the adapters merged."""
    if ("lora" in params) != (config.lora is not None):
        raise ValueError(
            f"StepConfig.lora: expected it with a state that has adapters and only then, "
            f"found {config.lora} and the parts {sorted(params)}"
        )
    if config.lora is not None:
        params = params | {"unix": merge_lora(params["unix"], params["lora"], config.lora)}
    return unix_loss(
        model, params, batch, key, config.losses, row_ids=row_ids, totals=totals, repa=repa
    )


def _gradients(
    model: UniX,
    config: StepConfig,
    trained: Params,
    frozen: Params,
    batch: TrainingBatch,
    key: Array,
    repa: Alignment | None,
    shardings: Any,
) -> tuple[Float[Array, ""], Metrics, LossTotals, Params]:
    """(loss, its parts, totals, gradients of the trained parameters alone) of the whole step."""
    totals = count_totals(batch)
    working = _working_copy(model, config, trained)

    def one(rows: TrainingBatch, row_ids: Array) -> tuple[Array, Metrics, Params]:
        def loss_of(working: Params) -> tuple[Array, Metrics]:
            params = merge_params(working, frozen)
            return _loss(model, config, params, rows, row_ids, totals, key, repa)

        (loss, parts), gradients = jax.value_and_grad(loss_of, has_aux=True)(working)
        gradients = jax.tree.map(lambda x, master: x.astype(master.dtype), gradients, trained)
        if shardings is not None:
            # Sharded as the parameters are, so that sums over devices can be reduce-scatters.
            gradients = jax.lax.with_sharding_constraint(gradients, shardings)
        return loss, parts, gradients

    loss, parts, gradients = sum_over_microbatches(
        one, config.accumulation, batch, jnp.arange(batch.rows)
    )
    return loss, parts, totals, gradients


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


def _computed_once(tree: Any) -> Any:
    """On a CPU, a barrier. Without it XLA computes the arrays of the update again for each of their
    uses, from copies of the former state: a step took 1.07 times as long (benchmarks/README.md).
    Programs for other devices have not been compared, and are left to XLA."""
    return jax.lax.optimization_barrier(tree) if platform_in_use() == "cpu" else tree


def _reported(loss: Array, parts: Metrics, totals: LossTotals) -> Metrics:
    return {
        "loss": loss,
        **parts,
        "ce_tokens": totals.ce_tokens,
        "mse_tokens": totals.mse_tokens,
    }

"""AdamW with clipping by the global norm, and the learning rate's schedules."""

import dataclasses
from typing import Annotated, Any, Literal, get_args

import jax
import optax
import tyro

from unix_jax.errors import ConfigError

Schedule = Literal["constant", "cosine"]


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW and its schedule, as in the published recipe by default."""

    learning_rate: float = 1e-4
    """Peak of the learning rate."""
    warmup_steps: int = 0
    """Steps of the linear rise from learning_rate / warmup_steps to the peak."""
    schedule: Schedule = "constant"
    """After the warm-up: constant, or half a cosine that falls to final_fraction of the peak at the
    last step of the run."""
    total_steps: Annotated[int, tyro.conf.Fixed, tyro.conf.Suppress] = 0
    """Step at which the cosine ends. No option: `train.py` takes the length of the run."""
    final_fraction: float = 0.0
    """Last learning rate of the cosine, as a fraction of the peak."""
    b1: float = 0.9
    """Decay of the first moment of the gradients."""
    b2: float = 0.95
    """Decay of the second moment of the gradients."""
    eps: float = 1e-15
    """Added to the root of the second moment."""
    weight_decay: float = 0.0
    """Decoupled weight decay, of kernels and embeddings only."""
    clip_norm: float = 1.0
    """Largest norm of all gradients together; 0 does not clip."""

    def __post_init__(self) -> None:
        if self.schedule not in get_args(Schedule):
            raise ConfigError(
                f"schedule: expected one of {get_args(Schedule)}, found {self.schedule!r}"
            )
        for name in ("learning_rate", "warmup_steps", "weight_decay", "clip_norm"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name}: expected at least 0, found {getattr(self, name)}")


def make_schedule(config: OptimizerConfig) -> optax.Schedule:
    """Step (from 0) to learning rate.

    Raises:
      ConfigError: a cosine that would end within the warm-up.
    """
    if config.schedule == "cosine" and config.total_steps <= config.warmup_steps:
        raise ConfigError(
            f"total_steps: expected more than warmup_steps {config.warmup_steps} "
            f"for a cosine schedule, found {config.total_steps}"
        )
    peak, warmup = config.learning_rate, config.warmup_steps
    after: optax.Schedule = optax.constant_schedule(peak)
    if config.schedule == "cosine":
        after = optax.cosine_decay_schedule(
            peak, config.total_steps - warmup, alpha=config.final_fraction
        )
    if not warmup:
        return after
    # Step 0 must already learn: the ramp starts one step above zero.
    ramp = optax.linear_schedule(peak / warmup, peak, warmup - 1) if warmup > 1 else after
    return optax.join_schedules([ramp, after], [warmup])


def make_optimizer(
    config: OptimizerConfig,
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """(the optimiser, its schedule)."""
    schedule = make_schedule(config)
    adamw = optax.adamw(
        schedule, config.b1, config.b2, config.eps,
        weight_decay=config.weight_decay, mask=_decayed,
    )  # fmt: skip
    if not config.clip_norm:
        return adamw, schedule
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw), schedule


def _decayed(params: Any) -> Any:
    """True for matrices; by name, since stacked biases and scales have two axes as well."""

    def one(path: Any, _: Any) -> bool:
        names = [str(getattr(key, "key", "")) for key in path]
        return any(name in ("kernel", "embedding", "a", "b") for name in names)

    return jax.tree_util.tree_map_with_path(one, params)

"""AdamW with clipping by the global norm, and the learning rate's schedules."""

import dataclasses
from typing import Any, Literal, get_args

import jax
import optax

from unix_jax.errors import ConfigError

Schedule = Literal["constant", "cosine"]


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The published recipe by default; `learning_rate`, `warmup_steps` are those of a stage.

    The rate rises linearly from `learning_rate` / `warmup_steps` over the first `warmup_steps`
    steps. Then it is constant, or falls along a half cosine to `final_fraction` of the peak at
    `total_steps`. `weight_decay` is that of AdamW and applies to kernels and embeddings only.
    `clip_norm` 0 means no clipping.
    """

    learning_rate: float = 1e-4
    warmup_steps: int = 0
    schedule: Schedule = "constant"
    total_steps: int = 0
    final_fraction: float = 0.0
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-15
    weight_decay: float = 0.0
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        if self.schedule not in get_args(Schedule):
            raise ConfigError(
                f"schedule: expected one of {get_args(Schedule)}, found {self.schedule!r}"
            )
        if self.schedule == "cosine" and self.total_steps <= self.warmup_steps:
            raise ConfigError(
                f"total_steps: expected more than warmup_steps {self.warmup_steps} "
                f"for a cosine schedule, found {self.total_steps}"
            )
        for name in ("learning_rate", "warmup_steps", "weight_decay", "clip_norm"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name}: expected at least 0, found {getattr(self, name)}")


def make_schedule(config: OptimizerConfig) -> optax.Schedule:
    """Step (from 0) to learning rate."""
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

"""Optimisers by name, with clipping by the global norm, and the learning rate's schedules.

Whatever the optimiser, an update is -learning_rate * factor * (direction + weight_decay * weight).
"""

import dataclasses
from collections.abc import Iterable
from typing import Any, Literal, get_args

import jax
import optax
import optax.contrib

from unix_jax.checkpoints.leaves import is_stacked
from unix_jax.errors import ConfigError
from unix_jax.training.parameter_groups import check_matches, compiled

Schedule = Literal["constant", "cosine", "linear", "warmup-stable-decay"]
Optimizer = Literal["adamw", "lion", "adafactor", "muon"]

# The settings that each optimiser reads in addition to learning rate, weight decay and clipping.
_READ: dict[Optimizer, tuple[str, ...]] = {
    "adamw": ("b1", "b2", "eps"),
    "lion": ("b1", "b2"),
    "adafactor": (),
    "muon": ("b1", "b2", "eps"),
}
# Root mean square of Muon's updates: that of AdamW's, whose learning rates then serve.
# Source: Liu et al. 2025, arXiv 2502.16982.
_MUON_RMS = 0.2


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The optimiser and its schedule, as in the published recipe by default."""

    learning_rate: float = 1e-4
    """Peak of the learning rate."""
    warmup_steps: int = 0
    """Steps of the linear rise from learning_rate / warmup_steps to the peak."""
    schedule: Schedule = "constant"
    """Learning rate after the warm-up, over the length of the run. constant: the peak; cosine or
    linear: falls to final_fraction of the peak; warmup-stable-decay: the peak, then a linear fall
    over the last decay_fraction of the steps."""
    final_fraction: float = 0.0
    """Learning rate after the last step, as a fraction of the peak; not read by constant."""
    decay_fraction: float = 0.1
    """Fraction of the steps in which warmup-stable-decay lowers the learning rate."""
    b1: float = 0.9
    """Decay of the first moment of the gradients; not read by adafactor."""
    b2: float = 0.95
    """Decay of the second moment of the gradients, of lion's only moment; not read by adafactor."""
    eps: float = 1e-15
    """Added to the root of the second moment; read by adamw and muon."""
    weight_decay: float = 0.0
    """Decoupled weight decay of the parameters that weight_decay_on matches."""
    clip_norm: float = 1.0
    """Largest norm of all gradients together; 0 does not clip."""
    name: Optimizer = "adamw"
    """Optimiser, from optax. muon trains the kernels of stacked layers, and AdamW with Nesterov's
    momentum the rest."""
    weight_decay_on: str = "(kernel|embedding|a|b)"
    """Pattern over the names of trained parameters that weight decay applies to, as trainable."""
    learning_rate_factors: tuple[tuple[str, float], ...] = ()
    """Pairs of a pattern, as trainable, and a factor of the learning rate: "vision/.*" 0.1. The
    first pattern that matches a parameter holds; the factor of others is 1."""

    def __post_init__(self) -> None:
        for field, allowed in (("schedule", get_args(Schedule)), ("name", get_args(Optimizer))):
            if getattr(self, field) not in allowed:
                raise ConfigError(
                    f"{field}: expected one of {allowed}, found {getattr(self, field)!r}"
                )
        for field in ("learning_rate", "warmup_steps", "weight_decay", "clip_norm"):
            if not getattr(self, field) >= 0:
                raise ConfigError(f"{field}: expected at least 0, found {getattr(self, field)}")
        for field in ("final_fraction", "decay_fraction"):
            if not 0 <= getattr(self, field) <= 1:
                raise ConfigError(f"{field}: expected 0 to 1, found {getattr(self, field)}")
        compiled(self.weight_decay_on, "optimizer.weight_decay_on")
        for pattern, factor in self.learning_rate_factors:
            compiled(pattern, "optimizer.learning_rate_factors")
            if not factor > 0:
                raise ConfigError(
                    f"learning_rate_factors: expected factors above 0 (trainable says what is "
                    f"frozen), found {factor} for {pattern!r}"
                )

    def unread(self) -> list[tuple[str, str]]:
        """(field, why) of the fields that these settings do not read."""
        found = [
            (field, f"by the optimiser {self.name}")
            for field in ("b1", "b2", "eps")
            if field not in _READ[self.name]
        ]
        if self.schedule == "constant":
            found.append(("final_fraction", "by the schedule constant"))
        if self.schedule != "warmup-stable-decay":
            found.append(("decay_fraction", f"by the schedule {self.schedule}"))
        if not self.weight_decay:
            found.append(("weight_decay_on", "without weight_decay"))
        return found

    def check_names(self, names: Iterable[str]) -> None:
        """Refuses settings that match none of the trained parameters.

        Raises:
          ConfigError: a pattern that matches nothing, or muon without a kernel to train.
        """
        names = list(names)
        if self.weight_decay:
            check_matches(self.weight_decay_on, names, "optimizer.weight_decay_on")
        for pattern, _ in self.learning_rate_factors:
            check_matches(pattern, names, "optimizer.learning_rate_factors")
        if self.name == "muon" and not any(map(_is_matrix, names)):
            raise ConfigError(
                "optimizer.name: expected kernels of stacked layers to train with muon, found "
                "none among the trained parameters; use adamw, also for the adapters of LoRA"
            )


def make_schedule(config: OptimizerConfig, total_steps: int | None = None) -> optax.Schedule:
    """Step (from 0) to learning rate.

    Args:
      total_steps: length of the run; not needed for a constant one.

    Raises:
      ConfigError: a schedule that would end within the warm-up.
    """
    peak, warmup = config.learning_rate, config.warmup_steps
    after: optax.Schedule = optax.constant_schedule(peak)
    if config.schedule != "constant":
        if total_steps is None or total_steps <= warmup:
            raise ConfigError(
                f"total_steps: expected more than warmup_steps {warmup} for the schedule "
                f"{config.schedule}, found {total_steps}"
            )
        rest, last = total_steps - warmup, peak * config.final_fraction
        if config.schedule == "cosine":
            after = optax.cosine_decay_schedule(peak, rest, alpha=config.final_fraction)
        elif config.schedule == "linear":
            after = optax.linear_schedule(peak, last, rest)
        else:
            falling = min(round(config.decay_fraction * total_steps), rest)
            if falling:
                after = optax.linear_schedule(peak, last, falling, rest - falling)
    if not warmup:
        return after
    # The ramp starts one step above zero, so that step 0 has a learning rate.
    ramp = optax.linear_schedule(peak / warmup, peak, warmup - 1) if warmup > 1 else after
    return optax.join_schedules([ramp, after], [warmup])


def make_optimizer(
    config: OptimizerConfig, total_steps: int | None = None
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """(the optimiser, its schedule over `total_steps`)."""
    schedule = make_schedule(config, total_steps)
    optimizer = _scaled(_optimizer(config, schedule), config.learning_rate_factors)
    if not config.clip_norm:
        return optimizer, schedule
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), optimizer), schedule


def _optimizer(config: OptimizerConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    c, decay = config, config.weight_decay
    pattern = compiled(c.weight_decay_on, "optimizer.weight_decay_on")

    def decayed(params: Any) -> Any:
        return _by_name(lambda name, _: pattern.fullmatch(name) is not None, params)

    if c.name == "adamw":
        return optax.adamw(schedule, c.b1, c.b2, c.eps, weight_decay=decay, mask=decayed)
    if c.name == "lion":
        return optax.lion(schedule, c.b1, c.b2, weight_decay=decay, mask=decayed)
    if c.name == "adafactor":
        directions = [optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0)]
    else:
        muon = optax.contrib.muon(
            1.0, eps=c.eps, adam_b1=c.b1, adam_b2=c.b2, consistent_rms=_MUON_RMS,
            muon_weight_dimension_numbers=_matrices,
        )  # fmt: skip
        directions = [muon, optax.scale(-1.0)]
    return optax.chain(
        *directions,
        optax.add_decayed_weights(decay, decayed),
        optax.scale_by_learning_rate(schedule),
    )


def _scaled(
    optimizer: optax.GradientTransformation, factors: tuple[tuple[str, float], ...]
) -> optax.GradientTransformation:
    """The optimiser with its updates multiplied by a factor per name; its state is unchanged."""
    if not factors:
        return optimizer
    patterns = [(compiled(p, "optimizer.learning_rate_factors"), factor) for p, factor in factors]

    def one(name: str, update: Any) -> Any:
        matching = (factor for pattern, factor in patterns if pattern.fullmatch(name))
        return update * next(matching, 1.0)

    def update(gradients: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, state = optimizer.update(gradients, state, params)
        return _by_name(one, updates), state

    return optax.GradientTransformation(optimizer.init, update)


def _is_matrix(name: str) -> bool:
    """Whether a parameter is a stack of matrices between hidden states."""
    return is_stacked(name) and name.endswith("/kernel")


def _matrices(params: Any) -> Any:
    """For Muon: the axes of a parameter that form a matrix, or None."""
    of_stack = optax.contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=2)
    return _by_name(lambda name, x: of_stack if _is_matrix(name) and x.ndim == 3 else None, params)


def _by_name(function: Any, params: Any) -> Any:
    """`function(name, leaf)` of every leaf of nested dictionaries."""

    def one(path: Any, leaf: Any) -> Any:
        names = [str(key.key) for key in path if isinstance(key, jax.tree_util.DictKey)]
        return function("/".join(names), leaf)

    return jax.tree_util.tree_map_with_path(one, params)

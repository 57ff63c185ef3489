"""Which settings may change when a run resumes: one table, and the comparison by it."""

import dataclasses
import enum
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from unix_jax.errors import ConfigError
from unix_jax.training.config import TrainConfig


class Rule(enum.Enum):
    """What another value means for a run that resumes.

    FIXED: would change the function or the trained state: refused.
    ORIGIN: was read once, at the start, and is kept in the run: another value is refused, none is
      accepted.
    SWITCH: may change, but not from or to nothing (0, None), which adds arrays to the state.
    RECORDED: may change; said, and written to the run's history.
    FREE: does not change the numbers, except by rounding.
    """

    FIXED = enum.auto()
    ORIGIN = enum.auto()
    SWITCH = enum.auto()
    RECORDED = enum.auto()
    FREE = enum.auto()


_FIELDS: dict[Rule, tuple[str, ...]] = {
    Rule.FIXED: (
        "stage", "seed", "use_lora", "model.preset", "model.frozen_dtype",
        "lora.rank", "lora.alpha", "lora.targets", "lora.streams",
        "losses.repa_layer", "repa.image_size", "repa.hidden_size", "data.task",
    ),
    Rule.ORIGIN: ("init", "rad_dino", "model.tokenizer", "data.prompts"),
    Rule.SWITCH: ("ema_decay", "losses.repa_weight", "optimizer.clip_norm"),
    Rule.RECORDED: (
        "total_steps", "model.dtype",
        "optimizer.learning_rate", "optimizer.warmup_steps", "optimizer.schedule",
        "optimizer.total_steps", "optimizer.final_fraction", "optimizer.b1", "optimizer.b2",
        "optimizer.eps", "optimizer.weight_decay",
        "losses.ce_weight", "losses.mse_weight",
        "autoencoder.kl_weight", "autoencoder.mse_weight", "autoencoder.perceptual_weight",
        "autoencoder.crop", "autoencoder.crop_steps", "export",
        "data.source", "data.split", "data.caption_dropout", "data.condition_dropout", "data.rows",
        "data.augmentation.shift", "data.augmentation.scale", "data.augmentation.rotation",
        "data.augmentation.contrast", "data.augmentation.noise",
        "data.und_tokens", "data.vit_images", "data.vae_images", "data.vae_height",
        "data.vae_width", "data.vae_padding", "data.moments", "data.ce_weighting", "data.shuffle",
        "data.epochs", "data.open_rows",
        "validation.split", "validation.source", "validation.batches",
    ),
    Rule.FREE: (
        "model.attention", "model.remat", "model.unroll", "losses.ce_chunk", "accumulation", "mesh",
        # The run's seed is used in the place of that of its data.
        "data.seed", "data.max_broken_fraction", "data.broken_after", "data.threads",
        "data.prefetch",
        "distributed.coordinator", "distributed.num_processes", "distributed.process_id",
        "checkpoint_every", "log_every", "validate_every", "preview_every",
        "checkpoints.keep_last", "checkpoints.keep_best",
        "previews.count", "previews.prompts", "previews.num_steps", "previews.max_new_tokens",
        "logging.tensorboard", "logging.wandb_project", "logging.profile_start",
        "logging.profile_steps",
    ),
}  # fmt: skip
RULES: dict[str, Rule] = {name: rule for rule, names in _FIELDS.items() for name in names}


@dataclasses.dataclass(frozen=True)
class Change:
    """Another value of a setting (its dotted name) than before."""

    option: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.option}: {self.old!r} -> {self.new!r}"


def settings(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of every field of `TrainConfig.to_dict`, or of its JSON."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from settings(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def changes(
    recorded: Mapping[str, Any], config: TrainConfig, run: Path, started_in: Path | None
) -> list[Change]:
    """What differs from the `recorded` configuration and is neither refused nor free.

    A field that `recorded` lacks is newer than the run, and is not compared.

    Args:
      recorded: `config` of run.json.
      config: with which the run resumes.
      run: the run's directory, for errors.
      started_in: working directory of the run's start, for relative paths; None: not known.

    Raises:
      ConfigError: a change that a run cannot resume with; names all of them with both values.
    """
    before = dict(settings(recorded))
    refused, accepted = [], []
    for name, new in settings(json.loads(json.dumps(config.to_dict()))):
        rule = RULES[name]
        if name not in before or rule is Rule.FREE or before[name] == new:
            continue
        change = Change(name, before[name], new)
        if rule is Rule.ORIGIN:
            if new and not _same_path(before[name], new, started_in):
                refused.append(change)
        elif rule is Rule.FIXED or (rule is Rule.SWITCH and bool(before[name]) != bool(new)):
            refused.append(change)
        else:
            accepted.append(change)
    if refused:
        found = "; ".join(f"{c.option}: expected {c.old!r}, found {c.new!r}" for c in refused)
        raise ConfigError(
            f"{found}. The run in {run} was started with the expected values, and resumes with no "
            "others; for other values name another --out"
        )
    return accepted


def _same_path(old: Any, new: Any, started_in: Path | None) -> bool:
    if not isinstance(old, str):
        return False
    recorded = Path(old) if started_in is None else started_in / old
    return old == new or recorded.resolve() == Path(new).resolve()


def extended_history(
    history: list[dict[str, Any]], step: int, found: list[Change], time: str
) -> list[dict[str, Any]]:
    """`history` with the changes from `step` on.

    Entries of later steps took place in steps that are repeated now: they hold from `step` on.
    """
    kept = [entry | {"step": min(entry["step"], step)} for entry in history]
    return kept + [
        {"step": step, "option": c.option, "old": c.old, "new": c.new, "time": time} for c in found
    ]

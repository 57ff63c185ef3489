"""Which settings may change when a run resumes: one table, and the comparison by it."""

import dataclasses
import enum
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unix_jax.errors import ConfigError
from unix_jax.training.config import TrainConfig, default_pattern, settings
from unix_jax.training.lora import LoraConfig
from unix_jax.training.optimizer import OptimizerConfig
from unix_jax.training.repa import RepaConfig


class Rule(enum.Enum):
    """What another value means for a run that resumes.

    FIXED: would change the function or the trained state: refused.
    ORIGIN: was read once, at the start, and is kept in the run: another value is refused, none is
      accepted.
    ENCODER: as ORIGIN, but none is refused too where there was one: it turns REPA off.
    SWITCH: may change, but not from or to nothing (0, None), which adds arrays to the state.
    RECORDED: may change; said, and written to the run's history.
    FREE: does not change the numbers, except by rounding.
    """

    FIXED = enum.auto()
    ORIGIN = enum.auto()
    ENCODER = enum.auto()
    SWITCH = enum.auto()
    RECORDED = enum.auto()
    FREE = enum.auto()


_FIELDS: dict[Rule, tuple[str, ...]] = {
    Rule.FIXED: (
        "stage", "seed", "trainable", "optimizer.name", "model.preset", "model.frozen_dtype",
        "lora.rank", "lora.alpha", "lora.targets", "lora.streams",
        "repa.layer", "repa.image_size", "repa.hidden_size", "data.task",
    ),
    Rule.ORIGIN: ("init", "model.tokenizer", "data.prompts"),
    Rule.ENCODER: ("repa.encoder",),
    Rule.SWITCH: ("ema_decay", "optimizer.clip_norm"),
    Rule.RECORDED: (
        "total_steps", "total_epochs", "total_samples", "model.dtype", "repa.weight",
        "optimizer.learning_rate", "optimizer.warmup_steps", "optimizer.schedule",
        "optimizer.decay_fraction", "optimizer.final_fraction", "optimizer.b1", "optimizer.b2",
        "optimizer.eps", "optimizer.weight_decay", "optimizer.weight_decay_on",
        "optimizer.learning_rate_factors",
        "losses.ce_weight", "losses.mse_weight",
        "autoencoder.kl_weight", "autoencoder.mse_weight", "autoencoder.perceptual_weight",
        "autoencoder.crop", "autoencoder.crop_steps", "export",
        "data.source", "data.split", "data.caption_dropout", "data.condition_dropout", "data.rows",
        "data.augmentation.shift", "data.augmentation.scale", "data.augmentation.rotation",
        "data.augmentation.contrast", "data.augmentation.noise", "data.augmentation.unchanged",
        "data.und_tokens", "data.text_tokens", "data.vit_images", "data.vae_images",
        "data.vae_height", "data.vae_width", "data.vae_padding",
        "data.jpeg_draft", "data.grayscale",
        "data.moments", "data.ce_weighting", "data.shuffle", "data.epochs", "data.open_rows",
        "validation.split", "validation.source", "validation.batches",
    ),
    Rule.FREE: (
        "model.attention", "model.remat", "model.unroll", "losses.ce_chunk", "accumulation", "mesh",
        # The seed of the run replaces the seed of its data.
        "data.seed", "data.max_broken_fraction", "data.broken_after", "data.threads",
        "data.prefetch",
        "distributed.coordinator", "distributed.num_processes", "distributed.process_id",
        "checkpoint_every", "log_every", "validate_every", "preview_every",
        "checkpoints.keep_last", "checkpoints.keep_best",
        "previews.count", "previews.prompts", "previews.num_steps", "previews.max_new_tokens",
        "evals.reports.every", "evals.reports.count", "evals.reports.max_new_tokens",
        "evals.reports.chexbert", "evals.images.every", "evals.images.count",
        "evals.images.num_inference_steps", "evals.images.rad_dino",
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


def upgraded(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """The `config` of a run.json of any version, with the settings of this one.

    Earlier versions had `use_lora`, `rad_dino`, and the weight and the layer of REPA among the
    losses; AdamW was their only optimiser, and a stage trained what it trains by default.
    """
    config: dict[str, Any] = json.loads(json.dumps(recorded))
    optimizer = config.get("optimizer", {})
    for name in ("name", "weight_decay_on", "learning_rate_factors", "decay_fraction"):
        default = json.loads(json.dumps(getattr(OptimizerConfig(), name)))
        optimizer.setdefault(name, default)
    optimizer.pop("total_steps", None)
    if (pattern := default_pattern(config.get("stage"))) is not None:
        config.setdefault("trainable", pattern)
    if not config.pop("use_lora", True):
        config["lora"] = json.loads(json.dumps(dataclasses.asdict(LoraConfig())))
    losses, encoder = config.get("losses", {}), config.pop("rad_dino", None)
    if "repa_weight" in losses:
        weight, layer = losses.pop("repa_weight"), losses.pop("repa_layer", RepaConfig().layer)
        repa = config.setdefault("repa", {})
        if weight and encoder is not None:
            repa |= {"encoder": encoder, "weight": weight, "layer": layer}
        else:
            config["repa"] = dataclasses.asdict(RepaConfig())
    return config


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
    before = dict(settings(upgraded(recorded)))
    refused, accepted = [], []
    for name, new in settings(json.loads(json.dumps(config.to_dict()))):
        rule = RULES[name]
        if name not in before or rule is Rule.FREE or before[name] == new:
            continue
        change = Change(name, before[name], new)
        if rule in (Rule.ORIGIN, Rule.ENCODER):
            if (new or rule is Rule.ENCODER) and not _same_path(before[name], new, started_in):
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
    if not isinstance(old, str) or not isinstance(new, str):
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

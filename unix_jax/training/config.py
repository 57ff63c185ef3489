"""`TrainConfig`: everything that decides a run, read from a file and a command line.

A configuration is a Python file whose last statement is `config = TrainConfig(...)`; every field
has an option of the command line, such as `--optimizer.learning-rate 1e-4`.
"""

import dataclasses
import os
import re
import runpy
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from unix_jax.config import PRESETS, Backbone, TransformerStream, UNetBackbone
from unix_jax.data.config import DataConfig
from unix_jax.data.mixture import TASKS, Task, parse_mixture
from unix_jax.errors import ConfigError
from unix_jax.models.attention import Implementation
from unix_jax.models.remat import RematPolicy
from unix_jax.storage import bundled
from unix_jax.storage.arguments import AnyPath, LocalPath
from unix_jax.storage.bucket_path import any_path
from unix_jax.storage.hub import path_or_name
from unix_jax.storage.paths import local_path, source_text
from unix_jax.training import parameter_groups
from unix_jax.training.autoencoder import AutoencoderObjective
from unix_jax.training.lora import LoraConfig
from unix_jax.training.losses import LossConfig
from unix_jax.training.optimizer import OptimizerConfig
from unix_jax.training.repa import RepaConfig

Stage = Literal["understanding", "generation", "joint", "autoencoder"]
Precision = Literal["auto", "bfloat16", "float32"]
Weights = Literal["raw", "average"]
DEFAULT_EMA_DECAY = 0.9999
LENGTHS = ("total_steps", "total_epochs", "total_samples")
_STAGE_TASKS: dict[Stage, tuple[Task, ...]] = {
    "understanding": ("understanding",),
    "generation": ("generation", "edit"),
    "joint": TASKS,
    "autoencoder": ("generation",),
}
# The trained parameters of each stage by default.
_STAGE_TRAINABLE: dict[Stage, str] = {
    "understanding": parameter_groups.UNDERSTANDING,
    "generation": parameter_groups.GENERATION,
    "joint": parameter_groups.JOINT,
    "autoencoder": ".*",
}


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The model where a run starts without `--init`, and how it is computed."""

    preset: str = "published"
    """Sizes, see `unix_jax.config.PRESETS`; with --init those of the checkpoint."""
    tokenizer: str | None = None
    """Directory or file of the tokenizer; with --init that of the checkpoint unless given."""
    dtype: Precision = "auto"
    """Type of the computation; auto: bfloat16 on accelerators, float32 on a CPU. Master weights are
    float32."""
    frozen_dtype: Precision = "auto"
    """Type in which frozen weights are held; auto: as dtype."""
    attention: Implementation = "auto"
    """Implementation of attention."""
    remat: RematPolicy = "full"
    """What the backward pass computes again: all of a layer (full), all but attention and its input
    (attention), all but products (products), or nothing (none). docs/training.md lists each."""
    unroll: int = 1
    """Layers in one iteration of the loop over them. With all of them there is no loop: no copies
    into and out of its stacks, and a longer compilation."""
    generation: Backbone = dataclasses.field(default_factory=TransformerStream)
    """Backbone that the stage generation trains: UniX's own, or a U-Net with these sizes. A U-Net
    replaces the gen stream of the checkpoint that the run starts from."""


@dataclasses.dataclass(frozen=True)
class ValidationConfig:
    """The losses on held-out samples, with the trained weights and with their average."""

    split: str = "validate"
    """Split that the losses are computed on."""
    source: str | None = None
    """Source of that split; that of the training data if absent."""
    batches: int = 8
    """Largest number of batches; the same ones every time."""


@dataclasses.dataclass(frozen=True)
class PreviewConfig:
    """Reports or images made at intervals, from the weights that are exported."""

    count: int = 4
    """Number of reports or images."""
    prompts: tuple[str, ...] = ()
    """Texts to generate images from; the first captions of the validation split if empty."""
    num_steps: int = 50
    """Points of the time grid of generated images."""
    max_new_tokens: int = 128
    """Largest length of reports in tokens."""


@dataclasses.dataclass(frozen=True)
class ReportEvalConfig:
    """BLEU and ROUGE-L of generated reports, and the F1 of their findings."""

    every: int = 0
    """Number of steps between evaluations; 0: none."""
    count: int = 32
    """Number of held-out records."""
    max_new_tokens: int = 128
    """Largest length of reports in tokens."""
    chexbert: str | None = None
    """CheXbert's weights or their directory, or a name on the Hugging Face hub, for the F1 of
    findings; left out if absent."""


@dataclasses.dataclass(frozen=True)
class ImageEvalConfig:
    """Distances of generated images from held-out ones, in RAD-DINO's features."""

    every: int = 0
    """Number of steps between evaluations; 0: none."""
    count: int = 32
    """Number of held-out records."""
    num_inference_steps: int = 49
    """Number of steps of generated images."""
    rad_dino: str | None = None
    """Directory of RAD-DINO, or microsoft/rad-dino to download it."""


EVALUATIONS = ("reports", "images")


@dataclasses.dataclass(frozen=True)
class EvalsConfig:
    """Metrics of what the exported weights generate for records of the validation split."""

    reports: ReportEvalConfig = ReportEvalConfig()
    images: ImageEvalConfig = ImageEvalConfig()

    def __post_init__(self) -> None:
        for name in EVALUATIONS:
            settings = getattr(self, name)
            for field, least in (("every", 0), ("count", 2)):
                if getattr(settings, field) < least:
                    raise ConfigError(
                        f"evals.{name}.{field}: expected at least {least}, "
                        f"found {getattr(settings, field)}"
                    )
        if self.images.every and self.images.rad_dino is None:
            raise ConfigError(
                "evals.images.rad_dino: expected the directory of microsoft/rad-dino, found none"
            )

    @property
    def any(self) -> bool:
        """Whether anything is evaluated."""
        return bool(self.reports.every or self.images.every)


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """Which checkpoints are kept."""

    keep_last: int = 2
    """Number of the newest checkpoints."""
    keep_best: int = 1
    """Number of the best checkpoints besides, by the validation loss of the weights that are
    exported, among the steps that were validated."""


@dataclasses.dataclass(frozen=True)
class LoggingConfig:
    """Where numbers go besides metrics.jsonl."""

    tensorboard: bool = True
    """Event files in DIR/tensorboard."""
    wandb_project: str | None = None
    """Project of Weights & Biases; needs the package wandb."""
    profile_start: int | None = None
    """First step of a profiler trace in DIR/profile."""
    profile_steps: int = 3
    """Steps in the trace."""


@dataclasses.dataclass(frozen=True)
class DistributedConfig:
    """Several processes. Nothing is needed on TPU pods and under SLURM."""

    coordinator: str | None = None
    """host:port of process 0."""
    num_processes: int | None = None
    """Number of processes."""
    process_id: int | None = None
    """Index of this process, from 0."""


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """One run. Steps are optimiser steps."""

    stage: Stage
    """What is trained: one stream, both of them (joint), or the autoencoder."""
    data: DataConfig
    """Samples and rows; its seed is the run's."""
    total_steps: int | None = None
    """Length of the run in steps. Exactly one of total_steps, total_epochs and total_samples is
    given; one on the command line replaces that of the file."""
    total_epochs: int | None = None
    """Length of the run in passes over the data; of a mixture, over each part."""
    total_samples: int | None = None
    """Length of the run in samples; the step that reaches this number is the last."""
    trainable: str | None = None
    """Regular expression over the names of the parameters that are trained; it matches a whole name
    or its end from a "/" on, as in "(gen|llm2vae)/.*". What the stage trains, if absent. The
    autoencoder, RAD-DINO and the position table are frozen whatever it says."""
    model: ModelConfig = ModelConfig()
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    losses: LossConfig = dataclasses.field(default_factory=LossConfig)
    autoencoder: AutoencoderObjective = dataclasses.field(default_factory=AutoencoderObjective)
    lora: LoraConfig = dataclasses.field(default_factory=LoraConfig)
    repa: RepaConfig = dataclasses.field(default_factory=RepaConfig)
    ema_decay: float | Literal["auto"] | None = "auto"
    """Decay of the average of trained weights; in step s at most (1 + s) / (10 + s). None keeps no
    average. auto: 0.9999, and none with adapters."""
    export: Literal["auto", "raw", "average"] = "auto"
    """Weights that are exported and shown in previews, and whose validation loss decides which
    checkpoint is the best: those of the last step (raw) or their average. auto: the average where
    there is one, except that the raw weights are exported where the average's last validation
    loss is more than 5 % higher than theirs."""
    accumulation: int = 1
    """Parts that a batch is computed in, one after the other, in training and validation."""

    seed: int = 0
    """Seed of initial weights, order of data, and noise."""
    init: str | None = None
    """Checkpoint to start from: a converted one, a published directory, or that of a run; or a name
    on the Hugging Face hub, OWNER/NAME or OWNER/NAME@REVISION."""
    mesh: str | None = None
    """For example data=1,fsdp=8,tensor=1; all devices along fsdp if absent."""
    distributed: DistributedConfig = DistributedConfig()

    checkpoint_every: int = 500
    """Number of steps between checkpoints."""
    log_every: int = 10
    """Number of steps between lines of metrics.jsonl, whose numbers are means over them."""
    validate_every: int = 0
    """Number of steps between validations; 0: none."""
    preview_every: int = 0
    """Number of steps between previews; 0: none."""
    checkpoints: CheckpointConfig = CheckpointConfig()
    validation: ValidationConfig = ValidationConfig()
    previews: PreviewConfig = PreviewConfig()
    evals: EvalsConfig = EvalsConfig()
    logging: LoggingConfig = LoggingConfig()

    def __post_init__(self) -> None:
        def require(holds: bool, field: str, expected: str) -> None:
            if not holds:
                raise ConfigError(f"{field}: expected {expected}, found {getattr(self, field)!r}")

        for name, path in (
            ("init", self.init), ("repa.encoder", self.repa.encoder),
            ("evals.reports.chexbert", self.evals.reports.chexbert),
            ("evals.images.rad_dino", self.evals.images.rad_dino),
        ):  # fmt: skip
            if path is not None:
                path_or_name(path, name)
        if self.model.tokenizer is not None:
            any_path(self.model.tokenizer, "model.tokenizer")
        if self.validation.source is not None:
            source_text(self.validation.source, "validation.source")
            parts = parse_mixture(self.validation.source, self.data.task, "validation.source")
            for task in {part.task for part in parts} - set(_STAGE_TASKS[self.stage]):
                raise ConfigError(
                    f"validation.source: expected a task of the stage {self.stage} "
                    f"({', '.join(_STAGE_TASKS[self.stage])}), found {task}"
                )
        given = [name for name in LENGTHS if getattr(self, name) is not None]
        if len(given) != 1:
            found = ", ".join(f"{name} {getattr(self, name)}" for name in given) or "none of them"
            raise ConfigError(f"length of the run: expected one of {LENGTHS}, found {found}")
        for field in (*given, "accumulation", "checkpoint_every", "log_every"):
            require(getattr(self, field) >= 1, field, "at least 1")
        parameter_groups.compiled(self.pattern, "trainable")
        for field in ("validate_every", "preview_every"):
            require(getattr(self, field) >= 0, field, "at least 0")
        require(0 <= self.seed < 2**32, "seed", "0 to 2**32 - 1")
        decay = self.average_decay
        require(decay is None or 0 <= decay < 1, "ema_decay", "0 to below 1, none or auto")
        if self.export == "average" and decay is None:
            raise ConfigError(
                "export: expected auto or raw where no average is kept (ema_decay is "
                f"{self.ema_decay}, lora.rank {self.lora.rank}), found 'average'"
            )
        if self.model.unroll < 1:
            raise ConfigError(f"model.unroll: expected at least 1, found {self.model.unroll}")
        if self.model.preset not in PRESETS:
            raise ConfigError(
                f"model.preset: expected one of {sorted(PRESETS)}, found {self.model.preset!r}"
            )
        self._check_tasks()
        if self.stage == "autoencoder" and self.data.vae_images != 1:
            raise ConfigError(
                "data.vae_images: expected 1 for the stage autoencoder, whose rows are images, "
                f"found {self.data.vae_images}"
            )
        if self.stage == "generation" and isinstance(self.model.generation, UNetBackbone):
            self._check_unet()

    def _check_unet(self) -> None:
        """Raises ConfigError for what the U-Net does not support."""
        unsupported = (
            ("lora.rank", self.lora.rank, 0, "adapters are of the decoder's projections"),
            ("repa.encoder", self.repa.encoder, None, "REPA reads a layer of the gen stream"),
        )
        for name, value, expected, why in unsupported:
            if value != expected:
                raise ConfigError(
                    f"{name}: expected {expected!r} with a U-Net as model.generation, since {why}, "
                    f"found {value!r}"
                )
        if "edit" in self.data.tasks:
            raise ConfigError(
                "data.task: expected 'generation' with a U-Net as model.generation, which reads "
                "texts and no condition images, found 'edit'"
            )

    def _check_tasks(self) -> None:
        """Raises ConfigError for data that the stage does not train on."""
        tasks = self.data.tasks
        found = tasks[0] if len(tasks) == 1 else list(tasks)
        if self.stage == "joint":
            if "understanding" not in tasks or len(tasks) < 2:
                raise ConfigError(
                    "data.source: expected parts of the task understanding and of generation or "
                    "edit for the stage joint, as in understanding:KIND:PATH + "
                    f"generation:KIND:PATH, found {found!r}"
                )
            return
        known = _STAGE_TASKS[self.stage]
        if any(task not in known for task in tasks):
            expected = " or ".join(map(repr, known))
            raise ConfigError(
                f"data.task: expected {expected} for the stage {self.stage}, found {found!r}"
            )
        if self.stage == "autoencoder" and len(self.data.parts) > 1:
            raise ConfigError(
                "data.source: expected one source for the stage autoencoder, "
                f"found a mixture of {len(self.data.parts)}"
            )

    def unread(self) -> list[tuple[str, Any, Any, str]]:
        """(dotted name, value, usual value, why) of each setting that this run does not read, where
        it is not its usual value.
        """
        found: list[tuple[str, Any, Any, str]] = []

        def add(name: str, default: Any, why: str) -> None:
            value: Any = self
            for part in name.split("."):
                value = getattr(value, part)
            if value != default:
                found.append((name, value, default, why))

        def add_all(group: str, default: Any, why: str) -> None:
            for field in dataclasses.fields(default):
                add(f"{group}.{field.name}", getattr(default, field.name), why)

        # Both are set elsewhere in the configuration.
        add("data.seed", 0, "in training, which takes seed")
        add("data.epochs", None, "in training, which takes total_epochs")
        stage = f"in the stage {self.stage}"
        if self.stage != "autoencoder":
            add_all("autoencoder", AutoencoderObjective(), stage)
        else:
            add("trainable", None, stage)
            for name in ("attention", "unroll", "frozen_dtype"):
                add(f"model.{name}", getattr(ModelConfig(), name), stage)
            add_all("losses", LossConfig(), stage)
        if self.stage != "generation":
            add("model.generation", TransformerStream(), stage)
        # A weight of 0 has the same effect.
        if self.stage == "understanding" and self.losses.mse_weight:
            add("losses.mse_weight", LossConfig().mse_weight, stage)
        if self.stage == "generation" and self.losses.ce_weight:
            add("losses.ce_weight", LossConfig().ce_weight, stage)
        if self.stage == "autoencoder":
            add_all("lora", LoraConfig(), stage)
        elif not self.lora.rank:
            add_all("lora", LoraConfig(), "in a run without adapters (lora.rank 0)")
        elif self.pattern != self._default_pattern:
            add("trainable", None, "in a run with adapters, which are trained instead of the model")
        if self.stage in ("understanding", "autoencoder"):
            add_all("repa", RepaConfig(), stage)
        elif not self.uses_repa:
            add_all("repa", RepaConfig(), "in a run without REPA (no repa.encoder)")
        if self.stage in ("generation", "autoencoder"):
            add_all("evals.reports", ReportEvalConfig(), stage)
        elif not self.evals.reports.every:
            add_all("evals.reports", ReportEvalConfig(), "while evals.reports.every is 0")
        if self.stage in ("understanding", "autoencoder"):
            add_all("evals.images", ImageEvalConfig(), stage)
        elif not self.evals.images.every:
            add_all("evals.images", ImageEvalConfig(), "while evals.images.every is 0")
        for field, why in self.optimizer.unread():
            add(f"optimizer.{field}", getattr(OptimizerConfig(), field), why)
        return found

    def check_used(self, before: "TrainConfig | None" = None) -> None:
        """Refuses settings that this run does not read.

        Args:
          before: the configuration of the file. What stands in it and is not read any more because
            of another option is no mistake of the command line.

        Raises:
          ConfigError: names the first one that is not its usual value.
        """
        known = set() if before is None else {
            (name, str(value)) for name, value in settings(dataclasses.asdict(before))
        }  # fmt: skip
        always = set() if before is None else {name for name, *_ in before.unread()}
        for name, value, usual, why in self.unread():
            if (name, str(value)) in known and name not in always:
                continue
            raise ConfigError(
                f"{name}: is not read {why}: expected its default {usual!r}, found {value!r}"
            )

    @property
    def pattern(self) -> str:
        """The pattern over the names of trained parameters."""
        return self._default_pattern if self.trainable is None else self.trainable

    @property
    def _default_pattern(self) -> str:
        if self.stage == "generation" and isinstance(self.model.generation, UNetBackbone):
            return parameter_groups.GENERATION_UNET
        return _STAGE_TRAINABLE[self.stage]

    @property
    def uses_repa(self) -> bool:
        """Whether latents are aligned with a frozen encoder."""
        return self.stage in ("generation", "joint") and self.repa.encoder is not None

    @property
    def average_decay(self) -> float | None:
        """The decay of the average of trained weights, None where there is none."""
        if self.ema_decay == "auto":
            # Adapters start at zero and train for few steps, so they are not averaged by default.
            return None if self.lora.rank else DEFAULT_EMA_DECAY
        return self.ema_decay

    @property
    def preferred(self) -> Weights:
        """The weights that `export` stands for, before `average.to_export` compares the losses."""
        if self.export == "auto":
            return "raw" if self.average_decay is None else "average"
        return self.export

    def to_dict(self) -> dict[str, Any]:
        """JSON, for the record: what `auto` and the stage stand for is spelled out.

        The backbone is recorded, and compared, with the sizes of the model.
        """
        values = dataclasses.asdict(self)
        del values["model"]["generation"]
        return values | {"ema_decay": self.average_decay, "trainable": self.pattern}


def default_pattern(stage: Any) -> str | None:
    """The pattern over the names of the parameters that a stage trains by default; None where there
    is no such stage."""
    return _STAGE_TRAINABLE.get(stage)


def settings(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of every field of `TrainConfig.to_dict`, or of its JSON."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from settings(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


@dataclasses.dataclass(frozen=True)
class Invocation:
    """A command line of `train.py`."""

    out: AnyPath
    """Directory of the run. If it holds checkpoints, the run resumes from the newest."""
    config: Annotated[TrainConfig, tyro.conf.arg(name="")]
    dry_run: bool = False
    """Compile the step and print the memory and time that it needs, without training."""
    topology: str | None = None
    """With --dry-run: TPU slices to compile for, such as v5e:4x4 or v5p:2x2x2, or 2xv5e:4x4 for two
    slices of 16 chips; none is needed."""
    break_lock: bool = False
    """Take the directory from a run that cannot be checked, on another machine. Use it only when
    that run has ended."""
    restart_data: bool = False
    """Accept other data than those that the run was started with: their order starts from the
    beginning, and the state and the optimiser are kept. By default other data are refused."""


def load_config(path: str | os.PathLike[str]) -> tuple[TrainConfig, str]:
    """(the `config` of a Python file, the file's docstring). The file is executed.

    Args:
      path: of the file; or the name of one of `configs/`, such as nano_understanding, which comes
        with the package. A file that exists wins.

    Raises:
      ConfigError: no such file, one that fails, or one without a `config`.
    """
    file = local_path(path)
    if not file.is_file():
        known = bundled.configurations()
        if file.stem not in known or file.parent not in (Path(), Path("configs")):
            raise ConfigError(
                f"{file}: no such file; expected a configuration such as configs/NAME.py, or one "
                f"of {', '.join(known)}"
            )
        file = known[file.stem]
    try:
        variables = runpy.run_path(str(file))
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from error
    except TypeError as error:
        if (renamed := _renamed_field(str(error))) is None:
            raise _not_executable(file, error) from error
        raise ConfigError(f"{file}: {renamed}") from error
    except Exception as error:
        raise _not_executable(file, error) from error
    config = variables.get("config")
    if not isinstance(config, TrainConfig):
        raise ConfigError(
            f"{file}: config: expected `config = TrainConfig(...)`, found {type(config).__name__}"
        )
    return config, variables.get("__doc__") or ""


def _not_executable(file: Path, error: Exception) -> ConfigError:
    detail = " ".join(str(error).split())[:200]
    return ConfigError(f"{file}: cannot be executed: {type(error).__name__}: {detail}")


# Settings of earlier versions and their replacements.
_RENAMED = {
    "use_lora": "lora.rank, which is 0 without adapters",
    "rad_dino": "repa.encoder",
    "losses.repa_weight": "repa.weight, with repa.encoder",
    "losses.repa_layer": "repa.layer",
    "optimizer.total_steps": "total_steps, total_epochs or total_samples, once for the whole run",
    "data.seed": "seed",
    "data.epochs": "total_epochs",
    "autoencoder.ema_decay": "ema_decay",
    "autoencoder.perceptual_weight": "no setting of train.py: it needs a feature encoder",
}
_CLASSES = {
    "TrainConfig": "", "LossConfig": "losses.", "OptimizerConfig": "optimizer.",
    "AutoencoderObjective": "autoencoder.",
}  # fmt: skip


def _renamed_field(message: str) -> str | None:
    """What a field is called now that a constructor does not know, None if it is not an old one."""
    found = re.match(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", message)
    if found is None or found[1] not in _CLASSES:
        return None
    name = _CLASSES[found[1]] + found[2]
    return f"{name}: is now {_RENAMED[name]}" if name in _RENAMED else None


def _renamed_option(arguments: Sequence[str]) -> str | None:
    """The first option of an earlier version, and what it is now."""
    for argument in arguments:
        option = argument.partition("=")[0].replace("_", "-")
        for name, now in _RENAMED.items():
            text = "--" + name.replace("_", "-")
            head, _, last = text.rpartition(".")
            negated = f"{head}.no-{last}" if head else text.replace("--", "--no-", 1)
            if option in (text, negated):
                return f"{option}: is now {now}"
    return None


def _length_of(config: TrainConfig, arguments: Sequence[str]) -> TrainConfig:
    """`config` with the kind of length that the command line gives, whose value stands there.

    Raises:
      ConfigError: it gives several.
    """
    options = {a.partition("=")[0].replace("_", "-") for a in arguments}
    given = [name for name in LENGTHS if f"--{name.replace('_', '-')}" in options]
    if len(given) > 1:
        raise ConfigError(f"length of the run: expected one of {LENGTHS}, found {given}")
    if not given:
        return config
    lengths: dict[str, Any] = {name: 1 if name in given else None for name in LENGTHS}
    return dataclasses.replace(config, **lengths)


# The options that users change most, in the order of the help.
_MOST_USED = {
    "init": "checkpoint to start from",
    "data.source": "records to train on",
    "total_steps": "length of the run; or --total-epochs, --total-samples",
    "optimizer.learning_rate": "peak of the learning rate",
    "data.rows": "packed rows of a step",
    "accumulation": "parts that a step is computed in, which takes less memory",
    "mesh": "how devices share the work",
    "trainable": "which parameters are trained",
    "lora.rank": "rank of adapters; 0 for none",
    "validate_every": "steps between validations",
}


def _most_used(config: TrainConfig) -> str:
    """The options that users change most, with their values, for the first screen of the help."""
    values = dict(settings(config.to_dict()))
    lines = ["Most used options, with their values here. All options follow in groups.", ""]
    for name, text in _MOST_USED.items():
        option = f"--{name.replace('_', '-')} {values[name]}"
        lines.append(f"    {option:<40}  {text}")
    return "\n".join(lines)


_CONFIG_PATH = Annotated[LocalPath, tyro.conf.Positional, tyro.conf.arg(metavar="CONFIG")]


def parse_arguments(arguments: Sequence[str]) -> Invocation:
    """Reads `CONFIG --out DIR [overrides]` or `CONFIG --dry-run [--topology T] [overrides]`.

    Raises:
      ConfigError: the file or a value in it. SystemExit: usage.
    """
    if not arguments or arguments[0].startswith("-"):
        # Shows the form of a command line; the options depend on the configuration file.
        tyro.cli(
            _usage,
            prog="train.py",
            description="Train UniX. `unix-jax train CONFIG --help` lists all options.\n\n"
            "For example:\n"
            "    unix-jax train configs/nano_generation.py --out runs/nano\n"
            "    unix-jax train configs/nano_generation.py --out runs/nano --total-steps 100\n"
            "    unix-jax train configs/nano_generation.py --dry-run",
            args=list(arguments),
        )
        raise ConfigError(f"CONFIG: expected a configuration file first, found {arguments[0]!r}")
    path, *rest = arguments
    if (renamed := _renamed_option(rest)) is not None:
        print(f"error: {renamed}", file=sys.stderr)
        raise SystemExit(2)
    config, docstring = load_config(path)
    # A dry run writes nothing.
    out = Path() if "--dry-run" in rest else tyro.MISSING
    invocation = tyro.cli(
        tyro.conf.AvoidSubcommands[Invocation],
        prog=f"train.py {path}",
        description=f"{docstring}\n{_most_used(config)}",
        default=Invocation(out, _length_of(config, rest)),
        args=rest,
    )
    invocation.config.check_used(config)
    if invocation.topology is not None and not invocation.dry_run:
        raise ConfigError(f"topology: expected --dry-run with it, found {invocation.topology!r}")
    return invocation


def _usage(config: _CONFIG_PATH, /, out: AnyPath) -> None:
    """CONFIG: a file such as configs/nano_generation.py. out: directory of the run."""

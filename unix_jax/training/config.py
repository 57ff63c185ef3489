"""`TrainConfig`: everything that decides a run, read from a file and a command line.

A configuration is a Python file whose last statement is `config = TrainConfig(...)`; every field
has an option of the command line, such as `--optimizer.learning-rate 1e-4`.
"""

import dataclasses
import os
import runpy
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from unix_jax.config import PRESETS
from unix_jax.data.config import DataConfig
from unix_jax.data.mixture import TASKS, Task, parse_mixture
from unix_jax.errors import ConfigError
from unix_jax.models.attention import Implementation
from unix_jax.models.remat import RematPolicy
from unix_jax.storage import bundled
from unix_jax.storage.arguments import LocalPath
from unix_jax.storage.hub import path_or_name
from unix_jax.storage.paths import local_path, source_text
from unix_jax.training.autoencoder import AutoencoderObjective
from unix_jax.training.lora import LoraConfig
from unix_jax.training.losses import LossConfig
from unix_jax.training.optimizer import OptimizerConfig
from unix_jax.training.repa import RepaConfig

Stage = Literal["understanding", "generation", "joint", "autoencoder"]
Precision = Literal["auto", "bfloat16", "float32"]
Weights = Literal["raw", "average"]
DEFAULT_EMA_DECAY = 0.9999
_STAGE_TASKS: dict[Stage, tuple[Task, ...]] = {
    "understanding": ("understanding",),
    "generation": ("generation", "edit"),
    "joint": TASKS,
    "autoencoder": ("generation",),
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
    """What the backward pass recomputes."""
    unroll: int = 1
    """Layers in one iteration of the loop over them. With all of them there is no loop: no copies
    into and out of its stacks, and a longer compilation."""


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
    total_steps: int
    """Length of the run."""
    model: ModelConfig = ModelConfig()
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    """The schedule's length is total_steps."""
    losses: LossConfig = dataclasses.field(default_factory=LossConfig)
    autoencoder: AutoencoderObjective = dataclasses.field(default_factory=AutoencoderObjective)
    """Of the stage autoencoder."""
    lora: LoraConfig = dataclasses.field(default_factory=LoraConfig)
    use_lora: bool = False
    """Train low-rank additions to the decoder's weights instead of them."""
    repa: RepaConfig = dataclasses.field(default_factory=RepaConfig)
    rad_dino: str | None = None
    """Directory of RAD-DINO, or microsoft/rad-dino to download it, needed where losses.repa_weight
    is above 0."""
    ema_decay: float | Literal["auto"] | None = "auto"
    """Decay of the average of trained weights; in step s at most (1 + s) / (10 + s). None keeps no
    average. auto: 0.9999, and none with use_lora."""
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
    logging: LoggingConfig = LoggingConfig()

    def __post_init__(self) -> None:
        def require(holds: bool, field: str, expected: str) -> None:
            if not holds:
                raise ConfigError(f"{field}: expected {expected}, found {getattr(self, field)!r}")

        for name, path in (("init", self.init), ("rad_dino", self.rad_dino)):
            if path is not None:
                path_or_name(path, name)
        if self.model.tokenizer is not None:
            local_path(self.model.tokenizer, "model.tokenizer")
        if self.validation.source is not None:
            source_text(self.validation.source, "validation.source")
            parts = parse_mixture(self.validation.source, self.data.task, "validation.source")
            for task in {part.task for part in parts} - set(_STAGE_TASKS[self.stage]):
                raise ConfigError(
                    f"validation.source: expected a task of the stage {self.stage} "
                    f"({', '.join(_STAGE_TASKS[self.stage])}), found {task}"
                )
        for field in ("total_steps", "accumulation", "checkpoint_every", "log_every"):
            require(getattr(self, field) >= 1, field, "at least 1")
        for field in ("validate_every", "preview_every"):
            require(getattr(self, field) >= 0, field, "at least 0")
        require(0 <= self.seed < 2**32, "seed", "0 to 2**32 - 1")
        decay = self.average_decay
        require(decay is None or 0 <= decay < 1, "ema_decay", "0 to below 1, none or auto")
        if self.export == "average" and decay is None:
            raise ConfigError(
                "export: expected auto or raw where no average is kept (ema_decay is "
                f"{self.ema_decay}, use_lora {self.use_lora}), found 'average'"
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
        if self.uses_repa and self.rad_dino is None:
            raise ConfigError(
                "rad_dino: expected the directory of microsoft/rad-dino, since "
                f"losses.repa_weight is {self.losses.repa_weight}; found none"
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

    def check_used(self) -> None:
        """Refuses settings that this run does not read.

        Raises:
          ConfigError: names the first one that is not its default.
        """
        unused: list[tuple[str, Any, Any, str]] = []
        if self.stage != "autoencoder":
            default = AutoencoderObjective()
            unused.append(("autoencoder", self.autoencoder, default, f"the stage {self.stage}"))
        if not self.use_lora:
            unused.append(("lora", self.lora, LoraConfig(), "a run without use_lora"))
        if not self.uses_repa:
            where = "a run without REPA (losses.repa_weight 0, or another stage than generation)"
            unused.append(("repa", self.repa, RepaConfig(), where))
            if self.rad_dino is not None:
                raise ConfigError(f"rad_dino: is not read in {where}; found {self.rad_dino!r}")
        if self.stage == "autoencoder" and self.use_lora:
            raise ConfigError("use_lora: expected False for the stage autoencoder, found True")
        for group, found, default, where in unused:
            for field in dataclasses.fields(found):
                value, usual = getattr(found, field.name), getattr(default, field.name)
                if value != usual:
                    raise ConfigError(
                        f"{group}.{field.name}: is not read in {where}: expected its default "
                        f"{usual!r}, found {value!r}"
                    )

    @property
    def uses_repa(self) -> bool:
        """Whether latents are aligned with a frozen encoder."""
        return self.stage in ("generation", "joint") and self.losses.repa_weight > 0

    @property
    def average_decay(self) -> float | None:
        """The decay of the average of trained weights, None where there is none."""
        if self.ema_decay == "auto":
            # Adapters start at zero and train for few steps: an average of them is not asked for.
            return None if self.use_lora else DEFAULT_EMA_DECAY
        return self.ema_decay

    @property
    def preferred(self) -> Weights:
        """The weights that `export` stands for, before `average.to_export` compares the losses."""
        if self.export == "auto":
            return "raw" if self.average_decay is None else "average"
        return self.export

    @property
    def scheduled_optimizer(self) -> OptimizerConfig:
        """The optimiser over `total_steps`; a run shorter than its warm-up ends within it."""
        steps = max(self.total_steps, self.optimizer.warmup_steps + 1)
        return dataclasses.replace(self.optimizer, total_steps=steps)

    def to_dict(self) -> dict[str, Any]:
        """JSON, for the record: what `auto` stands for in ema_decay is spelled out."""
        return dataclasses.asdict(self) | {"ema_decay": self.average_decay}


@dataclasses.dataclass(frozen=True)
class Invocation:
    """A command line of `train.py`."""

    out: LocalPath
    """Directory of the run. If it holds checkpoints, the run resumes from the newest."""
    config: Annotated[TrainConfig, tyro.conf.arg(name="")]
    dry_run: bool = False
    """Compile the step, print what it asks of each device, and train nothing; needs no --out."""
    topology: str | None = None
    """With --dry-run: a TPU slice, which need not be there, such as v5e:4x4 or v5p:2x2x2."""
    break_lock: bool = False
    """Take the directory from a run that cannot be checked, on another machine. Use it only when
    that run has ended."""
    restart_data: bool = False
    """If the data of a resumed run are not those it was started with: begin their order anew, and
    keep the state and the optimiser. Without this option such data are refused."""


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
    except Exception as error:
        detail = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"{file}: cannot be executed: {type(error).__name__}: {detail}"
        ) from error
    config = variables.get("config")
    if not isinstance(config, TrainConfig):
        raise ConfigError(
            f"{file}: config: expected `config = TrainConfig(...)`, found {type(config).__name__}"
        )
    return config, variables.get("__doc__") or ""


_CONFIG_PATH = Annotated[LocalPath, tyro.conf.Positional, tyro.conf.arg(metavar="CONFIG")]


def parse_arguments(arguments: Sequence[str]) -> Invocation:
    """Reads `CONFIG --out DIR [overrides]` or `CONFIG --dry-run [--topology T] [overrides]`.

    Raises:
      ConfigError: the file or a value in it. SystemExit: usage.
    """
    if not arguments or arguments[0].startswith("-"):
        # Shows what a command line looks like; the options themselves depend on the file.
        tyro.cli(
            _usage,
            prog="train.py",
            description="Trains UniX. `CONFIG --help` lists all options.",
            args=list(arguments),
        )
        raise ConfigError(f"CONFIG: expected a configuration file first, found {arguments[0]!r}")
    path, *rest = arguments
    config, docstring = load_config(path)
    # A dry run writes nothing.
    out = Path() if "--dry-run" in rest else tyro.MISSING
    invocation = tyro.cli(
        tyro.conf.AvoidSubcommands[Invocation],
        prog=f"train.py {path}",
        description=docstring,
        default=Invocation(out, config),
        args=rest,
    )
    invocation.config.check_used()
    if invocation.topology is not None and not invocation.dry_run:
        raise ConfigError(f"topology: expected --dry-run with it, found {invocation.topology!r}")
    return invocation


def _usage(config: _CONFIG_PATH, /, out: LocalPath) -> None:
    """CONFIG: a file such as configs/nano_generation.py. out: directory of the run."""

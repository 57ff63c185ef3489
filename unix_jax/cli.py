"""`unix-jax`: reports, images and checkpoint facts from the command line.

Errors that an input caused are one line on standard error and exit code 1; Ctrl-C is 130.
"""

import dataclasses
import functools
import importlib
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from unix_jax import __version__
from unix_jax.commands.app import App
from unix_jax.commands.clean import Clean
from unix_jax.commands.evaluate import Evaluate
from unix_jax.commands.export import Export
from unix_jax.commands.terminal import ERRORS, run_command, say
from unix_jax.errors import UniXError
from unix_jax.storage.arguments import CheckpointText, PathText, refuse_without_effect

if TYPE_CHECKING:
    from unix_jax.inference.pipeline import UniXPipeline


@dataclasses.dataclass
class _Model:
    """Where the model comes from and where it runs."""

    checkpoint: CheckpointText | None = None
    """Converted checkpoint, directory in the published layout, or directory of a training run; or a
    name on the Hugging Face hub, OWNER/NAME or OWNER/NAME@REVISION, which is downloaded. If absent:
    the bundled nano model, a demonstration."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Of parameters and computation; a CPU uses float32 either way."""
    mesh: str | None = None
    """Devices to share the work, for example data=2,tensor=4; one device if absent."""

    def load(self) -> "UniXPipeline":
        from unix_jax.inference.pipeline import UniXPipeline
        from unix_jax.sharding import parse_mesh

        directory = self.directory  # before the line below: a download has its own progress
        with ERRORS.status(f"Loading {escape(directory)} ..."):
            mesh = None if self.mesh is None else parse_mesh(self.mesh)
            return UniXPipeline.from_pretrained(self.directory, self.dtype, mesh)

    @functools.cached_property
    def directory(self) -> str:
        """The directory given, or that of the bundled nano model, which is said once.

        A name on the hub is downloaded.
        """
        from unix_jax.app.bundled import checkpoint_path
        from unix_jax.checkpoints.run_export import resolve_checkpoint

        path = checkpoint_path(self.checkpoint)
        if self.checkpoint is None:
            say(f"no --checkpoint given: {path} is used, a small demonstration")
        return str(resolve_checkpoint(path))


@dataclasses.dataclass
class Report(_Model):
    """Write a report for each chest X-ray, or for several of one study (PNG, JPEG, DICOM, ...)."""

    images: Annotated[list[PathText], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE ...")] = (
        dataclasses.field(default_factory=list)
    )
    """Image files."""
    images_per_report: int = 1
    """Number of successive image files that one report describes together, such as 2 for frontal
    and lateral. The model must be trained on such samples."""
    prompt: str | None = None
    """Instruction to the model; if absent, its own for FINDINGS and IMPRESSION."""
    max_new_tokens: int = 500
    """Most tokens written for one report."""
    temperature: float = 0.0
    """0 decodes greedily."""
    top_p: float = 1.0
    """Mass of the nucleus that is sampled from."""
    seed: int = 0
    """Seed of the sampling."""
    frame: int | None = None
    """Which frame of each file to read, counted from 1; files of several frames need it."""
    resize: Literal["letterbox", "squash"] = "letterbox"
    """How an image becomes a square: letterbox keeps its aspect ratio, as in the original's
    evaluation; squash does not, as in its web demo."""
    json: bool = False
    """Print a JSON list of {image, report, warning} instead of text; warning is null, or says that
    the image shows next to nothing. With several images per report, image and warning are lists."""

    def run(self) -> None:
        from unix_jax.preprocessing.gray_levels import gray_level_problem
        from unix_jax.preprocessing.images import load_image

        if not self.images:
            raise UniXError("IMAGE: expected at least one image file, found none")
        each = self.images_per_report
        if each < 1 or len(self.images) % each:
            raise UniXError(
                "--images-per-report: expected at least 1 and a divisor of the number of image "
                f"files, which is {len(self.images)}, found {each}"
            )
        # Before the model is loaded: a wrong path is said at once.
        loaded = [load_image(path, frame=self.frame) for path in self.images]
        groups = range(0, len(loaded), each)
        pictures = [loaded[i : i + each] for i in groups]
        names = [self.images[i : i + each] for i in groups]
        pipe = self.load()
        options: dict[str, Any] = {
            "prompts": self.prompt,
            "max_new_tokens": self.max_new_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "seed": self.seed,
            "resize": self.resize,
        }
        if len(pictures) == 1 and not self.json:
            for (piece,) in pipe.stream_report(pictures, **options):
                print(piece, end="", flush=True)
            print()
            return
        reports = [""] * len(pictures)
        with _progress("tokens", self.max_new_tokens) as (progress, task):
            for pieces in pipe.stream_report(pictures, **options):
                reports = [a + b for a, b in zip(reports, pieces, strict=True)]
                progress.advance(task)
        if self.json:
            rows = [
                {
                    "image": files if each > 1 else files[0],
                    "report": report,
                    "warning": warned if each > 1 else warned[0],
                }
                for files, report, warned in zip(
                    names,
                    reports,
                    [[gray_level_problem(image) or None for image in row] for row in pictures],
                    strict=True,
                )
            ]
            print(json.dumps(rows, ensure_ascii=False, indent=1))
            return
        for files, report in zip(names, reports, strict=True):
            print(f"== {', '.join(files)}\n{report}\n")


@dataclasses.dataclass
class Generate(_Model):
    """Generate a chest X-ray from each text: one PNG file each, and a contact sheet of several."""

    prompts: Annotated[list[str], tyro.conf.Positional, tyro.conf.arg(metavar="PROMPT ...")] = (
        dataclasses.field(default_factory=list)
    )
    """Texts, for example "Large right pleural effusion."."""
    out: PathText = "out"
    """Directory for the images."""
    height: int | None = None
    """Pixels; 512, or the largest of a smaller model, if absent."""
    width: int | None = None
    """Pixels; likewise."""
    steps: int = 50
    """Points of the time grid: steps - 1 network evaluations. Of a diffusers checkpoint: network
    evaluations."""
    timestep_shift: float = 3.0
    """Above 1 spends more steps near noise."""
    guidance_scale: float | None = None
    """Text guidance; 1 turns it off. If absent, 2, and 7.5 for a diffusers checkpoint."""
    guidance_rescale: float | None = None
    """For a diffusers checkpoint: how far, from 0 to 1, guidance keeps the spread of outputs."""
    sampler: Literal["ddim", "euler"] | None = None
    """For a diffusers checkpoint: the sampler; the checkpoint's own if absent."""
    image_guidance_scale: float = 1.0
    """Image guidance; 1 turns it off. Prompts alone: the text guidance becomes 1 + this scale x
    (guidance scale - 1), as in the original's demos."""
    guidance_interval: tuple[float, float] = (0.4, 1.0)
    """Guidance acts for times in (low, high]."""
    renorm: Literal["global", "channel", "text_channel"] = "global"
    """How guided velocities are renormalised."""
    renorm_min: float = 0.0
    """Lower bound of the renormalisation factor."""
    seed: int = 0
    """Seed of the first image; the seeds of the others count up from it."""
    num_images: int = 1
    """Images per text."""

    def run(self) -> None:
        from unix_jax.checkpoints.diffusers_checkpoint import is_diffusers
        from unix_jax.preprocessing.transforms import contact_sheet, save_png

        if not self.prompts:
            raise UniXError("PROMPT: expected at least one text, found none")
        if not all(prompt.strip() for prompt in self.prompts):
            say("PROMPT: a text is empty; its image is generated without a text")
        if self.num_images < 1:
            raise UniXError(f"--num-images: expected at least 1, found {self.num_images}")
        prepare = self._prepare_diffusers if is_diffusers(self.directory) else self._prepare
        settings, evaluations = prepare()
        out = _writable_directory(self.out)
        pipe = self.load()
        prompts = [p for p in self.prompts for _ in range(self.num_images)]
        seeds = [self.seed + i for i in range(len(prompts))]
        with _progress("steps", evaluations) as (progress, task):
            images = pipe.generate_image(
                prompts,
                seed=seeds,
                progress=lambda done, total: progress.update(task, completed=done, total=total),
                **settings,
            )
        for i, (prompt, seed, image) in enumerate(zip(prompts, seeds, images, strict=True)):
            path = out / f"{i:03d}_{_slug(prompt)}_seed{seed}.png"
            metadata = {"prompt": prompt, "seed": seed, "software": "unix-jax", **settings}
            metadata |= {"height": image.height, "width": image.width}
            if path.exists():
                say(f"{path}: replaced an earlier file")
            save_png(path, image, {key: str(value) for key, value in metadata.items()})
            print(path)
        if len(images) > 1:
            sheet = out / "contact_sheet.png"
            save_png(sheet, contact_sheet(images, prompts))
            print(sheet)

    def load(self) -> Any:
        """The pipeline of the checkpoint's kind."""
        from unix_jax.checkpoints.diffusers_checkpoint import is_diffusers

        if not is_diffusers(self.directory):
            return super().load()
        from unix_jax.inference.diffusion import DiffusionPipeline
        from unix_jax.sharding import parse_mesh

        with ERRORS.status(f"Loading {escape(self.directory)} ..."):
            mesh = None if self.mesh is None else parse_mesh(self.mesh)
            return DiffusionPipeline.from_pretrained(self.directory, self.dtype, mesh)

    def _prepare_diffusers(self) -> tuple[dict[str, Any], int]:
        """(settings, network evaluations), checked before the weights are read."""
        from unix_jax.checkpoints.diffusers_checkpoint import open_diffusers
        from unix_jax.inference.diffusion import DiffusionSettings

        others = ("timestep_shift", "image_guidance_scale", "guidance_interval", "renorm")
        refuse_without_effect(self, (*others, "renorm_min"), "a diffusers checkpoint")
        folder = open_diffusers(self.directory)
        settings = DiffusionSettings(
            self.height,
            self.width,
            self.steps,
            7.5 if self.guidance_scale is None else self.guidance_scale,
            self.guidance_rescale or 0.0,
            self.sampler,
        ).checked(folder.vae_config, folder.native_size)
        return dataclasses.asdict(settings), settings.num_steps

    def _prepare(self) -> tuple[dict[str, Any], int]:
        """As `_prepare_diffusers`, for a checkpoint of UniX."""
        from unix_jax.checkpoints.load import load_config
        from unix_jax.inference.drawing import ImageSettings

        refuse_without_effect(self, ("guidance_rescale", "sampler"), "a checkpoint of UniX")
        settings: dict[str, Any] = {
            "height": self.height,
            "width": self.width,
            "num_steps": self.steps,
            "timestep_shift": self.timestep_shift,
            "guidance_scale": 2.0 if self.guidance_scale is None else self.guidance_scale,
            "image_guidance_scale": self.image_guidance_scale,
            "guidance_interval": self.guidance_interval,
            "renorm": self.renorm,
            "renorm_min": self.renorm_min,
        }
        # Before the directory is created and the weights are read.
        ImageSettings(**settings).checked(load_config(self.directory)[0])
        return settings, max(self.steps - 1, 1)


@dataclasses.dataclass
class Info:
    """Print the sizes and contents of a checkpoint."""

    checkpoint: Annotated[CheckpointText, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")]
    """Converted checkpoint, directory in the published layout, that of a training run, or a
    diffusers folder; or a name on the Hugging Face hub, which is downloaded."""
    json: bool = False
    """Print the configuration as JSON instead of a table."""
    verify: bool = False
    """Read every array, compare it with its checksum, and look for NaN and infinite weights. Also
    of a training run's directory, with all of its checkpoints."""

    def run(self) -> None:
        from unix_jax.checkpoints.diffusers_checkpoint import is_diffusers
        from unix_jax.checkpoints.hub_files import checkpoint_files
        from unix_jax.checkpoints.load import load_config
        from unix_jax.storage.hub import located

        if self.verify and self.json:
            raise UniXError("--json: cannot be combined with --verify")
        self.checkpoint = str(located(self.checkpoint, checkpoint_files))
        if self.verify:
            self._verify()
            return

        if is_diffusers(self.checkpoint):
            self._print_diffusers()
            return
        config, has_vae = load_config(self.checkpoint)
        if self.json:
            print(json.dumps(config.to_dict(), indent=1))
            return
        from unix_jax.commands.checkpoint_table import summary

        console = Console()
        console.print(summary(self.checkpoint, config, has_vae))

    def _print_diffusers(self) -> None:
        from unix_jax.checkpoints.diffusers_checkpoint import open_diffusers
        from unix_jax.commands.checkpoint_table import diffusion_summary

        folder = open_diffusers(self.checkpoint)
        sizes = folder.sizes()
        if self.json:
            values = {name: dataclasses.asdict(config) for name, config in sizes.items()}
            print(json.dumps(values, indent=1))
            return
        Console().print(diffusion_summary(self.checkpoint, sizes, folder.parameter_counts()))

    def _verify(self) -> None:
        from unix_jax.checkpoints.verification import verify
        from unix_jax.commands.checkpoint_table import verification_table
        from unix_jax.errors import CheckpointError

        with ERRORS.status(f"Reading {escape(self.checkpoint)} ..."):
            parts = list(verify(self.checkpoint))
        Console().print(verification_table(self.checkpoint, parts))
        if problems := [line for part in parts for line in part.problems]:
            listed = "".join(f"\n  {line}" for line in problems)
            count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
            raise CheckpointError(f"{self.checkpoint}: {count}:{listed}")


def _writable_directory(path: str) -> Path:
    """Refuses early: an image takes minutes, and must have a directory."""
    directory = Path(path)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UniXError(f"--out {path}: cannot be created: {error.strerror}") from error
    if not os.access(directory, os.W_OK):
        raise UniXError(f"--out {path}: expected a writable directory")
    return directory


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40].rstrip("-") or "image"


class _progress:
    """A progress bar on standard error with rate and time left; removed when done."""

    def __init__(self, unit: str, total: int) -> None:
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=ERRORS,
            transient=True,
            # In a log it would leave an empty line.
            disable=not ERRORS.is_terminal,
        )
        self._unit, self._total = unit, total

    def __enter__(self) -> tuple[Progress, Any]:
        self._bar.start()
        return self._bar, self._bar.add_task("Computing", total=self._total, unit=self._unit)

    def __exit__(self, *error: object) -> None:
        self._bar.stop()


# Programs with a command line of their own, by the word that calls them.
_PROGRAMS = {
    "train": ("unix_jax.commands.train", []),
    "convert": ("unix_jax.commands.convert", []),
    "check": ("unix_jax.commands.convert", ["check"]),
    "data": ("unix_jax.commands.data", []),
}


@dataclasses.dataclass
class _Train:
    """Train from a configuration file: `unix-jax train CONFIG --out DIR`."""


@dataclasses.dataclass
class _Convert:
    """Checkpoints between PyTorch and JAX: import, export, cast, inspect, check."""


@dataclasses.dataclass
class _Check:
    """Compare the model with golden outputs of the original: `unix-jax check CHECKPOINT DIR`."""


@dataclasses.dataclass
class _Data:
    """Inspect a source of X-rays and reports, write it as ArrayRecord, or compute moments."""


_Command: Any = tyro.conf.OmitSubcommandPrefixes[  # type: ignore[misc]
    Annotated[Report, tyro.conf.subcommand("report")]
    | Annotated[Generate, tyro.conf.subcommand("generate")]
    | Annotated[Info, tyro.conf.subcommand("info")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Clean, tyro.conf.subcommand("clean")]
    | Annotated[Export, tyro.conf.subcommand("export")]
    | Annotated[App, tyro.conf.subcommand("app")]
    | Annotated[_Train, tyro.conf.subcommand("train")]
    | Annotated[_Convert, tyro.conf.subcommand("convert")]
    | Annotated[_Check, tyro.conf.subcommand("check")]
    | Annotated[_Data, tyro.conf.subcommand("data")]
]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `unix-jax`; returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given and given[0] in _PROGRAMS:
        module, first = _PROGRAMS[given[0]]
        return importlib.import_module(module).main([*first, *given[1:]])

    def run() -> None:
        if given == ["--version"]:
            print(f"unix-jax {__version__}")
            return
        command: Report | Generate | Info | Evaluate | Clean | Export | App = tyro.cli(
            _Command,
            prog="unix-jax",
            description="UniX: reports from chest X-rays, and chest X-rays from text. "
            "Research software, not a medical device.",
            args=given,
        )
        command.run()

    return run_command(run)


if __name__ == "__main__":
    sys.exit(main())

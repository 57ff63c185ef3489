"""`unix-jax`: reports, images and checkpoint facts from the command line.

Errors that an input caused are one line on standard error and exit code 1; Ctrl-C is 130.
"""

import dataclasses
import io
import json
import os
import re
import sys
import warnings
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

from unix_jax.commands.app import App
from unix_jax.commands.clean import Clean
from unix_jax.commands.evaluate import Evaluate
from unix_jax.commands.export import Export
from unix_jax.errors import ImageWarning, UniXError

if TYPE_CHECKING:
    from unix_jax.inference.pipeline import UniXPipeline

_ERRORS = Console(stderr=True)


@dataclasses.dataclass
class _Model:
    """Where the model comes from and where it runs."""

    checkpoint: str
    """Converted checkpoint, or a directory in the published layout."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Of parameters and computation; a CPU uses float32 either way."""
    mesh: str | None = None
    """Devices to share the work, for example data=2,tensor=4; one device if absent."""

    def load(self) -> "UniXPipeline":
        from unix_jax.inference.pipeline import UniXPipeline
        from unix_jax.sharding import parse_mesh

        with _ERRORS.status(f"Loading {escape(self.checkpoint)} ..."):
            mesh = None if self.mesh is None else parse_mesh(self.mesh)
            return UniXPipeline.from_pretrained(self.checkpoint, self.dtype, mesh)


@dataclasses.dataclass
class Report(_Model):
    """Write a report for each chest X-ray (PNG, JPEG, TIFF, DICOM, ...)."""

    images: Annotated[list[str], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE ...")] = (
        dataclasses.field(default_factory=list)
    )
    """Image files."""
    prompt: str | None = None
    """Instruction to the model; a default one asks for findings and impression."""
    max_new_tokens: int = 500
    """Most tokens written for one report."""
    temperature: float = 0.0
    """0 decodes greedily."""
    top_p: float = 1.0
    """Mass of the nucleus that is sampled from."""
    seed: int = 0
    """Of the sampling."""
    frame: int | None = None
    """Which frame of each file to read, counted from 1; files of several frames need it."""
    json: bool = False
    """Print a JSON list of {image, report, warning} instead of text; warning is null, or says that
    the image shows next to nothing."""

    def run(self) -> None:
        from unix_jax.gray_levels import gray_level_problem
        from unix_jax.images import load_image

        if not self.images:
            raise UniXError("IMAGE: expected at least one image file, found none")
        # Before the model is loaded: a wrong path is said at once.
        pictures = [load_image(path, frame=self.frame) for path in self.images]
        pipe = self.load()
        options: dict[str, Any] = {
            "prompts": self.prompt,
            "max_new_tokens": self.max_new_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "seed": self.seed,
        }
        if len(self.images) == 1 and not self.json:
            for (piece,) in pipe.stream_report(pictures, **options):
                print(piece, end="", flush=True)
            print()
            return
        reports = [""] * len(self.images)
        with _progress("tokens", self.max_new_tokens) as (progress, task):
            for pieces in pipe.stream_report(pictures, **options):
                reports = [a + b for a, b in zip(reports, pieces, strict=True)]
                progress.advance(task)
        if self.json:
            rows = [
                {"image": name, "report": report, "warning": gray_level_problem(picture) or None}
                for name, report, picture in zip(self.images, reports, pictures, strict=True)
            ]
            print(json.dumps(rows, ensure_ascii=False, indent=1))
            return
        for image, report in zip(self.images, reports, strict=True):
            print(f"== {image}\n{report}\n")


@dataclasses.dataclass
class Generate(_Model):
    """Draw a chest X-ray for each text; one PNG each, and a contact sheet for several."""

    prompts: Annotated[list[str], tyro.conf.Positional, tyro.conf.arg(metavar="PROMPT ...")] = (
        dataclasses.field(default_factory=list)
    )
    """Texts, for example "Large right pleural effusion."."""
    out: str = "out"
    """Directory for the pictures."""
    height: int | None = None
    """Pixels; 512, or the largest of a smaller model, if absent."""
    width: int | None = None
    """Pixels; likewise."""
    steps: int = 50
    """Points of the time grid: steps - 1 network evaluations."""
    timestep_shift: float = 3.0
    """Above 1 spends more steps near noise."""
    guidance_scale: float = 2.0
    """Text guidance; 1 turns it off."""
    guidance_interval: tuple[float, float] = (0.4, 1.0)
    """Guidance acts for times in (low, high]."""
    renorm: Literal["global", "channel", "text_channel"] = "global"
    """How guided velocities are renormalised."""
    renorm_min: float = 0.0
    """Lower bound of the renormalisation factor."""
    seed: int = 0
    """Of the first picture; the next ones count up from it."""
    num_images: int = 1
    """Pictures for each text."""

    def run(self) -> None:
        from unix_jax.transforms import contact_sheet, save_png

        if not self.prompts:
            raise UniXError("PROMPT: expected at least one text, found none")
        if self.num_images < 1:
            raise UniXError(f"--num-images: expected at least 1, found {self.num_images}")
        out = _writable_directory(self.out)
        pipe = self.load()
        prompts = [p for p in self.prompts for _ in range(self.num_images)]
        seeds = [self.seed + i for i in range(len(prompts))]
        settings: dict[str, Any] = {
            "height": self.height,
            "width": self.width,
            "num_steps": self.steps,
            "timestep_shift": self.timestep_shift,
            "guidance_scale": self.guidance_scale,
            "guidance_interval": self.guidance_interval,
            "renorm": self.renorm,
            "renorm_min": self.renorm_min,
        }
        with _progress("steps", max(self.steps - 1, 1)) as (progress, task):
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
            save_png(path, image, {key: str(value) for key, value in metadata.items()})
            print(path)
        if len(images) > 1:
            sheet = out / "contact_sheet.png"
            save_png(sheet, contact_sheet(images, prompts))
            print(sheet)


@dataclasses.dataclass
class Info:
    """Print the sizes and contents of a checkpoint."""

    checkpoint: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")]
    """Converted checkpoint, or a directory in the published layout."""
    json: bool = False
    """Print the configuration as JSON instead of a table."""

    def run(self) -> None:
        from convert.load import load_config

        config, has_vae = load_config(self.checkpoint)
        if self.json:
            print(json.dumps(config.to_dict(), indent=1))
            return
        from unix_jax.info import summary

        console = Console()
        console.print(summary(self.checkpoint, config, has_vae))


def _writable_directory(path: str) -> Path:
    """Refuses early: a picture takes minutes, and must have a place to go."""
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
            console=_ERRORS,
            transient=True,
            # In a log it would leave an empty line.
            disable=not _ERRORS.is_terminal,
        )
        self._unit, self._total = unit, total

    def __enter__(self) -> tuple[Progress, Any]:
        self._bar.start()
        return self._bar, self._bar.add_task("Computing", total=self._total, unit=self._unit)

    def __exit__(self, *error: object) -> None:
        self._bar.stop()


def _one_line_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    line = " ".join(str(message).split())
    _ERRORS.print(f"warning: {line}", style="yellow", highlight=False, soft_wrap=True, markup=False)


_Command: Any = tyro.conf.OmitSubcommandPrefixes[  # type: ignore[misc]
    Annotated[Report, tyro.conf.subcommand("report")]
    | Annotated[Generate, tyro.conf.subcommand("generate")]
    | Annotated[Info, tyro.conf.subcommand("info")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Clean, tyro.conf.subcommand("clean")]
    | Annotated[Export, tyro.conf.subcommand("export")]
    | Annotated[App, tyro.conf.subcommand("app")]
]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `unix-jax`; returns the exit code."""
    warnings.showwarning = _one_line_warning
    warnings.simplefilter("always", ImageWarning)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A report may hold a character that the terminal's encoding lacks.
        sys.stdout.reconfigure(errors="replace")
    try:
        command: Report | Generate | Info | Evaluate | Clean | Export | App = tyro.cli(
            _Command,
            prog="unix-jax",
            description="UniX: reports from chest X-rays, and chest X-rays from text. "
            "Research software, not a medical device.",
            args=None if arguments is None else list(arguments),
        )
        command.run()
    except UniXError as error:
        _ERRORS.print(f"error: {error}", style="red", highlight=False, soft_wrap=True, markup=False)
        return 1
    except KeyboardInterrupt:
        _ERRORS.print("interrupted", highlight=False)
        return 130
    except BrokenPipeError:
        # The reader went away (`| head`): nothing more can be said.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

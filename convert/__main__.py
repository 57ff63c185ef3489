"""`python -m convert`: import, import-janus, export, inspect, check."""

import contextlib
import dataclasses
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from convert.sources import SourceNote
from unix_jax.errors import UniXError

Dtype = Literal["keep", "bfloat16", "float32"]
INTERRUPTED = 130


@dataclasses.dataclass(frozen=True)
class Import:
    """Published layout -> this project's checkpoint (Orbax, config, tokenizer files)."""

    source: tyro.conf.Positional[Path]
    """Directory with config.json, model.safetensors and vae/; or a weight file in it."""
    out: tyro.conf.Positional[Path]
    """A new directory."""
    dtype: Dtype = "keep"
    """Type of the model's parameters; with `keep`, export gives back every bit."""
    weights: str | None = None
    """Which weights where there are several: `model`, `ema` (an average), or a weight file."""
    max_latent_size: int | None = None
    """Enlarge the latent position table to this side in tokens (published: 32, which is 512 px)."""
    verbose: bool = False
    """Print lists of keys in an error in full."""

    def run(self) -> int:
        from convert.published import import_published

        with _progress("import") as report:
            import_published(
                self.source,
                self.out,
                self.dtype,
                weights=self.weights,
                max_latent_size=self.max_latent_size,
                progress=report,
            )
        return _written(self.out)


@dataclasses.dataclass(frozen=True)
class ImportJanus:
    """Janus-Pro layout -> start of stage 1 (und = Janus-Pro, gen = a copy of und)."""

    source: tyro.conf.Positional[Path]
    """Directory with config.json and the weights; or a weight file in it."""
    out: tyro.conf.Positional[Path]
    """A new directory."""
    dtype: Dtype = "keep"
    """Type of the model's parameters."""
    vae: Path | None = None
    """The autoencoder: its weight file, or the directory of it and its config.yaml."""
    max_latent_size: int | None = None
    """Side of the latent position table in tokens (published: 32)."""
    latent_patch_size: int | None = None
    """Latents along one side of a token (published: 1)."""
    seed: int = 0
    """Of the parameters that Janus-Pro does not have."""
    weights: str | None = None
    """Which weights where there are several: `model`, `ema` (an average), or a weight file."""
    verbose: bool = False
    """Print lists of keys in an error in full."""

    def run(self) -> int:
        from convert.janus import import_janus

        with _progress("import-janus") as report:
            import_janus(
                self.source,
                self.out,
                self.dtype,
                vae=self.vae,
                max_latent_size=self.max_latent_size,
                latent_patch_size=self.latent_patch_size,
                seed=self.seed,
                weights=self.weights,
                progress=report,
            )
        return _written(self.out)


@dataclasses.dataclass(frozen=True)
class Export:
    """This project's checkpoint -> published layout."""

    checkpoint: tyro.conf.Positional[Path]
    """A directory written by `import` or by training."""
    out: tyro.conf.Positional[Path]
    """A new directory."""
    verbose: bool = False
    """Print lists of keys in an error in full."""

    def run(self) -> int:
        from convert.export import export_published

        with _progress("export") as report:
            export_published(self.checkpoint, self.out, progress=report)
        return _written(self.out)


@dataclasses.dataclass(frozen=True)
class Cast:
    """A copy of a checkpoint in another floating type, such as a training's export in bfloat16."""

    checkpoint: tyro.conf.Positional[Path]
    """A directory written by `import` or by training."""
    out: tyro.conf.Positional[Path]
    """A new directory."""
    dtype: Dtype = "bfloat16"
    """Type of the model's parameters."""
    vae_dtype: Dtype = "keep"
    """Type of the autoencoder's; bfloat16 shows in its pictures."""
    verbose: bool = False
    """Print lists of keys in an error in full."""

    def run(self) -> int:
        from convert.cast import cast

        with _progress("cast") as report:
            cast(self.checkpoint, self.out, self.dtype, self.vae_dtype, progress=report)
        return _written(self.out)


@dataclasses.dataclass(frozen=True)
class Inspect:
    """Prints keys, shapes, types and parameter counts of a file or directory of either layout."""

    path: tyro.conf.Positional[Path]
    verbose: bool = False
    """Print lists of keys in an error in full."""

    def run(self) -> int:
        from convert.inspect import print_table

        print_table(self.path)
        return 0


@dataclasses.dataclass(frozen=True)
class Check:
    """Runs the model on golden inputs and compares every golden tensor."""

    path: tyro.conf.Positional[Path]
    """A checkpoint of this project, or a directory in the published layout."""
    golden_dir: tyro.conf.Positional[Path]
    """Directory with golden.safetensors and golden.json."""
    json: Path | None = None
    """Also write the results here."""
    verbose: bool = False
    """Print lists of keys in an error in full."""

    def run(self) -> int:
        from convert.check import check

        return check(self.path, self.golden_dir, self.json)


Command = (
    Annotated[Import, tyro.conf.subcommand("import")]
    | Annotated[ImportJanus, tyro.conf.subcommand("import-janus")]
    | Annotated[Export, tyro.conf.subcommand("export")]
    | Annotated[Cast, tyro.conf.subcommand("cast")]
    | Annotated[Inspect, tyro.conf.subcommand("inspect")]
    | Annotated[Check, tyro.conf.subcommand("check")]
)


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; the exit code is 0, 1 (an error, in one message), 2 (usage) or 130."""
    # A polite kill cleans up as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    warnings.showwarning = _show_warning
    warnings.simplefilter("always", SourceNote)
    try:
        command: Import | ImportJanus | Export | Cast | Inspect | Check = tyro.cli(
            Command,
            args=arguments,
            prog="python -m convert",
            description="PyTorch <-> JAX checkpoints.",
        )
        try:
            return command.run()
        except UniXError as error:
            _say(f"error: {error.details if command.verbose else error}")
            if not command.verbose and error.details != str(error):
                _say("--verbose prints the lists in full")
        return 1
    except KeyboardInterrupt:
        _say("interrupted: nothing was written")
        return INTERRUPTED


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    _say(f"{'note' if issubclass(category, SourceNote) else 'warning'}: {message}")


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def _written(path: Path) -> int:
    _say(f"wrote {path}")
    return 0


@contextlib.contextmanager
def _progress(name: str) -> Iterator[Callable[[int, int], None]]:
    """A bar of bytes with rate and time left on stderr, where that is a terminal."""
    console = Console(stderr=True)
    columns = (
        TextColumn(name),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(name, total=None)
        yield lambda done, total: bar.update(task, advance=done, total=total)


if __name__ == "__main__":
    sys.exit(main())

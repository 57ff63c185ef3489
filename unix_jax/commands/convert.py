"""The command `unix-jax convert`: checkpoints between PyTorch and JAX."""

import dataclasses
import signal
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from unix_jax.commands.progress import advancing
from unix_jax.commands.subcommands import with_short_descriptions
from unix_jax.commands.terminal import run_command, say
from unix_jax.errors import UniXError
from unix_jax.storage.arguments import LocalPath, WeightsText

Dtype = Literal["keep", "bfloat16", "float32"]


@dataclasses.dataclass(frozen=True)
class Import:
    """Convert the published layout to this project's checkpoint (Orbax, config, tokenizer).

    For example:
        unix-jax convert import PUBLISHED CHECKPOINT
        unix-jax convert import PUBLISHED CHECKPOINT --weights ema --dtype bfloat16
    """

    source: tyro.conf.Positional[LocalPath]
    """Directory with config.json, model.safetensors and vae/, or a weight file in such a
    directory."""
    out: tyro.conf.Positional[LocalPath]
    """New directory for the checkpoint."""
    dtype: Dtype = "keep"
    """Dtype of the model's parameters; with `keep`, export restores every bit."""
    allow_non_finite: bool = False
    """Write weights that are NaN or infinite instead of stopping."""
    weights: WeightsText | None = None
    """Weights to use if there are several: `model`, `ema` (an average), a name in the file, or a
    weight file."""
    max_latent_size: int | None = None
    """Enlarge the latent position table to this side in tokens (published: 32, which is 512 px)."""
    keep_file: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Further file of SOURCE to copy into the checkpoint, and thus into its exports, such as
    `notes.txt`. Repeat the option for each file."""
    verbose: bool = False
    """Print complete lists of keys in an error."""

    def run(self) -> int:
        from unix_jax.checkpoints.published import import_published

        with advancing("import", in_bytes=True) as report:
            import_published(
                self.source,
                self.out,
                self.dtype,
                allow_non_finite=self.allow_non_finite,
                weights=self.weights,
                max_latent_size=self.max_latent_size,
                keep_file=self.keep_file,
                progress=report,
            )
        return _written(self.out)


@dataclasses.dataclass(frozen=True)
class ImportJanus:
    """Convert Janus-Pro's layout to the initial checkpoint of stage 1 (und is Janus-Pro, gen a
    copy).

    For example:
        unix-jax convert import-janus JANUS CHECKPOINT
        unix-jax convert import-janus JANUS CHECKPOINT --vae VAE --seed 1
    """

    source: tyro.conf.Positional[LocalPath]
    """Directory with config.json and the weights, or a weight file in such a directory."""
    out: tyro.conf.Positional[LocalPath]
    """New directory for the checkpoint."""
    dtype: Dtype = "keep"
    """Dtype of the model's parameters."""
    vae: LocalPath | None = None
    """The autoencoder: its weight file, or the directory with the weight file and config.yaml."""
    max_latent_size: int | None = None
    """Side of the latent position table in tokens (published: 32)."""
    latent_patch_size: int | None = None
    """Number of latents along one side of a token (published: 1)."""
    seed: int = 0
    """Random seed of the parameters that Janus-Pro does not have."""
    allow_non_finite: bool = False
    """Write weights that are NaN or infinite instead of stopping."""
    weights: WeightsText | None = None
    """Weights to use if there are several: `model`, `ema` (an average), a name in the file, or a
    weight file."""
    verbose: bool = False
    """Print complete lists of keys in an error."""

    def run(self) -> int:
        from unix_jax.checkpoints.janus import import_janus

        with advancing("import-janus", in_bytes=True) as report:
            import_janus(
                self.source,
                self.out,
                self.dtype,
                vae=self.vae,
                max_latent_size=self.max_latent_size,
                latent_patch_size=self.latent_patch_size,
                seed=self.seed,
                allow_non_finite=self.allow_non_finite,
                weights=self.weights,
                progress=report,
            )
        return _written(self.out)


@dataclasses.dataclass(frozen=True)
class ImportDiffusers:
    """Convert a folder of diffusers' StableDiffusionPipeline to this project's checkpoint.

    For example:
        unix-jax convert import-diffusers DIFFUSERS CHECKPOINT
        unix-jax convert import-diffusers DIFFUSERS CHECKPOINT --dtype bfloat16
    """

    source: tyro.conf.Positional[LocalPath]
    """Directory with model_index.json, unet/, vae/, text_encoder/, tokenizer/ and scheduler/."""
    out: tyro.conf.Positional[LocalPath]
    """New directory for the checkpoint."""
    dtype: Dtype = "keep"
    """Dtype of the U-Net and the text encoder; with `keep`, export restores every bit."""
    allow_non_finite: bool = False
    """Write weights that are NaN or infinite instead of stopping."""
    verbose: bool = False
    """Print complete lists of keys in an error."""

    def run(self) -> int:
        from unix_jax.checkpoints.diffusers_checkpoint import import_diffusers

        with advancing("import-diffusers", in_bytes=True) as report:
            import_diffusers(
                self.source,
                self.out,
                self.dtype,
                allow_non_finite=self.allow_non_finite,
                progress=report,
            )
        return _written(self.out)


@dataclasses.dataclass(frozen=True)
class Export:
    """Convert this project's checkpoint to the published layout, or to its original diffusers
    folder.

    For example:
        unix-jax convert export CHECKPOINT PUBLISHED
        unix-jax convert export runs/stage1 PUBLISHED
    """

    checkpoint: tyro.conf.Positional[LocalPath]
    """Checkpoint written by an import, or directory of a training run, whose export is used."""
    out: tyro.conf.Positional[LocalPath]
    """New directory for the published layout or the diffusers folder."""
    allow_non_finite: bool = False
    """Write weights that are NaN or infinite instead of stopping."""
    verbose: bool = False
    """Print complete lists of keys in an error."""

    def run(self) -> int:
        from unix_jax.checkpoints.diffusers_checkpoint import (
            export_diffusers,
            is_diffusers_checkpoint,
        )
        from unix_jax.checkpoints.export import export_published

        diffusers = is_diffusers_checkpoint(self.checkpoint)
        export = export_diffusers if diffusers else export_published
        with advancing("export", in_bytes=True) as report:
            export(
                self.checkpoint,
                self.out,
                allow_non_finite=self.allow_non_finite,
                progress=report,
            )
        return _written(self.out)


@dataclasses.dataclass(frozen=True)
class Cast:
    """Copy a checkpoint in another floating-point dtype, for example a training export in
    bfloat16.

    For example:
        unix-jax convert cast CHECKPOINT COPY
        unix-jax convert cast CHECKPOINT COPY --dtype float32
    """

    checkpoint: tyro.conf.Positional[LocalPath]
    """Checkpoint written by an import, or directory of a training run, whose export is used."""
    out: tyro.conf.Positional[LocalPath]
    """New directory for the copy."""
    dtype: Dtype = "bfloat16"
    """Dtype of the model's parameters."""
    vae_dtype: Dtype = "keep"
    """Dtype of the autoencoder's parameters. In bfloat16, rounding is visible in its images."""
    allow_non_finite: bool = False
    """Write weights that are NaN, infinite or too large for the dtype instead of stopping."""
    verbose: bool = False
    """Print complete lists of keys in an error."""

    def run(self) -> int:
        from unix_jax.checkpoints.cast import cast

        with advancing("cast", in_bytes=True) as report:
            cast(
                self.checkpoint,
                self.out,
                self.dtype,
                self.vae_dtype,
                allow_non_finite=self.allow_non_finite,
                progress=report,
            )
        return _written(self.out)


@dataclasses.dataclass(frozen=True)
class Accept:
    """Record edits of a checkpoint's config.json, tokenizer or source/ in its index.json.

    For example:
        unix-jax convert accept CHECKPOINT
    """

    checkpoint: tyro.conf.Positional[LocalPath]
    """Checkpoint written by an import, or directory of a training run, whose export is used."""
    verbose: bool = False
    """Print complete lists of keys in an error."""

    def run(self) -> int:
        from unix_jax.checkpoints.native import accept_files
        from unix_jax.checkpoints.run_export import resolve_checkpoint

        path = resolve_checkpoint(self.checkpoint)
        for line in accept_files(path) or [f"{path}: no file changed since it was recorded"]:
            say(line)
        return 0


@dataclasses.dataclass(frozen=True)
class Inspect:
    """Print keys, shapes, dtypes and parameter counts of a file or directory of either layout.

    For example:
        unix-jax convert inspect PUBLISHED
        unix-jax convert inspect PUBLISHED/model.safetensors
    """

    path: tyro.conf.Positional[LocalPath]
    """File or directory to inspect."""
    verbose: bool = False
    """Print complete lists of keys in an error."""

    def run(self) -> int:
        from unix_jax.checkpoints.inspect import print_table

        print_table(self.path)
        return 0


@dataclasses.dataclass(frozen=True)
class Check:
    """Run the model on golden inputs and compare every golden tensor.

    For example:
        unix-jax check CHECKPOINT GOLDEN
        unix-jax check CHECKPOINT GOLDEN --json results.json
    """

    path: tyro.conf.Positional[LocalPath]
    """Checkpoint of this project, directory in the published layout, directory of a training run,
    or diffusers folder."""
    golden_dir: tyro.conf.Positional[LocalPath]
    """Directory with golden.safetensors and golden.json."""
    json: LocalPath | None = None
    """File for the results in JSON."""
    verbose: bool = False
    """Print complete lists of keys in an error."""

    def run(self) -> int:
        from unix_jax.parity.check import check

        return check(self.path, self.golden_dir, self.json)


Command = (
    Annotated[Import, tyro.conf.subcommand("import")]
    | Annotated[ImportJanus, tyro.conf.subcommand("import-janus")]
    | Annotated[ImportDiffusers, tyro.conf.subcommand("import-diffusers")]
    | Annotated[Export, tyro.conf.subcommand("export")]
    | Annotated[Cast, tyro.conf.subcommand("cast")]
    | Annotated[Accept, tyro.conf.subcommand("accept")]
    | Annotated[Inspect, tyro.conf.subcommand("inspect")]
    | Annotated[Check, tyro.conf.subcommand("check")]
)


_DESCRIPTION = """Convert, inspect and check checkpoints of PyTorch and JAX.

For example:
    unix-jax convert import PUBLISHED CHECKPOINT
    unix-jax convert export CHECKPOINT PUBLISHED
"""


def main(arguments: list[str] | None = None, prog: str = "unix-jax convert") -> int:
    """Runs one command; the exit code is 0, 1 (an error, as one message), 2 (usage) or 130
    (Ctrl-C)."""
    # SIGTERM cleans up like Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    verbose = False

    def run() -> int:
        nonlocal verbose
        given = sys.argv[1:] if arguments is None else arguments
        command: Any = tyro.cli(
            with_short_descriptions(Command, given),
            args=given,
            prog=prog,
            description=_DESCRIPTION,
        )
        verbose = command.verbose
        return command.run()

    def text(error: UniXError) -> str:
        if verbose or error.details == str(error):
            return error.details
        return f"{error}\n--verbose prints the complete lists"

    return run_command(run, on_error=text, interrupted="interrupted: nothing was written")


def _written(path: Path) -> int:
    say(f"wrote {path}")
    return 0

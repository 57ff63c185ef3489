"""The command `unix-jax convert`: checkpoints between PyTorch and JAX."""

import dataclasses
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from unix_jax.commands.progress import advancing
from unix_jax.commands.subcommands import with_short_descriptions
from unix_jax.commands.terminal import ERRORS, run_command, say
from unix_jax.errors import UniXError
from unix_jax.storage.arguments import (
    AnyPath,
    CheckpointText,
    LocalPath,
    WeightsText,
    refuse_without_effect,
)
from unix_jax.storage.bucket_path import BucketPath

if TYPE_CHECKING:
    from unix_jax.storage.hub import HubName

Dtype = Literal["keep", "bfloat16", "float32"]


@dataclasses.dataclass(frozen=True)
class Import:
    """Convert the published layout to this project's checkpoint (Orbax, config, tokenizer).

    For example:
        unix-jax convert import PUBLISHED CHECKPOINT
        unix-jax convert import PUBLISHED CHECKPOINT --weights ema --dtype bfloat16
    """

    source: tyro.conf.Positional[CheckpointText]
    """Directory with config.json, model.safetensors and vae/, or a weight file in such a
    directory; or a name on the Hugging Face hub, such as ZrH42/UniX or ZrH42/UniX@REVISION, which
    is downloaded."""
    out: tyro.conf.Positional[AnyPath]
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

    source: tyro.conf.Positional[CheckpointText]
    """Directory with config.json and the weights, or a weight file in such a directory; or a name
    on the Hugging Face hub, such as deepseek-ai/Janus-Pro-1B, which is downloaded."""
    out: tyro.conf.Positional[AnyPath]
    """New directory for the checkpoint."""
    dtype: Dtype = "keep"
    """Dtype of the model's parameters."""
    vae: CheckpointText | None = None
    """The autoencoder: its weight file, or the directory with the weight file and config.yaml; or a
    name on the Hugging Face hub, such as ZrH42/UniX."""
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

    source: tyro.conf.Positional[CheckpointText]
    """Directory with model_index.json, unet/, vae/, text_encoder/, tokenizer/ and scheduler/; or a
    name on the Hugging Face hub, which is downloaded."""
    out: tyro.conf.Positional[AnyPath]
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

    checkpoint: tyro.conf.Positional[CheckpointText]
    """Checkpoint written by an import, or directory of a training run, whose export is used; or a
    name on the Hugging Face hub."""
    out: tyro.conf.Positional[AnyPath]
    """New directory for the published layout or the diffusers folder."""
    allow_non_finite: bool = False
    """Write weights that are NaN or infinite instead of stopping."""
    push: str | None = None
    """Also publish OUT as a model repository on the Hugging Face hub, OWNER/NAME, with a generated
    model card. Needs --license and a token that may write (`hf auth login`, or HF_TOKEN)."""
    license: str | None = None
    """With --push: the licence of the weights, such as mit or cc-by-nc-4.0."""
    training_data: str | None = None
    """With --push: what the weights were trained on, in words; if absent, the source that the run
    recorded."""
    private: bool = False
    """With --push: a new repository is private."""
    verbose: bool = False
    """Print complete lists of keys in an error."""

    def run(self) -> int:
        from unix_jax.checkpoints.diffusers_checkpoint import (
            export_diffusers,
            is_diffusers_checkpoint,
        )
        from unix_jax.checkpoints.export import export_published
        from unix_jax.checkpoints.run_export import resolve_checkpoint

        name = self._checked_push()
        checkpoint = resolve_checkpoint(self.checkpoint)
        export = export_diffusers if is_diffusers_checkpoint(checkpoint) else export_published
        with advancing("export", in_bytes=True) as report:
            export(
                checkpoint,
                self.out,
                allow_non_finite=self.allow_non_finite,
                progress=report,
            )
        code = _written(self.out)
        if name is not None:
            self._push(checkpoint, name)
        return code

    def _checked_push(self) -> "HubName | None":
        """The repository, before anything is written; None without --push."""
        from unix_jax.checkpoints.model_card import check_license
        from unix_jax.storage.hub import check_push

        if self.push is None:
            names = ("license", "training_data", "private")
            refuse_without_effect(self, names, "without --push OWNER/NAME")
            return None
        if isinstance(self.out, BucketPath):
            raise UniXError(f"--push: expected a local OUT, found {self.out}")
        check_license(self.license)
        return check_push(self.push)

    def _push(self, checkpoint: Path, name: "HubName") -> None:
        from unix_jax.checkpoints.model_card import CARD, model_card
        from unix_jax.storage.files import atomic_write
        from unix_jax.storage.hub import push

        file = self.out / CARD
        source = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else None
        card = model_card(
            checkpoint, name.repository, self.license or "", self.training_data, source
        )
        with atomic_write(file) as temporary:
            temporary.write_text(card, encoding="utf-8")
        with ERRORS.status(f"Pushing {self.out} to {name.repository} ..."):
            address, replaced = push(self.out, name, "Export of unix-jax", private=self.private)
        earlier = f"; {replaced} earlier files are in its history" if replaced else ""
        say(f"pushed {address}{earlier}")


@dataclasses.dataclass(frozen=True)
class Cast:
    """Copy a checkpoint in another floating-point dtype, for example a training export in
    bfloat16.

    For example:
        unix-jax convert cast CHECKPOINT COPY
        unix-jax convert cast CHECKPOINT COPY --dtype float32
    """

    checkpoint: tyro.conf.Positional[CheckpointText]
    """Checkpoint written by an import, or directory of a training run, whose export is used; or a
    name on the Hugging Face hub."""
    out: tyro.conf.Positional[AnyPath]
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

        if not self.checkpoint.is_dir():  # a name on the hub has no place for edits
            raise UniXError(f"{self.checkpoint}: expected a local directory, found none")
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

    path: tyro.conf.Positional[CheckpointText]
    """File or directory to inspect, or a name on the Hugging Face hub."""
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

    path: tyro.conf.Positional[CheckpointText | None] = None
    """Checkpoint of this project, directory in the published layout, directory of a training run,
    or diffusers folder; or a name on the Hugging Face hub. The default is the bundled checkpoint of
    toy size."""
    golden_dir: tyro.conf.Positional[LocalPath | None] = None
    """Directory with golden.safetensors and golden.json. Required with a checkpoint."""
    json: AnyPath | None = None
    """File for the results in JSON."""
    verbose: bool = False
    """Print complete lists of keys in an error."""

    def run(self) -> int:
        from unix_jax.checkpoints.run_export import resolve_checkpoint
        from unix_jax.parity.check import check
        from unix_jax.storage import bundled

        path, golden_dir = self.path, self.golden_dir
        if path is None:
            found = bundled.golden()
            if found is None:
                raise UniXError("CHECKPOINT: expected a checkpoint, found none, nor a bundled one")
            say(f"no checkpoint given: {found[0]} is checked, a bundled one of toy size")
            path, golden_dir = str(found[0]), found[1]
        if golden_dir is None:
            raise UniXError(
                "GOLDEN-DIR: expected a directory with golden.safetensors and golden.json, of the "
                f"model in {path}; found none"
            )
        return check(resolve_checkpoint(path), golden_dir, self.json)


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

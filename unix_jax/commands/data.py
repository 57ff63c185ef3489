"""The command `unix-jax data`: sources of records, moments of their images, n-grams of their texts.

Errors caused by an input are printed as one line on standard error with exit code 1; the exit code
of Ctrl-C is 130.
"""

import contextlib
import dataclasses
import io
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.console import Console

from unix_jax.commands.progress import advancing
from unix_jax.commands.subcommands import with_short_descriptions
from unix_jax.commands.terminal import run_command, say, warn
from unix_jax.data.sources import open_source
from unix_jax.errors import DataError, UniXError
from unix_jax.preprocessing.images import MIN_SIDE
from unix_jax.storage.arguments import AnyPathText, CheckpointText, SourceText
from unix_jax.storage.bucket_path import any_path

if TYPE_CHECKING:
    from unix_jax.config import UniXConfig
    from unix_jax.preprocessing.text import Tokenizer

_Spec = Annotated[SourceText, tyro.conf.Positional, tyro.conf.arg(metavar="SPEC")]


@dataclasses.dataclass
class Inspect:
    """Print statistics of a source and its texts, and write a contact sheet.

    For example:
        unix-jax data inspect manifest:examples/cxr --out sheet.png
        unix-jax data inspect mimic:DIR --split train --tokenizer CHECKPOINT --und-tokens 2048
    """

    spec: _Spec
    """Source of the records, for example manifest:examples/cxr; docs/data.md lists the kinds."""
    split: str | None = None
    """Split to inspect. The default is all records."""
    tokenizer: CheckpointText | None = None
    """Directory with tokenizer.json, or a name on the Hugging Face hub, to measure lengths in
    tokens instead of words."""
    und_tokens: int | None = None
    """Report how many samples fit a row of this number of tokens (data.und_tokens of training);
    needs --tokenizer. The number of tokens per image follows that directory's config.json, or the
    published size."""
    max_broken: float = 0.0
    """Maximum fraction of rows that are broken or whose image file is missing; above it, the exit
    code is 1."""
    out: AnyPathText | None = None
    """PNG file for a contact sheet."""
    images: int = 24
    """Number of images on the sheet, chosen at random."""
    seed: int = 0
    """Random seed for that choice."""
    json: bool = False
    """Print JSON instead of tables."""

    def run(self) -> None:
        from unix_jax.data.inspection import (
            fit_rows,
            fit_table,
            inspect_source,
            sheet_images,
            summary_tables,
        )

        _require_positive("--images", self.images)
        _require_fraction("--max-broken", self.max_broken)
        if self.und_tokens is not None:
            _require_positive("--und-tokens", self.und_tokens)
            if self.tokenizer is None:
                raise UniXError(
                    "--und-tokens: expected --tokenizer DIR together with it, found none"
                )
        tokenizer, config = (None, None) if self.tokenizer is None else _tokenizer(self.tokenizer)
        encode = None if tokenizer is None else tokenizer.encode
        source = open_source(self.spec, self.split)
        with advancing("read", len(source)) as advance:
            summary = inspect_source(source, encode, advance)
        fit = None
        if self.und_tokens is not None and tokenizer is not None and config is not None:
            fit = fit_rows(source, tokenizer, config, self.und_tokens)
        if self.json:
            values = summary.to_dict() | ({} if fit is None else {"rows": fit.to_dict()})
            print(json.dumps(values, ensure_ascii=False, indent=1))
        else:
            for table in [*summary_tables(summary), *([] if fit is None else [fit_table(fit)])]:
                Console().print(table)
        for error in [] if self.json else summary.errors:
            say(f"broken: {error}", "yellow")
        for problem in [] if self.json else summary.report_problems:
            say(f"without report: {problem}", "yellow")
        if self.out is not None:
            from unix_jax.preprocessing.transforms import contact_sheet, save_png

            images, texts = sheet_images(source, self.images, self.seed)
            save_png(self.out, contact_sheet(images, texts))
            say(f"contact sheet: {self.out}")
        if summary.unusable > self.max_broken * summary.rows:
            raise UniXError(
                f"{self.spec}: expected at most {self.max_broken:.2%} of {summary.rows} rows to be "
                f"broken (--max-broken), found {summary.broken} broken rows and "
                f"{summary.missing_files} missing image files"
            )


@dataclasses.dataclass
class Write:
    """Write a source as ArrayRecord, atomically.

    For example:
        unix-jax data write mimic:DIR RECORDS --max-side 1024
        unix-jax data write manifest:examples/cxr RECORDS --format tfds
    """

    spec: _Spec
    """Source of the records, for example mimic:DIR?views=PA,AP; docs/data.md lists the kinds."""
    out: Annotated[AnyPathText, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """New directory for the records."""
    split: str | None = None
    """Split to write. The default is all records."""
    max_side: int | None = None
    """Downscale larger images to this longest side in pixels."""
    max_broken: float = 0.01
    """Maximum fraction of broken rows. Broken rows are skipped, and a message names each."""
    shard_megabytes: int = 256
    """Size in MB at which a shard is closed."""
    workers: int = min(os.cpu_count() or 1, 16)
    """Number of threads that read and downscale images."""
    format: Literal["array_record", "tfds"] = "array_record"
    """This project's ArrayRecord directory, or a tensorflow-datasets data set (OUT is its
    data_dir)."""

    def run(self) -> None:
        if self.max_side is not None and self.max_side < MIN_SIDE:
            raise UniXError(f"--max-side: expected at least {MIN_SIDE}, found {self.max_side}")
        _require_positive("--workers", self.workers)
        _require_positive("--shard-megabytes", self.shard_megabytes)
        _require_fraction("--max-broken", self.max_broken)
        from unix_jax.data.sources.array_records import write_array_records
        from unix_jax.data.sources.preparation import PreparedRecords

        source = open_source(self.spec, self.split)
        with advancing("write", len(source)) as advance:
            options: dict[str, Any] = {
                "max_side": self.max_side,
                "workers": self.workers,
                "max_broken": self.max_broken,
                "on_row": advance,
            }
            if self.format == "tfds":
                from unix_jax.data.sources.tfds_builder import write_tfds

                # The library prints messages on standard output.
                with contextlib.redirect_stdout(io.StringIO()):
                    count, broken, problems = write_tfds(source, self.out, **options)
            else:
                records = PreparedRecords(source, **options)
                count = write_array_records(records, self.out, self.shard_megabytes * 2**20)
                broken, problems = records.broken, records.report_problems
        for error in broken:
            say(f"skipped: {error}", "yellow")
        if problems:
            first = "; ".join(problems[:3]) + ("; ..." if len(problems) > 3 else "")
            warn(f"{len(problems)} records are written without a report: {first}")
        print(f"{self.out}: {count} records, {len(broken)} broken rows skipped")


@dataclasses.dataclass
class Moments:
    """Run the autoencoder's encoder once over a source. Training reads the result (data.moments).

    Source, split, size and padding must be those of the training run.

    For example:
        unix-jax data moments manifest:examples/cxr MOMENTS --checkpoint CHECKPOINT
        unix-jax data moments mimic:DIR MOMENTS --checkpoint CHECKPOINT --height 512 --width 512
    """

    spec: _Spec
    """Source of the images, for example manifest:examples/cxr; docs/data.md lists the kinds."""
    out: Annotated[AnyPathText, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """New directory for the moments."""
    checkpoint: CheckpointText
    """Checkpoint with an autoencoder: converted, a directory in the published layout, or a name on
    the Hugging Face hub."""
    split: str = "train"
    """Split of the source; "" for all records."""
    height: int = 256
    """Height of the padded images in pixels."""
    width: int = 256
    """Width of the padded images in pixels."""
    padding: int = 0
    """Gray level of the padding, 0 to 255."""
    dtype: Literal["float32", "float16"] = "float16"
    """Dtype of the moments on disk."""
    batch_size: int = 8
    """Number of images per batch of the encoder."""
    max_broken: float = 0.01
    """Maximum fraction of broken records. A message names each, and training skips them. If more
    are broken, nothing is written and the exit code is 1."""

    def run(self) -> None:
        from unix_jax.checkpoints.load import load_vae
        from unix_jax.data.config import DataConfig
        from unix_jax.data.moments import write_moments

        _require_positive("--batch-size", self.batch_size)
        _require_fraction("--max-broken", self.max_broken)
        data = DataConfig(
            source=self.spec,
            split=self.split,
            task="generation",
            vae_images=1,
            vae_height=self.height,
            vae_width=self.width,
            vae_padding=self.padding,
            max_broken_fraction=self.max_broken,
        )
        source = open_source(self.spec, self.split)
        config, vae_params = load_vae(self.checkpoint)
        with advancing("encode", len(source)) as advance:
            written = write_moments(
                self.out,
                source,
                config,
                vae_params,
                data,
                batch_size=self.batch_size,
                dtype=self.dtype,
                on_record=advance,
            )
        for error in written.broken:
            say(f"broken, without moments: {error}", "yellow")
        print(f"{self.out}: moments of {written.records} records, {len(written.broken)} broken")
        if written.image_warnings:
            first = "; ".join(written.image_warnings[:3])
            more = ", ..." if len(written.image_warnings) > 3 else ""
            warn(f"{len(written.image_warnings)} images show almost nothing: {first}{more}")


@dataclasses.dataclass
class Ngrams:
    """Count the n-grams of a source's reports. Report generation reads the file (--ngrams).

    The reports must be those of training, never those of an evaluation. A report without text is
    not counted.

    For example:
        unix-jax data ngrams manifest:examples/cxr ngrams.safetensors --tokenizer CHECKPOINT
        unix-jax report xray.png --checkpoint CHECKPOINT --draft ngram --ngrams ngrams.safetensors
    """

    spec: _Spec
    """Source of the records, for example manifest:examples/cxr; docs/data.md lists the kinds."""
    out: Annotated[AnyPathText, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """New file for the n-grams."""
    tokenizer: CheckpointText
    """Directory with the tokenizer.json of the checkpoint that will generate the reports, or a name
    on the Hugging Face hub."""
    split: str = "train"
    """Split of the source; "" for all records."""

    def run(self) -> None:
        from unix_jax.data.records import report_text
        from unix_jax.preprocessing.ngrams import count_ngrams

        if any_path(self.out).exists():
            raise UniXError(f"{self.out}: expected a new file, found an existing one")
        tokenizer, _ = _tokenizer(self.tokenizer)
        source = open_source(self.spec, self.split)
        broken: list[str] = []

        def texts() -> Iterator[str]:
            with advancing("count", len(source)) as advance:
                for index in range(len(source)):
                    advance()
                    try:
                        text = report_text(source[index])
                    except DataError as error:
                        broken.append(str(error))
                        continue
                    if text:
                        yield text

        found = count_ngrams(texts(), tokenizer)
        found.save(self.out)
        for error in broken:
            say(f"skipped: {error}", "yellow")
        contexts = sum(len(part.tokens) for part in found.parts)
        without = len(source) - found.reports - len(broken)
        print(
            f"{self.out}: {contexts:,} contexts from {found.reports} reports, {without} records "
            f"without a report, {len(broken)} broken rows skipped"
        )


def _tokenizer(directory: str) -> "tuple[Tokenizer, UniXConfig]":
    """The tokenizer of a directory, and its model's sizes, which are the published ones without a
    config.json."""
    from unix_jax.checkpoints.hub_files import configuration_files
    from unix_jax.checkpoints.load import load_config
    from unix_jax.checkpoints.run_export import resolve_checkpoint
    from unix_jax.config import UniXConfig
    from unix_jax.preprocessing.text import Tokenizer
    from unix_jax.storage.hub import located

    directory = str(resolve_checkpoint(located(directory, configuration_files, "--tokenizer")))
    configured = (Path(directory) / "config.json").is_file()
    if not configured:
        return Tokenizer.from_directory(directory), UniXConfig.preset("published")
    # A checkpoint may number its control tokens differently.
    config = load_config(directory)[0]
    return Tokenizer.from_directory(directory, config.special_tokens), config


def _require_fraction(argument: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise UniXError(f"{argument}: expected 0 to 1, found {value}")


def _require_positive(argument: str, value: int) -> None:
    if value < 1:
        raise UniXError(f"{argument}: expected at least 1, found {value}")


_Command: Any = tyro.conf.OmitSubcommandPrefixes[  # type: ignore[misc]
    Annotated[Inspect, tyro.conf.subcommand("inspect")]
    | Annotated[Write, tyro.conf.subcommand("write")]
    | Annotated[Moments, tyro.conf.subcommand("moments")]
    | Annotated[Ngrams, tyro.conf.subcommand("ngrams")]
]


_DESCRIPTION = """Inspect a source of chest X-rays and reports, write it as ArrayRecord, write the
autoencoder's moments of its images, or count the n-grams of its reports.

For example:
    unix-jax data inspect manifest:examples/cxr
    unix-jax data write mimic:DIR RECORDS
"""


def main(arguments: Sequence[str] | None = None, prog: str = "unix-jax data") -> int:
    """Runs the command; returns the exit code."""

    def run() -> None:
        given = sys.argv[1:] if arguments is None else list(arguments)
        command: Inspect | Write | Moments | Ngrams = tyro.cli(
            with_short_descriptions(_Command, given),
            prog=prog,
            description=_DESCRIPTION,
            args=given,
        )
        command.run()

    return run_command(run)

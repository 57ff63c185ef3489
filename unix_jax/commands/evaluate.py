"""The command `unix-jax evaluate`: metrics of reports and X-rays, of a model or other software."""

import contextlib
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from unix_jax.commands.evaluate_images import EvaluateImages
from unix_jax.commands.evaluation_run import OverData, Resampled, finish, on_primary
from unix_jax.commands.model import Drafting, Quantized
from unix_jax.commands.subcommands import with_short_descriptions
from unix_jax.commands.terminal import run_command
from unix_jax.errors import UniXError
from unix_jax.storage.arguments import (
    AnyPathText,
    CheckpointText,
    PathText,
    refuse_without_effect,
    require_least,
)
from unix_jax.storage.bucket_path import any_path, local_file
from unix_jax.storage.shown import shown
from unix_jax.storage.working_copy import working_copy

if TYPE_CHECKING:
    from unix_jax.evaluation_runs.items import Progress, Share
    from unix_jax.evaluation_runs.score import ReportMetrics
    from unix_jax.inference.pipeline import UniXPipeline


@dataclasses.dataclass(kw_only=True)
class OfReports(Resampled):
    """Options of the metrics of reports."""

    chexbert: CheckpointText | None = None
    """chexbert.pth or its directory, which must also contain the vocabulary of bert-base-uncased;
    or a name on the Hugging Face hub."""
    chexbert_cut: Literal["tokens", "characters"] = "tokens"
    """Where CheXbert truncates a long report: after 512 tokens, or after 512 characters as in the
    original."""
    radgraph: bool = False
    """Compute F1-RadGraph with the package radgraph."""
    radgraph_model: Literal["radgraph", "radgraph-xl", "modern-radgraph-xl", "echograph"] = (
        "radgraph"
    )
    """Model of F1-RadGraph; the paper uses radgraph."""
    radgraph_level: Literal["simple", "partial", "complete", "all"] = "all"
    """What must match: the entity alone (simple), the entity and whether it has a relation
    (partial, as in the paper), or the entity and its relations (complete). all computes all three.
    """
    radgraph_path: PathText = "~/.cache/radgraph"
    """Directory with the unpacked model, for example radgraph/weights.th and the other files."""

    def _metrics(self) -> "ReportMetrics":
        """The requested metrics, loaded before anything is computed, so that a wrong path ends it
        early."""
        from unix_jax.evaluation.clinical import CheXbert
        from unix_jax.evaluation.radgraph import load_annotator
        from unix_jax.evaluation.text import text_scores
        from unix_jax.evaluation_runs.score import ReportMetrics

        def load_chexbert() -> CheXbert:
            model = CheXbert.from_pretrained(self.chexbert or "")
            model.encode(["a"])  # fails without its vocabulary
            return model

        if not self.radgraph:
            refuse_without_effect(
                self, ("radgraph_model", "radgraph_level", "radgraph_path"), "without --radgraph"
            )
        on_primary(lambda: text_scores(["a"], ["a"]))  # fails without its packages
        chexbert = None if self.chexbert is None else on_primary(load_chexbert)
        radgraph_path = Path(self.radgraph_path).expanduser()
        annotate = (
            on_primary(lambda: load_annotator(radgraph_path, self.radgraph_model))
            if self.radgraph
            else None
        )
        return ReportMetrics(
            chexbert,
            annotate,
            self.chexbert_cut,
            self.resamples,
            radgraph_model=self.radgraph_model,
            radgraph_level=self.radgraph_level,
        )


@dataclasses.dataclass(kw_only=True)
class EvaluateReports(Drafting, Quantized, OfReports, OverData):
    """Generate a report for each X-ray of a data set, and compare it with the record's own report.

    For example:
        unix-jax evaluate reports --checkpoint CHECKPOINT --data manifest:DIR --out results
        unix-jax evaluate reports --checkpoint CHECKPOINT --data mimic:DIR --out results --radgraph
    """

    prompt: str = ""
    """Instruction for every item. By default, the record's own instruction is used, or the first of
    the model's instructions for the sections of the reference."""
    max_new_tokens: int = 500
    """Maximum number of new tokens per report."""

    def run(self) -> None:
        from unix_jax.checkpoints.load import load_config
        from unix_jax.evaluation_runs.report_runs import (
            ReportSettings,
            summarise_reports,
            write_reports,
        )
        from unix_jax.inference.pipeline import check_quantization
        from unix_jax.training import distributed

        require_least(self, batch_size=1, resamples=1, limit=1, max_new_tokens=1)
        self.check_draft()
        distributed.initialise()
        # Before the settings are written.
        check_quantization(self.quantization, self._mesh())
        config, _ = load_config(self._directory)
        largest = config.decoder.max_position_embeddings - 4
        if self.max_new_tokens > largest:
            raise UniXError(
                f"--max-new-tokens: expected at most {largest}, found {self.max_new_tokens}"
            )
        source = self._open()
        how = self._metrics()
        asked = ReportSettings(self.prompt, self.max_new_tokens)
        with working_copy(self.out) as out:
            own = {
                "kind": "reports",
                "quantization": self.quantization,
                **dataclasses.asdict(asked),
            }
            settings = self._begin(source, own, out)

            def work(pipe: "UniXPipeline", share: "Share", progress: "Progress") -> None:
                write_reports(
                    pipe, source, out, asked,
                    batch_size=self.batch_size, draft=self.draft, share=share, progress=progress,
                )  # fmt: skip

            finish(
                out, len(source), "report",
                lambda: self._load(ngrams=self.ngrams, quantization=self.quantization), work,
                lambda: summarise_reports(source, out, settings, how),
            )  # fmt: skip


@dataclasses.dataclass
class EvaluateScore(OfReports):
    """Evaluate reports from other software: .csv or .jsonl files, including the original's
    results.

    For example:
        unix-jax evaluate score --predictions reports.csv
        unix-jax evaluate score --predictions a.jsonl --references b.jsonl --out results
    """

    predictions: AnyPathText
    """File with the reports to evaluate."""
    references: AnyPathText | None = None
    """File with the reference reports. The default is the same file."""
    out: AnyPathText | None = None
    """Directory for results.json and report.html. By default only the table is printed."""
    prediction_field: str = ""
    """Column of the predictions. By default known names are tried."""
    reference_field: str = ""
    """Column of the references. By default known names are tried."""
    key_field: str = ""
    """Column that pairs the rows of two files. By default known names are tried; if both files have
    none, rows are paired by their order."""
    skip_empty: bool = False
    """Exclude pairs with an empty report, as the original does. By default they score 0."""

    def run(self) -> None:
        from unix_jax.evaluation_runs import texts
        from unix_jax.evaluation_runs.report_runs import summarise_texts
        from unix_jax.evaluation_runs.results import print_table

        require_least(self, resamples=1)
        references = self.references or self.predictions
        keys, predicted, wanted = texts.pair(
            texts.read_texts(
                local_file(any_path(self.predictions)),
                _fields(self.prediction_field, texts.PREDICTIONS),
                self.key_field,
            ),
            texts.read_texts(
                local_file(any_path(references)),
                _fields(self.reference_field, texts.REFERENCES),
                self.key_field,
            ),
        )
        settings = {
            "kind": "score", "predictions": self.predictions, "references": references,
            "skip_empty": self.skip_empty,
        }  # fmt: skip
        rows = list(zip(keys, predicted, wanted, strict=True))
        if self.skip_empty:
            rows = [row for row in rows if row[1] and row[2]]
        with contextlib.nullcontext() if self.out is None else working_copy(self.out) as out:
            results = summarise_texts(rows, out, settings, self._metrics())
            print_table(results)
            if out is not None:
                print(shown(out / "report.html"))


def _fields(given: str, known: tuple[str, ...]) -> tuple[str, ...]:
    return (given,) if given else known


Command: Any = tyro.conf.OmitSubcommandPrefixes[  # type: ignore[misc]
    Annotated[EvaluateReports, tyro.conf.subcommand("reports")]
    | Annotated[EvaluateImages, tyro.conf.subcommand("images")]
    | Annotated[EvaluateScore, tyro.conf.subcommand("score")]
]


_DESCRIPTION = """Evaluate a model on a data set, or reports or images from other software.

For example:
    unix-jax evaluate reports --checkpoint CHECKPOINT --data manifest:DIR --out results
    unix-jax evaluate score --predictions reports.csv
"""


def main(arguments: Sequence[str] | None = None, prog: str = "unix-jax evaluate") -> int:
    """Runs the command; returns the exit code."""

    def run() -> None:
        given = sys.argv[1:] if arguments is None else list(arguments)
        command: EvaluateReports | EvaluateImages | EvaluateScore = tyro.cli(
            with_short_descriptions(Command, given),
            prog=prog,
            description=_DESCRIPTION,
            args=given,
        )
        command.run()

    return run_command(run)

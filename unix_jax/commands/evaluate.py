"""`unix-jax evaluate`: reports and drawn X-rays of a model, or reports made elsewhere, measured."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import tyro

from unix_jax.commands.options import require_least
from unix_jax.errors import UniXError

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from unix_jax.data.records import RecordSource
    from unix_jax.evaluation_runs.images import ImageMetrics
    from unix_jax.evaluation_runs.results import Results
    from unix_jax.evaluation_runs.run import Progress, Share
    from unix_jax.evaluation_runs.score import ReportMetrics
    from unix_jax.inference.pipeline import UniXPipeline


T = TypeVar("T")


@dataclasses.dataclass(kw_only=True)
class _Resampled:
    """Figures with intervals."""

    resamples: int = 1000
    """Resamples of the bootstrap."""


@dataclasses.dataclass(kw_only=True)
class _OfReports(_Resampled):
    """What measures reports."""

    chexbert: str | None = None
    """chexbert.pth or its directory, with the vocabulary of bert-base-uncased beside it."""
    chexbert_cut: Literal["tokens", "characters"] = "tokens"
    """What CheXbert reads of a long report: 512 tokens, or 512 characters as the original."""
    radgraph: bool = False
    """Compute F1-RadGraph with the package radgraph."""
    radgraph_path: str = "~/.cache/radgraph"
    """Directory that holds its unpacked model, radgraph/weights.th and the rest."""

    def _metrics(self) -> "ReportMetrics":
        """What is asked for, loaded before anything is computed: a wrong path ends it here."""
        from unix_jax.evaluation.clinical import CheXbert
        from unix_jax.evaluation.radgraph import load_annotator
        from unix_jax.evaluation.text import text_scores
        from unix_jax.evaluation_runs.score import ReportMetrics

        def load_chexbert() -> CheXbert:
            model = CheXbert.from_pretrained(self.chexbert or "")
            model.encode(["a"])  # its vocabulary is there
            return model

        _on_primary(lambda: text_scores(["a"], ["a"]))  # so are the packages
        chexbert = None if self.chexbert is None else _on_primary(load_chexbert)
        radgraph_path = Path(self.radgraph_path).expanduser()
        annotate = _on_primary(lambda: load_annotator(radgraph_path)) if self.radgraph else None
        return ReportMetrics(chexbert, annotate, self.chexbert_cut, self.resamples)


@dataclasses.dataclass
class _OverData(_Resampled):
    """A model over a data set. A run that was stopped goes on when the command is repeated."""

    checkpoint: str
    """Converted checkpoint, or a directory in the published layout."""
    data: str
    """KIND:PATH, for example manifest:DIR or mimic:DIR?reports=clean.jsonl&views=PA,AP."""
    out: str
    """Directory of the results; begun anew or gone on with."""
    split: str = "test"
    """Records of this split; "" for all."""
    limit: int | None = None
    """Take so many records only, the first ones."""
    batch_size: int = 16
    """Items at a time, on all devices of a process together."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Of parameters and computation; a CPU uses float32 either way."""
    mesh: str | None = None
    """Devices of each process that share its work, for example data=2,tensor=4; all of its
    accelerators if absent, a part of the batch each."""

    def _open(self) -> "RecordSource":
        """The records; opened before a model is loaded, since opening may find a mistake."""
        from unix_jax.data.records import Subset
        from unix_jax.data.sources import open_source

        source = open_source(self.data, self.split)
        if self.limit is not None:
            source = Subset(source, range(min(self.limit, len(source))))
        return source

    def _begin(self, source: "RecordSource", own: dict[str, Any]) -> dict[str, Any]:
        """The settings, compared with those that the directory was begun with."""
        from unix_jax.evaluation_runs.journal import remember
        from unix_jax.training.distributed import agree

        settings = {
            "checkpoint": str(Path(self.checkpoint).resolve()),
            "checkpoint_written": _written(Path(self.checkpoint)),
            "dtype": self.dtype,
            "data": self.data,
            "split": self.split,
            "items": len(source),
            **own,
        }
        agree(lambda: remember(Path(self.out), settings))
        return settings

    def _load(self) -> "UniXPipeline":
        from unix_jax.inference.pipeline import UniXPipeline

        return UniXPipeline.from_pretrained(self.checkpoint, self.dtype, self._mesh())

    def _mesh(self) -> "Mesh | None":
        import jax

        from unix_jax.sharding import make_mesh, parse_mesh

        # A process's own devices: processes share nothing but the directory.
        devices = jax.local_devices()
        if self.mesh is not None:
            return parse_mesh(self.mesh, devices=devices)
        if len(devices) == 1 or devices[0].platform == "cpu":
            return None
        return make_mesh(data=len(devices), devices=devices)


@dataclasses.dataclass
class EvaluateReports(_OfReports, _OverData):
    """Write a report for each X-ray of a data set, and compare it with the record's own."""

    prompt: str = ""
    """Instruction for every item; the record's own or the default one if empty."""
    max_new_tokens: int = 500
    """Most tokens written for one report."""

    def run(self) -> None:
        from convert.load import load_config
        from unix_jax.evaluation_runs.reports import (
            ReportSettings,
            summarise_reports,
            write_reports,
        )
        from unix_jax.training import distributed

        require_least(self, batch_size=1, resamples=1, limit=1, max_new_tokens=1)
        distributed.initialise()
        config, _ = load_config(self.checkpoint)
        largest = config.decoder.max_position_embeddings - 4
        if self.max_new_tokens > largest:
            raise UniXError(
                f"--max-new-tokens: expected at most {largest}, found {self.max_new_tokens}"
            )
        source = self._open()
        how = self._metrics()
        asked = ReportSettings(self.prompt, self.max_new_tokens)
        settings = self._begin(source, {"kind": "reports", **dataclasses.asdict(asked)})
        out = Path(self.out)

        def work(pipe: "UniXPipeline", share: "Share", progress: "Progress") -> None:
            write_reports(
                pipe, source, out, asked,
                batch_size=self.batch_size, share=share, progress=progress,
            )  # fmt: skip

        _finish(
            out, len(source), "report", self._load, work,
            lambda: summarise_reports(source, out, settings, how),
        )  # fmt: skip


@dataclasses.dataclass
class EvaluateImages(_OverData):
    """Draw an X-ray from each text of a data set, and compare all of them with its own."""

    batch_size: int = 4
    """Items at a time, on all devices of a process together."""
    size: int | None = None
    """Both sides in pixels; 512, or the largest of a smaller model, if absent."""
    steps: int = 50
    """Points of the time grid: steps - 1 network evaluations."""
    timestep_shift: float = 3.0
    """Above 1 spends more steps near noise."""
    guidance_scale: float = 2.0
    """Text guidance; 1 turns it off."""
    seed: int = 0
    """With an item's number, gives the seed of its noise."""
    rad_dino: str | None = None
    """Directory of RAD-DINO; without it, pictures are drawn and not measured."""
    biovil_t: str | None = None
    """Directory of BioViL-T, for the alignment of picture and text."""
    shards: Literal[1, 4] = 1
    """1: figures of all pictures; 4: their mean over four contiguous shards, as published."""
    by_pathology: bool = False
    """The distances for each label of the records as well."""

    def run(self) -> None:
        from convert.load import load_config
        from unix_jax.evaluation_runs.images import (
            DrawingSettings,
            checked_drawing,
            draw_images,
            summarise_images,
        )
        from unix_jax.training import distributed

        require_least(self, batch_size=1, resamples=1, limit=1)
        if self.by_pathology and self.rad_dino is None:
            raise UniXError("--by-pathology: expected --rad-dino PATH beside it, found none")
        distributed.initialise()
        config, has_vae = load_config(self.checkpoint)
        if not has_vae:
            raise UniXError(f"{self.checkpoint}: expected an autoencoder to draw with, found none")
        asked = checked_drawing(
            DrawingSettings(
                self.size, self.steps, self.timestep_shift, self.guidance_scale, self.seed
            ),
            config,
        )
        source = self._open()
        how = self._metrics()
        settings = self._begin(source, {"kind": "images", **dataclasses.asdict(asked)})
        out = Path(self.out)

        def work(pipe: "UniXPipeline", share: "Share", progress: "Progress") -> None:
            draw_images(
                pipe, source, out, asked,
                batch_size=self.batch_size, share=share, progress=progress,
            )  # fmt: skip

        _finish(
            out, len(source), "image", self._load, work,
            lambda: summarise_images(source, out, settings, how),
        )  # fmt: skip

    def _metrics(self) -> "ImageMetrics":
        from unix_jax.evaluation.alignment import BioViLT
        from unix_jax.evaluation.features import RadDino
        from unix_jax.evaluation_runs.images import ImageMetrics

        rad_dino, biovil_t = self.rad_dino, self.biovil_t
        return ImageMetrics(
            None if rad_dino is None else _on_primary(lambda: RadDino.from_pretrained(rad_dino)),
            None if biovil_t is None else _on_primary(lambda: BioViLT.from_pretrained(biovil_t)),
            self.shards,
            self.by_pathology,
            self.resamples,
        )


@dataclasses.dataclass
class EvaluateScore(_OfReports):
    """Measure reports made elsewhere: .csv or .jsonl files, the original's results among them."""

    predictions: str
    """File with the reports to measure."""
    references: str | None = None
    """File with the reports to compare with; the same file if absent."""
    out: str | None = None
    """Directory for results.json and report.html; only the table if absent."""
    prediction_field: str = ""
    """Column of the predictions; known names are tried if empty."""
    reference_field: str = ""
    """Column of the references; known names are tried if empty."""
    key_field: str = ""
    """Column that pairs rows of two files; their order pairs them if both have none."""
    skip_empty: bool = False
    """Leave pairs with an empty report out, as the original does; they score 0 otherwise."""

    def run(self) -> None:
        from unix_jax.evaluation_runs import texts
        from unix_jax.evaluation_runs.reports import summarise_texts
        from unix_jax.evaluation_runs.results import print_table

        require_least(self, resamples=1)
        references = self.references or self.predictions
        keys, predicted, wanted = texts.pair(
            texts.read_texts(
                self.predictions, _fields(self.prediction_field, texts.PREDICTIONS), self.key_field
            ),
            texts.read_texts(
                references, _fields(self.reference_field, texts.REFERENCES), self.key_field
            ),
        )
        settings = {
            "kind": "score", "predictions": self.predictions, "references": references,
            "skip_empty": self.skip_empty,
        }  # fmt: skip
        rows = list(zip(keys, predicted, wanted, strict=True))
        if self.skip_empty:
            rows = [row for row in rows if row[1] and row[2]]
        out = None if self.out is None else Path(self.out)
        results = summarise_texts(rows, out, settings, self._metrics())
        print_table(results)
        if out is not None:
            print(out / "report.html")


@dataclasses.dataclass
class Evaluate:
    """Measure a model over a data set, or reports made elsewhere."""

    what: (
        Annotated[EvaluateReports, tyro.conf.subcommand("reports")]
        | Annotated[EvaluateImages, tyro.conf.subcommand("images")]
        | Annotated[EvaluateScore, tyro.conf.subcommand("score")]
    )

    def run(self) -> None:
        self.what.run()


def _fields(given: str, known: tuple[str, ...]) -> tuple[str, ...]:
    return (given,) if given else known


def _finish(
    out: Path,
    total: int,
    unit: str,
    load: Callable[[], "UniXPipeline"],
    work: Callable[["UniXPipeline", "Share", "Progress"], None],
    summarise: Callable[[], "Results"],
) -> None:
    """This process's share, then, when all have done theirs, the figures."""
    import jax

    from unix_jax.evaluation_runs.journal import read_entries
    from unix_jax.evaluation_runs.results import print_table
    from unix_jax.evaluation_runs.run import Share, wait_for_all
    from unix_jax.training.distributed import agree
    from unix_jax.training.progress import ProgressLine

    share = Share(jax.process_index(), jax.process_count())
    items = share.items(total)
    done = read_entries(out)
    before = sum(index in done for index in items)
    if before < len(items):
        pipe = load()
        line = ProgressLine(unit=unit)
        after = before

        def progress(count: int) -> None:
            nonlocal after
            after += count
            line.update(after, {})

        try:
            with line.over(before, len(items)):
                work(pipe, share, progress)
        except KeyboardInterrupt:
            line.say(f"what is done is kept in {out}; run the same command to go on")
            raise
    wait_for_all(out, total)

    def measure() -> None:
        print_table(summarise())
        print(out / "report.html")

    agree(measure)


def _on_primary(load: Callable[[], T]) -> T | None:
    """What `load` gives in the process that measures, None in the others; its error in all."""
    from unix_jax.training.distributed import agree

    loaded: list[T] = []
    agree(lambda: loaded.append(load()))
    return loaded[0] if loaded else None


def _written(checkpoint: Path) -> int:
    """When a checkpoint was last written, in seconds: another model may stand at the same path."""
    files = [path for path in checkpoint.rglob("*") if path.is_file()]
    return max((int(path.stat().st_mtime) for path in files), default=0)

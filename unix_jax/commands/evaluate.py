"""`unix-jax evaluate`: reports and X-rays of a model, or those made elsewhere, measured."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import tyro

from unix_jax.errors import UniXError
from unix_jax.storage.arguments import (
    CheckpointText,
    LocalPath,
    PathText,
    SourceText,
    refuse_without_effect,
    require_least,
)

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from unix_jax.data.records import RecordSource
    from unix_jax.evaluation_runs.image_scores import ImageMetrics
    from unix_jax.evaluation_runs.images import DiffusionDrawingSettings, DrawingSettings
    from unix_jax.evaluation_runs.items import Progress, Share
    from unix_jax.evaluation_runs.nearest_training import Training
    from unix_jax.evaluation_runs.radiomics_tables import RadiomicsTables
    from unix_jax.evaluation_runs.results import Results
    from unix_jax.evaluation_runs.score import ReportMetrics
    from unix_jax.inference.pipeline import UniXPipeline


T = TypeVar("T")
# What decides how images are generated, and nothing else.
_OF_GENERATION = (
    "size", "steps", "timestep_shift", "guidance_scale", "guidance_rescale", "sampler", "seed",
    "dtype", "mesh", "batch_size",
)  # fmt: skip


@dataclasses.dataclass(kw_only=True)
class _Resampled:
    """Figures with intervals."""

    resamples: int = 1000
    """Resamples of the bootstrap."""


@dataclasses.dataclass(kw_only=True)
class _OfReports(_Resampled):
    """What measures reports."""

    chexbert: CheckpointText | None = None
    """chexbert.pth or its directory, with the vocabulary of bert-base-uncased beside it; or a name
    on the Hugging Face hub."""
    chexbert_cut: Literal["tokens", "characters"] = "tokens"
    """What CheXbert reads of a long report: 512 tokens, or 512 characters as the original."""
    radgraph: bool = False
    """Compute F1-RadGraph with the package radgraph."""
    radgraph_model: Literal["radgraph", "radgraph-xl", "modern-radgraph-xl", "echograph"] = (
        "radgraph"
    )
    """Its model; the paper's figures are of radgraph."""
    radgraph_level: Literal["simple", "partial", "complete", "all"] = "all"
    """What must match: an entity alone, whether it has a relation as well (the paper's figure), or
    its relations too; all returns the three of them."""
    radgraph_path: PathText = "~/.cache/radgraph"
    """Directory that holds its unpacked model, for example radgraph/weights.th and the rest."""

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

        if not self.radgraph:
            _refuse_changed(
                self, ("radgraph_model", "radgraph_level", "radgraph_path"), "with --radgraph"
            )
        _on_primary(lambda: text_scores(["a"], ["a"]))  # so are the packages
        chexbert = None if self.chexbert is None else _on_primary(load_chexbert)
        radgraph_path = Path(self.radgraph_path).expanduser()
        annotate = (
            _on_primary(lambda: load_annotator(radgraph_path, self.radgraph_model))
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
class _OverData(_Resampled):
    """A model over a data set. A run that was stopped resumes when the command is repeated."""

    checkpoint: CheckpointText
    """Converted checkpoint, directory in the published layout, or directory of a training run; or a
    name on the Hugging Face hub."""
    data: SourceText
    """KIND:PATH, for example manifest:DIR or mimic:DIR?reports=clean.jsonl&views=PA,AP."""
    out: PathText
    """Directory of the results: a new one, or that of a run to resume."""
    split: str = "test"
    """Records of this split; "" for all."""
    limit: int | None = None
    """Number of records to take, the first ones; all if absent."""
    batch_size: int = 16
    """Items at a time, on all devices of a process together."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Of parameters and computation; a CPU uses float32 either way."""
    mesh: str | None = None
    """Devices of each process that share its work, for example data=2,tensor=4; all of its
    accelerators if absent, a part of the batch each."""

    @functools.cached_property
    def _directory(self) -> Path:
        """The checkpoint's local directory; a name on the hub is downloaded, once per machine."""
        from unix_jax.checkpoints.run_export import resolve_checkpoint

        return resolve_checkpoint(self.checkpoint)

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
            "checkpoint": str(self._directory.resolve()),
            "checkpoint_written": _written(self._directory),
            "dtype": self.dtype,
            "data": self.data,
            "split": self.split,
            "items": len(source),
            **own,
        }
        agree(lambda: remember(Path(self.out), settings))
        return settings

    def _load(self) -> Any:
        """The pipeline of the checkpoint's kind."""
        from unix_jax.checkpoints.diffusers_checkpoint import is_diffusers
        from unix_jax.inference.diffusion import DiffusionPipeline
        from unix_jax.inference.pipeline import UniXPipeline

        if is_diffusers(self._directory):
            return DiffusionPipeline.from_pretrained(self._directory, self.dtype, self._mesh())
        return UniXPipeline.from_pretrained(self._directory, self.dtype, self._mesh())

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


@dataclasses.dataclass(kw_only=True)
class EvaluateReports(_OfReports, _OverData):
    """Write a report for each X-ray of a data set, and compare it with the record's own."""

    prompt: str = ""
    """Instruction for every item; if empty, the record's own, or the first of the
    model's instructions for the sections that the reference has."""
    max_new_tokens: int = 500
    """Most tokens written for one report."""

    def run(self) -> None:
        from unix_jax.checkpoints.load import load_config
        from unix_jax.evaluation_runs.reports import (
            ReportSettings,
            summarise_reports,
            write_reports,
        )
        from unix_jax.training import distributed

        require_least(self, batch_size=1, resamples=1, limit=1, max_new_tokens=1)
        distributed.initialise()
        config, _ = load_config(self._directory)
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


@dataclasses.dataclass(kw_only=True)
class EvaluateImages(_OverData):
    """Generate an X-ray from each text of a data set, or take those made elsewhere, and compare all
    of them with the data set's own."""

    checkpoint: CheckpointText = ""
    """The model that generates, needed without --generated: a converted checkpoint, a directory in
    the published layout, or a name on the Hugging Face hub."""
    generated: LocalPath | None = None
    """In place of a checkpoint: images made elsewhere. A folder, or a CSV such as the original's,
    with annotated_prompt and synthetic_filename."""
    generated_root: LocalPath | None = None
    """Folder where the file names of that CSV start; the CSV's own if absent."""
    batch_size: int = 4
    """Items at a time, on all devices of a process together."""
    size: int | None = None
    """Both sides in pixels; 512, or the largest of a smaller model, if absent."""
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
    seed: int = 0
    """With an item's number, gives the seed of its noise."""
    rad_dino: CheckpointText | None = None
    """Directory of RAD-DINO, or microsoft/rad-dino to download it, for FD, KD, precision, recall,
    density and coverage."""
    biovil_t: CheckpointText | None = None
    """Directory of BioViL-T, or microsoft/BiomedVLP-BioViL-T to download it, for the alignment of
    image and text."""
    inception: LocalPath | None = None
    """Weights of torch-fidelity's Inception-v3, for FID, KID and the Inception score."""
    radiomics_real: LocalPath | None = None
    """Radiomics features of the real images, .csv or .npy, for the Frechet radiomics distance."""
    radiomics_generated: LocalPath | None = None
    """Radiomics features of the generated images."""
    shards: int = 1
    """1: figures of all images. N: their mean over N contiguous shards; 4 as published."""
    by_pathology: bool = False
    """The figures for each label of the records as well."""
    train: SourceText = ""
    """Training images, KIND:PATH: looks up the nearest one of each generated image, and shows both
    side by side in nearest.html. Needs no weights; --rad-dino and --reid add their distances."""
    train_split: str = "train"
    """Split of the training images; "" for all."""
    reid: LocalPath | None = None
    """Weights of the benchmark's siamese ResNet-50, for the re-identification score."""

    def run(self) -> None:
        from unix_jax.training import distributed

        require_least(self, batch_size=1, resamples=1, limit=1, shards=1)
        if bool(self.checkpoint) == (self.generated is not None):
            raise UniXError("expected either --checkpoint PATH or --generated PATH")
        measured = (self.rad_dino, self.biovil_t, self.inception, self.radiomics_real)
        if self.by_pathology and not any(measured):
            raise UniXError(
                "--by-pathology: expected --rad-dino, --biovil-t, --inception or --radiomics-real "
                "beside it, found none"
            )
        if bool(self.radiomics_real) != bool(self.radiomics_generated):
            raise UniXError("expected --radiomics-real and --radiomics-generated together")
        if not self.train:
            _refuse_changed(self, ("train_split", "reid"), "with --train SOURCE")
        distributed.initialise()
        if self.checkpoint:
            self._generate()
        else:
            self._measure()

    def _generate(self) -> None:
        from unix_jax.evaluation_runs.image_results import summarise_images
        from unix_jax.evaluation_runs.image_set import images_of_run
        from unix_jax.evaluation_runs.images import draw_images

        _refuse_changed(self, ("generated_root",), "with --generated CSV")
        asked = self._settings()
        source = self._open()
        training = self._training(source)
        how = self._metrics()
        settings = self._begin(source, {"kind": "images", **dataclasses.asdict(asked)})
        out = Path(self.out)

        def work(pipe: Any, share: "Share", progress: "Progress") -> None:
            draw_images(
                pipe, source, out, asked,
                batch_size=self.batch_size, share=share, progress=progress,
            )  # fmt: skip

        assert asked.size is not None
        side = asked.size
        _finish(
            out, len(source), "image", self._load, work,
            lambda: summarise_images(
                images_of_run(source, out, side), out, "images", settings, how, training,
                _with_progress,
            ),
        )  # fmt: skip

    def _settings(self) -> "DrawingSettings | DiffusionDrawingSettings":
        """How images are generated, checked before the weights are read."""
        from unix_jax.checkpoints.diffusers_checkpoint import is_diffusers, open_diffusers
        from unix_jax.checkpoints.load import load_config
        from unix_jax.evaluation_runs.images import (
            DiffusionDrawingSettings,
            DrawingSettings,
            checked_drawing,
        )

        scale = self.guidance_scale
        if is_diffusers(self._directory):
            refuse_without_effect(self, ("timestep_shift",), "a diffusers checkpoint")
            folder = open_diffusers(self._directory)
            return DiffusionDrawingSettings(
                self.size,
                self.steps,
                7.5 if scale is None else scale,
                self.guidance_rescale or 0.0,
                self.sampler,
                self.seed,
            ).checked(folder.vae_config, folder.native_size)
        refuse_without_effect(self, ("guidance_rescale", "sampler"), "a checkpoint of UniX")
        config, has_vae = load_config(self._directory)
        if not has_vae:
            raise UniXError(
                f"{self.checkpoint}: expected an autoencoder to generate with, found none"
            )
        scale = 2.0 if scale is None else scale
        settings = DrawingSettings(self.size, self.steps, self.timestep_shift, scale, self.seed)
        return checked_drawing(settings, config)

    def _measure(self) -> None:
        from unix_jax.evaluation_runs.image_results import summarise_images
        from unix_jax.evaluation_runs.image_set import images_made_elsewhere
        from unix_jax.evaluation_runs.journal import remember
        from unix_jax.evaluation_runs.results import print_table
        from unix_jax.training.distributed import agree

        generated, out = self.generated, Path(self.out)
        assert generated is not None
        _refuse_changed(self, _OF_GENERATION, "with --checkpoint: images made elsewhere stay as "
                        "they are")  # fmt: skip
        if out.resolve().is_relative_to(generated.resolve()):
            raise UniXError(f"--out {out}: expected a directory outside of --generated {generated}")
        source = self._open()
        training = self._training(source)
        how = self._metrics()
        settings = {
            "kind": "generated",
            "generated": str(generated.resolve()),
            "generated_root": None
            if self.generated_root is None
            else str(self.generated_root.resolve()),
            "data": self.data,
            "split": self.split,
            "items": len(source),
        }

        def measure() -> None:
            images = images_made_elsewhere(
                generated,
                source,
                self.generated_root,
                compared=how.compares or (training is not None and training.baseline),
                steps=_with_progress,
            )
            remember(out, settings)
            print_table(
                summarise_images(images, out, "generated", settings, how, training, _with_progress)
            )
            _print_pages(out)

        agree(measure)

    def _training(self, source: "RecordSource") -> "Training | None":
        from unix_jax.data.sources import open_source, overlap
        from unix_jax.evaluation.reid import Reidentification
        from unix_jax.evaluation_runs.nearest_training import Training

        if not self.train:
            return None
        training = open_source(self.train, self.train_split)
        reid = self.reid
        return Training(
            f"{self.train} ({f'split {self.train_split}' if self.train_split else 'all splits'})",
            training,
            None if reid is None else _on_primary(lambda: Reidentification.from_pretrained(reid)),
            baseline=not overlap(self.train, self.train_split, training, self.data, self.split),
        )

    def _metrics(self) -> "ImageMetrics":
        from unix_jax.evaluation.alignment import BioViLT
        from unix_jax.evaluation.features import RadDino
        from unix_jax.evaluation.inception import Inception
        from unix_jax.evaluation_runs.image_scores import ImageMetrics

        rad_dino, biovil_t, inception = self.rad_dino, self.biovil_t, self.inception
        return ImageMetrics(
            None if rad_dino is None else _on_primary(lambda: RadDino.from_pretrained(rad_dino)),
            None if biovil_t is None else _on_primary(lambda: BioViLT.from_pretrained(biovil_t)),
            None
            if inception is None
            else _on_primary(lambda: Inception.from_pretrained(inception)),
            _on_primary(self._radiomics),
            self.shards,
            self.by_pathology,
            self.resamples,
        )

    def _radiomics(self) -> "RadiomicsTables | None":
        from unix_jax.evaluation_runs.radiomics_tables import RadiomicsTables, read_radiomics

        if self.radiomics_real is None or self.radiomics_generated is None:
            return None
        tables = RadiomicsTables(
            read_radiomics(self.radiomics_real), read_radiomics(self.radiomics_generated)
        )
        tables.features()  # their columns fit
        return tables


@dataclasses.dataclass
class EvaluateScore(_OfReports):
    """Measure reports made elsewhere: .csv or .jsonl files, the original's results among them."""

    predictions: PathText
    """File with the reports to measure."""
    references: PathText | None = None
    """File with the reports to compare with; the same file if absent."""
    out: PathText | None = None
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
    """Measure a model over a data set, or reports or images made elsewhere."""

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

    from unix_jax.evaluation_runs.items import Share, wait_for_all
    from unix_jax.evaluation_runs.journal import read_entries
    from unix_jax.evaluation_runs.results import print_table
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
            line.say(f"what is done is kept in {out}; run the same command to resume")
            raise
    wait_for_all(out, total)

    def measure() -> None:
        print_table(summarise())
        _print_pages(out)

    agree(measure)


def _print_pages(out: Path) -> None:
    from unix_jax.evaluation_runs.image_results import NEAREST_PAGE, PAGE

    for name in (PAGE, NEAREST_PAGE):
        if (out / name).exists():
            print(out / name)


def _with_progress(items: Sequence[Any], unit: str) -> Iterator[Any]:
    """The items, with a line that says how far they are."""
    from unix_jax.training.progress import ProgressLine

    line = ProgressLine(unit=unit)
    with line.over(0, len(items)):
        for done, item in enumerate(items, 1):
            yield item
            line.update(done, {})


def _refuse_changed(command: Any, names: Sequence[str], expected: str) -> None:
    """Raises UniXError for an option that is not at its default, where it would do nothing."""
    defaults = {field.name: field.default for field in dataclasses.fields(command)}
    for name in names:
        if getattr(command, name) != defaults[name]:
            raise UniXError(f"--{name.replace('_', '-')}: expected only {expected}")


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

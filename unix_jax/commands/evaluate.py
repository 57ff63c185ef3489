"""The command `unix-jax evaluate`: metrics of reports and X-rays, of a model or other software."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import tyro

from unix_jax.errors import UniXError
from unix_jax.storage.arguments import (
    AnyPathText,
    CheckpointText,
    LocalPath,
    PathText,
    SourceText,
    refuse_without_effect,
    require_least,
)
from unix_jax.storage.bucket_path import any_path, local_file
from unix_jax.storage.shown import shown
from unix_jax.storage.working_copy import working_copy

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from unix_jax.data.records import RecordSource
    from unix_jax.evaluation_runs.image_runs import DiffusionGenerationSettings, GenerationSettings
    from unix_jax.evaluation_runs.image_scores import ImageMetrics
    from unix_jax.evaluation_runs.items import Progress, Share
    from unix_jax.evaluation_runs.nearest_training import Training
    from unix_jax.evaluation_runs.radiomics_tables import RadiomicsTables
    from unix_jax.evaluation_runs.results import Results
    from unix_jax.evaluation_runs.score import ReportMetrics
    from unix_jax.inference.pipeline import UniXPipeline


T = TypeVar("T")
# The options that only affect how images are generated.
_OF_GENERATION = (
    "size", "num_inference_steps", "solver", "timestep_shift", "guidance_scale",
    "guidance_rescale", "sampler", "seed", "dtype", "mesh", "batch_size",
)  # fmt: skip


@dataclasses.dataclass(kw_only=True)
class _Resampled:
    """Options of metrics with intervals."""

    resamples: int = 1000
    """Number of bootstrap resamples."""


@dataclasses.dataclass(kw_only=True)
class _OfReports(_Resampled):
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
        _on_primary(lambda: text_scores(["a"], ["a"]))  # fails without its packages
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
    """Options of a run of a model over a data set. Repeating the command resumes a stopped run."""

    checkpoint: CheckpointText
    """Converted checkpoint, directory in the published layout, or directory of a training run; or a
    name on the Hugging Face hub."""
    data: SourceText
    """Source of the records, KIND:PATH, for example manifest:DIR or
    mimic:DIR?reports=clean.jsonl&views=PA,AP."""
    out: AnyPathText
    """Directory for the results: a new one, or that of a run to resume."""
    split: str = "test"
    """Split to evaluate; "" for all records."""
    limit: int | None = None
    """Number of records to evaluate, from the first. The default is all. A directory that was
    started with a smaller number is resumed with the further records."""
    batch_size: int = 16
    """Number of items per batch, over all devices of a process."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Dtype of parameters and computation; a CPU always uses float32."""
    mesh: str | None = None
    """Devices of each process that share its work, for example data=2,tensor=4. By default, the
    batch is divided over all accelerators of the process."""

    @functools.cached_property
    def _directory(self) -> Path:
        """The checkpoint's local directory; a name on the hub is downloaded, once per machine."""
        from unix_jax.checkpoints.run_export import resolve_checkpoint

        return resolve_checkpoint(self.checkpoint)

    def _open(self) -> "RecordSource":
        """The records, opened before a model is loaded, since opening may find an error."""
        from unix_jax.data.records import Subset
        from unix_jax.data.sources import open_source

        source = open_source(self.data, self.split)
        if self.limit is not None:
            source = Subset(source, range(min(self.limit, len(source))))
        return source

    def _begin(self, source: "RecordSource", own: dict[str, Any], out: Path) -> dict[str, Any]:
        """The settings, compared with those of the first run in the directory."""
        from unix_jax.evaluation_runs.evaluation_files import remember
        from unix_jax.training.distributed import agree

        settings = {
            "checkpoint": shown(self._directory.resolve()),
            "checkpoint_written": _written(self._directory),
            "dtype": self.dtype,
            **self._of_data(source),
            **own,
        }
        agree(lambda: remember(out, settings))
        return settings

    def _of_data(self, source: "RecordSource") -> dict[str, Any]:
        """The settings that identify the records: the source, and the numbers of its records."""
        from unix_jax.data.records import Subset

        records = len(source.source) if isinstance(source, Subset) else len(source)
        return {
            "data": self.data,
            "split": self.split,
            "records": records,
            "items": len(source),
        }

    def _load(self) -> Any:
        """The pipeline of the checkpoint's kind."""
        from unix_jax.checkpoints.configurations import is_diffusers
        from unix_jax.inference.diffusion import DiffusionPipeline
        from unix_jax.inference.pipeline import UniXPipeline

        kind: Any = DiffusionPipeline if is_diffusers(self._directory) else UniXPipeline
        return kind.from_pretrained(self._directory, dtype=self.dtype, mesh=self._mesh())

    def _mesh(self) -> "Mesh | None":
        import jax

        from unix_jax.sharding import make_mesh, parse_mesh

        # Only the process's own devices: processes share only the directory.
        devices = jax.local_devices()
        if self.mesh is not None:
            return parse_mesh(self.mesh, devices=devices)
        if len(devices) == 1 or devices[0].platform == "cpu":
            return None
        return make_mesh(data=len(devices), devices=devices)


@dataclasses.dataclass(kw_only=True)
class EvaluateReports(_OfReports, _OverData):
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
        with working_copy(self.out) as out:
            own = {"kind": "reports", **dataclasses.asdict(asked)}
            settings = self._begin(source, own, out)

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
    """Generate an X-ray from each text of a data set, or read images from other software, and
    compare all of them with the images of the data set.

    For example:
        unix-jax evaluate images --checkpoint CHECKPOINT --data manifest:DIR --out results
        unix-jax evaluate images --generated IMAGES --data csv:FILE --out results --rad-dino DIR
    """

    checkpoint: CheckpointText = ""
    """Model that generates the images: a converted checkpoint, a directory in the published
    layout, or a name on the Hugging Face hub. Required without --generated."""
    generated: LocalPath | None = None
    """Images from other software, instead of a checkpoint: a folder, or a CSV such as the
    original's, with annotated_prompt and synthetic_filename."""
    generated_root: LocalPath | None = None
    """Folder of the file names in that CSV. The default is the folder of the CSV."""
    batch_size: int = 4
    """Number of items per batch, over all devices of a process."""
    size: int | None = None
    """Height and width in pixels. The default is 512, or the maximum of a smaller model."""
    num_inference_steps: int | None = None
    """Number of steps per image. The default is 49, the original's 50 grid points, or 50 for a
    diffusers checkpoint."""
    solver: Literal["euler", "ab2", "pec"] = "euler"
    """Solver of the steps: euler as in the original; ab2 and pec need fewer steps."""
    timestep_shift: float = 3.0
    """Shift of the time grid; values above 1 place more steps near the noise."""
    guidance_scale: float | None = None
    """Text guidance; 1 turns it off. The default is 2, or 7.5 for a diffusers checkpoint."""
    guidance_rescale: float | None = None
    """Only for diffusers checkpoints: strength, from 0 to 1, of rescaling the guided output to the
    standard deviation of the conditional one."""
    sampler: Literal["ddim", "euler"] | None = None
    """Only for diffusers checkpoints: the sampler. The default is the checkpoint's own."""
    seed: int = 0
    """Random seed; the noise of each item depends on it and the item's index."""
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
    """Number of contiguous shards over which metrics are averaged. 1 computes them over all images;
    the published table uses 4."""
    by_pathology: bool = False
    """Also compute the metrics for each label of the records."""
    train: SourceText = ""
    """Training images, KIND:PATH. The nearest one of each generated image is shown next to it in
    nearest.html. Needs no weights; --rad-dino and --reid add their distances."""
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
                "together with it, found none"
            )
        if bool(self.radiomics_real) != bool(self.radiomics_generated):
            raise UniXError("expected --radiomics-real and --radiomics-generated together")
        if not self.train:
            refuse_without_effect(self, ("train_split", "reid"), "without --train SOURCE")
        distributed.initialise()
        if self.checkpoint:
            self._generate()
        else:
            self._measure()

    def _generate(self) -> None:
        from unix_jax.evaluation_runs.image_results import summarise_images
        from unix_jax.evaluation_runs.image_runs import generate_images
        from unix_jax.evaluation_runs.image_set import images_of_run

        refuse_without_effect(self, ("generated_root",), "without --generated CSV")
        asked = self._settings()
        source = self._open()
        training = self._training(source)
        how = self._metrics()
        assert asked.size is not None
        side = asked.size
        with working_copy(self.out) as out:
            settings = self._begin(source, {"kind": "images", **dataclasses.asdict(asked)}, out)

            def work(pipe: Any, share: "Share", progress: "Progress") -> None:
                generate_images(
                    pipe, source, out, asked,
                    batch_size=self.batch_size, share=share, progress=progress,
                )  # fmt: skip

            _finish(
                out, len(source), "image", self._load, work,
                lambda: summarise_images(
                    images_of_run(source, out, side), out, "images", settings, how, training,
                    _with_progress,
                ),
            )  # fmt: skip

    def _settings(self) -> "GenerationSettings | DiffusionGenerationSettings":
        """The settings for generating images, checked before the weights are read."""
        from unix_jax.checkpoints.configurations import is_diffusers
        from unix_jax.checkpoints.diffusers_checkpoint import open_diffusers
        from unix_jax.checkpoints.load import load_config
        from unix_jax.evaluation_runs.image_runs import (
            DiffusionGenerationSettings,
            GenerationSettings,
            checked_generation,
        )

        scale = self.guidance_scale
        if is_diffusers(self._directory):
            where = f"with a diffusers checkpoint, {self.checkpoint}"
            refuse_without_effect(self, ("timestep_shift", "solver"), where)
            folder = open_diffusers(self._directory)
            return DiffusionGenerationSettings(
                self.size,
                50 if self.num_inference_steps is None else self.num_inference_steps,
                7.5 if scale is None else scale,
                self.guidance_rescale or 0.0,
                self.sampler,
                self.seed,
            ).checked(folder.vae_config, folder.native_size)
        where = f"with a checkpoint of UniX, {self.checkpoint}"
        refuse_without_effect(self, ("guidance_rescale", "sampler"), where)
        config, has_vae = load_config(self._directory)
        if not has_vae:
            raise UniXError(
                f"{self.checkpoint}: expected an autoencoder to generate with, found none"
            )
        scale = 2.0 if scale is None else scale
        steps = 49 if self.num_inference_steps is None else self.num_inference_steps
        settings = GenerationSettings(
            self.size, steps, self.solver, self.timestep_shift, scale, self.seed
        )
        return checked_generation(settings, config)

    def _measure(self) -> None:
        from unix_jax.evaluation_runs.evaluation_files import remember
        from unix_jax.evaluation_runs.image_results import summarise_images
        from unix_jax.evaluation_runs.image_set import images_of_files
        from unix_jax.evaluation_runs.results import print_table
        from unix_jax.training.distributed import agree

        generated = self.generated
        assert generated is not None
        refuse_without_effect(
            self, _OF_GENERATION, "without --checkpoint: images of other software are not changed"
        )
        if any_path(self.out).resolve().is_relative_to(generated.resolve()):
            raise UniXError(
                f"--out {self.out}: expected a directory outside of --generated {generated}"
            )
        source = self._open()
        training = self._training(source)
        how = self._metrics()
        settings = {
            "kind": "generated",
            "generated": str(generated.resolve()),
            "generated_root": None
            if self.generated_root is None
            else str(self.generated_root.resolve()),
            **self._of_data(source),
        }

        def measure(out: Path) -> None:
            images = images_of_files(
                generated,
                source,
                self.generated_root,
                compared=how.compares or (training is not None and training.baseline),
                steps=_with_progress,
            )
            remember(out, settings)
            results = summarise_images(
                images, out, "generated", settings, how, training, _with_progress
            )
            print_table(results)
            _print_pages(out)

        with working_copy(self.out) as out:
            agree(lambda: measure(out))

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
        tables.features()  # fails if their columns differ
        return tables


@dataclasses.dataclass
class EvaluateScore(_OfReports):
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


@dataclasses.dataclass
class Evaluate:
    """Evaluate a model on a data set, or reports or images from other software.

    For example:
        unix-jax evaluate reports --checkpoint CHECKPOINT --data manifest:DIR --out results
        unix-jax evaluate score --predictions reports.csv
    """

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
    """Processes this process's share; computes metrics when all processes have finished."""
    import jax

    from unix_jax.commands.progress import ProgressLine
    from unix_jax.evaluation_runs.evaluation_files import read_entries
    from unix_jax.evaluation_runs.items import Share, wait_for_all
    from unix_jax.evaluation_runs.results import print_table, require_result
    from unix_jax.training.distributed import agree

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
            line.say(f"finished work is kept in {out}; run the same command to resume")
            raise
    wait_for_all(out, total)

    def measure() -> None:
        results = summarise()
        print_table(results)
        _print_pages(out)
        require_result(results)

    agree(measure)


def _print_pages(out: Path) -> None:
    from unix_jax.evaluation_runs.image_results import NEAREST_PAGE, PAGE

    for name in (PAGE, NEAREST_PAGE):
        if (out / name).exists():
            print(shown(out / name))


def _with_progress(items: Sequence[Any], unit: str) -> Iterator[Any]:
    """The items, with a progress line."""
    from unix_jax.commands.progress import ProgressLine

    line = ProgressLine(unit=unit)
    with line.over(0, len(items)):
        for done, item in enumerate(items, 1):
            yield item
            line.update(done, {})


def _on_primary(load: Callable[[], T]) -> T | None:
    """The result of `load` in the primary process, None in the others; all raise its error."""
    from unix_jax.training.distributed import agree

    loaded: list[T] = []
    agree(lambda: loaded.append(load()))
    return loaded[0] if loaded else None


def _written(checkpoint: Path) -> int:
    """Time of the last write to a checkpoint in seconds, since its path may have another model."""
    files = [path for path in checkpoint.rglob("*") if path.is_file()]
    return max((int(path.stat().st_mtime) for path in files), default=0)

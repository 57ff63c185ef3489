"""The command `unix-jax evaluate images`: metrics of X-rays, of a model or other software."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from unix_jax.commands.evaluation_run import (
    OverData,
    finish,
    on_primary,
    print_pages,
    with_progress,
)
from unix_jax.errors import UniXError
from unix_jax.storage.arguments import (
    CheckpointText,
    LocalPath,
    SourceText,
    refuse_without_effect,
    require_least,
)
from unix_jax.storage.bucket_path import any_path
from unix_jax.storage.working_copy import working_copy

if TYPE_CHECKING:
    from unix_jax.data.records import RecordSource
    from unix_jax.evaluation_runs.image_runs import DiffusionGenerationSettings, GenerationSettings
    from unix_jax.evaluation_runs.image_scores import ImageMetrics
    from unix_jax.evaluation_runs.items import Progress, Share
    from unix_jax.evaluation_runs.nearest_training import Training
    from unix_jax.evaluation_runs.radiomics_tables import RadiomicsTables

# The options that only affect how images are generated.
_OF_GENERATION = (
    "size", "num_inference_steps", "solver", "timestep_shift", "guidance_scale",
    "guidance_rescale", "sampler", "seed", "dtype", "mesh", "batch_size",
)  # fmt: skip


@dataclasses.dataclass(kw_only=True)
class EvaluateImages(OverData):
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

            finish(
                out, len(source), "image", self._load, work,
                lambda: summarise_images(
                    images_of_run(source, out, side), out, "images", settings, how, training,
                    with_progress,
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
                steps=with_progress,
            )
            remember(out, settings)
            results = summarise_images(
                images, out, "generated", settings, how, training, with_progress
            )
            print_table(results)
            print_pages(out)

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
            None if reid is None else on_primary(lambda: Reidentification.from_pretrained(reid)),
            baseline=not overlap(self.train, self.train_split, training, self.data, self.split),
        )

    def _metrics(self) -> "ImageMetrics":
        from unix_jax.evaluation.alignment import BioViLT
        from unix_jax.evaluation.features import RadDino
        from unix_jax.evaluation.inception import Inception
        from unix_jax.evaluation_runs.image_scores import ImageMetrics

        rad_dino, biovil_t, inception = self.rad_dino, self.biovil_t, self.inception
        return ImageMetrics(
            None if rad_dino is None else on_primary(lambda: RadDino.from_pretrained(rad_dino)),
            None if biovil_t is None else on_primary(lambda: BioViLT.from_pretrained(biovil_t)),
            None if inception is None else on_primary(lambda: Inception.from_pretrained(inception)),
            on_primary(self._radiomics),
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

"""Generation of X-rays from the texts of a data set, item by item, with a journal."""

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unix_jax.config import AutoencoderConfig, UniXConfig
from unix_jax.data.records import RecordSource, captions_of, record_image
from unix_jax.errors import DataError
from unix_jax.evaluation_runs.items import Progress, Ready, Share, key_of, padded, run_items
from unix_jax.inference.diffusion import DiffusionPipeline
from unix_jax.inference.pipeline import UniXPipeline
from unix_jax.inference.sampling import Solver
from unix_jax.inference.settings import DiffusionSettings, ImageSettings
from unix_jax.preprocessing.gray_levels import gray_level_problem
from unix_jax.preprocessing.schedule_config import Sampler
from unix_jax.preprocessing.transforms import save_png

FOLDER = "images"


@dataclasses.dataclass(frozen=True)
class GenerationSettings:
    """Settings of generated images; see `UniXPipeline.generate_image`.

    size: both sides in pixels; None is the model's own.
    seed: together with an item's index, determines its noise.
    """

    size: int | None = None
    num_inference_steps: int = 49
    solver: Solver = "euler"
    timestep_shift: float = 3.0
    guidance_scale: float = 2.0
    seed: int = 0

    def arguments(self) -> dict[str, Any]:
        """The keywords of `UniXPipeline.generate_image`."""
        return {
            "height": self.size,
            "width": self.size,
            "num_inference_steps": self.num_inference_steps,
            "solver": self.solver,
            "timestep_shift": self.timestep_shift,
            "guidance_scale": self.guidance_scale,
        }


@dataclasses.dataclass(frozen=True)
class DiffusionGenerationSettings:
    """Settings of images of a diffusers checkpoint; see `DiffusionPipeline.generate_image`.

    size: both sides in pixels; None is the model's own.
    seed: together with an item's index, determines its noise.
    """

    size: int | None = None
    num_inference_steps: int = 50
    guidance_scale: float = 7.5
    guidance_rescale: float = 0.0
    sampler: Sampler | None = None
    seed: int = 0

    def arguments(self) -> dict[str, Any]:
        """The keywords of `DiffusionPipeline.generate_image`."""
        return {
            "height": self.size,
            "width": self.size,
            "num_inference_steps": self.num_inference_steps,
            "guidance_scale": self.guidance_scale,
            "guidance_rescale": self.guidance_rescale,
            "sampler": self.sampler,
        }

    def checked(
        self, vae: AutoencoderConfig, native: tuple[int, int]
    ) -> "DiffusionGenerationSettings":
        """Like `checked_generation`, for the sizes of a diffusers checkpoint."""
        values = self.arguments()
        asked = DiffusionSettings(**values).checked(vae, (min(native), min(native)))
        return dataclasses.replace(self, size=asked.height)


def checked_generation(settings: GenerationSettings, config: UniXConfig) -> GenerationSettings:
    """The settings with their size filled in, checked before any item is processed.

    Raises:
      PromptError: a setting that this model does not support.
    """
    asked = ImageSettings(**settings.arguments()).checked(config)
    return dataclasses.replace(settings, size=asked.height)


def item_seed(seed: int, index: int) -> int:
    """The seed of an item's noise: depends only on its index in the source, not on the batch."""
    digest = hashlib.blake2b(f"{seed}/{index}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little")


def image_name(index: int) -> str:
    """The path of an item's image, relative to the directory of the run."""
    return f"{FOLDER}/{index:06d}.png"


def generate_images(
    pipe: UniXPipeline | DiffusionPipeline,
    source: RecordSource,
    out: Path,
    settings: GenerationSettings | DiffusionGenerationSettings,
    *,
    batch_size: int = 4,
    share: Share | None = None,
    progress: Progress = lambda count: None,
) -> None:
    """Generates an image from each record's first caption into `out`, with journals.

    A record without a text, or with a broken image, is recorded as failed. For a record without an
    image, an image is generated. The entry of an image that shows almost nothing (`gray_levels`)
    has a `warning`.

    Raises:
      UniXError: a journal that cannot be used, or a model that cannot generate images.
    """

    def prepare(index: int) -> tuple[str, str]:
        record = source[index]
        captions = captions_of(record)
        if not captions:
            raise DataError(f"{record.key}: expected a text to generate from, found none")
        if record.image is not None:
            record_image(record)
        return record.key, captions[0]

    def compute(ready: Sequence[Ready[str]], rows: int) -> list[dict[str, Any]]:
        seeds = [item_seed(settings.seed, item.index) for item in ready]
        images = pipe.generate_image(
            padded([item.input for item in ready], rows),
            seed=padded(seeds, rows),
            **settings.arguments(),
        )
        values = []
        for item, seed, image in zip(ready, seeds, images, strict=False):  # less the padding
            name = image_name(item.index)
            save_png(out / name, image, {"prompt": item.input, "seed": str(seed)})
            problem = gray_level_problem(image)
            values.append(
                {"prompt": item.input, "seed": seed, "image": name}
                | ({"warning": problem} if problem else {})
            )
        return values

    run_items(
        out, len(source), batch_size, prepare, compute,
        name=lambda index: key_of(source, index), share=share, progress=progress,
    )  # fmt: skip

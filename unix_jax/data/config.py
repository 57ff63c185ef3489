"""Configuration of a run's data and its packing: one frozen dataclass."""

import dataclasses
import os
from typing import Annotated, Literal

import tyro

from unix_jax.config import UniXConfig
from unix_jax.data.augmentation import AugmentationConfig
from unix_jax.data.mixture import TASKS, Part, Task, parse_mixture
from unix_jax.errors import ConfigError
from unix_jax.storage.bucket_path import any_path
from unix_jax.storage.paths import source_text

_LEAST_IMAGES: dict[Task, dict[str, int]] = {
    "understanding": {"vit_images": 1},
    "generation": {"vae_images": 1},
    "edit": {"vit_images": 1, "vae_images": 2},
}


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Samples, rows and the loader. Lengths are in tokens, image sizes in pixels."""

    source: str = ""
    """Source of the records, KIND:PATH, for example manifest:DIR (docs/data.md lists the kinds).
    Several sources with weights and tasks are supported, such as 0.7*mimic:DIR + 0.3*csv:FILE."""
    split: str = "train"
    """Split of the source; "" for all records."""
    task: Task = "understanding"
    """Task for records of a source without its own task. understanding: [ViT image, prompt,
    report]; generation: [caption, noised VAE image]; edit: [clean VAE image, ViT image, caption,
    noised VAE image], where the first two are the record's condition."""
    prompts: tuple[str, ...] = ()
    """Instructions for reports. Each sample uses one of them at random, independent of the sections
    of its report. A record's own prompt has precedence. If empty, the model's instructions for the
    sections of the report are used."""
    caption_dropout: float = 0.1
    """Fraction of generation and edit samples whose text is dropped, for guidance."""
    condition_dropout: float = 0.1
    """Fraction of edit samples whose condition images are both dropped, for guidance."""
    augmentation: AugmentationConfig = dataclasses.field(default_factory=AugmentationConfig)
    """Random changes of the images of training samples."""

    rows: int = 8
    """Number of packed rows per step over all devices; the processes share them evenly."""
    und_tokens: int = 4096
    """Length of a row in tokens of text and ViT images."""
    text_tokens: int | None = None
    """Maximum number of text tokens per row; raised to what the images of a full row leave. With
    it, images are in fixed slots of a row, and attention does not compute pairs of different
    images. Samples have one ViT image, at the beginning, or captions and an image to generate;
    conversations with more images are skipped. None: rows of any samples, also of the task edit."""
    vit_images: int = 6
    """Maximum number of ViT images per row; with 0, batches have none."""
    vae_images: int = 0
    """Maximum number of VAE images per row; with 0, batches have none."""
    vae_height: int = 256
    """Height of VAE images in pixels; each image is scaled to fit and padded."""
    vae_width: int = 256
    """Width of VAE images in pixels."""
    vae_padding: int = 0
    """Gray level of the padding, 0 to 255. Black matches the unexposed border of a radiograph; a
    model that learns white bars generates them."""
    jpeg_draft: bool = False
    """Decode large JPEG files at a half, a quarter or an eighth of their size, with at least twice
    the pixels that the model reads along each side. Faster; gray levels differ slightly from those
    of inference. Validation and other formats are not affected."""
    grayscale: bool = False
    """Send images to the devices with one channel instead of three, and convert colour images to
    grayscale. The numbers of grayscale images, as radiographs are, do not change."""
    moments: str | None = None
    """Directory written by `unix-jax data moments`, used instead of the pixels of VAE images. In a
    mixture, it belongs to the only part for generation."""
    ce_weighting: Literal["token", "sqrt"] = "token"
    """Weight of each predicted token. token: 1; sqrt: 1 / sqrt(number of tokens in its text)."""

    # Seed of the order and the random choices of samples; training uses the seed of the run.
    seed: Annotated[int, tyro.conf.Fixed, tyro.conf.Suppress] = 0
    """Seed of the order and of random choices. It is not an option: `train.py` has --seed."""
    shuffle: bool = True
    """Shuffle the records in each epoch."""
    epochs: Annotated[int | None, tyro.conf.Fixed, tyro.conf.Suppress] = None
    """Number of passes over the data; by default unlimited. Each part of a mixture has its own
    epochs; when it ends, its share is divided among the others. It is not an option: `train.py`
    has --total-epochs."""
    open_rows: int = 32
    """Maximum number of rows that wait for a fitting sample; more rows leave less padding."""
    max_broken_fraction: float = 0.1
    """Maximum fraction of broken images and records so far; above it, the run stops."""
    broken_after: int = 200
    """Minimum number of samples before this fraction is checked."""
    threads: int = min(os.cpu_count() or 1, 64)
    """Number of threads that read and decode. The default is the number of cores, at most 64."""
    prefetch: int = 2
    """Number of batches that are prepared in advance."""

    def __post_init__(self) -> None:
        def require(holds: bool, field: str, expected: str) -> None:
            if not holds:
                found = getattr(self, field)
                raise ConfigError(f"data.{field}: expected {expected}, found {found!r}")

        source_text(self.source, "data.source")
        if self.moments is not None:
            any_path(self.moments, "data.moments")
        require(self.task in TASKS, "task", f"one of {', '.join(TASKS)}")
        require(all(p.strip() for p in self.prompts), "prompts", "texts that are not empty")
        require(0 <= self.caption_dropout <= 1, "caption_dropout", "0 to 1")
        require(0 <= self.condition_dropout <= 1, "condition_dropout", "0 to 1")
        require(0 <= self.vae_padding <= 255, "vae_padding", "a gray level from 0 to 255")
        require(self.ce_weighting in ("token", "sqrt"), "ce_weighting", "token or sqrt")
        require(0 <= self.seed < 2**32, "seed", "0 to 2**32 - 1")
        require(self.epochs is None or self.epochs >= 1, "epochs", "at least 1, or none")
        require(0 <= self.max_broken_fraction <= 1, "max_broken_fraction", "0 to 1")
        for field in ("rows", "und_tokens", "vae_height", "vae_width", "open_rows", "threads"):
            require(getattr(self, field) >= 1, field, "at least 1")
        require(self.text_tokens is None or self.text_tokens >= 1, "text_tokens", "at least 1")
        for field in ("vit_images", "vae_images", "broken_after", "prefetch"):
            require(getattr(self, field) >= 0, field, "at least 0")
        for task in self.tasks:
            for image, least in _LEAST_IMAGES[task].items():
                expected = f"at least {least} for the task {task}"
                require(getattr(self, image) >= least, image, expected)
        if self.text_tokens is not None and "edit" in self.tasks:
            raise ConfigError(
                "data.text_tokens: expected None with the task edit, whose samples have images "
                f"that see others, found {self.text_tokens}"
            )
        if self.moments is not None and "edit" in self.tasks:
            raise ConfigError(
                "data.moments: expected none with the task edit, whose samples have two VAE "
                f"images, found {self.moments!r}"
            )
        if self.moments is not None and self.augmentation:
            raise ConfigError(
                "data.augmentation: expected none with data.moments, which belong to unchanged "
                f"images, found {self.augmentation}"
            )
        generating = [part for part in self.parts if part.task == "generation"]
        if self.moments is not None and len(generating) > 1:
            raise ConfigError(
                "data.moments: expected one part of data.source for generation, to which they "
                f"belong, found {len(generating)}: {', '.join(part.spec for part in generating)}"
            )

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts of the source, one unless it is a mixture."""
        return parse_mixture(self.source, self.task)

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks of all parts, each once, in the order of `TASKS`."""
        found = {part.task for part in self.parts}
        return tuple(task for task in TASKS if task in found)

    def latent_grid(self, config: UniXConfig) -> tuple[int, int]:
        """(height, width) of a VAE image in latent tokens.

        Raises:
          ConfigError: the size is not a multiple of a token's, or larger than the position table.
        """
        side = config.latent_downsample
        for field in ("vae_height", "vae_width"):
            size = getattr(self, field)
            largest = None if config.interpolate_pos else config.max_latent_size * side
            if size % side or (largest is not None and size > largest):
                limit = (
                    ""
                    if largest is None
                    else f", at most {largest} (max_latent_size, which "
                    "`unix-jax convert import --max-latent-size` raises)"
                )
                raise ConfigError(
                    f"data.{field}: expected a multiple of {side} pixels (a latent token){limit}, "
                    f"found {size}"
                )
        return self.vae_height // side, self.vae_width // side

    def gen_tokens(self, config: UniXConfig) -> int:
        """Latent tokens that a row holds."""
        if not self.vae_images:
            return 0
        height, width = self.latent_grid(config)
        return self.vae_images * height * width

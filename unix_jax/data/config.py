"""What a run's data are and how they are packed: one frozen dataclass."""

import dataclasses
from typing import Annotated, Literal

import tyro

from unix_jax.config import UniXConfig
from unix_jax.data.augmentation import AugmentationConfig
from unix_jax.data.mixture import TASKS, Part, Task, parse_mixture
from unix_jax.errors import ConfigError
from unix_jax.storage.paths import local_path, source_text

_LEAST_IMAGES: dict[Task, dict[str, int]] = {
    "understanding": {"vit_images": 1},
    "generation": {"vae_images": 1},
    "edit": {"vit_images": 1, "vae_images": 2},
}


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Samples, rows and the loader. Lengths are in tokens, image sizes in pixels."""

    source: str = ""
    """Source of the records, KIND:PATH, for example manifest:DIR (docs/data.md lists the kinds); or
    sources with weights and tasks, such as 0.7*mimic:DIR + 0.3*csv:FILE."""
    split: str = "train"
    """Split of the source; "" for all records."""
    task: Task = "understanding"
    """What a record becomes, where its part of the source names no task. understanding: [ViT image,
    prompt, report]; generation: [caption, noised VAE image]; edit: [clean VAE image, ViT image,
    caption, noised VAE image], where the first two are the record's condition."""
    prompts: tuple[str, ...] = ()
    """Instructions for reports, of which each sample takes one at random, whatever sections its
    report has. A record's own prompt comes first. If empty: the model's instructions for the
    sections of the report."""
    caption_dropout: float = 0.1
    """Fraction of generation and edit samples that lose their text, for guidance."""
    condition_dropout: float = 0.1
    """Fraction of edit samples that lose both images of their condition, for guidance."""
    augmentation: AugmentationConfig = dataclasses.field(default_factory=AugmentationConfig)
    """Random changes of the images of training samples."""

    rows: int = 8
    """Packed rows of a step over all devices; the processes share them evenly."""
    und_tokens: int = 4096
    """Length of a row in tokens of text and ViT images."""
    vit_images: int = 6
    """ViT images that a row can hold; 0: batches have none."""
    vae_images: int = 0
    """VAE images that a row can hold; 0: batches have none."""
    vae_height: int = 256
    """Height of VAE images in pixels; each image is scaled to fit and padded."""
    vae_width: int = 256
    """Width of VAE images in pixels."""
    vae_padding: int = 0
    """Gray level of that padding, 0 to 255. Black continues the unexposed border of a radiograph;
    a model that learns white bars generates them."""
    moments: str | None = None
    """Directory that `unix-jax data moments` wrote, used instead of the pixels of VAE images; of a
    mixture, those of its only part for generation."""
    ce_weighting: Literal["token", "sqrt"] = "token"
    """Weight of each predicted token: token: 1; sqrt: 1 / sqrt(number of tokens of its text)."""

    # The order and the random choices of the samples; training takes the seed of the run.
    seed: Annotated[int, tyro.conf.Fixed, tyro.conf.Suppress] = 0
    """Seed of order and random choices. No option: `train.py` takes --seed."""
    shuffle: bool = True
    """Take the records in a new random order in each epoch."""
    epochs: int | None = None
    """Number of passes over the data; endless if absent. A run whose data end, ends. Each part of a
    mixture has its own epochs, and leaves its share to the others when it ends."""
    open_rows: int = 32
    """Number of rows that wait for a sample that fits; more leave less padding."""
    max_broken_fraction: float = 0.1
    """Largest fraction of broken images and rows so far before the run ends."""
    broken_after: int = 200
    """Number of samples that this fraction is taken of at least."""
    threads: int = 8
    """Threads that read and decode."""
    prefetch: int = 2
    """Batches that are prepared ahead; 0 for none."""

    def __post_init__(self) -> None:
        def require(holds: bool, field: str, expected: str) -> None:
            if not holds:
                found = getattr(self, field)
                raise ConfigError(f"data.{field}: expected {expected}, found {found!r}")

        source_text(self.source, "data.source")
        if self.moments is not None:
            local_path(self.moments, "data.moments")
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
        for field in ("vit_images", "vae_images", "broken_after", "prefetch"):
            require(getattr(self, field) >= 0, field, "at least 0")
        for task in self.tasks:
            for image, least in _LEAST_IMAGES[task].items():
                expected = f"at least {least} for the task {task}"
                require(getattr(self, image) >= least, image, expected)
        if self.moments is not None and "edit" in self.tasks:
            raise ConfigError(
                "data.moments: expected none with the task edit, whose samples have two VAE "
                f"images, found {self.moments!r}"
            )
        if self.moments is not None and self.augmentation:
            raise ConfigError(
                "data.augmentation: expected none with data.moments, which are of images as they "
                f"are, found {self.augmentation}"
            )
        drawn = [part for part in self.parts if part.task == "generation"]
        if self.moments is not None and len(drawn) > 1:
            raise ConfigError(
                "data.moments: expected one part of data.source for generation, whose moments they "
                f"are, found {len(drawn)}: {', '.join(part.spec for part in drawn)}"
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
          ConfigError: the size is no multiple of a token's, or larger than the position table.
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

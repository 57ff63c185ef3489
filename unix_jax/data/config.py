"""What a run's data are and how they are packed: one frozen dataclass."""

import dataclasses
from typing import Literal

from unix_jax.config import UniXConfig
from unix_jax.errors import ConfigError
from unix_jax.text import DEFAULT_REPORT_PROMPT

Task = Literal["understanding", "generation"]

# Ours: the published prompts are not known. The first is the one that inference asks.
REPORT_PROMPTS = (
    DEFAULT_REPORT_PROMPT,
    "Describe the findings of this chest X-ray and give an impression.",
    "Write a report of this chest radiograph.",
    "What does this chest X-ray show? Answer as a radiology report.",
    "Read this chest X-ray and report the findings and the impression.",
)


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Samples, rows and the loader. Lengths are in tokens, image sizes in pixels.

    source, split: as `unix_jax.data.sources.open_source` reads them.
    task: what a record becomes: [ViT image, prompt, report] or [caption, noised VAE image].
    prompts: one is drawn for each understanding sample whose record has no prompt of its own.
    caption_dropout: the share of generation samples that lose their text, bos and eos included.

    rows: packed rows of a global step; the processes share them evenly.
    und_tokens, vit_images, vae_images: what one row holds. 0 images: the batch has no such input.
    vae_height, vae_width: of every VAE image; the picture is scaled to fit and padded.
    vae_padding: gray level of that padding, 0 to 255. Black, unlike the white of the reports'
      letterbox: it continues the unexposed border of a radiograph, while a model that learns white
      bars draws them.
    moments: a directory of `unix_jax.data.moments`, used instead of the pictures' VAE pixels.
    ce_weighting: `token`: 1 for each predicted token; `sqrt`: 1 / sqrt(their number) of each text.

    seed, shuffle: the order, with the step the only thing that decides it. epochs: None never
      ends; a finite run ends with rows that may be empty.
    open_rows: rows that wait for a sample that fits; more of them leave less padding.
    max_broken_fraction: more broken images and rows than this share of the samples so far (counted
      as `broken_after` at least) end the run.
    threads: that read and decode. prefetch: batches made ahead, 0 for none.
    """

    source: str = ""
    split: str = "train"
    task: Task = "understanding"
    prompts: tuple[str, ...] = REPORT_PROMPTS
    caption_dropout: float = 0.1

    rows: int = 8
    und_tokens: int = 4096
    vit_images: int = 6
    vae_images: int = 0
    vae_height: int = 256
    vae_width: int = 256
    vae_padding: int = 0
    moments: str | None = None
    ce_weighting: Literal["token", "sqrt"] = "token"

    seed: int = 0
    shuffle: bool = True
    epochs: int | None = None
    open_rows: int = 32
    max_broken_fraction: float = 0.1
    broken_after: int = 200
    threads: int = 8
    prefetch: int = 2

    def __post_init__(self) -> None:
        def require(holds: bool, field: str, expected: str) -> None:
            if not holds:
                found = getattr(self, field)
                raise ConfigError(f"data.{field}: expected {expected}, found {found!r}")

        require(self.task in ("understanding", "generation"), "task", "understanding or generation")
        require(bool(self.prompts), "prompts", "at least one")
        require(0 <= self.caption_dropout <= 1, "caption_dropout", "0 to 1")
        require(0 <= self.vae_padding <= 255, "vae_padding", "a gray level from 0 to 255")
        require(self.ce_weighting in ("token", "sqrt"), "ce_weighting", "token or sqrt")
        require(0 <= self.seed < 2**32, "seed", "0 to 2**32 - 1")
        require(self.epochs is None or self.epochs >= 1, "epochs", "at least 1, or none")
        require(0 <= self.max_broken_fraction <= 1, "max_broken_fraction", "0 to 1")
        for field in ("rows", "und_tokens", "vae_height", "vae_width", "open_rows", "threads"):
            require(getattr(self, field) >= 1, field, "at least 1")
        for field in ("vit_images", "vae_images", "broken_after", "prefetch"):
            require(getattr(self, field) >= 0, field, "at least 0")
        image = "vit_images" if self.task == "understanding" else "vae_images"
        require(getattr(self, image) >= 1, image, f"at least 1 for the task {self.task}")

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
                    "`python -m convert import --max-latent-size` raises)"
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

"""Random changes of training X-rays that keep left and right. H height, W width in pixels."""

import dataclasses
import math

import numpy as np
from PIL import Image

from unix_jax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class AugmentationConfig:
    """Largest changes of each training image; validation, evaluation and inference have none.

    Each sample of each epoch has its own changes, the same for all its images. No image is
    mirrored: the side of a finding is part of the report.
    """

    shift: float = 0.0
    """Largest shift along each axis, as a fraction of the image's side."""
    scale: float = 0.0
    """Largest change of size, as a fraction: 0.1 is a factor from 1 / 1.1 to 1.1."""
    rotation: float = 0.0
    """Largest rotation in degrees, either way."""
    contrast: float = 0.0
    """Largest change of contrast about the mean gray level, and of brightness, as a fraction."""
    noise: float = 0.0
    """Largest standard deviation of Gaussian noise, as a fraction of the range of gray levels."""
    unchanged: float = 0.0
    """Fraction of the samples that stay as they are: a model that must also know its training
    images by heart learns these faster."""

    def __post_init__(self) -> None:
        limits = {
            "shift": 0.5, "scale": 1.0, "rotation": 45.0, "contrast": 0.9, "noise": 1.0,
            "unchanged": 1.0,
        }  # fmt: skip
        for name, limit in limits.items():
            if not 0 <= getattr(self, name) <= limit:
                raise ConfigError(
                    f"data.augmentation.{name}: expected 0 to {limit:g}, "
                    f"found {getattr(self, name)}"
                )

    def __bool__(self) -> bool:
        return any(dataclasses.astuple(dataclasses.replace(self, unchanged=0.0)))


def augment(
    image: Image.Image, config: AugmentationConfig, rng: np.random.Generator
) -> Image.Image:
    """The image under one random change; size and mode stay.

    What is moved in from outside is black, as the unexposed border of a radiograph is. The changes
    are uniform in [-limit, limit], the logarithm of the scale likewise, and the spread of the noise
    uniform in [0, limit].

    Args:
      image: of mode RGB or L; it stays as it is.
      config: the largest changes.
      rng: the same state gives the same change.
    """
    across, down, size, turn, contrast, brightness = rng.uniform(-1.0, 1.0, 6)
    spread = config.noise * rng.uniform()
    # Drawn only where it matters: without it, the changes are those of earlier versions.
    if config.unchanged and rng.uniform() < config.unchanged:
        return image
    if config.shift or config.scale or config.rotation:
        image = _moved(
            image,
            (across * config.shift * image.width, down * config.shift * image.height),
            (1.0 + config.scale) ** size,
            math.radians(turn * config.rotation),
        )
    if not (config.contrast or spread):
        return image
    levels = np.asarray(image, np.float32)
    # Exact, so that one channel and three equal ones give the same image.
    mean = float(levels.mean(dtype=np.float64))
    levels = (levels - mean) * (1.0 + contrast * config.contrast) + mean
    levels += 255.0 * config.contrast / 2 * brightness
    if spread:
        # All channels of a radiograph are equal and remain equal.
        noise = rng.standard_normal(levels.shape[:2], np.float32) * np.float32(255.0 * spread)
        levels += noise[..., None] if levels.ndim == 3 else noise
    return Image.fromarray(np.rint(levels.clip(0, 255)).astype(np.uint8))


def _moved(
    image: Image.Image, shift: tuple[float, float], scale: float, angle: float
) -> Image.Image:
    """Turned and scaled about the centre, then shifted by pixels right and down."""
    x, y = image.width / 2, image.height / 2
    # Maps a pixel of the result to its origin: the inverse of the transform.
    cos, sin = math.cos(angle) / scale, math.sin(angle) / scale
    left, up = -x - shift[0], -y - shift[1]
    matrix = (cos, sin, cos * left + sin * up + x, -sin, cos, -sin * left + cos * up + y)
    return image.transform(
        image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor=0
    )

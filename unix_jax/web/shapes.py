"""Sizes of generated images that a server supports.

Each size compiles programs of its own. A server that accepted every size would compile for hours
and keep all programs in memory.
"""

from unix_jax.config import UniXConfig
from unix_jax.inference.settings import ImageSettings

_SIDES = 4


def largest_side(config: UniXConfig) -> int:
    """Pixels along a side that the position table covers."""
    return config.max_latent_size * config.latent_downsample


def image_sides(config: UniXConfig) -> tuple[int, ...]:
    """Sides of square images in pixels, ascending: quarters of the largest, and the default."""
    unit, largest = config.latent_downsample, largest_side(config)
    quarters = {max(unit, round(largest * i / _SIDES / unit) * unit) for i in range(1, _SIDES + 1)}
    return tuple(sorted(quarters | {ImageSettings().size(config)[0]}))


def quarter_sizes(native: tuple[int, int], unit: int) -> tuple[tuple[int, int], ...]:
    """(height, width) in pixels, ascending: quarters of the size that a U-Net was trained for.

    Args:
      native: that size in latents.
      unit: pixels per latent.
    """
    quarters = range(1, _SIDES + 1)
    sizes = {tuple(max(1, round(side * i / _SIDES)) * unit for side in native) for i in quarters}
    return tuple(sorted((height, width) for height, width in sizes))

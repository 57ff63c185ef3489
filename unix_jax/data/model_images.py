"""A record's image in the fixed size of a model's input, as 8-bit pixels.

`unix_jax.preprocessing.pixels` normalises them on the devices. H height, W width, C channels: 3, or
1 with `data.grayscale`.
"""

from collections.abc import Callable
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from unix_jax.config import UniXConfig
from unix_jax.data.config import DataConfig
from unix_jax.data.records import Record, record_levels
from unix_jax.preprocessing.gray_levels import gray_level_problem
from unix_jax.preprocessing.transforms import letterbox, pad_to_fit, to_levels

OnProblem = Callable[[str], object]
Change = Callable[[Image.Image], Image.Image]
# A JPEG draft has at least this multiple of the pixels that the model reads along a side.
_DRAFT = 2


def unchanged(image: Image.Image) -> Image.Image:
    """The image itself: no augmentation."""
    return image


def vit_pixels(
    record: Record,
    config: UniXConfig,
    on_problem: OnProblem = lambda problem: None,
    number: int = 0,
    change: Change = unchanged,
    *,
    jpeg_draft: bool = False,
    grayscale: bool = False,
) -> UInt8[np.ndarray, "H W C"]:
    """Letterboxed on white, as in the evaluation.

    Args:
      record: with an image.
      config: the model's sizes.
      on_problem: called with the image's `gray_level_problem`, if there is one.
      number: index of the image in `record.images`.
      change: of the decoded image, such as an augmentation.
      jpeg_draft, grayscale: see `DataConfig`.

    Raises:
      DataError: the record has no image, or one that cannot be read.
    """
    side = config.vision.image_size
    draft_side = _DRAFT * side if jpeg_draft else None
    image = change(_image(record, on_problem, number, draft_side, grayscale))
    return to_levels(letterbox(image, side), _channels(grayscale))


def vae_pixels(
    record: Record,
    data: DataConfig,
    on_problem: OnProblem = lambda problem: None,
    change: Change = unchanged,
) -> UInt8[np.ndarray, "H W C"]:
    """Padded to `data.vae_height` x `data.vae_width`.

    Args:
      record, on_problem, change: as in `vit_pixels`.
      data: has the size, the gray level of the padding, `jpeg_draft` and `grayscale`.

    Raises:
      DataError: as `vit_pixels`.
    """
    draft_side = _DRAFT * max(data.vae_height, data.vae_width) if data.jpeg_draft else None
    image = change(_image(record, on_problem, 0, draft_side, data.grayscale))
    padded = pad_to_fit(image, data.vae_height, data.vae_width, data.vae_padding)
    return to_levels(padded, _channels(data.grayscale))


def _channels(grayscale: bool) -> Literal[1, 3]:
    return 1 if grayscale else 3


def _image(
    record: Record, on_problem: OnProblem, number: int, draft_side: int | None, grayscale: bool
) -> Image.Image:
    image = record_levels(record, number, draft_side)
    problem = gray_level_problem(image)
    if problem:
        on_problem(problem)
    return image.convert("L") if grayscale and image.mode != "L" else image

"""What callers may pass to the pipeline, brought into one form: a list with an item a row."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array
from PIL import Image

from unix_jax.errors import PromptError
from unix_jax.gray_levels import warn_of_gray_levels
from unix_jax.images import ImageSource, image_name, load_image

Images = ImageSource | Sequence[ImageSource]
Prompts = str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]]


def image_list(images: Images) -> list[Image.Image]:
    """Loaded pictures; a single path, picture or array [H, W(, C)] counts as one row.

    An `ImageWarning` names each that is nearly black, nearly white or nearly constant.

    Raises:
      ImageError: one of them cannot be read.
      PromptError: there are none.
    """
    single = isinstance(images, str | Path | bytes | Image.Image)
    if isinstance(images, np.ndarray):
        single = images.ndim < 4
    sources: Sequence[Any] = [images] if single else list(images)  # type: ignore[arg-type]
    if not sources:
        raise PromptError("images: expected at least one, found none")
    pictures = [load_image(source) for source in sources]
    for index, (source, picture) in enumerate(zip(sources, pictures, strict=True)):
        name = image_name(source)
        warn_of_gray_levels(picture, name if hasattr(picture, "filename") else f"{name} {index}")
    return pictures


def prompt_list(prompts: Prompts, rows: int | None = None) -> list[Any]:
    """One prompt a row: strings or lists of ids. A single one serves all `rows`.

    Raises:
      PromptError: none, or another number than `rows`.
    """
    if isinstance(prompts, np.ndarray):
        prompts = prompts.tolist()
    single = isinstance(prompts, str) or (
        len(prompts) > 0 and all(isinstance(p, int | np.integer) for p in prompts)
    )
    if single:
        return [prompts] * (1 if rows is None else rows)
    found = list(prompts)
    if not found or (rows is not None and len(found) != rows):
        expected = "at least one" if rows is None else f"one, or {rows} (one an image)"
        raise PromptError(f"prompts: expected {expected}, found {len(found)}")
    return found


def row_keys(seed: int | Sequence[int], rows: int) -> Array:
    """One random key a row, from its own seed alone: the row's place in the batch is not used.

    An int serves every row (equal inputs then give equal outputs); a sequence gives each its own.

    Raises:
      PromptError: a seed that is no integer in [0, 2**32), or another number of seeds.
    """
    seeds: list[Any] = [seed] * rows if np.ndim(seed) == 0 else list(seed)  # type: ignore[arg-type]
    if len(seeds) != rows:
        raise PromptError(f"seed: expected one, or {rows} (one a row), found {len(seeds)}")
    for value in seeds:
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            raise PromptError(f"seed: expected an integer, found {value!r}")
        if not 0 <= value < 2**32:
            raise PromptError(f"seed: expected 0 to {2**32 - 1}, found {value}")
    return jax.vmap(jax.random.key)(np.asarray(seeds, np.uint32))


def require(condition: bool, argument: str, expected: str, found: Any) -> None:
    """Raises PromptError unless `condition` holds."""
    if not condition:
        raise PromptError(f"{argument}: expected {expected}, found {found!r}")

"""Validation of the pipelines' arguments, which become lists with one item per row.

All functions of the pipelines share these checks, and thus refuse the same values with the same
messages.
"""

import math
import operator
import os
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

import jax
import numpy as np
from jaxtyping import Array
from PIL import Image

from unix_jax.errors import ImageError, PromptError
from unix_jax.preprocessing.gray_levels import warn_of_gray_levels
from unix_jax.preprocessing.images import ImageSource, load_levels
from unix_jax.storage.bucket_path import any_path

Images = ImageSource | Iterable[ImageSource]
ImageRows = Images | Iterable[ImageSource | Sequence[ImageSource]]
Prompts = str | Iterable[str] | Iterable[int] | Iterable[Sequence[int]]

_CHANNELS = (1, 3, 4)
_SHAPES = (
    "[H, W], [H, W, C] or [C, H, W] for one image, [B, H, W, C] or [B, C, H, W] for a batch, "
    "with C of 1, 3 or 4"
)
_IMAGES = "a path, the bytes of a file, a PIL image or an array, or several of them"


# --- images ------------------------------------------------------------------------------------


def image_list(images: Images) -> list[Image.Image]:
    """Loaded images, one per row; grayscale has mode L.

    One row: a path, the bytes of a file (`bytes`, `bytearray`, `memoryview`), a PIL image, or an
    array or tensor (NumPy, JAX, torch, anything with `__array__` or `__dlpack__`) of [H, W],
    [H, W, C] or [C, H, W]. Several rows: an array or tensor of [B, H, W, C] or [B, C, H, W], as
    diffusers takes it, or a list, tuple, generator or other ordered iterable of single images.

    An `ImageWarning` names each that is nearly black, nearly white or nearly constant.

    Raises:
      ImageError: one of them cannot be read or has another shape.
      PromptError: there are none, or what was passed is none of these.
    """
    if _is_single(images):
        return [_load(images, "images")]
    if _is_array(images):
        values = _as_numpy(images, "images")
        if values.ndim == 0 and values.dtype.kind in "OU":
            return image_list(values.item())
        if values.ndim == 1 and values.dtype.kind in "OUS":
            sources = values.tolist()  # of paths, such as a column of a table
        elif values.ndim == 4:
            sources = list(values)
        else:
            return [_load(values, "images")]
    else:
        sources = _items(images, "images", _IMAGES)
    if not sources:
        raise PromptError("images: expected at least one, found none")
    return [_load(source, f"images[{i}]") for i, source in enumerate(sources)]


def image_rows(images: ImageRows) -> list[list[Image.Image]]:
    """Loaded images of each row: like `image_list`, where an inner list or tuple is one row.

    Raises:
      ImageError, PromptError: as `image_list`, or a row without images.
    """
    if _is_single(images) or _is_array(images):
        return [[image] for image in image_list(images)]  # type: ignore[arg-type]
    rows = _items(images, "images", _IMAGES)
    if not rows:
        raise PromptError("images: expected at least one, found none")
    return [_image_row(row, f"images[{i}]") for i, row in enumerate(rows)]


def _image_row(row: Any, argument: str) -> list[Image.Image]:
    if not isinstance(row, list | tuple):
        return [_load(row, argument)]
    if not row:
        raise PromptError(f"{argument}: expected at least one image, found none")
    return [_load(source, f"{argument}[{i}]") for i, source in enumerate(row)]


def _is_single(images: Any) -> bool:
    if isinstance(images, memoryview):
        return images.ndim == 1  # bytes of a file; an array otherwise
    return isinstance(images, str | os.PathLike | bytes | bytearray | Image.Image)


def _is_array(value: Any) -> bool:
    several = isinstance(value, memoryview) and value.ndim > 1
    return several or hasattr(value, "__array__") or hasattr(value, "__dlpack__")


def _load(source: Any, argument: str) -> Image.Image:
    """One image, with a warning if it shows almost nothing.

    `argument` names an image in messages that has no name of its own.
    """
    image = _read(source, argument)
    warn_of_gray_levels(image, str(getattr(image, "filename", "") or argument))
    return image


def _read(source: Any, argument: str) -> Image.Image:
    """One image. `argument` precedes errors of an image that has no name of its own."""
    if isinstance(source, str | os.PathLike):
        path = any_path(source, argument)
        return load_levels(source if isinstance(source, str) else path)
    if not _is_single(source):
        if not _is_array(source):
            raise ImageError(f"{argument}: expected {_IMAGES}, found {_named(source)}")
        source = _channels_last(_as_numpy(source, argument), argument)
    try:
        return load_levels(source)
    except ImageError as error:
        raise ImageError(f"{argument}: {error}") from error


def _as_numpy(value: Any, argument: str) -> np.ndarray:
    """Any array or tensor, on the host; a torch tensor is detached from its gradient."""
    try:
        for method in ("detach", "cpu"):
            if callable(getattr(value, method, None)):
                value = getattr(value, method)()
        if _type_of(value) == "bfloat16":  # not known to NumPy
            value = value.float() if hasattr(value, "float") else value.astype(np.float32)
        if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
            raise ValueError("it has masked elements; fill them first")
        if hasattr(value, "__array__") or isinstance(value, memoryview):
            return np.asarray(value)
        return np.from_dlpack(value)
    except Exception as error:  # whatever a foreign library raises
        detail = " ".join(str(error).split())[:200]
        raise ImageError(
            f"{argument}: expected an array that NumPy can read, found {_named(value)}: {detail}"
        ) from error


def _type_of(value: Any) -> str:
    """The name of the dtype of an array of any library; "" for other values."""
    return str(getattr(value, "dtype", "")).removeprefix("torch.")


def _channels_last(values: np.ndarray, argument: str) -> np.ndarray:
    """[H, W] or [H, W, C]. Images have at least 16 pixels per side, so no shape is ambiguous."""
    if values.ndim == 2 or (values.ndim == 3 and values.shape[2] in _CHANNELS):
        return values
    if values.ndim == 3 and values.shape[0] in _CHANNELS:
        return values.transpose(1, 2, 0)
    raise ImageError(f"{argument}: expected shape {_SHAPES}, found {list(values.shape)}")


def _items(values: Any, argument: str, expected: str) -> list[Any]:
    """The items of an ordered iterable, which is read once."""
    refused = isinstance(values, Mapping | Set) or hasattr(values, "read")
    if refused or not isinstance(values, Iterable):
        raise PromptError(f"{argument}: expected {expected}, found {_named(values)}")
    return list(values)


def _named(value: Any) -> str:
    return "None" if value is None else type(value).__name__


def _shown(value: Any) -> str:
    """A value in an error: one line, at most 60 characters."""
    return " ".join(repr(value).split())[:60]


# --- prompts -----------------------------------------------------------------------------------


def prompt_list(prompts: Prompts, rows: int | None = None) -> list[Any]:
    """One prompt per row: strings or lists of ids. A single prompt is used for all `rows`.

    Args:
      prompts: a text, or token ids, for all rows; or an ordered iterable (a list, a generator, an
        array) of them, one per row. An iterable is read once.
      rows: the number of rows, if it is known.

    Raises:
      PromptError: no prompt, another number of prompts than `rows`, or a value that is neither
        text nor ids.
    """
    expected = "a text, token ids, or several of them"
    if isinstance(prompts, str):
        return [prompts] * (1 if rows is None else rows)
    if isinstance(prompts, bytes | bytearray | memoryview):
        raise PromptError(f"prompts: expected {expected}, found {_named(prompts)}")
    found = [_plain(p) for p in _sequence(prompts, "prompts", expected)]
    if found and all(isinstance(p, int | np.integer) for p in found):
        return [found] * (1 if rows is None else rows)
    if not found or (rows is not None and len(found) != rows):
        count = "at least one" if rows is None else f"one, or a list of {rows} (one per image)"
        raise PromptError(f"prompts: expected {count}, found {len(found)}")
    return found


def _sequence(values: Any, argument: str, expected: str) -> list[Any]:
    """The items of an array or an iterable."""
    if not _is_array(values):
        return _items(values, argument, expected)
    try:
        listed = _as_numpy(values, argument).tolist()
    except ImageError as error:
        raise PromptError(str(error)) from error
    if not isinstance(listed, list):
        raise PromptError(f"{argument}: expected {expected}, found {_shown(listed)}")
    return listed


def _plain(prompt: Any) -> Any:
    """An array or tensor of ids as a list."""
    if isinstance(prompt, str | np.generic) or not _is_array(prompt):
        return prompt
    return _sequence(prompt, "prompts", "token ids") if np.ndim(prompt) else prompt


# --- numbers -----------------------------------------------------------------------------------


# The smallest positive normal number of float32, in which the model computes.
TINY = float(np.finfo(np.float32).tiny)


def whole(argument: str, value: Any, low: int, high: int | None = None, expected: str = "") -> int:
    """An integer from `low` to `high`; `expected` replaces these bounds in the error.

    Raises:
      PromptError: another type (a bool, a text, 3.0) or an integer out of range.
    """
    bounds = f"of at least {low}" if high is None else f"from {low} to {high}"
    expected = expected or f"an integer {bounds}"
    try:
        if _is_bool(value) or getattr(value, "ndim", 0) != 0:
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise PromptError(f"{argument}: expected {expected}, found {_shown(value)}") from None
    require(number >= low and (high is None or number <= high), argument, expected, number)
    return number


def number(argument: str, value: Any, expected: str, low: float, high: float = math.inf) -> float:
    """A finite number from `low` to `high`, also as a scalar of NumPy, JAX or torch.

    `expected` states the range in the error.

    Raises:
      PromptError: another type (a bool, a text), NaN, a number that is infinite in float32, or one
        out of range.
    """
    try:
        if _is_bool(value) or isinstance(value, str | bytes | bytearray | complex):
            raise TypeError
        if getattr(value, "ndim", 0) or "complex" in _type_of(value):
            raise TypeError
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        raise PromptError(f"{argument}: expected {expected}, found {_shown(value)}") from None
    # The model computes in float32, whose largest number is about 3.4e38.
    holds = math.isfinite(found) and abs(found) <= float(np.finfo(np.float32).max)
    require(holds and low <= found <= high, argument, expected, value)
    return found


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool) or _type_of(value) == "bool"


def interval(argument: str, value: Any) -> tuple[float, float]:
    """The interval (low, high] of times, 0 <= low <= high <= 1; empty if they are equal.

    Raises:
      PromptError: a value that is not a pair, a number outside of [0, 1], or the larger one first.
    """
    expected = "two times (low, high) in [0, 1], the smaller one first"
    if isinstance(value, str | bytes):
        raise PromptError(f"{argument}: expected {expected}, found {_shown(value)}")
    times = _sequence(value, argument, expected)
    require(len(times) == 2, argument, expected, value)
    low, high = (number(f"{argument}[{i}]", t, "a time in [0, 1]", 0, 1) for i, t in
                 enumerate(times))  # fmt: skip
    require(low <= high, argument, expected, value)
    return low, high


def choice(argument: str, value: Any, among: Sequence[str]) -> None:
    """Raises PromptError unless `value` is one of `among`."""
    require(isinstance(value, str) and value in among, argument, f"one of {tuple(among)}", value)


def noise_array(argument: str, value: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Finite float32 noise [B, G, C], or [G, C] if B is 1.

    Raises:
      PromptError: a value that is not an array of real numbers, another shape, NaN or infinity.
    """
    expected = f"an array of shape {shape} of finite numbers"
    try:
        found = _as_numpy(value, argument) if _is_array(value) else np.asarray(value)
        if found.dtype.kind not in "fiu":
            raise TypeError
        found = found.astype(np.float32)
    except (TypeError, ValueError, ImageError):
        raise PromptError(f"{argument}: expected {expected}, found {_described(value)}") from None
    found = found[None] if found.ndim == 2 else found
    require(found.shape == shape, argument, f"shape {shape}", found.shape)
    bad = int(np.size(found) - np.count_nonzero(np.isfinite(found)))
    if bad:
        raise PromptError(
            f"{argument}: expected finite numbers, found NaN or infinity in {bad} of {found.size}"
        )
    return found


def _described(value: Any) -> str:
    dtype = getattr(value, "dtype", None)
    return _named(value) if dtype is None else f"{_named(value)} of {dtype}"


def row_seeds(seed: int | Iterable[int], rows: int) -> list[int]:
    """The seed of each row, from an int for all rows, or a sequence with one per row.

    Raises:
      PromptError: a seed that is not an integer in [0, 2**32), or another number of seeds.
    """
    expected = f"an integer from 0 to {2**32 - 1}, or {rows} of them"
    several = isinstance(seed, Iterable) and not isinstance(seed, str | bytes)
    if several and getattr(seed, "ndim", None) != 0:
        seeds = _sequence(seed, "seed", expected)
        if len(seeds) != rows:
            raise PromptError(f"seed: expected one, or {rows} (one per row), found {len(seeds)}")
    else:
        seeds = [seed] * rows
    return [whole("seed", value, 0, 2**32 - 1) for value in seeds]


def row_keys(seeds: Sequence[int]) -> Array:
    """One random key per row, which depends on its seed only, not on the row's index.

    Rows with equal inputs and equal seeds have equal outputs.
    """
    return jax.vmap(jax.random.key)(np.asarray(seeds, np.uint32))


def require(condition: bool, argument: str, expected: str, found: Any) -> None:
    """Raises PromptError unless `condition` holds."""
    if not condition:
        raise PromptError(f"{argument}: expected {expected}, found {_shown(found)}")

"""Validation of visitors' inputs: uploads, and settings within the page's bounds.

The page's own fields have the same bounds, but a client that calls the server without the page can
send anything.
"""

import dataclasses
import math
from typing import Any

from PIL import Image

from unix_jax.config import UniXConfig
from unix_jax.errors import PromptError
from unix_jax.inference.settings import ImageSettings
from unix_jax.preprocessing.transforms import letterbox
from unix_jax.web.shapes import image_sides
from unix_jax.web.uploads import read_upload

PREVIEW_SIDE = 640  # pixels of what the page shows
LARGEST_SEED = 2**32 - 1


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of a server.

    upload_bytes, pixels: of an uploaded X-ray.
    visitor_bytes, uploads_bytes: of all uploads on disk, those of one address and those of all
      visitors.
    new_tokens: of a report.
    steps: maximum steps for an image.
    prompt_letters: maximum characters of a text.
    waiting: requests that may wait for the model; further ones are refused.
    session_waiting: those of one session, including the one that is computed.
    programs: shapes of requests whose compiled programs stay in memory.
    session_images: generated images kept for a visitor.
    sessions: visitors whose images are kept.
    """

    upload_bytes: int = 64 * 2**20
    pixels: int = 50_000_000
    visitor_bytes: int = 256 * 2**20
    uploads_bytes: int = 512 * 2**20
    new_tokens: int = 500
    steps: int = 200
    prompt_letters: int = 4000
    waiting: int = 32
    session_waiting: int = 4
    programs: int = 32
    session_images: int = 12
    sessions: int = 64


@dataclasses.dataclass(frozen=True)
class Xray:
    """An X-ray to report on: the model's input, and the image on the page.

    warning: a sentence if it shows almost nothing, else "".
    """

    name: str
    image: Image.Image = dataclasses.field(repr=False)
    preview: Image.Image = dataclasses.field(repr=False)
    warning: str = ""


@dataclasses.dataclass(frozen=True)
class ReportChoices:
    """Settings of a report, in the order of the page's fields."""

    prompt: str
    max_new_tokens: int
    temperature: float
    top_p: float
    seed: int


@dataclasses.dataclass(frozen=True)
class ImageChoices:
    """Settings of a generated image."""

    prompt: str
    seed: int
    settings: ImageSettings


def read_xray(data: bytes, name: str, config: UniXConfig, limits: Limits) -> Xray:
    """An X-ray from the bytes of a file of any kind that `load_image` reads.

    It is letterboxed immediately: the pipeline would do the same, and a session then needs little
    memory.

    Raises:
      ImageError: too many bytes or pixels, or no image; it names `name`.
    """
    upload = read_upload(data, name, max_bytes=limits.upload_bytes, max_pixels=limits.pixels)
    preview = upload.image.copy()
    preview.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
    side = config.vision.image_size
    return Xray(name, letterbox(upload.image, side), preview, upload.warning)


def report_choices(
    prompt: Any, max_new_tokens: Any, temperature: Any, top_p: Any, seed: Any, *, limits: Limits
) -> ReportChoices:
    """Raises PromptError for a value out of bounds, with the page's wording."""
    return ReportChoices(
        _text("Instruction", prompt, limits),
        _whole("Maximum length", max_new_tokens, 1, limits.new_tokens),
        _number("Temperature", temperature, 0, 2),
        _number("Nucleus", top_p, 0.01, 1),
        _whole("Seed", seed, 0, LARGEST_SEED),
    )


def image_choices(
    prompt: Any,
    seed: Any,
    steps: Any,
    guidance: Any,
    side: Any,
    shift: Any,
    renorm: Any,
    solver: Any,
    *,
    config: UniXConfig,
    limits: Limits,
) -> ImageChoices:
    """Raises PromptError for a value out of bounds, with the page's wording."""
    text = _text("Findings", prompt, limits)
    if not text.strip():
        raise PromptError("Findings: expected a text, found none")
    pixels = _side(side, config)
    settings = ImageSettings(
        height=pixels,
        width=pixels,
        num_inference_steps=_whole("Steps", steps, 1, limits.steps),
        timestep_shift=_number("Shift of the time grid", shift, 0.1, 10),
        guidance_scale=_number("Guidance", guidance, 1, 20),
        renorm=renorm,
        solver=solver,
    )
    seed = _whole("Seed", seed, 0, LARGEST_SEED)
    return ImageChoices(text.strip(), seed, settings.checked(config))


def default_tokens(config: UniXConfig, limits: Limits) -> int:
    """Maximum tokens of a report: half of the model's positions are kept for X-ray and prompt."""
    return min(limits.new_tokens, config.decoder.max_position_embeddings // 2)


def _side(value: Any, config: UniXConfig) -> int:
    sides = image_sides(config)
    pixels = _whole("Side", value, 1, sides[-1])
    if pixels not in sides:
        raise PromptError(f"Side: expected one of {', '.join(map(str, sides))}, found {pixels}")
    return pixels


def _text(name: str, value: Any, limits: Limits) -> str:
    if not isinstance(value, str | None):
        raise PromptError(f"{name}: expected a text, found {type(value).__name__}")
    text = value or ""
    if len(text) > limits.prompt_letters:
        raise PromptError(
            f"{name}: expected at most {limits.prompt_letters} characters, found {len(text)}"
        )
    return text


def _number(name: str, value: Any, low: float, high: float) -> float:
    found = isinstance(value, int | float) and not isinstance(value, bool)
    # Compared before `isfinite`, which an integer of 400 digits overflows; NaN fails both.
    if not found or not low <= value <= high or not math.isfinite(value):
        shown = "nothing" if value is None else _shown(value)
        raise PromptError(f"{name}: expected a number from {low:g} to {high:,}, found {shown}")
    return float(value)


def _shown(value: Any) -> str:
    """A value of a field in a message, in at most 40 characters."""
    if isinstance(value, int) and abs(value) >= 10**40:
        # Python refuses to print more than 4,300 digits.
        return "an integer of more than 40 digits"
    return repr(value)[:40]


def _whole(name: str, value: Any, low: int, high: int) -> int:
    number = _number(name, value, low, high)
    if not number.is_integer():
        raise PromptError(f"{name}: expected an integer, found {value}")
    return int(number)

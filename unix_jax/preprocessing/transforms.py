"""Transforms between images and model inputs: the published ones, as pure functions.

* Reports: `to_model_image`: letterbox (Lanczos thumbnail, centred, white) or squash (bicubic),
  SigLIP statistics.
* Training and editing: `to_padded_vae_image`: bicubic, aspect kept, padded to one size.
* The original's own: `to_vit_image`, `to_vae_image`: bicubic, aspect kept, sides to multiples of a
  stride.
* Batches: `to_levels`: 8-bit pixels, normalised on the devices (`unix_jax.preprocessing.pixels`).
* Outputs: `to_pil`, `to_gray_pil`, `contact_sheet`, `png_bytes`, `jpeg_bytes`, `save_png`.

All are pinned to the original's outputs in `tests/golden/metrics_tiny`. H height, W width.
"""

import functools
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from unix_jax.errors import ImageError
from unix_jax.storage.files import atomic_write

SIGLIP_MEAN, SIGLIP_STD = 0.555895, 0.336385  # of chest X-rays, the original's
VAE_MEAN, VAE_STD = 0.5, 0.5
STRIDE = 16

Resize = Literal["letterbox", "squash"]
RESIZES = ("letterbox", "squash")


def letterbox(image: Image.Image, size: int = 384, fill: int = 255) -> Image.Image:
    """The complete image in a square: downscaled by Lanczos if larger, never enlarged, centred.

    Args:
      image: a PIL image of mode RGB or L; it is not modified.
      size: side of the square in pixels.
      fill: gray level of the padding, 0 to 255; the original's is white.

    Returns:
      An image of the same mode, `size` x `size`.
    """
    _require_size("size", size, 1)
    shrunk = image.copy()
    # `thumbnail`, not `resize`: it first averages whole pixel blocks when the factor is large.
    shrunk.thumbnail((size, size), Image.Resampling.LANCZOS)
    square = Image.new(image.mode, (size, size), (fill,) * len(image.getbands()))
    square.paste(shrunk, ((size - shrunk.width) // 2, (size - shrunk.height) // 2))
    return square


def stride_size(
    width: int, height: int, max_size: int, min_size: int | None = None, stride: int = STRIDE
) -> tuple[int, int]:
    """(width, height) of the result of `resize_to_stride` for an image of this size.

    The image is scaled down until the longest side is `max_size`, then up until the shortest is
    `min_size`. The sides are rounded to multiples of `stride`, and scaled down again if they exceed
    `max_size`. The order of these roundings is that of BAGEL, on which the original is based.

    Raises:
      ImageError: `max_size` is not a positive multiple of `stride`, or `min_size` exceeds it.
    """
    min_size = max_size if min_size is None else min_size
    _require_size("stride", stride, 1)
    _require_size("max_size", max_size, stride)
    if not 1 <= min_size <= max_size:
        raise ImageError(f"min_size: expected 1 to max_size {max_size}, found {min_size}")
    scale = max(min(max_size / max(width, height), 1.0), min_size / min(width, height))
    size = _scaled(width, height, scale, stride)
    if max(size) > max_size:
        size = _scaled(*size, max_size / max(size), stride)
    return size


def _scaled(width: int, height: int, scale: float, stride: int) -> tuple[int, int]:
    def side(length: int) -> int:
        # Rounded twice, to pixels and then to the stride, as in the original.
        return max(stride, round(round(length * scale) / stride) * stride)

    return side(width), side(height)


def resize_to_stride(
    image: Image.Image, max_size: int, min_size: int | None = None, stride: int = STRIDE
) -> Image.Image:
    """Bicubic with antialiasing; keeps the aspect ratio except for rounding both sides to `stride`.

    Args:
      image: a PIL image of mode RGB or L.
      max_size: the longest side afterwards, in pixels, a multiple of `stride`.
      min_size: the target of the shortest side (smaller images are enlarged, as far as `max_size`
          allows). The default is `max_size`.
      stride: both sides become multiples of it.

    Raises:
      ImageError: as `stride_size`.
    """
    size = stride_size(image.width, image.height, max_size, min_size, stride)
    return image.resize(size, Image.Resampling.BICUBIC)


def pad_to_fit(image: Image.Image, height: int, width: int, fill: int = 0) -> Image.Image:
    """The complete image within a rectangle: scaled to touch two sides, centred, aspect ratio kept.

    Bicubic with antialias, as in the original's VAE transform. Small images are enlarged, since a
    model would otherwise learn to generate small radiographs in wide frames.

    Args:
      image: of mode RGB or L; it stays as it is.
      height, width: of the rectangle in pixels.
      fill: gray level of the padding, 0 to 255.
    """
    scale = min(height / image.height, width / image.width)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    canvas = Image.new(image.mode, (width, height), (fill,) * len(image.getbands()))
    scaled = image.resize(size, Image.Resampling.BICUBIC)
    canvas.paste(scaled, ((width - size[0]) // 2, (height - size[1]) // 2))
    return canvas


def normalize(image: Image.Image, mean: float, std: float) -> Float[np.ndarray, "H W 3"]:
    """(pixels / 255 - mean) / std in float32, channels last; grayscale becomes three channels."""
    return np.take(level_table(mean, std), to_levels(image, 3))


@functools.cache
def level_table(mean: float, std: float) -> Float[np.ndarray, "256"]:
    """The normalised value of each 8-bit level; read-only."""
    levels = np.arange(256, dtype=np.float32)
    table = (levels / np.float32(255) - np.float32(mean)) / np.float32(std)
    table.setflags(write=False)
    return table


def to_levels(image: Image.Image, channels: Literal[1, 3]) -> UInt8[np.ndarray, "H W C"]:
    """The pixels of an image of mode RGB or L; with one channel, colours become their luminance."""
    pixels = np.asarray(image.convert("RGB" if channels == 3 else "L"))
    return pixels if channels == 3 else pixels[..., None]


def squash(image: Image.Image, size: int = 384) -> Image.Image:
    """The complete image as a square of `size` pixels; bicubic, ignoring the aspect ratio."""
    _require_size("size", size, 1)
    return image.resize((size, size), Image.Resampling.BICUBIC)


def to_model_image(
    image: Image.Image, size: int = 384, resize: Resize = "letterbox"
) -> Float[np.ndarray, "H W 3"]:
    """The input of the ViT for a report, `size` (`vision.image_size`) pixels per side.

    Args:
      image: a PIL image of mode RGB or L.
      size: side of the square in pixels.
      resize: `letterbox`, as the original's evaluation, or `squash`, as its web demo.
    """
    square = squash(image, size) if resize == "squash" else letterbox(image, size)
    return normalize(square, SIGLIP_MEAN, SIGLIP_STD)


def to_vit_image(
    image: Image.Image, max_size: int = 384, min_size: int | None = None, stride: int = STRIDE
) -> Float[np.ndarray, "H W 3"]:
    """The training input of the ViT: aspect kept, sides multiples of `stride`, normalised."""
    resized = resize_to_stride(image, max_size, min_size, stride)
    return normalize(resized, SIGLIP_MEAN, SIGLIP_STD)


def to_vae_image(
    image: Image.Image, max_size: int = 256, min_size: int | None = None, stride: int = STRIDE
) -> Float[np.ndarray, "H W 3"]:
    """The input of the autoencoder in [-1, 1]: aspect kept, sides multiples of `stride`."""
    return normalize(resize_to_stride(image, max_size, min_size, stride), VAE_MEAN, VAE_STD)


def to_padded_vae_image(
    image: Image.Image, height: int, width: int, fill: int = 0
) -> Float[np.ndarray, "H W 3"]:
    """The input of the autoencoder in [-1, 1], the same in training and for a condition image.

    Args: as of `pad_to_fit`.
    """
    return normalize(pad_to_fit(image, height, width, fill), VAE_MEAN, VAE_STD)


def to_pil(pixels: np.ndarray) -> Image.Image:
    """One array [H, W], [H, W, 1] or [H, W, 3] as a PIL image of mode L or RGB.

    uint8 is used unchanged; floats in [0, 1] are clipped and truncated (not rounded) to 8 bits, as
    in the original.

    Raises:
      ImageError: another type or shape, or a value that is not a number.
    """
    pixels = np.asarray(pixels)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    if pixels.ndim not in (2, 3) or pixels.shape[2:] not in ((), (3,)):
        raise ImageError(
            f"pixels: expected [H, W], [H, W, 1] or [H, W, 3], found {list(pixels.shape)}"
        )
    if pixels.dtype != np.uint8:
        if not np.issubdtype(pixels.dtype, np.floating) or not np.isfinite(pixels).all():
            raise ImageError(f"pixels: expected uint8 or finite floats, found {pixels.dtype}")
        pixels = (pixels.astype(np.float32).clip(0, 1) * 255).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(pixels))


def to_gray_pil(pixels: Float[np.ndarray, "H W C"]) -> Image.Image:
    """As `to_pil`, the mean of the channels as a PIL image of mode L.

    The autoencoder decodes three channels that differ by a few gray levels. An X-ray has one.

    Raises:
      ImageError: as `to_pil`.
    """
    pixels = np.asarray(pixels)
    floats = np.issubdtype(pixels.dtype, np.floating) and np.isfinite(pixels).all()
    if floats and pixels.ndim == 3 and pixels.shape[2] == 3:
        # Clipped first: a channel that is far off must not shift the others.
        pixels = pixels.clip(0, 1).mean(axis=2, dtype=np.float32)
    return to_pil(pixels).convert("L")


def contact_sheet(
    images: Sequence[Image.Image],
    captions: Sequence[str] | None = None,
    columns: int | None = None,
) -> Image.Image:
    """All images in one RGB image, row by row, each above its caption.

    Args:
      images: at least one; smaller ones are centred in the largest one's cell.
      captions: one per image; truncated to three lines.
      columns: number of images per row. By default the sheet is as square as possible.

    Raises:
      ImageError: no image, a wrong number of captions, or `columns` below 1.
    """
    if not images:
        raise ImageError("images: expected at least one, found none")
    if captions is not None and len(captions) != len(images):
        raise ImageError(f"captions: expected {len(images)}, found {len(captions)}")
    columns = math.ceil(math.sqrt(len(images))) if columns is None else columns
    _require_size("columns", columns, 1)
    columns = min(columns, len(images))
    gap, lines = 8, 3 if captions else 0
    width, height = max(i.width for i in images), max(i.height for i in images)
    font = ImageFont.load_default(size=max(12, min(18, width // 20)))
    line_height = math.ceil(sum(font.getmetrics()) if hasattr(font, "getmetrics") else 12) + 1
    cell = (width + gap, height + lines * line_height + gap)
    rows = math.ceil(len(images) / columns)
    sheet = Image.new("RGB", (columns * cell[0] + gap, rows * cell[1] + gap), "white")
    draw = ImageDraw.Draw(sheet)
    for index, image in enumerate(images):
        left = gap + index % columns * cell[0]
        top = gap + index // columns * cell[1]
        at = (left + (width - image.width) // 2, top + (height - image.height) // 2)
        sheet.paste(image.convert("RGB"), at)
        wrapped = _wrap(captions[index], width, draw, font, lines) if captions else []
        for number, line in enumerate(wrapped):
            at = (left, top + height + number * line_height)
            draw.text(at, _spaced(line), fill="black", font=font)
    return sheet


def _spaced(text: str) -> str:
    """Pillow's bundled font has spaces of 3 pixels, which cannot be seen: they are doubled."""
    return text.replace(" ", "  ")


def _wrap(text: str, width: int, draw: ImageDraw.ImageDraw, font: object, lines: int) -> list[str]:
    """Lines that fit `width` pixels; what does not fit in `lines` of them ends in "...".

    Words longer than a line are broken.
    """

    def fits(line: str) -> bool:
        return draw.textlength(_spaced(line), font=font) <= width  # type: ignore[arg-type]

    wrapped = [""]
    for word in text[:1000].split():
        joined = f"{wrapped[-1]} {word}".strip()
        if fits(joined):
            wrapped[-1] = joined
            continue
        if wrapped[-1]:
            wrapped.append("")
        for letter in word:
            if wrapped[-1] and not fits(wrapped[-1] + letter):
                wrapped.append("")
            wrapped[-1] += letter
    if len(wrapped) > lines:
        last = wrapped[lines - 1]
        while last and not fits(last + "..."):
            last = last[:-1]
        wrapped = [*wrapped[: lines - 1], last + "..."]
    return wrapped


def png_bytes(image: Image.Image, metadata: Mapping[str, str] | None = None) -> bytes:
    """The bytes of a PNG file with `metadata` as its text entries (prompt, seed, ...).

    Values outside Latin-1 become international (iTXt) entries; readers treat both alike.

    Raises:
      ImageError: a key that PNG cannot hold (1 to 79 Latin-1 characters).
    """
    info = PngImagePlugin.PngInfo()
    for key, value in (metadata or {}).items():
        encodable = all(32 <= ord(c) < 127 or 161 <= ord(c) < 256 for c in key)
        if not 1 <= len(key) <= 79 or not encodable:
            raise ImageError(f"metadata: expected a key of 1 to 79 Latin-1 characters: {key!r}")
        # NUL ends a text entry, and a lone surrogate cannot be encoded at all.
        clean = value.replace("\0", "").encode("utf-8", "replace").decode("utf-8")
        info.add_text(key, clean)
    file = io.BytesIO()
    image.save(file, format="PNG", pnginfo=info)
    return file.getvalue()


def jpeg_bytes(image: Image.Image, side: int | None = None) -> bytes:
    """The bytes of a JPEG file, reduced to at most `side` pixels on the longest side."""
    small = image.convert("RGB")
    if side is not None:
        small.thumbnail((side, side))
    file = io.BytesIO()
    small.save(file, format="JPEG", quality=90)
    return file.getvalue()


def save_png(
    path: str | Path, image: Image.Image, metadata: Mapping[str, str] | None = None
) -> None:
    """Writes `png_bytes` to a file atomically.

    Raises:
      ImageError: as `png_bytes`, or the file cannot be written.
    """
    data = png_bytes(image, metadata)
    try:
        with atomic_write(path) as temporary:
            temporary.write_bytes(data)
    except OSError as error:
        raise ImageError(f"{path}: cannot be written: {error.strerror or error}") from error


def _require_size(argument: str, value: int, multiple: int) -> None:
    if value < 1 or value % multiple:
        kind = "a positive number" if multiple == 1 else f"a positive multiple of {multiple}"
        raise ImageError(f"{argument}: expected {kind}, found {value}")

"""Reads a file, bytes, a PIL image or an array as an 8-bit image; failures are ImageErrors.

`load_image` returns three channels. `load_levels` leaves grayscale in one channel, which the
transforms of the models' inputs reduce in a third of the time, with the same result.

Conversion by pixel type:

* 8-bit grayscale, RGB, palette, CMYK: as Pillow's own `convert("RGB")`, as in the published
  evaluation.
* An alpha channel is composited on white, the colour of the letterbox padding. For opaque pixels,
  that is for every ordinary file, this equals `convert("RGB")`, which drops the channel.
* 16-bit grayscale and 32-bit integers within 16 bits: divided by 65535 (Pillow would clip at 255).
  No range is guessed: 12-bit values in a 16-bit file appear dark, so rescale such files first.
* floats: must lie in [0, 1].
* EXIF orientation is applied. DICOM: see `unix_jax.preprocessing.dicom`.

Sizes are read from the header and refused before anything is decoded. H height, W width in pixels.
"""

import io
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, ImageOps

from unix_jax.errors import ImageError
from unix_jax.storage.bucket_path import BucketPath, path_of

MAX_PIXELS = 100_000_000
MIN_SIDE = 16

# A closed list: Pillow's other readers include EPS, which starts an external interpreter.
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "JPEG2000", "PPM")
ARRAY_KINDS = "uint8, uint16, or floats in [0, 1]"
ARRAY_SHAPES = "[H, W], [H, W, 1], [H, W, 3] or [H, W, 4]"

ImageSource = str | Path | Image.Image | np.ndarray | bytes


def load_image(
    source: ImageSource,
    *,
    frame: int | None = None,
    max_pixels: int = MAX_PIXELS,
    min_side: int = MIN_SIDE,
) -> Image.Image:
    """Reads an image, upright, as a PIL image of mode RGB (grayscale has three equal channels).

    Its path, if it has one, is its `filename`, as it is for a file that Pillow opened.

    Args:
      source: a path; the bytes of a file; a PIL image (not modified); or an array of uint8, uint16,
        or floats in [0, 1], shaped [H, W], [H, W, 1], [H, W, 3] or [H, W, 4] (RGBA).
      frame: the frame to read from a file with several (DICOM, TIFF, GIF, ...), counted from 1.
      max_pixels: maximum number of pixels (width x height) that are decoded.
      min_side: minimum number of pixels along either side.

    Raises:
      ImageError: the file is missing, unreadable, truncated, not an image, of several frames and
        none chosen, without that frame, too large or too small; or the array has another type,
        shape or range. It names the source.
    """
    levels = load_levels(source, frame=frame, max_pixels=max_pixels, min_side=min_side)
    if levels.mode == "RGB":
        return levels
    image = levels.convert("RGB")
    if hasattr(levels, "filename"):
        image.filename = levels.filename  # type: ignore[attr-defined]
    return image


def load_levels(
    source: ImageSource,
    *,
    frame: int | None = None,
    max_pixels: int = MAX_PIXELS,
    min_side: int = MIN_SIDE,
    draft_side: int | None = None,
) -> Image.Image:
    """Like `load_image`, but a grayscale image has mode L.

    `load_levels(x).convert("RGB")` equals `load_image(x)`, before or after a transform.

    Args:
      source, frame, max_pixels, min_side: as in `load_image`.
      draft_side: decode a JPEG file at 1/2, 1/4 or 1/8 of its size, as long as both sides have at
        least this number of pixels. This is several times faster, and averages blocks of pixels.

    Raises:
      ImageError: as `load_image`.
    """
    name = image_name(source)
    try:
        image = _open(source, name, frame, max_pixels, min_side, draft_side)
    except MemoryError:
        raise ImageError(f"{name}: not enough memory to decode the image") from None
    if isinstance(source, str | Path | Image.Image):
        image.filename = name  # type: ignore[attr-defined]
    return image


def image_name(source: Any) -> str:
    """The name of a source in messages: its path, or its kind if it has none."""
    if isinstance(source, str | Path):
        return str(source)
    if isinstance(source, bytes | bytearray | memoryview):
        return "image bytes"
    if isinstance(source, Image.Image):
        return str(getattr(source, "filename", "") or "PIL image")
    return "image array"


def _open(
    source: Any,
    name: str,
    frame: int | None,
    max_pixels: int,
    min_side: int,
    draft_side: int | None = None,
) -> Image.Image:
    if isinstance(source, Image.Image):
        return _decode(source, name, frame, max_pixels, min_side)
    if isinstance(source, str | Path):
        data = _read_file(path_of(source), name, max_pixels)
        is_dicom = _is_dicom(data, source)
    elif isinstance(source, bytes | bytearray | memoryview):
        data = bytes(source)
        is_dicom = _is_dicom(data)
    elif hasattr(source, "__array__"):
        _check_frame(frame, 1, name)
        return _from_array(np.asarray(source), name, max_pixels, min_side)
    else:
        raise ImageError(
            f"image: expected a path, bytes, a PIL image or an array, found {type(source).__name__}"
        )
    if not data:
        raise ImageError(f"{name}: expected an image, found an empty file")
    if is_dicom:
        # pydicom is imported when a DICOM file comes.
        from unix_jax.preprocessing import dicom

        pixels = dicom.read(
            data,
            name,
            lambda width, height: _check_size(width, height, name, max_pixels, min_side),
            lambda frames: _check_frame(frame, frames, name),
            frame or 1,
        )
        return Image.fromarray(pixels)
    with _open_header(io.BytesIO(data), name, max_pixels, data[:12]) as opened:
        return _decode(opened, name, frame, max_pixels, min_side, draft_side)


def check_image(
    path: str | Path,
    *,
    frame: int | None = None,
    max_pixels: int = MAX_PIXELS,
    min_side: int = MIN_SIDE,
) -> None:
    """Refuses a file that `load_image` would refuse for its header, without decoding it.

    A file that passes may still be truncated or broken after its header.

    Args:
      path, frame, max_pixels, min_side: as in `load_image`.

    Raises:
      ImageError: as `load_image`.
    """
    file, name = path_of(path), image_name(path)

    def check_size(width: int, height: int) -> None:
        _check_size(width, height, name, max_pixels, min_side)

    try:
        _check_file(file, name, max_pixels)
        with file.open("rb") as opened:
            start = opened.read(132)
            if not start:
                raise ImageError(f"{name}: expected an image, found an empty file")
            opened.seek(0)
            if _is_dicom(start, path):
                from unix_jax.preprocessing import dicom

                dicom.check(
                    opened.read(), name, check_size, lambda count: _check_frame(frame, count, name)
                )
                return
            with _open_header(opened, name, max_pixels, start) as image:
                check_size(image.width, image.height)
                _check_frame(frame, _frames(image, name), name)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise ImageError(f"{name}: cannot be read: {_one_line(error)}") from error


def _is_dicom(data: bytes, path: str | Path = "") -> bool:
    """Whether a file has DICOM's mark, "DICM" after 128 bytes of preamble, or its suffix."""
    return data[128:132] == b"DICM" or Path(path).suffix.lower() in (".dcm", ".dicom")


def _read_file(path: Path, name: str, max_pixels: int) -> bytes:
    try:
        if isinstance(path, BucketPath):
            # One request instead of four.
            limit = most_bytes(max_pixels)
            data = path.read_at_most(limit + 1)
            if len(data) > limit:
                raise ImageError(f"{name}: expected at most {limit} bytes, found more")
            return data
        _check_file(path, name, max_pixels)
        return path.read_bytes()
    except FileNotFoundError:
        raise ImageError(f"{name}: no such file") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise ImageError(f"{name}: cannot be read: {_one_line(error)}") from error


def most_bytes(max_pixels: int = MAX_PIXELS) -> int:
    """The largest file of an image that is read."""
    # No format stores more than 8 bytes a pixel uncompressed; the rest is room for headers.
    return 8 * max_pixels + 2**26


def _check_file(path: Path, name: str, max_pixels: int) -> None:
    limit = most_bytes(max_pixels)
    if not path.exists():
        raise ImageError(f"{name}: no such file")
    if not path.is_file():
        kind = "a directory" if path.is_dir() else "a special file"
        raise ImageError(f"{name}: expected an image file, found {kind}")
    size = path.stat().st_size
    if size > limit:
        raise ImageError(f"{name}: expected at most {limit} bytes, found {size}")


def _open_header(file: IO[bytes], name: str, max_pixels: int, start: bytes) -> Image.Image:
    try:
        return Image.open(file, formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise ImageError(
            f"{name}: expected at most {max_pixels} pixels, found more than Pillow's own limit "
            f"(PIL.Image.MAX_IMAGE_PIXELS): {_one_line(error)}"
        ) from error
    except Image.UnidentifiedImageError:
        raise ImageError(
            f"{name}: expected an image with a sound header ({', '.join(FORMATS)} or DICOM), "
            f"found a file that begins with {start[:12]!r}"
        ) from None
    except MemoryError:
        raise
    except Exception as error:
        raise ImageError(f"{name}: broken image header: {_one_line(error)}") from error


def _decode(
    image: Image.Image,
    name: str,
    frame: int | None,
    max_pixels: int,
    min_side: int,
    draft_side: int | None = None,
) -> Image.Image:
    """Checks the size, then decodes, turns upright and converts; `image` itself is not modified."""
    _check_size(image.width, image.height, name, max_pixels, min_side)
    try:
        frames = _frames(image, name)
        _check_frame(frame, frames, name)
        before = image.tell()
        if frames > 1 and frame is not None:
            image.seek(frame - 1)
            # The frames of a TIFF file may be of different sizes.
            _check_size(image.width, image.height, name, max_pixels, min_side)
        try:
            if draft_side is not None and image.format == "JPEG":
                image.draft(None, (draft_side, draft_side))
            image.load()
            return _to_levels(ImageOps.exif_transpose(image), name)
        finally:
            if image.tell() != before:
                image.seek(before)
    except (ImageError, MemoryError):
        raise
    except Exception as error:
        # Pillow's readers raise OSError, SyntaxError, ValueError, struct.error, ... on bad files.
        raise ImageError(
            f"{name}: broken or truncated {image.format or 'image'}: {_one_line(error)}"
        ) from error


def _frames(image: Image.Image, name: str) -> int:
    """The number of frames that may be chosen from."""
    try:
        # MPO is a telephone's JPEG: its first frame is the image, the rest previews.
        return 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    except MemoryError:
        raise
    except Exception as error:
        raise ImageError(
            f"{name}: broken or truncated {image.format or 'image'}: {_one_line(error)}"
        ) from error


def _check_frame(frame: int | None, frames: int, name: str) -> None:
    if frame is None and frames != 1:
        raise ImageError(
            f"{name}: expected one frame, found {frames}; "
            f"choose one with `frame` (--frame), 1 to {frames}"
        )
    if frame is not None and not 1 <= frame <= frames:
        raise ImageError(f"{name}: frame: expected 1 to {frames}, found {frame}")


def _check_size(width: int, height: int, name: str, max_pixels: int, min_side: int) -> None:
    if width * height > max_pixels:
        raise ImageError(
            f"{name}: expected at most {max_pixels} pixels (max_pixels), "
            f"found {width} x {height} = {width * height}"
        )
    if min(width, height) < min_side:
        raise ImageError(
            f"{name}: expected sides of at least {min_side} pixels, found {width} x {height}"
        )


def _to_levels(image: Image.Image, name: str) -> Image.Image:
    """The image in mode L if it is grayscale without transparency, else in mode RGB."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.asarray(image)
        # Pillow opens some 16-bit files as 32-bit integers.
        if image.mode == "I" and values.min() >= 0 and values.max() <= 65535:
            values = values.astype(np.uint16)
        return Image.fromarray(_to_uint8(values, name))
    marked = image.info.get("transparency") is not None and image.mode in ("1", "L", "P", "RGB")
    if marked or image.mode in ("RGBA", "LA", "PA", "La", "RGBa"):
        return _on_white(image.convert("RGBA"))
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def _on_white(image: Image.Image) -> Image.Image:
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _to_uint8(values: np.ndarray, name: str) -> np.ndarray:
    """Any supported pixel type as uint8, over the type's full range."""
    if values.dtype == np.uint8:
        return values
    if values.dtype.kind == "u" and values.dtype.itemsize == 2:  # either byte order
        return ((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    if values.dtype.kind != "f":
        found = f"{values.dtype}"
        if values.dtype.kind in "ui":
            found += f" in [{values.min()}, {values.max()}]"
        raise ImageError(f"{name}: expected {ARRAY_KINDS}, found {found}")
    low, high = values.min(), values.max()  # not-a-number is carried through both
    if not np.isfinite(low):
        count = int(np.sum(~np.isfinite(values)))
        raise ImageError(
            f"{name}: expected floats in [0, 1], found {count} of {values.size} that are NaN or "
            "infinite"
        )
    if not (low >= 0 and high <= 1):
        raise ImageError(f"{name}: expected floats in [0, 1], found [{low:g}, {high:g}]")
    return np.rint(values.astype(np.float32) * 255).astype(np.uint8)


def _from_array(values: np.ndarray, name: str, max_pixels: int, min_side: int) -> Image.Image:
    channels = values.shape[2] if values.ndim == 3 else 1
    if values.ndim not in (2, 3) or channels not in (1, 3, 4):
        raise ImageError(f"{name}: expected shape {ARRAY_SHAPES}, found {list(values.shape)}")
    _check_size(values.shape[1], values.shape[0], name, max_pixels, min_side)
    pixels = np.ascontiguousarray(_to_uint8(values, name))
    if channels == 4:
        return _on_white(Image.fromarray(pixels))
    return Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__

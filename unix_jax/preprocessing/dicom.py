"""DICOM files as upright 8-bit images: rescale, VOI window, photometric interpretation.

The order is that of DICOM PS3.3 C.11: stored values -> modality (LUT or slope and intercept) ->
VOI (LUT, else the first window, else percentiles) -> MONOCHROME1 inverted. Reading is strict about
what a chest X-ray can be: one frame, or one that the caller names, of one or three samples per
pixel. H height, W width in pixels.
"""

import io
import warnings
from collections.abc import Callable

import numpy as np
import pydicom
from jaxtyping import Float, UInt8
from pydicom.filereader import read_dataset
from pydicom.pixels import apply_color_lut, get_decoder, pixel_array
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from unix_jax.errors import ImageError

# Without a window the darkest and brightest half percent (markers, collimator, burnt edges) clip.
PERCENTILES = (0.5, 99.5)
EXTRA = "pip install 'unix-jax[dicom]'"
_MONOCHROME = ("MONOCHROME1", "MONOCHROME2")
# Code strings that decide on pixels. The standard writes them in upper case; files do not always.
_CODE_STRINGS = ("PhotometricInterpretation", "VOILUTFunction")
# (implicit VR, little endian) as found in a file that does not name its encoding.
_ENCODINGS: dict[object, UID] = {
    (True, True): ImplicitVRLittleEndian,
    (False, True): ExplicitVRLittleEndian,
    (False, False): ExplicitVRBigEndian,
}


def read(
    data: bytes,
    name: str,
    check_size: Callable[[int, int], None],
    check_frames: Callable[[int], None],
    frame: int = 1,
) -> UInt8[np.ndarray, "H W"] | UInt8[np.ndarray, "H W 3"]:
    """The image of a DICOM file's bytes, 0 black and 255 white.

    Args:
      data: the whole file; the preamble may be missing.
      name: its name in errors.
      check_size: called with (width, height) before pixels are decoded; may raise.
      check_frames: called with the number of frames, likewise.
      frame: the frame to read, counted from 1 as DICOM does.

    Raises:
      ImageError: not DICOM, no or broken pixel data, a photometric interpretation or transfer
        syntax that cannot be read (it names what to install).
    """
    syntax = UID("")
    try:
        syntax = _declared_syntax(data)
        _refuse_deflated(syntax, name)
        dataset = pydicom.dcmread(io.BytesIO(data), force=True)
        _check_header(dataset, name)
        check_frames(int(dataset.get("NumberOfFrames") or 1))
        check_size(int(dataset.Columns), int(dataset.Rows))
        if not syntax:
            # The encoding that was found is the one of the pixels, too.
            syntax = _ENCODINGS[dataset.original_encoding]
        _check_syntax(dataset, syntax, name)
        dataset.file_meta.TransferSyntaxUID = syntax
        _upper_code_strings(dataset)
        _apply_functional_groups(dataset, frame - 1)
        return _render(dataset, _stored_values(dataset, frame - 1, syntax, name), name)
    except (ImageError, MemoryError):
        raise
    except Exception as error:
        # pydicom raises nearly every exception there is on a broken file.
        at = f" (transfer syntax {syntax.name})" if syntax.is_valid and syntax else ""
        raise ImageError(f"{name}: broken DICOM{at}: {_one_line(error)}") from error


def check(
    data: bytes,
    name: str,
    check_size: Callable[[int, int], None],
    check_frames: Callable[[int], None],
) -> None:
    """Refuses a file that `read` would refuse for its header; no pixels are decoded.

    Args:
      data, name, check_size, check_frames: as in `read`.

    Raises:
      ImageError: as `read`.
    """
    try:
        syntax = _declared_syntax(data)
        _refuse_deflated(syntax, name)
        # From memory: a file object takes the memory that a damaged length asks for.
        dataset = pydicom.dcmread(io.BytesIO(data), force=True, stop_before_pixels=True)
        _check_header(dataset, name, with_pixels=False)
        check_frames(int(dataset.get("NumberOfFrames") or 1))
        check_size(int(dataset.Columns), int(dataset.Rows))
        if syntax:
            _check_syntax(dataset, syntax, name)
    except (ImageError, MemoryError):
        raise
    except Exception as error:
        raise ImageError(f"{name}: broken DICOM: {_one_line(error)}") from error


def _refuse_deflated(syntax: UID, name: str) -> None:
    # Deflated files are inflated whole before the header can be read, whatever their size.
    if syntax == DeflatedExplicitVRLittleEndian:
        raise ImageError(
            f"{name}: transfer syntax Deflated Explicit VR Little Endian is not supported; "
            "save the file uncompressed"
        )


def _declared_syntax(data: bytes) -> UID:
    """What (0002,0010) says, "" if absent; reads no further than the file meta group.

    The meta group is always in Explicit VR Little Endian (PS3.10 7.1).
    """
    file = io.BytesIO(data)
    file.seek(132 if data[128:132] == b"DICM" else 0)
    with warnings.catch_warnings():
        # A file without a meta group is none of pydicom's business here.
        warnings.simplefilter("ignore")
        meta = read_dataset(
            file, is_implicit_VR=False, is_little_endian=True,
            stop_when=lambda tag, vr, length: tag.group != 2,
        )  # fmt: skip
    return UID(str(meta.get("TransferSyntaxUID") or "").strip(" \0"))


def _check_header(dataset: pydicom.Dataset, name: str, *, with_pixels: bool = True) -> None:
    pixels = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
    missing = [key for key in ("Rows", "Columns") if not dataset.get(key)]
    if missing or (with_pixels and not any(key in dataset for key in pixels)):
        missing = missing or ["PixelData"]
        raise ImageError(f"{name}: expected a DICOM image, found no {', '.join(missing)}")
    samples = int(dataset.get("SamplesPerPixel") or 1)
    if samples not in (1, 3):
        raise ImageError(f"{name}: expected SamplesPerPixel 1 or 3, found {samples}")


def _check_syntax(dataset: pydicom.Dataset, syntax: UID, name: str) -> None:
    if not syntax.is_transfer_syntax:
        raise ImageError(f"{name}: expected a transfer syntax of DICOM, found {syntax}")
    if not syntax.is_compressed:
        if "PixelData" in dataset and dataset["PixelData"].is_undefined_length:
            raise ImageError(
                f"{name}: expected uncompressed pixels (transfer syntax {syntax.name}), "
                "found encapsulated ones; the file does not say how they are compressed"
            )
        return
    needs = "a codec that pydicom does not have"
    try:
        decoder = get_decoder(syntax)
        if decoder.is_available:
            return
        needs = f"{EXTRA} ({'; '.join(decoder.missing_dependencies)})"
    except NotImplementedError:
        pass
    raise ImageError(
        f"{name}: transfer syntax {syntax.name} ({syntax}) needs a decoder that is not "
        f"installed: {needs}"
    )


def _stored_values(dataset: pydicom.Dataset, index: int, syntax: UID, name: str) -> np.ndarray:
    try:
        return pixel_array(dataset, index=index)
    except MemoryError:
        raise
    except Exception as error:
        # Pillow decodes some files of a syntax and refuses others, 12 bits for example.
        missing = get_decoder(syntax).missing_dependencies if syntax.is_compressed else []
        if not missing:
            raise
        raise ImageError(
            f"{name}: broken DICOM, or pixels that the installed decoders do not read (transfer "
            f"syntax {syntax.name}): {_one_line(error)}; further decoders: {EXTRA}"
        ) from error


def _upper_code_strings(dataset: pydicom.Dataset) -> None:
    for keyword in _CODE_STRINGS:
        value = dataset.get(keyword)
        if isinstance(value, str):
            setattr(dataset, keyword, value.strip(" \0").upper())


def _apply_functional_groups(dataset: pydicom.Dataset, index: int) -> None:
    """Lifts an enhanced file's rescale and window of one frame to where other files have them."""
    groups = [
        *(dataset.get("SharedFunctionalGroupsSequence") or [])[:1],
        *(dataset.get("PerFrameFunctionalGroupsSequence") or [])[index : index + 1],
    ]
    for group in groups:
        for macro in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
            for item in (group.get(macro) or [])[:1]:
                dataset.update(item)


def _render(dataset: pydicom.Dataset, stored: np.ndarray, name: str) -> np.ndarray:
    photometric = str(dataset.get("PhotometricInterpretation", "MONOCHROME2"))
    if photometric == "PALETTE COLOR":
        return _full_range(apply_color_lut(stored, dataset), 16)
    if stored.ndim == 3:
        return _full_range(stored, int(dataset.BitsStored))
    if photometric not in _MONOCHROME:
        raise ImageError(
            f"{name}: PhotometricInterpretation: expected {', '.join(_MONOCHROME)}, RGB, YBR or "
            f"PALETTE COLOR, found {photometric}"
        )
    visible = _voi(dataset, _modality(dataset, stored), stored)
    if photometric == "MONOCHROME1":
        visible = 1 - visible
    return np.rint(visible * 255).astype(np.uint8)


def _full_range(values: np.ndarray, bits: int) -> np.ndarray:
    if values.dtype == np.uint8 and bits >= 8:
        return values
    return np.rint(values.astype(np.float32) * (255 / (2**bits - 1))).clip(0, 255).astype(np.uint8)


def _modality(dataset: pydicom.Dataset, stored: np.ndarray) -> Float[np.ndarray, "H W"]:
    table = _table(dataset, "ModalityLUTSequence")
    if table is not None:
        return _looked_up(dataset, table, stored)[0]
    slope, intercept = dataset.get("RescaleSlope"), dataset.get("RescaleIntercept")
    values = stored.astype(np.float32)
    if slope is not None:
        values *= float(slope)
    if intercept is not None:
        values += float(intercept)
    if not np.isfinite(values).all():
        raise ValueError("pixel values are not finite after rescaling")
    return values


def _voi(
    dataset: pydicom.Dataset, values: Float[np.ndarray, "H W"], stored: np.ndarray
) -> Float[np.ndarray, "H W"]:
    """Brightness in [0, 1]."""
    table = _table(dataset, "VOILUTSequence")
    if table is not None:
        levels, brightest = _looked_up(dataset, table, values)
        return (levels / brightest).clip(0, 1)
    center, width = _first(dataset.get("WindowCenter")), _first(dataset.get("WindowWidth"))
    # Some writers put a space where the standard has an underscore.
    function = str(dataset.get("VOILUTFunction") or "LINEAR").replace(" ", "_")
    # Files with an empty or zero window are common; they have none.
    if center is None or width is None or not width > 0:
        return _percentile_window(dataset, values, stored)
    if function == "SIGMOID":
        return 1 / (1 + np.exp((-4 * (values - center) / width).clip(-80, 80)))
    if function == "LINEAR":
        # C.11.2.1.2.1: both ends of the window are pixel values, hence the half and the one.
        center, width = center - 0.5, max(width - 1, 1e-3)
    elif function != "LINEAR_EXACT":
        raise ValueError(f"VOILUTFunction: expected LINEAR, LINEAR_EXACT, SIGMOID: {function}")
    return ((values - center) / width + 0.5).clip(0, 1)


def _table(dataset: pydicom.Dataset, sequence: str) -> pydicom.Dataset | None:
    """The sequence's first item that contains a table; items without one are common."""
    for item in dataset.get(sequence) or []:
        if item.get("LUTDescriptor") and item.get("LUTData"):
            return item
    return None


def _looked_up(
    dataset: pydicom.Dataset, table: pydicom.Dataset, values: np.ndarray
) -> tuple[Float[np.ndarray, "H W"], int]:
    """(values through a table, its largest possible entry); PS3.3 C.11.1.1.

    Values outside its range use the first or last entry. pydicom's functions are not used: they do
    not support modality tables of 10, 12 or 14 bits, and reduce indices modulo 256 in an 8-bit VOI
    table.
    """
    descriptor = [int(number) for number in table.LUTDescriptor]
    if len(descriptor) != 3 or not 1 <= descriptor[2] <= 16:
        raise ValueError(f"LUTDescriptor: expected 3 numbers, the last 1 to 16: {descriptor}")
    # 0 stands for 65536, which 16 bits cannot hold; a signed descriptor wraps.
    entries, first = (descriptor[0] & 0xFFFF) or 2**16, descriptor[1]
    data = table.LUTData
    if isinstance(data, bytes):
        words = "<u2" if dataset.file_meta.TransferSyntaxUID.is_little_endian else ">u2"
        one_byte = descriptor[2] <= 8 and len(data) < 2 * entries
        levels = np.frombuffer(data, np.uint8 if one_byte else words)
    else:
        levels = np.atleast_1d(np.asarray(data)) & 0xFFFF
    if len(levels) < entries:
        raise ValueError(f"LUTData: expected {entries} entries, found {len(levels)}")
    index = (np.rint(values).astype(np.int64) - first).clip(0, entries - 1)
    return levels[index].astype(np.float32), 2 ** descriptor[2] - 1


def _percentile_window(
    dataset: pydicom.Dataset, values: Float[np.ndarray, "H W"], stored: np.ndarray
) -> Float[np.ndarray, "H W"]:
    shown = values[~_is_padding(dataset, stored)]
    low, high = np.percentile(shown if shown.size else values, PERCENTILES)
    if high <= low:  # a nearly constant image
        low, high = values.min(), max(values.max(), values.min() + 1)
    return ((values - low) / (high - low)).clip(0, 1).astype(np.float32)


def _is_padding(dataset: pydicom.Dataset, stored: np.ndarray) -> np.ndarray:
    """Where stored values are padding: PixelPaddingValue to PixelPaddingRangeLimit, both ends."""
    ends = [_first(dataset.get("PixelPadding" + end)) for end in ("Value", "RangeLimit")]
    if ends[0] is None or stored.dtype.kind not in "iu":
        return np.zeros(stored.shape, bool)
    # Written unsigned although pixels are signed, or the other way round: the same 16 bits.
    bits = 8 * stored.dtype.itemsize
    numbers = [
        np.array(int(end) % 2**bits, f"u{stored.dtype.itemsize}").view(stored.dtype)
        for end in ends
        if end is not None
    ]
    return (stored >= min(numbers)) & (stored <= max(numbers))


def _first(value: object) -> float | None:
    """The first of a possibly multi-valued number, None when absent or not finite."""
    if isinstance(value, list | tuple | pydicom.multival.MultiValue):
        value = value[0] if len(value) else None
    if value is None or value == "":
        return None
    number = float(str(value))
    return number if np.isfinite(number) else None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__

"""DICOM files as upright 8-bit pictures: rescale, VOI window, photometric interpretation.

The order is that of DICOM PS3.3 C.11: stored values -> modality (LUT or slope and intercept) ->
VOI (LUT, else the first window, else percentiles) -> MONOCHROME1 inverted. Reading is strict about
what a chest X-ray can be: one frame, one or three samples a pixel. H height, W width in pixels.
"""

import io
from collections.abc import Callable

import numpy as np
import pydicom
from jaxtyping import Float, UInt8
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi, get_decoder, pixel_array
from pydicom.uid import UID

from unix_jax.errors import ImageError

# Without a window the darkest and brightest half percent (markers, collimator, burnt edges) clip.
PERCENTILES = (0.5, 99.5)
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_MONOCHROME = ("MONOCHROME1", "MONOCHROME2")


def has_magic(data: bytes) -> bool:
    """Whether a file's bytes carry DICOM's mark, "DICM" behind 128 bytes of preamble."""
    return data[128:132] == b"DICM"


def read(
    data: bytes, name: str, check_size: Callable[[int, int], None]
) -> UInt8[np.ndarray, "H W"] | UInt8[np.ndarray, "H W 3"]:
    """The picture of a DICOM file's bytes, 0 black and 255 white.

    Args:
      data: the whole file; the preamble may be missing.
      name: what errors call it.
      check_size: called with (width, height) before pixels are decoded; raises if it objects.

    Raises:
      ImageError: not DICOM, no or broken pixel data, several frames, a photometric interpretation
        or transfer syntax that cannot be read (it names the package that could).
    """
    if _DEFLATED in data:
        # Deflated files are inflated whole before the header can be read, whatever their size.
        raise ImageError(
            f"{name}: transfer syntax Deflated Explicit VR Little Endian is not supported; "
            "save the file uncompressed"
        )
    syntax = UID("")
    try:
        dataset = pydicom.dcmread(io.BytesIO(data), force=True)
        syntax = UID(str(getattr(dataset.file_meta, "TransferSyntaxUID", "")))
        _check_header(dataset, name)
        check_size(int(dataset.Columns), int(dataset.Rows))
        _check_decoder(syntax, name)
        if not syntax:
            # The default of the standard, and what files without a meta header are written in.
            dataset.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
        return _render(dataset, pixel_array(dataset), name)
    except (ImageError, MemoryError):
        raise
    except Exception as error:
        # pydicom raises nearly every exception there is on a broken file.
        detail = " ".join(str(error).split())[:300] or type(error).__name__
        at = f" (transfer syntax {syntax.name})" if syntax.is_valid and syntax else ""
        raise ImageError(f"{name}: broken DICOM{at}: {detail}") from error


def _check_header(dataset: pydicom.Dataset, name: str) -> None:
    pixels = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
    missing = [key for key in ("Rows", "Columns") if not dataset.get(key)]
    if missing or not any(key in dataset for key in pixels):
        missing = missing or ["PixelData"]
        raise ImageError(f"{name}: expected a DICOM image, found no {', '.join(missing)}")
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames != 1:
        raise ImageError(f"{name}: expected one frame (NumberOfFrames), found {frames}")
    samples = int(dataset.get("SamplesPerPixel") or 1)
    if samples not in (1, 3):
        raise ImageError(f"{name}: expected SamplesPerPixel 1 or 3, found {samples}")


def _check_decoder(syntax: UID, name: str) -> None:
    if not syntax or not syntax.is_transfer_syntax or not syntax.is_compressed:
        return
    needs = "a codec that pydicom does not have"
    try:
        decoder = get_decoder(syntax)
        if decoder.is_available:
            return
        needs = " or ".join(decoder.missing_dependencies) or needs
    except NotImplementedError:
        pass
    raise ImageError(
        f"{name}: transfer syntax {syntax.name} ({syntax}) needs a decoder that is not "
        f"installed: {needs}"
    )


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
    picture = _voi(dataset, _modality(dataset, stored), stored)
    if photometric == "MONOCHROME1":
        picture = 1 - picture
    return np.rint(picture * 255).astype(np.uint8)


def _full_range(values: np.ndarray, bits: int) -> np.ndarray:
    if values.dtype == np.uint8 and bits >= 8:
        return values
    return np.rint(values.astype(np.float32) * (255 / (2**bits - 1))).clip(0, 255).astype(np.uint8)


def _modality(dataset: pydicom.Dataset, stored: np.ndarray) -> Float[np.ndarray, "H W"]:
    if dataset.get("ModalityLUTSequence"):
        return apply_modality_lut(stored, dataset).astype(np.float32)
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
    if dataset.get("VOILUTSequence"):
        bits = int(dataset.VOILUTSequence[0].LUTDescriptor[2])
        looked_up = apply_voi(np.rint(values).astype(np.int32), dataset)
        return (looked_up.astype(np.float32) / (2**bits - 1)).clip(0, 1)
    center, width = _first(dataset.get("WindowCenter")), _first(dataset.get("WindowWidth"))
    function = str(dataset.get("VOILUTFunction") or "LINEAR")
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


def _percentile_window(
    dataset: pydicom.Dataset, values: Float[np.ndarray, "H W"], stored: np.ndarray
) -> Float[np.ndarray, "H W"]:
    padding = dataset.get("PixelPaddingValue")
    shown = values if padding is None else values[stored != int(padding)]
    low, high = np.percentile(shown if shown.size else values, PERCENTILES)
    if high <= low:  # a nearly constant picture
        low, high = values.min(), max(values.max(), values.min() + 1)
    return ((values - low) / (high - low)).clip(0, 1).astype(np.float32)


def _first(value: object) -> float | None:
    """The first of a possibly multi-valued number, None when absent or not finite."""
    if isinstance(value, list | tuple | pydicom.multival.MultiValue):
        value = value[0] if len(value) else None
    if value is None or value == "":
        return None
    number = float(str(value))
    return number if np.isfinite(number) else None

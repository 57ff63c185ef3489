"""Pictures for the tests of reading and of changing them."""

import io

import numpy as np
import pydicom
from PIL import Image
from pydicom.uid import UID, ExplicitVRLittleEndian, RLELossless

RAMP = np.tile(np.arange(64, dtype=np.uint8) * 4, (48, 1))  # [48, 64], columns 0, 4, ... 252
NOISE = np.random.default_rng(0).integers(0, 256, (48, 64), np.uint8)


def gray(image: Image.Image) -> np.ndarray:
    pixels = np.asarray(image)
    assert image.mode == "RGB"
    assert (pixels[..., :1] == pixels).all()
    return pixels[..., 0]


def picture_file(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def dicom_file(
    pixels: np.ndarray, syntax: UID = ExplicitVRLittleEndian, preamble: bool = True, **elements
) -> bytes:
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID
    dataset.SOPInstanceUID = "1.2.3.4"
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel = 3 if pixels.ndim == 3 else 1
    if pixels.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.PhotometricInterpretation = "RGB" if pixels.ndim == 3 else "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = pixels.dtype.itemsize * 8
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    for name, value in elements.items():
        setattr(dataset, name, value)
    stored = pixels if syntax.is_little_endian else pixels.astype(pixels.dtype.newbyteorder(">"))
    dataset.PixelData = stored.tobytes()
    # Bytes in words would be swapped in big endian.
    dataset["PixelData"].VR = "OB" if pixels.dtype.itemsize == 1 else "OW"
    if syntax == RLELossless:
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.compress(RLELossless, generate_instance_uid=False)
    elif syntax.is_compressed:
        dataset.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8\xff\xd9"])
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, dataset, enforce_file_format=preamble)
    return buffer.getvalue()


FULL = {"WindowCenter": "127.5", "WindowWidth": "255", "VOILUTFunction": "LINEAR_EXACT"}
TWELVE = RAMP.astype(np.uint16) * 16  # 0 ... 4032

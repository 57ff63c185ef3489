"""DICOM files: what is shown of their values, and which are refused."""

import numpy as np
import pydicom
import pytest
from picture_toy import FULL, RAMP, TWELVE, dicom_file, gray
from pydicom.uid import UID, JPEGLosslessSV1, RLELossless

from unix_jax.errors import ImageError
from unix_jax.images import load_image


def test_dicom_by_name_and_by_magic(tmp_path):
    data = dicom_file(RAMP, **FULL)
    for name in ("film.dcm", "film", "film.png"):
        (tmp_path / name).write_bytes(data)
        assert np.array_equal(gray(load_image(tmp_path / name)), RAMP)
    assert np.array_equal(gray(load_image(data)), RAMP)
    (tmp_path / "film.DCM").write_bytes(data[132:])  # no preamble: only the name tells
    assert np.array_equal(gray(load_image(tmp_path / "film.DCM")), RAMP)


def test_dicom_rescale_then_window():
    # 12 stored bits; slope 2, intercept -1000; the window is in rescaled units.
    data = dicom_file(
        TWELVE,
        BitsStored=12,
        HighBit=11,
        RescaleSlope="2",
        RescaleIntercept="-1000",
        WindowCenter=["1000.5", "7"],  # the first window counts
        WindowWidth=["2001", "8"],
    )
    values = TWELVE.astype(float) * 2 - 1000
    # C.11.2.1.2.1, LINEAR
    expected = ((values - 1000) / 2000 + 0.5).clip(0, 1) * 255
    assert np.array_equal(gray(load_image(data)), np.rint(expected))


def test_dicom_sigmoid_and_signed():
    signed = RAMP.astype(np.int16) - 128
    data = dicom_file(signed, WindowCenter="0", WindowWidth="200", VOILUTFunction="SIGMOID")
    expected = 255 / (1 + np.exp(-4 * signed / 200))
    assert np.abs(gray(load_image(data)) - expected).max() <= 0.51


def test_dicom_voi_lut_before_window():
    lut = pydicom.Dataset()
    lut.add_new("LUTDescriptor", "US", [256, 0, 16])
    lut.add_new("LUTData", "US", [65535 - 257 * v for v in range(256)])
    data = dicom_file(RAMP, VOILUTSequence=[lut], **FULL)
    assert np.array_equal(gray(load_image(data)), 255 - RAMP)


def test_dicom_monochrome1_is_inverted():
    data = dicom_file(RAMP, PhotometricInterpretation="MONOCHROME1", **FULL)
    assert np.array_equal(gray(load_image(data)), 255 - RAMP)


@pytest.mark.parametrize("window", [{}, {"WindowCenter": "0", "WindowWidth": "0"}])
def test_dicom_without_a_window_uses_percentiles(window):
    pixels = TWELVE.copy()
    pixels[0, 0] = 65535  # one burnt pixel must not darken the rest
    picture = gray(load_image(dicom_file(pixels, **window)))
    assert picture[0, 0] == 255
    assert picture[1:].min() == 0
    assert picture[1:].max() == 255
    assert (np.diff(picture[1].astype(int)) >= 0).all()
    padded = dicom_file(np.where(RAMP < 128, 0, RAMP).astype(np.uint8), PixelPaddingValue=0)
    assert np.unique(gray(load_image(padded))).tolist()[:2] < [0, 20]
    assert not gray(load_image(dicom_file(np.full((20, 20), 7, np.uint8)))).any()


def test_dicom_color_and_rle():
    color = np.dstack([RAMP, RAMP[:, ::-1], RAMP // 2])
    assert np.array_equal(np.asarray(load_image(dicom_file(color))), color)
    assert np.array_equal(gray(load_image(dicom_file(RAMP, RLELossless, **FULL))), RAMP)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            dicom_file(RAMP, JPEGLosslessSV1),
            "syntax JPEG Lossless.*needs a decoder.*pylibjpeg",
        ),
        (dicom_file(RAMP, UID("1.2.840.10008.1.2.1.99")), "transfer syntax Deflated"),
        (dicom_file(RAMP, NumberOfFrames=5), r"expected one frame \(NumberOfFrames\), found 5"),
        (dicom_file(RAMP, Rows=30000, Columns=30000), "found 30000 x 30000 = 900000000"),
        (dicom_file(RAMP, Rows=1, Columns=1), "at least 16 pixels, found 1 x 1"),
        (dicom_file(RAMP)[:-500], "broken DICOM"),
        (dicom_file(RAMP, Rows=0), "found no Rows"),
        (
            dicom_file(RAMP, PhotometricInterpretation="HSV"),
            "PhotometricInterpretation: expected.*HSV",
        ),
        (b"\0" * 128 + b"DICM", "expected a DICOM image, found no Rows, Columns"),
        (b"A report, not a film.", "DICOM"),
    ],
    ids=[
        "syntax",
        "deflated",
        "frames",
        "gigapixel",
        "one-pixel",
        "truncated",
        "no-rows",
        "hsv",
        "empty",
        "text",
    ],
)
def test_dicom_refused(tmp_path, data, message):
    path = tmp_path / "film.dcm"
    path.write_bytes(data)
    with pytest.raises(ImageError, match=f"film.dcm: .*{message}") as raised:
        load_image(path)
    assert "\n" not in str(raised.value)

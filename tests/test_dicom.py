"""DICOM files: what is shown of their values, and which are refused."""

import importlib.util
import io
import json
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.pixels import apply_modality_lut, apply_voi_lut, get_decoder
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    RLELossless,
)

from support.toy_images import FULL, RAMP, TWELVE, dicom_file, gray
from unix_jax.errors import ImageError
from unix_jax.preprocessing.images import load_image


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
            r"syntax JPEG Lossless.*needs a decoder.*pip install 'unix-jax\[dicom\]'.*pylibjpeg",
        ),
        (dicom_file(RAMP, UID("1.2.840.10008.1.2.1.99")), "transfer syntax Deflated"),
        (dicom_file(RAMP, NumberOfFrames=5), r"expected one frame, found 5; .*--frame"),
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


# ---- files from the field

FIELD = Path(__file__).parent / "field" / "dicom"


@pytest.mark.parametrize(
    "case", json.loads((FIELD / "cases.json").read_text()), ids=lambda c: c["file"]
)
def test_field_cases(case):
    found = gray(load_image(FIELD / case["file"])).astype(int)
    assert np.abs(found - np.load(FIELD / case["expected"])).max() <= 1, case["why"]


def table(data=None, descriptor=(256, 0, 8)):
    """A LUT item; without `data`, one that holds no table."""
    item = pydicom.Dataset()
    if descriptor is not None:
        item.add_new("LUTDescriptor", "US", list(descriptor))
    if data is not None:
        item.add_new("LUTData", "US", list(data))
    return item


@pytest.mark.parametrize("item", [table(None, None), table(), table([], (0, 0, 16))])
@pytest.mark.parametrize("sequence", ["VOILUTSequence", "ModalityLUTSequence"])
def test_an_item_without_a_table_is_none(sequence, item):
    rescale = {"RescaleSlope": "1", "RescaleIntercept": "0"}
    assert np.array_equal(
        gray(load_image(dicom_file(RAMP, **{sequence: [item]}, **rescale, **FULL))), RAMP
    )
    # The first item that has one counts, and without a window the percentiles.
    inverse = table(range(255, -1, -1))
    both = dicom_file(RAMP, **{sequence: [item, inverse]}, **FULL)
    assert np.array_equal(gray(load_image(both)), 255 - RAMP)
    assert gray(load_image(dicom_file(RAMP, **{sequence: [item]}))).max() == 255


@pytest.mark.parametrize(
    ("lut", "message"),
    [
        (table(range(10)), "expected 256 entries, found 10"),
        (table(range(256), (256, 0)), "LUTDescriptor: expected 3 numbers"),
        (table(range(256), (256, 0, 0)), "LUTDescriptor: expected 3 numbers"),
    ],
)
@pytest.mark.parametrize("sequence", ["VOILUTSequence", "ModalityLUTSequence"])
def test_a_broken_table_is_refused(sequence, lut, message):
    with pytest.raises(ImageError, match=message):
        load_image(dicom_file(RAMP, **{sequence: [lut]}, **FULL))


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
@pytest.mark.parametrize("sequence", ["VOILUTSequence", "ModalityLUTSequence"])
def test_tables_of_any_depth(sequence, bits):
    # 4096 entries, of which an 8-bit index would reach 256.
    data = [round(v * (2**bits - 1) / 4095) for v in range(4096)]
    window = {"WindowCenter": (2**bits - 1) / 2, "WindowWidth": 2**bits - 1}
    full = {"BitsStored": 12, "HighBit": 11, **window, "VOILUTFunction": "LINEAR_EXACT"}
    found = gray(
        load_image(dicom_file(TWELVE, **{sequence: [table(data, (4096, 0, bits))]}, **full))
    )
    assert np.abs(found - TWELVE / 4095 * 255).max() <= 1


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_a_table_of_bytes(syntax):
    order = "<" if syntax.is_little_endian else ">"
    item = pydicom.Dataset()
    item.add_new("LUTDescriptor", "US", [256, 0, 16])
    item.add_new("LUTData", "OW", (np.arange(255, -1, -1) * 257).astype(order + "u2").tobytes())
    data = dicom_file(RAMP, syntax, VOILUTSequence=[item])
    assert np.array_equal(gray(load_image(data)), 255 - RAMP)


@pytest.mark.parametrize("name", ["VOILUTFunction", "PhotometricInterpretation"])
@pytest.mark.parametrize("change", [str.lower, str.title, lambda text: f"{text} "])
def test_code_strings_in_any_case(name, change):
    for value in {"VOILUTFunction": ("LINEAR", "LINEAR_EXACT", "SIGMOID")}.get(
        name, ("MONOCHROME1", "MONOCHROME2")
    ):
        window = {"WindowCenter": "100", "WindowWidth": "150"}
        expected = load_image(dicom_file(RAMP, **window, **{name: value}))
        found = load_image(dicom_file(RAMP, **window, **{name: change(value)}))
        assert np.array_equal(gray(found), gray(expected))


def test_linear_exact_with_a_space():
    window = {"WindowCenter": "100", "WindowWidth": "150"}
    expected, found = (
        load_image(dicom_file(RAMP, **window, VOILUTFunction=name))
        for name in ("LINEAR_EXACT", "LINEAR EXACT")
    )
    assert np.array_equal(gray(found), gray(expected))


def without_meta(data: bytes) -> bytes:
    """A file's data set alone: neither preamble nor meta group."""
    length = int.from_bytes(data[140:144], "little")
    return data[144 + length :]


SYNTAXES = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian)


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda s: s.name)
@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int16])
def test_the_encoding_that_was_found_is_that_of_the_pixels(tmp_path, syntax, kind):
    window = {"WindowCenter": "127.5", "WindowWidth": "255", "VOILUTFunction": "LINEAR_EXACT"}
    data = dicom_file(RAMP.astype(kind), syntax, **window)
    path = tmp_path / "film.dcm"
    for stored in (data, without_meta(data), bytes(128) + b"DICM" + without_meta(data)):
        path.write_bytes(stored)
        assert np.array_equal(gray(load_image(path)), RAMP)


@pytest.mark.parametrize(
    "uid", [b"1.2.840.10008.1.2.1.99", b"1.2.840.10008.1.2.2", b"1.2.840.10008.1.2.4.70"]
)
def test_a_syntax_is_not_looked_for_in_texts(tmp_path, uid):
    texts = {"ImageComments": f"was {uid.decode()}", "StudyDescription": uid.decode()}
    for syntax in SYNTAXES:
        data = dicom_file(RAMP, syntax, **texts, **FULL)
        path = tmp_path / "film.dcm"
        for stored in (data, without_meta(data)):
            path.write_bytes(stored)
            assert np.array_equal(gray(load_image(path)), RAMP)


def test_syntaxes_that_say_nothing_of_the_pixels(tmp_path):
    path = tmp_path / "film.dcm"
    encapsulated = without_meta(dicom_file(RAMP, JPEGLosslessSV1))
    path.write_bytes(encapsulated)
    with pytest.raises(ImageError, match=r"expected uncompressed pixels.*found encapsulated ones"):
        load_image(path)
    data = dicom_file(RAMP).replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.9.9.9\0")
    with pytest.raises(ImageError, match=r"expected a transfer syntax.*found 1.2.840.10008.9.9.9"):
        load_image(data)


@pytest.mark.parametrize(
    ("padding", "kind"),
    [
        ({"PixelPaddingValue": 0}, np.uint16),
        ({"PixelPaddingValue": 0, "PixelPaddingRangeLimit": 90}, np.uint16),
        ({"PixelPaddingValue": 90, "PixelPaddingRangeLimit": 0}, np.uint16),
        ({"PixelPaddingValue": -2000, "PixelPaddingRangeLimit": -1900}, np.int16),
    ],
)
def test_padding_takes_no_part_in_the_percentiles(padding, kind):
    low, high = sorted((padding["PixelPaddingValue"], padding.get("PixelPaddingRangeLimit", 0)))
    high = high if "PixelPaddingRangeLimit" in padding else low
    shown = 1000 + TWELVE.astype(kind)[:, :32]
    noise = np.random.default_rng(0).integers(low, high, shown.shape, endpoint=True)
    found = gray(load_image(dicom_file(np.hstack([shown, noise.astype(kind)]), **padding)))
    assert np.array_equal(found[:, :32], gray(load_image(dicom_file(shown))))
    assert not found[:, 32:].any()


# ---- frames

FRAMES = np.stack([RAMP, 255 - RAMP, RAMP[::-1, ::-1]])


def frames_file(frames=FRAMES, syntax=ExplicitVRLittleEndian, **elements) -> bytes:
    dataset = pydicom.dcmread(io.BytesIO(dicom_file(frames[0], syntax, **(FULL | elements))))
    dataset.NumberOfFrames = len(frames)
    dataset.PixelData = frames.tobytes()
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    return buffer.getvalue()


def test_a_frame_of_several():
    data = frames_file()
    for number, expected in enumerate(FRAMES, 1):
        assert np.array_equal(gray(load_image(data, frame=number)), expected)
    with pytest.raises(ImageError, match=r"expected one frame, found 3; .*--frame.*1 to 3"):
        load_image(data)
    for frame in (0, 4, -1):
        with pytest.raises(ImageError, match=rf"frame: expected 1 to 3, found {frame}"):
            load_image(data, frame=frame)
    single = dicom_file(RAMP, **FULL)
    assert np.array_equal(gray(load_image(single, frame=1)), RAMP)
    with pytest.raises(ImageError, match="frame: expected 1 to 1, found 2"):
        load_image(single, frame=2)


def test_a_window_of_each_frame():
    def group(macro: str, **values) -> pydicom.Dataset:
        item, outer = pydicom.Dataset(), pydicom.Dataset()
        for name, value in values.items():
            setattr(item, name, value)
        setattr(outer, macro, [item])
        return outer

    exact = {"VOILUTFunction": "LINEAR_EXACT", "WindowWidth": "255"}
    data = frames_file(
        WindowCenter=None, WindowWidth=None,
        SharedFunctionalGroupsSequence=[
            group("PixelValueTransformationSequence", RescaleSlope="1", RescaleIntercept="10")
        ],
        PerFrameFunctionalGroupsSequence=[
            group("FrameVOILUTSequence", WindowCenter=str(center), **exact)
            for center in (137.5, 147.5, 127.5)
        ],
    )  # fmt: skip
    for number, shift in enumerate((0, -10, 10), 1):
        expected = (FRAMES[number - 1].astype(int) + shift).clip(0, 255)
        assert np.array_equal(gray(load_image(data, frame=number)), expected)


# ---- against pydicom's own pipeline


@settings(max_examples=60, deadline=None)
@given(
    bits=st.sampled_from([8, 10, 12, 14, 16]),
    signed=st.booleans(),
    slope=st.sampled_from([None, "1", "2.5", "0.1"]),
    center=st.integers(-500, 5000),
    width=st.integers(2, 70000),
    function=st.sampled_from(["LINEAR", "LINEAR_EXACT", "SIGMOID", "sigmoid", None]),
    inverted=st.booleans(),
    syntax=st.sampled_from(SYNTAXES),
    seed=st.integers(0, 2**16),
)
def test_windows_equal_those_of_pydicom(
    bits, signed, slope, center, width, function, inverted, syntax, seed
):
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1)) if signed else (0, 2**bits)
    kind = f"{'i' if signed else 'u'}{1 if bits == 8 else 2}"
    pixels = np.random.default_rng(seed).integers(low, high, (20, 24)).astype(kind)
    elements = {"BitsStored": bits, "HighBit": bits - 1}
    if slope is not None:
        elements |= {"RescaleSlope": slope, "RescaleIntercept": "-7"}
    if function is not None:
        elements["VOILUTFunction"] = function
    if inverted:
        elements["PhotometricInterpretation"] = "MONOCHROME1"
    data = dicom_file(pixels, syntax, WindowCenter=center, WindowWidth=width, **elements)
    dataset = pydicom.dcmread(io.BytesIO(data))
    values = apply_voi_lut(apply_modality_lut(dataset.pixel_array, dataset), dataset)
    ends = np.array([low, high - 1]) * float(slope or 1) - (0 if slope is None else 7)
    expected = (values - ends[0]) / (ends[1] - ends[0]) * 255
    expected = 255 - expected if inverted else expected
    assert np.abs(gray(load_image(data)) - expected).max() <= 1


# ---- compressed files; the decoders are those of the extra [dicom]

COMPRESSED = sorted((Path(__file__).parent / "dicom_compressed").glob("*.dcm"))


@pytest.mark.parametrize("path", COMPRESSED, ids=lambda path: path.stem)
def test_compressed_files(path):
    """Made by GDCM 3.2, libjpeg-turbo 3 (12 bits) and OpenJPH; refused without a decoder."""
    syntax = pydicom.dcmread(path).file_meta.TransferSyntaxUID
    decoder = get_decoder(syntax)
    libjpeg = importlib.util.find_spec("libjpeg") is not None
    if decoder.is_available and (libjpeg or syntax != JPEGExtended12Bit):
        found = gray(load_image(path))
        assert np.abs(found - TWELVE / 4095 * 255).max() <= 1.5
    else:
        with pytest.raises(ImageError, match=r"pip install 'unix-jax\[dicom\]'"):
            load_image(path)

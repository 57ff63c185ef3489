"""Image decoding and transforms, against the original's outputs and by construction."""

import io
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.uid import UID, ExplicitVRLittleEndian, JPEGLosslessSV1, RLELossless
from safetensors.numpy import load_file

from unix_jax import transforms
from unix_jax.errors import ImageError, UniXError
from unix_jax.images import load_image

GOLDEN = Path(__file__).parent / "golden" / "metrics_tiny"
EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.jpg"))
RAMP = np.tile(np.arange(64, dtype=np.uint8) * 4, (48, 1))  # [48, 64], columns 0, 4, ... 252
NOISE = np.random.default_rng(0).integers(0, 256, (48, 64), np.uint8)


def _gray(image: Image.Image) -> np.ndarray:
    pixels = np.asarray(image)
    assert image.mode == "RGB"
    assert (pixels[..., :1] == pixels).all()
    return pixels[..., 0]


def _file(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


# ---- golden transforms


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    return load_file(GOLDEN / "golden.safetensors")


@pytest.mark.parametrize("index", range(3))
def test_letterbox_equals_the_original(golden, index):
    image = load_image(GOLDEN / f"image{index}.png")
    boxed = transforms.letterbox(image, 384)
    assert np.array_equal(_gray(boxed), golden[f"transform.{index}.letterbox384_uint8"])
    expected = golden[f"transform.{index}.letterbox384_siglip"][0]
    pixels = transforms.to_model_image(image, 384)
    assert (pixels.shape, pixels.dtype) == ((384, 384, 3), np.float32)
    for channel in range(3):
        np.testing.assert_allclose(pixels[..., channel], expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("index", range(3))
@pytest.mark.parametrize(
    ("name", "transform"),
    [("siglip384", transforms.to_vit_image), ("vae256", transforms.to_vae_image)],
)
def test_resize_to_stride_equals_the_original(golden, index, name, transform):
    expected = golden[f"transform.{index}.{name}"][0]
    pixels = transform(load_image(GOLDEN / f"image{index}.png"))
    assert pixels.dtype == np.float32
    for channel in range(3):
        np.testing.assert_allclose(pixels[..., channel], expected, rtol=0, atol=2e-6)


def test_large_image_uses_the_thumbnail_filter():
    large = load_image(np.random.default_rng(0).integers(0, 256, (1000, 1300), np.uint8))
    expected = large.copy()
    expected.thumbnail((384, 384), Image.Resampling.LANCZOS)
    inside = transforms.letterbox(large).crop((0, 44, 384, 44 + expected.height))
    assert np.array_equal(np.asarray(inside), np.asarray(expected))


# ---- transforms, any size

SIDES = st.integers(16, 900)


@given(SIDES, SIDES, st.integers(1, 40), st.integers(1, 40), st.sampled_from([8, 14, 16, 32]))
@settings(max_examples=300, deadline=None)
def test_stride_size_bounds(width, height, longest, shortest, stride):
    max_size = longest * stride
    min_size = min(shortest * stride, max_size)
    size = transforms.stride_size(width, height, max_size, min_size, stride)
    assert all(side % stride == 0 and stride <= side <= max_size for side in size)
    # The longest side reaches the maximum unless the picture may stay smaller than that.
    if min_size == max_size:
        assert max(size) == max_size
    assert transforms.stride_size(height, width, max_size, min_size, stride) == size[::-1]


@given(SIDES, SIDES, st.integers(8, 200), st.integers(0, 254))
@settings(max_examples=60, deadline=None)
def test_letterbox_is_centred_and_never_enlarges(width, height, size, fill):
    boxed = np.asarray(transforms.letterbox(Image.new("L", (width, height), 255), size, fill))
    assert boxed.shape == (size, size)
    rows, columns = np.nonzero((boxed == 255).any(1))[0], np.nonzero((boxed == 255).any(0))[0]
    inside = (len(columns), len(rows))
    if max(width, height) <= size:
        assert inside == (width, height)
    else:
        assert max(inside) == size
        assert abs(inside[0] / width - inside[1] / height) < 1.01 / min(width, height)
    for found in (rows, columns):
        before, after = found[0], size - 1 - found[-1]
        assert after - before in (0, 1)
        assert len(found) == found[-1] - found[0] + 1


def test_transforms_leave_their_input_alone():
    image = load_image(RAMP)
    before = image.tobytes()
    transforms.to_model_image(image, 48)
    transforms.to_vae_image(image, 32)
    assert (image.size, image.tobytes()) == ((64, 48), before)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda i: transforms.letterbox(i, 0), "size: expected a positive number, found 0"),
        (lambda i: transforms.to_vae_image(i, 250), "max_size: expected a positive multiple of 16"),
        (lambda i: transforms.to_vae_image(i, 256, 300), "min_size: expected 1 to max_size 256"),
    ],
)
def test_transform_arguments(call, message):
    with pytest.raises(ImageError, match=message):
        call(load_image(RAMP))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.name)
def test_bundled_examples(path):
    image = load_image(path)
    pixels = transforms.to_model_image(image)
    assert pixels.shape == (384, 384, 3)
    assert 0.1 < (pixels * transforms.SIGLIP_STD + transforms.SIGLIP_MEAN).mean() < 0.9
    assert transforms.to_vae_image(image).shape == (256, 256, 3)


# ---- decoding


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "GIF", "PPM", "JPEG2000"])
def test_lossless_grayscale(kind, tmp_path):
    path = tmp_path / "picture"  # the format is read from the content, not from the name
    path.write_bytes(_file(Image.fromarray(RAMP), kind))
    assert np.array_equal(_gray(load_image(path)), RAMP)
    assert np.array_equal(_gray(load_image(str(path))), RAMP)
    assert np.array_equal(_gray(load_image(path.read_bytes())), RAMP)


def test_jpeg_and_pil():
    data = _file(Image.fromarray(RAMP), "JPEG", quality=95)
    assert np.abs(_gray(load_image(data)).astype(int) - RAMP).max() <= 3
    image = Image.fromarray(RAMP)
    assert np.array_equal(_gray(load_image(image)), RAMP)
    assert image.mode == "L"


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_is_scaled_not_clipped(kind):
    wide = RAMP.astype(np.uint16) * 257
    assert np.array_equal(_gray(load_image(_file(Image.fromarray(wide), kind))), RAMP)
    assert np.array_equal(_gray(load_image(wide.astype(">u2"))), RAMP)


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_thirty_two_bit_tiff(dtype):
    values = RAMP.astype(dtype) * 257 if dtype == np.int32 else RAMP.astype(dtype) / 255
    assert np.array_equal(_gray(load_image(_file(Image.fromarray(values), "TIFF"))), RAMP)
    with pytest.raises(ImageError, match=r"expected .*floats in \[0, 1\].*found"):
        load_image(_file(Image.fromarray(values * 1000), "TIFF"))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_composited_on_white(mode):
    image = Image.fromarray(RAMP).convert(mode)
    assert np.array_equal(_gray(load_image(_file(image, "PNG"))), RAMP)  # opaque: as without
    alpha = np.where(np.arange(64) < 32, 0, 255).astype(np.uint8)
    image.putalpha(Image.fromarray(np.tile(alpha, (48, 1))))
    expected = np.where(alpha == 0, 255, RAMP)
    assert np.array_equal(_gray(load_image(_file(image, "PNG"))), expected)


def test_palette_bilevel_and_cmyk():
    color = Image.merge("RGB", [Image.fromarray(c) for c in (RAMP, RAMP[:, ::-1], RAMP // 2)])
    palette = color.quantize(32)
    expected = np.asarray(palette.convert("RGB"))
    assert np.array_equal(np.asarray(load_image(_file(palette, "PNG"))), expected)
    transparent = load_image(_file(palette, "PNG", transparency=palette.getpixel((5, 5))))
    assert transparent.getpixel((5, 5)) == (255, 255, 255)
    bilevel = Image.fromarray(RAMP).point(lambda v: 255 * (v > 127)).convert("1")
    assert np.array_equal(_gray(load_image(_file(bilevel, "PNG"))), 255 * (RAMP > 127))
    cmyk = _file(Image.fromarray(RAMP).convert("RGB").convert("CMYK"), "TIFF")
    assert np.array_equal(_gray(load_image(cmyk)), RAMP)


@pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (3, 2), (6, 3), (8, 1)])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_exif_rotation(orientation, turns, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.asarray(load_image(_file(Image.fromarray(RAMP), kind, exif=exif)))[..., 0]
    expected = np.rot90(RAMP, turns)
    assert pixels.shape == expected.shape
    assert np.abs(pixels.astype(int) - expected).max() <= 6


@pytest.mark.parametrize(
    "array",
    [
        RAMP,
        RAMP[..., None],
        np.dstack([RAMP, RAMP, RAMP]),
        np.dstack([RAMP, RAMP, RAMP, np.full_like(RAMP, 255)]),
        RAMP / np.float32(255),
        RAMP / 255,
        RAMP.astype(np.uint16) * 257,
    ],
    ids=lambda a: f"{a.dtype}{a.shape}",
)
def test_arrays(array):
    assert np.array_equal(_gray(load_image(array)), RAMP)


def test_first_frame_of_a_telephones_jpeg():
    frames = [Image.fromarray(RAMP), Image.fromarray(RAMP[::-1])]
    data = _file(frames[0], "MPO", save_all=True, append_images=frames[1:])
    assert np.abs(_gray(load_image(data)).astype(int) - RAMP).max() <= 6


# ---- what is refused


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (RAMP.astype(np.int64), r"found int64 in \[0, 252\]"),
        (RAMP > 3, "found bool"),
        (RAMP / 10.0, r"expected floats in \[0, 1\], found \[0, 25.2\]"),
        (np.full((20, 20), np.nan), "found .nan, nan"),
        (np.zeros((20, 20, 2)), r"found \[20, 20, 2\]"),
        (np.zeros((1, 20, 20, 3)), r"found \[1, 20, 20, 3\]"),
        (np.zeros((0, 20)), "found 20 x 0"),
        (np.zeros((1, 1), np.uint8), "at least 16 pixels, found 1 x 1"),
    ],
)
def test_arrays_refused(array, message):
    with pytest.raises(ImageError, match=f"image array: .*{message}"):
        load_image(array)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "found an empty file"),
        (b"No acute disease.\n", r"expected an image .*found a file that begins with b'No acute"),
        (_file(Image.fromarray(NOISE), "PNG")[:900], "broken or truncated PNG"),
        (_file(Image.fromarray(NOISE), "JPEG")[:-200], "broken or truncated JPEG"),
        (_file(Image.new("L", (1, 1)), "PNG"), "at least 16 pixels, found 1 x 1"),
        (
            _file(
                Image.fromarray(RAMP), "TIFF", save_all=True, append_images=[Image.fromarray(RAMP)]
            ),
            "expected one frame, found 2",
        ),
    ],
    ids=["empty", "text", "truncated-png", "truncated-jpeg", "one-pixel", "two-pages"],
)
def test_files_refused(tmp_path, data, message):
    path = tmp_path / "broken.png"
    path.write_bytes(data)
    with pytest.raises(ImageError, match=f"broken.png: .*{message}") as raised:
        load_image(path)
    assert "\n" not in str(raised.value)


def test_paths_refused(tmp_path):
    with pytest.raises(ImageError, match=r"absent\.png: no such file"):
        load_image(tmp_path / "absent.png")
    with pytest.raises(ImageError, match="found a directory"):
        load_image(tmp_path)
    with pytest.raises(ImageError, match="found a special file"):
        load_image("/dev/null")
    with pytest.raises(ImageError, match=r"cannot be read|no such file"):
        load_image("a\0b.png")
    with pytest.raises(ImageError, match="found NoneType"):
        load_image(None)


def _png_header(width: int, height: int) -> bytes:
    import struct
    import zlib

    def chunk(kind: bytes, body: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + check

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0"))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("size", [(12_000, 12_000), (60_000, 60_000), (2**30, 2**30)])
def test_gigapixel_is_refused_from_its_header(size):
    with pytest.raises(ImageError, match=r"expected at most 100000000 pixels.*found"):
        load_image(_png_header(*size))


def test_pixel_limit_is_an_argument():
    with pytest.raises(ImageError, match=r"at most 3000 pixels .*found 64 x 48 = 3072"):
        load_image(RAMP, max_pixels=3000)
    assert load_image(np.zeros((4, 4), np.uint8), min_side=4).size == (4, 4)


# ---- DICOM


def _dicom(
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
    dataset.PixelData = pixels.tobytes()
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


def test_dicom_by_name_and_by_magic(tmp_path):
    data = _dicom(RAMP, **FULL)
    for name in ("film.dcm", "film", "film.png"):
        (tmp_path / name).write_bytes(data)
        assert np.array_equal(_gray(load_image(tmp_path / name)), RAMP)
    assert np.array_equal(_gray(load_image(data)), RAMP)
    (tmp_path / "film.DCM").write_bytes(data[132:])  # no preamble: only the name tells
    assert np.array_equal(_gray(load_image(tmp_path / "film.DCM")), RAMP)


def test_dicom_rescale_then_window():
    # 12 stored bits; slope 2, intercept -1000; the window is in rescaled units.
    data = _dicom(
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
    assert np.array_equal(_gray(load_image(data)), np.rint(expected))


def test_dicom_sigmoid_and_signed():
    signed = RAMP.astype(np.int16) - 128
    data = _dicom(signed, WindowCenter="0", WindowWidth="200", VOILUTFunction="SIGMOID")
    expected = 255 / (1 + np.exp(-4 * signed / 200))
    assert np.abs(_gray(load_image(data)) - expected).max() <= 0.51


def test_dicom_voi_lut_before_window():
    lut = pydicom.Dataset()
    lut.add_new("LUTDescriptor", "US", [256, 0, 16])
    lut.add_new("LUTData", "US", [65535 - 257 * v for v in range(256)])
    data = _dicom(RAMP, VOILUTSequence=[lut], **FULL)
    assert np.array_equal(_gray(load_image(data)), 255 - RAMP)


def test_dicom_monochrome1_is_inverted():
    data = _dicom(RAMP, PhotometricInterpretation="MONOCHROME1", **FULL)
    assert np.array_equal(_gray(load_image(data)), 255 - RAMP)


@pytest.mark.parametrize("window", [{}, {"WindowCenter": "0", "WindowWidth": "0"}])
def test_dicom_without_a_window_uses_percentiles(window):
    pixels = TWELVE.copy()
    pixels[0, 0] = 65535  # one burnt pixel must not darken the rest
    picture = _gray(load_image(_dicom(pixels, **window)))
    assert picture[0, 0] == 255
    assert picture[1:].min() == 0
    assert picture[1:].max() == 255
    assert (np.diff(picture[1].astype(int)) >= 0).all()
    padded = _dicom(np.where(RAMP < 128, 0, RAMP).astype(np.uint8), PixelPaddingValue=0)
    assert np.unique(_gray(load_image(padded))).tolist()[:2] < [0, 20]
    assert not _gray(load_image(_dicom(np.full((20, 20), 7, np.uint8)))).any()


def test_dicom_color_and_rle():
    color = np.dstack([RAMP, RAMP[:, ::-1], RAMP // 2])
    assert np.array_equal(np.asarray(load_image(_dicom(color))), color)
    assert np.array_equal(_gray(load_image(_dicom(RAMP, RLELossless, **FULL))), RAMP)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            _dicom(RAMP, JPEGLosslessSV1),
            "syntax JPEG Lossless.*needs a decoder.*pylibjpeg",
        ),
        (_dicom(RAMP, UID("1.2.840.10008.1.2.1.99")), "transfer syntax Deflated"),
        (_dicom(RAMP, NumberOfFrames=5), r"expected one frame \(NumberOfFrames\), found 5"),
        (_dicom(RAMP, Rows=30000, Columns=30000), "found 30000 x 30000 = 900000000"),
        (_dicom(RAMP, Rows=1, Columns=1), "at least 16 pixels, found 1 x 1"),
        (_dicom(RAMP)[:-500], "broken DICOM"),
        (_dicom(RAMP, Rows=0), "found no Rows"),
        (_dicom(RAMP, PhotometricInterpretation="HSV"), "PhotometricInterpretation: expected.*HSV"),
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


# ---- outputs


def test_to_pil():
    assert np.array_equal(np.asarray(transforms.to_pil(RAMP)), RAMP)
    color = np.dstack([RAMP, RAMP, RAMP]).astype(np.float32) / 252
    image = transforms.to_pil(color * 2 - 0.5)
    assert (image.mode, image.getpixel((0, 0)), image.getpixel((63, 0))) == (
        "RGB",
        (0, 0, 0),
        (255, 255, 255),
    )
    assert transforms.to_pil(np.full((2, 2, 1), 0.999)).getpixel((0, 0)) == 254  # cut, not rounded
    for wrong in (np.zeros((2, 2), int), np.zeros((2, 2, 4)), np.full((2, 2), np.nan)):
        with pytest.raises(ImageError, match="pixels: expected"):
            transforms.to_pil(wrong)


def test_contact_sheet():
    images = [Image.new("L", (64, 48), 10 * i) for i in range(5)]
    sheet = transforms.contact_sheet(images)
    assert (sheet.mode, sheet.size) == ("RGB", (3 * 72 + 8, 2 * 56 + 8))
    assert sheet.getpixel((8 + 72 + 3, 8 + 3)) == (10, 10, 10)
    captions = ["", "one", "a long caption " * 30, "unbroken" * 40, "é 肺\nline"]
    taller = transforms.contact_sheet(images, captions, columns=9)
    assert taller.width == 5 * 72 + 8
    assert taller.height > 56 + 8
    for arguments in (([],), (images, ["one"]), (images, None, 0)):
        with pytest.raises(ImageError, match="expected"):
            transforms.contact_sheet(*arguments)


def test_save_png(tmp_path):
    path = tmp_path / "new" / "picture.png"
    metadata = {"prompt": "Kein Erguss, Größe ≤ 3 肺\0", "seed": "7"}
    transforms.save_png(path, Image.fromarray(RAMP), metadata)
    with Image.open(path) as image:
        assert image.text == {"prompt": "Kein Erguss, Größe ≤ 3 肺", "seed": "7"}
        assert np.array_equal(np.asarray(image), RAMP)
    assert [p.name for p in path.parent.iterdir()] == ["picture.png"]
    with pytest.raises(ImageError, match="metadata: expected a key"):
        transforms.save_png(path, Image.fromarray(RAMP), {"": "x"})
    with pytest.raises(UniXError, match="expected a file, found a directory"):
        transforms.save_png(tmp_path / "new", Image.fromarray(RAMP))
    assert [p.name for p in tmp_path.iterdir()] == ["new"]

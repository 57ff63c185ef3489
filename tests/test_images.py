"""Image decoding: formats, values and what is refused."""

import functools
import io

import numpy as np
import pytest
from PIL import Image

from support.toy_images import NOISE, RAMP, gray, picture_file
from unix_jax.data.augmentation import AugmentationConfig, augment
from unix_jax.errors import ImageError
from unix_jax.preprocessing.gray_levels import gray_level_problem
from unix_jax.preprocessing.images import check_image, load_image, load_levels
from unix_jax.preprocessing.transforms import (
    to_model_image,
    to_padded_vae_image,
    to_vae_image,
    to_vit_image,
)

# ---- headers


def test_what_a_header_shows_is_refused_without_decoding(tmp_path):
    """In the words of `load_image`."""
    frames = [Image.fromarray(RAMP), Image.fromarray(RAMP[::-1])]
    files = {
        "empty.png": b"",
        "text.png": b"no image at all",
        "small.png": picture_file(Image.new("L", (8, 40)), "PNG"),
        "large.png": picture_file(Image.new("1", (2000, 600)), "PNG"),
        "film.tiff": picture_file(frames[0], "TIFF", save_all=True, append_images=frames[1:]),
        "none.dcm": b"no DICOM",
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    for name in (*files, "nowhere.png", "", "nul\0.png"):
        with pytest.raises(ImageError) as expected:
            load_image(tmp_path / name, max_pixels=1_000_000)
        with pytest.raises(ImageError) as found:
            check_image(tmp_path / name, max_pixels=1_000_000)
        assert name == "none.dcm" or str(found.value) == str(expected.value)
    check_image(tmp_path / "film.tiff", frame=2)
    with pytest.raises(ImageError, match="frame: expected 1 to 2, found 3"):
        check_image(tmp_path / "film.tiff", frame=3)
    # What comes after the header is not read.
    (tmp_path / "cut.png").write_bytes(picture_file(Image.fromarray(NOISE), "PNG")[:200])
    check_image(tmp_path / "cut.png")
    with pytest.raises(ImageError, match="truncated"):
        load_image(tmp_path / "cut.png")


# ---- decoding


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "GIF", "PPM", "JPEG2000"])
def test_lossless_grayscale(kind, tmp_path):
    path = tmp_path / "picture"  # the format is read from the content, not from the name
    path.write_bytes(picture_file(Image.fromarray(RAMP), kind))
    assert np.array_equal(gray(load_image(path)), RAMP)
    assert np.array_equal(gray(load_image(str(path))), RAMP)
    assert np.array_equal(gray(load_image(path.read_bytes())), RAMP)


def test_jpeg_and_pil():
    data = picture_file(Image.fromarray(RAMP), "JPEG", quality=95)
    assert np.abs(gray(load_image(data)).astype(int) - RAMP).max() <= 3
    image = Image.fromarray(RAMP)
    assert np.array_equal(gray(load_image(image)), RAMP)
    assert image.mode == "L"


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_is_scaled_not_clipped(kind):
    wide = RAMP.astype(np.uint16) * 257
    assert np.array_equal(gray(load_image(picture_file(Image.fromarray(wide), kind))), RAMP)
    assert np.array_equal(gray(load_image(wide.astype(">u2"))), RAMP)


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_thirty_two_bit_tiff(dtype):
    values = RAMP.astype(dtype) * 257 if dtype == np.int32 else RAMP.astype(dtype) / 255
    assert np.array_equal(gray(load_image(picture_file(Image.fromarray(values), "TIFF"))), RAMP)
    with pytest.raises(ImageError, match=r"expected .*floats in \[0, 1\].*found"):
        load_image(picture_file(Image.fromarray(values * 1000), "TIFF"))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_composited_on_white(mode):
    image = Image.fromarray(RAMP).convert(mode)
    assert np.array_equal(gray(load_image(picture_file(image, "PNG"))), RAMP)  # opaque: as without
    alpha = np.where(np.arange(64) < 32, 0, 255).astype(np.uint8)
    image.putalpha(Image.fromarray(np.tile(alpha, (48, 1))))
    expected = np.where(alpha == 0, 255, RAMP)
    assert np.array_equal(gray(load_image(picture_file(image, "PNG"))), expected)


def test_palette_bilevel_and_cmyk():
    color = Image.merge("RGB", [Image.fromarray(c) for c in (RAMP, RAMP[:, ::-1], RAMP // 2)])
    palette = color.quantize(32)
    expected = np.asarray(palette.convert("RGB"))
    assert np.array_equal(np.asarray(load_image(picture_file(palette, "PNG"))), expected)
    transparent = load_image(picture_file(palette, "PNG", transparency=palette.getpixel((5, 5))))
    assert transparent.getpixel((5, 5)) == (255, 255, 255)
    bilevel = Image.fromarray(RAMP).point(lambda v: 255 * (v > 127)).convert("1")
    assert np.array_equal(gray(load_image(picture_file(bilevel, "PNG"))), 255 * (RAMP > 127))
    cmyk = picture_file(Image.fromarray(RAMP).convert("RGB").convert("CMYK"), "TIFF")
    assert np.array_equal(gray(load_image(cmyk)), RAMP)


@pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (3, 2), (6, 3), (8, 1)])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_exif_rotation(orientation, turns, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.asarray(load_image(picture_file(Image.fromarray(RAMP), kind, exif=exif)))[..., 0]
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
    assert np.array_equal(gray(load_image(array)), RAMP)


def test_first_frame_of_a_telephones_jpeg():
    frames = [Image.fromarray(RAMP), Image.fromarray(RAMP[::-1])]
    data = picture_file(frames[0], "MPO", save_all=True, append_images=frames[1:])
    assert np.abs(gray(load_image(data)).astype(int) - RAMP).max() <= 6


@pytest.mark.parametrize("kind", ["TIFF", "GIF"])
def test_a_frame_of_several(kind):
    arrays = [RAMP, RAMP[:, ::-1], RAMP[::-1]]
    first, *others = [Image.fromarray(array) for array in arrays]
    data = picture_file(first, kind, save_all=True, append_images=others)
    for number, expected in enumerate(arrays, 1):
        assert np.array_equal(gray(load_image(data, frame=number)), expected)
    with pytest.raises(ImageError, match=r"expected one frame, found 3; .*--frame.*1 to 3"):
        load_image(data)
    with pytest.raises(ImageError, match="frame: expected 1 to 3, found 4"):
        load_image(data, frame=4)
    opened = Image.open(io.BytesIO(data))
    opened.seek(2)
    assert np.array_equal(gray(load_image(opened, frame=2)), arrays[1])
    assert opened.tell() == 2  # left as it is


def test_a_frame_of_one():
    for source in (RAMP, Image.fromarray(RAMP), picture_file(Image.fromarray(RAMP), "PNG")):
        assert np.array_equal(gray(load_image(source, frame=1)), RAMP)
        with pytest.raises(ImageError, match="frame: expected 1 to 1, found 2"):
            load_image(source, frame=2)


# ---- what is refused


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (RAMP.astype(np.int64), r"found int64 in \[0, 252\]"),
        (RAMP > 3, "found bool"),
        (RAMP / 10.0, r"expected floats in \[0, 1\], found \[0, 25.2\]"),
        (np.full((20, 20), np.nan), "found 400 of 400 that are NaN or infinite"),
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
        (picture_file(Image.fromarray(NOISE), "PNG")[:900], "broken or truncated PNG"),
        (picture_file(Image.fromarray(NOISE), "JPEG")[:-200], "broken or truncated JPEG"),
        (picture_file(Image.new("L", (1, 1)), "PNG"), "at least 16 pixels, found 1 x 1"),
        (
            picture_file(
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


# ---- gray levels in one channel


WIDE = np.asarray(Image.effect_noise((333, 257), 90))  # more than the models read, sides are odd
KINDS = {
    "gray png": lambda: picture_file(Image.fromarray(WIDE), "PNG"),
    "gray jpeg": lambda: picture_file(Image.fromarray(WIDE), "JPEG"),
    "16 bit": lambda: picture_file(Image.fromarray(WIDE.astype(np.uint16) * 257), "PNG"),
    "bilevel": lambda: picture_file(Image.fromarray(WIDE).convert("1"), "PNG"),
    "gray with alpha": lambda: picture_file(Image.fromarray(WIDE).convert("LA"), "PNG"),
    "colour": lambda: picture_file(Image.merge("RGB", [Image.fromarray(WIDE)] * 3), "PNG"),
    "transparent level": lambda: picture_file(Image.fromarray(WIDE), "PNG", transparency=90),
    "array": lambda: WIDE,
    "floats": lambda: WIDE / 255,
    "PIL image": lambda: Image.fromarray(WIDE),
}


@pytest.mark.parametrize("kind", KINDS)
def test_one_channel_gives_the_models_inputs_of_three(kind):
    whole, levels = load_image(KINDS[kind]()), load_levels(KINDS[kind]())
    assert whole.mode == "RGB"
    gray_kind = kind not in ("gray with alpha", "colour", "transparent level")
    assert levels.mode == ("L" if gray_kind else "RGB")
    assert np.array_equal(levels.convert("RGB"), whole)
    for transform in (
        functools.partial(to_model_image, size=48),
        functools.partial(to_model_image, size=48, resize="squash"),
        functools.partial(to_model_image, size=400),
        functools.partial(to_padded_vae_image, height=64, width=40),
        functools.partial(to_padded_vae_image, height=400, width=300, fill=9),
        functools.partial(to_vit_image, max_size=64),
        functools.partial(to_vae_image, max_size=64),
    ):
        assert np.array_equal(transform(levels), transform(whole))
    assert gray_level_problem(levels) == gray_level_problem(whole)
    change = AugmentationConfig(0.1, 0.1, 5, 0.2, 0.05)
    changed = [augment(x, change, np.random.default_rng(3)) for x in (levels, whole)]
    assert np.array_equal(changed[0].convert("RGB"), changed[1])


def test_a_draft_of_a_jpeg_is_smaller_and_similar():
    ramp = np.add.outer(np.arange(600), np.arange(800)) * 255 // 1400
    file = picture_file(Image.fromarray(ramp.astype(np.uint8)), "JPEG")
    whole = load_levels(file)
    for side, size in ((100, (200, 150)), (150, (200, 150)), (151, (400, 300)), (301, (800, 600))):
        draft = load_levels(file, draft_side=side)
        assert draft.size == size
        small = [np.asarray(to_model_image(x, 64), np.float32) for x in (whole, draft)]
        assert np.abs(small[0] - small[1]).max() * 0.34 * 255 < 3
    # Other formats are decoded completely.
    png = picture_file(Image.fromarray(ramp.astype(np.uint8)), "PNG")
    assert load_levels(png, draft_side=100).size == (800, 600)

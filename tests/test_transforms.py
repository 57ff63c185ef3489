"""Transforms of images, against the original's outputs and by construction; pictures written."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import load_file

from support.toy_images import RAMP, gray
from unix_jax.errors import ImageError, UniXError
from unix_jax.preprocessing import transforms
from unix_jax.preprocessing.images import load_image

GOLDEN = Path(__file__).parent / "golden" / "metrics_tiny"
EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.jpg"))


# ---- golden transforms


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    return load_file(GOLDEN / "golden.safetensors")


@pytest.mark.parametrize("index", range(3))
def test_letterbox_equals_the_original(golden, index):
    image = load_image(GOLDEN / f"image{index}.png")
    boxed = transforms.letterbox(image, 384)
    assert np.array_equal(gray(boxed), golden[f"transform.{index}.letterbox384_uint8"])
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


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_an_image_of_the_right_size_comes_back(rows, columns, seed):
    """Through the autoencoder's range and back: exact but for the cut to 8 bits, never brighter."""
    pixels = np.random.default_rng(seed).integers(0, 256, (16 * rows, 16 * columns), np.uint8)
    longest, shortest = max(pixels.shape), min(pixels.shape)
    ranged = transforms.to_vae_image(Image.fromarray(pixels), longest, shortest)
    assert ranged.shape == (*pixels.shape, 3)
    assert -1 <= ranged.min() <= ranged.max() <= 1
    back = np.asarray(transforms.to_gray_pil(ranged / 2 + 0.5)).astype(int)
    assert set(np.unique(pixels - back)) <= {0, 1}


@given(st.integers(1, 48), st.integers(1, 48), st.sampled_from(["L", "RGB"]), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_a_letterboxed_image_can_be_cut_out_again(width, height, mode, seed):
    shape = (height, width) if mode == "L" else (height, width, 3)
    image = Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, np.uint8))
    pixels = transforms.to_model_image(image, 48)
    top, left = (48 - height) // 2, (48 - width) // 2
    inside = pixels[top : top + height, left : left + width]
    levels = (inside * transforms.SIGLIP_STD + transforms.SIGLIP_MEAN) * 255
    assert np.array_equal(np.rint(levels).astype(np.uint8), np.asarray(image.convert("RGB")))


@given(
    st.integers(16, 60), st.integers(16, 60), st.sampled_from(["L", "RGB"]), st.integers(0, 2**32)
)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_a_saved_image_is_read_as_it_was(width, height, mode, seed):
    shape = (height, width) if mode == "L" else (height, width, 3)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    read = load_image(transforms.png_bytes(transforms.to_pil(pixels)))
    assert np.array_equal(np.asarray(read), np.asarray(Image.fromarray(pixels).convert("RGB")))


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


def test_to_gray_pil():
    rng = np.random.default_rng(0)
    color = rng.uniform(-0.2, 1.2, (20, 30, 3)).astype(np.float32)
    image = transforms.to_gray_pil(color)
    assert image.mode == "L"
    expected = color.clip(0, 1).mean(axis=2, dtype=np.float32) * 255
    assert np.array_equal(np.asarray(image), expected.astype(np.uint8))
    for same in (RAMP, RAMP[..., None], np.dstack([RAMP] * 3)):
        assert np.array_equal(np.asarray(transforms.to_gray_pil(same)), RAMP)
    for wrong in (np.zeros((2, 2, 4)), np.full((2, 2, 3), np.nan), np.full((2, 2, 3), np.inf)):
        with pytest.raises(ImageError, match="pixels: expected"):
            transforms.to_gray_pil(wrong)


@pytest.mark.parametrize("width", [64, 128, 256, 512])
def test_spaces_between_words_can_be_seen(width):
    """The gap between two words is wider than any gap between two letters of one."""
    blank = Image.new("L", (width, 16), 255)

    def gaps(caption: str) -> list[int]:
        sheet = transforms.contact_sheet([blank], [caption]).convert("L")
        columns = (np.asarray(sheet)[24:] < 128).any(axis=0)
        ink = np.flatnonzero(columns)
        return sorted(int(gap) for gap in np.diff(ink) - 1)

    one, *words = gaps("No acute")[::-1][:2]
    assert one >= 4
    assert one >= 2 * words[0]


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

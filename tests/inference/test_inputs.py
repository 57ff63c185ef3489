"""What callers pass, brought into a row each."""

import io
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from unix_jax.errors import ImageError, PromptError, StorageError
from unix_jax.inference.inputs import image_list, prompt_list, require, row_keys, row_seeds

GRAY = np.full((20, 30), 7, np.uint8)


def test_one_image_is_one_row(tmp_path):
    file = tmp_path / "x.png"
    Image.fromarray(GRAY).save(file)
    for source in (GRAY, np.stack([GRAY] * 3, -1), Image.fromarray(GRAY), file, str(file),
                   file.read_bytes()):  # fmt: skip
        (row,) = image_list(source)
        assert row.size == (30, 20)
        # An array of three channels keeps them.
        assert row.mode == ("RGB" if getattr(source, "ndim", 2) == 3 else "L")
        assert np.unique(np.asarray(row)).tolist() == [7]


def test_many_images_are_many_rows(tmp_path):
    file = tmp_path / "x.png"
    Image.fromarray(GRAY).save(file)
    assert len(image_list([file, GRAY, Image.fromarray(GRAY)])) == 3
    assert len(image_list((GRAY,))) == 1
    assert len(image_list(np.zeros((4, 20, 30, 3), np.uint8))) == 4


RGB = np.stack([GRAY, GRAY + 1, GRAY + 2], -1)


class Tensor:
    """What a tensor of torch on an accelerator, in training, offers."""

    def __init__(self, values, place="gpu"):
        self.values, self.place, self.ndim = values, place, values.ndim
        self.dtype = f"torch.{values.dtype}"

    def detach(self):
        return Tensor(self.values, "gpu, detached")

    def cpu(self):
        return Tensor(self.values, "cpu" if self.place == "gpu, detached" else "gpu")

    def float(self):
        return Tensor(self.values.astype(np.float32), self.place)

    def __array__(self, dtype=None, copy=None):
        if self.place != "cpu" or self.dtype == "torch.bfloat16":
            raise TypeError("can't convert")
        return self.values

    def __iter__(self):
        return iter(self.values)


class Exchanged:
    """Offers DLPack alone."""

    def __init__(self, values):
        self.values = values

    def __dlpack__(self, **options):
        return self.values.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.values.__dlpack_device__()


@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray, Tensor, Exchanged])
@pytest.mark.parametrize(
    "values", [GRAY, GRAY[..., None], GRAY[None], RGB, RGB.transpose(2, 0, 1)],
    ids=["HW", "HW1", "1HW", "HW3", "3HW"],
)  # fmt: skip
def test_an_array_of_any_library_is_one_image(kind, values):
    (row,) = image_list(kind(values))
    assert row.size == (30, 20)
    levels = [7, 8, 9] if 3 in values.shape else [7, 7, 7]
    assert np.asarray(row.convert("RGB"))[3, 4].tolist() == levels
    assert len(image_list([kind(values), kind(values)])) == 2


@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray, Tensor, Exchanged])
def test_four_dimensions_are_a_batch(kind):
    for batch in (np.stack([RGB] * 2), np.stack([RGB.transpose(2, 0, 1)] * 2)):
        rows = image_list(kind(batch))
        assert [row.size for row in rows] == [(30, 20)] * 2
        assert np.asarray(rows[1])[0, 0].tolist() == [7, 8, 9]


def test_bfloat16_images():
    values = jnp.full((3, 20, 30), 0.5, jnp.bfloat16)
    for image in (values, Tensor(np.asarray(values))):
        (row,) = image_list(image)
        assert np.unique(np.asarray(row)).tolist() == [128]


def test_bytes_of_every_kind_are_one_image(tmp_path):
    file = tmp_path / "x.png"
    Image.fromarray(GRAY).save(file)
    data = file.read_bytes()
    for source in (data, bytearray(data), memoryview(data)):
        assert [row.size for row in image_list(source)] == [(30, 20)]


def test_iterables_of_images_are_read_once(tmp_path):
    file = tmp_path / "x.png"
    Image.fromarray(GRAY).save(file)
    mixed = [str(file), file, file.read_bytes(), bytearray(file.read_bytes()), GRAY,
             jnp.asarray(RGB), Image.fromarray(GRAY)]  # fmt: skip
    assert len(image_list(mixed)) == len(image_list(x for x in mixed)) == 7
    assert len(image_list(np.array([str(file), str(file)]))) == 2


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (None, "images: expected a path, .*found None"),
        (3, "images: expected .*found int"),
        ({"a": GRAY}, "images: expected .*found dict"),
        ({"a.png"}, "images: expected .*found set"),
        (io.BytesIO(b"x"), "images: expected .*found BytesIO"),
        (iter(()), "images: expected at least one, found none"),
        ([None], r"images\[0\]: expected .*found None"),
        ([GRAY, [GRAY]], r"images\[1\]: expected .*found list"),
        ([[[0.0, 1.0]]], r"images\[0\]: expected .*found list"),
        ([GRAY, np.stack([RGB] * 2)], r"images\[1\]: expected shape .*\[B, C, H, W\]"),
        (np.zeros((2, 2, 20, 30, 3)), r"images: expected shape .*found \[2, 2, 20, 30, 3\]"),
        (np.zeros((20, 30, 2), np.uint8), r"images: expected shape .*found \[20, 30, 2\]"),
        (np.zeros((20, 30, 2, 20), np.uint8), r"images\[0\]: expected shape .*found \[30, 2, 20\]"),
        (np.zeros(40, np.uint8), r"images: expected shape .*found \[40\]"),
        (np.zeros((0, 20, 30, 3), np.uint8), "images: expected at least one"),
        (np.full((20, 30), np.nan), r"images: image array: expected floats in \[0, 1\]"),
        ([GRAY, jnp.full((3, 20, 30), -1.0)], r"images\[1\]: image array: expected floats in"),
        (np.zeros((20, 30), complex), "images: image array: expected uint8"),
        ("ftp://host/x.png", "images: ftp://host/x.png: remote paths are not supported yet"),
        ("", "images: expected a path"),
        (bytearray(b"text"), "images: image bytes: expected an image"),
    ],
)  # fmt: skip
def test_what_is_no_image(images, message):
    with pytest.raises((ImageError, PromptError, StorageError), match=message) as error:
        image_list(images)
    assert "\n" not in str(error.value)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from([1, 2, 3, 4, 16, 20]), max_size=5), st.sampled_from([np, jnp]))
def test_any_shape_is_images_or_an_error(shape, library):
    try:
        rows = image_list(library.zeros(shape, np.uint8))
    except (ImageError, PromptError):
        return
    count = shape[0] if len(shape) == 4 else 1
    assert len(rows) == count
    sides = [x for x in shape[-3:] if x >= 16]
    assert all(sorted(row.size) == sorted(sides[:2]) for row in rows)


def test_bad_images():
    with pytest.raises(PromptError, match="images: expected at least one"):
        image_list([])
    with pytest.raises(ImageError, match="no such file"):
        image_list([GRAY, "/nowhere/x.png"])
    with pytest.raises(ImageError, match="no such file"):
        image_list(Path("/nowhere/x.png"))
    with pytest.raises(ImageError):
        image_list([3])
    with pytest.raises(ImageError):
        image_list(np.zeros((2, 2, 20, 30, 3), np.uint8))


def test_single_prompts_serve_all_rows():
    assert prompt_list("ab") == ["ab"]
    assert prompt_list("ab", 3) == ["ab"] * 3
    assert prompt_list("", 2) == ["", ""]
    assert prompt_list([1, 2], 2) == [[1, 2], [1, 2]]
    assert prompt_list(np.array([1, 2]), 2) == [[1, 2], [1, 2]]
    assert prompt_list([np.int32(1)]) == [[np.int32(1)]]


def test_arrays_and_iterables_of_prompts():
    assert prompt_list(jnp.array([1, 2])) == [[1, 2]]
    assert prompt_list([jnp.array([1, 2]), "a"]) == [[1, 2], "a"]
    assert prompt_list(np.array(["a", "b"]), 2) == ["a", "b"]
    assert prompt_list(p for p in ("a", "b")) == ["a", "b"]
    assert prompt_list(i for i in (1, 2)) == [[1, 2]]
    assert prompt_list(range(3)) == [[0, 1, 2]]


@pytest.mark.parametrize("prompts", [None, 3, 1.5, {"a": 1}, {"a"}, b"a", np.float32(1.0)])
def test_what_is_no_prompt(prompts):
    with pytest.raises(PromptError, match=r"^prompts: expected a text, token ids, or several"):
        prompt_list(prompts)


def test_lists_of_prompts():
    assert prompt_list(["a"]) == ["a"]
    assert prompt_list(["a", [1, 2]], 2) == ["a", [1, 2]]
    assert prompt_list([[], [1]]) == [[], [1]]
    assert prompt_list(np.array([[1, 2], [3, 4]])) == [[1, 2], [3, 4]]


@pytest.mark.parametrize(("prompts", "rows"), [([], None), ([], 2), (["a", "b"], 3), (["a"], 2)])
def test_wrong_number_of_prompts(prompts, rows):
    with pytest.raises(PromptError, match=f"found {len(prompts)}"):
        prompt_list(prompts, rows)


def _data(keys):
    return np.asarray(jax.random.key_data(keys))


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=6))
def test_key_of_a_row_is_its_own_seed(seeds):
    keys = _data(row_keys(row_seeds(seeds, len(seeds))))
    for key, seed in zip(keys, seeds, strict=True):
        np.testing.assert_array_equal(key, _data(jax.random.key(np.uint32(seed))))


def test_one_seed_serves_all_rows():
    for seed in (5, [5, 5, 5], np.array([5, 5, 5]), np.int64(5)):
        assert row_seeds(seed, 3) == [5, 5, 5]


@pytest.mark.parametrize(
    ("seed", "rows"),
    [
        (-1, 1),
        (2**32, 1),
        ([1, 2], 3),
        ([], 1),
        ([1, -1], 2),
        (True, 1),
        ([1.5], 1),
        (["a"], 1),
        (1.5, 2),
        (None, 1),
        ("a", 1),
    ],
)
def test_bad_seeds(seed, rows):
    with pytest.raises(PromptError, match="seed: expected"):
        row_seeds(seed, rows)


def test_require_names_the_argument():
    require(True, "x", "anything", 1)
    with pytest.raises(PromptError, match=r"^x: expected a y, found 3$"):
        require(False, "x", "a y", 3)


def test_views_and_texts_without_dimensions_are_one_image(tmp_path):
    path = tmp_path / "x.png"
    Image.fromarray(GRAY).save(path)
    for source in (memoryview(GRAY), np.array(str(path)), path.read_bytes()):
        (image,) = image_list(source)
        np.testing.assert_array_equal(np.asarray(image.convert("L")), GRAY)


def test_masked_elements_are_not_ignored():
    with pytest.raises(ImageError, match=r"images: expected an array .*: it has masked elements"):
        image_list(np.ma.masked_less(GRAY, 100))


def test_a_seed_that_is_a_key_is_refused_in_one_line():
    with pytest.raises(PromptError) as error:
        row_seeds(jax.random.key(0), 1)
    assert "\n" not in str(error.value)

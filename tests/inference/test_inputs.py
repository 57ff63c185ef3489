"""What callers pass, brought into a row each."""

from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from unix_jax.errors import ImageError, PromptError
from unix_jax.inference.inputs import image_list, prompt_list, require, row_keys

GRAY = np.full((20, 30), 7, np.uint8)


def test_one_image_is_one_row(tmp_path):
    file = tmp_path / "x.png"
    Image.fromarray(GRAY).save(file)
    for source in (GRAY, np.stack([GRAY] * 3, -1), Image.fromarray(GRAY), file, str(file),
                   file.read_bytes()):  # fmt: skip
        (row,) = image_list(source)
        assert row.size == (30, 20)
        assert row.mode == "RGB"
        assert np.unique(np.asarray(row)).tolist() == [7]


def test_many_images_are_many_rows(tmp_path):
    file = tmp_path / "x.png"
    Image.fromarray(GRAY).save(file)
    assert len(image_list([file, GRAY, Image.fromarray(GRAY)])) == 3
    assert len(image_list((GRAY,))) == 1
    assert len(image_list(np.zeros((4, 20, 30, 3), np.uint8))) == 4


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
    keys = _data(row_keys(seeds, len(seeds)))
    for key, seed in zip(keys, seeds, strict=True):
        np.testing.assert_array_equal(key, _data(jax.random.key(np.uint32(seed))))


def test_one_seed_serves_all_rows():
    keys = _data(row_keys(5, 3))
    np.testing.assert_array_equal(keys, _data(row_keys([5, 5, 5], 3)))
    np.testing.assert_array_equal(keys, _data(row_keys(np.array([5, 5, 5]), 3)))
    np.testing.assert_array_equal(keys, _data(row_keys(np.int64(5), 3)))


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
        row_keys(seed, rows)


def test_require_names_the_argument():
    require(True, "x", "anything", 1)
    with pytest.raises(PromptError, match=r"^x: expected a y, found 3$"):
        require(False, "x", "a y", 3)

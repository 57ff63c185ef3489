"""Images with almost no content: which are warned of, and where it is said."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from support.toy_images import NOISE, RAMP
from unix_jax.errors import ImageWarning
from unix_jax.inference.inputs import image_list
from unix_jax.preprocessing.gray_levels import gray_level_problem
from unix_jax.preprocessing.images import load_image

ROOT = Path(__file__).parents[1]
BUNDLED = sorted((ROOT / "examples").glob("*.jpg"))
XRAYS = [*BUNDLED, *sorted((ROOT / "examples" / "cxr" / "images").glob("*.jpg"))]


def gray(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("L")).astype(np.float32)


def problem_of(levels: np.ndarray) -> str:
    return gray_level_problem(Image.fromarray(np.rint(levels).astype(np.uint8))).partition(" (")[0]


def test_no_bundled_xray_is_warned_of():
    assert len(XRAYS) > 200
    assert {
        path.name: found for path in XRAYS if (found := gray_level_problem(load_image(path)))
    } == {}


@pytest.mark.parametrize("path", BUNDLED, ids=lambda path: path.name)
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda x: x / 16, "nearly black"),  # 12 bits in 16
        (lambda x: x / 64, "nearly black"),
        (lambda x: x * 0, "nearly black"),
        (lambda x: x * (np.indices(x.shape).sum(0) % 7 == 0), "nearly black"),
        (lambda x: 255 - x / 16, "nearly white"),
        (lambda x: x * 0 + 255, "nearly white"),
        (lambda x: x * 0 + 128, "nearly constant"),
        (lambda x: 126 + x / 100, "nearly constant"),
        (lambda x: 120 + x / 15, "within a tenth of its range"),
        (lambda x: 255 * (x > np.median(x)), "nearly without gray"),
        (lambda x: x, ""),
        (lambda x: 255 - x, ""),
        (lambda x: x / 2, ""),
        (lambda x: 64 + x / 4, ""),
    ],
)
def test_spoilt_xrays(path, change, expected):
    assert problem_of(change(gray(path))) == expected


def test_a_marker_does_not_hide_it():
    levels = gray(BUNDLED[0]) / 16
    levels[:20, :20] = 255
    assert problem_of(levels) == "nearly black"


@given(st.integers(0, 255), st.integers(0, 255), st.integers(1, 50), st.integers(1, 50))
def test_any_image_has_an_answer(low, high, height, width):
    rng = np.random.default_rng(low)
    levels = rng.integers(min(low, high), max(low, high) + 1, (height, width))
    found = problem_of(levels)
    if max(low, high) - min(low, high) < 25:
        assert found
    assert gray_level_problem(Image.fromarray(levels.astype(np.uint8)).convert("RGB")) == (
        gray_level_problem(Image.fromarray(levels.astype(np.uint8)))
    )


def test_the_library_warns_with_the_name(tmp_path):
    path = tmp_path / "dark.png"
    Image.fromarray(RAMP // 16).save(path)
    with pytest.warns(ImageWarning, match=r"dark\.png: the image is nearly black \("):
        image_list(path)
    with pytest.warns(ImageWarning, match=r"dark\.png: the image is nearly black \("):
        image_list([NOISE, load_image(path)])  # loaded before: it knows its name
    with pytest.warns(ImageWarning, match=r"images\[1\]: the image is nearly black") as found:
        image_list([NOISE, RAMP // 16])
    assert len(found) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image_list([NOISE, RAMP])

"""Pictures in rectangles: aspect kept, padding where it belongs, configuration errors."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from support.toy_data import CONFIG, GENERATION
from unix_jax.data.config import DataConfig
from unix_jax.data.model_images import vae_pixels
from unix_jax.data.records import Record
from unix_jax.errors import ConfigError
from unix_jax.preprocessing.transforms import pad_to_fit


@given(st.integers(1, 90), st.integers(1, 90), st.integers(8, 64), st.integers(8, 64))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_pad_to_fit(width, height, out_height, out_width):
    image = Image.new("L", (width, height), 200)
    out = np.asarray(pad_to_fit(image, out_height, out_width, fill=7))
    assert out.shape == (out_height, out_width)
    inside = out == 200
    assert set(np.unique(out)) <= {7, 200}
    rows, columns = inside.any(axis=1).sum(), inside.any(axis=0).sum()
    assert inside.sum() == rows * columns  # one rectangle
    assert rows == out_height or columns == out_width
    scale = min(out_height / height, out_width / width)
    assert abs(rows - height * scale) <= 1
    assert abs(columns - width * scale) <= 1
    for axis, extent in ((1, out_height), (0, out_width)):
        places = np.flatnonzero(inside.any(axis=axis))
        assert abs(places[0] - (extent - 1 - places[-1])) <= 1  # centred


def test_padding_is_black_unless_told(tmp_path):
    path = tmp_path / "wide.png"
    Image.new("L", (64, 16), 255).save(path)
    record = Record("a", path)
    data = dataclasses.replace(GENERATION, vae_height=16, vae_width=16)
    pixels = vae_pixels(record, data)
    assert pixels[0].tolist() == [[0] * 3] * 16
    assert pixels[8].tolist() == [[255] * 3] * 16
    white = vae_pixels(record, dataclasses.replace(data, vae_padding=255))
    assert white[0].tolist() == [[255] * 3] * 16


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("task", "writing", "one of understanding, generation, edit"),
        ("prompts", ("Report.", " "), "texts that are not empty"),
        ("caption_dropout", 1.5, "0 to 1"),
        ("rows", 0, "at least 1"),
        ("vit_images", 0, "at least 1 for the task understanding"),
        ("seed", 2**32, r"0 to 2\*\*32 - 1"),
        ("epochs", 0, "at least 1, or none"),
        ("ce_weighting", "cube", "token or sqrt"),
        ("vae_padding", 256, "a gray level from 0 to 255"),
        ("max_broken_fraction", -0.1, "0 to 1"),
    ],
)
def test_configuration_is_checked(field, value, expected):
    with pytest.raises(ConfigError, match=rf"data\.{field}: expected {expected}, found"):
        DataConfig(**{field: value})


def test_vae_size_is_checked():
    assert GENERATION.latent_grid(CONFIG) == (3, 2)
    with pytest.raises(ConfigError, match=r"data.vae_width: expected a multiple of 4 pixels"):
        dataclasses.replace(GENERATION, vae_width=10).latent_grid(CONFIG)
    large = dataclasses.replace(GENERATION, vae_height=24)
    with pytest.raises(ConfigError, match=r"at most 20 .max_latent_size, .*found 24"):
        large.latent_grid(CONFIG)
    assert large.latent_grid(dataclasses.replace(CONFIG, interpolate_pos=True)) == (6, 2)

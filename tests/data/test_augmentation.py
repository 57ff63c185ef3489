"""Augmentation: what changes, what stays, and that it is a function of (seed, epoch, index)."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from support.toy_data import CONFIG, GENERATION, UNDERSTANDING, ListSource, picture, tokenizer
from unix_jax.data.augmentation import AugmentationConfig, augment
from unix_jax.data.records import Record
from unix_jax.data.samples import record_samples
from unix_jax.errors import ConfigError

ALL = AugmentationConfig(shift=0.1, scale=0.1, rotation=5.0, contrast=0.2, noise=0.05)


def disc(at, side=64, radius=5):
    """A bright disc about `at` (x, y) on gray."""
    y, x = np.mgrid[:side, :side]
    inside = (x - at[0]) ** 2 + (y - at[1]) ** 2 <= radius**2
    return Image.fromarray(np.where(inside, 255, 60).astype(np.uint8))


def centre(image):
    levels = np.asarray(image, float) > 150
    y, x = np.nonzero(levels)
    return x.mean(), y.mean()


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(["L", "RGB"]),
    st.tuples(st.integers(8, 80), st.integers(8, 80)),
    st.builds(
        AugmentationConfig,
        shift=st.floats(0, 0.3),
        scale=st.floats(0, 0.5),
        rotation=st.floats(0, 20),
        contrast=st.floats(0, 0.5),
        noise=st.floats(0, 0.2),
    ),
)
def test_size_mode_and_gray_stay(seed, mode, size, config):
    levels = np.random.default_rng(seed).integers(0, 256, size[::-1]).astype(np.uint8)
    image = Image.fromarray(levels).convert(mode)
    before = np.asarray(image).copy()
    found, again = (augment(image, config, np.random.default_rng(seed)) for _ in range(2))
    assert (found.size, found.mode) == (image.size, mode)
    np.testing.assert_array_equal(np.asarray(found), np.asarray(again))
    np.testing.assert_array_equal(np.asarray(image), before)
    if mode == "RGB":
        channels = np.asarray(found)
        assert (channels == channels[..., :1]).all()


def test_nothing_changes_by_default():
    assert not AugmentationConfig()
    image = disc((20, 30))
    found = augment(image, AugmentationConfig(), np.random.default_rng(1))
    np.testing.assert_array_equal(np.asarray(found), np.asarray(image))


def test_a_fraction_stays_unchanged():
    image = disc((20, 30))

    def same(config, seed):
        found = augment(image, config, np.random.default_rng(seed))
        return np.array_equal(np.asarray(found), np.asarray(image))

    some = dataclasses.replace(ALL, unchanged=0.6)
    assert 0.5 < np.mean([same(some, seed) for seed in range(200)]) < 0.7
    assert all(same(dataclasses.replace(ALL, unchanged=1.0), seed) for seed in range(20))
    assert not any(same(ALL, seed) for seed in range(20))
    assert not AugmentationConfig(unchanged=0.5)


def test_left_stays_left():
    for seed in range(60):
        found = augment(disc((14, 30)), ALL, np.random.default_rng(seed))
        x, _ = centre(found)
        assert x < 32


def test_shift_moves_by_at_most_its_fraction():
    config, moved = AugmentationConfig(shift=0.1), []
    for seed in range(60):
        x, y = centre(augment(disc((32, 32)), config, np.random.default_rng(seed)))
        moved += [x - 32, y - 32]
    assert 4 < max(map(abs, moved)) <= 6.4 + 0.6
    assert min(moved) < -3 < 3 < max(moved)


def test_rotation_turns_about_the_centre():
    config = AugmentationConfig(rotation=30.0)
    angles = []
    for seed in range(40):
        x, y = centre(augment(disc((52, 32)), config, np.random.default_rng(seed)))
        angles.append(np.degrees(np.arctan2(y - 32, x - 32)))
        assert np.hypot(x - 32, y - 32) == pytest.approx(20, abs=0.7)
    assert 20 < max(np.abs(angles)) < 32
    assert min(angles) < -10 < 10 < max(angles)


def test_scale_has_both_directions():
    config = AugmentationConfig(scale=0.5)
    areas = [
        (
            np.asarray(augment(disc((32, 32), radius=10), config, np.random.default_rng(s))) > 150
        ).sum()
        for s in range(40)
    ]
    usual = (np.asarray(disc((32, 32), radius=10)) > 150).sum()
    assert 0.4 < min(areas) / usual < 0.7
    assert 1.5 < max(areas) / usual < 2.4


def test_noise_has_its_spread():
    flat = Image.new("L", (100, 100), 128)
    spreads = [
        np.asarray(augment(flat, AugmentationConfig(noise=0.1), np.random.default_rng(s))).std()
        for s in range(40)
    ]
    assert min(spreads) < 8 < 18 < max(spreads) < 27


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("shift", -0.1),
        ("shift", 0.6),
        ("rotation", 90.0),
        ("noise", float("nan")),
        ("scale", 2.0),
        ("unchanged", 1.5),
    ],
)
def test_limits(name, value):
    with pytest.raises(ConfigError, match=rf"data\.augmentation\.{name}: expected 0 to"):
        AugmentationConfig(**{name: value})


def read(data, epoch, index=0):
    record = Record("a", picture(1), findings="Clear.", captions=("One.",), condition=picture(2))
    records = ListSource([record, record])
    sample = record_samples(records, tokenizer(), CONFIG, data).build(index, epoch)
    return [np.asarray(load()) for load in sample.images]


@pytest.mark.parametrize("data", [UNDERSTANDING, GENERATION], ids=["understanding", "generation"])
def test_each_sample_of_each_epoch_has_its_own_change(data):
    changed = dataclasses.replace(data, augmentation=ALL)
    (first,), (again,), (later,), (other,) = (
        read(changed, 0), read(changed, 0), read(changed, 1), read(changed, 0, 1),
    )  # fmt: skip
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - later).max() > 0.05
    assert np.abs(first - other).max() > 0.05
    assert first.shape == read(data, 0)[0].shape
    assert np.abs(first - read(data, 0)[0]).max() > 0.05


def test_images_of_an_edit_sample_change_alike():
    data = dataclasses.replace(
        GENERATION, task="edit", vit_images=1, vae_images=2, condition_dropout=0.0,
        augmentation=AugmentationConfig(contrast=0.3),
    )  # fmt: skip
    plain = dataclasses.replace(data, augmentation=AugmentationConfig())
    clean, _, noised = read(data, 0)
    clean_before, _, noised_before = read(plain, 0)
    # Brightness and contrast act on both: darker or brighter together.
    assert np.sign((clean - clean_before).mean()) == np.sign((noised - noised_before).mean())


def test_moments_cannot_be_augmented(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.augmentation: expected none with data\.moments"):
        dataclasses.replace(GENERATION, moments=str(tmp_path), augmentation=ALL)

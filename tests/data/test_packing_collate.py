"""Batches against a slow statement, and each sample in a pack against the sample alone."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.toy_data import CONFIG
from unix_jax.data.collate import collate, load
from unix_jax.data.config import DataConfig
from unix_jax.data.samples import TrainingSample
from unix_jax.preprocessing.layout import TextSplit, VaeSplit, VitSplit, lay_out

GRID = (3, 2)
TOKENS, PATCHES = 6, 4
DATA = DataConfig(und_tokens=200, vit_images=8, vae_images=8, vae_height=12, vae_width=8)
KINDS = {
    "text": (TextSplit, False),
    "loss text": (TextSplit, True),
    "vit": (VitSplit, False),
    "clean": (VaeSplit, False),
    "noised": (VaeSplit, True),
}
parts = st.tuples(st.sampled_from(sorted(KINDS)), st.lists(st.integers(0, 599), max_size=4))
plans = st.lists(st.lists(st.lists(parts, max_size=4), max_size=2), min_size=1, max_size=3)


def built(plan, counter):
    splits, losses, images = [], [], []
    for name, ids in plan:
        kind, loss = KINDS[name]
        losses.append(loss)
        if kind is TextSplit:
            splits.append(TextSplit([600, *ids, 601]))
            continue
        counter.append(len(counter) % 255 + 1)
        size = (32, 32, 3) if kind is VitSplit else (12, 8, 3)
        images.append(lambda value=counter[-1], size=size: np.full(size, value, np.uint8))
        splits.append(VitSplit() if kind is VitSplit else VaeSplit(*GRID, noised=loss))
    return TrainingSample("s", tuple(splits), tuple(losses), tuple(images))


@given(plans, st.sampled_from(["token", "sqrt"]))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_batch(plan, weighting):
    counter = []
    rows = [[load(built(sample, counter)) for sample in row] for row in plan]
    data = dataclasses.replace(DATA, ce_weighting=weighting)
    batch = collate(rows, CONFIG, data)
    assert batch.rows == len(rows)
    assert batch.vit_pixels.dtype == batch.vae_pixels.dtype == np.uint8
    assert batch.ce_weights.dtype == np.float32
    for r, row in enumerate(rows):
        und = gen = 0
        vit, vae = [], []
        for s, loaded in enumerate(row, start=1):
            alone = lay_out([[loaded.sample.splits]], CONFIG)
            u, g = alone.token_ids.shape[1], alone.latent_position_ids.shape[1]
            for name in ("position", "split", "order", "mode"):
                packed, single = getattr(batch.und, name), getattr(alone.und, name)
                np.testing.assert_array_equal(packed[r, und : und + u], single[0])
                packed, single = getattr(batch.gen, name), getattr(alone.gen, name)
                np.testing.assert_array_equal(packed[r, gen : gen + g], single[0])
            assert (batch.und.segment[r, und : und + u] == s).all()
            assert (batch.gen.segment[r, gen : gen + g] == s).all()
            np.testing.assert_array_equal(batch.token_ids[r, und : und + u], alone.token_ids[0])
            np.testing.assert_array_equal(
                batch.latent_position_ids[r, gen : gen + g], alone.latent_position_ids[0]
            )
            arrays = iter(loaded.images)
            for split, loss in zip(loaded.sample.splits, loaded.sample.losses, strict=True):
                if isinstance(split, TextSplit):
                    n = len(split.ids) - 1
                    weight = (1.0 if weighting == "token" else n**-0.5) if loss else 0.0
                    for place in range(n):
                        assert batch.ce_weights[r, und + place] == np.float32(weight)
                        if loss:  # bos predicts the first id, the last id eos
                            assert batch.labels[r, und + place] == split.ids[place + 1]
                    assert batch.ce_weights[r, und + n] == 0
                    und += n + 1
                elif isinstance(split, VitSplit):
                    index = [-1, *(len(vit) * PATCHES + np.arange(PATCHES)), -1]
                    assert batch.vit_index[r, und : und + PATCHES + 2].tolist() == index
                    vit.append(next(arrays))
                    assert not batch.ce_weights[r, und : und + PATCHES + 2].any()
                    und += PATCHES + 2
                else:
                    places = slice(gen, gen + TOKENS)
                    index = len(vae) * TOKENS + np.arange(TOKENS)
                    assert batch.latent_index[r, places].tolist() == index.tolist()
                    assert batch.noised[r, len(vae)] == split.noised
                    assert (batch.mse_weights[r, places] == float(loss)).all()
                    vae.append(next(arrays))
                    assert not batch.ce_weights[r, und : und + 2].any()
                    und, gen = und + 2, gen + TOKENS
        # What is left is padding.
        assert not batch.und.segment[r, und:].any()
        assert not batch.gen.segment[r, gen:].any()
        assert not batch.ce_weights[r, und:].any()
        assert not batch.mse_weights[r, gen:].any()
        assert (batch.vit_index[r, und:] == -1).all()
        assert (batch.latent_index[r, gen:] == -1).all()
        assert not batch.noised[r, len(vae) :].any()
        for pixels, images in ((batch.vit_pixels[r], vit), (batch.vae_pixels[r], vae)):
            found = pixels.reshape(len(pixels), -1)
            expected = [image.ravel()[0] for image in images] + [0] * (len(pixels) - len(images))
            assert (found == np.array(expected)[:, None]).all()


def test_unused_inputs_are_none():
    sample = load(built([("vit", []), ("loss text", [1, 2])], []))
    batch = collate([[sample]], CONFIG, dataclasses.replace(DATA, vae_images=0))
    unused = ("gen", "vae_pixels", "vae_moments", "latent_index", "noised", "mse_weights")
    assert all(getattr(batch, name) is None for name in unused)
    sample = load(built([("text", [1]), ("noised", [])], []))
    data = DataConfig(
        task="generation", und_tokens=20, vit_images=0, vae_images=2, vae_height=12, vae_width=8
    )
    batch = collate([[sample]], CONFIG, data)
    assert batch.vit_pixels is None
    assert batch.vit_index is None
    assert batch.vae_pixels.shape == (1, 2, 12, 8, 3)
    assert batch.latent_index.shape == (1, 12)


def test_moments_instead_of_pixels():
    moments = np.ones((6, 4, 8), np.float32)
    sample = TrainingSample("s", (VaeSplit(*GRID, noised=True),), (True,), (lambda: moments,))
    batch = collate([[load(sample)]], CONFIG, dataclasses.replace(DATA, moments="somewhere"))
    assert batch.vae_pixels is None
    assert batch.vae_moments.shape == (1, 8, 6, 4, 8)
    assert batch.vae_moments.sum() == moments.sum()


def test_wrong_sizes_are_errors():
    def of(split, size):
        return load(TrainingSample("s", (split,), (False,), (lambda: np.zeros(size),)))

    with pytest.raises(ValueError, match="expected 3 x 2 latent tokens, found 2 x 2"):
        collate([[of(VaeSplit(2, 2, noised=False), (8, 8, 3))]], CONFIG, DATA)
    with pytest.raises(ValueError, match=r"expected shape \[32, 32, 3\], found \[16, 32, 3\]"):
        collate([[of(VitSplit(), (16, 32, 3))]], CONFIG, DATA)
    with pytest.raises(ValueError, match="rows: expected at most 5 und"):
        collate([[of(VitSplit(), (32, 32, 3))]], CONFIG, dataclasses.replace(DATA, und_tokens=5))

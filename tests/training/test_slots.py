"""Rows with images in slots: the numbers of rows in the order of their samples."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.toy_batches import CONFIG, unix_params
from unix_jax.data.collate import collate, load
from unix_jax.data.config import DataConfig
from unix_jax.data.samples import TrainingSample
from unix_jax.models.unix import UniX
from unix_jax.preprocessing.layout import TextSplit, VaeSplit, VitSplit
from unix_jax.training.losses import LossConfig, unix_loss

# Rows of up to 3 ViT images of 6 tokens each, and 2 VAE images. The slots leave 14 positions for
# text: 22 tokens reach into the slots of a row of one image.
DATA = DataConfig(
    rows=2, und_tokens=36, vit_images=3, vae_images=2, vae_height=8, vae_width=8, epochs=1
)
TEXT_TOKENS = 22
LOSSES = LossConfig(ce_chunk=16)


def text(rng, length):
    return TextSplit([58, *rng.integers(0, 58, length - 2).tolist(), 59])


def sample(rng, kind, length):
    """A report of an image, a conversation about it, or an image to generate (from a text)."""
    first = [(text(rng, length), kind != "image")] if length >= 2 else []
    if kind == "image":
        splits = [*first, (VaeSplit(2, 2, noised=True), True)]
    else:
        later = [(text(rng, 3), False), (text(rng, 2), True)] if kind == "conversation" else []
        splits = [(VitSplit(), False), *first, *later]
    sizes = [(16, 16, 3) if isinstance(x, VitSplit) else (8, 8, 3) for x, _ in splits]
    images = [
        functools.partial(rng.uniform, -1, 1, size)
        for (split, _), size in zip(splits, sizes, strict=True)
        if not isinstance(split, TextSplit)
    ]
    return load(TrainingSample("s", *map(tuple, zip(*splits, strict=True)), tuple(images)))


def row_of(seed, plan):
    """As many samples of the plan as fit a row in slots."""
    rng = np.random.default_rng(seed)
    row, written, vit, vae = [], 0, 0, 0
    for kind, length in plan:
        length = 0 if kind == "image" and length < 2 else max(length, 2)
        tokens = length + (5 if kind == "conversation" else 0)
        more_vit, more_vae = (0, 1) if kind == "image" else (1, 0)
        if (
            written + tokens > TEXT_TOKENS
            or vae + more_vae > 2
            or 6 * (vit + more_vit) + written + tokens + 4 > DATA.und_tokens
        ):
            continue
        row.append(sample(rng, kind, length))
        written, vit, vae = written + tokens, vit + more_vit, vae + more_vae
    return row


plans = st.lists(
    st.tuples(st.sampled_from(["report", "conversation", "image"]), st.integers(0, 12)), max_size=6
)


def batches(rows, data=DATA, text_tokens=TEXT_TOKENS):
    """(in the order of samples, in slots), with moments in the place of pixels of VAE images."""
    found = []
    for tokens in (None, text_tokens):
        batch = collate(rows, CONFIG, dataclasses.replace(data, text_tokens=tokens))
        if batch.vae_pixels is not None:
            moments = np.random.default_rng(0).normal(size=(*batch.noised.shape, 4, 4, 8))
            batch = batch.replace(vae_pixels=None, vae_moments=moments.astype(np.float32))
        found.append(batch)
    return found


@functools.cache
def gradients(freeze_und, remat="none"):
    model = UniX(CONFIG, freeze_und=freeze_und, remat_policy=remat)

    def loss(params, batch):
        return unix_loss(model, {"unix": params}, batch, jax.random.key(4), LOSSES)

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def assert_equal_numbers(compute, rows, **options):
    ordered, slotted = batches(rows, **options)
    assert ordered.slots is None
    assert slotted.slots is not None
    (loss, parts), gradient = compute(unix_params(), ordered)
    (other, other_parts), other_gradient = compute(unix_params(), slotted)
    np.testing.assert_allclose(other, loss, rtol=1e-5)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), other_parts, parts)

    def same(a, b):
        np.testing.assert_allclose(a, b, atol=1e-5 * max(np.abs(b).max(), 1e-3))

    jax.tree.map(same, other_gradient, gradient)


@pytest.mark.parametrize("freeze_und", [False, True])
def test_loss_and_gradients(freeze_und):
    compute = gradients(freeze_und)

    @given(st.integers(0, 2**16), plans, plans)
    @settings(max_examples=25, deadline=None, derandomize=True)
    def of_packing(seed, first, second):
        assert_equal_numbers(compute, [row_of(seed, first), row_of(seed + 1, second)])

    of_packing()

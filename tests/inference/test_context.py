"""Contexts: what is cached, what is valid, and that the branches see what they should."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from support.toy_pipelines import SMALL, golden, small_pipe, tiny_pipe
from unix_jax.inference import context as context_module
from unix_jax.inference.context import as_batch, bucket, image_context, prefill
from unix_jax.inference.sampling import ImageContext, predict_velocity
from unix_jax.models.attention.cache import KVCache
from unix_jax.preprocessing.layout import TextSplit, VaeSplit, VitSplit, lay_out

GRID, CLEAN_GRID = (3, 5), (2, 3)
TEXTS = [[600, 5, 6, 7, 601], [600, 601], [600, *range(70), 601]]
RNG = np.random.default_rng(0)
VIT = RNG.normal(size=(3, 32, 32, 3)).astype(np.float32)
CLEAN = RNG.normal(size=(3, 6, SMALL.latent_channels)).astype(np.float32)
NOISE = RNG.normal(size=(3, 15, SMALL.latent_channels)).astype(np.float32)

velocity = jax.jit(predict_velocity, static_argnames=("model",))


def rows_of(context: ImageContext, rows: slice, t: float = 0.6) -> np.ndarray:
    """Velocity of NOISE under the branch whose rows are given."""
    pipe = small_pipe()
    branches = context.positions.shape[0] // len(NOISE)
    v = velocity(
        pipe.model, pipe.params, context, jnp.tile(NOISE, (branches, 1, 1)), jnp.float32(t)
    )
    return np.asarray(v)[rows]


def make(texts=TEXTS, images=True, **options) -> ImageContext:
    pipe = small_pipe()
    if images:
        options |= {"vit_pixels": VIT[: len(texts)], "clean_latents": CLEAN[: len(texts)],
                    "clean_grid": CLEAN_GRID}  # fmt: skip
    return image_context(pipe.model, pipe.params, texts, GRID, **options)


def test_buckets():
    lengths = [bucket(n) for n in range(1, 9000)]
    assert all(b >= n for n, b in enumerate(lengths, start=1))
    assert lengths == sorted(lengths)
    assert bucket(4096) == 4096
    assert bucket(4097) == 8192
    assert bucket(0) == 64
    assert len(set(lengths)) < 20


def test_prefill_valid_slots_are_the_tokens():
    pipe = small_pipe()
    samples = [[[VitSplit(), TextSplit(ids)]] for ids in TEXTS]
    layout = lay_out(samples, SMALL, und_length=90)
    cache, (hidden, gen) = prefill(
        pipe.model, pipe.params, as_batch(layout, VIT[:, None]), capacity=100
    )
    lengths = [6 + len(ids) for ids in TEXTS]
    assert cache.capacity == 100
    assert int(cache.index) == 90
    assert np.asarray(cache.valid).sum(axis=1).tolist() == lengths
    assert all(np.asarray(cache.valid)[i, :n].all() for i, n in enumerate(lengths))
    assert hidden.shape == (3, 90, 48)
    assert gen is None
    assert layout.next_position.tolist() == [1 + len(ids) for ids in TEXTS]


def test_positions_of_the_branches():
    lengths = [len(ids) for ids in TEXTS]
    text_only = make(images=False, guided=True)
    assert text_only.positions.tolist() == [*lengths, 0, 0, 0]
    edit = make(guided=True, image_rows=True)
    assert edit.positions.tolist() == [*(n + 2 for n in lengths), 2, 2, 2, *lengths]
    assert text_only.latent_position_ids.shape == (1, 15)


def test_empty_text_of_text_to_image_is_no_context_at_all():
    pipe = small_pipe()
    guided = make(images=False, guided=True)
    empty = KVCache.create(SMALL.decoder, 3, 1, merged=guided.cache.merged)
    nothing = ImageContext(empty, jnp.zeros(3, jnp.int32), guided.latent_position_ids, GRID)
    v = velocity(pipe.model, pipe.params, nothing, jnp.asarray(NOISE), jnp.float32(0.6))
    np.testing.assert_allclose(rows_of(guided, slice(3, 6)), v, atol=1e-5)


def test_branches_of_an_edit_equal_their_own_contexts():
    full = make(guided=True, image_rows=True)
    np.testing.assert_allclose(rows_of(full, slice(0, 3)), rows_of(make(), slice(0, 3)), atol=1e-5)
    text_alone = rows_of(make(images=False), slice(0, 3))
    np.testing.assert_allclose(rows_of(full, slice(6, 9)), text_alone, atol=1e-5)
    # The two images alone, prefilled without any text.
    pipe = small_pipe()
    splits = [VaeSplit(*CLEAN_GRID, noised=False), VitSplit()]
    layout = lay_out([[splits]] * 3, SMALL)
    cache, _ = prefill(pipe.model, pipe.params, as_batch(layout, VIT[:, None], CLEAN), 14)
    images = ImageContext(cache, jnp.asarray(layout.next_position), full.latent_position_ids, GRID)
    np.testing.assert_allclose(rows_of(full, slice(3, 6)), rows_of(images, slice(0, 3)), atol=1e-5)


def test_each_part_of_an_edit_matters():
    pipe = small_pipe()
    base = rows_of(make(), slice(0, 3))

    def changed(**options):
        given = {"vit_pixels": VIT, "clean_latents": CLEAN, "clean_grid": CLEAN_GRID} | options
        other = image_context(pipe.model, pipe.params, TEXTS, GRID, **given)
        return np.abs(rows_of(other, slice(0, 3)) - base).max(axis=(1, 2))

    assert (changed(vit_pixels=VIT[::-1])[[0, 2]] > 1e-4).all()
    assert (changed(clean_latents=CLEAN[::-1])[[0, 2]] > 1e-4).all()
    assert (changed(vit_pixels=None) > 1e-4).all()
    assert (changed(clean_latents=None, clean_grid=None) > 1e-4).all()


def test_rows_do_not_see_each_other():
    together = rows_of(make(guided=True), slice(0, 3))
    order = [2, 0, 1]
    pipe = small_pipe()
    permuted = image_context(
        pipe.model, pipe.params, [TEXTS[i] for i in order], GRID,
        vit_pixels=VIT[order], clean_latents=CLEAN[order], clean_grid=CLEAN_GRID, guided=True,
    )  # fmt: skip
    v = velocity(
        pipe.model, pipe.params, permuted, jnp.tile(NOISE[order], (2, 1, 1)), jnp.float32(0.6)
    )
    np.testing.assert_allclose(np.asarray(v)[:3], together[order], atol=1e-5)


def test_padding_to_a_longer_bucket_changes_nothing(monkeypatch):
    plain = rows_of(make(guided=True, image_rows=True), slice(None))
    monkeypatch.setattr(context_module, "_BUCKETS", (200, 400))
    padded = make(guided=True, image_rows=True)
    assert padded.cache.capacity == 206
    np.testing.assert_allclose(rows_of(padded, slice(None)), plain, atol=1e-5)


def test_key_cache_of_the_golden_edit():
    pipe, tensors = tiny_pipe(), golden()
    special = pipe.config.special_tokens
    text = [special.bos, *tensors["gen.prompt_ids"].tolist(), special.eos]
    pixels = np.moveaxis(tensors["edit.vae_pixels"], 1, -1)
    clean = pipe.loaded.autoencode(pixels, "encode").reshape(1, 16, 16)
    context = image_context(
        pipe.model, pipe.params, [text], (4, 4),
        vit_pixels=np.moveaxis(tensors["und.pixel_values"], 1, -1),
        clean_latents=clean, clean_grid=(4, 4),
    )  # fmt: skip
    und = context.cache.capacity - 16
    for layer in range(pipe.config.decoder.num_layers):
        expected = tensors[f"edit.key_cache.{layer}"]
        keys = np.asarray(context.cache.keys[layer])  # [K, H, S], merged
        keys = np.moveaxis(keys, -1, 0)
        # Packed order: [start, 16 latents, end], then the ViT image and the text.
        ours = np.concatenate([keys[:1], keys[und:], keys[1 : 1 + 25]])
        assert np.abs(ours - expected).max() <= 2e-5 * np.abs(expected).max()


@pytest.mark.parametrize("rows", [1, 4])
def test_as_batch_without_images(rows):
    batch = as_batch(lay_out([[[TextSplit([600, 601])]]] * rows, SMALL))
    assert batch.gen is None
    assert batch.vit_pixels is None
    assert batch.latents is None
    assert batch.token_ids.shape == (rows, 2)

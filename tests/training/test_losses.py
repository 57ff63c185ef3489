"""Chunked cross-entropy, the shares of a step's losses, and what a step draws."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from support.toy_batches import CONFIG, SIDE, TOKENS, make_batch, unix_params
from unix_jax.errors import ConfigError
from unix_jax.models import autoencoder
from unix_jax.models.autoencoder import Autoencoder
from unix_jax.models.embeddings import patchify
from unix_jax.models.packed_images import to_images, to_stream
from unix_jax.models.unix import UniX
from unix_jax.training.cross_entropy import chunked_cross_entropy
from unix_jax.training.draws import draw_flow
from unix_jax.training.losses import (
    LossConfig,
    _weighted_mean,
    count_totals,
    loss_and_terms,
    unix_loss,
)

MODEL = UniX(CONFIG)


# ----------------------------------------------------------------------------- cross-entropy


def dense_cross_entropy(hidden, kernel, labels, weights):
    log_probs = jax.nn.log_softmax(hidden @ kernel)
    ce = -jnp.take_along_axis(log_probs, labels[..., None], axis=-1)[..., 0]
    ce = jnp.where(weights > 0, ce, 0.0)
    return (weights * ce).sum(), ce


@pytest.fixture(scope="module")
def head():
    """(hidden, kernel, labels, weights) of rows with unequal numbers of losses, one with none."""
    rng = np.random.default_rng(0)
    rows, length, width, vocab = 3, 11, 8, 40
    weights = rng.random((rows, length)) * (rng.random((rows, length)) < 0.5)
    weights[1] = 0
    return (
        rng.normal(size=(rows, length, width)).astype(np.float32),
        rng.normal(size=(width, vocab)).astype(np.float32),
        rng.integers(0, vocab, (rows, length)),
        weights.astype(np.float32),
    )


def weighted(function, **options):
    def total(hidden, kernel, labels, weights):
        return function(hidden, kernel, labels, weights, **options)

    return jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))


@pytest.mark.parametrize("chunk", [1, 4, 11, 500])
def test_chunks_equal_the_whole(head, chunk, assert_close):
    ours = weighted(chunked_cross_entropy, chunk=chunk)(*head)
    expected = weighted(dense_cross_entropy)(*head)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        assert_close(a, b)


def test_no_loss_at_all(head):
    hidden, kernel, labels, weights = head
    (total, ce), gradients = weighted(chunked_cross_entropy, chunk=4)(
        hidden, kernel, labels, 0 * weights
    )
    assert total == 0
    assert not any(np.any(x) for x in jax.tree.leaves((ce, gradients)))


@pytest.mark.parametrize("chunk", [4, 11])
def test_what_has_no_loss_may_be_anything(head, chunk):
    hidden, kernel, labels, weights = head
    function = weighted(chunked_cross_entropy, chunk=chunk)
    expected = function(hidden, kernel, labels, weights)
    spoiled = np.where(weights[..., None] > 0, hidden, np.array([np.nan, np.inf] * 4))
    found = function(spoiled.astype(np.float32), kernel, labels, weights)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_chunk_must_be_positive(head):
    hidden, kernel, labels, weights = head
    with pytest.raises(ValueError, match="chunk: expected at least 1 place, found 0"):
        chunked_cross_entropy(hidden, kernel, labels, weights, chunk=0)


def test_logits_of_all_tokens_are_never_kept():
    """Neither forward nor backward: only chunks of 16 x 4 rows x V float32 appear."""
    rows, length, width, vocab, chunk = 4, 256, 16, 4096, 16
    arguments = (
        jax.ShapeDtypeStruct((rows, length, width), jnp.float32),
        jax.ShapeDtypeStruct((width, vocab), jnp.float32),
        jax.ShapeDtypeStruct((rows, length), jnp.int32),
        jax.ShapeDtypeStruct((rows, length), jnp.float32),
    )

    def compiled(function, **options):
        return weighted(function, **options).lower(*arguments).compile()

    ours = compiled(chunked_cross_entropy, chunk=chunk)
    sizes = [
        np.prod([int(n) for n in dims.split(",")])
        for dims in re.findall(r"f32\[([\d,]+)\]", ours.as_text())
    ]
    assert max(sizes) <= rows * chunk * vocab
    whole = 4 * rows * length * vocab
    assert ours.memory_analysis().temp_size_in_bytes < whole / 4
    dense = compiled(dense_cross_entropy)
    assert dense.memory_analysis().temp_size_in_bytes >= whole


def test_logits_are_computed_once(head):
    """Training has one product for the logits and one for each gradient, evaluation one."""

    def products(function):
        return str(jax.make_jaxpr(function)(*head)).count("dot_general")

    assert products(weighted(chunked_cross_entropy)) == 3
    assert products(chunked_cross_entropy) == 1


def test_half_precision_products_sum_in_float32(head):
    hidden, kernel, labels, weights = head
    ours = chunked_cross_entropy(hidden, kernel, labels, weights, dtype=jnp.bfloat16)
    expected = dense_cross_entropy(hidden, kernel, labels, weights)
    for a, b in zip(ours, expected, strict=True):
        assert a.dtype == jnp.float32
        assert np.abs(a - b).max() < 0.1


def test_half_precision_gradients(head, assert_close):
    """Close to the exact ones, summed over chunks in float32, and of products of one type alone."""
    function = weighted(chunked_cross_entropy, chunk=4, dtype=jnp.bfloat16)
    ours, exact = function(*head)[1], weighted(dense_cross_entropy)(*head)[1]
    for a, b in zip(ours, exact, strict=True):
        assert a.dtype == jnp.float32
        assert_close(a, b, 2e-2)
    text = str(jax.make_jaxpr(function)(*head))
    operands = re.findall(r"dot_general\[.*?\] (\w+):?\S* (\w+)", text, re.DOTALL)
    assert operands
    types = dict(re.findall(r"\b(\w+):(bf16|f32)\[", text))
    assert {types[name] for pair in operands for name in pair} == {"bf16"}


# ----------------------------------------------------------------------------- draws


@pytest.fixture(scope="module")
def batch():
    return make_batch(8)


compiled_draw = jax.jit(draw_flow, static_argnums=0)


def draw(batch, row_ids, seed=0, params=None):
    return compiled_draw(MODEL, params or {}, batch, jax.random.key(seed), jnp.asarray(row_ids))


def rows_of(tree, rows):
    return jax.tree.map(lambda x: x[np.asarray(rows)], tree)


def test_a_row_draws_the_same_wherever_it_is(batch):
    whole = draw(batch, range(8))
    rows = [5, 2, 7]
    some = draw(rows_of(batch, rows), rows)
    for a, b in zip(jax.tree.leaves(rows_of(whole, rows)), jax.tree.leaves(some), strict=True):
        np.testing.assert_array_equal(a, b)
    other = draw(batch, range(8), seed=1)
    assert not np.array_equal(whole.noise, other.noise)
    # Rows and images differ from one another.
    assert len(np.unique(np.asarray(whole.noise)[batch.latent_index >= 0])) == (
        (batch.latent_index >= 0).sum() * CONFIG.latent_channels
    )


def test_one_time_per_noised_image_and_none_for_clean_ones(batch):
    drawn = draw(batch, range(8))
    assert drawn.timesteps.shape == batch.latent_index.shape
    for row in range(8):
        image = np.where(batch.latent_index[row] >= 0, batch.latent_index[row] // TOKENS, -1)
        for j in range(2):
            times = np.unique(drawn.timesteps[row][image == j])
            if batch.noised[row, j]:
                assert len(times) == 1
                assert 0 < times[0] < 1
            else:
                assert (times == 0).all()
        assert not drawn.latents[row][image < 0].any()


def test_times_are_shifted_logistic_normal():
    rows = 512
    batch = make_batch(4)
    many = jax.tree.map(lambda x: np.tile(x, (rows // 4, *[1] * (x.ndim - 1))), batch)
    drawn = draw(many, range(rows))
    times = np.asarray(drawn.timesteps).max(axis=1).astype(np.float64)
    shift = CONFIG.timestep_shift
    unshifted = times / (shift - (shift - 1) * times)
    normal = np.log(unshifted / (1 - unshifted))
    assert abs(normal.mean()) < 4 / rows**0.5
    assert abs(normal.std() - 1) < 4 / (2 * rows) ** 0.5


def test_latents_sample_the_posterior(batch):
    """mean + exp(logvar / 2) noise, scaled; the log-variance is clamped."""
    vae = CONFIG.vae
    rows = 256
    one = jax.tree.map(lambda x: np.repeat(x[:1], rows, axis=0), batch)
    moments = np.zeros((rows, 2, 4, 4, 8), np.float32)
    moments[..., :4], moments[..., 4:] = 3.0, 2 * np.log(0.5)
    drawn = draw(one.replace(vae_moments=moments), range(rows))
    z = np.asarray(drawn.latents) / vae.scale_factor + vae.shift_factor
    assert abs(z.mean() - 3) < 0.01
    assert abs(z.std() - 0.5) < 0.01
    moments[..., 4:] = -1000.0
    z = draw(one.replace(vae_moments=moments), range(rows)).latents
    np.testing.assert_allclose(z, vae.scale_factor * (3 - vae.shift_factor), atol=1e-6)


def test_pixels_are_encoded_as_their_moments():
    batch = make_batch(2, pixels=True)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: (rng.normal(size=x.shape) * 0.1).astype(np.float32),
        autoencoder.param_shapes(CONFIG.vae),
    )
    pixels = batch.vae_pixels.reshape(-1, SIDE, SIDE, 3)
    moments = Autoencoder(CONFIG.vae).apply({"params": params}, pixels, method="moments")
    moments = np.asarray(moments).reshape(2, 2, *moments.shape[1:])
    ours = draw(batch, range(2), params={"autoencoder": params})
    given = draw(batch.replace(vae_pixels=None, vae_moments=moments), range(2))
    np.testing.assert_allclose(ours.latents, given.latents, atol=1e-5)
    np.testing.assert_array_equal(ours.noise, given.noise)


def test_what_a_batch_must_have(batch):
    with pytest.raises(ValueError, match="vae_pixels or vae_moments"):
        draw(batch.replace(vae_moments=None), range(8))
    with pytest.raises(ValueError, match="noised and latent_index"):
        draw(batch.replace(noised=None), range(8))
    assert draw(batch.replace(gen=None), range(8)).latents is None


def test_streams_and_images_are_inverse():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(2, 3, 4, 5)).astype(np.float32)
    index = np.array([[8, 9, 10, 11, 0, 1, 2, 3, -1], [4, 5, 6, 7, 8, 9, 10, 11, -1]])
    stream = to_stream(images, index)
    assert not stream[:, -1].any()
    np.testing.assert_array_equal(stream[0, :4], images[0, 2])
    expected = images.copy()
    expected[0, 1] = expected[1, 0] = 0
    np.testing.assert_array_equal(to_images(stream, index, 3, 4), expected)


def test_tokens_of_odd_grids_drop_the_last_row_and_column():
    batch = make_batch(1)
    moments = np.random.default_rng(0).normal(size=(1, 2, 5, 5, 8)).astype(np.float32)
    moments[..., 4:] = -1000.0
    latents = np.asarray(draw(batch.replace(vae_moments=moments), [0]).latents)
    scaled = CONFIG.vae.scale_factor * (moments[..., :4] - CONFIG.vae.shift_factor)
    expected = np.concatenate([patchify(scaled[:, j, :4, :4], 2) for j in range(2)], axis=1)
    np.testing.assert_allclose(latents, expected, atol=1e-5)


# ----------------------------------------------------------------------------- losses


CE_AND_MSE = LossConfig(2.0, 3.0, ce_chunk=4)


@pytest.fixture(scope="module")
def losses(batch):
    """(loss, metrics, terms) of all rows, and what was drawn for them."""
    drawn = draw(batch, range(8))
    params = {"unix": unix_params()}

    @jax.jit
    def function(batch, drawn):
        return loss_and_terms(MODEL, params, batch, drawn, count_totals(batch), CE_AND_MSE)

    return function(batch, drawn), drawn


def test_velocity_is_towards_noise(batch, losses):
    (_, _, terms), drawn = losses
    velocity = MODEL.apply({"params": unix_params()}, terms.gen, method=UniX.velocity)
    expected = np.square(velocity - (drawn.noise - drawn.latents))
    np.testing.assert_allclose(terms.squared_error, expected, rtol=1e-4, atol=1e-5)


def test_losses_are_weighted_means(batch, losses):
    (loss, parts, terms), _ = losses
    ce = (batch.ce_weights * terms.ce).sum() / batch.ce_weights.sum()
    error = np.asarray(terms.squared_error).mean(axis=-1)
    mse = (batch.mse_weights * error).sum() / batch.mse_weights.sum()
    np.testing.assert_allclose(parts["ce"], ce, rtol=1e-6)
    np.testing.assert_allclose(parts["mse"], mse, rtol=1e-6)
    np.testing.assert_allclose(loss, 2 * ce + 3 * mse, rtol=1e-6)
    assert parts["repa"] == 0


@pytest.mark.extended
def test_shares_of_unequal_rows_add_up(batch, losses):
    """Not the mean of the parts' means: rows have different numbers of tokens.

    A row draws the same noise in every part, and the public loss of the whole is that sum.
    """
    params, key = {"unix": unix_params()}, jax.random.key(0)

    @jax.jit
    def share(rows, row_ids, totals):
        return unix_loss(MODEL, params, rows, key, CE_AND_MSE, row_ids=row_ids, totals=totals)[0]

    totals = count_totals(batch)
    shares = [
        share(rows_of(batch, rows), jnp.asarray(rows), totals)
        for rows in ([0], [1, 2], [3, 4, 5, 6, 7])
    ]
    whole, metrics = jax.jit(lambda: unix_loss(MODEL, params, batch, key, CE_AND_MSE))()
    np.testing.assert_allclose(sum(shares), whole, rtol=1e-6)
    np.testing.assert_allclose(whole, losses[0][0], rtol=1e-6)
    assert set(metrics) == {"ce", "mse", "repa"}


def test_counts(batch):
    totals = count_totals(batch)
    assert totals.ce_tokens == (batch.ce_weights > 0).sum()
    assert totals.ce_tokens > totals.ce > 0
    assert totals.mse_tokens == totals.mse == 8 * TOKENS
    assert totals.repa == 8
    assert count_totals(batch.replace(mse_weights=None, noised=None)).mse == 0


def test_positions_without_a_loss_may_hold_anything(batch):
    ce = np.where(batch.ce_weights > 0, 1.0, np.inf).astype(np.float32)
    total = count_totals(batch).ce
    np.testing.assert_allclose(
        _weighted_mean(jnp.asarray(ce), batch.ce_weights, total), 1.0, rtol=1e-6
    )


def test_no_tokens_give_no_loss(batch):
    none = 0 * batch.ce_weights
    assert _weighted_mean(jnp.ones(batch.labels.shape), none, jnp.float32(0)) == 0


def test_a_loss_of_weight_0_is_not_computed(batch):
    def terms(config):
        drawn, params = draw(batch, range(8)), {"unix": unix_params()}
        return jax.eval_shape(
            lambda: loss_and_terms(MODEL, params, batch, drawn, count_totals(batch), config)
        )[2]

    assert terms(LossConfig(ce_weight=0)).ce is None
    assert terms(LossConfig(mse_weight=0)).squared_error is None
    assert terms(LossConfig()).repa is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"ce_weight": -1.0}, "ce_weight: expected at least 0, found -1.0"),
        ({"mse_weight": float("nan")}, "mse_weight: expected at least 0, found nan"),
        ({"ce_chunk": 0}, "ce_chunk: expected at least 1, found 0"),
    ],
)
def test_impossible_configurations(values, message):
    with pytest.raises(ConfigError, match=message):
        LossConfig(**values)

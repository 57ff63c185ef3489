"""Training of the autoencoder: its loss against numpy, its step, crops, and the latents' scale."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from unix_jax.config import AutoencoderConfig, UniXConfig
from unix_jax.data.batch import TrainingBatch
from unix_jax.data.config import DataConfig
from unix_jax.errors import ConfigError, DataError
from unix_jax.models.autoencoder import Autoencoder
from unix_jax.sharding import make_mesh, shard_batch, use_mesh
from unix_jax.training import autoencoder
from unix_jax.training.autoencoder import (
    AutoencoderObjective,
    autoencoder_loss,
    init_autoencoder_state,
    kl_divergence,
    make_autoencoder_evaluation,
    make_autoencoder_step,
    measure_latent_statistics,
    psnr,
    random_crops,
    with_latent_statistics,
)
from unix_jax.training.config import TrainConfig
from unix_jax.training.optimizer import OptimizerConfig
from unix_jax.training.stages import make_stage

CONFIG = AutoencoderConfig(
    ch=32, ch_mult=(1, 1), num_res_blocks=1, attn_resolutions=(), resolution=16,
    z_channels=4, embed_dim=4,
)  # fmt: skip
TX = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(2e-3, 0.9, 0.99))
KEY = jax.random.key(7)
# For one sample of the posterior of each of the images below.
NOISE = np.random.default_rng(7).normal(size=(8, 6, 8, 4)).astype(np.float32)


class Upsample(nn.Module):
    """Nearest by 2, then a convolution."""

    @nn.compact
    def __call__(self, x):
        return nn.Conv(3, (3, 3))(jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2))


class ShallowAutoencoder(Autoencoder):
    """One convolution each way instead of the published ones: compiles in no time."""

    def setup(self):
        self.encoder = nn.Conv(2 * self.config.z_channels, (2, 2), strides=2)
        self.decoder = Upsample()
        self.quant_conv = nn.Conv(2 * self.config.embed_dim, (1, 1))
        self.post_quant_conv = nn.Conv(self.config.z_channels, (1, 1))


@pytest.fixture
def shallow(monkeypatch):
    monkeypatch.setattr(autoencoder, "Autoencoder", ShallowAutoencoder)


@pytest.fixture(scope="module")
def pixels():
    """Smooth pictures in [-1, 1], not square."""
    small = jax.random.uniform(jax.random.key(3), (8, 3, 4, 3), minval=-1, maxval=1)
    return np.asarray(jax.image.resize(small, (8, 12, 16, 3), "linear"))


def initial(tx=TX, config=CONFIG):
    return init_autoencoder_state(config, tx, jax.random.key(0))


def leaves(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def test_kl_against_the_closed_form():
    mean, logvar = np.array([0.5, -1.0, 2.0]), np.array([0.3, -2.0, 100.0])
    clamped = np.minimum(logvar, 20.0)
    expected = np.mean(0.5 * (mean**2 + np.exp(clamped) - 1 - clamped))
    moments = jnp.asarray(np.concatenate([mean, logvar]), jnp.float32)[None, None, None]
    np.testing.assert_allclose(kl_divergence(moments), expected, rtol=1e-6)
    assert kl_divergence(jnp.zeros((1, 2, 2, 4))) == 0


def test_loss_is_that_of_a_sampled_posterior_whatever_the_latents_scale(shallow, pixels):
    objective = AutoencoderObjective(kl_weight=0.25)
    params = initial().params
    loss, metrics = autoencoder_loss(CONFIG, objective, params, pixels, NOISE)
    # No scale at all: what training sees does not depend on it.
    model = ShallowAutoencoder(dataclasses.replace(CONFIG, scale_factor=1.0, shift_factor=0.0))
    mean, logvar = np.split(model.apply({"params": params}, pixels, method="moments"), 2, -1)
    z = mean + np.exp(logvar / 2) * np.asarray(NOISE)
    decoded = model.apply({"params": params}, z, method="decode")
    l1 = np.abs(np.asarray(decoded) - pixels).mean()
    kl = np.mean((mean**2 + np.exp(logvar) - 1 - logvar) / 2)
    np.testing.assert_allclose(metrics["l1"], l1, rtol=1e-5)
    np.testing.assert_allclose(loss, l1 + 0.25 * kl, rtol=1e-5)


@pytest.mark.extended
def test_learns(pixels):
    """The published architecture at a small size."""
    pixels, config = pixels[:2], dataclasses.replace(CONFIG, ch_mult=(1,))
    step = make_autoencoder_step(config, TX, AutoencoderObjective(kl_weight=1e-3))
    state, evaluate = initial(config=config), make_autoencoder_evaluation(config)
    before = evaluate(state.params, pixels)
    for _ in range(40):
        state, metrics = step(state, pixels, KEY)
    after = evaluate(state.ema, pixels)
    assert float(after["l1"]) < 0.6 * float(before["l1"])
    assert float(after["psnr"]) > float(before["psnr"]) + 4
    assert set(metrics) == {"l1", "mse", "kl", "loss", "grad_norm"}
    assert all(np.isfinite(metrics[name]) for name in metrics)


def test_the_squared_error_has_its_weight(shallow, pixels):
    params, losses = initial().params, []
    for weight in (0.0, 30.0):
        objective = AutoencoderObjective(kl_weight=0.1, mse_weight=weight)
        loss, metrics = autoencoder_loss(CONFIG, objective, params, pixels, NOISE)
        expected = metrics["l1"] + weight * metrics["mse"] + 0.1 * metrics["kl"]
        np.testing.assert_allclose(loss, expected, rtol=1e-6)
        losses.append(float(loss))
    assert losses[1] > losses[0]
    with pytest.raises(ConfigError, match="mse_weight: expected at least 0"):
        AutoencoderObjective(mse_weight=-1.0)


def test_a_step_depends_on_its_number_and_key_alone(shallow, pixels):
    """Restarted after one step, the second one gives the same bits."""
    step = make_autoencoder_step(CONFIG, TX)
    one, _ = step(initial(), pixels, KEY)
    saved = jax.tree.map(np.asarray, one)
    straight, first = step(one, pixels, KEY)
    resumed, second = step(jax.tree.map(jnp.asarray, saved), pixels, KEY)
    for a, b in zip(leaves((straight, first)), leaves((resumed, second)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert int(resumed.step) == 2
    _, other = step(jax.tree.map(jnp.asarray, saved), pixels, jax.random.key(8))
    assert float(other["loss"]) != float(second["loss"])


def test_the_average_follows_early_weights_quickly(shallow, pixels):
    step, start = make_autoencoder_step(CONFIG, TX), initial()
    old = jax.tree.map(np.asarray, start.params)
    state, _ = step(start, pixels, KEY)
    for o, new, average in zip(*map(leaves, (old, state.params, state.ema)), strict=True):
        np.testing.assert_allclose(average, 0.1 * o + 0.9 * new, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("crop", [None, 8])
def test_accumulation_changes_no_number(shallow, pixels, crop):
    """Noise and crops follow the image; every term is a mean over images."""
    tx, objective = optax.sgd(0.1), AutoencoderObjective(crop=crop)
    one, expected = make_autoencoder_step(CONFIG, tx, objective)(initial(tx), pixels, KEY)
    step = make_autoencoder_step(CONFIG, tx, objective, accumulation=4)
    many, metrics = step(initial(tx), pixels, KEY)
    for name in expected:
        np.testing.assert_allclose(metrics[name], expected[name], rtol=1e-5)
    for a, b in zip(leaves(one), leaves(many), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    whole = make_autoencoder_evaluation(CONFIG)(one.ema, pixels)
    parts = make_autoencoder_evaluation(CONFIG, accumulation=4)(one.ema, pixels)
    for name in whole:
        np.testing.assert_allclose(parts[name], whole[name], rtol=1e-5)
    with pytest.raises(ConfigError, match="expected a multiple of 4 rows"):
        step(initial(tx), pixels[:6], KEY)


def test_without_an_average(shallow, pixels):
    state = init_autoencoder_state(CONFIG, TX, jax.random.key(0), ema=False)
    after, _ = make_autoencoder_step(CONFIG, TX)(state, pixels, KEY)
    assert after.ema is None
    assert int(after.step) == 1


def test_devices_agree_with_one(shallow, pixels):
    tx = optax.sgd(0.1)
    step = make_autoencoder_step(CONFIG, tx)
    one, expected = step(initial(tx), pixels, KEY)
    mesh = make_mesh(data=4, fsdp=2)
    replicated = jax.NamedSharding(mesh, jax.sharding.PartitionSpec())
    with use_mesh(mesh):
        many, metrics = step(
            jax.device_put(initial(tx), replicated), shard_batch(pixels, mesh), KEY
        )
    for name in expected:
        np.testing.assert_allclose(metrics[name], expected[name], rtol=1e-5)
    for a, b in zip(leaves(one), leaves(many), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_crops_are_squares_of_their_own_images():
    images = np.arange(5, dtype=np.float32)[:, None, None, None] * 1000 + np.arange(
        6 * 7, dtype=np.float32
    ).reshape(1, 6, 7, 1)
    crops = np.asarray(random_crops(jax.random.key(0), images, 4))
    assert crops.shape == (5, 4, 4, 1)
    corners = set()
    for image, crop in zip(images[..., 0], crops[..., 0], strict=True):
        row, column = divmod(int(crop[0, 0] - image[0, 0]), 7)
        corners.add((row, column))
        np.testing.assert_array_equal(crop, image[row : row + 4, column : column + 4])
    assert len(corners) > 1


@pytest.mark.extended
@pytest.mark.usefixtures("shallow")
def test_crops_first_then_whole_images(pixels):
    stage = make_stage(
        TrainConfig(
            stage="autoencoder",
            data=DataConfig(source="csv:a", task="generation", vae_images=1),
            total_steps=2,
            optimizer=OptimizerConfig(learning_rate=2e-3, b2=0.99, eps=1e-8),
            autoencoder=AutoencoderObjective(crop=8, crop_steps=1),
        ),
        dataclasses.replace(UniXConfig.preset("tiny"), vae=CONFIG),
        make_mesh(devices=jax.devices()[:1]),
        2,
    )
    fields = {"token_ids": np.zeros((8, 1), np.int32), "und": None, "labels": None}
    batch = TrainingBatch(**fields, ce_weights=None, vae_pixels=pixels[:, None])
    start = stage.fresh({"autoencoder": jax.tree.map(np.asarray, initial().params)})
    first, first_metrics = stage.train_step(1)(start, batch, KEY)
    second, second_metrics = stage.train_step(2)(first, batch, KEY)

    cropped = make_autoencoder_step(CONFIG, TX, AutoencoderObjective(crop=8))
    whole = make_autoencoder_step(CONFIG, TX, AutoencoderObjective())
    expected, metrics = cropped(initial(), pixels, KEY)
    np.testing.assert_allclose(first_metrics["l1"], metrics["l1"], rtol=1e-6)
    expected, metrics = whole(expected, pixels, KEY)
    np.testing.assert_allclose(second_metrics["l1"], metrics["l1"], rtol=1e-5)
    for a, b in zip(leaves(second.params), leaves(expected.params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_crops_in_a_step(shallow, pixels):
    cropped = make_autoencoder_step(CONFIG, TX, AutoencoderObjective(crop=8))
    state, metrics = cropped(initial(), pixels, KEY)
    assert int(state.step) == 1
    assert np.isfinite(metrics["loss"])
    with pytest.raises(
        ConfigError, match=r"crop: expected at most .* found 8 for images of 4 x 16"
    ):
        cropped(initial(), pixels[:, :4], KEY)


def test_perceptual_term(shallow, pixels):
    """1 - cosine of features; it moves the loss and reaches the weights."""

    def features(images):
        return images.reshape(images.shape[0], -1, 6) ** 2

    params = initial().params
    plain, _ = autoencoder_loss(CONFIG, AutoencoderObjective(), params, pixels, NOISE)
    weighed = AutoencoderObjective(perceptual_weight=2.0)
    loss, metrics = autoencoder_loss(CONFIG, weighed, params, pixels, NOISE, features)
    np.testing.assert_allclose(loss - plain, 2 * metrics["perceptual"], rtol=1e-4)
    assert 0 < float(metrics["perceptual"]) < 2
    step = make_autoencoder_step(CONFIG, TX, weighed, features)
    state = initial()
    for _ in range(8):
        state, _ = step(state, pixels, KEY)
    _, after = autoencoder_loss(CONFIG, weighed, state.params, pixels, NOISE, features)
    assert float(after["perceptual"]) < float(metrics["perceptual"])


def test_a_step_that_is_not_finite_halts_the_state(shallow, pixels):
    step = make_autoencoder_step(CONFIG, TX)
    broken = np.where(np.arange(8)[:, None, None, None] == 3, np.nan, pixels)
    before = leaves(initial())
    state, metrics = step(initial(), broken, KEY)
    assert not np.isfinite(metrics["loss"])
    state, metrics = step(state, pixels, KEY)
    assert np.isfinite(metrics["loss"])
    assert state.halted
    kept = leaves(state.replace(halted=initial().halted))
    for a, b in zip(kept, before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_psnr():
    image = np.zeros((2, 4, 4, 3), np.float32)
    np.testing.assert_allclose(psnr(image + 0.2, image), 20.0, rtol=1e-5)
    # Values outside the range cost what their clipped ones do.
    np.testing.assert_allclose(psnr(image + 5.0, image), 10 * np.log10(4), rtol=1e-5)


def test_measured_statistics_make_latents_standard(shallow, pixels):
    params = initial().params
    batches = [pixels[:5], pixels[5:]]  # unequal batches weigh by their latents
    scale, shift = measure_latent_statistics(CONFIG, params, batches)
    final = with_latent_statistics(CONFIG, scale, shift)
    model = ShallowAutoencoder(final)
    moments = model.apply({"params": params}, pixels, method="moments")
    noise = jax.random.normal(KEY, (200, *moments.shape[:-1], 4))
    latents = jax.vmap(lambda n: model.apply({}, moments, n, method="latent"))(noise)
    assert abs(float(latents.mean())) < 0.01
    assert abs(float(latents.std()) - 1) < 0.01
    whole = measure_latent_statistics(CONFIG, params, [pixels])
    np.testing.assert_allclose((scale, shift), whole, rtol=1e-5)
    with pytest.raises(DataError, match="at least one image"):
        measure_latent_statistics(CONFIG, params, [])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"crop_steps": 5}, "crop_steps: expected none or at least 0, with a crop, found 5"),
        ({"crop": 5}, "crop: expected a positive multiple of the downsampling 2, found 5"),
        ({"perceptual_weight": 1.0}, "perceptual_weight: expected 0 without"),
    ],
)
def test_a_step_refuses(change, message):
    with pytest.raises(ConfigError, match=message):
        make_autoencoder_step(CONFIG, TX, AutoencoderObjective(**change))


@pytest.mark.parametrize("change", [{"kl_weight": -1.0}, {"perceptual_weight": -1.0}])
def test_an_objective_refuses(change):
    with pytest.raises(ConfigError, match=next(iter(change))):
        AutoencoderObjective(**change)

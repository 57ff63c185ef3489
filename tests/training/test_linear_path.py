"""The linear path of an autoencoder: block PCA, the descent after it, and the start from it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unix_jax.config import AutoencoderConfig, UniXConfig
from unix_jax.errors import ConfigError, DataError
from unix_jax.models.autoencoder import Autoencoder, param_shapes
from unix_jax.training.linear_path import (
    block_components,
    fit_linear_path,
    start_from_linear_path,
)

CONFIG = AutoencoderConfig(
    ch=8, ch_mult=(1, 1, 1), num_res_blocks=1, attn_resolutions=(), in_channels=1, out_ch=1,
    z_channels=3, embed_dim=3, norm_groups=2, linear_window=1, scale_factor=1.0, shift_factor=0.0,
)  # fmt: skip


def images(count=12, side=16):
    """Smooth gray images in [-1, 1]."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:side, :side] / side
    waves = [np.sin(2 * np.pi * (a * x + b * y) + c) for a, b, c in rng.uniform(-2, 2, (count, 3))]
    return (0.7 * np.stack(waves)[..., None]).astype(np.float32)


@functools.partial(jax.jit, static_argnums=0)
def through(config, params, pixels):
    model = Autoencoder(config)
    moments = model.apply({"params": params}, pixels, method="moments")
    latents = model.apply({}, moments, method="latent")
    return moments, model.apply({"params": params}, latents, method="decode")


@functools.partial(jax.jit, static_argnums=0)
def fresh(config):
    side = 2 * config.downsample
    return Autoencoder(config).init(jax.random.key(0), jnp.zeros((1, side, side, 3)))["params"]


def blocks(pixels, side=4):
    count, height, width, _ = pixels.shape
    cut = pixels.reshape(count, height // side, side, width // side, side)
    return cut.transpose(0, 1, 3, 2, 4).reshape(-1, side * side)


@pytest.mark.extended
def test_starts_at_block_pca():
    pixels = images()
    linear = fit_linear_path(CONFIG, pixels, steps=0)
    params = start_from_linear_path(CONFIG, fresh(CONFIG), linear)
    moments, decoded = through(CONFIG, params, np.repeat(pixels, 3, axis=-1))
    assert decoded.shape == (*pixels.shape[:3], 3)
    np.testing.assert_array_equal(decoded[..., 0], decoded[..., 2])
    flat = blocks(pixels)
    mean = flat.mean(axis=0)
    _, _, rows = np.linalg.svd(flat - mean, full_matrices=False)
    expected = (flat - mean) @ rows[:3].T @ rows[:3] + mean
    np.testing.assert_allclose(blocks(np.asarray(decoded)[..., :1]), expected, atol=2e-5)
    np.testing.assert_allclose(moments[..., 3:], -8.0)


def test_components_are_the_largest():
    rng = np.random.default_rng(0)
    data = rng.standard_normal((500, 6)) * np.array([0.1, 3.0, 0.2, 1.0, 0.1, 0.1]) + 2.0
    mean, components, spread = block_components(data, 2)
    np.testing.assert_allclose(mean, data.mean(axis=0))
    assert np.abs(components).argmax(axis=1).tolist() == [1, 3]
    np.testing.assert_allclose(spread, [3.0, 1.0], rtol=0.1)


@pytest.mark.extended
def test_descent_lowers_the_error_with_neighbours():
    config, pixels = dataclasses.replace(CONFIG, linear_window=3), images(40)
    errors = []
    for steps in (0, 150):
        params = start_from_linear_path(
            config, fresh(config), fit_linear_path(config, pixels, steps)
        )
        _, decoded = through(config, params, pixels)
        errors.append(float(np.mean(np.square(decoded[..., :1] - pixels))))
    assert errors[1] < 0.8 * errors[0]


def test_same_images_same_numbers():
    first, again = (fit_linear_path(CONFIG, images(), steps=3) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first, again)


@pytest.mark.extended
def test_the_parameters_are_those_of_the_configuration():
    params = start_from_linear_path(CONFIG, fresh(CONFIG), fit_linear_path(CONFIG, images(), 1))
    expected = jax.tree.map(lambda x: x.shape, param_shapes(CONFIG))
    assert jax.tree.map(lambda x: x.shape, params) == expected
    assert "linear_encoder" not in param_shapes(dataclasses.replace(CONFIG, linear_window=0))


def test_refused():
    with pytest.raises(ConfigError, match=r"vae\.linear_window: expected an odd number"):
        fit_linear_path(dataclasses.replace(CONFIG, linear_window=0), images())
    with pytest.raises(DataError, match="linear path: expected more than 3 blocks"):
        fit_linear_path(CONFIG, images(1, 4))
    nano = UniXConfig.preset("nano")
    for wrong in (2, -1):
        vae = dataclasses.replace(nano.vae, linear_window=wrong)
        with pytest.raises(ConfigError, match=r"vae\.linear_window: expected 0 or an odd number"):
            dataclasses.replace(nano, vae=vae)

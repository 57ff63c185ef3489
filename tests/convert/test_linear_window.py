"""An autoencoder with a linear path: to the published layout and back."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from support.published_folder import SMALL_VAE
from unix_jax.checkpoints.table import vae_table
from unix_jax.models.autoencoder import Autoencoder, param_shapes


@pytest.mark.parametrize("channels", [1, 3])
def test_the_table_names_the_linear_path(channels):
    config = dataclasses.replace(SMALL_VAE, linear_window=3, in_channels=channels, out_ch=channels)
    flat = {
        "/".join(key.key for key in path): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(param_shapes(config))
    }
    assert {entry.path: entry.shape for entry in vae_table(config)} == flat
    assert any(entry.key == "linear_decoder.weight" for entry in vae_table(config))


@pytest.mark.extended
def test_gray_images_go_in_and_out_of_three_channels():
    config = dataclasses.replace(SMALL_VAE, linear_window=1, in_channels=1, out_ch=1)
    model = Autoencoder(config)
    pixels = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, 8, 8, 3)), jnp.float32)
    params = nn.unbox(model.init(jax.random.key(0), pixels)["params"])
    assert params["encoder"]["conv_in"]["kernel"].shape[2] == 1
    decoded = model.apply({"params": params}, pixels)
    assert decoded.shape == pixels.shape
    np.testing.assert_array_equal(decoded[..., 0], decoded[..., 1])
    gray = jnp.repeat(pixels.mean(axis=-1, keepdims=True), 3, axis=-1)
    np.testing.assert_allclose(model.apply({"params": params}, gray), decoded, atol=1e-5)

"""REPA: the golden cosine, the grid, what is counted, and what is trained."""

import json
from pathlib import Path
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unix_jax.config import AutoencoderConfig, DecoderConfig, UniXConfig
from unix_jax.errors import ConfigError
from unix_jax.models.dinov2 import Dinov2, Dinov2Config, patch_grid, rad_dino_pixels
from unix_jax.training.repa import (
    RepaConfig,
    RepaProjector,
    make_repa,
    mean_over_tokens,
    negative_cosine,
    repa_parts,
    resample_grid,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "metrics_tiny"
MODEL = UniXConfig(
    decoder=DecoderConfig(16, 32, 2, 2, 2, 8, 64, 64),
    vae=AutoencoderConfig(ch=32, ch_mult=(1, 1, 1), z_channels=2, embed_dim=2),
    latent_patch_size=2,
)
ENCODER = Dinov2Config(image_size=12, patch_size=4, hidden_size=8, num_layers=2, num_heads=2)
REPA = RepaConfig(image_size=12)


def test_golden_on_the_same_grid():
    from safetensors.numpy import load_file

    tensors = load_file(GOLDEN / "golden.safetensors")
    expected = json.loads((GOLDEN / "golden.json").read_text())["repa_same_mean_negative_cosine"]
    params = {
        f"fc{i + 1}": {
            "kernel": tensors[f"repa.projector.mlp.{2 * i}.weight"].T,
            "bias": tensors[f"repa.projector.mlp.{2 * i}.bias"],
        }
        for i in range(3)
    }
    projector = RepaProjector(hidden_size=48, features=20)
    ours = projector.apply({"params": params}, tensors["repa.same.model_features"])
    features = tensors["repa.same.encoder_features"]
    grid = resample_grid(features.reshape(3, 4, 4, -1), 4, 4).reshape(features.shape)
    # Cosines are of order one; their mean over signs is small.
    assert abs(float(negative_cosine(ours, grid).mean()) - expected) < 1e-6


def test_resampling_is_in_two_dimensions():
    """A ramp along one side stays that ramp, and does not leak into the other."""
    ramp = np.broadcast_to(np.arange(12.0, dtype=np.float32)[None, None, :, None], (1, 12, 12, 1))
    half = np.asarray(resample_grid(ramp, 6, 6))[0, ..., 0]
    np.testing.assert_allclose(half[:, 1:-1], np.tile(np.arange(4) * 2 + 2.5, (6, 1)), rtol=1e-5)
    np.testing.assert_allclose(half, half[:1].repeat(6, 0), rtol=1e-6)
    wide = np.asarray(resample_grid(ramp, 12, 24))[0, ..., 0]
    np.testing.assert_allclose(wide[0, 1:5], [0.25, 0.75, 1.25, 1.75], rtol=1e-5)


def test_every_patch_counts_when_the_grid_shrinks():
    for place in range(9):
        grid = np.zeros((1, 9, 9, 1), np.float32)
        grid[0, place, place] = 1.0
        assert float(resample_grid(grid, 2, 2).sum()) > 0


def test_negative_cosine_of_zeros_has_a_finite_slope():
    def loss(x):
        return negative_cosine(x, jnp.ones(3))

    np.testing.assert_allclose(loss(jnp.array([2.0, 2.0, 2.0])), -1.0, rtol=1e-6)
    value, slope = jax.value_and_grad(loss)(jnp.zeros(3))
    assert value == 0
    assert np.isfinite(slope).all()


def test_means_are_over_counted_tokens():
    losses = jnp.array([[[1.0, 2.0, 30.0], [4.0, 5.0, 6.0]]])
    # Weights above 0 count alike, as the loss is a mean over tokens.
    weights = jnp.array([[[1.0, 0.5, 0.0], [0.0, 0.0, 0.0]]])
    np.testing.assert_allclose(mean_over_tokens(losses, weights), [[1.5, 0.0]])


@pytest.fixture(scope="module")
def parts():
    keys = jax.random.split(jax.random.key(0), 2)
    makers = repa_parts(MODEL, ENCODER, REPA)
    return {name: nn.unbox(makers[name](key)) for name, key in zip(makers, keys, strict=True)}


@pytest.fixture(scope="module")
def batch():
    """Two rows of two 16 x 24 images, whose latent tokens (2 x 3) stand in any order."""
    rng = np.random.default_rng(0)
    index = np.full((2, 13), -1)
    index[0, :12] = rng.permutation(12)
    index[1, 3:9] = rng.permutation(6)  # one image
    weights = np.zeros((2, 13), np.float32)
    weights[0] = (index[0] >= 6) & (index[0] != 8)  # image 0 is clean, one token is padding
    weights[1] = index[1] >= 0
    return SimpleNamespace(
        vae_pixels=rng.uniform(-1, 1, (2, 2, 16, 24, 3)).astype(np.float32),
        latent_index=jnp.asarray(index),
        mse_weights=jnp.asarray(weights),
    )


@pytest.fixture(scope="module")
def hidden():
    return jnp.asarray(np.random.default_rng(1).normal(size=(2, 13, 16)).astype(np.float32))


@pytest.fixture(scope="module")
def repa():
    return jax.jit(
        lambda params, hidden, *leaves: make_repa(MODEL, ENCODER, REPA)(
            params,
            hidden,
            SimpleNamespace(vae_pixels=leaves[0], latent_index=leaves[1], mse_weights=leaves[2]),
        )
    )


def arguments(batch):
    return batch.vae_pixels, batch.latent_index, batch.mse_weights


@pytest.mark.extended
def test_tokens_meet_the_features_of_their_place(parts, batch, hidden, repa):
    """One token at a time: 16 x 24 pixels are seen as 12 x 16, whose 3 x 4 patches become 2 x 3."""
    pixels = rad_dino_pixels(batch.vae_pixels.reshape(4, 16, 24, 3), (12, 16))
    tokens = jax.jit(Dinov2(ENCODER).apply)({"params": parts["rad_dino"]}, pixels)
    grids = resample_grid(patch_grid(tokens, ENCODER, 12, 16), 2, 3).reshape(2, 2, 6, -1)
    projected = RepaProjector(16, 8).apply({"params": parts["repa"]}, hidden)
    losses = {(row, image): [] for row in (0, 1) for image in (0, 1)}
    for row, place in np.argwhere(np.asarray(batch.mse_weights) > 0):
        image, token = divmod(int(batch.latent_index[row, place]), 6)
        a, b = np.float64(projected[row, place]), np.float64(grids[row, image, token])
        losses[row, image].append(-a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    assert [len(found) for found in losses.values()] == [0, 5, 6, 0]
    expected = [np.mean(found) if found else 0.0 for found in losses.values()]
    ours = repa(parts, hidden, *arguments(batch))
    np.testing.assert_allclose(np.ravel(ours), expected, atol=1e-5)


def test_gradients_reach_the_projector_and_the_stream_alone(parts, batch, hidden, repa):
    def total(parts, hidden):
        return repa(parts, hidden, *arguments(batch)).sum()

    of_parts, of_hidden = jax.grad(total, argnums=(0, 1))(parts, hidden)
    assert all(np.abs(x).max() > 0 for x in jax.tree.leaves(of_parts["repa"]))
    assert all(np.abs(x).max() == 0 for x in jax.tree.leaves(of_parts["rad_dino"]))
    counted = np.asarray(batch.mse_weights) > 0
    moved = np.abs(of_hidden).max(-1) > 0
    np.testing.assert_array_equal(moved, counted)


def test_parameters_carry_logical_axes():
    projector = jax.eval_shape(repa_parts(MODEL, ENCODER, REPA)["repa"], jax.random.key(0))
    assert projector["fc1"]["kernel"].names == ("embed", "mlp")
    assert projector["fc2"]["kernel"].names == ("mlp", "embed")
    assert projector["fc3"]["kernel"].value.shape == (16, 8)


@pytest.mark.extended
def test_what_is_refused(parts, batch, hidden):
    with pytest.raises(ConfigError, match=r"expected a multiple of .* 4, found 13"):
        make_repa(MODEL, ENCODER, RepaConfig(image_size=13))
    with pytest.raises(ConfigError, match="image_size: expected at least 1, found 0"):
        RepaConfig(image_size=0)
    moments = SimpleNamespace(
        vae_pixels=None, latent_index=batch.latent_index, mse_weights=batch.mse_weights
    )
    with pytest.raises(ConfigError, match="REPA: expected a batch with vae_pixels"):
        make_repa(MODEL, ENCODER, REPA)(parts, hidden, moments)

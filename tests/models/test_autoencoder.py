"""The KL autoencoder against the golden files and, at another size, plain torch functions."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unix_jax.config import AutoencoderConfig
from unix_jax.models.autoencoder import Autoencoder, param_shapes

# Attention at the lower level; a wider channel count on the way; non-square images below.
CONFIG = AutoencoderConfig(
    ch=32, ch_mult=(1, 2), num_res_blocks=2, attn_resolutions=(8,), resolution=16,
    z_channels=3, embed_dim=3, scale_factor=0.7, shift_factor=0.4,
)  # fmt: skip


@functools.partial(jax.jit, static_argnames=("config", "method"))
def apply(config, params, method, *arguments):
    return Autoencoder(config).apply({"params": params}, *arguments, method=method)


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(0)

    def random(x):
        fan_in = max(int(np.prod(x.shape[:-1])), 1)
        return (rng.normal(size=x.shape) * fan_in**-0.5).astype(np.float32)

    return jax.tree.map(random, param_shapes(CONFIG))


class Torch:
    """The CompVis autoencoder in float64 torch functions, from its description."""

    def __init__(self, params, norm_groups):
        import torch

        self.norm_groups = norm_groups

        self.torch, self.f = torch, torch.nn.functional
        self.params = jax.tree.map(lambda x: torch.from_numpy(np.array(x, np.float64)), params)

    def conv(self, x, p, **options):
        return self.f.conv2d(x, p["kernel"].permute(3, 2, 0, 1), p["bias"], **options)

    def norm(self, x, p):
        return self.f.group_norm(x, self.norm_groups, p["scale"], p["bias"], eps=1e-6)

    def res(self, x, p):
        y = self.conv(self.f.silu(self.norm(x, p["norm1"])), p["conv1"], padding=1)
        y = self.conv(self.f.silu(self.norm(y, p["norm2"])), p["conv2"], padding=1)
        return y + (self.conv(x, p["nin_shortcut"]) if "nin_shortcut" in p else x)

    def attend(self, x, p):
        y = self.norm(x, p["norm"])
        q, k, v = (self.conv(y, p[name]).flatten(2) for name in "qkv")
        weights = (q.transpose(1, 2) @ k / q.shape[1] ** 0.5).softmax(-1)
        return x + self.conv((v @ weights.transpose(1, 2)).view_as(x), p["proj_out"])

    def middle(self, x, p):
        return self.res(
            self.attend(self.res(x, p["mid_block_1"]), p["mid_attn_1"]), p["mid_block_2"]
        )

    def tail(self, x, p):
        return self.conv(self.f.silu(self.norm(x, p["norm_out"])), p["conv_out"], padding=1)

    def moments(self, x):
        p = self.params["encoder"]
        x = self.conv(x, p["conv_in"], padding=1)
        for j in range(2):
            x = self.res(x, p[f"down_0_block_{j}"])
        x = self.conv(self.f.pad(x, (0, 1, 0, 1)), p["down_0_downsample"], stride=2)
        for j in range(2):
            x = self.attend(self.res(x, p[f"down_1_block_{j}"]), p[f"down_1_attn_{j}"])
        return self.conv(self.tail(self.middle(x, p), p), self.params["quant_conv"])

    def decode(self, latents):
        p = self.params["decoder"]
        z = latents / 0.7 + 0.4
        x = self.conv(self.conv(z, self.params["post_quant_conv"]), p["conv_in"], padding=1)
        x = self.middle(x, p)
        for j in range(3):
            x = self.attend(self.res(x, p[f"up_1_block_{j}"]), p[f"up_1_attn_{j}"])
        x = self.f.interpolate(x, scale_factor=2.0, mode="nearest")
        x = self.conv(x, p["up_1_upsample"], padding=1)
        for j in range(3):
            x = self.res(x, p[f"up_0_block_{j}"])
        return self.tail(x, p)

    def run(self, method, x):
        out = getattr(self, method)(self.torch.from_numpy(np.moveaxis(np.float64(x), -1, 1)))
        return np.moveaxis(out.numpy(), 1, -1)


@pytest.mark.parametrize("norm_groups", [32, 4])
def test_matches_torch_on_non_square_images(params, assert_close, norm_groups):
    pytest.importorskip("torch")
    reference = Torch(params, norm_groups)
    config = dataclasses.replace(CONFIG, norm_groups=norm_groups)
    rng = np.random.default_rng(1)
    pixels = rng.uniform(-1, 1, (2, 8, 12, 3)).astype(np.float32)
    assert_close(apply(config, params, "moments", pixels), reference.run("moments", pixels))
    latents = rng.normal(size=(2, 4, 6, 3)).astype(np.float32)
    assert_close(apply(config, params, "decode", latents), reference.run("decode", latents))


def test_attention_levels_and_shortcuts(params):
    """Named blocks exist exactly where the configuration asks for them."""
    assert "down_1_attn_1" in params["encoder"]
    assert "up_1_attn_2" in params["decoder"]
    assert not [name for part in params.values() for name in part if "_0_attn" in name]
    assert params["encoder"]["down_1_block_0"]["nin_shortcut"]["kernel"].shape == (1, 1, 32, 64)
    assert "nin_shortcut" not in params["encoder"]["down_1_block_1"]
    assert params["encoder"]["conv_out"]["kernel"].shape == (3, 3, 64, 6)
    assert params["quant_conv"]["kernel"].shape == (1, 1, 6, 6)


def test_latent_of_moments():
    """scale (z - shift), and a log-variance clamped to [-30, 20]."""
    mean = np.array([1.0, -2.0, 0.5], np.float32)
    logvar = np.array([100.0, -100.0, 0.0], np.float32)
    moments = np.concatenate([mean, logvar])[None, None, None]
    noise = np.array([0.5, 2.0, -1.0], np.float32)[None, None, None]
    model = Autoencoder(CONFIG)
    mode = model.apply({}, moments, method="latent")
    np.testing.assert_allclose(mode.ravel(), 0.7 * (mean - 0.4), rtol=1e-6)
    sample = model.apply({}, moments, noise, method="latent")
    std = np.exp(0.5 * np.array([20.0, -30.0, 0.0]))
    np.testing.assert_allclose(sample.ravel(), 0.7 * (mean + std * noise.ravel() - 0.4), rtol=1e-5)


def test_golden(tiny, golden, assert_close):
    def nhwc(name):
        return np.moveaxis(golden[name], 1, -1)

    def run(method, *arguments):
        return apply(tiny.config.vae, tiny.vae_params, method, *arguments)

    pixels, noise = nhwc("vae.pixels"), nhwc("vae.sample_noise")
    moments = run("moments", pixels)
    assert_close(moments, nhwc("vae.moments"))
    model = Autoencoder(tiny.config.vae)
    mode = model.apply({}, moments, method="latent")
    assert_close(mode, nhwc("vae.latent_mode"))
    assert_close(model.apply({}, moments, noise, method="latent"), nhwc("vae.latent_sample"))
    assert_close(run("decode", mode), nhwc("vae.decoded_from_latent_mode"))


def test_published_size():
    shapes = param_shapes(AutoencoderConfig())
    assert shapes["encoder"]["down_4_attn_0"]["q"]["kernel"].shape == (1, 1, 512, 512)
    assert shapes["decoder"]["conv_in"]["kernel"].shape == (3, 3, 16, 512)
    assert "down_3_attn_0" not in shapes["encoder"]
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(shapes))

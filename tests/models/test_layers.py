"""Small layers against float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unix_jax.models import layers
from unix_jax.models.layers import RMSNorm, gelu

POINTS = np.linspace(-9.0, 9.0, 4001)


def exact(x):
    return np.array([0.5 * v * math.erfc(-v / math.sqrt(2)) for v in x])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_gelu(dtype):
    """Float32 inside: the error function's rounding, and one of the result."""
    x = jnp.asarray(POINTS, dtype)
    out = gelu(x)
    assert out.dtype == dtype
    wide = np.asarray(x, np.float64)
    expected = exact(wide)
    bound = 4 * np.finfo(np.float32).eps * np.abs(wide)
    bound += float(jnp.finfo(dtype).eps) * np.abs(expected)
    assert (np.abs(np.asarray(out, np.float64) - expected) <= bound).all()


def test_gradient_of_gelu():
    slope = jax.vmap(jax.grad(gelu))(jnp.asarray(POINTS, jnp.float32))
    density = np.exp(-(POINTS**2) / 2) / math.sqrt(2 * math.pi)
    expected = np.array([0.5 * math.erfc(-v / math.sqrt(2)) for v in POINTS]) + POINTS * density
    np.testing.assert_allclose(slope, expected, atol=2e-6)


def test_gelu_keeps_its_input_alone():
    x = jnp.asarray(POINTS, jnp.bfloat16)
    kept = jax.tree.leaves(jax.vjp(gelu, x)[1])
    assert sum(array.nbytes for array in kept) == x.nbytes


def test_norm_of_heads_on_a_tpu(monkeypatch):
    """The mean as a product has the numbers of the sum, forward and backward."""
    norm = RMSNorm(1e-6)
    rng = np.random.default_rng(0)
    x, slope = rng.normal(size=(2, 3, 5, 4, 128)).astype(np.float32)
    scale = {"params": {"scale": rng.normal(size=128).astype(np.float32)}}

    def run(platform):
        monkeypatch.setattr(layers, "platform_in_use", lambda: platform)
        out, backward = jax.vjp(norm.apply, scale, x)
        return jax.tree.leaves((out, backward(slope)))

    for ours, expected in zip(run("tpu"), run("cpu"), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)

"""Small layers against float64."""

import importlib.util
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unix_jax.dry_run.topology import topology_devices
from unix_jax.models import layers
from unix_jax.models.layers import RMSNorm, dense, gelu, whole_vectors

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


@pytest.mark.parametrize("rows", [1, 3, 8, 70])
def test_few_rows_on_a_tpu(monkeypatch, rows):
    """Rows of zeros complete the vectors, and leave no trace in the result."""
    layer = dense(24, (None, None), transposed=True)
    x = np.random.default_rng(rows).normal(size=(rows, 1, 16)).astype(np.float32)
    params = layer.init(jax.random.key(0), x)

    def run(platform):
        monkeypatch.setattr(layers, "platform_in_use", lambda: platform)
        return layer.apply(params, x)

    np.testing.assert_allclose(run("tpu"), run("cpu"), rtol=1e-6, atol=1e-6)
    monkeypatch.setattr(layers, "platform_in_use", lambda: "tpu")
    assert whole_vectors(x[:, 0]).shape == (max(rows, 8), 16)


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed (extra tpu)"
)
def test_a_single_row_is_computed_by_the_matrix_unit():
    """XLA's name of what the matrix unit computes is a convolution."""
    mesh = jax.sharding.Mesh(topology_devices("v5e:2x2")[:1], ("x",))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    layer = dense(512, (None, None), transposed=True, use_bias=False)
    x = jax.ShapeDtypeStruct((1, 1, 256), jnp.bfloat16, sharding=whole)
    kernel = jax.ShapeDtypeStruct((512, 256), jnp.bfloat16, sharding=whole)
    with jax.set_mesh(mesh):
        program = jax.jit(layer.apply).lower({"params": {"kernel": kernel}}, x).compile()
    assert " convolution(" in program.as_text()

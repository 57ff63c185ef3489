"""Linear layers and the cross-entropy whose weights are split: each device gathers them itself."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from unix_jax.models.layers import dense
from unix_jax.sharding import gathered_kernel, make_mesh, traced_on, use_mesh
from unix_jax.training.cross_entropy import chunked_cross_entropy

pytestmark = pytest.mark.skipif(jax.device_count() != 8, reason="needs 8 (virtual) devices")

ROWS, TOKENS, WIDTH, FEATURES = 8, 3, 16, 24
MESHES = [
    pytest.param({"fsdp": 8}, id="fsdp8"),
    pytest.param({"data": 2, "fsdp": 2, "tensor": 2}, id="data2_fsdp2_tensor2"),
]


def layer_inputs(axes):
    rng = np.random.default_rng(0)
    sizes = {"embed": WIDTH, "mlp": FEATURES}
    shape = tuple(sizes[axis] for axis in axes)
    x = rng.normal(size=(ROWS, TOKENS, shape[0])).astype(np.float32)
    params = {"kernel": rng.normal(size=shape).astype(np.float32)}
    return x, params


def loss_and_gradients(axes, features, mesh):
    layer = dense(features, axes, use_bias=False)

    def run(params, x):
        def loss(params, x):
            return jnp.square(layer.apply({"params": params}, x)).sum()

        with traced_on(mesh):
            return jax.value_and_grad(loss, argnums=(0, 1))(params, x)

    return jax.jit(run)


def placed(mesh, axes, params, x):
    names = {"embed": "fsdp", "mlp": "tensor"}
    kernel = NamedSharding(mesh, PartitionSpec(*(names[axis] for axis in axes)))
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    return {"kernel": jax.device_put(params["kernel"], kernel)}, jax.device_put(x, rows)


@pytest.mark.parametrize("axes", [("embed", "mlp"), ("mlp", "embed")])
@pytest.mark.parametrize("sizes", MESHES)
def test_numbers_of_one_device(sizes, axes):
    mesh, (x, params) = make_mesh(**sizes), layer_inputs(axes)
    features = params["kernel"].shape[1]
    expected = loss_and_gradients(axes, features, None)(params, x)
    given = loss_and_gradients(axes, features, mesh)(*placed(mesh, axes, params, x))
    for a, b in zip(jax.tree.leaves(given), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-4)


def test_weights_are_gathered_and_gradients_scattered():
    """No device holds the gradient of a whole kernel after it is summed."""
    mesh, axes = make_mesh(fsdp=8), ("embed", "mlp")
    x, params = layer_inputs(axes)
    run = loss_and_gradients(axes, FEATURES, mesh)
    program = run.lower(*placed(mesh, axes, params, x)).compile().as_text()
    whole, part = f"f32[{WIDTH},{FEATURES}]", f"f32[{WIDTH // 8},{FEATURES}]"
    assert re.search(rf"= {re.escape(whole)}\S* all-gather", program)
    assert re.search(rf"= {re.escape(part)}\S* reduce-scatter", program)
    assert not re.search(rf"= {re.escape(whole)}\S* all-reduce", program)


def test_where_xla_chooses():
    """Outside of training, within another `shard_map`, and where the rows do not divide."""
    mesh, shape, axes = make_mesh(fsdp=8), (WIDTH, FEATURES), ("embed", "mlp")
    assert gathered_kernel(ROWS, shape, axes) is None
    with use_mesh(mesh):
        assert gathered_kernel(ROWS, shape, axes) is None
    with traced_on(mesh):
        found = gathered_kernel(ROWS, shape, axes)
        assert (found.axis, found.dim, found.batch) == ("fsdp", 0, ("fsdp",))
        assert gathered_kernel(ROWS, shape[::-1], axes[::-1]).dim == 1
        assert gathered_kernel(ROWS + 1, shape, axes) is None
        assert gathered_kernel(ROWS, (WIDTH + 1, FEATURES), axes) is None
        assert gathered_kernel(ROWS, shape, (None, "mlp")) is None
    with traced_on(make_mesh(tensor=8)):
        assert gathered_kernel(ROWS, shape, axes) is None


@pytest.mark.parametrize("sizes", MESHES)
def test_cross_entropy_of_one_device(sizes):
    rng = np.random.default_rng(1)
    hidden = rng.normal(size=(ROWS, TOKENS, WIDTH)).astype(np.float32)
    kernel = rng.normal(size=(WIDTH, FEATURES)).astype(np.float32)
    labels = rng.integers(0, FEATURES, (ROWS, TOKENS))
    weights = rng.random((ROWS, TOKENS)) * (rng.random((ROWS, TOKENS)) < 0.7)
    weights = weights.astype(np.float32)

    def of(mesh):
        def loss(hidden, kernel):
            with traced_on(mesh):
                total, values = chunked_cross_entropy(hidden, kernel, labels, weights, chunk=2)
                return total, nn.with_logical_constraint(values, ("batch", None))

        arguments = (hidden, kernel)
        if mesh is not None:
            split = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
            of_kernel = NamedSharding(mesh, PartitionSpec("fsdp", "tensor"))
            arguments = jax.device_put(arguments, (split, of_kernel))
        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(*arguments)

    given, expected = of(make_mesh(**sizes)), of(None)
    for a, b in zip(jax.tree.leaves(given), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-5)

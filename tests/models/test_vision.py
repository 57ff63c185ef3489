"""The SigLIP tower against the golden files and, at other sizes, plain float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from support.numpy_reference import vision as plain_vision
from unix_jax.config import VisionConfig
from unix_jax.models.vision import VisionTransformer

CONFIG = VisionConfig(
    image_size=12, patch_size=3, width=12, num_layers=2, num_heads=3, mlp_ratio=2.5,
    layer_norm_eps=1e-2,
)  # fmt: skip


@pytest.fixture(scope="module")
def params():
    shapes = nn.unbox(
        jax.eval_shape(VisionTransformer(CONFIG).init, jax.random.key(0), jnp.zeros((1, 12, 12, 3)))
    )["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: (rng.normal(size=x.shape) * x.shape[-1] ** -0.5).astype(np.float32), shapes
    )


@functools.partial(jax.jit, static_argnames=("implementation", "remat_policy", "unroll"))
def run(params, pixels, implementation="xla", remat_policy="none", unroll=1):
    tower = VisionTransformer(
        CONFIG, attention_implementation=implementation, remat_policy=remat_policy, unroll=unroll
    )
    return tower.apply({"params": params}, pixels)


@pytest.mark.parametrize(("height", "width"), [(12, 12), (6, 24)])
def test_matches_plain_float64(params, assert_close, height, width):
    """Other eps, heads and MLP ratio; a non-square image with as many patches."""
    assert params["blocks"]["fc1"]["kernel"].shape == (2, 12, 30)
    pixels = np.random.default_rng(1).normal(size=(2, height, width, 3)).astype(np.float32)
    out = run(params, pixels)
    wide = jax.tree.map(lambda x: x.astype(np.float64), params)
    for ours, image in zip(out, pixels, strict=True):
        assert_close(ours, plain_vision(image.astype(np.float64), wide, CONFIG))


def test_implementations_agree(params, assert_close):
    pixels = np.random.default_rng(1).normal(size=(2, 12, 12, 3)).astype(np.float32)
    assert_close(run(params, pixels, "chunked", "full"), run(params, pixels))


@pytest.mark.parametrize(
    ("policy", "unroll"), [("full", 1), ("dots", 1), ("products", 1), ("full", 5)]
)
def test_remat_policies_give_the_same_gradients(params, assert_close, policy, unroll):
    pixels = np.random.default_rng(1).normal(size=(2, 12, 12, 3)).astype(np.float32)

    def gradients(**options):
        return jax.grad(lambda p: jnp.square(run(p, pixels, **options)).sum())(params)

    jax.tree.map(assert_close, gradients(remat_policy=policy, unroll=unroll), gradients())


def test_golden(tiny, golden, assert_close):
    pixels = np.moveaxis(golden["und.pixel_values"], 1, -1)
    assert_close(tiny.apply("features", pixels), golden["und.vit_features"])
    assert_close(tiny.apply("embed_images", pixels), golden["und.connector_out"])


@pytest.mark.parametrize("shape", [(1, 12, 15, 3), (1, 9, 9, 3)])
def test_wrong_number_of_patches(params, shape):
    with pytest.raises(ValueError, match="expected 16 patches of 3 px"):
        VisionTransformer(CONFIG).apply({"params": params}, jnp.zeros(shape))


def test_mlp_size_survives_the_ratio():
    """`intermediate_size` is kept as a ratio: the way back must not lose a unit."""
    for width in range(16, 1200, 16):
        for size in range(16, 4 * width + 1, 112):
            assert VisionConfig(width=width, mlp_ratio=size / width).mlp_size == size
    assert VisionConfig(width=1152, mlp_ratio=3.7362).mlp_size == 4304

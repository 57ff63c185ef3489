"""DINOv2 against the golden toy of RAD-DINO, and its inputs."""

import functools
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from PIL import Image

from unix_jax.checkpoints.rad_dino_files import load_dinov2
from unix_jax.models.dinov2 import (
    RAD_DINO_MEAN,
    RAD_DINO_STD,
    Dinov2,
    Dinov2Config,
    bicubic_matrix,
    encoder_size,
    param_shapes,
    patch_grid,
    pooled,
    position_table,
    rad_dino_pixels,
)
from unix_jax.sharding import make_mesh, param_shardings, use_mesh

GOLDEN = Path(__file__).parents[1] / "golden" / "metrics_tiny"


@pytest.fixture(scope="module")
def tensors():
    from safetensors.numpy import load_file

    return load_file(GOLDEN / "golden.safetensors")


@pytest.fixture(scope="module")
def encoder():
    """(sizes, a function of normalised pixels)."""
    config, params = load_dinov2(GOLDEN / "rad_dino")
    return config, jax.jit(functools.partial(Dinov2(config).apply, {"params": params}))


@pytest.mark.parametrize("size", [56, 84])
def test_golden(encoder, tensors, assert_close, size):
    """At the table's own size, and at a larger one, for which the table is resampled."""
    config, apply = encoder
    tokens = apply(np.moveaxis(tensors[f"rad_dino.pixels.{size}"], 1, -1))
    expected = tensors[f"rad_dino.last_hidden_state.{size}"]
    assert_close(tokens, expected)
    assert_close(pooled(tokens), tensors[f"rad_dino.pooler_output.{size}"])
    grid = patch_grid(tokens, config, size, size)
    side = size // config.patch_size
    assert_close(grid, expected[:, 1:].reshape(2, side, side, -1))


def test_an_image_alone_is_that_image_among_others(encoder, tensors, assert_close):
    _, apply = encoder
    pixels = np.moveaxis(tensors["rad_dino.pixels.56"], 1, -1)
    assert_close(apply(pixels[1:]), apply(pixels)[1:], 1e-6)


def test_the_patch_grid_is_the_image(encoder):
    """A change in one patch of a non-square image shows most in the same place of the grid."""
    config, apply = encoder
    pixels = np.zeros((2, 42, 70, 3), np.float32)
    pixels[1, 14:28, 56:70] = 3.0
    grid = patch_grid(apply(pixels), config, 42, 70)
    assert grid.shape == (2, 3, 5, config.hidden_size)
    change = np.asarray(jnp.abs(grid[1] - grid[0]).sum(-1))
    assert np.unravel_index(change.argmax(), change.shape) == (1, 4)


@pytest.mark.parametrize(("old", "new"), [(4, 6), (5, 3), (37, 16)])
def test_bicubic_is_torch_bicubic(old, new):
    torch = pytest.importorskip("torch")
    grid = np.random.default_rng(0).normal(size=(1, 2, old, old)).astype(np.float32)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(grid).double(), size=(new, 7), mode="bicubic", align_corners=False
    )
    ours = np.einsum("ya,xb,ncab->ncyx", bicubic_matrix(old, new), bicubic_matrix(old, 7), grid)
    np.testing.assert_allclose(ours, expected.numpy(), atol=1e-5)


def test_bicubic_weights():
    for matrix in (bicubic_matrix(4, 9), bicubic_matrix(9, 4)):
        np.testing.assert_allclose(matrix.sum(1), 1.0, atol=1e-6)
    np.testing.assert_array_equal(bicubic_matrix(5, 5), np.eye(5))


def test_a_position_table_of_the_right_size_stays_as_it_is():
    table = jnp.arange(10.0).reshape(1, 5, 2)
    assert position_table(table, 2, 2) is table
    # As many patches in another shape are resampled.
    other = position_table(table, 1, 4)
    assert other.shape == table.shape
    np.testing.assert_array_equal(other[:, 0], table[:, 0])
    assert not np.allclose(other, table)


def test_inputs_are_the_statistics_of_images_in_the_unit_range():
    pixels = np.array([-1.0, 0.0, 1.0, -7.0, 7.0], np.float32).reshape(1, 1, 5, 1)
    expected = (np.array([0.0, 0.5, 1.0, 0.0, 1.0]) - RAD_DINO_MEAN) / RAD_DINO_STD
    np.testing.assert_allclose(rad_dino_pixels(pixels).ravel(), expected, rtol=1e-5)


@pytest.mark.parametrize("size", [(28, 42), (98, 84)])
def test_inputs_are_resized_as_pillow_does(size):
    """Bicubic with antialias, to a rounding to 8 bits; smaller and larger."""
    picture = Image.open(GOLDEN / "image0.png").convert("L").resize((64, 48))
    expected = np.asarray(picture.resize(size[::-1], Image.Resampling.BICUBIC), np.float32) / 255
    pixels = np.asarray(picture, np.float32)[None, ..., None] / 127.5 - 1
    ours = rad_dino_pixels(np.repeat(pixels, 3, -1), size) * RAD_DINO_STD + RAD_DINO_MEAN
    assert ours.shape == (1, *size, 3)
    # Pillow rounds between its two passes, so up to two steps of its 8 bits.
    np.testing.assert_allclose(ours[0, ..., 0], expected, atol=2 / 255)


def test_the_encoder_sees_the_whole_image():
    assert encoder_size(256, 256, 518, 14) == (518, 518)
    assert encoder_size(256, 384, 518, 14) == (518, 784)
    assert encoder_size(390, 256, 518, 14) == (784, 518)
    assert encoder_size(512, 512, 56, 14) == (56, 56)
    with pytest.raises(ValueError, match="multiple of the patch size 14, found 500"):
        encoder_size(256, 256, 500, 14)


def test_too_small_an_image_is_refused(encoder):
    _, apply = encoder
    with pytest.raises(ValueError, match="at least 14 px, found 13 x 56"):
        apply(np.zeros((1, 13, 56, 3), np.float32))


def test_rad_dino_has_the_published_size():
    shapes = param_shapes(Dinov2Config())
    leaves = jax.tree.leaves(nn.unbox(shapes))
    # 86,580,480 with the mask token of 768, which is not kept.
    assert sum(leaf.size for leaf in leaves) == 86_579_712
    assert shapes["blocks"]["query"]["kernel"].names == ("layers", "embed", "heads")
    assert shapes["blocks"]["layer_scale1"].names == ("layers", "norm")


@pytest.mark.skipif(jax.device_count() != 8, reason="needs 8 (virtual) devices")
def test_activations_are_not_summed_over_the_devices():
    """Weights split along the width are gathered; else every product is summed over all devices."""
    mesh = make_mesh(fsdp=8)
    model = Dinov2(Dinov2Config(16, 4, hidden_size=64, num_layers=2, num_heads=4))
    pixels = jax.ShapeDtypeStruct(
        (64, 16, 16, 3), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec("fsdp"))
    )
    boxed = jax.eval_shape(model.init, jax.random.key(0), pixels)
    shardings = param_shardings(boxed, mesh)
    params = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), nn.unbox(boxed), shardings
    )
    with use_mesh(mesh):
        program = jax.jit(model.apply).lower(params, pixels).compile().as_text()
    assert "all-gather" in program
    assert "all-reduce" not in program

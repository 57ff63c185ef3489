"""Time sinusoid, 2-D position table, position ids and latent patches."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unix_jax.models.embeddings import (
    latent_position_ids,
    patchify,
    sincos_table_2d,
    timestep_sinusoid,
    unpatchify,
)

# ----------------------------------------------------------------------------- time


def test_sinusoid_takes_times_as_they_are():
    t = np.array([[0.0, 1.0], [0.73, 1e-3]], np.float32)
    out = np.asarray(timestep_sinusoid(jnp.asarray(t)))
    assert out.shape == (2, 2, 256)
    for index in np.ndindex(t.shape):
        angles = [float(t[index]) * 10000 ** (-i / 128) for i in range(128)]
        expected = [math.cos(a) for a in angles] + [math.sin(a) for a in angles]
        np.testing.assert_allclose(out[index], expected, atol=2e-6)


def test_sinusoid_is_float32():
    assert timestep_sinusoid(jnp.ones((1,), jnp.bfloat16)).dtype == jnp.float32


# ----------------------------------------------------------------------------- table


@pytest.mark.parametrize(("dim", "side"), [(64, 8), (4, 3), (12, 1)])
def test_table_by_definition(dim, side):
    table = sincos_table_2d(dim, side)
    assert table.shape == (side * side, dim)
    assert table.dtype == np.float32
    quarter = dim // 4
    for row in range(side):
        for column in range(side):
            expected = []
            for place in (column, row):  # "w first"
                angles = [place / 10000 ** (i / quarter) for i in range(quarter)]
                expected += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            np.testing.assert_allclose(table[row * side + column], expected, atol=1e-7)


def test_table_is_that_of_the_checkpoint(tiny):
    stored = np.asarray(tiny.params["latent_pos_embed"])
    np.testing.assert_allclose(sincos_table_2d(64, 8), stored, atol=1e-7)


def test_table_extends_exactly():
    """Row id changes with the table's side, the row of a place does not."""
    small, large = sincos_table_2d(16, 4), sincos_table_2d(16, 8)
    ids = latent_position_ids(4, 4, 8)
    np.testing.assert_array_equal(large[ids], small)


def test_table_error():
    with pytest.raises(ValueError, match="multiple of 4, found 6"):
        sincos_table_2d(6, 2)


# ----------------------------------------------------------------------------- position ids


@given(st.integers(1, 9), st.integers(1, 9), st.integers(9, 12))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_extrapolated_ids(height, width, side):
    expected = [row * side + column for row in range(height) for column in range(width)]
    ids = latent_position_ids(height, width, side)
    assert ids.dtype == np.int32
    np.testing.assert_array_equal(ids, expected)


# Where torch 2.13 departs from the exact bucket i * side // count, through its float32 rounding
# of fractions on an edge: {(count, side): {i: bucket}}.
TORCH_BUCKETS: dict[tuple[int, int], dict[int, int]] = {
    (3, 8): {},
    (16, 8): {},
    (32, 32): {},
    (48, 12): {44: 10},
    (48, 24): {44: 21},
}


@pytest.mark.parametrize(("count", "side"), sorted(TORCH_BUCKETS))
def test_interpolated_ids_stored(count, side):
    buckets = np.arange(count) * side // count
    for i, bucket in TORCH_BUCKETS[count, side].items():
        buckets[i] = bucket
    np.testing.assert_array_equal(latent_position_ids(1, count, side, True), buckets)
    np.testing.assert_array_equal(latent_position_ids(count, 1, side, True), buckets * side)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_interpolated_ids_are_within_one_bucket_of_exact(height, width, side):
    """Off the buckets' edges the ids are the exact ones; on them rounding may lose one."""
    ids = latent_position_ids(height, width, side, True).reshape(height, width)
    rows, columns = ids // side, ids % side
    assert (rows == rows[:, :1]).all()
    assert (columns == columns[:1]).all()
    for found, count in ((rows[:, 0], height), (columns[0], width)):
        i = np.arange(count)
        exact, on_edge = i * side // count, i * side % count == 0
        assert (found[~on_edge] == exact[~on_edge]).all()
        assert ((exact - found >= 0) & (exact - found <= 1))[on_edge].all()


def test_interpolated_ids_match_torch():
    torch = pytest.importorskip("torch")
    for side in range(1, 65):
        edges = torch.arange(1 / side, 1.0, 1 / side)
        axes = [
            torch.bucketize(torch.arange(0, 1 - 1e-6, 1 / n), edges, right=True)
            for n in range(1, 65)
        ]
        for count, axis in enumerate(axes, start=1):
            np.testing.assert_array_equal(latent_position_ids(1, count, side, True), axis)
        for height, width in ((3, 7), (side, 2 * side), (64, 5)):
            if max(height, width) > 64:
                continue
            expected = axes[height - 1][:, None] * side + axes[width - 1]
            np.testing.assert_array_equal(
                latent_position_ids(height, width, side, True), expected.ravel()
            )


def test_position_id_errors():
    with pytest.raises(ValueError, match="at most max_latent_size 8 tokens, found 4 x 9"):
        latent_position_ids(4, 9, 8)
    for interpolate in (False, True):
        with pytest.raises(ValueError, match="at least 1 token, found 0 x 3"):
            latent_position_ids(0, 3, 8, interpolate)


# ----------------------------------------------------------------------------- patches


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_patchify_order_and_inverse(height, width, patch, channels):
    shape = (2, height * patch, width * patch, channels)
    latents = np.arange(np.prod(shape)).reshape(shape)
    tokens = np.asarray(patchify(latents, patch))
    for b in range(2):
        for row in range(height):
            for column in range(width):
                expected = [
                    latents[b, row * patch + p, column * patch + q, c]
                    for p in range(patch)
                    for q in range(patch)
                    for c in range(channels)
                ]
                assert tokens[b, row * width + column].tolist() == expected
    np.testing.assert_array_equal(unpatchify(tokens, height, width, patch), latents)

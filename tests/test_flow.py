"""Time grid, shift and path."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unix_jax.errors import PromptError
from unix_jax.preprocessing.flow import (
    interpolate,
    shift_timestep,
    timestep_grid,
    timestep_grid_through,
)


def test_grid_matches_torch_bit_for_bit():
    torch = pytest.importorskip("torch")
    for points in [*range(2, 260), 500, 999, 1000]:
        t = torch.linspace(1, 0, points)
        for shift in (1.0, 3.0, 0.3):
            expected = (shift * t / (1 + (shift - 1) * t)).numpy()
            np.testing.assert_array_equal(timestep_grid(points, shift), expected)


def test_grid_stored():
    """As printed by torch 2.13, float32 bits."""
    grid = timestep_grid(8, 1.0)
    assert grid.dtype == np.float32
    bits = [0x3F800000, 0x3F5B6DB7, 0x3F36DB6E, 0x3F124924, 0x3EDB6DB8, 0x3E924925, 0x3E124925, 0]
    assert grid.view(np.uint32).tolist() == bits


@given(st.integers(2, 400), st.floats(0.05, 20))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_grid_runs_from_noise_to_data(points, shift):
    grid = timestep_grid(points, shift)
    assert len(grid) == points
    assert grid[-1] == 0
    assert abs(grid[0] - 1) < 1e-6  # torch's rounding, kept
    assert (np.diff(grid) < 0).all()
    exact = np.linspace(1, 0, points)
    np.testing.assert_allclose(grid, shift * exact / (1 + (shift - 1) * exact), atol=2e-6)


@given(st.integers(1, 300), st.floats(0.05, 20), st.lists(st.floats(0, 1), max_size=3))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_grid_through_times(steps, shift, times):
    grid = timestep_grid_through(steps, shift, times)
    assert (grid.dtype, len(grid), grid[0], grid[-1]) == (np.float32, steps + 1, 1, 0)
    assert (np.diff(grid) <= 0).all()
    inner = sorted({float(np.float32(t)) for t in times if 0 < np.float32(t) < 1})
    # The latest ones where there are more stretches than steps.
    assert set(inner[: steps - 1]) <= {float(t) for t in grid}


def test_grid_through_nothing_is_the_grid():
    for steps, shift in ((1, 1.0), (7, 3.0), (49, 3.0)):
        plain = timestep_grid(steps + 1, shift)
        np.testing.assert_allclose(timestep_grid_through(steps, shift, ()), plain, atol=2e-7)


def test_steps_are_shared_by_length_before_the_shift():
    # 0.4 after a shift of 3 is 2/11 before it: 3.6 of 20 steps.
    grid = timestep_grid_through(20, 3.0, (0.4, 1.0))
    assert np.flatnonzero(grid == np.float32(0.4)).tolist() == [16]
    np.testing.assert_allclose(
        shift_timestep(grid, 1 / 3)[:17], np.linspace(1, 2 / 11, 17), atol=1e-6
    )


def test_shift():
    t = np.array([0.0, 0.25, 1.0])
    np.testing.assert_allclose(shift_timestep(t, 3.0), [0, 0.75 / 1.5, 1])
    np.testing.assert_array_equal(shift_timestep(t, 1.0), t)
    np.testing.assert_allclose(shift_timestep(shift_timestep(t, 3.0), 1 / 3), t)


def test_path():
    rng = np.random.default_rng(0)
    data, noise = rng.normal(size=(2, 2, 3, 4)).astype(np.float32)
    t = np.array([[0, 1, 0.5], [0.25, 0.75, 1]], np.float32)
    x = interpolate(data, noise, t)
    np.testing.assert_array_equal(x[0, 0], data[0, 0])
    np.testing.assert_array_equal(x[0, 1], noise[0, 1])
    np.testing.assert_allclose(x[1, 0], 0.75 * data[1, 0] + 0.25 * noise[1, 0], rtol=1e-6)
    # The velocity, noise - data, is the path's slope.
    slope = (interpolate(data, noise, t + 0.125) - x) / 0.125
    np.testing.assert_allclose(slope, noise - data, atol=1e-5)


@pytest.mark.parametrize("points", [1, 0, -3])
def test_too_few_points(points):
    with pytest.raises(PromptError, match=f"num_steps: expected at least 2 .* found {points}"):
        timestep_grid(points, 1.0)


@pytest.mark.parametrize("shift", [0.0, -1.0, float("nan")])
def test_wrong_shift(shift):
    with pytest.raises(PromptError, match="timestep_shift: expected a positive number"):
        timestep_grid(4, shift)

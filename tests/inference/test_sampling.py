"""Guidance against a plain statement of it, and the sampling loop."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.toy_pipelines import SMALL, small_pipe
from unix_jax.inference.context import image_context
from unix_jax.inference.sampling import (
    SOLVERS,
    Guidance,
    guide,
    initial_state,
    predict_velocity,
    sample_latents,
)
from unix_jax.models.attention import key_blocks
from unix_jax.preprocessing.flow import timestep_grid, timestep_grid_through

B, GRID = 2, (3, 5)
G, C = GRID[0] * GRID[1], SMALL.latent_channels
TEXTS = [[600, 5, 6, 7, 601], [600, 8, 601]]


def guidance(text=2.0, image=1.0, low=0.4, high=1.0, renorm_min=0.0):
    return Guidance(*(jnp.float32(x) for x in (text, image, low, high, renorm_min)))


def context(guided=True, image_rows=False, texts=TEXTS):
    pipe = small_pipe()
    return image_context(pipe.model, pipe.params, texts, GRID, guided=guided, image_rows=image_rows)


def noise(seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(B, G, C)), jnp.float32)


def advance(x, used, grid, first=0, last=None, guide_by=None, **options):
    settings_ = {"guided": True, "image_branch": "none", "renorm": "global"} | options
    pipe = small_pipe()
    last = len(grid) - 1 if last is None else last
    return sample_latents(
        pipe.model, pipe.params, used, x, jnp.asarray(grid, jnp.float32), jnp.int32(first),
        jnp.int32(last), guide_by or guidance(), **settings_,
    )  # fmt: skip


def sample(x, used, grid, first=0, last=None, guide_by=None, **options):
    """Latents from latents."""
    state = initial_state(x, options.get("solver", "euler"))
    return advance(state, used, grid, first, last, guide_by, **options).latents


# ------------------------------------------------------------------------- guide


def stated(v, v_text, v_image, s_text, s_image, renorm, renorm_min):
    """REFERENCE section 2, one image at a time, in float64."""

    def factor(guided, axis):
        size = np.linalg.norm(v, axis=axis, keepdims=True)
        return np.clip(size / (np.linalg.norm(guided, axis=axis, keepdims=True) + 1e-8),
                       renorm_min, 1)  # fmt: skip

    guided = v_text + s_text * (v - v_text)
    if renorm == "text_channel":
        guided = guided * factor(guided, -1)
    if v_image is not None:
        guided = v_image + s_image * (guided - v_image)
    if renorm == "global":
        guided = guided * factor(guided, None)
    elif renorm == "channel":
        guided = guided * factor(guided, -1)
    return guided


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**31),
    rows=st.integers(1, 3),
    spread=st.floats(0.01, 100),
    s_text=st.floats(1, 8),
    s_image=st.floats(1, 4),
    renorm=st.sampled_from(["global", "channel", "text_channel"]),
    renorm_min=st.floats(0, 1),
    with_image=st.booleans(),
)
def test_guide_as_stated(seed, rows, spread, s_text, s_image, renorm, renorm_min, with_image):
    rng = np.random.default_rng(seed)
    # Rows of very different size: a norm over the batch would show.
    v, v_text, v_image = rng.normal(size=(3, rows, 4, 3)) * spread ** np.arange(rows)[:, None, None]
    ours = guide(
        *(jnp.asarray(x, jnp.float32) for x in (v, v_text)),
        jnp.asarray(v_image, jnp.float32) if with_image else None,
        guidance(s_text, s_image, renorm_min=renorm_min),
        renorm,
    )
    for row in range(rows):
        expected = stated(
            v[row], v_text[row], v_image[row] if with_image else None,
            s_text, s_image, renorm, renorm_min,
        )  # fmt: skip
        scale = np.abs(expected).max() + np.abs(v[row]).max()
        np.testing.assert_allclose(ours[row], expected, rtol=0, atol=2e-5 * scale)


def test_guide_of_zero_velocities_is_zero():
    zero = jnp.zeros((1, 4, 3))
    for renorm in ("global", "channel", "text_channel"):
        assert np.array_equal(guide(zero, zero, zero, guidance(3, 2), renorm), zero)


def test_guide_never_lengthens():
    v, v_text = np.random.default_rng(0).normal(size=(2, 2, 5, 3)).astype(np.float32)
    guided = guide(v, v_text, None, guidance(7.0), "global")
    norms = np.linalg.norm(np.asarray(guided), axis=(1, 2))
    assert (norms <= np.linalg.norm(v, axis=(1, 2)) * (1 + 1e-5)).all()


# ------------------------------------------------------------------------- the loop


def euler(x, used, grid, inside, guide_by=None):
    """The loop written out; `inside(t)` says where guidance acts."""
    pipe = small_pipe()
    guide_by = guide_by or guidance()
    plain = context(guided=False)
    velocity = jax.jit(predict_velocity, static_argnames=("model",))
    for t, following in itertools.pairwise(grid):
        t = jnp.float32(t)
        if inside(t):
            v = velocity(pipe.model, pipe.params, used, jnp.tile(x, (2, 1, 1)), t)
            v = guide(v[:B], v[B:], None, guide_by, "global")
        else:
            v = velocity(pipe.model, pipe.params, plain, x, t)
        x = x - v * (t - jnp.float32(following))
    return x


@pytest.mark.parametrize(
    ("low", "high", "acts_at"),
    [(0.5, 1.0, {1.0}), (0.25, 0.5, {0.5}), (0.25, 0.75, {0.5}), (0.0, 1.0, {1.0, 0.5, 0.25}),
     (0.9, 0.95, set()), (0.5, 0.25, set())],
)  # fmt: skip
def test_interval_is_low_exclusive_and_high_inclusive(low, high, acts_at):
    grid, x, used = [1.0, 0.5, 0.25, 0.0], noise(), context()
    ours = sample(x, used, grid, guide_by=guidance(3.0, low=low, high=high))
    expected = euler(x, used, grid, lambda t: float(t) in acts_at, guidance(3.0))
    np.testing.assert_allclose(ours, expected, atol=2e-5)
    # The intervals do tell: every other set of steps gives other numbers.
    other = euler(
        x, used, grid, lambda t: (float(t) in acts_at) != (float(t) == 0.5), guidance(3.0)
    )
    assert np.abs(np.asarray(ours) - other).max() > 1e-3


def test_unguided_ignores_scales_and_other_rows():
    grid, x = timestep_grid(4, 3.0), noise()
    alone = sample(x, context(guided=False), grid, guided=False)
    np.testing.assert_allclose(
        alone, sample(x, context(), grid, guided=False, guide_by=guidance(9.0)), atol=1e-6
    )


def test_scale_one_is_the_conditional_velocity():
    grid, x = timestep_grid(4, 3.0), noise()
    np.testing.assert_allclose(
        sample(x, context(), grid, guide_by=guidance(1.0, low=0.0)),
        sample(x, context(guided=False), grid, guided=False),
        atol=1e-5,
    )


def test_image_branch_conditional_equals_rows_of_the_same_context():
    grid, x, settings_ = timestep_grid(4, 2.0), noise(), guidance(3.0, 1.7, low=0.2)
    short = sample(x, context(), grid, guide_by=settings_, image_branch="conditional")
    full = sample(x, context(image_rows=True), grid, guide_by=settings_, image_branch="rows")
    np.testing.assert_allclose(short, full, atol=1e-5)
    without = sample(x, context(), grid, guide_by=settings_, image_branch="none")
    assert np.abs(np.asarray(short) - without).max() > 1e-3


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("renorm", ["global", "text_channel"])
def test_pieces_equal_the_whole_run_bit_for_bit(renorm, solver):
    grid, used, options = timestep_grid(7, 3.0), context(), {"renorm": renorm, "solver": solver}
    whole = sample(noise(), used, grid, **options)
    compiled = sample_latents._cache_size()
    for cuts in ([0, 1, 2, 3, 4, 5, 6], [0, 2, 2, 6]):
        state = initial_state(noise(), solver)
        for first, last in itertools.pairwise(cuts):
            state = advance(state, used, grid, first, last, **options)
        np.testing.assert_array_equal(state.latents, whole)
    # The same program, also with other scales, limits and times.
    sample(noise(1), used, timestep_grid(7, 1.0), guide_by=guidance(5, 2, 0.1, 0.8, 0.5),
           **options)  # fmt: skip
    assert sample_latents._cache_size() == compiled


def two_step(x, grid, velocity, jumps, corrected):
    """AB2 or PEC written out in float64; a step of `jumps` starts anew."""
    before = None
    for i, (t, following) in enumerate(itertools.pairwise(grid)):
        h, v = following - t, np.asarray(velocity(x, t), np.float64)
        if before is not None and i not in jumps:
            x_before, v_before, h_before = before
            if corrected:
                x = x_before + h_before / 2 * (v_before + v)
            slope = v + h / (2 * h_before) * (v - v_before)
        else:
            slope = v
        before = x, v, h
        x = x + h * slope
    return x


@pytest.mark.parametrize("solver", ["ab2", "pec"])
def test_two_step_solvers_as_stated(solver):
    """Against the loop written out, on steps of varying length, with a jump where guidance ends."""
    pipe, plain, used = small_pipe(), context(guided=False), context()
    compiled = jax.jit(predict_velocity, static_argnames=("model",))

    def velocity(x, t):
        x = jnp.asarray(x, jnp.float32)
        if t <= np.float32(0.4):
            return compiled(pipe.model, pipe.params, plain, x, jnp.float32(t))
        v = compiled(pipe.model, pipe.params, used, jnp.tile(x, (2, 1, 1)), jnp.float32(t))
        return guide(v[:B], v[B:], None, guidance(3.0), "global")

    grid = timestep_grid_through(7, 3.0, (0.4, 1.0))
    jump = int(np.flatnonzero(grid == np.float32(0.4))[0])
    expected = two_step(
        np.asarray(noise(), np.float64), grid.astype(np.float64), velocity, {jump}, solver == "pec"
    )
    ours = sample(noise(), used, grid, guide_by=guidance(3.0), solver=solver)
    np.testing.assert_allclose(ours, expected, atol=5e-5)
    without = two_step(
        np.asarray(noise(), np.float64), grid.astype(np.float64), velocity, set(), solver == "pec"
    )
    assert np.abs(np.asarray(ours) - without).max() > 1e-3


@pytest.mark.parametrize("solver", ["ab2", "pec"])
def test_two_step_solvers_have_the_second_order(solver):
    used = context(guided=False)

    def run(steps, solver):
        grid = timestep_grid_through(steps, 1.0, ())
        return np.asarray(sample(noise(), used, grid, guided=False, solver=solver))

    exact = run(1000, "pec")
    errors = {
        (name, steps): np.sqrt(np.mean((run(steps, name) - exact) ** 2))
        for name in (solver, "euler")
        for steps in (20, 40)
    }
    assert errors[solver, 20] > 3 * errors[solver, 40]
    assert errors["euler", 20] < 2.5 * errors["euler", 40]
    assert errors[solver, 20] < 0.5 * errors["euler", 20]


def test_no_steps_leave_the_latents():
    np.testing.assert_array_equal(sample(noise(), context(), timestep_grid(7, 3.0), 3, 3), noise())


def test_velocity_does_not_depend_on_neighbours():
    pipe, used = small_pipe(), context(guided=False)
    velocity = jax.jit(predict_velocity, static_argnames=("model",))
    both = velocity(pipe.model, pipe.params, used, noise(), jnp.float32(0.7))
    for row in range(B):
        alone = context(guided=False, texts=TEXTS[row : row + 1])
        one = velocity(pipe.model, pipe.params, alone, noise()[row : row + 1], jnp.float32(0.7))
        np.testing.assert_allclose(one[0], both[row], atol=1e-5)


# ------------------------------------------------------------------------- no dense mask


def materialised_booleans(hlo: str) -> list[tuple[int, ...]]:
    """Shapes of the boolean arrays that optimised HLO writes to memory: not those in fusions."""
    shapes = []
    fused = set(re.findall(r"fusion\(.*?calls=%?([\w.\-]+)", hlo))
    name = ""
    for line in hlo.splitlines():
        header = re.match(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        if header:
            name = header.group(1)
        elif name not in fused and (
            found := re.match(r"^\s+(?:ROOT )?%?\S+ = pred\[([\d,]*)\]", line)
        ):
            shapes.append(tuple(int(n) for n in found.group(1).split(",") if n))
    return shapes


@pytest.mark.extended
def test_sampling_holds_no_mask_over_queries(monkeypatch):
    """The rule is never evaluated, and what is valid is kept as [rows, slots] alone."""
    used = context()

    def never(*_):
        raise AssertionError("the mask rule was evaluated")

    monkeypatch.setattr(key_blocks, "may_attend", never)
    pipe, grid = small_pipe(), timestep_grid(11, 3.0)
    lowered = sample_latents.lower(
        pipe.model, pipe.params, used, initial_state(noise()), jnp.asarray(grid), jnp.int32(0),
        jnp.int32(10),
        guidance(), guided=True, image_branch="none", renorm="global",
    )  # fmt: skip
    queries, slots = G + 2, used.cache.capacity
    shapes = materialised_booleans(lowered.compile().as_text())
    assert (2 * B, slots) in shapes or (B, slots) in shapes  # the parser does find arrays
    assert [s for s in shapes if np.prod(s) >= queries * min(slots, queries)] == []

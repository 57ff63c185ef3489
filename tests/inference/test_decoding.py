"""The decoding loop and the draw of one token."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.toy_pipelines import SMALL, small_pipe
from unix_jax.inference import decoding
from unix_jax.inference.context import as_batch, prefill
from unix_jax.models.unix import UniX
from unix_jax.preprocessing.layout import TextSplit, lay_out

sample_token = jax.jit(decoding.sample_token)
TEXTS = [[600, 5, 6, 7, 601], [600, 601], [600, *range(40), 601]]
ONE = jnp.float32(1)

# ------------------------------------------------------------------------- one token


def keys(seed: int, rows: int) -> jax.Array:
    return jax.random.split(jax.random.key(seed), rows)


def draw(logits, temperature=1.0, top_p=1.0, count=4000):
    """`count` independent draws from one row of logits."""
    rows = jnp.tile(jnp.asarray(logits, jnp.float32), (count, 1))
    found = sample_token(rows, keys(0, count), jnp.float32(temperature), jnp.float32(top_p))
    return np.bincount(np.asarray(found), minlength=len(logits)) / count


def test_frequencies_are_the_softmax():
    logits = np.array([1.0, -0.5, 0.3, 2.0])
    for temperature in (0.5, 1.0, 3.0):
        expected = np.exp(logits / temperature)
        expected /= expected.sum()
        np.testing.assert_allclose(draw(logits, temperature), expected, atol=0.03)


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [(1.0, [0, 1, 2, 3]), (0.96, [0, 1, 2, 3]), (0.94, [0, 1, 3]), (0.79, [1, 3]), (0.5, [3]),
     (0.01, [3])],
)  # fmt: skip
def test_nucleus_is_the_smallest_set_of_that_mass(top_p, kept):
    probabilities = np.array([0.15, 0.3, 0.05, 0.5])
    frequencies = draw(np.log(probabilities), top_p=top_p)
    assert np.flatnonzero(frequencies).tolist() == kept
    expected = np.where(np.isin(np.arange(4), kept), probabilities, 0)
    np.testing.assert_allclose(frequencies, expected / expected.sum(), atol=0.03)


row_of_logits = st.lists(st.floats(-30, 30, width=32), min_size=7, max_size=7)


@settings(deadline=None, max_examples=60)
@given(row_of_logits, st.integers(0, 2**31), st.floats(0.1, 10), st.floats(1e-3, 1))
def test_a_draw_lies_in_the_nucleus(values, seed, temperature, top_p):
    logits = np.array(values, np.float32)
    (found,) = np.asarray(
        sample_token(
            jnp.asarray(logits)[None], keys(seed, 1), jnp.float32(temperature), jnp.float32(top_p)
        )
    )
    scaled = logits.astype(np.float64) / temperature
    probabilities = np.exp(scaled - scaled.max())
    probabilities /= probabilities.sum()
    more_likely = probabilities[probabilities > probabilities[found] * (1 + 1e-5)].sum()
    assert more_likely < top_p + 1e-5


@settings(deadline=None, max_examples=40)
@given(row_of_logits, st.integers(0, 2**31), st.sampled_from([1e-30, 1e-6]))
def test_vanishing_top_p_is_greedy(values, seed, top_p):
    # Ties too: the first of equals, as argmax takes it.
    logits = jnp.asarray(values, jnp.float32)[None]
    found = sample_token(logits, keys(seed, 1), ONE, jnp.float32(top_p))
    assert int(found[0]) == int(jnp.argmax(logits[0]))


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**31), st.integers(3, 4))
def test_a_draw_depends_on_its_own_row_alone(seed, rows):
    logits = jnp.asarray(np.random.default_rng(seed).normal(size=(rows, 9)) * 3, jnp.float32)
    key = keys(seed, rows)
    together = sample_token(logits, key, ONE, jnp.float32(0.9))
    for row in range(rows):
        alone = sample_token(logits[row : row + 1], key[row : row + 1], ONE, jnp.float32(0.9))
        assert int(alone[0]) == int(together[row])


def test_impossible_tokens_are_never_drawn():
    frequencies = draw([0.0, -np.inf, 1.0, -1e30])
    assert np.flatnonzero(frequencies).tolist() == [0, 2]


# ------------------------------------------------------------------------- the loop


def begin(capacity=160, buffer=64, texts=TEXTS, eos=601):
    pipe = small_pipe()
    layout = lay_out([[[TextSplit(ids)]] for ids in texts], SMALL, und_length=48)
    cache, _ = prefill(pipe.model, pipe.params, as_batch(layout), capacity)
    return decoding.start(cache, layout.next_position, 600, eos, buffer)


def run(state, limit, eos=601, greedy=True, temperature=1.0, seeds=None, top_p=1.0):
    pipe = small_pipe()
    special = dataclasses.replace(SMALL.special_tokens, eos=eos)
    model = UniX(
        dataclasses.replace(SMALL, special_tokens=special), scan_layers=pipe.model.scan_layers
    )
    return decoding.decode_until(
        model, pipe.params, state, jnp.int32(limit),
        jax.vmap(jax.random.key)(jnp.arange(3) if seeds is None else jnp.asarray(seeds)),
        jnp.float32(temperature), jnp.float32(top_p), greedy=greedy,
    )  # fmt: skip


@jax.jit
def next_token(batch, last):
    pipe = small_pipe()
    hidden, _ = pipe.model.apply({"params": pipe.params}, batch)
    return jnp.argmax(
        pipe.model.apply({"params": pipe.params}, hidden[0, last], method=UniX.logits)
    )


def reference(ids, count):
    """Greedy tokens by running the whole growing sequence again for each of them."""
    new = [600]
    for _ in range(count):
        layout = lay_out([[[TextSplit([*ids, *new])]]], SMALL, und_length=64)
        new.append(int(next_token(as_batch(layout), len(ids) + len(new) - 1)))
    return new[1:]


def test_greedy_equals_running_the_whole_sequence_each_time():
    tokens = np.asarray(run(begin(eos=-1), 12, eos=-1).tokens)[:, :12].tolist()
    for ids, row in zip(TEXTS, tokens, strict=True):
        assert row == reference(ids, 12)


def test_limit_and_buffer():
    state = run(begin(eos=-1), 5, eos=-1)
    assert int(state.step) == 5
    assert int(state.cache.index) == 48 + 5
    assert (np.asarray(state.tokens)[:, 5:] == -1).all()
    assert np.asarray(state.position).tolist() == [len(ids) + 5 for ids in TEXTS]
    assert not np.asarray(state.done).any()
    again = run(state, 5, eos=-1)
    assert int(again.step) == 5


@pytest.mark.parametrize("greedy", [True, False])
def test_pieces_equal_one_run(greedy):
    whole = np.asarray(run(begin(eos=-1), 20, -1, greedy, 1.3).tokens)
    compiled = decoding.decode_until._cache_size()
    state = begin(eos=-1)
    for limit in (1, 2, 3, 10, 11, 20):
        state = run(state, limit, -1, greedy, 1.3)
    np.testing.assert_array_equal(state.tokens, whole)
    assert decoding.decode_until._cache_size() == compiled


@pytest.mark.filterwarnings("error")
def test_growing_in_the_middle_changes_nothing():
    whole = np.asarray(run(begin(eos=-1), 20, -1, False).tokens)
    state = run(begin(capacity=48 + 7, eos=-1), 7, -1, False)
    state = run(decoding.grow(state, 160), 20, -1, False)
    np.testing.assert_array_equal(state.tokens, whole)


def test_rows_stop_at_their_own_eos():
    free = np.asarray(run(begin(eos=-1), 30, eos=-1).tokens)[:, :30]
    # A token that ends at least one row early: it becomes the eos.
    firsts = {t: [np.flatnonzero(row == t)[:1].tolist() for row in free] for t in np.unique(free)}
    eos = max(firsts, key=lambda t: (len({tuple(f) for f in firsts[t]}), -t))
    ends = firsts[eos]
    assert len({tuple(e) for e in ends}) > 1, "rows that end at different steps"
    state = run(begin(eos=int(eos)), 30, eos=int(eos))
    for row, end, expected in zip(np.asarray(state.tokens), ends, free, strict=True):
        stop = end[0] if end else 30
        np.testing.assert_array_equal(row[:stop], expected[:stop])
        assert (row[stop:] == eos).all()
    assert np.asarray(state.done).tolist() == [bool(e) for e in ends]
    if all(ends):
        assert int(state.step) == max(e[0] for e in ends) + 1


def test_all_rows_done_ends_the_loop():
    free = np.asarray(run(begin(texts=TEXTS[:1] * 3, eos=-1), 30, eos=-1).tokens)[0, :30]
    eos = int(free[3])
    end = int(np.flatnonzero(free == eos)[0])
    state = run(begin(texts=TEXTS[:1] * 3, eos=eos), 30, eos=eos)
    assert int(state.step) == end + 1
    assert np.asarray(state.done).all()


def test_sampling_depends_on_the_seed_alone():
    tokens = np.asarray(
        run(begin(texts=TEXTS[:1] * 3, eos=-1), 16, -1, False, 2.0, [4, 7, 4]).tokens
    )
    np.testing.assert_array_equal(tokens[0], tokens[2])
    assert (tokens[0] != tokens[1]).any()


def test_vanishing_top_p_decodes_greedily():
    greedy = np.asarray(run(begin(eos=-1), 16, -1).tokens)
    np.testing.assert_array_equal(run(begin(eos=-1), 16, -1, False, 1.0, top_p=1e-9).tokens, greedy)

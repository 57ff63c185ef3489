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


@jax.jit
def sample_token(logits, keys, temperature, top_p):
    """One temperature and one top_p for all rows."""
    rows = logits.shape[0]
    return decoding.sample_token(logits, keys, jnp.full(rows, temperature), jnp.full(rows, top_p))


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


def new_rows(texts, count=64, length=48, capacity=None, temperature=0.0, top_p=1.0, seeds=None):
    pipe, rows = small_pipe(), len(texts)
    layout = lay_out([[[TextSplit(ids)]] for ids in texts], SMALL, und_length=length)
    cache, _ = prefill(pipe.model, pipe.params, as_batch(layout), capacity or length)
    seeds = jnp.arange(rows) if seeds is None else jnp.asarray(seeds)
    return decoding.NewRows(
        cache, jnp.asarray(layout.next_position), jax.vmap(jax.random.key)(seeds),
        jnp.full(rows, count), jnp.full(rows, temperature), jnp.full(rows, top_p),
        jnp.zeros((rows, 0), jnp.int32),
    )  # fmt: skip


def begin(capacity=160, buffer=64, texts=TEXTS, eos=601, **options):
    return decoding.start(
        new_rows(texts, buffer, capacity=capacity, **options),
        context=48, bos=600, eos=eos, buffer=buffer,
    )  # fmt: skip


def run(state, steps, eos=601, choice="greedy", ended=3):
    pipe = small_pipe()
    special = dataclasses.replace(SMALL.special_tokens, eos=eos)
    model = UniX(
        dataclasses.replace(SMALL, special_tokens=special), scan_layers=pipe.model.scan_layers
    )
    return decoding.decode_until(
        model, pipe.params, state, jnp.int32(steps), jnp.int32(ended), choice=choice
    )


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


def test_steps_and_buffer():
    state = run(begin(eos=-1), 5, eos=-1)
    assert np.asarray(state.count).tolist() == [5, 5, 5]
    assert int(state.cache.index) == 48 + 5
    assert (np.asarray(state.tokens)[:, 5:] == -1).all()
    assert np.asarray(state.position).tolist() == [len(ids) + 5 for ids in TEXTS]
    assert not np.asarray(state.done).any()
    again = run(state, 0, eos=-1)
    assert np.asarray(again.count).tolist() == [5, 5, 5]


def test_each_row_ends_at_its_limit():
    state = begin(eos=-1).replace(limit=jnp.array([2, 7, 4]))
    state = run(state, 30, eos=-1)
    assert np.asarray(state.count).tolist() == [2, 7, 4]
    assert np.asarray(state.done).all()
    whole = np.asarray(run(begin(eos=-1), 7, eos=-1).tokens)
    for row, count in enumerate((2, 7, 4)):
        assert np.asarray(state.tokens)[row, :count].tolist() == whole[row, :count].tolist()
        assert (np.asarray(state.tokens)[row, count:] == -1).all()


@pytest.mark.parametrize("choice", ["greedy", "sample"])
def test_pieces_equal_one_run(choice):
    temperature = 0.0 if choice == "greedy" else 1.3
    whole = np.asarray(run(begin(eos=-1, temperature=temperature), 20, -1, choice).tokens)
    compiled = decoding.decode_until._cache_size()
    state = begin(eos=-1, temperature=temperature)
    for steps in (1, 1, 1, 7, 1, 9):
        state = run(state, steps, -1, choice)
    np.testing.assert_array_equal(state.tokens, whole)
    assert decoding.decode_until._cache_size() == compiled


@pytest.mark.filterwarnings("error")
def test_growing_in_the_middle_changes_nothing():
    whole = np.asarray(run(begin(eos=-1, temperature=1.0), 20, -1, "sample").tokens)
    state = run(begin(capacity=48 + 7, eos=-1, temperature=1.0), 50, -1, "sample")
    assert bool(state.full)
    assert np.asarray(state.count).tolist() == [7, 7, 7]
    state = decoding.resize(state, context=52, ring=40, buffer=128, eos=-1)
    assert state.tokens.shape == (3, 128)
    np.testing.assert_array_equal(run(state, 13, -1, "sample").tokens[:, :64], whole)


def test_a_smaller_ring_with_the_slots_that_rows_need_changes_nothing():
    whole = np.asarray(run(begin(eos=-1, temperature=1.0), 20, -1, "sample").tokens)
    state = run(begin(capacity=48 + 40, eos=-1, temperature=1.0), 9, -1, "sample")
    assert int(state.needed) == 10
    state = decoding.resize(state, context=48, ring=10, buffer=64, eos=-1)
    assert state.cache.capacity == 58
    assert not bool(state.full)
    state = run(state, 13, -1, "sample")
    assert bool(state.full)
    np.testing.assert_array_equal(state.tokens[:, :10], whole[:, :10])
    state = decoding.resize(state, context=48, ring=24, buffer=64, eos=-1)
    np.testing.assert_array_equal(run(state, 10, -1, "sample").tokens, whole)


def test_rows_stop_at_their_own_eos():
    free = np.asarray(run(begin(eos=-1), 30, eos=-1).tokens)[:, :30]
    # A token that ends at least one row early: it becomes the eos.
    firsts = {t: [np.flatnonzero(row == t)[:1].tolist() for row in free] for t in np.unique(free)}
    eos = max(firsts, key=lambda t: (len({tuple(f) for f in firsts[t]}), -t))
    ends = firsts[eos]
    assert len({tuple(e) for e in ends}) > 1, "rows that end at different steps"
    state = run(begin(eos=int(eos)), 30, eos=int(eos))
    for row, count, end, expected in zip(
        np.asarray(state.tokens), np.asarray(state.count), ends, free, strict=True
    ):
        stop = end[0] if end else 30
        np.testing.assert_array_equal(row[:stop], expected[:stop])
        assert (row[stop:] == eos).all()
        assert count == min(stop + 1, 30)
    assert np.asarray(state.done).tolist() == [bool(e) for e in ends]


def test_all_rows_done_ends_the_loop():
    free = np.asarray(run(begin(texts=TEXTS[:1] * 3, eos=-1), 30, eos=-1).tokens)[0, :30]
    eos = int(free[3])
    end = int(np.flatnonzero(free == eos)[0])
    state = run(begin(texts=TEXTS[:1] * 3, eos=eos), 30, eos=eos)
    assert int(state.cache.index) == 48 + end + 1
    assert np.asarray(state.done).all()


def test_sampling_depends_on_the_seed_alone():
    state = begin(texts=TEXTS[:1] * 3, eos=-1, temperature=2.0, seeds=[4, 7, 4])
    tokens = np.asarray(run(state, 16, -1, "sample").tokens)
    np.testing.assert_array_equal(tokens[0], tokens[2])
    assert (tokens[0] != tokens[1]).any()


def test_vanishing_top_p_decodes_greedily():
    greedy = np.asarray(run(begin(eos=-1), 16, -1).tokens)
    state = begin(eos=-1, temperature=1.0, top_p=1e-9)
    np.testing.assert_array_equal(run(state, 16, -1, "nucleus").tokens, greedy)


def test_a_rows_tokens_are_those_of_every_program_that_supports_it():
    """Rows with other settings change the program, but not the tokens."""
    rows = {"temperature": jnp.array([0.0, 1.5, 1.5]), "top_p": jnp.array([1.0, 1.0, 0.5])}
    state = begin(texts=TEXTS[:1] * 3, eos=-1, seeds=[4, 4, 4]).replace(**rows)
    mixed = np.asarray(run(state, 16, -1, "nucleus").tokens)
    same = TEXTS[:1] * 3
    greedy = np.asarray(run(begin(texts=same, eos=-1), 16, -1).tokens)
    sampled = begin(texts=same, eos=-1, seeds=[4, 4, 4], temperature=1.5)
    sampled = np.asarray(run(sampled, 16, -1, "sample").tokens)
    np.testing.assert_array_equal(mixed[0], greedy[0])
    np.testing.assert_array_equal(mixed[1], sampled[1])
    assert (mixed[2] != mixed[1]).any()


# ------------------------------------------------------------------------- replaced rows


def test_replaced_rows_equal_rows_alone():
    """Rows are replaced while others continue, over several turns of a small ring."""
    limits = [3, 9, 5, 4, 7, 2, 8, 6, 1, 9, 5]
    texts = [[600, i, *TEXTS[i % 3][1:]] for i in range(len(limits))]
    seeds = list(range(10, 10 + len(limits)))
    options = {"length": 52, "temperature": 1.5}
    expected = []
    for text, limit, seed in zip(texts, limits, seeds, strict=True):
        rows = new_rows([text] * 3, limit, capacity=52 + 16, seeds=[seed] * 3, **options)
        alone = decoding.start(rows, context=52, bos=600, eos=-1, buffer=64)
        expected.append(np.asarray(run(alone, 60, -1, "sample").tokens)[0, :limit].tolist())
    first = new_rows(texts[:3], capacity=52 + 10, seeds=seeds[:3], **options)
    state = decoding.start(first, context=52, bos=600, eos=-1, buffer=64)
    state = state.replace(limit=jnp.array(limits[:3]))
    held, waiting, found = [0, 1, 2], list(range(3, len(limits))), {}
    while any(index is not None for index in held):
        state = run(state, 60, -1, "sample", ended=1 + held.count(None))
        assert not bool(state.full)
        for row in np.flatnonzero(np.asarray(state.done)):
            if held[row] is not None:
                count = int(state.count[row])
                found[held[row]] = np.asarray(state.tokens)[row, :count].tolist()
                held[row] = None
            if waiting:
                held[row] = waiting.pop(0)
                index = held[row]
                # The second of the two new rows is not used.
                new = new_rows(
                    [texts[index], texts[0]], limits[index], seeds=[seeds[index], 0], **options
                )
                state = decoding.replace_rows(
                    state, jnp.array([row, row]), jnp.int32(1), new, bos=600, eos=-1
                )
    assert [found[i] for i in range(len(limits))] == expected
    assert int(state.cache.index) <= 52 + 10

"""The planner: what a plan must hold whatever the lengths, and that a state is all it needs."""

import dataclasses
import json
import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unix_jax.data.config import DataConfig
from unix_jax.data.packing import Planner, permutation
from unix_jax.data.samples import Cost, Skip
from unix_jax.errors import DataError

DATA = DataConfig(rows=3, und_tokens=20, vit_images=3, vae_images=2, epochs=1, open_rows=4)


class Costs:
    """Samples that are costs only; each epoch adds to the und tokens."""

    def __init__(self, costs, per_epoch=1):
        self.costs, self.per_epoch = costs, per_epoch

    def __len__(self):
        return len(self.costs)

    def key(self, index):
        return f"sample {index}"

    def cost(self, index, epoch):
        cost = self.costs[index]
        return (
            cost if isinstance(cost, Skip) else cost._replace(und=cost.und + self.per_epoch * epoch)
        )


def steps_of(planner):
    return list(iter(planner.next_step, None))


costs = st.builds(Cost, st.integers(1, 24), st.integers(0, 3), st.integers(0, 2))
entries = st.one_of(costs, costs, st.sampled_from([Skip("no_text"), Skip("no_image")]))
usable = st.builds(Cost, st.integers(1, 20), st.integers(0, 3), st.integers(0, 2))
plans = st.tuples(usable, st.lists(entries, max_size=40)).map(lambda p: [p[0], *p[1]])
settings_of = st.builds(
    DataConfig,
    rows=st.integers(1, 4),
    und_tokens=st.just(20),
    vit_images=st.just(3),
    vae_images=st.just(2),
    seed=st.integers(0, 2**32 - 1),
    epochs=st.integers(1, 3),
    open_rows=st.integers(1, 6),
    shuffle=st.booleans(),
)


@given(plans, settings_of)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_every_usable_sample_once_an_epoch_and_no_row_too_full(listed, data):
    samples = Costs(listed, per_epoch=0)
    planner = Planner(samples, data)
    steps = steps_of(planner)
    assert all(len(step) == data.rows for step in steps)
    rows = [row for step in steps for row in step]
    capacity = Cost(data.und_tokens, data.vit_images, data.vae_images)
    for row in rows:
        total = np.array([samples.cost(*planner.locate(i)) for i in row.indices]).reshape(-1, 3)
        assert tuple(total.sum(axis=0)) == row.cost
        assert row.cost.fits(capacity)
    # Only the last step has empty rows, at its end.
    assert all(row.indices for step in steps[:-1] for row in step)
    filled = [bool(row.indices) for row in rows]
    assert filled == sorted(filled, reverse=True)
    placed = [planner.locate(i) for row in rows for i in row.indices]
    fits = [i for i, c in enumerate(listed) if isinstance(c, Cost) and c.fits(capacity)]
    assert sorted(placed) == sorted((i, e) for i in fits for e in range(data.epochs))
    skipped = planner.skipped
    assert sum(skipped.values()) == data.epochs * (len(listed) - len(fits))
    for reason in ("no_text", "no_image"):
        assert skipped[reason] == data.epochs * listed.count(Skip(reason))
    assert planner.epoch == data.epochs


@given(st.lists(usable, min_size=1, max_size=80), settings_of)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_padding_is_bounded(listed, data):
    """Rows are on average at least half full, those that were open at the end excepted.

    A row is closed when it is full, or when a sample did not fit it. That sample then opened the
    one row for which this row was closed, so both together hold more than one row can.
    """
    samples = Costs(listed, per_epoch=0)
    planner = Planner(samples, data)
    used = [row for step in steps_of(planner) for row in step if row.indices]
    capacity = (data.und_tokens, data.vit_images, data.vae_images)
    shares = np.array([row.cost for row in used]) / capacity
    assert len(used) <= 2 * shares.sum() + data.open_rows


@given(plans, settings_of, st.data())
@settings(max_examples=100, deadline=None, derandomize=True)
def test_restored_anywhere_it_goes_on_alike(listed, data, choice):
    planner = Planner(Costs(listed, per_epoch=0), data)
    states, steps = [planner.state()], []
    while (step := planner.next_step()) is not None:
        steps.append(step)
        states.append(planner.state())
    at = choice.draw(st.integers(0, len(steps)))
    state = json.loads(json.dumps(states[at]))
    again = Planner(Costs(listed, per_epoch=0), data)
    for _ in range(choice.draw(st.integers(0, 2))):
        again.next_step()  # what a restored planner did before must not matter
    again.restore(state)
    assert again.state() == states[at]
    assert steps_of(again) == steps[at:]
    assert (again.digest, again.skipped, again.steps) == (
        planner.digest,
        planner.skipped,
        planner.steps,
    )


@given(plans, settings_of, st.integers(1, 5), st.data())
@settings(max_examples=50, deadline=None, derandomize=True)
def test_rows_may_change_between_runs(listed, data, rows, choice):
    """Also with another number of rows a step, no sample is lost or repeated."""
    first = Planner(Costs(listed, per_epoch=0), data)
    steps = [step for _ in range(choice.draw(st.integers(0, 3))) if (step := first.next_step())]
    second = Planner(Costs(listed, per_epoch=0), dataclasses.replace(data, rows=rows))
    second.restore(first.state())
    whole = Planner(Costs(listed, per_epoch=0), data)

    def rows_of(steps):
        return [row for step in steps for row in step if row.indices]

    assert rows_of(steps) + rows_of(steps_of(second)) == rows_of(steps_of(whole))


def test_order_follows_seed_and_epoch():
    def order(seed, shuffle=True):
        data = dataclasses.replace(DATA, seed=seed, epochs=2, shuffle=shuffle)
        planner = Planner(Costs([Cost(1, 0, 0)] * 50), data)
        return [planner.locate(i)[0] for i in range(100)]

    assert order(3) == order(3)
    assert order(3) != order(4)
    assert sorted(order(3)[:50]) == sorted(order(3)[50:]) == list(range(50))
    assert order(3)[:50] != order(3)[50:]
    assert order(3, shuffle=False) == [*range(50), *range(50)]
    # Pinned: another numpy must not change the order of a resumed run.
    assert permutation(8, 3, 1).tolist() == [4, 1, 6, 7, 5, 0, 3, 2]


def test_endless_rows_cross_epochs():
    data = dataclasses.replace(DATA, epochs=None, open_rows=1, rows=1, shuffle=False)
    planner = Planner(Costs([Cost(6, 0, 0)] * 5, per_epoch=0), data)
    assert [planner.next_step()[0].indices for _ in range(3)] == [(0, 1, 2), (3, 4, 5), (6, 7, 8)]
    assert planner.epoch == 2.0  # sample 9 is in the open row


def test_first_fit_by_hand():
    """[12] [13] open; 8 goes into the first; 9 fits none, so the fullest is closed."""
    data = dataclasses.replace(DATA, rows=1, open_rows=2, shuffle=False)
    sizes = [12, 13, 5, 9, 3, 2, 2]
    planner = Planner(Costs([Cost(n, 0, 0) for n in sizes]), data)
    rows = [step[0].indices for step in steps_of(planner)]
    # 5 joins 12 (17), 9 opens a third row and closes it, 3 fills neither but the 13 (16), ...
    assert rows == [(0, 2), (1, 4, 5, 6), (3,)]


def test_a_full_row_is_closed_at_once():
    data = dataclasses.replace(DATA, rows=1, open_rows=6, shuffle=False)
    planner = Planner(Costs([Cost(2, 0, 1)] * 5), data)
    assert [s[0].indices for s in steps_of(planner)] == [(0, 1), (2, 3), (4,)]


def test_restoring_another_plan_is_an_error():
    listed = [Cost(3, 0, 0)] * 40
    planner = Planner(Costs(listed), DATA)
    planner.next_step()
    state = planner.state()
    for changed in ({"seed": 5}, {"und_tokens": 30}, {"shuffle": False}):
        other = Planner(Costs(listed), dataclasses.replace(DATA, **changed))
        with pytest.raises(DataError, match=r"of another plan: data.\w+: expected .*, found"):
            other.restore(state)
    with pytest.raises(DataError, match=r"data.samples: expected 40, found 39"):
        Planner(Costs(listed[1:]), DATA).restore(state)
    with pytest.raises(DataError, match=r"sample .* no longer fits its row"):
        Planner(Costs([Cost(12, 1, 0)] * 40), DATA).restore(state)


@pytest.mark.parametrize("state", [{}, {"plan": {}}, {"open_rows": 3}, [], None, "x"])
def test_restoring_nonsense_is_an_error(state):
    planner = Planner(Costs([Cost(3, 1, 0)]), DATA)
    with pytest.raises(DataError, match=r"data state: expected the state of a loader"):
        planner.restore(state)


def test_the_first_sample_left_out_of_each_kind_is_named():
    listed = [Cost(3, 1, 0), Cost(21, 1, 3), Skip("no_text"), Cost(30, 1, 0), Skip("broken", "row")]
    planner = Planner(Costs(listed), dataclasses.replace(DATA, shuffle=False))
    steps_of(planner)
    assert planner.first_skipped == {
        "too_long": "sample 1: too_long: 21 und tokens but a row has at most 20, "
        "3 VAE images but a row has at most 2",
        "no_text": "sample 2: no_text",
        "broken": "sample 4: broken: row",
    }
    assert planner.skipped == {"too_long": 2, "no_text": 1, "no_image": 0, "broken": 1}


def test_nothing_usable_ends_with_a_reason():
    with pytest.raises(DataError, match=r"expected samples in the source .train., found none"):
        Planner(Costs([]), DATA)
    data = dataclasses.replace(DATA, epochs=None, source="here")
    planner = Planner(Costs([Cost(21, 0, 0), Skip("no_text")]), data)
    with pytest.raises(
        DataError, match=r"found none in a whole epoch of here .train. .*'too_long': 2"
    ):
        planner.next_step()


def test_broken_records_are_logged_and_bounded(caplog):
    listed = [Skip("broken", f"row {i}") if i % 4 == 0 else Cost(5, 1, 0) for i in range(400)]
    lenient = dataclasses.replace(DATA, max_broken_fraction=0.3)
    planner = Planner(Costs(listed), lenient)
    with caplog.at_level(logging.WARNING):
        steps_of(planner)
    assert planner.skipped["broken"] == 100
    # The first 20, the 32nd and the 64th.
    assert len(caplog.records) == 22
    assert "row " in caplog.records[0].getMessage()
    strict = Planner(Costs(listed), dataclasses.replace(lenient, max_broken_fraction=0.2))
    with pytest.raises(
        DataError, match=r"at most 20.0% broken .*, found 41 of 1..; the last ones: row \d+"
    ):
        steps_of(strict)

"""Mixtures: their text, the order of their parts, and that a state is all that a plan needs."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.toy_data import CONFIG, GENERATION, ListSource, records, tokenizer
from unix_jax.data.config import DataConfig
from unix_jax.data.fingerprint import difference, fingerprint
from unix_jax.data.loader import Loader
from unix_jax.data.mixture import MixedRecords, Part, due, open_mixture, parse_mixture, part_seed
from unix_jax.data.packing import Planner
from unix_jax.data.records import Record
from unix_jax.data.samples import Cost, MixedSamples, Skip, record_samples
from unix_jax.data.sources import open_source
from unix_jax.errors import ConfigError, DataError

JOINT = dataclasses.replace(
    GENERATION, task="understanding", und_tokens=160, vit_images=3, prompts=("Report.",)
)


def manifest(directory, count, name):
    directory.mkdir()
    rows = [{"key": f"{name}{i}", "impression": "Normal."} for i in range(count)]
    (directory / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"manifest:{directory}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("manifest:/x/a + b", [(1.0, "understanding", "manifest:/x/a + b")]),
        ("generation:manifest:a", [(1.0, "generation", "manifest:a")]),
        ("here", [(1.0, "understanding", "here")]),
        (
            "0.7*mimic:D?views=PA,AP + 0.3*csv:f.csv",
            [(0.7, "understanding", "mimic:D?views=PA,AP"), (0.3, "understanding", "csv:f.csv")],
        ),
        (
            " 3 * generation:csv:a +  1*understanding:csv:b",
            [(0.75, "generation", "csv:a"), (0.25, "understanding", "csv:b")],
        ),
        (
            "parquet:a*b + parquet:*.parquet",
            [(0.5, "understanding", "parquet:a*b"), (0.5, "understanding", "parquet:*.parquet")],
        ),
    ],
)
def test_texts(text, expected):
    assert parse_mixture(text, "understanding") == tuple(Part(*part) for part in expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0.7*csv:a", r"expected at least two parts with weights, joined by a plus sign between"),
        ("0.7*csv:a+0.3*csv:b", r"expected at least two parts .*found one: '0.7\*csv:a\+0.3"),
        ("0.7*csv:a + csv:b", r"part 2 of 2 \(csv:b\): expected a weight, as in part 1"),
        ("csv:a + 2*csv:b", r"part 2 of 2 \(2\*csv:b\): expected no weight, as in part 1"),
        ("x*csv:a + 1*csv:b", r"part 1 of 2 .*: weight: expected a number above 0, found 'x'"),
        ("1*csv:a + 0*csv:b", r"part 2 of 2 .*: weight: expected a number above 0, found '0'"),
        ("inf*csv:a + 1*csv:b", r"part 1 of 2 .*found 'inf'"),
        ("*csv:a + 1*csv:b", r"part 1 of 2 .*found ''"),
        ("1*csv:a + 1*cvs:b", r"part 2 of 2 .*: source: expected KIND:PATH .*found 'cvs:b'"),
        ("1*csv:a + 1*csv:b?x=1", r"part 2 of 2 .*found 'x=1'"),
        ("1*csv:a + 1*draw:csv:b", r"part 2 of 2 .*: expected a task .*generation.*found 'draw'"),
        ("0.5*foo:manifest:a", r"part 1 of 1 .*: expected a task .*found 'foo'"),
        ("foo:manifest:a", r"part 1 of 1 .*: expected a task .*found 'foo'"),
    ],
)
def test_texts_of_another_form(text, message):
    with pytest.raises(ConfigError, match=f"data.source: {message}"):
        DataConfig(source=text)


@given(st.text(alphabet="ab01.*+: /?=&gencsv", max_size=60))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_any_text_is_parsed_or_refused(text):
    try:
        parts = parse_mixture(text, "understanding")
    except ConfigError:
        return
    assert abs(sum(part.weight for part in parts) - 1) < 1e-9


@pytest.mark.parametrize("text", ["0.5*csv:a + 0.5*csv:b", "generation:csv:a"])
def test_other_commands_take_one_source(text):
    with pytest.raises(DataError, match=r"weights and tasks are for data.source of training"):
        open_source(text)


def test_opening_names_the_part(tmp_path):
    first = manifest(tmp_path / "a", 3, "a")
    text = f"0.9*{first} + 0.1*manifest:{tmp_path / 'none'}"
    with pytest.raises(DataError, match=rf"part 2 of 2 \(manifest:{tmp_path}/none\): .*none"):
        open_mixture(text, None, "understanding")
    # One file for two tasks is opened once.
    mixed = open_mixture(f"understanding:{first} + generation:{first}", None, "understanding")
    assert isinstance(mixed, MixedRecords)
    assert mixed.sources[0] is mixed.sources[1]
    assert [mixed[i].key for i in (0, 2, 3, -1)] == ["a0", "a2", "a0", "a2"]


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=5), st.integers(1, 400), st.integers(0, 4))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_shares_are_kept_whatever_ends(weights, count, ended):
    active = [number != ended for number in range(len(weights))]
    taken = [0] * len(weights)
    for _ in range(count):
        part = due(taken, weights, active)
        if part is None:
            assert not any(active)
            return
        taken[part] += 1
    total = sum(w for w, a in zip(weights, active, strict=True) if a)
    for number, weight in enumerate(weights):
        share = count * weight / total if active[number] else 0
        assert abs(taken[number] - share) <= max(2, len(weights) / 2)


def test_seeds_of_parts():
    """Pinned: they decide the order of a run that resumes."""
    assert part_seed(7, 0) == 7
    assert len({part_seed(7, i) for i in range(5)}) == 5
    assert part_seed(0, 1) == part_seed(0, 1) != part_seed(1, 1)


# --- plans --------------------------------------------------------------------------------------


class Costs:
    """The samples of a part that are costs only."""

    def __init__(self, costs, uses):
        self.costs, self.uses = costs, uses

    def __len__(self):
        return len(self.costs)

    def key(self, index):
        return f"sample {index}"

    def cost(self, index, epoch):
        return self.costs[index]


def mixture(parts, weights=None):
    """`parts`: (task, costs) of each."""
    uses = {"understanding": ("und", "vit"), "generation": ("und", "vae")}
    weights = weights or [1 / len(parts)] * len(parts)
    named = [
        Part(weight, task, f"csv:{number}")
        for number, (weight, (task, _)) in enumerate(zip(weights, parts, strict=True))
    ]
    return MixedSamples(named, [Costs(costs, uses[task]) for task, costs in parts])


PLAN = DataConfig(rows=2, und_tokens=20, vit_images=2, vae_images=2, epochs=None, open_rows=4)
und = st.one_of(
    st.builds(Cost, st.integers(1, 24), st.integers(1, 2), st.just(0)), st.just(Skip("no_text"))
)
gen = st.one_of(
    st.builds(Cost, st.integers(1, 24), st.just(0), st.just(1)), st.just(Skip("no_image"))
)
mixtures = st.lists(
    st.one_of(
        st.lists(und, max_size=12).map(lambda c: ("understanding", [Cost(3, 1, 0), *c])),
        st.lists(gen, max_size=12).map(lambda c: ("generation", [Cost(3, 0, 1), *c])),
    ),
    min_size=2,
    max_size=4,
)


def steps_of(planner):
    return list(iter(planner.next_step, None))


@given(mixtures, st.integers(1, 3), st.integers(1, 3), st.booleans(), st.data())
@settings(max_examples=80, deadline=None, derandomize=True)
def test_every_usable_sample_of_each_part_once_an_epoch(parts, epochs, rows, shuffle, choice):
    data = dataclasses.replace(PLAN, epochs=epochs, rows=rows, shuffle=shuffle)
    samples = mixture(parts)
    planner = Planner(samples, data)
    states, steps = [planner.state()], []
    while (step := planner.next_step()) is not None:
        steps.append(step)
        states.append(planner.state())
    capacity = Cost(data.und_tokens, data.vit_images, data.vae_images)
    placed = []
    for row in (row for step in steps for row in step):
        found = [planner.locate(i) for i in row.indices]
        total = np.array([samples.cost(*where) for where in found]).reshape(-1, 3).sum(axis=0)
        assert tuple(total) == row.cost
        assert row.cost.fits(capacity)
        placed += found
    costs = [cost for _, listed in parts for cost in listed]
    fits = [i for i, c in enumerate(costs) if isinstance(c, Cost) and c.fits(capacity)]
    assert sorted(placed) == sorted((i, e) for i in fits for e in range(epochs))
    assert planner.epoch == epochs
    for count, (_, listed) in zip(planner.sources, parts, strict=True):
        used = sum(isinstance(c, Cost) and c.fits(capacity) for c in listed)
        assert count == (epochs * used, epochs * (len(listed) - used), epochs)
    # Restored anywhere, it resumes alike.
    at = choice.draw(st.integers(0, len(steps)))
    again = Planner(mixture(parts), data)
    again.restore(json.loads(json.dumps(states[at])))
    assert again.state() == states[at]
    assert steps_of(again) == steps[at:]
    assert (again.sources, again.digest) == (planner.sources, planner.digest)


def test_weights_count_samples_that_are_used():
    """Half of the first part is left out; its share is that of what is left."""
    half = [Skip("no_text") if i % 2 else Cost(10, 1, 0) for i in range(10)]
    listed = [("understanding", half), ("understanding", [Cost(10, 1, 0)] * 7)]
    planner = Planner(mixture(listed, [0.75, 0.25]), dataclasses.replace(PLAN, open_rows=1))
    for _ in range(50):
        planner.next_step()
    first, second = planner.sources
    assert (first.samples, second.samples) == (150, 50)
    assert first.skipped == pytest.approx(150, abs=5)
    assert first.epoch == pytest.approx(30, abs=0.5)


def test_a_row_takes_both_tasks():
    """A row that is full of ViT images waits for images to generate."""
    listed = [("understanding", [Cost(2, 1, 0)] * 8), ("generation", [Cost(2, 0, 1)] * 8)]
    planner = Planner(mixture(listed), dataclasses.replace(PLAN, rows=1, epochs=1))
    costs = [step[0].cost for step in steps_of(planner)]
    assert costs == [Cost(8, 2, 2)] * 4


@pytest.mark.parametrize(
    ("weights", "vit", "vae"), [([0.6, 0.4], 4, 8), ([0.3, 0.7], 8, 8), ([0.6, 0.4], 8, 8)]
)
def test_every_step_has_the_shares_of_the_weights(weights, vit, vae):
    """Also while rows wait, and where one part fills rows sooner than the other."""
    rng = np.random.default_rng(0)
    listed = [
        ("understanding", [Cost(int(n), 1, 0) for n in rng.integers(60, 160, 50)]),
        ("generation", [Cost(int(n), 0, 1) for n in rng.integers(20, 80, 50)]),
    ]
    data = dataclasses.replace(
        PLAN, rows=4, und_tokens=1024, vit_images=vit, vae_images=vae, open_rows=32
    )
    planner = Planner(mixture(listed, weights), data)
    for _ in range(20):
        planner.next_step()
        counts = [count.samples for count in planner.sources]
        shares = [weight * sum(counts) for weight in weights]
        assert np.abs(np.subtract(counts, shares)).max() <= 2


def test_a_part_without_usable_samples_is_named():
    listed = [("understanding", [Cost(2, 1, 0)]), ("understanding", [Skip("no_text")])]
    planner = Planner(mixture(listed), PLAN)
    with pytest.raises(DataError, match=r"part 2 of data.source, 0.5\*understanding:csv:1"):
        steps_of(planner)
    with pytest.raises(DataError, match=r"expected samples in part 2 of data.source"):
        Planner(mixture([listed[0], ("generation", [])]), PLAN)


def test_states_of_other_mixtures_are_refused():
    listed = [("understanding", [Cost(2, 1, 0)] * 5), ("generation", [Cost(2, 0, 1)] * 5)]
    planner = Planner(mixture(listed), PLAN)
    planner.next_step()
    state = planner.state()
    for other, message in (
        (mixture(listed, [0.6, 0.4]), r"data.weights: expected \[0.5, 0.5\], found \[0.6, 0.4\]"),
        (mixture(listed[::-1]), r"data.tasks: expected .*, found .*"),
        (mixture([*listed, listed[0]]), r"data.samples: expected \[5, 5\], found \[5, 5, 5\]"),
        (Costs([Cost(2, 1, 0)] * 5, ()), r"data.samples: expected \[5, 5\], found 5"),
    ):
        with pytest.raises(DataError, match=message):
            Planner(other, PLAN).restore(state)


def test_a_state_of_before_mixtures():
    samples = Costs([Cost(2, 1, 0), Skip("no_text")] * 9, ("und", "vit"))
    planner = Planner(samples, PLAN)
    for _ in range(3):
        planner.next_step()
    state = planner.state()
    following = [planner.next_step() for _ in range(4)]
    (state["position"],) = state.pop("positions")
    del state["taken"]
    again = Planner(samples, PLAN)
    again.restore(state)
    assert [again.next_step() for _ in range(4)] == following


# --- fingerprints and batches -------------------------------------------------------------------


def test_fingerprints_of_every_part(tmp_path):
    one, two = manifest(tmp_path / "a", 3, "a"), manifest(tmp_path / "b", 2, "b")
    mixed = open_mixture(f"0.5*{one} + 0.5*{two}", None, "understanding")
    before = json.loads(json.dumps(fingerprint(mixed)))
    assert before["records"] == 5
    assert difference(before, fingerprint(mixed)) == ""
    manifest_b = tmp_path / "b" / "manifest.jsonl"
    manifest_b.write_text(manifest_b.read_text().replace("b1", "c1"))
    changed = fingerprint(open_mixture(f"0.5*{one} + 0.5*{two}", None, "understanding"))
    assert difference(before, changed).startswith("part 2: the 2 records differ")
    single = fingerprint(open_source(one))
    assert difference(before, single) == "expected a mixture of 2 sources, found one source"
    assert difference(single, before) == "expected one source, found a mixture of 2 sources"


def joint_samples(data=JOINT):
    parts = [Part(0.5, "understanding", "csv:a"), Part(0.5, "generation", "csv:b")]
    sources = [records(9), ListSource([*records(6, seed=1), Record("none")])]
    data = dataclasses.replace(data, source="understanding:csv:a + generation:csv:b")
    return record_samples(MixedRecords(parts, sources), tokenizer(), CONFIG, data), data


def test_batches_of_both_tasks():
    samples, data = joint_samples()
    batches = list(Loader(samples, CONFIG, data, 0, 1))
    assert sum(int(batch.noised.sum()) for batch, _ in batches) == 6
    for batch, _ in batches:
        assert batch.vit_pixels is not None
        # Captions have no loss, images and reports do.
        counted = (batch.ce_weights > 0).any(axis=1)
        assert (counted == (batch.vit_index >= 0).any(axis=1)).all()
        assert (batch.mse_weights.any(axis=1) == batch.noised.any(axis=1)).all()
    _, info = batches[-1]
    assert [count.samples for count in info.sources] == [9, 6]
    assert [count.skipped for count in info.sources] == [0, 1]
    assert info.first_skipped["no_text"].startswith("source 2: none: no_text")


@pytest.mark.parametrize("processes", [1, 2])
def test_batches_after_a_restart_are_equal(processes):
    samples, data = joint_samples(dataclasses.replace(JOINT, epochs=None, open_rows=3))

    def loader(index):
        return iter(Loader(samples, CONFIG, data, index, processes))

    whole, states = loader(0), []
    expected = []
    for _ in range(6):
        expected.append(next(whole))
        states.append(whole.get_state())
    again = loader(0)
    again.set_state(json.loads(json.dumps(states[2])))
    for batch, info in expected[3:]:
        found, found_info = next(again)
        assert found_info == info
        for one, other in zip(*map(dict.values, map(vars, (batch, found))), strict=True):
            if isinstance(one, np.ndarray):
                np.testing.assert_array_equal(one, other)


def test_settings_of_a_mixture():
    text = "understanding:csv:a + generation:csv:b"
    data = dataclasses.replace(JOINT, source=text)
    assert data.tasks == ("understanding", "generation")
    with pytest.raises(ConfigError, match="vae_images: expected at least 1 for the task gen"):
        dataclasses.replace(data, vae_images=0)
    assert dataclasses.replace(data, moments="m").moments == "m"
    with pytest.raises(ConfigError, match=r"data.moments: expected one part .*found 2: csv:b, csv"):
        dataclasses.replace(data, moments="m", source=f"{text} + generation:csv:c")

"""The loader: states that resume anywhere, any number of processes, broken images."""

import dataclasses
import io
import json
import logging
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import grain
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from support.paths import ROOT
from support.toy_data import CONFIG, GENERATION, UNDERSTANDING, records, tokenizer
from unix_jax.data.loader import Loader
from unix_jax.data.samples import record_samples
from unix_jax.errors import ConfigError, DataError

COUNT = 37


def loader(data, source=None, process_index=0, process_count=1):
    source = records(COUNT) if source is None else source
    samples = record_samples(source, tokenizer(), CONFIG, data)
    return Loader(samples, CONFIG, data, process_index, process_count)


def joined(batches):
    """The processes' batches of one step as one."""
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *batches)


def assert_same(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("data", [UNDERSTANDING, GENERATION])
def test_one_epoch(data):
    source = loader(data)
    seen, last = [], None
    for batch, info in source:
        assert batch.rows == data.rows
        assert info.samples == sum(len(row) for row in info.keys)
        assert info.und_tokens == (batch.und.segment > 0).sum()
        gen = 0 if batch.gen is None else batch.gen.segment
        assert info.gen_tokens == np.sum(gen > np.int32(0))
        places = batch.und.segment.size + np.size(gen) * (batch.gen is not None)
        assert info.padding_fraction == pytest.approx(
            1 - (info.und_tokens + info.gen_tokens) / places
        )
        seen += [key for row in info.keys for key in row]
        last = info
    assert sorted(seen) == sorted(f"r{i}" for i in range(COUNT))
    assert last.epoch == 1
    assert last.broken == 0
    assert set(last.skipped.values()) == {0}


@given(
    st.sampled_from([UNDERSTANDING, GENERATION]),
    st.integers(0, 3),
    st.sampled_from([1, 2, 4]),
    st.sampled_from([1, 2, 4]),
    st.sampled_from([0, 1, 3]),
    st.booleans(),
)
@settings(max_examples=10, deadline=None, derandomize=True)
def test_restart_with_any_number_of_processes(data, at, before, after, prefetch, remote):
    """The global batches of a run that stops after `at` steps are those of one that does not."""
    data = dataclasses.replace(data, epochs=None, prefetch=prefetch, seed=at)
    whole = iter(loader(data))
    if remote:  # then many steps are planned ahead
        data = dataclasses.replace(data, source="manifest:gs://bucket/data")
    expected = [next(whole) for _ in range(at + 2)]
    assert {info.step for _, info in expected} == set(range(1, at + 3))
    whole.close()
    states = []
    for count, steps in ((before, range(at)), (after, range(at, at + 2))):
        processes = [iter(loader(data, None, i, count)) for i in range(count)]
        for process in processes if states else ():
            process.set_state(json.loads(json.dumps(states[0])))
        for step in steps:
            parts = [next(process) for process in processes]
            assert_same(joined([batch for batch, _ in parts]), expected[step][0])
            assert sum((info.keys for _, info in parts), ()) == expected[step][1].keys
            for _, info in parts:
                one = dataclasses.replace(info, keys=())
                assert one == dataclasses.replace(expected[step][1], keys=())
        # The state is of what was handed out, and of no process in particular.
        states = [process.get_state() for process in processes]
        assert len({json.dumps({**s, "local": None}) for s in states}) == 1
        for process in processes:
            process.close()


@pytest.mark.parametrize("prefetch", [0, 2])
def test_state_can_be_set_on_a_running_iterator(prefetch):
    data = dataclasses.replace(GENERATION, epochs=None, prefetch=prefetch)
    iterator = iter(loader(data))
    next(iterator)
    state = iterator.get_state()
    expected = [next(iterator)[0] for _ in range(3)]
    assert state != iterator.get_state()
    iterator.set_state(state)
    assert iterator.get_state() == state
    for batch in expected:
        assert_same(next(iterator)[0], batch)
    iterator.close()


def test_grain_saves_and_restores_it(tmp_path):
    handler = grain.checkpoint.CheckpointHandler()
    data = dataclasses.replace(UNDERSTANDING, epochs=None)
    iterator, again = iter(loader(data)), iter(loader(data))
    next(iterator)
    handler.save(tmp_path, item=iterator)
    assert handler.restore(tmp_path, item=again) is again
    assert_same(next(again)[0], next(iterator)[0])
    for each in (iterator, again):
        each.close()


def test_finite_run_ends_with_empty_rows():
    data = dataclasses.replace(UNDERSTANDING, rows=2)
    *_, (batch, info) = loader(data, records(1))
    assert info.samples == 1
    assert info.keys[1] == ()
    assert not batch.und.segment[1].any()
    assert not batch.ce_weights[1].any()
    iterator = iter(loader(data, records(1)))
    next(iterator)
    for _ in range(2):
        with pytest.raises(StopIteration):
            next(iterator)
    # The second process has the empty row, so all make the same number of steps.
    ((batch, info),) = loader(data, records(1), 1, 2)
    assert info.keys == ((),)


def with_broken(count, every):
    source = records(count)
    for i in range(0, count, every):
        source[i] = dataclasses.replace(list.__getitem__(source, i), image=b"not an image")
    return source


def dark(index):
    """A PNG file of 12 bits in 16."""
    pixels = np.random.default_rng(index).integers(0, 4096, (20, 24), dtype=np.uint16)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("data", [UNDERSTANDING, GENERATION])
def test_images_that_show_nothing_are_counted_and_said_a_few_times(data, caplog):
    source = records(COUNT)
    for index in range(0, COUNT, 4):
        source[index] = dataclasses.replace(source[index], image=dark(index))
    with caplog.at_level(logging.WARNING):
        parts = list(loader(data, source))
    assert parts[-1][1].image_warnings == 10
    assert parts[-1][1].broken == 0
    said = [record.getMessage() for record in caplog.records]
    assert [line.split()[0] for line in said] == ["1", "2", "4", "8"]
    assert all(re.search(r"the last: r\d+: nearly black \(", line) for line in said)
    # The count resumes with the state.
    resumed, whole = (iter(loader(data, source)) for _ in range(2))
    for _ in range(2):
        next(whole)
    resumed.set_state(whole.get_state())
    assert [i.image_warnings for _, i in resumed] == [i.image_warnings for _, i in parts[2:]]


def test_broken_images_become_padding(caplog):
    data = dataclasses.replace(UNDERSTANDING, max_broken_fraction=0.5)
    clean = [key for _, info in loader(data) for row in info.keys for key in row]
    with caplog.at_level(logging.WARNING):
        parts = list(loader(data, with_broken(COUNT, 4)))
    seen = [key for _, info in parts for row in info.keys for key in row]
    broken = {f"r{i}" for i in range(0, COUNT, 4)}
    assert seen == [key for key in clean if key not in broken]
    assert parts[-1][1].broken == len(broken) == 10
    assert sum(info.samples for _, info in parts) == COUNT  # as planned
    for batch, info in parts:
        for row, keys in enumerate(info.keys):
            assert batch.und.segment[row].max() == len(keys)
            assert (batch.vit_pixels[row, len(keys) :] == 0).all()
        assert np.isfinite(batch.vit_pixels).all()
    assert len(caplog.records) == 10
    assert all("broken sample" in r.getMessage() for r in caplog.records)
    assert {r.getMessage().split(": ")[1] for r in caplog.records} == broken


def test_five_percent_broken_images_do_not_stop_a_run():
    data = dataclasses.replace(UNDERSTANDING, broken_after=50)
    *_, (_, info) = loader(data, with_broken(100, 20))
    assert info.broken == 5


def test_a_source_that_is_all_broken_stops_at_once():
    with pytest.raises(DataError, match=r"at most 10.0% broken .*, found 21 of 21; the last ones"):
        list(loader(UNDERSTANDING, with_broken(100, 1)))


def test_too_many_broken_images_stop_with_their_keys():
    data = dataclasses.replace(UNDERSTANDING, broken_after=20)
    for prefetch in (0, 2):
        with pytest.raises(
            DataError, match=r"at most 10.0% broken .*, found 3 of \d+; the last ones: r\d+: "
        ):
            list(loader(dataclasses.replace(data, prefetch=prefetch), with_broken(100, 4)))


def test_broken_counts_follow_their_own_process():
    data = dataclasses.replace(GENERATION, epochs=None, max_broken_fraction=1.0)
    first = iter(loader(data, with_broken(COUNT, 2)))
    next(first)
    _, info = next(first)
    state = first.get_state()
    assert state["local"]["broken"] == info.broken > 0
    second = iter(loader(data, with_broken(COUNT, 2)))
    second.set_state(state)
    assert next(second)[1] == next(first)[1]
    other = iter(loader(data, with_broken(COUNT, 2), 1, 2))
    other.set_state(state)
    assert other.get_state()["local"]["broken"] == 0
    for iterator in (first, second, other):
        iterator.close()


def test_samples_are_made_by_several_threads_in_order():
    names, ready = set(), threading.Barrier(3, timeout=20)

    class Slow:
        def __init__(self, samples):
            self.samples, self.waits = samples, 3

        def __len__(self):
            return len(self.samples)

        def key(self, index):
            return self.samples.key(index)

        def cost(self, index, epoch):
            return self.samples.cost(index, epoch)

        def build(self, index, epoch):
            names.add(threading.current_thread().name)
            if self.waits > 0:  # the first three meet, or the test times out
                self.waits -= 1
                ready.wait()
            return self.samples.build(index, epoch)

    data = dataclasses.replace(UNDERSTANDING, threads=3)
    samples = record_samples(records(COUNT), tokenizer(), CONFIG, data)
    slow = list(Loader(Slow(samples), CONFIG, data, 0, 1))
    assert len(names) == 3
    for (batch, info), (expected, plain) in zip(slow, loader(data), strict=True):
        assert_same(batch, expected)
        assert info == plain


@pytest.mark.slow
def test_process_ends_quietly_with_an_open_iterator():
    script = """
from test_loader import UNDERSTANDING, dataclasses, loader
iterator = iter(loader(dataclasses.replace(UNDERSTANDING, epochs=None)))
next(iterator)
"""
    ended = subprocess.run(
        [sys.executable, "-c", script],
        cwd=Path(__file__).parent,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests")))},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert ended.stderr == ""


def test_errors():
    with pytest.raises(
        ConfigError, match=r"data.rows: expected a multiple of 3 processes, found 4"
    ):
        loader(UNDERSTANDING, None, 0, 3)
    with pytest.raises(ConfigError, match=r"data.vae_height: expected a multiple of 4"):
        loader(dataclasses.replace(GENERATION, vae_height=10))
    with pytest.raises(DataError, match=r"found none"):
        loader(UNDERSTANDING, records(0))
    with pytest.raises(DataError, match=r"data state"):
        iter(loader(UNDERSTANDING)).set_state({"next_index": 3})


def test_rows_of_a_process_that_are_not_adjacent():
    """Together, two processes with interleaved rows build what one builds."""
    samples = record_samples(records(COUNT), tokenizer(), CONFIG, UNDERSTANDING)
    whole, _ = next(iter(Loader(samples, CONFIG, UNDERSTANDING, 0, 1)))
    for rows in (range(0, UNDERSTANDING.rows, 2), range(1, UNDERSTANDING.rows, 2)):
        part, info = next(iter(Loader(samples, CONFIG, UNDERSTANDING, 0, 2, rows=rows)))
        np.testing.assert_array_equal(part.token_ids, whole.token_ids[list(rows)])
        assert len(info.keys) == len(rows)

"""A run that was interrupted equals the uninterrupted one to the bit."""

import os
import random
import signal
import time

import numpy as np
import pytest

from support import toy_run
from unix_jax.training import feed


def crash_at(monkeypatch, batch):
    """The process stops, as if killed, when it asks for its n-th batch."""
    asked = []
    original = feed.Feed.__next__

    def counted(self):
        asked.append(1)
        if len(asked) == batch:
            raise SystemExit("killed")
        return original(self)

    monkeypatch.setattr(feed.Feed, "__next__", counted)


@pytest.mark.parametrize(
    "stage",
    [
        pytest.param("understanding", marks=pytest.mark.extended),
        pytest.param("generation", marks=pytest.mark.slow),
        pytest.param("joint", marks=pytest.mark.extended),
    ],
)
def test_a_crash_between_checkpoints(stage, toy, train, whole, tmp_path, monkeypatch):
    """It stops at step 6 with the checkpoint of step 3, in the middle of a logged window."""
    arguments = [str(toy(stage)), "--out", str(tmp_path)]
    with monkeypatch.context() as patch:
        crash_at(patch, 6)
        with pytest.raises(SystemExit):
            train.main(arguments)
    assert [line["step"] for line in toy_run.metrics(tmp_path)] == [2, 4]
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["3"]
    assert train.main(arguments) == 0
    assert [line["step"] for line in toy_run.metrics(tmp_path)] == [2, 4, 6, 8]
    toy_run.assert_same_run(whole(stage), tmp_path)


@pytest.mark.slow
def test_a_finished_run_is_left_as_it_is_and_can_be_lengthened(toy, train, whole, tmp_path):
    arguments = [str(toy("understanding")), "--out", str(tmp_path)]
    assert train.main([*arguments, "--total-steps", "4"]) == 0
    before = toy_run.exported(tmp_path)
    assert train.main([*arguments, "--total-steps", "4"]) == 0
    for name, value in toy_run.exported(tmp_path).items():
        np.testing.assert_array_equal(value, before[name])
    assert train.main(arguments) == 0
    toy_run.assert_same_run(whole("understanding"), tmp_path)


@pytest.mark.slow
def test_another_mesh_continues_the_curve(toy, train, tmp_path):
    one, changed = tmp_path / "one", tmp_path / "changed"
    config = [str(toy("understanding")), "--data.rows", "8", "--log-every", "1"]
    assert train.main([*config, "--out", str(one), "--mesh", "data=1"]) == 0
    first = ["--mesh", "fsdp=8", "--total-steps", "4"]
    assert train.main([*config, "--out", str(changed), *first]) == 0
    assert train.main([*config, "--out", str(changed), "--mesh", "fsdp=2,tensor=2"]) == 0
    losses = [[line["loss"] for line in toy_run.metrics(d)] for d in (one, changed)]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)


def kill_and_restart(config, out, kills, longest, seed, **environment):
    """Kills the run at `kills` random moments, then lets it end; says at which steps it went on."""
    moments = random.Random(seed)
    for _ in range(kills):
        process = toy_run.launch([config, "--out", out], **environment)
        time.sleep(moments.uniform(0.3, 1) * longest)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    process = toy_run.launch([config, "--out", out], **environment)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    return errors


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["understanding", "generation", "joint"])
def test_ten_kills_at_random_moments(stage, toy, tmp_path):
    """30 in all: `pytest -m slow tests/training/test_resume.py -k kills`.

    A checkpoint is written at every step, so that many kills fall into the writing of one.
    """
    text = toy(stage).read_text().replace("checkpoint_every=3", "checkpoint_every=1")
    config = tmp_path / "config.py"
    config.write_text(text.replace("total_steps=8", "total_steps=60"))
    # A kill may leave half a program, which other tests must not find.
    own = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled")}
    whole = tmp_path / "whole"
    started = time.monotonic()
    for _ in range(2):
        # The first one compiles.
        process = toy_run.launch([config, "--out", whole], **own)
        _, errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors
    # From the start of the second run, which had nothing to do: what a process takes to get going.
    started = time.monotonic()
    timed = tmp_path / "timed"
    toy_run.launch([config, "--out", timed], **own).communicate(timeout=600)
    longest = time.monotonic() - started
    broken = tmp_path / "broken"
    kill_and_restart(config, broken, kills=10, longest=longest, seed=len(stage), **own)
    toy_run.assert_same_run(whole, timed)
    toy_run.assert_same_run(whole, broken)


@pytest.mark.slow
def test_a_signal_to_one_of_two_processes_stops_both(toy, tmp_path):
    arguments = [toy("generation"), "--out", tmp_path, "--mesh", "data=2"]
    processes = toy_run.launch_two([*arguments, "--total-steps", 100_000])
    while not (tmp_path / "metrics.jsonl").exists() or not toy_run.metrics(tmp_path):
        assert processes[0].poll() is None
        time.sleep(0.5)
    processes[1].send_signal(signal.SIGTERM)
    for process in processes:
        _, errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors
    newest = max(int(name) for name in os.listdir(tmp_path / "checkpoints") if name.isdecimal())
    assert toy_run.metrics(tmp_path)[-1]["step"] <= newest


@pytest.mark.slow
def test_broken_images_of_one_of_two_processes_stop_both(toy, tmp_path):
    source = toy_run.write_pictures(tmp_path / "data", train=40)
    file = source / "images" / "007.png"
    file.write_bytes(file.read_bytes()[:60])
    options = ["--data.source", f"manifest:{source}", "--data.broken-after", 1]
    options += ["--data.max-broken-fraction", 0, "--mesh", "data=2", "--total-steps", 1000]
    arguments = [toy("understanding"), "--out", tmp_path / "run", *options]
    found = []
    for process in toy_run.launch_two(arguments):
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 1, errors
        found.append(errors.splitlines()[-1])
    own, other = sorted(found, key=lambda text: "process" in text)
    assert own.startswith("error: data: expected at most 0.0% broken")
    assert "007.png" in own
    assert other.split(": ", 2)[1].startswith("process ")
    assert other.split(": ", 2)[2] == own.split(": ", 1)[1]


@pytest.mark.slow
def test_two_processes_give_what_one_gives(toy, tmp_path):
    config = str(toy("generation"))
    one, two = tmp_path / "one", tmp_path / "two"
    options = ["--mesh", "data=2", "--validate-every", "4", "--preview-every", "8"]
    process = toy_run.launch([config, "--out", one, *options], devices=2)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    processes = toy_run.launch_two([config, "--out", two, *options])
    for process in processes:
        _, errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors
    for first, second in zip(toy_run.metrics(one), toy_run.metrics(two), strict=True):
        assert first["padding_fraction"] == second["padding_fraction"]
        assert second["loss"] == pytest.approx(first["loss"], rel=1e-5)
    second = toy_run.exported(two)
    for name, value in toy_run.exported(one).items():
        np.testing.assert_allclose(second[name], value, rtol=1e-4, atol=1e-5, err_msg=name)

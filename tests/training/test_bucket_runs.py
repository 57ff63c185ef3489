"""A training run whose directory is in a bucket equals a local one, also after kills."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from support import bucket_servers
from support.paths import ROOT
from support.toy_run import launch_two, load_train, make_toy
from unix_jax import cli
from unix_jax.checkpoints.leaves import flatten
from unix_jax.checkpoints.native import load_params
from unix_jax.checkpoints.run_files import LISTING
from unix_jax.storage import buckets
from unix_jax.training import bucket_run, kept, preemption
from unix_jax.training.metrics import TIMING_FIELDS

TIMES = {*TIMING_FIELDS}


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return make_toy(tmp_path_factory.mktemp("toy"))


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty working directory, which stays empty."""
    monkeypatch.setenv("UNIX_JAX_CACHE", str(tmp_path / "cache"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    yield tmp_path
    assert not os.listdir(tmp_path / "work")


def lines(text):
    values = [json.loads(line) for line in text.splitlines()]
    return [{k: v for k, v in value.items() if k not in TIMES} for value in values]


def require_equal(url, local):
    """Metrics, checkpoints and export of a run in a bucket, and of a local one."""
    found = buckets.entries(url)
    for name in ("metrics.jsonl", "validation.jsonl"):
        assert lines(buckets.read(f"{url}/{name}").decode()) == lines((local / name).read_text())
    same_arrays(*(load_params(path) for path in (local / "export", _export(url))))
    steps = {name.split("/")[1] for name in found if name.startswith("checkpoints/")}
    assert steps == {p.name for p in (local / "checkpoints").iterdir()}
    for step in steps:
        theirs = bucket_run.fetch_step(url, int(step))
        same_arrays(*(kept._read(run / "checkpoints" / step / "state", "")
                      for run in (local, theirs)))  # fmt: skip
    assert "run.lock" not in found


def same_arrays(one, other):
    one, other = flatten(one), flatten(other)
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[name], other[name]) for name in one)


def _export(url):
    from unix_jax.checkpoints.run_export import resolve_checkpoint

    return resolve_checkpoint(url)


def stops_after(patch, last):
    """A run receives SIGTERM in this step."""
    original = preemption.StopRequest.reached

    def signalled(self, step):
        if step == last:
            self._note(signal.SIGTERM, None)
        return original(self, step)

    patch.setattr(preemption.StopRequest, "reached", signalled)


@pytest.mark.extended
def test_a_run_in_a_bucket(toy, place, capsys, monkeypatch):
    train, url, local = load_train().main, "gs://bucket/run", place / "local"
    arguments = [str(toy("understanding")), "--validate-every", "4"]
    with bucket_servers.gcs():
        assert train([*arguments, "--out", str(local)]) == 0
        with monkeypatch.context() as patch:
            stops_after(patch, 5)
            assert train([*arguments, "--out", url]) == 0
        assert train([*arguments, "--out", url]) == 0
        said = capsys.readouterr().err
        assert f"resuming from {url}/checkpoints/5" in said
        assert f"wrote {url}/export" in said
        require_equal(url, local)
        assert cli.main(["export", url, "--step", "6", "--out", f"{url}-6"]) == 0
        assert capsys.readouterr().out.startswith(f"wrote {url}-6: ")
        assert cli.main(["info", f"{url}-6"]) == 0


def test_no_such_bucket(toy, place, capsys):
    with bucket_servers.gcs():
        assert load_train().main([str(toy("understanding")), "--out", "gs://none-such/run"]) == 1
    error = capsys.readouterr().err
    assert error == "error: gs://none-such/run/run.lock: no such bucket gs://none-such\n"


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["gs", "s3"])
def test_five_kills(scheme, toy, place):
    """kill -9 at random moments; the run that was resumed equals the local one bit for bit."""
    config, url = str(toy("understanding")), f"{scheme}://bucket/run"
    options = ["--checkpoint-every", "1", "--total-steps", "30", "--validate-every", "10"]
    command = [sys.executable, str(ROOT / "train.py"), config, *options]
    with {"gs": bucket_servers.gcs, "s3": bucket_servers.s3}[scheme]():
        # A kill may leave half a program, which other tests must not find.
        own = {"JAX_COMPILATION_CACHE_DIR": str(place / "compiled")}
        environment = os.environ | {"PYTHONPATH": str(ROOT)} | own
        start = time.monotonic()
        local = place / "local"
        subprocess.run([*command, "--out", str(local)], env=environment, check=True)
        longest = time.monotonic() - start
        moments, reached = random.Random(scheme), []
        for _ in range(5):
            process = subprocess.Popen([*command, "--out", url], env=environment)
            time.sleep(longest * moments.uniform(0.4, 1.1))
            process.send_signal(signal.SIGKILL)
            process.wait()
            done = [name for name in buckets.entries(url) if name.endswith("files.json")]
            reached.append(max((int(name.split("/")[1]) for name in done
                                if name.startswith("checkpoints/")), default=0))  # fmt: skip
        print(f"checkpoints after the kills: {reached}")
        subprocess.run([*command, "--out", url], env=environment, check=True)
        require_equal(url, local)


def ended(processes):
    """The errors of processes that end well."""
    errors = [process.communicate(timeout=600)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), errors
    return errors


@pytest.mark.slow
def test_two_processes(toy, place):
    """Killed and resumed, they equal a run of two processes with a directory that they share."""
    url, local = "gs://bucket/run", place / "local"
    options = [toy("generation"), "--mesh", "fsdp=2", "--validate-every", "4"]
    ended(launch_two([*options, "--out", local]))
    with bucket_servers.gcs():
        processes = launch_two([*options, "--out", url])
        while f"checkpoints/3/{LISTING}" not in buckets.entries(url):
            assert [process.poll() for process in processes] == [None, None]
            time.sleep(0.2)
        for process in processes:
            process.kill()
            process.communicate()
        assert not buckets.entries(f"{url}/export")
        errors = ended(launch_two([*options, "--out", url]))
        assert f"resuming from {url}/checkpoints/" in errors[0]
        assert f"wrote {url}/export" in errors[0]
        require_equal(url, local)
        # What the copies of the killed processes left is gone, too.
        assert not os.listdir(place / "cache" / "outputs")
        failed = launch_two([*options, "--out", "gs://none-such/run"])
        for process in failed:
            errors = process.communicate(timeout=600)[1]
            assert process.returncode == 1
            assert errors.splitlines()[-1].endswith("no such bucket gs://none-such")

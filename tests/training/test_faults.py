"""What can go wrong in a run: one error, and a checkpoint to go on from."""

import os
import shutil
import signal

import pytest

from support import toy_run
from support.toy_run import one_error
from unix_jax.training import checkpoint_store, preemption


def test_a_loss_that_is_not_a_number(toy, train, tmp_path, capsys):
    options = ["--out", tmp_path, "--optimizer.learning-rate", "1e30"]
    error = one_error(train, capsys, toy("understanding"), *options)
    assert error.startswith("error: step 2: loss nan")
    assert "images/" in error
    before = tmp_path / "checkpoints" / "1"
    assert f"checkpoint from before: {before}" in error
    assert before.is_dir()
    written = {p: p.stat().st_mtime_ns for p in before.rglob("*")}
    # A run that continues repeats the fault, and leaves the checkpoint as it is.
    assert train.main([str(toy("understanding")), *map(str, options)]) == 1
    continuing, _, again = capsys.readouterr().err.splitlines()
    assert continuing == f"resuming from {before}"
    assert again == error.strip()
    assert {p: p.stat().st_mtime_ns for p in before.rglob("*")} == written


@pytest.mark.extended
@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_signal_writes_a_checkpoint_and_the_run_goes_on(
    number, toy, train, whole, tmp_path, monkeypatch, capsys
):
    original = preemption.StopRequest.reached

    def signalled(self, step):
        if step == 5:
            os.kill(os.getpid(), number)
        return original(self, step)

    arguments = [str(toy("understanding")), "--out", str(tmp_path)]
    with monkeypatch.context() as patch:
        patch.setattr(preemption.StopRequest, "reached", signalled)
        code = train.main(arguments)
    assert code == (0 if number == signal.SIGTERM else 130)
    assert f"stopped by {number.name}" in capsys.readouterr().err
    assert (tmp_path / "checkpoints" / "5").is_dir()
    assert train.main(arguments) == 0
    toy_run.assert_same_run(whole("understanding"), tmp_path)


def test_a_truncated_checkpoint(toy, train, whole, tmp_path, capsys):
    out = shutil.copytree(whole("understanding"), tmp_path / "run")
    newest = out / "checkpoints" / "8"
    largest = max((p for p in newest.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    os.truncate(largest, 10)
    assert train.main([str(toy("understanding")), "--out", str(out)]) == 0
    warning, continuing, *_ = capsys.readouterr().err.splitlines()
    assert warning.startswith("warning: checkpoint of step 8 is damaged")
    assert continuing == f"resuming from {out / 'checkpoints' / '6'}"
    toy_run.assert_same_run(whole("understanding"), out)


def test_a_full_disk(toy, train, tmp_path, monkeypatch, capsys):
    usage = checkpoint_store.shutil.disk_usage(tmp_path)
    full = []

    def disk_usage(_):
        return usage._replace(free=0 if full else usage.free)

    original = preemption.StopRequest.reached

    def fill(self, step):
        full.extend([True] * (step == 5))
        return original(self, step)

    monkeypatch.setattr(checkpoint_store.shutil, "disk_usage", disk_usage)
    monkeypatch.setattr(preemption.StopRequest, "reached", fill)
    error = one_error(train, capsys, toy("understanding"), "--out", tmp_path)
    assert "checkpoints/6: cannot be written: needs" in error
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["3"]
    assert not (tmp_path / "export").exists()


def test_an_unwritable_directory(toy, train, tmp_path, capsys):
    (tmp_path / "file").touch()
    error = one_error(train, capsys, toy("understanding"), "--out", tmp_path / "file" / "run")
    assert "cannot be written" in error


def break_images(toy, directory, share):
    """The pictures with some of them cut short, and a configuration that reads them."""
    config = toy("understanding")
    source = toy_run.write_pictures(directory / "data", train=100)
    for number in range(0, 100, round(1 / share)):
        file = source / "images" / f"{number:03d}.png"
        file.write_bytes(file.read_bytes()[:60])
    return [config, "--out", directory / "run", "--data.source", f"manifest:{source}"]


@pytest.mark.extended
def test_five_percent_of_broken_images_are_left_out(toy, train, tmp_path, caplog):
    arguments = break_images(toy, tmp_path, 0.05)
    assert train.main([*map(str, arguments), "--data.broken-after", "30"]) == 0
    assert len(toy_run.metrics(tmp_path / "run")) == 4
    assert "images/0" in caplog.text


@pytest.mark.slow
def test_too_many_broken_images(toy, train, tmp_path, capsys):
    arguments = break_images(toy, tmp_path, 0.5)
    assert train.main([*map(str, arguments), "--data.broken-after", "5"]) == 1
    assert "error: data: expected at most 10.0% broken" in capsys.readouterr().err

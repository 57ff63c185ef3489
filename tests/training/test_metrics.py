"""Metrics files after crashes, TensorBoard, Weights & Biases, the window, progress, signals."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import types

import numpy as np
import pytest

from unix_jax.commands.progress import ProgressLine, _duration
from unix_jax.training.metrics import (
    FIELDS,
    METRICS_FILE,
    JsonLines,
    Metrics,
    MetricsError,
    TensorBoard,
    WeightsAndBiases,
    Window,
)
from unix_jax.training.preemption import StopRequest


def lines(directory, name=METRICS_FILE):
    return [json.loads(line) for line in (directory / name).read_text().splitlines()]


def write(directory, steps, restored=0, broken=b""):
    with Metrics(directory, restored, [], primary=True) as metrics:
        for step in steps:
            metrics.training({"step": step, "loss": np.float32(1 / step)})
    with open(directory / METRICS_FILE, "ab") as file:
        file.write(broken)


def test_one_object_a_step_with_all_fields(tmp_path):
    write(tmp_path, [1, 2])
    first, second = lines(tmp_path)
    assert tuple(first) == FIELDS
    assert first["loss"] == 1.0
    assert first["mse"] is None
    assert second["step"] == 2


@pytest.mark.parametrize("broken", [b"", b'{"step": 5, "lo', b'{"step": 2}', b"\xff\n", b"[]\n"])
def test_resuming_drops_later_and_broken_lines(tmp_path, broken):
    write(tmp_path, [1, 2, 3, 4], broken=broken)
    write(tmp_path, [3, 4, 5], restored=2)
    content = (tmp_path / METRICS_FILE).read_bytes()
    uninterrupted = tmp_path / "other"
    uninterrupted.mkdir()
    write(uninterrupted, [1, 2, 3, 4, 5])
    assert content == (uninterrupted / METRICS_FILE).read_bytes()


def test_starting_anew_empties_the_file(tmp_path):
    write(tmp_path, [1, 2])
    write(tmp_path, [1])
    assert [line["step"] for line in lines(tmp_path)] == [1]


def test_validation_has_its_own_file_and_secondary_processes_write_nothing(tmp_path):
    with Metrics(tmp_path, 0, [], primary=True) as metrics:
        metrics.validation({"step": 3, "loss": 0.5})
    assert lines(tmp_path, "validation.jsonl") == [{"step": 3, "loss": 0.5}]
    other = tmp_path / "other"
    other.mkdir()
    with Metrics(other, 0, [], primary=False) as metrics:
        metrics.training({"step": 1})
    assert list(other.iterdir()) == []


def test_not_a_number_is_null_and_other_fields_follow(tmp_path):
    with Metrics(tmp_path, 0, [], primary=True) as metrics:
        metrics.training({"kl": 2.0, "step": 1, "loss": float("nan")})
    (line,) = lines(tmp_path)
    assert tuple(line) == (*FIELDS, "kl")
    assert line["loss"] is None


def test_unwritable_file(tmp_path):
    (tmp_path / METRICS_FILE).mkdir()
    with pytest.raises(MetricsError, match=r"metrics\.jsonl: cannot be written: Is a directory"):
        JsonLines(tmp_path / METRICS_FILE, 0)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_full_disk():
    from pathlib import Path

    file = JsonLines.__new__(JsonLines)
    file.path = Path("/dev/full")
    file._file = open("/dev/full", "ab", buffering=0)  # noqa: SIM115
    with pytest.raises(MetricsError, match="/dev/full: cannot be written: No space left"):
        file.write({"step": 1})


def test_tensorboard_events(tmp_path):
    pytest.importorskip("tensorboardX")
    for restored in (0, 2):
        with Metrics(
            tmp_path, restored, [TensorBoard(tmp_path / "tensorboard", restored)], primary=True
        ) as metrics:
            metrics.training({"step": restored + 1, "loss": 0.5})
            metrics.image(restored + 1, "samples", np.zeros((8, 8, 3), np.uint8))
            metrics.text(restored + 1, "reports", "No finding.")
    files = list((tmp_path / "tensorboard").iterdir())
    assert files
    assert all(b"loss" in file.read_bytes() for file in files)


def test_missing_wandb_is_one_error(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MetricsError, match="pip install wandb"):
        WeightsAndBiases(tmp_path, "unix", {})


def test_wandb_continues_the_same_run(tmp_path, monkeypatch):
    calls = []
    logged = []
    run = types.SimpleNamespace(
        define_metric=lambda *_, **__: None, log=logged.append, finish=lambda: None
    )
    fake = types.SimpleNamespace(
        util=types.SimpleNamespace(generate_id=lambda: f"run{len(calls)}"),
        init=lambda **options: calls.append(options) or run,
        errors=types.SimpleNamespace(Error=RuntimeError),
        Image=lambda pixels: pixels.shape,
        Html=str,
    )
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for step in (1, 2):
        board = WeightsAndBiases(tmp_path, "unix", {"seed": 0})
        board.scalars(step, {"loss": 0.5})
        board.close()
    assert [c["id"] for c in calls] == ["run0", "run0"]
    assert calls[0]["project"] == "unix"
    assert logged == [{"loss": 0.5, "step": 1}, {"loss": 0.5, "step": 2}]


def test_the_window_resumes_to_the_bit():
    values = [{"loss": float(x)} for x in np.random.default_rng(0).normal(size=7)]
    whole = Window()
    for value in values:
        whole.add(value)
    part = Window()
    for value in values[:3]:
        part.add(value)
    part = Window(json.loads(json.dumps(part.get_state())))
    for value in values[3:]:
        part.add(value)
    expected = sum((v["loss"] for v in values), 0.0) / 7
    assert part.means() == whole.means() == {"loss": expected}
    part.add({"loss": 2.0})
    assert part.means() == {"loss": 2.0}


def test_progress_in_a_log(capsys):
    line = ProgressLine(seconds_between_lines=0)
    with line.over(2, 5):
        line.update(3, {"step": 3, "loss": 1.23456, "mse": None})
        line.update(4)
    shown = capsys.readouterr().err
    assert shown.startswith("step 3/5 loss 1.235 | ")
    assert shown.count("\n") == 1
    line = ProgressLine()
    with line.over(0, 5):
        line.update(1, {"loss": 1.0})
    assert capsys.readouterr().err == ""
    assert [_duration(s) for s in (5, 65, 3725)] == ["0:05", "1:05", "1:02:05"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_is_heeded_at_the_end_of_the_step(number, code):
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert not stop.reached(1)
        os.kill(os.getpid(), number)
        assert stop.reached(2)
        assert stop.exit_code == code
    assert signal.getsignal(number) == before


def test_a_second_interrupt_quits_at_once():
    program = textwrap.dedent("""
        import os, signal, time
        from unix_jax.training.preemption import StopRequest
        with StopRequest():
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(60)
    """)
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=50)
    assert run.returncode == 130
    assert run.stderr.count(b"\n") == 2

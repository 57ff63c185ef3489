"""What the directory of a run is taken for, and that nothing in it is lost."""

import errno
import json
import os
import shutil
import signal
import warnings
from pathlib import Path

import pytest

from support import toy_run
from support.files import content
from support.toy_run import one_error
from unix_jax.checkpoints import native, run_files
from unix_jax.checkpoints.run_export import resolve_checkpoint
from unix_jax.errors import CheckpointError
from unix_jax.storage.directory_lock import LOCK_FILE, DirectoryLock
from unix_jax.training import feed, start

IMAGES = Path(__file__).parents[2] / "examples" / "cxr" / "images"


@pytest.fixture
def run(whole, tmp_path):
    return shutil.copytree(whole("understanding"), tmp_path / "run")


def damage(step):
    file = max((p for p in step.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    os.truncate(file, 10)


def refused(train, capsys, toy, out, *options):
    """The error of a run that changes nothing in its directory."""
    before = content(out)
    error = one_error(train, capsys, toy("understanding"), "--out", out, *options)
    assert content(out) == before
    return error


def test_all_checkpoints_damaged(toy, train, run, capsys):
    for step in (6, 8):
        damage(run / "checkpoints" / str(step))
    error = refused(train, capsys, toy, run)
    assert "all 2 checkpoints are damaged (step 8: " in error
    assert "start a new run with another --out" in error


@pytest.mark.parametrize(
    ("lost", "expected"),
    [
        (["checkpoints"], "the weights of a finished run in"),
        (["checkpoints", "export"], "metrics.jsonl of 8 steps"),
        (["run.json"], "expected run.json beside its checkpoints"),
        (
            ["run.json", "checkpoints"],
            "found export, metrics.jsonl, frozen, tokenizer, parameters.txt without",
        ),
    ],
)
def test_no_checkpoint_is_not_a_new_run(toy, train, run, capsys, lost, expected):
    for name in lost:
        (shutil.rmtree if (run / name).is_dir() else os.unlink)(run / name)
    (run / "frozen").mkdir(exist_ok=True)
    (run / "frozen" / "x").touch()
    assert expected in refused(train, capsys, toy, run)


def test_only_what_was_moved_aside_before(toy, train, run, capsys):
    shutil.rmtree(run / "export")
    (run / "checkpoints" / "damaged").mkdir()
    for step in ("6", "8"):
        (run / "checkpoints" / step).rename(run / "checkpoints" / "damaged" / step)
    assert "damaged ones in" in refused(train, capsys, toy, run)


def test_a_record_that_is_broken(toy, train, run, capsys):
    (run / "run.json").write_text("{")
    assert "run.json: expected JSON" in refused(train, capsys, toy, run)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES])
def test_an_error_of_the_system_moves_nothing(toy, train, run, capsys, monkeypatch, number):
    def fails(file):
        raise OSError(number, os.strerror(number), str(file))

    monkeypatch.setattr(run_files, "_crc32", fails)
    error = refused(train, capsys, toy, run)
    assert f"cannot be read: {os.strerror(number)}" in error


@pytest.mark.extended
def test_a_kill_before_the_first_checkpoint(toy, train, whole, tmp_path, monkeypatch, capsys):
    """There is nothing to lose: the same command begins again."""
    original, asked = feed.Feed.__next__, []

    def killed(self):
        asked.append(1)
        if len(asked) == 4:
            raise SystemExit
        return original(self)

    arguments = [str(toy("understanding")), "--out", str(tmp_path)]
    with monkeypatch.context() as patch:
        patch.setattr(feed.Feed, "__next__", killed)
        with pytest.raises(SystemExit):
            train.main(arguments)
    assert (tmp_path / "run.json").exists()
    assert [line["step"] for line in toy_run.metrics(tmp_path)] == [2]
    (tmp_path / "notes.txt").touch()
    (tmp_path / ".metrics.jsonl.0123456789abcdef.tmp").touch()
    assert train.main(arguments) == 0
    toy_run.assert_same_run(whole("understanding"), tmp_path)
    assert (tmp_path / "notes.txt").exists()
    assert not list(tmp_path.glob(".*"))
    assert not (tmp_path / LOCK_FILE).exists()


def test_an_export_that_was_being_replaced(toy, train, run):
    (run / "export").rename(run / ".export-old")
    (run / ".export-new").mkdir()
    for path in (run / "checkpoints").iterdir():
        shutil.rmtree(path)
    # A refusal leaves all as it was; a run that resumes puts it back.
    assert train.main([str(toy("understanding")), "--out", str(run)]) == 1
    assert (run / ".export-old").exists()


def test_a_second_run_on_one_directory_changes_nothing(run, toy, train, capsys):
    with DirectoryLock(run):
        before = content(run)
        error = one_error(train, capsys, toy("understanding"), "--out", run, "--total-steps", "9")
        assert error.startswith(f"error: another run is writing {run} (process {os.getpid()} on ")
        assert content(run) == before


@pytest.mark.extended
def test_two_runs_on_one_directory(toy, train, whole, tmp_path, capsys):
    """The second is refused, and the first ends as if it were alone."""
    arguments = [str(toy("understanding")), "--out", str(tmp_path)]
    first = toy_run.launch(arguments)
    while not (tmp_path / LOCK_FILE).exists():
        assert first.poll() is None
    error = one_error(train, capsys, *arguments)
    assert error.startswith(f"error: another run is writing {tmp_path} (process {first.pid} on ")
    while not (tmp_path / "checkpoints" / "3").exists():
        assert first.poll() is None
    first.send_signal(signal.SIGSTOP)
    before = content(tmp_path)
    assert "another run is writing" in one_error(train, capsys, *arguments)
    assert content(tmp_path) == before
    first.send_signal(signal.SIGCONT)
    _, errors = first.communicate(timeout=300)
    assert first.returncode == 0, errors
    toy_run.assert_same_run(whole("understanding"), tmp_path)
    assert not (tmp_path / LOCK_FILE).exists()


@pytest.mark.extended
def test_a_killed_run_leaves_no_lock_that_holds(toy, train, whole, tmp_path, capsys):
    arguments = [str(toy("understanding")), "--out", str(tmp_path)]
    first = toy_run.launch(arguments)
    while not (tmp_path / "checkpoints" / "3").exists():
        assert first.poll() is None
    first.kill()
    first.communicate()
    assert (tmp_path / LOCK_FILE).exists()
    assert train.main(arguments) == 0
    errors = capsys.readouterr().err
    assert f"process {first.pid} on " in errors
    assert "has ended" in errors.splitlines()[0]
    toy_run.assert_same_run(whole("understanding"), tmp_path)


def test_where_a_checkpoint_is_expected_the_export_of_a_run_is_meant(run, tmp_path):
    assert resolve_checkpoint(run) == run / "export"
    assert resolve_checkpoint(run / "export") == run / "export"
    assert resolve_checkpoint(tmp_path / "nowhere") == tmp_path / "nowhere"
    shutil.rmtree(run / "export")
    with pytest.raises(CheckpointError, match=r"found checkpoints of the steps 6, 8 and no export"):
        resolve_checkpoint(run)
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(CheckpointError, match="found no checkpoints and no export"):
        resolve_checkpoint(run)


def test_commands_take_the_directory_of_a_run(run, tmp_path, capsys):
    from unix_jax.cli import main
    from unix_jax.commands.convert import main as convert
    from unix_jax.inference.pipeline import UniXPipeline

    def ends(command, *arguments):
        # One of them returns its code, the other exits with it.
        try:
            return command([str(a) for a in arguments]) or 0
        except SystemExit as end:
            return end.code or 0

    assert UniXPipeline.from_pretrained(run, compilation_cache=False).tokenizer is not None
    assert ends(main, "info", run, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads((run / "export" / "config.json").read_text())
    assert ends(main, "info", run) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "CRC-32 of every file" in printed
    assert "weights of step 8" in printed
    assert ends(convert, "cast", run, tmp_path / "cast") == 0
    assert native.is_checkpoint(tmp_path / "cast")
    assert ends(convert, "export", run, tmp_path / "published") == 0
    assert (tmp_path / "published" / "model.safetensors").exists()
    assert ends(convert, "inspect", run) == 0
    shutil.rmtree(run / "export")
    capsys.readouterr()
    xray = sorted(IMAGES.glob("*.jpg"))[0]
    for command, *arguments in (
        (main, "info", run),
        (main, "report", xray, "--checkpoint", run),
        (convert, "cast", run, tmp_path / "none"),
        (convert, "export", run, tmp_path / "none"),
        (convert, "check", run, toy_run.TOKENIZER.parent),
        (convert, "inspect", run),
    ):
        assert ends(command, *arguments) == 1, arguments
        error = capsys.readouterr().err
        assert "Resume the run with the same command until it ends" in error.replace("\n", " ")
    assert not (tmp_path / "none").exists()


def test_a_finished_run_trains_nothing_and_records_nothing(run, toy, train, capsys):
    record = (run / "run.json").read_bytes()
    arguments = [str(toy("understanding")), "--out", str(run)]
    assert train.main([*arguments, "--optimizer.learning-rate", "0.5"]) == 0
    error = capsys.readouterr().err
    assert "the run ended at step 8: nothing is left to train; not used and not recorded: " in error
    assert "optimizer.learning_rate: 0.01 -> 0.5" in error
    assert (run / "run.json").read_bytes() == record
    error = one_error(train, capsys, *arguments, "--total-steps", "3")
    assert "total_steps: expected at least 8, which the run in" in error
    assert (run / "run.json").read_bytes() == record


def test_a_lock_that_is_no_file_is_named(toy, train, tmp_path, capsys):
    (tmp_path / LOCK_FILE).mkdir()
    error = one_error(train, capsys, str(toy("understanding")), "--out", str(tmp_path))
    assert f"{tmp_path / LOCK_FILE}: cannot be written" in error


def test_another_tokenizer_than_that_of_the_start_is_said(tmp_path):
    for name, text in (("init", "{}"), ("same", "{}"), ("other", "{ }")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokenizer.json").write_text(text)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        start._warn_of_another_tokenizer(tmp_path / "same", tmp_path / "init")
        start._warn_of_another_tokenizer(tmp_path / "other", None)
    with pytest.warns(UserWarning, match="is not the tokenizer of --init"):
        start._warn_of_another_tokenizer(tmp_path / "other", tmp_path / "init")

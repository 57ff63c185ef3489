"""Atomic outputs: whole or absent, and never over something else."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from unix_jax.errors import UniXError
from unix_jax.storage import files
from unix_jax.storage.files import atomic_directory, atomic_write


def names(path):
    return sorted(p.name for p in path.iterdir())


def test_directory_appears_at_the_end(tmp_path):
    target = tmp_path / "out"
    with atomic_directory(target) as temporary:
        assert temporary.parent == tmp_path
        assert temporary.is_dir()
        (temporary / "a").write_text("1")
        assert not target.exists()
    assert names(tmp_path) == ["out"]
    assert (target / "a").read_text() == "1"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_nothing_stays_after_a_failure(tmp_path, error):
    def fail(writer):
        with writer(tmp_path / "out") as temporary:
            target = temporary / "a" if temporary.is_dir() else temporary
            target.write_text("half")
            raise error

    for writer in (atomic_directory, atomic_write):
        with pytest.raises(error):
            fail(writer)
    assert names(tmp_path) == []


def test_existing_directory_is_refused_before_any_work(tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    (target / "precious").write_text("x")
    with pytest.raises(UniXError, match="out: exists already"), atomic_directory(target):
        pytest.fail("must not start")
    assert names(tmp_path) == ["out"]
    assert (target / "precious").read_text() == "x"


def test_existing_file_is_refused_as_directory(tmp_path):
    (tmp_path / "out").write_text("x")
    with pytest.raises(UniXError, match="exists already"), atomic_directory(tmp_path / "out"):
        pytest.fail("must not start")
    assert (tmp_path / "out").read_text() == "x"


def test_empty_directory_is_replaced(tmp_path):
    (tmp_path / "out").mkdir()
    with atomic_directory(tmp_path / "out") as temporary:
        (temporary / "a").touch()
    assert names(tmp_path / "out") == ["a"]


def test_parents_are_created(tmp_path):
    with atomic_directory(tmp_path / "a" / "b"):
        pass
    with atomic_write(tmp_path / "c" / "d") as temporary:
        temporary.write_text("1")
    assert (tmp_path / "a" / "b").is_dir()
    assert (tmp_path / "c" / "d").read_text() == "1"


def test_relative_paths_survive_a_change_of_directory(tmp_path, monkeypatch):
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    with atomic_directory("out"), atomic_write("file") as temporary:
        temporary.write_text("1")
        os.chdir(tmp_path / "other")
    assert names(tmp_path) == ["file", "other", "out"]


@pytest.mark.parametrize("writer", [atomic_directory, atomic_write])
def test_parent_that_is_a_file(tmp_path, writer):
    (tmp_path / "file").write_text("x")
    with (
        pytest.raises(UniXError, match="cannot be created"),
        writer(tmp_path / "file" / "out"),
    ):
        pytest.fail("must not start")
    assert names(tmp_path) == ["file"]


def test_write_replaces_and_keeps_the_old_on_failure(tmp_path):
    target = tmp_path / "out"
    target.write_text("old")

    def fail():
        with atomic_write(target) as temporary:
            temporary.write_text("new")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert target.read_text() == "old"
    with atomic_write(target) as temporary:
        temporary.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert names(tmp_path) == ["out"]


def test_two_writers_do_not_share_a_temporary(tmp_path):
    with atomic_write(tmp_path / "out") as first, atomic_write(tmp_path / "out") as second:
        assert first != second
        first.write_text("1")
        second.write_text("2")
    assert (tmp_path / "out").read_text() == "1"


def test_write_over_a_directory(tmp_path):
    """One clear error, and the temporary goes."""
    (tmp_path / "out").mkdir()
    with (
        pytest.raises(UniXError, match="out: expected a file, found a directory"),
        atomic_write(tmp_path / "out"),
    ):
        pytest.fail("must not start")
    assert names(tmp_path) == ["out"]


WRITING = textwrap.dedent("""
    import sys, time
    from unix_jax.storage.files import atomic_directory
    with atomic_directory(sys.argv[1]) as temporary:
        (temporary / "half").touch()
        print(temporary.name, flush=True)
        time.sleep(60)
""")


@pytest.fixture
def writer(tmp_path):
    """A process in the middle of writing `tmp_path`/out, and its temporary name."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITING, tmp_path / "out"], stdout=subprocess.PIPE, text=True
    )
    yield process, process.stdout.readline().strip()
    process.kill()
    process.communicate()


def kill(process):
    process.send_signal(signal.SIGKILL)
    process.wait()


def write(target):
    with atomic_directory(target):
        pass


def test_what_a_killed_process_left_is_swept_by_the_next_of_the_same_target(tmp_path, writer):
    process, temporary = writer
    kill(process)
    write(tmp_path / "other")
    # Of another target: "out" is only the beginning of its name.
    write(tmp_path / "out.bak")
    assert names(tmp_path) == sorted([temporary, "other", "out.bak"])
    write(tmp_path / "out")
    assert names(tmp_path) == ["other", "out", "out.bak"]


def test_a_living_process_keeps_its_temporary_directory(tmp_path, writer):
    process, temporary = writer
    write(tmp_path / "out")
    assert process.poll() is None
    assert names(tmp_path) == sorted([temporary, "out"])


@pytest.mark.parametrize("reason", ["another machine", "no locks"])
def test_what_cannot_be_checked_is_swept_by_age(tmp_path, writer, monkeypatch, reason):
    process, temporary = writer
    kill(process)
    if reason == "no locks":
        held = files._held
        monkeypatch.setattr(files, "_held", lambda path: (held(path)[0], None))
    else:
        monkeypatch.setattr(files, "_machine", lambda: "0" * 8)
    write(tmp_path / "out")
    assert temporary in names(tmp_path)
    (tmp_path / "out").rmdir()
    old = time.time() - 25 * 3600
    os.utime(tmp_path / temporary, (old, old))
    # Something inside is new.
    write(tmp_path / "out")
    assert temporary in names(tmp_path)
    (tmp_path / "out").rmdir()
    os.utime(tmp_path / temporary / "half", (old, old))
    write(tmp_path / "out")
    assert names(tmp_path) == ["out"]


def test_files_and_links_of_such_a_name_are_left(tmp_path):
    name = ".out." + "0" * 16 + ".tmp"
    (tmp_path / "precious").mkdir()
    (tmp_path / name).symlink_to(tmp_path / "precious")
    old = time.time() - 25 * 3600
    os.utime(tmp_path / name, (old, old), follow_symlinks=False)
    write(tmp_path / "out")
    assert names(tmp_path) == sorted([name, "out", "precious"])

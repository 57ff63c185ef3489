"""Atomic outputs: whole or absent, and never over something else."""

import os

import pytest

from unix_jax.errors import UniXError
from unix_jax.files import atomic_directory, atomic_write


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

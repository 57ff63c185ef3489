"""One process writes a directory; the locks of processes that ended are taken over."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import textwrap

import pytest

from unix_jax.errors import UniXError
from unix_jax.storage import directory_lock
from unix_jax.storage.directory_lock import LOCK_FILE, DirectoryLock, this_process

HOLD = textwrap.dedent("""
    import sys, time
    from unix_jax.storage.directory_lock import DirectoryLock
    with DirectoryLock(sys.argv[1]):
        print("held", flush=True)
        time.sleep(60)
""")


@pytest.fixture
def holder(tmp_path):
    """Another process that holds `tmp_path`."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def write_owner(directory, **changed):
    owner = dataclasses.replace(this_process(), token="other", **changed)
    (directory / LOCK_FILE).write_text(json.dumps(dataclasses.asdict(owner)))
    return owner


@pytest.fixture
def no_kernel_locks(monkeypatch):
    monkeypatch.setattr(directory_lock, "_kernel_lock", lambda _: None)


def test_released_and_taken_again(tmp_path):
    for _ in range(2):
        with DirectoryLock(tmp_path / "a" / "run") as lock:
            assert lock.path.exists()
            assert lock.note == ""
            (tmp_path / "a" / "run" / "result").touch()
        assert os.listdir(tmp_path / "a" / "run") == ["result"]


def test_a_directory_that_was_not_used_goes_again(tmp_path):
    with pytest.raises(RuntimeError), DirectoryLock(tmp_path / "run"):
        raise RuntimeError
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("break_lock", [False, True])
def test_the_second_is_refused(tmp_path, holder, break_lock):
    """A process that runs on this machine is never robbed."""
    with pytest.raises(UniXError) as error:
        DirectoryLock(tmp_path, break_lock=break_lock)
    text = str(error.value)
    assert text.startswith(f"another run is writing {tmp_path} (process {holder.pid} on ")
    assert "since 20" in text
    assert "--break-lock" not in text
    assert holder.poll() is None
    assert os.listdir(tmp_path) == [LOCK_FILE]


def test_the_same_process_twice(tmp_path):
    with DirectoryLock(tmp_path), pytest.raises(UniXError, match="another run is writing"):
        DirectoryLock(tmp_path)


def test_a_killed_process_loses_it(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / LOCK_FILE).exists()
    with DirectoryLock(tmp_path) as lock:
        assert f"process {holder.pid} on" in lock.note
        assert "has ended" in lock.note
        assert "\n" not in lock.note
    assert os.listdir(tmp_path) == []


def test_without_kernel_locks(tmp_path, holder, no_kernel_locks):
    with pytest.raises(UniXError, match=f"process {holder.pid} on"):
        DirectoryLock(tmp_path)
    holder.kill()
    holder.wait()
    with DirectoryLock(tmp_path) as lock:
        assert "has ended" in lock.note


@pytest.mark.parametrize(
    "changed",
    [
        {"started": "1"},  # another process has its number now
        {"boot": "another start of this machine"},
    ],
)
@pytest.mark.parametrize("kernel", [True, None])
def test_a_dead_process_of_this_machine(tmp_path, monkeypatch, changed, kernel):
    monkeypatch.setattr(directory_lock, "_kernel_lock", lambda _: kernel)
    write_owner(tmp_path, **changed)
    with DirectoryLock(tmp_path) as lock:
        assert "has ended" in lock.note


@pytest.mark.parametrize(
    ("kernel", "changed"),
    [
        (True, {"host": "elsewhere", "boot": "other"}),
        (False, {"host": "elsewhere", "boot": "other"}),
        (None, {"host": "elsewhere", "boot": "other"}),
        (None, {"namespace": "another container"}),
    ],
)
def test_what_cannot_be_checked_is_refused_and_can_be_broken(
    tmp_path, monkeypatch, kernel, changed
):
    locks = [kernel]
    # A file that another process holds is replaced: of the new one we get the lock.
    monkeypatch.setattr(directory_lock, "_kernel_lock", lambda _: locks[0])
    owner = write_owner(tmp_path, **changed)
    before = (tmp_path / LOCK_FILE).read_bytes()
    with pytest.raises(
        UniXError, match=rf"{re.escape(str(owner))}.*cannot be checked.*--break-lock"
    ):
        DirectoryLock(tmp_path)
    assert (tmp_path / LOCK_FILE).read_bytes() == before
    if kernel is False:
        monkeypatch.setattr(
            directory_lock, "_kernel_lock", lambda _: locks.pop() if locks else True
        )
    with DirectoryLock(tmp_path, break_lock=True) as lock:
        assert lock.path.exists()
    assert os.listdir(tmp_path) == []


def test_a_container_that_was_started_again(tmp_path):
    """Its process numbers say nothing, but the kernel's lock does."""
    write_owner(tmp_path, namespace="another container")
    with DirectoryLock(tmp_path) as lock:
        assert "has ended" in lock.note


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": 1}', "\xff" * 10])
def test_a_lock_that_names_nobody(tmp_path, monkeypatch, text):
    (tmp_path / LOCK_FILE).write_text(text)
    with monkeypatch.context() as patch:
        patch.setattr(directory_lock, "_kernel_lock", lambda _: None)
        with pytest.raises(UniXError, match="--break-lock"):
            DirectoryLock(tmp_path)
    with DirectoryLock(tmp_path):
        pass
    assert os.listdir(tmp_path) == []


def test_a_broken_lock_is_not_removed_by_its_first_owner(tmp_path):
    first = DirectoryLock(tmp_path)
    first.path.unlink()
    with DirectoryLock(tmp_path) as second:
        first.release()
        assert second.path.exists()


def test_a_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UniXError, match=r"file/run: cannot be written: Not a directory"):
        DirectoryLock(tmp_path / "file" / "run")

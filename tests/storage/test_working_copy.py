"""Directories that are written in a bucket: order of uploads, kills, locks."""

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support import bucket_servers
from unix_jax.errors import StorageError, UniXError
from unix_jax.storage import bucket_cache, bucket_lock, buckets, working_copy
from unix_jax.storage.bucket_lock import BucketLock
from unix_jax.storage.directory_lock import this_process
from unix_jax.storage.files import atomic_directory, atomic_write
from unix_jax.storage.working_copy import WorkingCopy, working_file


@pytest.fixture(scope="module", params=["gs", pytest.param("s3", marks=pytest.mark.extended)])
def server(request):
    with {"gs": bucket_servers.gcs, "s3": bucket_servers.s3}[request.param]() as proxy:
        proxy.scheme = request.param
        yield proxy


@pytest.fixture
def root(server, tmp_path, monkeypatch, request):
    monkeypatch.setenv("UNIX_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(working_copy, "_SECONDS", 1000.0)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    yield f"{server.scheme}://{bucket_servers.BUCKET}/{request.node.name.partition('[')[0]}"
    server.fault = lambda method, path: None
    assert not list((tmp_path / "work").iterdir())


def write(folder, name, text):
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def contents(url):
    return {name: buckets.read(f"{url}/{name}").decode() for name in buckets.entries(url)}


def test_a_directory_survives_its_local_copy(root):
    with working_copy.working_copy(root) as out:
        write(out, "run.json", "{}")
        write(out, "metrics.jsonl", '{"step": 1}\n{"ste')
        write(out, f".a.{'0' * 16}.tmp", "no")
        write(out, ".export-new/x", "no")
        write(out, "params/.zarray", "{}")
        write(out, "checkpoints/1.orbax-checkpoint-tmp-2/x", "no")
    assert not out.exists()
    written = {"run.json": "{}", "metrics.jsonl": '{"step": 1}\n', "params/.zarray": "{}"}
    assert contents(root) == written
    with working_copy.working_copy(root, lambda name: name != "run.json") as out:
        assert (out / "run.json").read_text() == ""
        assert (out / "metrics.jsonl").read_text() == '{"step": 1}\n'
        (out / "metrics.jsonl").unlink()
        write(out, "new", "x")
    assert contents(root) == {"run.json": "{}", "new": "x", "params/.zarray": "{}"}


def test_listings_are_written_last_and_deleted_first(root, server):
    copy = WorkingCopy(root)
    write(copy.path, "checkpoints/2/files.json", "{}")
    write(copy.path, "checkpoints/2/state/data", "2")
    write(copy.path, "export/index.json", "old")
    write(copy.path, "export/params/w", "old")
    seen = []
    original, removed = buckets.write, buckets.delete
    names = lambda url: url.removeprefix(f"{root}/")  # noqa: E731
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            buckets, "write", lambda url, data: (seen.append(names(url)), original(url, data))
        )
        patch.setattr(buckets, "delete", lambda url: (seen.append(f"-{names(url)}"), removed(url)))
        copy.sync()
        assert seen[2:] == ["export/index.json", "checkpoints/2/files.json"]
        seen.clear()
        write(copy.path, "export/params/w", "newer")
        (copy.path / "checkpoints/2/state/data").unlink()
        copy.sync()
    assert set(seen[:2]) == {"-export/index.json", "-checkpoints/2/files.json"}
    assert seen.index("export/params/w") < seen.index("export/index.json")
    assert "checkpoints/2/state/data" not in contents(root)
    copy.close()


def test_a_checkpoint_without_its_listing_is_removed(root):
    for name in ("checkpoints/1/state/x", "checkpoints/1/files.json", "checkpoints/2/state/x"):
        buckets.write(f"{root}/{name}", b"x")
    with working_copy.working_copy(root) as out:
        assert sorted(p.name for p in (out / "checkpoints").iterdir()) == ["1"]
    assert set(contents(root)) == {"checkpoints/1/state/x", "checkpoints/1/files.json"}


def test_an_upload_during_a_download_changes_nothing(root, server, monkeypatch):
    for name in ("files.json", "state/x"):
        buckets.write(f"{root}/checkpoints/1/{name}", b"x")
    before = contents(root)
    monkeypatch.setattr(working_copy, "_SECONDS", 0.01)
    with working_copy.closing(WorkingCopy(root, lambda name: False)) as copy:
        original = buckets.download_all

        def slowly(url, wanted, folder):
            for name in wanted:
                (folder / name).write_bytes(b"half")
            time.sleep(0.2)
            original(url, wanted, folder)

        monkeypatch.setattr(buckets, "download_all", slowly)
        server.requests.clear()
        copy.fetch(list(before))
        time.sleep(0.2)
        assert {method for method, path in server.requests} == {"GET"}
        assert (copy.path / "checkpoints/1/state/x").read_text() == "x"
    assert contents(root) == before


def test_what_cannot_be_uploaded_is_kept(root, server, monkeypatch):
    monkeypatch.setattr(buckets, "_PATIENCE", 0.0)
    copy = WorkingCopy(root)
    write(copy.path, "a", "precious")
    server.fault = lambda method, path: 403 if method in ("POST", "PUT") else None
    with pytest.raises(StorageError, match="no permission") as caught:
        copy.close()
    kept = str(caught.value).rpartition(" ")[2]
    assert Path(kept, "a").read_text() == "precious"
    server.fault = lambda method, path: None
    with working_copy.working_copy(root):  # the lock was released
        pass


def test_files_of_one_name(root):
    buckets.write(f"{root}/other.jsonl", b"1\n")
    buckets.write(f"{root}/clean.partial.jsonl", b"2\n")
    with working_file(f"{root}/clean.jsonl") as file:
        assert sorted(p.name for p in file.parent.iterdir()) == ["clean.partial.jsonl"]
        (file.parent / "clean.partial.jsonl").unlink()
        file.write_text("3\n")
    assert contents(root) == {"other.jsonl": "1\n", "clean.jsonl": "3\n"}


@pytest.fixture
def requests(root, monkeypatch):
    """The names that are written, and those that are deleted with a minus, in their order."""
    seen = []
    written, removed = buckets.write, buckets.delete
    name = lambda url: url.removeprefix(f"{root}/")  # noqa: E731
    monkeypatch.setattr(
        buckets, "write", lambda url, data: (seen.append(name(url)), written(url, data))
    )
    monkeypatch.setattr(buckets, "delete", lambda url: (seen.append(f"-{name(url)}"), removed(url)))
    return seen


def test_a_named_file_counts_when_those_beside_it_are_there(root, requests):
    buckets.write(f"{root}/clean.partial.jsonl", b"1\n")
    with working_file(f"{root}/clean.jsonl") as file:
        write(file.parent, "clean.jsonl", "2\n")
        write(file.parent, "clean.rejected.jsonl", "3\n")
        (file.parent / "clean.partial.jsonl").unlink()
        requests.clear()
    order = ["clean.rejected.jsonl", "clean.jsonl", "-clean.partial.jsonl"]
    assert [name for name in requests if "lock" not in name] == order


def test_nothing_is_deleted_before_what_replaced_it(root, requests, monkeypatch):
    """A file is written, and the one that it replaces removed, while the directory is read."""
    buckets.write(f"{root}/old", b"1")
    copy = WorkingCopy(root)
    scan = copy._scan

    def halfway():
        yield from scan()
        monkeypatch.setattr(copy, "_scan", scan)
        write(copy.path, "new", "2")

    (copy.path / "old").unlink()
    monkeypatch.setattr(copy, "_scan", halfway)
    requests.clear()
    copy.sync()
    assert requests == ["new", "-old"]
    copy.close()


# --- the lock ------------------------------------------------------------------------------------


def test_one_process_writes(root):
    with working_copy.working_copy(root), pytest.raises(UniXError, match="another run is writing"):
        WorkingCopy(root)
    with working_copy.working_copy(root):
        pass


def foreign(root, **changes):
    owner = dataclasses.replace(this_process(), **changes)
    buckets.write(f"{root}/run.lock", json.dumps(dataclasses.asdict(owner)).encode())


def test_the_lock_of_another_machine(root, monkeypatch):
    foreign(root, host="elsewhere")
    with pytest.raises(UniXError, match=r"cannot be checked.*--break-lock") as caught:
        BucketLock(root)
    assert "\n" not in str(caught.value)
    lock = BucketLock(root, break_lock=True)
    assert "is broken" in lock.note
    foreign(root, host="elsewhere")  # it was taken meanwhile
    assert lock.is_lost()
    monkeypatch.setattr(bucket_lock, "RENEWED_SECONDS", 0.0)
    with pytest.raises(UniXError, match="another run has taken its lock"):
        lock.renew()
    lock.release()
    assert "run.lock" in buckets.entries(root)
    monkeypatch.setattr(bucket_lock, "ABANDONED_SECONDS", -1.0)
    lock = BucketLock(root)
    assert "has ended" in lock.note
    lock.renew()
    lock.release()
    assert not buckets.entries(root)


def test_the_lock_of_a_killed_process(root):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    foreign(root, pid=process.pid, started="1")
    lock = BucketLock(root)
    assert "has ended" in lock.note
    lock.release()


def test_local_copies_of_killed_processes_are_removed(root, tmp_path):
    code = (
        "import os, sys; from unix_jax.storage import working_copy; "
        "working_copy._new_home('gs://bucket/x'); os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    outputs = bucket_cache.cache_directory() / "outputs"
    assert len(os.listdir(outputs)) == 1
    with working_copy.working_copy(root):
        assert len(os.listdir(outputs)) == 1
    assert not os.listdir(outputs)


# --- atomic writes -------------------------------------------------------------------------------


def test_atomic_directory(root):
    with atomic_directory(root) as directory:
        write(directory, "index.json", "{}")
        write(directory, "params/w", "1")
    assert contents(root) == {"index.json": "{}", "params/w": "1"}
    with pytest.raises(UniXError, match=f"{root}: exists already"), atomic_directory(root):
        pass
    with pytest.raises(ZeroDivisionError), atomic_directory(f"{root}2"):
        1 / 0  # noqa: B018
    assert not buckets.entries(f"{root}2")


def test_an_atomic_directory_that_was_cut_off(root, server, monkeypatch):
    monkeypatch.setattr(buckets, "_PATIENCE", 0.0)
    server.fault = lambda method, path: (
        403 if "index.json" in path and method in ("POST", "PUT") else None
    )
    run = lambda: atomic_directory(root)  # noqa: E731

    def attempt():
        with run() as directory:
            write(directory, "index.json", "{}")
            write(directory, "params/w", "1")

    if server.scheme == "s3":  # names are in the path
        with pytest.raises(StorageError, match="no permission"):
            attempt()
    else:
        buckets.write(f"{root}/{bucket_cache.INCOMPLETE}", b"")
        buckets.write(f"{root}/old", b"")
    assert bucket_cache.INCOMPLETE in buckets.entries(root)
    server.fault = lambda method, path: None
    attempt()
    assert contents(root) == {"index.json": "{}", "params/w": "1"}


def test_atomic_write(root):
    for text in ("1", "2"):
        with atomic_write(f"{root}/a.txt") as file:
            file.write_text(text)
    assert contents(root) == {"a.txt": "2"}
    with pytest.raises(UniXError, match="expected a file, found a directory"), atomic_write(root):
        pass

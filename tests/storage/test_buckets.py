"""Objects of buckets on servers on loopback: reading, writing, faults, and the cache."""

import itertools
import os
from pathlib import Path

import pytest

from support import bucket_servers
from unix_jax.errors import StorageError
from unix_jax.storage import bucket_cache, buckets
from unix_jax.storage.bucket_path import BucketPath, any_path
from unix_jax.storage.shown import shown


@pytest.fixture(scope="module", params=["gs", "s3"])
def server(request):
    with {"gs": bucket_servers.gcs, "s3": bucket_servers.s3}[request.param]() as proxy:
        proxy.scheme = request.param
        yield proxy


@pytest.fixture
def root(server, tmp_path, monkeypatch, request):
    monkeypatch.setenv("UNIX_JAX_CACHE", str(tmp_path / "cache"))
    yield f"{server.scheme}://{bucket_servers.BUCKET}/{request.node.name.partition('[')[0]}"
    server.fault = lambda method, path: None


def test_objects(root):
    buckets.write(f"{root}/a/b.txt", b"hello")
    buckets.write(f"{root}/c", b"")
    buckets.write(f"{root}2", b"another name that begins alike")
    found = buckets.entries(root)
    assert {name: entry.size for name, entry in found.items()} == {"a/b.txt": 5, "c": 0}
    assert buckets.read(f"{root}/a/b.txt") == b"hello"
    assert [buckets.read(f"{root}/c", n) for n in (None, 10)] == [b"", b""]
    assert buckets.read(f"{root}/a/b.txt", 2) == b"he"
    assert buckets.children(root) == {"a": False, "c": True}
    assert buckets.entry(f"{root}/a") is None
    assert buckets.entry(f"{root}/a/b.txt") == found["a/b.txt"]
    assert (buckets.is_folder(f"{root}/a"), buckets.is_folder(f"{root}/none")) == (True, False)
    buckets.delete(f"{root}/c")
    buckets.delete(f"{root}/c")
    assert set(buckets.entries(root)) == {"a/b.txt"}


@pytest.mark.parametrize("end", [b"\r", b"\n", b"\r\n", b"\n--==0==--", b"\0"])
def test_every_byte_is_kept(root, end, tmp_path):
    root = f"{root}/{end.hex()}"
    data = b"\x0c\xdb\r\n\n" + end
    buckets.write(f"{root}/x", data)
    assert buckets.create(f"{root}/y", data)
    large = tmp_path / "large"
    large.write_bytes(bytes(buckets._SMALL) + data)
    buckets.upload(large, f"{root}/large")
    assert [buckets.read(f"{root}/{name}") for name in "xy"] == [data] * 2
    assert buckets.read(f"{root}/large") == large.read_bytes()


def test_creation_succeeds_once(root):
    assert buckets.create(f"{root}/lock", b"1")
    assert not buckets.create(f"{root}/lock", b"2")
    assert buckets.read(f"{root}/lock") == b"1"


def test_paths_read(root):
    buckets.write(f"{root}/a/b.txt", "é".encode())
    path = any_path(root)
    assert isinstance(path / "a", BucketPath)
    assert (path / "a" / "b.txt").read_text() == "é"
    assert [str(p) for p in path.rglob("*.txt")] == [f"{root}/a/b.txt"]
    assert [p.name for p in path.iterdir()] == ["a"]
    assert (path / "a").is_dir()
    assert not (path / "a").is_file()
    assert (path / "a/b.txt").stat().st_size == 2
    with pytest.raises(FileNotFoundError, match="no such object"):
        (path / "none").read_bytes()
    for leaving in ("../other", "/etc/passwd"):
        with pytest.raises(OSError, match="expected gs://"):
            (path / leaving).read_bytes()
    for write in (path.mkdir, path.touch, lambda: path.write_text("x"), lambda: path.open("w")):
        with pytest.raises(OSError, match="can only be read"):
            write()


# --- faults --------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [503, 429, "reset", "silence"])
def test_passing_faults_are_repeated(root, server, fault, monkeypatch):
    monkeypatch.setattr(buckets, "_SILENCE", 0.3)
    buckets._system.cache_clear()
    monkeypatch.setattr(buckets.time, "sleep", lambda seconds: None)
    data = os.urandom(200_000)
    turns = itertools.cycle([fault, None, None])
    server.fault = lambda method, path: next(turns)
    buckets.write(f"{root}/x", data)
    assert buckets.read(f"{root}/x") == data
    server.fault = lambda method, path: None
    assert buckets.entry(f"{root}/x").size == len(data)
    buckets._system.cache_clear()


@pytest.mark.slow
def test_a_server_that_stays_away(root, server, monkeypatch):
    monkeypatch.setattr(buckets.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(buckets, "_PATIENCE", 0.0)
    server.fault = lambda method, path: 503
    assert f"{root}/x: cannot be reached: " in one_line(lambda: buckets.read(f"{root}/x"))


def one_line(action):
    with pytest.raises(StorageError) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_bucket_that_is_not_there(server):
    url = f"{server.scheme}://no-such-bucket/x"
    for action in (
        lambda: buckets.write(url, b""),
        lambda: buckets.entries(url),
        lambda: bucket_cache.fetch(url, lambda names, file: names),
    ):
        assert one_line(action) == (f"{url}: no such bucket {server.scheme}://no-such-bucket")


def test_no_permission(root, server):
    server.fault = lambda method, path: 403
    for action in (lambda: buckets.read(f"{root}/x"), lambda: buckets.write(f"{root}/x", b"")):
        assert f"{root}/x: no permission" in one_line(action)


def test_no_credentials(root, server, tmp_path, monkeypatch):
    if server.scheme == "s3":
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        monkeypatch.setenv("HOME", str(tmp_path))
        buckets._system.cache_clear()
        advice = "set AWS_ACCESS_KEY_ID"
    else:  # without credentials, requests are anonymous
        server.fault = lambda method, path: 401
        advice = "log in with `gcloud auth"
    assert f"{root}/x: no credentials; {advice}" in one_line(lambda: buckets.read(f"{root}/x"))
    buckets._system.cache_clear()


def test_a_missing_extra_is_named(monkeypatch):
    import fsspec

    def missing(name):
        raise ImportError("no module named gcsfs")

    monkeypatch.setattr(fsspec, "get_filesystem_class", missing)
    buckets._system.cache_clear()
    with pytest.raises(Exception, match=r"pip install 'unix-jax\[gcs\]'"):
        buckets.read("gs://bucket/x")


# --- the cache -----------------------------------------------------------------------------------


def everything(names, file):
    return list(names) if file is None else [file]


def test_the_cache(root, server):
    buckets.write(f"{root}/a/b.txt", b"one")
    buckets.write(f"{root}/c.txt", b"two")
    copy = bucket_cache.fetch(root, everything)
    assert (copy / "a/b.txt").read_bytes() == b"one"
    assert shown(f"{copy}/a/b.txt: broken") == f"{root}/a/b.txt: broken"
    server.requests.clear()
    assert bucket_cache.fetch(root, everything) == copy
    assert not [path for _, path in server.requests if "b.txt" in path.partition("?")[0]]
    buckets.write(f"{root}/a/b.txt", b"ONE")
    other = bucket_cache.fetch(root, everything)
    assert (other / "a/b.txt").read_bytes() == b"ONE"
    assert (copy / "a/b.txt").read_bytes() == b"one"
    assert bucket_cache.fetch(f"{root}/c.txt", everything).read_bytes() == b"two"
    assert bucket_cache.fetch_file(f"{root}/c.txt").read_bytes() == b"two"
    assert one_line(lambda: bucket_cache.fetch(f"{root}/none", everything)) == (
        f"{root}/none: no such object or folder"
    )


def test_the_cache_is_bounded(root, monkeypatch):
    monkeypatch.setenv("UNIX_JAX_CACHE_GB", "0.000001")
    for name in "abc":
        buckets.write(f"{root}/{name}", name.encode() * 400)
    kept = [bucket_cache.fetch_file(f"{root}/{name}") for name in "ab"]
    message = one_line(lambda: bucket_cache.fetch_file(f"{root}/c"))
    assert "UNIX_JAX_CACHE_GB" in message
    # What no process holds any more makes room.
    os.close(bucket_cache._HELD.pop(kept[0].parents[1]))
    assert bucket_cache.fetch_file(f"{root}/c").read_bytes() == b"c" * 400
    assert [path.exists() for path in kept] == [False, True]
    monkeypatch.setenv("UNIX_JAX_CACHE_GB", "many")
    assert "UNIX_JAX_CACHE_GB: expected a number" in one_line(
        lambda: bucket_cache.fetch_file(f"{root}/a")
    )


def test_an_incomplete_folder_is_refused(root):
    buckets.write(f"{root}/index.json", b"{}")
    buckets.write(f"{root}/{bucket_cache.INCOMPLETE}", b"")
    assert "is not complete" in one_line(lambda: bucket_cache.fetch(root, everything))


# --- URLs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "url"),
    [("gs://bucket/x/", "gs://bucket/x"), (" S3://bucket//a", "s3://bucket/a"),
     (Path("gs://bucket/x"), "gs://bucket/x"), ("gs:/bucket", "gs://bucket")],
)  # fmt: skip
def test_urls(text, url):
    assert buckets.bucket_url(text) == url
    assert str(any_path(text)) == url


@pytest.mark.parametrize("text", ["gs://", "gs:///", "s3://b?x/y", "gs://bucket/../x", "gs://-b/x"])
def test_broken_urls(text):
    with pytest.raises(StorageError, match="--out: expected gs://BUCKET/NAME"):
        any_path(text, "--out")

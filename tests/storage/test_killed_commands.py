"""`evaluate` and `clean` with an output in a bucket, killed with SIGKILL and started again.

Nothing is lost and nothing is there twice: the result equals that of a local run without kills.
"""

import itertools
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from support import bucket_servers
from support.chat_server import ChatServer, write_reports
from support.paths import ROOT
from unix_jax import cli
from unix_jax.storage import buckets

TINY = ROOT / "tests" / "golden" / "tiny" / "checkpoint"
# The command line, with uploads so frequent that a test need not wait for them.
COMMAND = [
    sys.executable,
    "-c",
    "import sys; from unix_jax import cli; from unix_jax.storage import working_copy as copies; "
    "copies._SECONDS = copies._GROWING_SECONDS = 0.05; sys.exit(cli.main(sys.argv[1:]))",
]


_PLAIN = str.maketrans("[", "-", "]")


@pytest.fixture(scope="module")
def server():
    with bucket_servers.gcs() as proxy:
        yield proxy


@pytest.fixture
def root(server, tmp_path, monkeypatch, request):
    """A URL for this test. The working directory stays empty."""
    monkeypatch.setenv("UNIX_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OPENAI_API_KEY", "key")
    # A kill may leave half a program, which other tests must not find.
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "compiled"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    yield f"gs://{bucket_servers.BUCKET}/{request.node.name.translate(_PLAIN)}"
    server.fault = lambda method, path: None
    assert not os.listdir(tmp_path / "work")


def start(*arguments):
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process):
    said = process.communicate(timeout=600)[0]
    assert process.returncode == 0, said
    return said


def kill_at(process, reached):
    """Kills a process as soon as `reached()`, which must be before its end."""
    deadline = time.monotonic() + 600
    while not reached():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def line_count(url):
    try:
        return buckets.read(url).count(b"\n")
    except buckets.MissingError:
        return 0


def names(url):
    return {name: buckets.read(f"{url}/{name}") for name in buckets.entries(url)}


@pytest.mark.slow
def test_clean_with_an_endpoint(root, server, tmp_path):
    write_reports(tmp_path / "in.jsonl", 60)
    buckets.upload(tmp_path / "in.jsonl", f"{root}/in.jsonl")
    model = ("--model", "m", "--concurrency", "4")
    with ChatServer() as chat:
        local = tmp_path / "local" / "out.jsonl"
        finish(start("clean", tmp_path / "in.jsonl", local, "--endpoint", chat.url, *model))
    with ChatServer(delay=0.02) as chat:
        command = ("clean", f"{root}/in.jsonl", f"{root}/out.jsonl", "--endpoint", chat.url, *model)
        journal = f"{root}/out.partial.jsonl"
        process = start(*command)
        kill_at(process, lambda: line_count(journal) > 12)
        assert set(buckets.entries(root)) == {"in.jsonl", "out.partial.jsonl", "outrun.lock"}
        kept = buckets.read(journal).splitlines()[1:]
        assert 12 <= len(kept) < 60
        before = sum(chat.seen.values())
        said = finish(start(*command))
        # Each of the others is rewritten once and judged once.
        assert sum(chat.seen.values()) - before == 2 * (60 - len(kept))
    assert f"60 reports -> {root}/out.jsonl" in said
    assert f"{60 * 200:,} tokens sent" in said
    found = names(root)
    assert set(found) == {"in.jsonl", "out.jsonl", "out.rejected.jsonl"}
    for name in ("out.jsonl", "out.rejected.jsonl"):
        assert found[name] == local.with_name(name).read_bytes()


def killed_at_write(server, number, *arguments):
    """Kills a new process at its write request of this number; returns False if it made fewer."""
    count, killed = itertools.count(), []

    def fault(method, path):
        if method != "GET" and next(count) == number:
            process.send_signal(signal.SIGKILL)
            killed.append(path)
            return 503
        return None

    # The process makes its first request long after this.
    process = start(*arguments)
    server.fault = fault
    process.communicate(timeout=600)
    server.fault = lambda method, path: None
    return bool(killed)


@pytest.mark.slow
@pytest.mark.parametrize("endpoint", [False, True], ids=["rules", "endpoint"])
def test_clean_at_every_write(root, server, tmp_path, endpoint):
    """A kill at any request that changes the bucket."""
    write_reports(tmp_path / "in.jsonl", 6)
    with ChatServer() as chat:
        options = ("--endpoint", chat.url, "--model", "m") if endpoint else ()
        local = tmp_path / "local" / "out.jsonl"
        finish(start("clean", tmp_path / "in.jsonl", local, *options))
        wanted = {
            name: local.with_name(name).read_bytes() for name in ("out.jsonl", "out.rejected.jsonl")
        }
        for number in itertools.count():
            url = f"{root}/{number}"
            command = ("clean", tmp_path / "in.jsonl", f"{url}/out.jsonl", *options)
            if not killed_at_write(server, number, *command):
                break
            found = names(url)
            if "out.jsonl" in found and "out.partial.jsonl" not in found:
                # It counts as finished, so it must be.
                assert wanted.items() <= found.items()
                continue
            finish(start(*command))
            assert names(url) == wanted
    assert number >= 4


@pytest.mark.slow
def test_an_evaluation(root, server, tmp_path):
    data = f"manifest:{ROOT / 'examples' / 'cxr'}"
    arguments = ("evaluate", "reports", "--checkpoint", TINY, "--data", data, "--split", "",
                 "--limit", "60", "--max-new-tokens", "16", "--resamples", "10",
                 "--batch-size", "2")  # fmt: skip
    local = tmp_path / "out"
    finish(start(*arguments, "--out", local))
    journal = f"{root}/items-0.jsonl"
    reached = 0
    for more in (1, 12, 20):
        process = start(*arguments, "--out", root)
        least = reached + more
        kill_at(process, lambda least=least: line_count(journal) >= least)
        assert line_count(journal) >= least > reached
        reached = line_count(journal)
        assert reached < 60
        assert "results.json" not in buckets.entries(root)
    finish(start(*arguments, "--out", root))
    found = names(root)
    assert set(found) == {file.name for file in local.iterdir()}
    assert found["items-0.jsonl"] == (local / "items-0.jsonl").read_bytes()
    results = json.loads((local / "results.json").read_bytes())
    assert json.loads(found["results.json"]) == results
    assert cli.main([*map(str, arguments), "--out", root]) == 0
    assert names(root)["items-0.jsonl"] == found["items-0.jsonl"]

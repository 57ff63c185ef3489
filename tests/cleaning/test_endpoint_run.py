"""Cleaning through a real HTTP server that misbehaves: nothing lost, doubled or given away."""

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("openai")


from support.chat_server import ChatServer, read_lines, rewrite_of, write_reports
from unix_jax.cleaning.clean_reports import clean_with_endpoint, journal_path, rejected_path
from unix_jax.cleaning.endpoint import ChatEndpoint, EndpointError, Retries, key_from_environment
from unix_jax.cleaning.report_files import open_reports
from unix_jax.cleaning.rewriting import Rewriting
from unix_jax.cleaning.templates import load_prompts
from unix_jax.errors import UniXError

KEY = "sk-very-secret-0123456789"
QUICK = Retries(tries=4, first_wait=0.01, longest_wait=0.05)
HOW = Rewriting(load_prompts(), "model", "model")


@pytest.fixture(autouse=True)
def direct(monkeypatch):
    """Loopback is not reached through a proxy."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


def run(server, reports, out, *, how=HOW, retries=QUICK, timeout=60.0, said=None, **options):
    said = [] if said is None else said

    async def clean():
        async with ChatEndpoint(
            server.url, KEY, timeout=timeout, retries=retries, say=said.append
        ) as endpoint:
            return await clean_with_endpoint(open_reports(reports), out, endpoint, how, **options)

    return asyncio.run(clean())


def faulty(kind, number, n):
    """Two in five first requests fail in some way; later ones mostly do not."""
    rng = random.Random(f"{kind} {number} {n}")
    common = ["429", "500", "503", "malformed", "empty", "html", "truncated"]
    own = ["refusal", "number", "echo"] if kind == "rewrite" else ["maybe", "no"]
    if rng.random() > (0.4 if n == 0 else 0.1):
        return ""
    return "slow" if rng.random() < 0.03 else rng.choice(common + own)


@pytest.mark.extended
def test_500_reports_under_faults_none_lost_none_doubled_order_kept(tmp_path, capfd):
    reports, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    write_reports(reports, 500)
    with ChatServer(faulty) as server:
        summary = run(server, reports, out, concurrency=32)
        # Reports that failed in every try are tried again, as a user would.
        while summary.failed:
            summary = run(server, reports, out, concurrency=32)
    done, aside = read_lines(out), read_lines(rejected_path(out))
    order = [int(row["id"][1:]) for row in done]
    assert order == sorted(order)
    assert sorted(order + [row["index"] for row in aside]) == list(range(500))
    assert len(done) == summary.done > 450
    # A server that sends the key back, as "echo" does, finds it taken out.
    texts = [row["report"].removesuffix(" Bearer [key]") for row in done]
    assert texts == [rewrite_of(i) for i in order]
    assert all(row["findings"] == f"Report {i}. Small left effusion."
               for i, row in zip(order, done, strict=True))  # fmt: skip
    assert all(row["reason"] for row in aside)
    assert not journal_path(out).exists()
    assert server.authorization == {f"Bearer {KEY}"}
    printed = "".join(capfd.readouterr())
    files = "".join(path.read_text() for path in tmp_path.iterdir())
    assert KEY not in printed + files


def test_reasons_of_reports_set_aside(tmp_path):
    reports, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    write_reports(reports, 5)
    always = {0: ("rewrite", "number"), 1: ("rewrite", "refusal"), 2: ("judge", "no"),
              3: ("judge", "maybe"), 4: ("rewrite", "400")}  # fmt: skip

    def faults(kind, number, n):
        return always[number][1] if always[number][0] == kind else ""

    with ChatServer(faults) as server:
        summary = run(server, reports, out)
    assert (summary.done, summary.rejected, summary.failed) == (0, 5, 0)
    reasons = [row["reason"] for row in read_lines(rejected_path(out))]
    assert '"5mm"' in reasons[0]
    assert "refused" in reasons[1]
    assert "The effusion is on the other side." in reasons[2]
    assert "neither yes nor no" in reasons[3]
    assert reasons[4].startswith("HTTP 400")
    assert KEY not in "".join(reasons)
    # Three rewrites, then no more; each "maybe" is asked once again.
    assert [server.seen["rewrite", i] for i in range(5)] == [3, 3, 3, 3, 1]
    assert server.seen["judge", 3] == 6


def test_the_reason_of_the_judge_reaches_the_next_rewrite(tmp_path):
    reports, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    write_reports(reports, 1)
    with ChatServer(lambda kind, number, n: "no" if (kind, n) == ("judge", 0) else "") as server:
        summary = run(server, reports, out)
    assert summary.done == 1
    assert summary.tokens.total == 4 * 120
    second = next(body for body in server.bodies if len(body["messages"]) == 3)
    assert "The effusion is on the other side." in second["messages"][2]["content"]
    assert read_lines(out)[0]["cleaned"] == {"by": "model", "tries": 2}


def test_an_answer_that_does_not_come_is_asked_for_again(tmp_path):
    reports, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    write_reports(reports, 1)
    with ChatServer(lambda kind, number, n: "never" if (kind, n) == ("judge", 0) else "") as server:
        assert run(server, reports, out, timeout=1.0, retries=Retries(50, 0.01)).done == 1
        assert server.seen["judge", 0] >= 2


def test_retry_after_holds_back_everyone(tmp_path):
    reports, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    write_reports(reports, 1)
    with ChatServer(lambda kind, number, n: "429" if (kind, n) == ("rewrite", 0) else "") as server:
        run(server, reports, out, retries=Retries(tries=2, first_wait=0.0))
        assert server.times[1] - server.times[0] >= 0.02


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_to_another_origin_is_not_followed(tmp_path, status):
    reports, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    write_reports(reports, 20)
    with ChatServer() as other:
        target = f"status {status} Location: {other.url}/chat/completions?key={KEY}"
        with ChatServer(lambda kind, number, n: target) as server:
            with pytest.raises(EndpointError) as caught:
                run(server, reports, out, concurrency=4)
            # One error for all reports: nothing is tried again.
            assert len(server.times) <= 4
        # Neither the reports nor the key reached the other server, not even a connection.
        assert other.connections == 0
    message = str(caught.value)
    assert server.url.removesuffix("/v1") in message
    assert other.url.removesuffix("/v1") in message
    assert f"HTTP {status}" in message
    assert KEY not in message
    assert not out.exists()
    assert journal_path(out).exists()


@pytest.mark.parametrize(
    ("location", "found"),
    [
        ("/v2/chat/completions", "such as http://127.0.0.1:PORT/v2"),
        ("http://127.0.0.1:PORT/a/v1/chat/completions/?a=b", "such as http://127.0.0.1:PORT/a/v1"),
        ("//evil.example/v1", "another origin, http://evil.example (HTTP 307)"),
        ("https://127.0.0.1:PORT/v1", "another origin, https://127.0.0.1:PORT (HTTP 307)"),
        ("http://localhost:PORT/v1", "another origin, http://localhost:PORT (HTTP 307)"),
        ("http://127.0.0.1/v1", "another origin, http://127.0.0.1 (HTTP 307)"),
        ("http://user:pass@evil.example:80/v1", "another origin, http://evil.example (HTTP 307)"),
        ("file:///etc/passwd", "another origin, file:// (HTTP 307)"),
        ("http://[bad", "without a valid address"),
        ("http://x:99999999/", "without a valid address"),
        ("", "without a valid address"),
    ],
)
def test_redirects_of_every_kind_stop_the_run(tmp_path, location, found):
    reports, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    write_reports(reports, 1)
    port = ""

    def faults(kind, number, n):
        there = location.replace("PORT", port)
        return f"status 307 Location: {there}" if there else "status 302"

    with ChatServer(faults) as server:
        port = server.url.removesuffix("/v1").rpartition(":")[2]
        with pytest.raises(EndpointError, match="redirect") as caught:
            run(server, reports, out)
        assert len(server.times) == 1
    assert found.replace("PORT", port) in str(caught.value)
    assert "pass" not in str(caught.value)


def test_a_wait_is_said_and_kept(tmp_path):
    reports, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    write_reports(reports, 6)
    said = []
    wait = "status 429 Retry-After: 1"
    with ChatServer(lambda kind, number, n: wait if (kind, n) == ("rewrite", 0) else "") as server:
        assert run(server, reports, out, said=said, concurrency=6).done == 6
        times = sorted(server.times)
        assert times[6] - times[5] >= 0.8
    # Once for all requests that are held back.
    assert len(said) == 1
    assert "HTTP 429: " in said[0]
    assert "asks to wait 1 s (Retry-After)" in said[0]
    assert "of at most 600 s (--patience)" in said[0]


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("86400", "asks to wait 86400 s (24:00:00 h)"),
        ("1e9", "asks to wait more than a year"),
        ("1" + "0" * 400, "asks to wait more than a year"),
        ("inf", "asks to wait more than a year"),
        ("Fri, 31 Dec 9998 23:59:59 GMT", "asks to wait more than a year"),
    ],
)
def test_a_wait_longer_than_the_patience_stops_the_run(tmp_path, value, found):
    reports, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    write_reports(reports, 3)
    start = time.monotonic()
    fault = f"status 503 Retry-After: {value}"
    with ChatServer(lambda kind, number, n: fault if number == 2 else "") as server:
        with pytest.raises(EndpointError, match=r"at most 600 s in all \(--patience\)") as caught:
            run(server, reports, out, concurrency=1)
        assert time.monotonic() - start < 20
        assert server.seen["rewrite", 2] == 1
    assert found in str(caught.value)
    assert "resume" in str(caught.value)
    with ChatServer() as server:
        assert run(server, reports, out).done == 3
        assert set(server.seen) == {("rewrite", 2), ("judge", 2)}


def test_endless_waits_end_with_the_patience(tmp_path):
    reports, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    write_reports(reports, 2)
    retries = Retries(tries=1000, first_wait=0.01, longest_wait=0.01, patience=1.2)
    start = time.monotonic()
    with (
        ChatServer(lambda kind, number, n: "status 429 Retry-After: 0.3") as server,
        pytest.raises(EndpointError, match=r"without an answer; expected at most 1.2 s in all"),
    ):
        run(server, reports, out, retries=retries)
    assert 0.8 < time.monotonic() - start < 20


@pytest.mark.parametrize(
    "value", ["-5", "-inf", "nan", "0", "Mon, 01 Jan 2001 00:00:00 GMT", "01 Jan 2001", "soon",
              "5, 9", "99 Foo 99999 77:77:77", "Mon, 01 Jan 99999 00:00:00 GMT"]
)  # fmt: skip
def test_a_wait_that_is_past_or_cannot_be_read_is_none(tmp_path, value):
    reports, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    write_reports(reports, 1)
    said = []
    fault = f"status 429 Retry-After: {value}"
    with ChatServer(lambda kind, number, n: fault if n == 0 else "") as server:
        assert run(server, reports, out, said=said).done == 1
    assert said == []


def test_a_wait_that_cannot_be_read_is_named(tmp_path):
    reports, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    write_reports(reports, 1)
    with ChatServer(lambda kind, number, n: "status 429 Retry-After: soon") as server:
        assert run(server, reports, out).failed == 1
    (row,) = read_lines(rejected_path(out))
    assert "Retry-After: expected seconds or a date, found 'soon'" in row["reason"]


@pytest.mark.parametrize(
    ("kind", "fault", "reason"),
    [
        ("rewrite", "finish length", "cut off at --max-tokens 1024"),
        ("rewrite", "finish MAX_TOKENS", "cut off at --max-tokens 1024"),
        ("rewrite", "finish content_filter", "refused"),
        ("rewrite", "reply <think>FINDINGS: Report 0. IMPRESSION: Effusion.", "no end"),
        ("rewrite", "reply <think>a</think>", "Nothing but reasoning"),
        ("rewrite", "reply ", "nothing was written"),
        ("judge", "finish length", "cut off at --max-tokens 1024"),
        ("judge", "reply Yes and no: the tip is missing.", "neither yes nor no: Yes and no"),
        ("judge", "reply <think>yes", "neither yes nor no: <think>yes"),
        ("judge", "reply ", "neither yes nor no: nothing"),
    ],
)
def test_what_an_answer_loses_is_set_aside_with_the_reason(tmp_path, kind, fault, reason):
    reports, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    write_reports(reports, 1)
    with ChatServer(lambda asked, number, n: fault if asked == kind else "") as server:
        summary = run(server, reports, out)
    assert (summary.done, summary.rejected) == (0, 1)
    (row,) = read_lines(rejected_path(out))
    assert reason in row["reason"]


@pytest.mark.parametrize(
    "fault",
    ["parts", "finish error", "finish insufficient_system_resource", "finish eos",
     "reply a\n</think>\n**FINDINGS:** Report 0. Small left effusion. **IMPRESSION:** Effusion."],
)  # fmt: skip
def test_answers_in_parts_broken_off_and_with_reasoning(tmp_path, fault):
    reports, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    write_reports(reports, 1)
    with ChatServer(lambda kind, number, n: fault if (kind, n) == ("rewrite", 0) else "") as server:
        assert run(server, reports, out).done == 1
        broken_off = fault in ("finish error", "finish insufficient_system_resource")
        assert server.seen["rewrite", 0] == 1 + broken_off
    assert read_lines(out)[0]["report"] == rewrite_of(0)


def test_failed_reports_are_tried_again_by_the_next_run(tmp_path):
    reports, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    write_reports(reports, 4)
    down = True
    with ChatServer(lambda kind, number, n: "500" if down and number == 2 else "") as server:
        first = run(server, reports, out)
        assert (first.done, first.failed) == (3, 1)
        (row,) = read_lines(rejected_path(out))
        assert (row["id"], row["again"]) == ("r2", True)
        assert "HTTP 500" in row["reason"]
        down = False
        asked = dict(server.seen)
        second = run(server, reports, out)
    assert (second.done, second.failed) == (4, 0)
    assert [row["id"] for row in read_lines(out)] == ["r0", "r1", "r2", "r3"]
    assert all(server.seen["rewrite", i] == asked["rewrite", i] for i in (0, 1, 3))


def test_wrong_key_and_dead_endpoint_stop_the_run(tmp_path):
    reports, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    write_reports(reports, 40)
    with (
        ChatServer(lambda kind, number, n: "401") as server,
        pytest.raises(EndpointError, match="HTTP 401") as caught,
    ):
        run(server, reports, out)
    assert KEY not in str(caught.value)
    assert caught.value.__suppress_context__
    with pytest.raises(EndpointError, match="one after the other"):
        run(server, reports, out, concurrency=2, retries=Retries(1))
    assert not out.exists()
    with ChatServer() as server:
        assert run(server, reports, out).done == 40


def test_budget_stops_and_a_larger_one_goes_on(tmp_path):
    reports, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    write_reports(reports, 30)
    with ChatServer() as server:
        first = run(server, reports, out, concurrency=2, budget_tokens=2400)
        # Ten reports of 240 tokens, and at most those in flight.
        assert 10 <= first.done <= 11
        assert first.left == 30 - first.done
        assert not out.exists()
        second = run(server, reports, out, concurrency=2, budget_tokens=100_000)
    assert (second.done, second.left, second.tokens.total) == (30, 0, 30 * 240)
    assert set(server.seen.values()) == {1}


COMMAND = [sys.executable, "-c", """
import sys, tyro
from unix_jax.commands.clean import Clean
from unix_jax.errors import UniXError
try:
    tyro.cli(Clean, args=sys.argv[1:]).run()
except UniXError as error:
    sys.exit(str(error))
"""]  # fmt: skip


def start(server, reports, out, *options):
    environment = {**os.environ, "OPENAI_API_KEY": KEY, "OPENAI_LOG": "debug"}
    return subprocess.Popen(
        [*COMMAND, str(reports), str(out), "--endpoint", server.url, "--model", "m", *options],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.extended
@pytest.mark.parametrize(
    "sent", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_stopped_in_the_middle_and_resumed(tmp_path, sent):
    reports, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    write_reports(reports, 60)
    with ChatServer(delay=0.02) as server:
        process = start(server, reports, out, "--concurrency", "4")
        journal = journal_path(out)
        deadline = time.monotonic() + 300
        while not journal.exists() or journal.read_bytes().count(b"\n") < 12:
            assert time.monotonic() < deadline
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.01)
        process.send_signal(sent)
        first = process.communicate(timeout=300)[0]
        assert process.returncode != 0
        assert not out.exists()
        kept = journal.read_bytes()
        done = kept.count(b"\n") - 1
        assert 0 < done < 60
        # A crash may tear the last line.
        journal.write_bytes(kept + b'{"index": 59, "stat')
        before = sum(server.seen.values())
        process = start(server, reports, out, "--concurrency", "16", "--price-in", "2")
        second = process.communicate(timeout=300)[0]
        assert process.returncode == 0, second
        assert sum(server.seen.values()) - before == 2 * (60 - done)
    assert [row["id"] for row in read_lines(out)] == [f"r{i}" for i in range(60)]
    assert rejected_path(out).read_text() == ""
    assert not journal.exists()
    assert "60 reports" in second
    assert f"cost {60 * 200 * 2 / 1e6:.4g}" in second
    assert KEY not in first + second
    assert sent == signal.SIGKILL or "run the same command to resume" in first


@pytest.mark.extended
def test_the_command_shows_waits_and_stops_at_the_patience(tmp_path):
    reports, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    write_reports(reports, 2)
    with ChatServer(lambda kind, number, n: "status 429 Retry-After: 1") as server:
        process = start(server, reports, out, "--patience", "1.5")
        printed = process.communicate(timeout=300)[0]
    assert process.returncode == 1
    lines = [line for line in printed.splitlines() if "Retry-After" in line]
    assert "asks to wait 1 s (Retry-After); waited 0 s so far, of at most 1.5 s" in lines[0]
    assert lines[-1].startswith("--endpoint: ")
    assert "expected at most 1.5 s in all (--patience)" in lines[-1]
    assert not out.exists()


@pytest.mark.extended
def test_out_that_cannot_be_written(tmp_path):
    reports, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    write_reports(reports, 30)
    with ChatServer() as server:
        full = ["bash", "-c", 'ulimit -f 2; exec "$@"', "-"]
        environment = {**os.environ, "OPENAI_API_KEY": KEY, "PYTHONDONTWRITEBYTECODE": "1"}
        arguments = [str(reports), str(out), "--endpoint", server.url, "--model", "m"]
        limited = subprocess.run(
            [*full, *COMMAND, *arguments], env=environment, capture_output=True, text=True
        )
        assert limited.returncode == 1
        (line,) = [line for line in limited.stderr.splitlines() if not line.startswith("report ")]
        assert line.startswith(f"{journal_path(out)}: cannot be written: ")
        # With room again, what was done is not done again.
        done = journal_path(out).read_bytes().count(b"\n") - 1
        assert done > 0
        with pytest.raises(UniXError, match=r'started with model "m" \(now ".*"\), judge model'):
            run(server, reports, out)
        same = Rewriting(load_prompts(), "m", "m")
        assert run(server, reports, out, how=same).done == 30
        assert len(read_lines(out)) == 30
        with pytest.raises(UniXError, match="cannot be written"):
            run(server, reports, Path("/proc/out.jsonl"))
        with pytest.raises(UniXError, match="exists already"):
            run(server, reports, out)


def test_two_runs_of_one_out_are_refused(tmp_path):
    reports, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    write_reports(reports, 8)

    async def both(server):
        async with ChatEndpoint(server.url, KEY, retries=QUICK) as endpoint:
            source = open_reports(reports)
            first = asyncio.create_task(clean_with_endpoint(source, out, endpoint, HOW))
            await asyncio.sleep(0.05)
            with pytest.raises(UniXError, match="another run is writing"):
                await clean_with_endpoint(source, out, endpoint, HOW)
            return await first

    with ChatServer(delay=0.1) as server:
        assert asyncio.run(both(server)).done == 8


def test_keys_and_addresses_that_cannot_be_used(monkeypatch):
    for key in ("sk secret", "sk-sécret", "a\nb"):
        monkeypatch.setenv("KEY", key)
        with pytest.raises(EndpointError) as caught:
            key_from_environment("KEY")
        assert key not in str(caught.value)
    monkeypatch.setenv("KEY", f" {KEY}\n")
    assert key_from_environment("KEY") == KEY
    for url in ("ftp://x", "x", "https://u:p@x/v1", "https://x/v1?key=p", "http://", "http://[x"):
        with pytest.raises(EndpointError) as caught:
            ChatEndpoint(url, "")
        assert "p@x" not in str(caught.value)

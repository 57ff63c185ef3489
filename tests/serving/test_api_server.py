"""The running server, with OpenAI's client and with plain requests."""

import base64
import http.client
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.parse
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

from support.api_server import chat, served, xray
from support.paths import GOLDEN, ROOT
from unix_jax.serving.limits import ServeLimits

pytest.importorskip("uvicorn", reason="the extra [serve] is not installed")
openai = pytest.importorskip("openai", reason="the extra [clean] is not installed")
STEPS = {"num_inference_steps": 3}


def client_of(url, key="none"):
    return openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=60)


@pytest.fixture
def client(url):
    with client_of(url) as found:
        yield found


def request(url, method, path, body=None, headers=None):
    """(status, headers, body) of one request."""
    connection = http.client.HTTPConnection(urllib.parse.urlsplit(url).netloc, timeout=60)
    if isinstance(body, dict):
        body, headers = json.dumps(body), {"Content-Type": "application/json"} | (headers or {})
    connection.request(method, path, body, headers or {})
    answer = connection.getresponse()
    found = answer.status, dict(answer.headers), answer.read()
    connection.close()
    return found


def error_of(answer, status):
    found, _, body = answer
    assert found == status, body
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert "\n" not in error["message"]
    return error


def metrics(url):
    """Values of the metrics without labels, and sums over the labels of the others."""
    found = {}
    for line in request(url, "GET", "/metrics")[2].decode().splitlines():
        if not line.startswith("#"):
            name, value = line.rsplit(" ", 1)
            name = name.partition("{")[0]
            found[name] = found.get(name, 0) + float(value)
    return found


def expected_report(pipe, data, **options):
    (found,) = pipe.generate_report([data], return_details=True, **options)
    return found


def test_models(client):
    (model,) = client.models.list().data
    assert (model.id, model.owned_by) == ("toy", "unix-jax")
    assert client.models.retrieve("toy").id == "toy"
    with pytest.raises(openai.NotFoundError, match="expected 'toy', found 'other'"):
        client.models.retrieve("other")


def test_a_report(client, pipe):
    data = xray(3)
    found = client.chat.completions.create(**chat(data, "Report:", max_tokens=9))
    expected = expected_report(pipe, data, prompts="Report:", max_new_tokens=9)
    (choice,) = found.choices
    assert choice.message.content == expected.text
    assert choice.finish_reason == {"eos": "stop", "length": "length"}[expected.finish_reason]
    assert found.usage.completion_tokens == len(expected.token_ids)
    assert found.usage.total_tokens == found.usage.prompt_tokens + len(expected.token_ids)


def test_a_sampled_report(client, pipe):
    options = {"temperature": 1.5, "top_p": 0.9, "seed": 11}
    found = client.chat.completions.create(**chat(max_tokens=7, **options))
    expected = expected_report(pipe, xray(), max_new_tokens=7, **options)
    assert found.choices[0].message.content == expected.text


def test_a_streamed_report(client):
    body = chat(xray(4), max_tokens=9)
    whole = client.chat.completions.create(**body).choices[0].message.content
    usage = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(client.chat.completions.create(**body, **usage))
    choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
    assert choices[0].delta.role == "assistant"
    pieces = [choice.delta.content or "" for choice in choices]
    assert "".join(pieces) == whole
    assert sum(map(bool, pieces)) > 2
    assert [c.finish_reason for c in choices if c.finish_reason] == ["length"]
    assert chunks[-1].usage.completion_tokens == 9
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_warning_is_returned(client):
    file = io.BytesIO()
    Image.new("L", (40, 40)).save(file, "PNG")
    found = client.chat.completions.create(**chat(file.getvalue(), max_tokens=1))
    assert "nearly black" in found.model_extra["warnings"][0]


def test_images(client, pipe):
    found = client.images.generate(
        model="toy", prompt="effusion", n=2, extra_body={"seed": 5, **STEPS}
    )
    expected = pipe.generate_image(["effusion"] * 2, seed=[5, 6], **STEPS)
    for item, image, seed in zip(found.data, expected, (5, 6), strict=True):
        png = Image.open(io.BytesIO(base64.b64decode(item.b64_json)))
        assert item.model_extra["seed"] == seed
        assert (png.text["seed"], png.text["prompt"]) == (str(seed), "effusion")
        assert png.tobytes() == image.tobytes()


def test_concurrent_reports_share_batches_and_equal_single_ones(client, url):
    bodies = [chat(xray(i), max_tokens=6 + i) for i in range(6)]
    single = [client.chat.completions.create(**body).choices[0].message.content for body in bodies]
    before = metrics(url)
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda body: client.chat.completions.create(**body), bodies))
    assert [one.choices[0].message.content for one in found] == single
    after = metrics(url)
    new = {name: value - before.get(name, 0) for name, value in after.items()}
    assert new["unix_jax_batch_rows_sum"] + new["unix_jax_joined_reports_total"] == 6
    assert new["unix_jax_batch_rows_count"] <= 4
    assert after["unix_jax_generated_tokens_total"] > before["unix_jax_generated_tokens_total"]


def test_health_and_metrics(url):
    status, _, body = request(url, "GET", "/health")
    assert (status, json.loads(body)["status"]) == (200, "ok")
    status, headers, body = request(url, "GET", "/metrics")
    assert status == 200
    assert headers["content-type"].startswith("text/plain; version=")
    from prometheus_client.parser import text_string_to_metric_families

    names = {family.name for family in text_string_to_metric_families(body.decode())}
    assert {"unix_jax_requests", "unix_jax_batch_rows", "unix_jax_waiting_requests"} <= names


def test_unknown_routes_and_methods(url):
    assert error_of(request(url, "GET", "/nowhere"), 404)["code"] == "not_found"
    assert error_of(request(url, "GET", "/v1/chat/completions"), 405)
    assert error_of(request(url, "POST", "/v1/embeddings", {}), 404)


def test_bodies_that_are_refused(url):
    path = "/v1/chat/completions"
    plain = {"Content-Type": "text/plain"}
    assert "application/json" in error_of(request(url, "POST", path, "{}", plain), 415)["message"]
    kind = {"Content-Type": "application/json; charset=utf-8"}
    for body in (b"", b"{", b"\xff", b"[" * 100_000, b'{"seed": ' + b"9" * 5000 + b"}"):
        assert error_of(request(url, "POST", path, body, kind), 400)["message"] == (
            "Expected a body of JSON."
        )
    error = error_of(request(url, "POST", path, b" " * (2**20 + 1), kind), 413)
    assert "at most 1048576 bytes" in error["message"]
    # In parts, without a length.
    chunks = iter([b" " * 2**19] * 3)
    assert error_of(request(url, "POST", path, chunks, kind), 413)
    assert error_of(request(url, "POST", path, chat(text="\ud800")), 400)


def test_a_stated_length_is_refused_before_the_body_arrives(url):
    connection = http.client.HTTPConnection(urllib.parse.urlsplit(url).netloc, timeout=60)
    connection.putrequest("POST", "/v1/images/generations")
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Content-Length", str(2**30))
    connection.endheaders()
    assert connection.getresponse().status == 413
    connection.close()


def test_rebinding_and_other_sites(url):
    path, body = "/v1/chat/completions", chat(max_tokens=1)
    assert error_of(request(url, "GET", "/v1/models", None, {"Host": "evil.example"}), 421)
    assert error_of(request(url, "POST", path, body, {"Host": "evil.example:80"}), 421)
    assert error_of(request(url, "POST", path, body, {"Origin": "https://evil.example"}), 403)
    assert error_of(request(url, "POST", path, body, {"Sec-Fetch-Site": "cross-site"}), 403)
    assert request(url, "POST", path, body, {"Origin": url})[0] == 200


def test_the_key(pipe, limits):
    with served(pipe, limits, key="secret") as server:
        with pytest.raises(openai.AuthenticationError, match="Authorization: expected 'Bearer'"):
            client_of(server.url, "wrong").models.list()
        assert client_of(server.url, "secret").models.list().data
        for headers in ({}, {"Authorization": "secret"}, {"Authorization": "Basic secret"}):
            for path in ("/v1/models", "/metrics", "/nowhere"):
                answer = request(server.url, "GET", path, None, headers)
                assert error_of(answer, 401)["type"] == "authentication_error"
                assert answer[1]["www-authenticate"] == "Bearer"
        assert request(server.url, "GET", "/health")[0] == 200


class Slowly:
    """Makes every step of a report take a while, and counts the steps."""

    def __init__(self, monkeypatch, seconds=0.1):
        from unix_jax.serving import batches

        self.steps, plain = 0, batches.decode_reports
        self.go = threading.Event()

        def slow(*arguments, **options):
            for state in plain(*arguments, **options):
                self.steps += 1
                self.go.wait(seconds)
                yield state

        monkeypatch.setattr(batches, "decode_reports", slow)


def wait_for(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_stops_its_report(pipe, limits, monkeypatch, stream):
    slowly = Slowly(monkeypatch, 0.3)
    monkeypatch.setattr("unix_jax.serving.batches.STRIDE", 1)
    with served(pipe, limits) as server:
        body = json.dumps(chat(stream=stream, max_tokens=24))
        connection = http.client.HTTPConnection(urllib.parse.urlsplit(server.url).netloc)
        connection.request(
            "POST", "/v1/chat/completions", body, {"Content-Type": "application/json"}
        )
        if stream:
            assert connection.getresponse().read(10)
        wait_for(lambda: slowly.steps >= 2)
        connection.sock.close() if connection.sock else None
        connection.close()
        wait_for(lambda: metrics(server.url)["unix_jax_cancelled_requests_total"] == 1)
        assert slowly.steps < 15
        # The model is free for the next one.
        slowly.go.set()
        assert request(server.url, "POST", "/v1/chat/completions", chat(max_tokens=1))[0] == 200


def test_a_full_queue_refuses_and_recovers(pipe, monkeypatch):
    slowly = Slowly(monkeypatch, 5)
    limits = ServeLimits(batch_sizes=(1,), new_tokens=24, waiting=2)
    with served(pipe, limits) as server:
        body = chat(max_tokens=1)

        def ask(_):
            return request(server.url, "POST", "/v1/chat/completions", body)

        with ThreadPoolExecutor(6) as pool:
            asked = [pool.submit(ask, i) for i in range(6)]
            wait_for(lambda: sum(one.done() for one in asked) == 3)
            refused = [one.result() for one in asked if one.done()]
            for answer in refused:
                assert error_of(answer, 429)["code"] == "rate_limit_exceeded"
                assert answer[1]["retry-after"] == "1"
            assert metrics(server.url)["unix_jax_open_requests"] == 3
            slowly.go.set()
            assert sorted(one.result()[0] for one in asked) == [200] * 3 + [429] * 3
        assert ask(0)[0] == 200


def test_a_request_that_takes_too_long(pipe, monkeypatch):
    slowly = Slowly(monkeypatch, 1)
    limits = ServeLimits(batch_sizes=(1,), new_tokens=24, seconds=0.5)
    with served(pipe, limits) as server:
        answer = request(server.url, "POST", "/v1/chat/completions", chat())
        assert error_of(answer, 504)["type"] == "server_error"
        slowly.go.set()
        wait_for(lambda: metrics(server.url)["unix_jax_cancelled_requests_total"] == 1)


def test_an_error_of_the_model(pipe, limits, monkeypatch, caplog):
    from unix_jax.errors import NonFiniteError
    from unix_jax.serving import batches

    def broken(error):
        def decode(*arguments, **options):
            raise error

        monkeypatch.setattr(batches, "decode_reports", decode)

    with served(pipe, limits) as server:
        for error in (NonFiniteError("images[3]: NaN"), RuntimeError("secret of the server")):
            broken(error)
            answer = request(server.url, "POST", "/v1/chat/completions", chat())
            message = error_of(answer, 500)["message"]
            assert "log" in message
            assert "secret" not in message
            assert "images[3]" not in message
        assert "secret of the server" in caplog.text
        monkeypatch.undo()
        assert request(server.url, "POST", "/v1/chat/completions", chat(max_tokens=1))[0] == 200


@pytest.mark.slow
def test_kill_and_restart(tmp_path):
    """The command: a killed server loses what was running, and a new one answers at once."""
    command = [
        sys.executable, "-m", "unix_jax", "serve", "--checkpoint",
        str(GOLDEN / "tiny" / "checkpoint"), "--model-name", "toy", "--port", "0",
        "--batch-sizes", "1", "--max-new-tokens", "24", "--no-warm-up",
    ]  # fmt: skip
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}

    def started():
        run = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
        )
        line = run.stdout.readline()
        assert line.startswith("Serving toy at http://127.0.0.1:")
        return run, line.split()[3].removesuffix("/v1")

    first, url = started()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(request, url, "POST", "/v1/chat/completions", chat())
        time.sleep(0.3)
        first.kill()
        assert running.exception(timeout=60) is not None
    first.wait()
    second, url = started()
    assert request(url, "POST", "/v1/chat/completions", chat(max_tokens=2))[0] == 200
    second.send_signal(signal.SIGTERM)
    assert second.wait(timeout=30) == 0

"""The routes that are answered, and the requests that are not."""

import asyncio
import json

import pytest

from unix_jax.app.request_limits import MESSAGE_BYTES, Guard, allowed, names_an_address


@pytest.mark.parametrize(
    "path",
    ["/", "/config", "/theme.css", "/assets/index.js", "/static/img/logo.svg", "/gradio_api/info",
     "/gradio_api/queue/join", "/gradio_api/upload", "/gradio_api/heartbeat/abc"],
)  # fmt: skip
def test_what_the_page_needs(path):
    assert allowed(path)


@pytest.mark.parametrize(
    "path",
    ["/gradio_api/file=/etc/passwd", "/file=/etc/passwd", "/gradio_api/file/etc/passwd",
     "/gradio_api/file=https://example.org/x", "/gradio_api/proxy=https://example.org",
     "/gradio_api/deep_link", "/gradio_api/stream/x",
     "/gradio_api/vibe-edit", "/gradio_api/process_recording", "/gradio_api/runs", "/monitoring",
     "/static/../../etc/passwd", "/assets/..", "/assets/..\\..\\x", "/docs", "/openapi.json",
     "/dev/reload", "/gradio_api/", "//etc/passwd", "/gradio_api/custom_component/1/x/y/z"],
)  # fmt: skip
def test_what_it_does_not(path):
    assert not allowed(path)


def test_addresses_in_messages():
    assert names_an_address({"data": [{"path": "https://example.org/x.png"}]})
    assert names_an_address([[{"a": {"path": "file://x"}}]])
    assert not names_an_address({"data": ["see https://example.org", {"path": "/tmp/x.png"}]})
    assert not names_an_address({"path": None})


def answer(path, body=b"", method="POST", length=None):
    """(status, what the application behind received) of one request."""
    received, sent = [], []

    async def application(scope, receive, send):
        message = await receive()
        received.append(message.get("body"))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})

    parts = [body[i : i + 100_000] for i in range(0, len(body), 100_000)] or [b""]
    messages = [
        {"type": "http.request", "body": part, "more_body": i < len(parts) - 1}
        for i, part in enumerate(parts)
    ]

    async def receive():
        return messages.pop(0)

    async def send(message):
        sent.append(message)

    length = str(len(body)).encode() if length is None else length
    headers = [(b"content-length", length)] if length else []
    scope = {"type": "http", "method": method, "path": path, "headers": headers}
    asyncio.run(Guard(application, upload_bytes=1000)(scope, receive, send))
    names = {name for name, _ in sent[0]["headers"]}
    assert {b"content-security-policy", b"x-content-type-options"} <= names
    return sent[0]["status"], received


JOIN = "/gradio_api/queue/join"


def test_good_requests_pass_whole():
    body = json.dumps({"data": ["x" * 200_000]}).encode()
    assert answer(JOIN, body) == (200, [body])
    assert answer("/", method="GET") == (200, [b""])
    assert answer("/gradio_api/upload", b"x" * 900)[0] == 200


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        ({"path": "/gradio_api/file=/etc/passwd", "method": "GET"}, 404),
        ({"path": JOIN, "body": b"{}", "length": b""}, 411),
        ({"path": JOIN, "body": b"{}", "length": b"-1"}, 411),
        ({"path": JOIN, "length": str(MESSAGE_BYTES + 1).encode()}, 413),
        # A length that lies.
        ({"path": JOIN, "body": b"x" * 2 * MESSAGE_BYTES, "length": b"2"}, 413),
        ({"path": "/gradio_api/upload", "length": b"209715200"}, 413),
        ({"path": JOIN, "body": b"not json"}, 400),
        ({"path": JOIN, "body": b"[" * 100_000}, 400),
        ({"path": JOIN, "body": b'{"data": [{"path": "http://127.0.0.1/x"}]}'}, 400),
    ],
)
def test_bad_requests_reach_nothing(request_, status):
    assert answer(**request_) == (status, [])

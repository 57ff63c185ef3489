"""The routes that are answered, and the requests that are not."""

import asyncio
import json

import pytest

from unix_jax.app.request_limits import MESSAGE_BYTES, Guard, allowed, names_an_address
from unix_jax.app.upload_budget import UploadBudget


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


def answer(path, body=b"", method="POST", length=None, uploads=None, waiting=0, error=None):
    """(status, what the application behind received) of one request."""
    received, sent = [], []
    uploads = uploads or UploadBudget(2000, 3000, 60)

    async def application(scope, receive, send):
        message = await receive()
        received.append(message.get("body"))
        if error:
            raise error
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
    guard = Guard(application, 1000, uploads, lambda session: waiting, 3)
    asyncio.run(guard(scope, receive, send))
    names = {name for name, _ in sent[0]["headers"]}
    assert {b"content-security-policy", b"x-content-type-options"} <= names
    return sent[0]["status"], received


JOIN = "/gradio_api/queue/join"


def joining(data, **fields):
    """The body of a request that joins the queue."""
    message = {"data": data, "fn_index": 3, "session_hash": "abc"} | fields
    return json.dumps(message).encode()


def test_good_requests_pass_whole():
    body = joining(["x" * 200_000])
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
        ({"path": JOIN, "body": b"null"}, 400),
        ({"path": JOIN, "body": joining([float("nan")])}, 400),
        ({"path": JOIN, "body": joining([float("inf")])}, 400),
        ({"path": JOIN, "body": b'{"data": [' + b"9" * 5000 + b"]}"}, 400),
        ({"path": JOIN, "body": joining([], session_hash=None)}, 400),
        ({"path": JOIN, "body": joining([], session_hash="x" * 101)}, 400),
        ({"path": JOIN, "body": joining([], session_hash=["x"])}, 400),
        ({"path": JOIN, "body": joining("text")}, 400),
        ({"path": JOIN, "body": joining([], fn_index="3")}, 400),
        ({"path": JOIN, "body": joining([], fn_index=True)}, 400),
        ({"path": JOIN, "body": joining([]), "waiting": 3}, 429),
        ({"path": "/gradio_api/upload", "length": b"9" * 5000}, 413),
        ({"path": JOIN, "body": b'{"data": [{"path": "http://127.0.0.1/x"}]}'}, 400),
    ],
)
def test_bad_requests_reach_nothing(request_, status):
    assert answer(**request_) == (status, [])


def test_a_session_below_its_maximum_may_join():
    assert answer(JOIN, joining([]), waiting=2)[0] == 200


def test_an_error_of_the_page_is_one_line_without_values(caplog):
    status, _ = answer(JOIN, joining(["secret"]), error=KeyError("secret"))
    assert status == 500
    (record,) = caplog.records
    assert record.getMessage() == "a call of the page failed: KeyError"
    assert record.exc_info is None


def test_uploads_are_bounded_in_sum():
    time = [0.0]
    uploads = UploadBudget(2000, 3000, 60, now=lambda: time[0])
    assert uploads.refusal("a", 1500) is None
    assert "from your address in 1 minutes" in uploads.refusal("a", 600)
    assert uploads.refusal("a", 500) is None
    time[0] = 30
    assert "from all visitors" in uploads.refusal("b", 1001)
    assert uploads.refusal("b", 1000) is None
    assert uploads.refusal("c", 1) is not None
    # Those of the first visitor are deleted.
    time[0] = 60
    assert uploads.refusal("c", 2000) is None
    assert uploads.refusal("a", 1) is not None


def test_an_upload_beyond_the_sum_is_refused_before_it_arrives():
    uploads = UploadBudget(1500, 3000, 60)
    assert answer("/gradio_api/upload", b"x" * 900, uploads=uploads)[0] == 200
    assert answer("/gradio_api/upload", b"x" * 900, uploads=uploads) == (429, [])

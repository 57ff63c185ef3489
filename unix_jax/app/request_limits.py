"""ASGI middleware in front of Gradio: few routes, small requests, strict headers.

Gradio answers many more routes than this page needs, including some that read files, fetch
addresses and keep states on disk. Only the routes on a short list are allowed here, so no path of
the server can be read, and no address be fetched, through it.
"""

import json
from collections.abc import Awaitable, Callable
from typing import Any

PAGES = {"/", "/config", "/theme.css", "/favicon.ico", "/robots.txt", "/manifest.json"}
API = "/gradio_api/"
CALLS = {"app_id", "cancel", "heartbeat", "info", "queue", "reset", "run", "startup-events",
         "theme.css", "upload", "upload_progress"}  # fmt: skip
FILES = ("/assets/", "/static/")  # of the library itself

MESSAGE_BYTES = 2**18  # settings and texts
FORM_BYTES = 2**14  # overhead around an uploaded file

# The page's library evaluates code of its own; nothing comes from, or goes to, another host.
HEADERS = {
    "Content-Security-Policy": "default-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class Guard:
    """ASGI middleware around the page; `upload_bytes` bounds one uploaded file."""

    def __init__(self, app: Any, upload_bytes: int) -> None:
        self._app, self._upload_bytes = app, upload_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            # No socket is in use; `lifespan` starts and stops the page.
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        send = _with_headers(send)
        refusal = self._refusal(scope)
        if refusal is None and scope["method"] == "POST" and not _is_upload(scope["path"]):
            receive, refusal = await _checked_message(receive)
        if refusal is None:
            await self._app(scope, receive, send)
        else:
            await _answer(send, *refusal)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        if not allowed(scope["path"]):
            return 404, "Not found."
        if scope["method"] != "POST":
            return None
        length = dict(scope["headers"]).get(b"content-length", b"")
        if not length.isdigit():
            return 411, "Expected a request that states its length."
        most = self._upload_bytes + FORM_BYTES if _is_upload(scope["path"]) else MESSAGE_BYTES
        if int(length) > most:
            return 413, f"Expected at most {most} bytes, found {int(length)}."
        return None


def allowed(path: str) -> bool:
    """Whether a path, already decoded, is on the list."""
    if "\\" in path or "\0" in path or any(part == ".." for part in path.split("/")):
        return False
    if path.startswith(API):
        return path.removeprefix(API).split("/")[0] in CALLS
    return path in PAGES or path.startswith(FILES)


def names_an_address(value: Any) -> bool:
    """Whether a message asks for a file from another host, which the library would fetch."""
    if isinstance(value, list):
        return any(names_an_address(item) for item in value)
    if not isinstance(value, dict):
        return False
    path = value.get("path")
    if isinstance(path, str) and "://" in path:
        return True
    return any(names_an_address(item) for item in value.values())


async def _checked_message(receive: Receive) -> tuple[Receive, tuple[int, str] | None]:
    """The message, to be received again, and the reason for a refusal."""
    body = b""
    while True:
        part = await receive()
        body += part.get("body", b"")
        if part["type"] != "http.request" or not part.get("more_body"):
            break
        if len(body) > MESSAGE_BYTES:
            return receive, (413, f"Expected at most {MESSAGE_BYTES} bytes.")
    parts = [{"type": "http.request", "body": body}] if part["type"] == "http.request" else [part]

    async def again() -> dict[str, Any]:
        return parts.pop() if parts else await receive()

    try:
        message = json.loads(body or b"null")
        refused = names_an_address(message)
    except (ValueError, RecursionError):
        return again, (400, "Expected JSON.")
    return again, (400, "Expected an uploaded file, found an address.") if refused else None


def _is_upload(path: str) -> bool:
    return path.rstrip("/") == f"{API}upload"


def _with_headers(send: Send) -> Send:
    added = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]

    async def sending(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message = message | {"headers": [*message.get("headers", []), *added]}
        await send(message)

    return sending


async def _answer(send: Send, status: int, text: str) -> None:
    body = text.encode()
    headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})

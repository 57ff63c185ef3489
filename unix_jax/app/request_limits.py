"""ASGI middleware in front of Gradio: few routes, small requests, strict headers.

Gradio answers many more routes than this page needs, including some that read files, fetch
addresses and keep states on disk. Only the routes on a short list are allowed here, so no path of
the server can be read, and no address be fetched, through it.
"""

import json
import logging
from collections.abc import Callable, MutableMapping
from typing import Any

from unix_jax.app.upload_budget import UploadBudget
from unix_jax.web.guard import Receive, Scope, Send, plain_answer
from unix_jax.web.hosts import Refusal

PAGES = {"/", "/config", "/theme.css", "/favicon.ico", "/robots.txt", "/manifest.json"}
API = "/gradio_api/"
CALLS = {"app_id", "cancel", "heartbeat", "info", "queue", "reset", "run", "startup-events",
         "theme.css", "upload", "upload_progress"}  # fmt: skip
FILES = ("/assets/", "/static/")  # of the library itself

JOIN = f"{API}queue/join"

SESSION_LETTERS = 100
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


class Guard:
    """ASGI middleware around the page.

    Args:
      app: the page.
      upload_bytes: maximum bytes of one uploaded file.
      uploads: bounds all uploads; None for a page without any, where they are refused.
      waiting: the number of requests of a session that wait or are computed.
      session_waiting: their maximum.
    """

    def __init__(
        self,
        app: Any,
        upload_bytes: int,
        uploads: UploadBudget | None,
        waiting: Callable[[str], int],
        session_waiting: int,
    ) -> None:
        self._app, self._upload_bytes, self._uploads = app, upload_bytes, uploads
        self._waiting, self._session_waiting = waiting, session_waiting

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            # No socket is in use; `lifespan` starts and stops the page.
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        send = _with_headers(send)
        refusal = self._refusal(scope)
        if refusal is None and scope["method"] == "POST" and not _is_upload(scope["path"]):
            receive, message, refusal = await _checked_message(receive)
            if refusal is None and scope["path"].rstrip("/") == JOIN:
                refusal = self._join_refusal(message)
        if refusal is None:
            await self._logged(scope, receive, send)
        else:
            await plain_answer(send, *refusal)

    async def _logged(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Calls the page; an error is one line of the log, without the visitor's values."""
        started = False

        async def sending(message: MutableMapping[str, Any]) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, sending)
        except Exception as error:
            log_failure(error)
            if not started:
                await plain_answer(send, 500, "The request cannot be answered.")

    def _refusal(self, scope: Scope) -> Refusal | None:
        upload = _is_upload(scope["path"])
        if not allowed(scope["path"]) or (upload and self._uploads is None):
            return 404, "Not found."
        if scope["method"] != "POST":
            return None
        length = dict(scope["headers"]).get(b"content-length", b"")
        if not length.isdigit():
            return 411, "Expected a request that states its length."
        most = self._upload_bytes + FORM_BYTES if upload else MESSAGE_BYTES
        # Python refuses to read a number of more than 4,300 digits.
        size = int(length) if len(length) < 20 else 10**20
        if size > most:
            return 413, f"Expected at most {most} bytes, found {size}."
        visitor = (scope.get("client") or ("",))[0]
        reason = self._uploads.refusal(visitor, size) if upload and self._uploads else None
        return None if reason is None else (429, reason)

    def _join_refusal(self, message: Any) -> Refusal | None:
        """Why a request must not join the queue; None if it may."""
        found = message if isinstance(message, dict) else {}
        session, data = found.get("session_hash"), found.get("data")
        index = found.get("fn_index")
        named = isinstance(session, str) and 1 <= len(session) <= SESSION_LETTERS
        if not named or not isinstance(data, list) or type(index) is not int:
            return 400, "Expected a request of this page."
        assert isinstance(session, str)
        if self._waiting(session) >= self._session_waiting:
            return 429, (
                f"Expected at most {self._session_waiting} requests of a session at a time. "
                "Try again when one has finished."
            )
        return None


def log_failure(error: BaseException | None) -> None:
    """Logs that a call of the page failed, with the kind of error alone.

    The error's text, and the lines of its traceback, may contain what a visitor sent.
    """
    logging.getLogger(__name__).warning("a call of the page failed: %s", type(error).__name__)


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


async def _checked_message(receive: Receive) -> tuple[Receive, Any, Refusal | None]:
    """The message, to be received again; its value; and the reason for a refusal."""
    body = b""
    while True:
        part = await receive()
        body += part.get("body", b"")
        if part["type"] != "http.request" or not part.get("more_body"):
            break
        if len(body) > MESSAGE_BYTES:
            return receive, None, (413, f"Expected at most {MESSAGE_BYTES} bytes.")
    parts = [{"type": "http.request", "body": body}] if part["type"] == "http.request" else [part]

    async def again() -> MutableMapping[str, Any]:
        return parts.pop() if parts else await receive()

    try:
        message = json.loads(body or b"null", parse_constant=_refused_constant)
        refused = names_an_address(message)
    except (ValueError, RecursionError):
        return again, None, (400, "Expected JSON.")
    reason = (400, "Expected an uploaded file, found an address.") if refused else None
    return again, message, reason


def _refused_constant(name: str) -> Any:
    """NaN and Infinity are not JSON."""
    raise ValueError(name)


def _is_upload(path: str) -> bool:
    return path.rstrip("/") == f"{API}upload"


def _with_headers(send: Send) -> Send:
    added = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]

    async def sending(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", []), *added]}
        await send(message)

    return sending

"""ASGI middleware: the API key, the number of requests at a time, and their metrics."""

import hmac
import time
from typing import Any

from unix_jax.serving.metrics import Metrics
from unix_jax.serving.refusals import RequestError, send_error
from unix_jax.web.guard import Receive, Scope, Send

MODELS, CHAT, IMAGES = "/v1/models", "/v1/chat/completions", "/v1/images/generations"
HEALTH, METRICS = "/health", "/metrics"
COMPUTING = (CHAT, IMAGES)
_KNOWN = {MODELS, CHAT, IMAGES, HEALTH, METRICS}


class Counted:
    """Counts every response by its path and status."""

    def __init__(self, app: Any, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status, began = 0, time.monotonic()

        async def sending(message: dict[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, sending)
        except Exception:
            status = status or 500
            raise
        finally:
            # Paths that clients invent are not labels. 499: the client left before a response.
            path = scope["path"] if scope["path"] in _KNOWN else "other"
            self._metrics.answered(path, status or 499, time.monotonic() - began)


class Keyed:
    """Requires the API key everywhere except for the health check; None requires none."""

    def __init__(self, app: Any, key: str | None) -> None:
        self._app, self._key = app, key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] != HEALTH and not self._knows(scope):
            error = RequestError(
                "Authorization: expected 'Bearer' and the server's API key.", status=401
            )
            await send_error(send, error)
            return
        await self._app(scope, receive, send)

    def _knows(self, scope: Scope) -> bool:
        if self._key is None:
            return True
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        scheme, _, key = (given[0] if len(given) == 1 else b"").partition(b" ")
        return scheme.lower() == b"bearer" and hmac.compare_digest(key.strip(), self._key.encode())


class Admission:
    """Refuses a request that computes while `most` others are open, before its body is received.

    A request is open until its response has been sent. Therefore the bodies and images in memory
    are bounded as well.
    """

    def __init__(self, app: Any, most: int, opened: "OpenRequests") -> None:
        self._app, self._most, self._opened = app, most, opened

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] not in COMPUTING:
            await self._app(scope, receive, send)
            return
        if self._opened.count >= self._most:
            error = RequestError(
                f"The queue is full: at most {self._most} requests at a time. Try again later.",
                status=429,
            )
            await send_error(send, error)
            return
        self._opened.count += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._opened.count -= 1


class OpenRequests:
    """The number of open requests, which only the event loop changes."""

    count = 0

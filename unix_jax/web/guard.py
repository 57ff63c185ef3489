"""ASGI middleware that refuses requests under foreign names and from foreign pages."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from unix_jax.web.hosts import AllowedHosts

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Answer = Callable[[Send, int, str], Awaitable[None]]


async def plain_answer(send: Send, status: int, text: str) -> None:
    """Sends a complete response of plain text."""
    await answer_bytes(send, status, text.encode(), b"text/plain; charset=utf-8")


async def answer_bytes(
    send: Send, status: int, body: bytes, kind: bytes, headers: tuple[tuple[bytes, bytes], ...] = ()
) -> None:
    """Sends a complete response of content type `kind`."""
    fixed = ((b"content-type", kind), (b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": [*fixed, *headers]})
    await send({"type": "http.response.body", "body": body})


class HostGuard:
    """Refuses what `AllowedHosts.refusal` refuses, and every WebSocket.

    Args:
      app: the application.
      hosts: the names of the server.
      answer: sends a refusal, in the form that the server's clients expect.
    """

    def __init__(self, app: Any, hosts: AllowedHosts, answer: Answer = plain_answer) -> None:
        self._app, self._hosts, self._answer = app, hosts, answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        if scope["type"] != "http":
            return  # no WebSocket is in use
        refusal = self._hosts.refusal(scope["method"], scope["headers"])
        if refusal is None:
            await self._app(scope, receive, send)
        else:
            await self._answer(send, *refusal)

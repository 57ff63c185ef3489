"""Errors in OpenAI's format: one object with a message of one line."""

import json
from typing import Any

from unix_jax.errors import NonFiniteError, UniXError
from unix_jax.web.guard import Send, answer_bytes

_TYPES = {401: "authentication_error", 429: "rate_limit_error"}
_CODES = {
    401: "invalid_api_key",
    404: "not_found",
    405: "method_not_allowed",
    408: "timeout",
    411: "length_required",
    413: "request_too_large",
    415: "unsupported_media_type",
    421: "misdirected_request",
    429: "rate_limit_exceeded",
    503: "unavailable",
    504: "timeout",
}
FAILED = "An error occurred on the server; see its log."


class RequestError(UniXError):
    """A request that is refused or failed.

    Attributes:
      status: of the response.
      param: the field of the request, if the error is about one.
      code: OpenAI's code of the error; the default depends on the status.
    """

    def __init__(
        self, message: str, *, status: int = 400, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(_sendable(" ".join(message.split())))
        self.status, self.param = status, None if param is None else _sendable(param)
        self.code = _CODES.get(status) if code is None else code

    @property
    def body(self) -> dict[str, Any]:
        """The response: OpenAI's error object."""
        kind = _TYPES.get(self.status)
        if kind is None:
            kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {
            "error": {
                "message": str(self),
                "type": kind,
                "param": self.param,
                "code": self.code,
            }
        }

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the response."""
        if self.status == 401:
            return {"WWW-Authenticate": "Bearer"}
        return {"Retry-After": "1"} if self.status in (429, 503) else {}


def _sendable(text: str) -> str:
    """Text that UTF-8 can encode: names in a request may contain lone surrogates."""
    return text.encode("utf-8", "backslashreplace").decode()


def request_error(error: BaseException) -> RequestError:
    """The response to an exception; what is not an error of the request is not described."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, NonFiniteError):
        # Its text numbers the rows of a batch, which are other clients' requests.
        return RequestError(
            "The model computed numbers that are NaN or infinite; see the server's log.",
            status=500,
        )
    if isinstance(error, UniXError):
        return RequestError(str(error))
    return RequestError(FAILED, status=500)


async def send_refusal(send: Send, status: int, text: str) -> None:
    """Sends a complete response of a refusal."""
    await send_error(send, RequestError(text, status=status))


async def send_error(send: Send, error: RequestError) -> None:
    """Sends a complete response of an error."""
    headers = tuple((key.lower().encode(), value.encode()) for key, value in error.headers.items())
    body = json.dumps(error.body).encode()
    await answer_bytes(send, error.status, body, b"application/json", headers)

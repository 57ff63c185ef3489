"""Chat completions of any OpenAI-compatible endpoint, with the key kept out of everything.

The client's own retries are off: ours also cover bodies that are broken, wait as long as the
server asks, and hold back every other request meanwhile.
"""

import asyncio
import dataclasses
import email.utils
import os
import random
import re
import time
import urllib.parse
from typing import Any

from unix_jax.errors import UniXError
from unix_jax.extras import require

Messages = list[dict[str, str]]

_KEY = re.compile(r"[\x21-\x7e]+")
_RETRIED = frozenset({408, 409, 425, 429})
_HOPELESS = frozenset({401, 402, 403, 404, 405})
_LONGEST_WAIT = 600.0
_NO_KEY = "none"


class EndpointError(UniXError):
    """The endpoint cannot be used: every further request would fail too."""


class RequestError(Exception):
    """One request failed for good.

    again: whether a later run may succeed.
    tokens: spent on earlier requests for the same report.
    """

    def __init__(self, reason: str, again: bool) -> None:
        super().__init__(reason)
        self.reason, self.again = reason, again
        self.tokens = Tokens()


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Tokens sent and received."""

    sent: int = 0
    received: int = 0

    def __add__(self, other: "Tokens") -> "Tokens":
        return Tokens(self.sent + other.sent, self.received + other.received)

    @property
    def total(self) -> int:
        return self.sent + self.received


@dataclasses.dataclass(frozen=True)
class Completion:
    """What the model wrote; `problem` says why it cannot be used, or is ""."""

    text: str
    tokens: Tokens
    problem: str = ""


@dataclasses.dataclass(frozen=True)
class Retries:
    """How often a request is tried, and the waits in seconds: first, doubled each time, at most."""

    tries: int = 6
    first_wait: float = 1.0
    longest_wait: float = 60.0

    def wait(self, failures: int) -> float:
        """With jitter, so that requests that failed together do not return together."""
        wait = min(self.first_wait * 2.0 ** (failures - 1), self.longest_wait)
        return wait * random.uniform(0.5, 1.0)


def key_from_environment(variable: str) -> str:
    """The key; "" where the variable is not set, for servers that need none.

    Raises:
      EndpointError: it cannot be sent in a header. The message does not show it.
    """
    key = os.environ.get(variable, "").strip()
    if key and not _KEY.fullmatch(key):
        raise EndpointError(f"${variable}: expected a key in printable ASCII without spaces")
    return key


def checked_endpoint(url: str) -> str:
    """The URL, without a final slash.

    Raises:
      EndpointError: not http or https, or with a user, a query or a fragment in it: a key there
        would end up in logs.
    """
    try:
        parts = urllib.parse.urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        valid = False
    if not valid:
        raise EndpointError("--endpoint: expected http://HOST/PATH or https://HOST/PATH")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise EndpointError(
            "--endpoint: expected no user, query or fragment; the key is read from the environment"
        )
    return url.rstrip("/")


class ChatEndpoint:
    """One endpoint and one model; use as an async context manager."""

    def __init__(
        self,
        url: str,
        key: str,
        *,
        timeout: float = 120.0,
        retries: Retries | None = None,
        max_tokens: int | None = 1024,
        temperature: float | None = 0.0,
    ) -> None:
        """`timeout` is seconds for one whole answer; what is None is left to the server."""
        openai = require("openai", "cleaning by an endpoint", "unix-jax[clean]")
        self._openai = openai
        self._key, self._timeout = key, timeout
        self._retries = retries or Retries()
        options = {"max_tokens": max_tokens, "temperature": temperature}
        self._options = {name: value for name, value in options.items() if value is not None}
        self._not_before = 0.0
        self._client = openai.AsyncOpenAI(
            api_key=key or _NO_KEY, base_url=checked_endpoint(url), max_retries=0, timeout=timeout
        )

    async def __aenter__(self) -> "ChatEndpoint":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    async def complete(self, model: str, messages: Messages) -> Completion:
        """The model's answer.

        Raises:
          RequestError: refused for good, or failed in every try.
          EndpointError: key, model or address are wrong, or the account has run dry.
        """
        reason = ""
        for failures in range(self._retries.tries):
            if failures:
                await asyncio.sleep(self._retries.wait(failures))
            await self._held_back()
            try:
                return await self._once(model, messages)
            except _Temporary as error:
                reason = str(error)
                if error.wait:
                    self._not_before = max(self._not_before, time.monotonic() + error.wait)
        raise RequestError(f"{reason} ({self._retries.tries} tries)", again=True)

    async def _held_back(self) -> None:
        while (left := self._not_before - time.monotonic()) > 0:
            await asyncio.sleep(left)

    async def _once(self, model: str, messages: Messages) -> Completion:
        openai = self._openai
        request = self._client.chat.completions.create(
            model=model,
            messages=messages,
            **self._options,
        )
        # `from None`: the client's exceptions carry the request and its headers.
        try:
            # The client's timeout is for each read: a body that trickles would never end.
            answer = await asyncio.wait_for(request, self._timeout)
        except openai.APIStatusError as error:
            raise self._status_error(error, model) from None
        except (openai.APITimeoutError, TimeoutError):
            raise _Temporary(f"no answer within {self._timeout:g} s") from None
        except openai.APIConnectionError:
            raise _Temporary("the connection failed or broke off") from None
        except (openai.OpenAIError, ValueError, TypeError, AttributeError):
            raise _Temporary("the answer was not valid JSON") from None
        return self._completion(answer, messages)

    def _status_error(self, error: Any, model: str) -> Exception:
        status = error.status_code
        said = self._safe(error.message)
        if status in _HOPELESS or "insufficient_quota" in said:
            return EndpointError(f"--endpoint: HTTP {status} for the model {model}: {said}")
        if status in _RETRIED or status >= 500:
            wait = _retry_after(error.response.headers)
            return _Temporary(f"HTTP {status}: {said}", wait)
        return RequestError(f"HTTP {status}: {said}", again=False)

    def _completion(self, answer: Any, messages: Messages) -> Completion:
        try:
            choice = answer.choices[0]
            content, refusal = choice.message.content, getattr(choice.message, "refusal", None)
            finish = choice.finish_reason
        except (AttributeError, IndexError, TypeError):
            raise _Temporary("the answer held no message") from None
        if not isinstance(content, str | None):
            raise _Temporary("the answer held no text")
        text = self._safe(content or "", limit=None)
        sent = sum(len(message["content"]) for message in messages)
        tokens = _tokens(getattr(answer, "usage", None), sent, len(text))
        problem = ""
        if refusal or finish == "content_filter":
            problem = "the model refused"
        elif finish == "length":
            problem = "the answer was cut off"
        return Completion(text, tokens, problem)

    def _safe(self, text: object, limit: int | None = 300) -> str:
        """Text from outside without the key, which a server may send back."""
        found = str(text)
        if self._key:
            found = found.replace(self._key, "[key]")
        return found if limit is None else " ".join(found.split())[:limit]


class _Temporary(Exception):
    """A failure worth another try, after `wait` seconds if the server said so."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


def _retry_after(headers: Any) -> float:
    """Seconds of the header Retry-After, which holds seconds or a date; 0 if there is none."""
    value = headers.get("retry-after") or ""
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return 0.0
    return min(max(seconds, 0.0), _LONGEST_WAIT) if seconds == seconds else 0.0


def _tokens(usage: Any, sent: int, received: int) -> Tokens:
    """As the server counted; by four characters a token where it did not."""
    found = [getattr(usage, name, None) for name in ("prompt_tokens", "completion_tokens")]
    counted = [n if isinstance(n, int) and n >= 0 else None for n in found]
    estimates = (-(-sent // 4), -(-received // 4))
    return Tokens(*(e if n is None else n for n, e in zip(counted, estimates, strict=True)))

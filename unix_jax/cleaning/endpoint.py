"""Client for chat completions of OpenAI-compatible endpoints, which never reveals the key.

The library's own retries are disabled. Those of this module also cover invalid bodies, wait as long
as the server requests, and delay all other requests meanwhile. Redirects are not followed: the
reports and the key are only sent to the address that the user specified.
"""

import asyncio
import dataclasses
import email.utils
import os
import random
import re
import time
import urllib.parse
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from unix_jax.errors import UniXError
from unix_jax.extras import require

Messages = list[dict[str, str]]

_KEY = re.compile(r"[\x21-\x7e]+")
_RETRIED = frozenset({408, 409, 425, 429})
_HOPELESS = frozenset({401, 402, 403, 404, 405})
_NO_KEY = "none"
# Waits are said on the terminal from this length on, and not more often.
_SAID_FROM, _SAID_EVERY = 1.0, 10.0

# What servers call an irregular end of an answer.
_CUT_OFF = frozenset({"length", "max_tokens", "max_output_tokens", "model_length"})
_REFUSED = frozenset({"content_filter", "safety", "refusal", "recitation", "prohibited_content"})
_BROKEN_OFF = frozenset({"error", "insufficient_system_resource", "abort", "cancelled", "canceled"})


class EndpointError(UniXError):
    """The endpoint cannot be used, so that every further request would also fail."""


class RequestError(Exception):
    """One request failed permanently.

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
    """The model's answer; `problem` states why it cannot be used, or is ""."""

    text: str
    tokens: Tokens
    problem: str = ""


@dataclasses.dataclass(frozen=True)
class Retries:
    """Number of attempts of a request, and the waits between them.

    tries: maximum number of attempts.
    first_wait, longest_wait: wait in seconds before the second attempt, doubled for each later
      attempt, and its maximum.
    patience: maximum seconds that a server may delay all requests by Retry-After without an answer.
    """

    tries: int = 6
    first_wait: float = 1.0
    longest_wait: float = 60.0
    patience: float = 600.0

    def wait(self, failures: int) -> float:
        """Seconds with jitter, so that requests that failed together are not repeated together."""
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
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        """`timeout` is seconds for one whole answer; what is None is left to the server.

        `say` gets a line for the user when the server makes all requests wait.
        """
        openai = require("openai", "cleaning by an endpoint", "unix-jax[clean]")
        self._openai = openai
        self._key, self._timeout = key, timeout
        self._retries = retries or Retries()
        options = {"max_tokens": max_tokens, "temperature": temperature}
        self._options = {name: value for name, value in options.items() if value is not None}
        self._say, self._said_until = say, 0.0
        self._not_before = 0.0
        self._held_since: float | None = None
        self._url = checked_endpoint(url)
        self._client = openai.AsyncOpenAI(
            api_key=key or _NO_KEY,
            base_url=self._url,
            max_retries=0,
            timeout=timeout,
            http_client=openai.DefaultAsyncHttpxClient(follow_redirects=False, timeout=timeout),
        )

    async def __aenter__(self) -> "ChatEndpoint":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    async def complete(self, model: str, messages: Messages) -> Completion:
        """The model's answer.

        Raises:
          RequestError: refused for good, or failed in every try.
          EndpointError: key, model or address are wrong, the address redirects, the account has
            run dry, or the server asks to wait longer than `Retries.patience`.
        """
        reason = ""
        for failures in range(self._retries.tries):
            if failures:
                await asyncio.sleep(self._retries.wait(failures))
            await self._held_back()
            try:
                completion = await self._once(model, messages)
            except _Temporary as error:
                reason = str(error)
                if error.wait:
                    self._hold_back(error.wait, reason)
            else:
                self._held_since = None
                return completion
        raise RequestError(f"{reason} ({self._retries.tries} tries)", again=True)

    def _hold_back(self, wait: float, reason: str) -> None:
        """Makes all requests wait, and says so.

        Raises:
          EndpointError: the server has made us wait too long without an answer.
        """
        now = time.monotonic()
        since = self._held_since = now if self._held_since is None else self._held_since
        patience = self._retries.patience
        if now + wait > since + patience:
            waited = (
                f" after {_seconds(now - since)} without an answer" if now - since > 0.1 else ""
            )
            raise EndpointError(
                f"--endpoint: {reason}. The server asks to wait {_seconds(wait)} "
                f"(Retry-After){waited}; "
                f"expected at most {patience:g} s in all (--patience). "
                "What is done is kept: run the same command later to resume"
            )
        self._not_before = max(self._not_before, now + wait)
        if wait >= _SAID_FROM and self._not_before > self._said_until:
            self._said_until = max(self._not_before, now + _SAID_EVERY)
            self._say(
                f"{reason}. The server asks to wait {_seconds(wait)} (Retry-After); waited "
                f"{_seconds(now - since)} so far, of at most {patience:g} s (--patience)"
            )

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
        if 300 <= status < 400:
            location = error.response.headers.get("location") or ""
            return EndpointError(self._safe(_redirected(status, str(error.request.url), location)))
        said = self._safe(error.message)
        if status in _HOPELESS or "insufficient_quota" in said:
            return EndpointError(f"--endpoint: HTTP {status} for the model {model}: {said}")
        if status in _RETRIED or status >= 500:
            wait, unread = _retry_after(error.response.headers)
            return _Temporary(f"HTTP {status}: {said}{unread}", wait)
        return RequestError(f"HTTP {status}: {said}", again=False)

    def _completion(self, answer: Any, messages: Messages) -> Completion:
        try:
            choice = answer.choices[0]
            content, refusal = choice.message.content, getattr(choice.message, "refusal", None)
            finish = choice.finish_reason
        except (AttributeError, IndexError, TypeError):
            raise _Temporary("the answer held no message") from None
        text = self._safe(_text_of(content), limit=None)
        sent = sum(len(message["content"]) for message in messages)
        tokens = _tokens(getattr(answer, "usage", None), sent, len(text))
        return Completion(text, tokens, self._problem(refusal, str(finish or "").lower()))

    def _problem(self, refusal: Any, finish: str) -> str:
        if finish in _BROKEN_OFF:
            raise _Temporary(f"the server broke the answer off (finish_reason {finish})")
        if refusal or finish in _REFUSED:
            return "the model refused"
        if finish in _CUT_OFF:
            most = self._options.get("max_tokens")
            limit = "the server's limit" if most is None else f"--max-tokens {most}"
            return f"the answer was cut off at {limit}; reasoning counts as well"
        return ""

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


def _text_of(content: Any) -> str:
    """The text of a message: a string, or a list of parts of which reasoning is left out."""
    if content is None:
        return ""
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    texts = []
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in ("thinking", "reasoning", "redacted_thinking"):
            continue
        if kind not in ("text", "output_text") or not isinstance(part.get("text"), str):
            raise _Temporary("the answer held no text")
        texts.append(part["text"])
    return "".join(texts)


def _redirected(status: int, asked: str, location: str) -> str:
    """What to say about a redirect, of which only the origin is shown: the rest may hold a key."""
    here = _origin(asked)
    try:
        there = _origin(urllib.parse.urljoin(asked, location)) if location else ""
    except ValueError:
        there = ""
    if not there:
        return (
            f"--endpoint: {here} answered with a redirect (HTTP {status}) without a valid address; "
            "no redirect is followed"
        )
    if there == here:
        path = urllib.parse.urlsplit(urllib.parse.urljoin(asked, location)).path
        path = path.removesuffix("/").removesuffix("/chat/completions")
        return (
            f"--endpoint: {here} redirects to another path of {there} (HTTP {status}). "
            f"No redirect is followed; give the address itself, such as {there}{path}"
        )
    return (
        f"--endpoint: {here} redirects to another origin, {there} (HTTP {status}). "
        "No redirect is followed: reports and key are sent to the given address only. "
        "If you trust the other one, give it as --endpoint"
    )


def _origin(url: str) -> str:
    """scheme://host, with the port unless it is the scheme's own.

    Raises:
      ValueError: the URL is not valid.
    """
    parts = urllib.parse.urlsplit(url)
    host = "".join(char for char in parts.hostname or "" if char.isprintable())
    host = f"[{host}]" if ":" in host else host
    own = {"http": 80, "https": 443}.get(parts.scheme)
    port = "" if parts.port in (None, own) else f":{parts.port}"
    return f"{parts.scheme}://{host}{port}"


def _retry_after(headers: Any) -> tuple[float, str]:
    """(seconds of the header Retry-After, what to say of one that cannot be read).

    It holds seconds or a date (RFC 9110, 10.2.3), or milliseconds as retry-after-ms. The seconds
    are 0 if there is none, if it is past, or if it cannot be read; they may be infinite.
    """
    milliseconds = _number(headers.get("retry-after-ms") or "")
    if milliseconds is not None:
        return max(milliseconds / 1000, 0.0), ""
    value = (headers.get("retry-after") or "").strip()
    seconds = _number(value)
    if seconds is None and value:
        try:
            date = email.utils.parsedate_to_datetime(value)
            zoned = date if date.tzinfo else date.replace(tzinfo=UTC)
            seconds = (zoned - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError, OverflowError, IndexError):
            return 0.0, f" (Retry-After: expected seconds or a date, found {value[:40]!r})"
    return max(seconds or 0.0, 0.0), ""


def _number(text: str) -> float | None:
    try:
        found = float(text)
    except ValueError:
        return None
    return None if found != found else found


def _seconds(seconds: float) -> str:
    """A length of time for a person: 0.5 s, 12 s, 1:30:00, more than a year."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    if seconds < 600:
        return f"{seconds:.0f} s"
    if seconds > 366 * 86400:
        return "more than a year"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{seconds:.0f} s ({hours}:{minutes:02d}:{rest:02d} h)"


def _tokens(usage: Any, sent: int, received: int) -> Tokens:
    """As the server counted; by four characters a token where it did not."""
    found = [getattr(usage, name, None) for name in ("prompt_tokens", "completion_tokens")]
    counted = [n if isinstance(n, int) and n >= 0 else None for n in found]
    estimates = (-(-sent // 4), -(-received // 4))
    return Tokens(*(e if n is None else n for n, e in zip(counted, estimates, strict=True)))

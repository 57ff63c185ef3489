"""Results in OpenAI's format.

Two fields are this project's own: `warnings` of a report, sentences about images that show almost
nothing, and `seed` of an image.
"""

import base64
import json
import secrets
import time
from typing import Any

from unix_jax.inference.results import png_entries
from unix_jax.preprocessing.transforms import png_bytes
from unix_jax.serving.batches import GeneratedImages, Report
from unix_jax.serving.requests import ImageRequest, ReportRequest

DONE = b"data: [DONE]\n\n"


def event(value: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n".encode()


class ReportReply:
    """The responses to one request for a report, all with the same id."""

    def __init__(self, request: ReportRequest, model: str) -> None:
        self._request, self._model = request, model
        self._id, self._created = f"chatcmpl-{secrets.token_hex(12)}", int(time.time())

    def complete(self, report: Report) -> dict[str, Any]:
        """The response without streaming."""
        message = {"role": "assistant", "content": report.text, "refusal": None}
        choice = {
            "index": 0,
            "message": message,
            "finish_reason": report.finish_reason,
            "logprobs": None,
        }
        return self._object("chat.completion", [choice]) | self._last(report)

    def first_chunk(self) -> bytes:
        """The event that names the role."""
        return self._chunk({"role": "assistant", "content": ""})

    def chunk(self, text: str) -> bytes:
        """The event of new text."""
        return self._chunk({"content": text})

    def last_chunks(self, report: Report) -> list[bytes]:
        """The events after the text."""
        last = self._last(report)
        usage = {"usage": last.pop("usage")}
        events = [self._chunk({}, report.finish_reason, last)]
        if self._request.stream_usage:
            events.append(event(self._object("chat.completion.chunk", []) | usage))
        return [*events, DONE]

    def _chunk(
        self, delta: dict[str, str], reason: str | None = None, more: dict[str, Any] | None = None
    ) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}
        return event(self._object("chat.completion.chunk", [choice]) | (more or {}))

    def _object(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._model,
            "choices": choices,
        }

    def _last(self, report: Report) -> dict[str, Any]:
        context = self._request.context_tokens
        warnings = list(self._request.warnings)
        usage = {
            "prompt_tokens": context,
            "completion_tokens": report.tokens,
            "total_tokens": context + report.tokens,
        }
        return {"usage": usage, **({"warnings": warnings} if warnings else {})}


def images_reply(request: ImageRequest, found: GeneratedImages) -> dict[str, Any]:
    """The response to a request for images: PNG files that record their text and settings."""
    settings = request.settings
    data = []
    for seed, image in zip(request.seeds, found.images, strict=True):
        png = png_bytes(image, png_entries(request.prompt, seed, settings))
        data.append({"b64_json": base64.b64encode(png).decode("ascii"), "seed": seed})
    return {
        "created": int(time.time()),
        "data": data,
        "output_format": "png",
        "size": f"{settings.width}x{settings.height}",
    }

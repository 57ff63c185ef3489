"""The bodies of requests, checked: OpenAI's fields, and a few of this project's own.

A field that this server does not support is refused, unless it has the value that changes nothing.
"""

import base64
import binascii
import dataclasses
import functools
import re
import secrets
from collections.abc import Callable, Mapping
from typing import Any

from PIL import Image

from unix_jax.errors import PromptError
from unix_jax.inference.inputs import TINY, choice, number, whole
from unix_jax.inference.loaded import LoadedModel
from unix_jax.inference.reports import context_tokens
from unix_jax.inference.settings import ImageSettings, ReportSettings
from unix_jax.preprocessing.transforms import letterbox
from unix_jax.serving.limits import ServeLimits
from unix_jax.serving.refusals import RequestError
from unix_jax.web.shapes import image_sides
from unix_jax.web.uploads import read_upload

_LARGEST_SEED = 2**32 - 1
_DATA_URL = re.compile(r"data:[\w.+-]*(?:/[\w.+-]+)?(?:;[\w.+-]+=[\w.+-]+)*;base64,", re.ASCII)
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*):", re.IGNORECASE)
_NO_EFFECT: Mapping[str, Any] = {
    "n": 1, "frequency_penalty": 0, "presence_penalty": 0, "logprobs": False, "top_logprobs": 0,
    "logit_bias": {}, "stop": [], "tools": [], "functions": [], "store": False, "metadata": {},
    "response_format": {"type": "text"}, "modalities": ["text"],
}  # fmt: skip
_NO_EFFECT_IMAGES: Mapping[str, Any] = {
    "response_format": "b64_json", "output_format": "png", "quality": "auto", "background": "auto",
    "moderation": "auto", "stream": False, "partial_images": 0,
}  # fmt: skip
# It names the client's own user, and changes nothing in OpenAI's API either.
_UNUSED = ("user",)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportRequest:
    """A report to generate.

    Attributes:
      images: letterboxed to the model's side.
      prompt: the instruction.
      max_new_tokens, temperature, top_p, seed: as in `UniXPipeline.generate_report`.
      stream: whether the text is sent as it is generated.
      stream_usage: whether a stream ends with the numbers of tokens.
      context_tokens: tokens of images and prompt.
      warnings: sentences about images that show almost nothing.
    """

    images: tuple[Image.Image, ...] = dataclasses.field(repr=False)
    prompt: str = dataclasses.field(repr=False)
    max_new_tokens: int
    temperature: float
    top_p: float
    seed: int
    stream: bool
    stream_usage: bool
    context_tokens: int
    warnings: tuple[str, ...]

    rows = 1

    @property
    def key(self) -> tuple[Any, ...]:
        """Requests of equal keys can be computed together."""
        return "report", len(self.images)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageRequest:
    """Images to generate from one text of `prompt_tokens` tokens, one per seed."""

    prompt: str = dataclasses.field(repr=False)
    seeds: tuple[int, ...]
    settings: ImageSettings
    prompt_tokens: int

    @property
    def rows(self) -> int:
        """Number of images."""
        return len(self.seeds)

    @property
    def key(self) -> tuple[Any, ...]:
        """Requests of equal keys can be computed together."""
        return "image", self.settings


Request = ReportRequest | ImageRequest


@dataclasses.dataclass(frozen=True)
class RequestReader:
    """Reads bodies for one model; `name` is the model's name in the protocol."""

    loaded: LoadedModel
    limits: ServeLimits
    name: str

    def report(self, body: Any) -> ReportRequest:
        """The body of `POST /v1/chat/completions`.

        Raises:
          RequestError: a field that is missing, wrong or not supported, with its name.
        """
        fields = _Fields(body, _NO_EFFECT)
        self._model(fields)
        most = self.limits.report_tokens(self.loaded.config)
        names = ("max_completion_tokens", "max_tokens")
        wanted = [fields.take(n, functools.partial(whole, n, low=1, high=most)) for n in names]
        if None not in wanted and wanted[0] != wanted[1]:
            raise RequestError(
                "max_tokens: expected one of max_tokens and max_completion_tokens, found both",
                param="max_tokens",
            )
        temperature = fields.take(
            "temperature", lambda v: number("temperature", v, "a number from 0 to 2", 0, 2), 0.0
        )
        top_p = fields.take(
            "top_p", lambda v: number("top_p", v, "a number in (0, 1]", TINY, 1), 1.0
        )
        seed = fields.take("seed", _seed)
        stream = fields.take("stream", lambda v: _flag("stream", v), False)
        options = fields.take("stream_options", _stream_options, False)
        if options and not stream:
            raise RequestError(
                "stream_options: has no effect without stream", param="stream_options"
            )
        messages = fields.take("messages", lambda v: v)
        fields.end()
        prompt, urls = self._message(messages)
        images, warnings = [], []
        for name, url in urls:
            data = _data_of(url, name)
            upload = read_upload(
                data, name, max_bytes=self.limits.body_bytes, max_pixels=self.limits.pixels
            )
            # Reduced at once: a request that waits then needs little memory.
            images.append(letterbox(upload.image, self.loaded.config.vision.image_size))
            warnings.extend([upload.warning] if upload.warning else [])
        prompt = prompt or self.loaded.config.asked.default
        return ReportRequest(
            images=tuple(images),
            prompt=prompt,
            max_new_tokens=wanted[0] or wanted[1] or most,
            temperature=temperature,
            # Greedy decoding does not use it, and the program without it is faster.
            top_p=top_p if temperature else 1.0,
            seed=secrets.randbelow(_LARGEST_SEED + 1) if seed is None else seed,
            stream=stream,
            stream_usage=bool(options),
            context_tokens=self._context_tokens(prompt, len(images), most),
            warnings=tuple(warnings),
        )

    def images(self, body: Any) -> ImageRequest:
        """The body of `POST /v1/images/generations`.

        Raises:
          RequestError: a field that is missing, wrong or not supported, with its name.
          CheckpointError: the checkpoint has no autoencoder.
        """
        self.loaded.require_vae()
        fields = _Fields(body, _NO_EFFECT_IMAGES)
        self._model(fields)
        prompt = fields.take("prompt", lambda v: self._text("prompt", v))
        if not (prompt or "").strip():
            raise RequestError("prompt: expected a text, found none", param="prompt")
        most = self.limits.largest_batch
        count = fields.take("n", lambda v: whole("n", v, 1, most), 1)
        seed = fields.take("seed", _seed)
        if seed is None:
            seed = secrets.randbelow(_LARGEST_SEED + 2 - count)
        if seed + count - 1 > _LARGEST_SEED:
            raise RequestError(
                f"seed: expected at most {_LARGEST_SEED + 1 - count} for {count} images, "
                f"found {seed}",
                param="seed",
            )
        side = fields.take("size", self._side)
        steps = fields.take(
            "num_inference_steps",
            lambda v: whole("num_inference_steps", v, 1, self.limits.steps),
            ImageSettings.num_inference_steps,
        )
        guidance = fields.take(
            "guidance_scale",
            lambda v: number("guidance_scale", v, "a number from 0 to 20", 0, 20),
            ImageSettings.guidance_scale,
        )
        fields.end()
        config = self.loaded.config
        longest = config.decoder.max_position_embeddings - 2
        (ids,) = self.loaded.encode_prompts([prompt], 1, longest)
        settings = ImageSettings(
            height=side, width=side, num_inference_steps=steps, guidance_scale=guidance
        )
        return ImageRequest(
            prompt=prompt,
            seeds=tuple(range(seed, seed + count)),
            settings=settings.checked(config),
            prompt_tokens=len(ids),
        )

    def _model(self, fields: "_Fields") -> None:
        model = fields.take("model", lambda v: v)
        if model != self.name:
            found = "none" if model is None else repr(model)[:60]
            raise RequestError(
                f"model: expected {self.name!r}, found {found}",
                status=400 if model is None else 404,
                param="model",
                code=None if model is None else "model_not_found",
            )

    def _message(self, messages: Any) -> tuple[str, list[tuple[str, str]]]:
        """(text, (name, URL) of each image) of the one message."""
        expected = "messages: expected a list of one message of the user"
        if not isinstance(messages, list):
            raise RequestError(f"{expected}, found {_kind(messages)}", param="messages")
        if len(messages) != 1 or not isinstance(messages[0], dict):
            raise RequestError(
                f"{expected}, found {len(messages)} items: the model has no system messages and "
                "no dialogues",
                param="messages",
            )
        message = _Fields(messages[0], {}, "messages[0].")
        role, content = (message.take(name, lambda v: v) for name in ("role", "content"))
        message.end()
        if role != "user":
            raise RequestError(
                f"messages[0].role: expected 'user', found {role!r:.40}", param="messages"
            )
        if isinstance(content, str):
            content = [{"type": "text", "text": content}]
        if not isinstance(content, list):
            raise RequestError(
                f"messages[0].content: expected a list of parts, found {_kind(content)}",
                param="messages",
            )
        texts, urls = [], []
        for i, part in enumerate(content):
            name = f"messages[0].content[{i}]"
            kind = part.get("type") if isinstance(part, dict) else None
            if kind == "text":
                texts.append(self._text(f"{name}.text", _Fields.only(part, name, "text")))
            elif kind == "image_url":
                image = _Fields.only(part, name, "image_url")
                url = _Fields.only(image, f"{name}.image_url", "url", {"detail": "auto"})
                urls.append((f"{name}.image_url.url", url))
            else:
                raise RequestError(
                    f"{name}.type: expected 'text' or 'image_url', found {kind!r:.40}",
                    param="messages",
                )
        if not 1 <= len(urls) <= self.limits.images:
            raise RequestError(
                f"messages[0].content: expected 1 to {self.limits.images} parts of type "
                f"'image_url', found {len(urls)}: a report is written from an X-ray",
                param="messages",
            )
        text = "\n".join(texts).strip()
        return self._text("messages[0].content", text), urls

    def _text(self, name: str, value: Any) -> str:
        if not isinstance(value, str):
            raise RequestError(f"{name}: expected a text, found {_kind(value)}", param=_root(name))
        most = self.limits.prompt_letters
        if len(value) > most:
            raise RequestError(
                f"{name}: expected at most {most} characters, found {len(value)}",
                param=_root(name),
            )
        return value

    def _side(self, size: Any) -> int | None:
        sides = image_sides(self.loaded.config)
        choice("size", size, ["auto", *(f"{side}x{side}" for side in sides)])
        return None if size == "auto" else int(size.partition("x")[0])

    def _context_tokens(self, prompt: str, images: int, new_tokens: int) -> int:
        settings = ReportSettings(max_new_tokens=new_tokens)
        try:
            return context_tokens(self.loaded, prompt, images, settings)
        except PromptError as error:
            text = str(error).replace("prompt", "messages[0].content", 1)
            raise RequestError(text, param="messages") from error


class _Fields:
    """Takes the fields of an object one by one; `end` refuses those that remain."""

    def __init__(self, body: Any, no_effect: Mapping[str, Any], prefix: str = "") -> None:
        if not isinstance(body, dict):
            name = prefix.rstrip(".") or "body"
            param = _root(name) if prefix else None
            raise RequestError(f"{name}: expected an object, found {_kind(body)}", param=param)
        # null means "not set" in the protocol.
        self._left = {key: value for key, value in body.items() if value is not None}
        self._no_effect, self._prefix = no_effect, prefix

    @classmethod
    def only(
        cls, body: Any, name: str, field: str, no_effect: Mapping[str, Any] | None = None
    ) -> Any:
        """The one field of an object in the messages, except for its type."""
        fields = cls(body, no_effect or {}, f"{name}.")
        fields.take("type", lambda v: v)
        value = fields.take(field, lambda v: v)
        fields.end()
        return value

    def take(self, name: str, read: Callable[[Any], Any], default: Any = None) -> Any:
        """The field's value, as `read` returns it; the default if it is not set."""
        if name not in self._left:
            return default
        try:
            return read(self._left.pop(name))
        except PromptError as error:
            raise RequestError(str(error), param=_root(self._prefix + name)) from error

    def end(self) -> None:
        """Raises RequestError for a field that is left."""
        for name, value in self._left.items():
            if name in _UNUSED:
                continue
            shown = f"{self._prefix}{name}"[:80]
            if name not in self._no_effect:
                raise RequestError(
                    f"{shown}: this field is not supported",
                    param=_root(shown),
                    code="unsupported_parameter",
                )
            neutral = self._no_effect[name]
            # 1 == True, but they are not the same value.
            if value != neutral or isinstance(value, bool) != isinstance(neutral, bool):
                raise RequestError(
                    f"{shown}: only the value {neutral!r} is supported, found {value!r:.60}",
                    param=_root(shown),
                    code="unsupported_value",
                )


def _data_of(url: Any, name: str) -> bytes:
    """The bytes of a data URL. No other URL is ever fetched."""
    if not isinstance(url, str):
        raise RequestError(f"{name}: expected a data URL, found {_kind(url)}", param="messages")
    found = _DATA_URL.match(url[:200])
    if found is None:
        scheme = _SCHEME.match(url[:40])
        what = f"a URL of scheme {scheme[1]!r}" if scheme else repr(url[:20])
        raise RequestError(
            f"{name}: expected a data URL such as data:image/png;base64,..., found {what}; "
            "this server fetches no images",
            param="messages",
        )
    try:
        return base64.b64decode(url[found.end() :], validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError(f"{name}: expected base64: {error}", param="messages") from error


def _seed(value: Any) -> int:
    return whole("seed", value, 0, _LARGEST_SEED)


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise PromptError(f"{name}: expected true or false, found {value!r:.40}")
    return value


def _stream_options(value: Any) -> bool:
    fields = _Fields(value, {"include_obfuscation": False}, "stream_options.")
    usage = fields.take("include_usage", lambda v: _flag("stream_options.include_usage", v), False)
    fields.end()
    return bool(usage)


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", type(None): "none"}
    return names.get(type(value), f"{value!r:.40}")


def _root(name: str) -> str:
    """The field of the request that a nested name belongs to."""
    return re.split(r"[.\[]", name, maxsplit=1)[0]

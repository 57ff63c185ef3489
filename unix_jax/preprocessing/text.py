"""Text to token ids and back: the tokenizer, prompts, and streamed text.

Ordinary text never becomes a control token: a prompt that contains "<｜end▁of▁sentence｜>" or
"<end_of_image>" is encoded letter by letter, so nobody can end a turn or open an image from inside
a prompt. Control tokens are only added by id (`prompt_split`).
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from unix_jax.config import SpecialTokens
from unix_jax.errors import CheckpointError, PromptError
from unix_jax.storage import recorded_files
from unix_jax.storage.recorded_files import TOKENIZER_FILES

Prompt = str | Sequence[int] | np.ndarray

_NAMES = {
    "<｜begin▁of▁sentence｜>": "bos",
    "<｜end▁of▁sentence｜>": "eos",
    "<begin_of_image>": "start_of_image",
    "<end_of_image>": "end_of_image",
}
_REPLACEMENT = "\ufffd"


@dataclasses.dataclass(frozen=True, eq=False)
class Tokenizer:
    """A `tokenizer.json` and the ids of this model's control tokens.

    Build it by `from_directory`. `source` is the file, for errors; `control_ids` are all ids that
    are not text; `files` are the tokenizer's files by name, as they were read.
    """

    special_tokens: SpecialTokens
    source: str
    control_ids: frozenset[int] = dataclasses.field(repr=False)
    backend: tokenizers.Tokenizer = dataclasses.field(repr=False)
    files: Mapping[str, bytes] = dataclasses.field(default_factory=dict, repr=False)

    @classmethod
    def from_directory(
        cls, path: str | Path, special_tokens: SpecialTokens | None = None
    ) -> "Tokenizer":
        """Reads `tokenizer.json` in a directory (or the file itself).

        Args:
          path: a checkpoint's directory.
          special_tokens: ids of the control tokens from the configuration; the default is
            Janus-Pro-1B's.

        Raises:
          CheckpointError: no such file, one that changed since the checkpoint was written, one that
            is not a tokenizer, or one whose id of a control token differs from `special_tokens`.
        """
        special_tokens = special_tokens or SpecialTokens()
        file = Path(path)
        file = recorded_files.verified(file, "tokenizer.json") if file.is_dir() else file
        if not file.is_file():
            raise CheckpointError(f"{file}: no such file; expected the checkpoint's tokenizer")
        try:
            document = json.loads(file.read_text(encoding="utf-8"))
            _mark_control_tokens(document, special_tokens)
            backend = tokenizers.Tokenizer.from_str(json.dumps(document))
        except Exception as error:  # the library raises bare Exception
            detail = " ".join(str(error).split())[:200]
            raise CheckpointError(f"{file}: not a tokenizer: {detail}") from error
        backend.encode_special_tokens = True
        backend.no_truncation()
        backend.no_padding()
        for content, name in _NAMES.items():
            found, expected = backend.token_to_id(content), getattr(special_tokens, name)
            if found is not None and found != expected:
                raise CheckpointError(
                    f"{file}: {content}: expected id {expected} (special_tokens.{name}), "
                    f"found {found}; set special_token_ids in config.json"
                )
        marked = {i for i, t in backend.get_added_tokens_decoder().items() if t.special}
        control_ids = frozenset(marked | set(dataclasses.astuple(special_tokens)))
        files = {"tokenizer.json": file.read_bytes()}
        if Path(path).is_dir():
            others = [name for name in TOKENIZER_FILES if recorded_files.has_file(path, name)]
            files |= {name: recorded_files.verified(path, name).read_bytes() for name in others}
        return cls(special_tokens, str(file), control_ids, backend, files)

    def write_files(self, directory: str | Path) -> list[tuple[Path, str]]:
        """Writes the tokenizer's files as they were read; returns (file, name) of each."""
        files = self.files or {"tokenizer.json": self.backend.to_str().encode()}
        for name, content in files.items():
            (Path(directory) / name).write_bytes(content)
        return [(Path(directory) / name, name) for name in files]

    @property
    def vocab_size(self) -> int:
        """One more than the largest id of the tokenizer."""
        return max(self.backend.get_vocab().values(), default=-1) + 1

    def check_vocab(self, vocab_size: int) -> None:
        """Raises CheckpointError when the tokenizer has ids that the model's embedding lacks."""
        if self.vocab_size > vocab_size:
            raise CheckpointError(
                f"{self.source}: expected ids below the model's vocab_size {vocab_size}, "
                f"found up to {self.vocab_size - 1}"
            )

    def encode(self, text: str) -> list[int]:
        """Ids of the text alone: no bos, no eos, and never a control token.

        Raises:
          PromptError: the text is not valid Unicode (a lone surrogate).
        """
        if not isinstance(text, str):
            raise PromptError(f"text: expected a string, found {type(text).__name__}")
        try:
            return list(self.backend.encode(text, add_special_tokens=False).ids)
        except (TypeError, UnicodeError):
            raise PromptError(f"text: expected valid Unicode, found {text[:40]!r}") from None

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Text of the ids; control tokens and unknown ids produce no text."""
        return self.backend.decode([int(i) for i in ids if self.is_text(int(i))])

    def is_text(self, token: int) -> bool:
        """Whether an id is text: in the vocabulary, and not a control token."""
        known = 0 <= token < 2**32 and self.backend.id_to_token(token) is not None
        return known and token not in self.control_ids

    def stream(self) -> "StreamDecoder":
        """A new incremental decoder."""
        return StreamDecoder(self)


class StreamDecoder:
    """Text of tokens that arrive one by one: `push` each id, `flush` at the end.

    A piece ends at a character boundary: bytes of an incomplete character are held back until the
    next token. The joined pieces equal `Tokenizer.decode` of all ids.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        # `_context` is already out; it is decoded again because some decoders strip a leading
        # space from whatever comes first.
        self._context: list[int] = []
        self._waiting: list[int] = []
        self._emitted = ""  # of `_waiting`

    def push(self, token: int) -> str:
        """The text that is certain after this token, possibly empty."""
        if not self._tokenizer.is_text(int(token)):
            return ""
        self._waiting.append(int(token))
        text = self._waiting_text()
        complete = not text.endswith(_REPLACEMENT)
        # Only the last replacement character may still turn into a real one.
        certain = text if complete else text[:-1]
        piece = certain.removeprefix(self._emitted)
        self._emitted = certain
        if complete:
            self._context, self._waiting, self._emitted = self._waiting, [], ""
        return piece

    def flush(self) -> str:
        """The remaining text: replacement characters for bytes that never completed a character."""
        piece = self._waiting_text().removeprefix(self._emitted)
        self._context, self._waiting, self._emitted = [], [], ""
        return piece

    def _waiting_text(self) -> str:
        decode = self._tokenizer.decode
        return decode(self._context + self._waiting).removeprefix(decode(self._context))


def prompt_split(
    ids: Sequence[int], special_tokens: SpecialTokens, double_bos: bool = False
) -> list[int]:
    """A text split: bos + ids + eos; with `double_bos` a second bos in front of the ids.

    The second bos is the published inference code's (its tokenizer adds one to every string). A
    prompt given as ids never passed that tokenizer, so pass False for it, as `encode_prompt` does.
    """
    bos = [special_tokens.bos] * (2 if double_bos else 1)
    return [*bos, *(int(i) for i in ids), special_tokens.eos]


def encode_prompt(
    prompt: Prompt,
    tokenizer: Tokenizer | None,
    special_tokens: SpecialTokens,
    *,
    vocab_size: int,
    max_length: int,
    double_bos: bool = False,
    argument: str = "prompt",
) -> list[int]:
    """The checked text split of one prompt.

    Args:
      prompt: a string, or token ids without bos and eos (control ids in them are kept). Either may
        be empty.
      tokenizer: may be None if the prompt is ids.
      special_tokens: the model's.
      vocab_size: upper bound of the ids, exclusive.
      max_length: maximum number of tokens of the split, including bos and eos.
      double_bos: whether a *string* gets the published code's second bos.
      argument: the name of the prompt in errors.

    Raises:
      PromptError: another type, an id out of range (with its index), or too long a prompt.
    """
    if isinstance(prompt, str):
        if tokenizer is None:
            raise PromptError(f"{argument}: found a string, but the checkpoint has no tokenizer")
        ids = tokenizer.encode(prompt)
    else:
        ids, double_bos = _checked_ids(prompt, argument), False
    for index, token in enumerate(ids):
        if not 0 <= token < vocab_size:
            raise PromptError(
                f"{argument}[{index}]: expected a token id from 0 to {vocab_size - 1}, "
                f"found {token}"
            )
    split = prompt_split(ids, special_tokens, double_bos)
    if len(split) > max_length:
        raise PromptError(
            f"{argument}: expected at most {max_length} tokens with its bos and eos, "
            f"found {len(split)}"
        )
    return split


def _checked_ids(prompt: Any, argument: str) -> list[int]:
    ids = prompt.tolist() if isinstance(prompt, np.ndarray) else prompt
    if not isinstance(ids, list | tuple | range):
        raise PromptError(
            f"{argument}: expected a string or a sequence of token ids, "
            f"found {type(prompt).__name__}"
        )
    for index, token in enumerate(ids):
        if isinstance(token, bool | np.bool_) or not isinstance(token, int | np.integer):
            raise PromptError(
                f"{argument}[{index}]: expected an integer token id, found {token!r:.40}"
            )
    return [int(token) for token in ids]


def _mark_control_tokens(document: Any, special_tokens: SpecialTokens) -> None:
    """Marks as special what must never be matched in ordinary text.

    Published files leave `<begin_of_image>` and the like unmarked. Added tokens that do not look
    like a tag stay: in this family some are plain letters that the byte pairs cannot spell.
    """
    control = set(dataclasses.astuple(special_tokens))
    for token in document.get("added_tokens") or []:
        tag = token["content"].startswith("<") and token["content"].endswith(">")
        if token["id"] in control or (tag and len(token["content"]) > 2):
            token["special"] = True

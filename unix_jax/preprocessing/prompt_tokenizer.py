"""Converts prompts to ids of fixed length, like the tokenizers in diffusers folders: CLIP, BERT."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from jaxtyping import Int
from tokenizers import models, normalizers, pre_tokenizers

from unix_jax.errors import CheckpointError, PromptError
from unix_jax.storage.json_file import read_json

_MAX_BYTES = 64 << 20
# CLIP's own pattern for words, from its published tokenizer.
_CLIP_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


@dataclasses.dataclass(frozen=True, eq=False)
class PromptTokenizer:
    """`encode` returns `length` ids: `start`, those of the text, `end`, and `pad` for the rest."""

    backend: tokenizers.Tokenizer
    start: int
    end: int
    pad: int
    length: int

    @classmethod
    def from_directory(cls, directory: str | Path) -> "PromptTokenizer":
        """Reads `vocab.json` and `merges.txt` (CLIP), or `vocab.txt` (BERT), and their settings.

        Without them it reads `tokenizer.json`, the only file that transformers 5 writes.

        Raises:
          CheckpointError: a file is missing or broken, or a control token is not in the vocabulary.
        """
        directory = Path(directory)
        raw = _object(directory / "tokenizer_config.json")
        bert = (directory / "vocab.txt").is_file() or "cls_token" in raw
        vocabulary = directory / ("vocab.txt" if bert else "vocab.json")
        if (directory / "tokenizer.json").is_file() and not vocabulary.is_file():
            backend = _whole(directory / "tokenizer.json")
        else:
            backend = _bert(directory, raw) if bert else _clip(directory)
        tokens = dict(_BERT_TOKENS if bert else _CLIP_TOKENS)
        tokens |= {name: _content(raw[name]) for name in tokens if raw.get(name)}
        extra = directory / "special_tokens_map.json"
        # As transformers reads folders of before `added_tokens_decoder`: the map comes last.
        if extra.is_file() and "added_tokens_decoder" not in raw:
            given = _object(extra)
            tokens |= {name: _content(given[name]) for name in tokens if given.get(name)}
        ids: list[int] = []
        for name, token in tokens.items():
            found = backend.token_to_id(token)
            if found is None:
                raise CheckpointError(
                    f"{directory}: {name}: expected a token of the vocabulary, found {token!r}"
                )
            ids.append(found)
        length = raw.get("model_max_length", 512 if bert else 77)
        if isinstance(length, bool) or not isinstance(length, int) or not 2 <= length <= 4096:
            raise CheckpointError(
                f"{directory / 'tokenizer_config.json'}: model_max_length: expected 2 to 4096, "
                f"found {length!r}"
            )
        start, end, pad = ids
        return cls(backend, start, end, pad, length)

    def encode(self, texts: Sequence[str]) -> tuple[Int[np.ndarray, "B T"], list[int]]:
        """(ids [B, `length`], for each text the number of its ids that did not fit).

        Raises:
          PromptError: a text is not valid Unicode.
        """
        rows, cut = [], []
        for text in texts:
            try:
                ids = self.backend.encode(text, add_special_tokens=False).ids
            except (TypeError, UnicodeError):
                raise PromptError(f"text: expected valid Unicode, found {text!r:.60}") from None
            kept = ids[: self.length - 2]
            row = [self.start, *kept, self.end]
            rows.append(row + [self.pad] * (self.length - len(row)))
            cut.append(len(ids) - len(kept))
        return np.array(rows, np.int32).reshape(len(rows), self.length), cut


_CLIP_TOKENS = {
    "bos_token": "<|startoftext|>",
    "eos_token": "<|endoftext|>",
    "pad_token": "<|endoftext|>",
}
_BERT_TOKENS = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}


def _clip(directory: Path) -> tokenizers.Tokenizer:
    vocabulary, merges = directory / "vocab.json", directory / "merges.txt"
    for file in (vocabulary, merges):
        if not file.is_file():
            raise CheckpointError(f"{file}: no such file; expected CLIP's or BERT's vocabulary")
    try:
        model = models.BPE.from_file(
            str(vocabulary), str(merges), continuing_subword_prefix="", end_of_word_suffix="</w>",
            unk_token="<|endoftext|>",
        )  # fmt: skip
    except Exception as error:  # the library raises bare Exception
        raise CheckpointError(f"{directory}: not a vocabulary of CLIP: {error}") from error
    backend = tokenizers.Tokenizer(model)
    space = normalizers.Replace(tokenizers.Regex(r"\s+"), " ")
    backend.normalizer = normalizers.Sequence([normalizers.NFC(), space, normalizers.Lowercase()])
    words = pre_tokenizers.Split(tokenizers.Regex(_CLIP_WORDS), "removed", invert=True)
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([words, letters])
    return backend


def _bert(directory: Path, raw: Mapping[str, Any]) -> tokenizers.Tokenizer:
    try:
        model = models.WordPiece.from_file(str(directory / "vocab.txt"), unk_token="[UNK]")
    except Exception as error:  # the library raises bare Exception
        raise CheckpointError(f"{directory}: not a vocabulary of BERT: {error}") from error
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = normalizers.BertNormalizer(
        lowercase=raw.get("do_lower_case", True) is True
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return backend


def _whole(path: Path) -> tokenizers.Tokenizer:
    try:
        backend = tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # the library raises bare Exception
        detail = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path}: not a tokenizer: {detail}") from error
    # A prompt that spells a control token is text.
    backend.encode_special_tokens = True
    backend.no_truncation()
    backend.no_padding()
    return backend


def _object(path: Path) -> dict[str, Any]:
    raw = read_json(path, CheckpointError, max_bytes=_MAX_BYTES)
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(raw).__name__}")
    return raw


def _content(token: Any) -> str:
    """A token as a string, or as transformers' object with flags."""
    return str(token.get("content") if isinstance(token, Mapping) else token)

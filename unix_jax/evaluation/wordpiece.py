"""BERT's lower-casing WordPiece tokenizer, from the vocabulary in the directory of the weights."""

from collections.abc import Sequence
from pathlib import Path

import tokenizers
from tokenizers import models, normalizers, pre_tokenizers

from unix_jax.errors import CheckpointError, MetricError

VOCABULARY_NAMES = ("vocab.txt", "tokenizer.json")
_UNKNOWN, _FIRST, _LAST = "[UNK]", "[CLS]", "[SEP]"
_MAX_BYTES = 64 * 2**20


class WordPiece:
    """Texts to ids, each between [CLS] and [SEP].

    Text never becomes a control token: "[SEP]" in a report is encoded as its characters.

    Raises:
      CheckpointError: the file is not a vocabulary of BERT, or lacks a control token.
    """

    def __init__(self, path: str | Path):
        self.source = Path(path)
        try:
            if self.source.stat().st_size > _MAX_BYTES:
                raise ValueError(f"larger than {_MAX_BYTES} bytes")
            self._backend = _backend(self.source)
        except Exception as error:  # the library raises bare Exception
            detail = " ".join(str(error).split())[:200]
            raise CheckpointError(f"{self.source}: not a WordPiece vocabulary: {detail}") from error
        self.vocab_size = max(self._backend.get_vocab().values(), default=-1) + 1
        self._first, self._last, _ = (self._control(token) for token in (_FIRST, _LAST, _UNKNOWN))

    def _control(self, token: str) -> int:
        found = self._backend.token_to_id(token)
        if found is None:
            raise CheckpointError(f"{self.source}: expected the token {token}, found none")
        return found

    @classmethod
    def beside(cls, directory: Path) -> "WordPiece | None":
        """The vocabulary in a directory, or None if it has none."""
        files = (directory / name for name in VOCABULARY_NAMES)
        found = next((file for file in files if file.is_file()), None)
        return None if found is None else cls(found)

    def encode(self, texts: Sequence[str], max_length: int) -> list[list[int]]:
        """Ids of each text, at most `max_length` with the two control tokens.

        Longer texts are truncated; [SEP] stays last.

        Raises:
          MetricError: a text is not valid Unicode (a lone surrogate).
        """
        try:
            encoded = self._backend.encode_batch(list(texts), add_special_tokens=False)
        except (TypeError, UnicodeError):
            raise MetricError("reports: expected valid Unicode, found a lone surrogate") from None
        return [[self._first, *e.ids[: max_length - 2], self._last] for e in encoded]


def _backend(path: Path) -> tokenizers.Tokenizer:
    if path.suffix == ".json":
        backend = tokenizers.Tokenizer.from_file(str(path))
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True
        return backend
    lines = path.read_text(encoding="utf-8").split("\n")
    vocabulary = {line.rstrip("\r"): number for number, line in enumerate(lines) if line.strip()}
    backend = tokenizers.Tokenizer(
        models.WordPiece(vocabulary, unk_token=_UNKNOWN, max_input_chars_per_word=100)
    )
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return backend

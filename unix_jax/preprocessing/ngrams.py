"""N-grams of reports: the most frequent next token after each context of a few tokens.

A file in the format of safetensors holds, for each number n of tokens in a context, `contexts.n`
[E, n], and for each context the most frequent next token (`tokens.n`), how often it followed
(`counts.n`), and how often the context occurred (`totals.n`). Its metadata names the format and the
tokenizer, since ids of another tokenizer have no meaning.
"""

import collections
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from unix_jax.errors import DataError
from unix_jax.preprocessing.text import Tokenizer
from unix_jax.storage.files import atomic_write

FORMAT = "unix-jax-ngrams-1"
ORDER = 6
"""Maximum number of tokens in a context."""


@dataclasses.dataclass(frozen=True)
class OfLength:
    """The contexts of one length; all arrays are int32.

    contexts [E, n]. tokens [E]: the most frequent next token. counts [E]: how often it followed.
    totals [E]: how often the context occurred.
    """

    contexts: Int[np.ndarray, "E n"]
    tokens: Int[np.ndarray, " E"]
    counts: Int[np.ndarray, " E"]
    totals: Int[np.ndarray, " E"]


@dataclasses.dataclass(frozen=True)
class NGrams:
    """Contexts of 1 to n tokens, and the tokenizer of their ids.

    parts: by the length of the context, from 1. tokenizer: see `fingerprint`. reports: number of
    reports that were counted.
    """

    parts: tuple[OfLength, ...]
    tokenizer: str
    reports: int

    def save(self, path: str | Path) -> None:
        """Writes the file atomically.

        Raises:
          DataError: it cannot be written.
        """
        arrays = {
            f"{name}.{length}": np.ascontiguousarray(getattr(part, name), np.int32)
            for length, part in enumerate(self.parts, start=1)
            for name in _NAMES
        }
        about = {"format": FORMAT, "tokenizer": self.tokenizer, "reports": str(self.reports)}
        try:
            with atomic_write(path) as temporary:
                temporary.write_bytes(_packed(arrays, about))
        except OSError as error:
            raise DataError(f"{path}: cannot be written: {error}") from error

    @classmethod
    def load(cls, path: str | Path) -> "NGrams":
        """Reads a file.

        Raises:
          DataError: no such file, or another one.
        """
        try:
            arrays, about = _unpacked(Path(path).read_bytes())
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise DataError(f"{path}: expected a file of `unix-jax data ngrams`: {error}") from None
        if about.get("format") != FORMAT:
            raise DataError(
                f"{path}: format: expected {FORMAT} (a file of `unix-jax data ngrams`), "
                f"found {about.get('format')}"
            )
        lengths = len(arrays) // len(_NAMES)
        names = {f"{name}.{n}" for n in range(1, lengths + 1) for name in _NAMES}
        if set(arrays) != names or not lengths:
            raise DataError(
                f"{path}: expected arrays {', '.join(_NAMES)} for each length from 1, "
                f"found {', '.join(sorted(arrays)) or 'none'}"
            )
        parts = tuple(
            OfLength(*(arrays[f"{name}.{n}"] for name in _NAMES)) for n in range(1, lengths + 1)
        )
        for n, part in enumerate(parts, start=1):
            entries = len(part.tokens)
            for name, shape in zip(_NAMES, ((entries, n), *[(entries,)] * 3), strict=True):
                array = getattr(part, name)
                if array.dtype != np.int32 or array.shape != shape:
                    raise DataError(
                        f"{path}: {name}.{n}: expected int32 of shape {shape}, "
                        f"found {array.dtype} of {array.shape}"
                    )
        reports = about.get("reports", "")
        return cls(parts, about.get("tokenizer", ""), int(reports) if reports.isdigit() else 0)

    def check_tokenizer(self, tokenizer: Tokenizer | None, path: str | os.PathLike[str]) -> None:
        """Raises DataError unless the ids are those of `tokenizer`."""
        if tokenizer is None or fingerprint(tokenizer) != self.tokenizer:
            raise DataError(
                f"{path}: expected n-grams of the checkpoint's tokenizer, found those of another "
                "one; `unix-jax data ngrams --tokenizer CHECKPOINT` makes them"
            )


_NAMES = ("contexts", "tokens", "counts", "totals")
_TYPES = {"I32": np.int32, "I64": np.int64, "F32": np.float32, "F64": np.float64}


def _packed(arrays: dict[str, np.ndarray], about: dict[str, str]) -> bytes:
    """A file in the format of safetensors: the package is not part of a base installation."""
    header: dict[str, Any] = {"__metadata__": about}
    end = 0
    for name, array in arrays.items():
        begin, end = end, end + array.nbytes
        header[name] = {"dtype": "I32", "shape": array.shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    data = [np.asarray(array, "<i4").tobytes() for array in arrays.values()]
    return b"".join([len(text).to_bytes(8, "little"), text, *data])


def _unpacked(data: bytes) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """(arrays, metadata); raises ValueError, TypeError or KeyError for another format."""
    start = 8 + int.from_bytes(data[:8], "little")
    if not 8 < start <= len(data):
        raise ValueError("not in the format of safetensors")
    header = json.loads(data[8:start])
    about = header.pop("__metadata__", {})
    arrays = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        if not 0 <= begin <= end <= len(data) - start:
            raise ValueError(f"{name}: the file is incomplete")
        kind = np.dtype(_TYPES[entry["dtype"]]).newbyteorder("<")
        values = np.frombuffer(data[start + begin : start + end], kind)
        arrays[name] = values.astype(kind.newbyteorder("=")).reshape(entry["shape"])
    return arrays, about


def fingerprint(tokenizer: Tokenizer) -> str:
    """SHA-256 of the tokens' ids and of the control tokens."""
    about = [
        sorted(tokenizer.backend.get_vocab().items()),
        dataclasses.asdict(tokenizer.special_tokens),
    ]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()


def count_ngrams(texts: Iterable[str], tokenizer: Tokenizer, order: int = ORDER) -> NGrams:
    """Counts the n-grams of reports, each of which is between bos and eos.

    Raises:
      DataError: no text.
    """
    special = tokenizer.special_tokens
    sequences = ([special.bos, *tokenizer.encode(text), special.eos] for text in texts)
    return count_ids(sequences, fingerprint(tokenizer), order)


def count_ids(sequences: Iterable[Sequence[int]], tokenizer: str, order: int = ORDER) -> NGrams:
    """Counts the n-grams of sequences of ids of a tokenizer with that `fingerprint`.

    Raises:
      DataError: no sequence.
    """
    followers: list[dict[tuple[int, ...], collections.Counter[int]]] = [{} for _ in range(order)]
    reports = 0
    for ids in sequences:
        reports += 1
        for end in range(1, len(ids)):
            for length in range(1, min(order, end) + 1):
                of_length = followers[length - 1]
                context = tuple(ids[end - length : end])
                of_length.setdefault(context, collections.Counter())[ids[end]] += 1
    if not reports:
        raise DataError("n-grams: expected at least one report, found none")
    parts = tuple(_most_frequent(found, n) for n, found in enumerate(followers, start=1))
    return NGrams(parts, tokenizer, reports)


def _most_frequent(
    followers: dict[tuple[int, ...], collections.Counter[int]], length: int
) -> OfLength:
    # Sorted, and the smallest of equally frequent tokens: the file is the same for any order.
    contexts = sorted(followers)
    best = [min(followers[c].items(), key=lambda item: (-item[1], item[0])) for c in contexts]
    return OfLength(
        np.asarray(contexts, np.int32).reshape(-1, length),
        np.asarray([token for token, _ in best], np.int32),
        np.asarray([count for _, count in best], np.int32),
        np.asarray([followers[c].total() for c in contexts], np.int32),
    )


def hashes(contexts: Any, library: Any = np) -> Any:
    """Hashes [E] of contexts [E, n] of ids, uint32; `library` is NumPy or jax.numpy.

    The hash of a longer context extends that of its last tokens.
    """
    ids = contexts.astype(library.uint32)
    found = library.full(contexts.shape[:1], 0x9E3779B9, library.uint32)
    for back in range(1, contexts.shape[1] + 1):
        found = (found ^ ids[:, -back]) * library.uint32(0x85EBCA6B)
        found = found ^ (found >> library.uint32(13))
        found = found * library.uint32(0xC2B2AE35)
        found = found ^ (found >> library.uint32(16))
    return found

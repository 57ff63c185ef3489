"""CheXbert as a function from reports to labels, compiled once per length of batch.

The weights are not for commercial use. The user supplies them, with the vocabulary of
bert-base-uncased. Letters: N reports, T tokens, D width, C = 14 conditions.
"""

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import jax
import numpy as np
from jaxtyping import Float, Int

from unix_jax.errors import CheckpointError, MetricError
from unix_jax.evaluation.rows import check_reports
from unix_jax.evaluation.wordpiece import VOCABULARY_NAMES, WordPiece
from unix_jax.models.bert import CLASSES, FOUR_CLASS_HEADS, BertConfig, ReportLabeler

Cut = Literal["tokens", "characters"]
# Official: 512 tokens, [CLS] and [SEP] among them. The original's evaluation: 512 characters.
MAX_TOKENS, MAX_CHARACTERS = 512, 512
_LENGTHS = (32, 64, 128, 256, 512)
_CONDITIONS = FOUR_CLASS_HEADS + 1


@dataclasses.dataclass(frozen=True, eq=False)
class CheXbert:
    """The labeller; build it by `from_pretrained`. Without `tokenizer` it only supports ids."""

    config: BertConfig
    params: Any = dataclasses.field(repr=False)
    tokenizer: WordPiece | None
    source: str
    apply: Callable[..., Any] = dataclasses.field(repr=False)

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike[str], *, dtype: Any = None) -> "CheXbert":
        """Reads `chexbert.pth`, without executing anything in it.

        Args:
          path: the file, or its directory. The directory also contains `vocab.txt` or
            `tokenizer.json` of bert-base-uncased, and `config.json` for other sizes.
          dtype: floating-point dtype of weights and arithmetic; None takes the file's, float32.

        Raises:
          CheckpointError, ConfigError: a file is missing or broken, or they do not fit each other.
        """
        from unix_jax.checkpoints.chexbert_files import find_chexbert, load_chexbert

        weights = find_chexbert(path)
        config, params = load_chexbert(weights, dtype=dtype)
        tokenizer = WordPiece.beside(weights.parent)
        if tokenizer is not None and tokenizer.vocab_size > config.vocab_size:
            raise CheckpointError(
                f"{tokenizer.source}: expected ids below the model's vocab_size "
                f"{config.vocab_size}, found up to {tokenizer.vocab_size - 1}"
            )
        model = ReportLabeler(config, params["heads_kernel"].dtype)
        apply = jax.jit(lambda params, *inputs: model.apply({"params": params}, *inputs))
        return cls(config, params, tokenizer, str(weights), apply)

    def labels(
        self,
        reports: Sequence[str],
        *,
        cut: Cut = "tokens",
        batch_size: int = 32,
        progress: Callable[[int], None] | None = None,
    ) -> Int[np.ndarray, "N C"]:
        """Classes of each report, in the columns of `clinical.CONDITIONS`.

        Args:
          reports: texts; an empty one is labelled like any other.
          cut: truncation of long reports: to 512 `tokens`, as CheXbert's authors do, or to 512
            `characters`, as the original's evaluation does.
          batch_size: reports per batch.
          progress: called with the number of reports done since the last call.

        Returns:
          0 blank, 1 positive, 2 negative, 3 uncertain.

        Raises:
          CheckpointError: the directory of the weights has no vocabulary.
          MetricError: not strings, or another `cut` or `batch_size`.
        """
        ids = self.encode(reports, cut=cut)
        labels = np.zeros((len(ids), _CONDITIONS), np.int64)
        for indices, _, logits in self._batches(ids, batch_size):
            labels[indices] = logits.argmax(-1)
            if progress is not None:
                progress(len(indices))
        return labels

    def encode(self, reports: Sequence[str], *, cut: Cut = "tokens") -> list[list[int]]:
        """Ids of each report, truncated as in `labels` and to the model's positions.

        Raises:
          CheckpointError, MetricError: as `labels`.
        """
        if cut not in get_args(Cut):
            raise MetricError(f"cut: expected one of {', '.join(get_args(Cut))}, found {cut!r}")
        check_reports(reports=reports)
        if self.tokenizer is None:
            raise CheckpointError(
                f"{self.source}: expected {' or '.join(VOCABULARY_NAMES)} of bert-base-uncased "
                "in its directory, found neither"
            )
        if cut == "characters":
            reports = [report[:MAX_CHARACTERS] for report in reports]
        return self.tokenizer.encode(reports, min(MAX_TOKENS, self.config.max_positions))

    def logits(
        self, ids: Sequence[Sequence[int]], *, batch_size: int = 32
    ) -> tuple[Float[np.ndarray, "N D"], Float[np.ndarray, "N C 4"]]:
        """(hidden state of [CLS], logits of the classes) of reports given as ids.

        The last condition, "no finding", has two classes; the logits of the others are -1e9.

        Raises:
          MetricError: no ids, ids outside the vocabulary, or more than the model's positions.
        """
        cls = np.zeros((len(ids), self.config.hidden_size), np.float32)
        logits = np.zeros((len(ids), _CONDITIONS, CLASSES), np.float32)
        for indices, batch_cls, batch_logits in self._batches(ids, batch_size):
            cls[indices], logits[indices] = batch_cls, batch_logits
        return cls, logits

    def _batches(self, ids: Sequence[Sequence[int]], batch_size: int):
        """(indices, [CLS], logits) of batches of similar length."""
        if batch_size < 1:
            raise MetricError(f"batch_size: expected at least 1, found {batch_size}")
        buckets: dict[int, list[int]] = {}
        for index, row in enumerate(ids):
            buckets.setdefault(self._bucket(index, row), []).append(index)
        for length, members in sorted(buckets.items()):
            for start in range(0, len(members), batch_size):
                indices = members[start : start + batch_size]
                # A power of two: few shapes to compile, and few rows of padding.
                rows = min(batch_size, 1 << (len(indices) - 1).bit_length())
                inputs = _padded([ids[index] for index in indices], rows, length)
                cls, logits = self.apply(self.params, *inputs)
                count = len(indices)
                yield indices, np.asarray(cls)[:count], np.asarray(logits)[:count]

    def _bucket(self, index: int, row: Sequence[int]) -> int:
        limit = self.config.max_positions
        if not 1 <= len(row) <= limit:
            raise MetricError(f"ids[{index}]: expected 1 to {limit} tokens, found {len(row)}")
        if not all(0 <= token < self.config.vocab_size for token in row):
            raise MetricError(f"ids[{index}]: expected ids from 0 to {self.config.vocab_size - 1}")
        return min([length for length in _LENGTHS if length >= len(row)] + [limit])


def _padded(ids: Sequence[Sequence[int]], rows: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids [rows, length] padded with 0, and their validity; a row of padding has one token."""
    tokens = np.zeros((rows, length), np.int32)
    valid = np.zeros((rows, length), bool)
    valid[:, 0] = True
    for index, row in enumerate(ids):
        tokens[index, : len(row)] = row
        valid[index, : len(row)] = True
    return tokens, valid

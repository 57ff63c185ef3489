"""Drafts of the next tokens, which one step of the model verifies together.

Two drafters: a table of n-grams with back-off, and prompt lookup, which copies what followed the
last tokens earlier in the prompt or in the report. Neither changes a report; they change the number
of steps. How often a drafter was right so far scales its confidence, and tokens are drafted only
where the expected gain exceeds the cost of a longer step.

Letters: B rows, k drafted tokens, T tokens of a prompt, M token buffer, C tokens of a context,
E buckets of a hash table.
"""

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int, UInt

from unix_jax.preprocessing.ngrams import NGrams, hashes

Draft = Literal["none", "ngram", "prompt"]

DRAFTED = 7
"""Number of drafted tokens that a step verifies."""

_DECAY = 0.85  # per token, of the statistics on how often a drafter is right
_PRIOR = 0.5  # of both statistics
_BUCKET = 4  # entries of a bucket
# Confidence in what followed the last three, or the last two, tokens before.
_COPIED = (0.9, 0.7)


@struct.dataclass
class Drafts:
    """Drafted tokens of each row.

    tokens [B, k]: the next tokens, -1 for none. expected [B]: expected number of tokens that a step
    with them writes. confidence [B]: in the first one. right, claimed [B]: moving averages of
    whether the first one was right, and of the confidence in it. prompts [B, T]: see `NewRows`.
    """

    tokens: Int[Array, "B k"]
    expected: Float[Array, " B"]
    confidence: Float[Array, " B"]
    right: Float[Array, " B"]
    claimed: Float[Array, " B"]
    prompts: Int[Array, "B T"]

    @classmethod
    def create(cls, prompts: Int[Array, "B T"], drafted: int) -> "Drafts":
        """Nothing drafted yet."""
        rows = prompts.shape[0]
        zeros = jnp.zeros((rows,), jnp.float32)
        return cls(
            tokens=jnp.full((rows, drafted), -1, jnp.int32),
            expected=zeros,
            confidence=zeros + 0,
            right=zeros + _PRIOR,
            claimed=zeros + _PRIOR,
            prompts=jnp.asarray(prompts),
        )

    def checked(self, token: Int[Array, " B"], active: Bool[Array, " B"]) -> "Drafts":
        """With the statistics of the first drafted token, after `token` was chosen instead."""

        def average(old: Array, value: Array) -> Array:
            return jnp.where(active, _DECAY * old + (1 - _DECAY) * value, old)

        return self.replace(  # type: ignore[attr-defined]
            right=average(self.right, (token == self.tokens[:, 0]).astype(jnp.float32)),
            claimed=average(self.claimed, self.confidence),
        )

    def with_prompts_of(self, length: int) -> "Drafts":
        """With space for prompts of `length` tokens, at least as many as before."""
        extra = length - self.prompts.shape[1]
        prompts = jnp.pad(self.prompts, ((0, 0), (extra, 0)), constant_values=-1)
        return self.replace(prompts=prompts)  # type: ignore[attr-defined]

    @property
    def trust(self) -> Float[Array, " B"]:
        """Factor of the confidence, below 1 where drafts were wrong more often than expected."""
        return jnp.minimum(self.right / self.claimed, 1)

    def _drafted(self, tokens: Int[Array, "B k"], confidence: Float[Array, "B k"]) -> "Drafts":
        """With new tokens; their confidence is reduced where the drafter was often wrong."""
        kept = jnp.cumprod(confidence * self.trust[:, None], axis=1)
        return self.replace(  # type: ignore[attr-defined]
            tokens=tokens, expected=1 + kept.sum(axis=1), confidence=confidence[:, 0]
        )


@struct.dataclass
class NGramDrafter:
    """An n-gram table with back-off, as a hash table.

    keys [E, 4]: hashes of contexts. tokens, confidence [E, 4]: the next token of each, and the
    share of contexts that it followed.
    """

    keys: UInt[Array, "E 4"]
    tokens: Int[Array, "E 4"]
    confidence: Float[Array, "E 4"]
    order: int = struct.field(pytree_node=False)

    @classmethod
    def create(cls, ngrams: NGrams) -> "NGramDrafter":
        """The hash table, in which longer contexts precede shorter ones in full buckets."""
        found = [
            (hashes(part.contexts), part.tokens, part.counts / (part.totals + 1))
            for part in reversed(ngrams.parts)
        ]
        all_keys, all_tokens, all_confidence = (np.concatenate(x) for x in zip(*found, strict=True))
        buckets = 1 << max(int(len(all_keys) - 1).bit_length(), 0)
        bucket = all_keys % np.uint32(buckets)
        order = np.argsort(bucket, kind="stable")
        bucket = bucket[order]
        place = np.arange(len(bucket)) - np.searchsorted(bucket, bucket)
        fits = place < _BUCKET
        at = bucket[fits], place[fits]
        keys = np.zeros((buckets, _BUCKET), np.uint32)
        tokens = np.full((buckets, _BUCKET), -1, np.int32)
        confidence = np.zeros((buckets, _BUCKET), np.float32)
        for target, values in (
            (keys, all_keys), (tokens, all_tokens), (confidence, all_confidence)
        ):  # fmt: skip
            target[at] = values[order][fits]
        return cls(
            jnp.asarray(keys), jnp.asarray(tokens), jnp.asarray(confidence), len(ngrams.parts)
        )

    def worthwhile(self, drafts: Drafts, active: Bool[Array, " B"]) -> Bool[Array, ""]:
        """Whether a step with drafts is expected to be faster than steps of one token."""
        return _worthwhile(drafts, active)

    def propose(
        self, drafts: Drafts, tokens: Int[Array, "B M"], count: Int[Array, " B"], bos: int
    ) -> Drafts:
        """Drafts the tokens after the first `count` of each row, which follow bos."""
        rows, drafted = drafts.tokens.shape
        at = count[:, None] - self.order + jnp.arange(self.order)[None]
        recent = jnp.take_along_axis(tokens, jnp.maximum(at, 0), axis=1)
        recent = jnp.where(at >= 0, recent, jnp.where(at == -1, bos, -1))
        trust = drafts.trust

        def unfinished(state: Any) -> Array:
            *_, chance, i = state
            # Nothing is worth drafting after tokens that are hardly certain in any row.
            return (i < drafted) & jnp.any(chance > 0.1)

        def add(state: Any) -> Any:
            recent, found, confidence, chance, i = state
            token, certain = self._next(recent)
            certain = jnp.where(chance > 0, certain, 0)
            return (
                jnp.concatenate([recent[:, 1:], token[:, None]], axis=1),
                found.at[:, i].set(token),
                confidence.at[:, i].set(certain),
                chance * certain * trust,
                i + 1,
            )

        empty = jnp.full((rows, drafted), -1, jnp.int32)
        zeros, ones = jnp.zeros((rows, drafted), jnp.float32), jnp.ones((rows,), jnp.float32)
        _, found, confidence, _, _ = jax.lax.while_loop(
            unfinished, add, (recent, empty, zeros, ones, jnp.int32(0))
        )
        return drafts._drafted(found, confidence)

    def _next(self, recent: Int[Array, "B C"]) -> tuple[Int[Array, " B"], Float[Array, " B"]]:
        """(the token after the longest known context, confidence); (-1, 0) if none is known."""
        wanted, known = [], jnp.ones(recent.shape[:1], bool)
        for length in range(1, self.order + 1):
            known &= recent[:, -length] >= 0
            wanted.append((hashes(recent[:, -length:], jnp), known))
        keys, possible = (jnp.stack(x, axis=1) for x in zip(*wanted, strict=True))
        bucket = (keys % jnp.uint32(self.keys.shape[0])).astype(jnp.int32)
        match = (self.keys[bucket] == keys[..., None]) & (self.tokens[bucket] >= 0)
        match &= possible[..., None]  # [B, C, 4]
        lengths = jnp.arange(1, self.order + 1)[None, :, None]
        best = jnp.argmax(jnp.where(match, lengths, 0).reshape(len(recent), -1), axis=1)[:, None]
        values = (jnp.any(match, axis=(1, 2)), self.tokens[bucket], self.confidence[bucket])
        token, certain = (
            jnp.take_along_axis(x.reshape(len(recent), -1), best, axis=1)[:, 0] for x in values[1:]
        )
        return jnp.where(values[0], token, -1), jnp.where(values[0], certain, 0)


@struct.dataclass
class PromptDrafter:
    """Prompt lookup: copies what followed the last tokens before."""

    def worthwhile(self, drafts: Drafts, active: Bool[Array, " B"]) -> Bool[Array, ""]:
        """As in `NGramDrafter`."""
        return _worthwhile(drafts, active)

    def propose(
        self, drafts: Drafts, tokens: Int[Array, "B M"], count: Int[Array, " B"], bos: int
    ) -> Drafts:
        """As in `NGramDrafter`."""
        rows, drafted = drafts.tokens.shape
        begin = jnp.full((rows, 1), bos, jnp.int32)
        text = jnp.concatenate([drafts.prompts, begin, tokens], axis=1)
        end = drafts.prompts.shape[1] + 1 + count[:, None]  # one after the last known token
        index = jnp.arange(text.shape[1])[None]

        def same(back: int) -> Bool[Array, "B N"]:
            """Whether the token `back` before each index is the token `back` before the end."""
            last = jnp.take_along_axis(text, jnp.maximum(end - back, 0), axis=1)
            shifted = jnp.pad(text, ((0, 0), (back, 0)), constant_values=-2)[:, : text.shape[1]]
            return (shifted == last) & (last >= 0)

        two = same(1) & same(2) & (index < end)
        three = two & same(3)
        # The last match of three tokens, else that of two.
        score = jnp.where(two, index + 1 + jnp.where(three, text.shape[1], 0), 0)
        source = jnp.argmax(score, axis=1)[:, None] + jnp.arange(drafted)[None]
        inside = jnp.any(two, axis=1)[:, None] & (source < end)
        found = jnp.take_along_axis(text, jnp.minimum(source, text.shape[1] - 1), axis=1)
        certain = jnp.where(jnp.any(three, axis=1), *_COPIED)[:, None]
        return drafts._drafted(jnp.where(inside, found, -1), jnp.where(inside, certain, 0.0))


Drafter = NGramDrafter | PromptDrafter


def _worthwhile(drafts: Drafts, active: Bool[Array, " B"]) -> Bool[Array, ""]:
    cost = step_cost(active.shape[0], jax.default_backend())
    return jnp.sum(jnp.where(active, drafts.expected, 0)) > cost * jnp.sum(active)


def step_cost(rows: int, backend: str) -> float:
    """Duration of a step with drafts, relative to a step of one token.

    As many tokens must be expected of it. On a CPU one row reads the weights for little work, so
    further tokens cost less than with more rows: 1.5 to 2.0 for one row and 2.3 to 2.9 for eight,
    timed on two cores (widths 512 and 256). The values are at the upper end or above, since a draft
    too few costs less than one too many. On accelerators this holds for any number of rows, and the
    value is assumed.
    """
    return 2.2 + 0.2 * math.log2(min(rows, 8)) if backend == "cpu" else 1.4

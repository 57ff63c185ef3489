"""Report decoding: one compiled loop over a preallocated cache, with one row per report.

All rows write to a common cache slot but have their own rotary positions, so that rows of unequal
length are decoded together. The slots after the context are a ring: a row that has ended is
replaced by another report at once (`replace_rows`), while the other rows continue, and the slots of
ended reports are used again. The same compiled program runs any number of steps: one for streaming,
and as many as the ring has room for otherwise.

With a drafter, a step may verify several drafted tokens of each row at once. A drafted token is
kept if it is the model's own choice after the tokens before it, so the report is the same.

Letters: B rows, m new rows, S cache slots, M token buffer, V vocabulary, N tokens of a step.
"""

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from unix_jax.inference.drafts import Drafter, Drafts
from unix_jax.models.attention.cache import KVCache
from unix_jax.models.attention.mask import CAUSAL, TokenMetadata
from unix_jax.models.unix import UniX
from unix_jax.sharding import split_rows

Choice = Literal["greedy", "sample", "nucleus"]
"""What a program supports: temperature 0 only; any temperature; any temperature and `top_p`.

A row's tokens are the same in every program that supports its settings."""


@struct.dataclass
class DecodeState:
    """The state of a decoding run.

    context: number of slots for the context of each row; the slots after it are the ring.
    token [B]: the next input token. position [B]: its rotary position. keys [B]: random keys.
    tokens [B, M]: new tokens so far, filled with eos after the end of a report. count [B]: number
    of new tokens. limit [B]: maximum of `count`. temperature, top_p [B]: as in `sample_token`.
    used [B]: number of slots of the ring that were used since
    the row began. done [B]: whether the row has ended: by eos, by its limit, or because logits were
    not finite. non_finite_step [B]: the first new token whose logits were not finite, else -1.
    drafts: the next tokens according to the drafter; None without one. slots: maximum number of
    tokens of a step.
    """

    cache: KVCache
    token: Int[Array, " B"]
    position: Int[Array, " B"]
    keys: Array
    tokens: Int[Array, "B M"]
    count: Int[Array, " B"]
    limit: Int[Array, " B"]
    temperature: Float[Array, " B"]
    top_p: Float[Array, " B"]
    used: Int[Array, " B"]
    done: Bool[Array, " B"]
    non_finite_step: Int[Array, " B"]
    drafts: Drafts | None
    context: int = struct.field(pytree_node=False)
    slots: int = struct.field(pytree_node=False)

    @property
    def ring(self) -> int:
        """Number of slots of the ring."""
        return self.cache.capacity - self.context

    @property
    def needed(self) -> Int[Array, ""]:
        """Number of slots of the ring that the next step of the active rows needs; see `resize`."""
        return jnp.max(jnp.where(self.done, 0, self.used + self._skipped + self.slots))

    @property
    def full(self) -> Bool[Array, ""]:
        """Whether the ring has too few slots for another step."""
        return self.needed > self.ring

    @property
    def _skipped(self) -> Int[Array, ""]:
        """Number of slots at the end of the ring that are too few for a step."""
        left = self.cache.capacity - self.cache.index
        return jnp.where(left < self.slots, left, 0)

    def at_slot(self) -> "DecodeState":
        """The state whose next slot has room for a step; see `full`."""
        left = self.cache.capacity - self.cache.index
        index = jnp.where(left < self.slots, self.context, self.cache.index)
        return self.replace(  # type: ignore[attr-defined]
            cache=self.cache.replace(index=index),  # type: ignore[attr-defined]
            used=self.used + self._skipped,
        )


@struct.dataclass
class NewRows:
    """Reports before their first step.

    cache: the prefilled contexts. position [m]: rotary position of the first token, bos. keys [m]:
    one random key per row; new token i of a row uses fold_in(key, i). limit, temperature, top_p
    [m]: see `DecodeState`. prompts [m, T]: token ids that prompt lookup may copy, at the end, after
    -1; T may be 0.
    """

    cache: KVCache
    position: Int[Array, " m"]
    keys: Array
    limit: Int[Array, " m"]
    temperature: Float[Array, " m"]
    top_p: Float[Array, " m"]
    prompts: Int[Array, "m T"]


def start(
    new: NewRows,
    used: int | None = None,
    *,
    context: int,
    bos: int,
    eos: int,
    buffer: int,
    drafted: int = 0,
) -> DecodeState:
    """The state before the first step, with space for `buffer` new tokens per row.

    The contexts are in the first `context` slots of the cache, and the ring is the remainder. Rows
    from `used` on, if given, have ended already. `drafted` is the number of drafted tokens that a
    step verifies, 0 without a drafter.
    """
    state, index = _fresh(
        new.replace(cache=None),  # type: ignore[attr-defined]
        np.int32(new.position.shape[0] if used is None else used),
        context=context, bos=bos, eos=eos, buffer=buffer, drafted=drafted,
    )  # fmt: skip
    return state.replace(cache=new.cache.replace(index=index))  # type: ignore[attr-defined]


@functools.partial(jax.jit, static_argnames=("context", "bos", "eos", "buffer", "drafted"))
def _fresh(
    new: NewRows,
    used: Int[Array, ""],
    *,
    context: int,
    bos: int,
    eos: int,
    buffer: int,
    drafted: int,
) -> tuple[DecodeState, Int[Array, ""]]:
    """`start` without the cache, and the cache's index: small programs would take longer."""
    batch = new.position.shape[0]

    def filled(value: int) -> Int[Array, " B"]:
        return jnp.full((batch,), value, jnp.int32)

    state = DecodeState(
        cache=new.cache,
        token=filled(bos),
        position=jnp.asarray(new.position, jnp.int32),
        keys=new.keys,
        tokens=jnp.full((batch, buffer), eos, jnp.int32),
        count=filled(0),
        limit=new.limit,
        temperature=new.temperature,
        top_p=new.top_p,
        used=filled(0),
        done=jnp.arange(batch) >= used,
        non_finite_step=filled(-1),
        drafts=Drafts.create(new.prompts, drafted) if drafted else None,
        context=context,
        slots=1 + drafted,
    )
    # As after a step, which would be another program otherwise.
    return split_rows(state), jnp.int32(context)


def sample_token(
    logits: Float[Array, "B V"],
    keys: Array,
    temperature: Float[Array, " B"],
    top_p: Float[Array, " B"] | None = None,
) -> Int[Array, " B"]:
    """One token per row from softmax(logits / temperature); the most probable one at temperature 0.

    Args:
      keys: one random key per row, so that a row's token does not depend on the other rows. Each
        token of the vocabulary has its own noise, whatever the other arguments are.
      top_p: restricts the choice to the nucleus of this mass, which requires sorting the
        vocabulary; None for no restriction, like 1.
    """
    most_probable = jnp.argmax(logits, axis=-1)
    # The maximum is subtracted, and the divisor is a normal number, so that the smallest
    # temperatures are greedy and do not produce NaN.
    logits = logits - jnp.max(logits, axis=-1, keepdims=True)
    logits = logits / jnp.maximum(temperature, 1e-30)[:, None]
    noise = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[1:]))(keys)
    if top_p is None:
        token = jnp.argmax(logits + noise, axis=-1)
    else:
        order = jnp.argsort(logits, axis=-1, descending=True)
        logits, noise = (jnp.take_along_axis(x, order, axis=-1) for x in (logits, noise))
        probabilities = jax.nn.softmax(logits, axis=-1)
        # A token is kept if the mass before it is below top_p, so the first token is always kept.
        before = jnp.cumsum(probabilities, axis=-1) - probabilities
        kept = (before < top_p[:, None]) | (top_p >= 1)[:, None]
        choice = jnp.argmax(jnp.where(kept, logits + noise, -jnp.inf), axis=-1)
        token = jnp.take_along_axis(order, choice[:, None], axis=-1)[:, 0]
    return jnp.where(temperature > 0, token, most_probable).astype(jnp.int32)


@functools.partial(jax.jit, static_argnames=("model", "choice"), donate_argnames=("state",))
def decode_until(
    model: UniX,
    params: Any,
    state: DecodeState,
    steps: Int[Array, ""],
    ended: Int[Array, ""],
    drafter: Drafter | None = None,
    *,
    choice: Choice,
) -> DecodeState:
    """Decodes one token per step for each active row, or several with a drafter.

    Stops after `steps` steps, when at least `ended` rows have ended, or when the ring is full.
    `choice` must support the settings of every active row; a drafter requires `greedy`.
    """

    def unfinished(carry: tuple[DecodeState, Array]) -> Array:
        state, step = carry
        return (step < steps) & (jnp.sum(state.done) < ended) & ~state.full

    def step_of(tokens: int) -> Any:
        def step(carry: tuple[DecodeState, Array]) -> tuple[DecodeState, Array]:
            state, count = carry
            return _step(model, params, state, drafter, tokens, choice), count + 1

        return step

    carry = (state, jnp.int32(0))
    if drafter is None:
        return jax.lax.while_loop(unfinished, step_of(1), carry)[0]

    def worthwhile(carry: tuple[DecodeState, Array]) -> Array:
        state, _ = carry
        assert drafter is not None
        assert state.drafts is not None
        return drafter.worthwhile(state.drafts, ~state.done)

    def stretches(carry: tuple[DecodeState, Array]) -> tuple[DecodeState, Array]:
        # Two loops, not a choice in one, which would copy the cache for every token.
        carry = jax.lax.while_loop(
            lambda c: unfinished(c) & worthwhile(c), step_of(state.slots), carry
        )
        return jax.lax.while_loop(lambda c: unfinished(c) & ~worthwhile(c), step_of(1), carry)

    return jax.lax.while_loop(unfinished, stretches, carry)[0]


def _step(
    model: UniX,
    params: Any,
    state: DecodeState,
    drafter: Drafter | None,
    tokens: int,
    choice: Choice,
) -> DecodeState:
    """Runs the next token of each row and `tokens` - 1 drafted ones, and keeps what is right."""
    eos = model.config.special_tokens.eos
    state = state.at_slot()
    active, slot = ~state.done, state.cache.index

    def apply(method: Any, *args: Any) -> Any:
        return model.apply({"params": params}, *args, method=method)

    inputs, metadata = state.token[:, None], None
    offsets = jnp.arange(tokens)[None]
    positions = state.position[:, None] + offsets
    if tokens > 1:
        assert state.drafts is not None
        inputs = jnp.concatenate([inputs, state.drafts.tokens[:, : tokens - 1]], axis=1)
        zeros = jnp.zeros_like(inputs)
        metadata = TokenMetadata(positions, zeros + 1, zeros, zeros + offsets, zeros + CAUSAL)
    x = apply(UniX.embed_text, jnp.maximum(inputs, 0))
    (hidden, _), cache, _ = apply(
        UniX.decode, (x, None), (positions, None), metadata, state.cache,
        jnp.ones(inputs.shape, bool),
    )  # fmt: skip
    logits = apply(UniX.logits, hidden)
    if choice == "greedy":
        chosen = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    else:
        keys = jax.vmap(jax.random.fold_in)(state.keys, state.count)
        top_p = state.top_p if choice == "nucleus" else None
        chosen = sample_token(logits[:, 0], keys, state.temperature, top_p)[:, None]
    # A drafted token is right if it is the one chosen after the token before it.
    right = jnp.cumprod(inputs[:, 1:] == chosen[:, :-1], axis=1).sum(axis=1)
    ends = chosen == eos
    until_end = jnp.where(jnp.any(ends, axis=1), jnp.argmax(ends, axis=1) + 1, tokens)
    new = jnp.minimum(jnp.minimum(right + 1, until_end), state.limit - state.count)
    new = jnp.where(active, new, 0)
    kept = offsets < new[:, None]
    # The argmax of NaNs is a valid token id, so finiteness is checked separately.
    wrong = kept & ~jnp.all(jnp.isfinite(logits), axis=-1)
    broken = jnp.any(wrong, axis=1)
    index = jnp.arange(state.tokens.shape[1])[None] - state.count[:, None]
    written = (index >= 0) & (index < new[:, None])
    values = jnp.take_along_axis(chosen, jnp.clip(index, 0, tokens - 1), axis=1)
    last = jnp.take_along_axis(chosen, jnp.maximum(new - 1, 0)[:, None], axis=1)[:, 0]
    count = state.count + new
    advance = jnp.int32(1)
    if tokens > 1:
        advance = jnp.maximum(jnp.max(new), 1)
        valid = jax.lax.dynamic_update_slice_in_dim(cache.valid, kept, slot, 1)
        cache = cache.replace(valid=valid, index=slot + advance)
    following = state.replace(  # type: ignore[attr-defined]
        cache=cache,
        token=jnp.where(active, last, state.token),
        position=state.position + new,
        tokens=jnp.where(written, values, state.tokens),
        count=count,
        used=state.used + advance,
        done=state.done | broken | jnp.any(ends & kept, axis=1) | (count >= state.limit),
        non_finite_step=jnp.where(
            broken, state.count + jnp.argmax(wrong, axis=1), state.non_finite_step
        ),
    )
    if drafter is None:
        return following
    assert state.drafts is not None
    drafts = drafter.propose(
        state.drafts.checked(chosen[:, 0], active), following.tokens, count,
        model.config.special_tokens.bos,
    )  # fmt: skip
    return following.replace(drafts=drafts)


@functools.partial(jax.jit, static_argnames=("bos", "eos"), donate_argnames=("state",))
def replace_rows(
    state: DecodeState,
    rows: Int[Array, " m"],
    count: Int[Array, ""],
    new: NewRows,
    *,
    bos: int,
    eos: int,
) -> DecodeState:
    """The state with new reports in some rows.

    Args:
      rows: the rows to replace. Only the first `count` of them, and of the new rows, are used.
      new: the reports. Their cache has at most `context` slots.
    """
    batch = state.done.shape[0]
    # Rows out of range are dropped.
    rows = jnp.where(jnp.arange(rows.shape[0]) < count, rows, batch)

    def put(old: Array, values: Any) -> Array:
        return old.at[rows].set(values, mode="drop")

    return state.replace(  # type: ignore[attr-defined]
        cache=state.cache.put_rows(new.cache, rows, count),
        token=put(state.token, bos),
        position=put(state.position, new.position),
        keys=put(state.keys, new.keys),
        tokens=put(state.tokens, eos),
        count=put(state.count, 0),
        limit=put(state.limit, new.limit),
        temperature=put(state.temperature, new.temperature),
        top_p=put(state.top_p, new.top_p),
        used=put(state.used, 0),
        done=put(state.done, False),
        non_finite_step=put(state.non_finite_step, -1),
        drafts=None
        if state.drafts is None
        else jax.tree.map(put, state.drafts, Drafts.create(new.prompts, state.slots - 1)),
    )


@jax.jit
def slots_needed(state: DecodeState) -> Int[Array, ""]:
    """`DecodeState.needed` as one program."""
    return state.needed


@functools.partial(jax.jit, static_argnames=("context", "ring", "buffer", "prompt", "eos"))
def resize(
    state: DecodeState, *, context: int, ring: int, buffer: int, eos: int, prompt: int = 0
) -> DecodeState:
    """The same state with another number of slots in the ring, and more for the rest.

    `context` is that of the contexts, `buffer` that of the new tokens, `prompt` that of the prompts
    that a drafter reads. A smaller ring keeps the latest slots, and must have `state.needed`.

    The slots of the ring are rotated: the next one, which is the oldest, becomes the first.
    """
    old = state.context
    shift = (state.cache.index - old) % max(state.ring, 1)

    def change(x: Array, axis: int) -> Array:
        contexts = jax.lax.slice_in_dim(x, 0, old, axis=axis)
        tokens = jnp.roll(jax.lax.slice_in_dim(x, old, None, axis=axis), -shift, axis)
        latest = jax.lax.slice_in_dim(tokens, max(state.ring - ring, 0), None, axis=axis)
        parts = [_padded(contexts, context, axis), _padded(latest, ring, axis)]
        return jnp.concatenate(parts, axis=axis)

    cache: Any = state.cache.map_slots(change)
    tokens = state.tokens
    tokens = jnp.pad(tokens, ((0, 0), (0, buffer - tokens.shape[1])), constant_values=eos)
    drafts = None if state.drafts is None else state.drafts.with_prompts_of(prompt)
    index = jnp.int32(context + min(state.ring, ring))
    return state.replace(  # type: ignore[attr-defined]
        cache=cache.replace(index=index), tokens=tokens, drafts=drafts, context=context
    )


def _padded(x: Array, length: int, axis: int) -> Array:
    extra = length - x.shape[axis]
    return jnp.pad(x, [(0, extra if i == axis else 0) for i in range(x.ndim)])

"""Report decoding: one compiled loop over a preallocated cache, with one row per report.

All rows write to a common cache slot but have their own rotary positions, so that rows of unequal
length are decoded together. The slots after the context are a ring: a row that has ended is
replaced by another report at once (`replace_rows`), while the other rows continue, and the slots of
ended reports are used again. The same compiled program runs any number of steps: one for streaming,
and as many as the ring has room for otherwise.

Letters: B rows, m new rows, S cache slots, M token buffer, V vocabulary.
"""

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from unix_jax.models.attention.cache import KVCache
from unix_jax.models.unix import UniX

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
    not finite. non_finite_step [B]: the first step with logits that were not finite, else -1.
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
    context: int = struct.field(pytree_node=False)

    @property
    def ring(self) -> int:
        """Number of slots of the ring."""
        return self.cache.capacity - self.context

    @property
    def full(self) -> Bool[Array, ""]:
        """Whether the ring has no slot for another token of an active row; see `grow`."""
        return jnp.any(~self.done & (self.used >= self.ring))


@struct.dataclass
class NewRows:
    """Reports before their first step.

    cache: the prefilled contexts. position [m]: rotary position of the first token, bos. keys [m]:
    one random key per row; new token i of a row uses fold_in(key, i). limit, temperature, top_p
    [m]: see `DecodeState`.
    """

    cache: KVCache
    position: Int[Array, " m"]
    keys: Array
    limit: Int[Array, " m"]
    temperature: Float[Array, " m"]
    top_p: Float[Array, " m"]


def start(new: NewRows, *, context: int, bos: int, eos: int, buffer: int) -> DecodeState:
    """The state before the first step, with space for `buffer` new tokens per row.

    The contexts are in the first `context` slots of the cache, and the ring is the remainder.
    """
    batch = new.position.shape[0]

    def filled(value: int) -> Int[Array, " B"]:
        # Separate arrays, because the loop reuses their memory.
        return jnp.full((batch,), value, jnp.int32)

    return DecodeState(
        cache=new.cache.replace(index=jnp.int32(context)),  # type: ignore[attr-defined]
        token=filled(bos),
        position=jnp.asarray(new.position, jnp.int32),
        keys=new.keys,
        tokens=jnp.full((batch, buffer), eos, jnp.int32),
        count=filled(0),
        limit=new.limit,
        temperature=new.temperature,
        top_p=new.top_p,
        used=filled(0),
        done=jnp.zeros((batch,), bool),
        non_finite_step=filled(-1),
        context=context,
    )


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
    *,
    choice: Choice,
) -> DecodeState:
    """Decodes one token per step for each active row.

    Stops after `steps` steps, when at least `ended` rows have ended, or when the ring is full.
    `choice` must support the settings of every active row.
    """
    eos = model.config.special_tokens.eos

    def apply(method: Any, *args: Any) -> Any:
        return model.apply({"params": params}, *args, method=method)

    def unfinished(carry: tuple[DecodeState, Array]) -> Array:
        state, step = carry
        return (step < steps) & (jnp.sum(state.done) < ended) & ~state.full

    def one(carry: tuple[DecodeState, Array]) -> tuple[DecodeState, Array]:
        state, step = carry
        active = ~state.done
        x = apply(UniX.embed_text, state.token[:, None])
        (hidden, _), cache, _ = apply(
            UniX.decode, (x, None), (state.position[:, None], None), None, _at_slot(state),
            jnp.ones_like(active)[:, None],
        )  # fmt: skip
        logits = apply(UniX.logits, hidden[:, 0])
        if choice == "greedy":
            token = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        else:
            keys = jax.vmap(jax.random.fold_in)(state.keys, state.count)
            top_p = state.top_p if choice == "nucleus" else None
            token = sample_token(logits, keys, state.temperature, top_p)
        # The argmax of NaNs is a valid token id, so finiteness is checked separately.
        broken = active & ~jnp.all(jnp.isfinite(logits), axis=-1)
        token = jnp.where(broken, eos, token)
        here = active[:, None] & (jnp.arange(state.tokens.shape[1]) == state.count[:, None])
        count = state.count + active
        following = state.replace(  # type: ignore[attr-defined]
            cache=cache,
            token=token,
            position=state.position + active,
            tokens=jnp.where(here, token[:, None], state.tokens),
            count=count,
            used=state.used + 1,
            done=state.done | broken | (token == eos) | (count >= state.limit),
            non_finite_step=jnp.where(broken, state.count, state.non_finite_step),
        )
        return following, step + 1

    return jax.lax.while_loop(unfinished, one, (state, jnp.int32(0)))[0]


def _at_slot(state: DecodeState) -> KVCache:
    """The cache, which starts again at the first slot of the ring after the last one."""
    cache = state.cache
    index = jnp.where(cache.index >= cache.capacity, state.context, cache.index)
    return cache.replace(index=index)  # type: ignore[attr-defined]


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
    )


@functools.partial(jax.jit, static_argnames=("context", "ring", "buffer", "eos"))
def grow(state: DecodeState, *, context: int, ring: int, buffer: int, eos: int) -> DecodeState:
    """The same state with more slots for the context and the ring, and a longer token buffer.

    The slots of the ring are rotated: the next one, which is the oldest, becomes the first.
    """
    old = state.context
    shift = (state.cache.index - old) % max(state.ring, 1)

    def change(x: Array, axis: int) -> Array:
        contexts = jax.lax.slice_in_dim(x, 0, old, axis=axis)
        tokens = jnp.roll(jax.lax.slice_in_dim(x, old, None, axis=axis), -shift, axis)
        parts = [_padded(contexts, context, axis), _padded(tokens, ring, axis)]
        return jnp.concatenate(parts, axis=axis)

    cache: Any = state.cache.map_slots(change)
    tokens = state.tokens
    tokens = jnp.pad(tokens, ((0, 0), (0, buffer - tokens.shape[1])), constant_values=eos)
    index = jnp.int32(context + state.ring)
    return state.replace(  # type: ignore[attr-defined]
        cache=cache.replace(index=index), tokens=tokens, context=context
    )


def _padded(x: Array, length: int, axis: int) -> Array:
    extra = length - x.shape[axis]
    return jnp.pad(x, [(0, extra if i == axis else 0) for i in range(x.ndim)])

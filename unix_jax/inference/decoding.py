"""Report decoding: one compiled loop over a preallocated cache, with one row per report.

All rows write to a common cache slot but have their own rotary positions, so that rows of unequal
length are decoded together. The loop runs up to a given step: to the end for a complete report, or
token by token for streaming, with the same compiled program.

Letters: B rows, S cache slots, M token buffer, V vocabulary.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from unix_jax.models.attention.cache import KVCache
from unix_jax.models.unix import UniX


@struct.dataclass
class DecodeState:
    """The state of a decoding run.

    token [B]: the next input token. position [B]: its rotary position. tokens [B, M]: new tokens
    so far, filled with eos after the end of a report. step: number of new tokens. done [B]: whether
    eos was reached, or logits were not finite. non_finite_step [B]: the first step with logits that
    were not finite, else -1.
    """

    cache: KVCache
    token: Int[Array, " B"]
    position: Int[Array, " B"]
    tokens: Int[Array, "B M"]
    step: Int[Array, ""]
    done: Bool[Array, " B"]
    non_finite_step: Int[Array, " B"]


def start(
    cache: KVCache, position: Int[Array, " B"], bos: int, eos: int, buffer: int
) -> DecodeState:
    """The state before the first step: bos at `position`, and space for `buffer` new tokens."""
    batch = position.shape[0]
    return DecodeState(
        cache=cache,
        token=jnp.full((batch,), bos, jnp.int32),
        position=jnp.asarray(position, jnp.int32),
        tokens=jnp.full((batch, buffer), eos, jnp.int32),
        step=jnp.int32(0),
        done=jnp.zeros((batch,), bool),
        non_finite_step=jnp.full((batch,), -1, jnp.int32),
    )


def sample_token(
    logits: Float[Array, "B V"],
    keys: Array,
    temperature: Float[Array, ""],
    top_p: Float[Array, ""],
) -> Int[Array, " B"]:
    """One token per row from softmax(logits / temperature), restricted to the nucleus of mass
    top_p.

    `keys`: one random key per row, so that a row's token does not depend on the other rows.
    """
    # The maximum is subtracted, and the divisor is a normal number, so that the smallest
    # temperatures are greedy and do not produce NaN.
    logits = logits - jnp.max(logits, axis=-1, keepdims=True)
    logits = logits / jnp.maximum(temperature, 1e-30)
    order = jnp.argsort(logits, axis=-1, descending=True)
    probabilities = jax.nn.softmax(jnp.take_along_axis(logits, order, axis=-1), axis=-1)
    # A token is kept if the mass before it is below top_p, so the first token is always kept.
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    kept = jnp.where(before < top_p, jnp.log(probabilities), -jnp.inf)
    choice = jax.vmap(jax.random.categorical)(keys, kept)
    return jnp.take_along_axis(order, choice[:, None], axis=-1)[:, 0].astype(jnp.int32)


@functools.partial(jax.jit, static_argnames=("model", "greedy"), donate_argnames=("state",))
def decode_until(
    model: UniX,
    params: Any,
    state: DecodeState,
    limit: Int[Array, ""],
    keys: Array,
    temperature: Float[Array, ""],
    top_p: Float[Array, ""],
    *,
    greedy: bool,
) -> DecodeState:
    """Decodes up to `limit` new tokens, or until every row has reached eos.

    The caller ensures that `limit` fits the token buffer and the cache's free slots.

    Args:
      keys: one random key per row; step i uses fold_in(key, i).
      temperature, top_p: used when `greedy` is False.
    """
    eos = model.config.special_tokens.eos

    def apply(method: Any, *args: Any) -> Any:
        return model.apply({"params": params}, *args, method=method)

    def unfinished(state: DecodeState) -> Array:
        return (state.step < limit) & ~jnp.all(state.done)

    def step(state: DecodeState) -> DecodeState:
        x = apply(UniX.embed_text, state.token[:, None])
        (hidden, _), cache, _ = apply(
            UniX.decode, (x, None), (state.position[:, None], None), None, state.cache,
            jnp.ones_like(state.done)[:, None],
        )  # fmt: skip
        logits = apply(UniX.logits, hidden[:, 0])
        if greedy:
            token = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        else:
            step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, state.step)
            token = sample_token(logits, step_keys, temperature, top_p)
        # The argmax of NaNs is a valid token id, so finiteness is checked separately.
        broken = ~state.done & ~jnp.all(jnp.isfinite(logits), axis=-1)
        token = jnp.where(state.done | broken, eos, token)
        return DecodeState(
            cache=cache,
            token=token,
            position=state.position + 1,
            tokens=jax.lax.dynamic_update_slice_in_dim(
                state.tokens, token[:, None], state.step, axis=1
            ),
            step=state.step + 1,
            done=state.done | broken | (token == eos),
            non_finite_step=jnp.where(broken, state.step, state.non_finite_step),
        )

    return jax.lax.while_loop(unfinished, step, state)


@functools.partial(jax.jit, static_argnames=("capacity",))
def grow(state: DecodeState, capacity: int) -> DecodeState:
    """The same state with a cache of `capacity` slots."""
    return state.replace(cache=state.cache.grow(capacity))  # type: ignore[attr-defined]

"""Exact attention in plain JAX: all logits at once, or those of blocks of queries and keys.

The backward pass recomputes the weights instead of saving them, in one loop for every order of
queries and keys.

Letters: B batch, T queries, S keys, N query heads, K key-value heads, G = N / K queries that share
a key head, H head_dim.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import einops
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from unix_jax.models.attention.key_blocks import KeyBlock, MergedKeyBlock
from unix_jax.models.attention.mask import MASKED, TokenMetadata
from unix_jax.models.layers import LANES, whole_vectors
from unix_jax.models.remat import ATTENTION_OUTPUT
from unix_jax.sharding import attention_axes, platform_in_use


@dataclasses.dataclass(frozen=True)
class Plan:
    """Queries at a time, and keys at a time; None: all keys of a block at once."""

    query_size: int
    key_size: int | None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def attend(
    plan: Plan, query: Array, blocks: Sequence[KeyBlock], query_metadata: TokenMetadata | None
) -> Array:
    """`forward` without the sums, and with a backward pass."""
    return forward(plan, query, blocks, query_metadata)[0]


def attend_in_turn(
    plan: Plan, query: Array, blocks: Sequence[KeyBlock], query_metadata: TokenMetadata | None
) -> Array:
    """`attend` for one row of each device after the other, whose logits are few."""

    def of_device(*arguments: Any) -> Array:
        def one(row: Any) -> Array:
            return attend(plan, *jax.tree.map(lambda x: x[None], row))[0]

        return jax.lax.map(one, arguments)

    arguments = (query, blocks, query_metadata)
    axes = attention_axes(query.shape[0], query.shape[2], blocks[0].num_kv_heads)
    if axes is not None:
        of_query = PartitionSpec(axes.batch, None, axes.heads)
        of_key = PartitionSpec(axes.batch, None, axes.kv_heads)
        rest = PartitionSpec(axes.batch)
        specs = jax.tree.map(lambda x: of_key if x.ndim == 4 else rest, arguments[1:])
        of_device = jax.shard_map(
            of_device, in_specs=(of_query, *specs), out_specs=of_query, check_vma=False
        )
    return of_device(*arguments)


def forward(
    plan: Plan,
    query: Array,
    blocks: Sequence[KeyBlock | MergedKeyBlock],
    query_metadata: TokenMetadata | None,
) -> tuple[Float[Array, "B T N H"], Float[Array, "n B K G query_size 1"]]:
    """(result, logarithm of the sum of the exponentials of each query's logits)."""
    batch, length = query.shape[:2]
    grouped = _grouped(query, blocks[0].num_kv_heads)
    queries = jax.tree.map(lambda x: _chunks(x, plan.query_size), (grouped, query_metadata))
    if plan.key_size is None:
        out, log_sum = _map(lambda chunk: _dense(chunk[0], chunk[1], blocks), queries)
    else:
        stacks = [_chunk_block(b, plan.key_size) for b in blocks]  # type: ignore[arg-type]
        out, log_sum = _map(lambda chunk: _online(chunk[0], chunk[1], stacks), queries)
    joined = jnp.einsum("nbkgth->bntkgh", out).reshape(batch, -1, *query.shape[2:])
    return joined[:, :length].astype(query.dtype), log_sum


def _map(function: Any, stacked: Any) -> Any:
    """`lax.map`, without a loop around a single call."""
    if jax.tree.leaves(stacked)[0].shape[0] > 1:
        return jax.lax.map(function, stacked)
    out = function(jax.tree.map(lambda x: x[0], stacked))
    return jax.tree.map(lambda x: x[None], out)


def _dense(
    grouped: Float[Array, "B T K G H"],
    metadata: TokenMetadata | None,
    blocks: Sequence[KeyBlock | MergedKeyBlock],
) -> tuple[Float[Array, "B K G T H"], Float[Array, "B K G T 1"]]:
    # The blocks share a softmax without concatenation: a cache is read in place.
    logits = [_logits(grouped, block, metadata) for block in blocks]
    peaks = [x.max(axis=-1, keepdims=True) for x in logits]
    peak = functools.reduce(jnp.maximum, peaks)
    pairs = [_sums(jnp.exp(x - peak), block) for x, block in zip(logits, blocks, strict=True)]
    total, out = (functools.reduce(jnp.add, sums) for sums in zip(*pairs, strict=True))
    if all(block.masked for block in blocks):
        # A query that sees no key: its masked logits are the peak, and count for nothing. A NaN
        # is not below anything, and stays.
        total = jnp.where(peak <= MASKED, 0.0, total)
    return _normalised(peak, total, out)


def _online(
    grouped: Float[Array, "B T K G H"],
    metadata: TokenMetadata | None,
    stacks: Sequence[KeyBlock],
) -> tuple[Float[Array, "B K G T H"], Float[Array, "B K G T 1"]]:
    """The softmax over chunks of keys, one after the other."""
    batch, size, kv_heads, group, dim = grouped.shape

    def step(
        state: tuple[Array, Array, Array], block: KeyBlock
    ) -> tuple[tuple[Array, Array, Array], None]:
        peak, total, out = state
        logits = _logits(grouped, block, metadata)
        new_peak = jnp.maximum(peak, logits.max(axis=-1, keepdims=True))
        weights = jnp.where(logits <= MASKED, 0.0, jnp.exp(logits - new_peak))
        correction = jnp.exp(peak - new_peak)
        total = total * correction + weights.sum(axis=-1, keepdims=True)
        return (new_peak, total, out * correction + _weighted(weights, block)), None

    state = (
        jnp.full((batch, kv_heads, group, size, 1), MASKED, jnp.float32),
        jnp.zeros((batch, kv_heads, group, size, 1), jnp.float32),
        jnp.zeros((batch, kv_heads, group, size, dim), jnp.float32),
    )
    for stack in stacks:
        state, _ = jax.lax.scan(step, state, stack)
    return _normalised(*state)


def _normalised(peak: Array, total: Array, out: Array) -> tuple[Array, Array]:
    """(weighted means, logarithms of sums); zeros, and more than any logit, where total is 0."""
    unseen = total == 0  # NaN is not zero and must remain visible
    safe = jnp.where(unseen, 1.0, total)
    return jnp.where(unseen, 0.0, out / safe), jnp.where(unseen, -MASKED, peak + jnp.log(safe))


# ----------------------------------------------------------------------------- logits


def _grouped(query: Array, num_kv_heads: int) -> Float[Array, "B T K G H"]:
    """Queries by the key head they share, scaled."""
    *lead, heads, dim = query.shape
    return (query * dim**-0.5).reshape(*lead, num_kv_heads, heads // num_kv_heads, dim)


def _logits(
    grouped: Float[Array, "B T K G H"],
    block: KeyBlock | MergedKeyBlock,
    query_metadata: TokenMetadata | None,
) -> Float[Array, "B K G T S"]:
    if isinstance(block, MergedKeyBlock):
        batch, length, kv_heads, group, _ = grouped.shape
        merged = einops.rearrange(grouped, "b t k g h -> (b k) (g t) h")
        logits = jnp.einsum(
            "nqh,nhs->nqs", whole_vectors(merged), block.key, preferred_element_type=jnp.float32
        )
        logits = logits[:, : group * length].reshape(batch, kv_heads, group, length, -1)
    else:
        batch, length, kv_heads, group, _ = grouped.shape
        # Batch axes first: another order makes XLA's CPU backend transpose the logits.
        first = einops.rearrange(grouped, "b t k g h -> b k (g t) h")
        logits = jnp.einsum(
            "bkqh,bskh->bkqs", first, block.key, preferred_element_type=jnp.float32
        ).reshape(batch, kv_heads, group, length, -1)
    mask = block.mask(query_metadata)
    return logits if mask is None else jnp.where(mask[:, None, None], logits, MASKED)


def _sums(
    weights: Float[Array, "B K G T S"], block: KeyBlock | MergedKeyBlock
) -> tuple[Float[Array, "B K G T 1"], Float[Array, "B K G T H"]]:
    """Sums of the weights, and of the values times their weights; float32."""
    spare = block.value.shape[-1] % LANES > 0 and platform_in_use() == "tpu"
    if spare and isinstance(block, KeyBlock):
        # As a value of 1 in lanes that are padding otherwise: sums over the lanes are slow.
        ones = jnp.ones_like(block.value[..., :1])
        with_ones = jnp.concatenate([block.value, ones], axis=-1)
        sums = _weighted(weights, block.replace(value=with_ones))  # type: ignore[attr-defined]
        return sums[..., -1:], sums[..., :-1]
    return weights.sum(axis=-1, keepdims=True), _weighted(weights, block)


def _weighted(
    weights: Float[Array, "B K G T S"], block: KeyBlock | MergedKeyBlock
) -> Float[Array, "B K G T H"]:
    """Sums of values, float32."""
    weights = weights.astype(block.value.dtype)
    if isinstance(block, MergedKeyBlock):
        merged = einops.rearrange(weights, "b k g t s -> (b k) (g t) s")
        out = jnp.einsum(
            "nqs,nsh->nqh", whole_vectors(merged), block.value, preferred_element_type=jnp.float32
        )
        return out[:, : merged.shape[1]].reshape(*weights.shape[:-1], -1)
    first = einops.rearrange(weights, "b k g t s -> b k (g t) s")
    out = jnp.einsum("bkqs,bskh->bkqh", first, block.value, preferred_element_type=jnp.float32)
    return out.reshape(*weights.shape[:-1], -1)


# ----------------------------------------------------------------------------- backward


def _attend_forward(
    plan: Plan, query: Array, blocks: Sequence[KeyBlock], query_metadata: TokenMetadata | None
) -> tuple[Array, Any]:
    found = forward(plan, query, blocks, query_metadata)
    out, log_sum = checkpoint_name(found, ATTENTION_OUTPUT)
    return out, (query, blocks, query_metadata, out, log_sum)


def _attend_backward(plan: Plan, kept: Any, gradient: Float[Array, "B T N H"]) -> tuple[Any, ...]:
    """Gradients of queries, keys and values, from recomputed weights.

    As in FlashAttention-2 (Dao, 2023): neither logits nor weights are kept by the forward pass.
    """
    query, blocks, query_metadata, out, log_sum = kept
    batch, length = query.shape[:2]
    kv_heads = blocks[0].num_kv_heads
    delta = (gradient.astype(jnp.float32) * out).sum(axis=-1, keepdims=True)
    split = functools.partial(einops.rearrange, pattern="b t (k g) h -> b t k g h", k=kv_heads)
    stacks = [_chunk_block(b, plan.key_size or b.num_keys) for b in blocks]
    parts = (_grouped(query, kv_heads), split(gradient), split(delta), query_metadata)
    chunks = jax.tree.map(lambda x: _chunks(x, plan.query_size), parts)

    def of_queries(sums: list[Any], chunk: tuple[Any, ...]) -> tuple[list[Any], Array]:
        """Adds a chunk of queries to the sums [n, B, K, S, H] of keys and values."""
        (grouped, grad, delta, metadata), log_sum = chunk
        queries, grad = (einops.rearrange(x, "b t k g h -> b k (g t) h") for x in (grouped, grad))
        delta = jnp.einsum("btkgh->bkgth", delta)

        def rows(x: Float[Array, "B K G T 1"]) -> Float[Array, "B K 1 GT"]:
            return x.reshape(*x.shape[:2], 1, -1)

        def of_keys(dq: Array, items: tuple[KeyBlock, Array, Array]) -> tuple[Array, Any]:
            block, dk, dv = items
            product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
            # Keys by queries: the sums of both gradients of keys then run along a contiguous axis.
            logits = product("bskh,bkqh->bksq", block.key, queries)
            # Not a transposed mask: a CPU would read it against the order of its memory.
            mask = block.mask(metadata, keys_first=True)
            if mask is not None:
                shape = (*logits.shape[:3], grouped.shape[3], -1)
                seen = mask[:, None, :, None]
                logits = jnp.where(seen, logits.reshape(shape), MASKED).reshape(logits.shape)
            weights = jnp.exp(logits - rows(log_sum))
            slope = product("bskh,bkqh->bksq", block.value, grad)
            slope = (weights * (slope - rows(delta))).astype(query.dtype)
            weights = weights.astype(query.dtype)
            dv = dv + product("bksq,bkqh->bksh", weights, grad)
            dk = dk + product("bksq,bkqh->bksh", slope, queries)
            # The other order of axes is a product that XLA's CPU backend lacks in bfloat16.
            return dq + product("bskh,bksq->bkhq", block.key, slope), (dk, dv)

        dq = jnp.zeros(queries.swapaxes(2, 3).shape, jnp.float32)
        new = []
        for stack, of_block in zip(stacks, sums, strict=True):
            dq, added = jax.lax.scan(of_keys, dq, (stack, *of_block))
            new.append(added)
        return new, einops.rearrange(dq, "b k h (g t) -> b t (k g) h", t=grouped.shape[1])

    zeros = [(jnp.zeros_like(s.key, jnp.float32).swapaxes(2, 3),) * 2 for s in stacks]
    sums, dq = jax.lax.scan(of_queries, zeros, (chunks, log_sum))
    dq = jnp.moveaxis(dq, 0, 1).reshape(batch, -1, *query.shape[2:])[:, :length]
    gradients = []
    for block, pair in zip(blocks, sums, strict=True):
        dk, dv = (einops.rearrange(x, "n b k s h -> b (n s) k h") for x in pair)
        keys = block.num_keys
        gradients.append(
            block.replace(
                key=dk[:, :keys].astype(block.key.dtype),
                value=dv[:, :keys].astype(block.value.dtype),
                metadata=None,
                valid=None,
            )
        )
    return (dq * query.shape[-1] ** -0.5).astype(query.dtype), gradients, None


attend.defvjp(_attend_forward, _attend_backward)


# ----------------------------------------------------------------------------- chunks


def pad_axis(x: Array, axis: int, multiple: int) -> Array:
    """Pads x with zeros to a multiple along an axis."""
    padding = [(0, 0)] * x.ndim
    padding[axis] = (0, -x.shape[axis] % multiple)
    return jnp.pad(x, padding)


def _chunks(x: Array, size: int) -> Array:
    """[B, n * size, ...] -> [n, B, size, ...]."""
    x = pad_axis(x, 1, size)
    return jnp.moveaxis(x.reshape(x.shape[0], -1, size, *x.shape[2:]), 1, 0)


def _chunk_block(block: KeyBlock, size: int) -> KeyBlock:
    """A block as a stack of chunks; the padding of the last one is made invisible."""
    length = block.num_keys
    size = min(size, length)
    if not block.masked and length % size:
        block = block.replace(valid=jnp.ones(block.key.shape[:2], bool))  # type: ignore[attr-defined]
    return jax.tree.map(lambda x: _chunks(x, size), block)

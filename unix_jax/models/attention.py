"""Rotary positions, the mask rule, and joint attention behind one entry.

The mask is never an input: every token carries O(N) metadata and the rule is evaluated where the
logits are, densely (`xla`), densely for a block of queries at a time (`blocked`), or for blocks of
queries and keys (`chunked`, and `pallas` on a TPU).

Letters: B batch, T queries, S keys, N query heads, K key-value heads, G = N / K queries that
share a key head, H head_dim.
"""

import functools
from collections.abc import Sequence
from typing import Literal, Self, get_args

import einops
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from unix_jax.models.flash_attention import MASKED as _MASKED
from unix_jax.models.flash_attention import flash_attention
from unix_jax.models.mask import FULL, TokenMetadata, may_attend

Implementation = Literal["auto", "xla", "blocked", "chunked", "pallas"]


@struct.dataclass
class KeyBlock:
    """Keys and values [B, S, K, H] with who may see them.

    `metadata` (of these keys) asks for the mask rule; `valid` [B, S] marks the keys that every
    query of the row sees, as those of a cache; with neither, every query sees every key.
    """

    key: Float[Array, "B S K H"]
    value: Float[Array, "B S K H"]
    metadata: TokenMetadata | None = None
    valid: Bool[Array, "B S"] | None = None

    @property
    def masked(self) -> bool:
        """Whether some key may be hidden from some query."""
        return self.metadata is not None or self.valid is not None

    def mask(self, query: TokenMetadata | None) -> Bool[Array, "B #T S"] | None:
        """Visibility of these keys; the query axis has size 1 where it does not matter."""
        if self.metadata is not None:
            if query is None:
                raise ValueError(
                    "query metadata: expected with keys that carry metadata, found None"
                )
            return may_attend(query, self.metadata)
        return None if self.valid is None else self.valid[:, None, :]


@struct.dataclass
class MergedKeyBlock:
    """Keys [B*K, H, S] and values [B*K, S, H] of a merged cache; `valid` [B, S] as in `KeyBlock`.

    One merged batch axis, with the contracted axes where matrix products want them. `slot` is
    where new tokens are written before the block is read, None for a block that is only read.
    """

    key: Float[Array, "B*K H S"]
    value: Float[Array, "B*K S H"]
    valid: Bool[Array, "B S"]
    slot: Int[Array, ""] | None = None

    def write(self, key: Float[Array, "B N K H"], value: Float[Array, "B N K H"]) -> Self:
        """The block with N new tokens at `slot`."""
        assert self.slot is not None
        new_key = einops.rearrange(key, "b n k h -> (b k) h n").astype(self.key.dtype)
        new_value = einops.rearrange(value, "b n k h -> (b k) n h").astype(self.value.dtype)
        update = jax.lax.dynamic_update_slice_in_dim
        return self.replace(  # type: ignore[attr-defined]
            key=update(self.key, new_key, self.slot, 2),
            value=update(self.value, new_value, self.slot, 1),
        )

    masked = True

    def plain(self) -> KeyBlock:
        """The same keys in the order of `KeyBlock`."""
        batch = self.valid.shape[0]
        return KeyBlock(
            key=einops.rearrange(self.key, "(b k) h s -> b s k h", b=batch),
            value=einops.rearrange(self.value, "(b k) s h -> b s k h", b=batch),
            valid=self.valid,
        )


def rope_angles(
    position: Int[Array, "B N"], head_dim: int, theta: float
) -> tuple[Float[Array, "B N H/2"], Float[Array, "B N H/2"]]:
    """(cosines, sines) of the rotary angles, float32."""
    exponent = jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim
    angles = position.astype(jnp.float32)[..., None] / (theta**exponent)
    return jnp.cos(angles), jnp.sin(angles)


def apply_rope(
    x: Float[Array, "B T heads H"], angles: tuple[Float[Array, "B T H/2"], Float[Array, "B T H/2"]]
) -> Float[Array, "B T heads H"]:
    """Rotates the halves of the last axis (the rotate-half convention of Llama), in float32."""
    cos, sin = (a[:, :, None, :] for a in angles)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)


def attention(
    query: Float[Array, "B T N H"],
    blocks: Sequence[KeyBlock | MergedKeyBlock],
    query_metadata: TokenMetadata | None = None,
    *,
    implementation: Implementation = "auto",
    chunk_size: int | None = None,
) -> Float[Array, "B T N H"]:
    """Softmax attention of `query` over all keys of `blocks` together, scaled by 1 / sqrt(H).

    Logits and softmax are float32. A query that sees no key yields zeros.

    Args:
      query: rotated queries; N must be a multiple of the blocks' K.
      blocks: one or more sets of keys; they share one softmax.
      query_metadata: needed when a block carries metadata.
      implementation: `xla` forms [B, N, T, S] logits; `blocked` forms them for `chunk_size`
        queries at a time, which stay in a CPU's caches; `chunked` is the exact online softmax
        over blocks of at most `chunk_size` queries and keys, with O(T + S) memory; `pallas` is the
        same as TPU kernels, see `flash_attention` (interpreted elsewhere: for tests). `auto` takes
        `blocked` on a CPU, elsewhere `xla` up to 8,192 keys and `chunked` beyond.
      chunk_size: queries (and keys) of a block: 256 for `blocked`, 512 for `chunked` and `pallas`
        by default.

    Raises:
      ValueError: another implementation, or N not a multiple of K.
    """
    num_heads, num_kv_heads = query.shape[2], _num_kv_heads(blocks[0])
    if num_heads % num_kv_heads:
        raise ValueError(
            f"query heads: expected a multiple of {num_kv_heads} key heads, found {num_heads}"
        )
    if implementation == "auto":
        implementation = _chosen(sum(_num_keys(block) for block in blocks))
    if implementation == "xla":
        return _attend_dense(query, blocks, query_metadata)
    if implementation == "blocked":
        return _attend_blocked(query, blocks, query_metadata, chunk_size or 256)
    if implementation == "chunked":
        return _attend_chunked(query, blocks, query_metadata, chunk_size or 512)
    if implementation == "pallas":
        return _attend_pallas(query, blocks, query_metadata, chunk_size or 512)
    raise ValueError(
        f"implementation: expected one of {get_args(Implementation)}, found {implementation!r}"
    )


def _platform() -> str:
    """Of the mesh, if there is one: a program may be compiled for devices that are not here."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def _chosen(keys: int) -> Implementation:
    if _platform() == "cpu":
        return "blocked"
    return "xla" if keys <= 8192 else "chunked"


def _num_keys(block: KeyBlock | MergedKeyBlock) -> int:
    return block.key.shape[2 if isinstance(block, MergedKeyBlock) else 1]


def _num_kv_heads(block: KeyBlock | MergedKeyBlock) -> int:
    if isinstance(block, MergedKeyBlock):
        return block.key.shape[0] // block.valid.shape[0]
    return block.key.shape[2]


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
            "nqh,nhs->nqs", merged, block.key, preferred_element_type=jnp.float32
        ).reshape(batch, kv_heads, group, length, -1)
        mask: Array | None = block.valid[:, None, :]
    else:
        batch, length, kv_heads, group, _ = grouped.shape
        # Batch axes first: another order makes XLA's CPU backend transpose the logits.
        first = einops.rearrange(grouped, "b t k g h -> b k (g t) h")
        logits = jnp.einsum(
            "bkqh,bskh->bkqs", first, block.key, preferred_element_type=jnp.float32
        ).reshape(batch, kv_heads, group, length, -1)
        mask = block.mask(query_metadata)
    return logits if mask is None else jnp.where(mask[:, None, None], logits, _MASKED)


def _weighted(
    weights: Float[Array, "B K G T S"], block: KeyBlock | MergedKeyBlock
) -> Float[Array, "B K G T H"]:
    """Sums of values, float32."""
    weights = weights.astype(block.value.dtype)
    if isinstance(block, MergedKeyBlock):
        merged = einops.rearrange(weights, "b k g t s -> (b k) (g t) s")
        out = jnp.einsum("nqs,nsh->nqh", merged, block.value, preferred_element_type=jnp.float32)
        return out.reshape(*weights.shape[:-1], -1)
    first = einops.rearrange(weights, "b k g t s -> b k (g t) s")
    out = jnp.einsum("bkqs,bskh->bkqh", first, block.value, preferred_element_type=jnp.float32)
    return out.reshape(*weights.shape[:-1], -1)


def _divided(out: Array, total: Array) -> Array:
    """Weighted sums over the sum of weights; zeros where no key was seen.

    One, not a tiny number, stands for an empty sum: the gradient would overflow to NaN.
    """
    return out / jnp.where(total > 0, total, 1.0)


def _attend_dense(
    query: Array,
    blocks: Sequence[KeyBlock | MergedKeyBlock],
    query_metadata: TokenMetadata | None,
) -> Array:
    grouped = _grouped(query, _num_kv_heads(blocks[0]))
    # The blocks share a softmax without being joined: a cache is read where it lies.
    logits = [_logits(grouped, block, query_metadata) for block in blocks]
    peaks = [jax.lax.stop_gradient(x).max(axis=-1, keepdims=True) for x in logits]
    # No gradient passes through it: a softmax does not depend on what is subtracted.
    peak = functools.reduce(jnp.maximum, peaks)
    weights = [jnp.exp(x - peak) for x in logits]
    total = functools.reduce(jnp.add, [w.sum(axis=-1, keepdims=True) for w in weights])
    sums = [_weighted(w, block) for w, block in zip(weights, blocks, strict=True)]
    out = functools.reduce(jnp.add, sums)
    if all(block.masked for block in blocks):
        # A query that sees no key: its masked logits are the peak, and count for nothing.
        total, out = (jnp.where(peak > _MASKED, x, 0.0) for x in (total, out))
    return jnp.einsum("bkgth->btkgh", _divided(out, total)).reshape(query.shape).astype(query.dtype)


def _attend_blocked(
    query: Array,
    blocks: Sequence[KeyBlock | MergedKeyBlock],
    query_metadata: TokenMetadata | None,
    chunk_size: int,
) -> Array:
    batch, length = query.shape[:2]
    if length <= chunk_size:
        return _attend_dense(query, blocks, query_metadata)
    size = -(-length // -(-length // chunk_size))  # blocks of equal length, little padding
    queries = jax.tree.map(lambda x: _chunks(x, size), (query, query_metadata))
    attend = jax.checkpoint(lambda chunk: _attend_dense(chunk[0], blocks, chunk[1]))
    out = jnp.moveaxis(jax.lax.map(attend, queries), 0, 1)
    return out.reshape(batch, -1, *query.shape[2:])[:, :length]


# ----------------------------------------------------------------------------- chunked


def _pad_axis(x: Array, axis: int, multiple: int) -> Array:
    padding = [(0, 0)] * x.ndim
    padding[axis] = (0, -x.shape[axis] % multiple)
    return jnp.pad(x, padding)


def _chunks(x: Array, size: int) -> Array:
    """[B, n * size, ...] -> [n, B, size, ...]."""
    x = _pad_axis(x, 1, size)
    return jnp.moveaxis(x.reshape(x.shape[0], -1, size, *x.shape[2:]), 1, 0)


def _chunk_block(block: KeyBlock, size: int) -> KeyBlock:
    """A block as a stack of chunks; the padding of the last one is made invisible."""
    length = block.key.shape[1]
    if block.metadata is None and block.valid is None and length % size:
        block = block.replace(valid=jnp.ones(block.key.shape[:2], bool))  # type: ignore[attr-defined]
    return jax.tree.map(lambda x: _chunks(x, size), block)


def _attend_chunked(
    query: Array,
    blocks: Sequence[KeyBlock | MergedKeyBlock],
    query_metadata: TokenMetadata | None,
    chunk_size: int,
) -> Array:
    length = query.shape[1]
    plain = [b.plain() if isinstance(b, MergedKeyBlock) else b for b in blocks]
    grouped = _grouped(query, _num_kv_heads(plain[0]))
    query_size = min(chunk_size, length)
    stacks = [_chunk_block(b, min(chunk_size, b.key.shape[1])) for b in plain]
    queries = jax.tree.map(lambda x: _chunks(x, query_size), (grouped, query_metadata))

    # Both levels are rematerialised, so that the backward pass holds no N x N array either.
    @jax.checkpoint
    def attend_chunk(chunk: tuple[Array, TokenMetadata | None]) -> Array:
        q, metadata = chunk
        batch, size, kv_heads, group, dim = q.shape

        @jax.checkpoint
        def step(
            state: tuple[Array, Array, Array], block: KeyBlock
        ) -> tuple[tuple[Array, Array, Array], None]:
            peak, total, out = state
            logits = _logits(q, block, metadata)
            new_peak = jnp.maximum(peak, logits.max(axis=-1, keepdims=True))
            weights = jnp.where(logits > _MASKED, jnp.exp(logits - new_peak), 0.0)
            correction = jnp.exp(peak - new_peak)
            total = total * correction + weights.sum(axis=-1, keepdims=True)
            return (new_peak, total, out * correction + _weighted(weights, block)), None

        state = (
            jnp.full((batch, kv_heads, group, size, 1), _MASKED, jnp.float32),
            jnp.zeros((batch, kv_heads, group, size, 1), jnp.float32),
            jnp.zeros((batch, kv_heads, group, size, dim), jnp.float32),
        )
        for stack in stacks:
            state, _ = jax.lax.scan(step, state, stack)
        _, total, out = state
        return jnp.einsum("bkgth->btkgh", _divided(out, total))

    out = jax.lax.map(attend_chunk, queries)
    out = jnp.moveaxis(out, 0, 1).reshape(query.shape[0], -1, *query.shape[2:])
    return out[:, :length].astype(query.dtype)


# ----------------------------------------------------------------------------- pallas


def _attend_pallas(
    query: Array,
    blocks: Sequence[KeyBlock | MergedKeyBlock],
    query_metadata: TokenMetadata | None,
    chunk_size: int,
) -> Array:
    scaled = jnp.einsum("btnh->bnth", query * query.shape[-1] ** -0.5)
    outs, sums = [], []
    for block in blocks:
        plain = block.plain() if isinstance(block, MergedKeyBlock) else block
        out, log_sum = flash_attention(
            scaled,
            jnp.einsum("bskh->bksh", plain.key),
            jnp.einsum("bskh->bksh", plain.value),
            *_explicit(plain, query, query_metadata),
            block_size=chunk_size,
            interpret=_platform() != "tpu",
        )
        outs.append(out)
        sums.append(log_sum[..., None])
    # The blocks share a softmax: each counts for as much as its logits' exponentials.
    peak = jax.lax.stop_gradient(functools.reduce(jnp.maximum, sums))
    shares = [jnp.exp(x - peak) for x in sums]
    total = functools.reduce(jnp.add, shares)
    out = functools.reduce(jnp.add, [w * x for w, x in zip(shares, outs, strict=True)]) / total
    return jnp.einsum("bnth->btnh", out).astype(query.dtype)


def _explicit(
    block: KeyBlock, query: Array, query_metadata: TokenMetadata | None
) -> tuple[TokenMetadata, TokenMetadata]:
    """Metadata under which the rule says what the block says: of one bidirectional split."""
    if block.metadata is not None:
        if query_metadata is None:
            raise ValueError("query metadata: expected with keys that carry metadata, found None")
        return query_metadata, block.metadata
    (batch, length), keys = query.shape[:2], block.key.shape[1]
    valid = jnp.ones((batch, keys), jnp.int32) if block.valid is None else block.valid.astype(int)

    def one_split(segment: Array) -> TokenMetadata:
        zeros = jnp.zeros_like(segment)
        return TokenMetadata(zeros, segment, zeros, zeros, jnp.full_like(segment, FULL))

    return one_split(jnp.ones((batch, length), jnp.int32)), one_split(valid)

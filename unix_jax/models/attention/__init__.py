"""Joint attention with one entry point.

The mask is never an input: every token has O(N) metadata and the rule is evaluated where the logits
are computed, densely (`xla`), densely for a block of queries at a time (`blocked`), or for blocks
of queries and keys (`chunked`, and `pallas` on a TPU). Only `cudnn` materialises it.

Letters: B batch, T queries, S keys, N query heads, K key-value heads, G = N / K queries that share
a key head, H head_dim.
"""

import functools
from collections.abc import Sequence
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from unix_jax.models.attention.cudnn_attention import cudnn_attention, has_cudnn_attention
from unix_jax.models.attention.exact_attention import Plan, attend, attend_in_turn, forward
from unix_jax.models.attention.key_blocks import KeyBlock, MergedKeyBlock
from unix_jax.models.attention.mask import FULL, TokenMetadata
from unix_jax.sharding import platform_in_use, rows_of_a_device

# Of one head at a time, for `blocked`: several blocks cost more than a larger one, since each adds
# to the gradients of all keys.
_BLOCKED_LOGITS = 600_000
# Bytes, about the size of a TPU's vector memory.
_LOGITS_ON_CHIP = 2**27

Implementation = Literal["auto", "xla", "blocked", "chunked", "cudnn", "pallas"]


def attention(
    query: Float[Array, "B T N H"],
    blocks: Sequence[KeyBlock | MergedKeyBlock],
    query_metadata: TokenMetadata | None = None,
    *,
    implementation: Implementation = "auto",
    chunk_size: int | None = None,
) -> Float[Array, "B T N H"]:
    """Softmax attention of `query` over all keys of `blocks` together, scaled by 1 / sqrt(H).

    Logits and softmax are float32. A fully masked query yields zeros.

    Args:
      query: rotated queries; N must be a multiple of the blocks' K.
      blocks: one or more sets of keys; they share one softmax.
      query_metadata: required if a block has metadata.
      implementation: `xla` forms [B, N, T, S] logits; `blocked` forms them for `chunk_size`
        queries at a time, which stay in a CPU's caches; `chunked` is the exact online softmax
        over blocks of at most `chunk_size` queries and keys, with O(T + S) memory; `pallas` is the
        same as TPU kernels (interpreted elsewhere: for tests): JAX's own where its masks suffice,
        see `splash_attention`, else `flash_attention`; `cudnn` is the fused kernel of NVIDIA GPUs,
        for 16-bit floats. `auto` takes `blocked` on a CPU; on a GPU `cudnn` where it applies and
        the queries are no single tokens; on a TPU `pallas` where that is JAX's kernel, as for rows
        in slots and for images with a cached context; else `xla` up to 8,192 keys, one
        row of a device at a time if the logits of all are too large for the memory on the chip,
        and `chunked` beyond.
      chunk_size: queries (and keys) of a block; by default 512 for `chunked` and `pallas`, and for
        `blocked` 256 or more, if the keys are few.

    Raises:
      ValueError: another implementation, `pallas` on a GPU, `cudnn` with float32, or N not a
        multiple of K.
    """
    num_heads, num_kv_heads = query.shape[2], blocks[0].num_kv_heads
    if num_heads % num_kv_heads:
        raise ValueError(
            f"query heads: expected a multiple of {num_kv_heads} key heads, found {num_heads}"
        )
    in_turn = implementation == "auto" and platform_in_use() == "tpu"
    if implementation == "auto":
        implementation = _chosen(query, blocks)
    if implementation == "cudnn":
        return cudnn_attention(query, _plain(blocks), query_metadata)
    if implementation == "pallas":
        return _attend_pallas(query, blocks, query_metadata, chunk_size or 512)
    blocks = _valid(blocks)
    length = query.shape[1]
    if implementation == "xla":
        plan = Plan(length, None)
    elif implementation == "blocked":
        # Blocks of equal length, little padding.
        keys = sum(block.num_keys for block in blocks)
        size = chunk_size or max(256, _BLOCKED_LOGITS // keys)
        plan = Plan(-(-length // -(-length // size)), None)
    elif implementation == "chunked":
        plan = Plan(min(chunk_size or 512, length), chunk_size or 512)
        blocks = _plain(blocks)
    else:
        raise ValueError(
            f"implementation: expected one of {get_args(Implementation)}, found {implementation!r}"
        )
    if any(isinstance(b, MergedKeyBlock) for b in blocks):
        return forward(plan, query, blocks, query_metadata)[0]
    if in_turn and _exceed_chip(query, blocks):
        return attend_in_turn(plan, query, _plain(blocks), query_metadata)
    return attend(plan, query, blocks, query_metadata)


def _exceed_chip(query: Array, blocks: Sequence[KeyBlock | MergedKeyBlock]) -> bool:
    """Whether the logits of a device's rows are too large together."""
    batch, length, heads, _ = query.shape
    rows, keys = rows_of_a_device(batch), sum(b.num_keys for b in blocks)
    return rows > 1 and 4 * rows * heads * length * keys > _LOGITS_ON_CHIP


def preferred_multiple(head_dim: int, implementation: Implementation) -> int:
    """A number of queries and keys of which multiples are computed without padding."""
    if implementation not in ("auto", "pallas") or platform_in_use() != "tpu" or head_dim % 128:
        return 1
    return 128


def _chosen(query: Array, blocks: Sequence[KeyBlock | MergedKeyBlock]) -> Implementation:
    platform = platform_in_use()
    if platform == "cpu":
        return "blocked"
    if any(isinstance(b, MergedKeyBlock) and b.metadata is not None for b in blocks):
        return "xla"  # a few new tokens, which read the cache in place
    # A single token reads the cache in place, so no kernel is needed.
    if platform == "gpu" and query.shape[1] > 1 and has_cudnn_attention(query):
        return "cudnn"
    if platform == "tpu" and query.shape[1] > 1 and _takes_splash(query, blocks):
        return "pallas"
    return "xla" if sum(block.num_keys for block in blocks) <= 8192 else "chunked"


def _plain(blocks: Sequence[KeyBlock | MergedKeyBlock]) -> list[KeyBlock]:
    return [b.plain() if isinstance(b, MergedKeyBlock) else b for b in blocks]


def _valid(blocks: Sequence[KeyBlock | MergedKeyBlock]) -> list[KeyBlock | MergedKeyBlock]:
    return [b.with_valid() if isinstance(b, KeyBlock) else b for b in blocks]


# ----------------------------------------------------------------------------- pallas


def _takes_splash(query: Array, blocks: Sequence[KeyBlock | MergedKeyBlock]) -> bool:
    from unix_jax.models.attention.splash_attention import has_splash_attention

    return has_splash_attention(query, blocks)


def _attend_pallas(
    query: Array,
    blocks: Sequence[KeyBlock | MergedKeyBlock],
    query_metadata: TokenMetadata | None,
    chunk_size: int,
) -> Array:
    # Takes a tenth of a second, so it is imported only on request.
    from unix_jax.models.attention.flash_attention import flash_attention
    from unix_jax.models.attention.splash_attention import splash_attention

    platform = platform_in_use()
    if platform not in ("tpu", "cpu"):
        raise ValueError(f"implementation: pallas has kernels for TPUs, found {platform}")
    if _takes_splash(query, blocks):
        return splash_attention(query, _plain(blocks), query_metadata, interpret=platform == "cpu")
    blocks = _valid(blocks)
    scaled = jnp.einsum("btnh->bnth", query * query.shape[-1] ** -0.5)
    outs, sums = [], []
    for plain in _plain(blocks):
        out, log_sum = flash_attention(
            scaled,
            jnp.einsum("bskh->bksh", plain.key),
            jnp.einsum("bskh->bksh", plain.value),
            *_explicit(plain, query, query_metadata),
            block_size=chunk_size,
            interpret=platform == "cpu",
        )
        outs.append(out)
        sums.append(log_sum[..., None])
    # The blocks share a softmax: each is weighted by the sum of its logits' exponentials.
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
    (batch, length), keys = query.shape[:2], block.num_keys
    valid = jnp.ones((batch, keys), jnp.int32) if block.valid is None else block.valid.astype(int)

    def one_split(segment: Array) -> TokenMetadata:
        zeros = jnp.zeros_like(segment)
        return TokenMetadata(zeros, segment, zeros, zeros, jnp.full_like(segment, FULL))

    return one_split(jnp.ones((batch, length), jnp.int32)), one_split(valid)

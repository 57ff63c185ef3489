"""JAX's splash attention, a maintained TPU kernel, for what its masks can say.

These are a static mask and segment ids: rows in slots (see `slots`), and keys that all queries of
their row see, such as those of a cached context. On other devices the kernel is interpreted, which
is for tests.

Letters: B batch, T queries, S keys, N query heads, K key heads, H head_dim.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel as kernels,
)
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_mask as masks,
)
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from unix_jax.models.attention.exact_attention import pad_axis
from unix_jax.models.attention.key_blocks import KeyBlock, MergedKeyBlock
from unix_jax.models.attention.mask import TokenMetadata
from unix_jax.models.layers import LANES
from unix_jax.models.remat import ATTENTION_OUTPUT
from unix_jax.sharding import attention_axes

# Queries and keys of a block: all logits of one are in a chip's fast memory.
_QUERIES, _KEYS = 640, 1408
# What a block costs besides its own work, in positions.
_OVERHEAD = 64


def has_splash_attention(query: Array, blocks: Sequence[KeyBlock | MergedKeyBlock]) -> bool:
    """Whether the kernel can say which of the keys each query sees."""
    if query.shape[-1] % LANES:
        return False
    if len(blocks) == 1 and isinstance(blocks[0], KeyBlock) and blocks[0].metadata is not None:
        return blocks[0].causal_from is not None
    if any(block.metadata is not None for block in blocks):
        return False
    # All keys of a block with `valid` may be invalid. The kernel has no answer if there are no
    # others.
    return any(not block.masked for block in blocks) or all(block.valid is None for block in blocks)


def splash_attention(
    query: Float[Array, "B T N H"],
    blocks: Sequence[KeyBlock],
    query_metadata: TokenMetadata | None,
    *,
    interpret: bool = False,
) -> Float[Array, "B T N H"]:
    """Attention over the concatenated keys of all blocks, which `has_splash_attention` takes."""
    key, value = (
        jnp.concatenate([getattr(b, name) for b in blocks], axis=1) for name in ("key", "value")
    )
    first = blocks[0]
    if first.metadata is not None:
        if query_metadata is None:
            raise ValueError("query metadata: expected with keys that carry metadata, found None")
        of_queries, of_keys = query_metadata.segment, first.metadata.segment
    else:
        of_queries = jnp.ones(query.shape[:2], jnp.int32)
        parts = [block.with_valid() for block in blocks]
        of_keys = jnp.concatenate(
            [
                jnp.ones(b.key.shape[:2], jnp.int32) if b.valid is None else b.valid.astype(int)
                for b in parts
            ],
            axis=1,
        )
    run = functools.partial(_one_device, causal_from=first.causal_from, interpret=interpret)
    axes = attention_axes(query.shape[0], query.shape[2], key.shape[2])
    if axes is not None:
        of_query = PartitionSpec(axes.batch, None, axes.heads)
        of_key, tokens = PartitionSpec(axes.batch, None, axes.kv_heads), PartitionSpec(axes.batch)
        run = jax.shard_map(
            run, in_specs=(of_query, of_key, of_key, tokens, tokens), out_specs=of_query,
            check_vma=False,
        )  # fmt: skip
    return run(query, key, value, of_queries, of_keys)


def _one_device(
    query: Array,
    key: Array,
    value: Array,
    of_queries: Int[Array, "B T"],
    of_keys: Int[Array, "B S"],
    *,
    causal_from: int | None,
    interpret: bool,
) -> Array:
    length, heads, dim = query.shape[1:]
    block_q, block_k = _block(length, _QUERIES), _block(key.shape[1], _KEYS)
    # Padding has segment 0 on both sides.
    query, of_queries = (pad_axis(x, 1, block_q) for x in (query * dim**-0.5, of_queries))
    key, value, of_keys = (pad_axis(x, 1, block_k) for x in (key, value, of_keys))
    shape = (query.shape[1], key.shape[1])
    mask = masks.FullMask(shape) if causal_from is None else masks.CausalMask(shape, causal_from)
    kernel = kernels.make_splash_mha(
        masks.MultiHeadMask([mask] * heads),
        block_sizes=kernels.BlockSizes(
            block_q=block_q, block_kv=block_k, block_kv_compute=block_k,
            block_q_dkv=block_q, block_kv_dkv=block_k, block_kv_dkv_compute=block_k,
            # One kernel for all three gradients; it takes the logits once.
            use_fused_bwd_kernel=True,
        ),
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name=ATTENTION_OUTPUT,
        interpret=interpret,
    )  # fmt: skip
    out = jax.vmap(kernel)(
        *(jnp.swapaxes(x, 1, 2) for x in (query, key, value)),
        kernels.SegmentIds(of_queries, of_keys),
    )
    return jnp.swapaxes(out, 1, 2)[:, :length]


def _block(length: int, largest: int) -> int:
    """Blocks of equal length: few, and with little padding."""

    def size(count: int) -> int:
        return -(-length // (count * LANES)) * LANES

    counts = range(-(-length // largest), -(-length // LANES) + 1)
    return size(min(counts, key=lambda count: count * (size(count) + _OVERHEAD)))

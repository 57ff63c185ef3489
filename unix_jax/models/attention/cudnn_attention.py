"""Joint attention by cuDNN: the fused kernel of NVIDIA GPUs, for 16-bit floats.

Logits stay in the chip. The kernel takes the mask as an additive [B, 1, T, S] array of the queries'
type, common to all heads; keys whose valid ones come first need no array, but their number.

Letters: B batch, T queries, S keys, N query heads, K key-value heads, H head_dim.
"""

import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from unix_jax.models.attention.exact_attention import pad_axis
from unix_jax.models.attention.key_blocks import KeyBlock
from unix_jax.models.attention.mask import TokenMetadata
from unix_jax.sharding import attention_axes

# The largest head size on all GPUs that have the kernel (Ampere and later).
_LARGEST_HEAD = 128


def has_cudnn_attention(
    query: Float[Array, "B T N H"] | jax.ShapeDtypeStruct, device: jax.Device | None = None
) -> bool:
    """Whether the kernel takes such queries, and `device` (default: the first here) has it."""
    if query.dtype not in (jnp.bfloat16, jnp.float16):
        return False
    if query.shape[-1] % 8 or query.shape[-1] > _LARGEST_HEAD:
        return False
    device = device or jax.local_devices()[0]
    # AMD's say "gfx942" or the like.
    capability = re.match(r"(\d+)\.\d+$", getattr(device, "compute_capability", ""))
    return device.platform == "gpu" and capability is not None and int(capability.group(1)) >= 8


def cudnn_attention(
    query: Float[Array, "B T N H"],
    blocks: Sequence[KeyBlock],
    query_metadata: TokenMetadata | None,
) -> Float[Array, "B T N H"]:
    """Attention over the concatenated keys of all blocks; zeros for a fully masked query.

    Raises:
      ValueError: queries that are not 16-bit floats. Whatever JAX raises where the kernel cannot
        run: another device, or a head_dim that is not a multiple of 8 or too large.
    """
    if query.dtype not in (jnp.bfloat16, jnp.float16):
        raise ValueError(f"query: expected bfloat16 or float16 for cudnn, found {query.dtype}")
    length = query.shape[1]
    key, value = (
        jnp.concatenate([getattr(b, name) for b in blocks], axis=1) for name in ("key", "value")
    )
    if blocks[-1].lengths is not None and not any(block.masked for block in blocks[:-1]):
        lengths = key.shape[1] - blocks[-1].num_keys + blocks[-1].lengths
        return _with_lengths(query, key, value, lengths)
    mask = _mask(query, blocks, query_metadata)
    if length % 2 or key.shape[1] % 2:
        # Its backward pass requires even lengths.
        if mask is None:
            mask = jnp.ones((query.shape[0], length, key.shape[1]), bool)
        query, key, value, mask = (
            pad_axis(query, 1, 2), pad_axis(key, 1, 2), pad_axis(value, 1, 2),
            pad_axis(pad_axis(mask, 1, 2), 2, 2),
        )  # fmt: skip
    out = _kernel(query, key, value, mask=None if mask is None else mask[:, None])
    if mask is not None:
        # Where all logits are equally low, the kernel's weights are all the same.
        out = jnp.where(mask.any(axis=-1)[..., None, None], out, 0)
    return out[:, :length]


def _with_lengths(
    query: Array, key: Array, value: Array, lengths: Int[Array, " B"]
) -> Float[Array, "B T N H"]:
    """Attention over each row's first `lengths` keys, at least one."""
    length = query.shape[1]
    real = (jnp.arange(key.shape[1]) < lengths[:, None])[..., None, None]
    # What the kernel's backward pass writes for other keys is not defined.
    key, value = (pad_axis(jnp.where(real, x, 0), 1, 2) for x in (key, value))
    out = _kernel(pad_axis(query, 1, 2), key, value, key_value_seq_lengths=lengths)
    return out[:, :length]


def _kernel(query: Array, key: Array, value: Array, **by_row: Array | None) -> Array:
    """The kernel; on a mesh, each device runs it for its own rows and heads.

    by_row: further arguments of `jax.nn.dot_product_attention`, arrays by row.
    """
    given = {name: x for name, x in by_row.items() if x is not None}

    def run(query: Array, key: Array, value: Array, *arrays: Array) -> Array:
        options: dict[str, Any] = {"mask": None} | dict(zip(given, arrays, strict=True))
        return jax.nn.dot_product_attention(query, key, value, implementation="cudnn", **options)

    operands = (query, key, value, *given.values())
    axes = attention_axes(query.shape[0], query.shape[2], key.shape[2])
    if axes is not None:
        of_query = PartitionSpec(axes.batch, None, axes.heads)
        of_key = PartitionSpec(axes.batch, None, axes.kv_heads)
        specs = (of_query, of_key, of_key, *(PartitionSpec(axes.batch) for _ in given))
        run = jax.shard_map(run, in_specs=specs, out_specs=of_query, check_vma=False)
    return run(*operands)


def _mask(
    query: Array, blocks: Sequence[KeyBlock], query_metadata: TokenMetadata | None
) -> Bool[Array, "B T S"] | None:
    """The mask over the concatenated keys; None if nothing is masked."""
    if not any(block.masked for block in blocks):
        return None
    parts = []
    for block in blocks:
        part = block.mask(query_metadata)
        shape = (*query.shape[:2], block.num_keys)
        parts.append(jnp.ones(shape, bool) if part is None else jnp.broadcast_to(part, shape))
    return jnp.concatenate(parts, axis=2)

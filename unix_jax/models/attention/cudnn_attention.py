"""Joint attention by cuDNN: the fused kernel of NVIDIA GPUs, for 16-bit floats.

Logits stay in the chip. The kernel takes the mask as an additive [B, 1, T, S] array of the queries'
type, common to all heads.

Letters: B batch, T queries, S keys, N query heads, K key-value heads, H head_dim.
"""

import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float

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
    mask = _mask(query, blocks, query_metadata)
    if length % 2 or key.shape[1] % 2:
        # Its backward pass requires even lengths.
        if mask is None:
            mask = jnp.ones((query.shape[0], length, key.shape[1]), bool)
        query, key, value, mask = (
            pad_axis(query, 1, 2), pad_axis(key, 1, 2), pad_axis(value, 1, 2),
            pad_axis(pad_axis(mask, 1, 2), 2, 2),
        )  # fmt: skip
    out = _kernel(query, key, value, None if mask is None else mask[:, None])
    if mask is not None:
        # Where all logits are equally low, the kernel's weights are all the same.
        out = jnp.where(mask.any(axis=-1)[..., None, None], out, 0)
    return out[:, :length]


def _kernel(query: Array, key: Array, value: Array, mask: Array | None) -> Array:
    """The kernel; on a mesh, each device runs it for its own rows and heads."""

    def run(query: Array, key: Array, value: Array, *mask: Array) -> Array:
        return jax.nn.dot_product_attention(
            query, key, value, mask=mask[0] if mask else None, implementation="cudnn"
        )

    operands = (query, key, value) if mask is None else (query, key, value, mask)
    axes = attention_axes(query.shape[0], query.shape[2], key.shape[2])
    if axes is not None:
        of_query = PartitionSpec(axes.batch, None, axes.heads)
        of_key = PartitionSpec(axes.batch, None, axes.kv_heads)
        specs = (of_query, of_key, of_key, PartitionSpec(axes.batch))
        run = jax.shard_map(
            run, in_specs=specs[: len(operands)], out_specs=of_query, check_vma=False
        )
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

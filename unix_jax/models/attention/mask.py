"""The attention mask as a rule over token metadata.

Letters: B batch, N tokens, T queries, S keys.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Int

# Attention within a split (REFERENCE: mask per sample, split by split).
CAUSAL, FULL, NOISE = 0, 1, 2

# The logit of a masked key: finite, so that the difference of two is never NaN.
MASKED = -0.7 * float(jnp.finfo(jnp.float32).max)

Fields = tuple[Array, Array, Array, Array]


@struct.dataclass
class TokenMetadata:
    """The inputs of the mask rule and RoPE for each token; int32 [B, N] each.

    position: rotary position. segment: sample of the pack, 0 = padding. split: index of the split
    within its sample. order: index within the sample. mode: CAUSAL, FULL or NOISE.
    """

    position: Int[Array, "B N"]
    segment: Int[Array, "B N"]
    split: Int[Array, "B N"]
    order: Int[Array, "B N"]
    mode: Int[Array, "B N"]

    @classmethod
    def concatenate(cls, parts: Sequence["TokenMetadata"]) -> "TokenMetadata":
        """Joins along the token axis."""
        return jax.tree.map(lambda *arrays: jnp.concatenate(arrays, axis=1), *parts)


def may_attend(
    query: TokenMetadata, key: TokenMetadata, *, keys_first: bool = False
) -> Bool[Array, "B T S"]:
    """The mask rule: text is causal, images are bidirectional, noised images are hidden.

    With `keys_first`, [B, S, T] instead.

    Source: the original's `prepare_attention_mask_per_sample`.
    """
    q = jax.tree.map(lambda x: x[:, None, :] if keys_first else x[:, :, None], query)
    k = jax.tree.map(lambda x: x[:, :, None] if keys_first else x[:, None, :], key)
    return visible((q.segment, q.split, q.order, q.mode), (k.segment, k.split, k.order, k.mode))


def visible(query: Fields, key: Fields) -> Bool[Array, "*B T S"]:
    """`may_attend` of (segment, split, order, mode): [*B, T, 1] of `query`, [*B, 1, S] of `key`.

    The only definition of the rule; kernels evaluate it in their blocks.
    """
    q_segment, q_split, q_order, q_mode = query
    k_segment, k_split, k_order, k_mode = key
    within = (q_split == k_split) & ((q_mode != CAUSAL) | (k_order <= q_order))
    earlier = (k_split < q_split) & (k_mode != NOISE)
    return (q_segment == k_segment) & (k_segment > 0) & (within | earlier)

"""Blocks of keys and values with their visibility.

Letters: B batch, S keys, K key-value heads, H head_dim.
"""

from typing import Self

import einops
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from unix_jax.models.attention.mask import TokenMetadata, may_attend


@struct.dataclass
class KeyBlock:
    """Keys and values [B, S, K, H] with their visibility.

    `metadata` (of these keys) asks for the mask rule; `valid` [B, S] marks the keys that every
    query of the row sees, as those of a cache; `lengths` [B] says the same of keys whose valid ones
    come first; with none of them, every query sees every key.

    `causal_from`, with metadata: the queries are the keys from this one on, in the order of their
    samples, and the rule is that they see the keys of their sample up to themselves. Kernels that
    know no other rule need it; queries of images may get other numbers from them, and are unused.
    """

    key: Float[Array, "B S K H"]
    value: Float[Array, "B S K H"]
    metadata: TokenMetadata | None = None
    valid: Bool[Array, "B S"] | None = None
    lengths: Int[Array, " B"] | None = None
    causal_from: int | None = struct.field(pytree_node=False, default=None)

    @property
    def masked(self) -> bool:
        """Whether some key may be masked for some query."""
        return any(x is not None for x in (self.metadata, self.valid, self.lengths))

    def with_valid(self) -> Self:
        """The block with `valid` in place of `lengths`."""
        if self.lengths is None:
            return self
        valid = jnp.arange(self.num_keys) < self.lengths[:, None]
        return self.replace(valid=valid, lengths=None)  # type: ignore[attr-defined]

    @property
    def num_keys(self) -> int:
        """S."""
        return self.key.shape[1]

    @property
    def num_kv_heads(self) -> int:
        """K."""
        return self.key.shape[2]

    def mask(
        self, query: TokenMetadata | None, *, keys_first: bool = False
    ) -> Bool[Array, "B #T S"] | None:
        """Visibility of these keys; the query axis has size 1 where it does not matter.

        With `keys_first`, [B, S, #T] instead.
        """
        if self.metadata is not None:
            if query is None:
                raise ValueError(
                    "query metadata: expected with keys that carry metadata, found None"
                )
            return may_attend(query, self.metadata, keys_first=keys_first)
        valid = self.with_valid().valid
        if valid is None:
            return None
        return valid[:, :, None] if keys_first else valid[:, None, :]


@struct.dataclass
class MergedKeyBlock:
    """Keys [B*K, H, S] and values [B*K, S, H] of a merged cache; `valid` [B, S] as in `KeyBlock`.

    One merged batch axis, with the contracted axes where matrix products need them. `slot` is where
    new tokens are written before the block is read, None for a block that is only read. `metadata`
    of the new tokens asks for the mask rule among them; without it, they all see each other.
    """

    key: Float[Array, "B*K H S"]
    value: Float[Array, "B*K S H"]
    valid: Bool[Array, "B S"]
    slot: Int[Array, ""] | None = None
    metadata: TokenMetadata | None = None

    def mask(self, query: TokenMetadata | None) -> Bool[Array, "B #T S"]:
        """Visibility of these keys; the query axis has size 1 where it does not matter."""
        valid = self.valid[:, None, :]
        if self.metadata is None:
            return valid
        if query is None or self.slot is None:
            raise ValueError("metadata: expected with a slot and with query metadata, found none")
        new = may_attend(query, self.metadata)
        valid = jnp.broadcast_to(valid, (*new.shape[:2], valid.shape[2]))
        return jax.lax.dynamic_update_slice_in_dim(valid, new, self.slot, 2)

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

    @property
    def num_keys(self) -> int:
        """S."""
        return self.key.shape[2]

    @property
    def num_kv_heads(self) -> int:
        """K."""
        return self.key.shape[0] // self.valid.shape[0]

    def plain(self) -> KeyBlock:
        """The same keys in the order of `KeyBlock`, which has no rule for some of its keys.

        Raises:
          ValueError: a block with metadata.
        """
        if self.metadata is not None:
            raise ValueError("metadata: expected None for another order of the keys")
        batch = self.valid.shape[0]
        return KeyBlock(
            key=einops.rearrange(self.key, "(b k) h s -> b s k h", b=batch),
            value=einops.rearrange(self.value, "(b k) s h -> b s k h", b=batch),
            valid=self.valid,
        )

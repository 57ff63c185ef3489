"""The KV cache: keys (rotated) and values of the context, with a fixed capacity.

Two layouts, one interface. `stacked`: arrays [L, B, S, K, H], for scanned layers; it shards along
B and K. `merged`: for each layer keys [B*K, H, S] and values [B*K, S, H], for unrolled layers; it
shards along B. A CPU's batched products are several times faster over one merged batch axis, with
which it updates the cache in place (benchmarks/README.md has the figures, and estimates for TPUs).

Letters: L layers, B rows, S slots, N new tokens, K kv heads, H head_dim.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from unix_jax.config import DecoderConfig
from unix_jax.models.attention.key_blocks import KeyBlock, MergedKeyBlock
from unix_jax.models.layers import Dtype


@struct.dataclass
class KVCache:
    """A context of the decoder.

    keys, values: see the module. valid [B, S]: slots with a token of the row. index: the
    next free slot, common to all rows: rows of unequal length leave holes, so that all write at
    the same slot. A slot is not a rotary position.
    """

    keys: Any
    values: Any
    valid: Bool[Array, "B S"]
    index: Int[Array, ""]

    @classmethod
    def create(
        cls,
        config: DecoderConfig,
        batch: int,
        capacity: int,
        dtype: Dtype = jnp.float32,
        *,
        merged: bool = False,
    ) -> "KVCache":
        """An empty cache of `capacity` slots."""
        rows, dim, layers = batch * config.num_kv_heads, config.head_dim, config.num_layers
        keys: Any
        values: Any
        if merged:
            keys = tuple(jnp.zeros((rows, dim, capacity), dtype) for _ in range(layers))
            values = tuple(jnp.zeros((rows, capacity, dim), dtype) for _ in range(layers))
        else:
            shape = (layers, batch, capacity, config.num_kv_heads, dim)
            keys, values = jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)
        return cls(keys, values, jnp.zeros((batch, capacity), bool), jnp.int32(0))

    @property
    def capacity(self) -> int:
        return self.valid.shape[1]

    @property
    def merged(self) -> bool:
        return isinstance(self.keys, tuple)

    @property
    def _slot_axes(self) -> tuple[int, int]:
        """Axis of the slots in each array of keys and of values."""
        return (2, 1) if self.merged else (2, 2)

    def block(
        self, key: Array, value: Array, slot: Int[Array, ""] | None = None
    ) -> KeyBlock | MergedKeyBlock:
        """One layer's keys and values as attention reads them; `slot` as in `MergedKeyBlock`."""
        if self.merged:
            return MergedKeyBlock(key, value, self.valid, slot)
        return KeyBlock(key, value, valid=self.valid)

    def reserve(self, valid: Bool[Array, "B N"]) -> "KVCache":
        """The cache with its next N slots taken, but not yet written.

        The caller keeps `index` + N within the capacity, as with `append`.
        """
        taken = jax.lax.dynamic_update_slice_in_dim(self.valid, valid, self.index, 1)
        return KVCache(self.keys, self.values, taken, self.index + valid.shape[1])

    def append(self, keys: Any, values: Any, valid: Bool[Array, "B N"]) -> "KVCache":
        """Writes N new tokens, as the decoder returns them, at the common slot.

        The caller keeps `index` + N within the capacity: a write beyond it would be shifted back.
        """

        def write(cached: Any, new: Any, axis: int, order: tuple[int, ...]) -> Any:
            def one(target: Array, tokens: Float[Array, "... B N K H"]) -> Array:
                if self.merged:
                    tokens = tokens.transpose(order)
                    tokens = tokens.reshape(-1, *tokens.shape[2:])
                tokens = tokens.astype(target.dtype)
                return jax.lax.dynamic_update_slice_in_dim(target, tokens, self.index, axis)

            return jax.tree.map(one, cached, new)

        key_axis, value_axis = self._slot_axes
        return self.reserve(valid).replace(  # type: ignore[attr-defined]
            keys=write(self.keys, keys, key_axis, (0, 2, 3, 1)),
            values=write(self.values, values, value_axis, (0, 2, 1, 3)),
        )

    def finite_rows(self) -> Bool[Array, " B"]:
        """Whether the keys and values of all tokens of a row are finite.

        An attention kernel does not always pass a NaN on to its result.
        """
        rows = self.valid.shape[0]

        def one(x: Array, axis: int) -> Bool[Array, "B S"]:
            x = jnp.moveaxis(jnp.isfinite(x), (self._row_axis, axis), (0, 1))
            return jnp.all(x.reshape(rows, -1, *x.shape[1:]), axis=(1, *range(3, x.ndim + 1)))

        key_axis, value_axis = self._slot_axes
        finite = ~self.valid
        keys = [one(x, key_axis) for x in jax.tree.leaves(self.keys)]
        values = [one(x, value_axis) for x in jax.tree.leaves(self.values)]
        tokens = jnp.all(jnp.stack(keys + values), axis=0)
        return jnp.all(finite | tokens, axis=1)

    def map_slots(self, change: Callable[[Array, int], Array]) -> "KVCache":
        """The same cache after `change(array, axis of its slots)` of keys, values and validity."""
        key_axis, value_axis = self._slot_axes
        return KVCache(
            keys=jax.tree.map(lambda x: change(x, key_axis), self.keys),
            values=jax.tree.map(lambda x: change(x, value_axis), self.values),
            valid=change(self.valid, 1),
            index=self.index,
        )

    def put_rows(
        self, other: "KVCache", rows: Int[Array, " m"], count: Int[Array, ""]
    ) -> "KVCache":
        """The cache with rows[i] replaced by row i of `other`, for each i below `count`.

        `other` may have a smaller capacity; the further slots of a replaced row are not valid.
        """
        axis = self._row_axis

        def one(target: Array, source: Array, i: Array) -> Array:
            # A single index per row: XLA writes it where a mesh has the row.
            def split(x: Array, rows: int) -> Array:
                return x.reshape(rows, -1, *x.shape[1:]) if self.merged else x

            whole = split(target, self.valid.shape[0])
            row = jax.lax.dynamic_slice_in_dim(split(source, other.valid.shape[0]), i, 1, axis)
            begin: list[Any] = [0] * whole.ndim
            begin[axis] = rows[i]
            written = jax.lax.dynamic_update_slice(whole, row.astype(target.dtype), begin)
            return written.reshape(target.shape)

        def copy(i: Array, arrays: tuple[Any, Any]) -> tuple[Any, Any]:
            return jax.tree.map(
                lambda target, source: one(target, source, i), arrays, (other.keys, other.values)
            )

        keys, values = jax.lax.fori_loop(0, count, copy, (self.keys, self.values))
        valid = jnp.pad(other.valid, ((0, 0), (0, self.capacity - other.capacity)))
        valid = self.valid.at[rows].set(valid, mode="drop")
        return KVCache(keys, values, valid, self.index)

    def first_rows(self, rows: int) -> "KVCache":
        """The first `rows` rows."""
        whole = self.valid.shape[0]
        return self._map_rows(
            lambda x, axis: jax.lax.slice_in_dim(x, 0, x.shape[axis] // whole * rows, axis=axis),
            self.valid[:rows],
        )

    def repeat(self, valid: Sequence[Bool[Array, "B S"]]) -> "KVCache":
        """The rows once for each given validity: branches that share keys and values."""
        return self._map_rows(
            lambda x, axis: jnp.concatenate([x] * len(valid), axis=axis), jnp.concatenate(valid)
        )

    def join(self, other: "KVCache") -> "KVCache":
        """The rows of this cache, then those of another of the same capacity."""
        axis = self._row_axis

        def concatenate(a: Array, b: Array) -> Array:
            return jnp.concatenate([a, b], axis=axis)

        return KVCache(
            keys=jax.tree.map(concatenate, self.keys, other.keys),
            values=jax.tree.map(concatenate, self.values, other.values),
            valid=jnp.concatenate([self.valid, other.valid]),
            index=jnp.maximum(self.index, other.index),
        )

    @property
    def _row_axis(self) -> int:
        return 0 if self.merged else 1

    def _map_rows(self, change: Callable[[Array, int], Array], valid: Array) -> "KVCache":
        axis = self._row_axis
        return KVCache(
            keys=jax.tree.map(lambda x: change(x, axis), self.keys),
            values=jax.tree.map(lambda x: change(x, axis), self.values),
            valid=valid,
            index=self.index,
        )

"""The mask rule and attention as plain float64 statements, and random cases for both."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

from unix_jax.models.attention.key_blocks import KeyBlock, MergedKeyBlock
from unix_jax.models.attention.mask import CAUSAL, FULL, NOISE, TokenMetadata

KINDS = {"text": CAUSAL, "vit": FULL, "clean": FULL, "noised": NOISE}

splits = st.tuples(st.sampled_from(sorted(KINDS)), st.integers(0, 4))
packs = st.lists(st.lists(splits, max_size=4), max_size=4)


def pack_tokens(pack):
    """(sample, split, order, kind) of each token of a pack of [(kind, length)] samples."""
    return [
        (s, i, order, kind)
        for s, sample in enumerate(pack)
        for order, (i, kind) in enumerate(
            (i, kind) for i, (kind, length) in enumerate(sample) for _ in range(length)
        )
    ]


def sees(q, k):
    """REFERENCE 1.2 in words, for two tokens (sample, split, order, kind); None is padding."""
    if q is None or k is None or q[0] != k[0]:
        return False
    if q[1] == k[1]:
        return k[2] <= q[2] if q[3] == "text" else True
    return k[1] < q[1] and k[3] != "noised"


def metadata_of(rows):
    """TokenMetadata (numpy) of rows of equal length, from `pack_tokens` tuples or None."""

    def column(value):
        return np.array([[0 if t is None else value(t) for t in row] for row in rows], np.int32)

    return TokenMetadata(
        position=column(lambda t: t[2]),
        segment=column(lambda t: t[0] + 1),
        split=column(lambda t: t[1]),
        order=column(lambda t: t[2]),
        mode=column(lambda t: KINDS[t[3]]),
    )


def plain_attention(query, keys, values, mask):
    """float64, one query and head at a time; keys [B, S, K, H], mask [B, T, S]."""
    query, keys, values = (np.asarray(x, np.float64) for x in (query, keys, values))
    batch, length, heads, dim = query.shape
    group = heads // keys.shape[2]
    out = np.zeros_like(query)
    for b in range(batch):
        for t in range(length):
            seen = np.flatnonzero(mask[b, t])
            for n in range(heads if len(seen) else 0):
                logits = keys[b, seen, n // group] @ query[b, t, n] / math.sqrt(dim)
                weights = np.exp(logits - logits.max())
                out[b, t, n] = weights @ values[b, seen, n // group] / weights.sum()
    return out


block_kinds = st.sampled_from(["metadata", "valid", "plain", "merged"])


def random_rows(rng, batch, length):
    """Rows of token tuples of random packs, padding included, cut or padded to `length`."""
    rows = []
    for _ in range(batch):
        pack = [
            [(rng.choice(sorted(KINDS)), int(rng.integers(1, 4))) for _ in range(3)]
            for _ in range(2)
        ]
        tokens = [t for t in pack_tokens(pack) if rng.random() < 0.8] + [None] * length
        rows.append(tokens[:length])
    return rows


def random_case(seed, batch, length, sizes, kinds, kv_heads, group, dim, dtype=np.float32):
    """(query, blocks, query metadata, plain keys, plain values, mask) at random."""
    rng = np.random.default_rng(seed)
    query = rng.normal(size=(batch, length, kv_heads * group, dim)).astype(dtype)
    query_rows = random_rows(rng, batch, length)
    blocks, keys, values, masks = [], [], [], []
    for size, kind in zip(sizes, kinds, strict=True):
        key, value = (rng.normal(size=(batch, size, kv_heads, dim)).astype(dtype) for _ in "kv")
        valid = rng.random((batch, size)) < 0.6
        mask = np.broadcast_to(valid[:, None], (batch, length, size))
        if kind == "metadata":
            rows = random_rows(rng, batch, size)
            block = KeyBlock(key, value, metadata=metadata_of(rows))
            mask = np.array(
                [
                    [[sees(q, k) for k in row] for q in qs]
                    for qs, row in zip(query_rows, rows, strict=True)
                ]
            )
        elif kind == "valid":
            block = KeyBlock(key, value, valid=valid)
        elif kind == "plain":
            block, mask = KeyBlock(key, value), np.ones((batch, length, size), bool)
        else:
            block = MergedKeyBlock(
                key.transpose(0, 2, 3, 1).reshape(batch * kv_heads, dim, size),
                value.transpose(0, 2, 1, 3).reshape(batch * kv_heads, size, dim),
                valid,
            )
            np.testing.assert_array_equal(block.plain().key, key)
            np.testing.assert_array_equal(block.plain().value, value)
        blocks.append(block)
        keys.append(key)
        values.append(value)
        masks.append(mask)
    blocks = jax.tree.map(jnp.asarray, blocks)
    metadata = metadata_of(query_rows)
    joined = (np.concatenate(x, axis=1) for x in (keys, values))
    return jnp.asarray(query), blocks, metadata, *joined, np.concatenate(masks, axis=-1)


def temporary_bytes(function, arguments):
    """Bytes of temporaries of the compiled function, which does not run."""
    return jax.jit(function).lower(*arguments).compile().memory_analysis().temp_size_in_bytes

"""KV cache: both layouts hold the same content through every operation."""

import jax.numpy as jnp
import numpy as np
import pytest

from unix_jax.config import DecoderConfig
from unix_jax.models.attention.cache import KVCache
from unix_jax.models.attention.key_blocks import KeyBlock, MergedKeyBlock

CONFIG = DecoderConfig(num_layers=2, num_heads=4, num_kv_heads=2, head_dim=6)
L, B, K, H = 2, 3, 2, 6


def new_tokens(rng, count, merged):
    """(keys, values) as the decoder returns them, and as one array [L, B, N, K, H] each."""
    plain = [rng.normal(size=(L, B, count, K, H)).astype(np.float32) for _ in "kv"]
    given = [tuple(x) if merged else x for x in plain]
    return given, plain


def content(cache):
    """(keys, values) [L, B, S, K, H] of either layout, through what attention reads."""
    keys, values = [], []
    for key, value in zip(cache.keys, cache.values, strict=True):
        block = cache.block(key, value)
        assert isinstance(block, MergedKeyBlock if cache.merged else KeyBlock)
        block = block.plain() if cache.merged else block
        np.testing.assert_array_equal(block.valid, cache.valid)
        keys.append(np.asarray(block.key))
        values.append(np.asarray(block.value))
    return np.stack(keys), np.stack(values)


@pytest.fixture(params=[False, True], ids=["stacked", "merged"])
def filled(request):
    """A cache of 7 slots with 2 + 3 tokens, and what it should hold."""
    rng = np.random.default_rng(0)
    cache = KVCache.create(CONFIG, B, 7, merged=request.param)
    expected = [np.zeros((L, B, 7, K, H), np.float32) for _ in "kv"]
    valid = np.zeros((B, 7), bool)
    for begin, count in ((0, 2), (2, 3)):
        given, plain = new_tokens(rng, count, request.param)
        flags = rng.random((B, count)) < 0.7
        cache = cache.append(*given, jnp.asarray(flags))
        for target, x in zip(expected, plain, strict=True):
            target[:, :, begin : begin + count] = x
        valid[:, begin : begin + count] = flags
    return cache, expected, valid


def check(cache, expected, valid, index=5):
    assert int(cache.index) == index
    assert cache.capacity == valid.shape[1]
    np.testing.assert_array_equal(cache.valid, valid)
    for found, wanted in zip(content(cache), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_create():
    for merged in (False, True):
        cache = KVCache.create(CONFIG, B, 4, jnp.bfloat16, merged=merged)
        assert cache.merged is merged
        check(cache, np.zeros((2, L, B, 4, K, H)), np.zeros((B, 4), bool), index=0)
        assert content(cache)[0].dtype == jnp.bfloat16


def test_append(filled):
    check(*filled)


def test_append_casts_to_the_cache(filled):
    cache = KVCache.create(CONFIG, B, 2, jnp.bfloat16, merged=filled[0].merged)
    given, plain = new_tokens(np.random.default_rng(1), 2, cache.merged)
    cache = cache.append(*given, jnp.ones((B, 2), bool))
    keys, _ = content(cache)
    assert keys.dtype == jnp.bfloat16
    np.testing.assert_array_equal(keys, plain[0].astype(jnp.bfloat16))


def test_map_slots(filled):
    cache, expected, valid = filled
    rolled = cache.map_slots(lambda x, axis: jnp.roll(x, 2, axis))
    check(rolled, [np.roll(x, 2, 2) for x in expected], np.roll(valid, 2, 1))


@pytest.mark.parametrize("count", [0, 1, 2])
def test_put_rows(filled, count):
    cache, expected, valid = filled
    other = KVCache.create(CONFIG, B, 4, merged=cache.merged)
    given, plain = new_tokens(np.random.default_rng(3), 3, cache.merged)
    flags = np.array([[1, 1, 1], [1, 0, 1], [0, 1, 1]], bool)
    other = other.append(*given, jnp.asarray(flags))
    rows = np.array([2, 0, B])  # rows out of range are dropped
    rows[count:] = B
    for source, target in enumerate(rows[:count]):
        for x, new in zip(expected, plain, strict=True):
            x[:, target, :4] = np.pad(new[:, source], ((0, 0), (0, 1), (0, 0), (0, 0)))
        valid[target] = np.pad(flags[source], (0, 4))
    check(cache.put_rows(other, jnp.asarray(rows), jnp.int32(count)), expected, valid)


def test_first_rows(filled):
    cache, expected, valid = filled
    check(cache.first_rows(2), [x[:, :2] for x in expected], valid[:2])


def test_repeat(filled):
    cache, expected, valid = filled
    other = ~valid
    repeated = cache.repeat([cache.valid, jnp.asarray(other)])
    doubled = [np.concatenate([x, x], axis=1) for x in expected]
    check(repeated, doubled, np.concatenate([valid, other]))
    check(repeated.first_rows(B), expected, valid)


def test_join(filled):
    cache, expected, valid = filled
    given, plain = new_tokens(np.random.default_rng(2), 6, cache.merged)
    other = KVCache.create(CONFIG, B, 7, merged=cache.merged)
    other = other.append(*given, jnp.ones((B, 6), bool))
    pad = ((0, 0), (0, 0), (0, 1), (0, 0), (0, 0))
    joined = [
        np.concatenate([x, np.pad(y, pad)], axis=1) for x, y in zip(expected, plain, strict=True)
    ]
    flags = np.concatenate([valid, np.broadcast_to(np.arange(7) < 6, (B, 7))])
    # The next free slot lies behind the tokens of both.
    check(cache.join(other), joined, flags, index=6)
    swapped = np.concatenate([flags[B:], flags[:B]])
    rows = [np.concatenate([x[:, B:], x[:, :B]], axis=1) for x in joined]
    check(other.join(cache), rows, swapped, index=6)

"""RoPE, the mask rule and both implementations of attention, against plain float64 statements."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.attention_reference import (
    block_kinds,
    metadata_of,
    pack_tokens,
    packs,
    plain_attention,
    random_case,
    sees,
    temporary_bytes,
)
from unix_jax.models import attention as attention_module
from unix_jax.models.attention import attention, exact_attention
from unix_jax.models.attention import rope as rope_module
from unix_jax.models.attention.key_blocks import KeyBlock
from unix_jax.models.attention.mask import TokenMetadata, may_attend
from unix_jax.models.attention.rope import apply_rope, rope_angles
from unix_jax.sharding import make_mesh, use_mesh

# ----------------------------------------------------------------------------- the mask rule


@given(packs, st.integers(0, 3), st.randoms(use_true_random=False))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_mask_rule_matches_words(pack, padding, random):
    tokens = pack_tokens(pack) + [None] * padding
    random.shuffle(tokens)  # the two streams do not stand in sequence order
    if not tokens:
        return
    metadata = metadata_of([tokens])
    expected = [[sees(q, k) for k in tokens] for q in tokens]
    np.testing.assert_array_equal(np.asarray(may_attend(metadata, metadata))[0], expected)


def test_mask_of_golden_pack(golden, golden_info):
    names = {"text": "text", "vit_image": "vit"}
    for s, sample in enumerate(golden_info["train"]["samples"]):
        expected = golden[f"train.attention_mask.{s}"].astype(bool)
        texts = iter(sample["texts"])
        pack = []
        for part in sample["plan"]:
            if part["type"] == "text":
                length = len(next(texts)) + 2
            else:
                length = 11 if part["type"] == "vit_image" else 18
            kind = names.get(part["type"], "noised" if part["loss"] else "clean")
            pack.append((kind, length))
        metadata = metadata_of([pack_tokens([pack])])
        np.testing.assert_array_equal(np.asarray(may_attend(metadata, metadata))[0], expected)


# ----------------------------------------------------------------------------- implementations


@given(
    seed=st.integers(0, 2**32 - 1),
    batch=st.integers(1, 2),
    length=st.integers(1, 11),
    parts=st.lists(st.tuples(st.integers(1, 11), block_kinds), min_size=1, max_size=2),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 3),
    dim=st.sampled_from([2, 4, 6]),
    chunk=st.integers(1, 13),
)
@settings(max_examples=10, deadline=None, derandomize=True)
def test_both_implementations_match_plain_attention(
    seed, batch, length, parts, kv_heads, group, dim, chunk
):
    sizes, kinds = zip(*parts, strict=True)

    @jax.jit
    def both(query, blocks, metadata):
        return [
            attention(query, blocks, metadata, implementation=name, chunk_size=chunk)
            for name in ("xla", "chunked")
        ]

    for offset in range(4):  # several sets of numbers and masks for one compilation
        query, blocks, metadata, keys, values, mask = random_case(
            seed + offset, batch, length, sizes, kinds, kv_heads, group, dim
        )
        expected = plain_attention(query, keys, values, mask)
        for out in both(query, blocks, metadata):
            assert out.shape == query.shape
            assert out.dtype == query.dtype
            np.testing.assert_allclose(out, expected, atol=3e-6)
            assert not np.asarray(out)[~mask.any(-1)].any()


SHAPES = {"batch": 2, "length": 7, "sizes": (5, 7), "kinds": ("valid", "metadata")}


@jax.jit
def gradients(query, blocks, metadata, cotangent):
    def total(query, blocks, name):
        out = attention(query, blocks, metadata, implementation=name, chunk_size=3)
        return (out * cotangent).sum()

    floats = [(b.key, b.value) for b in blocks]

    def of(name):
        def f(query, floats):
            new = [b.replace(key=k, value=v) for b, (k, v) in zip(blocks, floats, strict=True)]
            return total(query, new, name)

        return jax.grad(f, argnums=(0, 1))(query, floats)

    return of("xla"), of("chunked")


@pytest.mark.parametrize("seed", range(6))
def test_gradients_agree(seed):
    """Also at fully masked queries, however large the cotangent that meets them."""
    query, blocks, metadata, *_ = random_case(seed, kv_heads=2, group=2, dim=4, **SHAPES)
    if seed == 0:  # row 0 sees nothing at all: its gradients are zeros
        blocks[0] = blocks[0].replace(valid=blocks[0].valid.at[0].set(False))
        metadata = metadata.replace(segment=np.where([[True], [False]], 0, metadata.segment))
    scale = 1000.0 if seed % 2 == 0 else 1.0
    cotangent = scale * np.random.default_rng(seed).normal(size=query.shape)
    dense, chunked = gradients(query, blocks, metadata, cotangent.astype(np.float32))
    for a, b in zip(jax.tree.leaves(dense), jax.tree.leaves(chunked), strict=True):
        assert np.isfinite(a).all()
        np.testing.assert_allclose(a, b, atol=1e-5 * scale)
    if seed == 0:
        for gradient in jax.tree.leaves(dense):
            assert not np.asarray(gradient)[0].any()


@pytest.mark.parametrize("group", [1, 2])
def test_half_precision_gradients(group):
    """XLA's CPU backend lacks some products of bfloat16 with float32 sums; none of them is used."""
    query, blocks, metadata, *_ = random_case(0, kv_heads=2, group=group, dim=8, **SHAPES)
    cotangent = np.random.default_rng(0).normal(size=query.shape).astype(np.float32)

    def narrow(x):
        return x.astype(jnp.bfloat16) if x.dtype == np.float32 else x

    exact = gradients(query, blocks, metadata, cotangent)
    ours = gradients(narrow(query), jax.tree.map(narrow, blocks), metadata, cotangent)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(exact), strict=True):
        assert a.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.float32(a), b, atol=0.05)


@pytest.mark.parametrize("seed", range(3))
def test_gradient_matches_finite_difference(seed):
    query, blocks, metadata, keys, values, mask = random_case(
        seed, kv_heads=2, group=2, dim=4, **SHAPES
    )
    rng = np.random.default_rng(seed)
    cotangent = rng.normal(size=query.shape)
    direction = rng.normal(size=query.shape)
    dense, _ = gradients(query, blocks, metadata, cotangent.astype(np.float32))
    up, down = (
        (plain_attention(np.asarray(query) + s * direction, keys, values, mask) * cotangent).sum()
        for s in (1e-5, -1e-5)
    )
    np.testing.assert_allclose(
        (dense[0] * direction).sum(), (up - down) / 2e-5, rtol=1e-4, atol=1e-4
    )


@pytest.fixture
def on_tpu(monkeypatch):
    """What is traced for a TPU, whose programs a CPU can run, too."""
    for module in (attention_module, exact_attention):
        monkeypatch.setattr(module, "platform_in_use", lambda: "tpu")


def with_gradients(query, blocks, tokens):
    def total(query, key, value):
        out = attention(query, [blocks[0].replace(key=key, value=value), *blocks[1:]], tokens)
        return jnp.sin(out).sum(), out

    run = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True))
    (_, out), gradients = run(query, blocks[0].key, blocks[0].value)
    return out, gradients


@pytest.mark.parametrize("seed", range(3))
def test_sums_of_weights_by_spare_lanes(seed, on_tpu, assert_close):
    """On a TPU, heads of less than 128 lanes sum their weights as one value more."""
    case = random_case(seed, 2, 7, (5, 9), ("metadata", "valid"), 2, 2, 8)
    query, blocks, tokens, keys, values, mask = case
    assert_close(attention(query, blocks, tokens), plain_attention(query, keys, values, mask))


@pytest.mark.parametrize("devices", [1, 8])
def test_rows_in_turn(devices, on_tpu, monkeypatch, assert_close):
    """On a TPU, the rows of a device whose logits do not fit on the chip, one after the other."""
    rng = np.random.default_rng(0)
    query, key, value = rng.normal(size=(3, 16, 12, 4, 8)).astype(np.float32)
    blocks = [KeyBlock(key, value, valid=rng.random((16, 12)) < 0.8)]
    expected = with_gradients(query, blocks, None)
    sizes = []
    in_turn = exact_attention.attend

    def counted(plan, query, *rest):
        sizes.append(query.shape[0])
        return in_turn(plan, query, *rest)

    monkeypatch.setattr(attention_module, "_LOGITS_ON_CHIP", 4 * 4 * 12 * 12)
    monkeypatch.setattr(exact_attention, "attend", counted)
    with use_mesh(make_mesh(fsdp=devices, devices=jax.devices()[:devices])):
        found = with_gradients(query, blocks, None)
    assert set(sizes) == {1}
    jax.tree.map(assert_close, found, expected)


def test_large_logits_do_not_overflow():
    """Logits far beyond exp's range, of either sign, in any chunk order."""
    rng = np.random.default_rng(0)
    query = rng.normal(size=(1, 3, 1, 4)).astype(np.float32) * 1e4
    key, value = rng.normal(size=(2, 1, 8, 1, 4)).astype(np.float32)
    expected = plain_attention(query, key, value, np.ones((1, 3, 8), bool))
    for name in ("xla", "chunked"):
        for order in (slice(None), slice(None, None, -1)):
            blocks = [KeyBlock(key[:, order], value[:, order])]
            out = attention(jnp.asarray(query), blocks, implementation=name, chunk_size=3)
            np.testing.assert_allclose(out, expected, atol=1e-5)


@pytest.mark.parametrize("name", ["xla", "blocked", "chunked", "pallas"])
def test_not_a_number_is_not_hidden(name):
    query, key, value = np.random.default_rng(0).normal(size=(3, 1, 6, 2, 4)).astype(np.float32)
    key[0, 4, 1, 2] = np.nan
    out = attention(query, [KeyBlock(key, value)], implementation=name, chunk_size=3)
    assert np.isfinite(out[..., 0, :]).all()
    assert np.isnan(out[..., 1, :]).all()


def test_bfloat16():
    query, blocks, metadata, keys, values, mask = random_case(
        3, kv_heads=2, group=2, dim=4, dtype=jnp.bfloat16, **SHAPES
    )
    expected = plain_attention(query, keys, values, mask)
    for name in ("xla", "chunked"):
        out = attention(query, blocks, metadata, implementation=name, chunk_size=4)
        assert out.dtype == jnp.bfloat16
        np.testing.assert_allclose(out.astype(jnp.float32), expected, atol=0.03)


# ----------------------------------------------------------------------------- memory

LONG = 16384


def long_attention(implementation):
    """attention of one sequence of LONG tokens with the mask rule, and its arguments' shapes."""
    shape = jax.ShapeDtypeStruct((1, LONG, 1, 16), jnp.float32)
    column = jax.ShapeDtypeStruct((1, LONG), jnp.int32)
    metadata = TokenMetadata(*[column] * 5)

    def run(query, key, value, metadata):
        blocks = [KeyBlock(key, value, metadata=metadata)]
        return attention(query, blocks, metadata, implementation=implementation)

    return run, (shape, shape, shape, metadata)


def test_chunked_holds_no_square_array():
    """Compiled, not run: temporaries of `chunked` stay under 1/20 of one byte for every pair."""
    run, arguments = long_attention("chunked")

    def gradient(*arguments):
        return jax.grad(lambda *a: run(*a).sum(), argnums=(0, 1, 2))(*arguments)

    for function in (run, gradient):
        assert temporary_bytes(function, arguments) < LONG * LONG / 20
    # The dense one does hold it: the measure sees what it should.
    assert temporary_bytes(*long_attention("xla")) > LONG * LONG * 4


# ----------------------------------------------------------------------------- RoPE


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize(("dim", "theta"), [(2, 10000.0), (8, 10000.0), (6, 37.0)])
def test_rope_is_a_complex_rotation(dim, theta, platform, monkeypatch):
    monkeypatch.setattr(rope_module, "platform_in_use", lambda: platform)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 5, 3, dim)).astype(np.float32)
    position = rng.integers(0, 600, (2, 5)).astype(np.int32)
    half = dim // 2
    z = x[..., :half] + 1j * x[..., half:].astype(np.float64)
    frequency = theta ** (-2.0 * np.arange(half) / dim)
    z = z * np.exp(1j * position[..., None, None] * frequency)
    out = apply_rope(jnp.asarray(x), rope_angles(jnp.asarray(position), dim, theta))
    np.testing.assert_allclose(out, np.concatenate([z.real, z.imag], -1), atol=1e-4)


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_rope_is_float32_inside(platform, monkeypatch):
    """bf16 inputs at the last published position: angles keep their fractions."""
    monkeypatch.setattr(rope_module, "platform_in_use", lambda: platform)
    position = jnp.full((1, 1), 16383)
    x = jnp.ones((1, 1, 1, 4), jnp.bfloat16)
    out = apply_rope(x, rope_angles(position, 4, 10000.0))
    assert out.dtype == jnp.bfloat16
    angle = 16383 * np.array([1.0, 0.01])
    expected = np.concatenate([np.cos(angle) - np.sin(angle), np.cos(angle) + np.sin(angle)])
    np.testing.assert_allclose(out.astype(jnp.float32).ravel(), expected, atol=0.01)


# ----------------------------------------------------------------------------- errors


def test_errors():
    query, blocks, metadata, *_ = random_case(0, kv_heads=2, group=1, dim=4, **SHAPES)
    with pytest.raises(ValueError, match="expected a multiple of 2 key heads, found 3"):
        attention(jnp.zeros((2, 7, 3, 4)), blocks, metadata)
    with pytest.raises(ValueError, match=r"implementation: expected .* found 'flash'"):
        attention(query, blocks, metadata, implementation="flash")
    for name in ("xla", "chunked"):
        with pytest.raises(ValueError, match="query metadata: expected"):
            attention(query, blocks, implementation=name)


def test_metadata_concatenates_along_tokens():
    a, b = (metadata_of([pack_tokens([[("text", n)]])] * 2) for n in (3, 5))
    joined = TokenMetadata.concatenate([a, b])
    for field in dataclasses.fields(joined):
        assert getattr(joined, field.name).shape == (2, 8)
    np.testing.assert_array_equal(joined.order[0], [0, 1, 2, 0, 1, 2, 3, 4])

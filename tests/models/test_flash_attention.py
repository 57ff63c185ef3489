"""The TPU kernels, interpreted: the dense numbers, and the blocks that are left out."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.attention_reference import metadata_of, pack_tokens, packs, temporary_bytes
from unix_jax.dry_run.topology import topology_devices
from unix_jax.models import attention as attention_module
from unix_jax.models.attention import attention
from unix_jax.models.attention.flash_attention import _fields, live_blocks
from unix_jax.models.attention.key_blocks import KeyBlock
from unix_jax.models.attention.mask import TokenMetadata, may_attend
from unix_jax.sharding import make_mesh, use_mesh

KINDS = ("text", "vit", "clean", "noised")
BATCH, LENGTH, KV_HEADS, GROUP, DIM = 2, 300, 2, 2, 8
BLOCK = 128  # 300 tokens are three blocks, with padding


def long_rows(rng, batch, length):
    """Rows of packed samples with splits of 1 to 90 tokens, und and gen in any order, padded."""
    rows = []
    for _ in range(batch):
        pack = [
            [(KINDS[rng.integers(4)], int(rng.integers(1, 90))) for _ in range(rng.integers(1, 5))]
            for _ in range(rng.integers(1, 6))
        ]
        rows.append((pack_tokens(pack) + [None] * length)[:length])
    return rows


def random_case(seed, dtype=np.float32):
    """(query, key, value, metadata, cotangent)."""
    rng = np.random.default_rng(seed)
    query, cotangent = rng.normal(size=(2, BATCH, LENGTH, KV_HEADS * GROUP, DIM)).astype(dtype)
    key, value = rng.normal(size=(2, BATCH, LENGTH, KV_HEADS, DIM)).astype(dtype)
    return query, key, value, metadata_of(long_rows(rng, BATCH, LENGTH)), cotangent


def blocks_of(kind, key, value, metadata):
    if kind == "two":
        cut = LENGTH // 3
        parts = [jax.tree.map(lambda x: x[:, :cut], metadata)]
        parts.append(jax.tree.map(lambda x: x[:, cut:], metadata))
        pieces = ((key[:, :cut], value[:, :cut]), (key[:, cut:], value[:, cut:]))
        return [KeyBlock(*p, metadata=m) for p, m in zip(pieces, parts, strict=True)]
    if kind == "cache":
        valid = jnp.arange(LENGTH) < jnp.array([[LENGTH // 2], [0]])
        return [KeyBlock(key, value, valid=valid), KeyBlock(key, value, metadata=metadata)]
    if kind == "plain":
        return [KeyBlock(key, value)]
    return [KeyBlock(key, value, metadata=metadata)]


def run(name, kind):
    """(query, key, value, metadata, cotangent) -> (result, gradients)."""

    def total(query, key, value, metadata, cotangent):
        blocks = blocks_of(kind, key, value, metadata)
        out = attention(query, blocks, metadata, implementation=name, chunk_size=BLOCK)
        return (out * cotangent).sum(), out

    def both(*arguments):
        (_, out), gradients = jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True)(*arguments)
        return out, gradients

    return jax.jit(both)


@pytest.mark.parametrize(
    "kind",
    [
        "two",
        *(pytest.param(kind, marks=pytest.mark.extended) for kind in ("cache", "one", "plain")),
    ],
)
def test_equals_the_dense_one(kind):
    dense, kernel = (run(name, kind) for name in ("xla", "pallas"))
    for seed in range(3):
        case = random_case(seed)
        expected, found = dense(*case), kernel(*case)
        for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
            assert a.shape == b.shape
            assert a.dtype == b.dtype
            np.testing.assert_allclose(b, a, atol=2e-5 * np.abs(a).max())


def test_a_query_that_sees_nothing():
    query, key, value, metadata, cotangent = random_case(5)
    metadata = metadata.replace(segment=np.where([[True], [False]], 0, metadata.segment))
    out, gradients = run("pallas", "one")(query, key, value, metadata, 1000 * cotangent)
    for x in (out, *gradients):
        assert np.isfinite(x).all()
        assert not np.asarray(x)[0].any()


@pytest.mark.extended
def test_large_logits_do_not_overflow():
    query, key, value, metadata, cotangent = random_case(6)
    for name in ("pallas", "xla"):
        out, gradients = run(name, "two")(1e4 * query, key, value, metadata, cotangent)
        assert all(np.isfinite(x).all() for x in (out, *gradients))


@pytest.mark.extended
def test_bfloat16():
    case = random_case(7, jnp.bfloat16)
    exact, _ = run("xla", "one")(*(np.asarray(x, np.float32) for x in case[:3]), *case[3:])
    found, gradients = run("pallas", "one")(*case)
    assert found.dtype == jnp.bfloat16
    assert {g.dtype for g in gradients} == {jnp.dtype(jnp.bfloat16)}
    np.testing.assert_allclose(found.astype(jnp.float32), exact, atol=0.03)


@given(packs, packs, st.integers(0, 5))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_what_is_left_out_is_seen_by_nobody(of_queries, of_keys, padding):
    size = 4
    queries, keys = ((pack_tokens(p) + [None] * 72)[padding:72] for p in (of_queries, of_keys))
    queries, keys = (x + [None] * padding for x in (queries, keys))
    query, key = metadata_of([queries]), metadata_of([keys])
    columns, rows = jnp.stack(_fields(query, size), 2), jnp.stack(_fields(key, size), 1)
    live = np.asarray(live_blocks(columns, rows, size, size))[0]
    seen = np.asarray(may_attend(query, key))[0]
    seen = seen.reshape(len(queries) // size, size, len(keys) // size, size).any((1, 3))
    assert not (seen & (live == 0)).any()


def test_packed_samples_leave_blocks_out():
    """Four texts of a block each: only the diagonal, and later splits of a sample are left out."""
    texts = metadata_of([pack_tokens([[("text", 4)]] * 4)])
    splits = metadata_of([pack_tokens([[("text", 4)] * 4])])
    for metadata, expected in ((texts, np.eye(4)), (splits, np.tri(4))):
        fields = _fields(metadata, 4)
        live = live_blocks(jnp.stack(fields, 2), jnp.stack(fields, 1), 4, 4)
        np.testing.assert_array_equal(live[0], expected)


def test_refused_on_a_gpu(monkeypatch):
    monkeypatch.setattr(attention_module, "platform_in_use", lambda: "gpu")
    query, key, value, metadata, _ = random_case(0)
    with pytest.raises(ValueError, match="pallas has kernels for TPUs, found gpu"):
        attention(query, [KeyBlock(key, value)], metadata, implementation="pallas")


@pytest.mark.extended
@pytest.mark.skipif(jax.device_count() != 8, reason="needs 8 (virtual) devices")
def test_on_a_mesh():
    """Each device attends its own rows and heads, and nothing is sent."""
    rng = np.random.default_rng(0)
    query = rng.normal(size=(4, LENGTH, 4, DIM)).astype(np.float32)
    key, value = rng.normal(size=(2, 4, LENGTH, 2, DIM)).astype(np.float32)
    metadata = metadata_of(long_rows(rng, 4, LENGTH))

    def gradients(query, key, value, metadata, name):
        def total(query, key, value):
            blocks = [KeyBlock(key, value, metadata=metadata)]
            out = attention(query, blocks, metadata, implementation=name, chunk_size=BLOCK)
            return jnp.square(out).sum(), out

        return jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True)(query, key, value)

    jitted = jax.jit(gradients, static_argnames="name")
    expected = jitted(query, key, value, metadata, name="xla")
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    rows = ("data", "fsdp")
    heads, tokens = (
        jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
        for axes in ((rows, None, "tensor"), (rows,))
    )
    arguments = [
        *jax.device_put([query, key, value], heads), jax.device_put(metadata, tokens),
    ]  # fmt: skip
    with use_mesh(mesh):
        compiled = jitted.lower(*arguments, name="pallas").compile()
        found = compiled(*arguments)
    assert found[0][1].sharding.shard_shape(query.shape) == (1, LENGTH, 2, DIM)
    program = compiled.as_text()
    assert not any(kind in program for kind in ("all-gather", "all-to-all", "collective-permute"))
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(b, a, atol=2e-5 * np.abs(a).max())


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed (extra tpu)"
)
def test_compiles_for_a_tpu():
    """Three kernels for what is trained, one for what is not; no array of all pairs."""
    mesh = make_mesh(devices=topology_devices("v5e:2x2")[:1])
    length = 4096
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    shape = jax.ShapeDtypeStruct((1, length, 4, 128), jnp.bfloat16, sharding=sharding)
    column = jax.ShapeDtypeStruct((1, length), jnp.int32, sharding=sharding)
    metadata = TokenMetadata(*[column] * 5)

    def forward(query, key, value, metadata):
        blocks = [KeyBlock(key, value, metadata=metadata)]
        return attention(query, blocks, metadata, implementation="pallas")

    def total(*arguments):
        return forward(*arguments).astype(jnp.float32).sum()

    functions = {
        1: forward, 2: jax.grad(total), 3: jax.grad(total, argnums=(0, 1, 2)),
    }  # fmt: skip
    with use_mesh(mesh):
        for kernels, function in functions.items():
            arguments = (shape, shape, shape, metadata)
            program = jax.jit(function).lower(*arguments).compile().as_text()
            assert program.count('custom_call_target="tpu_custom_call"') == kernels
            assert temporary_bytes(function, arguments) < length * length

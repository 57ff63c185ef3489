"""cuDNN's attention without a GPU: what its kernel is given, and what is made of its answer.

JAX's own dense implementation, with the same arguments, stands in for the kernel.
"""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax._src.cudnn import fused_attention_stablehlo

from support.attention_reference import block_kinds, plain_attention, random_case
from unix_jax.models import attention as attention_module
from unix_jax.models.attention import attention
from unix_jax.models.attention.cudnn_attention import has_cudnn_attention
from unix_jax.models.attention.key_blocks import KeyBlock
from unix_jax.models.remat import _is_cudnn_attention
from unix_jax.sharding import make_mesh, use_mesh

PLAIN = jax.nn.dot_product_attention


@pytest.fixture(scope="module", autouse=True)
def kernel():
    """Stands in for the kernel and its demands; counts its calls."""
    calls = []

    def stand_in(query, key, value, *, mask, implementation):
        assert implementation == "cudnn"
        assert query.dtype == key.dtype == value.dtype == jnp.float16
        assert query.shape[1] % 2 == key.shape[1] % 2 == 0
        if mask is not None:
            assert mask.dtype == bool
            assert mask.shape == (query.shape[0], 1, query.shape[1], key.shape[1])
        calls.append(query.shape)
        # XLA's CPU backend has no float16 products of this kind.
        wide = (x.astype(jnp.float32) for x in (query, key, value))
        return PLAIN(*wide, mask=mask, implementation="xla").astype(query.dtype)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.nn, "dot_product_attention", stand_in)
        yield calls


@given(
    seed=st.integers(0, 2**32 - 1),
    length=st.integers(1, 11),
    parts=st.lists(st.tuples(st.integers(1, 11), block_kinds), min_size=1, max_size=2),
    group=st.integers(1, 2),
)
@settings(max_examples=15, deadline=None, derandomize=True)
def test_gives_the_dense_numbers(seed, length, parts, group):
    """Any blocks, odd lengths, queries that see no key (all of whose numbers are 0)."""
    sizes, kinds = zip(*parts, strict=True)
    case = random_case(seed, 2, length, sizes, kinds, 2, group, 8, np.float16)
    query, blocks, metadata, keys, values, mask = case
    # As one program: each operation by itself would be compiled for each of the shapes.
    compiled = jax.jit(functools.partial(attention, implementation="cudnn"))
    ours = np.asarray(compiled(query, blocks, metadata), np.float32)
    np.testing.assert_allclose(ours, plain_attention(query, keys, values, mask), atol=2e-3)
    assert not ours[~mask.any(axis=-1)].any()


def test_gradients_are_those_of_the_dense_one():
    kinds = ("metadata", "valid")
    query, blocks, metadata, *_ = random_case(3, 2, 9, (9, 5), kinds, 2, 2, 8, np.float16)

    def gradients(name):
        def total(query, blocks):
            out = attention(query, blocks, metadata, implementation=name)
            return (out.astype(jnp.float32) ** 2).sum()

        gradient = jax.grad(jax.jit(total), argnums=(0, 1), allow_int=True)
        return jax.tree.leaves(gradient(query, blocks))

    pairs = zip(gradients("cudnn"), gradients("xla"), strict=True)
    # Of the query, two keys and two values; metadata have none.
    floats = [(a, b) for a, b in pairs if a.dtype == jnp.float16]
    assert len(floats) == 5
    for ours, dense in floats:
        ours, dense = (np.asarray(x, np.float32) for x in (ours, dense))
        assert np.abs(ours - dense).max() <= 2e-3 * np.abs(dense).max()


def test_wants_numbers_of_16_bits():
    x = jnp.ones((1, 2, 2, 8))
    with pytest.raises(
        ValueError, match="query: expected bfloat16 or float16 for cudnn, found flo"
    ):
        attention(x, [KeyBlock(x, x)], implementation="cudnn")


@pytest.mark.parametrize(
    ("platform", "capability", "dtype", "dim", "expected"),
    [
        ("gpu", "9.0", "bfloat16", 128, True),
        ("gpu", "8.6", "float16", 64, True),
        ("gpu", "10.0", "bfloat16", 64, True),
        ("gpu", "7.5", "float16", 64, False),  # before Ampere
        ("gpu", "gfx942", "bfloat16", 64, False),  # AMD
        ("gpu", "9.0", "float32", 64, False),
        ("gpu", "9.0", "bfloat16", 192, False),
        ("gpu", "9.0", "bfloat16", 60, False),
        ("cpu", None, "bfloat16", 64, False),
    ],
)
def test_where_it_applies(monkeypatch, platform, capability, dtype, dim, expected):
    found = {} if capability is None else {"compute_capability": capability}
    device = SimpleNamespace(platform=platform, **found)
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    assert has_cudnn_attention(jax.ShapeDtypeStruct((1, 4, 2, dim), jnp.dtype(dtype))) is expected


def test_remat_knows_its_primitive():
    """By a name of JAX's own, with which `dots` keeps what the kernel gives."""
    primitive = fused_attention_stablehlo._dot_product_attention_fwd_p_wrapper
    assert _is_cudnn_attention(primitive)
    assert not _is_cudnn_attention(fused_attention_stablehlo._dot_product_attention_bwd_p_wrapper)


def test_auto_takes_it_for_more_than_one_query(monkeypatch, kernel):
    device = SimpleNamespace(platform="gpu", compute_capability="9.0")
    monkeypatch.setattr(attention_module, "platform_in_use", lambda: "gpu")
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    for length, calls in ((1, 0), (4, 1)):
        kernel.clear()
        key = jnp.ones((1, 6, 2, 8), jnp.float16)
        attention(jnp.ones((1, length, 2, 8), jnp.float16), [KeyBlock(key, key)])
        assert len(kernel) == calls


def test_each_device_has_its_rows_and_heads(kernel):
    """On data=2, tensor=2 the kernel sees 1 of 2 rows and 2 of 4 heads, and nothing is gathered."""
    mesh = make_mesh(data=2, tensor=2, devices=jax.devices()[:4])
    case = random_case(5, 2, 8, (8,), ("metadata",), 2, 2, 8, np.float16)
    query, (block,), metadata, *_ = case

    @jax.jit
    def both(query, key, value, metadata, own):
        def total(query, key, value):
            blocks = [KeyBlock(key, value, metadata=own)]
            out = attention(query, blocks, metadata, implementation="cudnn")
            return (out.astype(jnp.float32) ** 2).sum(), out

        return jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True)(query, key, value)

    arguments = (query, block.key, block.value, metadata, block.metadata)
    expected = both(*arguments)
    spec = jax.sharding.PartitionSpec
    heads, tokens = (
        jax.sharding.NamedSharding(mesh, spec(*axes))
        for axes in (("data", None, "tensor"), ("data",))
    )
    placed = [*jax.device_put(arguments[:3], heads), *jax.device_put(arguments[3:], tokens)]
    kernel.clear()
    with use_mesh(mesh):
        compiled = both.lower(*placed).compile()
    assert set(kernel) == {(1, 8, 2, 8)}
    program = compiled.as_text()
    assert not any(kind in program for kind in ("all-gather", "all-to-all", "collective-permute"))
    found = compiled(*placed)
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        a, b = (np.asarray(x, np.float32) for x in (a, b))
        np.testing.assert_allclose(b, a, rtol=1e-5)


@pytest.mark.extended
def test_keys_by_their_number_need_no_mask(monkeypatch):
    """As of images in slots: the row's number of keys in the place of an array, odd lengths too."""
    given = {}

    def stand_in(query, key, value, *, mask, implementation, key_value_seq_lengths):
        assert mask is None
        assert query.shape[1] % 2 == key.shape[1] % 2 == 0
        given["lengths"] = key_value_seq_lengths
        wide = (x.astype(jnp.float32) for x in (query, key, value))
        lengths = {"key_value_seq_lengths": key_value_seq_lengths}
        return PLAIN(*wide, implementation="xla", **lengths).astype(query.dtype)

    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    rng = np.random.default_rng(0)
    query, *keys = (
        jnp.asarray(rng.normal(size=(2, n, 2, 8)), jnp.float16) for n in (5, 5, 5, 4, 4)
    )
    blocks = [KeyBlock(*keys[:2]), KeyBlock(*keys[2:], lengths=jnp.array([1, 4]))]
    ours = attention(query, blocks, implementation="cudnn")
    np.testing.assert_array_equal(given["lengths"], [6, 9])
    dense = attention(query, blocks, implementation="xla")
    np.testing.assert_allclose(ours, np.asarray(dense, np.float32), atol=2e-3)

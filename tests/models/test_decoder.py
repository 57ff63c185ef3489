"""The decoder's two streams, its layouts of layers, remat, and decoding against a cache."""

import copy
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unix_jax.config import DecoderConfig
from unix_jax.models.attention.cache import KVCache
from unix_jax.models.attention.mask import CAUSAL, FULL, NOISE, TokenMetadata
from unix_jax.models.decoder import Decoder, unstack_layers

CONFIG = DecoderConfig(
    hidden_size=16,
    intermediate_size=24,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=6,
    vocab_size=8,
    max_position_embeddings=64,
)
BATCH, UND, GEN = 2, 6, 4


def metadata(length, mode, *, order=0, split=0):
    """Rows of one split."""
    shape = (BATCH, length)
    steps = np.broadcast_to(order + np.arange(length, dtype=np.int32), shape)
    return TokenMetadata(
        position=steps,
        segment=np.ones(shape, np.int32),
        split=np.full(shape, split, np.int32),
        order=steps,
        mode=np.full(shape, mode, np.int32),
    )


TEXT, IMAGE = metadata(UND, CAUSAL), metadata(GEN, NOISE, order=UND, split=1)
BOTH = jax.tree.map(lambda a, b: np.concatenate([a, b], 1), TEXT, IMAGE)


def apply(params, streams, info, cache=None, **options):
    """`Decoder` with the positions of `info` (und, gen metadata)."""
    positions = tuple(None if m is None else m.position for m in info)
    present = [m for m in info if m is not None]
    joined = jax.tree.map(lambda *x: jnp.concatenate(x, 1), *present)
    decoder = Decoder(CONFIG, **options)
    return decoder.apply({"params": params}, streams, positions, joined, cache)[:2]


@pytest.fixture(scope="module")
def streams():
    rng = np.random.default_rng(0)
    return tuple(rng.normal(size=(BATCH, n, 16)).astype(np.float32) for n in (UND, GEN))


@pytest.fixture(scope="module")
def boxed(streams):
    init = functools.partial(Decoder(CONFIG).init, metadata=BOTH)
    return jax.jit(init)(jax.random.key(0), streams, (TEXT.position, IMAGE.position))["params"]


@pytest.fixture(scope="module")
def params(boxed):
    """Every leaf random: biases and norms as well."""
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda x: jnp.asarray(x + 0.2 * rng.normal(size=x.shape), jnp.float32), nn.unbox(boxed)
    )


@pytest.fixture(scope="module")
def full(params, streams):
    """Both streams in one pass: ((und, gen), (keys, values)) in float32, scanned layers."""
    return jax.jit(apply)(params, streams, (TEXT, IMAGE))


@pytest.fixture(scope="module")
def unstacked(params):
    return unstack_layers(copy.deepcopy(jax.tree.map(np.asarray, params)), CONFIG.num_layers)


def test_shapes_and_logical_axes(boxed):
    """[L, in, out] kernels; every dimension named, `layers` first."""
    dim, inner, heads, kv = 16, 24, 4 * 6, 2 * 6
    expected = {
        "input_norm/scale": ((dim,), ("norm",)),
        "q_proj/kernel": ((dim, heads), ("embed", "heads")),
        "q_proj/bias": ((heads,), ("heads",)),
        "k_proj/kernel": ((dim, kv), ("embed", "kv_heads")),
        "k_proj/bias": ((kv,), ("kv_heads",)),
        "v_proj/kernel": ((dim, kv), ("embed", "kv_heads")),
        "v_proj/bias": ((kv,), ("kv_heads",)),
        "q_norm/scale": ((6,), (None,)),
        "k_norm/scale": ((6,), (None,)),
        "o_proj/kernel": ((heads, dim), ("heads", "embed")),
        "post_attention_norm/scale": ((dim,), ("norm",)),
        "gate_proj/kernel": ((dim, inner), ("embed", "mlp")),
        "up_proj/kernel": ((dim, inner), ("embed", "mlp")),
        "down_proj/kernel": ((inner, dim), ("mlp", "embed")),
    }
    expected = {k: ((2, *shape), ("layers", *axes)) for k, (shape, axes) in expected.items()}
    assert sorted(boxed) == ["layers", "norm"]
    for stream in ("und", "gen"):
        found = {
            f"{module}/{name}": (leaf.value.shape, leaf.names)
            for module, leaves in boxed["layers"][stream].items()
            for name, leaf in leaves.items()
        }
        assert found == expected
        norm = boxed["norm"][stream]["scale"]
        assert (norm.value.shape, norm.names) == ((dim,), ("norm",))


def test_unrolled_equals_scanned(unstacked, streams, full):
    unrolled = jax.jit(functools.partial(apply, scan_layers=False))
    outputs, (keys, values) = unrolled(unstacked, streams, (TEXT, IMAGE))
    np.testing.assert_allclose(outputs[0], full[0][0], atol=2e-5)
    np.testing.assert_allclose(outputs[1], full[0][1], atol=2e-5)
    np.testing.assert_allclose(np.stack(keys), full[1][0], atol=2e-5)
    np.testing.assert_allclose(np.stack(values), full[1][1], atol=2e-5)


def stacked(tree, num_layers):
    """Inverse of `unstack_layers`: layers stacked, kernels [in, out] again."""
    layers = [tree[f"layers_{i}"] for i in range(num_layers)]
    rest = {name: value for name, value in tree.items() if not name.startswith("layers_")}

    def stack(path, *leaves):
        whole = np.stack(leaves)
        return whole.swapaxes(-1, -2) if path[-1].key == "kernel" else whole

    return {"layers": jax.tree.map_with_path(stack, *layers)} | rest


def test_unstack_and_stack_are_inverse(params, unstacked):
    assert sorted(unstacked) == ["layers_0", "layers_1", "norm"]
    kernel = params["layers"]["gen"]["q_proj"]["kernel"]
    np.testing.assert_array_equal(unstacked["layers_1"]["gen"]["q_proj"]["kernel"], kernel[1].T)
    back = stacked(unstacked, CONFIG.num_layers)
    assert jax.tree.structure(back) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, back, params)


def test_unstack_takes_the_stacked_leaves_over():
    tree = {"layers": {"a": {"b": np.zeros((3, 2))}}, "norm": {"scale": np.ones(2)}}
    unstack_layers(tree, 3)
    assert not tree["layers"]
    assert sorted(tree) == ["layers", "norm"]


def test_text_does_not_see_the_noised_image(params, streams, full):
    """und alone equals the und rows of both, and uses no gen weights."""
    (und, gen), (keys, _) = jax.jit(apply)(only_und(params), (streams[0], None), (TEXT, None))
    assert gen is None
    np.testing.assert_allclose(und, full[0][0], atol=2e-5)
    np.testing.assert_allclose(keys, full[1][0][:, :, :UND], atol=2e-5)


def test_chunked_equals_xla(params, streams, full):
    chunked = jax.jit(functools.partial(apply, attention_implementation="chunked"))
    outputs, _ = chunked(params, streams, (TEXT, IMAGE))
    for ours, expected in zip(outputs, full[0], strict=True):
        np.testing.assert_allclose(ours, expected, atol=2e-5)


def test_bfloat16_stays_near_float32(params, streams, full):
    outputs, (keys, values) = jax.jit(functools.partial(apply, dtype=jnp.bfloat16))(
        params, jax.tree.map(lambda x: x.astype(jnp.bfloat16), streams), (TEXT, IMAGE)
    )
    for ours, expected in zip((*outputs, keys, values), (*full[0], *full[1]), strict=True):
        assert ours.dtype == jnp.bfloat16
        difference = np.abs(np.asarray(ours, np.float32) - np.asarray(expected)).max()
        assert difference < 0.05 * np.abs(expected).max()


# ----------------------------------------------------------------------------- gradients


@pytest.fixture(scope="module")
def weights_of_loss():
    rng = np.random.default_rng(2)
    return [rng.normal(size=(BATCH, n, 16)).astype(np.float32) for n in (UND, GEN)]


@functools.partial(
    jax.jit,
    static_argnames=("remat_policy", "unroll"),
    # Backward passes take long to compile; their speed does not matter here.
    compiler_options={"xla_backend_optimization_level": 0},
)
def gradient(params, streams, weights, info, remat_policy="none", unroll=1):
    """Of a weighted sum of the outputs, with respect to the parameters and the inputs."""

    def loss(params, streams):
        outputs, _ = apply(params, streams, info, remat_policy=remat_policy, unroll=unroll)
        present = [x for x in outputs if x is not None]
        return sum((w * x).sum() for w, x in zip(weights, present, strict=False))

    return jax.grad(loss, argnums=(0, 1))(params, streams)


def only_und(params):
    """The parameters of the und stream."""
    return {name: {"und": part["und"]} for name, part in params.items()}


@pytest.mark.extended
def test_remat_policies_give_the_same_gradients(params, streams, weights_of_loss):
    arguments = only_und(params), (streams[0], None), weights_of_loss, (TEXT, None)
    plain = gradient(*arguments)
    policies = ("full", "attention", "products", "dots", "dots_no_batch")
    for policy, unroll in (*((policy, 1) for policy in policies), ("dots", 2)):
        found = gradient(*arguments, remat_policy=policy, unroll=unroll)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(plain), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5 * max(np.abs(b).max(), 1.0))


def test_products_policy_repeats_no_product(params, streams, weights_of_loss):
    """Neither one with weights nor those of attention."""
    arguments = only_und(params), (streams[0], None), weights_of_loss, (TEXT, None)

    def products(policy):
        traced = functools.partial(gradient.__wrapped__, remat_policy=policy)
        return str(jax.make_jaxpr(traced)(*arguments)).count("dot_general")

    kept = products("none")
    assert products("products") == kept
    assert products("attention") > kept
    assert products("full") > products("attention")


def test_unrolled_layers(params, streams, weights_of_loss):
    """No loop over them, and what the backward pass shall repeat is not merged with the forward."""
    arguments = only_und(params), (streams[0], None), weights_of_loss, (TEXT, None)

    def program(remat_policy, unroll):
        options = {"remat_policy": remat_policy, "unroll": unroll}
        return gradient.lower(*arguments, **options).compile().as_text()

    looped, unrolled, kept = program("full", 1), program("full", 2), program("none", 2)
    assert " while(" in looped
    assert " while(" not in unrolled
    assert unrolled.count(" dot(") > kept.count(" dot(")


def test_padding_gives_finite_gradients_and_no_influence(params, streams, weights_of_loss):
    """Padded tokens, even under a large loss of their own, leave the others' gradients alone."""
    padded = TEXT.replace(segment=(TEXT.segment * (np.arange(UND) < UND - 2)).astype(np.int32))
    grads = []
    for scale in (0.0, 1e3):
        weights = [w.copy() for w in weights_of_loss]
        weights[0][:, UND - 2 :] *= scale
        grads.append(gradient(params, streams, weights, (padded, IMAGE)))
    for leaf in jax.tree.leaves(grads):
        assert np.isfinite(leaf).all()
    for stream in (0, 1):
        real = slice(None, UND - 2 if stream == 0 else None)
        quiet, loud = (g[1][stream][:, real] for g in grads)
        np.testing.assert_allclose(quiet, loud, atol=1e-5)


# ----------------------------------------------------------------------------- cache


@pytest.mark.parametrize("merged", [False, True])
def test_prefill_and_decode_equal_the_full_pass(params, unstacked, streams, full, merged):
    """Prefill 3 tokens (5 slots, 2 of them padding in row 1), then one by one, then the image."""
    weights = unstacked if merged else params
    options = {"scan_layers": not merged}
    und, gen = streams
    # Row 1 has its last prefill token dropped into padding and fed again as a decode step.
    prompt = 4
    lengths = np.array([prompt, prompt - 1])
    real = np.arange(prompt) < lengths[:, None]
    head = jax.tree.map(lambda x: x[:, :prompt], TEXT)
    head = head.replace(segment=np.where(real, 1, 0))
    run = jax.jit(functools.partial(apply, **options))
    _, new = run(weights, (und[:, :prompt], None), (head, None))
    cache = KVCache.create(CONFIG, BATCH, 9, merged=merged).append(*new, jnp.asarray(real))
    step = jax.jit(
        lambda weights, x, position, cache: Decoder(CONFIG, **options).apply(
            {"params": weights}, (x, None), (position, None), None, cache
        )[:2]
    )
    rows = np.arange(BATCH)
    for i in range(2):
        place = lengths + i
        outputs, new = step(weights, und[rows, place][:, None], place[:, None], cache)
        np.testing.assert_allclose(outputs[0][:, 0], full[0][0][rows, place], atol=2e-5)
        cache = cache.append(*new, jnp.ones((BATCH, 1), bool))
    # Row 0 now holds all 6 text tokens, row 1 five: the image of row 0 must come out.
    outputs, _ = jax.jit(
        lambda weights, x, position, cache: Decoder(CONFIG, **options).apply(
            {"params": weights}, (None, x), (None, position), None, cache
        )[:2]
    )(weights, gen, IMAGE.position, cache)
    assert outputs[0] is None
    np.testing.assert_allclose(outputs[1][0], full[0][1][0], atol=2e-5)
    assert np.abs(outputs[1][1] - full[0][1][1]).max() > 1e-3


def test_no_metadata_means_everything_is_seen(params, streams):
    """The path without a mask equals one FULL split with the same positions."""
    positions = (TEXT.position, IMAGE.position)
    free = jax.jit(lambda p: Decoder(CONFIG).apply({"params": p}, streams, positions))(
        params
    ).streams
    full_mode = [
        m.replace(mode=np.full_like(m.mode, FULL), split=m.split * 0) for m in (TEXT, IMAGE)
    ]
    masked, _ = jax.jit(apply)(params, streams, tuple(full_mode))
    for a, b in zip(free, masked, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_errors(params, streams):
    with pytest.raises(ValueError, match="at least one stream"):
        Decoder(CONFIG).apply({"params": params}, (None, None), (None, None))
    with pytest.raises(ValueError, match=r"remat_policy: expected one of .* found 'all'"):
        apply(params, streams, (TEXT, IMAGE), remat_policy="all")

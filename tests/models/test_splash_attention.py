"""JAX's splash attention, interpreted, against the dense implementation, and where it is taken."""

import importlib.util

import einops
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unix_jax.dry_run.topology import topology_devices
from unix_jax.models.attention import attention, preferred_multiple
from unix_jax.models.attention.key_blocks import KeyBlock, MergedKeyBlock
from unix_jax.models.attention.mask import CAUSAL, FULL, TokenMetadata
from unix_jax.models.attention.slots import Projected, SlotMetadata, Slots, attend_in_slots
from unix_jax.models.attention.splash_attention import has_splash_attention
from unix_jax.sharding import make_mesh, use_mesh

# Two ViT slots of 10 tokens, one VAE image of 7 latents, 20 positions for text, of which 8 are in
# the second slot.
SLOTS = Slots(und_tokens=34, vit_slots=2, vit_tokens=10, vae_images=1, text_tokens=20)
LATENTS, DIM = 7, 128
NOISE = 2


def rows():
    """Of two images and a caption, and of one image with a long text; int32 [2, 34]."""
    found = []
    for images, texts in ((2, (4, 5)), (1, (18, 0))):
        table = np.zeros((34, 4), np.int32)
        place = max(10 * images, 12)
        for number in range(2):
            if number < images:
                table[10 * number : 10 * number + 10] = (number + 1, 0, 0, FULL)
            steps = np.arange(texts[number])
            part = table[place : place + texts[number]]
            part[:, 0], part[:, 1], part[:, 2], part[:, 3] = number + 1, 1, 10 + steps, CAUSAL
            place += texts[number]
        if images == 2:  # a caption, and the boundaries of its image
            table[place : place + 3] = (3, 0, 0, CAUSAL)
            table[place : place + 3, 2] = range(3)
            table[32:] = (3, 1, 3, NOISE)
        found.append(table)
    segment, split, order, mode = np.moveaxis(np.stack(found), -1, 0)
    return TokenMetadata(np.zeros_like(segment), segment, split, order, mode)


def random_stream(seed, length, heads=2, kv_heads=1):
    rng = np.random.default_rng(seed)
    return Projected(
        *(
            rng.normal(size=(2, length, n, DIM)).astype(np.float32)
            for n in (heads, kv_heads, kv_heads)
        )
    )


@pytest.mark.parametrize(
    ("freeze_und", "multiple"),
    [
        pytest.param(False, 1, marks=pytest.mark.extended),
        (True, 1),
        pytest.param(False, 8, marks=pytest.mark.extended),
    ],
)
def test_slots_give_the_dense_numbers(freeze_und, multiple):
    """Forward and backward, with windows of 10 or of 16 positions for the slots of 10.

    Padding, whose numbers have no meaning, has no weight.
    """
    metadata = SlotMetadata.create(rows(), SLOTS)
    und, gen = random_stream(0, 34), random_stream(1, LATENTS)
    real = (np.asarray(metadata.und.segment) > 0)[..., None, None]
    has_image = np.array([True, False])[:, None, None, None]
    rng = np.random.default_rng(2)
    weights = [rng.normal(size=x.query.shape) * m for x, m in ((und, real), (gen, has_image))]

    def gradients(name, multiple):
        def attend(query, blocks, own):
            return attention(query, blocks, own, implementation=name)

        def total(streams):
            found = attend_in_slots(
                *streams, metadata, attend, freeze_und=freeze_und, multiple=multiple
            )
            kept = [x * (w != 0) for x, w in zip(found, weights, strict=True)]
            return sum((x * w).sum() for x, w in zip(kept, weights, strict=True)), kept

        return jax.jit(jax.grad(total, has_aux=True))((und, gen))

    (slopes, out), (dense_slopes, dense) = gradients("pallas", multiple), gradients("xla", 1)
    for ours, expected in zip(out, dense, strict=True):
        np.testing.assert_allclose(ours, expected, atol=2e-6)
    for ours, expected in zip(jax.tree.leaves(slopes), jax.tree.leaves(dense_slopes), strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-6 * max(np.abs(expected).max(), 1))


def test_an_image_and_its_cached_context():
    """The keys of a merged cache, none of which the second row sees, and those of the image."""
    stream, context = random_stream(3, LATENTS), random_stream(4, 12)
    valid = np.zeros((2, 12), bool)
    valid[0, 1:9] = True
    cached = MergedKeyBlock(
        einops.rearrange(context.key, "b s k h -> (b k) h s"),
        einops.rearrange(context.value, "b s k h -> (b k) s h"),
        valid,
    )
    blocks = [cached, KeyBlock(stream.key, stream.value)]
    assert has_splash_attention(stream.query, blocks)
    ours, expected = (
        attention(stream.query, blocks, implementation=name) for name in ("pallas", "xla")
    )
    np.testing.assert_allclose(ours, expected, atol=2e-6)


def test_where_it_applies():
    query = jnp.ones((1, 4, 2, DIM))
    metadata = jax.tree.map(lambda x: jnp.asarray(x)[:1, :4], rows())
    key = jnp.ones((1, 4, 1, DIM))
    in_order = KeyBlock(key, key, metadata=metadata)
    assert has_splash_attention(query, [in_order.replace(causal_from=0)])
    assert has_splash_attention(query, [KeyBlock(key, key), KeyBlock(key, key, lengths=[2])])
    assert not has_splash_attention(query, [in_order])
    cached = KeyBlock(key, key, valid=jnp.ones((1, 4), bool))
    assert has_splash_attention(query, [cached, KeyBlock(key, key)])
    # No key of the row may be left.
    assert not has_splash_attention(query, [cached])
    assert not has_splash_attention(query, [cached, cached])
    assert not has_splash_attention(query[..., :64], [KeyBlock(key[..., :64], key[..., :64])])


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed (extra tpu)"
)
def test_auto_compiles_it_for_a_tpu():
    """A row of stage 1 on each of two chips: two kernels for each image, and two for the text."""
    mesh = make_mesh(data=2, devices=topology_devices("v5e:2x2")[:2])
    slots = Slots(und_tokens=1376, vit_slots=2, vit_tokens=578, vae_images=0, text_tokens=384)
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    shape = jax.ShapeDtypeStruct((2, 1376, 4, 128), jnp.bfloat16, sharding=sharding)
    column = jax.ShapeDtypeStruct((2, 1376), jnp.int32, sharding=sharding)

    def total(streams, und):
        metadata = SlotMetadata.create(und, slots)
        multiple = preferred_multiple(128, "auto")
        found = attend_in_slots(streams, None, metadata, attention, multiple=multiple)
        return found[0].astype(jnp.float32).sum()

    arguments = (Projected(shape, shape, shape), TokenMetadata(*[column] * 5))
    with use_mesh(mesh):
        compiled = jax.jit(jax.grad(total)).lower(*arguments).compile()
    program = compiled.as_text()
    assert program.count('custom_call_target="tpu_custom_call"') == 6
    assert not any(kind in program for kind in ("all-gather", "all-to-all", "collective-permute"))
    # No array of all pairs.
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * 1376 * 1376 * 4

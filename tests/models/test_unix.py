"""The whole model: against the golden files, plain float64 at other settings, and leaks."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from support.numpy_reference import forward, linear
from unix_jax.config import (
    AutoencoderConfig,
    DecoderConfig,
    SpecialTokens,
    UniXConfig,
    VisionConfig,
)
from unix_jax.models.attention.mask import TokenMetadata
from unix_jax.models.embeddings import patchify
from unix_jax.models.unix import TwoStreamBatch, UniX, init_params, param_shapes
from unix_jax.preprocessing.layout import TextSplit, VaeSplit, VitSplit, lay_out

BASE = UniXConfig(
    decoder=DecoderConfig(20, 28, 2, 4, 2, 6, 40, 64, 1e-3, 300.0),
    vision=VisionConfig(8, 4, 8, 1, 2, 3.0, 1e-2),
    vae=AutoencoderConfig(ch=32, ch_mult=(1, 1), z_channels=2, embed_dim=2),
    special_tokens=SpecialTokens(30, 31, 32, 33, 34),
    latent_patch_size=2,
    max_latent_size=5,
    vit_max_num_patch_per_side=2,
    interpolate_pos=True,
)
# GQA 2 of 4, p = 2, interpolated positions, tanh; then 1 of 4, p = 1, table ids, exact GELU.
SETTINGS = {
    "gqa2_patch2_interpolated": BASE,
    "gqa1_patch1_extrapolated": dataclasses.replace(
        BASE,
        decoder=dataclasses.replace(BASE.decoder, num_kv_heads=1, rope_theta=1e5, head_dim=4),
        latent_patch_size=1,
        max_latent_size=6,
        connector_act="gelu",
        interpolate_pos=False,
    ),
}


def random_params(config):
    rng = np.random.default_rng(0)

    def random(x):
        scale = x.shape[-2] ** -0.5 if len(x.shape) > 1 else 0.5
        return (rng.normal(size=x.shape) * scale).astype(np.float32)

    return jax.tree.map(random, param_shapes(config))


def random_samples(config, rng):
    """Two samples with every kind of split, as `numpy_reference` reads them; non-square images."""
    side, p = config.vision.image_size, config.latent_patch_size

    def vae(height, width, t, noised):
        shape = (height * p, width * p, config.vae.z_channels)
        return ("vae", rng.normal(size=shape).astype(np.float32), t, noised)

    def vit():
        return ("vit", rng.normal(size=(side, side, 3)).astype(np.float32))

    def text(length):
        return ("text", rng.integers(0, 30, length).tolist())

    return [
        [
            vae(2, 3, 0.0, False),
            vit(),
            text(4),
            vae(1, 3, 0.73, True),
            text(2),
            vae(3, 2, 0.2, True),
        ],
        [text(3), vit(), vit(), vae(3, 1, 1.0, True)],
    ]


def as_batch(config, rows, und_padding=0, gen_padding=0):
    """(batch, layout) of rows of such samples."""
    p = config.latent_patch_size

    def split(kind, content, *rest):
        if kind == "text":
            return TextSplit(content)
        if kind == "vit":
            return VitSplit()
        return VaeSplit(content.shape[0] // p, content.shape[1] // p, noised=rest[1])

    splits = [[[split(*s) for s in sample] for sample in row] for row in rows]
    layout = lay_out(splits, config)
    layout = lay_out(
        splits,
        config,
        layout.token_ids.shape[1] + und_padding,
        layout.latent_position_ids.shape[1] + gen_padding,
    )
    shape = layout.latent_position_ids.shape
    latents = np.zeros((*shape, config.latent_channels), np.float32)
    times = np.zeros(shape, np.float32)
    images = [[s[1] for sample in row for s in sample if s[0] == "vit"] for row in rows]
    pixels = np.zeros((len(rows), max(map(len, images)), *images[0][0].shape), np.float32)
    for r, row in enumerate(rows):
        pixels[r, : len(images[r])] = images[r]
        begin = 0
        for kind, content, *rest in (s for sample in row for s in sample):
            if kind == "vae":
                tokens = np.asarray(patchify(content[None], p))[0]
                latents[r, begin : begin + len(tokens)] = tokens
                times[r, begin : begin + len(tokens)] = rest[0]
                begin += len(tokens)
    batch = TwoStreamBatch(
        token_ids=layout.token_ids,
        und=layout.und,
        vit_pixels=pixels,
        vit_index=layout.vit_index,
        gen=layout.gen,
        latents=latents,
        timesteps=times,
        latent_position_ids=layout.latent_position_ids,
    )
    return batch, layout


def in_sequence(layout, streams, row):
    """One row of both streams in sequence order, padding dropped."""
    out = {}
    for values, places, info in (
        (streams[0], layout.und_sequence, layout.und),
        (streams[1], layout.gen_sequence, layout.gen),
    ):
        for value, place, segment in zip(values[row], places[row], info.segment[row], strict=True):
            if segment:
                out[int(place)] = np.asarray(value)
    return np.array([out[place] for place in range(len(out))])


@pytest.fixture(scope="module", params=sorted(SETTINGS))
def case(request):
    """Config, parameters, a compiled forward pass, and samples packed in rows [[0, 1], [1]]."""
    config = SETTINGS[request.param]
    params = random_params(config)
    model = UniX(config)

    @jax.jit
    def run(params, batch):
        und, gen = model.apply({"params": params}, batch)
        return (
            und,
            gen,
            model.apply({"params": params}, und, method=UniX.logits),
            model.apply({"params": params}, gen, method=UniX.velocity),
        )

    samples = random_samples(config, np.random.default_rng(1))
    rows = [samples, samples[1:]]
    return config, params, lambda batch: jax.tree.map(np.asarray, run(params, batch)), rows


def test_packed_streams_match_plain_float64(case, assert_close):
    """Every token of two packed rows of unequal length, and the logits and velocities."""
    config, params, run, rows = case
    batch, layout = as_batch(config, rows, und_padding=2, gen_padding=1)
    und, gen, logits, velocity = run(batch)
    wide = jax.tree.map(lambda x: x.astype(np.float64), params)
    plain = [forward(sample, wide, config) for sample in rows[0]]
    for row, parts in ((0, plain), (1, plain[1:])):
        hidden = np.concatenate([h for h, _ in parts])
        is_gen = np.concatenate([flags for _, flags in parts])
        assert_close(in_sequence(layout, (und, gen), row), hidden)
        real_und = layout.und.segment[row] > 0
        real_gen = layout.gen.segment[row] > 0
        expected = linear(hidden[~is_gen], wide["lm_head"])
        assert_close(logits[row][real_und], expected)
        assert_close(velocity[row][real_gen], linear(hidden[is_gen], wide["llm2vae"]))
        assert logits.dtype == velocity.dtype == np.float32


def test_nothing_leaks(case):
    """Exact: the second sample, and what stands before a change, do not move with it."""
    config, _, run, rows = case
    batch, layout = as_batch(config, rows, und_padding=2, gen_padding=1)
    before = run(batch)[:2]

    def moved(changed):
        """Places of row 0 in sequence order that differ; row 1 must not."""
        after = run(changed)[:2]
        for a, b, info in zip(after, before, (layout.und, layout.gen), strict=True):
            np.testing.assert_array_equal(a[1][info.segment[1] > 0], b[1][info.segment[1] > 0])
        a, b = (in_sequence(layout, x, 0) for x in (after, before))
        return np.flatnonzero((a != b).any(-1))

    tokens = config.vision.num_patches + 2
    # Sample 0: clean image 8, ViT, text 4, noised 5, text 2, noised 8 tokens; then sample 1.
    begins = np.cumsum([0, 8, tokens, 4, 5, 2, 8])
    text = int(begins[2])
    end = int(begins[-1])

    ids = batch.token_ids.copy()
    ids[0, np.flatnonzero(layout.und_sequence[0] == text + 2)[0]] ^= 1
    assert moved(dataclasses.replace(batch, token_ids=ids)).tolist() == list(range(text + 2, end))

    latents = batch.latents.copy()
    latents[0, 6 + 1] += 1  # a latent of the first noised image: seen inside it only
    noised = list(range(int(begins[3]), int(begins[4])))
    assert moved(dataclasses.replace(batch, latents=latents)).tolist() == noised

    latents = batch.latents.copy()
    latents[0, 0] += 1  # a latent of the clean image: seen by the whole sample
    assert moved(dataclasses.replace(batch, latents=latents)).tolist() == list(range(end))

    pixels = batch.vit_pixels.copy()
    pixels[0, 2] += 1  # the last ViT image, in sample 1 behind 3 text tokens and another image
    first = end + 3 + tokens
    total = int(layout.und_sequence[0].max()) + 1
    assert moved(dataclasses.replace(batch, vit_pixels=pixels)).tolist() == list(
        range(first, total)
    )

    ids, times = batch.token_ids.copy(), batch.timesteps.copy()
    ids[:, -2:], times[:, -1:] = 7, 0.5  # padding
    padding = dataclasses.replace(batch, token_ids=ids, timesteps=times)
    assert not len(moved(padding))


def test_ids_at_patches_do_not_matter(case):
    config, _, run, rows = case
    batch, _ = as_batch(config, rows, und_padding=2, gen_padding=1)
    ids = np.where(batch.vit_index >= 0, 11, batch.token_ids)
    und, *_ = run(dataclasses.replace(batch, token_ids=ids))
    np.testing.assert_array_equal(und, run(batch)[0])


# ----------------------------------------------------------------------------- golden


def test_golden_understanding(tiny, golden, assert_close):
    special = tiny.config.special_tokens
    text = [special.bos, *golden["und.prompt_ids"].tolist(), special.eos]
    layout = lay_out([[[VitSplit(), TextSplit(text)]]], tiny.config)
    pixels = np.moveaxis(golden["und.pixel_values"], 1, -1)[:, None]
    batch = TwoStreamBatch(layout.token_ids, layout.und, pixels, layout.vit_index)
    (und, gen), (keys, values), _ = tiny.apply("forward", batch)
    assert gen is None
    assert layout.und_sequence[0].tolist() == list(range(22))
    assert_close(und[0, :11], golden["und.image_hidden"])
    assert_close(und[0, 11:], golden["und.text_hidden"])
    for layer in range(3):
        assert_close(keys[layer, 0], golden[f"und.key_cache.{layer}"])
        assert_close(values[layer, 0], golden[f"und.value_cache.{layer}"])


def test_golden_velocities(tiny, golden, assert_close):
    """Text and noised image in one pass of both streams, without a cache."""
    special = tiny.config.special_tokens
    text = [special.bos, *golden["gen.prompt_ids"].tolist(), special.eos]
    layout = lay_out([[[TextSplit(text), VaeSplit(4, 4, noised=True)]]], tiny.config)
    np.testing.assert_array_equal(layout.latent_position_ids[0], golden["gen.latent_position_ids"])
    np.testing.assert_array_equal(layout.gen.position[0], golden["gen.position_ids"][1:-1])
    for t in ("0.2", "0.73", "1.0"):
        batch = TwoStreamBatch(
            token_ids=layout.token_ids,
            und=layout.und,
            gen=layout.gen,
            latents=golden["gen.init_noise"][None],
            timesteps=np.full((1, 16), float(t), np.float32),
            latent_position_ids=layout.latent_position_ids,
        )
        (_, gen), *_ = tiny.apply("forward", batch)
        assert_close(tiny.apply("velocity", gen)[0], golden[f"gen.velocity.t{t}"])


# ----------------------------------------------------------------------------- parameters


def test_initial_values():
    """Velocity 0 at the start; biases 0; norms 1; the position table as defined."""
    params = jax.jit(lambda key: init_params(BASE, key))(jax.random.key(0, impl="rbg"))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == jax.tree.map(
        lambda x: (x.shape, x.dtype), param_shapes(BASE)
    )
    assert not np.asarray(params["llm2vae"]["kernel"]).any()
    assert params["latent_pos_embed"].shape == (25, 20)
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        name = path[-1].key
        if name == "bias":
            assert not np.asarray(leaf).any()
        elif name == "scale":
            assert (np.asarray(leaf) == 1).all()
        elif name == "kernel" and path[0].key != "llm2vae":
            assert np.asarray(leaf).std() > 0


def test_position_table_gets_no_gradient():
    model, params = UniX(BASE), random_params(BASE)
    tokens = jnp.ones((1, 3, BASE.latent_channels)), jnp.zeros((1, 3)), jnp.arange(3)[None]
    gradient = jax.grad(
        lambda p: model.apply({"params": p}, *tokens, method=UniX.embed_latents).sum()
    )(params)
    assert not np.asarray(gradient["latent_pos_embed"]).any()
    assert np.asarray(gradient["vae2llm"]["kernel"]).any()


def test_every_leaf_has_a_name_for_each_axis():
    import flax.linen as nn

    boxed = param_shapes(BASE, boxed=True)
    leaves = jax.tree.leaves(boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))
    for leaf in leaves:
        if isinstance(leaf, nn.LogicallyPartitioned):
            assert len(leaf.names) == len(leaf.value.shape)


def test_bfloat16_outputs_are_float32():
    model, params = UniX(BASE, dtype=jnp.bfloat16), random_params(BASE)
    hidden = jnp.ones((1, 2, 20), jnp.bfloat16)
    for method in (UniX.logits, UniX.velocity):
        assert model.apply({"params": params}, hidden, method=method).dtype == jnp.float32


@pytest.mark.extended
def test_metadata_of_a_batch_may_come_from_the_host():
    """Layouts are numpy: their metadata joins without complaint."""
    _, layout = as_batch(BASE, [random_samples(BASE, np.random.default_rng(0))])
    joined = TokenMetadata.concatenate([layout.und, layout.gen])
    total = layout.token_ids.shape[1] + layout.latent_position_ids.shape[1]
    assert joined.order.shape == (1, total)

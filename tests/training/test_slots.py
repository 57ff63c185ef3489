"""Rows with images in slots: the numbers of rows in the order of their samples."""

import dataclasses
import functools
import re

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support import toy_data, toy_run
from support.toy_batches import CONFIG, unix_params
from support.toy_pipelines import random_params
from support.toy_unet import BACKBONE
from unix_jax.data.collate import collate, load
from unix_jax.data.config import DataConfig
from unix_jax.data.packing import Planner
from unix_jax.data.records import Record, Turn
from unix_jax.data.samples import Cost, TrainingSample, UnderstandingSamples
from unix_jax.data.slots import slots_of
from unix_jax.errors import ConfigError, DataError
from unix_jax.models.attention.mask import CAUSAL, FULL
from unix_jax.models.unix import UniX, param_shapes
from unix_jax.preprocessing.layout import TextSplit, VaeSplit, VitSplit
from unix_jax.sharding import make_mesh, shard_batch, use_mesh
from unix_jax.training.losses import LossConfig, unix_loss

# Rows of up to 3 ViT images of 6 tokens each, and 2 VAE images. The slots leave 14 positions for
# text: 22 tokens reach into the slots of a row of one image.
DATA = DataConfig(
    rows=2, und_tokens=36, vit_images=3, vae_images=2, vae_height=8, vae_width=8, epochs=1
)
TEXT_TOKENS = 22
LOSSES = LossConfig(ce_chunk=16)


def text(rng, length):
    return TextSplit([58, *rng.integers(0, 58, length - 2).tolist(), 59])


def sample(rng, kind, length):
    """A report of an image, a conversation about it, or an image to generate (from a text)."""
    first = [(text(rng, length), kind != "image")] if length >= 2 else []
    if kind == "image":
        splits = [*first, (VaeSplit(2, 2, noised=True), True)]
    else:
        later = [(text(rng, 3), False), (text(rng, 2), True)] if kind == "conversation" else []
        splits = [(VitSplit(), False), *first, *later]
    sizes = [(16, 16, 3) if isinstance(x, VitSplit) else (8, 8, 3) for x, _ in splits]
    images = [
        functools.partial(rng.uniform, -1, 1, size)
        for (split, _), size in zip(splits, sizes, strict=True)
        if not isinstance(split, TextSplit)
    ]
    return load(TrainingSample("s", *map(tuple, zip(*splits, strict=True)), tuple(images)))


def row_of(seed, plan):
    """As many samples of the plan as fit a row in slots."""
    rng = np.random.default_rng(seed)
    row, written, vit, vae = [], 0, 0, 0
    for kind, length in plan:
        length = 0 if kind == "image" and length < 2 else max(length, 2)
        tokens = length + (5 if kind == "conversation" else 0)
        more_vit, more_vae = (0, 1) if kind == "image" else (1, 0)
        if (
            written + tokens > TEXT_TOKENS
            or vae + more_vae > 2
            or 6 * (vit + more_vit) + written + tokens + 4 > DATA.und_tokens
        ):
            continue
        row.append(sample(rng, kind, length))
        written, vit, vae = written + tokens, vit + more_vit, vae + more_vae
    return row


plans = st.lists(
    st.tuples(st.sampled_from(["report", "conversation", "image"]), st.integers(0, 12)), max_size=6
)


def batches(rows, data=DATA, text_tokens=TEXT_TOKENS):
    """(in the order of samples, in slots), with moments in the place of pixels of VAE images."""
    found = []
    for tokens in (None, text_tokens):
        batch = collate(rows, CONFIG, dataclasses.replace(data, text_tokens=tokens))
        if batch.vae_pixels is not None:
            moments = np.random.default_rng(0).normal(size=(*batch.noised.shape, 4, 4, 8))
            batch = batch.replace(vae_pixels=None, vae_moments=moments.astype(np.float32))
        found.append(batch)
    return found


@functools.cache
def gradients(**options):
    model = UniX(CONFIG, **options)

    def loss(params, batch):
        return unix_loss(model, {"unix": params}, batch, jax.random.key(4), LOSSES)

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def assert_same(found, expected):
    """((loss, its parts), gradients) are equal, each array relative to its largest number."""

    def same(a, b):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * max(np.abs(b).max(), 1e-3))

    jax.tree.map(same, found, expected)


@pytest.mark.extended
@pytest.mark.parametrize(
    "options",
    [{"freeze_und": False}, {"freeze_und": True, "remat_policy": "dots"}],
)
def test_loss_and_gradients(options):
    compute, reaching = gradients(**options), []

    @given(st.integers(0, 2**16), plans, plans)
    @settings(max_examples=15, deadline=None, derandomize=True)
    def of_packing(seed, first, second):
        ordered, slotted = batches([row_of(seed, first), row_of(seed + 1, second)])
        assert ordered.slots is None
        begin, end = slotted.slots.text_begin, slotted.slots.vit_end
        shared = slotted.und.mode[:, begin:end][slotted.und.segment[:, begin:end] > 0]
        reaching.append((CAUSAL in shared, FULL in shared))
        assert_same(compute(unix_params(), slotted), compute(unix_params(), ordered))

    of_packing()
    # Slots at the positions for text had text and images, also both in one batch.
    assert (True, True) in reaching


@pytest.mark.extended
def test_understanding_alone():
    data = dataclasses.replace(DATA, vae_images=0)
    rows = [row_of(0, [("report", 9), ("report", 4)]), row_of(1, [("conversation", 14)])]
    ordered, slotted = batches(rows, data)
    assert slotted.gen is None
    compute = gradients()
    assert_same(compute(unix_params(), slotted), compute(unix_params(), ordered))


@pytest.mark.extended
def test_unet_reads_the_same_context():
    """Its und stream runs alone, without latents."""
    config = dataclasses.replace(CONFIG, generation=BACKBONE)
    params = random_params(param_shapes(config), 0)

    @jax.jit
    def loss(batch):
        model = UniX(config, freeze_und=True)
        return unix_loss(model, {"unix": params}, batch, jax.random.key(4), LOSSES)

    plan = [("report", 6), ("image", 5), ("image", 0)]
    ordered, slotted = batches([row_of(0, plan), row_of(1, plan[::-1])])
    assert_same(loss(slotted), loss(ordered))


@pytest.mark.extended
@pytest.mark.skipif(jax.device_count() != 8, reason="needs 8 (virtual) devices")
def test_on_a_mesh():
    """One device's numbers, and no device gets the slots of others."""
    plan = [("report", 6), ("image", 5), ("report", 3), ("image", 0)]
    _, slotted = batches([row_of(seed, plan) for seed in range(8)])
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    expected = gradients()(unix_params(), slotted)
    gradients.cache_clear()
    with use_mesh(mesh):
        compiled = gradients().lower(unix_params(), shard_batch(slotted, mesh)).compile()
        found = compiled(unix_params(), shard_batch(slotted, mesh))
    gradients.cache_clear()
    assert_same(found, expected)
    slots, images = 8 * slotted.slots.vit_slots, 8 * slotted.slots.vae_images
    results = re.findall(
        r"= (.*?) (?:all-gather|all-to-all|collective-permute)(?:-start)?\(", compiled.as_text()
    )
    for dims in re.findall(r"f32\[(\d+),[\d,]+\]", " ".join(results)):
        assert int(dims) not in (slots, images)


# ----------------------------------------------------------------------------- what fits


def test_rows_that_do_not_fit_are_refused():
    data = dataclasses.replace(DATA, text_tokens=TEXT_TOKENS)
    rng = np.random.default_rng(0)

    def one(*splits):
        sizes = [(16, 16, 3) if isinstance(x, VitSplit) else (8, 8, 3) for x in splits]
        images = [
            functools.partial(np.zeros, size, np.float32)
            for split, size in zip(splits, sizes, strict=True)
            if not isinstance(split, TextSplit)
        ]
        return load(TrainingSample("s", splits, (False,) * len(splits), tuple(images)))

    for splits, message in (
        ((VitSplit(), VitSplit()), "at the beginning of their samples"),
        ((text(rng, 4), VitSplit()), "at the beginning of their samples"),
        ((VaeSplit(2, 2, noised=False), text(rng, 4)), "no clean VAE images"),
        ((VitSplit(), text(rng, 23)), "at most 22 tokens of text and 2 VAE images, found 23"),
    ):
        with pytest.raises(ValueError, match=message):
            collate([[one(*splits)]], CONFIG, data)


def test_sizes_of_slots():
    """The text is as long as asked, but fills what images leave and not more than the row."""
    config, tokens = CONFIG, {}
    for asked in (1, TEXT_TOKENS, 100):
        slots = slots_of(config, dataclasses.replace(DATA, text_tokens=asked))
        tokens[asked] = slots.text_tokens
    assert tokens == {1: 14, TEXT_TOKENS: 22, 100: 32}
    assert slots_of(config, DATA) is None
    with pytest.raises(ConfigError, match=r"data.und_tokens: expected more than the 4 boundary"):
        slots_of(config, dataclasses.replace(DATA, und_tokens=4, text_tokens=1))
    with pytest.raises(ConfigError, match=r"data.text_tokens: expected None with the task edit"):
        DataConfig(task="edit", vae_images=2, text_tokens=8)


class Costs(list):
    """A source of samples of these costs."""

    uses = ("und", "vit", "vae")

    def cost(self, index, epoch):
        return self[index]

    def key(self, index):
        return f"s{index}"


COSTS = st.builds(
    lambda kind, text: Cost(6 + text, 1, 0) if kind else Cost(2 + text, 0, 1),
    st.booleans(), st.integers(0, 24),
)  # fmt: skip


@given(st.lists(COSTS, min_size=1, max_size=40), st.integers(0, 2**16))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_planned_rows_fit_their_slots(costs, seed):
    data = dataclasses.replace(DATA, text_tokens=TEXT_TOKENS, seed=seed)
    slots = slots_of(CONFIG, data)
    planner = Planner(Costs([Cost(8, 1, 0), *costs]), data, slots)
    rows = [row for step in iter(planner.next_step, None) for row in step]
    for row in rows:
        und, vit, vae = row.cost
        written = und - 6 * vit - 2 * vae
        assert written <= TEXT_TOKENS
        assert 6 * vit + written <= slots.text_end
    too_long = sum(cost.und - 6 * cost.vit - 2 * cost.vae > TEXT_TOKENS for cost in costs)
    assert planner.skipped["too_long"] == too_long
    assert sum(len(row.indices) for row in rows) == 1 + len(costs) - too_long


def test_a_state_without_slots_resumes_with_them():
    """The same samples in the same rows, if their texts fit."""
    data = dataclasses.replace(DATA, vae_images=0)
    with_slots = dataclasses.replace(data, text_tokens=TEXT_TOKENS)
    slots = slots_of(CONFIG, with_slots)
    costs = Costs([Cost(6 + 3 + i % 5, 1, 0) for i in range(30)])
    before, whole = Planner(costs, data), Planner(costs, data)
    for planner in (before, whole):
        planner.next_step()
    after = Planner(costs, with_slots, slots)
    after.restore(before.state())
    assert [*iter(after.next_step, None)] == [*iter(whole.next_step, None)]
    long = Costs([Cost(6 + 25, 1, 0)] * 4)
    before = Planner(long, dataclasses.replace(data, rows=1, open_rows=1))
    before.next_step()
    assert before.state()["open_rows"]
    with pytest.raises(DataError, match=r"data.text_tokens \(22\) is too small for the row"):
        Planner(long, with_slots, slots).restore(before.state())


def test_conversations_of_several_images_are_named():
    """They have no place in slots, and the error says which option takes them."""
    two = Record("two", b"", more_images=(b"",), answer="a", turns=(Turn((0, 1, "q"), "a"),))
    later = Record("later", b"", answer="a", turns=(Turn(("q",), "a"), Turn((0,), "b")))
    one = Record("one", b"", answer="a", turns=(Turn((0, "q"), "a"), Turn(("r",), "b")))
    data = dataclasses.replace(toy_data.UNDERSTANDING, text_tokens=60)
    samples = UnderstandingSamples([two, later, one], toy_data.tokenizer(), toy_data.CONFIG, data)
    found = [samples.cost(index, 0) for index in range(3)]
    assert [isinstance(cost, Cost) for cost in found] == [False, False, True]
    assert {skip.reason for skip in found[:2]} == {"too_long"}
    samples = UnderstandingSamples([two], toy_data.tokenizer(), toy_data.CONFIG, data)
    with pytest.raises(DataError, match=r"two: too_long: 2 image.*--data.text-tokens None takes"):
        Planner(samples, data, slots_of(toy_data.CONFIG, data)).next_step()


@pytest.mark.extended
def test_a_run_resumes_with_slots(toy, train, tmp_path, capsys):
    """The losses of a run without them, which are those of the same samples in the same order."""
    config = [str(toy("understanding")), "--validate-every", "4"]
    assert train.main([*config, "--out", str(tmp_path / "whole")]) == 0
    half = [*config, "--out", str(tmp_path / "half")]
    assert train.main([*half, "--total-steps", "4"]) == 0
    capsys.readouterr()
    assert train.main([*half, "--data.text-tokens", "128"]) == 0
    assert "data.text_tokens: None -> 128" in capsys.readouterr().err
    whole, half = (toy_run.metrics(tmp_path / name) for name in ("whole", "half"))
    assert [line["step"] for line in half] == [line["step"] for line in whole]
    for name in ("loss", "grad_norm", "epoch"):
        np.testing.assert_allclose(
            [line[name] for line in half], [line[name] for line in whole], rtol=1e-4
        )

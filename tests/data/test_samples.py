"""Samples: their splits, what they cost, and choices that depend on (seed, epoch, index) alone."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.toy_data import (
    CONFIG,
    GENERATION,
    UNDERSTANDING,
    ListSource,
    picture,
    records,
    tokenizer,
)
from unix_jax.data.records import Record
from unix_jax.data.samples import (
    Cost,
    GenerationSamples,
    Skip,
    TrainingSample,
    draw,
    record_samples,
)
from unix_jax.errors import DataError
from unix_jax.preprocessing.images import load_image
from unix_jax.preprocessing.layout import TextSplit, VaeSplit, VitSplit
from unix_jax.preprocessing.pixels import vit_input
from unix_jax.preprocessing.transforms import to_model_image

BOS, EOS = CONFIG.special_tokens.bos, CONFIG.special_tokens.eos


def samples(source, data):
    return record_samples(ListSource(source), tokenizer(), CONFIG, data)


def ids(text):
    return [BOS, *tokenizer().encode(text), EOS]


def test_understanding_sample():
    record = Record("a", picture(1), findings="Clear lungs.", impression="Normal.")
    data = dataclasses.replace(UNDERSTANDING, prompts=("Report.",))
    source = samples([record], data)
    sample = source.build(0, 0)
    report = ids("FINDINGS: Clear lungs. IMPRESSION: Normal.")
    assert sample.key == "a"
    assert sample.splits == (VitSplit(), TextSplit(ids("Report.")), TextSplit(report))
    assert sample.losses == (False, False, True)
    assert source.cost(0, 0) == Cost(6 + len(ids("Report.")) + len(report), 1, 0)
    (pixels,) = (read() for read in sample.images)
    assert pixels.shape == (32, 32, 3)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(vit_input(pixels), to_model_image(load_image(record.image), 32))


def test_records_own_prompt_comes_first():
    record = Record("a", picture(1), findings="Clear.", prompt="Any effusion?")
    source = samples([record], UNDERSTANDING)
    assert source.build(0, 3).splits[1] == TextSplit(ids("Any effusion?"))
    assert source.cost(0, 3) == source.build(0, 3).cost(CONFIG)


def test_generation_sample():
    record = Record("a", picture(1), captions=("One.", "Another one."))
    data = dataclasses.replace(GENERATION, caption_dropout=0.0)
    source = samples([record], data)
    noised = VaeSplit(3, 2, noised=True)
    seen = set()
    for epoch in range(20):
        sample = source.build(0, epoch)
        text, image = sample.splits
        assert image == noised
        assert sample.losses == (False, True)
        seen.add(tuple(text.ids))
    assert seen == {tuple(ids("One.")), tuple(ids("Another one."))}
    (pixels,) = (read() for read in sample.images)
    assert pixels.shape == (12, 8, 3)
    assert pixels.dtype == np.uint8


def test_dropped_caption_leaves_the_image_alone():
    """No text split at all: bos and eos go too."""
    source = samples(records(3), dataclasses.replace(GENERATION, caption_dropout=1.0))
    sample = source.build(0, 0)
    assert sample.splits == (VaeSplit(3, 2, noised=True),)
    assert sample.losses == (True,)
    assert source.cost(0, 0) == Cost(2, 0, 1)


def test_dropout_probability():
    source = samples(records(1), GENERATION)
    dropped = np.array([source.cost(0, epoch) == Cost(2, 0, 1) for epoch in range(4000)])
    # Five standard deviations.
    assert abs(dropped.mean() - 0.1) < 5 * (0.1 * 0.9 / 4000) ** 0.5


def test_draws_are_uniform_and_independent():
    numbers = np.array([draw(3, e, i) for e in range(20) for i in range(200)])
    assert numbers.min() >= 0
    assert numbers.max() < 1
    np.testing.assert_allclose(numbers.mean(axis=0), 0.5, atol=0.02)
    np.testing.assert_allclose(np.corrcoef(numbers.T), np.eye(4), atol=0.06)
    assert len({tuple(row) for row in numbers}) == len(numbers)
    # Pinned: another numpy must not change what a resumed run draws.
    pinned = (0.7045824676495797, 0.26076401540214533, 0.06628342881795479, 0.5959056678589826)
    np.testing.assert_allclose(draw(1, 2, 3), pinned, rtol=1e-15)


@given(st.integers(0, 5), st.integers(0, 30), st.integers(0, 6), st.sampled_from([0, 1]))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_cost_is_that_of_the_built_sample(seed, index, epoch, kind):
    data = dataclasses.replace((UNDERSTANDING, GENERATION)[kind], seed=seed, caption_dropout=0.4)
    source = samples(records(31), data)
    built = source.build(index, epoch)
    assert source.cost(index, epoch) == built.cost(CONFIG)
    # Another object, asked in another order, draws the same.
    assert samples(records(31), data).build(index, epoch).splits == built.splits


def test_unusable_records_are_told_apart():
    unusable = [
        Record("no text", picture(0)),
        Record("no image", None, findings="Clear.", captions=("A.",)),
        "row 2: broken",
        Record("surrogate", picture(0), findings="\ud800"),
    ]
    reasons = ["no_text", "no_image", "broken", "broken"]
    for data in (UNDERSTANDING, dataclasses.replace(GENERATION, caption_dropout=1.0)):
        source = samples(unusable, data)
        found = [source.cost(i, 0) for i in range(4)]
        assert [skip.reason for skip in found] == reasons
        assert found[2] == Skip("broken", "row 2: broken")


def test_a_report_without_sections_is_skipped_with_its_problem():
    record = Record("wet read", picture(0), report_problem="no findings and no impression")
    skip = samples([record], UNDERSTANDING).cost(0, 0)
    assert skip == Skip("no_text", "no findings and no impression")


def test_moments_replace_the_image():
    moments = np.zeros((6, 4, 8), np.float32)
    records = ListSource([Record("a", None, captions=("A.",))])
    source = GenerationSamples(
        records, tokenizer(), CONFIG, GENERATION, moments=lambda index, key: moments
    )
    assert isinstance(source.cost(0, 0), Cost)
    assert source.build(0, 0).images[0]() is moments


def test_broken_image_raises_when_it_is_read():
    sample = samples([Record("a", b"no image", captions=("A.",))], GENERATION).build(0, 0)
    with pytest.raises(DataError, match=r"^a: "):
        sample.images[0]()


def test_sample_checks_itself():
    split, image = TextSplit([BOS, EOS]), VaeSplit(1, 1, noised=False)
    with pytest.raises(ValueError, match=r"expected 2 loss flags and 1 image loaders, found 1 and"):
        TrainingSample("a", (split, image), (True,), (lambda: np.zeros(1),))
    with pytest.raises(ValueError, match=r"a loss on text and noised images only"):
        TrainingSample("a", (split, image), (True, True), (lambda: np.zeros(1),))

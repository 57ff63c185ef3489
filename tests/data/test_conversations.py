"""Conversations of several images and turns: read, stored, packed, with a loss on answers alone."""

import dataclasses
import json

import numpy as np
import pytest

from support.toy_data import CONFIG, UNDERSTANDING, ListSource, picture, tokenizer
from unix_jax.data.collate import collate, load
from unix_jax.data.inspection import inspect_source
from unix_jax.data.model_images import vit_pixels
from unix_jax.data.records import Record, Turn, question_images, record_image, report_text
from unix_jax.data.samples import Cost, Skip, record_samples
from unix_jax.data.sources import open_source
from unix_jax.data.sources.array_records import (
    decode_record,
    encode_record,
    shrunk,
    write_array_records,
)
from unix_jax.data.sources.tfds_builder import to_example
from unix_jax.errors import DataError
from unix_jax.preprocessing.layout import TextSplit, VitSplit

TURNS = (
    ("human", "<image>\n<image>\nDescribe both views."),
    ("gpt", "FINDINGS: Clear. IMPRESSION: Normal."),
    ("human", "Before: <image> Is it new?"),
    ("gpt", "No."),
)


def conversation(*turns, image=("a.png", "b.png", "c.png"), **fields):
    spoken = [{"from": side, "value": text} for side, text in turns]
    return {"image": list(image), "conversations": spoken, **fields}


@pytest.fixture
def file(tmp_path):
    """Frontal, lateral and the previous study; then two images amid text; then two without."""
    for number, name in enumerate("abc"):
        (tmp_path / f"{name}.png").write_bytes(picture(number))
    between = [("human", "Now: <image> Then: <image> Compare."), ("gpt", "Unchanged.")]
    bare = [("human", "<image><image>"), ("gpt", "FINDINGS: Clear.")]
    rows = [
        conversation(*TURNS, id="x"),
        conversation(*between, image=("a.png", "c.png")),
        conversation(*bare, image=("a.png", "b.png")),
    ]
    found = tmp_path / "c.jsonl"
    found.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return found


def test_read(file):
    first, second, third = open_source(f"conversations:{file}")
    assert [path.name for path in first.images] == ["a.png", "b.png", "c.png"]
    assert first.turns == (
        Turn((0, 1, "Describe both views."), "FINDINGS: Clear. IMPRESSION: Normal."),
        # An only image comes before the text of its question.
        Turn((2, "Before: Is it new?"), "No."),
    )
    assert (first.key, first.prompt, first.findings) == ("x", "Describe both views.", "Clear.")
    assert report_text(first) == first.turns[0].answer
    assert [image.size for image in question_images(first)] == [(24, 20)] * 2
    assert second.turns == (Turn(("Now:", 0, "Then:", 1, "Compare."), "Unchanged."),)
    assert second.prompt == "Now: Then: Compare."
    assert second.key.endswith("a.png")
    assert third.turns == (Turn((0, 1), "FINDINGS: Clear."),)
    assert third.prompt == ""


def test_one_turn_with_one_image_is_as_before(tmp_path):
    rows = [conversation(("human", "See <image> here"), ("gpt", "Yes."), image=["a.png"])]
    rows.append(rows[0] | {"conversations": [*rows[0]["conversations"]] * 1})
    file = tmp_path / "c.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (record, _) = open_source(f"conversations:{file}")
    assert (record.turns, record.more_images) == ((), ())
    assert (record.prompt, record.answer) == ("See here", "Yes.")


def test_stored(file, tmp_path):
    source = open_source(f"conversations:{file}")
    write_array_records(source, tmp_path / "records")
    stored = open_source(f"array_record:{tmp_path / 'records'}")
    for one, other in zip(source, stored, strict=True):
        assert [path.read_bytes() for path in one.images] == list(other.images)
        plain = {"image": None, "more_images": ()}
        assert dataclasses.replace(one, **plain) == dataclasses.replace(other, **plain)
    small = shrunk(source[0], 20)
    assert [max(record_image(small, i).size) for i in range(3)] == [20] * 3
    encoded = encode_record(source[0])
    with pytest.raises(DataError, match="expected images of"):
        decode_record(encoded[:-1], "here")
    with pytest.raises(DataError, match=r"for the format tfds, found 3 images, 2 turns"):
        to_example(source[0])


def test_inspected(file):
    (file.parent / "b.png").unlink()
    summary = inspect_source(open_source(f"conversations:{file}"))
    assert summary.report_lengths == [4, 1, 1, 2]
    assert summary.missing_files == 2
    assert "b.png: no such file" in summary.errors[0]


def kinds(sample):
    return "".join("v" if isinstance(split, VitSplit) else "t" for split in sample.splits)


def test_samples(file):
    samples = record_samples(open_source(f"conversations:{file}"), tokenizer(), CONFIG, DATA)
    built = [samples.build(i, 0) for i in range(3)]
    assert [kinds(sample) for sample in built] == ["vvttvtt", "tvtvtt", "vvtt"]
    assert built[0].losses == (False, False, False, True, False, False, True)
    for index, sample in enumerate(built):
        assert samples.cost(index, 0) == sample.cost(CONFIG)
        assert sum(sample.losses) == (2 if index == 0 else 1)
    answer = built[0].splits[-1]
    assert isinstance(answer, TextSplit)
    assert tokenizer().decode(answer.ids) == "No."
    # Without words of its own the question is one of the configuration's.
    assert tokenizer().decode(built[2].splits[2].ids) in DATA.prompts


DATA = dataclasses.replace(UNDERSTANDING, und_tokens=400, vit_images=6)


def test_packed_as_alone(file):
    """In a row of several samples, each has its images, and answers alone have a loss."""
    source = open_source(f"conversations:{file}")
    samples = record_samples(source, tokenizer(), CONFIG, DATA)
    loaded = [load(samples.build(i, 0)) for i in (0, 1)]
    alone = [collate([[one]], CONFIG, DATA) for one in loaded]
    packed = collate([loaded], CONFIG, DATA)
    start = 0
    for number, one in enumerate(alone):
        length = int((one.und.segment > 0).sum())
        part = slice(start, start + length)
        for name in ("token_ids", "labels", "ce_weights"):
            np.testing.assert_array_equal(
                getattr(packed, name)[0, part], getattr(one, name)[0, :length]
            )
        np.testing.assert_array_equal(packed.und.position[0, part], one.und.position[0, :length])
        shift = sum(len(loaded[i].images) for i in range(number)) * CONFIG.vision.num_patches
        index = one.vit_index[0, :length]
        expected = np.where(index >= 0, index + shift, -1)
        np.testing.assert_array_equal(packed.vit_index[0, part], expected)
        start += length
    for number, record in enumerate((source[0], source[1])):
        for image in range(len(record.images)):
            place = image + (3 if number else 0)
            np.testing.assert_array_equal(
                packed.vit_pixels[0, place], vit_pixels(record, CONFIG, number=image)
            )
    weights = alone[0].ce_weights[0]
    answers = [len(tokenizer().encode(turn.answer)) + 1 for turn in source[0].turns]
    assert weights.sum() == sum(answers)


def test_left_out():
    turns = (Turn(("a",), "b"), Turn(("c",), "d"))
    images = tuple(picture(i) for i in range(7))
    many = Record("m", images[0], answer="b", turns=(Turn(tuple(range(7)), "b"),),
                  more_images=images[1:])  # fmt: skip
    samples = record_samples(
        ListSource([Record("t", answer="b", turns=turns), many]), tokenizer(), CONFIG, DATA
    )
    assert samples.cost(0, 0) == Skip("no_image")
    cost = samples.cost(1, 0)
    assert isinstance(cost, Cost)
    assert cost.vit == 7

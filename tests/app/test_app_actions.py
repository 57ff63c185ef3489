"""What buttons do, without a page."""

import base64
import csv
import dataclasses
import html
import io
import itertools
import json
import logging
import re

import numpy as np
import pytest
from PIL import Image

from unix_jax.app.actions import FAILED, Stop
from unix_jax.app.bundled import Example
from unix_jax.app.choices import Limits
from unix_jax.app.image_actions import ImageActions
from unix_jax.app.image_models import UniXImages, image_model
from unix_jax.app.report_actions import ReportActions
from unix_jax.inference.programs import ProgramBudget
from unix_jax.preprocessing.transforms import to_gray_pil

SAME = "unchanged"
SETTINGS = (0, 4, 2.0)
COMMON = (32, 3.0, "global", "euler")
REPORT = ("Report:", 6, 0.0, 1.0, 0)
HOSTILE = "<script>alert(1)</script>\"' ${value} {{value}}"


LIMITS = Limits(session_images=3)
SHARED = {"limits": LIMITS, "unchanged": SAME, "empty": "Nothing yet."}


@pytest.fixture
def actions(pipe):
    images = image_model(pipe, LIMITS)
    return ImageActions(images=images, programs=ProgramBudget(8), **SHARED)


@pytest.fixture
def reports(pipe):
    return ReportActions(pipe=pipe, programs=ProgramBudget(8), **SHARED)


def last(steps):
    return list(steps)[-1]


def test_an_upload_and_its_report(reports, pipe, xray_png):
    xray, figure, report, *_ = last(reports.read_upload(Stop(), xray_png))
    assert "data:image/jpeg;base64," in figure
    assert 'alt="Chest X-ray Uploaded X-ray"' in figure
    assert report == ""
    items = list(reports.write_report(Stop(), (), xray, *REPORT))
    assert len(items) > 3
    texts = [item[0] for item in items]
    assert all(b.startswith(a) for a, b in itertools.pairwise(texts))
    (expected,) = pipe.generate_report([xray_png], prompts="Report:", max_new_tokens=6)
    assert texts[-1] == expected
    _, sections, (kept,), gallery, message = items[-1]
    assert "Done" in message
    assert kept.text == expected
    assert html.escape(expected) in sections
    assert "cut off at the maximum length" in sections
    assert sections in gallery
    assert [item[2] for item in items[:-1]] == [SAME] * (len(items) - 1)


def test_several_files(reports, pipe, xray_png, tmp_path):
    names = ("<b>one</b>.png", "=two.png", "three.png")
    files = [tmp_path / name.replace("/", "_") for name in names]
    for file in files[:2]:
        file.write_bytes(xray_png)
    files[2].write_text("not an image")
    items = list(reports.read_files(Stop(), [str(file) for file in files], *REPORT))
    table, message = items[-1]
    assert "Done: 2 reports. 1 could not be read." in message
    assert "<b>one" not in table
    assert table.count("<tr>") == 4
    assert "three.png: expected an image with a sound header" in table
    (expected,) = pipe.generate_report([xray_png], prompts="Report:", max_new_tokens=6)
    found = {
        name: base64.b64decode(data).decode()
        for data, name in re.findall(r'base64,([^"]*)" download="(reports[^"]*)"', table)
    }
    rows = json.loads(found["reports.json"])
    assert [row["report"] for row in rows] == [expected, expected, None]
    assert [row["image"] for row in rows][1:] == ["=two.png", "three.png"]
    rows = list(csv.DictReader(io.StringIO(found["reports.csv"])))
    assert rows[1]["image"] == "'=two.png"
    assert rows[2]["error"].startswith("three.png: ")
    for wrong in (None, [], ["x"] * 17):
        ((_, message),) = reports.read_files(Stop(), wrong, *REPORT)
        assert "Files: expected 1 to 16" in message


def test_several_images_and_the_report_of_the_last_one(actions, reports):
    items = list(actions.generate(Stop(), (), "effusion", *SETTINGS, *COMMON, count=2))
    figure, kept, _, message = items[-1]
    assert [image.choices.seed for image in kept] == [0, 1]
    assert "effusion_seed0.png" in figure
    assert "effusion_seed1.png" in figure
    assert "per step" in message
    # The first one is kept as soon as it is finished.
    assert any(item[1] != SAME and len(item[1]) == 1 for item in items)
    xray, *_ = last(reports.read_generated(Stop(), kept))
    assert xray.name == "Generated: effusion (seed 1)"
    *_, message = last(reports.read_generated(Stop(), ()))
    assert "expected one in this session, found none" in message


@pytest.mark.parametrize(("seed", "count"), [(0, 5), (0, 0), (0, 1.5), (2**32 - 1, 2), (0, None)])
def test_bad_numbers_of_images(actions, seed, count):
    (item,) = actions.generate(Stop(), (), "a", seed, 4, 2.0, *COMMON, count=count)
    assert 'role="alert"' in item[-1]


def test_an_upload_that_shows_nothing_is_warned_of(reports):
    file = io.BytesIO()
    levels = np.random.default_rng(0).integers(0, 16, (300, 40), dtype=np.uint8)
    Image.fromarray(levels).save(file, "PNG")  # narrow: the letterbox adds much white
    xray, figure, *_ = last(reports.read_upload(Stop(), file.getvalue()))
    assert xray.warning.startswith("Uploaded X-ray: the image is nearly black (")
    assert html.escape(xray.warning) in figure
    assert 'role="alert"' in figure


def test_examples(reports, xray_png):
    example = Example("No Finding", xray_png, ("No Finding",))
    xray, *_ = last(reports.read_example(Stop(), example))
    assert xray.name == "Example: No Finding"
    *_, (_, sections, *_) = reports.write_report(Stop(), (), xray, *REPORT)
    assert "Labels in the data set: <strong>No Finding</strong>" in sections


def test_bad_uploads_are_messages(reports):
    for data in (b"text", b"", None):
        xray, figure, *_, message = last(reports.read_upload(Stop(), data))
        assert xray is None
        assert "<img" not in figure
        assert 'role="alert"' in message
    # Nothing is written after it, and its message stays.
    assert list(reports.write_after_reading(Stop(), (), None, *REPORT)) == [(SAME,) * 5]


def test_a_generated_image(actions, pipe):
    items = list(actions.generate(Stop(), (), "effusion", *SETTINGS, *COMMON))
    assert any("<progress" in figure for figure, *_ in items)
    assert [kept for _, kept, *_ in items[:-1]] == [SAME] * (len(items) - 1)
    figure, (finished,), gallery, message = items[-1]
    assert 'download="effusion_seed0.png"' in figure
    assert finished.file_name in gallery
    assert "Done" in message
    file = Image.open(io.BytesIO(finished.png))
    assert file.text["prompt"] == "effusion"
    assert file.text["seed"] == "0"
    assert file.text["num_inference_steps"] == "4"
    assert file.text["guidance_scale"] == "2.0"
    (expected,) = pipe.generate_image(
        "effusion", height=32, width=32, num_inference_steps=4, output_type="np"
    )
    assert np.array_equal(file, to_gray_pil(expected))


def test_a_comparison(actions):
    *_, item = actions.compare(Stop(), (), "effusion", 0, 4, 1.5, 1, 4, 2.0, *COMMON)
    first, second, kept, _, message = item
    assert first == SAME
    assert "seed 1, 4 euler steps, guidance 2" in second
    assert [d.choices.seed for d in kept] == [0, 1]
    assert "Done" in message


def test_a_session_is_bounded(actions):
    kept = ()
    for seed in range(4):
        _, kept, gallery, _ = last(actions.generate(Stop(), kept, "a", seed, 4, 2.0, *COMMON))
    assert [d.choices.seed for d in kept] == [1, 2, 3]
    assert gallery.index("seed 3") < gallery.index("seed 1")
    cleared, gallery, _ = actions.clear()
    assert cleared == ()
    assert "<img" not in gallery
    assert "Nothing yet." in gallery


def test_texts_of_visitors_are_escaped(actions):
    for figure, _, gallery, _ in actions.generate(Stop(), (), HOSTILE, *SETTINGS, *COMMON):
        for shown in (figure, gallery):
            assert "<script" not in shown
    assert html.escape(HOSTILE) in gallery


@pytest.mark.parametrize("choices", [("", *SETTINGS), ("a", None, 4, 2.0), ("a", 0, 10**6, 2.0)])
def test_bad_settings_are_messages(actions, choices):
    (item,) = actions.generate(Stop(), (), *choices, *COMMON)
    assert item[1:3] == (SAME, SAME)
    assert 'role="alert"' in item[-1]


def test_a_long_prompt_is_a_message(actions):
    *_, item = actions.generate(Stop(), (), "pneumonia " * 390, *SETTINGS, *COMMON)
    assert "expected at most" in item[-1]


def test_faults_of_ours_are_a_line_and_a_log(actions, caplog):
    class Broken:
        config, loaded = actions.images.pipe.config, actions.images.pipe.loaded

        def stream_image(self, *_, **__):
            raise RuntimeError("/secret/path")

    broken = dataclasses.replace(actions, images=UniXImages(Broken(), LIMITS))
    with caplog.at_level(logging.ERROR):
        *_, item = broken.generate(Stop(), (), "a", *SETTINGS, *COMMON)
    assert FAILED in item[-1]
    assert "/secret/path" not in item[-1]
    assert "/secret/path" in caplog.text


def test_a_stop_ends_what_runs_and_what_waits(actions):
    stop = Stop()
    steps = actions.generate(stop, (), "a", *SETTINGS, *COMMON)
    next(steps)
    next(steps)
    assert actions.end(stop) == SAME
    ((*kept, message),) = steps
    assert kept == [SAME] * 3
    assert "Stopped." in message
    assert "Nothing is running" in actions.end(stop)
    # One that waits for the model.
    actions.begin(stop)
    assert actions.end(stop) == SAME
    ((*_, message),) = actions.generate(stop, (), "a", *SETTINGS, *COMMON)
    assert "Stopped." in message
    # The next request forgets it.
    assert "Done" in last(actions.generate(stop, (), "a", *SETTINGS, *COMMON))[-1]

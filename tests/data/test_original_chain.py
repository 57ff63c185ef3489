"""The original's JSONL, Parquet, test_data.json and CSV of prompts, by the documented commands."""

import csv
import json
import runpy
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from original_files import QUESTION, make_original_files
from unix_jax.cli import main as unix_jax
from unix_jax.commands.data import main as data
from unix_jax.data.records import captions_of, question_images, record_image, report_text
from unix_jax.data.sources import open_source

ROOT = Path(__file__).parents[2]
COUNT = 4
SPECS = (
    "conversations:train.jsonl",
    "conversations:test_data.json",
    "parquet:pairs.parquet",
    "csv:prompts.csv",
)


@pytest.fixture
def files(tmp_path, monkeypatch):
    make_original_files(tmp_path, COUNT)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("spec", SPECS)
def test_every_kind_is_inspected(files, capsys, spec):
    assert data(["inspect", spec, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["records"], found["broken"], found["missing_images"]) == (COUNT, 0, 0)
    assert found["missing_captions"] == 0
    told = spec.startswith("conversations")
    assert found["missing_reports"] == (0 if told else COUNT)
    # Without a split, the records belong to every one.
    for split in ("train", "test"):
        assert len(open_source(spec, split)) == COUNT


def test_what_the_records_hold(files):
    lines, listed, pairs, prompts = map(open_source, SPECS)
    for index in range(COUNT):
        for source in (lines, listed):
            record = source[index]
            assert report_text(record).startswith("FINDINGS: ")
            assert record.prompt == QUESTION.removeprefix("<image>").strip()
            assert len(question_images(record)) == 1
        assert captions_of(prompts[index])[0].startswith(f"{index}: ")
        assert prompts[index].key == f"{index}.png"
        size = record_image(lines[index]).size
        assert {record_image(s[index]).size for s in (listed, pairs, prompts)} == {size}


@pytest.mark.slow
def test_the_chain(files, monkeypatch):
    """Trained, evaluated and turned into moments, with the bundled nano model and two steps."""
    nano = str(ROOT / "examples/nano")
    shorter = ["--total-steps", "2", "--data.rows", "2", "--data.und-tokens", "512",
               "--accumulation", "1", "--mesh", "data=1", "--validation.batches", "1"]  # fmt: skip
    train = runpy.run_path(str(ROOT / "train.py"))["main"]
    assert train(
        [str(ROOT / "configs/stage1_understanding.py"), "--init", nano, "--out", "stage1",
         "--data.source", "conversations:train.jsonl", *shorter]
    ) == 0  # fmt: skip
    assert unix_jax(
        ["evaluate", "reports", "--checkpoint", "stage1/export",
         "--data", "conversations:test_data.json", "--out", "reports",
         "--max-new-tokens", "8", "--resamples", "10"]
    ) == 0  # fmt: skip
    lines = Path("reports/predictions.jsonl").read_text().splitlines()
    predictions = [json.loads(line) for line in lines]
    assert len(predictions) == COUNT
    assert {row["prompt"] for row in predictions} == {QUESTION.removeprefix("<image>").strip()}
    assert data(
        ["moments", "parquet:pairs.parquet", "moments", "--checkpoint", nano,
         "--height", "128", "--width", "128"]
    ) == 0  # fmt: skip
    assert train(
        [str(ROOT / "configs/stage2_generation.py"), "--init", nano, "--out", "stage2",
         "--data.source", "parquet:pairs.parquet", "--data.moments", "moments",
         "--data.vae-height", "128", "--data.vae-width", "128",
         "--repa.encoder", "None", *shorter]
    ) == 0  # fmt: skip
    assert unix_jax(
        ["evaluate", "images", "--checkpoint", nano, "--data", "csv:prompts.csv",
         "--out", "images", "--num-inference-steps", "2", "--resamples", "10"]
    ) == 0  # fmt: skip
    with Path("images/generations.csv").open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    assert [row["annotated_prompt"][:3] for row in rows] == [f"{i}: " for i in range(COUNT)]
    assert unix_jax(
        ["evaluate", "images", "--generated", "images", "--data", "csv:prompts.csv",
         "--out", "measured", "--resamples", "10"]
    ) == 0  # fmt: skip
    notes = json.loads(Path("measured/results.json").read_text())["notes"]
    assert f"{COUNT} of {COUNT}" in notes[0]

"""`train.py` from the command line to the export."""

import json
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from support import toy_run
from support.toy_run import one_error
from unix_jax.inference.pipeline import UniXPipeline
from unix_jax.training.metrics import FIELDS

REPORTED = ["--validate-every", "4", "--preview-every", "8"]


def run(train, config, out, *options):
    assert train.main([str(config), "--out", str(out), *options]) == 0
    return toy_run.metrics(out, timing=True)


def changed(toy, out):
    """Names of the arrays that a run changed."""
    before = toy_run.arrays(toy("generation").parent / "init")
    after = toy_run.exported(out)
    assert before.keys() == after.keys()
    return {name for name in before if not np.array_equal(before[name], after[name])}


def open_export(out):
    return UniXPipeline.from_pretrained(out / "export", dtype="float32", compilation_cache=False)


def test_understanding(toy, train, tmp_path):
    lines = run(train, toy("understanding"), tmp_path, *REPORTED)
    assert [line["step"] for line in lines] == [2, 4, 6, 8]
    for line in lines:
        assert list(line)[: len(FIELDS)] == list(FIELDS)
        assert line["loss"] == line["ce"]
        assert line["mse"] is line["repa"] is line["mfu"] is None
        assert line["tokens_per_second"] > 0
        assert 0 <= line["padding_fraction"] < 1
    assert lines[-1]["loss"] < lines[0]["loss"]
    validation = (tmp_path / "validation.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in validation] == [4, 8]
    reports = (tmp_path / "previews" / "00000008_reports.txt").read_text()
    assert reports.count("reference:") == 2
    # The tokenizer, and the autoencoder that this stage does not use, come along.
    pipe = open_export(tmp_path)
    assert pipe.vae_params is not None
    assert len(pipe.generate_report(np.zeros((20, 20), np.uint8), max_new_tokens=4)) == 1


@pytest.mark.slow
def test_generation(toy, train, tmp_path):
    lines = run(train, toy("generation"), tmp_path, *REPORTED)
    assert all(line["loss"] == line["mse"] and line["ce"] is None for line in lines)
    with Image.open(tmp_path / "previews" / "00000008_images.png") as sheet:
        assert sheet.width > 16
    for name in changed(toy, tmp_path):
        assert "gen" in name or name.startswith(("time_embedder", "vae2llm", "llm2vae")), name


@pytest.mark.slow
def test_autoencoder_and_the_stages_after_it(toy, train, tmp_path):
    first, second = tmp_path / "autoencoder", tmp_path / "generation"
    lines = run(train, toy("autoencoder"), first, *REPORTED)
    assert {"l1", "kl"} < set(lines[0])
    assert (first / "previews" / "00000008_reconstructions.png").exists()
    run(train, toy("generation"), second, "--init", str(first), "--total-steps", "2")
    config, trained = open_export(first).config, open_export(second)
    assert trained.config.vae.scale_factor == config.vae.scale_factor != 0.238092


@pytest.mark.slow
def test_repa_and_its_continuation(toy, train, tmp_path):
    encoder = tmp_path / "encoder"
    shutil.copytree(toy_run.TOKENIZER.parents[1] / "metrics_tiny" / "rad_dino", encoder)
    options = ["--repa.encoder", str(encoder), "--repa.weight", "0.5", "--repa.layer", "1",
               "--losses.ce-weight", "0", "--repa.image-size", "28"]  # fmt: skip
    out = tmp_path / "run"
    run(train, toy("generation"), out, *options, "--total-steps", "4")
    # The run's directory holds the encoder.
    shutil.rmtree(encoder)
    lines = run(train, toy("generation"), out, *options)
    assert [line["step"] for line in lines] == [2, 4, 6, 8]
    for line in lines:
        assert -1 <= line["repa"] <= 1
        assert line["loss"] == pytest.approx(line["mse"] + 0.5 * line["repa"], rel=1e-5)


@pytest.mark.slow
def test_lora_moves_only_the_adapted_kernels(toy, train, tmp_path):
    run(train, toy("understanding"), tmp_path, "--lora.rank", "2")
    assert changed(toy, tmp_path) == {
        f"decoder/layers/und/{name}_proj/kernel" for name in ("q", "k", "v", "o")
    }


@pytest.mark.slow
def test_options_reach_the_run(toy, train, tmp_path):
    run(
        train, toy("understanding"), tmp_path, "--total-steps", "1", "--seed", "5",
        "--optimizer.learning-rate", "2e-3", "--checkpoint-every", "1", "--ema-decay", "None",
    )  # fmt: skip
    saved = json.loads((tmp_path / "run.json").read_text())["config"]
    assert saved["seed"] == 5
    assert saved["optimizer"]["learning_rate"] == 2e-3
    assert saved["ema_decay"] is None
    assert toy_run.metrics(tmp_path)[0]["learning_rate"] == pytest.approx(2e-3)
    # A run that continues must be the same run.
    assert train.main([str(toy("understanding")), "--out", str(tmp_path), "--seed", "6"]) == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, "no such file"),
        ("x = 1", "expected `config = TrainConfig(...)`, found NoneType"),
        ("1 / 0", "cannot be executed: ZeroDivisionError"),
        ("from unix_jax.data.config import DataConfig; DataConfig(rows=0)", "data.rows: expected"),
    ],
)
def test_configuration_files_that_cannot_be_used(train, tmp_path, capsys, text, expected):
    file = tmp_path / "config.py"
    if text is not None:
        file.write_text(text)
    error = one_error(train, capsys, file, "--out", tmp_path / "run")
    assert str(file) in error
    assert expected in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--init", "nowhere"], "nowhere"),
        (["--init", "None"], "model.tokenizer: expected"),
        (["--model.unroll", "0"], "model.unroll: expected at least 1, found 0"),
        (["--mesh", "data=3,fsdp=x"], "mesh: expected"),
        (["--mesh", "data=3,tensor=0"], "mesh: expected"),
        pytest.param(["--data.source", "manifest:nowhere"], "nowhere", marks=pytest.mark.slow),
        pytest.param(
            ["--logging.wandb-project", "unix"], "pip install wandb", marks=pytest.mark.slow
        ),
    ],
)
def test_options_that_cannot_be_used(toy, train, tmp_path, capsys, monkeypatch, options, expected):
    monkeypatch.setitem(sys.modules, "wandb", None)
    config = toy("understanding")
    assert expected in one_error(train, capsys, config, "--out", tmp_path / "run", *options)

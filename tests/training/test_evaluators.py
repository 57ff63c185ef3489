"""Metrics at intervals, and what a run shows when it starts."""

import json

import pytest
import toy_run
from test_train_script import one_error

from unix_jax.errors import ConfigError
from unix_jax.training.config import EvalsConfig, ImageEvalConfig, ReportEvalConfig

RAD_DINO = toy_run.TOKENIZER.parents[1] / "metrics_tiny" / "rad_dino"


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """stage -> a configuration file."""
    return toy_run.make_toy(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def train():
    return toy_run.load_train()


def test_reports_and_images_of_a_joint_run(toy, train, tmp_path, capsys):
    options = ["--total-steps", "4", "--evals.reports.every", "2", "--evals.reports.count", "2"]
    options += ["--evals.reports.max-new-tokens", "6", "--evals.images.every", "4"]
    options += ["--evals.images.count", "3", "--evals.images.rad-dino", str(RAD_DINO)]
    options += ["--evals.images.num-steps", "2", "--model.unroll", "1"]
    assert train.main([str(toy("joint")), "--out", str(tmp_path), *options]) == 0
    said = capsys.readouterr()
    lines = [json.loads(line) for line in (tmp_path / "evaluation.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 4]
    for line in lines[:2]:
        assert line["reports/count"] == 2
        assert 0 <= line["reports/BLEU4"] <= line["reports/BLEU1"] <= 1
        assert 0 <= line["reports/ROUGE_L"] <= 1
    assert lines[2]["images/FD"] >= 0
    assert lines[2]["images/count"] == 3
    assert "step 4: images/FD " in said.err
    # What the start shows.
    assert "length 4 steps, " in said.out
    assert "optimizer adamw, learning rate 0.01, schedule constant" in said.out
    assert "trained " in said.out
    assert "frozen " in said.out
    assert "  unix/decoder/layers/gen " in said.out
    assert "  autoencoder/" in said.out
    assert "% padding" in said.out
    assert "  vae_pixels float32[2, 2, 8, 8, 3]" in said.out
    listed = (tmp_path / "parameters.txt").read_text().splitlines()
    assert "trained  unix/decoder/layers/gen/q_proj/kernel  float32[1, 16, 16] replicated" in listed
    assert any(line.startswith("frozen   unix/latent_pos_embed") for line in listed)


def test_what_is_missing_is_told_before_training(toy, train, tmp_path, capsys):
    options = ["--evals.reports.every", "2", "--validation.split", "test"]
    error = one_error(train, capsys, toy("understanding"), "--out", tmp_path, *options)
    assert "expected rows of split 'test'" in error
    options = ["--evals.reports.every", "2", "--evals.reports.chexbert", tmp_path / "nothing"]
    error = one_error(train, capsys, toy("understanding"), "--out", tmp_path, *options)
    assert "nothing" in error
    assert not (tmp_path / "checkpoints").exists() or not any((tmp_path / "checkpoints").iterdir())


def test_impossible_evaluations():
    with pytest.raises(ConfigError, match=r"evals.images.rad_dino: expected the directory"):
        EvalsConfig(images=ImageEvalConfig(every=3))
    with pytest.raises(ConfigError, match=r"evals.reports.count: expected at least 2, found 1"):
        EvalsConfig(reports=ReportEvalConfig(count=1))
    with pytest.raises(ConfigError, match=r"evals.reports.every: expected at least 0, found -1"):
        EvalsConfig(reports=ReportEvalConfig(every=-1))

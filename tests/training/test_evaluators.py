"""Metrics at intervals, and what a run shows when it starts."""

import dataclasses
import json

import pytest
from PIL import Image

from support import toy_run
from support.toy_run import one_error
from unix_jax.data.config import DataConfig
from unix_jax.data.records import record_image
from unix_jax.data.sources import open_source
from unix_jax.errors import ConfigError, DataError
from unix_jax.preprocessing.transforms import pad_to_fit
from unix_jax.training.config import (
    EvalsConfig,
    ImageEvalConfig,
    ReportEvalConfig,
    TrainConfig,
    ValidationConfig,
)
from unix_jax.training.evaluators import make_evaluators

RAD_DINO = toy_run.TOKENIZER.parents[1] / "metrics_tiny" / "rad_dino"


@pytest.mark.extended
def test_reports_of_a_joint_run(toy, train, tmp_path, capsys):
    options = ["--total-steps", "4", "--evals.reports.every", "2", "--evals.reports.count", "2"]
    options += ["--evals.reports.max-new-tokens", "6"]
    assert train.main([str(toy("joint")), "--out", str(tmp_path), *options]) == 0
    said = capsys.readouterr()
    lines = [json.loads(line) for line in (tmp_path / "evaluation.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4]
    for line in lines:
        assert line["reports/count"] == 2
        assert 0 <= line["reports/BLEU4"] <= line["reports/BLEU1"] <= 1
        assert 0 <= line["reports/ROUGE_L"] <= 1
    assert "step 4: reports/BLEU1 " in said.err
    # What the start shows.
    assert "length 4 steps, " in said.out
    assert "optimizer adamw, learning rate 0.01, schedule constant" in said.out
    assert "trained " in said.out
    assert "frozen " in said.out
    assert "  unix/decoder/layers/gen " in said.out
    assert "  autoencoder/" in said.out
    assert "% padding" in said.out
    assert "  vae_pixels uint8[2, 2, 8, 8, 3]" in said.out
    listed = (tmp_path / "parameters.txt").read_text().splitlines()
    assert "trained  unix/decoder/layers/gen/q_proj/kernel  float32[1, 16, 16] replicated" in listed
    assert any(line.startswith("frozen   unix/latent_pos_embed") for line in listed)


class Copies:
    """Stands in for a pipeline: generates the held-out images that it is asked for, or gray."""

    def __init__(self, images):
        self.images, self.asked = images, []

    def generate_image(self, prompts, *, height, width, num_inference_steps, seed):
        assert (height, width, num_inference_steps) == (16, 16, 3)
        self.asked += zip(prompts, seed, strict=True)
        return [self.images[i] for i in seed]


def test_distances_of_images(tmp_path):
    """Zero for the same images, more for others; a seed for each prompt, in batches."""
    source = toy_run.write_pictures(tmp_path / "data", validate=10)
    config = TrainConfig(
        "generation",
        DataConfig(
            source=f"manifest:{source}", task="generation", vae_images=1, vae_height=16,
            vae_width=16,
        ),
        total_steps=1,
        evals=EvalsConfig(
            images=ImageEvalConfig(every=3, count=9, num_inference_steps=3, rad_dino=str(RAD_DINO))
        ),
    )  # fmt: skip
    held_out = open_source(config.data.source, "validate")
    (evaluator,) = make_evaluators(config, held_out)
    assert (evaluator.name, evaluator.every) == ("images", 3)
    real = [pad_to_fit(record_image(held_out[i]), 16, 16, 0) for i in range(9)]
    pipe = Copies(real)
    same = evaluator.named_scores(pipe)
    assert [seed for _, seed in pipe.asked] == list(range(9))
    assert all(prompt for prompt, _ in pipe.asked)
    assert same["images/FD"] == pytest.approx(0, abs=1e-4)
    gray = evaluator.named_scores(Copies([Image.new("L", (16, 16), 9 * i) for i in range(9)]))
    assert gray["images/FD"] > 10 * abs(same["images/FD"])
    assert gray["images/KD"] > same["images/KD"]
    assert gray["images/count"] == 9
    few = dataclasses.replace(config, validation=ValidationConfig(split="train"))
    with pytest.raises(DataError, match=r"evals.images: expected at least 2 records .*, found 0"):
        make_evaluators(few, [])


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

"""Every value of the original's metrics, recomputed."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from unix_jax.evaluation import clinical, image, text
from unix_jax.evaluation.features import RadDino

GOLDEN = Path(__file__).parents[1] / "golden" / "metrics_tiny"
INFO = json.loads((GOLDEN / "golden.json").read_text(encoding="utf-8"))
RELATIVE = 1e-5


@pytest.fixture(scope="module")
def tensors():
    return load_file(GOLDEN / "golden.safetensors")


def test_clinical_f1(tensors):
    scores = clinical.clinical_f1(
        tensors["clinical_f1.references"], tensors["clinical_f1.predictions"]
    )
    assert scores == pytest.approx(INFO["clinical_f1"], rel=RELATIVE)
    assert list(clinical.CONDITIONS) == INFO["clinical_f1_conditions"]


@pytest.mark.parametrize("sample", INFO["radgraph_reward"])
def test_radgraph_reward(sample):
    pair = sample["hypothesis"], sample["reference"]
    scores = text.radgraph_scores(*pair)
    for level in text.REWARD_LEVELS:
        assert scores[level] == pytest.approx(sample[level], rel=RELATIVE)
    f1 = [sample[level][0] for level in text.REWARD_LEVELS]
    assert text.radgraph_reward(*pair) == pytest.approx(f1, rel=RELATIVE)


@pytest.mark.parametrize("sample", INFO["nlp"])
def test_bleu_and_rouge(sample):
    for module in ("nltk", "punkt", "rouge_score"):
        pytest.importorskip(module)
    assert text.tokenize(sample["prediction"]) == sample["prediction_tokens"]
    assert text.tokenize(sample["reference"]) == sample["reference_tokens"]
    pair = sample["prediction"], sample["reference"]
    expected = {name: sample[name] for name in text.BLEU_NAMES}
    assert text.bleu(*pair) == pytest.approx(expected, rel=RELATIVE)
    assert text.rouge_l(*pair) == pytest.approx(sample["rougeL_fmeasure"], rel=RELATIVE)


def test_image_metrics(tensors):
    real, fake = tensors["features.real"], tensors["features.fake"]
    assert image.prdc(real, fake) == pytest.approx(INFO["prdc_k5"], rel=RELATIVE)
    distance = image.frechet_distance(real, fake)
    assert distance == pytest.approx(INFO["frechet_distance"], rel=RELATIVE)
    kernel = INFO["kid_poly_mmd_first_n"]
    found = image.kernel_distance(real[: kernel["n"]], fake[: kernel["n"]])
    assert found == pytest.approx(kernel["value"], rel=RELATIVE)
    score = image.inception_score(tensors["inception.probabilities"])
    assert score == pytest.approx(INFO["inception_score_one_split"], rel=RELATIVE)


@pytest.mark.parametrize("size", [56, 84])
def test_rad_dino_features(tensors, assert_close, size):
    encoder = RadDino.from_pretrained(GOLDEN / "rad_dino")
    pixels = np.moveaxis(tensors[f"rad_dino.pixels.{size}"], 1, -1)
    assert_close(
        encoder.apply(encoder.params, pixels), tensors[f"rad_dino.pooler_output.{size}"], 1e-4
    )


def test_chexbert(tensors, assert_close):
    labeler = clinical.CheXbert.from_pretrained(GOLDEN / "chexbert")
    lengths = tensors["chexbert.attention_mask"].sum(1)
    ids = [row[:n] for row, n in zip(tensors["chexbert.input_ids"], lengths, strict=True)]
    cls, logits = labeler.logits(ids)
    assert_close(cls, tensors["chexbert.cls"], 1e-4)
    expected = tensors["chexbert.logits_padded"]
    assert_close(logits[:, :13], expected[:, :13], 1e-4)
    assert_close(logits[:, 13, :2], expected[:, 13, :2], 1e-4)
    np.testing.assert_array_equal(logits[:, 13, 2:], expected[:, 13, 2:])
    np.testing.assert_array_equal(logits.argmax(-1), tensors["chexbert.labels"])

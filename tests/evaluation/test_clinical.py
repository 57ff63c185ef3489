"""Clinical F1, and CheXbert as a function of reports."""

import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unix_jax.errors import CheckpointError, MetricError
from unix_jax.evaluation.clinical import CONDITIONS, TOP_5, CheXbert, clinical_f1, report_f1

GOLDEN = Path(__file__).parents[1] / "golden" / "metrics_tiny" / "chexbert"
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def one_by_one(reference, predicted, positive):
    """(micro, macro, top-5 micro, top-5 macro, mean over reports), counted in plain Python."""

    def f1(pairs):
        true = sum(a in positive and b in positive for a, b in pairs)
        wrong = sum((a in positive) != (b in positive) for a, b in pairs)
        return true / (true + wrong / 2) if true else 0.0

    columns = [list(zip(*pair, strict=True)) for pair in zip(reference.T, predicted.T, strict=True)]
    top = [columns[CONDITIONS.index(name)] for name in TOP_5]
    rows = [list(zip(*pair, strict=True)) for pair in zip(reference, predicted, strict=True)]
    return (
        f1([pair for c in columns for pair in c]),
        np.mean([f1(c) for c in columns]),
        f1([pair for c in top for pair in c]),
        np.mean([f1(c) for c in top]),
        np.mean([f1(r) for r in rows]),
    )


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1), st.integers(1, 9))
def test_the_figures_are_the_definitions(seed, reports):
    rng = np.random.default_rng(seed)
    reference, predicted = rng.integers(0, 4, (2, reports, 14))
    scores = clinical_f1(reference, predicted)
    names = ("micro_f1", "macro_f1", "f1_top5_micro", "f1_top5_macro", "ce_f1")
    for prefix, positive in (("uncertain_as_negative", {1}), ("uncertain_as_positive", {1, 3})):
        found = [scores[f"{prefix}_{name}"] for name in names]
        assert found == pytest.approx(one_by_one(reference, predicted, positive), abs=1e-9)
        means = report_f1(reference, predicted)[prefix].mean()
        assert means == pytest.approx(scores[f"{prefix}_ce_f1"], abs=1e-12)


def test_nothing_positive_is_zero_not_nan():
    assert set(clinical_f1(np.zeros((3, 14), int), np.zeros((3, 14), int)).values()) == {0.0, 3.0}


@pytest.mark.parametrize(
    ("reference", "predicted", "message"),
    [
        (np.zeros((0, 14), int), np.zeros((0, 14), int), "reference_labels: .* at least one"),
        (np.zeros((2, 14), int), np.zeros((3, 14), int), "predicted_labels: expected 2 reports"),
        (np.zeros((2, 14), int), np.zeros((2, 13), int), r"predicted_labels: .* \[2, 13\]"),
        (np.zeros((2, 14)), np.zeros((2, 14), int), "reference_labels: expected integers"),
        (np.full((2, 14), 4), np.zeros((2, 14), int), "expected classes 0 to 3, found 4 to 4"),
    ],
)
def test_labels_that_are_refused(reference, predicted, message):
    with pytest.raises(MetricError, match=message):
        clinical_f1(reference, predicted)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """The golden toy with a vocabulary of its own."""
    path = tmp_path_factory.mktemp("chexbert")
    for name in ("chexbert.pth", "config.json"):
        shutil.copy(GOLDEN / name, path)
    pieces = [*LETTERS, *(f"##{x}" for x in LETTERS), "heart", "##s", "effusion", ".", ",", "_"]
    (path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *pieces]) + "\n")
    return path


@pytest.fixture(scope="module")
def labeler(directory):
    return CheXbert.from_pretrained(directory)


def test_tokens_are_berts(directory, labeler):
    reports = ["Hearts, effusion.", "", "a\n\tb __ Ä [SEP] #", "heart" * 21, "\x00x\ufffd"]
    transformers = pytest.importorskip("transformers")
    theirs = transformers.BertTokenizer(str(directory / "vocab.txt"))
    ours = labeler.encode(reports)
    for index in (0, 1, 3, 4):
        assert ours[index] == theirs(reports[index]).input_ids
    # A report that spells a control token does not make one.
    assert ours[2].count(3) == 1


def test_cuts(labeler):
    """The toy has 64 positions; [SEP] stays last."""
    (ids,) = labeler.encode(["a " * 400])
    assert len(ids) == 64
    assert ids[-1] == 3
    long = "heart" + " " * 510 + "effusion"
    assert len(labeler.encode([long])[0]) == 4
    assert len(labeler.encode([long], cut="characters")[0]) == 3
    with pytest.raises(MetricError, match="cut: expected one of tokens, characters, found 'words'"):
        labeler.encode(["a"], cut="words")


def test_a_report_alone_is_that_report_among_others(labeler, assert_close):
    rng = np.random.default_rng(0)
    ids = [rng.integers(0, 120, n).tolist() for n in (40, 64, 63, 1, 33)]
    cls, logits = labeler.logits(ids, batch_size=4)
    for index in (0, 3):
        alone = labeler.logits([ids[index]])
        assert_close(alone[0][0], cls[index], 2e-6)
        assert_close(alone[1][0, :13], logits[index, :13], 2e-6)


def test_labels(labeler):
    reports = ["heart effusion", "", "a b c, hearts."] * 3
    done = []
    labels = labeler.labels(reports, batch_size=2, progress=done.append)
    assert sum(done) == 9
    assert labels.shape == (9, 14)
    assert set(labels[:, 13]) <= {0, 1}
    np.testing.assert_array_equal(labels[:3], labels[3:6])
    _, logits = labeler.logits(labeler.encode(reports))
    np.testing.assert_array_equal(labels, logits.argmax(-1))
    assert labeler.labels([]).shape == (0, 14)


def test_half_precision(directory):
    half = CheXbert.from_pretrained(directory, dtype="bfloat16")
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(half.params)} == {"bfloat16"}
    assert half.labels(["heart"]).shape == (1, 14)


def test_reports_and_ids_that_are_refused(labeler):
    for reports, message in (
        ("heart", "reports: expected a sequence of strings, found one string"),
        (["a", None], r"reports\[1\]: expected a string, found NoneType"),
        (["\ud800"], "lone surrogate"),
    ):
        with pytest.raises(MetricError, match=message):
            labeler.labels(reports)
    for ids, message in (
        ([[2], [120]], r"ids\[1\]: expected ids from 0 to 119"),
        ([[]], r"ids\[0\]: expected 1 to 64 tokens, found 0"),
        ([[1] * 65], "found 65"),
    ):
        with pytest.raises(MetricError, match=message):
            labeler.logits(ids)
    with pytest.raises(MetricError, match="batch_size: expected at least 1"):
        labeler.labels(["a"], batch_size=0)


def test_files_that_are_refused(tmp_path, directory):
    without = CheXbert.from_pretrained(GOLDEN / "chexbert.pth")
    with pytest.raises(CheckpointError, match=r"expected vocab.txt or tokenizer.json"):
        without.labels(["a"])
    with pytest.raises(CheckpointError, match=r"expected CheXbert's weights, chexbert.pth"):
        CheXbert.from_pretrained(tmp_path)
    copy = shutil.copytree(directory, tmp_path / "copy")
    (copy / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\nheart\n")
    with pytest.raises(CheckpointError, match=r"vocab.txt: expected the token \[SEP\]"):
        CheXbert.from_pretrained(copy)
    pieces = [f"w{i}" for i in range(200)]
    (copy / "vocab.txt").write_text("\n".join(["[UNK]", "[CLS]", "[SEP]", *pieces]))
    with pytest.raises(CheckpointError, match="expected ids below the model's vocab_size 120"):
        CheXbert.from_pretrained(copy)
    (copy / "vocab.txt").unlink()
    (copy / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"tokenizer.json: not a WordPiece vocabulary"):
        CheXbert.from_pretrained(copy)

"""BLEU, ROUGE-L, RadGraph rewards and F1-RadGraph beyond the golden samples."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unix_jax import extras
from unix_jax.errors import CheckpointError, MetricError, UniXError
from unix_jax.evaluation import radgraph, text

REPORT = "FINDINGS: Heart is normal. No effusion (stable), 5.5 cm. IMPRESSION: Dr. X isn't sure."


needs_nltk = pytest.mark.usefixtures("nltk_packages")


@pytest.fixture
def nltk_packages():
    for module in ("nltk", "punkt", "rouge_score"):
        pytest.importorskip(module)


@needs_nltk
def test_periods_end_sentences_but_not_abbreviations():
    tokens = text.tokenize(REPORT)
    assert tokens[:6] == ["FINDINGS", ":", "Heart", "is", "normal", "."]
    assert "5.5" in tokens
    assert "Dr." in tokens
    assert tokens[-4:] == ["is", "n't", "sure", "."]


@needs_nltk
def test_equal_reports_score_one():
    assert text.bleu(REPORT, REPORT) == pytest.approx(dict.fromkeys(text.BLEU_NAMES, 1.0))
    assert text.rouge_l(REPORT, REPORT) == pytest.approx(1.0)


@needs_nltk
@pytest.mark.parametrize(
    ("prediction", "reference"), [("", "a"), ("a", ""), ("", ""), (" \n", "a")]
)
def test_empty_reports_score_zero(prediction, reference):
    assert set(text.bleu(prediction, reference).values()) == {0.0}
    assert text.rouge_l(prediction, reference) == 0.0


@needs_nltk
@settings(deadline=None, max_examples=50)
@given(st.text(max_size=60), st.text(max_size=60))
def test_any_text_scores_between_zero_and_one(prediction, reference):
    values = [*text.bleu(prediction, reference).values(), text.rouge_l(prediction, reference)]
    assert all(0 <= value <= 1 + 1e-12 for value in values)


@needs_nltk
def test_text_scores():
    scores = text.text_scores(["a b", ""], ["a b", "c"])
    assert scores["BLEU1"] == [1.0, 0.0]
    assert scores["ROUGE_L"] == [1.0, 0.0]
    with pytest.raises(MetricError, match="found 1 predictions, 2 references"):
        text.text_scores(["a"], ["a", "b"])


def test_texts_that_are_refused():
    with pytest.raises(MetricError, match="prediction: expected a string, found NoneType"):
        text.bleu(None, "a")
    with pytest.raises(MetricError, match="reference: expected a string, found int"):
        text.rouge_l("a", 3)


def test_an_absent_package_is_named():
    with pytest.raises(
        UniXError, match=r"BLEU needs the package 'nothing_here': pip install 'unix-"
    ):
        extras.require("nothing_here.inside", "BLEU", "unix-jax[eval]")


# --- RadGraph ----------------------------------------------------------------------------------


def annotation(*entities):
    """Entities as (tokens, label, {kind: number of another})."""
    return {
        "entities": {
            str(number): {
                "tokens": tokens,
                "label": label,
                "relations": [[kind, str(other)] for kind, other in relations.items()],
            }
            for number, (tokens, label, relations) in enumerate(entities)
        }
    }


def test_what_each_level_asks_for():
    heart, big = ("heart", "Anatomy", {}), ("big", "Observation", {"modify": 0})
    full = annotation(heart, big)
    assert text.radgraph_reward(full, full) == pytest.approx((1, 1, 1), abs=1e-9)
    # No relation: the same words and labels.
    assert text.radgraph_reward(annotation(heart, ("big", "Observation", {})), full) == (
        pytest.approx((1, 0.5, 0.5), abs=1e-9)
    )
    # Another kind of relation: all but the relation itself.
    other = annotation(heart, ("big", "Observation", {"located_at": 0}))
    assert text.radgraph_reward(other, full) == pytest.approx((1, 1, 0.5), abs=1e-9)
    # Case matters, but not in relations.
    upper = annotation(("Heart", "Anatomy", {}), ("BIG", "Observation", {"modify": 0}))
    assert text.radgraph_reward(upper, full) == pytest.approx((0, 0, 0.5), abs=1e-9)
    assert text.radgraph_reward(annotation(), full) == (0.0, 0.0, 0.0)


WORDS, LABELS, KINDS = ("heart", "Heart", "lung", "big"), ("a", "o"), ("modify", "located_at")


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1))
def test_precision_and_recall_trade_places(seed):
    rng = random.Random(seed)

    def draw():
        count = rng.randint(0, 6)
        return annotation(
            *(
                (
                    rng.choice(WORDS),
                    rng.choice(LABELS),
                    {rng.choice(KINDS): rng.randrange(count) for _ in range(rng.randint(0, 2))},
                )
                for _ in range(count)
            )
        )

    a, b = draw(), draw()
    there, back = text.radgraph_scores(a, b), text.radgraph_scores(b, a)
    for level in text.REWARD_LEVELS:
        f1, precision, recall = there[level]
        assert (f1, recall, precision) == pytest.approx(back[level])
        assert 0 <= min(there[level]) <= max(there[level]) <= 1
        assert f1 == pytest.approx(2 * precision * recall / (precision + recall or 1), abs=1e-8)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (None, "hypothesis: expected an annotation with a mapping `entities`"),
        ({"entities": []}, "hypothesis: expected an annotation with a mapping `entities`"),
        ({"entities": {"1": {"tokens": "a", "relations": []}}}, "entity '1': expected `tokens`"),
        ({"entities": {"1": {"tokens": "a", "label": "b"}}}, "expected a list `relations`"),
        (
            {"entities": {"1": {"tokens": "a", "label": "b", "relations": [["x", "2"]]}}},
            "its relation points to '2', which is not an entity",
        ),
        (
            {"entities": {"1": {"tokens": "a", "label": "b", "relations": ["xyz"]}}},
            r"expected relations \(kind, id\), found 'xyz'",
        ),
    ],
)
def test_annotations_that_are_refused(broken, message):
    with pytest.raises(MetricError, match=message):
        text.radgraph_reward(broken, annotation())


def test_f1_radgraph():
    seen = []

    def annotate(reports):
        seen.extend(reports)
        return [annotation(*((word, "o", {}) for word in report.split())) for report in reports]

    scores = radgraph.f1_radgraph(["a b", "", "c"], ["a", "d", "e"], annotate)
    assert seen == ["a b", "c", "a", "e"]
    for level in text.REWARD_LEVELS:
        np.testing.assert_allclose(scores[level], [2 / 3, 0, 0], atol=1e-9)
    assert scores["partial"].shape == (3,)
    assert radgraph.f1_radgraph([""], ["a"], None)["simple"].tolist() == [0.0]
    with pytest.raises(MetricError, match="expected 2 annotations, found 0"):
        radgraph.f1_radgraph(["a"], ["a"], lambda reports: [])


def test_radgraph_files_that_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"config.json: no such file; unpack radgraph.tar.gz"):
        radgraph.load_annotator(tmp_path)
    with pytest.raises(MetricError, match=r"model: expected one of radgraph, .* found 'other'"):
        radgraph.load_annotator(tmp_path, "other")

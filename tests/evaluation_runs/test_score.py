"""`evaluate score`: reports made elsewhere, paired, measured and shown."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tyro

from unix_jax.commands.evaluate import (
    Command,
    EvaluateImages,
    EvaluateReports,
    EvaluateScore,
)
from unix_jax.errors import DataError, UniXError
from unix_jax.evaluation.clinical import CheXbert, clinical_f1
from unix_jax.evaluation.text import text_scores
from unix_jax.evaluation_runs.score import ReportMetrics, score_reports
from unix_jax.evaluation_runs.texts import PREDICTIONS, REFERENCES, pair, read_texts

CHEXBERT = Path(__file__).parents[1] / "golden" / "metrics_tiny" / "chexbert"
PREDICTED = ["The heart is large.", "No pneumothorax.", "", "Clear lungs, <b>normal</b> heart."]
WANTED = ["The heart is enlarged.", "There is no pneumothorax.", "Edema.", "Clear lungs."]


@pytest.fixture
def chexbert(tmp_path):
    """The toy labeller with a vocabulary of letters."""
    directory = tmp_path / "chexbert"
    shutil.copytree(CHEXBERT, directory)
    letters = [*"abcdefghijklmnopqrstuvwxyz"]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{a}" for a in letters)]
    (directory / "vocab.txt").write_text("\n".join(words) + "\n")
    return directory


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def results_of(directory):
    return json.loads((directory / "results.json").read_text())


def test_the_csv_of_the_original(tmp_path, capsys):
    path = tmp_path / "understanding_results.csv"
    with path.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.writer(opened)
        writer.writerow(["Image Path", "Report Impression", "Ground Truth"])
        writer.writerows(zip("abcd", PREDICTED, WANTED, strict=True))
    EvaluateScore(str(path), out=str(tmp_path / "out"), resamples=20).run()
    shown = capsys.readouterr().out
    assert "ROUGE_L" in shown
    assert "not computed: CheXbert F1: its weights were not given (--chexbert PATH)" in shown
    found = results_of(tmp_path / "out")
    assert found["counts"] == {"items": 4, "scored": 4, "failed": 0, "not_comparable": 0}
    for name, values in text_scores(PREDICTED, WANTED).items():
        metric = found["metrics"][name]
        assert metric["value"] == pytest.approx(np.mean(values))
        assert metric["low"] <= metric["value"] <= metric["high"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "&lt;b&gt;normal&lt;/b&gt;" in page
    assert "<b>normal</b>" not in page
    EvaluateScore(str(path), out=str(tmp_path / "some"), resamples=20, skip_empty=True).run()
    assert results_of(tmp_path / "some")["counts"]["scored"] == 3


def test_files_are_paired_by_key(tmp_path):
    predictions = write_jsonl(
        tmp_path / "p.jsonl",
        [{"key": k, "prediction": t} for k, t in zip("dbca", PREDICTED, strict=True)],
    )
    references = write_jsonl(
        tmp_path / "r.jsonl",
        [{"key": k, "findings": f"{k} lungs", "impression": f"{k} heart"} for k in "abcd"],
    )
    texts = read_texts(predictions, PREDICTIONS), read_texts(references, REFERENCES)
    keys, predicted, wanted = pair(*texts)
    assert (keys, predicted) == (list("dbca"), PREDICTED)
    assert wanted == [f"FINDINGS: {k} lungs IMPRESSION: {k} heart" for k in "dbca"]


@pytest.mark.parametrize(
    ("references", "message"),
    [
        ([{"key": "a", "text": "x"}], "1 missing and 0 more, such as 'b'"),
        ([{"key": k, "text": "x"} for k in "abc"], "0 missing and 1 more, such as 'c'"),
        ([{"key": "a", "text": "x"}] * 2, "key 'a' occurs twice"),
        ([{"text": "x"}], "expected 2 reports as in .*p.jsonl, found 1"),
        ([{"text": 1}, {"text": "x"}], "line 1: text: expected a text, found int"),
        ([{"words": "x"}], "expected a field reference or .*, found words"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path, references, message):
    predictions = write_jsonl(
        tmp_path / "p.jsonl", [{"key": key, "prediction": "x"} for key in "ab"]
    )
    with pytest.raises(DataError, match=message):
        EvaluateScore(predictions, write_jsonl(tmp_path / "r.jsonl", references)).run()


def test_other_files_and_numbers_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"expected a \.csv or \.jsonl file"):
        EvaluateScore(str(tmp_path / "a.txt")).run()
    with pytest.raises(DataError, match=r"a\.csv: cannot be read: No such file"):
        EvaluateScore(str(tmp_path / "a.csv")).run()
    with pytest.raises(UniXError, match="--resamples: expected at least 1, found 0"):
        EvaluateScore(str(tmp_path / "a.csv"), resamples=0).run()


def test_with_chexbert_every_figure_of_the_original_is_there(tmp_path, chexbert):
    rows = zip(PREDICTED, WANTED, strict=True)
    path = write_jsonl(tmp_path / "p.jsonl", [{"prediction": p, "reference": r} for p, r in rows])
    EvaluateScore(path, out=str(tmp_path), chexbert=str(chexbert), resamples=10).run()
    found = results_of(tmp_path)
    model = CheXbert.from_pretrained(chexbert)
    expected = clinical_f1(model.labels(WANTED), model.labels(PREDICTED))
    for name, value in expected.items():
        if not name.endswith("ce_num_examples"):
            assert found["metrics"][name]["value"] == pytest.approx(value)
    assert len(found["groups"]["conditions"]) == 14
    assert list(found["not_computed"]) == ["F1-RadGraph"]
    assert found["paper"]["metrics"]["uncertain_as_negative_micro_f1"] == 0.536
    page = (tmp_path / "report.html").read_text()
    assert "F1 by condition" in page
    assert "uncertain_as_negative_f1" in page


@pytest.mark.parametrize("level", ["simple", "partial", "complete", "all"])
def test_radgraph_by_model_and_level(tmp_path, monkeypatch, level):
    asked = []

    def load(path, model):
        asked.append((path, model))

        def annotate(reports):
            entity = {"label": "Observation", "relations": []}
            return [
                {"entities": {str(i): {"tokens": word, **entity} for i, word in enumerate(text)}}
                for text in (report.split() for report in reports)
            ]

        return annotate

    monkeypatch.setattr("unix_jax.evaluation.radgraph.load_annotator", load)
    rows = [{"prediction": a, "reference": b} for a, b in zip(PREDICTED, WANTED, strict=True)]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    EvaluateScore(
        path, out=str(tmp_path / "out"), resamples=5, radgraph=True, radgraph_path="somewhere",
        radgraph_model="radgraph-xl", radgraph_level=level,
    ).run()  # fmt: skip
    assert asked == [(Path("somewhere"), "radgraph-xl")]
    results = results_of(tmp_path / "out")
    found = [name for name in results["metrics"] if name.startswith("radgraph_")]
    levels = ["simple", "partial", "complete"] if level == "all" else [level]
    assert found == [f"radgraph_{name}" for name in levels]
    assert results["scoring"]["radgraph_model"] == "radgraph-xl"
    with (tmp_path / "out" / "metrics_summary.csv").open() as file:
        (row,) = csv.DictReader(file)
    shown = "partial" if level == "all" else level
    expected = results["metrics"][f"radgraph_{shown}"]["value"]
    assert float(row["f1-radgraph"]) == pytest.approx(expected)
    assert row["uncertain_as_negative_micro_f1"] == ""
    with pytest.raises(UniXError, match="--radgraph-level: has no effect without --radgraph"):
        EvaluateScore(path, radgraph_level="simple").run()


def test_radgraph_by_any_annotator():
    def annotate(reports):
        entity = {"label": "", "relations": []}
        return [
            {"entities": {word: {**entity, "tokens": word} for word in report.split()}}
            for report in reports
        ]

    scores = score_reports(PREDICTED, WANTED, ReportMetrics(annotate=annotate, resamples=5))
    assert scores.metrics["radgraph_partial"].value > 0
    assert scores.rows["radgraph_partial"][2] == 0


def test_without_reports_there_are_no_figures():
    scores = score_reports([], [], ReportMetrics())
    assert scores.metrics == {}
    assert set(scores.not_computed.values()) == {"no report to score"}


def test_the_command_line_takes_all_three(capsys):
    for words, kind in (
        ("reports --checkpoint c --data d --out o --chexbert p --limit 3", EvaluateReports),
        ("images --checkpoint c --data d --out o --rad-dino p --shards 4", EvaluateImages),
        ("score --predictions p --references r --skip-empty", EvaluateScore),
    ):
        assert isinstance(tyro.cli(Command, args=words.split()), kind)
    words = "images --checkpoint c --data d --out o --shards 2.5"
    with pytest.raises(SystemExit):
        tyro.cli(Command, args=words.split())

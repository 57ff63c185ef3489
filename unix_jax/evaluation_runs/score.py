"""Metrics of reports, from any source."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from unix_jax.evaluation.bootstrap import intervals, mean_intervals
from unix_jax.evaluation.clinical import CONDITIONS, CheXbert, Cut, clinical_f1, report_f1
from unix_jax.evaluation.radgraph import Annotator, f1_radgraph
from unix_jax.evaluation.text import text_scores
from unix_jax.evaluation_runs.results import CONFIDENCE, Figure, figures

CLINICAL, RADGRAPH, TEXT = "CheXbert F1", "F1-RadGraph", "BLEU, ROUGE-L"
RANKED_BY_LABELS = "uncertain_as_negative_f1"


@dataclasses.dataclass(frozen=True)
class ReportMetrics:
    """Settings of the metrics of reports.

    chexbert, annotate: None omits their metrics.
    cut: CheXbert's truncation of long reports.
    resamples: of the bootstrap.
    seed: of the bootstrap.
    radgraph_model, radgraph_level: of `annotate`, and which of its levels are reported.
    """

    chexbert: CheXbert | None = None
    annotate: Annotator | None = None
    cut: Cut = "tokens"
    resamples: int = 1000
    seed: int = 0
    radgraph_model: str = "radgraph"
    radgraph_level: Literal["simple", "partial", "complete", "all"] = "all"

    def settings(self) -> dict[str, object]:
        """How figures were computed, for results.json."""
        return {
            "chexbert": None if self.chexbert is None else self.chexbert.source,
            "chexbert_cut": None if self.chexbert is None else self.cut,
            "radgraph_model": None if self.annotate is None else self.radgraph_model,
            "radgraph_level": None if self.annotate is None else self.radgraph_level,
            "confidence": CONFIDENCE,
            "resamples": self.resamples,
            "seed": self.seed,
        }


@dataclasses.dataclass(frozen=True)
class ReportScores:
    """Figures of a set of reports.

    metrics: each with its interval.
    by_condition: F1 by condition, with the numbers of positive references and predictions.
    rows: a score of each report, by name.
    ranked_by: the name in `rows` that ranks reports.
    not_computed: why a metric is missing.
    """

    metrics: Mapping[str, Figure]
    by_condition: Mapping[str, Mapping[str, float]]
    rows: Mapping[str, Sequence[float]]
    ranked_by: str
    not_computed: Mapping[str, str]


def score_reports(
    predictions: Sequence[str], references: Sequence[str], how: ReportMetrics
) -> ReportScores:
    """All metrics of `how`; none without reports.

    Raises:
      MetricError: different numbers of strings.
      UniXError: a package that BLEU or ROUGE-L needs is not installed.
    """
    missing = _missing(how)
    if not predictions and not references:
        reason = "no report to score"
        return ReportScores({}, {}, {}, "", dict.fromkeys((TEXT, CLINICAL, RADGRAPH), reason))
    draws = {"confidence": CONFIDENCE, "resamples": how.resamples, "seed": how.seed}
    rows: dict[str, Sequence[float]] = dict(text_scores(predictions, references))
    ranked_by = "ROUGE_L"
    if how.annotate is not None:
        found = f1_radgraph(predictions, references, how.annotate)
        rows |= {
            f"radgraph_{level}": scores.tolist()
            for level, scores in found.items()
            if how.radgraph_level in (level, "all")
        }
    metrics = figures(mean_intervals(rows, **draws))  # type: ignore[arg-type]
    conditions: dict[str, dict[str, float]] = {}
    if how.chexbert is not None:
        labels = [how.chexbert.labels(texts, cut=how.cut) for texts in (references, predictions)]
        clinical = figures(intervals(clinical_f1, *labels, **draws))  # type: ignore[arg-type]
        clinical = {n: f for n, f in clinical.items() if not n.endswith("ce_num_examples")}
        metrics = _overall(clinical) | metrics | _single(clinical)
        conditions = _by_condition(clinical, *labels)
        for policy, values in report_f1(*labels).items():
            rows[f"{policy}_f1"] = values.tolist()
        ranked_by = RANKED_BY_LABELS
    return ReportScores(metrics, conditions, rows, ranked_by, missing)


def _missing(how: ReportMetrics) -> dict[str, str]:
    missing = {}
    if how.chexbert is None:
        missing[CLINICAL] = "its weights were not given (--chexbert PATH)"
    if how.annotate is None:
        missing[RADGRAPH] = "not requested (--radgraph)"
    return missing


def _is_single(name: str) -> bool:
    return name.partition("f1_")[2] in CONDITIONS


def _overall(clinical: Mapping[str, Figure]) -> dict[str, Figure]:
    return {name: figure for name, figure in clinical.items() if not _is_single(name)}


def _single(clinical: Mapping[str, Figure]) -> dict[str, Figure]:
    return {name: figure for name, figure in clinical.items() if _is_single(name)}


def _by_condition(
    clinical: Mapping[str, Figure], reference: np.ndarray, predicted: np.ndarray
) -> dict[str, dict[str, float]]:
    found = {}
    for column, name in enumerate(CONDITIONS):
        figure = clinical[f"uncertain_as_negative_f1_{name}"]
        assert figure.low is not None
        assert figure.high is not None
        found[name] = {
            "f1": figure.value,
            "low": figure.low,
            "high": figure.high,
            "references": int((reference[:, column] == 1).sum()),
            "predictions": int((predicted[:, column] == 1).sum()),
        }
    return found

"""Clinical F1 of reports: 14 conditions, as CheXbert labels them, compared report by report.

Classes: 0 blank (not mentioned), 1 positive, 2 negative, 3 uncertain. Every metric is computed
twice, with uncertain counted as negative and as positive.
Source: Smit et al., arXiv 2004.09167, for the labels; names and arithmetic of the metrics are those
of the original's evaluation. Letters: N reports, C = 14 conditions.
"""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from unix_jax.errors import MetricError
from unix_jax.evaluation.chexbert import CheXbert, Cut

__all__ = ["CONDITIONS", "TOP_5", "CheXbert", "Cut", "clinical_f1", "report_f1"]

CONDITIONS = (
    "enlarged_cardiomediastinum",
    "cardiomegaly",
    "lung_opacity",
    "lung_lesion",
    "edema",
    "consolidation",
    "pneumonia",
    "atelectasis",
    "pneumothorax",
    "pleural_effusion",
    "pleural_other",
    "fracture",
    "support_devices",
    "no_finding",
)
TOP_5 = ("atelectasis", "cardiomegaly", "edema", "consolidation", "pleural_effusion")
BLANK, POSITIVE, NEGATIVE, UNCERTAIN = range(4)
# Classes that count as positive, by the prefix of the figures' names.
POLICIES = {
    "uncertain_as_negative_": (POSITIVE,),
    "uncertain_as_positive_": (POSITIVE, UNCERTAIN),
}
# The original's, in every denominator: 0 / 0 is 0, and a perfect score falls short of 1 by it.
_EPSILON = 1e-10


def clinical_f1(
    reference_labels: Int[np.ndarray, "N C"], predicted_labels: Int[np.ndarray, "N C"]
) -> dict[str, float]:
    """Precision, recall and F1 of predicted labels under both policies for uncertain ones.

    Args:
      reference_labels, predicted_labels: classes 0 to 3, a row for each report, a column for
        each of `CONDITIONS`.

    Returns:
      By name, in [0, 1], each with the prefix `uncertain_as_negative_` or
      `uncertain_as_positive_`: `micro_f1` and `macro_f1` over 14 conditions, `f1_top5_micro` and
      `f1_top5_macro` over `TOP_5`, `f1_CONDITION`; and the means over reports `ce_precision`,
      `ce_recall`, `ce_f1`, with their number, `ce_num_examples`.

    Raises:
      MetricError: not integers in 0 to 3, not [reports, 14], of different shapes, or no report.
    """
    reference, predicted = _checked(reference_labels, predicted_labels)
    scores: dict[str, float] = {}
    for prefix, positive in POLICIES.items():
        values = _scores(np.isin(reference, positive), np.isin(predicted, positive))
        scores |= {prefix + name: value for name, value in values.items()}
    return scores


def report_f1(
    reference_labels: Int[np.ndarray, "N C"], predicted_labels: Int[np.ndarray, "N C"]
) -> dict[str, Float[np.ndarray, " N"]]:
    """The F1 of each report over its conditions, by policy (`uncertain_as_negative`, ...).

    Their mean is `ce_f1`. For confidence intervals, and to find the worst reports.

    Raises:
      MetricError: as `clinical_f1`.
    """
    reference, predicted = _checked(reference_labels, predicted_labels)
    return {
        prefix.removesuffix("_"): _f1(
            *_counts(np.isin(reference, positive), np.isin(predicted, positive), axis=1)
        )
        for prefix, positive in POLICIES.items()
    }


def _checked(reference: Any, predicted: Any) -> tuple[np.ndarray, np.ndarray]:
    arrays = []
    for name, labels in (("reference_labels", reference), ("predicted_labels", predicted)):
        array = np.asarray(labels)
        if array.ndim != 2 or array.shape[1] != len(CONDITIONS) or not len(array):
            raise MetricError(
                f"{name}: expected labels [reports, {len(CONDITIONS)}] of at least one report, "
                f"found {list(array.shape)}"
            )
        if array.dtype.kind not in "iu":
            raise MetricError(f"{name}: expected integers, found {array.dtype}")
        if array.min() < BLANK or array.max() > UNCERTAIN:
            raise MetricError(
                f"{name}: expected classes 0 to 3, found {array.min()} to {array.max()}"
            )
        arrays.append(array)
    if arrays[0].shape != arrays[1].shape:
        raise MetricError(
            f"predicted_labels: expected {len(arrays[0])} reports as in reference_labels, "
            f"found {len(arrays[1])}"
        )
    return arrays[0], arrays[1]


def _counts(reference: Bool[np.ndarray, "N C"], predicted: Bool[np.ndarray, "N C"], axis: int):
    """True positives, false positives, false negatives along an axis."""
    return (
        (predicted & reference).sum(axis),
        (predicted & ~reference).sum(axis),
        (~predicted & reference).sum(axis),
    )


def _f1(true: Any, false_positive: Any, false_negative: Any) -> Any:
    return true / (true + 0.5 * (false_positive + false_negative) + _EPSILON)


def _scores(reference: Bool[np.ndarray, "N C"], predicted: Bool[np.ndarray, "N C"]):
    by_class = np.stack(_counts(reference, predicted, axis=0))
    by_report = _counts(reference, predicted, axis=1)
    true, false_positive, false_negative = by_report
    f1 = _f1(*by_class)
    top = [CONDITIONS.index(name) for name in TOP_5]
    return {
        "ce_num_examples": float(len(reference)),
        "ce_precision": float((true / (true + false_positive + _EPSILON)).mean()),
        "ce_recall": float((true / (true + false_negative + _EPSILON)).mean()),
        "ce_f1": float(_f1(*by_report).mean()),
        "macro_f1": float(f1.mean()),
        "micro_f1": float(_f1(*by_class.sum(1))),
        "f1_top5_macro": float(f1[top].mean()),
        "f1_top5_micro": float(_f1(*by_class[:, top].sum(1))),
        **{f"f1_{name}": float(value) for name, value in zip(CONDITIONS, f1, strict=True)},
    }

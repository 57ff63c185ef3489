"""The paper's own results (arXiv 2601.11522), in the units of this project's metrics.

They were measured on MIMIC-CXR: 2,365 reports, and 4,352 prompts as the mean over four shards. Next
to results on another data set they only serve as orientation.
"""

from collections.abc import Mapping

SOURCE = "UniX, arXiv 2601.11522"

# By the names of `clinical.clinical_f1`.
REPORTS: Mapping[str, float] = {
    "uncertain_as_negative_micro_f1": 0.536,
    "uncertain_as_negative_f1_top5_micro": 0.566,
    "uncertain_as_negative_macro_f1": 0.332,
    "uncertain_as_negative_f1_top5_macro": 0.473,
    "uncertain_as_positive_micro_f1": 0.526,
    "uncertain_as_positive_f1_top5_micro": 0.579,
    "uncertain_as_positive_macro_f1": 0.355,
    "uncertain_as_positive_f1_top5_macro": 0.498,
}
# By side of the image in pixels.
IMAGES: Mapping[int, Mapping[str, float]] = {
    512: {
        "FD": 54.022,
        "KD": 0.024,
        "alignment": 0.635,
        "precision": 0.736,
        "recall": 0.479,
        "density": 0.536,
        "coverage": 0.550,
    },
    256: {
        "FD": 65.208,
        "KD": 0.051,
        "alignment": 0.251,
        "precision": 0.675,
        "recall": 0.243,
        "density": 0.366,
        "coverage": 0.419,
    },
}

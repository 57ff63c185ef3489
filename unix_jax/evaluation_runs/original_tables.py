"""CSV files with the columns of the original's and the benchmark's evaluation scripts.

* `understanding_results.csv`: the reports, as `calculate_und_metrics.py` reads them.
* `metrics_summary.csv`: its figures of reports.
* `generations.csv`: images and their texts, as the benchmark's scripts and `--generated` read them.
* `image_generation_metrics.csv`, `conditional_image_generation_metrics.csv`: figures of images.
* `privacy_metrics.csv`: images generated from training texts.
"""

import csv
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from unix_jax.data.records import RecordSource
from unix_jax.errors import UniXError
from unix_jax.evaluation_runs import image_scores
from unix_jax.evaluation_runs.image_set import Generated
from unix_jax.evaluation_runs.results import Results
from unix_jax.storage.files import atomic_write
from unix_jax.storage.journal import Entry

REPORTS, SUMMARY = "understanding_results.csv", "metrics_summary.csv"
IMAGES = "image_generation_metrics.csv"
CONDITIONAL, PRIVACY = "conditional_image_generation_metrics.csv", "privacy_metrics.csv"

_SUMMARY = (
    *(
        f"uncertain_as_{policy}_{name}"
        for policy in ("negative", "positive")
        for name in ("micro_f1", "f1_top5_micro", "macro_f1", "f1_top5_macro")
    ),
    "f1-radgraph",
    "BLEU1",
    "BLEU4",
    "ROUGE_L",
)
# The benchmark's column, and the name of our figure.
_IMAGES = {
    "FID": image_scores.FID,
    "FID (RadDino)": "FD",
    "Inception Score": image_scores.POOLED_SCORE,
    "KID": image_scores.KID,
    "KID (RadDino)": "KD",
    "Precision": "precision",
    "Recall": "recall",
    "Density": "density",
    "Coverage": "coverage",
    "FRD": image_scores.FRD,
    "Alignment_score": image_scores.ALIGNMENT,
}
PRIVACY_COLUMNS = (
    "Real Path", "Prompt", "Mean_reid_scores", "Max_reid_scores", "Mean_pixel_distance",
    "Min_pixel_distance", "Mean_latent_distance", "Min_latent_distance",
)  # fmt: skip


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes CSV atomically; missing values and None are empty cells.

    Raises:
      UniXError: it cannot be written.
    """
    try:
        with (
            atomic_write(path) as temporary,
            temporary.open("w", encoding="utf-8", errors="replace", newline="") as file,
        ):
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows({name: row.get(name) for name in columns} for row in rows)
    except OSError as error:
        raise UniXError(f"{path}: cannot be written: {error.strerror}") from error


def write_reports_table(path: Path, entries: Sequence[Entry], source: RecordSource) -> None:
    """The columns `Image Path`, `Report Impression`, `Ground Truth`, one row per report."""

    def image(entry: Entry) -> str:
        try:
            found = source[entry.index].image
        except UniXError:
            return entry.key
        return str(found) if isinstance(found, Path) else entry.key

    write_table(
        path,
        ("Image Path", "Report Impression", "Ground Truth"),
        (
            {
                "Image Path": image(entry),
                "Report Impression": entry.values["prediction"],
                "Ground Truth": entry.values["reference"],
            }
            for entry in entries
        ),
    )


def write_summary(path: Path, results: Results) -> None:
    """The figures of reports in one row."""
    values = {name: figure.value for name, figure in results.metrics.items()}
    # Only the paper's level is reported.
    levels = (f"radgraph_{level}" for level in ("partial", "simple", "complete"))
    radgraph = next((values[name] for name in levels if name in values), None)
    if radgraph is not None:
        values["f1-radgraph"] = radgraph
    values["Timestamp"] = datetime.now().strftime("%Y-%m-%d %H:%M:%S")  # type: ignore[assignment]
    write_table(path, ("Timestamp", *_SUMMARY), [values])


def write_generations(path: Path, images: Sequence[Generated]) -> None:
    """The columns `annotated_prompt`, `synthetic_filename`, `key`; files relative to the table."""
    write_table(
        path,
        ("annotated_prompt", "synthetic_filename", "key"),
        (
            {
                "annotated_prompt": image.prompt,
                "synthetic_filename": image.path.relative_to(path.parent).as_posix(),
                "key": image.key,
            }
            for image in images
        ),
    )


def write_image_tables(out: Path, results: Results, named: str) -> None:
    """The figures of images in one row, and a row for each pathology where there are any.

    `named` is the benchmark's `Extra Info`, the name of the model.
    """
    row = {
        column: round(results.metrics[name].value, 3)
        for column, name in _IMAGES.items()
        if name in results.metrics
    }
    columns = (*_IMAGES, "Extra Info")
    write_table(out / IMAGES, columns, [{**row, "Extra Info": named}])
    rows: dict[str, dict[str, Any]] = {}
    for title, group in results.groups.items():
        figure = title.removesuffix(image_scores.BY_PATHOLOGY)
        for pathology, found in group.items():
            cells = rows.setdefault(pathology, {"Pathology": pathology, "Extra Info": named})
            value = found["value"]
            values = value if isinstance(value, Mapping) else {figure: value}
            for column, name in _IMAGES.items():
                if values.get(name) is not None:
                    cells[column] = round(values[name], 3)
    if rows:
        write_table(out / CONDITIONAL, (*columns, "Pathology"), rows.values())
    else:  # that of other metrics
        (out / CONDITIONAL).unlink(missing_ok=True)

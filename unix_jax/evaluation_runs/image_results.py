"""Outputs of an evaluation of images: results.json, the pages, tables, a contact sheet."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from unix_jax.data.records import record_image
from unix_jax.errors import UniXError
from unix_jax.evaluation_runs import original_tables, paper
from unix_jax.evaluation_runs.html_report import Case, images_page, nearest_page
from unix_jax.evaluation_runs.image_scores import ImageMetrics, ImageScores, score_images
from unix_jax.evaluation_runs.image_set import GENERATIONS, ImageSet
from unix_jax.evaluation_runs.items import Steps, unseen
from unix_jax.evaluation_runs.nearest_training import (
    PIXEL,
    REID,
    NearestImages,
    Training,
    find_nearest,
)
from unix_jax.evaluation_runs.results import Results, write_page, write_results
from unix_jax.preprocessing.images import load_image
from unix_jax.preprocessing.transforms import contact_sheet, save_png

SHEET, PAGE, NEAREST_PAGE, NEAREST_TABLE = (
    "contact_sheet.png", "report.html", "nearest.html", "nearest.csv",
)  # fmt: skip
NEAREST = "nearest training images"
# A distance of pixels below this is rounding, of a file format or of the arithmetic.
_EQUAL = 0.5
# Number of worst and of best images on the page; images on the contact sheet; nearest pairs.
_CASES, _ON_SHEET, _PAIRS = 6, 64, 40


def summarise_images(
    images: ImageSet,
    out: Path,
    kind: Literal["images", "generated"],
    settings: Mapping[str, Any],
    how: ImageMetrics,
    training: Training | None = None,
    steps: Steps = unseen,
) -> Results:
    """Measures the images and writes everything into `out`.

    Args:
      images: the images to measure.
      out: the directory.
      kind: `images` of a model's run, or `generated` images from other software.
      settings: the settings that the directory records.
      how: the metrics.
      training: the training images to compare with; None omits the comparison.
      steps: shows progress.

    Raises:
      UniXError: a file cannot be read or written, or a metric cannot be computed.
    """
    if images.images:
        save_png(out / SHEET, _sheet(images))
    scores = score_images(images, how, steps)
    metrics, missing, notes = dict(scores.metrics), dict(scores.not_computed), list(images.notes)
    nearest: NearestImages | None = None
    if training is None:
        missing[NEAREST] = "the training images were not given (--train SOURCE)"
    elif not images.images:
        missing[NEAREST] = "no generated images"
    else:
        nearest = find_nearest(images, training, how, steps)
        metrics |= nearest.figures(how)
        notes += _training_notes(nearest)
    if how.radiomics is not None:
        notes += how.radiomics.notes()
    scoring = {**how.settings(), "train": None if training is None else training.name}
    results = Results(
        kind, settings, scoring, images.items, len(images.images), images.failures,
        metrics, scores.groups, missing, paper.IMAGES.get(images.side, {}),
        [image.entry for image in images.images if image.warning],
        notes, [*images.unreadable, *(nearest.unreadable if nearest else ())],
    )  # fmt: skip
    write_results(out, results)
    named = str(settings.get("checkpoint") or settings.get("generated"))
    original_tables.write_image_tables(out, results, named)
    if kind == "images":
        original_tables.write_generations(out / GENERATIONS, images.images)
    ranked_by, worst, best = _cases(images, scores)
    write_page(out / PAGE, images_page(results, ranked_by, worst, best))
    if nearest is None or training is None:
        for name in (NEAREST_PAGE, NEAREST_TABLE, original_tables.PRIVACY):
            (out / name).unlink(missing_ok=True)
    else:
        _write_nearest(images, out, training, nearest, results)
    return results


def _training_notes(nearest: NearestImages) -> list[str]:
    notes = [
        f"number of compared training images: {nearest.compared}",
        f"texts that training images also have: {len(nearest.own)}",
    ]
    for what, values in (
        ("generated", nearest.values[PIXEL]),
        ("real", nearest.usual.get(PIXEL, ())),
    ):
        equal = sum(value < _EQUAL for value in values)
        if equal:
            notes.append(f"{what} images that are equal to a training image: {equal}")
    if not nearest.usual:
        notes.append(
            "real images were not compared with the training images: the set has none, or they may "
            "be training images themselves"
        )
    return notes


# --- the nearest training images ---------------------------------------------------------------


def _write_nearest(
    images: ImageSet, out: Path, training: Training, nearest: NearestImages, results: Results
) -> None:
    keys = {
        index: training.source[index].key
        for indices in nearest.indices.values()
        for index in sorted(set(indices.tolist()))
    }
    columns = ["item", "file", "text"]
    rows: list[dict[str, Any]] = [
        {"item": image.key, "file": str(image.path), "text": image.prompt}
        for image in images.images
    ]
    for space, values in nearest.values.items():
        columns += [f"{space}: training image", space]
        for row, value, index in zip(rows, values, nearest.indices[space], strict=True):
            row[f"{space}: training image"] = keys[int(index)]
            row[space] = round(float(value), 4)
    original_tables.write_table(out / NEAREST_TABLE, columns, rows)
    if nearest.own:
        original_tables.write_table(
            out / original_tables.PRIVACY, original_tables.PRIVACY_COLUMNS, nearest.own
        )
    else:
        (out / original_tables.PRIVACY).unlink(missing_ok=True)

    def case(space: str, position: int) -> Case:
        image = images.images[position]
        index = int(nearest.indices[space][position])
        shown: list[tuple[str, Image.Image | None]] = [
            ("generated", load_image(image.path)),
            (f"training: {keys[index]}", record_image(training.source[index])),
        ]
        texts = {"text": image.prompt} if image.prompt else {}
        return Case(image.key, float(nearest.values[space][position]), shown, texts)

    cases = {
        space: [case(space, int(position)) for position in _order(space, values)[:_PAIRS]]
        for space, values in nearest.values.items()
    }
    write_page(out / NEAREST_PAGE, nearest_page(results, cases, len(images.images)))


def _order(space: str, values: np.ndarray) -> np.ndarray:
    """Indices of the pairs, the nearest pair first."""
    return np.argsort(-values if space == REID else values, kind="stable")


# --- samples -----------------------------------------------------------------------------------


def _sheet(images: ImageSet) -> Image.Image:
    shown = images.images[:_ON_SHEET]
    thumbnails = [load_image(image.path) for image in shown]
    for thumbnail in thumbnails:
        thumbnail.thumbnail((256, 256))
    return contact_sheet(thumbnails, [image.prompt or image.key for image in shown])


def _cases(images: ImageSet, scores: ImageScores) -> tuple[str, list[Case], list[Case]]:
    """(name of the ranking, worst, best); without a score, the first ones as the best."""
    ranked_by, values = "", dict[int, float]()
    if scores.alignment is not None:
        ranked_by, values = "alignment with the text", dict(scores.alignment)
    elif scores.closeness is not None:
        ranked_by = "similarity to the real image"
        positions = (position for _, position in images.pairs)
        values = dict(zip(positions, scores.closeness.tolist(), strict=True))

    def case(position: int) -> Case:
        image = images.images[position]
        shown: list[tuple[str, Image.Image | None]] = []
        if image.record is not None:
            try:
                record = images.source[image.record]
                if record.image is not None:
                    shown.append(("real", record_image(record)))
            except UniXError:  # listed among the unreadable records
                shown.append(("real", None))
        shown.append(("generated", load_image(image.path)))
        texts = {"text": image.prompt} if image.prompt else {}
        return Case(image.key, values.get(position), shown, texts)

    if not values:
        return ranked_by, [], [case(i) for i in range(min(len(images.images), 2 * _CASES))]
    order = sorted(values, key=lambda position: values[position])
    worst = order[: min(_CASES, -(-len(order) // 2))]
    best = [one for one in order[::-1] if one not in worst][:_CASES]
    return ranked_by, [case(one) for one in worst], [case(one) for one in best]

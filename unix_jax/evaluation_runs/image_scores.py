"""Metrics of generated images, from any source."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unix_jax.errors import MetricError
from unix_jax.evaluation.alignment import BioViLT, cosine_similarities
from unix_jax.evaluation.bootstrap import mean_interval
from unix_jax.evaluation.features import RadDino
from unix_jax.evaluation.finding_groups import by_group, shard_mean
from unix_jax.evaluation.image import frechet_distance, inception_score, kernel_distance, prdc
from unix_jax.evaluation.inception import Inception, softmax
from unix_jax.evaluation.radiomics import radiomics_distance
from unix_jax.evaluation_runs.image_set import ImageSet
from unix_jax.evaluation_runs.items import Steps, unseen
from unix_jax.evaluation_runs.radiomics_tables import RadiomicsTables
from unix_jax.evaluation_runs.results import CONFIDENCE, Figure

DISTANCES, ALIGNMENT = "FD, KD, precision, recall, density, coverage", "alignment"
INCEPTION, RADIOMICS = "Inception FID, KID and score", "Fréchet radiomics distance"
FID, KID = "FID (Inception)", "KID (Inception)"
SCORE, POOLED_SCORE = "Inception score", "Inception score of pooled features"
FRD = "FRD"
_NEIGHBOURS = 5
# The value in torchmetrics, which the benchmark uses.
_SPLITS = 10
BY_PATHOLOGY = " by pathology"

Groups = dict[str, dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class ImageMetrics:
    """Settings of the metrics of images.

    rad_dino, biovil_t, inception, radiomics: None omits their metrics.
    shards: 1 uses all rows at once; 4 is the mean over four contiguous shards, as published.
    by_pathology: also compute the metrics for each label of the records.
    resamples, seed: of the bootstrap.
    """

    rad_dino: RadDino | None = None
    biovil_t: BioViLT | None = None
    inception: Inception | None = None
    radiomics: RadiomicsTables | None = None
    shards: int = 1
    by_pathology: bool = False
    resamples: int = 1000
    seed: int = 0

    @property
    def compares(self) -> bool:
        """Whether the real images, or their labels, are needed."""
        by_label = self.radiomics is not None and self.by_pathology
        return self.rad_dino is not None or self.inception is not None or by_label

    def settings(self) -> dict[str, object]:
        """How figures were computed, for results.json."""
        rows = "all rows" if self.shards == 1 else f"mean over {self.shards} contiguous shards"
        return {
            "distances": rows,
            "rad_dino": self.rad_dino is not None,
            "biovil_t": self.biovil_t is not None,
            "inception": self.inception is not None,
            "radiomics": None if self.radiomics is None else self.radiomics.settings(),
            "prdc_k": _NEIGHBOURS,
            "confidence": CONFIDENCE,
            "resamples": self.resamples,
            "seed": self.seed,
        }


@dataclasses.dataclass(frozen=True)
class ImageScores:
    """Figures of a set of images.

    metrics: each with its interval, if it has one.
    groups: figures by pathology, by name of the figure.
    not_computed: why a metric is missing.
    closeness: similarity of each pair of `ImageSet.pairs`; alignment: similarity of image and text,
      by the index of each image with a known text. None if they are not computed.
    """

    metrics: Mapping[str, Figure]
    groups: Mapping[str, Mapping[str, Any]]
    not_computed: Mapping[str, str]
    closeness: np.ndarray | None = None
    alignment: Mapping[int, float] | None = None


class _Missing(Exception):
    """Why metrics are not computed."""


def score_images(images: ImageSet, how: ImageMetrics, steps: Steps = unseen) -> ImageScores:
    """All metrics of `how` that these images allow; `steps` shows progress.

    Raises:
      UniXError: an image cannot be read any more, or a package is missing.
    """
    metrics: dict[str, Figure] = {}
    groups: dict[str, Mapping[str, Any]] = {}
    missing: dict[str, str] = {}
    closeness: np.ndarray | None = None
    alignment: dict[int, float] | None = None
    parts: tuple[tuple[str, Callable[[], Any]], ...] = (
        (DISTANCES, lambda: _rad_dino(images, how, steps)),
        (ALIGNMENT, lambda: _alignment(images, how, steps)),
        (INCEPTION, lambda: _inception(images, how, steps)),
        (RADIOMICS, lambda: _radiomics(images, how)),
    )
    for name, compute in parts:
        try:
            found, by_pathology, rows = compute()
        except _Missing as reason:
            missing[name] = str(reason)
            continue
        metrics |= found
        groups |= by_pathology
        if name == DISTANCES:
            closeness = rows
        elif name == ALIGNMENT:
            alignment = rows
    if how.by_pathology and not any(images.labels[0] + images.labels[1]):
        missing["figures by pathology"] = "none of the records has a label"
        groups = {}
    return ImageScores(metrics, groups, missing, closeness, alignment)


def mean_figure(values: Any, how: ImageMetrics) -> Figure:
    """The mean of a number per item, with its interval."""
    one = mean_interval(values, confidence=CONFIDENCE, resamples=how.resamples, seed=how.seed)
    return Figure(one.value, one.low, one.high)


# --- each encoder ------------------------------------------------------------------------------


def _rad_dino(
    images: ImageSet, how: ImageMetrics, steps: Steps
) -> tuple[dict[str, Figure], Groups, Any]:
    if how.rad_dino is None:
        raise _Missing("its encoder was not given (--rad-dino PATH)")
    _check_numbers(images, how, _NEIGHBOURS + 1)
    real = how.rad_dino.features(images.real_images(steps))
    fake = how.rad_dino.features(steps(images.paths(), "image"))

    def all_of_them(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
        return {
            "FD": frechet_distance(a, b),
            "KD": kernel_distance(a, b),
            **prdc(a, b, k=_NEIGHBOURS),
        }

    found: dict[str, float] = shard_mean(all_of_them, real, fake, shards=how.shards)
    metrics = {name: Figure(value) for name, value in found.items()}
    groups = _grouped(
        images,
        how,
        {
            "FD": (frechet_distance, real, fake, 2),
            "KD": (kernel_distance, real, fake, 2),
            "PRDC": (lambda a, b: prdc(a, b, k=_NEIGHBOURS), real, fake, _NEIGHBOURS + 1),
        },
    )
    closeness = None
    if images.pairs:
        rows = np.array(images.pairs)
        closeness = cosine_similarities(real[rows[:, 0]], fake[rows[:, 1]])
        metrics["pair similarity"] = mean_figure(closeness, how)
    return metrics, groups, closeness


def _inception(
    images: ImageSet, how: ImageMetrics, steps: Steps
) -> tuple[dict[str, Figure], Groups, Any]:
    if how.inception is None:
        raise _Missing("its weights were not given (--inception PATH)")
    _check_numbers(images, how, 2)
    real, _ = how.inception.features(images.real_images(steps))
    fake, logits = how.inception.features(steps(images.paths(), "image"))

    def all_of_them(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> dict[str, float]:
        return {
            FID: frechet_distance(a, b),
            KID: kernel_distance(a, b),
            SCORE: inception_score(softmax(c)),
            POOLED_SCORE: shard_mean(
                lambda rows: inception_score(softmax(rows)), b, shards=min(_SPLITS, len(b))
            ),
        }

    found: dict[str, float] = shard_mean(all_of_them, real, fake, logits, shards=how.shards)
    groups = _grouped(
        images,
        how,
        {
            FID: (frechet_distance, real, fake, 2),
            KID: (kernel_distance, real, fake, 2),
            SCORE: (lambda _, b: inception_score(softmax(b)), real, logits, 1),
            POOLED_SCORE: (
                lambda _, b: shard_mean(
                    lambda rows: inception_score(softmax(rows)), b, shards=min(_SPLITS, len(b))
                ),
                real,
                fake,
                1,
            ),
        },
    )
    return {name: Figure(value) for name, value in found.items()}, groups, None


def _alignment(
    images: ImageSet, how: ImageMetrics, steps: Steps
) -> tuple[dict[str, Figure], Groups, Any]:
    if how.biovil_t is None:
        raise _Missing("its networks were not given (--biovil-t PATH)")
    positions = [i for i, image in enumerate(images.images) if image.prompt]
    if not positions:
        raise _Missing("no generated image has a known text")
    chosen = [images.images[i] for i in positions]
    paths = [one.path for one in chosen]
    scores = how.biovil_t.scores(steps(paths, "image"), [one.prompt for one in chosen])
    groups: Groups = {}
    if how.by_pathology:
        _, labels = images.labels
        rows = {
            name: [k for k, i in enumerate(positions) if name in labels[i]]
            for name in _names(images)
        }
        groups[ALIGNMENT + BY_PATHOLOGY] = {
            name: {"value": float(scores[some].mean()) if some else None, "fake_rows": len(some)}
            for name, some in rows.items()
        }
    by_position = dict(zip(positions, scores.tolist(), strict=True))
    return {ALIGNMENT: mean_figure(scores, how)}, groups, by_position


def _radiomics(images: ImageSet, how: ImageMetrics) -> tuple[dict[str, Figure], Groups, Any]:
    if how.radiomics is None:
        raise _Missing(
            "its features were not given (--radiomics-real PATH --radiomics-generated PATH)"
        )
    real, fake = how.radiomics.features()
    try:
        metrics = {FRD: Figure(radiomics_distance(real, fake))}
    except MetricError as error:
        raise _Missing(str(error)) from None
    if not how.by_pathology:
        return metrics, {}, None
    names = _names(images)
    members = [
        _members(names, [labels.get(Path(file).name, ()) for file in table.files])
        for table, labels in zip(
            (how.radiomics.real, how.radiomics.generated), images.labels_by_file, strict=True
        )
    ]
    if not all(len(flags) for flags in members):
        return metrics, {}, None  # rows of an array have no names
    groups: dict[str, dict[str, Any]] = {}
    for column, name in enumerate(names):
        a, b = real[members[0][:, column]], fake[members[1][:, column]]
        try:
            value = radiomics_distance(a, b)
        except MetricError:  # too few rows
            value = None
        groups[name] = {"value": value, "real_rows": len(a), "fake_rows": len(b)}
    return metrics, {FRD + BY_PATHOLOGY: groups}, None


# --- parts -------------------------------------------------------------------------------------


def _check_numbers(images: ImageSet, how: ImageMetrics, fewest: int) -> None:
    """Raises _Missing unless each shard has at least `fewest` images of each kind."""
    real, fake = len(images.real), len(images.images)
    if min(real, fake) // how.shards < fewest:
        shards = f"--shards {how.shards}: " if how.shards > 1 else ""
        raise _Missing(
            f"{shards}expected at least {fewest * how.shards} images of each kind, "
            f"found {real} real and {fake} generated"
        )


def _names(images: ImageSet) -> list[str]:
    real, fake = images.labels
    return sorted({label for labels in (*real, *fake) for label in labels if label})


def _members(names: Sequence[str], labels: Sequence[tuple[str, ...]]) -> np.ndarray:
    """Which rows have which label, [rows, names]."""
    flags = np.array([[name in row for name in names] for row in labels], bool)
    return flags.reshape(len(labels), len(names))


def _grouped(
    images: ImageSet,
    how: ImageMetrics,
    metrics: Mapping[str, tuple[Callable[..., Any], np.ndarray, np.ndarray, int]],
) -> Groups:
    """Each metric of (metric, real rows, generated rows, fewest rows), by label."""
    if not how.by_pathology:
        return {}
    names = _names(images)
    real, fake = (_members(names, labels) for labels in images.labels)
    return {
        f"{title}{BY_PATHOLOGY}": by_group(metric, a, b, real, fake, names, at_least=fewest)
        for title, (metric, a, b, fewest) in metrics.items()
    }

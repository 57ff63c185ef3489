"""Comparison of generated images with their nearest training images, to detect memorisation.

Pixels are always compared, which requires no weights. RAD-DINO adds a latent space, and the
benchmark's siamese network adds the re-identification score. The reference is the same distances
for real images outside of the training set.
"""

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from unix_jax.data.records import Record, RecordSource, captions_of, record_image
from unix_jax.errors import DataError, UniXError
from unix_jax.evaluation import nearest
from unix_jax.evaluation.features import RadDino
from unix_jax.evaluation.nearest import Distances, Nearest, gray_pixels, pair_image
from unix_jax.evaluation.reid import Reidentification
from unix_jax.evaluation_runs.image_scores import ImageMetrics, mean_figure
from unix_jax.evaluation_runs.image_set import ImageSet
from unix_jax.evaluation_runs.items import Steps, key_of, unseen
from unix_jax.evaluation_runs.results import Figure
from unix_jax.preprocessing.images import load_image
from unix_jax.storage.journal import Entry

PIXEL, LATENT, REID = "pixel distance", "latent distance", "re-identification score"
# The benchmark's names.
_COLUMNS = {REID: "reid_scores", PIXEL: "pixel_distance", LATENT: "latent_distance"}
_BLOCK = 64
# An image is unusual if it is nearer than this share of the real images.
_USUAL = 0.05


@dataclasses.dataclass(frozen=True)
class Training:
    """The training images that generated images are compared with.

    name: its name in results; source: the training images.
    reidentification: None omits its score.
    baseline: whether the real images of the set are compared as well; they must not be among the
      training images.
    """

    name: str
    source: RecordSource
    reidentification: Reidentification | None = None
    baseline: bool = True


@dataclasses.dataclass(frozen=True)
class NearestImages:
    """The nearest training image of every generated image, in each space.

    values: by space, of each generated image: its distance, or its highest score.
    indices: by space, the index of that training record.
    usual: by space, the values of real images; empty without a baseline.
    own: of each text that a training record has, the benchmark's row of privacy_metrics.csv.
    compared: number of training images; unreadable: those that cannot be read.
    """

    values: Mapping[str, np.ndarray]
    indices: Mapping[str, np.ndarray]
    usual: Mapping[str, np.ndarray]
    own: Sequence[Mapping[str, Any]]
    compared: int
    unreadable: Sequence[Entry]

    def figures(self, how: ImageMetrics) -> dict[str, Figure]:
        """Figures of results.json."""
        found: dict[str, Figure] = {}
        for space, values in self.values.items():
            found[f"{space} to nearest training image"] = mean_figure(values, how)
            found[f"{space}, {_extreme_name(space)}"] = Figure(float(_sign(space)(values)))
            usual = self.usual.get(space, ())
            if len(usual):
                found[f"{space} of real images"] = mean_figure(usual, how)
                found[f"{space}: share nearer than 95 % of real images"] = mean_figure(
                    self.unusual(space), how
                )
        for space, column in _COLUMNS.items():
            rows = [row[f"Mean_{column}"] for row in self.own]
            if rows and None not in rows:
                found[f"{space} to training image of the same text"] = mean_figure(rows, how)
        return found

    def unusual(self, space: str) -> np.ndarray:
        """Whether each generated image is nearer than all but 5 % of the real ones are."""
        values, usual = self.values[space], self.usual[space]
        if space == REID:
            return values > np.quantile(usual, 1 - _USUAL)
        return values < np.quantile(usual, _USUAL)


def _sign(space: str) -> Callable[[np.ndarray], Any]:
    return np.max if space == REID else np.min


def _extreme_name(space: str) -> str:
    return "highest" if space == REID else "smallest"


@dataclasses.dataclass(frozen=True)
class _Small:
    """The kept parts of an image, because the images of a data set are larger than memory.

    gray: for the pixels; pair: at the benchmark's size, None if not needed.
    """

    gray: np.ndarray
    pair: Image.Image | None

    @classmethod
    def of(cls, image: Image.Image, with_pair: bool) -> "_Small":
        return cls(gray_pixels(image), pair_image(image) if with_pair else None)


@dataclasses.dataclass(frozen=True)
class _TrainingImage:
    index: int
    record: Record
    small: _Small


@dataclasses.dataclass(frozen=True)
class _Space:
    """Conversion of images to rows, and comparison of rows; smaller is nearer."""

    encode: Callable[[Sequence[_Small]], np.ndarray]
    distances: Distances


def find_nearest(
    images: ImageSet, training: Training, how: ImageMetrics, steps: Steps = unseen
) -> NearestImages:
    """Reads every training image once, independent of the number of spaces.

    Raises:
      DataError: no training image can be read.
      UniXError: a generated or real image cannot be read any more.
    """
    spaces = _spaces(how.rad_dino, training.reidentification)
    real = images.real if training.baseline else ()
    queries = _queries(images, real, spaces, steps)
    found = {name: Nearest(queries[name], space.distances) for name, space in spaces.items()}
    own = _OwnImages(images, queries, spaces)
    unreadable: list[Entry] = []
    compared = 0

    def read(index: int) -> _TrainingImage | Entry | None:
        try:
            record = training.source[index]
            if record.image is None:
                return None
            with_pair = len(spaces) > 1 or own.wants(record)
            small = _Small.of(record_image(record), with_pair)
            # The image may be bytes, which must not stay in memory.
            path = record.image if isinstance(record.image, Path) else None
            return _TrainingImage(index, dataclasses.replace(record, image=path), small)
        except UniXError as error:
            return Entry(index, key_of(training.source, index), "failed", str(error))

    def look(indices: Sequence[int]) -> int:
        outcomes = list(pool.map(read, indices))
        unreadable.extend(one for one in outcomes if isinstance(one, Entry))
        block = [one for one in outcomes if isinstance(one, _TrainingImage)]
        if not block:
            return 0
        rows = {name: space.encode([one.small for one in block]) for name, space in spaces.items()}
        for name, nearest_rows in found.items():
            nearest_rows.update(rows[name], np.array([one.index for one in block]))
        for position, one in enumerate(block):
            own.look(one, {name: rows[name][position] for name in rows})
        return len(block)

    waiting: list[int] = []
    # Decoding takes most of the time, and releases Python's global lock.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for index in steps(range(len(training.source)), "training image"):
            waiting.append(index)
            if len(waiting) == _BLOCK:
                compared += look(waiting)
                waiting.clear()
        compared += look(waiting)
    if not compared:
        raise DataError("--train: expected training images, found none that can be read")
    count = len(images.images)
    values = {name: _shown(name, rows.distances) for name, rows in found.items()}
    return NearestImages(
        {name: rows[:count] for name, rows in values.items()},
        {name: rows.indices[:count] for name, rows in found.items()},
        {name: rows[count:] for name, rows in values.items() if len(rows) > count},
        own.rows,
        compared,
        unreadable,
    )


def _spaces(
    rad_dino: RadDino | None, reidentification: Reidentification | None
) -> dict[str, _Space]:
    spaces = {
        PIXEL: _Space(lambda some: np.stack([one.gray for one in some]), nearest.root_mean_square)
    }
    if rad_dino is not None:
        spaces[LATENT] = _Space(
            lambda some: rad_dino.features(_pairs(some), squash=None), nearest.root_mean_square
        )
    if reidentification is not None:
        spaces[REID] = _Space(
            lambda some: reidentification.embeddings(_pairs(some)),
            lambda a, b: -reidentification.scores(a, b),
        )
    return spaces


def _pairs(some: Iterable[_Small]) -> Iterator[Image.Image]:
    return (one.pair for one in some if one.pair is not None)


def _queries(
    images: ImageSet, real: Sequence[int], spaces: Mapping[str, _Space], steps: Steps
) -> dict[str, np.ndarray]:
    """Rows of the generated images, then of the real ones."""
    rows: dict[str, list[np.ndarray]] = {name: [] for name in spaces}
    block: list[_Small] = []
    total = len(images.images) + len(real)
    for position in steps(range(total), "image"):
        if position < len(images.images):
            image = load_image(images.images[position].path)
        else:
            image = record_image(images.source[real[position - len(images.images)]])
        block.append(_Small.of(image, len(spaces) > 1))
        if len(block) == _BLOCK or position == total - 1:
            for name, space in spaces.items():
                rows[name].append(space.encode(block))
            block.clear()
    return {name: np.concatenate(blocks) for name, blocks in rows.items()}


def _shown(space: str, distances: np.ndarray) -> np.ndarray:
    return -distances if space == REID else distances


class _OwnImages:
    """The benchmark's comparison: images generated from a training text, with that text's image.

    If several training records have a text, the first one is used.
    """

    def __init__(
        self, images: ImageSet, queries: Mapping[str, np.ndarray], spaces: Mapping[str, _Space]
    ) -> None:
        self.rows: list[dict[str, Any]] = []
        self._images, self._queries, self._spaces = images, queries, spaces
        self._wanted: dict[str, list[int]] = {}
        for position, image in enumerate(images.images):
            if image.prompt.strip():
                self._wanted.setdefault(image.prompt.strip(), []).append(position)

    def wants(self, record: Record) -> bool:
        """Whether an image was generated from one of the record's texts."""
        return any(text.strip() in self._wanted for text in captions_of(record))

    def look(self, image: _TrainingImage, rows: Mapping[str, np.ndarray]) -> None:
        for text in captions_of(image.record):
            positions = self._wanted.pop(text.strip(), None)
            if positions is not None:
                self.rows.append(self._row(image, text, positions, rows))

    def _row(
        self,
        image: _TrainingImage,
        text: str,
        positions: Sequence[int],
        rows: Mapping[str, np.ndarray],
    ) -> dict[str, Any]:
        assert image.small.pair is not None
        whole = _levels(image.small.pair)
        generated = (self._images.images[i].path for i in positions)
        values = {
            PIXEL: np.array(
                [
                    nearest.root_mean_square(_levels(pair_image(load_image(path))), whole)[0, 0]
                    for path in generated
                ]
            )
        }
        for name, space in self._spaces.items():
            if name != PIXEL:
                found = space.distances(self._queries[name][positions], rows[name][None])
                values[name] = _shown(name, found[:, 0])
        row: dict[str, Any] = {
            "Real Path": str(image.record.image or image.record.key),
            "Prompt": text,
        }
        for name, column in _COLUMNS.items():
            extreme = "Max" if name == REID else "Min"
            some = values.get(name)
            row[f"Mean_{column}"] = None if some is None else float(some.mean())
            row[f"{extreme}_{column}"] = None if some is None else float(_sign(name)(some))
        return row


def _levels(image: Image.Image) -> np.ndarray:
    return np.asarray(image, np.float64).reshape(1, -1)

"""X-rays drawn from a data set's texts, and how close they come to its own.

Letters: N real pictures, M drawn ones, D columns of features.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from unix_jax.config import UniXConfig
from unix_jax.data.records import Record, RecordSource, captions_of, record_image
from unix_jax.errors import DataError, UniXError
from unix_jax.evaluation.alignment import BioViLT, cosine_similarities
from unix_jax.evaluation.bootstrap import mean_interval
from unix_jax.evaluation.features import RadDino
from unix_jax.evaluation.groups import by_group, shard_mean
from unix_jax.evaluation.image import frechet_distance, kernel_distance, prdc
from unix_jax.evaluation_runs import paper
from unix_jax.evaluation_runs.html_report import Case, images_page
from unix_jax.evaluation_runs.journal import Entry, read_entries
from unix_jax.evaluation_runs.results import CONFIDENCE, Figure, Results, write_page, write_results
from unix_jax.evaluation_runs.run import Progress, Ready, Share, key_of, padded, run_items
from unix_jax.flow import timestep_grid
from unix_jax.gray_levels import gray_level_problem
from unix_jax.images import load_image
from unix_jax.inference.drawing import ImageSettings
from unix_jax.inference.pipeline import UniXPipeline
from unix_jax.transforms import contact_sheet, save_png

FOLDER, SHEET = "images", "contact_sheet.png"
DISTANCES, ALIGNMENT = "FD, KD, precision, recall, density, coverage", "alignment"
_NEIGHBOURS = 5
# Shown on the page, of the worst and of the best; and on the contact sheet.
_CASES, _ON_SHEET = 6, 64


@dataclasses.dataclass(frozen=True)
class DrawingSettings:
    """How pictures are drawn; as `UniXPipeline.generate_image`.

    size: both sides in pixels; None is the model's own.
    seed: with an item's number, gives the seed of its noise.
    """

    size: int | None = None
    steps: int = 50
    timestep_shift: float = 3.0
    guidance_scale: float = 2.0
    seed: int = 0


def checked_drawing(settings: DrawingSettings, config: UniXConfig) -> DrawingSettings:
    """The settings with their size filled in: a wrong one would fail at every single item.

    Raises:
      PromptError: a setting that this model cannot draw with.
    """
    asked = ImageSettings(settings.size, settings.size)
    timestep_grid(settings.steps, settings.timestep_shift)
    return dataclasses.replace(settings, size=asked.size(config)[0])


@dataclasses.dataclass(frozen=True)
class ImageMetrics:
    """What measures pictures.

    rad_dino, biovil_t: None leaves their metrics out.
    shards: 1 takes all rows at once; 4 is the mean over four contiguous shards, as published.
    by_pathology: the distances for each label of the records, too.
    resamples, seed: of the bootstrap.
    """

    rad_dino: RadDino | None = None
    biovil_t: BioViLT | None = None
    shards: int = 1
    by_pathology: bool = False
    resamples: int = 1000
    seed: int = 0

    def settings(self) -> dict[str, object]:
        """How figures were computed, for results.json."""
        rows = "all rows" if self.shards == 1 else f"mean over {self.shards} contiguous shards"
        return {
            "distances": rows,
            "rad_dino": self.rad_dino is not None,
            "biovil_t": self.biovil_t is not None,
            "prdc_k": _NEIGHBOURS,
            "confidence": CONFIDENCE,
            "resamples": self.resamples,
            "seed": self.seed,
        }


def item_seed(seed: int, index: int) -> int:
    """The seed of an item's noise: of its number in the source alone, whatever the batch."""
    digest = hashlib.blake2b(f"{seed}/{index}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little")


def picture_name(index: int) -> str:
    """Where an item's picture is, below the directory of the run."""
    return f"{FOLDER}/{index:06d}.png"


def draw_images(
    pipe: UniXPipeline,
    source: RecordSource,
    out: Path,
    settings: DrawingSettings,
    *,
    batch_size: int = 4,
    share: Share | None = None,
    progress: Progress = lambda count: None,
) -> None:
    """Draws a picture from each record's first caption into `out`, and notes it in the journals.

    A record without a text, or whose own image is broken, is recorded as failed; one without an
    image is drawn all the same. The entry of a picture that shows next to nothing (`gray_levels`)
    has a `warning`.

    Raises:
      UniXError: a journal that cannot be used, or a model that cannot draw.
    """

    def prepare(index: int) -> tuple[str, str]:
        record = source[index]
        captions = captions_of(record)
        if not captions:
            raise DataError(f"{record.key}: expected a text to draw from, found none")
        if record.image is not None:
            record_image(record)
        return record.key, captions[0]

    def compute(ready: Sequence[Ready[str]], rows: int) -> list[dict[str, Any]]:
        seeds = [item_seed(settings.seed, item.index) for item in ready]
        pictures = pipe.generate_image(
            padded([item.input for item in ready], rows),
            settings.size,
            settings.size,
            settings.steps,
            settings.timestep_shift,
            settings.guidance_scale,
            seed=padded(seeds, rows),
        )
        values = []
        for item, seed, picture in zip(ready, seeds, pictures, strict=False):  # less the padding
            name = picture_name(item.index)
            save_png(out / name, picture, {"prompt": item.input, "seed": str(seed)})
            problem = gray_level_problem(picture)
            values.append(
                {"prompt": item.input, "seed": seed, "image": name}
                | ({"warning": problem} if problem else {})
            )
        return values

    run_items(
        out, len(source), batch_size, prepare, compute,
        name=lambda index: key_of(source, index), share=share, progress=progress,
    )  # fmt: skip


def summarise_images(
    source: RecordSource, out: Path, settings: Mapping[str, Any], how: ImageMetrics
) -> Results:
    """Measures what the journals have; writes contact_sheet.png, results.json and report.html.

    Raises:
      UniXError: a file cannot be read or written, or a metric cannot be computed.
    """
    entries = list(read_entries(out).values())
    drawn = _Drawn(source, out, [entry for entry in entries if entry.status == "done"])
    failures = [entry for entry in entries if entry.status == "failed"]
    if drawn.entries:
        save_png(out / SHEET, _sheet(drawn))
    metrics: dict[str, Figure] = {}
    missing: dict[str, str] = {}
    groups: dict[str, dict[str, Any]] = {}
    closeness: np.ndarray | None = None
    alignment: np.ndarray | None = None
    try:
        if how.rad_dino is None:
            raise _Missing("its encoder was not given (--rad-dino PATH)")
        real, fake = drawn.features(how.rad_dino)
        metrics |= _distances(real, fake, how.shards)
        closeness = cosine_similarities(real, fake[drawn.with_image])
        if how.by_pathology:
            groups = _by_pathology(drawn, real, fake)
        metrics["pair similarity"] = _mean(closeness, how)
    except _Missing as reason:
        missing[DISTANCES] = str(reason)
    if how.biovil_t is None:
        missing[ALIGNMENT] = "its networks were not given (--biovil-t PATH)"
    elif not drawn.entries:
        missing[ALIGNMENT] = "there is no picture to measure"
    else:
        texts = [entry.values["prompt"] for entry in drawn.entries]
        alignment = how.biovil_t.scores(drawn.paths(), texts)
        metrics["alignment"] = _mean(alignment, how)
    reported = paper.IMAGES.get(int(settings["size"]), {})
    results = Results(
        "images", settings, how.settings(), len(source), len(drawn.entries), failures,
        metrics, groups, missing, reported,
        [entry for entry in drawn.entries if entry.values.get("warning")],
    )  # fmt: skip
    write_results(out, results)
    ranked_by, worst, best = _cases(drawn, closeness, alignment)
    write_page(out / "report.html", images_page(results, ranked_by, worst, best))
    return results


class _Missing(Exception):
    """Why metrics are not computed."""


@dataclasses.dataclass(frozen=True)
class _Drawn:
    """The drawn items, beside the records that they were drawn from."""

    source: RecordSource
    out: Path
    entries: Sequence[Entry]

    def record(self, place: int) -> Record:
        """The record of `entries[place]`; its picture may be bytes, so none is kept."""
        return self.source[self.entries[place].index]

    @functools.cached_property
    def with_image(self) -> list[int]:
        """Places in `entries` whose record has a picture of its own."""
        places = range(len(self.entries))
        return [place for place in places if self.record(place).image is not None]

    @functools.cached_property
    def labels(self) -> list[tuple[str, ...]]:
        """Of each record."""
        return [self.record(place).labels for place in range(len(self.entries))]

    def paths(self) -> list[Path]:
        return [self.out / entry.values["image"] for entry in self.entries]

    def features(self, encoder: RadDino) -> tuple[np.ndarray, np.ndarray]:
        """Of the real pictures [N, D], and of the drawn ones [M, D]."""
        places, paths = self.with_image, self.paths()
        if len(places) <= _NEIGHBOURS:
            raise _Missing(
                f"expected at least {_NEIGHBOURS + 1} pictures of either kind, "
                f"found {len(places)} real and {len(paths)} drawn"
            )
        # One at a time: a data set's pictures are larger than memory.
        real = encoder.features(record_image(self.record(place)) for place in places)
        return real, encoder.features(paths)


def _distances(real: np.ndarray, fake: np.ndarray, shards: int) -> dict[str, Figure]:
    def all_of_them(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
        return {
            "FD": frechet_distance(a, b),
            "KD": kernel_distance(a, b),
            **prdc(a, b, k=_NEIGHBOURS),
        }

    if min(len(real), len(fake)) // shards <= _NEIGHBOURS:
        raise _Missing(
            f"--shards {shards}: expected at least {(_NEIGHBOURS + 1) * shards} pictures of "
            f"either kind, found {len(real)} real and {len(fake)} drawn"
        )
    found: dict[str, float] = shard_mean(all_of_them, real, fake, shards=shards)
    return {name: Figure(value) for name, value in found.items()}


def _by_pathology(drawn: _Drawn, real: np.ndarray, fake: np.ndarray) -> dict[str, dict[str, Any]]:
    names = sorted({label for labels in drawn.labels for label in labels if label})
    members = np.array([[name in labels for name in names] for labels in drawn.labels], bool)
    members = members.reshape(len(drawn.entries), len(names))
    metrics: tuple[tuple[str, Callable[..., Any], int], ...] = (
        ("FD by pathology", frechet_distance, 2),
        ("KD by pathology", kernel_distance, 2),
        ("PRDC by pathology", lambda a, b: prdc(a, b, k=_NEIGHBOURS), _NEIGHBOURS + 1),
    )
    return {
        title: by_group(
            metric, real, fake, members[drawn.with_image], members, names, at_least=fewest
        )
        for title, metric, fewest in metrics
    }  # fmt: skip


def _mean(values: np.ndarray, how: ImageMetrics) -> Figure:
    one = mean_interval(
        values, confidence=CONFIDENCE, resamples=how.resamples, seed=how.seed
    )  # fmt: skip
    return Figure(one.value, one.low, one.high)


def _sheet(drawn: _Drawn) -> Image.Image:
    shown = drawn.entries[:_ON_SHEET]
    pictures = [load_image(path) for path in drawn.paths()[: len(shown)]]
    for picture in pictures:
        picture.thumbnail((256, 256))
    return contact_sheet(pictures, [entry.values["prompt"] for entry in shown])


def _cases(
    drawn: _Drawn, closeness: np.ndarray | None, alignment: np.ndarray | None
) -> tuple[str, list[Case], list[Case]]:
    """(what they are ranked by, worst, best); without a score, the first ones as if best."""
    ranked_by, places, values = "", list(range(len(drawn.entries))), None
    if alignment is not None:
        ranked_by, values = "alignment with the text", alignment
    elif closeness is not None:
        ranked_by, places, values = "similarity to the real picture", drawn.with_image, closeness
    paths = drawn.paths()

    def case(order: int) -> Case:
        entry = drawn.entries[places[order]]
        pictures: list[tuple[str, Image.Image | None]] = []
        try:
            record = drawn.record(places[order])
            if record.image is not None:
                pictures.append(("real", record_image(record)))
        except UniXError:  # it was there when the picture was drawn
            pictures.append(("real", None))
        pictures.append(("drawn", load_image(paths[places[order]])))
        score = None if values is None else float(values[order])
        return Case(entry.key, score, pictures, {"text": entry.values["prompt"]})

    if values is None:
        return ranked_by, [], [case(order) for order in range(min(len(places), 2 * _CASES))]
    order = np.argsort(values, kind="stable").tolist()
    worst = order[: min(_CASES, -(-len(order) // 2))]
    best = [one for one in order[::-1] if one not in worst][:_CASES]
    return ranked_by, [case(one) for one in worst], [case(one) for one in best]

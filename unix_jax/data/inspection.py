"""Statistics of a source in one pass: counts, gaps, text lengths, and sample images."""

import collections
import dataclasses
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from rich.table import Table

from unix_jax.data.records import Record, RecordSource, captions_of, record_image, report_text
from unix_jax.errors import DataError

if TYPE_CHECKING:
    from unix_jax.config import UniXConfig
    from unix_jax.preprocessing.text import Tokenizer

PERCENTILES = (0, 50, 90, 95, 99, 100)
SHEET_SIDE = 224
_SHOWN_ERRORS = 5


@dataclasses.dataclass
class Summary:
    """Counts over a source.

    views: records of each (split, view). errors: the first messages of `broken` and
      `missing_files`: rows that cannot be read, and image files that do not exist. missing_images:
      records without an image, or whose file does not exist.
    reports_without_sections: records of `missing_reports` whose report exists and has neither
      findings nor impression. report_problems: the first messages about them.
    unit: unit of `report_lengths` and `caption_lengths`, tokens or words.
    crossing_patients: in more than one split.
    """

    unit: str
    records: int = 0
    broken: int = 0
    errors: list[str] = dataclasses.field(default_factory=list)
    views: collections.Counter[tuple[str, str]] = dataclasses.field(
        default_factory=collections.Counter
    )
    missing_files: int = 0
    missing_images: int = 0
    missing_reports: int = 0
    reports_without_sections: int = 0
    report_problems: list[str] = dataclasses.field(default_factory=list)
    missing_captions: int = 0
    patients: int = 0
    crossing_patients: int = 0
    report_lengths: list[int] = dataclasses.field(default_factory=list)
    caption_lengths: list[int] = dataclasses.field(default_factory=list)

    @property
    def rows(self) -> int:
        """All rows, broken ones included."""
        return self.records + self.broken

    @property
    def unusable(self) -> int:
        """Rows that are broken, or whose image file does not exist."""
        return self.broken + self.missing_files

    def to_dict(self) -> dict[str, Any]:
        """The counts as JSON, with percentiles of the lengths."""
        values = dataclasses.asdict(self)
        values["views"] = [
            {"split": split, "view": view, "records": count}
            for (split, view), count in sorted(self.views.items())
        ]
        for name in ("report_lengths", "caption_lengths"):
            values[name] = dict(zip(map(str, PERCENTILES), percentiles(values[name]), strict=False))
        return values


def percentiles(lengths: Sequence[int]) -> list[int]:
    """The lengths at `PERCENTILES`, each one that occurs; none of none."""
    if not lengths:
        return []
    found = np.percentile(np.array(lengths), PERCENTILES, method="inverted_cdf")
    return [int(x) for x in found]


def readable(source: RecordSource, on_error: Callable[[DataError], None]) -> Iterator[Record]:
    """The readable records of a source."""
    for index in range(len(source)):
        try:
            record = source[index]
        except DataError as error:
            on_error(error)
        else:
            yield record


def inspect_source(
    source: RecordSource,
    encode: Callable[[str], Sequence[int]] | None = None,
    on_row: Callable[[], None] = lambda: None,
) -> Summary:
    """Reads every record once. Image files are looked for, not opened.

    Args:
      source: the source to inspect.
      encode: text to token ids; by default words are counted.
      on_row: called after each row, broken ones included.
    """
    measure = str.split if encode is None else encode
    summary = Summary("words" if encode is None else "tokens")
    splits_of: dict[str, set[str]] = collections.defaultdict(set)

    def show(message: str) -> None:
        if len(summary.errors) < _SHOWN_ERRORS:
            summary.errors.append(message)

    def count_error(error: DataError) -> None:
        summary.broken += 1
        show(str(error))
        on_row()

    for record in readable(source, count_error):
        summary.records += 1
        summary.views[record.split, record.view] += 1
        missing = _missing_files(record)
        if missing:
            summary.missing_files += 1
            show(f"{record.key}: {missing[0]}: no such file")
        summary.missing_images += not _has_image(record)
        report, captions = report_text(record), captions_of(record)
        summary.missing_reports += not report
        if not report and record.report_problem:
            summary.reports_without_sections += 1
            if len(summary.report_problems) < _SHOWN_ERRORS:
                summary.report_problems.append(f"{record.key}: {record.report_problem}")
        summary.missing_captions += not captions
        answers = [turn.answer for turn in record.turns] or [report]
        summary.report_lengths += [len(measure(answer)) for answer in answers if answer]
        summary.caption_lengths += [len(measure(caption)) for caption in captions]
        if record.patient:
            splits_of[record.patient].add(record.split)
        on_row()
    summary.patients = len(splits_of)
    summary.crossing_patients = sum(len(splits) > 1 for splits in splits_of.values())
    return summary


def _missing_files(record: Record) -> list[Path]:
    images = (*record.images, record.condition)
    return [image for image in images if isinstance(image, Path) and not image.is_file()]


def _has_image(record: Record) -> bool:
    if isinstance(record.image, Path):
        return record.image.is_file()
    return bool(record.image)


def sheet_images(
    source: RecordSource, count: int, seed: int = 0
) -> tuple[list[Image.Image], list[str]]:
    """(small images, their texts) of random records; unreadable ones are skipped.

    Raises:
      DataError: no image can be read.
    """
    order = random.Random(seed).sample(range(len(source)), min(len(source), 10 * count))
    images, texts, last = [], [], "no records"
    for index in order:
        try:
            record = source[index]
            image = record_image(record)
        except DataError as error:
            last = str(error)
            continue
        image.thumbnail((SHEET_SIDE, SHEET_SIDE))
        images.append(image)
        known = " ".join(part for part in (record.split, record.view) if part)
        texts.append(" | ".join(part for part in (known, report_text(record)) if part))
        if len(images) == count:
            break
    if not images:
        raise DataError(f"contact sheet: expected a readable image, found none: {last}")
    return images, texts


@dataclasses.dataclass(frozen=True)
class RowFit:
    """How the reports of a source fill rows of `und_tokens`.

    samples: number of samples that fit. rows: number of rows for all of them, packed as in training
    but by tokens alone, without the limit of `data.vit_images`. too_long: samples that no row can
    hold. without: records without a report or an image.
    """

    und_tokens: int
    samples: int
    rows: int
    too_long: int
    without: int

    def to_dict(self) -> dict[str, Any]:
        """JSON."""
        return dataclasses.asdict(self) | {"samples_per_row": self.samples_per_row}

    @property
    def samples_per_row(self) -> float:
        """The mean."""
        return self.samples / self.rows if self.rows else 0.0


def fit_rows(
    source: RecordSource, tokenizer: "Tokenizer", config: "UniXConfig", und_tokens: int
) -> RowFit:
    """Plans one epoch of the task understanding in rows of `und_tokens`; decodes no image."""
    # Imported here, since counting and measuring do not need JAX.
    from unix_jax.data.config import DataConfig
    from unix_jax.data.packing import Planner
    from unix_jax.data.samples import Skip, UnderstandingSamples

    data = DataConfig(
        rows=1, und_tokens=und_tokens, vit_images=und_tokens, epochs=1, shuffle=False,
        max_broken_fraction=1.0,
    )  # fmt: skip
    samples = UnderstandingSamples(source, tokenizer, config, data)
    costs = [samples.cost(index, 0) for index in range(len(source))]
    skipped = sum(isinstance(cost, Skip) for cost in costs)
    fitting = sum(not isinstance(cost, Skip) and cost.und <= und_tokens for cost in costs)
    rows = 0
    if fitting:
        planner = Planner(samples, data)
        while planner.next_step() is not None:
            rows += 1
    return RowFit(und_tokens, fitting, rows, len(costs) - skipped - fitting, skipped)


def fit_table(fit: RowFit) -> Table:
    """The fit for a terminal."""
    table = Table("", "", title=f"Rows of {fit.und_tokens} tokens")
    table.add_row("samples that fit", str(fit.samples))
    table.add_row("samples that are too long", str(fit.too_long))
    table.add_row("records without report or image, or broken", str(fit.without))
    table.add_row("rows of one epoch", str(fit.rows))
    table.add_row("samples per row, mean", f"{fit.samples_per_row:.2f}")
    return table


def summary_tables(summary: Summary) -> list[Table]:
    """The summary for a terminal."""
    counts = Table("", "records", title="Records")
    for (split, view), count in sorted(summary.views.items()):
        counts.add_row(f"{split or '(no split)'} {view or '(no view)'}", str(count))
    rows = {
        "all": summary.records,
        "broken rows": summary.broken,
        "image file missing": summary.missing_files,
        "without image": summary.missing_images,
        "without report": summary.missing_reports,
        "with a report that has no findings and no impression": summary.reports_without_sections,
        "without caption": summary.missing_captions,
        "patients": summary.patients,
        "patients in several splits": summary.crossing_patients,
    }
    counts.add_section()
    for name, value in rows.items():
        counts.add_row(name, str(value))
    lengths = Table(
        summary.unit, *(f"{p} %" for p in PERCENTILES), title=f"Lengths in {summary.unit}"
    )
    for name, values in (("report", summary.report_lengths), ("caption", summary.caption_lengths)):
        if values:
            lengths.add_row(name, *map(str, percentiles(values)))
    return [counts, lengths] if lengths.rows else [counts]

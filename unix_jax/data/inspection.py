"""What a source holds, seen in one pass: counts, gaps, text lengths, and pictures to look at."""

import collections
import dataclasses
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.table import Table

from unix_jax.data.records import Record, RecordSource, captions_of, record_image, report_text
from unix_jax.errors import DataError

PERCENTILES = (0, 50, 90, 95, 99, 100)
SHEET_SIDE = 224
_SHOWN_ERRORS = 5


@dataclasses.dataclass
class Summary:
    """Counts over a source.

    views: records of each (split, view). errors: the first messages of `broken`.
    unit: what `report_lengths` and `caption_lengths` count, tokens or words.
    crossing_patients: in more than one split.
    """

    unit: str
    records: int = 0
    broken: int = 0
    errors: list[str] = dataclasses.field(default_factory=list)
    views: collections.Counter[tuple[str, str]] = dataclasses.field(
        default_factory=collections.Counter
    )
    missing_images: int = 0
    missing_reports: int = 0
    missing_captions: int = 0
    patients: int = 0
    crossing_patients: int = 0
    report_lengths: list[int] = dataclasses.field(default_factory=list)
    caption_lengths: list[int] = dataclasses.field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold; of the lengths, the percentiles."""
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
    """The records of a source, those left out that cannot be read."""
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
      source: what is inspected.
      encode: text to token ids; words are counted if absent.
      on_row: called after each row, broken ones included.
    """
    measure = str.split if encode is None else encode
    summary = Summary("words" if encode is None else "tokens")
    splits_of: dict[str, set[str]] = collections.defaultdict(set)

    def count_error(error: DataError) -> None:
        summary.broken += 1
        if len(summary.errors) < _SHOWN_ERRORS:
            summary.errors.append(str(error))
        on_row()

    for record in readable(source, count_error):
        summary.records += 1
        summary.views[record.split, record.view] += 1
        summary.missing_images += not _has_image(record)
        report, captions = report_text(record), captions_of(record)
        summary.missing_reports += not report
        summary.missing_captions += not captions
        summary.report_lengths += [len(measure(report))] if report else []
        summary.caption_lengths += [len(measure(caption)) for caption in captions]
        if record.patient:
            splits_of[record.patient].add(record.split)
        on_row()
    summary.patients = len(splits_of)
    summary.crossing_patients = sum(len(splits) > 1 for splits in splits_of.values())
    return summary


def _has_image(record: Record) -> bool:
    if isinstance(record.image, Path):
        return record.image.is_file()
    return bool(record.image)


def sheet_pictures(
    source: RecordSource, count: int, seed: int = 0
) -> tuple[list[Image.Image], list[str]]:
    """(small pictures, their texts) of records drawn at random; unreadable ones are passed over.

    Raises:
      DataError: no picture can be read.
    """
    order = random.Random(seed).sample(range(len(source)), min(len(source), 10 * count))
    pictures, texts, last = [], [], "no records"
    for index in order:
        try:
            record = source[index]
            picture = record_image(record)
        except DataError as error:
            last = str(error)
            continue
        picture.thumbnail((SHEET_SIDE, SHEET_SIDE))
        pictures.append(picture)
        known = " ".join(part for part in (record.split, record.view) if part)
        texts.append(" | ".join(part for part in (known, report_text(record)) if part))
        if len(pictures) == count:
            break
    if not pictures:
        raise DataError(f"contact sheet: expected a picture that can be read, found none: {last}")
    return pictures, texts


def summary_tables(summary: Summary) -> list[Table]:
    """The summary for a terminal."""
    counts = Table("", "records", title="Records")
    for (split, view), count in sorted(summary.views.items()):
        counts.add_row(f"{split or '(no split)'} {view or '(no view)'}", str(count))
    rows = {
        "all": summary.records,
        "broken rows": summary.broken,
        "without image": summary.missing_images,
        "without report": summary.missing_reports,
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

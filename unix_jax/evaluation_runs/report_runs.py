"""Generation of reports for the X-rays of a data set, and their evaluation."""

import dataclasses
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from unix_jax.data.records import (
    RecordSource,
    instructions_for,
    question_images,
    record_image,
    report_text,
)
from unix_jax.errors import ImageWarning, UniXError
from unix_jax.evaluation_runs import original_tables, paper
from unix_jax.evaluation_runs.evaluation_files import read_entries
from unix_jax.evaluation_runs.html_report import Case, reports_page
from unix_jax.evaluation_runs.items import Progress, Ready, Share, key_of, stream_items
from unix_jax.evaluation_runs.results import Results, write_page, write_results
from unix_jax.evaluation_runs.score import ReportMetrics, ReportScores, score_reports
from unix_jax.inference.drafts import Draft
from unix_jax.inference.pipeline import UniXPipeline
from unix_jax.inference.reports import ReportRequest
from unix_jax.preprocessing.gray_levels import gray_level_problem
from unix_jax.storage.files import atomic_write
from unix_jax.storage.journal import Entry

# Number of worst and of best reports on the page.
_CASES = 6


@dataclasses.dataclass(frozen=True)
class ReportSettings:
    """Settings of reports: greedy decoding with a maximum number of tokens.

    prompt: for every item; "" uses the record's own, or the first of the model's instructions for
    the sections of the reference.
    """

    prompt: str = ""
    max_new_tokens: int = 500


@dataclasses.dataclass(frozen=True)
class _Question:
    request: ReportRequest
    # The values of its entry apart from the report.
    known: dict[str, str]


def write_reports(
    pipe: UniXPipeline,
    source: RecordSource,
    out: Path,
    settings: ReportSettings,
    *,
    batch_size: int = 16,
    draft: Draft = "none",
    share: Share | None = None,
    progress: Progress = lambda count: None,
) -> None:
    """Generates a report for each record into the journals of `out`, next to the record's own.

    A record without an image, or with a broken one, is recorded as failed. For a record without a
    report, a report is generated but not scored. For a conversation of several turns the first
    question is used, with its images. A record whose image shows almost nothing (`gray_levels`) is
    processed and scored, and its entry has a `warning`. `draft` is that of `iterate_reports`.

    Raises:
      UniXError: a journal that cannot be used, or a batch size below 1.
    """

    def prepare(index: int) -> tuple[str, _Question]:
        record = source[index]
        prompt = settings.prompt or instructions_for(record, pipe.config.asked)[0]
        images = question_images(record)
        warning = next(filter(None, map(gray_level_problem, images)), "")
        with warnings.catch_warnings():
            # They are in the journal, with the record's key.
            warnings.simplefilter("ignore", ImageWarning)
            request = pipe.report_request(
                images, prompt=prompt, max_new_tokens=settings.max_new_tokens
            )
        known = {"reference": report_text(record), "prompt": prompt}
        return record.key, _Question(request, known | ({"warning": warning} if warning else {}))

    def compute(
        ready: Iterator[Ready[_Question]],
    ) -> Iterator[tuple[Ready[_Question], dict[str, Any]]]:
        taken: dict[int, Ready[_Question]] = {}

        def requests() -> Iterator[ReportRequest]:
            for number, item in enumerate(ready):
                taken[number] = item
                yield item.input.request

        for number, result in pipe.iterate_reports(requests(), batch_size=rows, draft=draft):
            item = taken.pop(number)
            yield item, {"prediction": result.text} | item.input.known

    if batch_size < 1:
        raise UniXError(f"batch_size: expected at least 1, found {batch_size}")
    pipe.loaded.require_tokenizer()
    rows = max(1, min(batch_size, len((share or Share()).items(len(source)))))
    stream_items(
        out, len(source), prepare, compute,
        name=lambda index: key_of(source, index), share=share, progress=progress,
    )  # fmt: skip


def summarise_reports(
    source: RecordSource, out: Path, settings: Mapping[str, Any], how: ReportMetrics
) -> Results:
    """Scores the reports in the journals; writes predictions.jsonl, results.json and report.html.

    Raises:
      UniXError: a file cannot be written, or a metric cannot be computed.
    """
    entries = list(read_entries(out).values())
    done = [entry for entry in entries if entry.status == "done"]
    write_predictions(out / "predictions.jsonl", done)
    done = [entry for entry in done if entry.values["reference"]]
    original_tables.write_reports_table(out / original_tables.REPORTS, done, source)
    predictions = [entry.values["prediction"] for entry in done]
    references = [entry.values["reference"] for entry in done]
    scores = score_reports(predictions, references, how)
    results = _results(settings, how, len(source), len(done), scores, entries)
    write_results(out, results)
    original_tables.write_summary(out / original_tables.SUMMARY, results)

    def image_of(index: int) -> Image.Image | None:
        try:
            return record_image(source[done[index].index])
        except UniXError:  # it was readable when the report was generated
            return None

    keys = [entry.key for entry in done]
    worst, best = _cases(scores, keys, predictions, references, image_of)
    write_page(out / "report.html", reports_page(results, scores.ranked_by, worst, best))
    return results


def summarise_texts(
    rows: Sequence[tuple[str, str, str]],
    out: Path | None,
    settings: Mapping[str, Any],
    how: ReportMetrics,
) -> Results:
    """Scores (key, prediction, reference) of external reports; writes into `out`, if any.

    Raises:
      UniXError: as `summarise_reports`.
    """
    keys, predictions, references = ([row[column] for row in rows] for column in range(3))
    scores = score_reports(predictions, references, how)
    results = _results(settings, how, len(rows), len(rows), scores)
    if out is not None:
        write_results(out, results)
        original_tables.write_summary(out / original_tables.SUMMARY, results)
        worst, best = _cases(scores, keys, predictions, references)
        write_page(out / "report.html", reports_page(results, scores.ranked_by, worst, best))
    return results


def _results(
    settings: Mapping[str, Any],
    how: ReportMetrics,
    items: int,
    scored: int,
    scores: ReportScores,
    entries: Sequence[Entry] = (),
) -> Results:
    """The figures in the form of results.json."""
    failures = [entry for entry in entries if entry.status == "failed"]
    return Results(
        "reports",
        settings,
        how.settings(),
        items,
        scored,
        failures,
        scores.metrics,
        {"conditions": scores.by_condition} if scores.by_condition else {},
        scores.not_computed,
        paper.REPORTS,
        [entry for entry in entries if entry.values.get("warning")],
    )


def _cases(
    scores: ReportScores,
    keys: Sequence[str],
    predictions: Sequence[str],
    references: Sequence[str],
    image_of: Callable[[int], Image.Image | None] = lambda index: None,
) -> tuple[list[Case], list[Case]]:
    """(worst, best) reports with their images, the worst and the best first."""
    if not scores.rows:
        return [], []
    values = scores.rows[scores.ranked_by]
    order = sorted(range(len(values)), key=lambda index: values[index])
    count = min(_CASES, -(-len(order) // 2))

    def case(index: int) -> Case:
        texts = {"reference": references[index], "model": predictions[index]}
        return Case(keys[index], values[index], [("", image_of(index))], texts)

    return [case(index) for index in order[:count]], [
        case(index) for index in order[count:][::-1][:_CASES]
    ]


def write_predictions(path: Path, entries: Sequence[Entry]) -> None:
    """One JSON object per report, in the order of the source; `evaluate score` reads it."""
    with atomic_write(path) as temporary, temporary.open("w", encoding="ascii") as lines:
        for entry in entries:
            lines.write(json.dumps({"key": entry.key, **entry.values}) + "\n")

"""A self-contained results page: metrics, charts, and cases with their images.

Everything that comes from data or models is escaped, and the page has no script: markup in a report
is displayed, not interpreted.
"""

import base64
import dataclasses
import html
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from PIL import Image

from unix_jax.evaluation.text import REWARD_LEVELS
from unix_jax.evaluation_runs import paper
from unix_jax.evaluation_runs.charts import Bar, bar_chart
from unix_jax.evaluation_runs.results import CONFIDENCE, Results, counts, interval, number

_THUMBNAIL = 320
_SHOWN_FAILURES = 100
# The names of the paper's table.
_OVERALL = {
    "micro_f1": "micro-14",
    "f1_top5_micro": "micro-5",
    "macro_f1": "macro-14",
    "f1_top5_macro": "macro-5",
}
_SPACES = {
    "pixel distance": "<p>Root mean square of the differences of gray levels from 0 to 255, of "
    "both images at 64 x 64.</p>",
    "latent distance": "<p>Root mean square of the differences of RAD-DINO features.</p>",
    "re-identification score": "<p>From 0 to 1; near 1 if the siamese network attributes both "
    "to one patient.</p>",
}
_TEXTS = (
    *(f"BLEU{n}" for n in range(1, 5)),
    "ROUGE_L",
    *(f"radgraph_{level}" for level in REWARD_LEVELS),
)
_PRDC = ("precision", "recall", "density", "coverage")
_STYLE = """
:root { color-scheme: light dark; --bar: #2f6f9f; --paper: #c2410c; --line: #8885; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; }
h2 { margin-top: 2.5rem; } table { border-collapse: collapse; display: block; overflow-x: auto; }
th, td { text-align: left; padding: .25rem .75rem .25rem 0; border-bottom: 1px solid var(--line); }
td.n, th.n { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
svg { width: 100%; height: auto; } svg text { fill: currentColor; font-size: 13px; }
.label { text-anchor: end; } .tick { text-anchor: middle; opacity: .7; }
.grid { stroke: var(--line); } .bar { fill: var(--bar); }
.range { stroke: currentColor; stroke-width: 2; } .paper { stroke: var(--paper); stroke-width: 3; }
.key { color: var(--paper); font-weight: 600; }
.case { border: 1px solid var(--line); border-radius: .5rem; padding: 1rem; margin: 1rem 0;
  display: flex; flex-wrap: wrap; gap: 1rem; }
.case > div { flex: 1 1 16rem; min-width: 0; } .case p { white-space: pre-wrap;
  overflow-wrap: anywhere; margin: .25rem 0 1rem; }
figure { margin: 0; } figure img { max-width: 100%; width: 16rem; } .note { opacity: .8; }
"""


@dataclasses.dataclass(frozen=True)
class Case:
    """One item of the page.

    key: its name; score: the number that ranks it, or None.
    images: (caption, image) of each; None is an image that cannot be read.
    texts: by their headings.
    """

    key: str
    score: float | None
    images: Sequence[tuple[str, Image.Image | None]]
    texts: Mapping[str, str]


def reports_page(
    results: Results, ranked_by: str, worst: Sequence[Case], best: Sequence[Case]
) -> str:
    """The page of `evaluate reports` and `evaluate score`."""
    overall = [
        _figure_bar(results, f"uncertain_as_{policy}_{name}", f"{label}, uncertain {policy}")
        for policy in ("negative", "positive")
        for name, label in _OVERALL.items()
    ]
    texts = [_figure_bar(results, name, name) for name in _TEXTS]
    conditions = [
        Bar(
            name.replace("_", " "), row["f1"], row["low"], row["high"],
            note=f"({row['references']})",
        )
        for name, row in results.groups.get("conditions", {}).items()
    ]  # fmt: skip
    return _page(
        "Evaluation of reports",
        results,
        [
            ("CheXbert F1", bar_chart("CheXbert F1", _given(overall), 1.0), ""),
            (
                "F1 by condition",
                bar_chart("F1 by condition", conditions, 1.0),
                "Uncertain counts as negative; in brackets, references with the condition.",
            ),
            ("Overlap with the references", bar_chart("Text overlap", _given(texts), 1.0), ""),
        ],
        ranked_by,
        worst,
        best,
    )


def images_page(
    results: Results, ranked_by: str, worst: Sequence[Case], best: Sequence[Case]
) -> str:
    """The page of `evaluate images`."""
    prdc = _given([_figure_bar(results, name, name) for name in _PRDC])
    distances = results.groups.get("FD by pathology", {})
    by_pathology = [
        Bar(name, row["value"], note=_rows(row)) for name, row in distances.items()
    ]  # fmt: skip
    charts = [
        (name, bar_chart(name, _given([_figure_bar(results, name, name)])), note)
        for name, note in (
            ("FD", "Fréchet distance of RAD-DINO features; smaller is better."),
            ("KD", "Kernel distance of RAD-DINO features; smaller is better."),
        )
    ]
    note = "Density may exceed 1."
    charts.append(("Precision, recall, density, coverage", bar_chart("PRDC", prdc), note))
    note = "Smaller is better. Values of few rows are large, so compare equal numbers of rows."
    charts.append(("FD by pathology", bar_chart("FD by pathology", by_pathology), note))
    return _page("Evaluation of generated X-rays", results, charts, ranked_by, worst, best)


def nearest_page(results: Results, cases: Mapping[str, Sequence[Case]], total: int) -> str:
    """Generated images next to their nearest training images, the nearest pairs first.

    Args:
      results: the figures of the evaluation.
      cases: pairs by the space that they are ordered by.
      total: the number of generated images.
    """
    figures = {name: one for name, one in results.metrics.items() if name.startswith(tuple(cases))}
    parts = [
        "<p>Does the model repeat training images? Each row shows a generated image and the "
        "training image nearest to it, the nearest pairs first. A distance has little meaning by "
        "itself: compare it with the distances of real images outside of the training set, and "
        "view the pairs. "
        "Research software, not a medical device.</p>",
        _list(results.notes),
        _table(
            ("figure", "value", f"{CONFIDENCE:.0%} interval"),
            [(name, number(one.value), interval(one)) for name, one in figures.items()],
        ),
    ]
    for space, pairs in cases.items():
        heading = f"By {space}" + (
            f": the first {len(pairs)} of {total}" if len(pairs) < total else ""
        )
        parts.append(
            f"<h2>{_text(heading)}</h2>{_SPACES.get(space, '')}" + "".join(map(_case, pairs))
        )
    return _document("Nearest training images", parts)


def _rows(row: Mapping[str, Any]) -> str:
    return f"{row['real_rows']} rows" + (": too few" if row["value"] is None else "")


def _figure_bar(results: Results, name: str, label: str) -> Bar:
    figure = results.metrics.get(name)
    reported = results.paper.get(name)
    if figure is None:
        return Bar(label, None, reported=reported)
    return Bar(label, figure.value, figure.low, figure.high, reported)


def _given(bars: Iterable[Bar]) -> list[Bar]:
    return [bar for bar in bars if bar.value is not None]


def _page(
    title: str,
    results: Results,
    charts: Sequence[tuple[str, str, str]],
    ranked_by: str,
    worst: Sequence[Case],
    best: Sequence[Case],
) -> str:
    parts = [
        f"<p>{_text(counts(results))}. Research software, not a medical device.</p>",
        _list(results.notes),
        _missing(results),
        f'<p class="note">Thin lines: {CONFIDENCE:.0%} bootstrap intervals.{_paper(results)}</p>',
    ]
    for heading, chart, note in charts:
        if chart:
            parts.append(f"<h2>{_text(heading)}</h2>{chart}<p class=note>{_text(note)}</p>")
    parts += [_metrics_table(results), _groups(results)]
    by = f", by {_text(ranked_by)}" if ranked_by else ""
    for heading, some in (("Worst cases", worst), ("Best cases" if ranked_by else "Samples", best)):
        if some:
            parts.append(f"<h2>{heading}{by}</h2>" + "".join(map(_case, some)))
    parts += [_warnings(results), _failures(results), _settings(results)]
    return _document(title, parts)


def _paper(results: Results) -> str:
    if not results.paper:
        return ""
    return (
        f' <span class="key">Red marks</span>: figures of the paper ({_text(paper.SOURCE)}), '
        "measured on its own data and with the published weights."
    )


def _document(title: str, parts: Iterable[str]) -> str:
    """A whole page; `parts` are HTML."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        # If escaping failed somewhere, the browser would still neither run nor fetch anything.
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
        f"<title>{_text(title)}</title><style>{_STYLE}</style></head><body>"
        + "\n".join(filter(None, (f"<h1>{_text(title)}</h1>", *parts)))
        + "</body></html>\n"
    )


def _text(value: object) -> str:
    return html.escape(str(value))


def _missing(results: Results) -> str:
    rows = "".join(
        f"<li>{_text(name)}: {_text(reason)}</li>" for name, reason in results.not_computed.items()
    )
    return f"<p>Not computed:</p><ul>{rows}</ul>" if rows else ""


def _list(notes: Sequence[str]) -> str:
    rows = "".join(f"<li>{_text(note)}</li>" for note in notes)
    return f"<ul>{rows}</ul>" if rows else ""


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    def cells(tag: str, values: Sequence[str]) -> str:
        return "".join(
            f"<{tag}{' class=n' if i else ''}>{_text(v)}</{tag}>" for i, v in enumerate(values)
        )

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f"<table><tr>{cells('th', header)}</tr>{body}</table>" if body else ""


def _metrics_table(results: Results) -> str:
    rows = []
    for name, figure in results.metrics.items():
        reported = results.paper.get(name)
        shown = "" if reported is None else number(reported)
        rows.append((name, number(figure.value), interval(figure), shown))
    header = ("metric", "value", f"{CONFIDENCE:.0%} interval", "the paper's, on its own data")
    table = _table(header, rows)
    return f"<h2>All figures</h2>{table}" if table else ""


def _groups(results: Results) -> str:
    parts = []
    for title, group in results.groups.items():
        flat = {name: _flat(row) for name, row in group.items()}
        columns = list(dict.fromkeys(column for row in flat.values() for column in row))
        rows = [
            (name.replace("_", " "), *(row.get(column, "") for column in columns))
            for name, row in flat.items()
        ]
        names = [column.replace("_", " ") for column in columns]
        parts.append(f"<h2>{_text(title.capitalize() if title.islower() else title)}</h2>")
        parts.append(_table(["", *names], rows) or "<p>None of the records has a label.</p>")
    return "".join(parts)


def _flat(row: Mapping[str, Any]) -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in row.items():
        if isinstance(value, Mapping):
            flat |= {inner: number(one) for inner, one in value.items()}
        elif value is not None:
            flat[name] = str(value) if isinstance(value, int) else number(value)
    return flat


def _case(case: Case) -> str:
    images = "".join(
        f"<figure>{_figure(image, caption or case.key)}"
        f"<figcaption>{_text(caption)}</figcaption></figure>"
        for caption, image in case.images
    )
    texts = "".join(
        f"<b>{_text(name)}</b><p>{_text(text)}</p>" for name, text in case.texts.items()
    )
    score = "" if case.score is None else f", {number(case.score)}"
    return (
        f'<div class="case">{images}<div><p class="note">{_text(case.key)}{score}</p>'
        f"{texts}</div></div>"
    )


def _figure(image: Image.Image | None, caption: str) -> str:
    if image is None:
        return ""
    small = image.convert("RGB")
    small.thumbnail((_THUMBNAIL, _THUMBNAIL))
    file = io.BytesIO()
    small.save(file, format="JPEG", quality=85)
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img alt="{_text(caption)}" src="data:image/jpeg;base64,{data}">'


def _warnings(results: Results) -> str:
    rows = [(entry.key, entry.values["warning"]) for entry in results.warned]
    return _some("Images with almost no content", ("item", "the image is"), rows)


def _failures(results: Results) -> str:
    items, records = (
        [(entry.key, entry.error) for entry in some]
        for some in (results.failures, results.unreadable)
    )
    return _some("Failed items", ("item", "error"), items) + _some(
        "Records that cannot be read", ("record", "error"), records
    )


def _some(heading: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The first rows, and the number of the others; "" without rows."""
    more = len(rows) - _SHOWN_FAILURES
    rest = f"<p>and {more} more, in results.json</p>" if more > 0 else ""
    return f"<h2>{heading}</h2>{_table(header, rows[:_SHOWN_FAILURES])}{rest}" if rows else ""


def _settings(results: Results) -> str:
    both = json.dumps({**results.settings, "scoring": dict(results.scoring)}, indent=1)
    return f"<h2>Settings</h2><pre>{_text(both)}</pre>"

"""Results of an evaluation: the contents of results.json, and the table on the terminal."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from unix_jax.errors import UniXError
from unix_jax.evaluation.bootstrap import Interval
from unix_jax.evaluation_runs import paper
from unix_jax.storage.files import atomic_write
from unix_jax.storage.journal import Entry
from unix_jax.storage.json_file import write_json

CONFIDENCE = 0.95
FILE = "results.json"
_DONE = {"reports": "scored", "images": "generated", "generated": "measured"}


@dataclasses.dataclass(frozen=True)
class Results:
    """Figures of one evaluation.

    kind: `reports`; `images` of a model's run, or `generated` images, from other software.
    settings: the settings that the directory records.
    scoring: how the figures were computed.
    items: in the source; scored: those in the metrics. Items that are neither scored nor failed
      have nothing to compare with.
    failures: items without a result.
    metrics: each with its interval; one without an interval has low = high = None.
    groups: figures by pathology, by name of the figure.
    not_computed: why a metric is missing, by its name.
    paper: the paper's own figures, by name of the metric.
    warned: items whose image shows almost nothing; their values have a `warning`.
    notes: remarks for readers of the results, one sentence each.
    unreadable: further records that cannot be read.
    """

    kind: str
    settings: Mapping[str, Any]
    scoring: Mapping[str, Any]
    items: int
    scored: int
    failures: Sequence[Entry] = ()
    metrics: Mapping[str, "Figure"] = dataclasses.field(default_factory=dict)
    groups: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    not_computed: Mapping[str, str] = dataclasses.field(default_factory=dict)
    paper: Mapping[str, float] = dataclasses.field(default_factory=dict)
    warned: Sequence[Entry] = ()
    notes: Sequence[str] = ()
    unreadable: Sequence[Entry] = ()

    def to_json(self) -> dict[str, Any]:
        """The value of results.json."""
        return {
            "kind": self.kind,
            "settings": dict(self.settings),
            "scoring": dict(self.scoring),
            "counts": {
                "items": self.items,
                "scored": self.scored,
                "failed": len(self.failures),
                "not_comparable": self.items - self.scored - len(self.failures),
            },
            "metrics": {
                name: {"value": figure.value, "low": figure.low, "high": figure.high}
                for name, figure in self.metrics.items()
            },
            "groups": {name: dict(group) for name, group in self.groups.items()},
            "not_computed": dict(self.not_computed),
            "paper": {"source": paper.SOURCE, "metrics": dict(self.paper)},
            "notes": list(self.notes),
            "failures": _errors(self.failures),
            "unreadable_records": _errors(self.unreadable),
            "image_warnings": [
                {
                    # An image from other software may belong to no record.
                    "index": entry.index if entry.index >= 0 else None,
                    "key": entry.key,
                    "warning": entry.values["warning"],
                }
                for entry in self.warned
            ],
        }


def _errors(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    return [{"index": one.index, "key": one.key, "error": one.error} for one in entries]


@dataclasses.dataclass(frozen=True)
class Figure:
    """A metric's value, with its bootstrap interval if it has one."""

    value: float
    low: float | None = None
    high: float | None = None


def figures(found: Mapping[str, Interval]) -> dict[str, Figure]:
    """Bootstrap intervals as figures."""
    return {name: Figure(one.value, one.low, one.high) for name, one in found.items()}


def write_results(out: Path, results: Results) -> Path:
    """Writes results.json, atomically.

    Raises:
      UniXError: it cannot be written.
    """
    path = out / FILE
    try:
        with atomic_write(path) as temporary:
            write_json(temporary, results.to_json())
    except OSError as error:
        raise UniXError(f"{path}: cannot be written: {error.strerror}") from error
    return path


def write_page(path: Path, page: str) -> None:
    """Writes HTML, atomically.

    Raises:
      UniXError: it cannot be written.
    """
    try:
        with atomic_write(path) as temporary:
            temporary.write_bytes(page.encode("utf-8", "replace"))
    except OSError as error:
        raise UniXError(f"{path}: cannot be written: {error.strerror}") from error


def print_table(results: Results, console: Console | None = None) -> None:
    """Prints the metrics next to those of the paper, and the missing ones with the reason."""
    console = console or Console()
    console.print(f"{results.kind}: {counts(results)}", markup=False, highlight=False)
    table = Table()
    table.add_column("metric")
    for column in ("value", f"{CONFIDENCE:.0%} interval", "paper (its own data)"):
        table.add_column(column, justify="right")
    for name, figure in results.metrics.items():
        reported = results.paper.get(name)
        table.add_row(
            name,
            number(figure.value),
            interval(figure),
            "" if reported is None else number(reported),
        )
    if results.metrics:
        console.print(table)
    for note in results.notes:
        console.print(note, markup=False, highlight=False)
    for name, reason in results.not_computed.items():
        console.print(f"not computed: {name}: {reason}", markup=False, highlight=False)
    if results.warned:
        console.print(f"warning: {warned(results)}", markup=False, highlight=False)
    for what, entries in (("items", results.failures), ("records", results.unreadable)):
        if entries:
            console.print(
                f"failed: {len(entries)} {what}; the first: {entries[0].error}",
                markup=False,
                highlight=False,
            )


def counts(results: Results) -> str:
    """The number of items, by outcome."""
    rest = results.items - results.scored - len(results.failures)
    done = _DONE[results.kind]
    parts = [f"{results.scored} of {results.items} items {done}"]
    if rest:
        parts.append(f"{rest} have nothing to compare with")
    if results.failures:
        parts.append(f"{len(results.failures)} failed")
    return ", ".join(parts)


def require_result(results: Results) -> None:
    """Raises an error if every item failed, since there is no result.

    Raises:
      UniXError: every item failed.
    """
    if results.items and len(results.failures) == results.items:
        raise UniXError(
            f"expected a result of at least one item, found that all {results.items} failed; "
            f"the first: {results.failures[0].error}"
        )


def warned(results: Results) -> str:
    """How many images show almost nothing, and the first of them."""
    first = "; ".join(f"{one.key}: {one.values['warning']}" for one in results.warned[:3])
    more = ", ..." if len(results.warned) > 3 else ""
    return f"{len(results.warned)} of the images show almost nothing: {first}{more}"


def number(value: float) -> str:
    """Four digits, as tables show it."""
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def interval(figure: Figure) -> str:
    """low - high, or "" without an interval."""
    if figure.low is None or figure.high is None:
        return ""
    return f"{number(figure.low)} – {number(figure.high)}"

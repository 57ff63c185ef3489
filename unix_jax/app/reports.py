"""A finished report on the page: its sections, its files, and a table of several."""

import base64
import csv
import dataclasses
import html
import io
import json
from collections.abc import Sequence
from typing import Any

from unix_jax import __version__
from unix_jax.app.choices import ReportChoices, Xray
from unix_jax.data.report_sections import split_report


@dataclasses.dataclass(frozen=True)
class WrittenReport:
    """A report, with what it was written from.

    Attributes:
      xray: the X-ray.
      text: the report.
      complete: whether the model ended it; otherwise it was cut off at the maximum length.
      choices: its settings.
      model: the model's name.
    """

    xray: Xray
    text: str
    complete: bool
    choices: ReportChoices
    model: str

    @property
    def values(self) -> dict[str, Any]:
        """The report as JSON."""
        findings, impression = split_report(self.text)
        return {
            "image": self.xray.name,
            "report": self.text,
            "findings": findings,
            "impression": impression,
            "warning": self.xray.warning or None,
            "finish_reason": "eos" if self.complete else "length",
            "model": self.model,
            "software": f"unix-jax {__version__}",
            "settings": dataclasses.asdict(self.choices),
        }


@dataclasses.dataclass(frozen=True)
class UnreadFile:
    """A file of several that was not read, and why."""

    name: str
    error: str


def sections(report: WrittenReport) -> str:
    """The report's sections under their names, notes, and the files to download."""
    found = report.values
    parts = [
        f"<h3>{name}</h3><p>{html.escape(found[key])}</p>"
        for name, key in (("Findings", "findings"), ("Impression", "impression"))
        if found[key]
    ] or [f"<p>{html.escape(report.text) or 'The report is empty.'}</p>"]
    return f'<div class="report">{"".join(parts)}{notes(report)}{_files(report)}</div>'


def notes(report: WrittenReport) -> str:
    """What a reader of the report must know: unreadable images, a cut text, the known labels."""
    found = []
    if report.xray.warning:
        found.append(f'<p class="complaint">{html.escape(report.xray.warning)}</p>')
    if not report.complete:
        found.append('<p class="complaint">The report was cut off at the maximum length.</p>')
    if report.xray.labels:
        labels = html.escape(", ".join(report.xray.labels))
        found.append(f'<p class="truth">Labels in the data set: <strong>{labels}</strong></p>')
    return "".join(found)


def table(rows: Sequence[WrittenReport | UnreadFile]) -> str:
    """Several files and their reports, with the files to download."""
    if not rows:
        return ""
    lines = []
    for row in rows:
        if isinstance(row, UnreadFile):
            name, cell = row.name, f'<p class="complaint">{html.escape(row.error)}</p>'
        else:
            name = row.xray.name
            text = "".join(f"<p>{html.escape(line)}</p>" for line in row.text.splitlines())
            cell = text + notes(row)
        lines.append(f'<tr><th scope="row">{html.escape(name)}</th><td>{cell}</td></tr>')
    values = [_row_values(row) for row in rows]
    links = _link("reports.csv", "text/csv", _csv(values), "Download CSV") + _link(
        "reports.json", "application/json", _json(values), "Download JSON"
    )
    head = '<tr><th scope="col">File</th><th scope="col">Report</th></tr>'
    return f'<table class="reports">{head}{"".join(lines)}</table><p>{links}</p>'


def _row_values(row: WrittenReport | UnreadFile) -> dict[str, Any]:
    if isinstance(row, UnreadFile):
        return {"image": row.name, "report": None, "error": row.error}
    return row.values | {"error": None}


def _files(report: WrittenReport) -> str:
    return (
        "<p>"
        + _link("report.txt", "text/plain", report.text.encode(), "Download text")
        + _link("report.json", "application/json", _json(report.values), "Download JSON")
        + "</p>"
    )


def _link(name: str, kind: str, data: bytes, label: str) -> str:
    address = f"data:{kind};charset=utf-8;base64,{base64.b64encode(data).decode('ascii')}"
    return f'<a class="download" href="{address}" download="{name}">{label}</a> '


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, indent=1).encode("utf-8", "backslashreplace")


def _csv(rows: Sequence[dict[str, Any]]) -> bytes:
    file = io.StringIO()
    names = ("image", "report", "findings", "impression", "warning", "finish_reason", "error")
    written = csv.DictWriter(file, names, extrasaction="ignore")
    written.writeheader()
    for row in rows:
        written.writerow({key: _cell(value) for key, value in row.items()})
    return file.getvalue().encode("utf-8", "backslashreplace")


def _cell(value: Any) -> Any:
    """A value of a table; a name such as "=1+1.png" is not a formula there."""
    formula = isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r")
    return f"'{value}" if formula else value

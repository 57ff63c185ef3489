"""Bar charts as self-contained inline SVG, without scripts, fonts or other files."""

import dataclasses
import html
from collections.abc import Sequence

from unix_jax.evaluation_runs.results import number

_LABEL, _PLOT, _ROW, _VALUE = 220, 440, 26, 110
_LETTERS = 30  # of a label; about what fits


@dataclasses.dataclass(frozen=True)
class Bar:
    """One row of a chart; without a bar if `value` is None.

    low, high: the interval, or None.
    reported: the paper's figure, shown as a mark.
    note: text after the number, or instead of it.
    """

    label: str
    value: float | None
    low: float | None = None
    high: float | None = None
    reported: float | None = None
    note: str = ""


def bar_chart(title: str, bars: Sequence[Bar], top: float | None = None) -> str:
    """Horizontal bars from 0 to `top` (by default the largest number); "" without bars.

    The title is the label for screen readers.
    """
    if not bars:
        return ""
    numbers = [n for bar in bars for n in (bar.value, bar.high, bar.reported) if n is not None]
    limit = max(numbers, default=0.0) if top is None else top
    limit = limit if limit > 0 else 1.0
    height = _ROW * len(bars) + 28
    width = _LABEL + _PLOT + _VALUE
    parts = [
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{html.escape(title)}">',
        *_axis(limit, height),
    ]
    for row, bar in enumerate(bars):
        parts += _bar(bar, row * _ROW + 4, limit)
    return "".join([*parts, "</svg>"])


def _axis(limit: float, height: int) -> list[str]:
    parts = []
    for step in range(5):
        x = _LABEL + _PLOT * step / 4
        parts.append(f'<line class="grid" x1="{x}" y1="0" x2="{x}" y2="{height - 24}"/>')
        label = f"{limit * step / 4:.3g}"
        parts.append(f'<text class="tick" x="{x}" y="{height - 8}">{label}</text>')
    return parts


def _bar(bar: Bar, y: int, limit: float) -> list[str]:
    def at(value: float) -> float:
        return round(_LABEL + _PLOT * min(max(value / limit, 0.0), 1.0), 1)

    middle = y + _ROW // 2 - 2
    label = bar.label if len(bar.label) <= _LETTERS else f"{bar.label[: _LETTERS - 1]}…"
    parts = [f'<text class="label" x="{_LABEL - 8}" y="{middle + 4}">{html.escape(label)}</text>']
    shown = bar.note
    if bar.value is not None:
        width = round(at(bar.value) - _LABEL, 1)
        parts.append(
            f'<rect class="bar" x="{_LABEL}" y="{y}" width="{width}" height="{_ROW - 8}"/>'
        )
        shown = f"{number(bar.value)} {bar.note}"
    if bar.low is not None and bar.high is not None:
        low, high = at(bar.low), at(bar.high)
        parts.append(f'<line class="range" x1="{low}" y1="{middle}" x2="{high}" y2="{middle}"/>')
    if bar.reported is not None:
        x = at(bar.reported)
        parts.append(f'<line class="paper" x1="{x}" y1="{y - 2}" x2="{x}" y2="{y + _ROW - 6}"/>')
    text = html.escape(shown.strip())
    parts.append(f'<text class="number" x="{_LABEL + _PLOT + 10}" y="{middle + 4}">{text}</text>')
    return parts

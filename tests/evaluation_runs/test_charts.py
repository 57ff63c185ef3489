"""Bar charts: numbers, notes and labels of every size, and nothing that is not escaped."""

import pytest

from unix_jax.evaluation_runs.charts import Bar, bar_chart


@pytest.mark.parametrize(("value", "shown"), [(0.5, "0.500"), (54.022, "54.0"), (1234.5, "1234.5")])
def test_a_note_stands_behind_every_number(value, shown):
    assert f">{shown} 12 rows</text>" in bar_chart("FD", [Bar("edema", value, note="12 rows")])


def test_a_note_in_the_place_of_a_number():
    chart = bar_chart("FD", [Bar("hernia", None, note="1 rows: too few")])
    assert ">1 rows: too few</text>" in chart
    assert "<rect" not in chart


def test_labels_are_escaped():
    chart = bar_chart("<b>", [Bar("<script>", 1.0, note="<i>")])
    assert "<script>" not in chart
    assert "<i>" not in chart
    assert "<b>" not in chart
    assert bar_chart("none", []) == ""

"""Text that is left out, or that stands behind a heading, never vanishes without a word."""

import json

import pytest

from unix_jax.cleaning.clean_reports import clean_with_rules, rejected_path
from unix_jax.cleaning.guard import rewriting_problems
from unix_jax.cleaning.report_files import open_reports

HEADED = [
    ("Heart normal. Addendum: there is a left apical pneumothorax.", "pneumothorax"),
    (
        "The trachea is midline. Attending addendum: there is also a subtle left apical "
        "pneumothorax not mentioned above. No acute osseous abnormality.",
        "pneumothorax",
    ),
    ("Heart normal. Communication: the left pneumothorax was told to Dr. ___.", "pneumothorax"),
    ("Heart normal. Attending: left mass.", "left mass"),
    ("Heart normal. Radiologist: left mass.", "left mass"),
    ("Heart normal. Reason: left pneumothorax after biopsy.", "pneumothorax"),
    ("Heart normal. Indication: cough. Left mass.", "left mass"),
    ("Heart normal. History: prior lobectomy. Report: left mass.", "left mass"),
    ("Heart normal. Recommendation: CT for the 2 cm left nodule.", "2 cm left nodule"),
]


def cleaned(tmp_path, name, text):
    """(the text of the row written, the reason of the row set aside); one of them is ""."""
    source, out = tmp_path / name, tmp_path / "out.jsonl"
    source.parent.mkdir(exist_ok=True)
    source.write_text(text, encoding="utf-8")
    clean_with_rules(open_reports(source if source.suffix != ".txt" else source.parent), out)
    rows = [json.loads(line) for line in out.open(encoding="utf-8")]
    aside = [json.loads(line) for line in rejected_path(out).open(encoding="utf-8")]
    assert len(rows) + len(aside) == 1
    if rows:
        return f"{rows[0]['findings']} {rows[0]['impression']}", ""
    return "", aside[0]["reason"]


@pytest.mark.parametrize(("text", "kept"), HEADED)
def test_what_is_written_is_what_was_guarded(tmp_path, text, kept):
    for row in (
        {"findings": text, "impression": "No edema."},
        {"findings": "", "impression": text},
    ):
        written, reason = cleaned(tmp_path, "in.jsonl", json.dumps(row) + "\n")
        assert kept in written.lower(), reason
        (tmp_path / "out.jsonl").unlink()


@pytest.mark.parametrize(("text", "kept"), HEADED)
def test_a_heading_within_a_section_of_one_text(tmp_path, text, kept):
    row = {"report": f"FINDINGS: {text} IMPRESSION: No edema."}
    written, reason = cleaned(tmp_path, "in.jsonl", json.dumps(row) + "\n")
    assert kept in written.lower() or "would be left out" in reason


@pytest.mark.parametrize("text", [
    "FINDINGS: Normal. IMPRESSION: Normal. ADDENDUM: On re-review there is a left pneumothorax.",
    "FINDINGS: Clear.\n IMPRESSION: Clear.\n\n ADDENDUM\n\n There is a left pneumothorax.",
    "FINDINGS: Clear. IMPRESSION: Clear. NOTIFICATION: The tension pneumothorax was called to Dr. "
    "___ at 5.",
    "FINDINGS: No pneumothorax.\n IMPRESSION: Clear.\n ATTENDING: Small pneumothorax.",
    "F/I: Left pneumothorax.",
    "COMMENT: Left pneumothorax.",
])  # fmt: skip
def test_a_section_that_is_no_reading(tmp_path, text):
    written, reason = cleaned(tmp_path, "reports/s1.txt", text)
    assert "left pneumothorax" in written.lower() or "pneumothorax" in reason


def test_a_section_that_repeats_the_reading_may_go(tmp_path):
    text = "FINDINGS: Left effusion.\n NOTIFICATION: The effusion was discussed with Dr. ___.\n"
    assert cleaned(tmp_path, "reports/s1.txt", text)[0].strip() == "Left effusion."


def test_a_rewrite_is_compared_with_all_of_the_text():
    original = "FINDINGS: Heart normal. Addendum: left pneumothorax."
    found = rewriting_problems(original, "FINDINGS: Heart normal.")
    assert 'Keep the finding "pneumothorax".' in found

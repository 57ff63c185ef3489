"""Sentences from the field: what the rules keep, drop or set aside, through the whole pass."""

import json
from pathlib import Path

import pytest

from unix_jax.cleaning.rules import clean_sections

FOLDER = Path(__file__).parent / "field"


def rows(name):
    return [json.loads(line) for line in (FOLDER / name).open(encoding="utf-8")]


@pytest.mark.parametrize("case", rows("cleaning.jsonl"), ids=lambda case: case["text"][:60])
def test_the_contract(case):
    cleaned = clean_sections(case["text"], "")
    if cleaned.refused:
        assert case.get("aside"), cleaned.refused
        return
    text = cleaned.findings.lower()
    assert all(kept.lower() in text for kept in case["keep"])
    assert not any(dropped.lower() in text for dropped in case["drop"])
    if "equals" in case:
        assert cleaned.findings == case["equals"]


@pytest.mark.parametrize("case", rows("sentences.jsonl"), ids=lambda case: case["text"][:60])
def test_more_of_the_same_kinds(case):
    cleaned = clean_sections(case["text"], "")
    assert bool(cleaned.refused) == bool(case.get("aside")), cleaned
    if not cleaned.refused:
        assert cleaned.findings == case["equals"]


@pytest.mark.parametrize("case", rows("set_aside.jsonl"), ids=lambda case: case["text"][:60])
def test_what_cannot_be_told_is_set_aside(case):
    """Between two sentences that stay: set aside, or one of the outputs that are right too."""
    before, after = "The trachea is midline.", "No acute osseous abnormality."
    cleaned = clean_sections(f"{before} {case['text']} {after}", "")
    allowed = [f"{before} {text} {after}" for text in case["or"]]
    assert cleaned.refused or cleaned.findings in allowed


@pytest.mark.parametrize("text", [
    "Resolution of right effusion and pneumothorax.", "The edema and effusions have resolved.",
])  # fmt: skip
def test_a_list_of_like_findings_that_are_gone_is_denied(text):
    cleaned = clean_sections(text, "")
    assert not cleaned.refused
    assert cleaned.findings.startswith("No ")
    assert " or " in cleaned.findings

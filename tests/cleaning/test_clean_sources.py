"""Formats that are read, templates, the journal, and answers of models."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unix_jax.cleaning.clean_reports import Outcome
from unix_jax.cleaning.endpoint import Tokens
from unix_jax.cleaning.report_files import open_reports
from unix_jax.cleaning.rewriting import plain_answer, verdict
from unix_jax.cleaning.templates import filled, load_prompts
from unix_jax.errors import DataError, UniXError
from unix_jax.storage.journal import Entry, Journal


def test_json_lines(tmp_path):
    file = tmp_path / "a.jsonl"
    rows = [
        {"id": "a", "findings": "Clear.", "impression": None, "view": "PA"},
        {"text": "FINDINGS: x. IMPRESSION: y."},
        {"report": "No headings at all."},
        {"report": "EXAMINATION: Chest.\nHISTORY: Cough."},
        {"findings": "", "impression": "HISTORY: z. FINDINGS: Small. IMPRESSION: Edema."},
        {"findings": ""},
        {"findings": 3.5},
        {"other": ""},
    ]
    file.write_text("\n".join(json.dumps(row) for row in rows) + "\n{broken\n")
    source = open_reports(file)
    assert len(source) == 9
    assert (source[0].key, source[0].text, source[0].row["view"]) == ("a", "FINDINGS: Clear.", "PA")
    assert (source[1].key, source[1].findings, source[1].impression) == ("a.jsonl:2", "x.", "y.")
    assert source[2].findings == "No headings at all."
    assert (source[3].findings, source[3].impression) == ("", "")
    assert (source[4].findings, source[4].impression) == ("Small.", "HISTORY: z. Edema.")
    for index in range(5, 9):
        with pytest.raises(DataError, match="line"):
            source[index]
    assert open_reports(file, "other").name(1) == "a.jsonl:2"
    with pytest.raises(DataError, match="expected a field other"):
        open_reports(file, "other")[0]


def test_csv(tmp_path):
    file = tmp_path / "a.csv"
    file.write_text('study,findings,impression\n7,"Clear, ""both"".\nMore.",None seen.\n8,,\n')
    source = open_reports(file)
    assert (len(source), source[0].key) == (2, "7")
    assert source[0].findings == 'Clear, "both".\nMore.'
    with pytest.raises(DataError, match="line 4: expected a report"):
        source[1]
    with pytest.raises(DataError, match="expected a column words"):
        open_reports(file, "words")
    file.write_bytes(b"\xff\xfe\n")
    with pytest.raises(DataError, match="expected CSV in UTF-8"):
        open_reports(file)


def test_a_directory_of_text_files(tmp_path):
    for name in ("p10/s2.txt", "p10/s1.TXT", "p9/s3.txt", "p9/index.html"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"FINDINGS: {name}.")
    source = open_reports(tmp_path)
    assert [source[i].key for i in range(3)] == ["p10/s1", "p10/s2", "p9/s3"]
    before = source.fingerprint()
    (tmp_path / "p9/s3.txt").write_bytes(b"\xff\xff")
    assert open_reports(tmp_path).fingerprint() != before
    with pytest.raises(DataError, match="expected UTF-8"):
        source[2]


def test_what_cannot_be_opened(tmp_path):
    (tmp_path / "a.xlsx").write_text("x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "b.csv").write_text("a,b\n")
    for name in ("a.xlsx", "empty", "b.csv", "none.jsonl", "none.csv", "none"):
        with pytest.raises(DataError, match=name):
            open_reports(tmp_path / name)


def test_prompts(tmp_path):
    prompts = load_prompts()
    assert "{report}" in prompts.rewrite
    own = tmp_path / "judge.md"
    own.write_text("{report} or {rewrite}?")
    assert load_prompts(judge=str(own)).judge == "{report} or {rewrite}?"
    assert load_prompts(judge=str(own)).fingerprint() != prompts.fingerprint()
    # Braces in a report mean nothing, and are not filled in turn.
    assert filled("{report} {rewrite} {x}", report="{rewrite}", rewrite="r") == "{rewrite} r {x}"
    own.write_text("{report}?")
    with pytest.raises(UniXError, match=r"field \{rewrite\}"):
        load_prompts(judge=str(own))
    with pytest.raises(UniXError, match="cannot be read"):
        load_prompts(rewrite=str(tmp_path / "none.md"))


@pytest.mark.parametrize(("answer", "expected"), [
    ("yes", (True, "")), ("**Yes.**", (True, "")), ("No: a side.", (False, "a side.")),
    ("<think>no, no</think>\nYES", (True, "")), ("NO\nBecause\nof it", (False, "Because of it")),
    ("Perhaps yes", None), ("nothing", None), ("", None), ("yesterday", None),
])  # fmt: skip
def test_verdicts(answer, expected):
    assert verdict(answer) == expected


def test_plain_answers():
    thought = "<think>a\nb</think>\nFINDINGS: x.\n IMPRESSION: y."
    assert plain_answer(thought) == "FINDINGS: x. IMPRESSION: y."
    assert plain_answer("```text\nFINDINGS: x.\n```") == "FINDINGS: x."


HEADER = {"model": "m"}


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(1, 400))
def test_a_journal_torn_anywhere_in_its_last_line_keeps_the_others(tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("journal") / "j.jsonl"
    with Journal(path, HEADER) as journal:
        for index in (2, 0, 1):
            journal.append([Outcome(index, "done", f"Ünïcode {index}", tries=1).entry()])
    whole = path.read_bytes()
    path.write_bytes(whole[: max(len(whole) - cut, 0)])
    kept = path.read_bytes().count(b"\n")
    with Journal(path, HEADER) as journal:
        assert [journal.settled(i) for i in (2, 0, 1)] == [kept > 1, kept > 2, kept > 3]
        journal.append([Outcome(5, "done", "new").entry()])
        assert [e.index for e in journal.entries()] == sorted([*[2, 0, 1][: max(kept - 1, 0)], 5])
    assert path.read_bytes().endswith(b"\n")


def test_a_failed_report_can_be_done_later(tmp_path):
    path = tmp_path / "j.jsonl"
    with Journal(path, HEADER) as journal:
        failed = Outcome(0, "failed", reason="HTTP 500", tokens=Tokens(2, 1))
        journal.append([failed.entry()])
        assert not journal.settled(0)
        journal.append([Outcome(0, "done", "x", tokens=Tokens(3, 1)).entry()])
    with Journal(path, HEADER) as journal:
        assert (journal.count("done"), journal.count("failed")) == (1, 0)
        assert [Outcome.read(journal, e).report for e in journal.entries()] == ["x"]
        spent = [Outcome.read(journal, e).tokens for e in journal.history()]
        assert spent == [Tokens(2, 1), Tokens(3, 1)]


def test_journals_that_are_not_ours(tmp_path):
    path = tmp_path / "j.jsonl"
    damaged = '{"journal": {"model": "m"}}\n{"index": 1}\n'
    for text, found in (
        ("x\n", "line 1: expected the settings of a run"),
        ("{}\n", "line 1: expected the settings of a run"),
        ('{"journal": {"model": "n"}}\n', r'started with model "n" \(now "m"\)'),
        (damaged, "line 2: expected an item's outcome"),
    ):
        path.write_text(text)
        with pytest.raises(UniXError, match=found):
            Journal(path, HEADER)
        assert path.read_text() == text


def test_an_entry_of_another_program_is_named(tmp_path):
    with Journal(tmp_path / "j.jsonl", HEADER) as journal:
        journal.append([Entry(3, values={"prediction": "x"})])
        (entry,) = journal.entries()
        with pytest.raises(UniXError, match=r"j\.jsonl: item 3: expected the outcome of a cleaned"):
            Outcome.read(journal, entry)

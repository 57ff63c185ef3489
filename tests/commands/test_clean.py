"""`unix-jax clean` with the rules alone: files, printed counts, and errors in one line."""

import json

import pytest
import tyro

from unix_jax.cleaning.report_files import open_reports
from unix_jax.commands.clean import Clean
from unix_jax.data.sources import open_source
from unix_jax.errors import UniXError

ROWS = [
    {"id": "a", "findings": "PA view of the chest. Stable mild cardiomegaly.",
     "impression": "No change.", "view": "PA"},
    {"id": "b", "findings": "The mediastinum is stable.", "impression": ""},
    {"id": "c", "findings": "", "impression": "1. Small effusion, discussed with Dr. ___ at 5 pm."},
    {"id": "d"},
]  # fmt: skip


def run(*arguments):
    tyro.cli(Clean, args=[str(argument) for argument in arguments]).run()


@pytest.fixture
def reports(tmp_path):
    file = tmp_path / "in.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return file


def test_rules_only(tmp_path, reports, capsys):
    out = tmp_path / "new" / "out.jsonl"
    run(reports, out, "--rules-only")
    done = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(row["id"], row["findings"], row["impression"]) for row in done] == [
        ("a", "Mild cardiomegaly.", ""),
        ("c", "", "Small effusion."),
    ]
    assert done[0]["view"] == "PA"
    assert done[0]["cleaned"] == {"by": "rules", "rules": ["views", "priors"]}
    aside = [
        json.loads(line) for line in (out.parent / "out.rejected.jsonl").read_text().splitlines()
    ]
    assert [row["id"] for row in aside] == ["b", "d"]
    assert "nothing is left after the rules priors" in aside[0]["reason"]
    printed = capsys.readouterr()
    for line in ("2 reports", "2 set aside", "priors       changed 2", "1 kept only one section"):
        assert line in printed.out
    # The output is a source of the training data.
    assert open_source(f"manifest:{out}")[0].findings == "Mild cardiomegaly."


def test_text_files_and_csv_become_json_lines(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "s1.txt").write_text(
        "FINAL REPORT\n FINDINGS: Lungs remain clear.\n IMPRESSION:\n Normal."
    )
    run(tmp_path / "in", tmp_path / "a.jsonl")
    assert json.loads((tmp_path / "a.jsonl").read_text())["findings"] == "Lungs are clear."
    (tmp_path / "in.csv").write_text('id,words\nx,"IMPRESSION: Stable edema."\n')
    run(tmp_path / "in.csv", tmp_path / "b.jsonl", "--text-field", "words")
    row = json.loads((tmp_path / "b.jsonl").read_text())
    assert (row["words"], row["impression"]) == ("IMPRESSION: Edema.", "Edema.")
    # What was written is read again, and nothing is left to clean.
    assert open_reports(tmp_path / "b.jsonl")[0].text == "IMPRESSION: Edema."


@pytest.mark.parametrize(("options", "found"), [
    (["--model", "m"], "--endpoint"),
    (["--endpoint", "http://localhost:1"], "--model"),
    (["--endpoint", "http://localhost:1", "--model", "m", "--rules-only"], "--rules-only"),
    (["--concurrency", "0"], "--concurrency: expected at least 1"),
    (["--endpoint", "localhost", "--model", "m"], "--endpoint: expected http"),
    (["--text-field", "words"], None),
])  # fmt: skip
def test_errors(tmp_path, reports, options, found):
    out = tmp_path / "out.jsonl"
    if found is None:
        with pytest.raises(UniXError, match=r"all 4 were set aside; the .*out\.rejected"):
            run(reports, out, *options)
        assert out.read_text() == ""
        return
    with pytest.raises(UniXError, match=found) as caught:
        run(reports, out, *options)
    assert "\n" not in str(caught.value)
    assert not out.exists()


def test_ids_are_those_of_the_input(tmp_path):
    rows = [
        {"id": 7, "findings": "Stable edema."},
        {"id": 0, "findings": ""},
        {"study_id": 50414267, "findings": "Clear lungs."},
        {"findings": "Clear lungs."},
        {"findings": 3.5},
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "[]\n")
    run(tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    ids = [
        [json.loads(line)["id"] for line in (tmp_path / name).read_text().splitlines()]
        for name in ("out.jsonl", "out.rejected.jsonl")
    ]
    assert ids == [[7, 50414267, "in.jsonl:4"], [0, "in.jsonl:5", "in.jsonl:6"]]
    assert open_source(f"manifest:{tmp_path / 'out.jsonl'}")[0].findings == "Edema."


def test_text_files_that_hold_no_final_reading_are_set_aside(tmp_path):
    folder = tmp_path / "in" / "p10"
    folder.mkdir(parents=True)
    wet = " WET READ: ___ ___ 5:10 PM\n  {}\n" + "_" * 70 + "\n"
    texts = {
        "a": "IMPRESSION: Stable edema.",
        "b": wet.format("Left pneumothorax."),
        "c": wet.format("Normal.") + wet.format("Normal.") + " " * 30 + "FINAL REPORT\n",
        "d": "",
    }
    for name, text in texts.items():
        (folder / f"{name}.txt").write_text(text)
    (folder / "e.txt").write_bytes(b"\xff\xfe")
    run(tmp_path / "in", tmp_path / "out.jsonl")
    (row,) = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    assert row["id"] == "p10/a"
    aside = [
        json.loads(line) for line in (tmp_path / "out.rejected.jsonl").read_text().splitlines()
    ]
    assert [row["id"] for row in aside] == ["p10/b", "p10/c", "p10/d", "p10/e"]
    for row, reason in zip(
        aside, ("Left pneumothorax", "no findings and no", "no text", "UTF-8"), strict=True
    ):
        assert reason in row["reason"]


def test_out_is_never_overwritten(tmp_path, reports):
    out = tmp_path / "out.jsonl"
    out.write_text("mine")
    for target in (out, reports):
        before = target.read_text()
        with pytest.raises(UniXError, match=r"out\.jsonl: exists already|a file other than IN"):
            run(reports, target)
        assert target.read_text() == before
    with pytest.raises(UniXError, match="cannot be"):
        run(reports, "/proc/none/out.jsonl")

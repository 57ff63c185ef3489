"""MIMIC-CXR from its reports to a scored model: clean, join, train stage 1, evaluate."""

import csv
import gzip
import json
import runpy
from pathlib import Path

import pytest

from support.mimic_folder import make_mimic
from unix_jax.cli import main as unix_jax
from unix_jax.commands.data import main as data
from unix_jax.data.sources import open_source
from unix_jax.errors import DataError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folders(tmp_path):
    return make_mimic(tmp_path, 12)


def test_cleaned_reports_find_their_images(folders, tmp_path, capsys):
    jpg, reports = folders
    out = tmp_path / "clean.jsonl"
    assert unix_jax(["clean", str(reports / "files"), str(out)]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert (rows[0]["study_id"], rows[0]["subject_id"]) == ("50414267", "10000032")
    spec = f"mimic:{jpg}?reports={out}&views=PA,AP"
    source = open_source(spec)
    assert len(source) == 12
    assert all(record.findings for record in source)
    assert {r.findings for r in source} == {row["findings"] for row in rows}
    for record, plain in zip(
        source, open_source(f"mimic:{jpg}?reports={reports}&views=PA,AP"), strict=True
    ):
        assert (record.key, record.patient) == (plain.key, plain.patient)
    # What finds no partner is counted.
    alone = {"id": "s99999999", "findings": "x"}
    lines = [*rows[:-2], alone, {"id": "none", "findings": "x"}, {**rows[0], "findings": "y"}]
    out.write_text("".join(json.dumps(row) + "\n" for row in lines))
    with pytest.warns(UserWarning, match="no report in it") as warned:
        assert len(open_source(spec)) == 10
    (message,) = {str(w.message) for w in warned}
    for part in (
        "2 of 12 images have no report in it and are skipped",
        "1 of its 11 reports belong to no image of mimic-cxr-2.0.0-metadata.csv",
        "1 rows that name no study, 1 rows that repeat a study (the first row counts)",
    ):
        assert part in message
    assert data(["inspect", spec, "--split", "test"]) == 0
    assert "warning: " in capsys.readouterr().err


@pytest.mark.parametrize("end", [".csv", ".csv.gz"])
def test_the_output_of_the_section_parser(folders, tmp_path, end):
    jpg, _ = folders
    file = tmp_path / f"mimic_cxr_sectioned{end}"
    with (gzip.open if end == ".csv.gz" else open)(file, "wt", newline="") as opened:
        rows = csv.writer(opened)
        rows.writerow(["study", "impression", "findings", "last_paragraph", "comparison"])
        rows.writerow(["s50414267", "Edema.", "Large\nheart.", "", "None."])
        rows.writerow(["s50414278", "", "", "Stable edema.", "___"])
        rows.writerow(["s50414289", "", "", "", ""])
    with pytest.warns(UserWarning, match="12 of 15 images have no report.*1 rows that have no te"):
        first, *_, last = open_source(f"mimic:{jpg}?reports={file}")
    assert (first.findings, first.impression) == ("Large heart.", "Edema.")
    assert (last.findings, last.impression) == ("Stable edema.", "")
    out = tmp_path / "clean.jsonl"
    assert unix_jax(["clean", str(file), str(out)]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(row["id"], row["findings"]) for row in rows] == [
        ("s50414267", "Large heart."), ("s50414278", "Edema."),
    ]  # fmt: skip
    assert not {"last_paragraph", "comparison"} & set(rows[0])
    with pytest.warns(UserWarning, match="12 of 15 images"):
        assert open_source(f"mimic:{jpg}?reports={out}")[0].impression == "Edema."


def test_files_that_join_nothing(folders, tmp_path):
    jpg, _ = folders
    for name, text, expected in (
        ("a.csv", "study,words\n", "expected one of the columns findings"),
        ("a.csv", "name,findings\n", "expected one of the columns study_id"),
        ("a.csv", "study,findings\ns1,x\n", "1 rows that name no study"),
        ("a.csv", "study,findings\ns50414267\n", "line 2: expected 2 cells, found 1"),
        ("a.jsonl", '{"id": "s99999999", "findings": "x"}\n', "found none of 15 images' studies"),
        ("a.jsonl", "", "expected rows, found none"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(DataError, match=expected):
            open_source(f"mimic:{jpg}?reports={tmp_path / name}")


def test_views_that_no_image_has(folders):
    jpg, reports = folders
    with pytest.raises(
        DataError, match=r"view FRONTAL; the views .* are (AP 6, PA 6|PA 6, AP 6), LATERAL 3$"
    ):
        open_source(f"mimic:{jpg}?reports={reports}&views=PA,FRONTAL")


@pytest.mark.slow
def test_the_chain(tmp_path, monkeypatch):
    """Each documented command, shortened to the bundled nano model and four steps."""
    jpg, reports = make_mimic(tmp_path)
    out, run = tmp_path / "clean.jsonl", tmp_path / "run"
    source = f"mimic:{jpg}?reports={out}&views=PA,AP"
    monkeypatch.chdir(ROOT)
    assert unix_jax(["clean", str(reports / "files"), str(out)]) == 0
    assert data(["inspect", source]) == 0
    shorter = ["--total-steps", "4", "--data.rows", "2", "--data.und-tokens", "512",
               "--accumulation", "1", "--mesh", "data=1", "--validation.batches", "1"]  # fmt: skip
    assert runpy.run_path(str(ROOT / "train.py"))["main"](
        ["configs/stage1_understanding.py", "--init", "examples/nano", "--out", str(run),
         "--data.source", source, *shorter]
    ) == 0  # fmt: skip
    assert unix_jax(
        ["evaluate", "reports", "--checkpoint", str(run / "export"), "--data", source,
         "--out", str(tmp_path / "scores"), "--max-new-tokens", "16", "--resamples", "10"]
    ) == 0  # fmt: skip
    results = json.loads((tmp_path / "scores/results.json").read_text())
    assert results["settings"]["items"] == 4
    assert len((tmp_path / "scores/predictions.jsonl").read_text().splitlines()) == 4

"""MIMIC-CXR-JPG: its tables, its folders, its reports, and how each may be broken."""

import contextlib
import csv
import gzip
import json
import pickle
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.source_files import error_of, picture_bytes, read_or_error
from unix_jax.data.records import Record, RecordSource, record_image
from unix_jax.data.sources import open_source
from unix_jax.data.sources.mimic import MimicSource
from unix_jax.errors import DataError

REPORT = "  FINAL REPORT\n FINDINGS:\n The lungs\n are clear.\n\n IMPRESSION:  Normal.\n"
METADATA = ["dicom_id", "subject_id", "study_id", "Rows", "ViewPosition"]
STUDIES = [
    # dicom, subject, study, view, split
    ("d1", "10000032", "50414267", "PA", "train"),
    ("d2", "10000032", "50414267", "LATERAL", "train"),
    ("d3", "11000011", "51000000", "AP", "test"),
    ("d4", "19000001", "59000000", "", "validate"),
]


def csv_file(path: Path, rows) -> Path:
    with (gzip.open if path.suffix == ".gz" else open)(path, "wt", newline="") as opened:
        csv.writer(opened).writerows(rows)
    return path


def mimic_directory(root: Path, end=".csv", studies=STUDIES) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    metadata = [METADATA, *([d, s, t, "2544", view] for d, s, t, view, _ in studies)]
    csv_file(root / f"mimic-cxr-2.0.0-metadata{end}", metadata)
    splits = [["dicom_id", "study_id", "subject_id", "split"]]
    splits += [[d, t, s, split] for d, s, t, _, split in studies if split]
    csv_file(root / f"mimic-cxr-2.0.0-split{end}", splits)
    for dicom, subject, study, _, _ in studies:
        folder = root / "files" / f"p{subject[:2]}" / f"p{subject}" / f"s{study}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{dicom}.jpg").write_bytes(picture_bytes())
        folder.with_suffix(".txt").write_text(REPORT)
    return root


@pytest.mark.parametrize("end", [".csv", ".csv.gz"])
def test_mimic(tmp_path, end):
    root = mimic_directory(tmp_path / "mimic", end)
    csv_file(
        root / f"mimic-cxr-2.0.0-chexpert{end}",
        [["subject_id", "study_id", "Edema", "Pneumonia", "No Finding"],
         ["10000032", "50414267", "1.0", "-1.0", ""], ["11000011", "51000000", "", "0.0", "1.0"]],
    )  # fmt: skip
    source = open_source(f"mimic:{root}")
    assert isinstance(source, RecordSource)
    assert [r.key for r in source] == ["d1", "d2", "d3", "d4"]
    image = root / "files/p10/p10000032/s50414267/d1.jpg"
    assert source[0] == Record(
        "d1", image, "The lungs are clear.", "Normal.", view="PA", patient="10000032",
        split="train", labels=("Edema",),
    )  # fmt: skip
    assert record_image(source[2]).size == (32, 24)
    assert (source[2].labels, source[3].labels, source[3].view) == (("No Finding",), (), "")
    assert list(pickle.loads(pickle.dumps(source))) == list(source)
    assert [r.key for r in open_source(f"mimic:{root}", "train")] == ["d1", "d2"]
    assert [r.key for r in open_source(f"mimic:{root}?views=PA,AP")] == ["d1", "d3"]
    with pytest.raises(
        DataError, match=r"split dev and views any, found none; splits are \['test'"
    ):
        open_source(f"mimic:{root}", "dev")


WET_READ = " WET READ: 5:10 PM\n Large left pneumothorax.\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (WET_READ, 'no findings and no impression; "5:10 PM Large left pneumothorax." is no final'),
        (" \n", "has no text"),
        (" FINAL REPORT\n HISTORY:  Cough.\n", "no findings and no impression"),
    ],
)
def test_a_report_without_sections_has_a_problem(tmp_path, text, expected):
    root = mimic_directory(tmp_path / "mimic")
    (root / "files/p11/p11000011/s51000000.txt").write_text(text)
    problems = [record.report_problem for record in open_source(f"mimic:{root}")]
    assert expected in problems.pop(2)
    assert problems == ["", "", ""]
    assert not any(r.report_problem for r in open_source(f"mimic:{root}?reports=none"))


def test_rows_without_sections_are_counted_when_a_file_is_joined(tmp_path):
    root = mimic_directory(tmp_path / "mimic")
    texts = {"50414267": REPORT, "51000000": WET_READ, "59000000": ""}
    rows = [json.dumps({"study_id": s, "report": text}) + "\n" for s, text in texts.items()]
    (tmp_path / "all.jsonl").write_text("".join(rows))
    with pytest.warns(UserWarning, match="no report in it") as warned:
        source = open_source(f"mimic:{root}?reports={tmp_path / 'all.jsonl'}")
    assert [r.key for r in source] == ["d1", "d2"]
    (message,) = [str(w.message) for w in warned]
    assert "1 rows that have no text" in message
    assert "1 rows that have neither findings nor impression (the first: study 51000000" in message


def test_mimic_roots(tmp_path):
    root, reports = mimic_directory(tmp_path / "jpg"), tmp_path / "reports"
    for file in sorted(root.rglob("*.txt")):
        moved = reports / file.relative_to(root)
        moved.parent.mkdir(parents=True, exist_ok=True)
        file.rename(moved)
    assert open_source(f"mimic:{root}?reports={reports}")[0].impression == "Normal."
    assert open_source(f"mimic:{root}?reports=none")[0].impression == ""
    moved_images = open_source(f"mimic:{root}?reports=none&images=/i")
    assert moved_images[0].image == Path("/i/files/p10/p10000032/s50414267/d1.jpg")
    message = error_of(open_source(f"mimic:{root}"), 0)
    assert "line 2: d1: report " in message
    assert message.endswith("s50414267.txt: No such file or directory")


@pytest.mark.parametrize(
    ("study", "expected"),
    [
        (("", "1", "2", "PA", ""), "dicom_id: expected a file's name, found ''"),
        (("../x", "1", "2", "PA", "train"), "dicom_id: expected a file's name, found '../x'"),
        (("d9", "p1", "2", "PA", "train"), "subject_id: expected a number, found 'p1'"),
        (("d9", "1", "../2", "PA", "train"), "study_id: expected a number, found '../2'"),
        (("d9", "1", "", "PA", "train"), "study_id: expected a number, found ''"),
        (("d9", "1", "2", "PA", ""), "expected a row of the split table, found none"),
    ],
)
def test_broken_mimic_rows(tmp_path, study, expected):
    root = mimic_directory(tmp_path / "mimic")
    with (root / "mimic-cxr-2.0.0-metadata.csv").open("a", newline="") as opened:
        csv.writer(opened).writerow([*study[:3], "", study[3]])
    with (root / "mimic-cxr-2.0.0-split.csv").open("a", newline="") as opened:
        csv.writer(opened).writerow([study[0], study[2], study[1], study[4]])
    source = MimicSource(root, reports="none")
    assert source[0].key == "d1"
    message = error_of(source, 4)
    assert message.startswith(f"{root}/mimic-cxr-2.0.0-metadata.csv: line 6: ")
    assert expected in message


def test_broken_mimic_tables(tmp_path):
    root = mimic_directory(tmp_path / "mimic")
    metadata, split = (root / f"mimic-cxr-2.0.0-{name}.csv" for name in ("metadata", "split"))
    chexpert = csv_file(root / "mimic-cxr-2.0.0-chexpert.csv", [["Edema"]])
    with pytest.raises(DataError, match=r"chexpert\.csv: expected a column study_id"):
        MimicSource(root)
    chexpert.unlink()
    text = metadata.read_text()
    metadata.write_text(text.replace("ViewPosition", "View"))
    with pytest.raises(
        DataError, match=r"metadata\.csv: expected columns .*'ViewPosition'.* found"
    ):
        MimicSource(root)
    metadata.write_text("")
    with pytest.raises(DataError, match=r"metadata\.csv: expected columns .* found \[\]"):
        MimicSource(root)
    metadata.write_text(text)
    split.unlink()
    with pytest.raises(DataError, match=r"expected mimic-cxr-2\.0\.0-split\.csv or \.csv\.gz"):
        MimicSource(root)
    (root / "mimic-cxr-2.0.0-split.csv.gz").write_bytes(gzip.compress(b"dicom_id,split\n")[:-9])
    with pytest.raises(DataError, match=r"split\.csv\.gz: cannot be read"):
        MimicSource(root)


@given(st.binary(max_size=80), st.sampled_from(["metadata", "split", "chexpert"]), st.booleans())
@settings(max_examples=250, deadline=None)
def test_any_table_is_records_or_an_error(tmp_path_factory, data, name, appended):
    root = tmp_path_factory.getbasetemp() / "fuzz-mimic"
    if not root.exists():
        mimic_directory(root)
        csv_file(root / "mimic-cxr-2.0.0-chexpert.csv", [["study_id", "Edema"], ["50414267", "1"]])
    table = root / f"mimic-cxr-2.0.0-{name}.csv"
    before = table.read_bytes()
    table.write_bytes(before + data if appended else data)
    try:
        with contextlib.suppress(DataError):
            source = MimicSource(root)
            for index in range(len(source)):
                message = read_or_error(source, index)
                assert message is None or message.startswith(f"{root}/mimic-cxr-2.0.0-metadata.csv")
    finally:
        table.write_bytes(before)

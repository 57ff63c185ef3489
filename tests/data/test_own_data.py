"""examples/make_own_data.py: the three formats of docs/finetuning.md hold the same X-rays."""

import runpy

import pytest

from support.paths import ROOT
from unix_jax.data.records import record_image, report_text
from unix_jax.data.sources import open_source
from unix_jax.errors import DataError, UniXError


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(ROOT / "examples" / "make_own_data.py"))


@pytest.fixture(scope="module")
def own(script, tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "own"
    assert script["make"](out, 20) == 20
    return out


def sources(own):
    yield f"csv:{own}/table/xrays.csv?images={own}/table/images"
    yield f"csv:{own}/folder"
    yield f"mimic:{own}/mimic?views=PA,AP"


@pytest.mark.parametrize(("split", "count"), [("train", 16), ("validate", 2), ("test", 2)])
def test_each_format_has_the_same_records(own, split, count):
    found = []
    for source in sources(own):
        records = open_source(source, split=split)
        assert len(records) == count
        found.append([(report_text(r), record_image(r).size) for r in records])
    assert found[0] == found[1] == found[2]
    assert all("FINDINGS: " in text and " IMPRESSION: " in text for text, _ in found[0])


def test_patients_are_in_one_split(own):
    table = next(sources(own))
    splits = ("train", "validate", "test")
    patients = [{r.patient for r in open_source(table, split=split)} for split in splits]
    assert not patients[0] & patients[1] | patients[0] & patients[2] | patients[1] & patients[2]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["No Finding"], ("The lungs are clear. The heart is normal.", "No finding.")),
        (["COVID-19"], ("There is COVID-19 pneumonia.", "COVID-19 pneumonia.")),
        (
            ["Edema", "Mass", "Hernia"],
            ("There is edema, mass and hernia.", "Edema, mass and hernia."),
        ),
    ],
)
def test_texts_state_the_labels(labels, expected, script):
    assert script["texts"](labels) == expected


def test_what_cannot_be_made_is_refused(own, script, tmp_path):
    with pytest.raises(DataError, match="expected at most 248 of train, found 320"):
        script["make"](tmp_path / "many", 400)
    assert not (tmp_path / "many").exists()
    with pytest.raises(DataError, match="count: expected at least 10, found -3"):
        script["make"](tmp_path / "few", -3)
    with pytest.raises(UniXError, match="exists already"):
        script["make"](own, 20)

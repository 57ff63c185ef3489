"""Records, report sections, and the ArrayRecord files of our own records."""

import contextlib
import dataclasses
import io
import json
import os
import pickle
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from array_record.python import array_record_module
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from unix_jax.data.records import (
    Record,
    RecordSource,
    Subset,
    captions_of,
    image_bytes,
    record_image,
    report_text,
)
from unix_jax.data.report_sections import split_report
from unix_jax.data.sources.array_records import (
    INDEX,
    ArrayRecordSource,
    decode_record,
    encode_record,
    shrunk,
    write_array_records,
)
from unix_jax.data.sources.preparation import PreparedRecords
from unix_jax.errors import DataError, UniXError

UNICODE = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
STRIPPED = UNICODE.map(str.strip)
TEXTS = st.lists(STRIPPED.filter(bool), max_size=3).map(tuple)
RECORDS = st.builds(
    Record,
    key=STRIPPED,
    image=st.none() | st.binary(max_size=50),
    findings=STRIPPED,
    impression=STRIPPED,
    captions=TEXTS,
    view=STRIPPED,
    patient=STRIPPED,
    split=st.sampled_from(["train", "test", "", "../x", "a b"]),
    labels=TEXTS,
    prompt=STRIPPED,
    answer=STRIPPED,
)


def png(path: Path, size=(40, 30), mode="L") -> Path:
    Image.linear_gradient("L").resize(size).convert(mode).save(path)
    return path


class Rows:
    """A source of a list; an exception in it is raised when it is read."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        row = self.rows[index]
        if isinstance(row, Exception):
            raise row
        return row


# ------------------------------------------------------------------------- texts


def test_report_text():
    assert report_text(Record("a")) == ""
    assert report_text(Record("a", findings="Clear.")) == "FINDINGS: Clear."
    assert report_text(Record("a", impression="Normal.")) == "IMPRESSION: Normal."
    both = Record("a", findings="Clear.", impression="Normal.")
    assert report_text(both) == "FINDINGS: Clear. IMPRESSION: Normal."
    assert report_text(dataclasses.replace(both, answer="Yes.")) == "Yes."


def test_captions_of():
    full = Record("a", None, "F.", "I.", ("c", "d"), labels=("Mass", "Edema"), answer="A.")
    assert captions_of(full) == ("c", "d")
    assert captions_of(dataclasses.replace(full, captions=())) == ("I.",)
    assert captions_of(dataclasses.replace(full, captions=(), impression="")) == ("F.",)
    assert captions_of(Record("a", labels=("Mass", "Edema"))) == ("Mass, Edema.",)
    assert captions_of(Record("a")) == ()


MIMIC_REPORT = """                                 WET READ: ___ 9:00 PM
 IMPRESSION: preliminary.
                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 INDICATION:  ___ year old woman with cough.  // ?pna

 COMPARISON:  ___.

 FINDINGS:

 The lungs are
 clear.  Heart: normal.

 IMPRESSION:

 1. No pneumonia.
 2. Stable.

 NOTIFICATION:  Telephone.
"""


def test_sections_of_a_mimic_report():
    findings, impression = split_report(MIMIC_REPORT)
    assert findings == "The lungs are clear. Heart: normal."
    assert impression == "1. No pneumonia. 2. Stable."


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ("", "")),
        ("Clear lungs.", ("", "")),
        ("FINDINGS: A. IMPRESSION: B.", ("A.", "B.")),
        ("IMPRESSION: B.", ("", "B.")),
        ("Findings: A.\nImpression : B.", ("A.", "B.")),
        ("FINDINGS AND IMPRESSION: A.", ("A.", "")),
        ("CONCLUSION: B.", ("", "B.")),
        ("FINDINGS: A.\nTECHNIQUE: T.\nFINDINGS: C.", ("A. C.", "")),
        ("FINDINGS: IMPRESSION:", ("", "")),
        ("A" * 100_000 + ":", ("", "")),
        (" " * 100_000 + "FINDINGS: A.", ("A.", "")),
    ],
)
def test_sections(text, expected):
    assert split_report(text) == expected


@given(st.text(st.characters(exclude_characters=":"), max_size=60), st.text(max_size=60))
@settings(max_examples=300, deadline=None)
def test_sections_are_read_back(findings, rest):
    impression = rest.replace(":", "")
    record = Record(
        "a", findings=" ".join(findings.split()), impression=" ".join(impression.split())
    )
    assert split_report(report_text(record)) == (record.findings, record.impression)
    split_report(rest)


# ------------------------------------------------------------------------- images


def test_record_image(tmp_path):
    file = png(tmp_path / "a.png")
    assert record_image(Record("a", file)).size == (40, 30)
    assert record_image(Record("a", file.read_bytes())).mode == "RGB"
    assert image_bytes(Record("a", file)) == file.read_bytes()
    assert image_bytes(Record("a")) is None
    with pytest.raises(DataError, match="row-7: expected an image"):
        record_image(Record("row-7"))
    with pytest.raises(DataError, match=r"row-7: .*b\.png: no such file"):
        record_image(Record("row-7", tmp_path / "b.png"))
    with pytest.raises(DataError, match=r"row-7: .*b\.png: cannot be read"):
        image_bytes(Record("row-7", tmp_path / "b.png"))


def test_shrunk(tmp_path):
    record = Record("a", png(tmp_path / "a.png"), findings="F.")
    assert shrunk(record, None) is record
    assert shrunk(record, 40).image is record.image
    small = shrunk(record, 24)
    assert small.findings == "F."
    assert isinstance(small.image, bytes)
    assert record_image(small).size == (24, 18)
    assert image_mode(small.image) == "L"
    color = Record("c", png(tmp_path / "c.png", mode="RGB").read_bytes())
    assert image_mode(shrunk(color, 20).image) == "L"
    Image.new("RGB", (40, 40), "red").save(tmp_path / "r.png")
    assert image_mode(shrunk(Record("r", tmp_path / "r.png"), 20).image) == "RGB"


def image_mode(data: bytes) -> str:
    return Image.open(io.BytesIO(data)).mode


# ------------------------------------------------------------------------- ArrayRecord


@given(RECORDS)
@settings(max_examples=200, deadline=None)
def test_encoding_roundtrip(record):
    assert decode_record(encode_record(record), "here") == record


@given(st.binary(max_size=80), st.integers(0, 60))
@settings(max_examples=600, deadline=None)
def test_foreign_bytes_are_a_record_or_an_error(data, length):
    for candidate in (data, struct.pack("<I", length) + data, struct.pack("<I", length) + b'{"k'):
        with contextlib.suppress(DataError):
            assert isinstance(decode_record(candidate, "here"), Record)


FIELDS = st.sampled_from([field.name for field in dataclasses.fields(Record)])
HEADERS = st.recursive(
    st.none() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(FIELDS, inner, max_size=4),
    max_leaves=4,
)


@given(HEADERS)
@settings(max_examples=200, deadline=None)
def test_foreign_headers(value):
    header = json.dumps(value).encode()
    with contextlib.suppress(DataError):
        decode_record(struct.pack("<I", len(header)) + header, "here")


@pytest.fixture
def records(tmp_path):
    splits = ("train", "test", "")
    return [
        Record(f"k{i}", png(tmp_path / f"{i}.png", (30 + i, 30)), f"F{i}.", split=splits[i % 3])
        for i in range(12)
    ]


def test_write_and_read(tmp_path, records):
    out = tmp_path / "out"
    assert write_array_records(records, out, shard_bytes=300) == 12
    assert len(list(out.glob("*.array_record"))) > 3
    source = ArrayRecordSource(out)
    assert isinstance(source, RecordSource)
    by_key = {record.key: record for record in source}
    assert len(by_key) == len(source) == 12
    for record in records:
        expected = dataclasses.replace(record, image=record.image.read_bytes())
        assert by_key[record.key] == expected
    for split in ("train", "test", ""):
        part = ArrayRecordSource(out, split)
        assert [r.key for r in part] == [r.key for r in records if r.split == split]
        assert part[-1] == part[len(part) - 1]
    with pytest.raises(DataError, match=r"expected split 'dev', found \['', 'test', 'train'\]"):
        ArrayRecordSource(out, "dev")
    with pytest.raises(IndexError):
        source[12]


def test_sources_travel_to_workers(tmp_path, records):
    write_array_records(records, tmp_path / "out")
    source = ArrayRecordSource(tmp_path / "out")
    keys = [record.key for record in source]
    copied = pickle.loads(pickle.dumps(source))
    assert [record.key for record in copied] == keys
    with ThreadPoolExecutor(4) as pool:
        fresh = pickle.loads(pickle.dumps(source))
        assert [r.key for r in pool.map(fresh.__getitem__, range(12))] == keys
    assert [r.key for r in Subset(source, [3, 1])] == [keys[3], keys[1]]


def test_written_whole_or_not_at_all(tmp_path, records):
    def failing():
        yield from records[:3]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_array_records(failing(), tmp_path / "out")
    with pytest.raises(DataError, match="expected records"):
        write_array_records([], tmp_path / "out")
    with pytest.raises(DataError, match=r"missing: .*gone\.png"):
        write_array_records([Record("missing", tmp_path / "gone.png")], tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir() if p.suffix != ".png"] == []
    write_array_records(records, tmp_path / "out")
    with pytest.raises(UniXError, match="exists already"):
        write_array_records(records, tmp_path / "out")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk(tmp_path, records, monkeypatch):
    """The library's writer meets a device without space."""
    real = array_record_module.ArrayRecordWriter
    monkeypatch.setattr(
        array_record_module, "ArrayRecordWriter", lambda path, options: real("/dev/full", options)
    )
    with pytest.raises(DataError, match="cannot be written"):
        write_array_records(records, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def broken(directory: Path, how: str) -> None:
    index = directory / INDEX
    document = json.loads(index.read_text())
    shard = directory / document["shards"][0]["file"]
    if how == "no index":
        index.unlink()
    elif how == "no json":
        index.write_text("{")
    elif how == "format":
        index.write_text(json.dumps(document | {"format": 2}))
    elif how == "no shards":
        index.write_text(json.dumps(document | {"shards": []}))
    elif how == "bad shard":
        index.write_text(
            json.dumps(document | {"shards": [{"file": "../x", "split": "", "records": 1}]})
        )
    elif how == "no shard":
        shard.unlink()
    elif how == "truncated":
        os.truncate(shard, shard.stat().st_size // 2)
    elif how == "fewer":
        document["shards"][0]["records"] += 1
        index.write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("no index", "records.json: no such file"),
        ("no json", "records.json: expected JSON"),
        ("format", "expected format 1"),
        ("no shards", "expected a list of shards"),
        ("bad shard", "expected file, split, records"),
        ("no shard", "array_record: no such file"),
        ("truncated", "train-00000.array_record: "),
        ("fewer", "expected 5 records, found 4"),
    ],
)
def test_broken_directories(tmp_path, records, how, expected):
    write_array_records(records, tmp_path / "out")
    broken(tmp_path / "out", how)
    with pytest.raises(DataError, match=expected):
        ArrayRecordSource(tmp_path / "out")


def test_a_flipped_byte_is_that_records_error(tmp_path):
    """A damaged group raises for its record; the others are still read."""
    records = [Record(f"k{i}", os.urandom(70_000), split="train") for i in range(3)]
    write_array_records(records, tmp_path / "out")
    shard = tmp_path / "out" / "train-00000.array_record"
    data = bytearray(shard.read_bytes())
    middle = data.index(records[1].image[1000:1020])
    data[middle] ^= 0xFF
    shard.write_bytes(data)
    source = ArrayRecordSource(tmp_path / "out")
    assert source[0].key == "k0"
    with pytest.raises(DataError, match="record 1"):
        source[1]


# ------------------------------------------------------------------------- preparation


def test_prepared_in_order_with_broken_rows_left_out(records):
    rows = [*records[:3], DataError("row 3"), *records[4:]]
    seen = []
    prepared = PreparedRecords(Rows(rows), 24, 3, 0.1, lambda: seen.append(1))
    keys = [record.key for record in prepared]
    assert keys == [r.key for r in records if r.key != "k3"]
    assert prepared.broken == ["row 3"]
    assert len(seen) == 12
    with pytest.raises(DataError, match=r"at most 5.00% of 12 rows to be broken, found 1 .*row 3"):
        list(PreparedRecords(Rows(rows), max_broken=0.05))

"""Every format: what is read, and how each broken row or file is named."""

import contextlib
import json
import pickle
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.source_files import error_of, lines_file, picture_bytes, read_or_error
from unix_jax.data.records import Record, RecordSource, record_image, report_text
from unix_jax.data.sources import open_source, overlap, parse_spec
from unix_jax.data.sources.array_records import write_array_records
from unix_jax.data.sources.conversations import ConversationsSource
from unix_jax.data.sources.manifest import ManifestSource
from unix_jax.data.sources.parquet import ParquetSource
from unix_jax.data.sources.tfds_builder import write_tfds
from unix_jax.errors import DataError

EXAMPLES = Path(__file__).parents[2] / "examples" / "cxr"


# ------------------------------------------------------------------------- specs


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("manifest:a/b", ("manifest", "a/b", {})),
        ("conversations:f.jsonl?images=x y", ("conversations", "f.jsonl", {"images": "x y"})),
        ("parquet:/d/part-?.parquet", ("parquet", "/d/part-?.parquet", {})),
        ("parquet:/d/p?.parquet?images=/i", ("parquet", "/d/p?.parquet", {"images": "/i"})),
        ("mimic:/m?views=PA,AP&reports=%26", ("mimic", "/m", {"views": "PA,AP", "reports": "&"})),
        ("tfds:unix_records:1.0.0?data_dir=/d", ("tfds", "unix_records:1.0.0", {"data_dir": "/d"})),
    ],
)  # fmt: skip
def test_specs(spec, expected):
    assert parse_spec(spec) == expected


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("", "expected KIND:PATH"),
        ("examples/cxr", "manifest, csv, conversations, parquet, hf, mimic, array_record, tfds"),
        ("tsv:x", "found 'tsv:x'"),
        ("manifest:x?images=a&images=b", "expected images=... once"),
        ("manifest:", "expected KIND:PATH"),
        ("manifest:x?image=y", "expected images=..., found 'image=y'"),
        ("manifest:x?images=", "found 'images='"),
        ("array_record:x?images=y", "expected no options"),
        ("manifest:/nowhere", "/nowhere: cannot be read"),
        ("conversations:/nowhere", "/nowhere: cannot be read"),
        ("parquet:/nowhere", "/nowhere: expected Parquet files"),
        ("mimic:/nowhere", "/nowhere: expected mimic-cxr-2.0.0-split.csv"),
        ("array_record:/nowhere", "records.json: no such file"),
    ],
)
def test_specs_that_open_nothing(spec, expected):
    with pytest.raises(DataError) as caught:
        open_source(spec)
    assert expected in str(caught.value)


# ------------------------------------------------------------------------- manifest


def test_the_bundled_sample_set():
    counts = {split: len(open_source(f"manifest:{EXAMPLES}", split)) for split in
              ("train", "validate", "test")}  # fmt: skip
    assert counts == {"train": 248, "validate": 25, "test": 34}
    records = list(open_source(f"manifest:{EXAMPLES}"))
    assert len({record.key for record in records}) == len(records) == 307
    assert all(report_text(record) and record.labels and record.view for record in records)
    patients = [{r.patient for r in records if r.split == split} for split in counts]
    assert sum(map(len, patients)) == len(set.union(*patients))
    assert max(record_image(record).width for record in records[:5]) <= 320
    assert sum(f.stat().st_size for f in EXAMPLES.rglob("*") if f.is_file()) < 7e6


def test_manifest(tmp_path):
    rows = [
        {"image": "images/a.png", "findings": " F. ", "impression": "I.", "labels": ["Mass", ""],
         "view": "PA", "split": "train", "patient": 7, "license": {"any": 1}},
        "",
        {"id": "CXR1", "findings": None, "split": "test"},
        {"image": "/abs/b.png", "captions": ["c", "d"], "key": "named", "split": "train"},
        {"findings": "alone"},
    ]  # fmt: skip
    lines_file(tmp_path / "manifest.jsonl", rows)
    source = ManifestSource(tmp_path)
    assert isinstance(source, RecordSource)
    assert list(source) == [
        Record("images/a.png", tmp_path / "images/a.png", "F.", "I.", view="PA", patient="7",
               split="train", labels=("Mass",)),
        Record("CXR1", split="test"),
        Record("named", Path("/abs/b.png"), captions=("c", "d"), split="train"),
        Record("manifest.jsonl:5", findings="alone"),
    ]  # fmt: skip
    assert [r.key for r in ManifestSource(tmp_path, "train")] == ["images/a.png", "named"]
    assert ManifestSource(tmp_path / "manifest.jsonl", image_root="/i")[0].image == Path(
        "/i/images/a.png"
    )
    assert list(pickle.loads(pickle.dumps(source))) == list(source)
    assert source[-1].findings == "alone"
    with pytest.raises(IndexError):
        source[4]
    with pytest.raises(
        DataError, match=r"expected rows of split 'dev', found splits \['test', 'train'"
    ):
        ManifestSource(tmp_path, "dev")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ('{"image": "a.png"', "expected JSON"),
        ("[1]", "expected a JSON object, found list"),
        ("[" * 100_000, "expected JSON, found: maximum recursion depth"),
        ("\ufffd", "expected JSON"),
        ({"image": 3}, "image: expected a string, found 3"),
        ({"image": ""}, "image: expected a path, found ''"),
        ({"image": "a\0b"}, "image: expected a path"),
        ({"image": "a", "findings": ["x"]}, "findings: expected a string, found ['x']"),
        ({"image": "a", "split": True}, "split: expected a string, found True"),
        ({"image": "a", "labels": "Mass"}, "labels: expected a list of strings, found 'Mass'"),
        ({"image": "a", "captions": ["x", 1]}, "captions[1]: expected a string, found 1"),
        ('{"image": "a", "impression": "\\ud800"}', "impression: expected Unicode"),
    ],
)
def test_broken_manifest_rows(tmp_path, row, expected):
    good = {"image": "a.png", "split": "train"}
    file = lines_file(tmp_path / "manifest.jsonl", [good, row, good])
    source = ManifestSource(tmp_path)
    message = error_of(source, 1)
    assert message.startswith(f"{file}: line 2")
    assert expected in message
    assert source[0].key == source[2].key == "a.png"


def test_a_line_that_cannot_be_parsed_is_in_every_split(tmp_path):
    lines_file(tmp_path / "manifest.jsonl", [{"id": "a", "split": "train"}, "{"])
    source = ManifestSource(tmp_path, "train")
    assert len(source) == 2
    assert "line 2" in error_of(source, 1)


def test_missing_files(tmp_path):
    with pytest.raises(DataError, match=r"manifest\.jsonl: cannot be read: No such file"):
        ManifestSource(tmp_path / "manifest.jsonl")
    with pytest.raises(
        DataError, match=r"manifest: cannot be read|manifest\.jsonl: cannot be read"
    ):
        ManifestSource(tmp_path)
    lines_file(tmp_path / "manifest.jsonl", ["", " "])
    with pytest.raises(DataError, match=r"manifest\.jsonl: expected rows, found none"):
        ManifestSource(tmp_path)
    lines_file(tmp_path / "manifest.jsonl", [{"image": "gone.png"}])
    with pytest.raises(DataError, match=r"gone\.png: .*gone\.png: no such file"):
        record_image(ManifestSource(tmp_path)[0])


def test_a_file_that_vanishes(tmp_path):
    file = lines_file(tmp_path / "manifest.jsonl", [{"image": "a"}])
    source = ManifestSource(tmp_path)
    file.unlink()
    assert "cannot be read" in error_of(source, 0)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=4,
)
NAMES = ("image", "findings", "impression", "captions", "labels", "view", "patient", "split", "id",
         "key", "conversations")  # fmt: skip
TURNS = st.lists(
    st.fixed_dictionaries(
        {"from": st.sampled_from(["human", "gpt", "system"]) | JSON_VALUES,
         "value": st.sampled_from(["<image>Go", "<image>", "FINDINGS: A."]) | JSON_VALUES}
    ),
    max_size=3,
)  # fmt: skip
ROWS = st.dictionaries(st.sampled_from(NAMES), JSON_VALUES | TURNS) | st.fixed_dictionaries(
    {"conversations": TURNS, "image": st.just("a.png")}
)


LINES = ROWS.map(json.dumps) | JSON_VALUES.map(json.dumps) | st.text(max_size=12)


@given(st.lists(LINES, min_size=1, max_size=4))
@settings(max_examples=250, deadline=None)
def test_any_line_is_a_record_or_an_error(tmp_path_factory, lines):
    file = tmp_path_factory.getbasetemp() / "fuzz.jsonl"
    file.write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))
    for kind in (ManifestSource, ConversationsSource):
        for split in (None, "train"):
            with contextlib.suppress(DataError):
                source = kind(file, split)
                for index in range(len(source)):
                    message = read_or_error(source, index)
                    assert message is None or message.startswith(f"{file}: line ")


# ------------------------------------------------------------------------- conversations


def talk(question: str, answer: str, **fields) -> dict:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"image": "a.png", "conversations": turns, **fields}


def test_conversations(tmp_path):
    rows = [
        talk("<image>\nWrite the report.", "FINDINGS: Clear.\nIMPRESSION: Normal.", id=3),
        talk("Is there\n<image>\nan effusion?", "Yes.", image=["b.png"], split="test"),
        talk("Hello", "Hi", image=None),
    ]
    file = lines_file(tmp_path / "c.jsonl", rows)
    first, second, third = ConversationsSource(file)
    assert first == Record(
        "3", tmp_path / "a.png", "Clear.", "Normal.", prompt="Write the report.",
        answer="FINDINGS: Clear.\nIMPRESSION: Normal.",
    )  # fmt: skip
    assert report_text(first) == first.answer
    assert (second.prompt, second.key, second.findings) == ("Is there an effusion?", "b.png", "")
    assert (third.image, third.key) == (None, "c.jsonl:3")
    assert open_source(f"conversations:{file}?images=/i")[0].image == Path("/i/a.png")
    assert open_source(f"conversations:{file}", image_root="/j")[0].image == Path("/j/a.png")
    assert [r.answer for r in ConversationsSource(file, "test")] == ["Yes."]


TWO_TURNS = talk("<image>a", "b")["conversations"] * 2


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"image": "a.png"}, "conversations: expected a list of {from, value}, found None"),
        ({"image": "a.png", "conversations": [3]}, "expected a list of {from, value}"),
        ({"image": "a.png", "conversations": []}, "expected from human, then gpt, found []"),
        (
            {"image": "a.png", "conversations": TWO_TURNS},
            "expected 1 <image> (one for each image), found 2",
        ),
        (
            {"image": "a.png", "conversations": TWO_TURNS[:3]},
            "found ['human', 'gpt', 'human']; each question has an answer",
        ),
        (
            {"image": ["a"], "conversations": [*TWO_TURNS[:2], *talk(" ", "b")["conversations"]]},
            "conversations: expected a question, found an empty one",
        ),
        (talk("<image>a", "b", image=["a", "b"]), "expected 2 <image> (one for each image), fou"),
        (talk("<image><image>a", "b", image=["a", 3]), "image: expected a string, found 3"),
        (talk("a", "b"), "expected 1 <image> (one for each image), found 0"),
        (talk("<image><image>", "b"), "found 2"),
        (talk("<image>", "b", image=None), "expected 0 <image>"),
        (talk("<image>", " "), "expected an answer, found an empty one"),
        (talk("<image>", "<image>"), "expected no <image> in the answer"),
        (talk("<image>", 3.5), "value: expected a string, found 3.5"),
    ],
)
def test_broken_conversations(tmp_path, row, expected):
    file = lines_file(tmp_path / "c.jsonl", [talk("<image>a", "b"), row])
    source = ConversationsSource(file)
    assert source[0].answer == "b"
    message = error_of(source, 1)
    assert message.startswith(f"{file}: line 2: ")
    assert expected in message


# ------------------------------------------------------------------------- parquet


def parquet_file(path: Path, columns: dict, row_group_size=2) -> Path:
    pq.write_table(pa.table(columns), path, row_group_size=row_group_size)
    return path


def test_parquet_bytes_and_json_captions(tmp_path):
    data = picture_bytes()
    captions = ['["a", "b"]', '{"long": "c", "short": "d"}', '"e"', "[]", None]
    parquet_file(tmp_path / "p-0.parquet", {"image": [data] * 5, "captions": captions})
    parquet_file(
        tmp_path / "p-1.parquet",
        {
            "image": [{"bytes": data, "path": "x.png"}, {"bytes": None, "path": "y.png"}, None],
            "captions": [["f"], ["g", "h"], None],
            "key": ["k0", "k1", None],
            "view": ["PA", None, "AP"],
            "labels": [["Mass"], [], None],
        },
    )
    source = ParquetSource(tmp_path)
    assert len(source) == 8
    assert [r.captions for r in source] == [
        ("a", "b"), ("c", "d"), ("e",), (), (), ("f",), ("g", "h"), (),
    ]  # fmt: skip
    assert source[4].key == "p-0.parquet:4"
    assert record_image(source[0]).size == (32, 24)
    assert source[5] == Record("k0", data, captions=("f",), view="PA", labels=("Mass",))
    assert source[6].image == tmp_path / "y.png"
    assert source[7].image is None
    assert source[7].key == "p-1.parquet:2"
    # Any order, single files, patterns, and a copy give the same.
    keys = [r.key for r in source]
    assert [source[i].key for i in reversed(range(8))] == keys[::-1]
    assert [r.key for r in ParquetSource(f"{tmp_path}/p-?.parquet")] == keys
    assert len(ParquetSource(tmp_path / "p-1.parquet")) == 3
    assert [r.key for r in pickle.loads(pickle.dumps(source))] == keys


def test_parquet_splits(tmp_path):
    splits = ["train", "test", "train", None, "test"]
    for name in "ab":
        columns = {"image": ["x.png"] * 5, "captions": ["[]"] * 5, "split": splits,
                   "key": [f"{name}{i}" for i in range(5)]}  # fmt: skip
        parquet_file(tmp_path / f"{name}.parquet", columns)
    source = open_source(f"parquet:{tmp_path}?images=/i", "test")
    assert [r.key for r in source] == ["a1", "a4", "b1", "b4"]
    assert source[0].image == Path("/i/x.png")
    with pytest.raises(DataError, match="expected rows of split 'dev'"):
        ParquetSource(tmp_path, "dev")


def test_broken_parquet(tmp_path):
    good = {"image": [b"x", b"y", b"z"], "captions": ["[]", "{", "[1]"]}
    file = parquet_file(tmp_path / "p.parquet", good)
    source = ParquetSource(file)
    assert source[0].captions == ()
    assert error_of(source, 1).startswith(f"{file}: row 1: captions: expected JSON")
    assert f"{file}: row 2: captions[0]: expected a string, found 1" in error_of(source, 2)
    numbers = parquet_file(tmp_path / "n.parquet", {"image": [7], "captions": [[1.5]]})
    assert "row 0: " in error_of(ParquetSource(numbers), 0)
    other = parquet_file(tmp_path / "other.parquet", {"image": [b"x"], "text": ["a"]})
    with pytest.raises(
        DataError, match=r"other\.parquet: expected the columns .*'captions'.* found"
    ):
        ParquetSource(other)
    text = tmp_path / "text.parquet"
    text.write_text("no parquet")
    with pytest.raises(DataError, match=r"text\.parquet: not a Parquet file"):
        ParquetSource(text)
    nothing = {"image": pa.array([], pa.binary()), "captions": pa.array([], pa.string())}
    empty = parquet_file(tmp_path / "e.parquet", nothing)
    with pytest.raises(DataError, match="expected rows, found none"):
        ParquetSource(empty)


def test_damaged_parquet_pages(tmp_path):
    columns = {"image": [bytes(5000)] * 6, "captions": ["[]"] * 6}
    file = parquet_file(tmp_path / "p.parquet", columns)
    data = bytearray(file.read_bytes())
    data[4:60] = b"\xff" * 56
    file.write_bytes(data)
    source = ParquetSource(file)
    assert "p.parquet: row 0: cannot be read" in error_of(source, 0)
    assert source[5].captions == ()


# ------------------------------------------------------------------------- the original's list


def test_test_data_of_the_original(tmp_path):
    def item(question: str, answer: str, **fields) -> dict:
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return {"messages": messages, "images": ["files/p10/a.jpg"], **fields}

    file = tmp_path / "test_data.json"
    items = [
        item("<image>What is seen?", "FINDINGS: A. IMPRESSION: B."),
        item("<image>x", "y", images=["a", "b"]),
        item("<image>x", "y", image="a"),
        {"messages": [{"role": "assistant", "content": "y"}], "images": []},
        3,
    ]
    file.write_text(json.dumps(items))
    for split in (None, "test", "train"):
        source = open_source(f"conversations:{file}", split)
        assert len(source) == 5
    assert source[0] == Record(
        "files/p10/a.jpg", tmp_path / "files/p10/a.jpg", "A.", "B.", prompt="What is seen?",
        answer="FINDINGS: A. IMPRESSION: B.",
    )  # fmt: skip
    for index, expected in enumerate(
        (
            "item 2: question: expected 2 <image> (one for each image), found 1",
            "item 3: expected image or images, found both",
            "item 4: messages: expected role user, then assistant, found ['assistant']",
            "item 5: expected a JSON object, found int",
        ),
        1,
    ):
        assert expected in error_of(source, index)
    for text, expected in (("{}", "expected a JSON list, found dict"), ("[", "expected JSON")):
        file.write_text(text)
        with pytest.raises(DataError, match=expected):
            open_source(f"conversations:{file}")


def test_a_file_without_splits_belongs_to_every_split(tmp_path):
    """The same rule in every kind of source, and "" is all records."""
    lines_file(tmp_path / "manifest.jsonl", [{"image": "a.png"}])
    (tmp_path / "a.png").write_bytes(picture_bytes())
    parquet_file(tmp_path / "p.parquet", {"image": [picture_bytes()], "captions": ["[]"]})
    lines_file(tmp_path / "c.jsonl", [talk("<image>a", "b")])
    (tmp_path / "t.csv").write_text("image\na.png\n")
    write_array_records(open_source(f"manifest:{tmp_path}"), tmp_path / "records")
    write_tfds(open_source(f"manifest:{tmp_path}"), tmp_path / "tfds")
    for spec in (
        f"manifest:{tmp_path}", f"parquet:{tmp_path}/p.parquet",
        f"conversations:{tmp_path}/c.jsonl", f"csv:{tmp_path}/t.csv",
        f"array_record:{tmp_path}/records", f"tfds:unix_records?data_dir={tmp_path}/tfds",
    ):  # fmt: skip
        train = open_source(spec, "train")
        assert [len(open_source(spec, split)) for split in (None, "", "dev")] == [1, 1, 1]
        assert overlap(spec, "train", train, spec, "validate")
        assert train[0].key
    bundled = f"manifest:{EXAMPLES}"
    train = open_source(bundled, "train")
    assert not overlap(bundled, "train", train, bundled, "validate")
    assert overlap(bundled, "train", train, f"{bundled}/../cxr", "")
    assert not overlap(bundled, "", train, f"manifest:{tmp_path}", "")

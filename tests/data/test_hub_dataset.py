"""`hf:OWNER/NAME`: Parquet files of a data set on a stub of the hub, and the columns of Parquet."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from support import hub_server
from unix_jax.data.sources import open_source, overlap, parse_spec
from unix_jax.data.sources.hub_dataset import parquet_files, split_of
from unix_jax.errors import DataError, StorageError


def picture(value):
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 4), value, np.uint8)).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": f"{value}.png"}


def write(file, first, count, **columns):
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = {"image": [picture(first + i) for i in range(count)]} | {
        name: [f"{text} {first + i}" for i in range(count)] for name, text in columns.items()
    }
    pq.write_table(pa.table(rows), file)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    data = tmp_path / "hub" / "datasets" / "o" / "xrays"
    write(data / "data" / "train-00000-of-00002.parquet", 0, 3, text="FINDINGS: clear lungs")
    write(data / "data" / "train-00001-of-00002.parquet", 3, 2, text="FINDINGS: clear lungs")
    write(data / "data" / "validation-00000-of-00001.parquet", 5, 1, text="Large heart")
    (data / "README.md").write_text("# x")
    with hub_server.serving(tmp_path / "hub") as server:
        hub_server.use(monkeypatch, server.url, tmp_path / "cache")
        yield server


def test_a_split_of_the_hub(hub, tmp_path, monkeypatch, capsys):
    spec = "hf:o/xrays?report=text"
    source = open_source(spec, "train")
    assert len(source) == 5
    assert source[4].findings == "clear lungs 4"
    assert source[4].key == "train-00001-of-00002.parquet:1"
    assert Image.open(io.BytesIO(source[4].image)).getpixel((0, 0)) == 4
    assert list(source.keys()) == [record.key for record in source]
    assert "hf://datasets/o/xrays: downloading 2 files" in capsys.readouterr().err
    assert not [path for _, path in hub.requests if path.endswith("1.parquet") and "valid" in path]
    assert len(open_source(spec, "validate")) == 1
    assert len(open_source(f"{spec}&split=validation", "train")) == 1
    assert len(open_source(spec)) == 6
    hub_server.use(monkeypatch, hub.url, tmp_path / "cache", offline=True)
    assert len(open_source(spec, "train")) == 5


def test_the_command_line(hub, tmp_path):
    done = hub_server.command(
        ["data", "inspect", "hf:o/xrays?report=text", "--split", "validate", "--json"],
        hub.url,
        tmp_path / "cache",
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["records"] == 1


def test_what_is_not_there(hub, tmp_path):
    for spec, split, error, match in (
        ("hf:xrays", None, DataError, r"expected OWNER/NAME or OWNER/NAME@REVISION, found 'xrays'"),
        ("hf:o/none", None, StorageError, r"no dataset repository http.*/datasets/o/none; "),
        ("hf:o/xrays@v7", None, StorageError, "has no revision 'v7'"),
        ("hf:o/xrays?report=text", "test", StorageError,
         r"expected files of split 'test', found splits \['train', 'validate'\]"),
        ("hf:o/xrays?config=a", None, StorageError, "config: expected one of none, found 'a'"),
        ("hf:o/xrays", "train", DataError,
         r"train-00000-of-00002\.parquet: expected the columns 'image' and one of \['captions'.*"
         r"found \['image', 'text'\]; options such as image=COLUMN&report=COLUMN name others"),
        ("hf:o/xrays?report=words", "train", DataError,
         r"report=words: expected one of its columns, \['image', 'text'\]"),
        ("hf:o/xrays?images=/d", None, DataError, "expected .*config=... .*found 'images=/d'"),
    ):  # fmt: skip
        with pytest.raises(error, match=match) as found:
            open_source(spec, split)
        assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("file", "split"),
    [
        ("data/train-00000-of-00001.parquet", "train"),
        ("default/validation/0000.parquet", "validate"),
        ("test.parquet", "test"),
        ("dev/part-3.parquet", "validate"),
        ("data/pretrained-0.parquet", None),
        ("0000.parquet", None),
    ],
)
def test_the_split_that_a_name_tells(file, split):
    assert split_of(file) == split


def test_configurations():
    names = ["a/train/0.parquet", "a/test/0.parquet", "b/train/0.parquet", "README.md"]
    assert parquet_files(names, "train", "b") == ["b/train/0.parquet"]
    with pytest.raises(DataError, match="expected config=NAME, one of a, b, found none"):
        parquet_files(names, "train")
    with pytest.raises(DataError, match=r"expected files \*\.parquet, found README\.md"):
        parquet_files(["README.md"])
    assert parquet_files(["x.parquet", "y.parquet"], "train") == ["x.parquet", "y.parquet"]


def test_splits_of_a_column_where_no_name_tells_one(hub, tmp_path):
    data = tmp_path / "hub" / "datasets" / "o" / "plain"
    rows = {"image": [picture(i) for i in range(3)], "captions": [["a"]] * 3,
            "split": ["train", "test", "train"]}  # fmt: skip
    data.mkdir(parents=True)
    pq.write_table(pa.table(rows), data / "all.parquet")
    assert len(open_source("hf:o/plain", "train")) == 2
    with pytest.raises(DataError, match=r"expected rows of split 'validate', found splits"):
        open_source("hf:o/plain", "validate")


def test_overlap(hub):
    train = open_source("hf:o/xrays?report=text", "train")
    same = ("hf:o/xrays?report=text", "train", train)
    assert overlap(*same, "hf:o/xrays?report=text&split=training", "validate")
    assert not overlap(*same, "hf:o/xrays?report=text", "validate")
    assert not overlap(*same, "hf:o/other?report=text", "train")


def test_columns_of_local_parquet(tmp_path):
    write(tmp_path / "p.parquet", 0, 2, note="IMPRESSION: no change", id="k", fold="train")
    spec = f"parquet:{tmp_path}?report=note&key=id&split=fold"
    assert parse_spec(spec)[2] == {"report": "note", "key": "id", "split": "fold"}
    source = open_source(spec)
    assert (source[1].impression, source[1].key, source[1].split) == (
        "no change 1",
        "k 1",
        "train 1",
    )
    assert list(source.keys()) == ["k 0", "k 1"]
    assert len(open_source(spec, "train 0")) == 1

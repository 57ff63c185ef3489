"""The tensorflow-datasets builder, and reading through `tfds.data_source`; without TensorFlow."""

import dataclasses
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import tensorflow_datasets as tfds
from PIL import Image

from unix_jax.data.records import Record, RecordSource, record_image
from unix_jax.data.sources import open_source
from unix_jax.data.sources.tfds_builder import UnixRecords, from_example, to_example, write_tfds
from unix_jax.errors import DataError

EXAMPLES = Path(__file__).parents[2] / "examples" / "cxr"


class Rows(list):
    """A source of a list; an exception in it is raised when it is read."""

    def __getitem__(self, index):
        row = super().__getitem__(index)
        if isinstance(row, Exception):
            raise row
        return row


@pytest.fixture
def rows(tmp_path):
    Image.new("L", (40, 30), 9).save(tmp_path / "a.png")
    image = tmp_path / "a.png"
    return Rows(
        [
            Record("a", image, "Füßé.", "I.", ("c", "d"), "PA", "p1", "train", ("Mass",), "P", "A"),
            Record("b", image.read_bytes(), split="train"),
            Record("c", None, findings="alone", split="test"),
        ]
    )


def in_memory(record: Record) -> Record:
    image = record.image.read_bytes() if isinstance(record.image, Path) else record.image
    return dataclasses.replace(record, image=image)


def test_write_and_read(tmp_path, rows):
    assert write_tfds(rows, tmp_path / "out") == (3, [], [])
    spec = f"tfds:unix_records?data_dir={tmp_path / 'out'}"
    source = open_source(spec, "train")
    assert isinstance(source, RecordSource)
    assert list(source) == [in_memory(rows[0]), in_memory(rows[1])]
    assert list(open_source(spec, "test")) == [rows[2]]
    assert {record.key for record in open_source(spec)} == {"a", "b", "c"}
    assert len(open_source(spec, "train[:1]")) == 1
    assert list(pickle.loads(pickle.dumps(source))) == list(source)
    with ThreadPoolExecutor(4) as pool:
        fresh = pickle.loads(pickle.dumps(open_source(spec)))
        assert len({r.key for r in pool.map(fresh.__getitem__, range(3))}) == 3
    with pytest.raises(IndexError):
        source[2]


def test_read_without_our_builder(tmp_path, rows):
    write_tfds(rows, tmp_path / "out")
    builder = tfds.builder_from_directory(tmp_path / "out" / "unix_records" / "1.0.0")
    data = builder.as_data_source("train")
    assert from_example(data[0]) == in_memory(rows[0])
    assert builder.info.splits["test"].num_examples == 1


def test_records_without_a_split(tmp_path):
    write_tfds(Rows([Record("a", b"x"), Record("b")]), tmp_path)
    source = open_source(f"tfds:unix_records?data_dir={tmp_path}")
    assert list(source) == [Record("a", b"x"), Record("b")]
    assert len(open_source(f"tfds:unix_records?data_dir={tmp_path}", "records")) == 2


def test_examples_are_records():
    record = Record("a", b"x", "F", "I", ("c",), "PA", "p", "s", ("l",), "P", "A")
    assert from_example(to_example(record)) == record


def test_the_builder_takes_a_spec_and_shrinks(tmp_path):
    builder = UnixRecords(source=f"manifest:{EXAMPLES}", max_side=64, workers=2, data_dir=tmp_path)
    builder.download_and_prepare()
    assert {name: info.num_examples for name, info in builder.info.splits.items()} == {
        "train": 248, "validate": 25, "test": 34,
    }  # fmt: skip
    source = open_source(f"tfds:unix_records?data_dir={tmp_path}", "test")
    assert max(record_image(source[3]).size) == 64
    assert source[3].key == open_source(f"manifest:{EXAMPLES}", "test")[3].key


def test_broken_rows_are_left_out_and_named(tmp_path, rows):
    rows.insert(1, DataError("row 1 is broken"))
    rows.append(Record("gone", tmp_path / "gone.png", split="test"))
    with pytest.raises(DataError, match="row 1 is broken"):
        write_tfds(rows, tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.array_record*"))
    count, broken, _ = write_tfds(rows, tmp_path / "out", max_broken=0.5)
    assert count == 3
    assert sorted(message.split(":")[0] for message in broken) == ["gone", "row 1 is broken"]


def test_errors(tmp_path, rows):
    write_tfds(rows, tmp_path / "out")
    with pytest.raises(DataError, match="exists already"):
        write_tfds(rows, tmp_path / "out")
    with pytest.raises(DataError, match="found none that can be read: broken"):
        write_tfds(Rows([DataError("broken")]), tmp_path / "other")
    spec = f"tfds:unix_records?data_dir={tmp_path / 'out'}"
    with pytest.raises(DataError, match="split dev"):
        open_source(spec, "dev")
    with pytest.raises(DataError, match="tfds:nowhere"):
        open_source(f"tfds:nowhere?data_dir={tmp_path / 'out'}")
    with pytest.raises(DataError, match="tfds:unix_records"):
        open_source(f"tfds:unix_records?data_dir={tmp_path / 'empty'}")
    assert not (tmp_path / "empty").exists()


def test_no_tensorflow_is_imported(tmp_path):
    code = (
        "import sys\n"
        "from unix_jax.data.sources import open_source\n"
        "from unix_jax.data.sources.tfds_builder import write_tfds\n"
        f"source = open_source('manifest:{EXAMPLES}', 'validate')\n"
        f"write_tfds(source, r'{tmp_path}')\n"
        f"first = open_source(r'tfds:unix_records?data_dir={tmp_path}', 'validate')[0]\n"
        "print(first.findings == source[0].findings != '', 'tensorflow' in sys.modules)\n"
    )
    started = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert started.stdout.splitlines()[-1:] == ["True False"], started.stderr

"""The fingerprint of a source: of the keys in their order, whatever its format."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unix_jax.data.fingerprint import KeyedSource, difference, fingerprint
from unix_jax.data.records import Record
from unix_jax.data.sources import open_source
from unix_jax.data.sources.array_records import ArrayRecordSource, write_array_records
from unix_jax.errors import DataError


class Keyed:
    def __init__(self, keys):
        self._keys = keys

    def __len__(self):
        return len(self._keys)

    def __getitem__(self, index):
        raise DataError("not read")

    def keys(self):
        return iter(self._keys)


class Read:
    """A source that has no `keys`."""

    def __init__(self, keys):
        self._keys, self.read = keys, []

    def __len__(self):
        return len(self._keys)

    def __getitem__(self, index):
        self.read.append(index)
        if self._keys[index] == "broken":
            raise DataError("broken")
        return Record(self._keys[index])


@given(st.lists(st.text(), min_size=1), st.lists(st.text(), min_size=1))
def test_equal_for_equal_keys_alone(one, other):
    first, second = fingerprint(Keyed(one)), fingerprint(Keyed(other))
    assert (difference(first, second) == "") == (one == other)
    assert json.loads(json.dumps(first)) == first


def test_of_a_source_without_keys_a_few_records_are_read():
    keys = [str(i) for i in range(100_000)]
    source = Read(keys)
    found = fingerprint(source)
    assert len(source.read) == 256
    assert (found["first"], found["last"]) == ("0", "99999")
    assert difference(found, fingerprint(Read(keys[::-1]))).startswith(
        "the 100000 records differ, or are in another order; the first was '0' and is '99999'"
    )
    few = fingerprint(Read(["a", "broken", "b"]))
    assert few["records"] == 3
    assert few["last"] == "b"


def agrees(source):
    """The keys of a source are those of its records."""
    assert isinstance(source, KeyedSource)
    assert list(source.keys()) == [source[i].key for i in range(len(source))]
    return fingerprint(source)


@pytest.mark.parametrize("split", [None, "train"])
def test_manifest(tmp_path, split):
    rows = [
        {"image": "a.png", "split": "train"}, {"id": "b", "split": "test"}, {"split": "train"},
        {"key": "c", "image": "d.png", "split": "train"},
    ]  # fmt: skip
    lines = [json.dumps(row) for row in rows]
    file = tmp_path / "manifest.jsonl"

    def found(lines):
        file.write_text("\n\n".join(lines) + "\n")
        return open_source(f"manifest:{tmp_path}", split)

    first, count = agrees(found(lines)), len(found(lines))
    assert first != agrees(found(lines[::-1]))
    # Lines that cannot be parsed, or whose key is none, count by their numbers.
    broken = found([*lines, "{", '{"key": [3], "split": "train"}', "[]"])
    assert list(broken.keys())[count:] == [f"manifest.jsonl:{n}" for n in (9, 11, 13)]


def test_conversations(tmp_path):
    turns = [{"from": "human", "value": "<image> Read."}, {"from": "gpt", "value": "Clear."}]
    rows = [{"id": "1"}, {}, {"image": ["x.png"]}]
    file = tmp_path / "c.jsonl"
    file.write_text(
        "".join(json.dumps({"image": "a.png", "conversations": turns} | r) + "\n" for r in rows)
    )
    agrees(open_source(f"conversations:{file}"))


@pytest.mark.parametrize("with_keys", [False, True])
@pytest.mark.parametrize("split", [None, "train"])
def test_parquet(tmp_path, with_keys, split):
    for number in range(2):
        table = {"image": [b"x"] * 3, "captions": ['["a"]'] * 3, "split": ["train", "x", "train"]}
        if with_keys:
            table["key"] = [f"{number}-{i}" if i else None for i in range(3)]
        pq.write_table(pa.table(table), tmp_path / f"{number}.parquet", row_group_size=2)
    agrees(open_source(f"parquet:{tmp_path}", split))


def test_array_records(tmp_path):
    records = [Record(str(i), b"image") for i in range(5)]
    for name, listed in (("a", records), ("b", records), ("c", records[::-1])):
        write_array_records(listed, tmp_path / name)
    one, same, other = (fingerprint(ArrayRecordSource(tmp_path / name)) for name in "abc")
    assert one == same
    assert difference(one, other)

"""Lazy readers: what they read equals what was written, and broken files get one clear error."""

import json
import struct
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from unix_jax.checkpoints.formats.readers import TensorInfo, open_tensors
from unix_jax.checkpoints.formats.safetensors_file import DTYPES
from unix_jax.checkpoints.formats.writers import write_safetensors, write_torch_zip
from unix_jax.checkpoints.inspect import describe, print_table
from unix_jax.errors import CheckpointError


def _arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "a.weight": rng.standard_normal((4, 3)).astype(np.float32),
        "b.weight": rng.standard_normal((5,)).astype(ml_dtypes.bfloat16),
        "c.count": np.array(7, np.int64),
        "d.empty": np.zeros((0, 3), np.float16),
    }


def _write_raw(path: Path, header: object, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def _entry(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_reads_what_the_library_writes(tmp_path):
    arrays = _arrays()
    save_file(arrays, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with open_tensors(tmp_path / "model.safetensors") as source:
        assert source.metadata == {"format": "pt"}
        assert set(source) == set(arrays)
        assert len(source) == 4
        for key, array in arrays.items():
            assert source.info(key) == TensorInfo(array.shape, array.dtype)
            assert source.info(key).nbytes == array.nbytes
            read = source.read(key)
            assert read.dtype == array.dtype
            assert read.tobytes() == array.tobytes()
            assert not read.flags.writeable
            assert not read.flags.owndata


@pytest.mark.parametrize("name", DTYPES)
def test_every_type(tmp_path, name):
    raw = np.arange(DTYPES[name].itemsize * 3, dtype=np.uint8) % 2
    path = _write_raw(tmp_path / "x", {"k": _entry(name, [3], [0, raw.size])}, raw.tobytes())
    with open_tensors(path) as source:
        assert source.read("k").dtype == DTYPES[name]
        assert source.read("k").tobytes() == raw.tobytes()


def test_a_header_of_odd_length_is_read(tmp_path):
    text = json.dumps({"k": _entry()}).encode()
    text += b" " * (3 - len(text) % 2)
    path = _write_raw(tmp_path / "x", text, np.float32([1, 2]).tobytes())
    with open_tensors(path) as source:
        assert source.read("k").tolist() == [1, 2]


def test_views_outlive_release_and_close(tmp_path):
    array = np.arange(1 << 16, dtype=np.float32)
    write_safetensors(tmp_path / "x.safetensors", {"k": array})
    with open_tensors(tmp_path / "x.safetensors") as source:
        view = source.read("k")
        source.release("k")
        np.testing.assert_array_equal(view, array)
    np.testing.assert_array_equal(view, array)


def test_release_drops_the_pages(tmp_path):
    status = Path("/proc/self/statm")
    if not status.exists():
        pytest.skip("resident pages are counted in /proc, which this system lacks")

    def shared_pages() -> int:
        return int(status.read_text().split()[2])

    tensors = {f"k{i}": np.full(1 << 20, i, np.float32) for i in range(8)}
    write_safetensors(tmp_path / "x.safetensors", tensors)
    with open_tensors(tmp_path / "x.safetensors") as source:
        before = shared_pages()
        for key in source:
            source.read(key).sum()
            source.release(key)
        assert shared_pages() - before < 512  # 2 MiB, of 32 MiB read


BAD_HEADERS = {
    "unknown dtype": ({"k": _entry("Q7")}, 8, "'k': dtype 'Q7'"),
    "no dtype": ({"k": {"shape": [], "data_offsets": [0, 8]}}, 8, "'k': dtype None"),
    "dtype is a list": ({"k": _entry(["F32"])}, 8, "'k': dtype a list"),
    "negative size": ({"k": _entry(shape=[-2])}, 8, "'k': shape"),
    "boolean size": ({"k": _entry(shape=[True, 2])}, 8, "'k': shape"),
    "fractional size": ({"k": _entry(shape=[2.0])}, 8, "'k': shape"),
    "too many axes": ({"k": _entry(shape=[1] * 65)}, 4, "'k': shape"),
    "product overflows": ({"k": _entry(shape=[2**40, 2**40])}, 8, "'k': shape"),
    "overflow beside zero": (
        {"k": _entry(shape=[0, 2**60, 2**60], offsets=[0, 0])},
        0,
        "'k': shape",
    ),
    "shape against offsets": ({"k": _entry(shape=[3])}, 8, "needs 12 bytes"),
    "offsets reversed": ({"k": _entry(offsets=[8, 0])}, 8, "'k': data_offsets"),
    "negative offset": ({"k": _entry(offsets=[-8, 0])}, 8, "'k': data_offsets"),
    "one offset": ({"k": _entry(offsets=[8])}, 8, "'k': data_offsets"),
    "out of range": ({"k": _entry()}, 4, "truncated"),
    "bytes left over": ({"k": _entry()}, 9, "expected 8 bytes of data"),
    "gap": ({"k": _entry(offsets=[4, 12])}, 12, "leave a gap"),
    "overlap": ({"j": _entry(), "k": _entry(offsets=[4, 12])}, 12, "overlap"),
    "entry is a list": ({"k": []}, 0, "'k': expected an object"),
    "metadata": ({"__metadata__": {"a": 1}}, 0, "__metadata__"),
    "twice": (b'{"k":1,"k":2}', 0, "'k' occurs twice"),
    "twice inside": (b'{"k":{"dtype":"F32","dtype":"F16"}}', 0, "'dtype' occurs twice"),
    "lone surrogate": (b'{"\\ud800":{}}', 0, "not valid Unicode"),
    "not UTF-8": (b'{"\xff":1}', 0, "not valid JSON"),
    "nested too deep": (b'{"k":' + b"[" * 200_000, 0, "not valid JSON"),
    "huge number": (b'{"k":' + b"9" * 10_000 + b"}", 0, "not valid JSON"),
    "NaN": (b'{"k":NaN}', 0, "not valid JSON"),
    "not an object": (b"[1]", 0, "not a JSON object"),
    "cut": (b'{"k":', 0, "not valid JSON"),
}


@pytest.mark.parametrize("case", BAD_HEADERS)
def test_bad_headers(tmp_path, case):
    header, size, expected = BAD_HEADERS[case]
    path = _write_raw(tmp_path / "x.safetensors", header, bytes(size))
    with pytest.raises(CheckpointError) as error:
        open_tensors(path)
    assert expected in str(error.value)
    assert "x.safetensors" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "empty"),
        (b"1234", "at least 8 bytes"),
        ((2**62).to_bytes(8, "little") + b"{}", "header length"),
        ((1000).to_bytes(8, "little") + b"{}", "truncated"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    ],
)
def test_files_that_are_no_safetensors(tmp_path, content, expected):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=expected):
        open_tensors(path)


def test_paths_that_are_no_files(tmp_path):
    for path in (tmp_path / "none", tmp_path, "/dev/zero", "a\0b", "a" * 5000):
        with pytest.raises(CheckpointError):
            open_tensors(path)


def test_missing_key(tmp_path):
    write_safetensors(tmp_path / "x.safetensors", _arrays())
    write_torch_zip(tmp_path / "x.bin", _arrays())
    for name in ("x.safetensors", "x.bin"):
        with open_tensors(tmp_path / name) as source:
            for method in (source.info, source.read, source.release):
                with pytest.raises(CheckpointError, match="has no tensor 'nothing'"):
                    method("nothing")


def test_the_content_decides_not_the_suffix(tmp_path):
    write_safetensors(tmp_path / "x.bin", _arrays())
    write_torch_zip(tmp_path / "x.safetensors", _arrays())
    for name in ("x.bin", "x.safetensors"):
        with open_tensors(tmp_path / name) as source:
            assert set(source) == set(_arrays())


def _shards(directory: Path, table: dict) -> Path:
    arrays = _arrays()
    for index, keys in enumerate((["a.weight", "b.weight"], ["c.count", "d.empty"])):
        write_safetensors(directory / f"part{index}.safetensors", {k: arrays[k] for k in keys})
    path = directory / "model.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {}, "weight_map": table}))
    return path


TABLE = {
    "a.weight": "part0.safetensors",
    "b.weight": "part0.safetensors",
    "c.count": "part1.safetensors",
    "d.empty": "part1.safetensors",
}


def test_shards(tmp_path):
    _shards(tmp_path, TABLE)
    with open_tensors(tmp_path) as source:
        assert source.keys() == list(TABLE)
        for key, array in _arrays().items():
            assert source.read(key).tobytes() == array.tobytes()
            source.release(key)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"c.count": "../secret"}, "a shard in the index's directory"),
        ({"c.count": "/etc/passwd"}, "a shard in the index's directory"),
        ({"c.count": "..\\secret"}, "a shard in the index's directory"),
        ({"c.count": ".."}, "a shard in the index's directory"),
        ({"c.count": 3}, "a shard in the index's directory"),
        ({"c.count": "absent.safetensors"}, "does not exist"),
        ({"e.new": "part1.safetensors"}, "missing: 'e.new'"),
        ({"c.count": "model.safetensors.index.json"}, "model.safetensors.index.json"),
    ],
)
def test_bad_shards(tmp_path, change, expected):
    _shards(tmp_path, TABLE | change)
    with pytest.raises(CheckpointError, match=expected):
        open_tensors(tmp_path)


def test_a_shard_with_more_than_the_index_says(tmp_path):
    table = {key: name for key, name in TABLE.items() if key != "b.weight"}
    with pytest.raises(CheckpointError, match=r"not in the index: 'b.weight'"):
        open_tensors(_shards(tmp_path, table))


def test_describe_the_published_layout(tmp_path):
    write_safetensors(tmp_path / "model.safetensors", _arrays())
    write_torch_zip(tmp_path / "vae" / "kl-f16d16.ckpt", {"encoder.conv_in.weight": np.ones(3)})
    rows = describe(tmp_path)
    assert ("a.weight", (4, 3), "float32", 12) in rows
    assert ("b.weight", (5,), "bfloat16", 5) in rows
    assert rows[-1] == ("vae:encoder.conv_in.weight", (3,), "float64", 3)


def test_the_table_shows_names_as_they_are(tmp_path, capsys):
    name = "block[red].weight\x1b[31m" + "x" * 200
    write_safetensors(tmp_path / "m.safetensors", {name: np.ones((2, 3), np.float32)})
    print_table(tmp_path / "m.safetensors")
    shown = capsys.readouterr().out
    assert "block[red].weight" in shown
    assert "\x1b" not in shown
    assert "2×3" in shown
    assert "total" in shown


def test_describe_this_projects_layout(tmp_path, monkeypatch, capsys):
    infos = {
        f"params/decoder/layers/{stream}/q_proj/kernel": TensorInfo((2, 3, 4), np.dtype("float32"))
        for stream in ("und", "gen")
    }
    monkeypatch.setattr("unix_jax.checkpoints.native.tensor_infos", lambda path: infos)
    assert describe(tmp_path) == [(key, (2, 3, 4), "float32", 24) for key in infos]
    print_table(tmp_path)
    shown = capsys.readouterr().out
    assert "params/decoder/layers (gen)" in shown
    assert "48" in shown


def test_describe_a_directory_of_something_else(tmp_path):
    with pytest.raises(CheckpointError, match="expected a checkpoint of this project, or"):
        describe(tmp_path)


# --- checksums of a zip --------------------------------------------------------------------------


def _read_all(path: Path) -> dict[str, np.ndarray]:
    with open_tensors(path) as source:
        return {key: np.array(source.read(key)) for key in source}


def _stored_spans(path: Path) -> list[tuple[str, int, int]]:
    """(member, offset of its data, size) of a zip."""
    spans = []
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            header = path.read_bytes()[member.header_offset :][:30]
            start = member.header_offset + 30 + sum(struct.unpack("<HH", header[26:]))
            spans.append((member.filename, start, member.file_size))
    return spans


@settings(max_examples=60, deadline=None)
@given(number=st.integers(0, 100), bit=st.integers(0, 2**30))
def test_one_flipped_bit_in_a_zip_is_found(tmp_path_factory, number, bit):
    path = tmp_path_factory.mktemp("zip") / "model.pt"
    write_torch_zip(path, {key: x for key, x in _arrays().items() if x.size})
    spans = [s for s in _stored_spans(path) if "/data" in s[0] and s[2]]
    _, start, size = spans[number % len(spans)]
    data = bytearray(path.read_bytes())
    data[start + bit // 8 % size] ^= 1 << bit % 8
    path.write_bytes(data)
    with pytest.raises(CheckpointError) as caught:
        _read_all(path)
    assert str(path) in str(caught.value)
    assert "content changed since the file was written: expected CRC-32" in str(caught.value)


def test_a_changed_tensor_of_a_zip_is_named_and_the_others_are_read(tmp_path):
    path = tmp_path / "model.pt"
    write_torch_zip(path, _arrays())
    (_, start, _) = next(s for s in _stored_spans(path) if s[0].endswith("data/0"))
    data = bytearray(path.read_bytes())
    data[start] ^= 1
    path.write_bytes(data)
    with open_tensors(path) as source:
        assert source.read("b.weight").size == 5
        with pytest.raises(CheckpointError, match=r"'a\.weight': content changed"):
            source.read("a.weight")


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_packed_anew_is_verified_too(tmp_path, compression):
    write_torch_zip(tmp_path / "a.pt", _arrays())
    with (
        zipfile.ZipFile(tmp_path / "a.pt") as old,
        zipfile.ZipFile(tmp_path / "b.pt", "w", compression) as new,
    ):
        for member in old.infolist():
            new.writestr(member.filename, old.read(member))
    found = _read_all(tmp_path / "b.pt")
    assert all(found[key].tobytes() == x.tobytes() for key, x in _arrays().items())
    data = (tmp_path / "b.pt").read_bytes()
    with zipfile.ZipFile(tmp_path / "b.pt") as archive:
        crc = struct.pack("<I", archive.getinfo("a/data/0").CRC)
    assert data.count(crc) == 2
    (tmp_path / "b.pt").write_bytes(data.replace(crc, b"\1\2\3\4"))
    with pytest.raises(CheckpointError, match="content changed"):
        _read_all(tmp_path / "b.pt")


def test_a_zip_without_checksums_is_read(tmp_path):
    """`torch.serialization.set_crc32_options(False)` writes 0."""
    path = tmp_path / "a.pt"
    write_torch_zip(path, _arrays())
    data = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.CRC:
                data = data.replace(struct.pack("<I", member.CRC), bytes(4))
    path.write_bytes(data)
    assert _read_all(path)["b.weight"].size == 5

"""Streaming writers: the libraries read what they write, and a failure leaves nothing."""

import errno

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from unix_jax.checkpoints.formats.readers import TensorInfo, open_tensors
from unix_jax.checkpoints.formats.writers import entries, write_safetensors, write_torch_zip
from unix_jax.errors import CheckpointError

TYPES = ["float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool"]
TYPES += ["complex64", "complex128"]


def _arrays(types: list[str]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    arrays = {f"z.{name}": (rng.standard_normal((3, 5)) * 9).astype(name) for name in types}
    arrays["a.bf16"] = rng.standard_normal((2, 2, 2)).astype(ml_dtypes.bfloat16)
    arrays["scalar"] = np.array(2.5, np.float32)
    arrays["empty"] = np.zeros((0, 4), np.float32)
    arrays["naïve ✓"] = np.arange(6, dtype=np.float32).reshape(2, 3)
    return arrays


def test_bytes_equal_the_library(tmp_path):
    arrays = _arrays([name for name in TYPES if not name.startswith("complex128")])
    save_file(arrays, tmp_path / "theirs", metadata={"format": "pt"})
    write_safetensors(tmp_path / "ours", arrays, {"format": "pt"})
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_keeps_the_order_given(tmp_path):
    arrays = {"b": np.ones(3, np.uint8), "a": np.ones(2, np.float32)}
    write_safetensors(tmp_path / "x", arrays, keep_order=True)
    with open_tensors(tmp_path / "x") as source:
        assert source.keys() == ["b", "a"]
        np.testing.assert_array_equal(source.read("a"), arrays["a"])


def test_rewriting_a_file_gives_its_bytes(tmp_path):
    save_file(_arrays(["float32", "int64"]), tmp_path / "x", metadata={"format": "pt"})
    with open_tensors(tmp_path / "x") as source:
        items = [(key, source.info(key), lambda k=key: source.read(k)) for key in source]
        write_safetensors(tmp_path / "y", items, source.metadata, keep_order=True)
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()


@pytest.mark.parametrize("write", [write_safetensors, write_torch_zip])
def test_arrays_in_any_memory_order(tmp_path, write, monkeypatch):
    monkeypatch.setattr("unix_jax.checkpoints.formats.writers._CHUNK_BYTES", 100)
    array = np.arange(600, dtype=np.float32).reshape(20, 30)
    arrays = {"t": array.T, "s": array[::2, ::-3], "0": array[:0].T, "1": array[:, 0]}
    write(tmp_path / "x.bin", arrays)
    with open_tensors(tmp_path / "x.bin") as source:
        for key, value in arrays.items():
            np.testing.assert_array_equal(source.read(key), value)


@pytest.mark.parametrize("write", [write_safetensors, write_torch_zip])
def test_a_failure_leaves_nothing(tmp_path, write):
    def broken() -> np.ndarray:
        raise RuntimeError("no array")

    def full() -> np.ndarray:
        raise OSError(errno.ENOSPC, "No space left on device", ".hidden.tmp")

    info = TensorInfo((2,), np.dtype(np.float32))
    first = entries({"a": np.ones(2, np.float32)})
    cases = [
        ([*first, ("b", info, broken)], RuntimeError),
        ([*first, ("b", info, full)], CheckpointError),
        ([("b", info, lambda: np.ones(3, np.float32))], ValueError),
        ([("b", info, lambda: np.ones(2, np.float64))], ValueError),
        ([*first, *first], CheckpointError),
        (entries({"\ud800": np.ones(1)}), CheckpointError),
        (entries({"d": np.array(["text"])}), CheckpointError),
    ]
    for tensors, error in cases:
        with pytest.raises(error):
            write(tmp_path / "x.bin", tensors)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("write", [write_safetensors, write_torch_zip])
def test_an_existing_file_survives_a_failure(tmp_path, write):
    path = tmp_path / "x.bin"
    write(path, {"a": np.ones(2, np.float32)})
    before = path.read_bytes()
    info = TensorInfo((2,), np.dtype(np.float32))
    with pytest.raises(ValueError, match="announced as"):
        write(path, [("b", info, lambda: np.ones(3, np.float32))])
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("write", [write_safetensors, write_torch_zip])
def test_a_directory_that_cannot_be(tmp_path, write):
    (tmp_path / "file").write_text("")
    (tmp_path / "directory").mkdir()
    for path in (tmp_path / "file" / "x.bin", tmp_path / "directory"):
        with pytest.raises(Exception, match=r"cannot be|expected a file") as error:
            write(path, {"a": np.ones(2, np.float32)})
        assert ".tmp" not in str(error.value)
    assert len(list(tmp_path.iterdir())) == 2


def test_arrays_are_made_one_by_one(tmp_path):
    alive = 0
    most = 0

    class Counted(np.ndarray):
        def __del__(self):
            nonlocal alive
            alive -= self.base is None

    def make() -> np.ndarray:
        nonlocal alive, most
        alive += 1
        most = max(most, alive)
        return Counted((4,), np.float32)

    info = TensorInfo((4,), np.dtype(np.float32))
    write_safetensors(tmp_path / "x", [(f"k{i}", info, make) for i in range(6)])
    assert most <= 2


def test_storages_are_aligned(tmp_path):
    write_torch_zip(tmp_path / "x.ckpt", _arrays(TYPES))
    with open_tensors(tmp_path / "x.ckpt") as source:
        for key in source:
            if source.info(key).count:
                assert source.read(key).ctypes.data % 64 == 0


def test_torch_reads_the_zip(tmp_path):
    torch = pytest.importorskip("torch", reason="torch reads the file back; the extra is absent")
    arrays = _arrays(TYPES)
    write_torch_zip(tmp_path / "kl.ckpt", arrays)
    write_torch_zip(tmp_path / "flat.bin", arrays, under=None)
    for weights_only in (True, False):
        loaded = torch.load(tmp_path / "kl.ckpt", map_location="cpu", weights_only=weights_only)
        assert list(loaded) == ["state_dict"]
        flat = torch.load(tmp_path / "flat.bin", weights_only=weights_only, mmap=True)
        for tensors in (loaded["state_dict"], flat):
            assert list(tensors) == list(arrays)
            for key, array in arrays.items():
                assert str(tensors[key].dtype) == f"torch.{array.dtype}"
                assert tuple(tensors[key].shape) == array.shape
                assert tensors[key].is_contiguous()
                raw = tensors[key].contiguous().reshape(-1).view(torch.uint8).numpy()
                assert raw.tobytes() == array.tobytes()

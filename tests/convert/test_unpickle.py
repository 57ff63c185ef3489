"""Pickled checkpoints: tensors of every kind are read, and nothing in the file is ever run.

The pickles are written here, instruction by instruction or by Python's own pickler with stand-ins
for torch's classes; where torch is installed, real files of `torch.save` are read as well.
"""

import argparse
import collections
import datetime
import io
import os
import pathlib
import pickle
import struct
import subprocess
import sys
import types
import zipfile
import zlib
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from unix_jax.checkpoints.formats.pickle_values import Global, Opaque, Tensor
from unix_jax.checkpoints.formats.readers import open_tensors
from unix_jax.checkpoints.formats.unpickle import read_pickle
from unix_jax.checkpoints.formats.writers import write_torch_zip
from unix_jax.errors import CheckpointError


def _value(data: bytes):
    return read_pickle(io.BytesIO(data), "x.pkl")


def _zip(path: Path, pickled: bytes, storages: dict[str, bytes], **options) -> Path:
    members = {"data.pkl": pickled, "byteorder": b"little", "version": b"3\n"}
    members |= {f"data/{key}": data for key, data in storages.items()}
    members |= options.get("members", {})
    with zipfile.ZipFile(path, "w", options.get("compression", zipfile.ZIP_STORED)) as archive:
        for name, data in members.items():
            archive.writestr(f"m/{name}", data)
    return path


def _tensor(shape, stride, offset=0, kind="FloatStorage", key="0", count=4) -> bytes:
    """A pickle of `{"w": tensor}`; numbers may be anything that pickles."""

    def push(value) -> bytes:
        return pickle.dumps(value, 2)[2:-1].replace(b"q\x00", b"")

    storage = b"(" + push("storage") + f"ctorch\n{kind}\n".encode()
    storage += push(key) + push("cpu") + push(count) + b"tQ"
    rebuilt = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage
    for value in (offset, shape, stride):
        if isinstance(value, tuple):
            rebuilt += b"(" + b"".join(push(item) for item in value) + b"t"
        else:
            rebuilt += push(value)
    return b"\x80\x02}" + push("w") + rebuilt + b"\x89ccollections\nOrderedDict\n)RtRs."


class Payload:
    """Pickles as a call of `function`."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def _payloads(marker: Path):
    command = f"touch {marker}"
    code = f"open({str(marker)!r}, 'w')"
    return {
        "os.system": Payload(os.system, command),
        "eval": Payload(eval, code),
        "exec": Payload(exec, code),
        "Popen": Payload(subprocess.Popen, ["touch", str(marker)]),
        "open": Payload(open, str(marker), "w"),
        "getattr": Payload(getattr, "a", "upper"),
        "import": Payload(__import__, "os"),
        "map": Payload(map, print, ["x"]),
        "nested": Payload(collections.OrderedDict, [("a", Payload(os.system, command))]),
        "apply": Payload(pickle.loads, pickle.dumps(Payload(os.system, command))),
    }


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("name", _payloads(Path("x")))
def test_a_call_is_refused_and_not_made(tmp_path, name, protocol):
    marker = tmp_path / "marker"
    payload = _payloads(marker)[name]
    pickled = pickle.dumps({"state_dict": {"w": 1}, "callbacks": payload}, protocol)
    path = _zip(tmp_path / "x.ckpt", pickled, {})
    with pytest.raises(
        CheckpointError, match=r"refused, nothing in it was executed.*a call of "
    ) as error:
        open_tensors(path)
    called = payload.call[0] if name != "nested" else os.system
    assert called.__name__ in str(error.value)
    assert not marker.exists()
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "data",
    [
        b"cos\nsystem\n(X\x01\x00\x00\x00xtR.",
        b"(cos\nsystem\nX\x01\x00\x00\x00xo.",
        b"(X\x01\x00\x00\x00xios\nsystem\n.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x01x\x85R.",
        b"ctorch._tensor\n_rebuild_from_type_v2\n(cos\nsystem\n0N(X\x01\x00\x00\x00xtNtR.",
        b"ctorch._tensor\n_rebuild_from_type_v2\n(cos\nsystem\nN(X\x01\x00\x00\x00xtNtR.",
        b"\x82\x01.",
        b"\x83\x01\x00.",
        b"\x84\x01\x00\x00\x00.",
        b"Pos.system\n.",
        b"\x97.",
        b"I1\n)R.",
        b"I1\n)\x81.",
        b"ccollections\nOrderedDict\n)R)R.",
    ],
)
def test_other_ways_to_call(data):
    with pytest.raises(CheckpointError):
        _value(data)


def test_importing_a_name_imports_nothing():
    value = _value(b"\x80\x02cantigravity\nfly\n.")
    assert value == Global("antigravity", "fly")
    assert "antigravity" not in sys.modules


def test_placeholders_are_inert():
    data = b"\x80\x02}(cpl.callbacks\nModelCheckpoint\n}X\x01\x00\x00\x00aK\x01s"
    data += b"X\x01\x00\x00\x00bcpl\nThing\n)\x81}X\x01\x00\x00\x00sK\x02sb"
    data += b"X\x01\x00\x00\x00ccpl\nListy\n)\x81K\x01au."
    value = _value(data)
    (key,) = [key for key in value if not isinstance(key, str)]
    assert isinstance(key, Opaque)
    assert value[key] == {"a": 1}
    assert isinstance(value["b"], Opaque)
    assert isinstance(value["c"], Opaque)
    assert not vars(value["b"])


def test_what_lightning_keeps_beside_the_weights_is_tolerated(tmp_path):
    class Attributes(dict):
        pass

    Attributes.__qualname__ = Attributes.__name__ = "AttributeDict"
    Attributes.__module__ = "fake_lightning"
    module = types.ModuleType("fake_lightning")
    module.AttributeDict = Attributes
    sys.modules["fake_lightning"] = module
    try:
        extras = {
            "hyper_parameters": Attributes(lr=1e-4),
            "arguments": argparse.Namespace(a=1, b=[2]),
            "default": collections.defaultdict(list, {"a": [1]}),
            "path": pathlib.PurePosixPath("a/b"),
            "time": datetime.datetime(2020, 1, 1),
            "scalar": np.float64(3.0),
            "array": np.arange(4.0),
            "set": {1, 2},
            "frozen": frozenset({1}),
            "bytes": b"\x00\xff",
            "complex": 1j,
            (1, (2, 3)): "tuple key",
            7: "number key",
        }
        for protocol in (2, 4, 5):
            value = _value(pickle.dumps(extras, protocol))
            assert len(value) == len(extras)
    finally:
        del sys.modules["fake_lightning"]


@pytest.mark.parametrize("module", [b"pathlib", b"pathlib._local"])
def test_paths_of_every_python_are_tolerated(module):
    """Python 3.13 pickles them under another module."""
    pickled = pickle.dumps({"path": pathlib.PurePosixPath("a/b")}, 2)
    name = pathlib.PurePosixPath.__module__.encode()
    assert b"c" + name + b"\n" in pickled
    assert list(_value(pickled.replace(b"c" + name + b"\n", b"c" + module + b"\n"))) == ["path"]


def test_plain_data():
    data = {
        "int": 3, "big": 2**70, "negative": -5, "float": 0.5, "none": None, "true": True,
        "text": "naïve", "list": [1, [2]], "tuple": (1, 2, 3, 4), "dict": {"a": {}},
    }  # fmt: skip
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert _value(pickle.dumps(data, protocol)) == data


def test_ordered_dict_with_state():
    plain = collections.OrderedDict(a=1, b=2)
    plain._metadata = {"": {"version": 1}}  # as torch's modules do
    for protocol in (0, 2, 4):
        assert _value(pickle.dumps(plain, protocol)) == {"a": 1, "b": 2}


def _nested(depth: int) -> bytes:
    return b"\x80\x02)" + b"\x85" * depth + b"."


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80",
        b"garbage",
        b"\x80\x02",
        b"\x80\x02.",
        b"\x80\x02(.",
        b"\x80\x020.",
        b"\x80\x02(t(u.",
        b"\x80\x02]K\x01K\x02s.",
        b"\x80\x02K\x01K\x02a.",
        b"\x80\x02}(K\x01u.",
        b"\x80\x02h\x05.",
        b"\x80\x02r\xff\xff\xff\xff.",
        b"\x80\x02X\xff\xff\xff\xffabc.",
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7fabc.",
        b"\x80\x04\x96\xff\xff\xff\xff\xff\xff\xff\xffabc.",
        b"\x80\x02\x8b\xff\xff\xff\x7f\x01.",
        b"I" + b"9" * 100_000 + b"\n.",
        b"L" + b"9" * 100_000 + b"L\n.",
        b"Fnot a number\n.",
        b"S'no end\n.",
        b"V\\ud8\n.",
        b"cos\n",
        b"\x80\x02ccollections\nOrderedDict\nK\x01\x85R.",
        b"\x80\x02ccollections\nOrderedDict\n]K\x01a\x85R.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nK\x01R.",
        b"\x80\x02K\x01Q.",
        b"\x80\x02)Q.",
    ],
)
def test_broken_pickles(data):
    with pytest.raises(CheckpointError):
        _value(data)


def test_resources_are_bounded(monkeypatch):
    # A memo index, a long and a string that announce gigabytes; 300,000 nested tuples, also as a
    # key; a tuple of 2^60 elements by sharing, as a key; a list copied again and again.
    assert _value(b"\x80\x02K\x01r\xff\xff\xff\xff.") == 1
    deep = _nested(300_000)
    assert isinstance(_value(deep), tuple)
    assert isinstance(_value(b"\x80\x02}" + deep[2:-1] + b"K\x01s."), dict)
    shared = b"\x80\x02}K\x01" + b"2\x86" * 60 + b"K\x01s."
    assert isinstance(_value(shared), dict)
    monkeypatch.setattr("unix_jax.checkpoints.formats.unpickle.MAX_INSTRUCTIONS", 10_000)
    pairs = b"]q\x00(" + b"K\x01K\x02\x86" * 500 + b"e0"
    copied = b"ccollections\nOrderedDict\nh\x00\x85R0" * 1000
    with pytest.raises(CheckpointError, match="instructions"):
        read_pickle(io.BytesIO(b"\x80\x02" + pairs + copied + b"N."), "x")


def test_tensors_are_not_made_before_they_are_read():
    value = _value(_tensor((2, 2), (2, 1)))
    assert isinstance(value["w"], Tensor)


DATA = np.arange(4, dtype=np.float32).tobytes()


def test_strides_and_offsets(tmp_path):
    for shape, stride, offset, expected in [
        ((2, 2), (2, 1), 0, [[0, 1], [2, 3]]),
        ((2, 2), (1, 2), 0, [[0, 2], [1, 3]]),
        ((2,), (2,), 1, [1, 3]),
        ((), (), 3, 3),
        ((0, 5), (5, 1), 4, np.zeros((0, 5))),
    ]:
        path = _zip(tmp_path / "x.bin", _tensor(shape, stride, offset), {"0": DATA})
        with open_tensors(path) as source:
            assert source.info("w").shape == shape
            np.testing.assert_array_equal(source.read("w"), np.float32(expected))
            source.release("w")


@pytest.mark.parametrize(
    "bad",
    [
        {"offset": 1},
        {"offset": -1},
        {"offset": 2**63},
        {"offset": "0"},
        {"shape": (5,), "stride": (1,)},
        {"shape": (-1, -4)},
        {"shape": (2,)},
        {"shape": (2, 3)},
        {"shape": (2.0, 2)},
        {"shape": "22"},
        {"shape": (2**40, 2**40), "stride": (0, 0)},
        {"shape": (1000, 1000), "stride": (0, 0)},
        {"shape": (2,) * 40, "stride": (1,) * 40},
        {"shape": (2**61, 2**61, 0), "stride": (1, 1, 1)},
        {"stride": (-1, 1)},
        {"stride": (2**62, 1)},
        {"stride": (3, 1)},
        {"kind": "QInt8Storage"},
        {"kind": "system"},
        {"key": "1"},
        {"key": "../0"},
        {"count": 2**60},
        {"count": -1},
        {"count": None},
    ],
)
def test_tensors_that_leave_their_storage(tmp_path, bad):
    arguments = {"shape": (2, 2), "stride": (2, 1)} | bad
    path = _zip(tmp_path / "x.bin", _tensor(**arguments), {"0": DATA})
    with pytest.raises(CheckpointError, match=r"x\.bin: 'w'"):
        open_tensors(path)


def test_compressed_members(tmp_path):
    pickled = _tensor((2, 2), (1, 2))
    path = _zip(tmp_path / "x.bin", pickled, {"0": DATA}, compression=zipfile.ZIP_DEFLATED)
    with open_tensors(path) as source:
        assert source.read("w").tolist() == [[0, 2], [1, 3]]
        assert not source.read("w").flags.writeable
    path = _zip(tmp_path / "x.bin", pickled, {"0": DATA}, compression=zipfile.ZIP_LZMA)
    with pytest.raises(CheckpointError, match="compression"):
        open_tensors(path)


def test_zip_bombs(tmp_path, monkeypatch):
    monkeypatch.setattr("unix_jax.checkpoints.formats.zip_members.MAX_UNPACKED_BYTES", 1 << 20)
    bomb = bytes(1 << 21)
    path = _zip(
        tmp_path / "x.bin",
        _tensor((1 << 19,), (1,), count=1 << 19),
        {"0": bomb},
        compression=zipfile.ZIP_DEFLATED,
    )
    with open_tensors(path) as source, pytest.raises(CheckpointError, match="at most"):
        source.read("w")
    # One that announces 16 bytes and unpacks to 2 MiB.
    data = path.read_bytes()
    lying = data.replace(struct.pack("<I", 1 << 21), struct.pack("<I", 16))
    path.write_bytes(lying.replace(struct.pack("<I", zlib.crc32(bomb)), bytes(4)))
    with pytest.raises(CheckpointError):
        open_tensors(path)
    monkeypatch.setattr("unix_jax.checkpoints.formats.torch_file.MAX_PICKLE_BYTES", 1000)
    path = _zip(tmp_path / "y.bin", bytes(2000), {}, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match="expected at most 1000"):
        open_tensors(path)


def test_zips_of_another_kind(tmp_path):
    pickled = _tensor((2, 2), (2, 1))
    cases = {
        "big-endian": {"byteorder": b"big"},
        "TorchScript": {"constants.pkl": b""},
    }
    for expected, members in cases.items():
        path = _zip(tmp_path / "x.bin", pickled, {"0": DATA}, members=members)
        with pytest.raises(CheckpointError, match=expected):
            open_tensors(path)
    with zipfile.ZipFile(tmp_path / "y.bin", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(CheckpointError, match=r"NAME/data\.pkl"):
        open_tensors(tmp_path / "y.bin")
    with zipfile.ZipFile(tmp_path / "z.bin", "w") as archive:
        archive.writestr("m/data.pkl", pickled)
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("m/data.pkl", pickled)
    with pytest.raises(CheckpointError, match="twice"):
        open_tensors(tmp_path / "z.bin")
    (tmp_path / "p.bin").write_bytes(pickled)
    with pytest.raises(CheckpointError, match=r"torch\.save"):
        open_tensors(tmp_path / "p.bin")


def test_where_the_state_dict_is_found(tmp_path):
    tensor = _tensor((4,), (1,))[2:-1]

    def under(*names: str) -> bytes:
        result = tensor
        for name in names:
            text = name.encode()
            result = b"}X" + struct.pack("<I", len(text)) + text + result + b"s"
        return b"\x80\x02" + result + b"."

    for names in [(), ("state_dict",), ("model",), ("module",), ("model_state_dict",)]:
        path = _zip(tmp_path / "x.bin", under(*names), {"0": DATA})
        with open_tensors(path) as source:
            assert source.keys() == ["w"]
    for names in [("weights",), ("net", "inner", "more"), ("epoch", "params")]:
        path = _zip(tmp_path / "x.bin", under(*names), {"0": DATA})
        with open_tensors(path) as source:
            assert source.keys() == ["w"]
    path = _zip(tmp_path / "x.bin", under("optimizer"), {"0": DATA})
    with pytest.raises(CheckpointError, match="found entries 'optimizer' without one"):
        open_tensors(path)
    path = _zip(tmp_path / "x.bin", pickle.dumps([1], 2), {})
    with pytest.raises(CheckpointError, match="expected a state dict, found a list"):
        open_tensors(path)


def test_values_that_are_no_tensors_are_named(tmp_path):
    pickled = _tensor((4,), (1,))[:-1] + b"X\x05\x00\x00\x00extraK\x01s."
    with open_tensors(_zip(tmp_path / "x.bin", pickled, {"0": DATA})) as source:
        assert source.keys() == ["w"]
        assert source.skipped == ["extra"]


GOLDEN = Path(__file__).parents[1] / "golden"


def test_the_golden_lightning_checkpoint():
    """Its `callbacks` are keyed by a class, and `torch.load(weights_only=True)` refuses it."""
    path = GOLDEN / "tiny" / "checkpoint" / "vae" / "kl-f16d16.ckpt"
    if not path.exists():
        pytest.skip(f"the golden checkpoint is not at {path}")
    with open_tensors(path) as source:
        assert len(source) == 241
        assert source.info("encoder.conv_in.weight").shape == (32, 3, 3, 3)
        assert sum(key.startswith("loss.") for key in source) == 3
        assert all(np.isfinite(source.read(key)).all() for key in source)
    assert "pytorch_lightning" not in sys.modules


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="torch writes the files to read; it is absent")


def _same(source, tensors, torch) -> None:
    assert source.keys() == list(tensors)
    for key, tensor in tensors.items():
        read = source.read(key)
        assert f"torch.{read.dtype}" == str(tensor.dtype)
        assert read.shape == tuple(tensor.shape)
        raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
        assert read.tobytes() == raw.tobytes()
        assert not read.flags.writeable


def _tensors(torch) -> dict:
    torch.manual_seed(0)
    base = torch.randn(6, 8)
    names = ["float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8"]
    names += ["uint8", "bool", "complex64"]
    tensors = {name: (base * 9).to(getattr(torch, name)) for name in names}
    tensors |= {"row": base[2], "column": base[:, 3], "turned": base.T, "base": base}
    tensors |= {"scalar": torch.tensor(3.5), "empty": torch.zeros(0, 3), "stepped": base[::2, 1::3]}
    tensors["parameter"] = torch.nn.Parameter(torch.ones(3))
    return tensors


@pytest.mark.parametrize("new_format", [True, False])
def test_what_torch_saves(tmp_path, torch, new_format):
    tensors = _tensors(torch)
    path = tmp_path / "x.pth"
    torch.save({"state_dict": tensors}, path, _use_new_zipfile_serialization=new_format)
    with open_tensors(path) as source:
        _same(source, tensors, torch)
        for key in source:
            source.release(key)
        _same(source, tensors, torch)


def test_types_without_a_storage_class(tmp_path, torch):
    names = ["float8_e4m3fn", "float8_e5m2", "uint16", "uint32"]
    tensors = {name: torch.arange(6.0).to(getattr(torch, name)) for name in names}
    torch.save(tensors, tmp_path / "x.pt")
    with open_tensors(tmp_path / "x.pt") as source:
        _same(source, tensors, torch)


def test_a_module_and_its_optimizer(tmp_path, torch):
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    state = module.state_dict()
    whole = {"state_dict": state, "optimizer_states": [optimizer.state_dict()], "epoch": 3}
    torch.save(whole | {"device": torch.device("cpu"), "size": torch.Size([1])}, tmp_path / "x.pt")
    with open_tensors(tmp_path / "x.pt") as source:
        _same(source, state, torch)


def test_a_whole_module_is_no_state_dict(tmp_path, torch):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="expected a state dict"):
        open_tensors(tmp_path / "x.pt")


def test_legacy_storages_must_be_in_the_file(tmp_path, torch):
    path = tmp_path / "x.pt"
    torch.save(_tensors(torch), path, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    for size in (len(data) - 1, len(data) // 2, 100):
        path.write_bytes(data[:size])
        with pytest.raises(CheckpointError):
            open_tensors(path)


def test_bfloat16_needs_no_torch(tmp_path):
    array = np.arange(5).astype(ml_dtypes.bfloat16)
    write_torch_zip(tmp_path / "x.bin", {"k": array})
    with open_tensors(tmp_path / "x.bin") as source:
        assert source.read("k").dtype == array.dtype
        assert source.read("k").tobytes() == array.tobytes()
    assert len(source) == 1

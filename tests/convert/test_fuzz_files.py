"""Seeded fuzzing of tensor files: a damaged or hostile file is read or refused, and that is all.

Every mutated file either opens, and then all its tensors can be read, or raises CheckpointError in
one line. No other exception, no code run, no file written, and a bounded time for each.
"""

import json
import os
import pickle
import random
import subprocess
import time
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from unix_jax.checkpoints.formats.readers import open_tensors
from unix_jax.checkpoints.formats.writers import write_safetensors, write_torch_zip
from unix_jax.errors import CheckpointError

# Of each kind of mutation; each of the tests below makes at least 500 files.
COUNT = 600
SECONDS_PER_FILE = 2.0

INTERESTING = (0, 1, -1, 2**31, 2**32 - 1, 2**62, 2**63, 2**64, 10**400, -(2**63), 0.5, 1e300)
OTHERS = (None, True, "", "F32", [], {}, [[]], ["x"], "\ud800", "__metadata__", "\x00" * 9)

ARRAYS = {
    "language_model.norm.weight": np.arange(8, dtype=np.float32),
    "vit.kernel": np.arange(6).reshape(2, 3).astype(ml_dtypes.bfloat16),
    "step": np.array(3, np.int64),
    "empty": np.zeros((0, 2), np.float16),
}


class Tally:
    """Opens mutated files, one after the other, under one name."""

    def __init__(self, path: Path):
        self.path = path
        self.opened = self.refused = 0

    def try_file(self, data: bytes) -> str | None:
        """The error's text, or None where the file could be read."""
        self.path.write_bytes(data)
        start = time.monotonic()
        message = None
        try:
            with open_tensors(self.path) as source:
                for key in source:
                    array = source.read(key)
                    info = source.info(key)
                    assert (array.shape, array.dtype) == (info.shape, info.dtype)
                    assert array.nbytes <= 64 * len(data)
                    array.tobytes()
                    source.release(key)
            self.opened += 1
        except CheckpointError as error:
            message = str(error)
            assert message.isprintable(), message
            assert len(message) < 2000
            self.refused += 1
        assert time.monotonic() - start < SECONDS_PER_FILE
        return message

    def check(self, least: int) -> None:
        assert self.opened + self.refused >= 500
        assert self.refused >= least
        assert [entry.name for entry in self.path.parent.iterdir()] == [self.path.name]


@pytest.fixture
def tally(tmp_path):
    return Tally(tmp_path / "mutated.ckpt")


def _damaged(rng: random.Random, data: bytes, end: int | None = None) -> bytes:
    """Flipped bits, bytes overwritten, inserted, cut, doubled, or the end missing."""
    result = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        position = rng.randrange(min(end or len(result), len(result)) or 1)
        kind = rng.randrange(7)
        if kind == 0 and result:
            result[position % len(result)] ^= 1 << rng.randrange(8)
        elif kind == 1 and result:
            result[position % len(result)] = rng.randrange(256)
        elif kind == 2:
            result[position:position] = rng.randbytes(rng.randrange(1, 9))
        elif kind == 3:
            del result[position : position + rng.randrange(1, 9)]
        elif kind == 4:
            piece = result[position : position + rng.randrange(1, 33)]
            result[position:position] = piece
        elif kind == 5:
            result[position : position + 4] = rng.choice((b"\xff" * 4, bytes(4), b"\x7f" * 4))
        elif rng.random() < 0.3:
            del result[position:]
    return bytes(result)


def _safetensors(tmp_path: Path) -> bytes:
    path = tmp_path / "clean"
    write_safetensors(path, ARRAYS, {"format": "pt"})
    data = path.read_bytes()
    path.unlink()
    return data


def _torch_zip(tmp_path: Path) -> bytes:
    path = tmp_path / "clean.ckpt"
    write_torch_zip(path, ARRAYS)
    data = path.read_bytes()
    path.unlink()
    return data


def test_damaged_safetensors(tmp_path, tally):
    rng = random.Random(1)
    clean = _safetensors(tmp_path)
    assert tally.try_file(clean) is None
    header_end = 8 + int.from_bytes(clean[:8], "little")
    for index in range(COUNT):
        tally.try_file(_damaged(rng, clean, header_end if index % 4 else None))
    tally.check(least=COUNT // 3)


def _edited(rng: random.Random, header: dict) -> dict:
    """A header of which one value, somewhere, is another."""
    header = json.loads(json.dumps(header))
    value = rng.choice((*INTERESTING, *OTHERS))
    entry = header[rng.choice([key for key in header if key != "__metadata__"])]
    match rng.randrange(6):
        case 0:
            entry[rng.choice(list(entry))] = value
        case 1:
            entry["shape"] = [*entry["shape"], value]
        case 2 if entry["shape"]:
            entry["shape"][rng.randrange(len(entry["shape"]))] = value
        case 3:
            entry["data_offsets"][rng.randrange(2)] = value
        case 4:
            header[str(value)] = rng.choice((value, dict(entry)))
        case _:
            del entry[rng.choice(list(entry))]
    return header


def test_edited_safetensors_headers(tmp_path, tally):
    rng = random.Random(2)
    clean = _safetensors(tmp_path)
    end = 8 + int.from_bytes(clean[:8], "little")
    header = json.loads(clean[8:end])
    for _ in range(COUNT):
        text = json.dumps(_edited(rng, header)).encode()
        tally.try_file(len(text).to_bytes(8, "little") + text + clean[end:])
    tally.check(least=COUNT // 2)


def test_damaged_zips(tmp_path, tally):
    rng = random.Random(3)
    clean = _torch_zip(tmp_path)
    assert tally.try_file(clean) is None
    directory = clean.index(b"PK\x01\x02")
    for index in range(COUNT):
        if index % 2:
            tally.try_file(_damaged(rng, clean))
        else:  # the central directory and the end record
            tally.try_file(clean[:directory] + _damaged(rng, clean[directory:]))
    tally.check(least=COUNT // 4)


def _repacked(tmp_path: Path, pickled: bytes, members: dict[str, bytes]) -> bytes:
    path = tmp_path / "packed"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in (members | {"data.pkl": pickled}).items():
            archive.writestr(f"clean/{name}", data)
    data = path.read_bytes()
    path.unlink()
    return data


def _unpacked(tmp_path: Path) -> dict[str, bytes]:
    path = tmp_path / "clean.ckpt"
    write_torch_zip(path, ARRAYS)
    with zipfile.ZipFile(path) as archive:
        members = {name.split("/", 1)[1]: archive.read(name) for name in archive.namelist()}
    path.unlink()
    return members


def test_damaged_pickles(tmp_path, tally):
    rng = random.Random(4)
    members = _unpacked(tmp_path)
    pickled = members.pop("data.pkl")
    assert tally.try_file(_repacked(tmp_path, pickled, members)) is None
    for _ in range(COUNT):
        tally.try_file(_repacked(tmp_path, _damaged(rng, pickled), members))
    tally.check(least=COUNT // 3)


def test_damaged_legacy_files(tmp_path, tally):
    """The format before the zip: five pickles, then each storage's count and bytes."""
    rng = random.Random(8)
    members = _unpacked(tmp_path)
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    keys = [str(index) for index in range(len(ARRAYS))]
    start = [0x1950A86A20F9469CFC6C, 1001, system]
    clean = b"".join(pickle.dumps(item, 2) for item in start) + members["data.pkl"]
    clean += pickle.dumps(keys, 2)
    for array in ARRAYS.values():
        clean += array.size.to_bytes(8, "little") + array.tobytes()
    assert tally.try_file(clean) is None
    for _ in range(COUNT):
        tally.try_file(_damaged(rng, clean))
    tally.check(least=COUNT // 3)


OPCODES = [code.to_bytes(1, "little") for code in range(256)]
PIECES = [
    *OPCODES,
    b"cos\nsystem\n",
    b"cbuiltins\neval\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ctorch._tensor\n_rebuild_from_type_v2\n",
    b"ccollections\nOrderedDict\n",
    b"X\x07\x00\x00\x00storage",
    b"K\x01K\x02\x86",
    b"(K\x02K\x03t",
    b"q\x00h\x00",
    b"}]()",
    b"\x85R",
    b")\x81}b",
]


def test_random_programs(tmp_path, tally):
    rng = random.Random(5)
    for _ in range(2 * COUNT):
        program = b"".join(rng.choices(PIECES, k=rng.randrange(1, 40)))
        tally.try_file(_repacked(tmp_path, b"\x80\x02" + program + b".", {}))
    tally.check(least=2 * COUNT)


class Payload:
    """Pickles as a call of `function`."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def _payload(rng: random.Random, marker: Path) -> Payload:
    code = f"open({str(marker)!r}, 'w').close()"
    shell = f"echo x > {marker}"
    return rng.choice(
        [
            Payload(os.system, shell),
            Payload(eval, code),
            Payload(exec, code),
            Payload(open, str(marker), "w"),
            Payload(os.mkdir, str(marker)),
            Payload(subprocess.Popen, shell, -1, None, None, None, None, None, True, True),
            Payload(subprocess.check_output, ["touch", str(marker)]),
            Payload(pickle.loads, pickle.dumps(Payload(os.system, shell))),
            Payload(map, os.system, [shell]),
            Payload(Path.touch, marker),
        ]
    )


def _hidden(rng: random.Random, payload: Payload) -> object:
    """The payload somewhere in what a checkpoint looks like."""
    wrapped: object = payload
    for _ in range(rng.randrange(4)):
        wrapped = rng.choice(
            [
                [1, wrapped],
                (wrapped, "x"),
                {"callbacks": wrapped},
                {("key", 1): wrapped},
                Payload(dict, [("a", wrapped)]),
                Payload(Payload, wrapped),
            ]
        )
    return {"state_dict": {"w": 1}, "epoch": wrapped}


def test_payloads_in_files(tmp_path, tally):
    rng = random.Random(6)
    marker = tmp_path / "marker"
    members = _unpacked(tmp_path)
    whole = members.pop("data.pkl")
    for index in range(COUNT):
        hidden = _hidden(rng, _payload(rng, marker))
        pickled = pickle.dumps(hidden, rng.randrange(pickle.HIGHEST_PROTOCOL + 1))
        kind = index % 4
        if kind == 1:  # a real state dict, then the payload, in one pickle
            start = 2 if pickled[:1] == b"\x80" else 0
            pickled = whole[:-1] + b"0" + pickled[start:]
        elif kind == 2:  # damaged on the way
            pickled = _damaged(rng, pickled)
        message = tally.try_file(pickled if kind == 3 else _repacked(tmp_path, pickled, members))
        assert message is not None
        assert kind == 2 or kind == 3 or "refused, nothing in it was executed" in message
        assert not marker.exists()
    tally.check(least=COUNT)


def test_damaged_indexes(tmp_path):
    rng = random.Random(7)
    write_safetensors(tmp_path / "part.safetensors", ARRAYS)
    index = tmp_path / "model.safetensors.index.json"
    clean = json.dumps({"weight_map": dict.fromkeys(ARRAYS, "part.safetensors")}).encode()
    refused = 0
    for _ in range(COUNT):
        index.write_bytes(_damaged(rng, clean))
        try:
            with open_tensors(tmp_path) as source:
                assert set(source) == set(ARRAYS)
        except CheckpointError:
            refused += 1
    assert refused > COUNT // 2
    assert len(list(tmp_path.iterdir())) == 2

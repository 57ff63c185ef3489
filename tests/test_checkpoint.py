"""The checkpoint directory: plain Orbax reads it, devices read their parts, damage is named."""

import json
import os
import random
import shutil
import subprocess
import sys
import weakref
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from unix_jax.checkpoints import native, orbax_tree
from unix_jax.checkpoints.leaves import Leaf, array_leaf, copy_into, flatten, place, unflatten
from unix_jax.config import UniXConfig
from unix_jax.errors import CheckpointError, ConfigError, UniXError
from unix_jax.models import autoencoder, unix

CONFIG = UniXConfig.preset("tiny")


def random_tree(shapes, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)


@pytest.fixture(scope="module")
def trees():
    params, vae = unix.param_shapes(CONFIG), autoencoder.param_shapes(CONFIG.vae)
    return random_tree(params), random_tree(vae, 1)


@pytest.fixture(scope="module")
def saved(tmp_path_factory, trees):
    path = tmp_path_factory.mktemp("checkpoint") / "c"
    extras = {"a.b.c": array_leaf(np.arange(5.0)), "empty": array_leaf(np.zeros((0, 3), np.int8))}
    native.save(path, CONFIG, *trees, extras=extras)
    return path


@pytest.fixture
def copied(saved, tmp_path):
    return Path(shutil.copytree(saved, tmp_path / "c"))


def assert_equal_trees(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_load_gives_back_what_was_saved(saved, trees):
    assert native.is_checkpoint(saved)
    assert not native.is_checkpoint(saved / "params")
    assert native.load_config(saved) == CONFIG
    assert_equal_trees(native.load_params(saved), trees[0])
    assert_equal_trees(native.load_vae_params(saved), trees[1])
    extras = native.open_leaves(saved, "extras")
    np.testing.assert_array_equal(extras["a.b.c"].read_all(), np.arange(5.0))
    assert extras["empty"].read_all().shape == (0, 3)


def test_plain_orbax_reads_it(saved, trees):
    for part, tree in zip(("params", "vae"), trees, strict=True):
        assert_equal_trees(ocp.StandardCheckpointer().restore(saved / part), tree)
        assert_equal_trees(ocp.PyTreeCheckpointer().restore(saved / part), tree)


def test_plain_orbax_reads_large_stacked_leaves(tmp_path):
    array = np.random.default_rng(0).integers(0, 2**16, (3, 640, 2048), dtype=np.uint16)
    leaves = {"decoder/layers/kernel": array.view(ml_dtypes.bfloat16), "x": np.zeros(3)}
    leaves = {name: array_leaf(value) for name, value in leaves.items()}
    orbax_tree.save_tree(tmp_path / "params", leaves, None)
    found = ocp.StandardCheckpointer().restore(tmp_path / "params")
    kernel = found["decoder"]["layers"]["kernel"]
    assert kernel.dtype == ml_dtypes.bfloat16
    assert kernel.tobytes() == array.tobytes()
    header = json.loads((tmp_path / "params/decoder.layers.kernel/.zarray").read_text())
    assert header["chunks"][0] == 1
    assert np.prod(header["chunks"]) * 2 <= orbax_tree.CHUNK_BYTES


def test_cast_on_load(saved, trees):
    params = native.load_params(saved, dtype=jnp.bfloat16)
    expected = jax.tree.map(lambda leaf: leaf.astype(ml_dtypes.bfloat16), trees[0])
    assert_equal_trees(params, expected)


def test_tensor_infos(saved):
    infos = native.tensor_infos(saved)
    assert infos["params/lm_head/kernel"] == ((64, 640), np.dtype(np.float32))
    assert infos["extras/a.b.c"] == ((5,), np.dtype(np.float64))
    assert "vae/encoder/conv_in/kernel" in infos


def test_save_holds_two_batches_at_most(tmp_path, monkeypatch):
    monkeypatch.setattr(orbax_tree, "BATCH_BYTES", 1000)
    alive: weakref.WeakSet = weakref.WeakSet()
    peak = 0

    class Watched(np.ndarray):
        pass

    def read(index):
        nonlocal peak
        array = np.zeros((16, 16), np.float32).view(Watched)
        alive.add(array)
        peak = max(peak, len(alive))
        return array

    leaf = Leaf((16, 16), np.dtype(np.float32), read)
    monkeypatch.setattr(Watched, "__hash__", lambda self: id(self))
    monkeypatch.setattr(Watched, "__eq__", lambda self, other: self is other)
    orbax_tree.save_tree(tmp_path / "c", {f"leaf{i}": leaf for i in range(20)}, None)
    assert 1 <= peak <= 3


def test_device_reads_its_own_part_only():
    reads = []

    def read(index):
        reads.append(index)
        return np.arange(32.0, dtype=np.float32).reshape(4, 8)[index]

    leaf = Leaf((4, 8), np.dtype(np.float32), read)
    mesh = Mesh(np.array(jax.devices()[:1]), ("x",))
    place(leaf, None, NamedSharding(mesh, PartitionSpec(None, "x")))
    assert reads == [(slice(0, 4), slice(0, 8))]


_SHARDED = """
import sys, numpy as np, jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from unix_jax.checkpoints import native, leaves
path = sys.argv[1]
mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("data", "tensor"))
reads = []
full = native.load_params(path)
def spec(leaf):
    last = "tensor" if leaf.shape[-1] % 4 == 0 else None
    return NamedSharding(mesh, P(*[None] * (leaf.ndim - 1), last))
shardings = jax.tree.map(spec, full)
original = native.open_leaves
def watched(*arguments):
    def watch(leaf):
        def read(index):
            reads.append(np.prod([s.stop - s.start for s in index]) * leaf.dtype.itemsize)
            return leaf.read(index)
        return leaves.Leaf(leaf.shape, leaf.dtype, read)
    return {k: watch(v) for k, v in original(*arguments).items()}
native.open_leaves = watched
params = native.load_params(path, dtype="bfloat16", shardings=shardings)
def same(a, b, s):
    assert a.sharding == s and a.dtype == "bfloat16"
    assert a.addressable_shards[0].data.shape == s.shard_shape(b.shape)
    np.testing.assert_array_equal(np.asarray(a), np.asarray(b).astype("bfloat16"))
jax.tree.map(same, params, full, shardings)
# Replicas over `data` are read once, every part once.
assert sum(reads) == sum(x.nbytes for x in jax.tree.leaves(full)), sum(reads)
assert max(reads) < max(x.nbytes for x in jax.tree.leaves(full))
"""


def test_sharded_load_on_eight_devices(saved):
    flags = "--xla_force_host_platform_device_count=8"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", _SHARDED, str(saved)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]


# --- damage ----------------------------------------------------------------------------------


def chunk_of(path):
    return next(f for f in sorted((path / "params" / "lm_head.kernel").iterdir()) if "0." in f.name)


def test_truncated_and_missing_chunks_are_named(copied):
    chunk = chunk_of(copied)
    whole = chunk.read_bytes()
    chunk.write_bytes(whole[:-1])
    expected = f"lm_head.kernel/{chunk.name}: expected {len(whole)} bytes, found {len(whole) - 1}"
    with pytest.raises(CheckpointError, match=expected):
        native.load_params(copied)
    chunk.unlink()
    with pytest.raises(CheckpointError, match=f"{chunk.name}: expected .* found no such file"):
        native.load_params(copied)


def test_missing_files_are_named(copied, tmp_path):
    (copied / "params" / "lm_head.kernel" / ".zarray").unlink()
    with pytest.raises(CheckpointError, match=r"lm_head\.kernel/\.zarray: no such file"):
        native.load_params(copied)
    (copied / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json: expected a file that index\.json"):
        native.load_config(copied)
    (copied / "index.json").unlink()
    with pytest.raises(ConfigError, match=r"config\.json: no such file"):
        native.load_config(copied)
    with pytest.raises(CheckpointError, match=r"index\.json: expected this file.* found none"):
        native.load_params(copied)
    with pytest.raises(CheckpointError, match="no such directory"):
        native.load_params(tmp_path / "nowhere")


def test_misfits_are_listed_together_and_nothing_is_written(tmp_path, trees):
    flat = flatten(trees[0])
    del flat["vae2llm/bias"], flat["llm2vae/bias"]
    flat["connector/fc1/kernel"] = np.zeros((3, 4), np.float32)
    flat["more/kernel"] = np.zeros((2,), np.float32)
    with pytest.raises(CheckpointError) as caught:
        native.save(tmp_path / "c", CONFIG, unflatten(flat))
    assert list(tmp_path.iterdir()) == []
    message = str(caught.value)
    assert "2 missing, 1 unexpected, 1 mis-shaped" in message
    for line in (
        "vae2llm/bias: expected [64]",
        "llm2vae/bias: expected [16]",
        "more/kernel: found [2]",
        "connector/fc1/kernel: expected [32, 64], found [3, 4]",
    ):
        assert line in message


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("decoder", "num_layers", 2**30),
        ("decoder", "hidden_size", 2**30),
        ("decoder", "vocab_size", 2**30),
        ("vision", "num_layers", 7),
        ("vae", "num_res_blocks", 2**30),
        ("vae", "ch_mult", [1] * 40),
        (None, "max_latent_size", 2**20),
        (None, "latent_patch_size", 2),
    ],
)
def test_config_at_odds_with_the_arrays(copied, section, field, value):
    file = copied / "config.json"
    raw = json.loads(file.read_text())
    (raw[section] if section else raw)[field] = value
    file.write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match=r"config\.json: content changed"):
        native.load_config(copied)
    index = json.loads((copied / "index.json").read_text())
    del index["files"], index["crc32"]
    (copied / "index.json").write_text(json.dumps(index))
    with pytest.raises(UniXError, match=r"^(?!.*content changed)"):
        native.load_vae_params(copied) if section == "vae" else native.load_params(copied)


def test_a_failed_save_leaves_nothing(tmp_path, trees):
    def read(index):
        raise CheckpointError("source.bin: broken")

    leaves = flatten(trees[0])
    kernel = leaves["lm_head/kernel"]
    leaves["lm_head/kernel"] = Leaf(kernel.shape, kernel.dtype, read)
    with pytest.raises(CheckpointError, match=r"source\.bin: broken"):
        native.save(tmp_path / "c", CONFIG, leaves)
    assert list(tmp_path.iterdir()) == []


def test_fuzzed_index_and_headers_give_clear_errors_only(copied):
    rng = random.Random(3)
    files = [copied / "index.json", copied / "params" / "lm_head.kernel" / ".zarray"]
    originals = [file.read_bytes() for file in files]
    messages: list[str] = []
    for number in range(500):
        which = number % 2
        data = bytearray(originals[which])
        for _ in range(rng.randint(1, 3)):
            spot = rng.randrange(len(data))
            data[spot : spot + rng.randint(0, 6)] = rng.choice(
                [b"", b"0", b"-", b'"', b"{", b"\xff", b"99", b"../", b"null", b"\\ud800"]
            )
        files[which].write_bytes(data)
        try:
            native.open_leaves(copied, "params")["lm_head/kernel"].read_all()
        except UniXError as error:
            messages.append(str(error))
        except KeyError:
            # The fuzz renamed the entry in the index: loading would list it as missing.
            assert which == 0
        files[which].write_bytes(originals[which])
    assert all(str(copied) in text for text in messages)
    assert len(messages) > 250


# --- leaves ----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 5), (600, 40), (1025, 33), (16, 2000)])
@pytest.mark.parametrize("kinds", [("float32", "float32"), ("float32", ml_dtypes.bfloat16)])
def test_copy_into_is_an_assignment(shape, kinds):
    source = np.random.default_rng(0).normal(size=shape[::-1]).astype(kinds[0]).T
    target = np.empty(shape, kinds[1])
    copy_into(target, source)
    np.testing.assert_array_equal(target, source.astype(kinds[1]))


def test_flatten_and_unflatten():
    tree = {"a": {"b": 1, "c": {"d": 2}}, "e": 3}
    assert flatten(tree) == {"a/b": 1, "a/c/d": 2, "e": 3}
    assert unflatten(flatten(tree)) == tree

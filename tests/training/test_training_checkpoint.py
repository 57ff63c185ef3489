"""Checkpoints of training: whole or absent, verified, kept by rule, restored onto any mesh."""

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import struct
from jax.sharding import NamedSharding, PartitionSpec

from support.files import content
from unix_jax.checkpoints import run_files
from unix_jax.errors import CheckpointError
from unix_jax.sharding import make_mesh
from unix_jax.training import checkpoint_store
from unix_jax.training.checkpoint_store import CheckpointStore


@struct.dataclass
class State:
    step: jax.Array
    params: dict
    opt_state: tuple


def make_state(seed=0, size=64, shardings=None):
    key = jax.random.key(seed)
    params = {
        "layers": {"kernel": jax.random.normal(key, (size, 32)), "bias": jnp.arange(4.0)},
        "frozen": None,
    }
    if shardings is not None:
        params["layers"]["kernel"] = jax.device_put(params["layers"]["kernel"], shardings)
    return State(jnp.int32(seed), params, optax.adamw(1e-3).init(params))


def same(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


def fill(directory, steps, **options):
    with CheckpointStore(directory, **options) as store:
        for step in steps:
            store.save(step, make_state(step), {"data": {"position": step, "exact": 0.1 + 0.2}})
    return store


def largest_file(path):
    return max((f for f in path.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)


def test_round_trip_of_state_and_progress(tmp_path):
    fill(tmp_path, [3, 6])
    found = CheckpointStore(tmp_path).restore(make_state())
    assert found.step == 6
    assert found.progress == {"data": {"position": 6, "exact": 0.1 + 0.2}}
    assert found.skipped == []
    assert found.state.params["frozen"] is None
    same(found.state, make_state(6))


def test_nothing_to_restore(tmp_path):
    assert CheckpointStore(tmp_path).restore(make_state()) is None


def test_plain_orbax_reads_the_state(tmp_path):
    import orbax.checkpoint as ocp

    store = fill(tmp_path, [1])
    tree = ocp.StandardCheckpointer().restore(store.path(1) / "state")
    np.testing.assert_array_equal(tree["params"]["layers"]["bias"], np.arange(4.0))


def test_a_compressed_checkpoint_of_earlier_versions(tmp_path, monkeypatch):
    import orbax.checkpoint as ocp

    default = ocp.PyTreeCheckpointHandler.__init__
    with monkeypatch.context() as earlier:
        earlier.setattr(ocp.PyTreeCheckpointHandler, "__init__", lambda self, **_: default(self))
        compressed = fill(tmp_path / "a", [1]).path(1)
    plain = fill(tmp_path / "b", [1]).path(1)
    assert '"zstd"' in content_of_headers(compressed)
    assert '"zstd"' not in content_of_headers(plain)
    same(CheckpointStore(tmp_path / "a").restore(make_state()).state, make_state(1))


def content_of_headers(path):
    """The zarr headers of the state's arrays."""
    import tensorstore

    base = {"driver": "ocdbt", "base": f"file://{path}/state"}
    store = tensorstore.KvStore.open(base).result()
    headers = [key for key in store.list().result() if key.endswith(b".zarray")]
    return b"".join(store.read(key).result().value for key in headers).decode()


def test_keeps_the_last_and_the_best(tmp_path):
    losses = {1: 5.0, 2: 1.0, 3: 4.0, 4: 3.0, 5: 2.5, 6: 2.0}
    with CheckpointStore(tmp_path, keep_last=2, keep_best=1) as store:
        for step in list(losses)[:4]:
            store.save(step, make_state(step), {}, {"loss": losses[step]})
    # Another process knows the metrics of the first.
    with CheckpointStore(tmp_path, keep_last=2, keep_best=1) as store:
        for step in list(losses)[4:]:
            store.save(step, make_state(step), {}, {"loss": losses[step]})
        store.wait()
        assert store.steps() == [2, 5, 6]
    assert sorted(p.name for p in store.directory.iterdir()) == ["2", "5", "6"]


def test_steps_without_a_loss_are_never_the_best(tmp_path):
    with CheckpointStore(tmp_path, keep_last=1, keep_best=2) as store:
        for step, loss in enumerate([0.9, 0.5, None, 0.7, None]):
            store.save(step, make_state(step), {}, None if loss is None else {"loss": loss})
        store.wait()
        assert store.steps() == [1, 3, 4]


def test_equal_steps_are_not_written_twice(tmp_path):
    store = fill(tmp_path, [4])
    before = (store.path(4) / "files.json").stat().st_mtime_ns
    fill(tmp_path, [4])
    assert (store.path(4) / "files.json").stat().st_mtime_ns == before


def test_state_may_be_donated_after_save(tmp_path):
    update = jax.jit(lambda x: jax.tree.map(lambda y: y * 0 - 1, x), donate_argnums=0)
    with CheckpointStore(tmp_path) as store:
        state = make_state(5, size=4096)
        store.save(5, state, {})
        update(state)
    same(CheckpointStore(tmp_path).restore(make_state(0, 4096)).state, make_state(5, 4096))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"fsdp": 8}, {"fsdp": 2, "tensor": 2}),
        ({"fsdp": 2, "tensor": 4}, {"data": 8}),
        ({}, {"fsdp": 4}),
    ],
)
def test_restores_onto_another_mesh(tmp_path, before, after):
    def sharding(sizes):
        count = int(np.prod(list(sizes.values()) or [1]))
        return NamedSharding(
            make_mesh(**sizes, devices=jax.devices()[:count]), PartitionSpec("fsdp", "tensor")
        )

    with CheckpointStore(tmp_path) as store:
        store.save(1, make_state(1, shardings=sharding(before)), {})
    found = CheckpointStore(tmp_path).restore(make_state(0, shardings=sharding(after)))
    kernel = found.state.params["layers"]["kernel"]
    assert kernel.sharding == sharding(after)
    parts = [after.get("fsdp", 1), after.get("tensor", 1)]
    assert kernel.addressable_shards[0].data.shape == (64 // parts[0], 32 // parts[1])
    same(found.state, make_state(1))


def truncate(path):
    file = largest_file(path)
    os.truncate(file, file.stat().st_size // 2)


def flip_a_bit(path):
    file = largest_file(path)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def lose_a_file(path):
    largest_file(path).unlink()


def break_the_listing(path):
    (path / "files.json").write_text("{")


def change_a_metric(path):
    file = path / "files.json"
    value = json.loads(file.read_text())
    file.write_text(json.dumps(value | {"metrics": {"loss": -1.0}}))


def rename_the_metrics(path):
    file = path / "files.json"
    file.write_text(file.read_text().replace('"metrics"', '"letrics"'))


def lose_the_listing(path):
    (path / "files.json").unlink()


DAMAGES = [
    truncate, flip_a_bit, lose_a_file, break_the_listing, change_a_metric, rename_the_metrics,
    lose_the_listing,
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, damage):
    store = fill(tmp_path, [1, 2, 3], keep_last=3)
    damage(store.path(3))
    with CheckpointStore(tmp_path) as store:
        found = store.restore(make_state())
        assert found.step == 2
        same(found.state, make_state(2))
        (line,) = found.skipped
        assert "\n" not in line
        assert "step 3 is damaged" in line
        # The run comes by the same step again.
        store.save(3, make_state(3), {})
    assert CheckpointStore(tmp_path).restore(make_state()).step == 3


def test_files_that_are_not_needed(tmp_path):
    store = fill(tmp_path, [1])
    for name in os.listdir(store.path(1)):
        if (store.path(1) / name).is_file() and name != "files.json":
            (store.path(1) / name).write_bytes(b"{")
    assert CheckpointStore(tmp_path).restore(make_state()).step == 1


def test_all_damaged(tmp_path):
    store = fill(tmp_path, [1, 2])
    truncate(store.path(1))
    truncate(store.path(2))
    (store.directory / "3.orbax-checkpoint-tmp").mkdir()
    before = content(tmp_path)
    with pytest.raises(CheckpointError, match=r"all 2 checkpoints are damaged .*Nothing was"):
        CheckpointStore(tmp_path)
    assert content(tmp_path) == before


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES])
@pytest.mark.parametrize("file", ["files.json", "state", "all"])
def test_an_error_of_the_system_is_not_damage(tmp_path, monkeypatch, number, file):
    store = fill(tmp_path, [1, 2])
    before = content(tmp_path)

    def fails(*_, **__):
        raise OSError(number, os.strerror(number), str(store.path(2) / file))

    with monkeypatch.context() as patch:
        if file == "files.json":
            patch.setattr(type(tmp_path), "read_bytes", fails)
        elif file == "state":
            patch.setattr(run_files, "_crc32", fails)
        else:
            patch.setattr(run_files.os, "scandir", fails)
        with pytest.raises(CheckpointError, match=f"{os.strerror(number)}. Nothing was changed"):
            CheckpointStore(tmp_path)
    assert content(tmp_path) == before
    assert CheckpointStore(tmp_path).restore(make_state()).step == 2


def test_a_second_damaged_checkpoint_of_a_step_is_kept_beside_the_first(tmp_path):
    fill(tmp_path, [1])
    for name in ("2", "2-2"):
        store = fill(tmp_path, [2])
        truncate(store.path(2))
        assert CheckpointStore(tmp_path).restore(make_state()).step == 1
        assert (store.directory / "damaged" / name).is_dir()


def test_what_a_kill_left_does_not_count(tmp_path):
    store = fill(tmp_path, [1, 2])
    store.path(2).rename(store.directory / "2.orbax-checkpoint-tmp")
    again = CheckpointStore(tmp_path)
    assert again.restore(make_state()).step == 1
    assert again.skipped == []
    assert sorted(p.name for p in store.directory.iterdir()) == ["1"]


def test_another_configuration_is_named(tmp_path):
    fill(tmp_path, [1])
    store = CheckpointStore(tmp_path)
    with pytest.raises(CheckpointError, match=r"kernel: expected float32\[32, 32\], found float32"):
        store.restore(make_state(size=32))
    other = State(jnp.int32(0), {"layers": {"scale": jnp.ones(4)}}, ())
    with pytest.raises(CheckpointError, match="not in this run"):
        store.restore(other)
    # It was not taken for damage.
    assert store.steps() == [1]


def test_unwritable_directory(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"file/run/checkpoints: cannot be written"):
        CheckpointStore(tmp_path / "file" / "run")
    if os.geteuid() != 0:
        (tmp_path / "locked").mkdir(mode=0o500)
        with pytest.raises(CheckpointError, match="Permission denied"):
            CheckpointStore(tmp_path / "locked")


def test_full_disk_is_seen_before_writing(tmp_path, monkeypatch):
    fill(tmp_path, [1])
    usage = checkpoint_store.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(checkpoint_store.shutil, "disk_usage", lambda _: usage._replace(free=100))
    store = CheckpointStore(tmp_path)
    with pytest.raises(CheckpointError, match=r"checkpoints/2: cannot be written: needs"):
        store.save(2, make_state(2), {})
    assert sorted(p.name for p in store.directory.iterdir()) == ["1"]


LIMITED = textwrap.dedent("""
    import resource, signal, sys
    import jax.numpy as jnp
    import numpy as np
    from unix_jax.errors import UniXError
    from unix_jax.training.checkpoint_store import CheckpointStore
    store = CheckpointStore(sys.argv[1])
    small = {"x": jnp.zeros(10)}
    store.save(1, small, {})
    store.wait()
    # What a full disk does: writing fails part of the way.
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    state = {"x": jnp.asarray(np.random.default_rng(0).normal(size=100_000))}
    try:
        store.save(2, state, {})
        store.wait()
    except UniXError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
""")


@pytest.mark.extended
def test_a_write_that_fails_is_one_error_and_leaves_nothing(tmp_path):
    run = subprocess.run(
        [sys.executable, "-c", LIMITED, tmp_path], capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 1, run.stderr
    path = tmp_path / "checkpoints" / "2"
    assert run.stderr == f"error: {path}: cannot be written: File too large\n"
    assert sorted(p.name for p in path.parent.iterdir()) == ["1"]
    assert CheckpointStore(tmp_path).steps() == [1]


def test_a_listing_that_cannot_be_written(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with CheckpointStore(tmp_path) as store:
        store.save(1, make_state(1), {})
        store.wait()
        monkeypatch.setattr(checkpoint_store, "write_listing", full)
        store.save(2, make_state(2), {})
        with pytest.raises(CheckpointError, match=r"2: cannot be written: No space left on device"):
            store.wait()
    assert sorted(p.name for p in store.directory.iterdir()) == ["1"]


SAVING = textwrap.dedent("""
    import sys
    import jax.numpy as jnp
    import numpy as np
    from unix_jax.training.checkpoint_store import CheckpointStore
    store = CheckpointStore(sys.argv[1], keep_last=1)
    data = np.random.default_rng(0).normal(size=2_000_000).astype(np.float32)
    step = first = (store.steps() or [0])[-1]
    while True:
        step += 1
        store.save(step, {"x": jnp.asarray(data + step)}, {"step": step})
        if step == first + 2:  # Saving it waited for the one before.
            print(step, flush=True)
""")


@pytest.mark.slow
def test_kill_9_while_saving_leaves_a_usable_checkpoint(tmp_path):
    rng = np.random.default_rng(0)
    data = np.random.default_rng(0).normal(size=2_000_000).astype(np.float32)
    reached = 0
    for _ in range(10):
        run = subprocess.Popen(
            [sys.executable, "-c", SAVING, tmp_path], stdout=subprocess.PIPE, text=True
        )
        run.stdout.readline()
        time.sleep(rng.uniform(0, 0.5))
        run.send_signal(signal.SIGKILL)
        run.wait()
        found = CheckpointStore(tmp_path).restore({"x": jnp.zeros(2_000_000)})
        assert found.step > reached
        assert found.skipped == []
        reached = found.step
        assert found.progress == {"step": reached}
        np.testing.assert_array_equal(found.state["x"], data + np.float32(reached))

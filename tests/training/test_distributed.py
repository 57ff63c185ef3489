"""Whether a process looks for others, and what it says when it does not find them."""

import importlib.machinery
import importlib.util
import sys
import types

import jax
import pytest

from unix_jax.errors import ConfigError
from unix_jax.training import distributed
from unix_jax.training.distributed import initialise


@pytest.fixture
def joined(monkeypatch):
    """The arguments of each call of jax.distributed.initialize, which joins nobody here."""
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *given: calls.append(given))
    return calls


@pytest.fixture(autouse=True)
def devices(tmp_path, monkeypatch):
    """An empty directory of device files, and an environment that says nothing."""
    for name in ("JAX_PLATFORMS", *distributed._CLUSTER_VARIABLES):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(distributed, "_DEVICES", tmp_path)
    return tmp_path


@pytest.fixture
def chips(devices, monkeypatch):
    """A machine with TPUs: their device files and libtpu."""
    module = types.ModuleType("libtpu")
    module.__spec__ = importlib.machinery.ModuleSpec("libtpu", None)
    monkeypatch.setitem(sys.modules, "libtpu", module)
    (devices / "vfio").mkdir()
    (devices / "vfio" / "0").touch()
    return devices


@pytest.mark.parametrize(
    ("environment", "calls"),
    [
        ({}, 0),
        ({"SLURM_NTASKS": "1"}, 0),
        ({"SLURM_NTASKS": "2"}, 1),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, 0),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, 1),
        ({"JAX_COORDINATOR_ADDRESS": "a:1"}, 1),
    ],
)
def test_schedulers(environment, calls, joined, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    initialise()
    assert joined == [(None, None, None)] * calls


@pytest.mark.parametrize("name", ["accel0", "vfio/0"])
def test_machines_with_tpus_ask_their_metadata(name, joined, chips):
    (chips / "vfio" / "0").unlink()
    initialise()
    assert not joined
    (chips / name).touch()
    initialise()
    assert joined == [()]


@pytest.mark.parametrize(("platforms", "calls"), [("", 1), ("tpu,cpu", 1), ("cpu", 0)])
def test_tpus_that_are_not_to_be_used(platforms, calls, joined, chips, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    initialise()
    assert len(joined) == calls


def test_other_files_and_other_software_are_no_tpu(joined, chips, monkeypatch):
    (chips / "vfio" / "0").rename(chips / "vfio" / "vfio")
    initialise()
    (chips / "accel0").touch()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    initialise()
    assert not joined


@pytest.mark.parametrize(
    "error", [ValueError("coordinator_address should be defined."), ConnectionError("no\nhost")]
)
def test_a_machine_of_its_own_is_told_so(error, chips, monkeypatch):
    def fail():
        raise error

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    with pytest.warns(UserWarning, match="has TPUs, but nothing says .* it works alone"):
        initialise()


@pytest.mark.parametrize("given", [(), ("a:1", 2, 0)])
def test_others_that_do_not_answer(given, chips, monkeypatch):
    def fail(*_):
        raise RuntimeError("DEADLINE_EXCEEDED:\n timed out")

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    with pytest.raises(ConfigError, match=r"do not find each other: DEADLINE_EXCEEDED: timed out"):
        initialise(*given)


@pytest.mark.parametrize("given", [("a:1", None, None), (None, 2, 0), ("a:1", 2, None)])
def test_all_or_nothing(given, joined):
    with pytest.raises(ConfigError, match="expected coordinator, num_processes and process_id"):
        initialise(*given)
    assert not joined

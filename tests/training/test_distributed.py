"""Whether a process looks for others, and what it says when it does not find them."""

import importlib.machinery
import importlib.util
import os
import sys
import types

import jax
import pytest

from unix_jax.errors import ConfigError
from unix_jax.training import distributed
from unix_jax.training.distributed import Place, initialise


@pytest.fixture
def joined(monkeypatch):
    """The place of each call of jax.distributed.initialize, which joins nobody here."""
    calls = []

    def initialize(*given, local_device_ids, heartbeat_timeout_seconds, shutdown_timeout_seconds):
        assert max(heartbeat_timeout_seconds, shutdown_timeout_seconds) <= 60
        calls.append(Place(*given, local_device_ids))

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    return calls


@pytest.fixture(autouse=True)
def devices(tmp_path, monkeypatch):
    """An empty directory of device files, and an environment that says nothing."""
    for name in list(os.environ):
        if name.startswith(("JAX_", "SLURM_", "TPU_", "MEGASCALE_", "OMPI_", "PMI_", "MPI_")):
            monkeypatch.delenv(name)
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


def set_all(environment, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "node[01-02]",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "1",
    "SLURM_NTASKS": "2",
}
OMPI = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}
PMI = {"PMI_SIZE": "4", "PMI_RANK": "3"}
OWN = {"JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "0"}
ADDRESS = {"JAX_COORDINATOR_ADDRESS": "a:1"}
ALONE = None


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        ({}, ALONE),
        ({"SLURM_NTASKS": "1"}, ALONE),
        ({"SLURM_NTASKS": "1", "SLURM_JOB_ID": "7"}, ALONE),
        (SLURM, Place()),
        # srun of some versions sets these, too.
        ({**SLURM, "PMI_SIZE": "2", "PMI_RANK": "1"}, Place()),
        ({**SLURM, **ADDRESS}, Place("a:1")),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, ALONE),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, Place()),
        ({"TPU_PROCESS_ADDRESSES": "a:1,b:1"}, Place()),
        ({"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}, Place()),
        ({"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "1"}, ALONE),
        (ADDRESS, Place("a:1")),
        ({**OWN, **ADDRESS}, Place("a:1", 4, 0)),
        ({**OWN, **ADDRESS, **SLURM}, Place("a:1", 4, 0)),
        ({**OMPI, "OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:1"}, Place()),
        ({**OMPI, **ADDRESS}, Place("a:1", 4, 3, [1])),
        ({**PMI, **ADDRESS}, Place("a:1", 4, 3)),
        ({**PMI, **ADDRESS, "MPI_LOCALRANKID": "0"}, Place("a:1", 4, 3, [0])),
        ({"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"}, ALONE),
        ({"PMI_SIZE": "1", "PMI_RANK": "0"}, ALONE),
    ],
)
def test_schedulers(environment, place, joined, monkeypatch):
    set_all(environment, monkeypatch)
    initialise()
    assert joined == ([] if place is ALONE else [place])


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"SLURM_NTASKS": "2"}, "expected a process that srun started.*SLURM_STEP_NODELIST"),
        ({"SLURM_NTASKS": "8", "SLURM_JOB_ID": "1"}, "start the command with srun"),
        (OMPI, "expected JAX_COORDINATOR_ADDRESS=HOST:PORT.*OMPI_COMM_WORLD_SIZE is 4"),
        (PMI, "expected JAX_COORDINATOR_ADDRESS=HOST:PORT.*PMI_SIZE is 4"),
        (OWN, "expected JAX_COORDINATOR_ADDRESS=HOST:PORT with JAX_NUM_PROCESSES"),
        ({**ADDRESS, "JAX_NUM_PROCESSES": "4"}, "JAX_NUM_PROCESSES=4, JAX_PROCESS_ID=None"),
        ({**ADDRESS, "JAX_PROCESS_ID": "4"}, "JAX_NUM_PROCESSES=None, JAX_PROCESS_ID=4"),
        ({**ADDRESS, **OWN, "JAX_PROCESS_ID": "4"}, "JAX_PROCESS_ID below JAX_NUM_PROCESSES"),
        ({**ADDRESS, **OWN, "JAX_PROCESS_ID": "-1"}, "expected two numbers"),
        ({**ADDRESS, **OWN, "JAX_NUM_PROCESSES": "four"}, "JAX_NUM_PROCESSES=four"),
        ({**ADDRESS, **OMPI, "OMPI_COMM_WORLD_RANK": ""}, "OMPI_COMM_WORLD_RANK="),
    ],
)
def test_schedulers_that_do_not_say_enough(environment, message, joined, monkeypatch):
    set_all(environment, monkeypatch)
    with pytest.raises(ConfigError, match=message):
        initialise()
    assert not joined


@pytest.mark.parametrize("name", ["accel0", "vfio/0"])
def test_machines_with_tpus_ask_their_metadata(name, joined, chips):
    (chips / "vfio" / "0").unlink()
    initialise()
    assert not joined
    (chips / name).touch()
    initialise()
    assert joined == [Place()]


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
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    with pytest.warns(UserWarning, match="has TPUs, but nothing says .* it works alone"):
        initialise()


@pytest.mark.parametrize("given", [(), ("a:1", 2, 0)])
def test_others_that_do_not_answer(given, chips, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("DEADLINE_EXCEEDED:\n timed out")

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    with pytest.raises(ConfigError, match=r"do not find each other: DEADLINE_EXCEEDED: timed out"):
        initialise(*given)


@pytest.mark.parametrize("error", [ConnectionError("no\nhost"), ImportError("no requests")])
def test_a_metadata_server_that_does_not_answer(error, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "a,b")
    with pytest.raises(ConfigError, match="do not find each other: no"):
        initialise()


@pytest.mark.parametrize("given", [("a:1", None, None), (None, 2, 0), ("a:1", 2, None)])
def test_all_or_nothing(given, joined):
    with pytest.raises(ConfigError, match="expected coordinator, num_processes and process_id"):
        initialise(*given)
    assert not joined

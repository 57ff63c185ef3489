"""Four processes on this machine start as schedulers start them, and end together."""

import contextlib
import http.server
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from support import toy_run
from support.paths import ROOT

PROCESSES = 4

pytestmark = pytest.mark.slow


def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return str(probe.getsockname()[1])


def coordinates():
    return {"JAX_COORDINATOR_ADDRESS": f"localhost:{free_port()}"}


def slurm():
    """`srun --ntasks=4`, on one node."""
    shared = {
        "SLURM_JOB_ID": str(os.getpid() + int(time.time())),
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_STEP_NUM_NODES": "1",
        "SLURM_NTASKS": "4",
    }
    return [shared | {"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)} for i in range(PROCESSES)]


def open_mpi_4():
    """`mpirun -n 4`: process 0 is found by the address of mpirun."""
    job = (os.getpid() % 4000 + 1) << 12
    return [
        {
            "OMPI_MCA_orte_hnp_uri": f"{job}.0;tcp://127.0.0.1:34911",
            "OMPI_COMM_WORLD_SIZE": "4",
            "OMPI_COMM_WORLD_RANK": str(i),
            "OMPI_COMM_WORLD_LOCAL_RANK": str(i),
        }
        for i in range(PROCESSES)
    ]


def job_set():
    """A Kubernetes JobSet without TPUs, with the variables of deploy/gke_jobset_gpu.yaml."""
    shared = coordinates() | {"JAX_NUM_PROCESSES": "4"}
    return [shared | {"JAX_PROCESS_ID": str(i)} for i in range(PROCESSES)]


def gke_slice():
    """One TPU slice of four machines under GKE."""
    shared = {
        "TPU_WORKER_HOSTNAMES": ",".join(["localhost"] * 4),
        "JAX_COORDINATOR_PORT": free_port(),
    }
    return [shared | {"TPU_WORKER_ID": str(i)} for i in range(PROCESSES)]


def gke_two_slices():
    """Two TPU slices of two machines each, under GKE with a JobSet."""
    shared = {
        "TPU_WORKER_HOSTNAMES": "localhost,localhost",
        "JAX_COORDINATOR_PORT": free_port(),
        "MEGASCALE_NUM_SLICES": "2",
        "MEGASCALE_COORDINATOR_ADDRESS": "localhost",
    }
    return [
        shared | {"TPU_WORKER_ID": str(i % 2), "MEGASCALE_SLICE_ID": str(i // 2)}
        for i in range(PROCESSES)
    ]


@contextlib.contextmanager
def metadata(index):
    """The metadata server of a TPU machine, or of another one without an index; its address."""
    values = (
        {}
        if index is None
        else {
            "agent-worker-number": str(index),
            "worker-network-endpoints": ",".join(f"u:{i}:127.0.0.1" for i in range(PROCESSES)),
            "tpu-env": "ACCELERATOR_TYPE: 'v5litepod-16'\nTYPE: 'V5LITE_POD'",
        }
    )

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            value = values.get(self.path.rpartition("/")[2])
            self.send_response(200 if value is not None else 404)
            self.end_headers()
            self.wfile.write((value or "").encode())

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def clean_environment():
    """Without what a scheduler of this machine may have set."""
    known = ("SLURM_", "OMPI_", "PMI_", "TPU_", "MEGASCALE_", "JAX_", "GCE_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(known)}
    return kept | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
    }


def join(environments, *words):
    """The line that each process prints."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "support.join", *words],
            env=clean_environment() | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for environment in environments
    ]
    lines = []
    for process in processes:
        out, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        lines.append(json.loads(out.splitlines()[-1]))
    return lines


TOGETHER = [[i, PROCESSES, list(range(PROCESSES))] for i in range(PROCESSES)]


@pytest.mark.parametrize("start", [slurm, open_mpi_4, job_set])
def test_schedulers(start):
    assert join(start()) == TOGETHER


def test_mpich():
    shared = coordinates() | {"PMI_SIZE": "4"}
    environments = [
        shared | {"PMI_RANK": str(i), "MPI_LOCALRANKID": str(i)} for i in range(PROCESSES)
    ]
    assert join(environments) == TOGETHER


@pytest.mark.parametrize("start", [gke_slice, gke_two_slices])
def test_tpus_under_gke(start):
    """Their metadata server knows nothing of TPUs, and JAX asks it nevertheless."""
    with metadata(None) as address:
        environments = [x | {"GCE_METADATA_IP": address} for x in start()]
        assert join(environments, "tpu") == TOGETHER


def test_tpu_machines():
    """Each asks its own metadata server, and none of the schedulers' variables is set."""
    port = free_port()
    with contextlib.ExitStack() as stack:
        environments = [
            {
                "GCE_METADATA_IP": stack.enter_context(metadata(i)),
                "JAX_COORDINATOR_PORT": port,
            }
            for i in range(PROCESSES)
        ]
        assert join(environments, "tpu") == TOGETHER


# ------------------------------------------------------------------------------ ending together


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return toy_run.make_toy(tmp_path_factory.mktemp("toy"))


def launch_four(toy, out, *options):
    port = free_port()
    return [
        toy_run.launch(
            [
                toy("understanding"), "--out", out, "--mesh", "data=4", "--data.rows", 4,
                "--total-steps", 100_000, *options,
                "--distributed.coordinator", f"localhost:{port}",
                "--distributed.num-processes", PROCESSES, "--distributed.process-id", i,
            ]
        )
        for i in range(PROCESSES)
    ]  # fmt: skip


def wait_for_steps(processes, out):
    while not (out / "metrics.jsonl").exists() or not toy_run.metrics(out):
        for process in processes:
            assert process.poll() is None, process.communicate()
        time.sleep(0.5)


@pytest.mark.parametrize("dead", [2, 0])
def test_a_killed_process_ends_the_others(dead, toy, tmp_path):
    """Within a minute, and they say which one it was."""
    processes = launch_four(toy, tmp_path)
    wait_for_steps(processes, tmp_path)
    processes[dead].send_signal(signal.SIGKILL)
    killed = time.monotonic()
    texts = []
    for index, process in enumerate(processes):
        _, errors = process.communicate(timeout=120)
        if index != dead:
            assert process.returncode != 0
            texts.append(errors)
    assert time.monotonic() - killed < 60
    if dead == 0:
        # JAX itself may be faster, and then names process 0 in its own words.
        expected = "error: distributed: process 0, which coordinates|leader"
    else:
        expected = rf"error: distributed: process {dead} of 4 \(.+\) has not answered for 30 s"
    for text in texts:
        assert re.search(expected, text), text
        if dead:
            assert "Traceback" not in text


def test_an_error_of_one_process_ends_the_others(toy, tmp_path):
    """Of its own code, of which the others know nothing."""
    fault = tmp_path / "sitecustomize.py"
    fault.write_text(
        "import os\n"
        "if os.environ.get('UNIX_JAX_TEST_FAULT'):\n"
        "    from unix_jax.training import rates\n"
        "    def fail(self):\n"
        "        raise OSError('the disk is full')\n"
        "    rates.Rates.take = fail\n"
    )
    port = free_port()
    out = tmp_path / "run"
    processes = [
        toy_run.launch(
            [
                toy("understanding"), "--out", out, "--mesh", "data=4", "--data.rows", 4,
                "--total-steps", 100_000, "--distributed.coordinator", f"localhost:{port}",
                "--distributed.num-processes", PROCESSES, "--distributed.process-id", i,
            ],
            PYTHONPATH=os.pathsep.join([str(tmp_path), str(ROOT)]),
            UNIX_JAX_TEST_FAULT="1" if i == 1 else "",
        )
        for i in range(PROCESSES)
    ]  # fmt: skip
    begin = time.monotonic()
    for index, process in enumerate(processes):
        _, errors = process.communicate(timeout=300)
        assert process.returncode != 0
        if index == 1:
            assert "error: the disk is full" in errors
        else:
            assert "error: distributed: process 1 of 4" in errors, errors
            assert "ended with an error" in errors
    assert time.monotonic() - begin < 240

"""The Dockerfile and the scripts of deploy/: their linters, and what they do with stand-ins."""

import json
import os
import re
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from support.paths import ROOT
from unix_jax.training.config import parse_arguments

DEPLOY = ROOT / "deploy"
SCRIPTS = [*sorted(DEPLOY.glob("*.sh")), DEPLOY / "slurm.sbatch"]
JOB_SETS = sorted(DEPLOY.glob("gke_jobset_*.yaml"))
BASE_IMAGE = re.compile(r"FROM (\S+)(?: AS (\w+))?")


def linter(name):
    """The program of a package in the extra [dev]."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed (extra dev)")
    return found


def run(command, **options):
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def test_hadolint():
    done = run([linter("hadolint"), str(ROOT / "Dockerfile")])
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "script", [*SCRIPTS, ROOT / ".ci/run", ROOT / ".ci/wheel"], ids=lambda p: p.name
)
def test_shellcheck(script):
    done = run([linter("shellcheck"), str(script)])
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("file", [ROOT / "Dockerfile", *SCRIPTS, *JOB_SETS], ids=lambda p: p.name)
def test_each_file_says_what_was_not_tried(file):
    header = []
    for line in file.read_text().splitlines():
        if not line.startswith("#"):
            break
        header.append(line)
    assert any("NOT TRIED" in line for line in header)
    assert file.name in (DEPLOY / "README.md").read_text()
    if file in SCRIPTS:
        assert file.stat().st_mode & stat.S_IXUSR


# ---------------------------------------------------------------------------------- JobSets


def pods(file):
    """(name of the replicated job, its Job, the container) of a JobSet."""
    job_set = yaml.safe_load(file.read_text())
    assert (job_set["apiVersion"], job_set["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    (replicated,) = job_set["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    return job_set, replicated, job, container


@pytest.mark.parametrize("file", JOB_SETS, ids=lambda p: p.name)
def test_job_sets(file):
    job_set, replicated, job, container = pods(file)
    assert job["parallelism"] == job["completions"]
    assert job["backoffLimit"] == 0
    # A restart resumes the run; half a run cannot.
    assert job_set["spec"]["failurePolicy"]["maxRestarts"] > 0
    assert job["template"]["spec"]["restartPolicy"] == "Never"
    assert job["template"]["spec"]["terminationGracePeriodSeconds"] >= 300
    command, *arguments = container["args"]
    assert command == "train"
    parsed = parse_arguments(arguments)
    assert str(parsed.out).startswith("/shared/")
    mounts = {mount["name"] for mount in container["volumeMounts"]}
    assert mounts == {volume["name"] for volume in job["template"]["spec"]["volumes"]}
    variables = {v["name"]: v for v in container.get("env", [])}
    if "gpu" in file.name:
        host, _, port = variables["JAX_COORDINATOR_ADDRESS"]["value"].partition(":")
        name = job_set["metadata"]["name"]
        assert host == f"{name}-{replicated['name']}-0-0.{name}"
        assert int(port) in [p["containerPort"] for p in container["ports"]]
        assert int(variables["JAX_NUM_PROCESSES"]["value"]) == job["parallelism"]
        assert replicated["replicas"] == 1
        assert job["completionMode"] == "Indexed"
        field = variables["JAX_PROCESS_ID"]["valueFrom"]["fieldRef"]["fieldPath"]
        assert field == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    else:
        chips = container["resources"]["limits"]["google.com/tpu"]
        sides = job["template"]["spec"]["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
        x, y = map(int, sides.split("x"))
        assert job["parallelism"] * chips == x * y


# ---------------------------------------------------------------------------------- scripts


def stand_in(directory, name, text):
    directory.mkdir(exist_ok=True)
    file = directory / name
    file.write_text(f"#!/bin/bash\n{text}\n")
    file.chmod(0o755)
    return file


def with_stand_ins(directory, **variables):
    return os.environ | {"PATH": f"{directory}:{os.environ['PATH']}"} | variables


def write_arguments(file):
    """A script's line that appends its arguments as a line of JSON."""
    python = shlex.quote(sys.executable)
    code = "import json, sys; print(json.dumps(sys.argv[1:]))"
    return f'{python} -c {shlex.quote(code)} "$@" >> {shlex.quote(str(file))}'


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


@pytest.fixture
def slurm(tmp_path):
    """Starts slurm.sbatch; srun runs the task, which takes until SIGTERM or until it is told."""
    bin_, log, requeued = tmp_path / "bin", tmp_path / "srun.jsonl", tmp_path / "scontrol.jsonl"
    task = (
        'trap "exit ${ON_TERM:-0}" TERM; sleep "${SECONDS_OF_TASK:-0}" & wait; exit "${AT_END:-0}"'
    )
    stand_in(bin_, "srun", f"{write_arguments(log)}\n{task}")
    stand_in(bin_, "scontrol", write_arguments(requeued))

    def start(*arguments, **variables):
        environment = with_stand_ins(
            bin_, SHARED=str(tmp_path), SLURM_JOB_ID="7", SLURM_JOB_NAME="job", **variables
        )
        process = subprocess.Popen(
            ["bash", str(DEPLOY / "slurm.sbatch"), *arguments],
            env=environment, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        return process, log, requeued

    return start


def test_slurm_runs_the_command(slurm, tmp_path):
    process, log, requeued = slurm("stage1_understanding", "--init=a b")
    assert process.wait(30) == 0
    assert lines(log) == [
        ["--kill-on-bad-exit=1", ".venv/bin/unix-jax", "train", "stage1_understanding",
         "--init=a b", "--out", f"{tmp_path}/runs/job"]
    ]  # fmt: skip
    assert lines(requeued) == []


def test_slurm_keeps_the_out_that_is_given(slurm):
    process, log, _ = slurm("stage1_understanding", "--out=x")
    assert process.wait(30) == 0
    assert lines(log)[0][-1] == "--out=x"


def test_slurm_returns_the_error_of_the_run(slurm):
    process, _, requeued = slurm("stage1_understanding", AT_END="3")
    assert process.wait(30) == 3
    assert lines(requeued) == []


@pytest.mark.parametrize(("code", "again"), [("0", [["requeue", "7"]]), ("1", [])])
def test_slurm_requeues_a_run_that_its_time_limit_stopped(code, again, slurm):
    process, log, requeued = slurm("stage1_understanding", SECONDS_OF_TASK="60", ON_TERM=code)
    until = time.monotonic() + 30
    while not lines(log) and time.monotonic() < until:
        time.sleep(0.05)
    # The stand-in has set its trap by then.
    time.sleep(0.5)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(30) == int(code)
    assert lines(requeued) == again


def test_slurm_without_arguments(slurm):
    process, log, _ = slurm()
    assert process.wait(30) == 2
    assert "expected a configuration" in process.stderr.read()
    assert lines(log) == []


@pytest.fixture
def tpu_vm(tmp_path):
    """Runs tpu_vm.sh; returns what it asked gcloud for."""
    log = tmp_path / "gcloud.jsonl"
    stand_in(tmp_path / "bin", "gcloud", write_arguments(log))

    def start(*arguments):
        environment = with_stand_ins(tmp_path / "bin", TPU="slice", ZONE="z")
        done = run(["bash", str(DEPLOY / "tpu_vm.sh"), *arguments], env=environment)
        return done, lines(log)

    return start


SSH = ["compute", "tpus", "tpu-vm", "ssh", "slice", "--zone=z", "--worker=all"]


def test_tpu_vm_trains_on_all_machines(tpu_vm):
    done, calls = tpu_vm("train", "stage1_understanding", "--init=a b", "--out=$x")
    assert done.returncode == 0, done.stderr
    ((*words, command),) = calls
    assert words == SSH
    # What the remote shell makes of it.
    assert shlex.split(command.removeprefix("--command="))[-4:] == [
        "train", "stage1_understanding", "--init=a b", "--out=$x",
    ]  # fmt: skip


@pytest.mark.extended
def test_tpu_vm_installs(tpu_vm):
    done, calls = tpu_vm("install")
    assert done.returncode == 0, done.stderr
    copied, installed = calls
    assert copied[:4] == ["compute", "tpus", "tpu-vm", "scp"]
    assert copied[-3:] == ["slice:unix-jax.tar.gz", "--zone=z", "--worker=all"]
    assert installed[:-1] == SSH
    assert "'.[tpu,train,data]'" in installed[-1]


def test_tpu_vm_stops(tpu_vm):
    done, calls = tpu_vm("stop")
    assert done.returncode == 0
    assert "-TERM" in calls[0][-1]


@pytest.mark.parametrize("arguments", [(), ("other",), ("train",)])
def test_tpu_vm_used_wrongly(arguments, tpu_vm):
    done, calls = tpu_vm(*arguments)
    assert done.returncode == 2
    assert "error: expected" in done.stderr
    assert calls == []


def test_xpk(tmp_path):
    log = tmp_path / "xpk.jsonl"
    stand_in(tmp_path / "bin", "xpk", write_arguments(log))
    environment = with_stand_ins(
        tmp_path / "bin", CLUSTER="c", ZONE="z", PROJECT="p", IMAGE="i", NUM_SLICES="2"
    )
    script = str(DEPLOY / "gke_xpk.sh")
    assert run(["bash", script], env=environment).returncode == 2
    done = run(["bash", script, "stage1_understanding", "--init=a b"], env=environment)
    assert done.returncode == 0, done.stderr
    (words,) = lines(log)
    assert words[:2] == ["workload", "create"]
    assert "--num-slices=2" in words
    assert shlex.split(words[-1].removeprefix("--command=")) == [
        "unix-jax", "train", "stage1_understanding", "--init=a b",
    ]  # fmt: skip


# ------------------------------------------------------------------------------- Dockerfile


def steps():
    """(instruction, text) of the Dockerfile, its continued lines joined."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    text = text.replace("\\\n", " ")
    return [tuple(line.split(None, 1)) for line in text.splitlines() if line.strip()]


def ignored(path):
    """Whether .dockerignore keeps a path of the repository from the build."""
    kept = False
    for line in (ROOT / ".dockerignore").read_text().split():
        if line.startswith("!") and (path == line[1:] or path.startswith(f"{line[1:]}/")):
            kept = True
    return not kept


def test_everything_that_is_copied_is_there_and_not_ignored():
    for instruction, text in steps():
        if instruction == "COPY" and not text.startswith("--from"):
            for source in text.split()[:-1]:
                assert (ROOT / source).exists(), source
                assert not ignored(source), source


@pytest.mark.slow
@pytest.mark.parametrize("target", ["cpu", "other"])
def test_the_steps_of_the_dockerfile(target, tmp_path):
    """As shell commands in an empty directory, with the folders of the image moved there."""

    def moved(text):
        return re.sub(r"/(src|opt/venv|work)\b", lambda found: f"{tmp_path}{found[0]}", text)

    environment = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "TARGET": target}
    # The image's Python is that of this test.
    python = tmp_path / "python"
    python.mkdir()
    (python / "python").symlink_to(sys._base_executable)
    environment["PATH"] = f"{python}:{environment['PATH']}"
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_CERT"):
        environment |= {name: os.environ[name]} if name in os.environ else {}
    folder, entry = tmp_path, []
    for instruction, text in steps():
        if instruction == "WORKDIR":
            folder = Path(moved(text))
            folder.mkdir(parents=True, exist_ok=True)
        elif instruction == "ENV":
            for pair in shlex.split(text.replace("$PATH", environment["PATH"])):
                name, _, value = pair.partition("=")
                environment[name] = moved(value) if name == "PATH" else value
        elif instruction == "COPY" and not text.startswith("--from"):
            *sources, destination = text.split()
            for source in sources:
                if (ROOT / source).is_dir():
                    shutil.copytree(
                        ROOT / source,
                        folder / destination,
                        ignore=shutil.ignore_patterns("__pycache__"),
                    )
                else:
                    shutil.copyfile(ROOT / source, folder / destination / source)
        elif instruction == "RUN":
            done = run(["/bin/sh", "-c", moved(text)], cwd=folder, env=environment)
            if target == "other":
                assert done.returncode == 1
                assert "expected cpu, gpu or tpu, found other" in done.stderr
                return
            assert done.returncode == 0, done.stderr
        elif instruction == "ENTRYPOINT":
            entry = json.loads(text)
        else:
            assert instruction in ("ARG", "FROM", "COPY", "CMD")
    environment["JAX_PLATFORMS"] = "cpu"
    image = ROOT / "examples" / "nih_0823b2557d1225f4.jpg"
    found = shutil.which(entry[0], path=environment["PATH"])
    assert found is not None
    assert found.startswith(str(tmp_path))
    done = run([found, "report", str(image)], cwd=folder, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    done = run([found, "train", "nano_understanding", "--help"], cwd=folder, env=environment)
    assert done.returncode == 0, done.stderr

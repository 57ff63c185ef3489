"""What `unix-jax train` sets for GPUs, and that the installed XLA knows the flag."""

import subprocess
import sys

import pytest

from unix_jax.training import gpu_settings
from unix_jax.training.gpu_settings import FRACTION, SCHEDULER, set_gpu_defaults


@pytest.fixture
def cuda(monkeypatch):
    """A machine with JAX's CUDA plugin."""
    monkeypatch.setattr(
        gpu_settings.importlib.util, "find_spec", lambda name: name == "jax_cuda13_plugin" or None
    )


def test_both_are_set_and_said(cuda):
    environment = {"XLA_FLAGS": "--xla_dump_to=x"}
    assert set_gpu_defaults(environment) == [f"XLA_FLAGS={SCHEDULER}=true", f"{FRACTION}=0.9"]
    assert environment == {"XLA_FLAGS": f"--xla_dump_to=x {SCHEDULER}=true", FRACTION: "0.9"}
    assert set_gpu_defaults(environment) == []


@pytest.mark.parametrize(
    ("given", "added"),
    [
        ({"XLA_FLAGS": f"{SCHEDULER}=false"}, [f"{FRACTION}=0.9"]),
        ({"XLA_PYTHON_CLIENT_MEM_FRACTION": ".5"}, [f"XLA_FLAGS={SCHEDULER}=true"]),
        ({"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}, [f"XLA_FLAGS={SCHEDULER}=true"]),
    ],
)
def test_what_the_user_set_holds(cuda, given, added):
    environment = dict(given)
    assert set_gpu_defaults(environment) == added
    assert given.items() <= environment.items()


@pytest.mark.parametrize("platforms", ["cpu", "tpu", "tpu,cpu"])
def test_other_platforms(cuda, platforms):
    environment = {"JAX_PLATFORMS": platforms}
    assert set_gpu_defaults(environment) == []
    assert environment == {"JAX_PLATFORMS": platforms}


@pytest.mark.parametrize("platforms", ["cuda", "gpu", "cuda,cpu"])
def test_cuda_by_name(cuda, platforms):
    assert len(set_gpu_defaults({"JAX_PLATFORMS": platforms})) == 2


def test_without_the_plugin(monkeypatch):
    monkeypatch.setattr(gpu_settings.importlib.util, "find_spec", lambda name: None)
    environment: dict[str, str] = {}
    assert set_gpu_defaults(environment) == []
    assert environment == {}


def test_xla_reads_it_after_the_imports():
    """The command sets it when JAX is imported already; XLA knows the flag."""
    program = (
        "import os, jax; os.environ['XLA_FLAGS'] = '{}=true'; jax.devices('cpu'); print('known')"
    )
    for flag, known in ((SCHEDULER, True), ("--xla_gpu_no_such_flag", False)):
        run = subprocess.run(
            [sys.executable, "-c", program.format(flag)], capture_output=True, text=True
        )
        assert ("known" in run.stdout) is known

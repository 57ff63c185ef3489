"""What `unix-jax train` sets for CPUs, and that glibc then keeps what a step has freed."""

import os
import platform
import subprocess
import sys

import pytest

from unix_jax.training import cpu_settings
from unix_jax.training.cpu_settings import set_cpu_defaults

on_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
ALL = ["MALLOC_ARENA_MAX=1", "MALLOC_MMAP_MAX_=0", "MALLOC_TRIM_THRESHOLD_=-1"]


class Library:
    """A C library that notes what it is told."""

    def __init__(self):
        self.calls = []

    def mallopt(self, number, value):
        self.calls.append((number, value))
        return 1


@pytest.fixture
def library(monkeypatch):
    """A glibc, and a machine without accelerators."""
    library = Library()
    monkeypatch.setattr(cpu_settings.ctypes, "CDLL", lambda name: library)
    monkeypatch.setattr(cpu_settings.platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setattr(cpu_settings.importlib.util, "find_spec", lambda name: None)
    return library


@pytest.mark.parametrize("environment", [{}, {"JAX_PLATFORMS": "cpu"}])
def test_all_are_set_and_said(library, environment):
    assert set_cpu_defaults(environment) == ALL
    assert library.calls == [(-8, 1), (-4, 0), (-1, -1)]


@pytest.mark.parametrize(
    "environment",
    [
        {"MALLOC_ARENA_MAX": "4"},
        {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"},
        {"LD_PRELOAD": "/usr/lib/libtcmalloc.so.4"},
        {"JAX_PLATFORMS": "cuda"},
        {"JAX_PLATFORMS": "tpu,cpu"},
    ],
)
def test_what_the_user_decided_holds(library, environment):
    assert set_cpu_defaults(environment) == []
    assert library.calls == []


@pytest.mark.parametrize("module", ["libtpu", "jax_plugins"])
def test_with_an_accelerator(library, monkeypatch, module):
    monkeypatch.setattr(
        cpu_settings.importlib.util, "find_spec", lambda name: name == module or None
    )
    assert set_cpu_defaults({}) == []
    assert set_cpu_defaults({"JAX_PLATFORMS": "cpu"}) == ALL
    assert len(library.calls) == 3


def test_another_c_library(library, monkeypatch):
    monkeypatch.setattr(cpu_settings.platform, "libc_ver", lambda: ("", ""))
    assert set_cpu_defaults({}) == []


PROGRAM = """
import resource, sys
import jax, jax.numpy as jnp
from unix_jax.training.cpu_settings import set_cpu_defaults

if "set" in sys.argv:
    assert len(set_cpu_defaults()) == 3
# An operand of 64 MB, which is temporary memory.
step = jax.jit(lambda x: jnp.sin(x) @ jnp.ones((1024, 8)))
x = jnp.ones((16 * 1024, 1024))
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
found = []
for _ in range(8):
    before = faults()
    step(x).block_until_ready()
    found.append(faults() - before)
print(min(found))  # the heap may grow in some of the steps, depending on the threads
"""


@on_glibc
def test_steps_reuse_their_memory():
    """Without the settings, every step has its pages cleared by the kernel."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    found = [
        int(subprocess.check_output([sys.executable, "-c", PROGRAM, *a], env=environment))
        for a in ([], ["set"])
    ]
    assert found[0] > 5_000
    assert found[1] < 1_000

"""Eight virtual CPU devices for every test, and the golden model loaded once per worker."""

import contextlib
import ctypes
import gc
import getpass
import importlib.metadata
import os
import sys
import tempfile
import time

# Both are read when jax is first imported, which the test modules do.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Toy programs take far longer to compile than to run, so LLVM's optimisations only cost here, and
# so do the fusion emitters: without them programs compile in half the time. A flag that XLA does
# not know ends the process, so it is given where it is known.
os.environ["XLA_FLAGS"] = " ".join(
    (
        "--xla_force_host_platform_device_count=8",
        "--xla_backend_optimization_level=0",
        "--xla_cpu_use_fusion_emitters=false"
        if importlib.metadata.version("jaxlib").startswith("0.10.")
        else "",
        os.environ.get("XLA_FLAGS", ""),  # what the user asks for comes last, and holds
    )
)

# Workers and the processes that tests start compile the same programs, today and tomorrow: once is
# enough.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR",
    os.path.join(tempfile.gettempdir(), f"unix-jax-tests-{getpass.getuser()}"),
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

# `unix-jax train` would otherwise tell malloc to keep all freed memory of the worker. This variable
# has glibc's own value and no further effect; most others, with theirs, map every large block anew.
os.environ.setdefault("MALLOC_PERTURB_", "0")

# Container images often set this. The tests start a hundred processes, and each would compile every
# module of this package again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

GOLDEN = Path(__file__).parent / "golden" / "tiny"
PROGRAMS = Path(tempfile.gettempdir()) / f"unix-jax-tests-{getpass.getuser()}"
MOST_RESIDENT = 2 * 2**30  # two workers and what they start fit into 8 GiB


def pytest_configure(config):
    sys.dont_write_bytecode = False
    # Traces are large graphs of objects that live: looking through them less saves a twentieth.
    gc.set_threshold(100_000, 50, 100)
    if not hasattr(config, "workerinput"):
        remove_old_programs()


def remove_old_programs(days=7):
    """Programs change with the code, and JAX removes none; in the tests' own folder alone."""
    for file in PROGRAMS.glob("*-cache"):
        with contextlib.suppress(OSError):
            if file.stat().st_mtime < time.time() - days * 86400:
                file.unlink()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item, nextitem):
    """JAX keeps every program it compiled, 1.5 to 3 MB each: thousands of them are dropped."""
    yield
    if nextitem is not None and nextitem.path != item.path and resident_bytes() > MOST_RESIDENT:
        import jax

        jax.clear_caches()
        gc.collect()
        # glibc keeps what is freed.
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


def resident_bytes():
    """Of this process; 0 where the system does not tell."""
    status = Path("/proc/self/statm")
    return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if status.exists() else 0


def relative_difference(ours, expected):
    """max |a - b| / max |b|, the measure of the golden files."""
    ours, expected = (np.asarray(x, np.float64) for x in (ours, expected))
    assert ours.shape == expected.shape
    return float(np.abs(ours - expected).max() / np.abs(expected).max())


@pytest.fixture(scope="session")
def assert_close():
    """assert_close(ours, expected, tolerance=2e-5): by `relative_difference`, which NaN fails."""

    def check(ours, expected, tolerance=2e-5):
        assert relative_difference(ours, expected) <= tolerance

    return check


@pytest.fixture(scope="session")
def golden():
    """Every tensor of the golden file by name."""
    from safetensors.numpy import load_file

    return load_file(GOLDEN / "golden.safetensors")


@pytest.fixture(scope="session")
def golden_info():
    """golden.json."""
    return json.loads((GOLDEN / "golden.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def tiny():
    """The golden model in float32: `config`, `params`, `vae_params`, and `apply(method, ...)`."""
    import jax
    import jax.numpy as jnp

    from unix_jax.checkpoints.load import load_model
    from unix_jax.models.unix import UniX

    config, params, vae_params = load_model(GOLDEN / "checkpoint", dtype=jnp.float32)
    model = UniX(config)
    run = jax.jit(
        lambda params, method, *arguments: model.apply(
            {"params": params}, *arguments, method=getattr(UniX, method)
        ),
        static_argnames=("method",),
    )
    return SimpleNamespace(
        config=config,
        params=params,
        vae_params=vae_params,
        model=model,
        apply=lambda method, *arguments: run(params, method, *arguments),
    )

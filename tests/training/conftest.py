"""Compiled programs are shared between the workers of a run: compiling is most of these tests.

Runs of `train.py` that many tests look at are made once per worker.
"""

import functools

import jax
import pytest

from support import toy_run


@pytest.fixture(scope="session", autouse=True)
def shared_compilation_cache(tmp_path_factory):
    settings = {
        # The parent is common to all workers.
        "jax_compilation_cache_dir": str(tmp_path_factory.getbasetemp().parent / "compiled"),
        "jax_persistent_cache_min_compile_time_secs": 0.1,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture(scope="session")
def toy(tmp_path_factory):
    """stage -> a configuration file."""
    return toy_run.make_toy(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="session")
def train():
    """`train.py` as a module."""
    return toy_run.load_train()


@pytest.fixture(scope="session")
def whole(toy, train, tmp_path_factory):
    """stage -> the directory of a finished run of 8 steps; it is not to be changed.

    It holds checkpoints of the steps 6 and 8, and the export.
    """

    @functools.cache
    def run(stage):
        out = tmp_path_factory.mktemp("whole")
        assert train.main([str(toy(stage)), "--out", str(out)]) == 0
        return out

    return run

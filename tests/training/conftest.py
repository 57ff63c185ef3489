"""Compiled programs are shared between the workers of a run: compiling is most of these tests."""

import jax
import pytest


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

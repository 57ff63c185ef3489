"""Persistent cache of compiled programs on disk."""

import os
from pathlib import Path

import jax

from unix_jax.storage.paths import is_url


def default_cache_directory() -> Path:
    """`$XDG_CACHE_HOME/unix-jax/xla`, or the same under `~/.cache`."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "unix-jax" / "xla"


def enable_compilation_cache() -> None:
    """Enables JAX's persistent compilation cache for this process.

    A directory that the user has chosen (`JAX_COMPILATION_CACHE_DIR`, `jax.config`) is kept.
    Nothing is written if the directory cannot be created or is a URL.
    """
    if jax.config.jax_compilation_cache_dir is not None:  # type: ignore[attr-defined]
        return
    path = default_cache_directory()
    if is_url(str(path)):
        return
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    jax.config.update("jax_compilation_cache_dir", str(path))
    # A start compiles many small programs. Reading one takes about 5 ms.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.02)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

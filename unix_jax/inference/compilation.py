"""Compiled programs kept on disk, so that a second start does not compile again."""

import os
from pathlib import Path

import jax

from unix_jax.storage.paths import is_url


def default_cache_directory() -> Path:
    """`$XDG_CACHE_HOME/unix-jax/xla`, or the same under `~/.cache`."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "unix-jax" / "xla"


def enable_compilation_cache(directory: str | os.PathLike[str] | None = None) -> None:
    """Turns JAX's persistent compilation cache on for this process.

    A directory that was chosen already (`JAX_COMPILATION_CACHE_DIR`, `jax.config`) is kept, so
    that this never overrides the user. Nothing is written when the directory cannot be created
    or is a URL.
    """
    if jax.config.jax_compilation_cache_dir is not None and directory is None:  # type: ignore[attr-defined]
        return
    path = Path(directory) if directory is not None else default_cache_directory()
    if is_url(str(path)):
        return
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    jax.config.update("jax_compilation_cache_dir", str(path))
    # Many small programs make up a start: keep them all.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

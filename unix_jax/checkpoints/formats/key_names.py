"""Tensor names with the segments and prefixes that wrappers and larger models add."""

import re
from collections.abc import Iterable

# Segments that no module of ours is called: torch.compile, FSDP, activation checkpointing,
# DeepSpeed.
WRAPPERS = {
    "_orig_mod",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
    "_forward_module",
}
# DataParallel's segment, which could be a name in parts of a file that we do not know.
PARALLEL = "module"
# Parts of a key that are tried as its prefix.
_MAX_PREFIX = 16


def known_count(keys: Iterable[str], known: frozenset[str]) -> int:
    """The number of keys that contain a name of the table, with any wrapper or prefix."""
    return sum(known_start(key, known) is not None for key in keys)


def known_start(key: str, known: frozenset[str]) -> tuple[str, str] | None:
    """(the prefix of a key, the name of the table after it), or None."""
    parts = without(key, WRAPPERS | {PARALLEL}).split(".")
    for start in range(min(len(parts), _MAX_PREFIX)):
        name = first_layer(".".join(parts[start:]))
        if name in known:
            return "".join(f"{part}." for part in parts[:start]), name
    return None


def first_layer(key: str) -> str:
    """The key with every number between dots replaced by 0."""
    return re.sub(r"\.[0-9]+(?=\.)", ".0", key)


def without(key: str, segments: set[str]) -> str:
    """The key without these segments."""
    return ".".join(part for part in key.split(".") if part not in segments)

"""Removes the prefixes that PyTorch wrappers or larger models add to keys.

`torch.compile`, DataParallel, FSDP and activation checkpointing insert their own segments, at the
start of a key or inside it; a Lightning module or a larger model puts its name before every key.
The keys of the table determine which part belongs to a name: `model.` is removed from
`model.language_model.model.norm.weight` once.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from unix_jax.checkpoints.formats.key_names import (
    PARALLEL,
    WRAPPERS,
    first_layer,
    known_start,
    without,
)
from unix_jax.checkpoints.formats.tensor_source import (
    TensorInfo,
    TensorSource,
    is_average,
    missing_key,
    note,
    quoted,
)
from unix_jax.checkpoints.table import Entry
from unix_jax.errors import CheckpointError, shortened

# Where the weights lie in an exponential average of latent-diffusion code (`LitEma`): the names
# have lost their dots.
_DOTLESS = "model_ema."
# Prefixes in one file that are told apart.
_MAX_PREFIXES = 32


def known_names(table: Iterable[Entry]) -> frozenset[str]:
    """The keys of a table with every layer's number replaced by 0, as `unwrapped` takes them."""
    return frozenset(first_layer(key) for entry in table for key in entry.keys[:1])


def unwrapped(
    tensors: TensorSource,
    known: frozenset[str],
    wanted: str | None = None,
    keep: Callable[[str], Any] = lambda key: False,
    usual: str = "",
) -> TensorSource:
    """The tensors with the table's names; notes state what was removed from keys or not used.

    A file may contain several copies of the weights with different prefixes, such as `model.` and
    `ema.`; the average is used if `wanted` is `ema`, or if nothing else exists. Another `wanted` is
    the name of the prefix to use, unless it has already selected a state dict.

    Args:
      tensors: the source as it was opened; it is closed with the result, or on an error.
      known: the table's names, of `known_names`.
      wanted: `model`, `ema`, the name of a prefix, or None.
      keep: whether a key that the table lacks has a name of its own that is not to be touched.
      usual: the prefix of the published file; where it is the only one, the keys keep it.

    Raises:
      CheckpointError: two keys become the same name, or several prefixes match equally well.
    """
    try:
        names, averaged = _names(tensors, known, None if tensors.named else wanted, keep, usual)
    except BaseException:
        tensors.close()
        raise
    averaged = averaged or tensors.averaged
    if list(names) == list(names.values()) == tensors.keys():
        tensors.averaged = averaged
        return tensors
    return _Renamed(tensors, names, averaged)


def _names(
    tensors: TensorSource,
    known: frozenset[str],
    wanted: str | None,
    keep: Callable[[str], Any],
    usual: str,
) -> tuple[dict[str, str], bool]:
    """(the table's name -> the file's key, whether it is an average)."""
    own = {key: without(key, WRAPPERS) for key in tensors.keys()}  # noqa: SIM118
    prefix, partial, copies = _prefixes(tensors, own.values(), known, wanted)

    def name_behind(key: str, start: str) -> str | None:
        rest = _behind(key, start)
        if rest is None or keep(rest) or first_layer(rest) in known:
            return rest
        bare = without(rest, {PARALLEL})
        return bare if keep(bare) or first_layer(bare) in known else rest

    def name_of(key: str) -> str | None:
        if _is_dotless(key, prefix) or any(_behind(key, copy) is not None for copy in copies):
            return None
        for start in (*partial, prefix):
            name = name_behind(key, start)
            if name is not None:
                return name
        name = name_behind(key, "")
        return name if name and (keep(name) or first_layer(name) in known) else None

    names: dict[str, list[str]] = {}
    left: list[str] = []
    for key, wrapped in own.items():
        name = name_of(wrapped)
        if name is None:
            left.append(key)
        else:
            names.setdefault(name, []).append(key)
    _refuse_collisions(tensors, names)
    result = {name: keys[0] for name, keys in names.items()}
    averaged = is_average(prefix)
    if wanted == "ema" and not averaged:
        found = {key: file for file, key in own.items() if _is_dotless(key, prefix)}
        dotless = {
            name: file
            for name in result
            for start in ("", prefix)
            if (file := found.get(f"{start}{_DOTLESS}{name.replace('.', '')}"))
        }
        if not known.isdisjoint(map(first_layer, dotless)):
            kept = set(dotless.values())
            left = [key for key in own if key not in kept]
            result, averaged = dotless, True
    if usual and not left and all(key == usual + name for name, key in result.items()):
        return {key: key for key in own}, averaged
    _say(tensors, result, left)
    return result, averaged


def _behind(key: str, prefix: str) -> str | None:
    """The rest of a key after `prefix`, which may contain DataParallel's segments; or None."""
    parts = key.split(".")
    start = 0
    for part in [*prefix.split(".")[:-1], None]:
        while start < len(parts) - 1 and parts[start] == PARALLEL:
            start += 1
        if part is None:
            break
        if start == len(parts) - 1 or parts[start] != part:
            return None
        start += 1
    return ".".join(parts[start:])


def _is_dotless(key: str, prefix: str) -> bool:
    return any(
        key.startswith(start) and "." not in key.removeprefix(start)
        for start in (_DOTLESS, prefix + _DOTLESS)
    )


def _prefixes(
    tensors: TensorSource, keys: Iterable[str], known: frozenset[str], wanted: str | None
) -> tuple[str, list[str], list[str]]:
    """The prefix of the weights, those of parts of them, and those of copies."""
    found: dict[str, set[str]] = {}
    for key in keys:
        if start := known_start(key, known):
            found.setdefault(start[0], set()).add(start[1])
    if not found:
        return "", [], []
    most = max(map(len, found.values()))
    whole = [prefix for prefix, names in found.items() if 2 * len(names) >= most]
    averages = [prefix for prefix in whole if is_average(prefix)]
    weights = [prefix for prefix in whole if not is_average(prefix)]
    if wanted == "model" and not weights:
        raise CheckpointError(
            f"{tensors.path}: expected weights that are not an average (--weights model), found "
            f"only those under {', '.join(shortened([quoted(prefix) for prefix in averages]))}"
        )
    if len(whole) > 1:
        prefixes = tuple(f"{quoted(prefix)} ({len(found[prefix])} names)" for prefix in whole)
        tensors.sets = (*tensors.sets, *prefixes)
    named = [prefix for prefix in whole if wanted and wanted in (prefix[:-1], *prefix.split("."))]
    if named and wanted not in ("model", "ema"):
        tensors.named, candidates = True, named
    else:
        candidates = (averages or weights) if wanted == "ema" else (weights or averages)
    chosen = "" if "" in candidates else max(candidates, key=lambda prefix: len(found[prefix]))
    # A hostile file has as many as keys.
    frequent = sorted(found, key=lambda prefix: len(found[prefix]), reverse=True)[:_MAX_PREFIXES]
    others = {
        prefix: 2 * len(found[prefix] & found[chosen]) >= len(found[prefix])
        for prefix in frequent
        if prefix != chosen
    }
    copies = [prefix for prefix, copy in others.items() if copy]
    equal = [prefix for prefix in candidates if prefix in copies]
    if equal and chosen:
        raise CheckpointError(
            f"{tensors.path}: expected the weights under one prefix, found them under "
            f"{', '.join(shortened([quoted(prefix) for prefix in (chosen, *equal)]))}; name one "
            "with --weights NAME of `unix-jax convert`"
        )
    # Longest first, since one may begin with another; the empty one is no sign of a copy.
    ordered = sorted((prefix for prefix in others if prefix), key=len, reverse=True)
    return (
        chosen,
        [prefix for prefix in ordered if prefix not in copies],
        [prefix for prefix in ordered if prefix in copies and not chosen.startswith(prefix)],
    )


def _refuse_collisions(tensors: TensorSource, names: Mapping[str, list[str]]) -> None:
    double = [
        f"{quoted(name)}: {', '.join(shortened([quoted(key) for key in keys], 2))}"
        for name, keys in names.items()
        if len(keys) > 1
    ]
    if double:
        start = f"{tensors.path}: without the prefixes of wrappers, keys collide ({len(double)}):"
        raise CheckpointError(
            "\n  ".join((start, *shortened(double))), "\n  ".join((start, *double))
        )


def _say(tensors: TensorSource, names: Mapping[str, str], left: list[str]) -> None:
    """Emits a note about what was removed from keys, and one about unused tensors."""
    removed: dict[str, int] = {}
    for name, key in names.items():
        if name == key:
            continue
        if key.endswith(f".{name}"):
            what = key.removesuffix(name)
        elif key.replace(".", "").endswith(name.replace(".", "")) and _DOTLESS in key:
            what = _DOTLESS
        else:
            cut = {part for part in key.split(".") if part not in name.split(".")}
            what = "".join(f"{part}." for part in dict.fromkeys(key.split(".")) if part in cut)
        removed[what] = removed.get(what, 0) + 1
    if removed:
        total = len(tensors)
        parts = [f"{quoted(what)} from {count} of {total} keys" for what, count in removed.items()]
        note(f"{tensors.path}: removed {', '.join(shortened(parts))}")
    if left:
        shown = ", ".join(shortened([quoted(key) for key in left], 2))
        note(f"{tensors.path}: used {len(names)} tensors, not {len(left)} others: {shown}")


class _Renamed(TensorSource):
    """Some tensors of a source, under other names."""

    def __init__(self, tensors: TensorSource, names: dict[str, str], averaged: bool):
        self.path = tensors.path
        self.metadata = tensors.metadata
        self.skipped = tensors.skipped
        self.averaged = averaged
        self.named = tensors.named
        self.checksums = tensors.checksums
        self.sets = tensors.sets
        self._tensors = tensors
        self._names = names

    def _key(self, name: str) -> str:
        if name not in self._names:
            raise missing_key(self.path, name, self.keys())
        return self._names[name]

    def keys(self) -> list[str]:
        return list(self._names)

    def info(self, key: str) -> TensorInfo:
        return self._tensors.info(self._key(key))

    def read(self, key: str) -> np.ndarray:
        return self._tensors.read(self._key(key))

    def release(self, key: str) -> None:
        self._tensors.release(self._key(key))

    def file_of(self, key: str) -> Path:
        return self._tensors.file_of(self._key(key))

    def files(self) -> list[tuple[str, list[str]]]:
        names = {key: name for name, key in self._names.items()}
        return [
            (file, [names[key] for key in keys if key in names])
            for file, keys in self._tensors.files()
        ]

    def close(self) -> None:
        self._tensors.close()

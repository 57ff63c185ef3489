"""Finds the weight files of a directory: a single file, an index with its shards, or only shards.

Training code saves optimisers, schedulers and states of random generators next to them, and often
an average of the weights. The user chooses between weights and average.
"""

import dataclasses
import os
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath

from unix_jax.checkpoints.formats.safetensors_file import parse_json_object
from unix_jax.checkpoints.formats.tensor_source import MappedFile, is_average, note, quoted
from unix_jax.errors import CheckpointError, shortened

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".ckpt", ".pt", ".pth")
# The names looked for in a directory, best first.
DIRECTORY_NAMES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
INDEX_SUFFIX = ".index.json"
# Likewise in `vae/` of the published layout.
PUBLISHED_VAE_NAMES = ("kl-f16d16.ckpt", *DIRECTORY_NAMES)


def _diffusers_names(stem: str, pickle: str) -> tuple[str, ...]:
    """Names of a part's weights, best first: safetensors before pickles, float32 before float16."""
    files = [
        f"{name}{variant}.{suffix}"
        for name, suffix in ((stem, "safetensors"), (pickle, "bin"))
        for variant in ("", ".fp16")
    ]
    return tuple(name for file in files for name in (file, f"{file}{INDEX_SUFFIX}"))


_UNET_NAMES = _diffusers_names("diffusion_pytorch_model", "diffusion_pytorch_model")
# Likewise in the folders of a diffusers pipeline.
DIFFUSERS_NAMES = {
    "unet": _UNET_NAMES,
    "vae": _UNET_NAMES,
    "text_encoder": (*DIRECTORY_NAMES, *_diffusers_names("model", "pytorch_model")),
}
# A tensor takes some 120 bytes.
MAX_INDEX_BYTES = 16 * 2**20

# What transformers, accelerate, DeepSpeed, Lightning and BAGEL save beside the weights.
_NOT_WEIGHTS = re.compile(
    r"(.*[-_.])?(training_args|optim|optimizers?|optim_states|(lr_)?schedulers?|scaler"
    r"|grad_scaler|rng_state|random_states?|sampler|dl_state_dict|data_status|trainer_state)"
    r"([-_.].*)?",
    re.IGNORECASE,
)
# The running sums of an optimizer, which have the names and shapes of the weights.
_OPTIMIZER_SUMS = re.compile(
    r"(max_)?exp_(avg|inf)(_sq)?|square_avg|acc_delta|grad_avg|momentum(_buffer)?"
)
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>[0-9]{1,6})-of-(?P<count>[0-9]{1,6})")


def is_training_state(name: str) -> bool:
    """Whether a file's stem or an entry's name denotes training state other than weights.

    Examples are the optimizer, the scheduler and the states of random generators.
    """
    return bool(_NOT_WEIGHTS.fullmatch(name) or _OPTIMIZER_SUMS.fullmatch(name))


@dataclasses.dataclass(frozen=True)
class WeightFiles:
    """Files that hold one set of weights.

    Attributes:
      paths: the file, or the shards in order; of an index, the index alone.
      name: its name in messages.
      averaged: whether its name denotes an average (EMA).
    """

    paths: tuple[Path, ...]
    name: str

    @property
    def averaged(self) -> bool:
        return is_average(self.name)

    @property
    def is_index(self) -> bool:
        return self.name.endswith(".json")


def weight_files(directory: Path) -> list[WeightFiles]:
    """Every set of weights in a directory, by name; shards count as one.

    Raises:
      CheckpointError: the directory cannot be listed.
    """
    try:
        names = sorted(entry.name for entry in os.scandir(directory) if not entry.is_dir())
    except OSError as error:
        raise CheckpointError(f"{directory}: cannot be listed: {error.strerror}") from error
    listed: set[str] = set()
    for name in filter(_is_index, names):
        try:
            listed.update(read_weight_map(directory / name).values())
        except CheckpointError:
            continue  # named when it is opened, if it is the one that is chosen
    return _sets([name for name in names if name not in listed], directory)


def _sets(names: Sequence[str], directory: Path = Path()) -> list[WeightFiles]:
    """Every set of weights among the names of a directory, by name; shards count as one."""
    indexes = [name for name in names if _is_index(name)]
    singles, shards = [], dict[tuple[str, str, str], list[str]]()
    for name in names:
        path = PurePosixPath(name)
        if path.suffix not in WEIGHT_SUFFIXES or is_training_state(path.stem):
            continue
        if match := _SHARD.fullmatch(path.stem):
            if f"{match['stem']}{path.suffix}{INDEX_SUFFIX}" in indexes:
                continue
            shards.setdefault((match["stem"], match["count"], path.suffix), []).append(name)
        else:
            singles.append(name)
    found = [WeightFiles((directory / name,), name) for name in (*indexes, *singles)]
    for (stem, count, suffix), parts in shards.items():
        paths = tuple(directory / name for name in parts)
        found.append(WeightFiles(paths, f"{stem}-*-of-{count}{suffix}"))
    return sorted(found, key=lambda files: files.name)


def needed_files(
    names: Sequence[str], wanted: str | None = None, preferred: Sequence[str] = DIRECTORY_NAMES
) -> list[str]:
    """The files among the names of a directory that `find_weights` would use, with their shards.

    The arguments are those of `find_weights`, which decides by the content of an index as well:
    what may be a shard of an index is taken. Where it would find none, or cannot choose, there are
    none.
    """
    names = sorted(name for name in names if "/" not in name)
    found = _sets(names)
    if wanted in names:
        chosen = next((f for f in found if wanted in map(str, f.paths)), None)
        if chosen is None:
            return [wanted]
    else:
        chosen = _usual(_candidates(found, wanted), preferred)
    if chosen is None:
        return []
    if not chosen.is_index:
        return [str(path) for path in chosen.paths]
    stem, suffix = os.path.splitext(chosen.name.removesuffix(INDEX_SUFFIX))
    files = [name for name in names if name.endswith(suffix)]
    shards = [name for name in files if re.fullmatch(rf"{re.escape(stem)}-.*", name)]
    return [chosen.name, *(shards or files)]


def _candidates(found: Sequence[WeightFiles], wanted: str | None) -> list[WeightFiles]:
    """The weights, or the averages where they are wanted; the others where there are none."""
    averages = [files for files in found if files.averaged]
    weights = [files for files in found if not files.averaged]
    return (averages or weights) if wanted == "ema" else (weights or averages)


def _is_index(name: str) -> bool:
    return name.endswith(INDEX_SUFFIX) and name.removesuffix(INDEX_SUFFIX).endswith(WEIGHT_SUFFIXES)


def find_weights(
    directory: Path,
    wanted: str | None = None,
    preferred: Sequence[str] = DIRECTORY_NAMES,
) -> WeightFiles:
    """The requested set of weights of a directory, or the usual one.

    A note names the unused ones. If only the content of a file can show whether it contains an
    average, as for `model.pt`, `ema` returns the file of the plain weights.

    Args:
      directory: the directory.
      wanted: `model`, `ema`, the name of a file of the directory, or the path of another file;
        any other name is one inside a file, and has no effect here.
      preferred: names to look for, best first.

    Raises:
      CheckpointError: there is none, several and none has a usual name, or a shard is missing.
    """
    if is_file_name(directory, wanted):
        assert wanted is not None
        return _checked(_named(directory, wanted))
    found = weight_files(directory)
    candidates = _candidates(found, wanted)
    if wanted == "model" and found and all(files.averaged for files in found):
        raise CheckpointError(
            f"{directory}: expected weights that are not an average (--weights model), "
            f"found {', '.join(shortened([files.name for files in found]))}"
        )
    chosen = _usual(candidates, preferred)
    if chosen is None:
        names = ", ".join(shortened([files.name for files in found])) or "none"
        raise CheckpointError(
            f"{directory}: expected one of {', '.join(preferred)}, or one weight file; "
            f"found {names}"
        )
    left = [files.name for files in found if files is not chosen]
    average = ", an average" if chosen.averaged and wanted is None else ""
    if left:
        note(
            f"{directory}: used the weights of {chosen.name}{average}, not those of "
            f"{', '.join(shortened(left))}"
        )
    elif average:
        note(f"{directory}: used the weights of {chosen.name}{average}; found no other weights")
    return _checked(chosen)


def is_file_name(directory: Path, wanted: str | None) -> bool:
    """Whether `--weights` means a file, not a name inside one; the file need not exist."""
    if wanted in (None, "model", "ema"):
        return False
    assert wanted is not None
    return (
        (directory / wanted).is_file()
        or Path(wanted).is_file()
        or "/" in wanted
        or wanted.endswith((*WEIGHT_SUFFIXES, ".json"))
    )


def _named(directory: Path, wanted: str) -> WeightFiles:
    path = directory / wanted if (directory / wanted).is_file() else Path(wanted)
    if not path.is_file():
        names = ", ".join(shortened([files.name for files in weight_files(directory)])) or "none"
        raise CheckpointError(
            f"{directory}: expected `model`, `ema` or a weight file, found {quoted(wanted)}; "
            f"the directory has {names}"
        )
    # A shard stands for all of them.
    known = weight_files(path.parent)
    return next((f for f in known if path in f.paths), WeightFiles((path,), path.name))


def _usual(candidates: list[WeightFiles], preferred: Sequence[str]) -> WeightFiles | None:
    by_name = {files.name: files for files in candidates}
    for name in preferred:
        if name in by_name:
            return by_name[name]
    stems = {name.removesuffix(INDEX_SUFFIX).rpartition(".")[0] for name in preferred}
    for suffix in WEIGHT_SUFFIXES:
        sharded = [
            files
            for files in candidates
            if len(files.paths) > 1 or "-*-of-" in files.name
            if files.name.endswith(suffix) and files.name.partition("-*-of-")[0] in stems
        ]
        if len(sharded) == 1:
            return sharded[0]
    if len(candidates) == 1:
        return candidates[0]
    # The same weights in two formats.
    safe = [files for files in candidates if files.name.endswith(".safetensors")]
    same = {files.name.partition(".")[0] for files in candidates}
    return safe[0] if len(safe) == 1 and len(same) == 1 else None


def _checked(files: WeightFiles) -> WeightFiles:
    """Raises CheckpointError if the shards' own numbers say that one is missing."""
    match = _SHARD.fullmatch(files.paths[0].stem)
    if match is None or "-*-of-" not in files.name:
        return files
    numbers = {int(_SHARD.fullmatch(path.stem)["number"]) for path in files.paths}  # type: ignore[index]
    width, count = len(match["number"]), int(match["count"])
    first = 0 if 0 in numbers else 1
    missing = sorted(set(range(first, first + count)) - numbers)
    if missing or len(files.paths) != count:
        names = [
            f"{match['stem']}-{number:0{width}}-of-{match['count']}{files.paths[0].suffix}"
            for number in missing
        ]
        raise CheckpointError(
            f"{files.paths[0].parent}: expected {count} shards {files.name}, "
            f"found {len(files.paths)}; missing: {', '.join(shortened(names)) or 'none'}"
        )
    return files


def read_weight_map(path: Path) -> dict[str, str]:
    """An index's table from tensor to shard; shards are plain file names in the index's directory.

    Raises:
      CheckpointError: the index is too large, no JSON, or its table is not of that form.
    """
    file = MappedFile(path)
    try:
        if file.size > MAX_INDEX_BYTES:
            raise CheckpointError(
                f"{path}: expected an index of at most {MAX_INDEX_BYTES} bytes, found {file.size}"
            )
        index = parse_json_object(path, file.bytes(0, file.size), "index of shards")
    finally:
        file.close()
    table = index.get("weight_map")
    if not isinstance(table, dict) or not table:
        raise CheckpointError(f"{path}: expected an object `weight_map`, found {quoted(table)}")
    for key, name in table.items():
        if not isinstance(name, str) or not _is_plain_name(name):
            raise CheckpointError(
                f"{path}: {quoted(key)}: expected the name of a shard in the index's directory, "
                f"found {quoted(name)}"
            )
    return table


def _is_plain_name(name: str) -> bool:
    return (
        name not in ("", ".", "..")
        and name.isprintable()
        and PurePosixPath(name).name == name
        and PureWindowsPath(name).name == name
    )

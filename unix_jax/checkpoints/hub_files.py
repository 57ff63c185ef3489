"""Which files of a repository on the hub a checkpoint is, by their names alone.

Each function takes the names of the files in a folder of the repository, and the weight file of it
that is meant, or None; it returns the names of the files to download, as
`unix_jax.storage.hub.located` asks.
"""

import re
from collections.abc import Sequence

from unix_jax.checkpoints.formats.weight_files import (
    DIFFUSERS_NAMES,
    DIRECTORY_NAMES,
    INDEX_SUFFIX,
    PUBLISHED_VAE_NAMES,
    WEIGHT_SUFFIXES,
    needed_files,
)
from unix_jax.checkpoints.source_files import is_wanted
from unix_jax.errors import CheckpointError
from unix_jax.storage.recorded_files import CONFIG, INDEX, SOURCE, TOKENIZER_FILES

RUN_FILE = "run.json"
EXPORT = "export"
_PARTS = ("params", "vae", "text_encoder", "extras")
_OWN_FOLDERS = (*_PARTS, SOURCE)
_DIFFUSERS_FOLDERS = (*DIFFUSERS_NAMES, "tokenizer", "scheduler", "feature_extractor")
_SMALL = re.compile(r".*\.(json|txt)|(README|LICENSE|LICENCE|NOTICE)([._-].*)?", re.IGNORECASE)


def checkpoint_files(
    names: Sequence[str],
    file: str | None = None,
    *,
    wanted: str | None = None,
    keep: Sequence[str] = (),
) -> list[str]:
    """A checkpoint of this project, the published layout, Janus-Pro's, or a diffusers folder.

    Args:
      names, file: as of the module.
      wanted: `--weights`, which may name a file.
      keep: `--keep-file`, names of further files.

    Raises:
      CheckpointError: it is none of them, or there are no weights or several.
    """
    if RUN_FILE in names:
        return _of_run(names)
    if _is_own(names):
        kept = (CONFIG, INDEX, *TOKENIZER_FILES)
        return [n for n in names if n in kept or (n.partition("/")[0] in _OWN_FOLDERS and "/" in n)]
    if _is_diffusers(names):
        files = [n for n in names if _is_small(n, ("", *_DIFFUSERS_FOLDERS))]
        for part, preferred in DIFFUSERS_NAMES.items():
            files += _weights(names, part, None, preferred)
        return sorted(set(files))
    _require(names, CONFIG, "a checkpoint")
    root = _weights(names, "", file or wanted, DIRECTORY_NAMES)
    if not root:
        raise CheckpointError(
            f"expected one of {', '.join(DIRECTORY_NAMES)}, or one weight file, in the repository; "
            f"found {_listed(names)}"
        )
    kept_names = [n for n in names if n in keep or (is_wanted(n) and not n.endswith(INDEX_SUFFIX))]
    return sorted({*kept_names, *root, *_weights(names, "vae", wanted, PUBLISHED_VAE_NAMES)})


def _of_run(names: Sequence[str]) -> list[str]:
    """Of a training run, whose directory may be in a bucket: its export and its record."""
    export = [n.removeprefix(f"{EXPORT}/") for n in names if n.startswith(f"{EXPORT}/")]
    if not _is_own(export):
        raise CheckpointError(
            f"expected the export of a run in {EXPORT}/, found none. Resume the run with the same "
            "command until it ends, or export one of its steps with `unix-jax export`"
        )
    return [RUN_FILE, *(f"{EXPORT}/{name}" for name in checkpoint_files(export))]


def configuration_files(names: Sequence[str], file: str | None = None) -> list[str]:
    """What tells the sizes of a checkpoint, and which parts it has: no weights."""
    files = checkpoint_files(names, file)
    if RUN_FILE in names:
        return [n for n in files if not n.startswith(tuple(f"{EXPORT}/{p}/" for p in _PARTS))]
    if _is_own(names):
        return [n for n in files if not n.startswith(tuple(f"{part}/" for part in _PARTS))]
    return [n for n in files if not n.endswith(WEIGHT_SUFFIXES)]


def tokenizer_files(names: Sequence[str], file: str | None = None) -> list[str]:
    """A tokenizer, and what a training keeps beside it.

    Raises:
      CheckpointError: there is no tokenizer.json.
    """
    if file is not None:
        return [file]
    _require(names, TOKENIZER_FILES[0], "a tokenizer")
    kept = (CONFIG, INDEX, *TOKENIZER_FILES)
    return [n for n in names if n in kept or n.startswith(f"{SOURCE}/")]


def autoencoder_files(names: Sequence[str], file: str | None = None) -> list[str]:
    """The published autoencoder and its config.yaml, from `vae/` or from the folder itself."""
    start = "vae/" if file is None and any(n.startswith("vae/") for n in names) else ""
    folder = start.rstrip("/")
    weights = [file] if file else _weights(names, folder, None, PUBLISHED_VAE_NAMES)
    configuration = [n for n in (f"{start}config.yaml",) if n in names]
    return [*weights, *configuration] if weights else []


def encoder_files(names: Sequence[str], file: str | None = None) -> list[str]:
    """RAD-DINO, or another DINOv2.

    Raises:
      CheckpointError: there is no config.json, or there are no weights or several.
    """
    _require(names, CONFIG, "an encoder")
    weights = _weights(names, "", file, DIRECTORY_NAMES)
    if not weights:
        raise CheckpointError(
            f"expected one of {', '.join(DIRECTORY_NAMES)} in the repository; "
            f"found {_listed(names)}"
        )
    return [CONFIG, *weights]


def labeller_files(names: Sequence[str], file: str | None = None) -> list[str]:
    """CheXbert, and the vocabulary of bert-base-uncased beside it.

    Raises:
      CheckpointError: there are no weights.
    """
    candidates = ("chexbert.pth", *DIRECTORY_NAMES)
    weights = file or next((name for name in candidates if name in names), None)
    if weights is None:
        raise CheckpointError(
            f"expected one of {', '.join(candidates)} in the repository; found {_listed(names)}"
        )
    beside = [n for n in (CONFIG, "vocab.txt", "tokenizer.json") if n in names]
    return [*needed_files(names, weights, candidates), *beside]


def alignment_files(names: Sequence[str], file: str | None = None) -> list[str]:
    """BioViL-T: both networks and the vocabulary."""
    kept = (CONFIG, "vocab.txt", "tokenizer.json", "biovil_t_image_model_proj_size_128.pt")
    text = next((name for name in DIRECTORY_NAMES if name in names), None)
    found = [] if text is None else needed_files(names, text)
    return [*found, *(name for name in kept if name in names)]


def _is_own(names: Sequence[str]) -> bool:
    return INDEX in names and any(name.startswith("params/") for name in names)


def _is_diffusers(names: Sequence[str]) -> bool:
    return "model_index.json" in names or "unet/config.json" in names


def _is_small(name: str, folders: Sequence[str]) -> bool:
    folder, _, file = name.rpartition("/")
    return folder in folders and bool(_SMALL.fullmatch(file)) and not file.endswith(INDEX_SUFFIX)


def _weights(
    names: Sequence[str], folder: str, wanted: str | None, preferred: Sequence[str]
) -> list[str]:
    start = f"{folder}/" if folder else ""
    inside = [name.removeprefix(start) for name in names if name.startswith(start)]
    return [start + name for name in needed_files(inside, wanted, preferred)]


def _require(names: Sequence[str], name: str, what: str) -> None:
    if name not in names:
        raise CheckpointError(
            f"expected {name} of {what} in the repository, found {_listed(names)}"
        )


def _listed(names: Sequence[str]) -> str:
    found = sorted({name.partition("/")[0] for name in names})
    return ", ".join(found[:20]) + (", ..." if len(found) > 20 else "") or "no files"

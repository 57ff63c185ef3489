"""Selects the files of a source that are copied into a checkpoint; no link may leave the source."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from unix_jax.checkpoints.formats.tensor_source import note
from unix_jax.checkpoints.formats.weight_files import INDEX_SUFFIX, WEIGHT_SUFFIXES
from unix_jax.errors import CheckpointError, shortened

# What loaders of the published layout read beside the weights, and what its licence asks to keep.
# An index of shards is rewritten by the import, with the keys and shards that it took.
_WANTED = re.compile(
    r"([\w-]+_)?config\.json|tokenizer.*\.(json|model|txt)|[\w.-]+\.tiktoken|special_tokens_map\.json"
    r"|added_tokens\.json|vocab\.(json|txt)|merges\.txt|(spiece|sentencepiece.*)\.model"
    r"|chat_template\.(json|jinja)|(README|LICENSE|LICENCE|NOTICE|COPYING)([._-].*)?",
    re.IGNORECASE,
)
_WANTED_VAE = re.compile(r"config\.(yaml|json)|(README|LICENSE|LICENCE|NOTICE)([._-].*)?")
# Larger files beside the weights are none that a loader of this layout asks for.
MAX_COPIED_BYTES = 64 << 20


def is_wanted(name: str) -> bool:
    """Whether a file of a source, such as `vae/config.yaml`, is copied because of its name."""
    folder, _, file = name.rpartition("/")
    pattern = {"": _WANTED, "vae": _WANTED_VAE}.get(folder)
    return pattern is not None and bool(pattern.fullmatch(file))


def wanted_files(directory: Path, keep: Sequence[str] = ()) -> list[tuple[Path, str]]:
    """(file, its name in the source) of the files to keep verbatim; a note names the others.

    Args:
      directory: the source.
      keep: names of further files to keep, such as `notes.txt` or `vae/notes.txt`.

    Raises:
      CheckpointError: a wanted file is a link that leaves the source, or one of `keep` is not a
        file of the source that could be left out.
    """
    kept: list[tuple[Path, str]] = []
    left: list[str] = []
    asked = set(keep)
    for folder, start, pattern in (
        (directory, "", _WANTED),
        (directory / "vae", "vae/", _WANTED_VAE),
    ):
        for path in sorted(folder.iterdir()) if folder.is_dir() else []:
            if path.suffix in WEIGHT_SUFFIXES or path.name.endswith(INDEX_SUFFIX):
                continue
            if path.name.startswith(".") or path == directory / "vae":
                continue
            name = f"{start}{path.name}"
            if name in asked and path.is_file():
                asked.remove(name)
                kept.append((path, name))
            elif not pattern.fullmatch(path.name):
                left.append(f"{name}/" if path.is_dir() else name)
            elif path.is_file() and path.stat().st_size > MAX_COPIED_BYTES:
                left.append(f"{name} (over {MAX_COPIED_BYTES} bytes)")
            elif path.is_file() or path.is_symlink():
                kept.append((path, name))
    if asked:
        raise CheckpointError(
            f"{directory}: --keep-file: expected names of files in this folder or in vae/ that are "
            f"not weights, found {', '.join(sorted(asked))}"
        )
    refuse_links_out(directory, [path for path, _ in kept])
    if left:
        note(
            f"{directory}: not copied: {', '.join(shortened(left))} "
            "(`unix-jax convert import` keeps a file with --keep-file NAME)"
        )
    return kept


def refuse_links_out(directory: Path, paths: Iterable[Path]) -> None:
    """Raises CheckpointError if a file's real path is outside the source's folder.

    The cache of Hugging Face is made of links from `snapshots/REVISION` to `blobs` of the same
    repository, which is the source's folder then.
    """
    root = directory.resolve()
    roots = [root]
    for parent in root.parents:
        if parent.name == "snapshots" and (parent.parent / "blobs").is_dir():
            roots.append((parent.parent / "blobs").resolve())
            break
    out = [
        f"{path} -> {target}"
        for path in dict.fromkeys(paths)
        if not any((target := path.resolve()).is_relative_to(root) for root in roots)
    ]
    if out:
        start = f"{directory}: expected files inside this folder, found links that leave it: "
        end = "; copy the files into the folder, or name a weight file with --weights FILE"
        raise CheckpointError(start + ", ".join(shortened(out)) + end, start + ", ".join(out) + end)

"""Which files of a source are copied into a checkpoint; no link may lead out of the source."""

import re
from collections.abc import Iterable
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
    """Whether a file of a source, such as `vae/config.yaml`, is one to keep by its name."""
    folder, _, file = name.rpartition("/")
    pattern = {"": _WANTED, "vae": _WANTED_VAE}.get(folder)
    return pattern is not None and bool(pattern.fullmatch(file))


def wanted_files(directory: Path) -> list[tuple[Path, str]]:
    """(file, its name in the source) of the files to keep verbatim; a note names the others.

    Raises:
      CheckpointError: a wanted file is a link that leaves the source.
    """
    kept: list[tuple[Path, str]] = []
    left: list[str] = []
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
            if not pattern.fullmatch(path.name):
                left.append(f"{name}/" if path.is_dir() else name)
            elif path.is_file() and path.stat().st_size > MAX_COPIED_BYTES:
                left.append(f"{name} (over {MAX_COPIED_BYTES} bytes)")
            elif path.is_file() or path.is_symlink():
                kept.append((path, name))
    refuse_links_out(directory, [path for path, _ in kept])
    if left:
        note(f"{directory}: not copied: {', '.join(shortened(left))}")
    return kept


def refuse_links_out(directory: Path, paths: Iterable[Path]) -> None:
    """Raises CheckpointError if a file's place is outside the source's folder.

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

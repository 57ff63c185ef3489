"""Reads the published layout: validation, import to a checkpoint, or direct loading.

    config.json, model.safetensors (or shards, or pytorch_model.bin), tokenizer files,
    vae/config.yaml, vae/kl-f16d16.ckpt

`unix_jax.checkpoints.export` goes the other way.
"""

import dataclasses
import functools
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import jax.numpy as jnp
import numpy as np

from unix_jax.checkpoints import native
from unix_jax.checkpoints.configurations import (
    find_vae_weights,
    read_configurations,
)
from unix_jax.checkpoints.export import export_published
from unix_jax.checkpoints.file_leaves import inexact_keys, infos, raw_leaf, table_leaves
from unix_jax.checkpoints.fitting import raise_listing
from unix_jax.checkpoints.formats.readers import open_weights
from unix_jax.checkpoints.formats.tensor_source import AVERAGE_WORDS, TensorSource, note, quoted
from unix_jax.checkpoints.formats.weight_files import (
    WEIGHT_SUFFIXES,
    WeightFiles,
    find_weights,
    is_file_name,
)
from unix_jax.checkpoints.hub_files import checkpoint_files
from unix_jax.checkpoints.leaves import Leaf, array_leaf, place_tree
from unix_jax.checkpoints.prefixes import known_names, unwrapped
from unix_jax.checkpoints.published_config import from_published
from unix_jax.checkpoints.sizes import unix_disagreements, vae_disagreements
from unix_jax.checkpoints.source_files import refuse_links_out, wanted_files
from unix_jax.checkpoints.table import UNUSED, VAE_DROPPED, Entry, unix_table, vae_table
from unix_jax.config import AutoencoderConfig, UniXConfig
from unix_jax.errors import CheckpointError, ConfigError, shortened
from unix_jax.models.embeddings import sincos_table_2d
from unix_jax.storage.hub import located
from unix_jax.storage.json_file import read_json, write_json
from unix_jax.storage.paths import refuse_url

__all__ = ["PublishedSource", "export_published", "import_published", "load_published"]

# Images of 16,384 px; the table has the square of it in rows.
MAX_LATENT_SIZE = 1024
_POSITIONS = "latent_pos_embed.pos_embed"
# Every name of the tables, for any sizes.
UNIX_NAMES = known_names(unix_table(UniXConfig()))
VAE_NAMES = known_names(
    vae_table(AutoencoderConfig(ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(256, 128)))
)

# Called with (bytes done since the last call, bytes in all).
Progress = Callable[[int, int], None]


class PublishedSource:
    """A directory in the published layout, opened but not read; a context manager.

    Attributes:
      directory: the path.
      raw: the JSON of `config.json`; raw_vae: the content of `vae/config.yaml`, or None.
      config: both, as this project's configuration.
      tensors: the tensors of the model.
      vae: those of the autoencoder, or None if the directory has none.
      weights, vae_weights: the files that hold them.

    Args:
      source: the directory, or a weight file in it.
      wanted: `model`, `ema`, a weight file, or the name of an entry or a prefix in one; all except
        a file also apply to the autoencoder.
      max_latent_size: a larger side of the latent position table, in tokens.

    Raises:
      CheckpointError: a file is missing or broken, the table cannot be enlarged, or a requested
        average does not exist.
      ConfigError: a configuration is broken.
    """

    def __init__(
        self,
        source: str | os.PathLike[str],
        wanted: str | None = None,
        max_latent_size: int | None = None,
    ):
        self.directory, file, kind = chosen_source(Path(source), wanted)
        self.raw, self.raw_vae = read_configurations(self.directory)
        self.config = from_published(
            self.raw, self.raw_vae, source=str(self.directory / "config.json")
        )
        self._file_latent_size = self.config.max_latent_size
        # A file that the user names may lie anywhere.
        self._named = file is not None
        self.weights = find_weights(self.directory, file or kind)
        self.vae_weights = find_vae_weights(self.directory / "vae", kind)
        self.tensors = unwrapped(
            open_weights(self.weights, kind, UNIX_NAMES), UNIX_NAMES, kind, UNUSED.fullmatch
        )
        self.vae: TensorSource | None = None
        try:
            if self.vae_weights:
                self.vae = open_vae(self.vae_weights, kind)
            opened = (self.weights, self.tensors, self.vae_weights, self.vae)
            require_wanted(self.directory, kind, opened)
            if max_latent_size is not None:
                self._raise_max_latent_size(max_latent_size)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Unmaps the files."""
        self.tensors.close()
        if self.vae is not None:
            self.vae.close()

    def check(self) -> None:
        """Compares configuration and tensors.

        Raises:
          CheckpointError: they disagree; the message lists every disagreement, missing,
            unexpected and wrongly shaped key, with the expected and the found shape.
        """
        shapes = {key: info.shape for key, info in infos(self.tensors).items()}
        if any(key.startswith("aligner.") for key in shapes):
            raise CheckpointError(
                f"{self.directory}: expected the published layout, found Janus-Pro's; "
                "`unix-jax convert import-janus` creates the initial checkpoint of stage 1 from it"
            )
        stated = dataclasses.replace(self.config, max_latent_size=self._file_latent_size)
        lines, listed = unix_disagreements(stated, self.raw, shapes)
        lines = [f"{self.directory / 'config.json'}: {line}" for line in lines]
        table = tuple(
            entry for entry in unix_table(listed) if entry.key != _POSITIONS or entry.key in shapes
        )
        errors: list[CheckpointError] = []
        try:
            check_keys(self.tensors, table, UNUSED.fullmatch, lines)
        except CheckpointError as error:
            errors.append(error)
        try:
            if self.vae is not None:
                yaml = self.directory / "vae" / "config.yaml"
                check_vae(self.config, self.raw_vae, self.vae, yaml)
        except CheckpointError as error:
            errors.append(error)
        if errors:
            raise CheckpointError(
                "\n".join(map(str, errors)), "\n".join(error.details for error in errors)
            )

    def _raise_max_latent_size(self, size: int) -> None:
        config = self.config
        if size < config.max_latent_size:
            raise ConfigError(
                f"--max-latent-size: expected at least {config.max_latent_size}, which the "
                f"checkpoint has, found {size}"
            )
        if size > MAX_LATENT_SIZE:
            raise ConfigError(
                f"--max-latent-size: expected at most {MAX_LATENT_SIZE}, found {size}"
            )
        if size > config.max_latent_size and config.interpolate_pos:
            raise ConfigError(
                f"--max-latent-size: expected a checkpoint without interpolate_pos: with it, "
                f"another size than {config.max_latent_size} changes the positions of all images"
            )
        self.config = dataclasses.replace(config, max_latent_size=size)
        self._file_latent_size = config.max_latent_size

    def leaves(self, dtype: Any = None) -> dict[str, Leaf]:
        """The UniX parameters by path, read on demand; `dtype` None keeps the file's types.

        Raises:
          CheckpointError: the latent position table is to be enlarged and does not follow the
            formula.
        """
        table = unix_table(self.config)
        if not self._computes_positions:
            return table_leaves(table, self.tensors, dtype)
        entries = tuple(entry for entry in table if entry.key != _POSITIONS)
        leaves = table_leaves(entries, self.tensors, dtype)
        return leaves | {"latent_pos_embed": self._positions(dtype)}

    @property
    def _computes_positions(self) -> bool:
        larger = self.config.max_latent_size > self._file_latent_size
        return larger or _POSITIONS not in self.tensors

    def _positions(self, dtype: Any = None) -> Leaf:
        """The latent position table: the formula, with the rows that the file has."""
        size, old = self.config.max_latent_size, self._file_latent_size
        width = self.config.decoder.hidden_size
        kind = self.tensors.info("vae2llm.weight").dtype
        table = sincos_table_2d(width, size)
        if _POSITIONS not in self.tensors:
            note(
                f"{self.tensors.path}: has no {_POSITIONS}; computed its formula for "
                f"{size} x {size} positions"
            )
            return array_leaf(table.astype(dtype or kind))
        kind = self.tensors.info(_POSITIONS).dtype
        found = np.array(self.tensors.read(_POSITIONS))
        formula = sincos_table_2d(width, old)
        difference = float(np.abs(found.astype(np.float64) - formula).max())
        # One rounding to the file's type, and float32's own.
        if not difference <= max(float(jnp.finfo(kind).eps), 1e-6):
            raise CheckpointError(
                f"{self.tensors.path}: {_POSITIONS}: expected the 2-D sine-cosine formula, which "
                f"--max-latent-size continues; found a table that differs by {difference:.3g}"
            )
        note(
            f"{self.tensors.path}: enlarged {_POSITIONS} from {old} x {old} to {size} x {size} "
            f"positions by its formula; the old ones keep their values"
        )
        larger = table.astype(kind).reshape(size, size, width)
        larger[:old, :old] = found.reshape(old, old, width)
        return array_leaf(larger.reshape(size * size, width).astype(dtype or kind))

    def vae_leaves(self) -> dict[str, Leaf] | None:
        """The autoencoder's parameters by path, in the file's types, or None."""
        return None if self.vae is None else table_leaves(vae_table(self.config.vae), self.vae)

    def sources(self) -> dict[str, str]:
        """The files of the model's tensors (`params`) and of the autoencoder's (`vae`)."""
        parts = (("params", self.tensors), ("vae", self.vae))
        return {part: str(tensors.path) for part, tensors in parts if tensors is not None}

    def extras(self) -> dict[str, Leaf]:
        """The tensors that the model does not use, by their own keys."""
        return {
            key: raw_leaf(self.tensors, key) for key in infos(self.tensors) if UNUSED.fullmatch(key)
        }

    def inexact(self) -> dict[str, Leaf]:
        """Tensors that would lose bits in the common type of their stack; for the extras."""
        table = tuple(
            entry
            for entry in unix_table(self.config)
            if entry.key != _POSITIONS or not self._computes_positions
        )
        pairs = [(table, self.tensors)]
        if self.vae is not None:
            pairs.append((vae_table(self.config.vae), self.vae))
        return {
            key: raw_leaf(tensors, key)
            for table, tensors in pairs
            for key in inexact_keys(table, tensors)
        }

    def layout(self, dtype: np.dtype | None = None) -> dict[str, Any]:
        """Files, keys in order, and dtypes, from which export writes the same files again."""
        used = {key for entry in unix_table(self.config) for key in entry.keys}
        files = [
            file_layout(self.tensors, name, keys, lambda key: dtype if key in used else None)
            for name, keys in self.tensors.files()
        ]
        if _POSITIONS not in self.tensors:
            files[0]["tensors"][_POSITIONS] = (
                dtype or self.tensors.info("vae2llm.weight").dtype
            ).name
        if self.vae is not None:
            for name, keys in self.vae.files():
                kept = [key for key in keys if not VAE_DROPPED.fullmatch(key)]
                files.append(
                    file_layout(self.vae, f"vae/{name}", kept, lambda key: None, "state_dict")
                )
        return {"kept": dtype is None, "files": files}

    def copies(self, temporary: Path, keep: Sequence[str] = ()) -> list[tuple[Path, str]]:
        """(file, name in the checkpoint) of the kept files other than tensors.

        Files that the import changes, `config.json` with another table and the index of renamed
        keys, are written into `temporary`. `keep` is as in `wanted_files`.

        Raises:
          CheckpointError: a file that is read or copied is a link that leaves the source.
        """
        inside = [self.directory / "config.json", self.directory / "vae" / "config.yaml"]
        parts = ((self.weights, self.tensors, ""), (self.vae_weights, self.vae, "vae/"))
        for files, opened, start in parts:
            if files is not None and opened is not None and (start or not self._named):
                inside += [*files.paths, *(files.paths[0].parent / n for n, _ in opened.files())]
        refuse_links_out(self.directory, inside)
        copies = {name: path for path, name in verbatim_files(self.directory, keep)}
        if self.config.max_latent_size > self._file_latent_size:
            path = temporary / "config.json"
            write_json(path, self.raw | {"max_latent_size": self.config.max_latent_size})
            copies["source/config.json"] = path
        for files, opened, start in parts:
            if files is not None and opened is not None and files.is_index:
                path = temporary / f"{start.strip('/')}{files.name}"
                write_index(path, files.paths[0], opened)
                copies[f"source/{start}{files.name}"] = path
        return [(path, name) for name, path in copies.items()]


def chosen_source(source: Path, wanted: str | None = None) -> tuple[Path, str | None, str | None]:
    """(directory, weight file or None, any other name or None) of SOURCE and `--weights`.

    Raises:
      CheckpointError: two weight files are given.
      StorageError: `wanted` is a URL.
    """
    if wanted is not None:
        refuse_url(wanted, "--weights")
    directory = source.parent if source.is_file() else source
    is_file = is_file_name(directory, wanted)
    kind = None if is_file else wanted
    if not source.is_file():
        return source, wanted if is_file else None, kind
    if is_file:
        raise CheckpointError(
            f"{source}: expected a directory with --weights {wanted}, found a weight file"
        )
    if source.suffix not in (*WEIGHT_SUFFIXES, ".json"):
        raise CheckpointError(
            f"{source}: expected a directory or a weight file ({', '.join(WEIGHT_SUFFIXES)}), "
            "found another file"
        )
    return source.parent, source.name, kind


def verbatim_files(directory: Path, keep: Sequence[str] = ()) -> list[tuple[Path, str]]:
    """(file, name in the checkpoint) of the files to keep verbatim, as `wanted_files`."""
    return [
        (path, name if name in native.TOKENIZER_FILES else f"source/{name}")
        for path, name in wanted_files(directory, keep)
    ]


def open_vae(files: WeightFiles, wanted: str | None = None) -> TensorSource:
    """The autoencoder's tensors, under their own names."""
    opened = open_weights(files, wanted, VAE_NAMES)
    return unwrapped(opened, VAE_NAMES, wanted, VAE_DROPPED.fullmatch)


def check_vae(
    config: UniXConfig, raw: Mapping[str, Any] | None, vae: TensorSource, source: Path
) -> None:
    """Compares the autoencoder's configuration and tensors, as `PublishedSource.check`."""
    shapes = {key: info.shape for key, info in infos(vae).items()}
    lines, listed = vae_disagreements(config.vae, raw, shapes)
    lines = [f"{source}: {line}" for line in lines]
    if listed is None:
        raise_listing(str(vae.path), {}, {}, {}, lines)
        return
    check_keys(vae, vae_table(listed), VAE_DROPPED.fullmatch, lines)


def check_keys(
    tensors: TensorSource,
    table: tuple[Entry, ...],
    ignored: Callable[[str], Any],
    disagreements: list[str],
) -> None:
    """Raises one CheckpointError that lists all problems of the file's keys in groups."""
    expected = {key: entry.file_shape for entry in table for key in entry.keys}
    found = infos(tensors)
    disagreements = disagreements + [
        f"{key} is {info.dtype}, expected a floating type"
        for key, info in found.items()
        if key in expected and not jnp.issubdtype(info.dtype, jnp.floating)
    ]
    raise_listing(
        str(tensors.path),
        {key: shape for key, shape in expected.items() if key not in found},
        {k: i.shape for k, i in found.items() if k not in expected and not ignored(k)},
        {
            key: (shape, found[key].shape)
            for key, shape in expected.items()
            if key in found and found[key].shape != shape
        },
        disagreements,
    )


def require_wanted(
    source: Path, wanted: str | None, opened: Iterable[TensorSource | WeightFiles | None]
) -> None:
    """Raises CheckpointError if nothing matches `--weights`: an average, or that name."""
    parts = [part for part in opened if part is not None]
    if wanted == "ema" and not any(part.averaged for part in parts):
        raise CheckpointError(
            f"{source}: expected an average of the weights (--weights ema): a file, an entry or a "
            f"prefix whose name has one of the words {', '.join(AVERAGE_WORDS)}; found none"
        )
    tensors = [part for part in parts if isinstance(part, TensorSource)]
    if wanted in (None, "model", "ema") or any(part.named for part in tensors):
        return
    sets = [name for part in tensors for name in part.sets]
    files = [part.name for part in parts if isinstance(part, WeightFiles)]
    raise CheckpointError(
        f"{source}: --weights: expected `model`, `ema`, a weight file, or the name of an entry or "
        f"a prefix in one; found {quoted(wanted)}, which is in none of {', '.join(files)}"
        + (f"; these have {', '.join(shortened(sets))}" if sets else "")
    )


# --- layout ----------------------------------------------------------------------------------


def write_index(path: Path, index: Path, tensors: TensorSource) -> None:
    """The index of shards as it is, or with the keys that were taken."""
    placed = {key: name for name, keys in tensors.files() for key in keys}
    raw = read_json(index)
    if placed == raw["weight_map"]:
        shutil.copyfile(index, path)
        return
    metadata = raw.get("metadata")
    size = sum(info.nbytes for info in infos(tensors).values())
    metadata = {**(metadata if isinstance(metadata, dict) else {}), "total_size": size}
    write_json(path, {**raw, "metadata": metadata, "weight_map": placed})


def file_layout(
    tensors: TensorSource,
    name: str,
    keys: list[str],
    cast: Callable[[str], np.dtype | None],
    under: str | None = None,
) -> dict[str, Any]:
    kinds = {key: cast(key) or tensors.info(key).dtype for key in keys}
    return {
        "name": name,
        "format": "safetensors" if name.endswith(".safetensors") else "torch",
        "under": under,
        "metadata": tensors.metadata,
        "tensors": {key: kind.name for key, kind in kinds.items()},
    }


# --- what a user calls -----------------------------------------------------------------------


def parse_dtype(name: str) -> np.dtype | None:
    """`keep` -> None; `bfloat16`, `float32` (any floating-point dtype) -> its dtype.

    Raises:
      ConfigError: no floating-point dtype of that name.
    """
    if name == "keep":
        return None
    try:
        kind = np.dtype(jnp.dtype(name))
    except TypeError:
        kind = np.dtype(np.int8)
    if not jnp.issubdtype(kind, jnp.floating):
        raise ConfigError(f"dtype: expected bfloat16, float32 or keep, found {name!r}")
    return kind


def import_published(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    dtype: str = "keep",
    *,
    allow_non_finite: bool = False,
    weights: str | None = None,
    max_latent_size: int | None = None,
    keep_file: Sequence[str] = (),
    progress: Progress | None = None,
) -> None:
    """Converts a published directory to this project's checkpoint.

    Args:
      source: the published directory, or a weight file in it; or a name on the hub.
      out: a new directory.
      dtype: `keep`, with which `export_published` restores every bit, or the floating-point dtype
        of the model's parameters. The autoencoder and the unused tensors keep their types.
      allow_non_finite: write weights that are NaN or infinite.
      weights: `model` or `ema`, if a file, entry or prefix also contains an average; the name of an
        entry or a prefix in a weight file; or a weight file. By default the weights, or the average
        if nothing else exists.
      max_latent_size: side of the latent position table in tokens, at least the checkpoint's.
      keep_file: names of files in the source to copy, in addition to those that a loader or a
        licence requires, such as `notes.txt` or `vae/notes.txt`. A note names the files that are
        not copied.
      progress: called with (bytes since the last call, total bytes).

    Raises:
      UniXError: the source is broken or does not fit its configuration, `out` exists, or weights
        are not finite.
    """
    kind = parse_dtype(dtype)
    select = functools.partial(checkpoint_files, wanted=weights, keep=keep_file)
    source = located(source, select)
    with (
        PublishedSource(source, weights, max_latent_size) as published,
        tempfile.TemporaryDirectory() as temporary,
    ):
        published.check()
        copies = published.copies(Path(temporary), keep_file)
        if published.vae is None:
            warnings.warn(
                f"{source}: no autoencoder in vae/: the checkpoint only supports reports",
                stacklevel=2,
            )
        leaves, vae_leaves = published.leaves(kind), published.vae_leaves()
        extras = published.extras()
        groups = (leaves, vae_leaves or {}, extras)
        total = sum(leaf.nbytes for group in groups for leaf in group.values())

        def all_extras() -> dict[str, Leaf]:
            if kind is not None:
                return extras
            return extras | published.inexact()

        native.save(
            out,
            published.config,
            leaves,
            vae_leaves,
            extras=all_extras,
            layout=published.layout(kind),
            copies=copies,
            allow_non_finite=allow_non_finite,
            sources=published.sources(),
            progress=None if progress is None else lambda done: progress(done, total),
        )


def load_published(
    source: str | os.PathLike[str],
    dtype: Any = None,
    shardings: Any = None,
    *,
    vae_dtype: Any = None,
    vae_shardings: Any = None,
    allow_non_finite: bool = False,
    autoencoder: bool = True,
) -> tuple[UniXConfig, dict[str, Any], dict[str, Any] | None]:
    """Reads a published directory onto the devices, leaf by leaf, without an intermediate file.

    Args:
      source: the published directory, or a weight file in it.
      dtype: floating-point dtype of the parameters; None keeps the file's.
      shardings: None, one `Sharding`, or a nested tree of them, for the UniX parameters.
      vae_dtype: likewise for the autoencoder.
      vae_shardings: likewise for the autoencoder.
      allow_non_finite: accept weights that are NaN or infinite.
      autoencoder: read its weights as well.

    Returns: The configuration, the UniX parameters, and the autoencoder's (None if it does not
      exist, or is not read).

    Raises:
      UniXError: the source is broken or does not fit its configuration, or weights are not finite.
    """
    with PublishedSource(source) as published:
        published.check()
        leaves = published.leaves()
        vae_leaves = published.vae_leaves() if autoencoder else None
        params = place_tree(
            leaves,
            dtype,
            shardings,
            source=str(published.tensors.path),
            allow_non_finite=allow_non_finite,
        )
        if vae_leaves is None:
            return published.config, params, None
        assert published.vae is not None
        vae_params = place_tree(
            vae_leaves,
            vae_dtype,
            vae_shardings,
            source=str(published.vae.path),
            allow_non_finite=allow_non_finite,
        )
        return published.config, params, vae_params

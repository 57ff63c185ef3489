"""Tables of a checkpoint's sizes, contents and checksums for the terminal."""

import dataclasses
import math
import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from unix_jax.checkpoints import index
from unix_jax.checkpoints.table import unix_table, vae_table
from unix_jax.config import TransformerStream, UniXConfig
from unix_jax.storage.recorded_files import read_listed
from unix_jax.storage.shown import shown

if TYPE_CHECKING:
    from unix_jax.checkpoints.verification import Verified

# Parts as the training stages train them: prefixes of the parameter paths.
_PARTS = {
    "decoder, und": ("decoder/layers/und/", "decoder/norm/und/"),
    "decoder, gen": ("decoder/layers/gen/", "decoder/norm/gen/"),
    "embeddings and lm_head": ("embed_tokens/", "lm_head/"),
    "vision tower": ("vision/",),
    "connector": ("connector/",),
    "U-Net": ("unet/",),
    "time and latent projections": ("time_embedder/", "vae2llm/", "llm2vae/", "latent_pos_embed"),
}


def parameter_counts(config: UniXConfig) -> dict[str, int]:
    """Number of parameters of each part, of the model and of the autoencoder."""
    shapes = _unix_shapes(config)
    counts = {
        name: sum(math.prod(shape) for path, shape in shapes.items() if path.startswith(starts))
        for name, starts in _PARTS.items()
        if any(path.startswith(starts) for path in shapes)
    }
    counts["model"] = sum(map(math.prod, shapes.values()))
    autoencoder = sum(math.prod(entry.stacked_shape) for entry in vae_table(config.vae))
    return counts | {"autoencoder": autoencoder}


def _unix_shapes(config: UniXConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter, by path; JAX is imported for a U-Net alone."""
    if isinstance(config.generation, TransformerStream):
        return {entry.path: entry.stacked_shape for entry in unix_table(config)}
    from unix_jax.checkpoints.leaves import flatten
    from unix_jax.models.unix import param_shapes

    return {path: leaf.shape for path, leaf in flatten(param_shapes(config)).items()}


def summary(path: str | os.PathLike[str], config: UniXConfig, has_vae: bool) -> Table:
    """Sizes and parameter counts, one per row."""
    table = Table(title=escape(shown(path)), show_header=False, box=None, title_justify="left")
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name in ("decoder", "vision", "vae", "special_tokens"):
        values = dataclasses.asdict(getattr(config, name))
        table.add_row(name, ", ".join(f"{key} {value}" for key, value in values.items()))
    if not isinstance(config.generation, TransformerStream):
        values = dataclasses.asdict(config.generation)
        listed = ", ".join(f"{key} {value}" for key, value in values.items())
        table.add_row("generation", f"U-Net: {listed}")
    side = config.latent_downsample
    table.add_row(
        "images",
        f"{side} px per latent token, up to {config.max_latent_size * side} px per side"
        + (" (interpolated beyond)" if config.interpolate_pos else ""),
    )
    table.add_row("connector_act", config.connector_act)
    table.add_row("double_bos", str(config.double_bos))
    if index.is_checkpoint(path) and (record := index.read_index(path).get("training")):
        table.add_row("exported", f"{record['weights']} weights of step {record['step']}")
    for name, count in parameter_counts(config).items():
        missing = name == "autoencoder" and not has_vae
        table.add_row(
            name, "absent: only reports are supported" if missing else f"{count:,} parameters"
        )
    table.add_row("checksums", _checksums(path))
    return table


def diffusion_summary(
    path: str | os.PathLike[str], sizes: Mapping[str, Any], counts: Mapping[str, int]
) -> Table:
    """Like `summary`, for a diffusers checkpoint: the configuration and parameters of its parts."""
    table = Table(title=escape(shown(path)), show_header=False, box=None, title_justify="left")
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, config in sizes.items():
        values = dataclasses.asdict(config)
        table.add_row(name, escape(", ".join(f"{key} {value}" for key, value in values.items())))
    for name, count in counts.items():
        table.add_row(name, f"{count:,} parameters")
    table.add_row("checksums", _checksums(path))
    return table


def _checksums(path: str | os.PathLike[str]) -> str:
    if not index.is_checkpoint(path):
        return "no checksums: the published layout has none, except in torch's zip files"
    if not index.has_checksums(path):
        return "no checksums: written by an earlier version; `convert cast --dtype keep` adds them"
    if not read_listed(path):
        return (
            "CRC-32 of every array file, verified whenever it is read; other files have none: "
            "`convert accept` adds them"
        )
    return "CRC-32 of every file, verified whenever it is read"


def verification_table(path: str | os.PathLike[str], parts: Iterable["Verified"]) -> Table:
    """The results of `verification.verify`, one row per part."""
    table = Table(title=escape(shown(path)), box=None, title_justify="left", header_style="bold")
    for header in ("part", "arrays", "GB", "checksums", "result"):
        table.add_column(header, justify="right" if header in ("arrays", "GB") else "left")
    for part in parts:
        found = len(part.problems)
        table.add_row(
            escape(part.part),
            str(part.arrays),
            f"{part.nbytes / 1e9:.3f}",
            "CRC-32" if part.checksums else "no checksums",
            "good" if not found else f"[red]{found} of {part.arrays} damaged",
        )
    return table

"""What a checkpoint is, as a table for people."""

import dataclasses
import math
import os
from typing import Any

import jax
from rich.markup import escape
from rich.table import Table

from unix_jax import checkpoint
from unix_jax.config import UniXConfig
from unix_jax.models import autoencoder, unix


def count_parameters(shapes: Any) -> int:
    """Numbers in a tree of arrays or shapes."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


def parameter_counts(config: UniXConfig) -> dict[str, int]:
    """Parameters by part: what each training stage trains follows from these."""
    shapes = unix.param_shapes(config)
    layers = shapes["decoder"]["layers"]
    counts = {
        "decoder, und": count_parameters((layers["und"], shapes["decoder"]["norm"]["und"])),
        "decoder, gen": count_parameters((layers["gen"], shapes["decoder"]["norm"]["gen"])),
        "embeddings and lm_head": count_parameters((shapes["embed_tokens"], shapes["lm_head"])),
        "vision tower": count_parameters(shapes["vision"]),
        "connector": count_parameters(shapes["connector"]),
        "time and latent projections": count_parameters(
            [shapes[k] for k in ("time_embedder", "vae2llm", "llm2vae", "latent_pos_embed")]
        ),
    }
    counts["model"] = sum(counts.values())
    return counts | {"autoencoder": count_parameters(autoencoder.param_shapes(config.vae))}


def summary(path: str | os.PathLike[str], config: UniXConfig, has_vae: bool) -> Table:
    """Sizes and parameter counts; one row a fact."""
    table = Table(title=escape(str(path)), show_header=False, box=None, title_justify="left")
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name in ("decoder", "vision", "vae", "special_tokens"):
        values = dataclasses.asdict(getattr(config, name))
        table.add_row(name, ", ".join(f"{key} {value}" for key, value in values.items()))
    side = config.latent_downsample
    table.add_row(
        "images",
        f"{side} px a latent token, up to {config.max_latent_size * side} px a side"
        + (" (interpolated beyond)" if config.interpolate_pos else ""),
    )
    table.add_row("connector_act", config.connector_act)
    table.add_row("double_bos", str(config.double_bos))
    if checkpoint.is_checkpoint(path) and (record := checkpoint.read_index(path).get("training")):
        table.add_row("exported", f"{record['weights']} weights of step {record['step']}")
    for name, count in parameter_counts(config).items():
        missing = name == "autoencoder" and not has_vae
        table.add_row(name, "absent: reports only" if missing else f"{count:,} parameters")
    return table

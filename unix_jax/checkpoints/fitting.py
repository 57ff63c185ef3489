"""Checks that the arrays of a checkpoint match its configuration; one error lists all problems."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from unix_jax.checkpoints.leaves import Leaf
from unix_jax.config import AutoencoderConfig, UniXConfig
from unix_jax.errors import CheckpointError, shortened


def check_unix_counts(config: UniXConfig, leaves: Mapping[str, Leaf], source: str) -> None:
    """Compares the sizes that determine the cost of tracing a model, before it is traced.

    Raises:
      CheckpointError: a disagreement; the message names the field and the array.
    """
    decoder, vision = config.decoder, config.vision
    sizes = (
        ("decoder.hidden_size", decoder.hidden_size, "decoder/layers/und/input_norm/scale", 1),
        ("decoder.num_layers", decoder.num_layers, "decoder/layers/und/input_norm/scale", 0),
        ("vision.num_layers", vision.num_layers, "vision/blocks/norm1/scale", 0),
        ("vision.width", vision.width, "vision/blocks/norm1/scale", 1),
        ("max_latent_size**2", config.max_latent_size**2, "latent_pos_embed", 0),
    )
    problems = [
        f"{field} is {value}, but params/{name} is {list(leaves[name].shape)}"
        for field, value, name, axis in sizes
        if name in leaves and (len(leaves[name].shape) <= axis or leaves[name].shape[axis] != value)
    ]
    raise_listing(source, {}, {}, {}, problems)


def check_vae_counts(vae: AutoencoderConfig, leaves: Mapping[str, Leaf], source: str) -> None:
    """As `check_unix_counts`, for the number of blocks and levels of the autoencoder."""
    prefix, suffix = "encoder/down_", "/norm1/scale"
    blocks = [name for name in leaves if name.startswith(prefix) and name.endswith(suffix)]
    first = sum(name.startswith(f"{prefix}0_block_") for name in blocks)
    problems = []
    if vae.num_res_blocks != first:
        problems.append(
            f"vae.num_res_blocks is {vae.num_res_blocks}, but vae/encoder has {first} blocks "
            "on its first level"
        )
    if len(vae.ch_mult) > max(len(blocks), 1):
        problems.append(
            f"vae.ch_mult has {len(vae.ch_mult)} levels, but vae/encoder has {len(blocks)} blocks"
        )
    raise_listing(source, {}, {}, {}, problems)


def check_leaves(found: Mapping[str, Any], expected: Mapping[str, Any], source: str) -> None:
    """Raises one CheckpointError that lists all missing, unexpected and wrongly shaped leaves."""
    missing = {name: expected[name].shape for name in expected if name not in found}
    unexpected = {name: found[name].shape for name in found if name not in expected}
    shapes = {
        name: (tuple(expected[name].shape), tuple(found[name].shape))
        for name in expected
        if name in found and tuple(expected[name].shape) != tuple(found[name].shape)
    }
    raise_listing(source, missing, unexpected, shapes)


def raise_listing(
    source: str,
    missing: Mapping[str, Sequence[int]],
    unexpected: Mapping[str, Sequence[int]],
    misshaped: Mapping[str, tuple[Sequence[int], Sequence[int]]],
    disagreements: Sequence[str] = (),
) -> None:
    """Raises a CheckpointError that lists everything in groups; does nothing for empty lists.

    The message shortens long groups; the error's `details` list them in full.
    """
    groups = (
        ("sizes that disagree with the tensors", list(disagreements)),
        ("missing", [f"{k}: expected {list(s)}" for k, s in missing.items()]),
        ("unexpected", [f"{k}: found {list(s)}" for k, s in unexpected.items()]),
        (
            "mis-shaped",
            [f"{k}: expected {list(e)}, found {list(f)}" for k, (e, f) in misshaped.items()],
        ),
    )
    filled = [(title, lines) for title, lines in groups if lines]
    if not filled:
        return
    summary = ", ".join(f"{len(lines)} {title}" for title, lines in filled)
    start = f"{source}: tensors do not fit the configuration: {summary}"

    def listing(limit: Callable[[Sequence[str]], Sequence[str]]) -> str:
        return start + "".join(
            f"\n  {title} ({len(lines)}):" + "".join(f"\n    {line}" for line in limit(lines))
            for title, lines in filled
        )

    raise CheckpointError(listing(shortened), listing(list))

"""What a run will do, in lines for its start: parameters, first batch, length, what is left out."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from unix_jax.checkpoints.leaves import flatten
from unix_jax.errors import CheckpointError
from unix_jax.models.attention.slots import Slots
from unix_jax.storage.files import atomic_write
from unix_jax.training.config import TrainConfig
from unix_jax.training.feed import Fed
from unix_jax.training.length import Length
from unix_jax.training.stages import Stage

PARAMETERS_FILE = "parameters.txt"


def overview(
    stage: Stage, config: TrainConfig, mesh: Mesh, length: Length, done: int, fed: Fed
) -> list[str]:
    """Lines about a run that has made `done` steps and is about to train on `fed`."""
    axes = ", ".join(f"{name} {size}" for name, size in mesh.shape.items())
    device = mesh.devices.flat[0].device_kind
    trained = (
        f"trainable adapters of rank {config.lora.rank} on {', '.join(config.lora.targets)} "
        f"({', '.join(config.lora.streams)})"
        if config.lora.rank
        else f"trainable {config.pattern!r}"
    )
    lines = [
        f"stage {config.stage}, {trained}",
        f"mesh {axes}: {mesh.size} x {device}, {jax.process_count()} process(es)",
        f"length {length}" + (f", of which {done:,} steps are done" if done else ""),
        f"optimizer {config.optimizer.name}, learning rate {config.optimizer.learning_rate:g}, "
        f"schedule {config.optimizer.schedule}, {config.optimizer.warmup_steps} steps of warm-up",
        *_parameter_lines(stage),
        *_batch_lines(fed),
    ]
    if fed.info.first_skipped:
        counts = ", ".join(f"{n} {reason}" for reason, n in fed.info.skipped.items() if n)
        lines.append(f"left out of the data so far: {counts}")
    for name, value, _, why in config.unread():
        lines.append(f"{name} {value!r} is not read {why}")
    return lines


def _parameter_lines(stage: Stage) -> list[str]:
    """The number of parameters, trained and frozen, by module, with the largest array of each."""
    lines = []
    for kind, tree in _trees(stage):
        flat = flatten(tree)
        total = sum(math.prod(leaf.shape) for leaf in flat.values())
        lines.append(f"{kind} {total:,} parameters in {len(flat)} arrays")
        groups: dict[str, list[Any]] = {}
        for path, leaf in flat.items():
            groups.setdefault(_module(path), []).append(leaf)
        for name, leaves in groups.items():
            count = sum(math.prod(leaf.shape) for leaf in leaves)
            largest = max(leaves, key=lambda leaf: math.prod(leaf.shape))
            lines.append(
                f"  {name:<26} {count:>15,} in {len(leaves):>3} arrays, largest {_array(largest)}"
            )
    return lines


def _trees(stage: Stage) -> Iterator[tuple[str, Mapping[str, Any]]]:
    yield "trained", stage.trained(stage.target)
    frozen = getattr(stage.target, "frozen", None)
    if frozen:
        yield "frozen", frozen


def _module(path: str) -> str:
    parts = path.split("/")
    parts = parts[:-1] if len(parts) > 2 else parts
    return "/".join(parts[: 4 if parts[1:2] == ["decoder"] else 2])


def _array(leaf: Any) -> str:
    """Type, shape, and how it is split over the mesh."""
    own = leaf.sharding.shard_shape(leaf.shape)
    split = "replicated" if own == leaf.shape else f"{list(own)} on each device"
    return f"{leaf.dtype}{list(leaf.shape)} {split}"


def _batch_lines(fed: Fed) -> list[str]:
    info, shapes = fed.info, []
    for field in dataclasses.fields(fed.batch):
        leaves = jax.tree.leaves(getattr(fed.batch, field.name))
        if leaves and field.name != "slots":
            shapes.append(f"{field.name} {leaves[0].dtype}{list(leaves[0].shape)}")
    return [
        f"first batch {info.samples} samples in {fed.batch.rows} rows, {info.und_tokens:,} und and "
        f"{info.gen_tokens:,} gen tokens, {info.padding_fraction:.1%} padding",
        *(f"  {shape}" for shape in shapes),
        *_slot_lines(fed.batch.slots),
    ]


def _slot_lines(slots: Slots | None) -> list[str]:
    if slots is None:
        return ["  images in the order of their samples (data.text_tokens is None)"]
    return [
        f"  slots of a row: {slots.vit_slots} ViT images of {slots.vit_tokens} tokens, "
        f"{slots.vae_images} VAE images, {slots.text_tokens} tokens of text"
    ]


def write_parameters(out: Path, stage: Stage) -> None:
    """Writes DIR/parameters.txt: name, type, shape and sharding of every parameter.

    Raises:
      CheckpointError: it cannot be written.
    """
    lines = [
        f"{kind:<8} {path}  {_array(leaf)}"
        for kind, tree in _trees(stage)
        for path, leaf in flatten(tree).items()
    ]
    path = out / PARAMETERS_FILE
    try:
        with atomic_write(path) as temporary:
            temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written: {error.strerror or error}") from error

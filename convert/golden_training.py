"""Recomputes the `train.*` tensors of a golden directory: one packed row, its losses, gradients.

All samples of the pack stand in one two-stream row and are attended together.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from convert.golden import Golden, Tensors, channels_first, in_sequence
from convert.table import unix_table
from unix_jax.flow import interpolate, shift_timestep
from unix_jax.inference.context import as_batch
from unix_jax.layout import Layout, Split, TextSplit, VaeSplit, VitSplit, lay_out
from unix_jax.leaves import flatten
from unix_jax.models.attention import TokenMetadata, may_attend
from unix_jax.models.unix import UniX


def plan_samples(golden: Golden) -> tuple[list[list[Split]], list[list[int]]]:
    """(samples, loss flags of their splits) from `golden.json`."""
    special = golden.config.special_tokens
    samples: list[list[Split]] = []
    losses: list[list[int]] = []
    for sample in golden.info["train"]["samples"]:
        images, texts = iter(sample["images"]), iter(sample["texts"])
        splits: list[Split] = []
        for part in sample["plan"]:
            if part["type"] == "text":
                splits.append(TextSplit([special.bos, *next(texts), special.eos]))
            elif part["type"] == "vit_image":
                next(images)
                splits.append(VitSplit())
            else:
                _, index = next(images)
                height, width = golden[f"train.vae_pixels.{index}"].shape[-2:]
                splits.append(VaeSplit(*golden.grid(height, width), noised=bool(part["loss"])))
        samples.append(splits)
        losses.append([part["loss"] for part in sample["plan"]])
    return samples, losses


def _numbered(golden: Golden, prefix: str) -> list[np.ndarray]:
    """Tensors `prefix`.0, `prefix`.1, ... [C, H, W] as [H, W, C]."""
    count = sum(name.startswith(f"{prefix}.") for name in golden.tensors)
    return [np.moveaxis(golden[f"{prefix}.{i}"], 0, -1) for i in range(count)]


def _encode(golden: Golden, images: Sequence[np.ndarray]) -> Any:
    """Latent modes [n, h, w, C]; smaller images are padded with zeros to the largest."""
    height, width = (max(image.shape[axis] for image in images) for axis in (0, 1))
    padded = np.stack(
        [np.pad(x, ((0, height - x.shape[0]), (0, width - x.shape[1]), (0, 0))) for x in images]
    )
    return golden.vae("encode", padded)


def training_tensors(golden: Golden) -> Tensors:
    """`train.*`."""
    samples, losses = plan_samples(golden)
    layout = lay_out([samples], golden.config)
    out = _layout_tensors(golden, layout, samples, losses)

    vae_images = _numbered(golden, "train.vae_pixels")
    clean = np.zeros((1, 0, golden.config.latent_channels), np.float32)
    if vae_images:
        latents = _encode(golden, vae_images)
        out["train.vae_latents"] = channels_first(latents)
        clean = _latent_tokens(golden, latents, vae_images)
    timesteps = shift_timestep(
        jax.nn.sigmoid(jnp.asarray(golden["train.packed_timesteps"])), golden.config.timestep_shift
    )[None]
    noise = jnp.asarray(golden["train.noise"])[None]
    vit = _numbered(golden, "train.vit_pixels")
    batch = as_batch(
        layout,
        jnp.asarray(np.stack(vit))[None] if vit else None,
        interpolate(jnp.asarray(clean), noise, timesteps) if vae_images else None,
        timesteps,
    )
    ce_places, labels = out["train.ce_loss_indexes"], out["train.packed_label_ids"]
    und_places = _stream_places(layout.und_sequence[0], ce_places)
    gen_places = _stream_places(layout.gen_sequence[0], out["train.mse_loss_indexes"])
    target = (noise - clean)[0]

    def losses_of(params: Any) -> tuple[Any, Tensors]:
        def apply(method: Any, *args: Any) -> Any:
            return golden.model.apply({"params": params}, *args, method=method)

        und, gen = apply(UniX.__call__, batch)
        log_probs = jax.nn.log_softmax(apply(UniX.logits, und[0, und_places]))
        ce = -jnp.take_along_axis(log_probs, labels[:, None], axis=1)[:, 0]
        total = ce.mean() if len(ce_places) else 0.0
        values = {"und": und, "gen": gen, "ce": ce}
        if gen is not None and len(gen_places):
            velocity = apply(UniX.velocity, gen[0, gen_places])
            values["mse"] = jnp.square(velocity - target[gen_places])
            total = total + values["mse"].mean()
        return total, values

    if any(name.startswith("train.grad.") for name in golden.tensors):
        (_, values), gradients = jax.jit(jax.value_and_grad(losses_of, has_aux=True))(golden.params)
        out |= _gradient_tensors(golden, gradients)
    else:
        _, values = jax.jit(losses_of)(golden.params)
    out["train.last_hidden"] = in_sequence(layout, values["und"], values["gen"])
    for name in ("ce", "mse"):
        if name in values:
            out[f"train.{name}"] = values[name]
            # stop_gradient leaves the forward pass as it is: the same numbers must appear.
            out[f"train.frozen.{name}"] = values[name]
    return out


def _latent_tokens(golden: Golden, latents: Any, images: Sequence[np.ndarray]) -> np.ndarray:
    """All images' latent tokens one after another [1, G, C], in order of appearance."""
    order = [
        index
        for sample in golden.info["train"]["samples"]
        for kind, index in sample["images"]
        if kind == "vae"
    ]
    p = golden.config.latent_patch_size
    tokens = []
    for index in order:
        height, width = golden.grid(*images[index].shape[:2])
        tokens.append(golden.tokens(latents[index : index + 1, : height * p, : width * p]))
    return np.concatenate([np.asarray(t) for t in tokens], axis=1)


def _stream_places(sequence: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Where in a stream the tokens at the packed places `wanted` stand."""
    order = np.argsort(sequence)
    return order[np.searchsorted(sequence[order], wanted)]


def _layout_tensors(
    golden: Golden, layout: Layout, samples: list[list[Split]], losses: list[list[int]]
) -> Tensors:
    """Everything that follows from the plan alone: ids, places, positions, masks, labels."""
    is_text = layout.vit_index[0] < 0
    order = np.argsort(layout.und_sequence[0][is_text])
    ce: list[int] = []
    labels: list[int] = []
    weights: list[float] = []
    mse: list[int] = []
    out: Tensors = {}
    metadata = TokenMetadata.concatenate([layout.und, layout.gen])
    sequence = np.concatenate([layout.und_sequence[0], layout.gen_sequence[0]])
    by_place = np.argsort(sequence)
    ordered = jax.tree.map(lambda x: np.asarray(x)[:, by_place], metadata)
    mask = np.asarray(may_attend(ordered, ordered))[0]
    place = 0
    for s, (splits, flags) in enumerate(zip(samples, losses, strict=True)):
        begin = place
        for split, flag in zip(splits, flags, strict=True):
            if isinstance(split, TextSplit):
                length = len(split.ids)
                if flag:
                    ce += range(place, place + length - 1)
                    labels += split.ids[1:]
                    weights += [(length - 1) ** -0.5] * (length - 1)
            elif isinstance(split, VitSplit):
                length = golden.config.vision.num_patches + 2
            else:
                length = split.height * split.width + 2
                if flag:
                    mse += range(place + 1, place + length - 1)
            place += length
        out[f"train.attention_mask.{s}"] = mask[begin:place, begin:place]
    out |= {
        "train.packed_text_ids": layout.token_ids[0][is_text][order],
        "train.packed_text_indexes": layout.und_sequence[0][is_text][order],
        "train.packed_vit_token_indexes": np.sort(layout.und_sequence[0][~is_text]),
        "train.packed_vae_token_indexes": layout.gen_sequence[0],
        "train.packed_latent_position_ids": layout.latent_position_ids[0],
        "train.packed_position_ids": in_sequence(layout, layout.und.position, layout.gen.position),
        "train.ce_loss_indexes": np.array(ce, np.int64),
        "train.packed_label_ids": np.array(labels, np.int64),
        "train.ce_loss_weights": np.array(weights, np.float32),
        "train.mse_loss_indexes": np.array(mse, np.int64),
    }
    return out


def _gradient_tensors(golden: Golden, gradients: Mapping[str, Any]) -> Tensors:
    """Gradients under the golden names; the connector's are called fc1 and fc2 there."""
    flat = flatten(gradients)
    out: Tensors = {}
    for entry in unix_table(golden.config):
        array = np.asarray(flat[entry.path])
        layers = [array] if entry.layers is None else list(array)
        for key, layer in zip(entry.keys, layers, strict=True):
            name = key.replace("connector.layers.0", "connector.fc1")
            name = name.replace("connector.layers.2", "connector.fc2")
            out[f"train.grad.{name}"] = entry.transform.to_file(layer)
    return out

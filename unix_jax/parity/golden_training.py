"""Recomputes the `train.*` tensors of a golden directory: one packed row, its losses, gradients.

All samples of the pack stand in one two-stream row and are attended together.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unix_jax.checkpoints.leaves import flatten
from unix_jax.checkpoints.table import unix_table
from unix_jax.data.batch import TrainingBatch
from unix_jax.models.attention.mask import TokenMetadata, may_attend
from unix_jax.parity.golden import Golden, Tensors, channels_first, in_sequence
from unix_jax.preprocessing.flow import shift_timestep
from unix_jax.preprocessing.layout import Layout, Split, TextSplit, VaeSplit, VitSplit, lay_out
from unix_jax.training.draws import FlowDraw
from unix_jax.training.losses import LossConfig, LossTerms, count_totals, loss_and_terms
from unix_jax.training.parameter_groups import (
    GENERATION,
    JOINT,
    merge_params,
    split_params,
    trains_und,
)


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
    inputs = GoldenInputs.read(golden, layout, out)
    if inputs.vae_latents is not None:
        out["train.vae_latents"] = channels_first(inputs.vae_latents)
    und_places, gen_places = loss_places(layout, out)

    wants_gradients = any(name.startswith("train.grad.") for name in golden.tensors)
    terms, gradients = _run(golden, inputs, JOINT, wants_gradients)
    if wants_gradients:
        out |= _gradient_tensors(golden, gradients["unix"])
    out["train.last_hidden"] = in_sequence(layout, terms.und, terms.gen)
    out |= _loss_tensors("train", terms, und_places, gen_places)
    if any(name.startswith("train.frozen.") for name in golden.tensors):
        # With und under stop_gradient the same numbers must appear, on a path of its own.
        terms, _ = _run(golden, inputs, GENERATION, wants_gradients and terms.gen is not None)
        out |= _loss_tensors("train.frozen", terms, und_places, gen_places)
    return out


@dataclasses.dataclass(frozen=True)
class GoldenInputs:
    """The packed samples as a training batch, and the random numbers that training would use.

    latents, noise [1, G, C] and timesteps [1, G] are those of the gen stream, None without one.
    """

    batch: TrainingBatch
    latents: Any | None
    noise: Any | None
    timesteps: Any | None
    vae_latents: Any | None

    @classmethod
    def read(cls, golden: Golden, layout: Layout, tensors: Tensors) -> "GoldenInputs":
        """From the golden inputs; `tensors` are those of `_layout_tensors`."""
        vae_images = _numbered(golden, "train.vae_pixels")
        vit = _numbered(golden, "train.vit_pixels")
        has_gen = bool(vae_images)
        labels = np.zeros(layout.token_ids.shape, np.int32)
        ce_weights = np.zeros(layout.token_ids.shape, np.float32)
        mse_weights = np.zeros(layout.latent_position_ids.shape, np.float32)
        und_places, gen_places = loss_places(layout, tensors)
        labels[0, und_places] = tensors["train.packed_label_ids"]
        ce_weights[0, und_places] = 1
        mse_weights[0, gen_places] = 1
        batch = TrainingBatch(
            token_ids=layout.token_ids,  # type: ignore[arg-type]
            und=layout.und,
            labels=labels,  # type: ignore[arg-type]
            ce_weights=ce_weights,  # type: ignore[arg-type]
            vit_pixels=np.stack(vit)[None] if vit else None,  # type: ignore[arg-type]
            vit_index=layout.vit_index if vit else None,  # type: ignore[arg-type]
            gen=layout.gen if has_gen else None,
            latent_position_ids=layout.latent_position_ids if has_gen else None,  # type: ignore[arg-type]
            mse_weights=mse_weights if has_gen else None,  # type: ignore[arg-type]
        )
        if not has_gen:
            return cls(batch, None, None, None, None)
        vae_latents = _encode(golden, vae_images)
        timesteps = shift_timestep(
            jax.nn.sigmoid(jnp.asarray(golden["train.packed_timesteps"])),
            golden.config.timestep_shift,
        )
        return cls(
            batch,
            jnp.asarray(_latent_tokens(golden, vae_latents, vae_images)),
            jnp.asarray(golden["train.noise"])[None],
            timesteps[None],
            vae_latents,
        )


def loss_places(layout: Layout, tensors: Tensors) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the tokens with a loss in the (und, gen) streams, in packed order."""
    return (
        _stream_places(layout.und_sequence[0], tensors["train.ce_loss_indexes"]),
        _stream_places(layout.gen_sequence[0], tensors["train.mse_loss_indexes"]),
    )


def _run(
    golden: Golden, inputs: GoldenInputs, trainable: str, gradients: bool
) -> tuple[LossTerms, Any]:
    """(losses per token, gradients of what the pattern names) by the functions of training."""
    trained, frozen = split_params({"unix": golden.params}, trainable)
    model = golden.model.clone(freeze_und=not trains_und(trained))

    def losses_of(trained: Any, frozen: Any, inputs: Any) -> tuple[Any, LossTerms]:
        batch, latents, noise, timesteps = inputs
        params, drawn = merge_params(trained, frozen), FlowDraw(latents, noise, timesteps)
        totals = count_totals(batch)
        loss, _, terms = loss_and_terms(model, params, batch, drawn, totals, LossConfig())
        return loss, terms

    function: Any = losses_of
    if gradients:
        function = jax.value_and_grad(losses_of, has_aux=True)
    drawn = (inputs.batch, inputs.latents, inputs.noise, inputs.timesteps)
    result = jax.jit(function)(trained, frozen, drawn)
    return (result[0][1], result[1]) if gradients else (result[1], None)


def _loss_tensors(
    prefix: str, terms: LossTerms, und_places: np.ndarray, gen_places: np.ndarray
) -> Tensors:
    out = {f"{prefix}.ce": terms.ce[0, und_places]}  # type: ignore[index]
    if terms.squared_error is not None and len(gen_places):
        out[f"{prefix}.mse"] = terms.squared_error[0, gen_places]
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
    """Indices in a stream of the tokens at the packed indices `wanted`."""
    order = np.argsort(sequence)
    return order[np.searchsorted(sequence[order], wanted)]


def _layout_tensors(
    golden: Golden, layout: Layout, samples: list[list[Split]], losses: list[list[int]]
) -> Tensors:
    """Everything that follows from the plan alone: ids, indices, positions, masks, labels."""
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
        # Fixed parameters, as the position table, have none.
        if entry.path not in flat:
            continue
        array = np.asarray(flat[entry.path])
        layers = [array] if entry.layers is None else list(array)
        for key, layer in zip(entry.keys, layers, strict=True):
            name = key.replace("connector.layers.0", "connector.fc1")
            name = name.replace("connector.layers.2", "connector.fc2")
            out[f"train.grad.{name}"] = entry.transform.to_file(layer)
    return out

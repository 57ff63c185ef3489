"""Recomputes every tensor of a golden directory with this implementation.

Each function takes the loaded model and the golden inputs and yields {name: array} in the golden
file's own layout (NCHW, packed, no batch axis), going through the code that inference and training
use. What each name means is in `docs/conversion.md`.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unix_jax.config import UniXConfig
from unix_jax.errors import CheckpointError
from unix_jax.inference import decoding
from unix_jax.inference.context import as_batch, image_context, prefill
from unix_jax.inference.sampling import (
    Guidance,
    ImageContext,
    initial_state,
    predict_velocity,
    sample_latents,
)
from unix_jax.models.attention.mask import CAUSAL, TokenMetadata
from unix_jax.models.autoencoder import Autoencoder
from unix_jax.models.embeddings import patchify, unpatchify
from unix_jax.models.unix import UniX
from unix_jax.preprocessing.flow import timestep_grid
from unix_jax.preprocessing.layout import Layout, Split, TextSplit, VaeSplit, VitSplit, lay_out

Tensors = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Golden:
    """A golden directory and the model under test."""

    config: UniXConfig
    params: Any
    vae_params: Any | None
    tensors: Mapping[str, np.ndarray]
    info: Mapping[str, Any]

    @functools.cached_property
    def model(self) -> UniX:
        return UniX(self.config)

    @functools.cached_property
    def apply(self) -> Callable[..., Any]:
        """The model's methods, compiled: apply("name", *arguments)."""

        @functools.partial(jax.jit, static_argnames=("method",))
        def run(params: Any, method: str, *arguments: Any) -> Any:
            return self.model.apply({"params": params}, *arguments, method=method)

        return lambda method, *arguments: run(self.params, method, *arguments)

    @functools.cached_property
    def vae(self) -> Callable[..., Any]:
        """The autoencoder's methods, compiled: vae("name", *arguments)."""
        if self.vae_params is None:
            raise CheckpointError("vae: expected an autoencoder in the checkpoint, found none")
        autoencoder = Autoencoder(self.config.vae)

        @functools.partial(jax.jit, static_argnames=("method",))
        def run(params: Any, method: str, *arguments: Any) -> Any:
            return autoencoder.apply({"params": params}, *arguments, method=method)

        return lambda method, *arguments: run(self.vae_params, method, *arguments)

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.tensors:
            raise CheckpointError(f"golden.safetensors: expected tensor {name!r}, found none")
        return self.tensors[name]

    def pixels(self, name: str) -> Any:
        """An image tensor, NCHW or CHW, as NHWC."""
        array = self[name]
        return np.moveaxis(array if array.ndim == 4 else array[None], 1, -1)

    def tokens(self, latents: Any) -> Any:
        """Latents [B, H, W, C] as tokens [B, G, p*p*C]; odd rows and columns are cropped."""
        p = self.config.latent_patch_size
        height, width = (side // p * p for side in latents.shape[1:3])
        return patchify(latents[:, :height, :width], p)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Latent tokens per column and row of an image in pixels.

        Raises:
          CheckpointError: more than the position table holds.
        """
        side, largest = self.config.latent_downsample, self.config.max_latent_size
        grid = height // side, width // side
        if not self.config.interpolate_pos and max(grid) > largest:
            raise CheckpointError(
                f"golden image of {height} x {width} px: expected at most max_latent_size "
                f"{largest} tokens of {side} px per side, found {grid[0]} x {grid[1]}"
            )
        return grid


def channels_first(x: Any) -> np.ndarray:
    return np.moveaxis(np.asarray(x), -1, 1)


def in_sequence(layout: Layout, und: Any, gen: Any) -> np.ndarray:
    """One row of both streams in the order of the packed sequence, padding dropped."""
    parts = []
    for values, sequence, metadata in (
        (und, layout.und_sequence, layout.und),
        (gen, layout.gen_sequence, layout.gen),
    ):
        if values is not None and sequence.shape[1]:
            real = np.asarray(metadata.segment)[0] > 0
            parts.append((sequence[0][real], np.asarray(values)[0][real]))
    order = np.argsort(np.concatenate([place for place, _ in parts]))
    return np.concatenate([values for _, values in parts])[order]


def cache_in_sequence(layout: Layout, cached: Any, name: str) -> Iterator[tuple[str, np.ndarray]]:
    """Each layer of a cache [L, 1, S, K, H], in sequence order, under `name`.l."""
    und, gen = layout.token_ids.shape[1], layout.latent_position_ids.shape[1]
    for index, layer in enumerate(np.asarray(cached)):
        yield (
            f"{name}.{index}",
            in_sequence(layout, layer[:, :und], layer[:, und : und + gen]),
        )


# ----------------------------------------------------------------------------- autoencoder


def autoencoder_tensors(golden: Golden) -> Tensors:
    """`vae.*`."""
    moments = golden.vae("moments", golden.pixels("vae.pixels"))
    mode = golden.vae("latent", moments)
    sample = golden.vae("latent", moments, golden.pixels("vae.sample_noise"))
    return {
        "vae.moments": channels_first(moments),
        "vae.latent_mode": channels_first(mode),
        "vae.latent_sample": channels_first(sample),
        "vae.decoded_from_latent_mode": channels_first(golden.vae("decode", mode)),
    }


# ----------------------------------------------------------------------------- understanding


def understanding_tensors(golden: Golden) -> Tensors:
    """`und.*`: the report path, from pixels to greedy tokens."""
    config, special = golden.config, golden.config.special_tokens
    pixels = golden.pixels("und.pixel_values")
    out: Tensors = {
        "und.vit_features": golden.apply("features", pixels),
        "und.connector_out": golden.apply("embed_images", pixels),
    }
    text = [special.bos, *golden["und.prompt_ids"].tolist(), special.eos]
    layout = lay_out([[[VitSplit(), TextSplit(text)]]], config)
    forced = golden["und.greedy_tokens"]
    capacity = layout.token_ids.shape[1] + len(forced)
    batch = as_batch(layout, pixels[:, None])
    cache, (hidden, _) = prefill(golden.model, golden.params, batch, capacity)
    boundary = config.vision.num_patches + 2
    sequence = in_sequence(layout, hidden, None)
    position = in_sequence(layout, layout.und.position, None)
    out |= {
        "und.image_hidden": sequence[:boundary],
        "und.text_hidden": sequence[boundary:],
        "und.image_position_ids": position[:boundary],
        "und.text_position_ids": position[boundary:],
        "und.text_input_ids": np.array(text),
        "und.start_position_id": layout.next_position,
    }
    out.update(cache_in_sequence(layout, cache.keys, "und.key_cache"))
    out.update(cache_in_sequence(layout, cache.values, "und.value_cache"))

    steps = jnp.arange(len(forced))[None]
    metadata = TokenMetadata(
        position=jnp.asarray(layout.next_position)[:, None] + steps,
        segment=jnp.ones_like(steps),
        split=jnp.zeros_like(steps),
        order=steps,
        mode=jnp.full_like(steps, CAUSAL),
    )
    embedded = golden.apply("embed_text", forced[None])
    (hidden, _), *_ = golden.apply(
        "decode", (embedded, None), (metadata.position, None), metadata, cache
    )
    out["und.greedy_logits"] = golden.apply("logits", hidden)[0]

    # The file may run on past an eos: an impossible one keeps the loop going for its whole length.
    endless = dataclasses.replace(special, eos=-1)
    model = UniX(dataclasses.replace(config, special_tokens=endless))
    count = len(forced) - 1
    new_rows = decoding.NewRows(
        cache, layout.next_position, jax.random.split(jax.random.key(0), 1),  # type: ignore[arg-type]
        jnp.full(1, count), jnp.zeros(1), jnp.ones(1), jnp.zeros((1, 0), jnp.int32),
    )  # fmt: skip
    state = decoding.start(
        new_rows, context=layout.token_ids.shape[1], bos=special.bos, eos=-1, buffer=count
    )
    state = decoding.decode_until(
        model, golden.params, state, jnp.int32(count), jnp.int32(1), choice="greedy"
    )
    new = np.asarray(state.tokens)[0]
    out["und.greedy_tokens"] = np.concatenate([[special.bos], new])
    return out


# ----------------------------------------------------------------------------- generation


def _run(golden: Golden, context: ImageContext, run: Mapping[str, Any], branch: Any) -> Any:
    low, high = run["cfg_interval"]
    guidance = Guidance(
        *(
            jnp.float32(x)
            for x in (
                run["cfg_text_scale"],
                run["cfg_img_scale"],
                low,
                high,
                run["cfg_renorm_min"],
            )
        )
    )
    grid = timestep_grid(run["num_timesteps"], run["timestep_shift"])
    state = initial_state(jnp.asarray(golden["gen.init_noise"])[None])
    return sample_latents(
        golden.model, golden.params, context, state, jnp.asarray(grid), jnp.int32(0),
        jnp.int32(len(grid) - 1), guidance, guided=run["cfg_text_scale"] > 1,
        image_branch=branch if run["cfg_img_scale"] > 1 else "none",
        renorm=run["cfg_renorm_type"],
    ).latents[0]  # fmt: skip


def _prompt(golden: Golden) -> list[int]:
    special = golden.config.special_tokens
    return [special.bos, *golden["gen.prompt_ids"].tolist(), special.eos]


def generation_tensors(golden: Golden) -> Tensors:
    """`gen.*`: velocities and complete sampling runs from text."""
    height, width = golden.info["generation_image_hw"]
    grid = golden.grid(height, width)
    context = image_context(golden.model, golden.params, [_prompt(golden)], grid)
    guided = image_context(golden.model, golden.params, [_prompt(golden)], grid, guided=True)
    noise = jnp.asarray(golden["gen.init_noise"])[None]
    out: Tensors = {
        "gen.latent_position_ids": context.latent_position_ids[0],
        "gen.position_ids": np.full(noise.shape[1] + 2, context.positions[0]),
    }
    velocity = jax.jit(predict_velocity, static_argnames=("model",))
    for name in golden.tensors:
        if name.startswith("gen.velocity.t"):
            t = jnp.float32(float(name.removeprefix("gen.velocity.t")))
            out[name] = velocity(golden.model, golden.params, context, noise, t)[0]
    for i, run in enumerate(golden.info["generation_samples"]):
        if run.get("context", "text") != "text":
            continue
        used = guided if run["cfg_text_scale"] > 1 else context
        latents = _run(golden, used, run, "conditional")
        out[f"gen.sample.{i}.latent"] = latents
        if f"gen.sample.{i}.image" in golden.tensors:
            z = unpatchify(latents[None], *grid, golden.config.latent_patch_size)
            image = jnp.clip(golden.vae("decode", z) / 2 + 0.5, 0, 1)
            out[f"gen.sample.{i}.image"] = channels_first(image)
    return out


def edit_tensors(golden: Golden) -> Tensors:
    """`edit.*`: generation conditioned on a clean image, its ViT input, and text."""
    pixels = golden.pixels("edit.vae_pixels")
    clean = golden.tokens(golden.vae("encode", pixels))
    clean_grid = golden.grid(*pixels.shape[1:3])
    grid = golden.grid(*golden.info["generation_image_hw"])
    run = golden.info["edit_sample"]
    context = image_context(
        golden.model, golden.params, [_prompt(golden)], grid,
        vit_pixels=golden.pixels("und.pixel_values"), clean_latents=clean, clean_grid=clean_grid,
        guided=run["cfg_text_scale"] > 1, image_rows=run["cfg_img_scale"] > 1,
    )  # fmt: skip
    splits: list[Split] = [
        VaeSplit(*clean_grid, noised=False),
        VitSplit(),
        TextSplit(_prompt(golden)),
    ]
    layout = lay_out([[splits]], golden.config, *_stream_widths(context, clean))
    out: Tensors = {"edit.sample.latent": _run(golden, context, run, "rows")}
    out.update(cache_in_sequence(layout, context.cache.keys[:, :1], "edit.key_cache"))
    return out


def _stream_widths(context: ImageContext, clean: Any) -> tuple[int, int]:
    return context.cache.capacity - clean.shape[1], clean.shape[1]

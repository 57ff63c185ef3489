"""Latents of images, step by step, from prompts and condition images.

Letters: B rows, G latent tokens, C numbers in a latent token, h w latent tokens per side.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from PIL import Image

from unix_jax import sharding
from unix_jax.config import UNetBackbone, UniXConfig
from unix_jax.errors import PromptError
from unix_jax.inference.context import finite_rows, image_context, require_finite
from unix_jax.inference.inputs import (
    Images,
    Prompts,
    image_list,
    noise_array,
    prompt_list,
    require,
    row_keys,
    row_seeds,
)
from unix_jax.inference.loaded import LoadedModel
from unix_jax.inference.sampling import SamplingState, initial_state, sample_latents
from unix_jax.inference.settings import ImageSettings
from unix_jax.models.embeddings import patchify, unpatchify
from unix_jax.preprocessing import flow
from unix_jax.preprocessing.transforms import to_model_image, to_padded_vae_image

# Step numbers up to 63, up to 127 and so on share a compiled program.
_GRID_MULTIPLE = 64


@dataclasses.dataclass(frozen=True)
class _Rows:
    """The distinct rows of a call, and their indices among the caller's prompts (`named`)."""

    texts: list[list[int]]
    named: list[int]
    vit_pixels: np.ndarray | None = None
    clean_latents: np.ndarray | None = None
    clean_grid: tuple[int, int] | None = None


@dataclasses.dataclass(frozen=True)
class LatentStep:
    """The latents x and the estimate of the final image, after `step` of `total` evaluations.

    The estimate is x - t v, with the velocity of the last step.
    """

    step: int
    total: int
    latents: Float[np.ndarray, "B G C"]
    estimate: Float[np.ndarray, "B G C"]


def generate_latents(
    loaded: LoadedModel,
    prompts: Prompts,
    settings: ImageSettings,
    images: Images | None,
    initial_noise: Any,
    seed: int | Sequence[int],
    stride: int | None,
) -> tuple[list[int], Iterator[LatentStep]]:
    """Returns (the seed of each row, an iterator of steps).

    It yields a `LatentStep` every `stride` steps and at the end, or only at the end if `stride` is
    None. Rows of the same prompt, noise and condition image are computed once. Arguments are
    checked by the call itself, before the first step is requested.

    Raises:
      PromptError: condition images for a model with a U-Net.
      NonFiniteError: contexts or latents that are NaN or infinite.
    """
    config = loaded.config
    settings = settings.checked(config)
    if images is not None:
        if isinstance(config.generation, UNetBackbone):
            raise PromptError(
                "images: expected None for a model with a U-Net as its generation backbone, which "
                "reads texts and no condition images"
            )
        loaded.require_vae()
    found = prompt_list(prompts)
    rows = len(found)
    texts = loaded.encode_prompts(found, rows, config.decoder.max_position_embeddings - 2)
    size = latent_size(config, settings)
    seeds = row_seeds(seed, rows)
    noise = np.array(_noise(config, initial_noise, seeds, size))
    conditions = None if images is None else image_list(images)
    if conditions is not None:
        expected = f"one, or {rows} (one per prompt)"
        require(len(conditions) in (1, rows), "images", expected, len(conditions))
    # The index of each row's condition image; one serves all.
    chosen = [0 if conditions is None or len(conditions) == 1 else i for i in range(rows)]
    distinct, of_row = _distinct(
        [(tuple(texts[i]), noise[i].tobytes(), chosen[i]) for i in range(rows)]
    )
    texts = [texts[i] for i in distinct]
    if conditions is None:
        batch = _Rows(texts, distinct)
    else:
        chosen = [chosen[i] for i in distinct]
        batch = _conditioned(loaded, texts, distinct, conditions, chosen, settings.size(config))
    times = time_grid(settings)
    total = len(times) - 1
    run = _sample(loaded, batch, noise[distinct], times, settings, size, stride or total)
    return seeds, (
        LatentStep(done, total, latents[of_row], estimate[of_row])
        for done, latents, estimate in run
    )


def time_grid(settings: ImageSettings) -> Float[np.ndarray, " T"]:
    """The times of a run: the original's, or a grid that includes the guidance interval's ends."""
    steps, shift = settings.num_inference_steps, settings.timestep_shift
    if settings.solver == "euler":
        return flow.timestep_grid(steps + 1, shift)
    low, high = settings.guidance_interval
    acts = settings.guided and low < high
    return flow.timestep_grid_through(steps, shift, (low, high) if acts else ())


def padded_steps(points: int) -> int:
    """Length of the array of a time grid's points; programs depend on it."""
    return -(-points // _GRID_MULTIPLE) * _GRID_MULTIPLE


def _distinct(keys: Sequence[Any]) -> tuple[list[int], list[int]]:
    """(index of the first occurrence of each distinct key, the number of each key among them)."""
    first: dict[Any, int] = {}
    for i, key in enumerate(keys):
        first.setdefault(key, i)
    numbers = {key: number for number, key in enumerate(first)}
    return list(first.values()), [numbers[key] for key in keys]


def latent_size(config: UniXConfig, settings: ImageSettings) -> tuple[int, int]:
    """(h, w) of the generated image."""
    height, width = settings.size(config)
    return height // config.latent_downsample, width // config.latent_downsample


def decode_latents(
    loaded: LoadedModel, latents: Float[np.ndarray, "B G C"], size: tuple[int, int]
) -> Float[np.ndarray, "B H W 3"]:
    """Pixels in [0, 1].

    Raises:
      NonFiniteError: pixels that are NaN or infinite.
    """
    spatial = unpatchify(jnp.asarray(latents), *size, loaded.config.latent_patch_size)
    pixels = loaded.autoencode(np.asarray(spatial), "decode")
    finite = np.isfinite(pixels).all(axis=(1, 2, 3))
    require_finite(finite, "prompts", "decoded pixels of the image")
    return np.clip(pixels / 2 + 0.5, 0, 1)


def _conditioned(
    loaded: LoadedModel,
    texts: list[list[int]],
    named: list[int],
    images: Sequence[Image.Image],
    chosen: list[int],
    size: tuple[int, int],
) -> _Rows:
    """Rows with their condition images, prepared as in training: padded to the image's `size`.

    chosen: the index in `images` of each row's condition image. Each is encoded once.
    """
    config = loaded.config
    used, of_row = _distinct(chosen)
    seen = [images[chosen[i]] for i in used]
    clean = np.stack([to_padded_vae_image(image, *size) for image in seen])
    vit = np.stack([to_model_image(image, config.vision.image_size) for image in seen])
    encoded = loaded.autoencode(clean, "encode")
    patch = config.latent_patch_size
    height, width = encoded.shape[1:3]
    return _Rows(
        texts,
        named,
        vit[of_row],
        np.asarray(patchify(jnp.asarray(encoded), patch))[of_row],
        (height // patch, width // patch),
    )


def _sample(
    loaded: LoadedModel,
    batch: _Rows,
    noise: np.ndarray,
    times: np.ndarray,
    settings: ImageSettings,
    size: tuple[int, int],
    stride: int,
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(number of steps, x, estimate) every `stride` steps, with one program for any stride."""
    rows = len(batch.texts)
    # Without a condition image the empty-image branch equals the conditional one.
    own_rows = settings.image_guided and batch.clean_grid is not None
    texts, x, vit_pixels, clean_latents = loaded.whole_shards(
        batch.texts, noise, batch.vit_pixels, batch.clean_latents
    )
    with sharding.use_mesh(loaded.mesh):
        context = image_context(
            loaded.model,
            loaded.params,
            texts,
            size,
            vit_pixels=vit_pixels,
            clean_latents=clean_latents,
            clean_grid=batch.clean_grid,
            guided=settings.guided,
            image_rows=own_rows,
        )
        state = initial_state(loaded.place(x), settings.solver)
        context_finite = finite_rows(context.cache)
    total = len(times) - 1
    grid = jnp.asarray(np.pad(times, (0, padded_steps(len(times)) - len(times))))
    branch = "rows" if own_rows else "conditional" if settings.image_guided else "none"

    def advance(state: SamplingState, first: int, last: int) -> SamplingState:
        with sharding.use_mesh(loaded.mesh):
            return sample_latents(
                loaded.model,
                loaded.params,
                context,
                state,
                grid,
                jnp.int32(first),
                jnp.int32(last),
                settings.guidance,
                guided=settings.guided,
                image_branch=branch,
                renorm=settings.renorm,
                solver=settings.solver,
            )

    done = 0
    while done < total:
        last = min(done + stride, total)
        state = advance(state, done, last)
        done = last
        latents, velocity = (np.asarray(a) for a in (state.latents, state.velocity))
        estimate = latents - times[done] * velocity if done < total else latents
        latents, estimate = latents[:rows], estimate[:rows]
        branches = np.asarray(context_finite).reshape(-1, len(state.latents))[:, :rows]
        require_finite(
            branches.all(axis=0), "prompts", "keys or values of the context", batch.named
        )
        finite = np.isfinite(latents).all(axis=(1, 2)) & np.isfinite(estimate).all(axis=(1, 2))
        numbers = f"latents of the image, by step {done} of {total},"
        require_finite(finite, "prompts", numbers, batch.named)
        yield done, latents, estimate


def _noise(
    config: UniXConfig, given: Any, seeds: list[int], size: tuple[int, int]
) -> Float[np.ndarray, "B G C"]:
    shape = (size[0] * size[1], config.latent_channels)
    if given is None:
        noise = jax.vmap(lambda key: jax.random.normal(key, shape))(row_keys(seeds))
        return np.asarray(noise)
    return noise_array("initial_noise", given, (len(seeds), *shape))

"""From prompts, and images to condition on, to the latents of images, step by step.

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
from unix_jax.preprocessing.transforms import to_model_image, to_vae_image

# Numbers of steps up to 63, up to 127 and so on share a compiled program.
_GRID_MULTIPLE = 64


@dataclasses.dataclass(frozen=True)
class _Rows:
    """Rows that run together: shapes are static, so their condition images have one grid.

    `members` are their indices among the distinct rows, `named` those among the caller's prompts.
    """

    members: list[int]
    named: list[int]
    texts: list[list[int]]
    vit_pixels: np.ndarray | None = None
    clean_latents: np.ndarray | None = None
    clean_grid: tuple[int, int] | None = None


@dataclasses.dataclass(frozen=True)
class LatentStep:
    """After `step` of `total` network evaluations: x, and the image that it is on the way to.

    The estimate is x - t v, with the velocity of the step just taken.
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
    """Returns (the seed of each row, steps).

    A `LatentStep` comes every `stride` steps and at the end; None only at the end of each group of
    rows. Rows of the same prompt, noise and condition image are computed once. Rows whose
    condition images differ in their grid run one group after the other; `total` counts the steps
    of all groups. Rows that wait still hold noise.

    Arguments are checked by the call itself, before the first step is asked for.

    Raises:
      PromptError: condition images for a model with a U-Net.
      NonFiniteError: contexts or latents that are NaN or infinite.
    """
    config = loaded.config
    settings = settings.checked(config)
    height, width = settings.size(config)
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
        groups = [_Rows(list(range(len(distinct))), distinct, texts)]
    else:
        chosen = [chosen[i] for i in distinct]
        groups = _conditioned(loaded, texts, distinct, conditions, chosen, max(height, width))
    run = _run(loaded, groups, noise[distinct], time_grid(settings), settings, size, stride)
    return seeds, (
        LatentStep(at.step, at.total, at.latents[of_row], at.estimate[of_row]) for at in run
    )


def time_grid(settings: ImageSettings) -> Float[np.ndarray, " T"]:
    """The times of a run: the original's, or with the ends of the guidance interval among them."""
    steps, shift = settings.num_inference_steps, settings.timestep_shift
    if settings.solver == "euler":
        return flow.timestep_grid(steps + 1, shift)
    low, high = settings.guidance_interval
    acts = settings.guided and low < high
    return flow.timestep_grid_through(steps, shift, (low, high) if acts else ())


def _distinct(keys: Sequence[Any]) -> tuple[list[int], list[int]]:
    """(index of the first occurrence of each distinct key, the number of each key among them)."""
    first: dict[Any, int] = {}
    for i, key in enumerate(keys):
        first.setdefault(key, i)
    numbers = {key: number for number, key in enumerate(first)}
    return list(first.values()), [numbers[key] for key in keys]


def _run(
    loaded: LoadedModel,
    groups: Sequence[_Rows],
    latents: np.ndarray,
    times: np.ndarray,
    settings: ImageSettings,
    size: tuple[int, int],
    stride: int | None,
) -> Iterator[LatentStep]:
    """The steps of all groups, from the noise in `latents`."""
    estimate = latents.copy()
    evaluations = len(times) - 1
    total = evaluations * len(groups)
    for i, group in enumerate(groups):
        at = np.array(group.members)
        for done, x, denoised in _sample(
            loaded, group, latents[at], times, settings, size, stride or evaluations
        ):
            latents[at], estimate[at] = x, denoised
            yield LatentStep(i * evaluations + done, total, latents.copy(), estimate.copy())


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
    max_size: int,
) -> list[_Rows]:
    """Rows with their condition images, seen by the autoencoder and the ViT, by latent grid.

    chosen: the index in `images` of each row's condition image. Each is encoded once.
    """
    config = loaded.config
    side, patch = config.latent_downsample, config.latent_patch_size
    clean = [to_vae_image(x, max_size=max_size, min_size=side, stride=side) for x in images]
    vit = [to_model_image(x, config.vision.image_size) for x in images]
    groups: dict[tuple[int, ...], list[int]] = {}
    for row, image in enumerate(chosen):
        groups.setdefault(clean[image].shape, []).append(row)
    found = []
    for members in groups.values():
        used, of_member = _distinct([chosen[row] for row in members])
        used = [chosen[members[i]] for i in used]
        encoded = loaded.autoencode(np.stack([clean[i] for i in used]), "encode")
        height, width = encoded.shape[1:3]
        found.append(
            _Rows(
                members,
                [named[row] for row in members],
                [texts[row] for row in members],
                np.stack([vit[i] for i in used])[of_member],
                np.asarray(patchify(jnp.asarray(encoded), patch))[of_member],
                (height // patch, width // patch),
            )
        )
    return found


def _sample(
    loaded: LoadedModel,
    group: _Rows,
    noise: np.ndarray,
    times: np.ndarray,
    settings: ImageSettings,
    size: tuple[int, int],
    stride: int,
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(steps done, x, estimate of the image) every `stride` steps; one program for any stride."""
    rows = len(group.texts)
    # Without a condition image the empty-image branch is the conditional one.
    own_rows = settings.image_guided and group.clean_grid is not None
    texts, x, vit_pixels, clean_latents = loaded.whole_shards(
        group.texts, noise, group.vit_pixels, group.clean_latents
    )
    with sharding.use_mesh(loaded.mesh):
        context = image_context(
            loaded.model,
            loaded.params,
            texts,
            size,
            vit_pixels=vit_pixels,
            clean_latents=clean_latents,
            clean_grid=group.clean_grid,
            guided=settings.guided,
            image_rows=own_rows,
        )
        state = initial_state(loaded.place(x), settings.solver)
        context_finite = finite_rows(context.cache)
    total = len(times) - 1
    grid = jnp.asarray(np.pad(times, (0, -len(times) % _GRID_MULTIPLE)))
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
            branches.all(axis=0), "prompts", "keys or values of the context", group.named
        )
        finite = np.isfinite(latents).all(axis=(1, 2)) & np.isfinite(estimate).all(axis=(1, 2))
        numbers = f"latents of the image, by step {done} of {total},"
        require_finite(finite, "prompts", numbers, group.named)
        yield done, latents, estimate


def _noise(
    config: UniXConfig, given: Any, seeds: list[int], size: tuple[int, int]
) -> Float[np.ndarray, "B G C"]:
    shape = (size[0] * size[1], config.latent_channels)
    if given is None:
        noise = jax.vmap(lambda key: jax.random.normal(key, shape))(row_keys(seeds))
        return np.asarray(noise)
    return noise_array("initial_noise", given, (len(seeds), *shape))

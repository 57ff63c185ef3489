"""From prompts, and pictures to condition on, to the latents of images, step by step.

Letters: B rows, G latent tokens, C numbers in a latent token, h w latent tokens per side.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from unix_jax import sharding
from unix_jax.config import UniXConfig
from unix_jax.errors import PromptError
from unix_jax.inference.context import finite_rows, image_context, require_finite
from unix_jax.inference.inputs import (
    TINY,
    Images,
    Prompts,
    choice,
    image_list,
    interval,
    noise_array,
    number,
    prompt_list,
    require,
    row_keys,
    whole,
)
from unix_jax.inference.loaded import LoadedModel
from unix_jax.inference.sampling import RENORMS, Guidance, Renorm, sample_latents
from unix_jax.models.embeddings import patchify, unpatchify
from unix_jax.preprocessing import flow
from unix_jax.preprocessing.transforms import to_model_image, to_padded_vae_image

# Numbers of steps up to 63, up to 127 and so on share a compiled program.
_GRID_MULTIPLE = 64
_MOST_STEPS = 100_000


@dataclasses.dataclass(frozen=True)
class ImageSettings:
    """How an image is drawn; `UniXPipeline.generate_image` describes each field."""

    height: int | None = None
    width: int | None = None
    num_steps: int = 50
    timestep_shift: float = 3.0
    guidance_scale: float = 2.0
    image_guidance_scale: float = 1.0
    guidance_interval: tuple[float, float] = (0.4, 1.0)
    renorm: Renorm = "global"
    renorm_min: float = 0.0

    def size(self, config: UniXConfig) -> tuple[int, int]:
        """(height, width) in pixels, where None is 512 or the largest of a smaller model.

        Raises:
          PromptError: a size that this model cannot draw.
        """
        side = config.latent_downsample
        largest = config.max_latent_size * side
        default = min(512 // side * side or side, largest)
        sides, multiple = [], f"a positive multiple of {side}"
        for name, given in (("height", self.height), ("width", self.width)):
            value = default if given is None else whole(name, given, side, None, multiple)
            sides.append(value)
            require(value % side == 0, name, multiple, value)
            if not config.interpolate_pos:
                require(value <= largest, name, f"at most {largest} (position table)", value)
        return sides[0], sides[1]

    def checked(self, config: UniXConfig) -> "ImageSettings":
        """The same settings as plain numbers.

        Raises:
          PromptError: a setting that is no finite number of its kind, that this model cannot
            follow, or that would have no effect.
        """
        height, width = self.size(config)
        choice("renorm", self.renorm, RENORMS)
        text, image = (
            number(name, getattr(self, name), "a finite number of at least 0", 0)
            for name in ("guidance_scale", "image_guidance_scale")
        )
        if text <= 1 < image:
            raise PromptError(
                "image_guidance_scale: expected at most 1 without text guidance "
                f"(guidance_scale {text:g}), found {image:g}: it acts with text guidance only"
            )
        return ImageSettings(
            height,
            width,
            whole("num_steps", self.num_steps, 2, _MOST_STEPS),
            number("timestep_shift", self.timestep_shift, "a positive number", TINY),
            text,
            image,
            interval("guidance_interval", self.guidance_interval),
            self.renorm,
            number("renorm_min", self.renorm_min, "a number in [0, 1]", 0, 1),
        )

    @property
    def guided(self) -> bool:
        """Whether text guidance is used."""
        return self.guidance_scale > 1

    @property
    def image_guided(self) -> bool:
        """Whether image guidance is used: with text guidance only, as in the original."""
        return self.guided and self.image_guidance_scale > 1

    @property
    def guidance(self) -> Guidance:
        """The numbers that a compiled program takes."""
        numbers = (
            self.guidance_scale,
            self.image_guidance_scale,
            *self.guidance_interval,
            self.renorm_min,
        )
        return Guidance(*(jnp.float32(x) for x in numbers))


@dataclasses.dataclass(frozen=True)
class _Rows:
    """Prompts, and their condition images as the ViT and the autoencoder see them."""

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


def draw_latents(
    loaded: LoadedModel,
    prompts: Prompts,
    settings: ImageSettings,
    images: Images | None,
    initial_noise: Any,
    seed: int | Sequence[int],
    stride: int | None,
) -> Iterator[LatentStep]:
    """Yields every `stride` steps and at the end; None only at the end.

    Arguments are checked by the call itself, before the first item is asked for.

    Raises:
      NonFiniteError: contexts or latents that are NaN or infinite.
    """
    config = loaded.config
    settings = settings.checked(config)
    height, width = settings.size(config)
    if images is not None:
        loaded.require_vae()
    times = flow.timestep_grid(settings.num_steps, settings.timestep_shift)
    found = prompt_list(prompts)
    rows = len(found)
    texts = loaded.encode_prompts(found, rows, config.decoder.max_position_embeddings - 2)
    size = latent_size(config, settings)
    latents = np.array(_noise(config, initial_noise, row_keys(seed, rows), rows, size))
    batch = _Rows(texts) if images is None else _conditioned(loaded, texts, images, (height, width))
    return _run(loaded, batch, latents, times, settings, size, stride)


def _run(
    loaded: LoadedModel,
    batch: _Rows,
    latents: np.ndarray,
    times: np.ndarray,
    settings: ImageSettings,
    size: tuple[int, int],
    stride: int | None,
) -> Iterator[LatentStep]:
    """The steps, from the noise in `latents`."""
    total = len(times) - 1
    for done, x, estimate in _sample(
        loaded, batch, latents, times, settings, size, stride or total
    ):
        yield LatentStep(done, total, np.array(x), np.array(estimate))


def latent_size(config: UniXConfig, settings: ImageSettings) -> tuple[int, int]:
    """(h, w) of the drawn image."""
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
    loaded: LoadedModel, texts: list[list[int]], images: Images, size: tuple[int, int]
) -> _Rows:
    """Rows with their condition images, prepared as in training: padded to the image's `size`."""
    pictures, rows = image_list(images), len(texts)
    require(len(pictures) in (1, rows), "images", f"one, or {rows} (one a prompt)", len(pictures))
    config = loaded.config
    clean = np.stack([to_padded_vae_image(picture, *size) for picture in pictures])
    vit = np.stack([to_model_image(p, config.vision.image_size) for p in pictures])
    encoded = loaded.autoencode(clean, "encode")
    patch = config.latent_patch_size
    latents = np.asarray(patchify(jnp.asarray(encoded), patch))
    repeats = rows // len(pictures)
    return _Rows(
        texts,
        np.repeat(vit, repeats, axis=0),
        np.repeat(latents, repeats, axis=0),
        (encoded.shape[1] // patch, encoded.shape[2] // patch),
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
    """(steps done, x, estimate of the image) every `stride` steps; one program for any stride."""
    rows = len(batch.texts)
    # Without a condition image the empty-image branch is the conditional one.
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
        x = loaded.place(x)
        context_finite = finite_rows(context.cache)
    total = len(times) - 1
    grid = jnp.asarray(np.pad(times, (0, -len(times) % _GRID_MULTIPLE)))
    branch = "rows" if own_rows else "conditional" if settings.image_guided else "none"

    def advance(x: Array, first: int, last: int) -> Array:
        with sharding.use_mesh(loaded.mesh):
            return sample_latents(
                loaded.model,
                loaded.params,
                context,
                x,
                grid,
                jnp.int32(first),
                jnp.int32(last),
                settings.guidance,
                guided=settings.guided,
                image_branch=branch,
                renorm=settings.renorm,
            )

    done = 0
    while done < total:
        last = min(done + stride, total)
        if last < total:
            # The last step of the stride alone: its velocity is read from the two states.
            before = advance(x, done, last - 1) if last - 1 > done else x
            x = advance(before, last - 1, last)
            velocity = (before - x) / (times[last - 1] - times[last])
            estimate = x - times[last] * velocity
        else:
            x = estimate = advance(x, done, last)
        done = last
        state, seen = np.asarray(x)[:rows], np.asarray(estimate)[:rows]
        branches = np.asarray(context_finite).reshape(-1, x.shape[0])[:, :rows]
        require_finite(branches.all(axis=0), "prompts", "keys or values of the context")
        finite = np.isfinite(state).all(axis=(1, 2)) & np.isfinite(seen).all(axis=(1, 2))
        numbers = f"latents of the image, by step {done} of {total},"
        require_finite(finite, "prompts", numbers)
        yield done, state, seen


def _noise(
    config: UniXConfig, given: Any, keys: Array, rows: int, size: tuple[int, int]
) -> Float[Array, "B G C"]:
    shape = (size[0] * size[1], config.latent_channels)
    if given is None:
        return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)
    return jnp.asarray(noise_array("initial_noise", given, (rows, *shape)))

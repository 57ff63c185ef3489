"""`DiffusionPipeline`: images from text with a Stable Diffusion checkpoint.

Letters: B rows, h w latent rows and columns, H W pixels, C latent channels.
"""

import dataclasses
import functools
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, Self, Unpack, overload

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int
from PIL import Image

from unix_jax import sharding
from unix_jax.checkpoints.diffusers_checkpoint import open_diffusers
from unix_jax.checkpoints.run_export import resolve_checkpoint
from unix_jax.config import AutoencoderConfig
from unix_jax.inference.compilation import enable_compilation_cache
from unix_jax.inference.context import require_finite
from unix_jax.inference.denoising import denoise
from unix_jax.inference.image_latents import padded_steps
from unix_jax.inference.inputs import (
    Prompts,
    choice,
    prompt_list,
    require,
    row_keys,
    row_seeds,
    whole,
)
from unix_jax.inference.results import ImageResult, ImageStep
from unix_jax.inference.settings import (
    OUTPUT_TYPES,
    DiffusionOptions,
    DiffusionSettings,
    OutputType,
    settings_of,
)
from unix_jax.models import bert, clip, unet
from unix_jax.models.autoencoder import Autoencoder
from unix_jax.models.bert import Bert, BertConfig
from unix_jax.models.clip import ClipText, ClipTextConfig
from unix_jax.models.unet import UNet
from unix_jax.models.unet_config import UNetConfig
from unix_jax.preprocessing.noise_schedule import NoiseSchedule
from unix_jax.preprocessing.prompt_tokenizer import PromptTokenizer
from unix_jax.preprocessing.transforms import to_gray_pil


@dataclasses.dataclass(frozen=True, eq=False)
class DiffusionPipeline:
    """A text encoder, U-Net and autoencoder for inference. Create it with `from_pretrained`.

    `native` is the size in latents that the U-Net was trained for. `dtype` is the dtype of the
    computation, except for the autoencoder, which uses float32.
    """

    unet: UNetConfig
    vae: AutoencoderConfig
    text: ClipTextConfig | BertConfig
    schedule: NoiseSchedule
    tokenizer: PromptTokenizer
    native: tuple[int, int]
    params: dict[str, Any]
    dtype: Any = jnp.float32
    mesh: Mesh | None = None

    @classmethod
    def from_pretrained(
        cls, path: str | os.PathLike[str], *, dtype: Any = "bfloat16", mesh: Mesh | None = None
    ) -> Self:
        """Loads a folder of `StableDiffusionPipeline`, or a checkpoint imported from one.

        Args:
          path: the directory, or a name on the hub.
          dtype: `bfloat16` or `float32`; a CPU always uses float32.
          mesh: devices that share the work, see `unix_jax.sharding.make_mesh`; None uses one.

        Raises:
          CheckpointError, ConfigError: files that are missing, broken, not supported, or
            inconsistent with each other; weights that are not finite.
          StorageError: a URL, a value that is not a path, or a name on the hub that cannot be
            downloaded.
          PromptError: another dtype.
        """
        choice("dtype", str(dtype), ("bfloat16", "float32"))
        enable_compilation_cache()
        folder = open_diffusers(resolve_checkpoint(path))
        folder.check()
        used = jnp.dtype(jnp.float32 if jax.default_backend() == "cpu" else dtype)
        config, text = folder.unet_config[0], folder.text_config
        boxed = {
            "unet": unet.param_shapes(config),
            "vae": None,
            "text_encoder": clip.param_shapes(text)
            if isinstance(text, ClipTextConfig)
            else bert.param_shapes(text)["bert"],
        }
        params: dict[str, Any] = {}
        for part, shapes in boxed.items():
            kind = jnp.float32 if part == "vae" else used
            params[part] = jax.tree.map(lambda x, kind=kind: x.astype(kind), getattr(folder, part))
            if mesh is not None and shapes is not None:
                placed = sharding.param_shardings(shapes, mesh)
                params[part] = jax.tree.map(jax.device_put, params[part], placed)
        return cls(
            config, folder.vae_config, text, folder.schedule, folder.tokenizer, folder.native_size,
            params, used, mesh,
        )  # fmt: skip

    @overload
    def generate_image(
        self,
        prompts: Prompts,
        *,
        settings: DiffusionSettings | None = None,
        seed: int | Sequence[int] = 0,
        output_type: Literal["pil"] = "pil",
        callback: Callable[[ImageStep], object] | None = None,
        return_details: Literal[False] = False,
        **options: Unpack[DiffusionOptions],
    ) -> list[Image.Image]: ...

    @overload
    def generate_image(
        self,
        prompts: Prompts,
        *,
        settings: DiffusionSettings | None = None,
        seed: int | Sequence[int] = 0,
        output_type: Literal["np", "latent"],
        callback: Callable[[ImageStep], object] | None = None,
        return_details: Literal[False] = False,
        **options: Unpack[DiffusionOptions],
    ) -> np.ndarray: ...

    @overload
    def generate_image(
        self,
        prompts: Prompts,
        *,
        settings: DiffusionSettings | None = None,
        seed: int | Sequence[int] = 0,
        output_type: OutputType = "pil",
        callback: Callable[[ImageStep], object] | None = None,
        return_details: Literal[True],
        **options: Unpack[DiffusionOptions],
    ) -> list[ImageResult[DiffusionSettings]]: ...

    def generate_image(
        self,
        prompts: Prompts,
        *,
        settings: DiffusionSettings | None = None,
        seed: int | Sequence[int] = 0,
        output_type: OutputType = "pil",
        callback: Callable[[ImageStep], object] | None = None,
        return_details: bool = False,
        **options: Unpack[DiffusionOptions],
    ) -> list[Image.Image] | np.ndarray | list[ImageResult[DiffusionSettings]]:
        """Generates one image for each prompt.

        Args:
          prompts: one text or several. A text longer than the text encoder's limit is truncated,
            as in diffusers, with a warning.
          settings: settings of the images; None makes them from `options`.
          seed: an int for all rows (equal prompts generate equal images), or one per row. A row's
            image does not depend on the other rows.
          output_type: `pil` (list of PIL images of mode L, the mean of the decoded channels), `np`
            (float32 [B, H, W, 3] in [0, 1]) or `latent` (float32 scaled latents [B, h, w, C]).
          callback: called with an `ImageStep` after each step.
          return_details: return an `ImageResult` for each image, with its seed and the settings.
          **options: the fields of `DiffusionSettings`: `height`, `width`, `num_inference_steps`,
            `guidance_scale`, `guidance_rescale`, `sampler`.

        Raises:
          PromptError: an argument that cannot be used.
          NonFiniteError: the model computed NaN or infinite numbers; no result is returned.
        """
        chosen = settings_of(DiffusionSettings, settings, options)
        require(callback is None or callable(callback), "callback", "a function", callback)
        choice("output_type", output_type, OUTPUT_TYPES)
        texts = _texts(prompts)
        used = chosen.checked(self.vae, self.native)
        seeds = row_seeds(seed, len(texts))
        every = used.num_inference_steps if callback is None else 1
        for at in self._states(texts, used, seeds, every):
            if callback is not None:
                callback(at)
        latents = at.latents
        require_finite(np.isfinite(latents).all((1, 2, 3)), "prompts", "latents of the image")
        found: list[Any] | np.ndarray = latents
        if output_type != "latent":
            found = self._pixels(latents)
        if output_type == "pil":
            found = [to_gray_pil(pixels) for pixels in found]
        if not return_details:
            return found
        return [ImageResult(*of_row, used) for of_row in zip(found, seeds, strict=True)]

    def stream_image(
        self,
        prompts: Prompts,
        *,
        settings: DiffusionSettings | None = None,
        seed: int | Sequence[int] = 0,
        every: int = 5,
        **options: Unpack[DiffusionOptions],
    ) -> Iterator[ImageStep]:
        """Like `generate_image`, but yields a preview of the images every few steps.

        Args:
          prompts, settings, seed, **options: as in `generate_image`.
          every: number of steps per preview, at least 1. Each preview requires a run of the
            autoencoder's decoder.

        Yields:
          The images of the present latents; the last item has the images that `generate_image`
          returns.

        Raises:
          PromptError: as in `generate_image`, by the call itself.
          NonFiniteError: the model computed NaN or infinite numbers, at their step.
        """
        chosen = settings_of(DiffusionSettings, settings, options)
        every = whole("every", every, 1)
        texts = _texts(prompts)
        used = chosen.checked(self.vae, self.native)
        return self._decoded(self._states(texts, used, row_seeds(seed, len(texts)), every))

    def _decoded(self, states: Iterator[ImageStep]) -> Iterator[ImageStep]:
        for at in states:
            # Decoded here, so that numbers that are not finite raise an error at their step.
            _ = at.images
            yield at

    def _pixels(self, latents: Float[np.ndarray, "B h w C"]) -> Float[np.ndarray, "B H W 3"]:
        """Pixels in [0, 1], decoded one image at a time, since activations need far more memory.

        Raises:
          NonFiniteError: pixels that are NaN or infinite.
        """
        autoencoder, params = Autoencoder(self.vae), self.params["vae"]
        rows = [_applied(autoencoder, params, row[None], method="decode") for row in latents]
        pixels = np.concatenate([np.asarray(row) for row in rows])
        finite = np.isfinite(pixels).all((1, 2, 3))
        require_finite(finite, "prompts", "decoded pixels of the image")
        return np.clip(pixels / 2 + 0.5, 0, 1)

    def _states(
        self, texts: list[str], settings: DiffusionSettings, seeds: list[int], every: int
    ) -> Iterator[ImageStep]:
        """The latents after every `every` steps and after the last; errors come from the call."""
        schedule, total = self.schedule, settings.num_inference_steps
        if settings.sampler is not None:
            schedule = schedule.with_sampler(settings.sampler)
        plan = schedule.plan(total).padded(padded_steps(total))
        ids, cut = self.tokenizer.encode(texts)
        long = {f"prompts[{i}]": n for i, n in enumerate(cut) if n}
        if long:
            listed = ", ".join(f"{name} by {n}" for name, n in long.items())
            limit = self.tokenizer.length - 2
            warnings.warn(f"texts cut off at {limit} tokens: {listed}", stacklevel=3)
        assert settings.height is not None
        assert settings.width is not None
        side = self.vae.downsample
        shape = (settings.height // side, settings.width // side, self.unet.in_channels)
        noise = jax.vmap(lambda key: jax.random.normal(key, shape))(row_keys(seeds))
        guided, rows = settings.guidance_scale > 1, len(texts)
        shards = 1 if self.mesh is None else sharding.batch_shards(self.mesh)
        # The last row is repeated until the mesh divides the batch evenly.
        index = np.minimum(np.arange(rows + -rows % shards), rows - 1)
        ids = ids[index]
        if guided:
            empty, _ = self.tokenizer.encode([""])
            ids = np.concatenate([ids, np.repeat(empty, len(ids), axis=0)])
        scales = jnp.float32(settings.guidance_scale), jnp.float32(settings.guidance_rescale)
        model = UNet(self.unet, self.dtype)

        def run() -> Iterator[ImageStep]:
            x, placed = self._place(noise[index]), self._place(jnp.asarray(ids))
            with sharding.use_mesh(self.mesh):
                hidden = self._encode(placed)
            for first in range(0, total, every):
                last = min(first + every, total)
                with sharding.use_mesh(self.mesh):
                    x = denoise(
                        model, schedule, self.params["unet"], x, hidden, plan, jnp.int32(first),
                        jnp.int32(last), *scales, guided=guided,
                    )  # fmt: skip
                state = np.asarray(x)[:rows]
                yield ImageStep(last, total, state, state, self._previews)

        return run()

    def _previews(self, latents: Float[np.ndarray, "B h w C"]) -> list[Image.Image]:
        return [to_gray_pil(pixels) for pixels in self._pixels(latents)]

    def __repr__(self) -> str:
        height, width = (side * self.vae.downsample for side in self.native)
        count = sum(leaf.size for leaf in jax.tree.leaves(self.params))
        return (
            f"{type(self).__name__}(\n"
            f"  model: {count / 1e6:,.1f} M parameters, {jnp.dtype(self.dtype).name}\n"
            f"  images: {height} x {width} px\n"
            f"  sampler: {self.schedule.sampler}\n"
            ")"
        )

    def _encode(self, ids: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        params = self.params["text_encoder"]
        if isinstance(self.text, ClipTextConfig):
            return _applied(ClipText(self.text, self.dtype), params, ids)
        # Stable Diffusion's pipeline passes no mask, so that padding is attended to.
        return _applied(Bert(self.text, self.dtype), params, ids, jnp.ones(ids.shape, bool))

    def _place(self, x: Array) -> Array:
        return jax.device_put(x) if self.mesh is None else sharding.shard_batch(x, self.mesh)


# Here, and with the parameters as arguments, so that a further call uses the same program.
@functools.partial(jax.jit, static_argnames=("model", "method"))
def _applied(model: nn.Module, params: Any, *inputs: Any, method: str | None = None) -> Any:
    return model.apply({"params": params}, *inputs, method=method)


def _texts(prompts: Prompts) -> list[str]:
    """Raises PromptError for prompts that are not texts."""
    texts = prompt_list(prompts)
    for text in texts:
        require(isinstance(text, str), "prompts", "texts", text)
    return texts

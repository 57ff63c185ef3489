"""`DiffusionPipeline`: images from text with a checkpoint of Stable Diffusion's kind.

Letters: B rows, h w latent rows and columns, H W pixels, C latent channels.
"""

import dataclasses
import os
import typing
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from unix_jax import sharding
from unix_jax.config import AutoencoderConfig
from unix_jax.inference.compilation import enable_compilation_cache
from unix_jax.inference.context import require_finite
from unix_jax.inference.denoising import denoise
from unix_jax.inference.inputs import (
    Prompts,
    choice,
    number,
    prompt_list,
    require,
    row_keys,
    whole,
)
from unix_jax.models import bert, clip, unet
from unix_jax.models.autoencoder import Autoencoder
from unix_jax.models.bert import Bert, BertConfig
from unix_jax.models.clip import ClipText, ClipTextConfig
from unix_jax.models.unet import UNet
from unix_jax.models.unet_config import UNetConfig
from unix_jax.preprocessing.noise_schedule import NoiseSchedule, Sampler
from unix_jax.preprocessing.prompt_tokenizer import PromptTokenizer
from unix_jax.preprocessing.transforms import to_gray_pil

OutputType = Literal["pil", "np", "latent"]
Progress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class DiffusionSettings:
    """How an image is generated; `DiffusionPipeline.generate_image` describes each field."""

    height: int | None = None
    width: int | None = None
    num_steps: int = 50
    guidance_scale: float = 7.5
    guidance_rescale: float = 0.0
    sampler: Sampler | None = None

    def checked(self, vae: AutoencoderConfig, native: tuple[int, int]) -> "DiffusionSettings":
        """The same settings as plain numbers, sizes in pixels.

        Raises:
          PromptError: a setting of another kind, out of range, or without effect.
        """
        side = vae.downsample
        sizes = []
        for name, latents in zip(("height", "width"), native, strict=True):
            given = getattr(self, name)
            multiple = f"a positive multiple of {side}"
            value = latents * side if given is None else whole(name, given, side, None, multiple)
            require(value % side == 0, name, multiple, value)
            sizes.append(value)
        scale = number("guidance_scale", self.guidance_scale, "a number of at least 0", 0)
        rescale = number("guidance_rescale", self.guidance_rescale, "a number from 0 to 1", 0, 1)
        without = "0 without guidance (guidance_scale of at most 1)"
        require(scale > 1 or rescale == 0, "guidance_rescale", without, rescale)
        if self.sampler is not None:
            choice("sampler", self.sampler, typing.get_args(Sampler))
        steps = whole("num_steps", self.num_steps, 1)
        height, width = sizes
        return DiffusionSettings(height, width, steps, scale, rescale, self.sampler)


@dataclasses.dataclass(frozen=True, eq=False)
class DiffusionPipeline:
    """Text encoder, U-Net and autoencoder, ready to use. Build it with `from_pretrained`.

    `native` is the size that the U-Net was trained for, in latents; `dtype` that of the
    computation, except of the autoencoder, which is float32.
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
        cls, path: str | os.PathLike[str], dtype: Any = "bfloat16", mesh: Mesh | None = None
    ) -> Self:
        """Loads a folder of `StableDiffusionPipeline` as it is, or an imported one.

        Args:
          path: the directory, or a name on the hub.
          dtype: `bfloat16` or `float32`; a CPU uses float32 either way.
          mesh: devices to share the work, see `unix_jax.sharding.make_mesh`; None uses one.

        Raises:
          CheckpointError, ConfigError: files that are missing, broken or not supported, or that do
            not fit each other; weights that are not finite.
          StorageError: a URL, no path, or a name on the hub that cannot be downloaded.
          PromptError: another dtype.
        """
        # The table of published keys lives in `convert`, which stands above this package.
        from unix_jax.checkpoints.diffusers_checkpoint import open_diffusers
        from unix_jax.checkpoints.run_export import resolve_checkpoint

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

    def generate_image(
        self,
        prompts: Prompts,
        height: int | None = None,
        width: int | None = None,
        num_steps: int = 50,
        guidance_scale: float = 7.5,
        guidance_rescale: float = 0.0,
        sampler: Sampler | None = None,
        seed: int | Sequence[int] = 0,
        output_type: OutputType = "pil",
        progress: Progress | None = None,
    ) -> Any:
        """Generates one image for each prompt.

        Args:
          prompts: one text or several. What is longer than the text encoder reads is cut off, as
            in diffusers, with a warning.
          height, width: pixels, multiples of the autoencoder's factor; None is the size that the
            U-Net was trained for.
          num_steps: evaluations of the U-Net per image.
          guidance_scale: guidance against the empty prompt; 1 or less turns it off.
          guidance_rescale: from 0 to 1, how far the spread of guided outputs is brought back to
            that of the unguided ones.
          sampler: `ddim` or `euler`, over the checkpoint's noise schedule; None is the checkpoint's
            own.
          seed: an int for all rows (equal prompts generate equal images), or one per row. A row's
            image does not depend on the other rows.
          output_type: `pil` (list of PIL images of mode L: the mean of the decoded channels), `np`
            (float32 [B, H, W, 3] in [0, 1]) or `latent` (float32 scaled latents [B, h, w, C]).
          progress: called with (steps done, number of steps).

        Raises:
          PromptError: an argument that cannot be used.
          NonFiniteError: the model computed NaN or infinite numbers; no result is returned.
        """
        choice("output_type", output_type, typing.get_args(OutputType))
        texts = prompt_list(prompts)
        for text in texts:
            require(isinstance(text, str), "prompts", "texts", text)
        settings = DiffusionSettings(
            height, width, num_steps, guidance_scale, guidance_rescale, sampler
        ).checked(self.vae, self.native)
        keys = row_keys(seed, len(texts))
        latents = self._latents(texts, settings, keys, progress)
        require_finite(np.isfinite(latents).all((1, 2, 3)), "prompts", "latents of the image")
        if output_type == "latent":
            return latents
        # An image at a time: its activations are far larger than it.
        decode = jax.jit(lambda x: self._apply("vae", Autoencoder(self.vae), x, method="decode"))
        pixels = np.concatenate([np.asarray(decode(row[None])) for row in latents])
        finite = np.isfinite(pixels).all((1, 2, 3))
        require_finite(finite, "prompts", "decoded pixels of the image")
        pixels = np.clip(pixels / 2 + 0.5, 0, 1)
        return pixels if output_type == "np" else [to_gray_pil(image) for image in pixels]

    def _latents(
        self, texts: list[str], settings: DiffusionSettings, keys: Array, progress: Progress | None
    ) -> Float[np.ndarray, "B h w C"]:
        schedule = self.schedule
        if settings.sampler is not None:
            schedule = schedule.with_sampler(settings.sampler)
        plan = schedule.plan(settings.num_steps)
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
        noise = jax.vmap(lambda key: jax.random.normal(key, shape))(keys)
        guided, rows = settings.guidance_scale > 1, len(texts)
        shards = 1 if self.mesh is None else sharding.batch_shards(self.mesh)
        # The last row is repeated until the mesh splits the batch evenly.
        index = np.minimum(np.arange(rows + -rows % shards), rows - 1)
        ids = ids[index]
        if guided:
            empty, _ = self.tokenizer.encode([""])
            ids = np.concatenate([ids, np.repeat(empty, len(ids), axis=0)])
        x, placed = self._place(noise[index]), self._place(jnp.asarray(ids))
        scales = jnp.float32(settings.guidance_scale), jnp.float32(settings.guidance_rescale)
        model, total = UNet(self.unet, self.dtype), settings.num_steps
        with sharding.use_mesh(self.mesh):
            hidden = jax.jit(self._encode)(placed)
            for first in range(0, total, total if progress is None else 1):
                last = total if progress is None else first + 1
                x = denoise(
                    model, schedule, self.params["unet"], x, hidden, plan, jnp.int32(first),
                    jnp.int32(last), *scales, guided=guided,
                )  # fmt: skip
                if progress is not None:
                    jax.block_until_ready(x)
                    progress(last, total)
        return np.asarray(x)[:rows]

    def _encode(self, ids: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        if isinstance(self.text, ClipTextConfig):
            return self._apply("text_encoder", ClipText(self.text, self.dtype), ids)
        # Stable Diffusion's pipeline hands no mask over: padding is attended to.
        valid = jnp.ones(ids.shape, bool)
        return self._apply("text_encoder", Bert(self.text, self.dtype), ids, valid)

    def _apply(self, part: str, model: nn.Module, *arguments: Any, **options: Any) -> Any:
        return model.apply({"params": self.params[part]}, *arguments, **options)

    def _place(self, x: Array) -> Array:
        return jax.device_put(x) if self.mesh is None else sharding.shard_batch(x, self.mesh)

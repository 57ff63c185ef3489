"""`UniXPipeline`: reports from X-rays and X-rays from text, from files to results.

Letters: B rows, G latent tokens, C numbers in a latent token.
"""

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float
from PIL import Image

from unix_jax import sharding
from unix_jax.config import UniXConfig
from unix_jax.inference.compilation import enable_compilation_cache
from unix_jax.inference.drawing import ImageSettings, decode_latents, draw_latents, latent_size
from unix_jax.inference.inputs import Images, Prompts, require
from unix_jax.inference.loaded import LoadedModel
from unix_jax.inference.reports import decode_reports, last_rows, stream_text
from unix_jax.inference.sampling import Renorm
from unix_jax.models.autoencoder import param_shapes as vae_param_shapes
from unix_jax.models.unix import UniX, param_shapes, unroll_params
from unix_jax.text import Tokenizer
from unix_jax.transforms import to_gray_pil

OutputType = Literal["pil", "np", "latent"]
Progress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class ImageStep:
    """Images in the making, after `step` of `total` network evaluations; the last are final."""

    step: int
    total: int
    images: list[Image.Image]


class UniXPipeline:
    """A model ready to use. Build it with `from_pretrained`.

    `loaded` holds the module, its parameters, the tokenizer and the mesh; each of them has a
    property of its own here.
    """

    def __init__(
        self,
        config: UniXConfig,
        params: dict[str, Any],
        vae_params: dict[str, Any] | None = None,
        tokenizer: Tokenizer | None = None,
        *,
        dtype: Any = jnp.float32,
        mesh: Mesh | None = None,
    ) -> None:
        """Takes over stacked parameters as they come from a checkpoint.

        On a CPU or one GPU the decoder's layers are cut apart and dropped from `params`. `dtype` is
        that of the computation.

        Raises:
          ConfigError: control tokens outside the vocabulary, or a mesh that cannot be used.
        """
        config.check_special_tokens()
        if mesh is not None:
            sharding.check_mesh(mesh, config)
        # On CPUs and GPUs XLA copies a scanned layer's weights for every token; see
        # docs/architecture.md.
        scan_layers = mesh is not None or jax.default_backend() == "tpu"
        if not scan_layers:
            params = unroll_params(params, config.decoder.num_layers)
        model = UniX(config, dtype, scan_layers=scan_layers)
        self.loaded = LoadedModel(model, params, vae_params, tokenizer, mesh)

    @property
    def config(self) -> UniXConfig:
        """Sizes and token ids."""
        return self.loaded.config

    @property
    def model(self) -> UniX:
        """The module."""
        return self.loaded.model

    @property
    def params(self) -> dict[str, Any]:
        """The UniX parameters, in the form that `model` takes."""
        return self.loaded.params

    @property
    def vae_params(self) -> dict[str, Any] | None:
        """The autoencoder's, or None (reports only)."""
        return self.loaded.vae_params

    @property
    def tokenizer(self) -> Tokenizer | None:
        """None where prompts and reports are token ids."""
        return self.loaded.tokenizer

    @property
    def mesh(self) -> Mesh | None:
        """None for one device."""
        return self.loaded.mesh

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        dtype: str = "bfloat16",
        mesh: Mesh | None = None,
        *,
        double_bos: bool | None = None,
        compilation_cache: bool = True,
    ) -> Self:
        """Loads a converted checkpoint, or a directory in the published layout as it is.

        Args:
          path: the directory.
          dtype: `bfloat16` or `float32`, of the parameters and of the computation. A CPU uses
            float32 whatever is asked: XLA would keep a float32 copy beside bfloat16 weights.
            The autoencoder stays float32 everywhere.
          mesh: devices to share the work, see `unix_jax.sharding.make_mesh`; None uses one.
          double_bos: overrides the checkpoint's compatibility switch, see `UniXConfig`.
          compilation_cache: keep compiled programs on disk between runs.

        Raises:
          CheckpointError, ConfigError: files that are missing, broken, or do not fit each other.
          PromptError: another dtype.
        """
        # The table of published keys lives in `convert`, which stands above this package.
        from convert.load import load_model

        require(dtype in ("bfloat16", "float32"), "dtype", "'bfloat16' or 'float32'", dtype)
        if compilation_cache:
            enable_compilation_cache()

        def shardings(config: UniXConfig) -> tuple[Any, Any]:
            assert mesh is not None
            sharding.check_mesh(mesh, config)
            boxed = param_shapes(config, boxed=True)
            return (
                sharding.param_shardings(boxed, mesh),
                sharding.param_shardings(vae_param_shapes(config.vae), mesh),
            )

        used = jnp.float32 if jax.default_backend() == "cpu" else jnp.dtype(dtype)
        config, params, vae_params = load_model(
            path, dtype=used, shardings=None if mesh is None else shardings
        )
        if double_bos is not None:
            config = dataclasses.replace(config, double_bos=double_bos)
        tokenizer = None
        if os.path.exists(os.path.join(path, "tokenizer.json")):
            tokenizer = Tokenizer.from_directory(str(path), config.special_tokens)
            tokenizer.check_vocab(config.decoder.vocab_size)
        return cls(config, params, vae_params, tokenizer, dtype=used, mesh=mesh)

    # ------------------------------------------------------------------------- reports

    def generate_report(
        self,
        images: Images,
        prompts: Prompts | None = None,
        max_new_tokens: int = 500,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | Sequence[int] = 0,
    ) -> list[str]:
        """Writes one report for each image.

        Args:
          images: paths, PIL pictures, arrays, or bytes of files; letterboxed to the ViT's size.
          prompts: None (one default prompt), one for all, or one for each image; strings or ids.
          max_new_tokens: at most so many tokens are written.
          temperature: 0 decodes greedily.
          top_p: mass of the nucleus that is sampled from, in (0, 1].
          seed: of the sampling; an int for all rows, or one for each.

        Returns:
          The reports. A row's report does not depend on the other rows.

        Raises:
          ImageError, PromptError: an input that cannot be used.
          CheckpointError: the checkpoint has no tokenizer; see `generate_report_ids`.
        """
        tokenizer = self.loaded.require_tokenizer()
        ids = self.generate_report_ids(images, prompts, max_new_tokens, temperature, top_p, seed)
        return [tokenizer.decode(row) for row in ids]

    def generate_report_ids(
        self,
        images: Images,
        prompts: Prompts | None = None,
        max_new_tokens: int = 500,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | Sequence[int] = 0,
    ) -> list[list[int]]:
        """As `generate_report`, giving token ids without bos and eos."""
        states = decode_reports(
            self.loaded, images, prompts, max_new_tokens, temperature, top_p, seed, stride=None
        )
        return last_rows(states, self.config.special_tokens.eos)

    def stream_report(
        self,
        images: Images,
        prompts: Prompts | None = None,
        max_new_tokens: int = 500,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | Sequence[int] = 0,
    ) -> Iterator[list[str]]:
        """As `generate_report`, token by token: each item has the new text of every row.

        The pieces of a row, joined, are its report.
        """
        tokenizer = self.loaded.require_tokenizer()
        states = decode_reports(
            self.loaded, images, prompts, max_new_tokens, temperature, top_p, seed, stride=1
        )
        return stream_text(tokenizer, states)

    # ------------------------------------------------------------------------- images

    def generate_image(
        self,
        prompts: Prompts,
        height: int | None = None,
        width: int | None = None,
        num_steps: int = 50,
        timestep_shift: float = 3.0,
        guidance_scale: float = 2.0,
        image_guidance_scale: float = 1.0,
        guidance_interval: tuple[float, float] = (0.4, 1.0),
        renorm: Renorm = "global",
        renorm_min: float = 0.0,
        images: Images | None = None,
        initial_noise: Float[np.ndarray, "B G C"] | None = None,
        seed: int | Sequence[int] = 0,
        output_type: OutputType = "pil",
        progress: Progress | None = None,
    ) -> Any:
        """Draws one X-ray for each prompt.

        Args:
          prompts: one or several; strings or token ids.
          height, width: pixels, multiples of `config.latent_downsample`; None is 512, or the
            largest that a smaller model can draw.
          num_steps: points of the time grid, so num_steps - 1 Euler steps, as in the original.
          timestep_shift: above 1 spends more steps near noise.
          guidance_scale: text guidance; 1 or less turns guidance off.
          image_guidance_scale: image guidance, with text guidance only; 1 or less turns it off.
          guidance_interval: guidance acts for times in (low, high].
          renorm: `global` (over an image), `channel` (per token) or `text_channel` (per token,
            after the text step only).
          renorm_min: lower bound of the renormalisation factor, in [0, 1].
          images: condition images, one a prompt, seen by the autoencoder and the ViT.
          initial_noise: x at t = 1, [B, G, C] or [G, C] for one row; overrides `seed`.
          seed: an int for all rows (equal prompts give equal images), or one for each.
          output_type: `pil` (list of PIL pictures of mode L: the mean of the decoded channels),
            `np` (float32 [B, height, width, 3] in [0, 1], the channels as they were decoded) or
            `latent` (float32 tokens [B, G, C]).
          progress: called with (steps done, steps in all).

        Raises:
          ImageError, PromptError: an input that cannot be used.
          CheckpointError: the checkpoint has no autoencoder, and pixels are needed.
        """
        require(output_type in ("pil", "np", "latent"), "output_type", "pil, np or latent",
                output_type)  # fmt: skip
        if output_type != "latent":
            self.loaded.require_vae()
        settings = ImageSettings(
            height,
            width,
            num_steps,
            timestep_shift,
            guidance_scale,
            image_guidance_scale,
            guidance_interval,
            renorm,
            renorm_min,
        )
        stride = None if progress is None else 1
        for at in draw_latents(self.loaded, prompts, settings, images, initial_noise, seed, stride):
            latents = at.latents
            if progress is not None:
                progress(at.step, at.total)
        if output_type == "latent":
            return latents
        pixels = decode_latents(self.loaded, latents, latent_size(self.config, settings))
        return pixels if output_type == "np" else [to_gray_pil(p) for p in pixels]

    def stream_image(
        self,
        prompts: Prompts,
        settings: ImageSettings | None = None,
        images: Images | None = None,
        initial_noise: Float[np.ndarray, "B G C"] | None = None,
        seed: int | Sequence[int] = 0,
        every: int = 5,
    ) -> Iterator[ImageStep]:
        """As `generate_image`, with a look every so many steps at what the images become.

        Args:
          prompts, images, initial_noise, seed: as in `generate_image`.
          settings: its other arguments; None takes its defaults.
          every: network evaluations between two looks, at least 1. Each look costs a run of the
            autoencoder's decoder.

        Yields:
          The model's present estimate of the finished images; the last item has them as
          `generate_image` gives them.

        Raises:
          ImageError, PromptError, CheckpointError: as `generate_image`, at the first item.
        """
        require(every >= 1, "every", "at least 1", every)
        self.loaded.require_vae()
        settings = settings or ImageSettings()
        size = latent_size(self.config, settings)
        for at in draw_latents(self.loaded, prompts, settings, images, initial_noise, seed, every):
            pixels = decode_latents(self.loaded, at.estimate, size)
            yield ImageStep(at.step, at.total, [to_gray_pil(p) for p in pixels])

"""`UniXPipeline`: reports from X-rays and X-rays from text, from files to results.

Letters: B rows, G latent tokens, C numbers in a latent token.
"""

import dataclasses
import os
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float
from PIL import Image

from unix_jax import sharding
from unix_jax.checkpoints.load import load_model
from unix_jax.checkpoints.run_export import resolve_checkpoint
from unix_jax.config import UniXConfig
from unix_jax.errors import PromptError
from unix_jax.inference.compilation import enable_compilation_cache
from unix_jax.inference.drawing import ImageSettings, decode_latents, draw_latents, latent_size
from unix_jax.inference.inputs import ImageRows, Images, Prompts, choice, require, whole
from unix_jax.inference.loaded import LoadedModel
from unix_jax.inference.reports import decode_reports, last_rows, stream_text
from unix_jax.inference.sampling import Renorm
from unix_jax.models.autoencoder import param_shapes as vae_param_shapes
from unix_jax.models.unix import UniX, param_shapes, unroll_params
from unix_jax.preprocessing.text import Tokenizer
from unix_jax.preprocessing.transforms import Resize, to_gray_pil
from unix_jax.storage import recorded_files

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
        dtype: Any = "bfloat16",
        mesh: Mesh | None = None,
        *,
        double_bos: bool | None = None,
        allow_non_finite: bool = False,
        compilation_cache: bool = True,
    ) -> Self:
        """Loads a converted checkpoint, or a directory in the published layout as it is.

        Args:
          path: the directory; of a training run, its export is meant. Or a name on the hub, such as
            `ZrH42/UniX` or `ZrH42/UniX@REVISION`, which is downloaded into the hub's cache.
          dtype: `bfloat16` or `float32`, of the parameters and of the computation, as a text, a
            NumPy dtype or a type such as `jnp.bfloat16`. A CPU uses
            float32 whatever is asked: XLA would keep a float32 copy beside bfloat16 weights.
            The autoencoder stays float32 everywhere.
          mesh: devices to share the work, see `unix_jax.sharding.make_mesh`; None uses one.
          double_bos: overrides the checkpoint's compatibility switch, see `UniXConfig`.
          allow_non_finite: accept weights that are NaN or infinite.
          compilation_cache: keep compiled programs on disk between runs.

        Raises:
          CheckpointError, ConfigError: files that are missing, broken, changed since they were
            written, or do not fit each other; weights that are not finite.
          StorageError: a URL, no path, or a name on the hub that cannot be downloaded.
          PromptError: another dtype.
        """
        used = _dtype(dtype)
        require(
            double_bos is None or isinstance(double_bos, bool), "double_bos", "a bool", double_bos
        )
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

        path = resolve_checkpoint(path)
        used = jnp.dtype(jnp.float32) if jax.default_backend() == "cpu" else used
        config, params, vae_params = load_model(
            path,
            dtype=used,
            shardings=None if mesh is None else shardings,
            allow_non_finite=allow_non_finite,
        )
        if double_bos is not None:
            config = dataclasses.replace(config, double_bos=double_bos)
        tokenizer = None
        if recorded_files.has_file(path, "tokenizer.json"):
            tokenizer = Tokenizer.from_directory(str(path), config.special_tokens)
            tokenizer.check_vocab(config.decoder.vocab_size)
        return cls(config, params, vae_params, tokenizer, dtype=used, mesh=mesh)

    # ------------------------------------------------------------------------- reports

    def generate_report(
        self,
        images: ImageRows,
        prompts: Prompts | None = None,
        max_new_tokens: int = 500,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | Sequence[int] = 0,
        resize: Resize = "letterbox",
    ) -> list[str]:
        """Writes one report for each image, or for each list of images.

        Args:
          images: one image, or an iterable of several: paths, bytes of files, PIL images, arrays
            or tensors. An array of up to three dimensions is one image, [H, W], [H, W, C] or
            [C, H, W]; one of four dimensions is a batch, [B, H, W, C] or [B, C, H, W], as in
            diffusers. uint8, uint16, or floats in [0, 1]. A list or tuple among several images
            has those of one report, such as frontal and lateral: [[a, b], c] gives two reports.
          prompts: None (the model's own default, see `UniXConfig.instructions`), one for all, or
            one for each report; strings or ids, in any iterable.
          max_new_tokens: largest number of new tokens.
          temperature: 0 decodes greedily.
          top_p: mass of the nucleus that is sampled from, in (0, 1].
          seed: of the sampling; an int for all rows, or one for each.
          resize: how an image becomes the ViT's square: `letterbox` (shrunk, never enlarged,
            centred on white, as in the original's evaluation) or `squash` (its web demo).

        Returns:
          The reports. A row's report does not depend on the other rows.

        Raises:
          ImageError, PromptError: an input that cannot be used.
          NonFiniteError: the model computed NaN or infinite numbers; no result is returned.
          CheckpointError: the checkpoint has no tokenizer; see `generate_report_ids`.
        """
        tokenizer = self.loaded.require_tokenizer()
        ids = self.generate_report_ids(
            images, prompts, max_new_tokens, temperature, top_p, seed, resize
        )
        return [tokenizer.decode(row) for row in ids]

    def generate_report_ids(
        self,
        images: ImageRows,
        prompts: Prompts | None = None,
        max_new_tokens: int = 500,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | Sequence[int] = 0,
        resize: Resize = "letterbox",
    ) -> list[list[int]]:
        """As `generate_report`, giving token ids without bos and eos."""
        states = decode_reports(
            self.loaded, images, prompts, max_new_tokens, temperature, top_p, seed, None, resize
        )
        return last_rows(states, self.config.special_tokens.eos)

    def stream_report(
        self,
        images: ImageRows,
        prompts: Prompts | None = None,
        max_new_tokens: int = 500,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | Sequence[int] = 0,
        resize: Resize = "letterbox",
    ) -> Iterator[list[str]]:
        """As `generate_report`, token by token: each item has the new text of every row.

        Errors are raised by the call itself, before the first item.

        The pieces of a row, joined, are its report.
        """
        tokenizer = self.loaded.require_tokenizer()
        states = decode_reports(
            self.loaded, images, prompts, max_new_tokens, temperature, top_p, seed, 1, resize
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
          image_guidance_scale: image guidance; 1 or less turns it off, above 1 it needs text
            guidance. Without a condition image it strengthens the text guidance to
            1 + image_guidance_scale * (guidance_scale - 1), as in the original.
          guidance_interval: guidance acts for times in (low, high], 0 <= low <= high <= 1.
          renorm: `global` (over an image), `channel` (per token) or `text_channel` (per token,
            after the text step only).
          renorm_min: lower bound of the renormalisation factor, in [0, 1].
          images: condition images, one a prompt or one for all, in any form that
            `generate_report` takes; seen by the autoencoder and the ViT.
          initial_noise: x at t = 1, [B, G, C] or [G, C] for one row; overrides `seed`.
          seed: an int for all rows (equal prompts give equal images), or one for each.
          output_type: `pil` (list of PIL pictures of mode L: the mean of the decoded channels),
            `np` (float32 [B, height, width, 3] in [0, 1], the channels as they were decoded) or
            `latent` (float32 tokens [B, G, C]).
          progress: called with (steps done, steps in all).

        Raises:
          ImageError, PromptError: an input that cannot be used.
          NonFiniteError: the model computed NaN or infinite numbers; no result is returned.
          CheckpointError: the checkpoint has no autoencoder, and pixels are needed.
        """
        choice("output_type", output_type, typing.get_args(OutputType))
        require(progress is None or callable(progress), "progress", "a function", progress)
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
          ImageError, PromptError, CheckpointError: as `generate_image`, by the call itself.
        """
        every = whole("every", every, 1)
        self.loaded.require_vae()
        settings = ImageSettings() if settings is None else settings
        require(isinstance(settings, ImageSettings), "settings", "ImageSettings", settings)
        steps = draw_latents(self.loaded, prompts, settings, images, initial_noise, seed, every)
        size = latent_size(self.config, settings)
        return (
            ImageStep(
                at.step,
                at.total,
                [to_gray_pil(p) for p in decode_latents(self.loaded, at.estimate, size)],
            )
            for at in steps
        )


def _dtype(given: Any) -> np.dtype:
    """Raises PromptError for a floating type that the model is not computed in."""
    try:
        found = jnp.dtype(given)
    except TypeError:
        found = None
    if given is None or found not in (jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float32)):
        raise PromptError(f"dtype: expected 'bfloat16' or 'float32', found {given!r:.60}")
    return found

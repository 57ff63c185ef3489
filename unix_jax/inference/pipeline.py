"""`UniXPipeline`: reports from chest X-rays, and chest X-rays from text.

Letters: B rows, G latent tokens, C numbers in a latent token.
"""

import contextlib
import dataclasses
import os
import tempfile
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Self, Unpack, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float
from PIL import Image

from unix_jax import sharding
from unix_jax.checkpoints import native
from unix_jax.checkpoints.load import load_model
from unix_jax.checkpoints.run_export import resolve_checkpoint
from unix_jax.config import UniXConfig
from unix_jax.errors import CheckpointError, PromptError
from unix_jax.inference.compilation import enable_compilation_cache
from unix_jax.inference.drafts import Draft, NGramDrafter
from unix_jax.inference.image_latents import (
    LatentStep,
    decode_latents,
    generate_latents,
    latent_size,
)
from unix_jax.inference.inputs import (
    ImageRows,
    Images,
    Prompts,
    choice,
    image_list,
    image_rows,
    require,
    whole,
)
from unix_jax.inference.loaded import LoadedModel
from unix_jax.inference.reports import (
    ReportRequest,
    ReportStream,
    Rows,
    decode_reports,
    ended_reports,
    report_requests,
    require_greedy,
)
from unix_jax.inference.results import ImageResult, ImageStep, ReportResult, ReportStep
from unix_jax.inference.settings import (
    OUTPUT_TYPES,
    ImageOptions,
    ImageSettings,
    OutputType,
    ReportOptions,
    ReportSettings,
    settings_of,
)
from unix_jax.models.autoencoder import param_shapes as vae_param_shapes
from unix_jax.models.quantization import Quantization, quantize_kernels
from unix_jax.models.unix import UniX, param_shapes, unroll_params
from unix_jax.preprocessing.ngrams import NGrams
from unix_jax.preprocessing.text import Tokenizer
from unix_jax.preprocessing.transforms import to_gray_pil
from unix_jax.storage import recorded_files
from unix_jax.storage.bucket_path import BucketPath, any_path, local_file

ReportCallback = Callable[[ReportStep], object]
ImageCallback = Callable[[ImageStep], object]


class UniXPipeline:
    """A UniX model for inference. Create it with `from_pretrained`.

    `loaded` contains the module, its parameters, the tokenizer and the mesh, each of which is also
    a property of the pipeline.
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
        ngrams: NGrams | None = None,
        quantization: Quantization = "none",
    ) -> None:
        """A pipeline over the stacked parameters of a checkpoint, of which it takes ownership.

        The decoder's layers are unstacked and removed from `params`, except on a mesh that splits
        the weights.
        `dtype` is that of the computation. `ngrams` is for draft="ngram". `quantization` is as in
        `from_pretrained`.

        Raises:
          ConfigError: control tokens outside of the vocabulary, or a mesh that cannot be used.
          PromptError: another quantization, or int8 with a mesh that splits the weights.
        """
        check_quantization(quantization, mesh)
        config.check_special_tokens()
        if mesh is not None:
            sharding.check_mesh(mesh, config)
        # A scanned layer's weights are copied for every token; see docs/architecture.md.
        scan_layers = mesh is not None and sharding.splits_weights(mesh)
        if not scan_layers:
            params = unroll_params(params, config.decoder.num_layers)
        if quantization == "int8":
            params = quantize_kernels(params)
        self.quantization = quantization
        model = UniX(config, dtype, scan_layers=scan_layers)
        drafter = None if ngrams is None else NGramDrafter.create(ngrams)
        self.loaded = LoadedModel(model, params, vae_params, tokenizer, mesh, drafter)

    @property
    def config(self) -> UniXConfig:
        """The model's sizes and token ids."""
        return self.loaded.config

    @property
    def model(self) -> UniX:
        """The Flax module."""
        return self.loaded.model

    @property
    def params(self) -> dict[str, Any]:
        """The UniX parameters, in the structure that `model` expects."""
        return self.loaded.params

    @property
    def vae_params(self) -> dict[str, Any] | None:
        """The autoencoder's parameters; None if only reports are supported."""
        return self.loaded.vae_params

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer; None if prompts and reports are token ids."""
        return self.loaded.tokenizer

    @property
    def mesh(self) -> Mesh | None:
        """The mesh of devices; None for one device."""
        return self.loaded.mesh

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        *,
        dtype: Any = "bfloat16",
        mesh: Mesh | None = None,
        double_bos: bool | None = None,
        allow_non_finite: bool = False,
        compilation_cache: bool = True,
        ngrams: str | os.PathLike[str] | None = None,
        autoencoder: bool = True,
        quantization: Quantization = "none",
    ) -> Self:
        """Loads a converted checkpoint or a directory in the published layout.

        Args:
          path: the directory. For the directory of a training run, its export is loaded. Or a name
            on the hub, such as `ZrH42/UniX` or `ZrH42/UniX@REVISION`, which is downloaded into the
            hub's cache.
          dtype: dtype of the parameters and the computation, `bfloat16` or `float32`, as a string,
            a NumPy dtype or a type such as `jnp.bfloat16`. A CPU always uses float32, because XLA
            would keep a float32 copy of bfloat16 weights. The autoencoder always uses float32.
          mesh: devices that share the work, see `unix_jax.sharding.make_mesh`; None uses one.
          double_bos: overrides the checkpoint's compatibility switch, see `UniXConfig`.
          allow_non_finite: accept weights that are NaN or infinite.
          compilation_cache: keep compiled programs on disk between runs.
          ngrams: file of n-grams for draft="ngram", made by `unix-jax data ngrams`.
          autoencoder: load its weights as well. Without them, loading is faster, and only reports
            are supported.
          quantization: `int8` keeps the kernels of the und stream and the head as 8-bit integers,
            with a scale for each output, so a decoded token reads half of the bytes of bfloat16
            weights. Reports may differ, and so may images, which attend to the text. Not on a mesh
            that splits the weights; slower on a CPU.

        Raises:
          CheckpointError, ConfigError: files that are missing, broken, changed since they were
            written, or inconsistent with each other; weights that are not finite.
          StorageError: a URL, a value that is not a path, or a name on the hub that cannot be
            downloaded.
          PromptError: another dtype or quantization, or int8 with a mesh that splits the weights.
          DataError: a file of n-grams that cannot be read, or of another tokenizer.
        """
        used = _dtype(dtype)
        check_quantization(quantization, mesh)
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

        # Before the model, so that a wrong path is reported immediately.
        counted = None if ngrams is None else NGrams.load(local_file(any_path(ngrams, "ngrams")))
        path = resolve_checkpoint(path)
        used = jnp.dtype(jnp.float32) if jax.default_backend() == "cpu" else used
        config, params, vae_params = load_model(
            path,
            dtype=used,
            shardings=None if mesh is None else shardings,
            allow_non_finite=allow_non_finite,
            autoencoder=autoencoder,
        )
        if double_bos is not None:
            config = dataclasses.replace(config, double_bos=double_bos)
        tokenizer = None
        if recorded_files.has_file(path, "tokenizer.json"):
            tokenizer = Tokenizer.from_directory(str(path), config.special_tokens)
            tokenizer.check_vocab(config.decoder.vocab_size)
        if ngrams is not None and counted is not None:
            counted.check_tokenizer(tokenizer, ngrams)
        return cls(
            config, params, vae_params, tokenizer,
            dtype=used, mesh=mesh, ngrams=counted, quantization=quantization,
        )  # fmt: skip

    def save_pretrained(
        self, path: str | os.PathLike[str], *, layout: Literal["native", "published"] = "native"
    ) -> None:
        """Writes the model, its configuration and its tokenizer to a new directory, atomically.

        The weights are written in this pipeline's dtype. On a CPU this is float32, to which every
        source converts exactly; `unix-jax convert cast` changes the dtype. Tensors of the source
        that the model does not use are not written.

        Args:
          path: a new or empty directory.
          layout: `native` for this project's checkpoint, or `published` for the layout that the
            original's PyTorch code loads.

        Raises:
          PromptError: another layout.
          UniXError: `path` is not empty or cannot be written, the weights are distributed over
            several processes, or they are int8.
        """
        choice("layout", layout, ("native", "published"))
        path = any_path(path)
        if self.quantization != "none":
            raise CheckpointError(
                f"{path}: expected weights in floating point, found {self.quantization}: load the "
                "checkpoint without quantization to save it"
            )
        if jax.process_count() > 1:
            raise CheckpointError(
                f"{path}: expected one process, found {jax.process_count()}: each process holds a "
                "part of the weights; load and save the checkpoint in one process"
            )
        if path.exists() and not (path.is_dir() and not any(path.iterdir())):
            raise CheckpointError(f"{path}: expected a new or empty directory, found another path")
        with tempfile.TemporaryDirectory() as temporary:
            copies = []
            if self.tokenizer is not None:
                copies = self.tokenizer.write_files(temporary)
            if layout == "native":
                native.save(path, self.config, self.params, self.vae_params, copies=copies)
                return
            # The export reads a checkpoint: it is written next to the target, on its file system.
            with _directory_beside(path) as beside:
                checkpoint = beside / "checkpoint"
                native.save(checkpoint, self.config, self.params, self.vae_params, copies=copies)
                # Imported here: reports start without it.
                from unix_jax.checkpoints.export import export_published

                export_published(checkpoint, path)

    def __repr__(self) -> str:
        config, loaded = self.config, self.loaded
        devices = [jax.devices()[0]] if loaded.mesh is None else list(loaded.mesh.devices.flat)
        numbers = str(jnp.dtype(loaded.model.dtype))
        if self.quantization != "none":
            numbers += f" with {self.quantization} weights"
        where = f"{len(devices)} x {devices[0].device_kind}"
        if loaded.mesh is not None:
            where += f", mesh {dict(loaded.mesh.shape)}"
        side = ImageSettings().size(config)[0]
        vae, words = "no autoencoder: reports only", "no tokenizer: token ids only"
        if loaded.vae_params is not None:
            vae = f"up to {side} x {side} px, autoencoder of {_millions(loaded.vae_params)}"
        if loaded.tokenizer is not None:
            words = f"{loaded.tokenizer.vocab_size:,} tokens"
        return (
            f"{type(self).__name__}(\n"
            f"  model: {_millions(loaded.params)}, {numbers} on {where}\n"
            f"  reports: from {config.vision.image_size} x {config.vision.image_size} px, "
            f"{config.decoder.max_position_embeddings:,} positions\n"
            f"  images: {vae}\n"
            f"  tokenizer: {words}\n"
            ")"
        )

    # ------------------------------------------------------------------------- reports

    @overload
    def generate_report(
        self,
        images: ImageRows,
        *,
        prompts: Prompts | None = None,
        settings: ReportSettings | None = None,
        seed: int | Sequence[int] = 0,
        batch_size: int | None = None,
        draft: Draft = "none",
        callback: ReportCallback | None = None,
        return_details: Literal[False] = False,
        **options: Unpack[ReportOptions],
    ) -> list[str]: ...

    @overload
    def generate_report(
        self,
        images: ImageRows,
        *,
        prompts: Prompts | None = None,
        settings: ReportSettings | None = None,
        seed: int | Sequence[int] = 0,
        batch_size: int | None = None,
        draft: Draft = "none",
        callback: ReportCallback | None = None,
        return_details: Literal[True],
        **options: Unpack[ReportOptions],
    ) -> list[ReportResult]: ...

    def generate_report(
        self,
        images: ImageRows,
        *,
        prompts: Prompts | None = None,
        settings: ReportSettings | None = None,
        seed: int | Sequence[int] = 0,
        batch_size: int | None = None,
        draft: Draft = "none",
        callback: ReportCallback | None = None,
        return_details: bool = False,
        **options: Unpack[ReportOptions],
    ) -> list[str] | list[ReportResult]:
        """Generates one report for each image, or for each list of images.

        Args:
          images: one image, or an iterable of several: paths, bytes of files, PIL images, arrays
            or tensors. An array of up to three dimensions is one image, [H, W], [H, W, C] or
            [C, H, W]; an array of four dimensions is a batch, [B, H, W, C] or [B, C, H, W], as in
            diffusers. Values are uint8, uint16, or floats in [0, 1]. A list or tuple within the
            iterable contains the images of one report, for example frontal and lateral:
            [[a, b], c] generates two reports.
          prompts: None for the model's own instruction (see `UniXConfig.instructions`), one prompt
            for all reports, or one per report; strings or token ids, in any iterable.
          settings: settings of the reports; None makes them from `options`.
          seed: random seed of the sampling; an int for all rows, or one per row.
          batch_size: number of reports that are generated at a time; None for all. When a report
            has ended, the next one takes its row. This is faster than one call per batch, and the
            images are prepared when they are needed.
          draft: `ngram` drafts the next tokens from the file of n-grams that the pipeline was
            loaded with, `prompt` from repetitions in the prompt and the report. One step of the
            model verifies several drafted tokens, so that fewer steps are needed. The report is the
            same, except where two tokens are equally probable up to rounding. Requires temperature
            0.
          callback: called with a `ReportStep` after each new token; requires that all reports are
            generated at a time.
          return_details: return a `ReportResult` for each report, with its token ids, its seed and
            its finish reason.
          **options: the fields of `ReportSettings`: `max_new_tokens`, `temperature`, `top_p`,
            `resize`.

        Returns:
          The reports. A row's report does not depend on the other rows.

        Raises:
          ImageError, PromptError: an input that cannot be used.
          NonFiniteError: the model computed NaN or infinite numbers; no result is returned.
          CheckpointError: the checkpoint has no tokenizer; see `generate_report_ids`.
        """
        chosen = settings_of(ReportSettings, settings, options)
        tokenizer = self.loaded.require_tokenizer()
        found = self._reports(tokenizer, images, prompts, chosen, seed, batch_size, draft, callback)
        return found if return_details else [result.text or "" for result in found]

    def generate_report_ids(
        self,
        images: ImageRows,
        *,
        prompts: Prompts | None = None,
        settings: ReportSettings | None = None,
        seed: int | Sequence[int] = 0,
        batch_size: int | None = None,
        draft: Draft = "none",
        callback: ReportCallback | None = None,
        **options: Unpack[ReportOptions],
    ) -> list[list[int]]:
        """Like `generate_report`, but returns token ids without bos and eos.

        It does not require a tokenizer.
        """
        chosen = settings_of(ReportSettings, settings, options)
        found = self._reports(
            self.tokenizer, images, prompts, chosen, seed, batch_size, draft, callback
        )
        return [result.token_ids for result in found]

    @overload
    def stream_report(
        self,
        images: ImageRows,
        *,
        prompts: Prompts | None = None,
        settings: ReportSettings | None = None,
        seed: int | Sequence[int] = 0,
        draft: Draft = "none",
        return_details: Literal[False] = False,
        **options: Unpack[ReportOptions],
    ) -> Iterator[list[str]]: ...

    @overload
    def stream_report(
        self,
        images: ImageRows,
        *,
        prompts: Prompts | None = None,
        settings: ReportSettings | None = None,
        seed: int | Sequence[int] = 0,
        draft: Draft = "none",
        return_details: Literal[True],
        **options: Unpack[ReportOptions],
    ) -> Iterator[ReportStep]: ...

    def stream_report(
        self,
        images: ImageRows,
        *,
        prompts: Prompts | None = None,
        settings: ReportSettings | None = None,
        seed: int | Sequence[int] = 0,
        draft: Draft = "none",
        return_details: bool = False,
        **options: Unpack[ReportOptions],
    ) -> Iterator[list[str]] | Iterator[ReportStep]:
        """Like `generate_report`, token by token: yields the new text of every row.

        The concatenated pieces of a row are its report. With `return_details` each item is a
        `ReportStep`, which also has the token ids. Errors in the arguments are raised by the call
        itself, before the first item.
        """
        chosen = settings_of(ReportSettings, settings, options)
        tokenizer = self.loaded.require_tokenizer()
        drafter = self.loaded.drafter(draft)
        seeds, found = report_requests(self.loaded, image_rows(images), prompts, chosen, seed)
        requests = list(found)  # errors of images are raised here
        if drafter is not None:
            require_greedy(requests)
        states = decode_reports(
            self.loaded, requests, len(seeds), together=True, stride=1, drafter=drafter
        )
        stream = self._steps(self._stream(tokenizer, len(seeds), chosen), states)
        return stream if return_details else (step.pieces for step in stream)

    def report_request(
        self,
        images: Images,
        *,
        prompt: str | Sequence[int] | None = None,
        settings: ReportSettings | None = None,
        seed: int = 0,
        **options: Unpack[ReportOptions],
    ) -> ReportRequest:
        """A report for `iterate_reports`, with its arguments checked and its images prepared.

        Args:
          images: the image or the images of the report, in any form that `generate_report` accepts.
          prompt: None for the model's own instruction, a string, or token ids.
          settings, seed, **options: as in `generate_report`.

        Raises:
          ImageError, PromptError: an input that cannot be used.
        """
        chosen = settings_of(ReportSettings, settings, options)
        prompts = None if prompt is None else [prompt]
        _, requests = report_requests(self.loaded, [image_list(images)], prompts, chosen, seed)  # type: ignore[arg-type]
        return next(requests)

    def iterate_reports(
        self,
        requests: Iterable[ReportRequest],
        *,
        batch_size: int = 16,
        draft: Draft = "none",
    ) -> Iterator[tuple[int, ReportResult]]:
        """Generates any number of reports, and yields each when it has ended.

        When a report has ended, the next request takes its row. The results are those of
        `generate_report`. Closing the iterator stops the generation.

        Args:
          requests: made by `report_request`, in any iterable, for example a generator. They are
            taken when they are needed, a few in advance.
          batch_size: number of reports that are generated at a time, at least 1.
          draft: as in `generate_report`.

        Yields:
          (index of the request, its result).

        Raises:
          PromptError: a batch size or draft that cannot be used, by the call itself; a request with
            a temperature above 0 together with a draft.
          NonFiniteError: the model computed NaN or infinite numbers; the error names images[i] of
            request i.
        """
        batch_size = whole("batch_size", batch_size, 1)
        drafter = self.loaded.drafter(draft)
        eos = self.config.special_tokens.eos
        return (
            ended
            for rows in decode_reports(self.loaded, requests, batch_size, drafter=drafter)
            for ended in ended_reports(rows, self.tokenizer, eos)
        )

    @staticmethod
    def _steps(stream: ReportStream, states: Iterator[Rows]) -> Iterator[ReportStep]:
        for rows in states:
            yield from stream.push(rows)
        yield stream.flush()

    def _stream(
        self, tokenizer: Tokenizer | None, rows: int, settings: ReportSettings
    ) -> ReportStream:
        eos = self.config.special_tokens.eos
        return ReportStream(tokenizer, rows, settings.max_new_tokens, eos)

    def _reports(
        self,
        tokenizer: Tokenizer | None,
        images: ImageRows,
        prompts: Prompts | None,
        settings: ReportSettings,
        seed: int | Sequence[int],
        batch_size: int | None,
        draft: Draft,
        callback: ReportCallback | None,
    ) -> list[ReportResult]:
        _require_callable(callback)
        if batch_size is not None:
            batch_size = whole("batch_size", batch_size, 1)
        drafter = self.loaded.drafter(draft)
        seeds, requests = report_requests(self.loaded, image_rows(images), prompts, settings, seed)
        together = batch_size is None or batch_size >= len(seeds)
        if callback is not None and not together:
            raise PromptError(
                f"callback: expected None with batch_size {batch_size} for {len(seeds)} reports, "
                "because the steps of a callback are those of reports that begin together"
            )
        rows = len(seeds) if batch_size is None else min(batch_size, len(seeds))
        stream = self._stream(tokenizer, rows, settings)
        stride = None if callback is None else 1
        found: dict[int, ReportResult] = {}
        for state in decode_reports(
            self.loaded,
            list(requests) if together else requests,
            rows,
            together=together,
            stride=stride,
            drafter=drafter,
        ):
            if callback is not None:
                for step in stream.push(state):
                    callback(step)
            found |= ended_reports(state, tokenizer, self.config.special_tokens.eos)
        if callback is not None:
            callback(stream.flush())
        return [found[index] for index in range(len(seeds))]

    # ------------------------------------------------------------------------- images

    @overload
    def generate_image(
        self,
        prompts: Prompts,
        *,
        settings: ImageSettings | None = None,
        images: Images | None = None,
        initial_noise: Float[np.ndarray, "B G C"] | None = None,
        seed: int | Sequence[int] = 0,
        output_type: Literal["pil"] = "pil",
        callback: ImageCallback | None = None,
        return_details: Literal[False] = False,
        **options: Unpack[ImageOptions],
    ) -> list[Image.Image]: ...

    @overload
    def generate_image(
        self,
        prompts: Prompts,
        *,
        settings: ImageSettings | None = None,
        images: Images | None = None,
        initial_noise: Float[np.ndarray, "B G C"] | None = None,
        seed: int | Sequence[int] = 0,
        output_type: Literal["np", "latent"],
        callback: ImageCallback | None = None,
        return_details: Literal[False] = False,
        **options: Unpack[ImageOptions],
    ) -> np.ndarray: ...

    @overload
    def generate_image(
        self,
        prompts: Prompts,
        *,
        settings: ImageSettings | None = None,
        images: Images | None = None,
        initial_noise: Float[np.ndarray, "B G C"] | None = None,
        seed: int | Sequence[int] = 0,
        output_type: OutputType = "pil",
        callback: ImageCallback | None = None,
        return_details: Literal[True],
        **options: Unpack[ImageOptions],
    ) -> list[ImageResult[ImageSettings]]: ...

    def generate_image(
        self,
        prompts: Prompts,
        *,
        settings: ImageSettings | None = None,
        images: Images | None = None,
        initial_noise: Float[np.ndarray, "B G C"] | None = None,
        seed: int | Sequence[int] = 0,
        output_type: OutputType = "pil",
        callback: ImageCallback | None = None,
        return_details: bool = False,
        **options: Unpack[ImageOptions],
    ) -> list[Image.Image] | np.ndarray | list[ImageResult[ImageSettings]]:
        """Generates one X-ray for each prompt.

        Args:
          prompts: one prompt or several; strings or token ids.
          settings: settings of the images; None makes them from `options`.
          images: condition images, one per prompt or one for all, in any form that
            `generate_report` accepts. The ViT encodes each, and the autoencoder encodes it padded
            with black to height x width, as in training.
          initial_noise: x at t = 1, [B, G, C], or [G, C] for one row; overrides `seed`.
          seed: an int for all rows (equal prompts generate equal images), or one per row.
          output_type: `pil` (list of PIL images of mode L, the mean of the decoded channels),
            `np` (float32 [B, height, width, 3] in [0, 1], the decoded channels) or `latent`
            (float32 tokens [B, G, C]).
          callback: called with an `ImageStep` after each step. Its `images` are a preview, which
            requires a run of the autoencoder's decoder.
          return_details: return an `ImageResult` for each image, with its seed and the settings.
          **options: the fields of `ImageSettings`: `height`, `width`, `num_inference_steps`,
            `solver`, `timestep_shift`, `guidance_scale`, `image_guidance_scale`,
            `guidance_interval`, `renorm`, `renorm_min`.

        Raises:
          ImageError, PromptError: an input that cannot be used.
          NonFiniteError: the model computed NaN or infinite numbers; no result is returned.
          CheckpointError: the checkpoint has no autoencoder, and pixels are requested.
        """
        chosen = settings_of(ImageSettings, settings, options)
        choice("output_type", output_type, OUTPUT_TYPES)
        _require_callable(callback)
        if output_type != "latent":
            self.loaded.require_vae()
        stride = None if callback is None else 1
        seeds, states = generate_latents(
            self.loaded, prompts, chosen, images, initial_noise, seed, stride
        )
        for at in states:
            latents = at.latents
            if callback is not None:
                callback(self._image_step(at, chosen))
        found: list[Any] | np.ndarray = latents
        if output_type != "latent":
            found = decode_latents(self.loaded, latents, latent_size(self.config, chosen))
        if output_type == "pil":
            found = [to_gray_pil(pixels) for pixels in found]
        if not return_details:
            return found
        used = chosen.checked(self.config)
        of_noise = initial_noise is not None
        return [
            ImageResult(image, None if of_noise else row_seed, used)
            for image, row_seed in zip(found, seeds, strict=True)
        ]

    def stream_image(
        self,
        prompts: Prompts,
        *,
        settings: ImageSettings | None = None,
        images: Images | None = None,
        initial_noise: Float[np.ndarray, "B G C"] | None = None,
        seed: int | Sequence[int] = 0,
        every: int = 5,
        **options: Unpack[ImageOptions],
    ) -> Iterator[ImageStep]:
        """Like `generate_image`, but yields a preview of the images every few steps.

        Args:
          prompts, settings, images, initial_noise, seed, **options: as in `generate_image`.
          every: number of steps per preview, at least 1. Each preview requires a run of the
            autoencoder's decoder.

        Yields:
          The model's present estimate of the final images; the last item has the images that
          `generate_image` returns.

        Raises:
          ImageError, PromptError, CheckpointError: as in `generate_image`, by the call itself.
        """
        chosen = settings_of(ImageSettings, settings, options)
        every = whole("every", every, 1)
        self.loaded.require_vae()
        _, states = generate_latents(
            self.loaded, prompts, chosen, images, initial_noise, seed, every
        )
        return self._previews(states, chosen)

    def _previews(
        self, states: Iterator[LatentStep], settings: ImageSettings
    ) -> Iterator[ImageStep]:
        for at in states:
            step = self._image_step(at, settings)
            # Decoded here, so that numbers that are not finite raise an error at their step.
            _ = step.images
            yield step

    def _image_step(self, at: LatentStep, settings: ImageSettings) -> ImageStep:
        def decode(latents: np.ndarray) -> list[Image.Image]:
            pixels = decode_latents(self.loaded, latents, latent_size(self.config, settings))
            return [to_gray_pil(image) for image in pixels]

        return ImageStep(at.step, at.total, at.latents, at.estimate, decode)


@contextlib.contextmanager
def _directory_beside(path: Path) -> Iterator[Path]:
    """A temporary directory on the file system of `path`; for a bucket, any local one.

    Raises:
      CheckpointError: it cannot be created.
    """
    try:
        if not isinstance(path, BucketPath):
            path.parent.mkdir(parents=True, exist_ok=True)
        created = tempfile.TemporaryDirectory(
            prefix=f".{path.name}-", dir=None if isinstance(path, BucketPath) else path.parent
        )
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written: {error.strerror or error}") from error
    with created as name:
        yield Path(name)


def _millions(params: Any) -> str:
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    return f"{count / 1e6:,.1f} M parameters"


def _require_callable(callback: Any) -> None:
    require(callback is None or callable(callback), "callback", "a function", callback)


def check_quantization(given: Any, mesh: Mesh | None) -> None:
    """Raises PromptError unless weights of this kind can be used on the mesh."""
    choice("quantization", given, typing.get_args(Quantization))
    if given != "none" and mesh is not None and sharding.splits_weights(mesh):
        raise PromptError(
            f"quantization: expected none with a mesh that splits the weights, found {given}"
        )


def _dtype(given: Any) -> np.dtype:
    """The dtype of the computation; raises PromptError unless it is bfloat16 or float32."""
    try:
        found = jnp.dtype(given)
    except TypeError:
        found = None
    if given is None or found not in (jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float32)):
        raise PromptError(f"dtype: expected 'bfloat16' or 'float32', found {given!r:.60}")
    return found

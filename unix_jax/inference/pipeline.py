"""`UniXPipeline`: reports from X-rays and X-rays from text, from files to results.

Letters: B rows, G latent tokens, C numbers in a latent token, h w latent tokens per side.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float
from PIL import Image

from unix_jax import flow, sharding
from unix_jax.config import UniXConfig
from unix_jax.errors import CheckpointError
from unix_jax.inference import decoding
from unix_jax.inference.compilation import enable_compilation_cache
from unix_jax.inference.context import as_batch, bucket, image_context, prefill
from unix_jax.inference.inputs import (
    Images,
    Prompts,
    image_list,
    prompt_list,
    require,
    row_keys,
)
from unix_jax.inference.sampling import RENORMS, Guidance, ImageContext, Renorm, sample_latents
from unix_jax.layout import Split, TextSplit, VitSplit, lay_out, stream_lengths
from unix_jax.models.autoencoder import Autoencoder
from unix_jax.models.autoencoder import param_shapes as vae_param_shapes
from unix_jax.models.embeddings import patchify, unpatchify
from unix_jax.models.unix import UniX, param_shapes, unroll_params
from unix_jax.text import DEFAULT_REPORT_PROMPT, Tokenizer, encode_prompt
from unix_jax.transforms import to_model_image, to_pil, to_vae_image

OutputType = Literal["pil", "np", "latent"]
Progress = Callable[[int, int], None]


@functools.partial(jax.jit, static_argnames=("autoencoder", "method"))
def _autoencode(autoencoder: Autoencoder, params: Any, x: Array, method: str) -> Array:
    return autoencoder.apply({"params": params}, x, method=method)  # type: ignore[return-value]


class UniXPipeline:
    """A model ready to use. Build it with `from_pretrained`.

    Attributes:
      config: sizes and token ids.
      params: the UniX parameters, in the form that `model` takes.
      vae_params: the autoencoder's, or None (reports only).
      tokenizer: or None (prompts and reports are then token ids).
      mesh: or None.
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

        On a CPU the decoder's layers are cut apart and dropped from `params`. `dtype` is that of
        the computation.

        Raises:
          ConfigError: control tokens outside the vocabulary, or a mesh that cannot be used.
        """
        config.check_special_tokens()
        if mesh is not None:
            sharding.check_mesh(mesh, config)
        self.config = config
        self.vae_params = vae_params
        self.tokenizer = tokenizer
        self.mesh = mesh
        # XLA's CPU backend copies a scanned layer's weights for every token; see docs/architecture.
        scan_layers = mesh is not None or jax.default_backend() != "cpu"
        if not scan_layers:
            params = unroll_params(params, config.decoder.num_layers)
        self.params = params
        self.model = UniX(
            config,
            dtype,
            scan_layers=scan_layers,
        )

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
        tokenizer = self._require_tokenizer()
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
        state = None
        for state in self._decode(  # noqa: B007
            images, prompts, max_new_tokens, temperature, top_p, seed, stride=None
        ):
            pass
        rows, tokens = state if state is not None else (0, np.zeros((0, 0), np.int32))
        return [self._until_eos(row) for row in tokens[:rows]]

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
        tokenizer = self._require_tokenizer()
        return self._stream(
            tokenizer,
            self._decode(images, prompts, max_new_tokens, temperature, top_p, seed, stride=1),
        )

    def _stream(
        self, tokenizer: Tokenizer, states: Iterator[tuple[int, np.ndarray]]
    ) -> Iterator[list[str]]:
        streams: list[Any] = []
        done = 0
        for rows, tokens in states:
            streams = streams or [tokenizer.stream() for _ in range(rows)]
            new, done = tokens[:rows, done:], tokens.shape[1]
            # `decode` drops control tokens, the eos that fills a finished row among them.
            yield [
                "".join(stream.push(token) for token in row)
                for stream, row in zip(streams, new, strict=True)
            ]
        yield [stream.flush() for stream in streams]

    def _decode(
        self,
        images: Images,
        prompts: Prompts | None,
        max_new_tokens: int,
        temperature: float,
        top_p: float,
        seed: int | Sequence[int],
        stride: int | None,
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Yields (rows, tokens so far) every `stride` tokens, or when a cache bucket is full."""
        config = self.config
        limit_positions = config.decoder.max_position_embeddings
        require(max_new_tokens >= 1, "max_new_tokens", "at least 1", max_new_tokens)
        require(temperature >= 0, "temperature", "at least 0", temperature)
        require(0 < top_p <= 1, "top_p", "a number in (0, 1]", top_p)
        pictures = image_list(images)
        rows = len(pictures)
        longest = limit_positions - max_new_tokens - 2
        require(longest >= 2, "max_new_tokens", f"at most {limit_positions - 4}", max_new_tokens)
        texts = self._texts(DEFAULT_REPORT_PROMPT if prompts is None else prompts, rows, longest)
        keys = row_keys(seed, rows)
        pixels = np.stack([to_model_image(p, config.vision.image_size) for p in pictures])
        texts, keys, pixels = self._whole_shards(texts, keys, pixels)
        samples: list[list[list[Split]]] = [[[VitSplit(), TextSplit(ids)]] for ids in texts]
        length = bucket(max(stream_lengths(row, config)[0] for row in samples))
        layout = lay_out(samples, config, und_length=length)
        buffer = -(-max_new_tokens // 64) * 64
        with sharding.use_mesh(self.mesh):
            batch = self._place(as_batch(layout, pixels[:, None]))
            cache, _ = prefill(self.model, self.params, batch, bucket(length + 1))
            special = config.special_tokens
            state = decoding.start(
                cache, self._place(layout.next_position), special.bos, special.eos, buffer
            )
            keys = self._place(keys)
        step = 0
        while step < max_new_tokens:
            room = state.cache.capacity - length - step
            if room == 0:
                with sharding.use_mesh(self.mesh):
                    state = decoding.grow(state, bucket(state.cache.capacity + 1))
                continue
            limit = min(max_new_tokens, step + min(room, stride or room))
            with sharding.use_mesh(self.mesh):
                state = decoding.decode_until(
                    self.model,
                    self.params,
                    state,
                    jnp.int32(limit),
                    keys,
                    jnp.float32(temperature or 1.0),
                    jnp.float32(top_p),
                    greedy=temperature == 0,
                )
            step = int(state.step)
            yield rows, np.asarray(state.tokens)[:, :step]
            if bool(np.asarray(state.done)[:rows].all()):
                return

    def _until_eos(self, row: np.ndarray) -> list[int]:
        ends = np.flatnonzero(row == self.config.special_tokens.eos)
        return row[: ends[0] if len(ends) else None].tolist()

    # ------------------------------------------------------------------------- images

    def generate_image(
        self,
        prompts: Prompts,
        height: int = 512,
        width: int = 512,
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
          height, width: pixels, multiples of `config.latent_downsample`.
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
          output_type: `pil` (list of PIL pictures), `np` (float32 [B, height, width, 3] in
            [0, 1]) or `latent` (float32 tokens [B, G, C]).
          progress: called with (steps done, steps in all).

        Raises:
          ImageError, PromptError: an input that cannot be used.
          CheckpointError: the checkpoint has no autoencoder, and pixels are needed.
        """
        config, side = self.config, self.config.latent_downsample
        largest = config.max_latent_size * side
        for name, value in (("height", height), ("width", width)):
            require(
                value >= side and value % side == 0, name, f"a positive multiple of {side}", value
            )
            if not config.interpolate_pos:
                require(value <= largest, name, f"at most {largest} (position table)", value)
        require(renorm in RENORMS, "renorm", f"one of {RENORMS}", renorm)
        require(0 <= renorm_min <= 1, "renorm_min", "a number in [0, 1]", renorm_min)
        require(output_type in ("pil", "np", "latent"), "output_type", "pil, np or latent",
                output_type)  # fmt: skip
        require(len(guidance_interval) == 2, "guidance_interval", "two times", guidance_interval)
        if images is not None or output_type != "latent":
            self._require_vae()
        grid = flow.timestep_grid(num_steps, timestep_shift)
        found = prompt_list(prompts)
        texts = self._texts(found, len(found), config.decoder.max_position_embeddings - 2)
        rows = len(texts)
        size = (height // side, width // side)
        noise = self._noise(initial_noise, row_keys(seed, rows), rows, size)
        guidance = Guidance(
            *(
                jnp.float32(x)
                for x in (guidance_scale, image_guidance_scale, *guidance_interval, renorm_min)
            )
        )
        run = functools.partial(
            self._sample,
            size=size,
            grid=grid,
            guidance=guidance,
            guided=guidance_scale > 1,
            image_guided=guidance_scale > 1 and image_guidance_scale > 1,
            renorm=renorm,
            progress=progress,
        )
        if images is None:
            latents = run(texts, noise, None, None, None)
        else:
            latents = self._sample_conditioned(
                run, texts, noise, image_list(images), max(height, width)
            )
        if output_type == "latent":
            return latents
        pixels = self._decode_latents(latents, size)
        return pixels if output_type == "np" else [to_pil(p) for p in pixels]

    def _sample_conditioned(
        self,
        run: Callable[..., np.ndarray],
        texts: list[list[int]],
        noise: Array,
        pictures: list[Image.Image],
        max_size: int,
    ) -> np.ndarray:
        """Rows whose condition images have the same grid run together: shapes are static."""
        rows = len(texts)
        require(len(pictures) in (1, rows), "images", f"one, or {rows} (one a prompt)",
                len(pictures))  # fmt: skip
        pictures = pictures * rows if len(pictures) == 1 else pictures
        side = self.config.latent_downsample
        clean = [to_vae_image(p, max_size=max_size, min_size=side, stride=side) for p in pictures]
        vit = [to_model_image(p, self.config.vision.image_size) for p in pictures]
        groups: dict[tuple[int, ...], list[int]] = {}
        for i, x in enumerate(clean):
            groups.setdefault(x.shape, []).append(i)
        latents = np.zeros(noise.shape, np.float32)
        for members in groups.values():
            encoded = self._vae(np.stack([clean[i] for i in members]), "encode")
            latents[members] = run(
                [texts[i] for i in members],
                noise[np.array(members)],
                np.stack([vit[i] for i in members]),
                np.asarray(patchify(jnp.asarray(encoded), self.config.latent_patch_size)),
                tuple(n // self.config.latent_patch_size for n in encoded.shape[1:3]),
            )
        return latents

    def _sample(
        self,
        texts: list[list[int]],
        noise: Any,
        vit_pixels: Any,
        clean_latents: Any,
        clean_grid: tuple[int, int] | None,
        *,
        size: tuple[int, int],
        grid: np.ndarray,
        guidance: Guidance,
        guided: bool,
        image_guided: bool,
        renorm: Renorm,
        progress: Progress | None,
    ) -> np.ndarray:
        rows = len(texts)
        # Without a condition image the empty-image branch is the conditional one.
        own_rows = image_guided and clean_grid is not None
        texts, noise, vit_pixels, clean_latents = self._whole_shards(
            texts, noise, vit_pixels, clean_latents
        )
        with sharding.use_mesh(self.mesh):
            context: ImageContext = image_context(
                self.model,
                self.params,
                texts,
                size,
                vit_pixels=vit_pixels,
                clean_latents=clean_latents,
                clean_grid=clean_grid,
                guided=guided,
                image_rows=own_rows,
            )
            latents = self._place(noise)
            total = len(grid) - 1
            # One program either way; with a listener it is called a step at a time.
            stride = total if progress is None else 1
            for first in range(0, total, stride):
                latents = sample_latents(
                    self.model,
                    self.params,
                    context,
                    latents,
                    jnp.asarray(grid),
                    jnp.int32(first),
                    jnp.int32(first + stride),
                    guidance,
                    guided=guided,
                    image_branch="rows" if own_rows else "conditional" if image_guided else "none",
                    renorm=renorm,
                )
                if progress is not None:
                    latents.block_until_ready()
                    progress(first + stride, total)
        return np.asarray(latents)[:rows]

    def _noise(
        self, given: Any, keys: Array, rows: int, size: tuple[int, int]
    ) -> Float[Array, "B G C"]:
        shape = (size[0] * size[1], self.config.latent_channels)
        if given is None:
            return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)
        noise = jnp.asarray(given, jnp.float32)
        noise = noise[None] if noise.ndim == 2 else noise
        require(
            noise.shape == (rows, *shape), "initial_noise", f"shape {(rows, *shape)}", noise.shape
        )
        return noise

    def _decode_latents(self, latents: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Pixels in [0, 1]; a few images at a time, whose activations are far larger than they."""
        spatial = unpatchify(jnp.asarray(latents), *size, self.config.latent_patch_size)
        pixels = self._vae(np.asarray(spatial), "decode")
        return np.clip(pixels / 2 + 0.5, 0, 1)

    def _vae(self, x: np.ndarray, method: str) -> np.ndarray:
        chunk = 1 if self.mesh is None else sharding.batch_shards(self.mesh)
        rows = len(x)
        (x,) = self._whole_shards(x)
        autoencoder = Autoencoder(self.config.vae)
        with sharding.use_mesh(self.mesh):
            parts = [
                np.asarray(
                    _autoencode(autoencoder, self.vae_params, self._place(x[i : i + chunk]), method)
                )
                for i in range(0, len(x), chunk)
            ]
        return np.concatenate(parts)[:rows]

    # ------------------------------------------------------------------------- shared

    def _texts(self, prompts: Prompts, rows: int, longest: int) -> list[list[int]]:
        """Checked text splits, one a row, that fit the model's positions."""
        listed = prompt_list(prompts, rows)
        return [
            encode_prompt(
                prompt,
                self.tokenizer,
                self.config.special_tokens,
                vocab_size=self.config.decoder.vocab_size,
                max_length=longest,
                double_bos=self.config.double_bos,
                argument=f"prompts[{i}]" if len(listed) > 1 else "prompt",
            )
            for i, prompt in enumerate(listed)
        ]

    def _require_tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise CheckpointError("tokenizer.json: expected in the checkpoint, found none")
        return self.tokenizer

    def _require_vae(self) -> None:
        if self.vae_params is None:
            raise CheckpointError(
                "vae: expected an autoencoder in the checkpoint (vae/*.ckpt), found none: "
                "it can write reports, but not draw images"
            )

    def _whole_shards(self, *batches: Any) -> tuple[Any, ...]:
        """Each batch with its last row repeated until the mesh splits it evenly."""
        if self.mesh is None:
            return batches
        shards = sharding.batch_shards(self.mesh)

        def pad(rows: Any) -> Any:
            if rows is None:
                return None
            missing = -len(rows) % shards
            if isinstance(rows, list):
                return rows + rows[-1:] * missing
            index = np.minimum(np.arange(len(rows) + missing), len(rows) - 1)
            return rows[index]

        return tuple(pad(rows) for rows in batches)

    def _place(self, tree: Any) -> Any:
        """Arrays on the device, or split over the mesh along their rows."""
        if self.mesh is None:
            return jax.device_put(tree)
        return sharding.shard_batch(tree, self.mesh)

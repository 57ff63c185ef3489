"""`LoadedModel`: a model's parameters, tokenizer and devices, and the placement of its inputs."""

import dataclasses
import functools
from typing import Any, get_args

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from unix_jax import sharding
from unix_jax.config import UniXConfig
from unix_jax.errors import CheckpointError, PromptError
from unix_jax.inference.drafts import Draft, Drafter, NGramDrafter, PromptDrafter
from unix_jax.inference.inputs import Prompts, choice, prompt_list
from unix_jax.models.autoencoder import Autoencoder
from unix_jax.models.unix import UniX
from unix_jax.preprocessing.text import Tokenizer, encode_prompt


@functools.partial(jax.jit, static_argnames=("autoencoder", "method"))
def _autoencode(autoencoder: Autoencoder, params: Any, x: Array, method: str) -> Array:
    return autoencoder.apply({"params": params}, x, method=method)  # type: ignore[return-value]


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model on its devices.

    Attributes:
      model: the module for `params`.
      params: the UniX parameters.
      vae_params: the autoencoder's parameters; None if only reports are supported.
      tokenizer: the tokenizer; None if prompts and reports are token ids.
      mesh: the mesh of devices; None for one device.
      ngrams: the drafter of draft="ngram"; None without a file.
    """

    model: UniX
    params: dict[str, Any]
    vae_params: dict[str, Any] | None
    tokenizer: Tokenizer | None
    mesh: Mesh | None
    ngrams: NGramDrafter | None = None

    def drafter(self, draft: Draft) -> Drafter | None:
        """The drafter of a call.

        Raises:
          PromptError: another name, or `ngram` without a file.
        """
        choice("draft", draft, get_args(Draft))
        if draft == "ngram" and self.ngrams is None:
            raise PromptError(
                "draft: ngram needs n-grams, found none; load them with "
                "UniXPipeline.from_pretrained(..., ngrams=FILE)"
            )
        if draft == "ngram":
            return self.ngrams
        return PromptDrafter() if draft == "prompt" else None

    @property
    def config(self) -> UniXConfig:
        """Sizes and token ids."""
        return self.model.config

    def require_tokenizer(self) -> Tokenizer:
        """The tokenizer.

        Raises:
          CheckpointError: the checkpoint has no tokenizer.
        """
        if self.tokenizer is None:
            raise CheckpointError("tokenizer.json: expected in the checkpoint, found none")
        return self.tokenizer

    def require_vae(self) -> None:
        """Raises CheckpointError if the checkpoint has no autoencoder."""
        if self.vae_params is None:
            raise CheckpointError(
                "vae: expected an autoencoder in the checkpoint (vae/*.ckpt), found none: "
                "it can generate reports, but not images"
            )

    def encode_prompts(self, prompts: Prompts, rows: int, longest: int) -> list[list[int]]:
        """Validated text splits, one per row, of at most `longest` tokens.

        Raises:
          PromptError: a prompt that cannot be used, or another number than `rows`.
        """
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

    def autoencode(self, x: np.ndarray, method: str) -> np.ndarray:
        """`encode` (pixels [B, H, W, 3] to latents [B, h, w, C]) or `decode`.

        Each device processes one image at a time, since activations need far more memory.
        """
        chunk = 1 if self.mesh is None else sharding.batch_shards(self.mesh)
        rows = len(x)
        (x,) = self.whole_shards(x)
        autoencoder = Autoencoder(self.config.vae)
        with sharding.use_mesh(self.mesh):
            parts = [
                np.asarray(
                    _autoencode(autoencoder, self.vae_params, self.place(x[i : i + chunk]), method)
                )
                for i in range(0, len(x), chunk)
            ]
        return np.concatenate(parts)[:rows]

    def whole_shards(self, *batches: Any) -> tuple[Any, ...]:
        """Each batch with its last row repeated until the mesh divides it evenly; None is kept."""
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

    def place(self, tree: Any) -> Any:
        """Arrays on the device, or with their rows divided over the mesh."""
        if self.mesh is None:
            return jax.device_put(tree)
        return sharding.shard_batch(tree, self.mesh)

"""`LoadedModel`: parameters, tokenizer and devices, and how rows of input reach them."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from unix_jax import sharding
from unix_jax.config import UniXConfig
from unix_jax.errors import CheckpointError
from unix_jax.inference.inputs import Prompts, prompt_list
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
      model: the module that `params` fit.
      params: the UniX parameters.
      vae_params: the autoencoder's, or None (reports only).
      tokenizer: or None (prompts and reports are then token ids).
      mesh: or None for one device.
    """

    model: UniX
    params: dict[str, Any]
    vae_params: dict[str, Any] | None
    tokenizer: Tokenizer | None
    mesh: Mesh | None

    @property
    def config(self) -> UniXConfig:
        """Sizes and token ids."""
        return self.model.config

    def require_tokenizer(self) -> Tokenizer:
        """The tokenizer.

        Raises:
          CheckpointError: there is none.
        """
        if self.tokenizer is None:
            raise CheckpointError("tokenizer.json: expected in the checkpoint, found none")
        return self.tokenizer

    def require_vae(self) -> None:
        """Raises CheckpointError where there is no autoencoder."""
        if self.vae_params is None:
            raise CheckpointError(
                "vae: expected an autoencoder in the checkpoint (vae/*.ckpt), found none: "
                "it can write reports, but not generate images"
            )

    def encode_prompts(self, prompts: Prompts, rows: int, longest: int) -> list[list[int]]:
        """Checked text splits, one a row, of at most `longest` tokens.

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

        An image on each device at a time: its activations are far larger than it.
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
        """Each batch with its last row repeated until the mesh splits it evenly; None stays."""
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
        """Arrays on the device, or split over the mesh along their rows."""
        if self.mesh is None:
            return jax.device_put(tree)
        return sharding.shard_batch(tree, self.mesh)

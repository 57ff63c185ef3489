"""Makes the start of the nano model: `python examples/make_nano_start.py runs/nano_start`.

A checkpoint of preset `nano` with fresh weights, in which the autoencoder's linear path is fitted
to the bundled training X-rays (`unix_jax.training.linear_path`): block PCA, and then a minute of
descent. configs/nano_autoencoder.py starts from it and learns what the linear path leaves. The
kernels of the model have the spread that its small width needs (`scaled`).
"""

import argparse
import math
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import Array

from unix_jax.checkpoints import native
from unix_jax.config import UniXConfig
from unix_jax.data.config import DataConfig
from unix_jax.data.model_images import vae_pixels
from unix_jax.data.sources import open_source
from unix_jax.models.autoencoder import Autoencoder
from unix_jax.models.unix import init_params
from unix_jax.training.linear_path import fit_linear_path, start_from_linear_path

ROOT = Path(__file__).parents[1]
# Standard deviation of the kernels and embeddings of `init_params`.
INITIAL_SPREAD = 0.02
EMBEDDING_SPREAD = 0.5


def scaled(params: Any) -> Any:
    """Fresh parameters whose kernels have the variance 1 / inputs.

    The standard deviation of 0.02, which the published model's widths of 1152 and 2048 suit, is
    four times too small at a width of 128. The blocks then change almost nothing, attention has
    almost no gradient, and the latents and their time vanish beside the table of their positions.
    Logits, and the velocity of fresh weights, stay small.
    """

    def one(path: Any, leaf: Array) -> Array:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name == "embed_tokens/embedding":
            return leaf * (EMBEDDING_SPREAD / INITIAL_SPREAD)
        if not name.endswith("/kernel") or name.startswith(("lm_head/", "llm2vae/")):
            return leaf
        inputs = math.prod(leaf.shape[:-1]) if "patch_embed" in name else leaf.shape[-2]
        return leaf * (inputs**-0.5 / INITIAL_SPREAD)

    return jax.tree_util.tree_map_with_path(one, params)


def make(source: str, out: Path, size: int) -> None:
    """Writes the checkpoint."""
    config = UniXConfig.preset("nano")
    data = DataConfig(task="generation", vae_images=1, vae_height=size, vae_width=size)
    records = open_source(source, "train")
    pixels = np.stack([vae_pixels(records[i], data)[..., :1] for i in range(len(records))])
    key = jax.random.key(0)
    vae = nn.unbox(jax.jit(Autoencoder(config.vae).init)(key, pixels[:1])["params"])
    vae = start_from_linear_path(config.vae, vae, fit_linear_path(config.vae, pixels))
    tokenizer = ROOT / "examples" / "nano_tokenizer" / "tokenizer.json"
    native.save(
        out, config, scaled(init_params(config, key)), vae, copies=[(tokenizer, tokenizer.name)]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="a new directory")
    parser.add_argument("--source", default=f"manifest:{ROOT / 'examples' / 'cxr'}")
    parser.add_argument("--size", type=int, default=128, help="side of the images in pixels")
    arguments = parser.parse_args()
    make(arguments.source, arguments.out, arguments.size)


if __name__ == "__main__":
    main()

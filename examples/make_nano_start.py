"""Makes the start of the nano model: `python examples/make_nano_start.py runs/nano_start`.

A checkpoint of preset `nano` with fresh weights, in which the autoencoder's linear path is fitted
to the bundled training X-rays (`unix_jax.training.linear_path`): block PCA, and then a minute of
descent. configs/nano_autoencoder.py starts from it and learns what the linear path leaves.
"""

import argparse
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np

from unix_jax.checkpoints import native
from unix_jax.config import UniXConfig
from unix_jax.data.config import DataConfig
from unix_jax.data.model_images import vae_pixels
from unix_jax.data.sources import open_source
from unix_jax.models.autoencoder import Autoencoder
from unix_jax.models.unix import init_params
from unix_jax.training.linear_path import fit_linear_path, start_from_linear_path

ROOT = Path(__file__).parents[1]


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
    native.save(out, config, init_params(config, key), vae, copies=[(tokenizer, tokenizer.name)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="a new directory")
    parser.add_argument("--source", default=f"manifest:{ROOT / 'examples' / 'cxr'}")
    parser.add_argument("--size", type=int, default=128, help="side of the images in pixels")
    arguments = parser.parse_args()
    make(arguments.source, arguments.out, arguments.size)


if __name__ == "__main__":
    main()

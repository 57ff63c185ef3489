"""Memory and time of `convert import-diffusers` for a folder of Stable Diffusion 1.5's size.

    python benchmarks/diffusers_size.py FOLDER OUT

Writes FOLDER with random float32 weights (4.3 GB), imports it as OUT, and prints the peak.
"""

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from unix_jax.checkpoints.diffusers_config import (
    Fields,
    read_text_config,
    read_unet_config,
    read_vae_config,
)
from unix_jax.checkpoints.diffusers_table import clip_table, kl_table, unet_table
from unix_jax.checkpoints.formats.tensor_source import TensorInfo
from unix_jax.checkpoints.formats.writers import write_safetensors

UNET = {"_class_name": "UNet2DConditionModel", "cross_attention_dim": 768}
VAE = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
}
TEXT = {
    "model_type": "clip_text_model",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
}
INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "scheduler": ["diffusers", "DDIMScheduler"],
}


def write_folder(folder: Path) -> None:
    """Random weights under the published names."""
    rng = np.random.default_rng(0)
    block = rng.normal(size=1 << 20).astype(np.float32)

    def entries(table):
        for entry in table:
            for key in entry.keys:
                info = TensorInfo(entry.file_shape, np.dtype(np.float32))
                yield key, info, lambda shape=entry.file_shape: np.resize(block, shape)

    parts = {
        "unet": (UNET, unet_table(*read_unet_config(Fields(UNET, "unet")))),
        "vae": (VAE, kl_table(read_vae_config(Fields(VAE, "vae")))),
        "text_encoder": (TEXT, clip_table(read_text_config(Fields(TEXT, "text")), "text_model.")),
    }
    for part, (config, table) in parts.items():
        (folder / part).mkdir(parents=True)
        (folder / part / "config.json").write_text(json.dumps(config))
        stem = "model" if part == "text_encoder" else "diffusion_pytorch_model"
        write_safetensors(folder / part / f"{stem}.safetensors", entries(table), {"format": "pt"})
    words = {"a</w>": 0, "<|startoftext|>": 1, "<|endoftext|>": 2}
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps(words))
    (folder / "tokenizer" / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer" / "tokenizer_config.json").write_text('{"model_max_length": 77}')
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text('{"_class_name": "DDIMScheduler"}')
    (folder / "model_index.json").write_text(json.dumps(INDEX))


def main(folder: Path, out: Path) -> None:
    write_folder(folder)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    start = time.perf_counter()
    command = [
        sys.executable,
        "-m",
        "unix_jax",
        "convert",
        "import-diffusers",
        str(folder),
        str(out),
    ]
    subprocess.run(command, check=True)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(f"{size / 2**30:.2f} GiB imported in {seconds:.0f} s, peak {peak:.2f} GiB")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

"""Small random checkpoints in the published layout, for tests."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import yaml

from convert.table import unix_table, vae_table
from convert.writers import write_safetensors, write_torch_zip
from unix_jax.config import (
    AutoencoderConfig,
    DecoderConfig,
    SpecialTokens,
    UniXConfig,
    VisionConfig,
)

SMALL_VAE = AutoencoderConfig(ch=32, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(128,))
# GQA, two latents to a side of a token, an MLP ratio that is not 4.
GQA = UniXConfig(
    decoder=DecoderConfig(48, 80, 2, 6, 2, 8, 96, 64, 1e-5, 5e5),
    vision=VisionConfig(32, 8, 24, 3, 3, 2.0),
    vae=SMALL_VAE,
    special_tokens=SpecialTokens(90, 91, 92, 93, 94),
    latent_patch_size=2,
    max_latent_size=5,
    vit_max_num_patch_per_side=4,
    timestep_shift=2.0,
    interpolate_pos=True,
    double_bos=True,
)


def file_tensors(
    config: UniXConfig, kind: Callable[[int], np.dtype], seed: int = 0
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Random tensors of the model and of the autoencoder; `kind(number)` is each one's type."""
    rng = np.random.default_rng(seed)

    def fill(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
        return {
            key: rng.normal(size=shape).astype(kind(number))
            for number, (key, shape) in enumerate(shapes.items())
        }

    shapes = {key: entry.file_shape for entry in unix_table(config) for key in entry.keys}
    shapes["vit_pos_embed.pos_embed"] = (16, config.decoder.hidden_size)
    shapes["vit_model.vision_tower.attn_pool.latent"] = (1, 1, config.vision.width)
    vae_shapes = {key: entry.file_shape for entry in vae_table(config.vae) for key in entry.keys}
    return fill(shapes), fill(vae_shapes)


def write_configurations(directory: Path, config: UniXConfig) -> None:
    published, vae = config.to_published()
    (directory / "vae").mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(published))
    (directory / "vae" / "config.yaml").write_text(yaml.safe_dump(vae))


def write_published(
    directory: Path,
    config: UniXConfig = GQA,
    kind: Callable[[int], np.dtype] = lambda number: np.dtype(np.float32),
    shards: int = 1,
) -> dict[str, np.ndarray]:
    """Writes the directory and gives back the model's tensors."""
    tensors, vae = file_tensors(config, kind)
    write_configurations(directory, config)
    write_torch_zip(directory / "vae" / "kl-f16d16.ckpt", vae)
    if shards == 1:
        write_safetensors(directory / "model.safetensors", tensors, {"format": "pt"})
        return tensors
    placed = {key: f"model-{i % shards + 1}.safetensors" for i, key in enumerate(tensors)}
    for name in set(placed.values()):
        part = {key: tensors[key] for key in tensors if placed[key] == name}
        write_safetensors(directory / name, part, {"format": "pt"})
    size = sum(tensor.nbytes for tensor in tensors.values())
    (directory / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": size}, "weight_map": placed})
    )
    return tensors

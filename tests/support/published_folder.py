"""Small random checkpoints in the published layout, for tests."""

import json
import pickle
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from unix_jax.checkpoints.formats.torch_file import STORAGES
from unix_jax.checkpoints.formats.writers import write_safetensors, write_torch_zip
from unix_jax.checkpoints.published_config import to_published
from unix_jax.checkpoints.table import unix_table, vae_table
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
    published, vae = to_published(config)
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


def write_nested(path: Path, value: dict[str, Any]) -> None:
    """What `torch.save` writes of dictionaries and lists at any depth, arrays, and plain values."""
    storages: list[bytes] = []
    names = {kind: name for name, kind in STORAGES.items() if name != "UntypedStorage"}

    def plain(item: Any) -> bytes:
        return pickle.dumps(item, 2)[2:-1].replace(b"q\x00", b"")

    def sizes(values: Sequence[int]) -> bytes:
        return b"(" + b"".join(plain(int(size)) for size in values) + b"t"

    def program(item: Any) -> bytes:
        if isinstance(item, dict):
            return b"}" + b"".join(plain(key) + program(x) + b"s" for key, x in item.items())
        if isinstance(item, list):
            return b"]" + b"".join(program(part) + b"a" for part in item)
        if not isinstance(item, np.ndarray):
            return plain(item)
        storages.append(np.ascontiguousarray(item).tobytes())
        stride = np.cumprod([1, *item.shape[:0:-1]])[::-1] if item.ndim else ()
        return (
            b"ctorch._utils\n_rebuild_tensor_v2\n(("
            + plain("storage")
            + f"ctorch\n{names[item.dtype]}\n".encode()
            + plain(str(len(storages) - 1))
            + plain("cpu")
            + plain(item.size)
            + b"tQ"
            + plain(0)
            + sizes(item.shape)
            + sizes(stride)
            + b"\x89ccollections\nOrderedDict\n)RtR"
        )

    pickled = b"\x80\x02" + program(value) + b"."
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        for number, data in enumerate(storages):
            archive.writestr(f"archive/data/{number}", data)

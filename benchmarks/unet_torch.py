"""The U-Net against diffusers in PyTorch on this CPU, in one process, at a small size.

    pip install torch==2.13.0 transformers && pip install --no-deps diffusers==0.42.1
    python benchmarks/unet_torch.py FOLDER

Writes diffusers' random weights to FOLDER, which it reads; both sides compute the same output.
"""

import sys
import time

# Modules of this folder have names that libraries look for.
sys.path.pop(0)

import jax
import numpy as np
import torch
from diffusers import UNet2DConditionModel

from unix_jax.checkpoints.diffusers import DiffusersFolder
from unix_jax.models.unet import UNet

SIZES = {
    "sample_size": 16,
    "block_out_channels": [64, 128, 256],
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "attention_head_dim": 4,
    "cross_attention_dim": 128,
}


def seconds(run, repeats: int = 9) -> float:
    """The median time of a run, after one that does not count."""
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return sorted(times)[repeats // 2]


def main(path: str) -> None:
    theirs = UNet2DConditionModel(**SIZES).eval()
    theirs.save_pretrained(f"{path}/unet")
    folder = DiffusersFolder(path)
    apply, params = jax.jit(UNet(folder.unet_config[0]).apply), {"params": folder.unet}
    print("batch  diffusers s  this s  ratio  difference")
    for batch in (1, 8):
        rng = np.random.default_rng(0)
        x, text = rng.normal(size=(batch, 16, 16, 4)), rng.normal(size=(batch, 77, 128))
        x, text, t = x.astype(np.float32), text.astype(np.float32), np.full(batch, 500.0, "f")
        tensors = torch.from_numpy(np.moveaxis(x, -1, 1).copy()), 500, torch.from_numpy(text)
        with torch.inference_mode():
            expected = theirs(*tensors).sample.numpy()
            torch_seconds = seconds(lambda inputs=tensors: theirs(*inputs))
        arrays = jax.device_put((x, t, text))
        ours = np.moveaxis(np.asarray(apply(params, *arrays)), -1, 1)
        jax_seconds = seconds(lambda inputs=arrays: apply(params, *inputs).block_until_ready())
        difference = np.abs(ours - expected).max() / np.abs(expected).max()
        ratio = torch_seconds / jax_seconds
        print(f"{batch:5} {torch_seconds:12.3f} {jax_seconds:7.3f} {ratio:6.2f} {difference:11.1e}")


if __name__ == "__main__":
    main(sys.argv[1])

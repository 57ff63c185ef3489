"""Parameters, FLOPs and times of the generation backbones, of the configurations that train them.

    python benchmarks/backbones.py
    python benchmarks/backbones.py --time

Without `--time` nothing is run: parameters are those of `jax.eval_shape`, FLOPs those of
`unix_jax.training.flops` for batches of full rows. `--time` runs the two nano models with random
weights in turns: training steps on two full rows with precomputed moments, and 49 Euler steps for a
batch of 8 images. It prints CPU seconds, which other programs of the machine affect less, and the
pairwise ratio with its spread. Compiling is not included.
"""

import argparse
import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from common import interleaved, machine, ratio

from unix_jax.checkpoints.leaves import flatten
from unix_jax.config import UNetBackbone, UniXConfig
from unix_jax.dry_run.dry_run import full_row
from unix_jax.inference.pipeline import UniXPipeline
from unix_jax.models.unix import UniX, init_params, param_shapes
from unix_jax.training import flops
from unix_jax.training.config import TrainConfig, load_config
from unix_jax.training.optimizer import make_optimizer
from unix_jax.training.parameter_groups import GENERATION, GENERATION_UNET, compiled
from unix_jax.training.state import create_state
from unix_jax.training.step import StepConfig, make_train_step

NAMES = ("nano_generation", "nano_generation_unet", "stage2_generation", "stage2_generation_unet")


def stream_flops(config: UniXConfig, counts: flops.Counts) -> float:
    """Forward FLOPs of the gen stream over all of its latents."""
    per_token, pair = flops._layer_flops(config)
    decoder = counts.gen_tokens * per_token + (counts.gen_und_pairs + counts.gen_gen_pairs) * pair
    ends = counts.gen_tokens * 4 * config.decoder.hidden_size * config.latent_channels
    return config.decoder.num_layers * decoder + ends


def loaded(name: str) -> tuple[TrainConfig, UniXConfig]:
    run, _ = load_config(f"configs/{name}.py")
    preset = UniXConfig.preset(run.model.preset)
    return run, dataclasses.replace(preset, generation=run.model.generation)


def training(run: TrainConfig, config: UniXConfig) -> Callable[[], object]:
    """A training step on full rows."""
    is_unet = isinstance(config.generation, UNetBackbone)
    tx, schedule = make_optimizer(run.optimizer, run.total_steps)
    state = create_state(
        GENERATION_UNET if is_unet else GENERATION, tx, jax.random.key(0), ema=False,
        init={"unix": lambda key: init_params(config, key, boxed=True)},
    )  # fmt: skip
    row = full_row(run.data, config)
    side, channels = config.vae.downsample, 2 * config.vae.z_channels
    images = np.asarray(row.vae_pixels).shape[1]
    size = (1, images, run.data.vae_height // side, run.data.vae_width // side, channels)
    row = row.replace(vae_pixels=None, vae_moments=np.zeros(size, np.float32))  # type: ignore[attr-defined]
    batch = jax.tree.map(lambda x: np.concatenate([x] * run.data.rows), row)
    step = make_train_step(UniX(config, freeze_und=True), StepConfig(), tx, schedule)

    def once() -> None:
        nonlocal state
        state, metrics = step(state, batch, jax.random.key(1))
        jax.block_until_ready((state, metrics))

    return once


def sampling(config: UniXConfig) -> Callable[[], object]:
    """The latents of 8 images."""
    params: Any = jax.jit(init_params, static_argnums=0)(config, jax.random.key(0))
    pipe = UniXPipeline(config, params)
    prompts = [[5, 6, 7, 8 + i] for i in range(8)]
    return lambda: pipe.generate_image(
        prompts, height=128, width=128, num_inference_steps=49, output_type="latent"
    )


def print_times(repeats: int) -> None:
    print(machine())
    configs = {name: loaded(name) for name in NAMES[:2]}
    for what, runs in (
        ("training step, 2 rows", {n: training(*of_run) for n, of_run in configs.items()}),
        ("8 images of 128 pixels", {n: sampling(config) for n, (_, config) in configs.items()}),
    ):
        times = interleaved(runs, repeats, time.process_time)
        ours, unet = (times[name] for name in NAMES[:2])
        print(
            f"{what:<24} gen stream {ours.median:.2f} CPU s, U-Net {unet.median:.2f} CPU s, "
            f"U-Net / gen stream {ratio(unet, ours)}",
            flush=True,
        )


def main() -> None:
    """Prints a line for each configuration."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--time", action="store_true", help="time the nano models instead")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.time:
        print_times(arguments.repeats)
        return
    for name in NAMES:
        run, config = loaded(name)
        is_unet = isinstance(config.generation, UNetBackbone)
        sizes = {n: math.prod(x.shape) for n, x in flatten(param_shapes(config)).items()}
        pattern = compiled(GENERATION_UNET if is_unet else GENERATION, "pattern")
        fixed = 0 if is_unet else sizes["latent_pos_embed"]
        backbone = fixed + sum(size for n, size in sizes.items() if pattern.fullmatch(n))
        counts = flops.count(full_row(run.data, config), config)
        forward = (flops.unet_flops if is_unet else stream_flops)(config, counts)
        step = flops.step_flops(config, counts, "generation") * run.data.rows
        print(
            f"{name:<24} backbone {backbone:>13,} of {sum(sizes.values()):>13,} parameters, "
            f"forward {forward / counts.latent_images / 1e12:.5f} TFLOPs an image, "
            f"step {step / 1e12:.3f} TFLOPs"
        )


if __name__ == "__main__":
    main()

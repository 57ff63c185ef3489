"""Parameters and FLOPs of the generation backbones, of the configurations that train them.

    python benchmarks/backbones.py

Nothing is run: parameters are those of `jax.eval_shape`, FLOPs those of `unix_jax.training.flops`
for batches of full rows.
"""

import dataclasses
import math

from unix_jax.checkpoints.leaves import flatten
from unix_jax.config import UNetBackbone, UniXConfig
from unix_jax.dry_run.dry_run import full_row
from unix_jax.models.unix import param_shapes
from unix_jax.training import flops
from unix_jax.training.config import load_config
from unix_jax.training.parameter_groups import GENERATION, GENERATION_UNET, compiled

NAMES = ("nano_generation", "nano_generation_unet", "stage2_generation", "stage2_generation_unet")


def stream_flops(config: UniXConfig, counts: flops.Counts) -> float:
    """Forward FLOPs of the gen stream over all of its latents."""
    per_token, pair = flops._layer_flops(config)
    decoder = counts.gen_tokens * per_token + (counts.gen_und_pairs + counts.gen_gen_pairs) * pair
    ends = counts.gen_tokens * 4 * config.decoder.hidden_size * config.latent_channels
    return config.decoder.num_layers * decoder + ends


def main() -> None:
    """Prints a line for each configuration."""
    for name in NAMES:
        run, _ = load_config(f"configs/{name}.py")
        preset = UniXConfig.preset(run.model.preset)
        config = dataclasses.replace(preset, generation=run.model.generation)
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

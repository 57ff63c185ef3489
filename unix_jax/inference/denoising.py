"""Sampling of latents with a diffusion U-Net: DDIM or Euler steps, with guidance as batch rows.

Letters: B images, h w latent rows and columns, C latent channels, S text tokens, D width.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from unix_jax.models.unet import UNet
from unix_jax.preprocessing.noise_schedule import NoiseSchedule, SamplingPlan, rescaled


@functools.partial(jax.jit, static_argnames=("model", "schedule", "guided"))
def denoise(
    model: UNet,
    schedule: NoiseSchedule,
    params: Any,
    noise: Float[Array, "B h w C"],
    text: Float[Array, "R S D"],
    plan: SamplingPlan,
    first: Int[Array, ""],
    last: Int[Array, ""],
    guidance_scale: Float[Array, ""],
    guidance_rescale: Float[Array, ""],
    *,
    guided: bool,
) -> Float[Array, "B h w C"]:
    """Runs steps `first` to `last` (exclusive) of `plan`; returns scaled latents.

    Args:
      noise: x at step `first`; N(0, I) if `first` is 0.
      text: hidden states of the prompts, B rows, then of the empty prompts, B rows, if `guided`.
      guidance_scale, guidance_rescale: as in `StableDiffusionPipeline`.
    """
    branches = 2 if guided else 1

    def step(i: Array, x: Array) -> Array:
        times = jnp.full(branches * x.shape[0], plan.timesteps[i])
        out: Any = model.apply({"params": params}, jnp.tile(x, (branches, 1, 1, 1)), times, text)
        if guided:
            conditional, empty = jnp.split(out, 2)
            out = empty + guidance_scale * (conditional - empty)
            out = rescaled(out, conditional, guidance_rescale)
        return schedule.step(x, out, plan.alphas[i], plan.next_alphas[i])

    x = noise.astype(jnp.float32) * jnp.where(first == 0, plan.start_scale, 1.0)
    x = jax.lax.fori_loop(first, last, step, x)
    return x * jnp.where(last == plan.steps, plan.end_scale, 1.0)

"""Noise schedules of diffusion models, and the steps of DDIM and Euler samplers over them.

x_t = sqrt(alpha) x_0 + sqrt(1 - alpha) noise, where alpha is diffusers' `alphas_cumprod[t]`. A step
of Euler in sigma = sqrt(1 - alpha) / sqrt(alpha) is, in these variables, the same as one of DDIM
without noise: the two differ in the levels that they visit and in the scale of their ends.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int

from unix_jax.errors import PromptError
from unix_jax.preprocessing.schedule_config import Sampler, ScheduleConfig

# What Euler puts for alpha = 0, whose sigma would be infinite (diffusers).
_SMALLEST_ALPHA = 2.0**-24


@dataclasses.dataclass(frozen=True)
class NoiseSchedule(ScheduleConfig):
    """A noise schedule and the steps of its sampler."""

    @classmethod
    def of(cls, config: ScheduleConfig) -> "NoiseSchedule":
        """The schedule with these settings."""
        return cls(**vars(config))

    def with_sampler(self, sampler: Sampler) -> "NoiseSchedule":
        """The same schedule for another sampler; Euler's does not clip, as in diffusers."""
        clip = None if sampler == "euler" else self.clip_sample_range
        return dataclasses.replace(self, sampler=sampler, clip_sample_range=clip)

    def alphas(self) -> Float[np.ndarray, " T"]:
        """The share of signal, alpha, after each training step; float32."""
        count, one = self.num_train_timesteps, np.float32(1)
        if self.beta_schedule == "squaredcos_cap_v2":
            bar = np.cos((np.arange(count + 1) / count + 0.008) / 1.008 * np.pi / 2) ** 2
            betas = np.minimum(1 - bar[1:] / bar[:-1], 0.999).astype(np.float32)
        elif self.beta_schedule == "linear":
            betas = _linspace(self.beta_start, self.beta_end, count)
        else:
            betas = _linspace(self.beta_start**0.5, self.beta_end**0.5, count) ** 2
        alphas = _cumulative(one - betas)
        if self.rescale_betas_zero_snr:
            # "Common Diffusion Noise Schedules and Sample Steps are Flawed", algorithm 1.
            roots = np.sqrt(alphas)
            first, last = roots[0], roots[-1]
            bars = ((roots - last) * (first / (first - last))) ** 2
            betas = one - np.concatenate([bars[:1], bars[1:] / bars[:-1]])
            alphas = _cumulative(one - betas)
            if self.sampler == "euler":
                alphas[-1] = _SMALLEST_ALPHA
        return alphas

    def timesteps(self, steps: int) -> np.ndarray:
        """The training steps that a run of `steps` visits, noisiest first; Euler's are fractions.

        Raises:
          PromptError: fewer than 1 step, or more than there were in training.
        """
        total = self.num_train_timesteps
        if not 1 <= steps <= total:
            raise PromptError(f"num_inference_steps: expected 1 to {total}, found {steps}")
        if self.timestep_spacing == "leading":
            return np.arange(steps)[::-1] * (total // steps) + self.steps_offset
        if self.timestep_spacing == "trailing":
            return np.round(np.arange(total, 0, -total / steps)) - 1
        if self.sampler == "euler":
            return np.linspace(0, total - 1, steps, dtype=np.float32)[::-1]
        return np.round(np.linspace(0, total - 1, steps))[::-1]

    def plan(self, steps: int) -> "SamplingPlan":
        """The numbers of every step of a run.

        Raises:
          PromptError: as `timesteps`; a timestep beyond the schedule; or a first level without any
            signal, where a prediction of the noise carries no information.
        """
        times, alphas, total = self.timesteps(steps), self.alphas(), self.num_train_timesteps
        if times.max() >= total:
            raise PromptError(
                f"num_inference_steps: {steps} steps from steps_offset {self.steps_offset} reach "
                f"timestep {int(times.max())}, expected at most {total - 1}"
            )
        start = end = 1.0
        if self.sampler == "ddim":
            index = times.astype(int)
            before = index - total // steps
            last = np.float32(1) if self.set_alpha_to_one else alphas[0]
            at, to = alphas[index], np.where(before >= 0, alphas[np.maximum(before, 0)], last)
        else:
            sigmas = np.sqrt((1 - alphas) / alphas)
            at = np.interp(times, np.arange(total), sigmas).astype(np.float32)
            last = np.float32(0) if self.final_sigmas_type == "zero" else sigmas[0]
            at, to = (1 / (1 + x**2) for x in (at, np.append(at[1:], last)))
            if self.timestep_spacing != "leading":
                start = float(np.sqrt(1 - at[0]))
            end = float(1 / np.sqrt(to[-1]))
        if self.prediction_type == "epsilon" and at.min() <= 0:
            raise PromptError(
                "prediction_type: expected v_prediction or sample with rescale_betas_zero_snr: at "
                "the first step there is no signal, and epsilon leaves it undefined"
            )
        numbers = [jnp.asarray(x, jnp.float32) for x in (times, at, to, start, end)]
        numbers.append(jnp.int32(len(times)))
        return SamplingPlan(*numbers)

    def step(
        self,
        x: Float[Array, "B h w C"],
        output: Float[Array, "B h w C"],
        alpha: Float[Array, ""],
        next_alpha: Float[Array, ""],
    ) -> Float[Array, "B h w C"]:
        """x at the next level, from the network's output at this one; without noise (eta 0)."""
        signal, noise = jnp.sqrt(alpha), jnp.sqrt(1 - alpha)
        if self.prediction_type == "epsilon":
            clean, epsilon = (x - noise * output) / signal, output
        elif self.prediction_type == "v_prediction":
            clean, epsilon = signal * x - noise * output, signal * output + noise * x
        else:
            clean, epsilon = output, (x - signal * output) / noise
        if self.clip_sample_range is not None:
            clean = jnp.clip(clean, -self.clip_sample_range, self.clip_sample_range)
        return jnp.sqrt(next_alpha) * clean + jnp.sqrt(1 - next_alpha) * epsilon


@struct.dataclass
class SamplingPlan:
    """A run: `timesteps`, alpha at and after each step, and the scales of x at start and end.

    It has `steps` steps, n unless the arrays are `padded`.
    """

    timesteps: Float[Array, " n"]
    alphas: Float[Array, " n"]
    next_alphas: Float[Array, " n"]
    start_scale: Float[Array, ""]
    end_scale: Float[Array, ""]
    steps: Int[Array, ""]

    def padded(self, length: int) -> "SamplingPlan":
        """The same run in arrays of `length`: runs of other numbers of steps share its program."""
        names = ("timesteps", "alphas", "next_alphas")
        arrays = {name: np.asarray(getattr(self, name)) for name in names}
        longer = {
            name: jnp.asarray(np.pad(x, (0, length - len(x)), "edge")) for name, x in arrays.items()
        }
        return self.replace(**longer)  # type: ignore[attr-defined]


def rescaled(
    guided: Float[Array, "B h w C"], conditional: Float[Array, "B h w C"], rescale: Array
) -> Float[Array, "B h w C"]:
    """Guidance rescaled, per image, towards the standard deviation of the conditional output.

    Source: `guidance_rescale` of diffusers; section 3.4 of "Common Diffusion Noise Schedules ...".
    """
    axes = (1, 2, 3)
    spread = jnp.std(conditional, axes, keepdims=True) / jnp.std(guided, axes, keepdims=True)
    return rescale * guided * spread + (1 - rescale) * guided


def _linspace(start: float, end: float, count: int) -> Float[np.ndarray, " n"]:
    """`torch.linspace` in float32, which computes from both ends."""
    low, high = np.float32(start), np.float32(end)
    step, index = (high - low) / np.float32(max(count - 1, 1)), np.arange(count, dtype=np.float32)
    halves = index < count // 2
    return np.where(halves, low + step * index, high - step * (count - 1 - index)).astype(
        np.float32
    )


def _cumulative(factors: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """`torch.cumprod` of float32, which sums up in float64."""
    return np.cumprod(factors, dtype=np.float64).astype(np.float32)

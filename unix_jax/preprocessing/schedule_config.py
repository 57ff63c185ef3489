"""The settings of a noise schedule and its sampler, without JAX."""

import dataclasses
from typing import Literal

Prediction = Literal["epsilon", "v_prediction", "sample"]
Sampler = Literal["ddim", "euler"]
BetaSchedule = Literal["linear", "scaled_linear", "squaredcos_cap_v2"]
Spacing = Literal["leading", "trailing", "linspace"]
FinalSigma = Literal["zero", "sigma_min"]


@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
    """How noise was added in training, what the network predicts, and how samples are made.

    The fields are those of diffusers' `scheduler_config.json`, with its defaults for DDIM.
    """

    sampler: Sampler = "ddim"
    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: BetaSchedule = "linear"
    prediction_type: Prediction = "epsilon"
    timestep_spacing: Spacing = "leading"
    steps_offset: int = 0
    rescale_betas_zero_snr: bool = False
    set_alpha_to_one: bool = True
    clip_sample_range: float | None = None
    final_sigmas_type: FinalSigma = "zero"

"""Compilation of every batch size before the first request, so that no client waits for it."""

import time
import warnings
from collections.abc import Callable

import numpy as np
from PIL import Image

from unix_jax.errors import ImageWarning
from unix_jax.inference.image_latents import decode_latents, generate_latents, latent_size
from unix_jax.inference.pipeline import UniXPipeline
from unix_jax.inference.reports import decode_reports
from unix_jax.inference.settings import ImageSettings, ReportSettings
from unix_jax.serving.limits import ServeLimits


def warm_up(pipe: UniXPipeline, limits: ServeLimits, say: Callable[[str], object]) -> None:
    """Runs one token and one step of every batch size, with the default settings.

    Other settings (sampled tokens, other sizes, several X-rays, long texts) are compiled by the
    first request that needs them.

    Args:
      say: receives a line per kind.
    """
    began = time.monotonic()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ImageWarning)
        for rows in limits.batch_sizes:
            _warm_reports(pipe, limits, rows)
    _tell(say, "reports", limits, began)
    if pipe.vae_params is None:
        say("images: the checkpoint has no autoencoder; it generates reports only")
        return
    began = time.monotonic()
    for rows in limits.batch_sizes:
        _warm_images(pipe, rows)
    _tell(say, "images", limits, began)


def _warm_reports(pipe: UniXPipeline, limits: ServeLimits, rows: int) -> None:
    side = pipe.config.vision.image_size
    blank = Image.fromarray(np.full((side, side), 128, np.uint8))
    settings = ReportSettings(max_new_tokens=limits.report_tokens(pipe.config))
    _, states = decode_reports(pipe.loaded, [blank] * rows, None, settings, 0, 1)
    next(states)


def _warm_images(pipe: UniXPipeline, rows: int) -> None:
    settings = ImageSettings().checked(pipe.config)
    # Different seeds: equal rows are computed once.
    _, states = generate_latents(
        pipe.loaded, ["X-ray."] * rows, settings, None, None, list(range(rows)), 1
    )
    latents = next(states).latents
    decode_latents(pipe.loaded, latents[:1], latent_size(pipe.config, settings))


def _tell(say: Callable[[str], object], kind: str, limits: ServeLimits, began: float) -> None:
    sizes = ", ".join(map(str, limits.batch_sizes))
    say(f"{kind}: ready in batches of {sizes} ({time.monotonic() - began:.1f} s)")

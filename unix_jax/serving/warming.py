"""Compilation of every batch size before the first request, so that no client waits for it."""

import time
from collections.abc import Callable

from unix_jax.inference.image_latents import decode_latents, generate_latents, latent_size
from unix_jax.inference.pipeline import UniXPipeline
from unix_jax.inference.reports import compile_reports
from unix_jax.inference.settings import ImageSettings, ReportSettings
from unix_jax.serving.limits import ServeLimits


def warm_up(pipe: UniXPipeline, limits: ServeLimits, say: Callable[[str], object]) -> None:
    """Compiles the programs of every batch size for the default settings.

    Other settings (sampled tokens, other sizes, several X-rays, long texts) are compiled by the
    first request that needs them.

    Args:
      say: receives a line per kind.
    """
    began = time.monotonic()
    settings = ReportSettings(max_new_tokens=limits.report_tokens(pipe.config))
    for rows in limits.batch_sizes:
        compile_reports(pipe.loaded, rows, settings)
    _tell(say, "reports", limits, began)
    if pipe.vae_params is None:
        say("images: the checkpoint has no autoencoder; it generates reports only")
        return
    began = time.monotonic()
    for rows in limits.batch_sizes:
        _warm_images(pipe, rows)
    _tell(say, "images", limits, began)


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

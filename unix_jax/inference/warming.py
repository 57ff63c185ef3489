"""Compilation before a server's first request, so that no client waits for it."""

import time
from collections.abc import Callable, Sequence

from unix_jax.inference.diffusion import DiffusionPipeline
from unix_jax.inference.image_latents import decode_latents, generate_latents, latent_size
from unix_jax.inference.pipeline import UniXPipeline
from unix_jax.inference.reports import compile_reports
from unix_jax.inference.settings import ImageSettings, ReportSettings


def warm_up(
    pipe: UniXPipeline,
    batch_sizes: Sequence[int],
    new_tokens: int,
    say: Callable[[str], object],
    *,
    together: bool = True,
) -> None:
    """Compiles the programs of every batch size for the default settings.

    Other settings (sampled tokens, other sizes, several X-rays, long texts) are compiled by the
    first request that needs them.

    Args:
      new_tokens: maximum number of tokens of a report.
      say: receives a line per kind.
      together: whether the reports of a batch begin together; otherwise rows are refilled.
    """
    began = time.monotonic()
    settings = ReportSettings(max_new_tokens=new_tokens)
    for rows in batch_sizes:
        compile_reports(pipe.loaded, rows, settings, together=together)
    sizes = ", ".join(map(str, batch_sizes))
    batches = f"in batches of {sizes} " if batch_sizes != (1,) else ""
    say(f"reports: ready {batches}({time.monotonic() - began:.1f} s)")
    if pipe.vae_params is None:
        say("images: the checkpoint has no autoencoder; it generates reports only")
        return
    began = time.monotonic()
    for rows in batch_sizes:
        _warm_images(pipe, rows)
    say(f"images: ready {batches}({time.monotonic() - began:.1f} s)")


def warm_up_diffusion(pipe: DiffusionPipeline, say: Callable[[str], object]) -> None:
    """Compiles the programs of one image with the default settings; `say` receives a line."""
    began = time.monotonic()
    next(pipe.stream_image("X-ray.", every=1))
    say(f"images: ready ({time.monotonic() - began:.1f} s)")


def _warm_images(pipe: UniXPipeline, rows: int) -> None:
    settings = ImageSettings().checked(pipe.config)
    # Different seeds: equal rows are computed once.
    _, states = generate_latents(
        pipe.loaded, ["X-ray."] * rows, settings, None, None, list(range(rows)), 1
    )
    latents = next(states).latents
    decode_latents(pipe.loaded, latents[:1], latent_size(pipe.config, settings))

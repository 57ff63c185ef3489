"""A bound on the number of compiled programs that a server keeps in memory.

Each shape of a request compiles programs of its own, and JAX keeps them all. Without a bound, a
server whose visitors choose sizes and settings would need ever more memory.
"""

import threading
from collections.abc import Hashable

import jax

from unix_jax.inference.context import bucket
from unix_jax.inference.image_latents import padded_steps
from unix_jax.inference.settings import DiffusionSettings, ImageSettings, ReportSettings


class ProgramBudget:
    """Remembers the shapes of requests, and frees all programs before there are too many.

    The programs of a shape that is used again come from the compilation cache on disk.

    Args:
      most: the number of different shapes whose programs stay in memory, at least 1.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._shapes: set[Hashable] = set()
        self._lock = threading.Lock()
        self.freed = 0

    def use(self, shape: Hashable) -> None:
        """To be called before each request, while no other request is computed."""
        with self._lock:
            if shape not in self._shapes and len(self._shapes) >= self._most:
                # JAX frees programs of one function or of all, but not the one used least.
                jax.clear_caches()
                self._shapes.clear()
                self.freed += 1
            self._shapes.add(shape)


def report_shape(settings: ReportSettings, rows: int, images: int, tokens: int) -> Hashable:
    """What the programs of reports depend on, for `tokens` tokens of context per row."""
    buffer = -(-settings.max_new_tokens // 64)
    choice = (
        "greedy" if settings.temperature == 0 else "sample" if settings.top_p == 1 else "nucleus"
    )
    return "report", rows, images, bucket(tokens), buffer, choice


def image_shape(settings: ImageSettings, rows: int, tokens: int) -> Hashable:
    """What the programs of images depend on, for texts of at most `tokens` tokens."""
    size = settings.height, settings.width
    guided = settings.guided, settings.image_guided
    steps = padded_steps(settings.num_inference_steps + 1)
    return "image", rows, *size, bucket(tokens), steps, *guided, settings.renorm, settings.solver


def diffusion_shape(settings: DiffusionSettings, rows: int) -> Hashable:
    """What the programs of images of a diffusers checkpoint depend on, besides the checkpoint."""
    size, guided = (settings.height, settings.width), settings.guidance_scale > 1
    steps = padded_steps(settings.num_inference_steps)
    return "diffusion", rows, *size, steps, guided, settings.sampler

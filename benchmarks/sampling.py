"""Distance of each solver's latents from the exact path, by network evaluations.

The error is the root mean square of the difference of the latents over that of the reference: the
same noise, prompts and guidance with a very fine grid. Both cover all images together. Images per
second include the autoencoder's decoder.
"""

import dataclasses

import numpy as np
import tyro
from common import interleaved, machine, print_table, ratio

from unix_jax import ImageSettings, UniXPipeline
from unix_jax.app.bundled import example_texts
from unix_jax.inference.sampling import SOLVERS


@dataclasses.dataclass
class Arguments:
    """What is measured."""

    checkpoint: str = "examples/nano"
    """A checkpoint of UniX with an autoencoder."""
    images: int = 4
    """Number of images, in one batch."""
    evaluations: tuple[int, ...] = (8, 12, 16, 20, 30, 49)
    """Steps per image; each evaluates the network once."""
    reference: int = 400
    """Steps of the reference, which `pec` makes."""
    guidance_scale: float = 2.0
    """Text guidance."""
    repeats: int = 3
    """Timed runs of each solver."""


def main(a: Arguments) -> None:
    """Prints the errors, then images per second."""
    pipe = UniXPipeline.from_pretrained(a.checkpoint)
    texts = example_texts(a.images)
    prompts = [texts[i % len(texts)] for i in range(a.images)]

    def latents(solver: str, steps: int) -> np.ndarray:
        settings = ImageSettings(
            solver=solver,  # type: ignore[arg-type]
            num_inference_steps=steps,
            guidance_scale=a.guidance_scale,
        )
        seeds = range(a.images)
        return pipe.generate_image(prompts, settings=settings, seed=seeds, output_type="latent")

    exact = latents("pec", a.reference)

    def error(found: np.ndarray) -> str:
        return f"{np.sqrt(np.mean((found - exact) ** 2) / np.mean(exact**2)):.4f}"

    print(machine())
    print(f"{a.checkpoint}, {a.images} images, guidance {a.guidance_scale:g} in (0.4, 1]")
    half = a.reference // 2
    print(f"reference: pec with {a.reference} steps; pec with {half} differs by "
          f"{error(latents('pec', half))}")  # fmt: skip
    print_table(
        "Relative RMS error of the latents",
        ["evaluations", *SOLVERS],
        [[str(n), *(error(latents(solver, n)) for solver in SOLVERS)] for n in a.evaluations],
    )

    def images(solver: str, steps: int) -> object:
        return pipe.generate_image(
            prompts, seed=range(a.images), solver=solver, num_inference_steps=steps,  # type: ignore[arg-type]
            guidance_scale=a.guidance_scale,
        )  # fmt: skip

    runs = {("euler", 49): "Euler", ("ab2", 20): "AB2", ("ab2", 16): "AB2", ("pec", 16): "PEC"}
    timings = interleaved(
        {f"{name} {run[1]}": lambda run=run: images(*run) for run, name in runs.items()},
        a.repeats,
    )
    base = timings["Euler 49"]
    print_table(
        "Images per second",
        ["solver and steps", "images/s", "against Euler 49 (spread)"],
        [[name, f"{a.images / t.median:.2f}", ratio(base, t)] for name, t in timings.items()],
    )


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))

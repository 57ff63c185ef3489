"""Distance of each solver's latents from the exact path, by network evaluations.

The error is the root mean square of the difference of the latents over that of the reference: the
same noise, prompts and guidance with a very fine grid. Both cover all images together. Images per
second include the autoencoder's decoder. `--frechet` adds the Fréchet distances of generated images
to the held-out X-rays of examples/cxr, as `nano_quality.py` measures them.
"""

import dataclasses
from typing import Any

import numpy as np
import tyro
from common import interleaved, machine, print_table, ratio
from nano_quality import ROOT, SEEDS, as_images, features, generate, records

from unix_jax import ImageSettings, UniXPipeline
from unix_jax.app.bundled import example_texts
from unix_jax.data.records import captions_of
from unix_jax.evaluation.image import frechet_distance
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
    frechet: bool = False
    """Whether to print the Fréchet distances, which takes many minutes on a CPU."""


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

    def images(solver: Any, steps: int) -> object:
        return pipe.generate_image(
            prompts, seed=range(a.images), solver=solver, num_inference_steps=steps,
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
    if a.frechet:
        print_frechet(pipe, a.guidance_scale)


def print_frechet(pipe: UniXPipeline, guidance_scale: float, size: int = 128) -> None:
    """Distances of images generated from the captions of the held-out X-rays, per set of seeds."""
    held_out = records(f"manifest:{ROOT / 'examples' / 'cxr'}", "validate", "test")
    prompts = [captions_of(record)[0] for record in held_out]
    target = features(pipe, [image.convert("RGB") for image in as_images(held_out, size)])
    rows = []
    for name, solver, steps in (("Euler 49", "euler", 49), ("AB2 20", "ab2", 20)):
        distances = []
        for first_seed in SEEDS:
            made = generate(
                pipe, prompts, size, first_seed, solver=solver, num_inference_steps=steps,
                guidance_scale=guidance_scale,
            )  # fmt: skip
            found = features(pipe, [image.convert("RGB") for image in made])
            distances.append([frechet_distance(target[key], found[key]) for key in target])
        rows.append([name])
        for of_sets in zip(*distances, strict=True):
            low, high = min(of_sets), max(of_sets)
            rows[-1].append(f"{np.mean(of_sets):.3f} ({low:.3f} to {high:.3f})")
    print_table(
        f"Fréchet distance to {len(held_out)} held-out X-rays at {size} x {size}: mean of "
        f"{len(SEEDS)} sets of seeds (smallest to largest)",
        ["solver and steps", *target],
        rows,
    )


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))

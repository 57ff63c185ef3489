"""The command `unix-jax generate`: chest X-rays from text."""

import dataclasses
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from unix_jax.commands.model import Model
from unix_jax.commands.progress import advancing
from unix_jax.commands.terminal import say
from unix_jax.errors import UniXError
from unix_jax.storage.arguments import AnyPathText, refuse_without_effect
from unix_jax.storage.shown import shown
from unix_jax.storage.working_copy import working_copy


@dataclasses.dataclass
class Generate(Model):
    """Generate a chest X-ray from each text as a PNG file, and a contact sheet of several images.

    For example:
        unix-jax generate "Large right pleural effusion."
        unix-jax generate "Edema." --num-images 4 --solver pec --num-inference-steps 16 --out edema
    """

    prompts: Annotated[list[str], tyro.conf.Positional, tyro.conf.arg(metavar="PROMPT ...")] = (
        dataclasses.field(default_factory=list)
    )
    """Texts that describe the images, for example "Large right pleural effusion."."""
    out: AnyPathText = "out"
    """Directory for the images."""
    height: int | None = None
    """Height in pixels. The default is 512, or the maximum of a smaller model."""
    width: int | None = None
    """Width in pixels. The default is 512, or the maximum of a smaller model."""
    num_inference_steps: int | None = None
    """Number of steps per image, each of which evaluates the network once. The default is 49, the
    original's 50 grid points, or 50 for a diffusers checkpoint."""
    solver: Literal["euler", "ab2", "pec"] = "euler"
    """Solver of the steps: euler as in the original; ab2 and pec are as accurate with 16 steps."""
    timestep_shift: float = 3.0
    """Shift of the time grid; values above 1 place more steps near the noise."""
    guidance_scale: float | None = None
    """Text guidance; 1 turns it off. The default is 2, or 7.5 for a diffusers checkpoint."""
    guidance_rescale: float | None = None
    """Only for diffusers checkpoints: strength, from 0 to 1, of rescaling the guided output to the
    standard deviation of the conditional one."""
    sampler: Literal["ddim", "euler"] | None = None
    """Only for diffusers checkpoints: the sampler. The default is the checkpoint's own."""
    image_guidance_scale: float = 1.0
    """Image guidance; 1 turns it off. With prompts alone it changes the text guidance to 1 + image
    guidance x (text guidance - 1), as in the original's demos."""
    guidance_interval: tuple[float, float] = (0.4, 1.0)
    """Guidance is applied at times in (low, high]."""
    renorm: Literal["global", "channel", "text_channel"] = "global"
    """How guided velocities are renormalised: over the image (global), per token (channel), or per
    token after the text guidance only (text_channel)."""
    renorm_min: float = 0.0
    """Lower bound of the renormalisation factor, from 0 to 1."""
    seed: int = 0
    """Random seed of the first image. Each further image uses the next integer."""
    num_images: int = 1
    """Number of images per text."""

    def run(self) -> None:
        from unix_jax.checkpoints.configurations import is_diffusers

        if not self.prompts:
            raise UniXError("PROMPT: expected at least one text, found none")
        if not all(prompt.strip() for prompt in self.prompts):
            say("PROMPT: a text is empty; its image is generated without text")
        if self.num_images < 1:
            raise UniXError(f"--num-images: expected at least 1, found {self.num_images}")
        kind, settings = self.diffusion() if is_diffusers(self.directory) else self.unix()
        # Names alone: an earlier file is replaced.
        with working_copy(self.out, lambda name: False) as out:
            self._generate(kind, settings, _writable_directory(out, self.out))

    def _generate(self, kind: Any, settings: Any, out: Path) -> None:
        from unix_jax.inference.results import png_entries
        from unix_jax.preprocessing.transforms import contact_sheet, save_png

        pipe = self.load_as(kind)
        prompts = [p for p in self.prompts for _ in range(self.num_images)]
        seeds = [self.seed + i for i in range(len(prompts))]
        with advancing("step", settings.num_inference_steps) as advance:
            images = pipe.generate_image(
                prompts, settings=settings, seed=seeds, callback=lambda step: advance()
            )
        for i, (prompt, seed, image) in enumerate(zip(prompts, seeds, images, strict=True)):
            path = out / f"{i:03d}_{_slug(prompt)}_seed{seed}.png"
            if path.exists():
                say(f"{path}: replaced an earlier file")
            save_png(path, image, png_entries(prompt, seed, settings))
            print(shown(path))
        if len(images) > 1:
            sheet = out / "contact_sheet.png"
            save_png(sheet, contact_sheet(images, prompts))
            print(shown(sheet))

    # Settings are checked before the directory is created and before weights are read.

    def diffusion(self) -> tuple[Any, Any]:
        """(kind of pipeline, settings) for a diffusers checkpoint."""
        from unix_jax.checkpoints.diffusers_checkpoint import open_diffusers
        from unix_jax.inference.diffusion import DiffusionPipeline
        from unix_jax.inference.settings import DiffusionSettings

        others = ("solver", "timestep_shift", "image_guidance_scale", "guidance_interval")
        where = f"with a diffusers checkpoint, {self.directory}"
        refuse_without_effect(self, (*others, "renorm", "renorm_min"), where)
        folder = open_diffusers(self.directory)
        settings = DiffusionSettings(
            height=self.height,
            width=self.width,
            num_inference_steps=50
            if self.num_inference_steps is None
            else self.num_inference_steps,
            guidance_scale=7.5 if self.guidance_scale is None else self.guidance_scale,
            guidance_rescale=self.guidance_rescale or 0.0,
            sampler=self.sampler,
        )
        return DiffusionPipeline, settings.checked(folder.vae_config, folder.native_size)

    def unix(self) -> tuple[Any, Any]:
        """(kind of pipeline, settings) for a checkpoint of UniX."""
        from unix_jax.checkpoints.configurations import load_config
        from unix_jax.inference.pipeline import UniXPipeline
        from unix_jax.inference.settings import ImageSettings

        where = f"with a checkpoint of UniX, {self.directory}"
        refuse_without_effect(self, ("guidance_rescale", "sampler"), where)
        settings = ImageSettings(
            height=self.height,
            width=self.width,
            num_inference_steps=49
            if self.num_inference_steps is None
            else self.num_inference_steps,
            solver=self.solver,
            timestep_shift=self.timestep_shift,
            guidance_scale=2.0 if self.guidance_scale is None else self.guidance_scale,
            image_guidance_scale=self.image_guidance_scale,
            guidance_interval=self.guidance_interval,
            renorm=self.renorm,
            renorm_min=self.renorm_min,
        )
        return UniXPipeline, settings.checked(load_config(self.directory)[0])


def _writable_directory(directory: Path, path: str) -> Path:
    """The created output directory; an error, which names `path`, comes before the computation.

    Raises:
      UniXError: it cannot be created or written to.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UniXError(f"--out {path}: cannot be created: {error.strerror}") from error
    if not os.access(directory, os.W_OK):
        raise UniXError(f"--out {path}: expected a writable directory")
    return directory


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40].rstrip("-") or "image"

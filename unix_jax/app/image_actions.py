"""Actions that generate images; see `unix_jax.app.actions`."""

import dataclasses
import time
from collections.abc import Iterator
from typing import Any

from unix_jax.app.actions import NO_IMAGE, Requests, Session, State, Stop, told
from unix_jax.app.choices import ImageChoices, image_count
from unix_jax.app.figures import (
    GeneratedImage,
    empty_figure,
    generated_figure,
    progress_figure,
    said,
    several_figures,
)
from unix_jax.app.image_models import ImageModel
from unix_jax.app.reports import WrittenReport

PREVIEWS = 10  # of an unfinished image
KEPT = "Done. Both images are kept under Session."


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageActions(Requests):
    """Generates images with `images`."""

    images: ImageModel[Any]

    # Generating yields (figure or figures, the session's images, their figures, message).

    def generate(
        self, stop: Stop, session: Session, prompt: Any, *choices: Any, count: Any = 1
    ) -> Iterator[State]:
        """Generates `count` images step by step, of consecutive seeds.

        `choices` are the values of `images.own` and `images.common`.
        """

        def steps() -> Iterator[State]:
            first = self.images.choices(prompt, *choices)
            total = image_count(count, first.seed, self.limits)
            yield self._waiting(1, "Generating …")
            done: list[GeneratedImage | WrittenReport] = []
            figures: list[str] = []
            begin = time.monotonic()
            for i in range(total):
                chosen = dataclasses.replace(first, seed=first.seed + i)
                for figure, finished in self._previews(chosen):
                    shown = several_figures([*figures, figure])
                    if finished is None:
                        yield shown, self.unchanged, self.unchanged, said("Generating …")
                figures.append(figure)
                assert finished is not None
                done.append(finished)
                seconds = time.monotonic() - begin
                spent = seconds / (len(done) * first.settings.num_inference_steps)
                took = f"Done in {seconds:.1f} s, {spent:.2f} s per step. Kept under Session."
                message = (
                    self._noted(took, first)
                    if len(done) == total
                    else f"Generating image {len(done) + 1} of {total} …"
                )
                yield shown, *self.kept(session, done), said(message)

        yield from told(self.until(stop, steps()), self._blank(1))

    def compare(self, stop: Stop, session: Session, prompt: Any, *choices: Any) -> Iterator[State]:
        """Generates images of the same text with two settings, one after the other.

        `choices` are the values of `images.own` for A, those for B, then those of `images.common`.
        """

        count = len(self.images.own)

        def both() -> Iterator[State]:
            first, second = (
                self.images.choices(prompt, *own, *choices[2 * count :])
                for own in (choices[:count], choices[count : 2 * count])
            )
            yield self._waiting(2, "Generating A …")
            done: list[GeneratedImage | None] = []
            waiting = empty_figure("Waiting for A …")
            for figure, finished in self._previews(first):
                done = [finished]
                kept = self.kept(session, done)
                yield (figure, waiting, *kept, said("Generating A …"))
            for figure, finished in self._previews(second):
                kept = self.kept(session, [*done, finished])
                text = "Generating B …" if finished is None else self._noted(KEPT, second)
                yield (self.unchanged, figure, *kept, said(text))

        yield from told(self.until(stop, both()), self._blank(2))

    def _waiting(self, figures: int, text: str) -> State:
        blank = [empty_figure("Noise …")] * figures
        return (*blank, self.unchanged, self.unchanged, said(text))

    def _blank(self, figures: int) -> State:
        return (*[empty_figure(NO_IMAGE)] * figures, self.unchanged, self.unchanged)

    def _previews(self, chosen: ImageChoices) -> Iterator[tuple[str, GeneratedImage | None]]:
        """(figure, the finished image or None) at every preview."""
        self.programs.use(self.images.programs(chosen))
        every = max(1, chosen.settings.num_inference_steps // PREVIEWS)
        for at in self.images.stream(chosen, every):
            if at.step < at.total:
                yield progress_figure(at.images[0], chosen, at.step, at.total), None
            else:
                finished = GeneratedImage.of(at.images[0], chosen)
                yield generated_figure(finished), finished

    def _noted(self, text: str, chosen: ImageChoices) -> str:
        return " ".join(filter(None, (text, self.images.note(chosen))))

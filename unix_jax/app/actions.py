"""Actions of the page's buttons: generators over one pipeline that yield the page's next state.

The last value of every item is a message. Errors become messages too: an input error with its own
text, and any other error as a reference to the server's log.
"""

import dataclasses
import logging
from collections.abc import Iterator
from typing import Any

from unix_jax.app.bundled import Example
from unix_jax.app.choices import (
    ImageChoices,
    Limits,
    ReportChoices,
    Xray,
    image_choices,
    read_xray,
    report_choices,
)
from unix_jax.app.figures import (
    GeneratedImage,
    complaint,
    empty_figure,
    generated_figure,
    progress_figure,
    said,
    session_figures,
    xray_figure,
)
from unix_jax.errors import ImageError, UniXError
from unix_jax.inference.pipeline import UniXPipeline
from unix_jax.inference.programs import ProgramBudget, image_shape, report_shape
from unix_jax.inference.reports import context_tokens
from unix_jax.inference.settings import ReportSettings

PREVIEWS = 10  # of an unfinished image
NO_XRAY = "The X-ray appears here."
NO_IMAGE = "The image appears here."
FAILED = "An error occurred on the server; see its log."

Session = tuple[GeneratedImage, ...]
State = tuple[Any, ...]


@dataclasses.dataclass
class Stop:
    """State of a tab's request: whether it is running, and whether its visitor asked to stop it.

    It is checked between two steps. Gradio's own mechanism, which closes a generator from outside,
    loses requests that the visitor sends in the meantime.
    """

    asked: bool = False
    pending: bool = False


@dataclasses.dataclass(frozen=True)
class Actions:
    """Shared by all visitors; the state of a visitor is passed in and returned.

    `unchanged` is Gradio's value for "do not change". `programs` bounds the compiled programs.
    """

    pipe: UniXPipeline
    limits: Limits
    unchanged: Any
    programs: ProgramBudget

    def begin(self, stop: Stop) -> str:
        """Called before a request joins the queue: clears an earlier stop."""
        stop.asked, stop.pending = False, True
        return said("Waiting for the model …")

    def end(self, stop: Stop) -> Any:
        """Asks the tab's request, running or waiting, to end; its own message comes last."""
        stop.asked = stop.pending
        return self.unchanged if stop.pending else said("Nothing is running.")

    # Reading yields (xray or None, its figure, report, message).

    def read_upload(self, stop: Stop, data: bytes | None) -> Iterator[State]:
        """Reads an uploaded file."""

        def steps() -> Iterator[State]:
            if data is None:
                raise ImageError("Upload: expected an image file, found none")
            yield self._read(stop, data, "Uploaded X-ray")

        yield from _told(steps(), (None, empty_figure(NO_XRAY), ""))

    def read_example(self, stop: Stop, example: Example) -> Iterator[State]:
        """Reads one of the examples."""

        def steps() -> Iterator[State]:
            yield self._read(stop, example.data, f"Example: {example.name}")

        yield from _told(steps(), (None, empty_figure(NO_XRAY), ""))

    def _read(self, stop: Stop, data: bytes, name: str) -> State:
        xray = read_xray(data, name, self.pipe.config, self.limits)
        return xray, xray_figure(xray), "", self.begin(stop)

    # Writing yields (report, message).

    def write_report(self, stop: Stop, xray: Xray | None, *choices: Any) -> Iterator[State]:
        """Writes a report token by token; `choices` are those of `report_choices`."""

        def steps() -> Iterator[State]:
            if xray is None:
                raise ImageError("X-ray: expected an upload or an example first, found none")
            chosen = report_choices(*choices, limits=self.limits)
            self._use_report_programs(chosen)
            yield "", said("Reading the X-ray …")
            report = ""
            for (piece,) in self.pipe.stream_report(
                [xray.image],
                prompts=chosen.prompt.strip() or None,
                max_new_tokens=chosen.max_new_tokens,
                temperature=chosen.temperature,
                top_p=chosen.top_p,
                seed=chosen.seed,
            ):
                report += piece
                yield report, said("Writing …")
            yield report, said("Done.")

        yield from _told(self._until(stop, steps()), (self.unchanged,))

    def write_after_reading(self, stop: Stop, xray: Xray | None, *choices: Any) -> Iterator[State]:
        """Like `write_report`, but silent after an upload that could not be read."""
        if xray is None:
            yield self.unchanged, self.unchanged
        else:
            yield from self.write_report(stop, xray, *choices)

    # Generating yields (figure or figures, the session's images, their figures, message).

    def generate(self, stop: Stop, session: Session, prompt: Any, *choices: Any) -> Iterator[State]:
        """Generates an image step by step; `choices` are those of `image_choices`."""

        def steps() -> Iterator[State]:
            chosen = self._chosen(prompt, *choices)
            yield self._waiting(1, "Generating …")
            for figure, finished in self._previews(chosen):
                yield (figure, *self._kept(session, [finished]), _progress(finished))

        yield from _told(self._until(stop, steps()), self._blank(1))

    def compare(self, stop: Stop, session: Session, prompt: Any, *choices: Any) -> Iterator[State]:
        """Generates images of the same text with two settings, one after the other.

        `choices` are seed, steps and guidance of A, those of B, then the common ones.
        """

        def both() -> Iterator[State]:
            first, second = (
                self._chosen(prompt, *own, *choices[6:]) for own in (choices[:3], choices[3:6])
            )
            yield self._waiting(2, "Generating A …")
            done = []
            waiting = empty_figure("Waiting for A …")
            for figure, finished in self._previews(first):
                done = [finished]
                kept = self._kept(session, done)
                yield (figure, waiting, *kept, said("Generating A …"))
            for figure, finished in self._previews(second):
                kept = self._kept(session, [*done, finished])
                yield (self.unchanged, figure, *kept, _progress(finished, "Generating B …"))

        yield from _told(self._until(stop, both()), self._blank(2))

    def clear(self) -> State:
        """Clears the session's images: (images, their figures, message)."""
        return (), session_figures([]), said("Cleared.")

    def _chosen(self, *choices: Any) -> ImageChoices:
        return image_choices(*choices, config=self.pipe.config, limits=self.limits)

    def _waiting(self, figures: int, text: str) -> State:
        blank = [empty_figure("Noise …")] * figures
        return (*blank, self.unchanged, self.unchanged, said(text))

    def _blank(self, figures: int) -> State:
        return (*[empty_figure(NO_IMAGE)] * figures, self.unchanged, self.unchanged)

    def _previews(self, chosen: ImageChoices) -> Iterator[tuple[str, GeneratedImage | None]]:
        """(figure, the finished image or None) at every preview."""
        config = self.pipe.config
        longest = config.decoder.max_position_embeddings - 2
        (ids,) = self.pipe.loaded.encode_prompts([chosen.prompt], 1, longest)
        self.programs.use(image_shape(chosen.settings, 1, len(ids)))
        every = max(1, chosen.settings.num_inference_steps // PREVIEWS)
        for at in self.pipe.stream_image(
            chosen.prompt, settings=chosen.settings, seed=chosen.seed, every=every
        ):
            if at.step < at.total:
                yield progress_figure(at.images[0], chosen, at.step, at.total), None
            else:
                finished = GeneratedImage.of(at.images[0], chosen)
                yield generated_figure(finished), finished

    def _use_report_programs(self, chosen: ReportChoices) -> None:
        settings = ReportSettings(
            max_new_tokens=chosen.max_new_tokens, temperature=chosen.temperature
        )
        prompt = chosen.prompt.strip() or self.pipe.config.asked.default
        tokens = context_tokens(self.pipe.loaded, prompt, 1, settings)
        self.programs.use(report_shape(settings, 1, 1, tokens))

    def _kept(self, session: Session, added: list[GeneratedImage | None]) -> tuple[Any, Any]:
        """The session's images and their figures, once the last added one is finished."""
        if added[-1] is None:
            return self.unchanged, self.unchanged
        kept = (*session, *(finished for finished in added if finished is not None))
        kept = kept[-self.limits.session_images :]
        return kept, session_figures(list(kept))

    def _until(self, stop: Stop, steps: Iterator[State]) -> Iterator[State]:
        """The steps until the visitor stops them."""
        stop.pending = True
        try:
            for state in steps:
                if stop.asked:
                    yield (*[self.unchanged] * (len(state) - 1), said("Stopped."))
                    return
                yield state
        finally:
            stop.asked = stop.pending = False


def _told(steps: Iterator[State], blank: State) -> Iterator[State]:
    """The steps; an error ends them with `blank` and a message."""
    try:
        yield from steps
    except UniXError as error:
        yield (*blank, complaint(str(error)))
    except Exception:
        logging.getLogger(__name__).exception("a request failed")
        yield (*blank, complaint(FAILED))


def _progress(finished: GeneratedImage | None, text: str = "Generating …") -> str:
    return said(text if finished is None else "Done. The image is kept under Session.")

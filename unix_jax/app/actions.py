"""Actions of the page's buttons: generators over one pipeline that yield the page's next state.

The last value of every item is a message. Errors become messages too: an input error with its own
text, and any other error as a reference to the server's log.
"""

import dataclasses
import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from unix_jax.app.bundled import Example
from unix_jax.app.choices import (
    ImageChoices,
    Limits,
    ReportChoices,
    Xray,
    image_choices,
    image_count,
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
    several_figures,
    xray_figure,
)
from unix_jax.app.reports import UnreadFile, WrittenReport, sections, table
from unix_jax.errors import ImageError, UniXError
from unix_jax.inference.pipeline import UniXPipeline
from unix_jax.inference.programs import ProgramBudget, image_shape, report_shape
from unix_jax.inference.reports import context_tokens
from unix_jax.inference.settings import ReportSettings

PREVIEWS = 10  # of an unfinished image
NO_XRAY = "The X-ray appears here."
NO_IMAGE = "The image appears here."
FAILED = "An error occurred on the server; see its log."

Session = tuple[GeneratedImage | WrittenReport, ...]
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
    `model` is the model's name.
    """

    pipe: UniXPipeline
    limits: Limits
    unchanged: Any
    programs: ProgramBudget
    model: str = ""

    def begin(self, stop: Stop) -> str:
        """Called before a request joins the queue: clears an earlier stop."""
        stop.asked, stop.pending = False, True
        return said("Waiting for the model …")

    def end(self, stop: Stop) -> Any:
        """Asks the tab's request, running or waiting, to end; its own message comes last."""
        stop.asked = stop.pending
        return self.unchanged if stop.pending else said("Nothing is running.")

    # Reading yields (xray or None, its figure, report, its sections, message).

    def read_upload(self, stop: Stop, data: bytes | None) -> Iterator[State]:
        """Reads an uploaded file."""

        def steps() -> Iterator[State]:
            if data is None:
                raise ImageError("Upload: expected an image file, found none")
            yield self._read(stop, data, "Uploaded X-ray")

        yield from _told(steps(), (None, empty_figure(NO_XRAY), "", ""))

    def read_example(self, stop: Stop, example: Example) -> Iterator[State]:
        """Reads one of the examples."""

        def steps() -> Iterator[State]:
            yield self._read(stop, example.data, f"Example: {example.name}", example.labels)

        yield from _told(steps(), (None, empty_figure(NO_XRAY), "", ""))

    def read_generated(self, stop: Stop, session: Session) -> Iterator[State]:
        """Reads the session's last generated image."""

        def steps() -> Iterator[State]:
            images = [item for item in session if isinstance(item, GeneratedImage)]
            if not images:
                raise ImageError("Generated image: expected one in this session, found none")
            last = images[-1]
            name = f"Generated: {last.choices.prompt} (seed {last.choices.seed})"
            yield self._read(stop, last.png, name)

        yield from _told(steps(), (None, empty_figure(NO_XRAY), "", ""))

    def _read(self, stop: Stop, data: bytes, name: str, labels: tuple[str, ...] = ()) -> State:
        xray = read_xray(data, name, self.pipe.config, self.limits)
        xray = dataclasses.replace(xray, labels=labels)
        return xray, xray_figure(xray), "", "", self.begin(stop)

    # Writing yields (report, its sections, the session, its figures, message).

    def write_report(
        self, stop: Stop, session: Session, xray: Xray | None, *choices: Any
    ) -> Iterator[State]:
        """Writes a report token by token; `choices` are those of `report_choices`."""

        def steps() -> Iterator[State]:
            if xray is None:
                raise ImageError("X-ray: expected an upload or an example first, found none")
            chosen = report_choices(*choices, limits=self.limits)
            same = (self.unchanged, self.unchanged)
            yield "", "", *same, said("Reading the X-ray …")
            for report, complete in self._texts(xray, chosen):
                if complete is None:
                    yield report, "", *same, said("Writing …")
                    continue
                written = WrittenReport(xray, report, complete, chosen, self.model)
                kept = self._kept(session, [written])
                yield report, sections(written), *kept, said("Done.")

        blank = (self.unchanged,) * 4
        yield from _told(self._until(stop, steps()), blank)

    def write_after_reading(
        self, stop: Stop, session: Session, xray: Xray | None, *choices: Any
    ) -> Iterator[State]:
        """Like `write_report`, but silent after an upload that could not be read."""
        if xray is None:
            yield (self.unchanged,) * 5
        else:
            yield from self.write_report(stop, session, xray, *choices)

    def _texts(self, xray: Xray, chosen: ReportChoices) -> Iterator[tuple[str, bool | None]]:
        """(the text so far, None), and at the end (the text, whether the model ended it)."""
        self._use_report_programs(chosen)
        report, ended = "", False
        eos = self.pipe.config.special_tokens.eos
        for step in self.pipe.stream_report(
            [xray.image],
            prompts=chosen.prompt.strip() or None,
            max_new_tokens=chosen.max_new_tokens,
            temperature=chosen.temperature,
            top_p=chosen.top_p,
            seed=chosen.seed,
            return_details=True,
        ):
            report += step.pieces[0]
            ended = ended or step.token_ids[0] == eos
            yield report, None
        yield report, ended

    # Reading several files yields (table, message).

    def read_files(self, stop: Stop, files: Sequence[str] | None, *choices: Any) -> Iterator[State]:
        """Writes the reports of several uploaded files, one after the other.

        Args:
          files: their paths, of which the last part is the visitor's name of the file.
        """

        def steps() -> Iterator[State]:
            most = self.limits.files
            if not 1 <= len(files or ()) <= most:
                raise ImageError(f"Files: expected 1 to {most}, found {len(files or ())}")
            chosen = report_choices(*choices, limits=self.limits)
            rows: list[WrittenReport | UnreadFile] = []
            for i, file in enumerate(files or ()):
                yield table(rows), said(f"Reading file {i + 1} of {len(files or ())} …")
                name = Path(file).name
                try:
                    data = Path(file).read_bytes()
                    xray = read_xray(data, name, self.pipe.config, self.limits)
                except (UniXError, OSError) as error:
                    reason = str(error) if isinstance(error, UniXError) else "it was deleted"
                    rows.append(UnreadFile(name, reason))
                    continue
                for report, complete in self._texts(xray, chosen):
                    if complete is None:
                        # The visitor may stop at every token.
                        yield self.unchanged, self.unchanged
                    else:
                        rows.append(WrittenReport(xray, report, complete, chosen, self.model))
            unread = sum(isinstance(row, UnreadFile) for row in rows)
            failed = f" {unread} could not be read." if unread else ""
            yield table(rows), said(f"Done: {len(rows) - unread} reports.{failed}")

        yield from _told(self._until(stop, steps()), (self.unchanged,))

    # Generating yields (figure or figures, the session's images, their figures, message).

    def generate(
        self, stop: Stop, session: Session, prompt: Any, *choices: Any, count: Any = 1
    ) -> Iterator[State]:
        """Generates `count` images step by step, of consecutive seeds.

        `choices` are those of `image_choices`.
        """

        def steps() -> Iterator[State]:
            first = self._chosen(prompt, *choices)
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
                message = (
                    f"Done in {seconds:.1f} s, {spent:.2f} s per step. Kept under Session."
                    if len(done) == total
                    else f"Generating image {len(done) + 1} of {total} …"
                )
                yield shown, *self._kept(session, done), said(message)

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
            done: list[GeneratedImage | None] = []
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

    def _kept(
        self, session: Session, added: Sequence[GeneratedImage | WrittenReport | None]
    ) -> tuple[Any, Any]:
        """The session's items and their figures, once the last added one is finished."""
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

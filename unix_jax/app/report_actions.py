"""Actions that read X-rays and write reports; see `unix_jax.app.actions`."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from unix_jax.app.actions import Requests, Session, State, Stop, told
from unix_jax.app.bundled import Example
from unix_jax.app.choices import ReportChoices, Xray, read_xray, report_choices
from unix_jax.app.figures import GeneratedImage, empty_figure, said, xray_figure
from unix_jax.app.reports import UnreadFile, WrittenReport, sections, table
from unix_jax.errors import ImageError, UniXError
from unix_jax.inference.pipeline import UniXPipeline
from unix_jax.inference.programs import report_shape
from unix_jax.inference.reports import context_tokens
from unix_jax.inference.settings import ReportSettings

NO_XRAY = "The X-ray appears here."


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportActions(Requests):
    """Reads X-rays with `pipe`; `model` is the model's name in the reports' files."""

    pipe: UniXPipeline
    model: str = ""

    # Reading yields (xray or None, its figure, report, its sections, message).

    def read_upload(self, stop: Stop, data: bytes | None) -> Iterator[State]:
        """Reads an uploaded file."""

        def steps() -> Iterator[State]:
            if data is None:
                raise ImageError("Upload: expected an image file, found none")
            yield self._read(stop, data, "Uploaded X-ray")

        yield from told(steps(), (None, empty_figure(NO_XRAY), "", ""))

    def read_example(self, stop: Stop, example: Example) -> Iterator[State]:
        """Reads one of the examples."""

        def steps() -> Iterator[State]:
            yield self._read(stop, example.data, f"Example: {example.name}", example.labels)

        yield from told(steps(), (None, empty_figure(NO_XRAY), "", ""))

    def read_generated(self, stop: Stop, session: Session) -> Iterator[State]:
        """Reads the session's last generated image."""

        def steps() -> Iterator[State]:
            images = [item for item in session if isinstance(item, GeneratedImage)]
            if not images:
                raise ImageError("Generated image: expected one in this session, found none")
            last = images[-1]
            name = f"Generated: {last.choices.prompt} (seed {last.choices.seed})"
            yield self._read(stop, last.png, name)

        yield from told(steps(), (None, empty_figure(NO_XRAY), "", ""))

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
                kept = self.kept(session, [written])
                yield report, sections(written), *kept, said("Done.")

        blank = (self.unchanged,) * 4
        yield from told(self.until(stop, steps()), blank)

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

        yield from told(self.until(stop, steps()), (self.unchanged,))

    def _use_report_programs(self, chosen: ReportChoices) -> None:
        settings = ReportSettings(
            max_new_tokens=chosen.max_new_tokens, temperature=chosen.temperature
        )
        prompt = chosen.prompt.strip() or self.pipe.config.asked.default
        tokens = context_tokens(self.pipe.loaded, prompt, 1, settings)
        self.programs.use(report_shape(settings, 1, 1, tokens))

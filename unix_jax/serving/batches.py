"""A batch of jobs on the pipeline: padded to a fixed number of rows, stopped when nobody waits.

A report that has ended, or that nobody waits for any more, gives its row to the oldest job that
waits.

Letters: B rows of the batch, M tokens so far.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from unix_jax.inference.image_latents import decode_latents, generate_latents, latent_size
from unix_jax.inference.pipeline import UniXPipeline
from unix_jax.inference.programs import ProgramBudget, image_shape, report_shape
from unix_jax.inference.reports import decode_reports
from unix_jax.inference.settings import ImageSettings, ReportSettings
from unix_jax.preprocessing.transforms import to_gray_pil
from unix_jax.serving.limits import ServeLimits
from unix_jax.serving.metrics import Metrics
from unix_jax.serving.requests import ImageRequest, ReportRequest
from unix_jax.serving.scheduler import Job, Join

# Tokens between two looks at the cancelled jobs, in batches that nobody reads as a stream. Each
# look waits for the device.
STRIDE = 8
_LOOKS = 10  # at the cancelled jobs while images are generated


@dataclasses.dataclass(frozen=True)
class Piece:
    """New text of a streamed report."""

    text: str


@dataclasses.dataclass(frozen=True)
class Report:
    """A finished report; finish_reason is OpenAI's: `stop`, or `length` if it was cut off."""

    text: str
    tokens: int
    finish_reason: str


@dataclasses.dataclass(frozen=True)
class GeneratedImages:
    """The images of a request, one per seed."""

    images: tuple[Image.Image, ...]


class _ReportRow:
    """One job's row: its tokens become text, until it ends."""

    def __init__(self, job: Job, pipe: UniXPipeline) -> None:
        assert isinstance(job.request, ReportRequest)
        self.job, self._most, self._streamed = job, job.request.max_new_tokens, job.request.stream
        self._eos = pipe.config.special_tokens.eos
        self._stream = pipe.loaded.require_tokenizer().stream()
        self._text, self._tokens, self._ended = "", 0, False

    @property
    def streams(self) -> bool:
        return self._streamed and self.waits

    @property
    def waits(self) -> bool:
        return not self._ended and not self.job.cancelled

    def advance(self, tokens: np.ndarray) -> int:
        """Delivers the new ones of the row's tokens [M]; returns their number."""
        if not self.waits:
            return 0
        before, text, reason = self._tokens, "", ""
        for token in tokens[before:].tolist():
            if token == self._eos:
                reason = "stop"
                break
            text += self._stream.push(token)
            self._tokens += 1
            if self._tokens == self._most:
                reason = "length"
                break
        if reason:
            text += self._stream.flush()
            self._ended = True
        self._text += text
        if text and self._streamed:
            self.job.deliver(Piece(text))
        if reason:
            self.job.deliver(Report(self._text, self._tokens, reason))
        return self._tokens - before


@dataclasses.dataclass(frozen=True)
class BatchRunner:
    """Computes batches; called on the scheduler's thread only.

    Attributes:
      pipe: the model.
      limits: batch sizes, and the maximum tokens of a report.
      metrics: counts rows, tokens and images.
      stopping: whether the server is stopping, and batches must end.
      programs: bounds the compiled programs.
    """

    pipe: UniXPipeline
    limits: ServeLimits
    metrics: Metrics
    stopping: Callable[[], bool]
    programs: ProgramBudget

    def __call__(self, batch: Sequence[Job], join: Join) -> None:
        """Computes jobs of equal keys, and delivers to each.

        A report that ends or is cancelled gives its row to the next job that `join` returns.

        Raises:
          NonFiniteError: the model computed NaN or infinite numbers.
        """
        for job in batch:
            self.metrics.began(job.arrived)
        if isinstance(batch[0].request, ReportRequest):
            batch = self._reports(batch, join)
        else:
            self._images(batch)
        for job in batch:
            if job.cancelled:
                self.metrics.cancelled()

    def _reports(self, batch: Sequence[Job], join: Join) -> list[Job]:
        """Returns the jobs of the batch and those that joined it."""
        requests: list[Any] = [job.request for job in batch]
        size = self.limits.bucket(len(batch))
        self.metrics.batch("report", len(batch), size)
        # Space for the same number of tokens in all rows: each number of 64 has its own programs.
        most = self.limits.report_tokens(self.pipe.config)
        of_all = ReportSettings(
            max_new_tokens=most,
            temperature=max(request.temperature for request in requests),
            top_p=min(request.top_p for request in requests),
        )
        tokens = max(request.context_tokens for request in requests)
        shape = report_shape(of_all, size, len(requests[0].images), tokens)
        self.programs.use(shape)
        rows: list[_ReportRow] = []

        def decoded(job: Job) -> Any:
            request: Any = job.request
            rows.append(_ReportRow(job, self.pipe))
            return self.pipe.report_request(
                list(request.images),
                prompt=request.prompt,
                seed=request.seed,
                max_new_tokens=request.max_new_tokens,
                temperature=request.temperature,
                top_p=request.top_p,
            )

        def fits(request: Any, waiting: int) -> bool:
            """Whether the batch has the right size for all, and its programs compute this one."""
            active = sum(row.waits for row in rows)
            wanted = min(active + waiting, self.limits.largest_batch)
            if self.limits.bucket(wanted) != size:
                return False
            own = ReportSettings(
                max_new_tokens=most, temperature=request.temperature, top_p=request.top_p
            )
            context = max(tokens, request.context_tokens)
            return report_shape(own, size, len(request.images), context) == shape

        def waiting() -> Iterator[Any]:
            yield from map(decoded, batch)
            while True:
                job = join(fits)
                if job is not None:
                    self.metrics.joined(job.arrived)
                yield None if job is None else decoded(job)

        for state in decode_reports(
            self.pipe.loaded,
            waiting(),
            size,
            stride=lambda: 1 if any(row.streams for row in rows) else STRIDE,
            new_tokens=most,
            wanted=lambda index: rows[index].waits,
        ):
            held = [None if item is None else rows[item[0]] for item in state.requests]
            self.metrics.tokens(
                sum(
                    row.advance(ids[:count])
                    for row, ids, count in zip(held, state.tokens, state.counts, strict=True)
                    if row is not None
                )
            )
            if self.stopping() or not any(row.waits for row in rows):
                break
        return [row.job for row in rows]

    def _images(self, batch: Sequence[Job]) -> None:
        requests: list[ImageRequest] = [job.request for job in batch]  # type: ignore[misc]
        settings: ImageSettings = requests[0].settings
        # The pipeline computes equal rows once: the batch is padded with different ones.
        rows = list(
            dict.fromkeys((request.prompt, seed) for request in requests for seed in request.seeds)
        )
        size = self.limits.bucket(len(rows))
        self.metrics.batch("image", len(rows), size)
        filled = rows + _other_rows(rows, size - len(rows))
        tokens = max(request.prompt_tokens for request in requests)
        self.programs.use(image_shape(settings, size, tokens))
        config = self.pipe.config
        _, states = generate_latents(
            self.pipe.loaded,
            [prompt for prompt, _ in filled],
            settings,
            None,
            None,
            [seed for _, seed in filled],
            max(1, settings.num_inference_steps // _LOOKS),
        )
        for at in states:
            latents = at.latents
            if self.stopping() or all(job.cancelled for job in batch):
                return
        pixels: dict[int, Image.Image] = {}
        for job, request in zip(batch, requests, strict=True):
            if job.cancelled:
                continue
            indices = [rows.index((request.prompt, seed)) for seed in request.seeds]
            for i in indices:
                if i not in pixels:
                    decoded = decode_latents(
                        self.pipe.loaded, latents[i : i + 1], latent_size(config, settings)
                    )
                    pixels[i] = to_gray_pil(decoded[0])
            self.metrics.images(len(indices))
            job.deliver(GeneratedImages(tuple(pixels[i] for i in indices)))


def _other_rows(rows: Sequence[tuple[str, int]], count: int) -> list[tuple[str, int]]:
    """`count` rows of the last row's text that differ from all rows."""
    prompt, taken = rows[-1][0], set(rows)
    free = ((prompt, seed) for seed in range(2**32) if (prompt, seed) not in taken)
    return [next(free) for _ in range(count)]

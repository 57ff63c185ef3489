"""The command `unix-jax report`: reports from image files."""

import dataclasses
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from unix_jax.commands.model import Drafting, Model, Quantized
from unix_jax.commands.progress import advancing
from unix_jax.errors import UniXError
from unix_jax.storage.arguments import AnyPathText, require_least

if TYPE_CHECKING:
    from PIL import Image


@dataclasses.dataclass
class Report(Drafting, Quantized, Model):
    """Generate a report for each chest X-ray, or for each study of several (PNG, JPEG, DICOM, ...).

    For example:
        unix-jax report xray.png
        unix-jax report frontal.dcm lateral.dcm --images-per-report 2 --checkpoint CHECKPOINT
        unix-jax report xrays/*.png --checkpoint CHECKPOINT --json > reports.json
    """

    images: Annotated[
        list[AnyPathText], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE ...")
    ] = dataclasses.field(default_factory=list)
    """Image files."""
    images_per_report: int = 1
    """Number of consecutive image files per report, for example 2 for a frontal and a lateral view.
    The model must have been trained on such samples."""
    batch_size: int = 16
    """Number of reports generated at a time. When a report has ended, the next one takes its row.
    """
    prompt: str | None = None
    """Instruction to the model. The default is the model's own for FINDINGS and IMPRESSION."""
    max_new_tokens: int = 500
    """Maximum number of tokens per report."""
    temperature: float = 0.0
    """Sampling temperature; 0 selects greedy decoding."""
    top_p: float = 1.0
    """Probability mass of the nucleus from which tokens are sampled, above 0 and at most 1."""
    seed: int = 0
    """Random seed of the sampling."""
    frame: int | None = None
    """Frame to read from each file, counted from 1. Files with several frames require it."""
    resize: Literal["letterbox", "squash"] = "letterbox"
    """How an image is made square: letterbox keeps its aspect ratio, as in the original's
    evaluation; squash does not, as in the original's web demo."""
    json: bool = False
    """Print a JSON list of {image, report, warning, finish_reason} instead of text. warning is
    null, or states that the image shows almost nothing. finish_reason is eos if the model ended
    the report, and length if it was cut off at --max-new-tokens. With several images per report,
    image and warning are lists."""

    def run(self) -> None:
        from unix_jax.preprocessing.images import check_image

        require_least(self, batch_size=1)
        self.check_draft()
        if not self.images:
            raise UniXError("IMAGE: expected at least one image file, found none")
        each = self.images_per_report
        if each < 1 or len(self.images) % each:
            raise UniXError(
                "--images-per-report: expected at least 1 and a divisor of the number of image "
                f"files, which is {len(self.images)}, found {each}"
            )
        # Before the model is loaded, so that a wrong path is reported immediately. Each image is
        # decoded with its batch.
        for path in self.images:
            check_image(path, frame=self.frame)
        reports = [self.images[i : i + each] for i in range(0, len(self.images), each)]
        pipe = self.load(ngrams=self.ngrams, autoencoder=False, quantization=self.quantization)
        if len(reports) == 1 and not self.json:
            _, images = self._read(reports)
            for (piece,) in pipe.stream_report(
                images, prompts=self.prompt, draft=self.draft, **self._settings()
            ):
                print(piece, end="", flush=True)
            print()
            return
        rows = []
        with advancing("report", len(reports)) as advance:
            for row in self._rows(pipe, reports):
                advance()
                if not self.json:
                    print(f"== {', '.join(row['image'])}\n{row['report']}\n", flush=True)
                    continue
                if each == 1:
                    row |= {"image": row["image"][0], "warning": row["warning"][0]}
                rows.append(row)
        if self.json:
            print(json.dumps(rows, ensure_ascii=False, indent=1))

    def _settings(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "max_new_tokens": self.max_new_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "resize": self.resize,
        }

    def _rows(self, pipe: Any, reports: list[list[str]]) -> Iterator[dict[str, Any]]:
        """The values to print for each report, in the order of the files."""
        from unix_jax.preprocessing.gray_levels import gray_level_problem

        known: list[dict[str, str | None]] = []

        def requests() -> Iterator[Any]:
            for files in reports:
                images, row = self._read([files])
                found = {path: gray_level_problem(image) or None for path, image in images.items()}
                known.append(found)
                yield pipe.report_request(row[0], prompt=self.prompt, **self._settings())

        ended: dict[int, Any] = {}
        following = 0
        for index, result in pipe.iterate_reports(
            requests(), batch_size=min(self.batch_size, len(reports)), draft=self.draft
        ):
            ended[index] = result
            while following in ended:
                files, result = reports[following], ended.pop(following)
                yield {
                    "image": files,
                    "report": result.text,
                    "warning": [known[following][path] for path in files],
                    "finish_reason": result.finish_reason,
                }
                following += 1

    def _read(
        self, reports: list[list[str]]
    ) -> tuple[dict[str, "Image.Image"], list[list["Image.Image"]]]:
        """(images by path, images of each report). A file that occurs twice is read once."""
        from unix_jax.preprocessing.images import load_levels

        paths = dict.fromkeys(path for files in reports for path in files)
        known = {path: load_levels(path, frame=self.frame) for path in paths}
        return known, [[known[path] for path in files] for files in reports]

"""What a run reports: `metrics.jsonl`, TensorBoard, Weights & Biases.

`DIR/metrics.jsonl` has one object for each logged step, `DIR/validation.jsonl` one for each
validation, `DIR/evaluation.jsonl` one for each evaluation of generated reports or images. When a
run resumes, lines beyond the restored step are removed, and the run writes them anew: after any
crash the files equal those of the uninterrupted run to the bit, except `TIMING_FIELDS`.
"""

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np

from unix_jax.errors import UniXError
from unix_jax.storage.files import atomic_write
from unix_jax.training.config import TrainConfig
from unix_jax.training.skipped import COUNTERS

FIELDS = (
    "step",
    "loss",
    "ce",
    "mse",
    "repa",
    "grad_norm",
    "learning_rate",
    "tokens_per_second",
    "mfu",
    "padding_fraction",
    "epoch",
    *COUNTERS,
)
TIMING_FIELDS = ("tokens_per_second", "mfu")
METRICS_FILE = "metrics.jsonl"
VALIDATION_FILE = "validation.jsonl"
EVALUATION_FILE = "evaluation.jsonl"


class MetricsError(UniXError):
    """Metrics that cannot be written, or a reporter that is not installed."""


class Reporter(Protocol):
    """Something that shows numbers and pictures of a step."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None: ...

    def image(self, step: int, name: str, pixels: np.ndarray) -> None: ...

    def text(self, step: int, name: str, text: str) -> None: ...

    def close(self) -> None: ...


class JsonLines:
    """A file of one JSON object a line, each with a `step`, in the order of steps."""

    def __init__(self, path: Path, restored_step: int) -> None:
        """Opens `path` for appending; lines after `restored_step` and incomplete lines are removed.

        Raises:
          MetricsError: the file cannot be written.
        """
        self.path = path
        try:
            _drop_lines_beyond(path, restored_step)
            self._file = open(path, "ab", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise self._failed(error) from error

    def write(self, values: Mapping[str, Any]) -> None:
        """Appends one line.

        Raises:
          MetricsError: it cannot be written.
        """
        line = json.dumps({k: _number(v) for k, v in values.items()}) + "\n"
        try:
            written = self._file.write(line.encode())
            if written != len(line.encode()):
                raise OSError(28, os.strerror(28))
        except OSError as error:
            raise self._failed(error) from error

    def close(self) -> None:
        self._file.close()

    def _failed(self, error: OSError) -> MetricsError:
        return MetricsError(f"{self.path}: cannot be written: {error.strerror or error}")


def _number(value: Any) -> Any:
    """A Python number; values that are not finite become null, since JSON has none."""
    if isinstance(value, np.generic | np.ndarray):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _drop_lines_beyond(path: Path, step: int) -> None:
    if not path.exists():
        return
    content = path.read_bytes()
    kept = b"".join(line for line in content.splitlines(keepends=True) if _is_kept(line, step))
    if kept != content:
        with atomic_write(path) as temporary:
            temporary.write_bytes(kept)


def _is_kept(line: bytes, step: int) -> bool:
    try:
        values = json.loads(line)
    except ValueError:
        return False
    found = values.get("step") if isinstance(values, dict) else None
    return line.endswith(b"\n") and isinstance(found, int) and found <= step


class TensorBoard:
    """Event files for TensorBoard, written by tensorboardX."""

    def __init__(self, directory: Path, restored_step: int) -> None:
        """Raises a MetricsError if tensorboardX is absent or `directory` cannot be written."""
        try:
            from tensorboardX import SummaryWriter
        except ModuleNotFoundError as error:
            raise MetricsError(
                "tensorboard: expected the package tensorboardX; `pip install tensorboardX`, or "
                "turn it off with --logging.no-tensorboard"
            ) from error
        # TensorBoard hides what an interrupted run wrote from this step on.
        purge = restored_step + 1 if restored_step else None
        try:
            self._writer = SummaryWriter(str(directory), purge_step=purge)
        except OSError as error:
            raise MetricsError(f"{directory}: cannot be written: {error.strerror}") from error

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def image(self, step: int, name: str, pixels: np.ndarray) -> None:
        self._writer.add_image(name, pixels, step, dataformats="HWC")

    def text(self, step: int, name: str, text: str) -> None:
        self._writer.add_text(name, text, step)

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases that continues after a restart."""

    def __init__(self, directory: Path, project: str, config: Mapping[str, Any]) -> None:
        """Raises a MetricsError if wandb is absent or does not start."""
        try:
            import wandb
        except ModuleNotFoundError as error:
            raise MetricsError(
                f"wandb_project {project!r}: expected the package wandb; `pip install wandb`"
            ) from error
        self._wandb = wandb
        identity = directory / "wandb_run_id"
        if not identity.exists():
            identity.write_text(wandb.util.generate_id())
        try:
            self._run = wandb.init(
                project=project,
                dir=str(directory),
                id=identity.read_text().strip(),
                resume="allow",
                config=dict(config),
            )
        except wandb.errors.Error as error:
            raise MetricsError(f"wandb_project {project!r}: {error}") from error
        # Steps may repeat after a restart, which `step` as a plain metric allows.
        self._run.define_metric("*", step_metric="step")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({**values, "step": step})

    def image(self, step: int, name: str, pixels: np.ndarray) -> None:
        self._run.log({name: self._wandb.Image(pixels), "step": step})

    def text(self, step: int, name: str, text: str) -> None:
        self._run.log({name: self._wandb.Html(f"<pre>{text}</pre>"), "step": step})

    def close(self) -> None:
        self._run.finish()


class Metrics:
    """All reports of a run; in processes other than the first, nothing is written."""

    def __init__(
        self, directory: Path, restored_step: int, reporters: Iterable[Reporter], primary: bool
    ) -> None:
        self._files = (
            {name: JsonLines(directory / name, restored_step) for name in
             (METRICS_FILE, VALIDATION_FILE, EVALUATION_FILE)}
            if primary
            else {}
        )  # fmt: skip
        self._reporters = list(reporters) if primary else []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        for file in self._files.values():
            file.close()
        for reporter in self._reporters:
            reporter.close()

    def training(self, values: Mapping[str, Any]) -> None:
        """One line of `metrics.jsonl`: `FIELDS`, null where absent, then any others."""
        line = {name: values.get(name) for name in FIELDS} | dict(values)
        self._write(METRICS_FILE, line, "")

    def validation(self, values: Mapping[str, Any]) -> None:
        """One line of `validation.jsonl`; `values` has `step`."""
        self._write(VALIDATION_FILE, values, "validation/")

    def evaluation(self, values: Mapping[str, Any]) -> None:
        """One line of `evaluation.jsonl`; `values` has `step`."""
        self._write(EVALUATION_FILE, values, "evaluation/")

    def _write(self, file: str, values: Mapping[str, Any], prefix: str) -> None:
        if file in self._files:
            self._files[file].write(values)
        shown = {
            prefix + name: float(value)
            for name, value in values.items()
            if value is not None and name != "step"
        }
        for reporter in self._reporters:
            reporter.scalars(int(values["step"]), shown)

    def image(self, step: int, name: str, pixels: np.ndarray) -> None:
        """`pixels` [H, W, 3], uint8."""
        for reporter in self._reporters:
            reporter.image(step, name, pixels)

    def text(self, step: int, name: str, text: str) -> None:
        for reporter in self._reporters:
            reporter.text(step, name, text)


def make_reporters(config: TrainConfig, directory: Path, restored_step: int) -> list[Reporter]:
    """What a run was asked to report to, besides its files.

    Raises:
      MetricsError: one that is not installed or does not start.
    """
    reporters: list[Reporter] = []
    if config.logging.tensorboard:
        reporters.append(TensorBoard(directory / "tensorboard", restored_step))
    if config.logging.wandb_project is not None:
        reporters.append(
            WeightsAndBiases(directory, config.logging.wandb_project, config.to_dict())
        )
    return reporters


class Window:
    """Means over the steps since the last logged one.

    Its sums travel with the checkpoint, so that a run which resumes between two logged steps logs
    the same numbers.
    """

    def __init__(self, state: Mapping[str, Any] | None = None) -> None:
        self._sums: dict[str, tuple[float, int]] = {
            name: (float(total), int(count)) for name, (total, count) in (state or {}).items()
        }

    def add(self, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            total, count = self._sums.get(name, (0.0, 0))
            self._sums[name] = (total + float(value), count + 1)

    def means(self) -> dict[str, float]:
        """The means, each over the steps that had a value, after which the window is empty."""
        means = {name: total / count for name, (total, count) in self._sums.items()}
        self._sums = {}
        return means

    def get_state(self) -> dict[str, Any]:
        """JSON from which the constructor builds an equal window."""
        return {name: list(sums) for name, sums in self._sums.items()}

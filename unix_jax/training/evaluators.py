"""Metrics of `evaluation` on what a model in training generates for held-out records."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from unix_jax.data.mixture import Task
from unix_jax.data.records import (
    Record,
    RecordSource,
    captions_of,
    instructions_for,
    question_images,
    record_image,
    report_text,
)
from unix_jax.errors import DataError
from unix_jax.evaluation.chexbert import CheXbert
from unix_jax.evaluation.clinical import clinical_f1
from unix_jax.evaluation.features import RadDino
from unix_jax.evaluation.image import frechet_distance, kernel_distance
from unix_jax.evaluation.text import text_scores
from unix_jax.preprocessing.transforms import pad_to_fit
from unix_jax.training.config import EVALUATIONS, TrainConfig
from unix_jax.training.feed import shown_records

# Number of reports or images per generated batch.
_BATCH = 8


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """name: of its metrics, `reports` or `images`. every: steps between two evaluations.
    scores: pipeline with the weights of a step -> metrics by name, without their `name`."""

    name: str
    every: int
    scores: Callable[[Any], Mapping[str, float]]

    def named_scores(self, pipe: Any) -> dict[str, float]:
        """The metrics, each with the name of the evaluator before it."""
        return {f"{self.name}/{name}": float(x) for name, x in self.scores(pipe).items()}


def make_evaluators(config: TrainConfig, held_out: RecordSource | None) -> list[Evaluator]:
    """The evaluators that a run asks for, each with its records and its own models.

    Raises:
      DataError: no held-out record to evaluate on.
      UniXError: a model or a package that is needed is absent.
    """
    made: list[Evaluator] = []
    tasks: dict[str, Task] = {"reports": "understanding", "images": "generation"}
    for name in EVALUATIONS:
        settings = getattr(config.evals, name)
        if not settings.every:
            continue
        assert held_out is not None
        records = shown_records(held_out, config, settings.count).get(tasks[name], [])
        if len(records) < 2:
            raise DataError(
                f"evals.{name}: expected at least 2 records of the split "
                f"{config.validation.split!r} with an image and a text, found {len(records)}"
            )
        make = _reports if name == "reports" else _images
        made.append(Evaluator(name, settings.every, make(config, records)))
    return made


def _reports(config: TrainConfig, records: Sequence[Record]) -> Callable[[Any], dict[str, float]]:
    """BLEU and ROUGE-L of greedy reports, and the F1 of their findings where CheXbert is given."""
    settings = config.evals.reports
    references = [report_text(record) for record in records]
    text_scores(
        references[:1], references[:1]
    )  # Raises an error at the start if a package is missing.
    chexbert = None if settings.chexbert is None else CheXbert.from_pretrained(settings.chexbert)
    true_labels = None if chexbert is None else chexbert.labels(references)

    def scores(pipe: Any) -> dict[str, float]:
        reports: list[str] = []
        for start in range(0, len(records), _BATCH):
            some = records[start : start + _BATCH]
            reports += pipe.generate_report(
                [question_images(record) for record in some],
                prompts=[instructions_for(record, pipe.config.asked)[0] for record in some],
                max_new_tokens=settings.max_new_tokens,
            )
        found = {k: float(np.mean(v)) for k, v in text_scores(reports, references).items()}
        if chexbert is not None:
            found |= clinical_f1(true_labels, chexbert.labels(reports))  # type: ignore[arg-type]
        return found | {"count": len(records)}

    return scores


def _images(config: TrainConfig, records: Sequence[Record]) -> Callable[[Any], dict[str, float]]:
    """Fréchet and kernel distance of RAD-DINO's features of generated and of real images."""
    settings, data = config.evals.images, config.data
    prompts = [captions_of(record)[0] for record in records]
    encoder = RadDino.from_pretrained(str(settings.rad_dino))
    shape = data.vae_height, data.vae_width, data.vae_padding
    real = encoder.features(pad_to_fit(record_image(record), *shape) for record in records)

    def scores(pipe: Any) -> dict[str, float]:
        images: list[Any] = []
        for start in range(0, len(prompts), _BATCH):
            some = prompts[start : start + _BATCH]
            images += pipe.generate_image(
                some,
                height=data.vae_height,
                width=data.vae_width,
                num_inference_steps=settings.num_inference_steps,
                seed=list(range(start, start + len(some))),
            )
        fake = encoder.features(images)
        return {
            "FD": frechet_distance(real, fake),
            "KD": kernel_distance(real, fake),
            "count": len(records),
        }

    return scores

"""How long a run is, in steps, samples and epochs: counted by planning its rows.

How many samples share a row is only known once they are packed. So the first rows of a run are
planned, which needs texts and no images, before anything is trained.
"""

import dataclasses
import logging

from unix_jax.config import UniXConfig
from unix_jax.data.packing import Planner
from unix_jax.data.records import RecordSource
from unix_jax.data.samples import record_samples
from unix_jax.data.slots import slots_of
from unix_jax.preprocessing.text import Tokenizer
from unix_jax.training.config import TrainConfig
from unix_jax.training.feed import training_data

# The number of samples that are planned to find the number of steps; it is extrapolated beyond.
_COUNTED = 20_000
# If the number of steps is given, only the rates are needed.
_SAMPLED = 500


@dataclasses.dataclass(frozen=True)
class Length:
    """Of a whole run. exact: all of its rows were planned; else the rates of the first ones hold.

    epochs: of all parts of a mixture together.
    """

    steps: int
    samples: int
    epochs: float
    exact: bool

    def __str__(self) -> str:
        about = "" if self.exact else "about "
        text = f"{self.steps:,} steps, {about}{self.samples:,} samples, {about}{self.epochs:.3g}"
        return f"{text} epochs"


def run_length(
    config: TrainConfig, records: RecordSource, tokenizer: Tokenizer, model_config: UniXConfig
) -> Length:
    """The length of a run, as `total_steps`, `total_epochs` or `total_samples` says.

    Raises:
      DataError: no sample of the source can be used.
    """
    data = training_data(config)
    log = logging.getLogger(Planner.__module__)
    before, log.disabled = log.disabled, True
    try:
        samples = record_samples(records, tokenizer, model_config, data)
        planner = Planner(samples, data, slots_of(model_config, data))
        return _count(config, planner)
    finally:
        # The loader plans the same rows and reports any error in them.
        log.disabled = before


def _count(config: TrainConfig, planner: Planner) -> Length:
    samples, limit = 0, _SAMPLED if config.total_steps is not None else _COUNTED
    while True:
        reached = planner.steps == config.total_steps or (
            config.total_samples is not None and samples >= config.total_samples
        )
        rows = None if reached else planner.next_step()
        if rows is None:
            return Length(planner.steps, samples, planner.epoch, exact=True)
        samples += sum(len(row.indices) for row in rows)
        if samples >= limit and planner.steps > 1:
            break
    per_step, per_epoch = samples / planner.steps, samples / planner.epoch
    steps = config.total_steps
    if steps is None:
        wanted = config.total_samples or config.total_epochs * per_epoch  # type: ignore[operator]
        steps = -(-int(wanted) // max(int(per_step), 1))
    whole = round(steps * per_step)
    return Length(steps, whole, whole / per_epoch, exact=False)

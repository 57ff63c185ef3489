"""Mixtures of sources: parsing, records, and the order of the parts.

    0.7*mimic:DIR?views=PA,AP + 0.3*csv:FILE
    0.5*understanding:mimic:DIR + 0.5*generation:manifest:DIR

Parts are joined by a plus sign between spaces. A part is `[WEIGHT*][TASK:]KIND:PATH?OPTION=...`.
Its weight is its share of the samples after division by the sum of all weights, and its task is
what its records become. Without weights all parts have the same share.
"""

import bisect
import dataclasses
import itertools
import math
import re
from collections.abc import Iterator, Sequence
from typing import Literal, get_args

import numpy as np

from unix_jax.data.records import Record, RecordSource, checked_index
from unix_jax.data.sources import KINDS, open_source, parse_spec
from unix_jax.errors import ConfigError, DataError, UniXError

Task = Literal["understanding", "generation", "edit"]
TASKS: tuple[Task, ...] = get_args(Task)

# A plus sign separates parts only if a part follows, since a path may contain " + ".
# A glob pattern has its asterisks after the kind's colon.
_WEIGHT = r"(?P<weight>[^\s*:]*)\s*\*\s*"
_JOINT = re.compile(rf"\s+\+\s+(?=(?:{_WEIGHT})?\w+:)".replace("?P<weight>", "?:"))
_WEIGHTED = re.compile(rf"{_WEIGHT}(?P<rest>.*)", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Part:
    """A source in a mixture. `weight` is its share of the samples, above 0 and at most 1."""

    weight: float
    task: Task
    spec: str

    def __str__(self) -> str:
        return f"{self.weight:.4g}*{self.task}:{self.spec}"


def parse_mixture(text: str, task: Task, name: str = "data.source") -> tuple[Part, ...]:
    """The parts of `text`; a text without a plus sign is one part, whose spec is not parsed.

    Args:
      text: see the module.
      task: the task of parts without one.
      name: of the setting, for errors.

    Raises:
      ConfigError: another form; it names the part.
    """
    texts = _JOINT.split(text.strip())
    found = [
        _parsed(part, task, f"{name}: part {number} of {len(texts)} ({part})")
        for number, part in enumerate(texts, 1)
    ]
    if len(found) == 1:
        weight, task, spec = found[0]
        if weight is not None:
            raise ConfigError(
                f"{name}: expected at least two parts with weights, joined by a plus sign "
                f"between spaces as in 0.7*KIND:PATH + 0.3*KIND:PATH, found one: {text!r}"
            )
        return (Part(1.0, task, spec),)
    for number, ((weight, _, spec), part) in enumerate(zip(found, texts, strict=True), 1):
        where = f"{name}: part {number} of {len(found)} ({part})"
        if (weight is None) != (found[0][0] is None):
            raise ConfigError(
                f"{where}: expected {'a weight' if weight is None else 'no weight'}, as in part 1: "
                "either all parts have one or none"
            )
        try:
            parse_spec(spec)
        except UniXError as error:
            raise ConfigError(f"{where}: {error}") from None
    weights = [1.0 if weight is None else weight for weight, _, _ in found]
    return tuple(
        Part(weight / math.fsum(weights), part_task, spec)
        for weight, (_, part_task, spec) in zip(weights, found, strict=True)
    )


def _parsed(text: str, task: Task, where: str) -> tuple[float | None, Task, str]:
    """(weight, task, spec) of one part."""
    weight = None
    spec = text.strip()
    weighted = _WEIGHTED.fullmatch(spec)
    if weighted is not None:
        spec = weighted["rest"]
        try:
            weight = float(weighted["weight"])
        except ValueError:
            weight = math.nan
        if not (math.isfinite(weight) and weight > 0):
            raise ConfigError(
                f"{where}: weight: expected a number above 0, found {weighted['weight']!r}"
            )
    name, colon, rest = spec.partition(":")
    for known in TASKS:
        if colon and name == known:
            return weight, known, rest
    if colon and name not in KINDS and rest.partition(":")[0] in KINDS:
        raise ConfigError(f"{where}: expected a task {' or '.join(TASKS)}, found {name!r}")
    return weight, task, spec


def part_seed(seed: int, number: int) -> int:
    """The seed of part `number`, from 0, of a mixture; the first part has the run's own seed.

    Therefore two parts over the same file have different orders and random choices.
    """
    if number == 0:
        return seed
    return int(np.random.SeedSequence((seed, number), spawn_key=(2,)).generate_state(1)[0])


def due(taken: Sequence[int], weights: Sequence[float], active: Sequence[bool]) -> int | None:
    """The part that the next sample comes from, None if none is active.

    This is the part with the smallest (samples taken + 1/2) / weight, and the first one of several.
    After n samples each active part has its share of them to within a sample or two, even if other
    parts have ended. (Sainte-Laguë's method.)
    """
    known = [number for number, is_active in enumerate(active) if is_active]
    return min(known, key=lambda i: (taken[i] + 0.5) / weights[i], default=None)


class MixedRecords:
    """The records of all parts, one after the other, with the parts and their own sources."""

    def __init__(self, parts: Sequence[Part], sources: Sequence[RecordSource]) -> None:
        self.parts, self.sources = tuple(parts), tuple(sources)
        self._ends = list(itertools.accumulate(len(source) for source in sources))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Record:
        part, inner = located(self._ends, checked_index(index, len(self)))
        return self.sources[part][inner]


def located(ends: Sequence[int], index: int) -> tuple[int, int]:
    """(part, index in it) of an index into all parts, the sums of whose lengths are `ends`."""
    part = bisect.bisect_right(ends, index)
    return part, index - (ends[part - 1] if part else 0)


def open_mixture(text: str, split: str | None, task: Task) -> RecordSource:
    """The source that `text` names: that of its only part, or `MixedRecords`.

    Raises:
      ConfigError: `text` has another form.
      DataError: a part that cannot be opened; it is named.
    """
    parts = parse_mixture(text, task)
    if len(parts) == 1:
        return open_source(parts[0].spec, split)
    opened: dict[str, RecordSource] = {}
    for number, part in enumerate(parts, 1):
        try:
            if part.spec not in opened:
                opened[part.spec] = open_source(part.spec, split)
        except DataError as error:
            where = f"data.source: part {number} of {len(parts)} ({part.spec})"
            raise DataError(f"{where}: {error}") from error
    return MixedRecords(parts, [opened[part.spec] for part in parts])


def source_parts(
    records: RecordSource, text: str, task: Task
) -> Iterator[tuple[Part, RecordSource]]:
    """Each part of what `open_mixture` opened for `text`, with its own source."""
    sources = records.sources if isinstance(records, MixedRecords) else (records,)
    return zip(parse_mixture(text, task), sources, strict=True)

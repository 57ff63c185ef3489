"""Which samples share a row: planned on lengths, globally, from a state that is a little JSON.

A *stream* is the concatenation of epochs, each a permutation of the samples. Stream index s is
place s % N of epoch s // N. Samples are taken from it in order and put into the first open row
that holds them; a row is closed when it is full, or when it is the fullest of too many. Every
process plans all rows of a step and makes its own share, so the plan depends neither on
the number of processes nor on what images contain.
"""

import logging
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from unix_jax.data.broken import check_broken, is_logged
from unix_jax.data.config import DataConfig
from unix_jax.data.samples import Cost, SampleSource, Skip
from unix_jax.errors import DataError

_LOG = logging.getLogger(__name__)
_EMPTY = Cost(0, 0, 0)
_MAX_KEPT = 10
SKIP_REASONS = ("too_long", "no_text", "no_image", "broken")


class PlannedRow(NamedTuple):
    """Stream indices of a row's samples, and what they take of it."""

    indices: tuple[int, ...] = ()
    cost: Cost = _EMPTY


def permutation(length: int, seed: int, epoch: int) -> np.ndarray:
    """The order of one epoch.

    A sort of raw random bits, since numpy keeps those the same in all its versions. (grain's index
    shuffle needs no table, but takes a millisecond an index on small sources.)
    """
    bits = np.random.Philox(np.random.SeedSequence((seed, epoch), spawn_key=(1,)))
    return np.argsort(bits.random_raw(length), kind="stable")


class Planner:
    """An endless (or `data.epochs` long) sequence of steps, each of `data.rows` planned rows."""

    def __init__(self, samples: SampleSource, data: DataConfig) -> None:
        """Raises DataError when there are no samples."""
        self._samples = samples
        self._data = data
        self._length = len(samples)
        if not self._length:
            raise DataError(f"data: expected samples in {_name(data)}, found none")
        self._capacity = Cost(data.und_tokens, data.vit_images, data.vae_images)
        self._orders: dict[int, np.ndarray] = {}
        self._end = None if data.epochs is None else data.epochs * self._length
        self._position = 0
        self._open: list[PlannedRow] = []
        self._steps = 0
        self._digest = 0
        self._skipped = dict.fromkeys(SKIP_REASONS, 0)
        self._first_skipped: dict[str, str] = {}
        self._broken_details: list[str] = []

    @property
    def first_skipped(self) -> dict[str, str]:
        """The first sample that this planner skipped, by reason: which, and why."""
        return dict(self._first_skipped)

    @property
    def skipped(self) -> dict[str, int]:
        """How many samples were skipped so far, by reason."""
        return dict(self._skipped)

    @property
    def digest(self) -> int:
        """A checksum of all rows so far: processes whose digests differ planned differently."""
        return self._digest

    @property
    def steps(self) -> int:
        """Steps planned so far."""
        return self._steps

    @property
    def epoch(self) -> float:
        """Epochs taken from the stream so far, with fraction."""
        return self._position / self._length

    def locate(self, stream_index: int) -> tuple[int, int]:
        """(index of the sample, epoch) of a place in the stream; safe to call from threads."""
        epoch, place = divmod(stream_index, self._length)
        if not self._data.shuffle:
            return place, epoch
        order = self._orders.get(epoch)
        if order is None:
            order = permutation(self._length, self._data.seed, epoch)
            # Rows that wait reach back into earlier epochs, but hardly ever beyond the last one.
            kept = {e: o for e, o in self._orders.items() if e >= epoch - 1}
            self._orders = kept | {epoch: order}
        return int(order[place]), epoch

    def next_step(self) -> list[PlannedRow] | None:
        """The rows of the next step; the last step is filled up with empty ones; then None.

        Raises:
          DataError: no sample of a whole epoch can be used, or too many records are broken.
        """
        rows: list[PlannedRow] = []
        while len(rows) < self._data.rows and (row := self._next_row()) is not None:
            rows.append(row)
        if not rows:
            return None
        rows += [PlannedRow()] * (self._data.rows - len(rows))
        for row in rows:
            self._digest = zlib.crc32(np.array((*row.indices, -1), "<i8").tobytes(), self._digest)
        self._steps += 1
        return rows

    def state(self) -> dict[str, Any]:
        """JSON, independent of the number of processes."""
        return {
            "plan": self._signature(),
            "steps": self._steps,
            "position": self._position,
            "open_rows": [list(row.indices) for row in self._open],
            "skipped": dict(self._skipped),
            "digest": self._digest,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on where `state` was taken.

        Raises:
          DataError: it is no such state, or one of another plan.
        """
        try:
            plan, steps, position, digest = (
                state[name] for name in ("plan", "steps", "position", "digest")
            )
            open_rows = [tuple(int(i) for i in row) for row in state["open_rows"]]
            skipped = {reason: int(state["skipped"][reason]) for reason in SKIP_REASONS}
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"data state: expected the state of a loader, {error!r}") from None
        expected = self._signature()
        if plan != expected:
            before = plan if isinstance(plan, Mapping) else {}
            differing = "; ".join(
                f"data.{name}: expected {before.get(name)!r}, found {value!r}"
                for name, value in expected.items()
                if before.get(name) != value
            )
            raise DataError(f"data state: of another plan: {differing or plan}")
        self._position, self._steps, self._digest = int(position), int(steps), int(digest)
        self._skipped = skipped
        self._open = [PlannedRow(indices, self._row_cost(indices)) for indices in open_rows]

    def _signature(self) -> dict[str, Any]:
        """What must not change between saving and restoring."""
        fields = ("seed", "shuffle", "und_tokens", "vit_images", "vae_images")
        return {"samples": self._length} | {name: getattr(self._data, name) for name in fields}

    def _row_cost(self, indices: tuple[int, ...]) -> Cost:
        total = _EMPTY
        for stream_index in indices:
            cost = self._samples.cost(*self.locate(stream_index))
            if isinstance(cost, Skip) or not total.plus(cost).fits(self._capacity):
                raise DataError(
                    f"data state: sample {self.locate(stream_index)[0]} no longer fits its row; "
                    "the source or its texts have changed"
                )
            total = total.plus(cost)
        return total

    def _next_row(self) -> PlannedRow | None:
        while (taken := self._take()) is not None:
            place = self._put(*taken)
            if self._filled(self._open[place]) >= 1:
                return self._open.pop(place)
            if len(self._open) > self._data.open_rows:
                # The newest is not among the candidates: it would give one sample a row.
                fullest = max(range(len(self._open) - 1), key=lambda i: self._filled(self._open[i]))
                return self._open.pop(fullest)
        return self._open.pop(0) if self._open else None

    def _put(self, stream_index: int, cost: Cost) -> int:
        """Puts a sample into the first open row that holds it, or a new one; the row's place."""
        room = self._capacity.minus(cost)
        for place, row in enumerate(self._open):
            if row.cost.fits(room):
                self._open[place] = PlannedRow((*row.indices, stream_index), row.cost.plus(cost))
                return place
        self._open.append(PlannedRow((stream_index,), cost))
        return len(self._open) - 1

    def _filled(self, row: PlannedRow) -> float:
        """The share of the scarcest thing in the row that is taken."""
        return max(used / held for used, held in zip(row.cost, self._capacity, strict=True) if held)

    def _take(self) -> tuple[int, Cost] | None:
        """The next usable sample of the stream as (stream index, cost)."""
        # Two epochs: a lone usable sample may come first in one and last in the next.
        for _ in range(2 * self._length):
            if self._position == self._end:
                if sum(self._skipped.values()) < self._position:
                    return None
                break
            stream_index = self._position
            self._position += 1
            cost = self._samples.cost(*self.locate(stream_index))
            if not isinstance(cost, Skip) and cost.fits(self._capacity):
                return stream_index, cost
            skip = cost if isinstance(cost, Skip) else Skip("too_long", self._too_long(cost))
            self._count(skip, self.locate(stream_index)[0])
        raise DataError(
            f"data: expected samples that fit a row of {self._capacity.und} und tokens, "
            f"{self._capacity.vit} ViT and {self._capacity.vae} VAE images, found none in a whole "
            f"epoch of {_name(self._data)} (skipped: {self._skipped})"
        )

    def _too_long(self, cost: Cost) -> str:
        names = ("und tokens", "ViT images", "VAE images")
        return ", ".join(
            f"{used} {name} where a row holds {held}"
            for name, used, held in zip(names, cost, self._capacity, strict=True)
            if used > held
        )

    def _count(self, skip: Skip, index: int) -> None:
        self._skipped[skip.reason] += 1
        if skip.reason not in self._first_skipped:
            key = self._samples.key(index)
            detail = f": {skip.detail}" if skip.detail else ""
            self._first_skipped[skip.reason] = f"{key}: {skip.reason}{detail}"
        if skip.reason != "broken":
            return
        count = self._skipped["broken"]
        if is_logged(count):
            _LOG.warning("broken record skipped (%d so far): %s", count, skip.detail)
        self._broken_details = [*self._broken_details[1 - _MAX_KEPT :], skip.detail]
        check_broken(self._data, count, self._position, self._broken_details)


def _name(data: DataConfig) -> str:
    return f"{data.source or 'the source'} ({data.split})"

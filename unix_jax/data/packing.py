"""Global plan of the packed rows, from the lengths of samples and a small JSON state.

A *stream* is the concatenation of epochs, each a permutation of the samples. Stream index s is
position s % N of epoch s // N. Samples are taken from it in order and put into the first open row
that has space for them; a row is closed when it is full, or when it is the fullest of too many.
Every process plans all rows of a step and builds its own share, so the plan depends neither on the
number of processes nor on the contents of images.

A mixture of P sources has a stream for each: stream index s is index s // P in the stream of part s
% P. The numbers of samples taken so far determine which part comes next (`due`), and the samples in
closed rows determine which row is closed, so that every step has the weights' shares to within a
sample or two. Skipped samples do not count as taken.
"""

import logging
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from unix_jax.data.broken import check_broken, is_logged
from unix_jax.data.config import DataConfig
from unix_jax.data.mixture import due, part_seed
from unix_jax.data.samples import Cost, MixedSamples, SampleSource, Skip
from unix_jax.errors import DataError
from unix_jax.models.attention.slots import BOUNDARIES, Slots

_LOG = logging.getLogger(__name__)
_EMPTY = Cost(0, 0, 0)
_MAX_KEPT = 10
SKIP_REASONS = ("too_long", "no_text", "no_image", "broken")


class PlannedRow(NamedTuple):
    """Stream indices of a row's samples, and the part of the row that they use."""

    indices: tuple[int, ...] = ()
    cost: Cost = _EMPTY


class SourceCount(NamedTuple):
    """Progress of a run in one part of a mixture.

    samples: in rows so far. skipped: number so far, once per epoch. epoch: taken from the part's
    stream so far, with fraction.
    """

    samples: int
    skipped: int
    epoch: float


def permutation(length: int, seed: int, epoch: int) -> np.ndarray:
    """The order of one epoch.

    It sorts raw random bits, since numpy keeps these the same in all versions. (grain's index
    shuffle needs no table, but takes a millisecond per index on small sources.)
    """
    bits = np.random.Philox(np.random.SeedSequence((seed, epoch), spawn_key=(1,)))
    return np.argsort(bits.random_raw(length), kind="stable")


class Planner:
    """An endless (or `data.epochs` long) sequence of steps, each of `data.rows` planned rows.

    steps: planned so far.
    digest: a checksum of all rows so far; processes whose digests differ planned differently.
    skipped: number of samples skipped so far, by reason.
    first_skipped: the first of them by reason: which, and why; of this planner alone.
    """

    def __init__(self, samples: SampleSource, data: DataConfig, slots: Slots | None = None) -> None:
        """`slots`: those of the rows, see `slots_of`; they limit a row's text.

        Raises DataError when there are no samples.
        """
        self._samples = samples
        self._data = data
        self._slots = slots
        self._parts = samples.parts if isinstance(samples, MixedSamples) else ()
        self._lengths = (
            [len(s) for s in samples.samples] if isinstance(samples, MixedSamples)
            else [len(samples)]
        )  # fmt: skip
        self._weights = [part.weight for part in self._parts] or [1.0]
        if not all(self._lengths):
            empty = self._lengths.index(0)
            raise DataError(f"data: expected samples in {self._name(empty)}, found none")
        self._capacity = Cost(data.und_tokens, data.vit_images, data.vae_images)
        # The capacities of a row that each kind of sample uses.
        self._uses = (
            sorted({tuple(Cost._fields.index(name) for name in s.uses) for s in samples.samples})
            if isinstance(samples, MixedSamples) else [(0, 1, 2)]
        )  # fmt: skip
        self._orders: dict[tuple[int, int], np.ndarray] = {}
        epochs = data.epochs
        self._ends = [None if epochs is None else epochs * length for length in self._lengths]
        # Per part: indices taken from its stream, and the number of them that are samples in rows.
        self._positions = [0] * len(self._lengths)
        self._taken = [0] * len(self._lengths)
        self._open: list[PlannedRow] = []
        self.steps = 0
        self.digest = 0
        self.skipped = dict.fromkeys(SKIP_REASONS, 0)
        self.first_skipped: dict[str, str] = {}
        self._broken_details: list[str] = []

    @property
    def epoch(self) -> float:
        """Epochs taken from the stream so far, with fraction; of all parts together."""
        return sum(self._positions) / sum(self._lengths)

    @property
    def sources(self) -> tuple[SourceCount, ...]:
        """Counts of each part of a mixture; () for one source."""
        if not self._parts:
            return ()
        waiting = [index % len(self._parts) for row in self._open for index in row.indices]
        return tuple(
            SourceCount(taken - waiting.count(part), position - taken, position / length)
            for part, (taken, position, length) in enumerate(
                zip(self._taken, self._positions, self._lengths, strict=True)
            )
        )

    def locate(self, stream_index: int) -> tuple[int, int]:
        """(index of the sample, epoch) of a position in the stream; thread-safe.

        In a mixture the index counts through all parts, and the epoch is that of the sample's.
        """
        position, part = divmod(stream_index, len(self._lengths))
        length = self._lengths[part]
        epoch, place = divmod(position, length)
        first = sum(self._lengths[:part])
        if not self._data.shuffle:
            return first + place, epoch
        order = self._orders.get((part, epoch))
        if order is None:
            order = permutation(length, part_seed(self._data.seed, part), epoch)
            # Open rows may contain samples of earlier epochs, but rarely from before the last one.
            kept = {k: o for k, o in self._orders.items() if k[0] != part or k[1] >= epoch - 1}
            self._orders = kept | {(part, epoch): order}
        return first + int(order[place]), epoch

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
            self.digest = zlib.crc32(np.array((*row.indices, -1), "<i8").tobytes(), self.digest)
        self.steps += 1
        return rows

    def state(self) -> dict[str, Any]:
        """JSON, independent of the number of processes."""
        return {
            "plan": self._signature(),
            "steps": self.steps,
            "positions": list(self._positions),
            "taken": list(self._taken),
            "open_rows": [list(row.indices) for row in self._open],
            "skipped": dict(self.skipped),
            "digest": self.digest,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Resumes from `state`.

        Raises:
          DataError: it is not such a state, or one of another plan.
        """
        try:
            plan, steps, digest = (state[name] for name in ("plan", "steps", "digest"))
            # Earlier versions had one source and stored only its position.
            positions = [int(p) for p in state.get("positions") or [state["position"]]]
            open_rows = [tuple(int(i) for i in row) for row in state["open_rows"]]
            skipped = {reason: int(state["skipped"][reason]) for reason in SKIP_REASONS}
            default = [sum(positions) - sum(skipped.values())]
            taken = [int(count) for count in state.get("taken") or default]
        except (AttributeError, KeyError, TypeError, ValueError) as error:
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
        self._positions, self._taken = positions, taken
        self.steps, self.digest = int(steps), int(digest)
        self.skipped = skipped
        self._open = [PlannedRow(indices, self._row_cost(indices)) for indices in open_rows]

    def _signature(self) -> dict[str, Any]:
        """The settings that must not change between saving and restoring.

        Slots may: samples that no longer fit are skipped, and the order of the others is the same.
        """
        fields = ("seed", "shuffle", "und_tokens", "vit_images", "vae_images")
        found: dict[str, Any] = {"samples": self._lengths[0]}
        if self._parts:
            found = {
                "samples": list(self._lengths),
                "weights": list(self._weights),
                "tasks": [part.task for part in self._parts],
            }
        return found | {name: getattr(self._data, name) for name in fields}

    def _row_cost(self, indices: tuple[int, ...]) -> Cost:
        total = _EMPTY
        for stream_index in indices:
            cost = self._samples.cost(*self.locate(stream_index))
            if isinstance(cost, Skip) or not self._fits(total.plus(cost)):
                raise DataError(
                    f"data state: sample {self.locate(stream_index)[0]} no longer fits its row; "
                    f"the source or its texts have changed{self._limit_of_text()}"
                )
            total = total.plus(cost)
        return total

    def _limit_of_text(self) -> str:
        if self._slots is None:
            return ""
        return f", or data.text_tokens ({self._data.text_tokens}) is too small for the row"

    def _next_row(self) -> PlannedRow | None:
        while (taken := self._take()) is not None:
            place = self._put(*taken)
            if self._filled(self._open[place]) >= 1:
                return self._open.pop(self._balanced(place))
            if len(self._open) > self._data.open_rows:
                # The newest row is not a candidate: otherwise it would contain a single sample.
                fullest = max(range(len(self._open) - 1), key=lambda i: self._filled(self._open[i]))
                return self._open.pop(self._balanced(fullest))
        return self._open.pop(0) if self._open else None

    def _balanced(self, place: int) -> int:
        """The row to close: the one at `place`, if the samples of each part in closed rows are then
        within one of their share; else the row that brings them nearest to it.

        Without this, the open rows would always contain more samples of one part than of another.
        """
        if len(self._lengths) == 1 or any(map(self._has_ended, range(len(self._lengths)))):
            return place
        closed = [count.samples for count in self.sources]

        def distance(row: PlannedRow) -> float:
            after = list(closed)
            for index in row.indices:
                after[index % len(after)] += 1
            total = sum(after)
            pairs = zip(after, self._weights, strict=True)
            return max(abs(count - weight * total) for count, weight in pairs)

        if distance(self._open[place]) <= 1:
            return place
        return min(
            {place, *range(len(self._open) - 1)},
            key=lambda i: (distance(self._open[i]), -self._filled(self._open[i]), i),
        )

    def _has_ended(self, part: int) -> bool:
        return self._positions[part] == self._ends[part]

    def _put(self, stream_index: int, cost: Cost) -> int:
        """Puts a sample into the first open row with space, or a new one; returns its index."""
        for place, row in enumerate(self._open):
            if self._fits(row.cost.plus(cost)):
                self._open[place] = PlannedRow((*row.indices, stream_index), row.cost.plus(cost))
                return place
        self._open.append(PlannedRow((stream_index,), cost))
        return len(self._open) - 1

    def _fits(self, total: Cost) -> bool:
        """Whether one row has room for what costs `total`."""
        if not total.fits(self._capacity):
            return False
        slots = self._slots
        if slots is None:
            return True
        # Boundary tokens have their positions in rows of fewer VAE images, too.
        unused = BOUNDARIES * (slots.vae_images - total.vae)
        return self._text(total) <= slots.text_tokens and total.und + unused <= slots.und_tokens

    def _text(self, cost: Cost) -> int:
        assert self._slots is not None
        return cost.und - self._slots.vit_tokens * cost.vit - BOUNDARIES * cost.vae

    def _filled(self, row: PlannedRow) -> float:
        """The used share of the row's scarcest capacity, for the best-fitting samples: a row
        without room for one more ViT image may have room for latents.
        """
        used, held = row.cost, self._capacity
        return min(max(used[i] / held[i] for i in kind if held[i]) for kind in self._uses)

    def _take(self) -> tuple[int, Cost] | None:
        """The next usable sample as (stream index, cost), from the part that comes next."""
        while True:
            active = [not self._has_ended(part) for part in range(len(self._lengths))]
            part = due(self._taken, self._weights, active)
            if part is None:
                return None
            found = self._take_from(part)
            if found is not None:
                return found

    def _take_from(self, part: int) -> tuple[int, Cost] | None:
        """The next usable sample of a part, None if it has ended."""
        # Two epochs: a single usable sample may be first in one and last in the next.
        for _ in range(2 * self._lengths[part]):
            position = self._positions[part]
            if position == self._ends[part]:
                if self._taken[part]:
                    return None
                break
            stream_index = position * len(self._lengths) + part
            self._positions[part] += 1
            cost = self._samples.cost(*self.locate(stream_index))
            if not isinstance(cost, Skip) and self._fits(cost):
                self._taken[part] += 1
                return stream_index, cost
            skip = cost if isinstance(cost, Skip) else Skip("too_long", self._too_long(cost))
            self._count(skip, self.locate(stream_index)[0])
        raise DataError(
            f"data: expected samples that fit a row of {self._capacity.und} und tokens, "
            f"{self._capacity.vit} ViT and {self._capacity.vae} VAE images, found none in a whole "
            f"epoch of {self._name(part)} (skipped: {self.skipped}); "
            + "; ".join(self.first_skipped.values())
        )

    def _too_long(self, cost: Cost) -> str:
        names = ("und tokens", "ViT images", "VAE images")
        limits = list(zip(names, cost, self._capacity, strict=True))
        if self._slots is not None:
            text = min(
                self._slots.text_tokens, self._slots.text_end - cost.vit * self._slots.vit_tokens
            )
            limits.append(("text tokens", self._text(cost), text))
        return ", ".join(
            f"{used} {name} but a row has at most {held}"
            for name, used, held in limits
            if used > held
        )

    def _count(self, skip: Skip, index: int) -> None:
        self.skipped[skip.reason] += 1
        if skip.reason not in self.first_skipped:
            key = self._samples.key(index)
            detail = f": {skip.detail}" if skip.detail else ""
            self.first_skipped[skip.reason] = f"{key}: {skip.reason}{detail}"
        if skip.reason != "broken":
            return
        count = self.skipped["broken"]
        if is_logged(count):
            _LOG.warning("broken record skipped (%d so far): %s", count, skip.detail)
        self._broken_details = [*self._broken_details[1 - _MAX_KEPT :], skip.detail]
        check_broken(self._data, count, sum(self._positions), self._broken_details)

    def _name(self, part: int) -> str:
        name = self._data.source or "the source"
        if self._parts:
            name = f"part {part + 1} of data.source, {self._parts[part]}"
        return f"{name} ({self._data.split})"

"""What a run leaves out of its data: said when first met, counted in the metrics, summed up."""

from collections.abc import Mapping

from unix_jax.data.loader import BatchInfo
from unix_jax.data.packing import SKIP_REASONS

COUNTERS = tuple(f"skipped_{reason}" for reason in SKIP_REASONS)


class SkippedSamples:
    """The samples that one pass over data left out, as its batches tell."""

    def __init__(self, name: str = "") -> None:
        """`name` of the data is the prefix of each line, such as `validation: `."""
        self._name = name
        self._said: set[str] = set()
        self._info: BatchInfo | None = None

    def add(self, info: BatchInfo) -> list[str]:
        """Takes note of a batch; one line for each reason that is met for the first time."""
        self._info = info
        new = [reason for reason in info.first_skipped if reason not in self._said]
        self._said.update(new)
        return [f"{self._name}left out: {info.first_skipped[reason]}" for reason in new]

    @property
    def values(self) -> dict[str, float]:
        """`epoch`, and `skipped_REASON` for each: samples left out so far, once per epoch."""
        if self._info is None:
            return {}
        counts = {f"skipped_{r}": self._info.skipped.get(r, 0) for r in SKIP_REASONS}
        return {"epoch": self._info.epoch, **counts}

    @property
    def total(self) -> int:
        """Samples left out so far."""
        return 0 if self._info is None else sum(self._info.skipped.values())

    def summary(self, records: int) -> list[str]:
        """One line about what was left out of a source of so many records; none if nothing was."""
        info = self._info
        if info is None or not (self.total or info.broken):
            return []
        taken = max(round(info.epoch * records), 1)
        shown = _list(info.skipped)
        lines = []
        if self.total:
            lines.append(
                f"{self._name}left out {self.total} of {taken} samples ({self.total / taken:.1%}) "
                f"in {info.epoch:.3g} epochs of {records}: {shown}"
            )
        if info.broken:
            lines.append(f"{self._name}left out {info.broken} broken images of this process")
        return lines


def _list(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in counts.items() if count)

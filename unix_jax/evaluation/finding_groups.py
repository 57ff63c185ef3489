"""Applies a metric of two sets of features to parts of them: shards, and pathologies.

The published table is a mean over four contiguous shards, which is not the value over all rows:
both distances and densities depend on the number of rows. Results state which of the two they are.
Letters: N real rows, M fake rows, G groups.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool

from unix_jax.errors import MetricError

# Of features: `image.frechet_distance`, `image.prdc`, ...
Metric = Callable[..., Any]


def shard_mean(metric: Metric, *rows: Any, shards: int = 1) -> Any:
    """The mean of a metric over contiguous shards of its rows.

    Args:
      metric: a function of the arrays in `rows` that returns a number, or numbers by name.
      rows: arrays, each divided independently into shards whose sizes differ by at most one, the
        longer ones first.
      shards: 1 is the metric of all rows; the published protocol has 4.

    Raises:
      MetricError: fewer than 1 shard, or fewer rows than shards; and what `metric` raises.
    """
    if shards < 1:
        raise MetricError(f"shards: expected at least 1, found {shards}")
    fewest = min(len(array) for array in rows)
    if fewest < shards:
        raise MetricError(f"shards: expected at most {fewest}, one row for each, found {shards}")
    values = []
    for index in range(shards):
        spans = [(_edge(len(a), shards, index), _edge(len(a), shards, index + 1)) for a in rows]
        values.append(metric(*(a[i:j] for a, (i, j) in zip(rows, spans, strict=True))))
    if isinstance(values[0], Mapping):
        return {name: float(np.mean([value[name] for value in values])) for name in values[0]}
    return float(np.mean(values))


def _edge(count: int, shards: int, index: int) -> int:
    size, longer = divmod(count, shards)
    return size * index + min(index, longer)


def by_group(
    metric: Metric,
    real: Any,
    fake: Any,
    real_members: Bool[np.ndarray, "N G"],
    fake_members: Bool[np.ndarray, "M G"],
    names: Sequence[str],
    *,
    at_least: int = 2,
) -> dict[str, dict[str, Any]]:
    """A metric of the real and the fake rows of each group, such as a pathology.

    Args:
      metric: a function of two arrays.
      real, fake: features [N, D] and [M, D].
      real_members, fake_members: which rows belong to which group; a row may belong to several. In
      the protocol a fake row has the pathologies of the real one whose prompt it was generated
      from.
      names: names of the groups.
      at_least: minimum number of rows of either kind for a value (for `prdc`, k + 1).

    Returns:
      By name: `value`, None if there are too few rows, and `real_rows`, `fake_rows`.

    Raises:
      MetricError: members that are not booleans of the right shape; and what `metric` raises.
    """
    members = []
    for name, rows, given in (("real", real, real_members), ("fake", fake, fake_members)):
        flags = np.asarray(given)
        if flags.shape != (len(rows), len(names)) or flags.dtype != np.bool_:
            raise MetricError(
                f"{name}_members: expected booleans [{len(rows)}, {len(names)}], "
                f"found {flags.dtype} {list(flags.shape)}"
            )
        members.append(flags)
    results: dict[str, dict[str, Any]] = {}
    for index, name in enumerate(names):
        chosen = [np.flatnonzero(flags[:, index]) for flags in members]
        counts = [len(rows) for rows in chosen]
        enough = min(counts) >= max(at_least, 1)
        value = metric(real[chosen[0]], fake[chosen[1]]) if enough else None
        results[name] = {"value": value, "real_rows": counts[0], "fake_rows": counts[1]}
    return results

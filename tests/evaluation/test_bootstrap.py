"""Intervals, shards and groups."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from unix_jax.errors import MetricError
from unix_jax.evaluation import bootstrap, image
from unix_jax.evaluation.finding_groups import by_group, shard_mean


def test_an_interval_of_a_mean_is_about_two_standard_errors():
    values = np.random.default_rng(0).normal(5, 2, 400)
    interval = bootstrap.mean_interval(values, resamples=4000)
    assert interval.value == pytest.approx(values.mean())
    error = 1.96 * values.std() / 20
    assert interval.low == pytest.approx(values.mean() - error, abs=0.1 * error)
    assert interval.high == pytest.approx(values.mean() + error, abs=0.1 * error)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30), st.integers(0, 9))
def test_intervals_lie_within_the_values(values, seed):
    interval = bootstrap.mean_interval(values, resamples=50, seed=seed)
    slack = 1e-9 * max(map(abs, values))
    assert min(values) - slack <= interval.low <= interval.high <= max(values) + slack
    assert interval == bootstrap.mean_interval(values, resamples=50, seed=seed)


def test_columns_are_resampled_together(monkeypatch):
    values = np.random.default_rng(0).normal(size=50)
    found = bootstrap.mean_intervals({"a": values, "b": -values, "c": values + 1})
    assert found["b"].low == pytest.approx(-found["a"].high)
    assert found["c"].low == pytest.approx(found["a"].low + 1)
    # Resampled in blocks, or at once.
    monkeypatch.setattr(bootstrap, "_BLOCK", 100)
    assert bootstrap.mean_interval(values).low == pytest.approx(found["a"].low, abs=0.1)
    assert bootstrap.mean_intervals({}) == {}


def test_one_row_is_its_own_interval():
    assert bootstrap.mean_interval([3.0]) == bootstrap.Interval(3.0, 3.0, 3.0)


def test_the_interval_of_a_mean_is_scipys():
    values = np.random.default_rng(0).normal(size=30)
    expected = stats.bootstrap(
        (values,), np.mean, n_resamples=500, method="percentile", rng=np.random.default_rng(7)
    ).confidence_interval
    found = bootstrap.mean_interval(values, resamples=500, seed=7)
    assert (found.low, found.high) == pytest.approx(expected)
    of_any = bootstrap.intervals(lambda a: {"mean": a.mean()}, values, resamples=500, seed=7)
    assert (of_any["mean"].low, of_any["mean"].high) == pytest.approx(expected)


def test_a_single_row_beside_several():
    def rows(a, b):
        assert (len(a), len(b)) == (1, 4)
        return {"sum": float(a.sum() + b.mean())}

    found = bootstrap.intervals(rows, np.ones(1), np.arange(4.0), paired=False, resamples=50)
    assert 1 <= found["sum"].low < found["sum"].high <= 4


def test_intervals_of_any_statistic():
    values = np.random.default_rng(0).normal(size=200)

    def statistic(a, b):
        return {"mean": a.mean(), "difference": np.abs(a - b).max()}

    found = bootstrap.intervals(statistic, values, values, resamples=300)
    assert found["difference"] == bootstrap.Interval(0.0, 0.0, 0.0)
    expected = bootstrap.mean_interval(values)
    assert found["mean"].low == pytest.approx(expected.low, abs=0.05)
    apart = bootstrap.intervals(statistic, values, values, paired=False, resamples=10)
    assert apart["difference"].low > 0


def test_what_the_bootstrap_refuses():
    for call, message in (
        (lambda: bootstrap.mean_interval([]), "values: expected 1 or more numbers, found"),
        (lambda: bootstrap.mean_interval([1, np.nan]), "expected finite numbers, found nan at 1"),
        (lambda: bootstrap.mean_intervals({"a": [1], "b": [1, 2]}), "b: expected 1 numbers"),
        (lambda: bootstrap.mean_interval([1], confidence=95), "confidence: .* found 95"),
        (lambda: bootstrap.mean_interval([1], resamples=0), "resamples: expected at least 1"),
        (lambda: bootstrap.intervals(dict, [1, 2], [1]), r"as many in each, found \[2, 1\]"),
        (lambda: bootstrap.intervals(dict), r"expected at least 1 row"),
        (lambda: bootstrap.intervals(dict, 3), r"found \[0\]"),
    ):
        with pytest.raises(MetricError, match=message):
            call()


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 9), st.integers(0, 20))
def test_shards_are_those_of_array_split(shards, more):
    rows = np.arange(shards + more)
    expected = np.mean([part.max() for part in np.array_split(rows, shards)])
    assert shard_mean(np.max, rows, shards=shards) == pytest.approx(expected)


def test_shards_of_two_sets():
    real, fake = np.random.default_rng(0).normal(size=(2, 40, 3))
    values = [
        image.prdc(a, b, 2)
        for a, b in zip(np.split(real, 4), np.array_split(fake[:37], 4), strict=True)
    ]
    found = shard_mean(lambda a, b: image.prdc(a, b, 2), real, fake[:37], shards=4)
    assert found == pytest.approx({k: np.mean([v[k] for v in values]) for k in values[0]})
    assert shard_mean(image.frechet_distance, real, fake) == image.frechet_distance(real, fake)
    for shards, message in ((0, "at least 1, found 0"), (41, "at most 40, one row for each")):
        with pytest.raises(MetricError, match=message):
            shard_mean(image.frechet_distance, real, fake, shards=shards)


def test_groups():
    real, fake = np.random.default_rng(0).normal(size=(2, 12, 3))
    members = np.zeros((12, 2), bool)
    members[:5, 0] = members[11, 1] = True
    found = by_group(image.frechet_distance, real, fake, members, members, ["edema", "fracture"])
    value = image.frechet_distance(real[:5], fake[:5])
    assert found["edema"] == {"value": value, "real_rows": 5, "fake_rows": 5}
    assert found["fracture"] == {"value": None, "real_rows": 1, "fake_rows": 1}
    with pytest.raises(MetricError, match=r"fake_members: expected booleans \[12, 2\], found int"):
        by_group(image.prdc, real, fake, members, members.astype(int), ["a", "b"])

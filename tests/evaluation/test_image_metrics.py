"""Distances between features against their definitions, and at the edges."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unix_jax.errors import MetricError
from unix_jax.evaluation import image, rows
from unix_jax.evaluation import prdc as prdc_module
from unix_jax.evaluation.streaming import Moments, frechet_from_moments


def draw(seed, count, width, scale=1.0, shift=0.0):
    return np.random.default_rng(seed).normal(shift, scale, (count, width))


def frechet_by_factors(real, fake):
    """From the features themselves: tr (C1 C2)^(1/2) is the sum of the singular values of A B^T."""
    a, b = ((x - x.mean(0)) / np.sqrt(len(x) - 1) for x in (real, fake))
    common = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    shift = real.mean(0) - fake.mean(0)
    return shift @ shift + (a**2).sum() + (b**2).sum() - 2 * common


@pytest.mark.parametrize(("n", "m", "width"), [(50, 60, 8), (9, 30, 20), (2, 3, 12), (40, 40, 1)])
def test_frechet_is_its_definition(n, m, width):
    """Also with fewer rows than columns, where both covariances are singular."""
    real, fake = draw(0, n, width), draw(1, m, width, 1.7, 0.3)
    expected = frechet_by_factors(real, fake)
    assert image.frechet_distance(real, fake) == pytest.approx(expected, rel=1e-7)
    assert image.frechet_distance(fake, real) == pytest.approx(expected, rel=1e-7)


def test_frechet_with_constant_columns():
    real, fake = draw(0, 40, 6), draw(1, 40, 6)
    real[:, 2], fake[:, 2] = 3.0, 5.0
    without = image.frechet_distance(np.delete(real, 2, 1), np.delete(fake, 2, 1))
    assert image.frechet_distance(real, fake) == pytest.approx(without + 4, rel=1e-9)
    constant = np.ones((5, 3))
    assert image.frechet_distance(constant, constant + 2) == pytest.approx(12)


def test_distances_of_a_set_to_itself():
    real = draw(0, 30, 50)
    assert 0 <= image.frechet_distance(real, real) < 1e-6 * real.var() * 50
    shuffled = real[np.random.default_rng(1).permutation(30)]
    assert image.frechet_distance(real, shuffled) < 1e-6 * real.var() * 50


def test_frechet_survives_an_offset():
    """The covariance is of centred rows, so a large mean costs no digits."""
    real, fake = draw(0, 60, 4), draw(1, 60, 4, 2.0)
    near = image.frechet_distance(real, fake)
    assert image.frechet_distance(real + 1e6, fake + 1e6) == pytest.approx(near, rel=1e-6)


def kernel_by_pairs(real, fake):
    def kernel(a, b):
        return (a @ b.T / a.shape[1] + 1) ** 3

    def within(a):
        values = kernel(a, a)
        return (values.sum() - np.trace(values)) / (len(a) * (len(a) - 1))

    return within(real) + within(fake) - 2 * kernel(real, fake).mean()


@pytest.mark.parametrize(("n", "m"), [(2, 3), (30, 7), (23, 24)])
def test_kernel_distance_is_its_definition(monkeypatch, n, m):
    """With blocks that do not divide the rows evenly."""
    monkeypatch.setattr(image, "_ROWS", 4)
    monkeypatch.setattr(image, "_BLOCKS", 2)
    real, fake = draw(0, n, 5), draw(1, m, 5, 1.3)
    expected = kernel_by_pairs(real, fake)
    assert image.kernel_distance(real, fake) == pytest.approx(expected, rel=1e-12)
    single = image.kernel_distance(real, fake, precision="float32")
    assert single == pytest.approx(expected, abs=1e-4)


def test_kernel_distance_of_subsets():
    real, fake = draw(0, 40, 5), draw(1, 50, 5, 1.3)
    whole = image.kernel_distance(real, fake[:40], subsets=3, subset_size=40)
    assert whole == pytest.approx(image.kernel_distance(real, fake[:40]), rel=1e-9)
    a, b = (image.kernel_distance(real, fake, subsets=60, subset_size=20, seed=s) for s in (0, 1))
    assert a != b
    assert a == image.kernel_distance(real, fake, subsets=60, subset_size=20)
    assert a == pytest.approx(image.kernel_distance(real, fake), rel=0.2)
    with pytest.raises(MetricError, match="subset_size: expected 2 to 40, found 41"):
        image.kernel_distance(real, fake, subsets=1, subset_size=41)
    with pytest.raises(MetricError, match="subsets: expected at least 1"):
        image.kernel_distance(real, fake, subsets=0)
    with pytest.raises(MetricError, match="precision: expected one of float64, float32"):
        image.kernel_distance(real, fake, precision="float16")


def prdc_by_pairs(real, fake, k):
    """Integers, so every distance and every tie is exact."""

    def squared(a, b):
        return ((a[:, None] - b[None]) ** 2).sum(-1)

    def radii(a):
        return np.sort(squared(a, a), axis=1)[:, k]  # the row itself is first

    between = squared(real, fake)
    inside = between < radii(real)[:, None]
    return {
        "precision": inside.any(0).mean(),
        "recall": (between < radii(fake)).any(1).mean(),
        "density": inside.sum(0).mean() / k,
        "coverage": inside.any(1).mean(),
    }


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 4),
    st.integers(1, 12),
    st.integers(1, 12),
    st.integers(1, 3),
    st.sampled_from([1, 3, 1000]),
)
def test_prdc_is_its_definition(seed, k, n, m, width, spread):
    """Small integers: equal rows, equal distances and radii of zero come up all the time."""
    rng = np.random.default_rng(seed)
    real = rng.integers(-spread, spread + 1, (n + k, width))
    fake = rng.integers(-spread, spread + 1, (m + k, width))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prdc_module, "_ROWS", 3)
        patch.setattr(prdc_module, "_COLUMNS", 5)
        found = image.prdc(real, fake, k)
    assert found == pytest.approx(prdc_by_pairs(real, fake, k))


def test_prdc_of_copies():
    """A copy of a ball's outermost row is not inside it, however far from 0 the features lie."""
    real = draw(0, 40, 16, shift=1e3)
    assert image.prdc(real, real, k=3)["precision"] == 1.0
    assert image.prdc(real, np.repeat(real[:5], 8, axis=0), k=7)["recall"] == 0.0


def test_prdc_needs_more_rows_than_neighbours():
    real = draw(0, 6, 3)
    with pytest.raises(MetricError, match="fake: expected at least 6 rows, found 5"):
        image.prdc(real, real[:5])
    with pytest.raises(MetricError, match="k: expected at least 1, found 0"):
        image.prdc(real, real, k=0)


METRICS = (image.frechet_distance, image.kernel_distance, image.prdc)


@pytest.mark.parametrize("metric", METRICS)
def test_features_that_are_refused(metric):
    good = draw(0, 20, 3)
    bad = good.copy()
    bad[7, 1] = np.nan
    for features, message in (
        (bad, "fake: expected finite numbers up to 1e.50, found nan in row 7, column 1"),
        (np.where(good > 2, np.inf, np.inf), "fake: .* found inf in row 0, column 0"),
        (good * 1e60, "fake: expected finite numbers up to"),
        (good[:, :2], "fake: expected 3 columns as in real, found 2"),
        (good[:0], "fake: expected at least . rows, found 0"),
        (good[0], r"fake: expected features \[rows, columns\], found \[3\]"),
        (good[:, :0], r"fake: expected features \[rows, columns\], found \[20, 0\]"),
        (good.astype(str), "fake: expected real numbers, found <U"),
        (good + 1j, "fake: expected real numbers, found complex128"),
        ([[1, 2], [3]], r"fake: expected features \[rows, columns\]"),
    ):
        with pytest.raises(MetricError, match=message):
            metric(good, features)


@pytest.mark.parametrize("metric", METRICS)
def test_kinds_of_arrays(metric, tmp_path, monkeypatch):
    """Lists, half precision, and a file on disk that is read by blocks."""
    real, fake = (np.round(draw(i, 20, 3) * 8) / 8 for i in (0, 1))
    expected = metric(real, fake)
    assert metric(real.tolist(), fake.astype(np.float16)) == pytest.approx(expected)
    assert metric(real.astype(ml_dtypes.bfloat16), fake) == pytest.approx(expected)
    np.save(tmp_path / "real.npy", real.astype(np.float32))
    monkeypatch.setattr(rows, "BLOCK_ROWS", 6)
    on_disk = np.load(tmp_path / "real.npy", mmap_mode="r")
    assert metric(on_disk, fake) == pytest.approx(expected)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=6), st.integers(0, 2**32 - 1))
def test_streamed_moments_are_the_moments(sizes, seed):
    features = np.random.default_rng(seed).normal(100, 1, (sum(sizes) + 2, 3))
    streamed, other = Moments(), Moments()
    for index, part in enumerate(np.split(features, np.cumsum(sizes))):
        (streamed if index % 2 else other).update(part)
    streamed.merge(other)
    assert streamed.count == len(features)
    np.testing.assert_allclose(streamed.mean, features.mean(0), rtol=1e-12)
    np.testing.assert_allclose(streamed.covariance, np.cov(features.T), atol=1e-10)


def test_streamed_frechet_distance():
    real, fake = draw(0, 30, 4), draw(1, 31, 4)
    moments = [Moments() for _ in range(2)]
    for total, features in zip(moments, (real, fake), strict=True):
        for part in np.array_split(features, 4):
            total.update(part)
    expected = image.frechet_distance(real, fake)
    assert frechet_from_moments(*moments) == pytest.approx(expected, rel=1e-12)


def test_moments_that_are_refused():
    one = Moments().update(np.ones((1, 3)))
    with pytest.raises(MetricError, match="expected at least 2 rows, found 1"):
        _ = one.covariance
    with pytest.raises(MetricError, match="expected at least 1 row, found none"):
        _ = Moments().mean
    with pytest.raises(MetricError, match="features: expected 3 columns as before, found 2"):
        one.update(np.ones((1, 2)))
    with pytest.raises(MetricError, match="fake: expected 3 columns as in real, found 2"):
        frechet_from_moments(one, Moments().update(np.ones((2, 2))))
    assert Moments().update(np.ones((0, 3))).count == 0


def test_inception_score():
    assert image.inception_score(np.eye(7)) == pytest.approx(7)
    assert image.inception_score(np.full((9, 4), 0.25)) == pytest.approx(1)
    assert image.inception_score([[1.0, 0.0]]) == pytest.approx(1)
    for wrong, message in (
        ([[0.5, 0.4]], "found in row 0 the sum 0.9"),
        ([[0.5, 0.5], [1.5, -0.5]], "found in row 1 the sum 1 and the least -0.5"),
        (np.zeros((0, 3)), "probabilities: expected at least 1 row, found 0"),
        ([[np.nan, 1]], "probabilities: expected finite numbers"),
    ):
        with pytest.raises(MetricError, match=message):
            image.inception_score(wrong)


def test_against_libraries():
    """The same numbers as prdc and scipy, where they are installed."""
    scipy_linalg = pytest.importorskip("scipy.linalg")
    prdc_package = pytest.importorskip("prdc")
    real, fake = draw(0, 150, 24), draw(1, 130, 24, 1.1, 0.1)
    expected = prdc_package.compute_prdc(real, fake, nearest_k=5)
    assert image.prdc(real, fake) == pytest.approx(expected)
    root = scipy_linalg.sqrtm(np.cov(real.T) @ np.cov(fake.T)).real
    shift = real.mean(0) - fake.mean(0)
    distance = shift @ shift + np.trace(np.cov(real.T) + np.cov(fake.T) - 2 * root)
    assert image.frechet_distance(real, fake) == pytest.approx(distance, rel=1e-9)

"""The Fréchet radiomics distance, on features that the user supplies.

The benchmark's definition: 2-D radiomics features of pyradiomics, without shape features. Random
rows of the larger set are removed until both sets have the same number. Every feature is
standardised by the mean and standard deviation of the real set. The result is the logarithm of the
Fréchet distance.
Source: Konz et al., arXiv 2412.01496; CheXGenBench, arXiv 2505.10496. Letters: N, M rows, D
columns.
"""

import numpy as np
from jaxtyping import Float

from unix_jax.errors import MetricError
from unix_jax.evaluation.image import frechet_distance
from unix_jax.evaluation.rows import feature_pair

# The benchmark seeds numpy's legacy generator with it.
_SEED = 42


def radiomics_distance(
    real: Float[np.ndarray, "N D"], generated: Float[np.ndarray, "M D"]
) -> float:
    """The logarithm of the Fréchet distance of features standardised by the real set.

    Columns that are constant in the real set are ignored.

    Raises:
      MetricError: not finite numbers of one width, fewer than two rows, no column that varies, or
        two equal sets, whose distance has no logarithm.
    """
    first, second = feature_pair(real, generated, at_least=2)
    a, b = first.block(0, first.count), second.block(0, second.count)
    count = min(len(a), len(b))
    chosen = np.random.RandomState(_SEED)
    a, b = (x[chosen.choice(len(x), count, replace=False)] if len(x) > count else x for x in (a, b))
    varies = a.max(0) > a.min(0)
    if not varies.any():
        raise MetricError("real: expected a column that varies, found none")
    a, b = a[:, varies], b[:, varies]
    mean, deviation = a.mean(0), a.std(0)
    distance = frechet_distance((a - mean) / deviation, (b - mean) / deviation)
    if distance <= 0:
        raise MetricError("generated: expected another set than real, found an equal one")
    return float(np.log(distance))

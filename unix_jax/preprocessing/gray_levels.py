"""Detects images with almost no content: nearly black, nearly white or nearly constant.

A model writes a fluent report even for such an image. The usual causes are outdated DICOM windows
and 12-bit values in a 16-bit file. The same rule is used for the terminal, the page, evaluation and
training. The thresholds were set on 503 real X-rays from four sources (including the three examples
of this project), none of which is near a threshold; `benchmarks/gray_levels.py` prints the figures.
"""

import warnings

import numpy as np
from PIL import Image

from unix_jax.errors import ImageWarning

# Of 255. The largest side that is looked at: percentiles need no more, and it takes 2 ms.
_SIDE = 384
# Collimated borders alone are black on up to 52 % of an X-ray, and 34 % may be burnt white.
_BLACK, _WHITE, _FILLED = 12, 243, 0.8
# 14 bits in 16 end at 63. The darkest real image has its 95th percentile at 117, the brightest
# its 5th at 132.
_DARK, _BRIGHT = 64, 191
# The narrowest real image spans 71 levels between the 0.5th and the 99.5th percentile: markers
# and burnt pixels are outside of them.
_CONSTANT, _NARROW = 5, 255 / 10
# At least 48 % of a real image are between the two ends.
_BETWEEN = 0.1


def gray_level_problem(image: Image.Image) -> str:
    """The problem of an image's gray levels ("nearly black (...)"); "" if there is none.

    Args:
      image: of mode RGB or L, before any padding; it is not modified.
    """
    gray = image.convert("L")
    # Nearest: averages would fill a gap between black and white.
    gray.thumbnail((_SIDE, _SIDE), Image.Resampling.NEAREST)
    counts = np.bincount(np.asarray(gray).ravel(), minlength=256)
    share = np.cumsum(counts) / counts.sum()  # of pixels at or below a level
    percents = (0.5, 5, 20, 80, 95, 99.5)
    low, p5, p20, p80, p95, high = (
        int(level) for level in np.searchsorted(share, np.array(percents) / 100)
    )
    span = f"(99 % of its pixels are from {low} to {high} of 255)"
    if high - low < _CONSTANT and low > _BLACK and high < _WHITE:
        return f"nearly constant {span}"
    if p95 < _DARK or share[_BLACK] >= _FILLED:
        return f"nearly black (80 % of its pixels are at most {p80} of 255)"
    if p5 > _BRIGHT or 1 - share[_WHITE - 1] >= _FILLED:
        return f"nearly white (80 % of its pixels are at least {p20} of 255)"
    if high - low < _NARROW:
        return f"within a tenth of its range {span}"
    between = share[254 - _BLACK // 2] - share[_BLACK // 2]
    if between < _BETWEEN:
        return f"nearly without gray ({between:.0%} of its pixels are neither black nor white)"
    return ""


def warn_of_gray_levels(image: Image.Image, name: str) -> None:
    """Warns with an `ImageWarning` that names the image where `gray_level_problem` finds one."""
    problem = gray_level_problem(image)
    if problem:
        warnings.warn(warning_text(name, problem), ImageWarning, stacklevel=3)


def warning_text(name: str, problem: str) -> str:
    """The sentence about a problem, wherever it is shown."""
    return (
        f"{name}: the image is {problem}. A report about it has no meaning; "
        "check its DICOM window or its bit depth"
    )

"""Selects the rows of a file that belong to a split; the same rule for every kind of source."""

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from unix_jax.errors import DataError


class Chosen(NamedTuple):
    """Indices of the rows; `unsplit`: the file has no splits, so that they are all of its rows."""

    indices: np.ndarray
    unsplit: bool


def rows_of_split(splits: Sequence[str | None], split: str, where: str) -> Chosen:
    """The rows of one split. A file in which no row has a split belongs to every split.

    Args:
      splits: of each row; "" where it names none, None where nobody can know, as in a broken row.
        The latter belongs to every split, so that whoever reads it learns of it.
      split: the one that is asked for.
      where: what errors and warnings call the file.

    Raises:
      DataError: the file has splits, and no rows of this one.

    Warns of rows without a split in a file that has splits: they are skipped.
    """
    known = {found for found in splits if found}
    if not known:
        return Chosen(np.arange(len(splits)), True)
    if split not in known:
        raise DataError(f"{where}: expected rows of split {split!r}, found splits {sorted(known)}")
    without = sum(found == "" for found in splits)
    if without:
        warnings.warn(
            f"{where}: {without} of {len(splits)} rows have no split and are not in "
            f"split {split!r}",
            stacklevel=2,
        )
    kept = [i for i, found in enumerate(splits) if found is None or found == split]
    return Chosen(np.array(kept, np.int64), False)

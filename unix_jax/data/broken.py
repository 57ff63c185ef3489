"""Logging of broken images and records, and the limit on their fraction."""

from collections.abc import Sequence

from unix_jax.data.config import DataConfig
from unix_jax.errors import DataError

_ALWAYS_LOGGED = 20


def is_logged(count: int) -> bool:
    """Whether the `count`-th one is logged: the first ones, then at each power of two."""
    return count <= _ALWAYS_LOGGED or count & (count - 1) == 0


def check_broken(data: DataConfig, broken: int, seen: int, last: Sequence[str]) -> None:
    """Raises DataError with the `last` broken ones if there are too many.

    The limit is the allowed fraction of `seen`, or of `data.broken_after` as long as fewer were
    seen: a completely broken source is detected early, and a few broken samples at the start do not
    stop the run.
    """
    if broken > data.max_broken_fraction * max(seen, data.broken_after):
        raise DataError(
            f"data: expected at most {data.max_broken_fraction:.1%} broken images and records "
            f"(max_broken_fraction), found {broken} of {seen}; the last ones: {'; '.join(last)}"
        )

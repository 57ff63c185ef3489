"""Errors caused by what the user gave us; the command line prints them as one line."""

from collections.abc import Sequence


class UniXError(Exception):
    """Base of every error whose cause is an input: a file, a key, an argument.

    Attributes:
      details: the message with every list in full; equal to the message where none is shortened.
    """

    def __init__(self, message: str = "", details: str | None = None):
        super().__init__(message)
        self.details = message if details is None else details


class CheckpointError(UniXError):
    """A checkpoint that is missing, broken, or does not fit its configuration."""


class ConfigError(UniXError):
    """A configuration that cannot be read or contradicts itself."""


class DataError(UniXError):
    """A source of records, or one row of it, that cannot be read."""


class ImageError(UniXError):
    """An image that cannot be read or used."""


class MetricError(UniXError):
    """Inputs of a metric for which it has no value: their shapes, rows or numbers."""


class NonFiniteError(UniXError):
    """Numbers that are NaN or infinite where the model computed a report or an image."""


class PromptError(UniXError):
    """A prompt, token id or generation argument outside what the model can take."""


class ArgumentNameError(PromptError, TypeError):
    """A keyword argument or setting that does not exist, or no longer under this name."""


class StorageError(UniXError):
    """A path that cannot be used, such as a URL where only local files are supported."""


class ImageWarning(UserWarning):
    """An image that was read, but shows next to nothing; see `gray_levels`."""


def shortened(lines: Sequence[str], ends: int = 10) -> list[str]:
    """The first and the last `ends` of a long list, with the number of the others between them."""
    if len(lines) <= 2 * ends + 1:
        return list(lines)
    return [*lines[:ends], f"... {len(lines) - 2 * ends} more ...", *lines[-ends:]]

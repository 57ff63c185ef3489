"""Errors caused by a user's input; the command line prints each as one message."""

from collections.abc import Sequence


class UniXError(Exception):
    """Base of every error whose cause is an input: a file, a key, an argument.

    Attributes:
      details: the message with complete lists; equal to the message if no list is shortened.
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
    """Invalid inputs of a metric: their shapes, rows or values."""


class NonFiniteError(UniXError):
    """Numbers that are NaN or infinite where the model computed a report or an image."""


class PromptError(UniXError):
    """A prompt, token id or generation argument that the model does not support."""


class ArgumentNameError(PromptError, TypeError):
    """A keyword argument or setting that does not exist, or no longer under this name."""


class StorageError(UniXError):
    """A path that cannot be used, such as a URL where only local files are supported."""


class SourceNote(UserWarning):
    """A note about what was selected, changed or omitted in a source; it is not a problem."""


class ImageWarning(UserWarning):
    """A readable image with almost no content; see `gray_levels`."""


def shortened(lines: Sequence[str], ends: int = 10) -> list[str]:
    """The first and the last `ends` of a long list, with the number of the others between them."""
    if len(lines) <= 2 * ends + 1:
        return list(lines)
    return [*lines[:ends], f"... {len(lines) - 2 * ends} more ...", *lines[-ends:]]

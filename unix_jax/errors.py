"""Errors caused by what the user gave us; the command line prints them as one line."""


class UniXError(Exception):
    """Base of every error whose cause is an input: a file, a key, an argument."""


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


class PromptError(UniXError):
    """A prompt, token id or generation argument outside what the model can take."""


class StorageError(UniXError):
    """A path that cannot be used, such as a URL where only local files are supported."""

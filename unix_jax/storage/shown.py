"""What messages call local copies of what is in a bucket: by their URLs."""

import os
from pathlib import Path

# Local directory or file -> URL, of this process.
_URLS: dict[str, str] = {}


def remember(local: Path, url: str) -> None:
    """From now on `shown` has the URL for this local path, and for all below it."""
    _URLS[str(local)] = url


def shown(text: object) -> str:
    """A text with the URLs of local copies instead of their paths."""
    line = os.fspath(text) if isinstance(text, os.PathLike) else str(text)
    for local in sorted(_URLS, key=len, reverse=True):
        line = line.replace(local, _URLS[local])
    return line

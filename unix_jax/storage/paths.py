"""Checks that paths are local, wherever a user can give one.

A URL that reaches `pathlib` becomes a relative path: `gs://bucket/run` would be written into a
local folder named `gs:`. Therefore every path from a user passes `local_path` first.
"""

import os
import re
import urllib.parse
from pathlib import Path

from unix_jax.errors import StorageError

# "scheme://" anywhere: "simplecache::gs://bucket" chains two, and a source of data has options.
# One letter is a drive of Windows.
_URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
# `Path("gs://bucket")` has lost a slash already, and a colon alone is part of many names.
_CUT_URL = re.compile(
    r"\s*(abfss?|adl|az|azure|dbfs|file|ftps?|gcs|gs|hdfs|hf|https?|oci|r2|s3[an]?|sftp|ssh|"
    r"wasbs?|webhdfs):/",
    re.IGNORECASE,
)

_IN_BUCKETS = re.compile(r"(?<=[^:][:=])(gs|s3)://", re.IGNORECASE)


def is_url(text: str) -> bool:
    """Whether a text has the form of a URL, also after `pathlib` has removed a slash."""
    return bool(_URL.search(text) or _CUT_URL.match(text))


def local_path(path: str | os.PathLike[str], argument: str | None = None) -> Path:
    """The path, which must be that of a local file or directory; it need not exist.

    Args:
      path: a text or a path. Colons may occur in names; `scheme://` may not.
      argument: the name of the path in errors, such as `--out`; by default only its text.

    Raises:
      StorageError: a URL, an empty text, a text with NUL, or another type.
    """
    front = f"{argument}: " if argument else ""
    try:
        text = os.fspath(path)
    except TypeError:
        raise StorageError(
            f"{front}expected a path (str or os.PathLike), found {type(path).__name__}"
        ) from None
    if isinstance(text, bytes):
        text = os.fsdecode(text)
    if not text or "\0" in text:
        raise StorageError(f"{front}expected a path, found {text!r}")
    refuse_url(text, argument)
    return Path(text)


def source_text(text: str, argument: str | None = None) -> str:
    """The text as it is: a source of data, KIND:PATH?OPTION=VALUE.

    Which kinds read buckets is decided where the source is opened.

    Raises:
      StorageError: there is a URL of another kind in it, possibly percent-encoded.
    """
    plain = urllib.parse.unquote(text)
    if is_url(_IN_BUCKETS.sub("", plain)):
        refuse_url(plain, argument)
    return text


def names_bucket(source: str) -> bool:
    """Whether a source of data, or a part of a mixture, is in a bucket."""
    return bool(_IN_BUCKETS.search(urllib.parse.unquote(source)))


def refuse_url(text: str, argument: str | None = None) -> None:
    """Raises StorageError where `text` is a URL or contains one."""
    if is_url(text):
        advice = (
            "name the file or directory without file://"
            if re.match(r"\s*file:/", text, re.IGNORECASE)
            else "copy it to a local directory, or mount it, and name that"
        )
        front = f"{argument}: " if argument else ""
        raise StorageError(f"{front}{text}: remote paths are not supported yet; {advice}")

"""Fields of a row that a file gave us: each read with its type checked.

`where` is how errors name the row: "FILE: row KEY".
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unix_jax.errors import DataError
from unix_jax.storage.bucket_path import any_path
from unix_jax.storage.buckets import is_bucket

Row = Mapping[str, Any]

_TEXT_FIELDS = ("findings", "impression", "view", "patient", "split")


def parse_object(text: str | bytes, where: str) -> dict[str, Any]:
    """A JSON object.

    Raises:
      DataError: not JSON, or another value than an object.
    """
    value = parse_json(text, where)
    if not isinstance(value, dict):
        raise DataError(f"{where}: expected a JSON object, found {type(value).__name__}")
    return value


def parse_json(text: str | bytes, where: str) -> Any:
    """Any JSON value.

    Raises:
      DataError: not JSON in UTF-8.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:120] or "nested too deeply"
        raise DataError(f"{where}: expected JSON, found: {reason}") from None


def text_field(row: Row, name: str, where: str) -> str:
    """A string without surrounding white space; "" if it is absent or null. Numbers become text."""
    value = row.get(name)
    if value is None:
        return ""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    return _checked_text(value, name, where).strip()


def texts_field(row: Row, name: str, where: str) -> tuple[str, ...]:
    """A list of strings, without the empty ones; () if it is absent or null."""
    value = row.get(name)
    if value is None:
        return ()
    if not isinstance(value, list | tuple):
        raise DataError(f"{where}: {name}: expected a list of strings, found {value!r:.60}")
    texts = (_checked_text(v, f"{name}[{i}]", where).strip() for i, v in enumerate(value))
    return tuple(text for text in texts if text)


def report_fields(row: Row, where: str) -> dict[str, Any]:
    """The fields of a `Record` that have the same name in every format."""
    found: dict[str, Any] = {name: text_field(row, name, where) for name in _TEXT_FIELDS}
    return found | {name: texts_field(row, name, where) for name in ("captions", "labels")}


def image_path(value: Any, root: Path, where: str, name: str = "image") -> Path:
    """`value`, of the field `name`, relative to `root`; or the URL of a bucket.

    Whether the file exists shows when the image is loaded.
    """
    text = _checked_text(value, name, where)
    if not text or "\0" in text:
        raise DataError(f"{where}: {name}: expected a path, found {value!r:.60}")
    return any_path(text) if is_bucket(text) else root / text


def _checked_text(value: Any, name: str, where: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{where}: {name}: expected a string, found {value!r:.60}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise DataError(f"{where}: {name}: expected Unicode, found a lone surrogate") from None
    return value

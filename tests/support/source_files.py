"""Files of the sources' tests, and what reading a row gives."""

import io
import json
from pathlib import Path

import pytest
from PIL import Image

from unix_jax.data.records import Record, RecordSource
from unix_jax.errors import DataError


def lines_file(path: Path, rows) -> Path:
    """One line a row; strings are written as they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def picture_bytes() -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (32, 24), 90).save(buffer, "PNG")
    return buffer.getvalue()


def read_or_error(source: RecordSource, index: int) -> str | None:
    """None for a record, or the message of its DataError."""
    try:
        assert isinstance(source[index], Record)
    except DataError as error:
        return str(error)
    return None


def error_of(source: RecordSource, index: int) -> str:
    with pytest.raises(DataError) as caught:
        source[index]
    assert "\n" not in str(caught.value)
    return str(caught.value)

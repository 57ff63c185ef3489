"""JSON files: written with indentation, read as untrusted input."""

import json
from pathlib import Path
from typing import Any

from unix_jax.errors import ConfigError, UniXError


def read_json(
    path: Path, error: type[UniXError] = ConfigError, *, max_bytes: int | None = None
) -> Any:
    """The parsed file; any defect raises an `error` that names the file.

    `max_bytes` is the largest size that is parsed.
    """
    try:
        if max_bytes is not None and path.stat().st_size > max_bytes:
            raise error(
                f"{path}: expected JSON of at most {max_bytes} bytes, found {path.stat().st_size}"
            )
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise error(f"{path}: no such file") from None
    except OSError as problem:
        raise error(f"{path}: cannot be read: {problem.strerror}") from None
    except (ValueError, RecursionError) as problem:
        reason = str(problem) or "nested too deeply"
        raise error(f"{path}: expected JSON in UTF-8, found: {reason}") from None


def write_json(path: Path, value: Any) -> None:
    """Indented JSON with a final newline."""
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

"""JSON files: written with indentation, read as untrusted input."""

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unix_jax.errors import ConfigError, UniXError

# The field of a sealed object that has the checksum of all others.
SEAL = "crc32"


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


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object with the CRC-32 of its other fields, whatever their order and indentation."""
    rest = {name: field for name, field in value.items() if name != SEAL}
    text = json.dumps(rest, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return rest | {SEAL: zlib.crc32(text.encode())}


def seal_problem(value: Mapping[str, Any], fields: frozenset[str]) -> str | None:
    """What is wrong with a parsed object that `sealed` may have returned; None if nothing is.

    An object of an earlier version has no checksum. There a field that is not one of `fields` is
    damage, since the checksum itself may have lost its name.
    """
    if SEAL not in value:
        unknown = sorted(value.keys() - fields)
        return f"unknown field {unknown[0]!r}" if unknown else None
    try:
        expected = sealed(value)[SEAL]
    except RecursionError:
        return "nested too deeply"
    if value[SEAL] == expected:
        return None
    return f"content changed since it was written: its CRC-32 is {expected}, found {value[SEAL]!r}"

"""Reads untrusted YAML files with limits."""

from pathlib import Path
from typing import Any

import yaml

from unix_jax.errors import ConfigError

# The published file has 700 bytes. PyYAML reads some 50 KiB a second.
MAX_YAML_BYTES = 64 * 1024
_MAX_DEPTH = 32
# Longer numbers take Python quadratic time.
_MAX_SCALAR = 1000


class _PlainLoader(yaml.SafeLoader):
    """Refuses aliases, which let a few lines expand to gigabytes, and deep nesting."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not accepted")
        event = self.peek_event()
        if isinstance(event, yaml.ScalarEvent) and len(event.value) > _MAX_SCALAR:
            raise yaml.YAMLError(
                f"a value of {len(event.value)} characters, expected at most {_MAX_SCALAR}"
            )
        if self.depth == _MAX_DEPTH:
            raise yaml.YAMLError(f"more than {_MAX_DEPTH} levels")
        self.depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


def read_yaml(path: Path) -> dict[str, Any] | None:
    """A YAML mapping; None if there is no such file.

    Raises:
      ConfigError: the file cannot be read, is too large, or is not a mapping.
    """
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            data = file.read(MAX_YAML_BYTES + 1)
        if len(data) > MAX_YAML_BYTES:
            raise ConfigError(
                f"{path}: expected YAML of at most {MAX_YAML_BYTES} bytes, "
                f"found {path.stat().st_size}"
            )
        values = yaml.load(data.decode("utf-8"), _PlainLoader)
    # A wrong date, an unhashable key and the like raise what Python raises.
    except (
        OSError, ValueError, RecursionError, OverflowError, TypeError, LookupError, AttributeError,
        yaml.YAMLError,
    ) as error:  # fmt: skip
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ConfigError(f"{path}: expected YAML in UTF-8, found: {reason}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a mapping, found {type(values).__name__}")
    return values

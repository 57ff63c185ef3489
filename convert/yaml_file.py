"""YAML files, read without trust."""

from pathlib import Path
from typing import Any

import yaml

from unix_jax.errors import ConfigError


class _PlainLoader(yaml.SafeLoader):
    """Without aliases, which let a few lines expand to gigabytes."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not accepted")
        return super().compose_node(parent, index)


def read_yaml(path: Path) -> dict[str, Any] | None:
    """A YAML mapping; None if there is no such file.

    Raises:
      ConfigError: the file cannot be read, or is no mapping.
    """
    if not path.is_file():
        return None
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _PlainLoader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path}: expected YAML in UTF-8, found: {reason}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a mapping, found {type(values).__name__}")
    return values

"""Types and checks of options that several commands share."""

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any

from tyro.constructors import PrimitiveConstructorSpec

from unix_jax.errors import UniXError
from unix_jax.storage.bucket_path import any_path
from unix_jax.storage.buckets import is_bucket
from unix_jax.storage.hub import path_or_name
from unix_jax.storage.paths import local_path, source_text


def _text(text: str) -> str:
    if text:
        local_path(text)
    return text


def _any_text(text: str) -> str:
    return str(any_path(text)) if is_bucket(text) else _text(text)


def _checkpoint_text(text: str) -> str:
    return path_or_name(text) if text else text


def _path_type(kind: type, read: Callable[[str], Any], metavar: str) -> Any:
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=lambda words: read(words[0]),
        is_instance=lambda value: isinstance(value, kind),
        str_from_instance=lambda value: [str(value)],
    )


# Every option and argument of every command that names a file or a directory has one of these
# types. tests/test_paths_of_commands.py walks them all.
LocalPath = Annotated[Path, _path_type(Path, local_path, "PATH")]
"""A local file or directory."""
PathText = Annotated[str, _path_type(str, _text, "PATH")]
"""Like `LocalPath`, kept as a text; "" means none."""
AnyPath = Annotated[Path, _path_type(Path, any_path, "PATH")]
"""A file or directory, local or in a bucket (`unix_jax.storage.bucket_path`)."""
AnyPathText = Annotated[str, _path_type(str, _any_text, "PATH")]
"""Like `AnyPath`, kept as a text; "" means none."""
CheckpointText = Annotated[str, _path_type(str, _checkpoint_text, "PATH|OWNER/NAME")]
"""Like `AnyPathText`, or a name on the hub (`unix_jax.storage.hub`)."""
WeightsText = Annotated[str, _path_type(str, _text, "model|ema|NAME|FILE")]
"""Selects the weights of a source: a name, or a local file."""
SourceText = Annotated[str, _path_type(str, source_text, "KIND:PATH")]
"""A source of data, see `unix_jax.data.sources`; its paths may be in buckets."""


def require_least(command: object, **least: float) -> None:
    """Raises UniXError for a number below its minimum; None is allowed.

    `least` is by the name of the command's field, which is that of the option with underscores.
    """
    for name, smallest in least.items():
        value = getattr(command, name)
        # Not-a-number is below everything.
        if value is not None and not value >= smallest:
            option = f"--{name.replace('_', '-')}"
            raise UniXError(f"{option}: expected at least {smallest}, found {value}")


def refuse_without_effect(command: Any, names: Iterable[str], where: str) -> None:
    """Raises UniXError for an option that is not at its default where it would do nothing.

    Args:
      command: an instance of the command's dataclass.
      names: its fields without effect.
      where: why they have none, such as "without --train SOURCE".
    """
    defaults = {field.name: field.default for field in dataclasses.fields(command)}
    for name in names:
        if getattr(command, name) != defaults[name]:
            raise UniXError(f"--{name.replace('_', '-')}: has no effect {where}")

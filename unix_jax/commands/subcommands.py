"""Short descriptions in the list of a command's subcommands."""

import inspect
import typing
from collections.abc import Sequence
from typing import Annotated, Any

import tyro


def with_short_descriptions(command: Any, given: Sequence[str]) -> Any:
    """The type to parse with `tyro.cli`: its list of subcommands has the first paragraph of each.

    The help of a single subcommand shows its whole docstring, including the examples.

    Args:
      command: a union of `Annotated[kind, tyro.conf.subcommand(name)]`, which may be annotated.
      given: the words of the command line.
    """
    if given and not given[0].startswith("-"):
        return command
    annotated = typing.get_origin(command) is Annotated
    union, *markers = typing.get_args(command) if annotated else (command,)
    shortened = []
    for member in typing.get_args(union):
        kind, subcommand = typing.get_args(member)
        text = (inspect.getdoc(kind) or "").partition("\n\n")[0]
        short = tyro.conf.subcommand(subcommand.name, description=text)
        shortened.append(Annotated[kind, short])
    whole: Any = typing.Union[tuple(shortened)]  # noqa: UP007
    return Annotated[(whole, *markers)] if markers else whole

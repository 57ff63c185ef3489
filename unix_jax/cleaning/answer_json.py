"""JSON in a language model's reply, also in Python's notation ('x', True, None, a last comma)."""

import ast
import json
import re
from collections.abc import Iterator
from typing import Any

_OPENING = re.compile(r"\{\s*[\"'}]|\[\s*[{\"']")
_TOKEN = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|[{}\[\]]", re.DOTALL)
# The parser warns of any other escape.
_OTHER_ESCAPE = re.compile(r"\\[^\\'\"nrt]")
_NAMED = {"true": True, "false": False, "null": None}


def values_in(text: str, most: int = 8) -> Iterator[tuple[Any, int, int]]:
    """(value, start, end) of the objects and lists in a text, also of those within another."""
    for found in list(_OPENING.finditer(text))[:most]:
        value = _value_at(text, found.start())
        if value is not None:
            yield value[0], found.start(), value[1]


def _value_at(text: str, start: int) -> tuple[Any, int] | None:
    decoder = json.JSONDecoder(strict=False, object_pairs_hook=_once_each)
    try:
        return decoder.raw_decode(text, start)
    except json.JSONDecodeError:
        return _python_value_at(text, start)
    except (ValueError, RecursionError):
        return None


def _python_value_at(text: str, start: int) -> tuple[Any, int] | None:
    depth = 0
    for token in _TOKEN.finditer(text, start):
        depth += (token[0] in "{[") - (token[0] in "}]")
        if depth == 0:
            break
    else:
        return None
    written = text[start : token.end()].replace("\n", " ")
    if _OTHER_ESCAPE.search(written):
        return None
    try:
        return _constant(ast.parse(written, mode="eval").body), token.end()
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None


def _constant(node: ast.expr | None) -> Any:
    """The value of an expression without names and calls."""
    match node:
        case ast.Constant(value):
            return value
        case ast.Name(name) if name in _NAMED:
            return _NAMED[name]
        case ast.List(parts):
            return [_constant(part) for part in parts]
        case ast.Dict(names, contents):
            keys = [_constant(name) for name in names]
            return _once_each(
                [(str(key), _constant(part)) for key, part in zip(keys, contents, strict=True)]
            )
    raise ValueError("not a value of JSON")


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [re.sub(r"[\s-]+", "_", name.strip().lower()) for name, _ in pairs]
    if len(set(names)) < len(names):
        raise ValueError("a name occurs twice")
    return dict(zip(names, (value for _, value in pairs), strict=True))


def joined(value: Any) -> str:
    """The text of a string or of a list of strings."""
    texts = value if isinstance(value, list) else [value]
    return " ".join(text.strip() for text in texts if isinstance(text, str))

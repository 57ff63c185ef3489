"""The text of a compiled program (XLA's HLO) as computations of instructions."""

import dataclasses
import functools
import math
import re
from typing import NamedTuple

_BITS = {"pred": 8, "token": 0, "opaque": 0, "c64": 64, "c128": 128}
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_NAME = re.compile(r"^\s*(ROOT )?%?([\w.\-]+) = ")
_ARRAY = re.compile(r"\b([a-z][a-z0-9]*)\[([\d,<=]*)\](?:\{([^}]*)\})?")
_OPERAND = re.compile(r"%([\w.\-]+)")


class Shape(NamedTuple):
    """An array; `in_hbm` is False for one in a memory on the chip (`S(n)` of a TPU's layout)."""

    kind: str
    sizes: tuple[int, ...]
    in_hbm: bool

    @property
    def bytes(self) -> int:
        bits = _BITS.get(self.kind)
        if bits is None:
            digits = re.search(r"\d+", self.kind)
            bits = int(digits.group()) if digits else 0
        return math.prod(self.sizes) * bits // 8


@dataclasses.dataclass(frozen=True)
class Instruction:
    """`%name = shapes opcode(arguments)attributes`."""

    name: str
    shapes: tuple[Shape, ...]
    opcode: str
    arguments: str
    attributes: str
    is_root: bool

    @functools.cached_property
    def operands(self) -> list[str]:
        return _OPERAND.findall(self.arguments)

    def called(self, attribute: str) -> str | None:
        """The computation that an attribute such as `body` names."""
        found = re.search(rf"\b{attribute}=%?([\w.\-]+)", self.attributes)
        return found.group(1) if found else None


Computation = dict[str, Instruction]


def parse(text: str) -> tuple[dict[str, Computation], str]:
    """(all computations by name, the name of the entry computation)."""
    computations: dict[str, Computation] = {}
    entry, current = "", None
    for line in text.splitlines():
        header = _HEADER.match(line)
        if header:
            current = computations.setdefault(header.group(2), {})
            entry = header.group(2) if header.group(1) else entry
        elif current is not None and (name := _NAME.match(line)):
            instruction = _instruction(name.group(2), bool(name.group(1)), line[name.end() :])
            current[instruction.name] = instruction
    return computations, entry


def _instruction(name: str, is_root: bool, text: str) -> Instruction:
    """`TYPE opcode(operands), attributes`; a tuple's type is in parentheses itself."""
    end = _closing(text, 0) if text.startswith("(") else text.index(" ")
    start = text.index("(", end)
    stop = _closing(text, start)
    return Instruction(
        name,
        _shapes(text[:end]),
        text[end:start].strip(),
        text[start + 1 : stop - 1],
        text[stop:],
        is_root,
    )


def _closing(text: str, start: int) -> int:
    """The position after the parenthesis that closes the one at `start`."""
    depth = 0
    for place in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if depth == 0:
            return place + 1
    return len(text)


def _shapes(text: str) -> tuple[Shape, ...]:
    return tuple(
        Shape(
            kind,
            tuple(int(size.lstrip("<=")) for size in sizes.split(",") if size),
            re.search(r"S\([1-9]", layout or "") is None,
        )
        for kind, sizes, layout in _ARRAY.findall(text)
    )

"""Tables of replacements: patterns with the text that takes their place, applied in their order."""

import re
from collections.abc import Iterable

Replacement = tuple[re.Pattern[str], str]


def rule(pattern: str, replacement: str = " ") -> Replacement:
    """A replacement that ignores case; by default what matches becomes a space."""
    return re.compile(pattern, re.IGNORECASE), replacement


def replaced(text: str, replacements: Iterable[Replacement]) -> str:
    """`text` after each replacement."""
    for pattern, replacement in replacements:
        text = pattern.sub(replacement, text)
    return text

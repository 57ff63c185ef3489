"""Automatic checks of a rewritten report against the original, for added statements."""

import re
from collections.abc import Iterator

from unix_jax.cleaning.facts import DEVICES, SIDES
from unix_jax.cleaning.marks import MARK
from unix_jax.data.report_sections import sections_as_read, split_written

_LETTER = re.compile(r"[^\W\d_]")
_FORMAT = re.compile(
    r"(?:FINDINGS: .+ IMPRESSION: .+|FINDINGS: .+|IMPRESSION: (?:(?!FINDINGS:).)+)", re.DOTALL
)
_MARK = re.compile(MARK)

_NUMBER_WORDS = (
    "one first, two second, three third, four fourth, five fifth, six sixth, seven seventh, "
    "eight eighth, nine ninth, ten tenth, eleven eleventh, twelve twelfth"
)
_IN_WORDS = {
    word: str(i) for i, pair in enumerate(_NUMBER_WORDS.split(","), 1) for word in pair.split()
}
# "one" is a pronoun too, and "second" a verb: in words they count for the original only.
_AMBIGUOUS = frozenset({"one", "first", "second"})
_NUMBER = re.compile(
    r"(?<![\w.])(?P<letter>[a-z]?)(?P<digits>\d+(?:[.,]\d+)*)\s*-?(?P<unit>mm|cm|%|m?l\b|cc|kg)?",
    re.IGNORECASE,
)
_LIST_NUMBER = re.compile(r"(?:^|(?<=\s))(\d{1,2})[.)]\s+")

_SIDE_AND_NEXT = re.compile(r"\b(left|right)(?:-sided| sided)?[ -]+([a-z]{3,})", re.IGNORECASE)

_DEVICE_PATTERNS = {name: re.compile(pattern, re.IGNORECASE) for name, pattern in DEVICES.items()}
# A wider name is no new device where the original names one of its kind.
_WIDER = {
    r"\b(?:catheters?|lines?)\b": r"catheter|\blines?\b|picc|\bport\b|mediport|swan|hickman|\bcvc\b"
    r"|jugular|subclavian|dialysis",
    r"\bleads?\b": r"\bleads?\b|pacemaker|\bpac(?:ing|er)\b|\ba?icd\b|defibrillator"
    r"|electrode|monitor",
    r"\btubes?\b": r"\btubes?\b|intubat|tracheostomy|\b[eno](?:g|t)t?\b|thoracostomy|dobb?-?hoff"
    r"|gastric",
    r"\benteric\b": r"enteric|gastric|\b[no]gt?\b|feeding|dobb?-?hoff",
    r"\bgenerator\b": r"generator|pacemaker|\bpac(?:ing|er)\b|\ba?icd\b|defibrillator|stimulator",
    r"\bwires?\b": r"\bwires?\b|cerclage|sternotomy|pac(?:ing|emaker)",
}
_WIDER_PATTERNS = [
    (re.compile(name, re.IGNORECASE), re.compile(kinds, re.IGNORECASE))
    for name, kinds in _WIDER.items()
]


def problems(original: str, rewrite: str) -> list[str]:
    """The problems of `rewrite`, each as a sentence that states the correction; [] without any.

    Format: "FINDINGS: ... IMPRESSION: ..." with text in both, or the only section of the original.
    Content: no number (with its unit), side or device that the original lacks, no side moved from
    one thing to another, and no mark of de-identification. What is lost is found by
    `guard.rewriting_problems`.
    """
    found = list(_format_problems(original, rewrite))
    if found:
        return found
    return [
        *(f'Do not add the number "{number}".' for number in _added_numbers(original, rewrite)),
        *(f'Do not add the side "{side}".' for side in _added_sides(original, rewrite)),
        *(f'The side of "{text}" differs.' for text in _moved_sides(original, rewrite)),
        *(f'Do not add a device: "{device}".' for device in _added_devices(original, rewrite)),
        *(["Remove the marks of de-identification."] if _MARK.search(rewrite) else []),
    ]


def _format_problems(original: str, rewrite: str) -> Iterator[str]:
    if not _LETTER.search(rewrite):
        yield "Write the report; nothing was written."
        return
    if not _FORMAT.fullmatch(" ".join(rewrite.split())):
        yield 'Write exactly "FINDINGS: ... IMPRESSION: ..." and nothing before or after it.'
        return
    for heading in ("FINDINGS", "IMPRESSION"):
        if rewrite.count(f"{heading}:") > 1:
            yield f"Write {heading}: once."
    sections = dict(zip(("FINDINGS", "IMPRESSION"), split_written(rewrite), strict=True))
    had = dict(zip(("FINDINGS", "IMPRESSION"), sections_as_read(original), strict=True))
    for heading, text in sections.items():
        # An original without headings must be given both.
        needed = bool(had[heading]) or not any(had.values())
        if (needed or f"{heading}:" in rewrite) and not _LETTER.search(text):
            yield f"{heading} is empty; write what the original says there."


def _without_list_numbers(text: str) -> str:
    """Text without 1., 2., 3., ... where they count up from 1 within a section."""
    expected = 1

    def dropped(match: re.Match[str]) -> str:
        nonlocal expected
        number = int(match[1])
        if number not in (1, expected):
            return match[0]
        expected = number + 1
        return " "

    return _LIST_NUMBER.sub(dropped, text)


def _numbers(text: str) -> Iterator[tuple[str, str]]:
    """(number, unit) of each; vertebrae keep their letter: "t12"."""
    for match in _NUMBER.finditer(text):
        digits = match["digits"].replace(",", ".")
        yield match["letter"].lower() + digits, (match["unit"] or "").lower()


def _added_numbers(original: str, rewrite: str) -> list[str]:
    known = set(_numbers(original))
    values = {number for number, _ in known}
    words = re.findall(r"[a-z]+", original.lower())
    values |= {_IN_WORDS[word] for word in words if word in _IN_WORDS}
    body = _without_list_numbers(rewrite)
    added = [
        number + unit
        for number, unit in _numbers(body)
        if number not in values or (unit and (number, unit) not in known)
    ]
    added += [
        word
        for word in re.findall(r"[a-z]+", body.lower())
        if word in _IN_WORDS and word not in _AMBIGUOUS and _IN_WORDS[word] not in values
    ]
    return list(dict.fromkeys(added))


def _added_sides(original: str, rewrite: str) -> list[str]:
    had = {side for side, pattern in SIDES.items() if pattern.search(original)}
    if {"left", "right"} <= had:
        had.add("bilateral")
    if "bilateral" in had:
        # "Right and left" is what bilateral means; one side alone would not be.
        both = all(SIDES[side].search(rewrite) for side in ("left", "right"))
        had |= {"left", "right"} if both else set()
    return [s for s, pattern in SIDES.items() if s not in had and pattern.search(rewrite)]


def _moved_sides(original: str, rewrite: str) -> list[str]:
    """ "left effusion" where the original has only "right effusion"."""
    known = {(side.lower(), noun.lower()) for side, noun in _SIDE_AND_NEXT.findall(original)}
    other = {"left": "right", "right": "left"}
    pairs = [(side.lower(), noun.lower()) for side, noun in _SIDE_AND_NEXT.findall(rewrite)]
    return list(
        dict.fromkeys(
            f"{side} {noun}"
            for side, noun in pairs
            if (side, noun) not in known and (other[side], noun) in known
        )
    )


def _added_devices(original: str, rewrite: str) -> list[str]:
    added = [
        name
        for name, pattern in _DEVICE_PATTERNS.items()
        if pattern.search(rewrite) and not pattern.search(original)
    ]
    wider = [
        found[0].lower()
        for name, kinds in _WIDER_PATTERNS
        if (found := name.search(rewrite)) and not kinds.search(original)
    ]
    return added + wider

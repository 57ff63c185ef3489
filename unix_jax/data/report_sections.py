"""The sections of a radiology report: from text with headings to findings and impression.

Two forms are read: MIMIC-CXR's, where a heading in capitals and a colon opens a line, and the
cleaned form "FINDINGS: ... IMPRESSION: ...", where both may stand on one line.
"""

import re

_FINDINGS = frozenset({"FINDINGS", "FINDING", "FINDINGS AND IMPRESSION", "FINDINGS/IMPRESSION"})
_IMPRESSION = frozenset({"IMPRESSION", "IMPRESSIONS", "CONCLUSION", "CONCLUSIONS"})

# The length of a heading is bounded so that the search stays linear in the text.
_HEADING = re.compile(
    r"^[ \t]*(?P<line>[A-Z][A-Z0-9 ,/&()'-]{0,60}?|[Ff]indings|[Ii]mpression)[ \t]{0,4}:"
    r"|\b(?P<inline>FINDINGS|IMPRESSION):",
    re.MULTILINE,
)
# A preliminary reading may precede the final one in the same file.
_FINAL = re.compile(r"^[ \t]*FINAL REPORT[ \t]*$", re.MULTILINE)


def split_report(text: str) -> tuple[str, str]:
    """(findings, impression) of a report; "" for a section that it does not have.

    Text under other headings, and text before the first heading, belongs to neither. A heading that
    occurs again continues its section. White space becomes single spaces.
    """
    body = _FINAL.split(text)[-1]
    headings = list(_HEADING.finditer(body))
    ends = [*(heading.start() for heading in headings), len(body)][1:]
    findings: list[str] = []
    impression: list[str] = []
    for heading, end in zip(headings, ends, strict=True):
        name = " ".join((heading["line"] or heading["inline"]).upper().split())
        content = body[heading.end() : end].split()
        if name in _FINDINGS:
            findings += content
        elif name in _IMPRESSION:
            impression += content
    return " ".join(findings), " ".join(impression)

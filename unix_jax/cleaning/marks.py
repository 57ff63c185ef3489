"""Marks of de-identification: ___ (MIMIC-CXR), XXXX (Open-I) and [** ... **] (MIMIC-III)."""

import re

MARK = (
    r"(?:\[\*\*[^\]]{0,80}\*\*\]|_{2,}|(?<![A-Za-z])X{3,}(?:'?s)?\b"
    r"|X{4,}(?=[a-z]{1,2}\b|[AP]M\b|<))"
)
MARKS = rf"{MARK}(?:[\s,/:<>-]{{0,3}}{MARK}){{0,12}}"
ANY_MARK = re.compile(MARK)

"""Headings of radiology reports: which lines and words open a section, and of what kind."""

import dataclasses
import functools
import re
from collections.abc import Iterator
from typing import Literal

Kind = Literal["findings", "impression", "other", "aside"]
"""`other` is what precedes a reading (history, technique), `aside` what is no reading of the final
report: preliminary readings, notifications, recommendations. An addendum is a reading, and counts
as findings."""

_COLON = "[:\N{FULLWIDTH COLON}]"
# Lengths are bounded so that the search stays linear in the text. A time ("5:10 PM") is no end.
_LINE_HEADING = re.compile(
    rf"^[ \t]*(?P<name>[A-Za-z](?:[\w ,/&()'.#+-]|:(?=\d)){{0,79}}?)[ \t]{{0,4}}{_COLON}(?!\d)"
)
_BARE_HEADING = re.compile(
    r"^[ \t]*(?P<name>[A-Za-z][A-Za-z /&]{0,40}?)[ \t]*(?P<end>;|[-\u2013\u2014.](?=\s)|\.?$)"
)
# "ADDENDUM  A nodule is seen.", "Addendum by Dr. ___ on ___ at 5:10: A nodule is seen."
_ADDENDUM_LINE = re.compile(
    r"^[ \t]*(?P<name>(?:[A-Z]{1,12} )?ADDEND(?:UM|A))\b[ \t]*"
    r"(?P<by>(?:by|on|from|at|dated|#|\d)(?:[^:\n]|:(?=\d)){0,80}:(?!\d))?",
    re.IGNORECASE,
)
# Within a line: words that are always a heading.
_INLINE_UPPER = re.compile(
    r"(?<![\w/&-])(?P<name>(?:(?:FINDINGS?|IMPRESSIONS?|CONCLUSIONS?|RECOMMENDATIONS?)"
    rf"(?: AND | & | ?/ ?)?){{1,4}}){_COLON}"
)
_INLINE_AFTER_SENTENCE = re.compile(
    rf"(?:(?<=[.!?]\s)|(?<=[.!?]\s\s))(?P<name>[A-Za-z][A-Za-z /&]{{2,40}}){_COLON}(?!\d)"
)
_INLINE_CAPITALIZED = re.compile(
    r"(?<![\w/&-])(?P<name>(?:Findings?|Impressions?|Conclusions?)"
    rf"(?:(?: and | & | ?/ ?)(?:Impression|Recommendations?|Plan))?){_COLON}"
)
# The word before such a heading: "Incidental Findings: ..." and "discussion of Findings: ..." are
# no headings, "TB test Findings: ..." has one.
_JOINED_WORD = re.compile(r"(?:\b[A-Z][a-z]+|\b(?:of|the|these|other|and|for|to|with|all|no))\s\Z")
# "**FINDINGS:**", "[FINDINGS]", "<FINDINGS>" and its end, "== FINDINGS ==", "# Findings".
_MARKED = re.compile(
    r"(?:(?P<open>\*{1,3}|\[|</?|={2,4}|_{2}(?!_)) ?|^[ \t]*#{1,6}[ \t]*)"
    rf"(?P<name>[A-Za-z][A-Za-z /&]{{1,50}}?) ?{_COLON}? ?"
    r"(?(open)(?:\*{1,3}|\]|>|={2,4}|_{2}(?!_))|(?:#{1,6}[ \t]*)?$)"
    rf" ?{_COLON}?",
    re.MULTILINE,
)
# "1. FINDINGS: ...", "- FINDINGS: ...", "## FINDINGS: ..."
_LIST_MARK = re.compile(r"^[ \t]*(?:#{1,6}|\d{1,2}[.)]|[-*>\u2022])[ \t]*(?=[A-Za-z])")
_SPACED_LETTERS = re.compile(r"(?<!\S)(?:[A-Z] ){4,}[A-Z](?!\S)")


def _word_set(text: str) -> frozenset[str]:
    return frozenset(text.split())


_WORD = re.compile(r"\w+(?:['.-]\w+)*")
_FINDINGS_WORDS = ("FINDINGS", "FINDING")
_IMPRESSION_WORDS = ("IMPRESSION", "IMPRESSIONS", "CONCLUSION", "CONCLUSIONS")
_ADDENDUM = frozenset({"ADDENDUM", "ADDENDA"})
# The author or the number of an addendum: "Attending addendum", "SECOND ADDENDUM".
_BESIDE_ADDENDUM = _word_set(
    "ADDITIONAL AND ATTENDING CORRECTED FINAL FIRST FURTHER LATE RADIOLOGIST RADIOLOGY REPORT "
    "REVISED SECOND THE THIRD TO"
)
_ALSO_FINDINGS = frozenset({"REPORT", "DESCRIPTION", "OBSERVATIONS", "OBSERVATION"})
_ALSO_IMPRESSION = frozenset({"ASSESSMENT", "IMP", "SUMMARY", "OPINION", "INTERPRETATION"})
# Words that stand beside "findings" or "impression" in a heading; in mixed case no other may, since
# "Findings were discussed with Dr. ___:" is a sentence.
_BESIDE = _word_set(
    "ADDITIONAL AND CHEST CXR FINAL IMAGING INCIDENTAL MAIN OF OR OTHER OVERALL PLAN PULMONARY "
    "RADIOGRAPHIC RADIOLOGIC RADIOLOGICAL RADIOLOGY RADIOGRAPH RECOMMENDATION RECOMMENDATIONS RECS "
    "SUMMARY THE X-RAY XRAY"
)
_ASIDE_FIRST = _word_set(
    "ATTENDING ATTESTATION COMMUNICATION COMMUNICATIONS DICTATED NOTIFICATION "
    "NOTIFICATIONS PFI PRELIM PRELIMINARY PROVISIONAL RADIOLOGIST RECOMMENDATION RECOMMENDATIONS "
    "RECS SIGNED TRANSCRIBED WET WETREAD"
)
_OTHER_FIRST = _word_set(
    "ADMITTING CLINICAL COMPARISON COMPARISONS COMPARISION EXAM EXAMINATION EXAMS EXAMINATIONS "
    "HISTORY HX INDICATION INDICATIONS PROCEDURE QUESTION QUESTIONS REASON REFERENCE TECHNIQUE "
    "TECHNIQUES UNDERLYING"
)
# Headings of what the patient has, and not of how the examination was done.
_PATIENT = _word_set(
    "ADMITTING CLINICAL CONDITION HISTORY HX ILLNESS INDICATION INDICATIONS PATIENT QUESTION "
    "QUESTIONS REASON SIGNS SYMPTOMS UNDERLYING"
)
# In mixed case, or with another first word, the whole heading must consist of these: MEDICAL
# CONDITION is none of the findings, MEDICAL DEVICES is.
_OTHER_WORDS = _OTHER_FIRST | _word_set(
    "AND ANSWERED BE CONDITION CONTRAST DATE DIAGNOSIS DOSE FOR ILLNESS INFORMATION MEDICAL OF OR "
    "PATIENT PERFORMED PRESENT PREVIOUS PRIOR READ REPORT REQUEST SIGNS STATEMENT STUDIES STUDY "
    "SYMPTOMS THE THIS TIME TO TYPE VIEW VIEWS"
)

_VIEW_WORDS = _word_set(
    "AP BEDSIDE CXR DECUBITUS ERECT FILM FILMS FRONTAL LAT LATERAL OBLIQUE OBLIQUES PA PORTABLE "
    "PORTABLY RADIOGRAPH RADIOGRAPHS RADIOGRAPHY SEMI-ERECT SEMI-UPRIGHT SEMIERECT SEMIUPRIGHT "
    "SUPINE UPRIGHT VIEW VIEWS X-RAY X-RAYS XRAY XRAYS"
)
_PART_WORDS = frozenset({"CHEST", "THORAX", "RIB", "RIBS"})
_BODY_WORDS = _PART_WORDS | _word_set(
    "ABDOMEN ABDOMINAL CERVICAL CLAVICLE KUB LUMBAR PELVIS SHOULDER SPINE STERNUM THORACIC"
)
_BETWEEN_WORDS = _word_set(
    "A AM AND AT BILATERAL BOTH COMPARED DATED ERECT EXAM EXAMINATION FOR FOUR FROM HOURS HRS "
    "LEFT M MULTIPLE O'CLOCK OBTAINED OF ON ONE ONLY P PERFORMED PM RIGHT SAME SERIES SINGLE "
    "STUDY THE THREE TO TWO WITH YEAR"
)
_TECHNIQUE_WORDS = _word_set(
    "ACQUIRED ARE AVAILABLE BEEN COMPARISON DIGITAL EARLIER HAS HAVE IMAGE IMAGES IN IS IT MADE "
    "MOST NONE NO OBTAINED PROVIDED RADIOLOGIC RECENT REVIEWED SUBMITTED WAS WERE"
)
_SIDES = frozenset({"LEFT", "RIGHT"})
# Labels of the examination, with which a report without headings may begin.
_ANATOMY = _word_set(
    "AIRWAY AIRWAYS AORTA BONES CARDIAC CARDIOMEDIASTINAL DEVICES DIAPHRAGM ETT HEART HILA HILUM "
    "LINE LINES LUNG LUNGS MEDIASTINUM NGT OGT OSSEOUS PLEURA PLEURAL SOFT SUPPORT TUBE TUBES "
    "VASCULATURE"
)


@dataclasses.dataclass(frozen=True)
class Heading:
    """A heading at the start of a line.

    rest: what follows on the line.
    unknown: whether its name is none of those that are known.
    """

    kind: Kind
    name: str
    rest: str = ""
    unknown: bool = False

    @property
    def reading(self) -> bool:
        """Whether it says findings, impression or addendum, and does not name an examination."""
        return _reading_kind(words(self.name), upper=True) is not None

    @property
    def patient(self) -> bool:
        """Whether it tells of the patient (history, indication) and not of the examination."""
        return bool(_PATIENT & set(words(self.name)))

    @property
    def addendum(self) -> bool:
        return bool(_ADDENDUM & set(words(self.name)))


def unmarked(text: str) -> str:
    """The text with headings such as "**FINDINGS:**" and "<FINDINGS>" on lines of their own, as
    "FINDINGS:".
    """

    def plain(found: re.Match[str]) -> str:
        kind = plain_kind(found["name"], read=True)
        before = found.string[max(0, found.start() - 100) : found.start()]
        # "[Date]" and "[Patient]" hide what a text says, and "**contrast**" may be a word of it.
        inside = found["open"] == "[" or before.rpartition("\n")[2].strip()
        if kind is None or (inside and kind not in ("findings", "impression")):
            return found[0]
        return "" if found["open"] == "</" else f"\n{found['name']}:"

    return _MARKED.sub(plain, text)


def line_heading(
    line: str, within: Kind | None, after_blank: bool, complete: bool, read: bool
) -> Heading | None:
    """The heading at the start of a line.

    Args:
      within: the section that is open, None before the first heading.
      after_blank: whether a blank line precedes it.
      complete: whether the text above it ends with a sentence, or there is none.
      read: whether the findings or the impression have begun above.
    """
    mark = _LIST_MARK.match(line)
    if mark is not None:
        found = _LINE_HEADING.match(line[mark.end() :])
        kind = plain_kind(found["name"], read) if found else None
        # Within a reading, it may as well be an item of a list: "2. RECOMMENDATION: CT."
        reading = kind in ("findings", "impression")
        if found is None or kind is None or not (reading or within in (None, "other")):
            return None
        return Heading(kind, found["name"], line[mark.end() + found.end() :])
    found = _LINE_HEADING.match(line)
    if found is not None:
        name = found["name"]
        kind, rest = _kind_of(name, within, after_blank, read), line[found.end() :]
        if kind is not None:
            unknown = kind == "other" and (plain_kind(name) is None or _is_diagnosis(words(name)))
            # A label is part of the text that it opens.
            return Heading(kind, name, line if _is_anatomy(name) else rest, unknown)
    found = _ADDENDUM_LINE.match(line)
    if found is not None and (found["name"].isupper() or found["by"]):
        kind = _reading_kind(words(found["name"]), upper=False)
        if kind is not None:
            return Heading(kind, found["name"], line[found.end() :].lstrip(" \t.:-"))
    found = _BARE_HEADING.match(line)
    if found is not None:
        name, upper = found["name"], found["name"].isupper()
        # In mixed case nothing else is on the line; "FINDINGS." may also end a sentence.
        alone = not found["end"] and name[0].isupper() and not name.startswith("The ")
        if (upper or alone) and (complete or (upper and found["end"] != ".")):
            kind = _reading_kind(words(name), upper, bare=True)
            if kind is not None:
                return Heading(kind, name, line[found.end() :])
    return None


def inline_headings(line: str, read: bool) -> Iterator[tuple[str, Heading | None]]:
    """(text, the heading after it, or None at the end of the line)."""
    patterns = (_INLINE_UPPER, _INLINE_AFTER_SENTENCE, _INLINE_CAPITALIZED)
    matches = [(m, p) for p in patterns for m in p.finditer(line)]
    start = 0
    for found, pattern in sorted(matches, key=lambda match: match[0].start()):
        before = line[max(0, found.start() - 40) : found.start()]
        if pattern is _INLINE_CAPITALIZED and _JOINED_WORD.search(before):
            continue
        kind = plain_kind(found["name"], read) if found.start() >= start else None
        if kind is not None:
            yield line[start : found.start()], Heading(kind, found["name"])
            read = read or kind in ("findings", "impression")
            start = found.end()
    yield line[start:], None


def _kind_of(name: str, within: Kind | None, after_blank: bool, read: bool) -> Kind | None:
    """What a line's heading opens, None for a label or a sentence that belongs to the text."""
    plain = plain_kind(name, read)
    if plain is not None:
        return plain
    named, upper = words(name), name.upper() == name
    if within in ("findings", "impression"):
        if not (upper and names_examination(named) and _VIEW_WORDS & set(named)):
            return None
        # "RIGHT RIBS, TWO VIEWS" states the side, which its text may omit.
        opens = len(named) > 1 and not _SIDES & set(named)
        return "findings" if opens and (within == "findings" or after_blank) else None
    if names_examination(named) or (upper and (_VIEW_WORDS | _PART_WORDS) & set(named)):
        return "findings"
    if _is_anatomy(name) and name[0].isupper() and within != "aside":
        return "findings"
    return "other" if upper else None


def plain_kind(name: str, read: bool = False) -> Kind | None:
    """The kind of a heading that is one at any position.

    Args:
      read: whether the findings or the impression have begun above. A diagnosis below them is the
        impression; above them it may be the clinical one.
    """
    named, upper = words(name), name.upper() == name
    if not named:
        return None
    reading = _reading_kind(named, upper or (name[0].isupper() and len(named) == 1))
    if reading is not None:
        return reading
    # "wet read" in small letters is part of a sentence.
    if not name[0].isupper():
        return None
    if read and _is_diagnosis(named):
        return "impression"
    known = {"READ", "VERSION", "AND"} | _ASIDE_FIRST
    if named[0] in _ASIDE_FIRST and (upper or set(named) <= known):
        return "aside"
    if (upper and named[0] in _OTHER_FIRST) or set(named) <= _OTHER_WORDS:
        return "other"
    return None


def _is_diagnosis(named: list[str]) -> bool:
    return named[-1] in ("DIAGNOSIS", "DIAGNOSES") and set(named[:-1]) <= _BESIDE


def _reading_kind(named: list[str], upper: bool, bare: bool = False) -> Kind | None:
    """`findings` or `impression` for a heading that says so; findings where it says both."""
    if set(named) & _ADDENDUM:
        others = {word for word in named if not word.isdigit()} - _ADDENDUM
        return "findings" if (upper and not bare) or others <= _BESIDE_ADDENDUM else None
    if named == ["F", "I"]:
        return "findings"
    kinds = [_word_kind(word) for word in named]
    if not any(kinds):
        if named in (["ASSESSMENT", "AND", "PLAN"], ["ASSESSMENT", "PLAN"]):
            return "impression"
        if len(named) == 1 and upper and named[0] in _ALSO_FINDINGS | _ALSO_IMPRESSION:
            return "findings" if named[0] in _ALSO_FINDINGS else "impression"
        return None
    if named[0] in _ASIDE_FIRST - {"RECOMMENDATION", "RECOMMENDATIONS", "RECS"}:
        return None
    if named[0] in ("CLINICAL", "REASON", "PRIOR", "PREVIOUS", "INDICATION", "HISTORY"):
        return None
    beside = {word for word, kind in zip(named, kinds, strict=True) if kind is None}
    # Text in capitals before a colon is a heading in any case; a sentence in mixed case is not.
    if (bare or not upper) and not beside <= _BESIDE:
        return None
    return "findings" if "findings" in kinds else "impression"


@functools.lru_cache(maxsize=4096)
def _word_kind(word: str) -> Kind | None:
    if any(_is_spelling(word, known) for known in _FINDINGS_WORDS):
        return "findings"
    return "impression" if any(_is_spelling(word, w) for w in _IMPRESSION_WORDS) else None


def _is_spelling(word: str, known: str) -> bool:
    """Whether `word` is `known` with a typing error or, in its longest words, two.

    One more would take in words of their own: FEEDING for FINDING, CONTUSION for CONCLUSION.
    """
    if abs(len(word) - len(known)) > 2 or len(word) < 6:
        return False
    errors = _typing_errors(word, known)
    two = known in ("FINDINGS", "IMPRESSION", "IMPRESSIONS") and word[0] == known[0]
    return errors <= (2 if two else 1)


def _typing_errors(word: str, known: str) -> int:
    """The number of insertions, omissions, replacements and transpositions of letters."""
    above: list[int] = []
    row = list(range(len(known) + 1))
    for i, letter in enumerate(word, 1):
        above, last, row = row, above, [i]
        for j, wanted in enumerate(known, 1):
            cost = min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (letter != wanted))
            if i > 1 and j > 1 and letter == known[j - 2] and word[i - 2] == wanted:
                cost = min(cost, last[j - 2] + 1)
            row.append(cost)
    return row[-1]


def names_examination(named: list[str]) -> bool:
    """Whether only an examination is named: its body part, views and date."""
    known = _VIEW_WORDS | _BODY_WORDS | _BETWEEN_WORDS
    telling = any(word in _VIEW_WORDS or word in _PART_WORDS for word in named)
    return telling and all(word in known or not has_words(word) for word in named)


def _is_anatomy(name: str) -> bool:
    named = words(name)
    return bool(named) and named[0] in _ANATOMY and not (_VIEW_WORDS | _PART_WORDS) & set(named)


def names_comparison_or_technique(text: str) -> bool:
    """Whether a text tells of nothing but how the examination was done, and compared to what."""
    named = words(text)
    known = _VIEW_WORDS | _BODY_WORDS | _BETWEEN_WORDS | _OTHER_WORDS | _TECHNIQUE_WORDS
    return all(word in known or not has_words(word) for word in named)


def words(name: str) -> list[str]:
    """The words of a heading in capitals, those with spaced letters ("F I N D I N G S") joined."""
    joined = _SPACED_LETTERS.sub(lambda found: found[0].replace(" ", ""), name.replace("_", " "))
    return [word.upper() for word in _WORD.findall(joined)]


def has_words(text: str) -> bool:
    return any(character.isalnum() for character in text)

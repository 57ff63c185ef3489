"""The sections of a radiology report: from text with headings to findings and impression.

Three forms are supported: a report file of MIMIC-CXR, the cleaned form "FINDINGS: ... IMPRESSION:
..." on one line, and text without headings.

The rules follow the section parser that MIT-LCP published with MIMIC-CXR
(github.com/MIT-LCP/mimic-cxr, txt/section_parser.py): headings are recognised by the words that
they contain, a heading that names the examination opens findings, and the findings of a report with
neither section are the text after the first blank line of its last section. The rules differ where
that parser loses text: a label inside a section (ETT:, LUNGS:) stays in it, a continued section is
joined, and headings in mixed case are recognised.
"""

import dataclasses
import functools
import itertools
import re
from collections.abc import Iterator
from typing import Literal

Kind = Literal["findings", "impression", "other", "aside"]
"""`other` is what precedes a reading (history, technique), `aside` what is no reading of the final
report: preliminary readings, notifications, recommendations. An addendum is a reading, and counts
as findings."""

# A preliminary reading may precede the final one in the same file.
_FINAL = re.compile(
    r"^[ \t]*FINAL REPORT[ \t]*:?[ \t]*(?:[*(\[][^\n]{0,40})?$", re.MULTILINE | re.IGNORECASE
)
_RULE = re.compile(r"[ \t]*[_=-]{10,}[ \t]*")
_BLANK_LINE = re.compile(r"\n[ \t]*\n")

# Lengths are bounded so that the search stays linear in the text. A time ("5:10 PM") is no end.
_LINE_HEADING = re.compile(
    r"^[ \t]*(?P<name>[A-Za-z](?:[\w ,/&()'.#+-]|:(?=\d)){0,79}?)[ \t]{0,4}:(?!\d)"
)
_BARE_HEADING = re.compile(r"^[ \t]*(?P<name>[A-Za-z][A-Za-z /&]{0,40}?)[ \t]*(?:;|-(?=\s)|$)")
# Within a line: words that are always a heading.
_INLINE_UPPER = re.compile(
    r"(?<![\w/&-])(?P<name>(?:(?:FINDINGS?|IMPRESSIONS?|CONCLUSIONS?|RECOMMENDATIONS?)"
    r"(?: AND | & | ?/ ?)?){1,4}):"
)
_INLINE_AFTER_SENTENCE = re.compile(
    r"(?:(?<=[.!?]\s)|(?<=\s\s))(?P<name>[A-Z][A-Za-z /&]{2,40}|findings|impression):(?!\d)"
)
# A heading in Markdown, in brackets, with a number, or with another sign than a colon.
_READING = r"(?P<name>(?i:FINDINGS?|IMPRESSIONS?|CONCLUSIONS?))"
_MARKED_HEADINGS = (
    re.compile(
        rf"^[ \t]*(?:(?:#{{1,6}}|\d{{1,2}}[.)]|[*_]{{1,3}}|[\[<])[ \t]*){{1,2}}{_READING}[ \t]*"
        r"(?:[*_]{1,3}:?|[\]>]:?|:[*_]{0,3}|$)",
        re.MULTILINE,
    ),
    re.compile(
        rf"^[ \t]*{_READING}[ \t]*(?:\uff1a|[*_]{{1,3}}:|(?<=[A-Z])\.(?=[ \t]|$))", re.MULTILINE
    ),
)
_CLOSING_TAG = re.compile(r"</(?:FINDINGS?|IMPRESSIONS?)>", re.IGNORECASE)
# An addendum above the final report. Other readings there are preliminary.
_ADDENDUM_ABOVE = re.compile(
    r"^[ \t]*(?:[A-Za-z]+[ \t]+){0,3}ADDEND(?:UM|A)\b", re.MULTILINE | re.IGNORECASE
)


def _word_set(text: str) -> frozenset[str]:
    return frozenset(text.split())


_WORD = re.compile(r"\w+(?:['.-]\w+)*")
_LETTERS = re.compile(r"[^\W\d_]{2,}")
_WRITTEN = re.compile(
    r"(?:FINDINGS:(?: (?P<findings>.*?))??)?(?:(?:^|(?<=\S) )IMPRESSION:(?: (?P<impression>.*))?)?"
)
_FINDINGS_WORDS = ("FINDINGS", "FINDING")
_IMPRESSION_WORDS = ("IMPRESSION", "IMPRESSIONS", "CONCLUSION", "CONCLUSIONS")
_ADDENDUM = frozenset({"ADDENDUM", "ADDENDA"})
# The author or the number of an addendum: "Attending addendum", "SECOND ADDENDUM".
_BESIDE_ADDENDUM = _word_set(
    "ADDITIONAL AND ATTENDING CORRECTED FINAL FIRST FURTHER LATE RADIOLOGIST RADIOLOGY REPORT "
    "REVISED SECOND THE THIRD TO"
)
_ALSO_FINDINGS = frozenset({"REPORT", "DESCRIPTION", "OBSERVATIONS", "OBSERVATION"})
_ALSO_IMPRESSION = frozenset({"IMP", "SUMMARY", "OPINION", "INTERPRETATION"})
# After a reading, these conclude it; before, they are those of the referring doctor.
_CONCLUDES = frozenset({"DIAGNOSIS", "DIAGNOSES", "ASSESSMENT"})
# Words that stand beside "findings" or "impression" in a heading; in mixed case no other may, since
# "Findings were discussed with Dr. ___:" is a sentence.
_BESIDE = _word_set(
    "ADDITIONAL AND CHEST CXR FINAL INCIDENTAL MAIN OF OR OTHER OVERALL PLAN PULMONARY "
    "RADIOGRAPHIC "
    "RADIOLOGIC RADIOLOGICAL RADIOLOGY RADIOGRAPH RECOMMENDATION RECOMMENDATIONS RECS SUMMARY THE "
    "X-RAY XRAY"
)
_ASIDE_FIRST = _word_set(
    "ATTENDING ATTESTATION COMMUNICATION COMMUNICATIONS DICTATED NOTIFICATION "
    "NOTIFICATIONS PFI PRELIM PRELIMINARY PROVISIONAL RADIOLOGIST RECOMMENDATION RECOMMENDATIONS "
    "RECS SIGNED TRANSCRIBED WET WETREAD"
)
_OTHER_FIRST = _word_set(
    "ADMITTING CLINICAL COMPARISON COMPARISONS COMPARISION EXAM EXAMINATION EXAMS EXAMINATIONS "
    "HISTORY INDICATION INDICATIONS PROCEDURE QUESTION QUESTIONS REASON REFERENCE TECHNIQUE "
    "TECHNIQUES UNDERLYING"
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
_SIDES = frozenset({"LEFT", "RIGHT"})
# Labels of the examination, with which a report without headings may begin.
_ANATOMY = _word_set(
    "AIRWAY AIRWAYS AORTA BONES CARDIAC CARDIOMEDIASTINAL DEVICES DIAPHRAGM ETT HEART HILA HILUM "
    "LINE LINES LUNG LUNGS MEDIASTINUM NGT OGT OSSEOUS PLEURA PLEURAL SOFT SUPPORT TUBE TUBES "
    "VASCULATURE"
)


@dataclasses.dataclass(frozen=True)
class _Section:
    """`text` below the heading, or before any heading unless `headed`.

    inside: whether the heading stands within a line of findings or impression.
    unknown: whether the heading is in capitals, and none of the names that are known.
    """

    kind: Kind
    text: str
    headed: bool = True
    inside: bool = False
    unknown: bool = False

    def loose_paragraphs(self) -> list[str]:
        """What the heading does not claim: its own paragraph is the first, as in "HISTORY: Cough."

        Without a heading all of them, less a title.
        """
        parts = _BLANK_LINE.split(self.text)
        parts = parts[1:] if self.headed else _without_title(parts)
        return [part for part in parts if _has_words(part)]


def split_report(text: str) -> tuple[str, str]:
    """(findings, impression) by headings; "" for a section that has none.

    Text under other headings, and text before the first heading, belongs to neither. A heading that
    occurs again continues its section. White space becomes single spaces.
    """
    return _by_headings(_sections(text))


def report_sections(text: str) -> tuple[str, str]:
    """(findings, impression) of a whole report; as `split_report` where it has headings of these.

    Otherwise findings are what no heading claims: the paragraphs below the first one of the last
    section that has any, or all of a text without headings, less a title such as PORTABLE CHEST.
    With an impression alone they are those before it.
    """
    sections = list(_sections(text))
    findings, impression = _by_headings(iter(sections))
    if impression and not findings:
        first = next(i for i, section in enumerate(sections) if section.kind == "impression")
        above = [s.loose_paragraphs() for s in sections[:first] if s.kind == "other"]
        findings = _folded("\n".join(itertools.chain.from_iterable(above)))
    if findings or impression:
        return findings, impression
    for section in reversed(sections):
        loose = [] if section.kind == "aside" else section.loose_paragraphs()
        if loose:
            return _folded("\n".join(loose)), ""
    # Without another heading, an unknown name is the heading of the reading: "COMMENT:".
    for section in reversed(sections):
        if section.unknown and len(_LETTERS.findall(section.text)) > 1:
            return _folded(section.text), ""
    return "", ""


def sections_with_problem(text: str) -> tuple[str, str, str]:
    """(findings, impression, problem) of a whole report.

    The problem states why `report_sections` finds neither section; "" if it finds one.
    """
    findings, impression = report_sections(text)
    if findings or impression:
        return findings, impression, ""
    if not _has_words(text):
        return "", "", "its report has no text"
    preliminary = dropped_sections(text)
    why = f"; {shortened(preliminary[0])} is no final reading" if preliminary else ""
    return "", "", f"its report has no findings and no impression{why}"


def shortened(text: str) -> str:
    """The text in quotation marks for messages, at most 160 characters of it."""
    return f'"{text if len(text) <= 160 else f"{text[:157]}..."}"'


def dropped_sections(text: str) -> list[str]:
    """Texts that `report_sections` leaves out although they belong to the final reading.

    They are sections such as NOTIFICATION and RECOMMENDATION, and whatever follows a heading that
    stands within a line of findings or impression. A preliminary reading is superseded by the
    final one, and history and technique precede it: these are not among them.
    """
    return [
        _folded(section.text)
        for section in _sections(text)
        if (section.kind == "aside" or (section.kind == "other" and section.inside))
        and _has_words(section.text)
    ]


def split_written(report: str) -> tuple[str, str]:
    """(findings, impression) of "FINDINGS: ... IMPRESSION: ...", the form of `records.report_text`.

    Only these two headings are read, each once and in this order: every other heading is part of
    the text in which it stands. ("", "") for a text in another form.
    """
    found = _WRITTEN.fullmatch(_folded(report))
    return ((found["findings"] or ""), (found["impression"] or "")) if found else ("", "")


def sections_as_read(text: str) -> tuple[str, str]:
    """(findings, impression) of a text that `clean` reads: `split_written` where it is one line of
    that form, so that a heading within a section takes nothing away; else `split_report`.
    """
    written = split_written(text) if "\n" not in text.strip() else ("", "")
    return written if any(written) else split_report(text)


def _by_headings(sections: Iterator[_Section]) -> tuple[str, str]:
    texts: dict[str, list[str]] = {"findings": [], "impression": []}
    for section in sections:
        # Text that consists of de-identification marks only counts as no text.
        hidden = "___" in section.text and not _has_words(section.text)
        if section.headed and section.kind in texts and section.text.strip() and not hidden:
            texts[section.kind].append(_folded(section.text))
    return " ".join(texts["findings"]), " ".join(texts["impression"])


def _sections(text: str) -> Iterator[_Section]:
    """The sections of the final reading, in order; the first one stands before any heading.

    What a heading such as COMPARISON does not claim belongs to the reading in which it stands.
    """
    plain = "\n".join(text.lstrip("\ufeff").splitlines())
    for heading in _MARKED_HEADINGS:
        plain = heading.sub(r"\g<name>:", plain)
    plain = _CLOSING_TAG.sub("", plain)
    *above, body = _FINAL.split(plain)
    yield from _divided(body)
    for part in above:
        addendum = _ADDENDUM_ABOVE.search(part)
        if addendum:
            readings = _divided(part[addendum.start() :])
            yield from (section for section in readings if section.kind == "findings")


def _divided(body: str) -> Iterator[_Section]:
    """`_sections` of a text without a preliminary reading."""
    reading: _Section | None = None
    for section in _headed(body):
        if section.kind in ("findings", "impression") or not section.headed:
            reading = section if section.headed else None
        elif reading is not None and section.kind == "other" and not section.unknown:
            own, *rest = _BLANK_LINE.split(section.text, maxsplit=1)
            inside = section.inside or not _has_words(reading.text)
            if rest and _has_words(rest[0]):
                yield dataclasses.replace(section, text=own)
                yield dataclasses.replace(reading, text=rest[0])
            else:
                yield dataclasses.replace(section, inside=inside)
            continue
        yield section


def _headed(body: str) -> Iterator[_Section]:
    """A heading and what follows, up to the next one; the first section has none."""
    kind: Kind = "other"
    headed, after_blank, lines = False, True, list[str]()
    inside = unknown = False

    def section() -> _Section:
        return _Section(kind, "\n".join(lines), headed, inside, unknown)

    for line in body.splitlines():
        if _RULE.fullmatch(line):
            yield section()
            kind, headed, lines, after_blank = "other", False, [], True
            inside = unknown = False
            continue
        found = _line_heading(line, kind if headed else None, after_blank)
        if found is not None:
            yield section()
            (kind, line, unknown), headed, inside, lines = found, True, False, []
        for part, next_kind in _inline(line):
            lines.append(part)
            if next_kind is not None:
                yield section()
                inside = inside or kind in ("findings", "impression")
                kind, headed, unknown, lines = next_kind, True, False, []
        after_blank = not line.strip()
    yield section()


def _line_heading(
    line: str, within: Kind | None, after_blank: bool
) -> tuple[Kind, str, bool] | None:
    """(what the heading at the start of the line opens, what follows on the line, whether its name
    is unknown), or None.
    """
    found = _LINE_HEADING.match(line)
    if found is not None:
        kind, rest = _kind_of(found["name"], within, after_blank), line[found.end() :]
        if kind is None:
            return None
        unknown = kind == "other" and _plain_kind(found["name"]) is None
        # A label is part of the text that it opens.
        return kind, line if _is_anatomy(found["name"]) else rest, unknown
    found = _BARE_HEADING.match(line)
    if found is not None and found["name"].isupper():
        reading = _reading_kind(_words(found["name"]), upper=True)
        if reading is not None:
            return reading, line[found.end() :], False
    return None


def _inline(line: str) -> Iterator[tuple[str, Kind | None]]:
    """(text, the section that opens after it, or None at the end of the line)."""
    matches = [m for p in (_INLINE_UPPER, _INLINE_AFTER_SENTENCE) for m in p.finditer(line)]
    start = 0
    for found in sorted(matches, key=lambda match: match.start()):
        kind = _plain_kind(found["name"]) if found.start() >= start else None
        if kind is not None:
            yield line[start : found.start()], kind
            start = found.end()
    yield line[start:], None


def _kind_of(name: str, within: Kind | None, after_blank: bool) -> Kind | None:
    """What a line's heading opens, None for a label or a sentence that belongs to the text.

    Args:
      within: the section that is open, None before the first heading.
      after_blank: whether a blank line precedes it.
    """
    plain = _plain_kind(name)
    words, upper = _words(name), name.upper() == name
    if within in ("findings", "impression") and words and set(words) <= _CONCLUDES | {"FINAL"}:
        return "impression"
    if plain is not None:
        return plain
    if within in ("findings", "impression"):
        if not (upper and _names_examination(words) and _VIEW_WORDS & set(words)):
            return None
        # "RIGHT RIBS, TWO VIEWS" states the side, which its text may omit.
        opens = len(words) > 1 and not _SIDES & set(words)
        return "findings" if opens and (within == "findings" or after_blank) else None
    if _names_examination(words) or (upper and (_VIEW_WORDS | _PART_WORDS) & set(words)):
        return "findings"
    if upper and _is_anatomy(name) and within != "aside":
        return "findings"
    return "other" if upper else None


def _plain_kind(name: str) -> Kind | None:
    """The kind of a heading that is one at any position."""
    words, upper = _words(name), name.upper() == name
    if not words:
        return None
    reading = _reading_kind(words, upper)
    if reading is not None:
        return reading
    # "wet read" in small letters is part of a sentence.
    if not name[0].isupper():
        return None
    known = {"READ", "VERSION", "AND"} | _ASIDE_FIRST
    if words[0] in _ASIDE_FIRST and (upper or set(words) <= known):
        return "aside"
    if (upper and words[0] in _OTHER_FIRST) or set(words) <= _OTHER_WORDS:
        return "other"
    return None


def _reading_kind(words: list[str], upper: bool) -> Kind | None:
    """`findings` or `impression` for a heading that says so; findings where it says both."""
    if set(words) & _ADDENDUM:
        others = set(words) - _ADDENDUM
        return "findings" if upper or others <= _BESIDE_ADDENDUM else None
    if words == ["F", "I"]:
        return "findings"
    kinds = [_word_kind(word) for word in words]
    if not any(kinds):
        if len(words) == 1 and upper:
            found = words[0]
            return "findings" if found in _ALSO_FINDINGS else (
                "impression" if found in _ALSO_IMPRESSION else None
            )  # fmt: skip
        return None
    if words[0] in _ASIDE_FIRST - {"RECOMMENDATION", "RECOMMENDATIONS", "RECS"}:
        return None
    if words[0] in ("CLINICAL", "REASON", "PRIOR", "PREVIOUS", "INDICATION", "HISTORY"):
        return None
    beside = {word for word, kind in zip(words, kinds, strict=True) if kind is None}
    # Text in capitals is a heading in any case; a sentence in mixed case is not.
    if not upper and not beside <= _BESIDE:
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


def _names_examination(words: list[str]) -> bool:
    """Whether only an examination is named: its body part, views and date."""
    known = _VIEW_WORDS | _BODY_WORDS | _BETWEEN_WORDS
    named = any(word in _VIEW_WORDS or word in _PART_WORDS for word in words)
    return named and all(word in known or not _has_words(word) for word in words)


def _is_anatomy(name: str) -> bool:
    words = _words(name)
    return bool(words) and words[0] in _ANATOMY and not (_VIEW_WORDS | _PART_WORDS) & set(words)


def _without_title(paragraphs: list[str]) -> list[str]:
    """Paragraphs without the lines that name the examination."""
    kept = []
    for paragraph in paragraphs:
        lines = paragraph.splitlines()
        while lines and (not lines[0].strip() or _names_examination(_words(lines[0]))):
            lines = lines[1:]
        if lines:
            kept.append("\n".join(lines))
    return kept


def _words(name: str) -> list[str]:
    words = [word.upper() for word in _WORD.findall(name.replace("_", " "))]
    # "F I N D I N G S"
    spaced = len(words) > 5 and all(len(word) == 1 for word in words)
    return ["".join(words)] if spaced else words


def _has_words(text: str) -> bool:
    return any(character.isalnum() for character in text)


def _folded(text: str) -> str:
    return " ".join(text.split())

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
import re
from collections.abc import Iterator
from typing import Literal

from unix_jax.data.report_headings import (
    Heading,
    Kind,
    has_words,
    inline_headings,
    line_heading,
    names_comparison_or_technique,
    names_examination,
    unmarked,
    words,
)

# A preliminary reading may precede the final one in the same file.
_FINAL = re.compile(
    r"^[ \t]*(?:[#*=\[]{1,6}[ \t]*)?FINAL REPORT[ \t]*:?[ \t]*(?:[*(\[\]=#][^\n]{0,40})?$",
    re.MULTILINE | re.IGNORECASE,
)
_RULE = re.compile(r"[ \t]*[_=-]{10,}[ \t]*")
_BLANK_LINE = re.compile(r"\n[ \t]*\n")
_SENTENCE_END = re.compile(r"[.?!](?=\s)")
_LETTERS = re.compile(r"[^\W\d_]{2,}")
_WRITTEN = re.compile(
    r"(?:FINDINGS:(?: (?P<findings>.*?))??)?(?:(?:^|(?<=\S) )IMPRESSION:(?: (?P<impression>.*))?)?"
)


@dataclasses.dataclass(frozen=True)
class _Section:
    """`text` below the heading, or before any heading where that is None.

    inline: whether the heading stands within a line.
    read: whether the findings or the impression begin above the heading.
    continues: that of them which has text and stands last above the heading; None if neither has.
    addendum: whether it belongs to an addendum.
    """

    heading: Heading | None
    text: str
    inline: bool = False
    read: bool = False
    continues: Literal["findings", "impression"] | None = None
    addendum: bool = False

    @property
    def kind(self) -> Kind:
        return self.heading.kind if self.heading else "other"

    @property
    def unknown(self) -> bool:
        return self.heading is not None and self.heading.unknown

    @property
    def reading(self) -> Literal["findings", "impression"] | None:
        kind = self.heading.kind if self.heading else "other"
        return kind if kind in ("findings", "impression") else None

    def paragraphs(self) -> tuple[str, list[str]]:
        """(what the heading claims, other paragraphs).

        A heading claims its own paragraph, as in "HISTORY: Cough."; one of the patient's history
        the next one if its own is empty. Titles such as PORTABLE CHEST are left out.
        """
        own, loose = "", _BLANK_LINE.split(self.text)
        if self.heading is not None:
            own, *loose = loose
        loose = [part for part in _without_title(loose) if has_words(part)]
        if self.heading is not None and self.heading.patient and not has_words(own) and loose:
            own, *loose = loose
        return own, loose

    def doubtful(self) -> str:
        """What may be a reading within the paragraph that the heading claims.

        History above the findings is none; below them, its first sentence is none. The same holds
        for the first sentence of technique and comparison above them, if it begins on the line of
        the heading; below them, and for an unknown heading, all may be a reading.
        """
        own = self.paragraphs()[0]
        if names_comparison_or_technique(own):
            return ""
        patient = self.heading is not None and self.heading.patient
        if self.unknown or (self.read and (self.inline or not patient)):
            return own
        if patient and not self.read:
            return ""
        if not patient and not has_words(own.split("\n")[0]):
            return own
        sentence = _SENTENCE_END.search(own)
        return own[sentence.end() :] if sentence else ""


def split_report(text: str) -> tuple[str, str]:
    """(findings, impression) by headings; "" for a section that has none.

    Text under other headings, and text before the first heading, belongs to neither. A heading that
    occurs again continues its section. White space becomes single spaces.
    """
    texts: dict[str, list[str]] = {"findings": [], "impression": []}
    for section in _sections(text):
        if section.reading and not _is_hidden(section.text):
            texts[section.reading].append(section.text)
    return _folded(texts["findings"]), _folded(texts["impression"])


def report_sections(text: str) -> tuple[str, str]:
    """(findings, impression) of a whole report; as `split_report` where it has headings of these.

    Without findings, they are what no heading claims: the paragraphs below the first one of the
    last section that has any, above the impression if there is one; or all of a text without
    headings. A title such as PORTABLE CHEST is left out. The paragraphs that follow a heading
    within findings or impression ("COMPARISON: ___.") and its own paragraph continue that section.
    """
    return _divided(text)[:2]


def sections_with_problem(text: str) -> tuple[str, str, str]:
    """(findings, impression, problem) of a whole report.

    The problem states why `report_sections` finds neither section; "" if it finds one.
    """
    findings, impression = report_sections(text)
    if findings or impression:
        return findings, impression, ""
    if not has_words(text):
        return "", "", "its report has no text"
    asides = (_folded([s.text]) for s in _sections(text) if s.kind == "aside" and has_words(s.text))
    preliminary = next(asides, "")
    why = f"; {shortened(preliminary)} is no final reading" if preliminary else ""
    return "", "", f"its report has no findings and no impression{why}"


def shortened(text: str) -> str:
    """The text in quotation marks for messages, at most 160 characters of it."""
    return f'"{text if len(text) <= 160 else f"{text[:157]}..."}"'


def dropped_sections(text: str) -> list[str]:
    """Texts that `report_sections` leaves out although they may belong to the final reading.

    They are sections such as NOTIFICATION and RECOMMENDATION, sections with an unknown heading,
    paragraphs that no heading claims, and what `_Section.doubtful` states. A preliminary reading is
    superseded by the final one, and history precedes it: these are not among them.
    """
    return _divided(text)[2]


def split_written(report: str) -> tuple[str, str]:
    """(findings, impression) of "FINDINGS: ... IMPRESSION: ...", the form of `records.report_text`.

    Only these two headings are read, each once and in this order: every other heading is part of
    the text in which it stands. ("", "") for a text in another form.
    """
    found = _WRITTEN.fullmatch(_folded([report]))
    return ((found["findings"] or ""), (found["impression"] or "")) if found else ("", "")


def sections_as_read(text: str) -> tuple[str, str]:
    """(findings, impression) of a text that `clean` reads: `split_written` where it is one line of
    that form, so that a heading within a section takes nothing away; else `split_report`.
    """
    written = split_written(text) if "\n" not in text.strip() else ("", "")
    return written if any(written) else split_report(text)


def _divided(text: str) -> tuple[str, str, list[str]]:
    """(findings, impression, texts left out) of a whole report."""
    sections = list(_sections(text))
    body = _body(sections)
    texts: dict[str, list[str]] = {"findings": [], "impression": []}
    dropped = []
    for index, section in enumerate(sections):
        own, loose = section.paragraphs()
        if section.reading:
            if not _is_hidden(section.text):
                texts[section.reading].append(section.text)
        elif section.kind == "aside":
            dropped.append(section.text)
        else:
            left = [section.doubtful()]
            if index == body:
                # Without another heading, an unknown name is the heading of the reading.
                texts["findings"] += loose if loose and not section.unknown else [own, *loose]
                left = left if loose and not section.unknown else []
            elif section.continues and not section.unknown:
                texts[section.continues] += loose
            else:
                left += loose
            dropped += left
    return (
        _folded(texts["findings"]),
        _folded(texts["impression"]),
        [_folded([part]) for part in dropped if has_words(part)],
    )


def _body(sections: list[_Section]) -> int | None:
    """The index of the section whose paragraphs are the findings of a report without these."""
    readings = [
        (index, section.kind)
        for index, section in enumerate(sections)
        if section.reading and not section.addendum and not _is_hidden(section.text)
    ]
    if any(kind == "findings" for _, kind in readings):
        return None
    above = list(enumerate(sections[: readings[0][0]] if readings else sections))[::-1]
    for index, section in above:
        if section.kind != "other" or section.addendum or section.unknown:
            continue
        loose = [p for p in section.paragraphs()[1] if not names_comparison_or_technique(p)]
        if readings and section.heading is None:
            # A letterhead has no sentences.
            loose = [part for part in loose if part.rstrip().endswith((".", "!", "?", ")"))]
        if loose:
            return index
    for index, section in above:
        if section.unknown and not readings and len(_LETTERS.findall(section.text)) > 1:
            return index
    return None


def _is_hidden(text: str) -> bool:
    """Whether a text is empty or consists of de-identification marks only."""
    return not text.strip() or ("___" in text and not has_words(text))


def _sections(text: str) -> Iterator[_Section]:
    """The sections of the final reading, in order, and then those of addenda that precede it.

    The first one stands before any heading.
    """
    lines = "\n".join(text.lstrip("\ufeff").splitlines())
    *earlier, final = _FINAL.split(unmarked(lines))
    yield from _parsed(final)
    for part in earlier:
        open_addendum = False
        for section in _parsed(part):
            named = section.heading is not None and section.heading.addendum
            open_addendum = named or (open_addendum and section.heading is not None)
            if open_addendum:
                yield dataclasses.replace(section, addendum=True)


def _parsed(body: str) -> Iterator[_Section]:
    section, lines, above = _Section(None, ""), list[str](), ""
    for line in body.splitlines():
        if _RULE.fullmatch(line):
            yield _closed(section, lines)
            section, lines, above = _Section(None, ""), [], ""
            continue
        found = line_heading(
            line,
            within=section.kind if section.heading else None,
            after_blank=not above,
            complete=not above or above.endswith((".", ":", "!", "?")),
            read=section.read or bool(section.reading),
        )
        above = line.strip()
        if found is not None:
            closed = _closed(section, lines)
            yield closed
            section, lines, line = _below(closed, found), [], found.rest
        for part, following in inline_headings(line, section.read or bool(section.reading)):
            lines.append(part)
            if following is not None:
                closed = _closed(section, lines)
                yield closed
                section, lines = _below(closed, following, inline=True), []
    yield _closed(section, lines)


def _closed(section: _Section, lines: list[str]) -> _Section:
    return dataclasses.replace(section, text="\n".join(lines))


def _below(above: _Section, heading: Heading, inline: bool = False) -> _Section:
    """An empty section below the heading that ends the section above."""
    titled = above.heading is not None and not above.heading.reading
    spoken = has_words(above.text)
    return _Section(
        heading,
        "",
        inline=inline,
        # "CHEST, TWO VIEWS:" alone is a title.
        read=above.read or (above.reading is not None and (spoken or not titled)),
        continues=(above.reading if spoken else None) or above.continues,
        addendum=heading.addendum,
    )


def _without_title(paragraphs: list[str]) -> list[str]:
    """Paragraphs without the lines that name the examination."""
    kept = []
    for paragraph in paragraphs:
        lines = paragraph.splitlines()
        while lines and (not lines[0].strip() or names_examination(words(lines[0]))):
            lines = lines[1:]
        if lines:
            kept.append("\n".join(lines))
    return kept


def _folded(texts: list[str]) -> str:
    return " ".join(" ".join(texts).split())

"""The rule-based pass: pure functions from the text of one section to its cleaned text.

Each rule removes one kind of text and leaves every other sentence as it is. A rule takes words out
and, where a sentence would otherwise break, sets in a neutral one ("seen", "other", "possibly"); it
never adds a number, a side or a device. `clean_sections` runs them in order and says which ones
changed something.
"""

import dataclasses
import html
import re
from collections.abc import Callable, Mapping

from unix_jax.cleaning.placeholders import drop_placeholders
from unix_jax.cleaning.priors import drop_priors
from unix_jax.cleaning.sentences import (
    each_sentence,
    list_number,
    mended,
    renumbered,
    split_sentences,
)

Rule = Callable[[str], str]

_NOTES = re.compile(
    r"\b(?:tele)?phoned?\b|\bpag(?:ed|er)\b|\bDrs?\.|\bnotif(?:y|ied|ication)\b|\bprimordial\b"
    r"|\bveriphy\b|\bcommunicated\b|\bconveyed\b|\bcritical results?\b|\bdictat(?:ed|ion|ing)\b"
    r"|\b(?:were|was|been|I) discussed\b|\blike to discuss\b|\binformed of\b|\backnowledg"
    r"|\bcertified radiologist\b|\bstaff radiologist\b|\belectronically signed\b"
    r"|\bthank(?:s| you)\b"
    r"|\bopportunity to assist\b|\bquestions (?:about|regarding|concerning)\b"
    r"|\b(?:attending|referring|ordering) (?:physician|provider|clinician)|\bread[- ]?back\b"
    r"|\be-?mail(?:ed)?\b|\breceipt of\b|\btranscri(?:bed|ption)\b",
    re.IGNORECASE,
)
# What follows the finding in its sentence: "... of the mass, discussed with Dr. Smith at 5 pm."
_NOTE_AT_END = re.compile(
    r",?\s+(?:and\s+)?(?:(?:this|these|which|findings?)\s+)?(?:was|were)?\s*"
    r"(?:discussed with|communicated to|conveyed to|telephoned to|reported to|called to"
    r"|d/w)\b.{0,300}$",
    re.IGNORECASE,
)
_FINDING = re.compile(
    r"\b(?:opacit|effusion|pneumothora|consolidat|edema|atelecta|nodul|mass\b|cardiomegal|fractur"
    r"|infiltrat|pneumonia|enlarge|lesion|airspace|congestion)",
    re.IGNORECASE,
)

_VIEW = (
    r"(?:(?:PA|AP|posteroanterior|anteroposterior|frontal|lateral|portable|upright|supine|erect"
    r"|semi-?upright|semi-?erect|decubitus|lordotic|apical|oblique|single|two|one|three|dual|2|1|3"
    r"|multiple|bedside|standard|routine|front|the|a|this|an|is|XXXX|_{2,})(?:[\s,/-]+"
    r"|[\s-]*)(?:(?:and|or)\s+|&\s*)?"
    r"(?:\(?(?:on|with) (?:two|\d) cassettes\)?\s+)?(?:and\s+)?)"
)
_PICTURE = (
    r"(?:chest\s+)?(?:views?|radiographs?|projections?|films?|images?|x-?\s?(?:rays?|XXXX)"
    r"|examinations?|exam|study|radiography|chest)"
    r"(?:\s+(?:of\s+)?(?:the\s+)?(?:chest|thorax))?"
    r"(?:\s+XXXX(?:[/,\s]+XXXX){0,3})?"
)
_VIEW_ONLY = re.compile(
    rf"^(?:technique|views?|examination|exam|study)?:?\s*(?:{_VIEW}){{1,6}}{_PICTURE}"
    r"(?:\s*,?\s+(?:(?:was|were|are|is|has been|have been)\s+)?"
    r"(?:obtained|performed|submitted|provided|acquired|available|reviewed|presented|taken"
    r"|evaluated)\b[^.]{0,60}|\s+compared\b[^.]{0,80})?[.:]*$",
    re.IGNORECASE,
)
_CONSISTS = re.compile(r"\bexamination consists of\b|^technique\s*:|^views?\s*:", re.IGNORECASE)
_CHEST_ONLY = re.compile(
    r"^(?:(?:portable|two[- ]view|frontal|single[- ]view|AP|PA)\s+)*"
    r"(?:chest\s+(?:radiographs?|x-?\s?(?:rays?|XXXX)|films?)|radiographs? of the chest)[.:]*$",
    re.IGNORECASE,
)
_VIEW_SHOWS = re.compile(
    rf"^(?:{_VIEW}){{1,6}}{_PICTURE}(?P<with>\s+with\s+[^.]{{3,80}}?)?\s+"
    r"(?:again\s+)?(?:shows?|demonstrates?|reveals?)(?:\s+that)?\s+(?P<rest>\S.*)$",
    re.IGNORECASE,
)
_VIEW_HEAD = re.compile(
    r"^(?:(?:portable|single|frontal|lateral|upright|supine|AP|PA|and|two|2)[\s,-]+){1,5}"
    r"(?:view|views|radiograph|radiographs|chest x-?ray|projection)(?:\s+of the chest)?\s*[:,]\s+",
    re.IGNORECASE,
)

_TAG = re.compile(r"</?[a-zA-Z][a-zA-Z0-9]{0,10}\s*/?>")
_MISSING_SPACE = re.compile(r"(?<=[A-Za-z]{3}\.)(?=[A-Z][a-z]+[ ,])")


@dataclasses.dataclass(frozen=True)
class Cleaned:
    """Sections of a report after the rules; "" for one that is absent or of which nothing is left.

    applied: names of the rules that changed a section, in their order.
    """

    findings: str
    impression: str
    applied: tuple[str, ...]


def drop_markup(text: str) -> str:
    """Without HTML tags and escapes, and with the space that is missing between two sentences."""
    plain = _TAG.sub(" ", html.unescape(text) if "&" in text else text)
    return _MISSING_SPACE.sub(" ", plain)


def drop_notes(text: str) -> str:
    """Without who was told what, by telephone or otherwise, signatures and thanks.

    "Mass in the left lung, discussed with Dr. Smith at 5 pm." -> "Mass in the left lung."
    """

    def change(sentence: str) -> str:
        if not _NOTES.search(sentence) and not _NOTE_AT_END.search(sentence):
            return sentence
        head = _NOTE_AT_END.sub(".", sentence)
        if head != sentence and _FINDING.search(head) and not _NOTES.search(head):
            return mended(head)
        return ""

    return each_sentence(text, change)


def drop_views(text: str) -> str:
    """Without sentences and openings that only name the views or the technique.

    "PA and lateral views were obtained." -> ""
    "Frontal view of the chest shows a small effusion." -> "A small effusion."
    A view within a sentence stays: "not seen on the lateral view" bounds what is said.
    """

    def change(sentence: str) -> str:
        if _VIEW_ONLY.match(sentence) or _CONSISTS.search(sentence) or _CHEST_ONLY.match(sentence):
            return ""
        shown = _VIEW_SHOWS.match(sentence)
        if shown is None:
            return (
                mended(_VIEW_HEAD.sub("", sentence, count=1))
                if _VIEW_HEAD.match(sentence)
                else sentence
            )
        # Devices that lie over the chest are worth a sentence of their own.
        overlying = (shown["with"] or "").removeprefix(" with").strip()
        rest = re.sub(r"\bto be (?=within|normal|clear|unremarkable)", "", shown["rest"])
        return " ".join(filter(None, (mended(f"{overlying}.") if overlying else "", mended(rest))))

    return each_sentence(text, change)


def tidy_space(text: str) -> str:
    """One space between words, none before punctuation, one full stop, lists counted from 1."""

    def tidied(sentence: str) -> str:
        number, body = list_number(sentence)
        return f"{number}. {mended(body)}" if number else mended(sentence)

    # What one round removes may bring a list number or a small letter to the front.
    for _ in range(10):
        before, text = text, " ".join(renumbered(map(tidied, split_sentences(text))))
        if text == before:
            break
    return text


RULES: Mapping[str, Rule] = {
    "markup": drop_markup,
    "notes": drop_notes,
    "views": drop_views,
    "priors": drop_priors,
    "placeholders": drop_placeholders,
    "space": tidy_space,
}


def clean_sections(findings: str, impression: str) -> Cleaned:
    """Both sections after every rule, in the order of `RULES`."""
    applied = []
    for name, rule in RULES.items():
        before = findings, impression
        findings, impression = rule(findings), rule(impression)
        if (findings, impression) != before:
            applied.append(name)
    return Cleaned(findings, impression, tuple(applied))

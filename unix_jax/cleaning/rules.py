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

from unix_jax.cleaning.facts import difference, facts, holds_finding, states_something
from unix_jax.cleaning.guard import broken, refusal, speaks_of_prior
from unix_jax.cleaning.notes import drop_notes, tells_somebody, without_notes
from unix_jax.cleaning.placeholders import (
    ANY_MARK,
    denying_others,
    drop_placeholders,
    hides_meaning,
    says_whether,
    without_placeholders,
)
from unix_jax.cleaning.priors import drop_priors, without_priors
from unix_jax.cleaning.sentences import (
    each_sentence,
    list_number,
    mended,
    renumbered,
    says_nothing,
    split_sentences,
)

Rule = Callable[[str], str]

_VIEW = (
    r"(?:(?:PA|AP|posteroanterior|anteroposterior|frontal|lateral|portable|upright|supine|erect"
    r"|semi-?upright|semi-?erect|decubitus|lordotic|apical|oblique|single|two|one|three|dual|2|1|3"
    r"|multiple|bedside|standard|routine|front|the|a|this|an|is|XXXX|_{2,})(?:[\s,/-]+"
    r"|[\s-]*)(?:(?:and|or)\s+|&\s*)?"
    r"(?:\(?(?:on|with) (?:two|\d) cassettes\)?\s+)?(?:and\s+)?)"
)
_PICTURE = (
    r"(?:chest\s+)?(?:views?|radiographs?|projections?|films?|images?|(?:x-?\s?rays?|x-\s?XXXX)"
    r"|examinations?|exam|study|radiography|chest)"
    r"(?:\s+(?:of\s+)?(?:the\s+)?(?:chest|thorax))?"
    r"(?:\s+XXXX(?:[/,\s]+XXXX){0,3})?"
)
_VIEW_ONLY = re.compile(
    rf"^(?:technique|views?|examination|exam|study)?:?\s*(?:{_VIEW}){{1,6}}{_PICTURE}(?:\s+only)?"
    r"(?:\s*,?\s+(?:(?:was|were|are|is|has been|have been)\s+)?"
    r"(?:obtained|performed|submitted|provided|acquired|available|reviewed|presented|taken"
    r"|evaluated)\b[^.]{0,60}|\s+compared\b[^.]{0,80})?[.:]*$",
    re.IGNORECASE,
)
_CONSISTS = re.compile(r"\bexamination consists of\b|^technique\s*:|^views?\s*:", re.IGNORECASE)
_CHEST_ONLY = re.compile(
    r"^(?:(?:portable|two[- ]view|frontal|single[- ]view|AP|PA)\s+)*"
    r"(?:chest\s+(?:radiographs?|(?:x-?\s?rays?|x-\s?XXXX)|films?)"
    r"|radiographs? of the chest)[.:]*$",
    re.IGNORECASE,
)
_VIEW_SHOWS = re.compile(
    rf"^(?:{_VIEW}){{1,6}}{_PICTURE}(?P<with>\s+with\s+[^.]{{3,80}}?)?\s+"
    r"(?:again\s+)?(?:shows?|demonstrates?|reveals?)(?:\s+that)?\s+(?P<rest>\S.*)$",
    re.IGNORECASE,
)
_SHOWN_TO_BE = re.compile(
    r"^((?:the )?[\w ,]+?)(?: to be|) (?=(?:within normal|normal\.?$|clear\.?$|unremarkable\.?$))",
    re.IGNORECASE,
)
_VIEW_HEAD = re.compile(
    r"^(?:(?:portable|single|frontal|lateral|upright|supine|AP|PA|and|two|2)[\s,-]+){1,5}"
    r"(?:chest|view|views|radiograph|radiographs|chest (?:x-?ray|radiograph|film)s?|projection)"
    r"(?:\s+of the chest)?\s*[:,]\s+",
    re.IGNORECASE,
)

_TAG = re.compile(r"</?[a-zA-Z][a-zA-Z0-9]{0,10}\s*/?>")
_MISSING_SPACE = re.compile(r"(?<=[A-Za-z]{3}\.)(?=[A-Z][a-z]+[ ,])")


@dataclasses.dataclass(frozen=True)
class Cleaned:
    """Sections of a report after the rules; "" for one that is absent or of which nothing is left.

    applied: names of the rules that changed a section, in their order.
    refused: why the report must be set aside, a reason per sentence that no rule may change.
    """

    findings: str
    impression: str
    applied: tuple[str, ...]
    refused: tuple[str, ...] = ()


def drop_markup(text: str) -> str:
    """Without HTML tags and escapes, and with the space that is missing between two sentences."""
    plain = _TAG.sub(" ", html.unescape(text) if "&" in text else text)
    return _MISSING_SPACE.sub(" ", plain)


def drop_views(text: str) -> str:
    """Without sentences and openings that only name the views or the technique.

    "PA and lateral views were obtained." -> ""
    "Frontal view of the chest shows a small effusion." -> "A small effusion."
    A view within a sentence stays: "not seen on the lateral view" bounds what is said.
    """

    return each_sentence(text, without_views)


def without_views(sentence: str) -> str:
    """One sentence, as `drop_views`."""
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
    rest = _SHOWN_TO_BE.sub(r"\1 is ", shown["rest"])
    rest = re.sub(r"\b(\w+s) is (?=within|normal|clear|unremarkable)", r"\1 are ", rest)
    return " ".join(filter(None, (mended(f"{overlying}.") if overlying else "", mended(rest))))


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
"""Each rule on the text of a section, unguarded."""

_SENTENCE_RULES: Mapping[str, Rule] = {
    "notes": without_notes,
    "views": without_views,
    "priors": without_priors,
    "placeholders": without_placeholders,
}


def clean_sections(findings: str, impression: str) -> Cleaned:
    """Both sections after every rule, in the order of `RULES`, each under the guard.

    A sentence that a rule cannot change without losing a finding, bringing one in or breaking the
    sentence is left as it is, and named in `refused`.
    """
    applied: set[str] = set()
    refused: list[str] = []
    stated = frozenset(
        name for name in facts(f"{findings} {impression}").counts if name.startswith("the finding")
    )
    sections = [_cleaned(section, stated, applied, refused) for section in (findings, impression)]
    return Cleaned(
        sections[0],
        sections[1],
        tuple(name for name in RULES if name in applied),
        tuple(dict.fromkeys(refused)),
    )


def _cleaned(section: str, stated: frozenset[str], applied: set[str], refused: list[str]) -> str:
    text = _of_section("markup", section, applied, refused)
    text = each_sentence(
        text,
        lambda sentence: _by_every_rule(sentence, stated, applied, refused),
    )
    tidy = _of_section("space", text, applied, refused)
    if not tidy and holds_finding(section) and not refused:
        refused.append("nothing would be left of a section that holds a finding")
    return tidy


def _of_section(name: str, text: str, applied: set[str], refused: list[str]) -> str:
    """A rule that works on a whole section, under the counts of the guard."""
    changed = RULES[name](text)
    if changed == text:
        return text
    # An escape such as "&lt;" is no word: "lt" would be a side.
    lost, new = difference(facts(html.unescape(text)), facts(changed))
    if lost or new:
        refused.append(f"{name}: would change {', '.join([*lost, *new])}")
        return text
    applied.add(name)
    return changed


def _by_every_rule(
    sentence: str, stated: frozenset[str], applied: set[str], refused: list[str]
) -> str:
    text, hiding = denying_others(sentence, stated), ""

    def dropped() -> str:
        """ "", or the sentence with a reason where it must not be left out."""
        if says_whether(hiding):
            refused.append(f'placeholders: "{_short(sentence)}" hides what is denied or possible')
            return sentence
        return ""

    for name, rule in _SENTENCE_RULES.items():
        if name == "placeholders" and ANY_MARK.search(text):
            hiding = text
        reason = hides_meaning(hiding)
        if reason:
            refused.append(f'{name}: "{_short(sentence)}" {reason}')
            return sentence
        changed = rule(text)
        if changed == text:
            continue
        reason = refusal(text, changed, hidden=name == "placeholders")
        if reason:
            refused.append(f'{name}: "{_short(sentence)}" {reason}')
            return sentence
        applied.add(name)
        text = changed
        if not text:
            hidden = ANY_MARK.search(sentence) is not None
            reason = refusal(sentence, "", hidden=hidden)
            if reason:
                refused.append(f'{name}: "{_short(sentence)}" {reason}')
                return sentence
            return dropped()
    if tells_somebody(text):
        refused.append(f'notes: "{_short(sentence)}" still tells who was told')
        return sentence
    if speaks_of_prior(text):
        if not states_something(text) and not refusal(text, ""):
            applied.add("priors")
            return dropped()
        refused.append(f'priors: "{_short(sentence)}" still speaks of change')
        return sentence
    if text != sentence:
        # A rule may have left a sentence of which nothing is said any more.
        text = each_sentence(text, lambda part: "" if says_nothing(part) else part)
        if not text:
            return dropped()
    if text != sentence and broken(sentence, text):
        if not refusal(sentence, "", hidden=ANY_MARK.search(sentence) is not None):
            return dropped()
        refused.append(f'"{_short(sentence)}" would be no sentence: "{_short(text)}"')
        return sentence
    return text


def _short(sentence: str) -> str:
    return sentence if len(sentence) <= 160 else f"{sentence[:157]}..."

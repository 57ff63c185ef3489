"""The rule-based pass: pure functions from the text of one section to its cleaned text.

Each rule removes one kind of text and leaves other sentences unchanged. If a sentence would be
incomplete, a rule inserts a neutral word ("seen", "other", "possibly"); it never adds a number,
a side or a device. `clean_sections` applies the rules in order and returns which ones changed
something.
"""

import dataclasses
import html
import re
from collections.abc import Callable, Mapping

from unix_jax.cleaning.dispensable import is_dispensable
from unix_jax.cleaning.facts import difference, facts, holds_finding, states_something
from unix_jax.cleaning.guard import broken, refusal, speaks_of_prior
from unix_jax.cleaning.hidden_meaning import denying_others, hides_meaning, says_whether
from unix_jax.cleaning.marks import ANY_MARK
from unix_jax.cleaning.notes import drop_notes, tells_somebody, without_notes
from unix_jax.cleaning.placeholders import drop_placeholders, without_placeholders
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
    r"|evaluated)\b[^.]{0,60}|\s+compared\b[^.:]{0,80})?[.:]*$",
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
    r"(?:\s+of the chest)?(?:\s*[:,]|\s+compared\b[^.:]{0,80}:)\s+",
    re.IGNORECASE,
)

_TAG = re.compile(r"</?[a-zA-Z][a-zA-Z0-9]{0,10}\s*/?>")
_MISSING_SPACE = re.compile(r"(?<=[A-Za-z]{3}\.)(?=[A-Z][a-z]+[ ,])")


@dataclasses.dataclass(frozen=True)
class Cleaned:
    """Sections of a report after the rules; "" for a section that is absent or became empty.

    applied: names of the rules that changed a section, in their order.
    refused: why the report must be set aside, a reason per sentence that no rule may change.
    """

    findings: str
    impression: str
    applied: tuple[str, ...]
    refused: tuple[str, ...] = ()


def drop_markup(text: str) -> str:
    """Removes HTML tags and escapes, and inserts a missing space between two sentences."""
    plain = _TAG.sub(" ", html.unescape(text) if "&" in text else text)
    return _MISSING_SPACE.sub(" ", plain)


def drop_views(text: str) -> str:
    """Removes sentences and openings that only name the views or the technique.

    "PA and lateral views were obtained." -> ""
    "Frontal view of the chest shows a small effusion." -> "A small effusion."
    A view within a sentence stays: "not seen on the lateral view" bounds what is said.
    """

    return each_sentence(text, without_views)


def without_views(sentence: str) -> str:
    """`drop_views` for one sentence."""
    if _VIEW_ONLY.match(sentence) or _CONSISTS.search(sentence) or _CHEST_ONLY.match(sentence):
        return ""
    shown = _VIEW_SHOWS.match(sentence)
    if shown is None:
        if not _VIEW_HEAD.match(sentence):
            return sentence
        return without_views(mended(_VIEW_HEAD.sub("", sentence, count=1)))
    # Devices over the chest become a sentence of their own.
    overlying = (shown["with"] or "").removeprefix(" with").strip()
    rest = _SHOWN_TO_BE.sub(r"\1 is ", shown["rest"])
    rest = re.sub(r"\b(\w+s) is (?=within|normal|clear|unremarkable)", r"\1 are ", rest)
    return " ".join(filter(None, (mended(f"{overlying}.") if overlying else "", mended(rest))))


def tidy_space(text: str) -> str:
    """One space between words, none before punctuation, one full stop, lists counted from 1."""

    def tidied(sentence: str) -> str:
        number, body = list_number(sentence)
        return f"{number}. {mended(body)}" if number else mended(sentence)

    # A round may move a list number or a lower-case letter to the front.
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
"""Each rule for the text of a section, without the guard."""

_SENTENCE_RULES: Mapping[str, Rule] = {
    "notes": without_notes,
    "views": without_views,
    "priors": without_priors,
    "placeholders": without_placeholders,
}


@dataclasses.dataclass(frozen=True)
class _Refused:
    """A sentence that a rule may not change, and why; "" for a whole section."""

    sentence: str
    rule: str
    why: str

    @property
    def reason(self) -> str:
        rule = f"{self.rule}: " if self.rule else ""
        return f'{rule}"{_short(self.sentence)}" {self.why}' if self.sentence else rule + self.why


@dataclasses.dataclass(frozen=True)
class _Pass:
    """One pass over a report.

    report: the text of both sections.
    stated: names of `facts` that the report states as present.
    left_out: sentences that are dispensable.
    applied, refused: results of the pass. kept: the cleaned sentences.
    """

    stated: frozenset[str]
    report: str
    left_out: frozenset[str] = frozenset()
    applied: set[str] = dataclasses.field(default_factory=set)
    refused: list[_Refused] = dataclasses.field(default_factory=list)
    kept: list[str] = dataclasses.field(default_factory=list)


def clean_sections(findings: str, impression: str) -> Cleaned:
    """Both sections after every rule, in the order of `RULES`, each under the guard.

    A sentence that a rule cannot change without losing or adding a finding or making the sentence
    incomplete is not changed, and `refused` names it. If all of these are dispensable
    (`is_dispensable`), they are omitted.
    """
    sections = (findings, impression)
    report = " ".join(sections)
    counts = facts(report).counts
    done = _Pass(frozenset(name for name in counts if name.startswith("the finding")), report)
    cleaned = [_cleaned(section, done) for section in sections]
    unclean = {refused.sentence for refused in done.refused}
    if unclean:
        rest = " ".join(done.kept)
        if all(sentence and is_dispensable(sentence, rest) for sentence in unclean):
            rules = {refused.rule or "priors" for refused in done.refused}
            again = _Pass(done.stated, report, frozenset(unclean), set(rules))
            without = [_cleaned(section, again) for section in sections]
            if not again.refused:
                done, cleaned = again, without
    return Cleaned(
        cleaned[0],
        cleaned[1],
        tuple(name for name in RULES if name in done.applied),
        tuple(dict.fromkeys(refused.reason for refused in done.refused)),
    )


def _cleaned(section: str, done: _Pass) -> str:
    text = _of_section("markup", section, done)
    text = each_sentence(text, lambda sentence: _by_every_rule(sentence, done))
    tidy = _of_section("space", text, done)
    if not tidy and holds_finding(section) and not done.refused:
        why = "a section that contains a finding would become empty"
        done.refused.append(_Refused("", "", why))
    return tidy


def _of_section(name: str, text: str, done: _Pass) -> str:
    """A rule for a complete section, checked by the counts of the guard."""
    changed = RULES[name](text)
    if changed == text:
        return text
    # An escape such as "&lt;" is not a word: "lt" would be a side.
    lost, new = difference(facts(html.unescape(text)), facts(changed))
    if lost or new:
        done.refused.append(_Refused("", name, f"would change {', '.join([*lost, *new])}"))
        return text
    done.applied.add(name)
    return changed


def _by_every_rule(sentence: str, done: _Pass) -> str:
    if sentence in done.left_out:
        return ""
    text, hiding = denying_others(sentence, done.stated), ""

    def refuse(rule: str, why: str) -> str:
        done.refused.append(_Refused(sentence, rule, why))
        return sentence

    def dropped() -> str:
        """ "", or the sentence with a reason if it must not be omitted."""
        if says_whether(hiding):
            return refuse("placeholders", "hides what is denied or possible")
        return ""

    for name, rule in _SENTENCE_RULES.items():
        if name == "placeholders" and ANY_MARK.search(text):
            hiding = text
        reason = hides_meaning(hiding, done.report.replace(sentence, " ", 1))
        if reason:
            return refuse(name, reason)
        changed = rule(text)
        if changed == text:
            continue
        reason = refusal(text, changed, hidden=name == "placeholders")
        if reason:
            return refuse(name, reason)
        done.applied.add(name)
        text = changed
        if not text:
            reason = refusal(sentence, "", hidden=ANY_MARK.search(sentence) is not None)
            return refuse(name, reason) if reason else dropped()
    if tells_somebody(text):
        return refuse("notes", "still states who was informed")
    if speaks_of_prior(text):
        if not states_something(text) and not refusal(text, ""):
            done.applied.add("priors")
            return dropped()
        return refuse("priors", "still mentions a change")
    if text != sentence:
        # A rule may have left a sentence that states nothing.
        text = each_sentence(text, lambda part: "" if says_nothing(part) else part)
        if not text:
            return dropped()
    if text != sentence and broken(sentence, text):
        if not refusal(sentence, "", hidden=ANY_MARK.search(sentence) is not None):
            return dropped()
        return refuse("", f'would be incomplete: "{_short(text)}"')
    done.kept.append(text)
    return text


def _short(sentence: str) -> str:
    return sentence if len(sentence) <= 160 else f"{sentence[:157]}..."

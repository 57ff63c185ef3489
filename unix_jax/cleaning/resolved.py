"""Findings that are stated to be gone become absent ones: "The effusion has resolved"."""

import re
from collections.abc import Callable

from unix_jax.cleaning.comparison_words import HIDDEN, NOT_QUITE, TILL_NOW
from unix_jax.cleaning.facts import DEVICES, holds_finding
from unix_jax.cleaning.sentences import mended
from unix_jax.cleaning.words_of_change import without_comparisons

_GONE = (
    re.compile(
        rf"^(?:in the interval,?\s+)?(?P<np>[^;.]+?)\s+(?:has|have|had)\s+(?:(?:now|completely"
        rf"|since|interval|also|fully|been"
        rf"|entirely|subsequently)\s+)*(?:resolved|cleared|removed){TILL_NOW}\s*"
        rf"(?P<rest>[,;.].*)?$",
        re.IGNORECASE,
    ),
    re.compile(
        rf"^(?P<np>[^,;.]+?)\s+(?:is|are)\s+(?:now\s+)?(?:no longer (?:clearly |well )?(?:seen"
        rf"|visualized|present|identified|evident|visible|demonstrated|appreciated)|resolved)"
        rf"{TILL_NOW}\s*(?P<rest>[,;.].*)?$",
        re.IGNORECASE,
    ),
    re.compile(
        r"^(?:there (?:is|are|has been|have been)\s+)?(?:the\s+|an?\s+)?(?:apparent\s+)?"
        r"(?:complete\s+)?(?:interval\s+)?"
        rf"(?:{HIDDEN}\s+)?(?:complete\s+)?(?:removal|resolution) of\s+(?P<np>[^,;.]+?){TILL_NOW}"
        r"\s*(?P<rest>(?:[,;.]|\s+(?:with(?:out)?|but)\s).*)?$",
        re.IGNORECASE,
    ),
    re.compile(
        r"^no longer (?:clearly |well )?(?:seen|visualized|present|identified|evident|visible"
        r"|demonstrated)"
        r"\s+(?:is|are)\s+(?P<np>[^,;.]+?)\s*(?P<rest>[,;.].*)?$",
        re.IGNORECASE,
    ),
    re.compile(
        r"^(?:(?:interval(?:ly)?|essentially|completely)\s+)*(?:resolved|cleared)\s+(?P<np>[^,;.]+?)\s*"
        r"(?P<rest>(?:[,;.]|\s+(?:with(?:out)?|but)\s).*)?$",
        re.I,
    ),
)
NEARLY_GONE = re.compile(
    rf"\s+(?:has|have|is|are)\s+(?:now\s+)?(?:{NOT_QUITE})(?:\s+completely)?\s+(?:been\s+)?"
    rf"(?:resolved|cleared|gone|disappeared)"
    rf"{TILL_NOW}(?=\s*(?:[,;.]|$))"
    rf"|^(?:there (?:is|has been)\s+)?(?:(?:the|an?|interval)\s+)*(?:near(?:ly)?|{NOT_QUITE}"
    rf"|partial|incomplete)"
    r"(?:[\s-]+(?:complete|total|interval))*\s+(?:resolution|clearing) of\s+(?:the\s+)?",
    re.IGNORECASE,
)
EXTUBATED = re.compile(
    r"^(?:there has been\s+)?(?:interval\s+)?(?:extubation|(?:the\s+)?patient\s+(?:is|was"
    r"|has been)\s+(?:now\s+|since\s+)?extubated)"
    rf"{TILL_NOW}(?:\s*[.]|$|\s*(?:[,;]|\bwith\b|\band\b)\s+(?P<rest>.+)$)",
    re.IGNORECASE,
)
LUNGS_CLEARED = re.compile(r"\blungs? ha(?:s|ve) (?:now )?cleared\b", re.IGNORECASE)
_GONE_ARTICLE = re.compile(
    r"^(?:(?:the|this|these|those|previously|previous|prior|seen|noted|described|identified|an?"
    r"|visualized|interval|all)\s+)+",
    re.IGNORECASE,
)
# What is gone follows a statement: "changes with resolution of the pneumothorax".
_THEN_GONE = re.compile(
    r"^(?P<head>[^;.]*?\w),?\s+with (?:the |(?:complete|interval|apparent) )*"
    r"(?P<gone>(?:resolution|removal) of .+)$",
    re.IGNORECASE,
)
# Words which state that something is present, or that a part of it remains.
_NOT_GONE = re.compile(
    r"\b(?:develop\w*|appear(?:s|ed|ance|ing)|new(?:ly)?|placed|placement|insert\w+|increas\w+"
    r"|decreas\w+|improv\w+|wors\w+|progress\w*|enlarg(?:ing|ement)|remain(?:s|ing)?|persist\w*"
    r"|stable|unchanged|residual|re-?accumul\w*|leaving|leaves|left with|most|much|some|part|parts"
    r"|portions?|majority|half|neither|nor|cannot|can|could|may|might|would|should|will|has"
    r"|have|had"
    r"|was|were|which|that|who|now|replaced|replacement|exchange|followed|after|despite)\b",
    re.IGNORECASE,
)
_COORDINATED = re.compile(r"\s*(?:,|/)?\s*\b(?:and|or)\b\s*|\s*,\s*", re.IGNORECASE)
# A second noun with its own article or size is a statement of its own.
_ITS_OWN = re.compile(
    r"^(?:an?|the|no|tiny|trace|small|minimal|mild|moderate|large|severe|marked|subtle|slight|still"
    r"|there)\b",
    re.IGNORECASE,
)
_DEVICE = re.compile(
    "|".join(DEVICES.values())
    + r"|\b(?:tubes?|lines?|catheters?|leads?|wires?|drains?|devices?)\b",
    re.IGNORECASE,
)
# "Left collapse has cleared, right has not.": what did not clear is no longer named.
_OTHER_IS_NOT = re.compile(r"\b(?:has|have|did|does|do|is|are) not\W*$", re.IGNORECASE)
# "Two left chest tubes have been removed": the number is not kept.
_COUNT = re.compile(r"^(?:two|three|four|both|all|\d)(?: of the)?\s+(?=[a-z])", re.IGNORECASE)


def as_negative(sentence: str, clean: Callable[[str], str]) -> str | None:
    """ "No X" for a sentence that states that X is gone, followed by the rest of the sentence.

    None if the sentence states nothing of this kind, and "" if "no" would deny more than what is
    gone; the guard then refuses the change.

    clean: cleans the rest of a sentence if what is gone is not a finding.
    """
    then = _THEN_GONE.match(sentence)
    if then is not None and holds_finding(then["gone"]):
        negative = as_negative(then["gone"], clean)
        if negative:
            return f"{clean(mended(then['head'] + '.'))} {negative}".strip()
    for pattern in _GONE:
        match = pattern.match(sentence)
        if match is None:
            continue
        if _denies_too_much(match["np"]) and holds_finding(match["np"]):
            return ""
        if re.match(r"^(?:the\s+)?\w+ of (?:the|these|them)\b", match["np"], re.I):
            return None
        noun = _COUNT.sub("", _GONE_ARTICLE.sub("", match["np"]))
        if re.search(r"\b(?:no|not|is|are|but|one of|some of|may|nearly|almost)\b", noun, re.I):
            return None
        if not holds_finding(noun):
            return (
                None
                if re.search(r"\blungs?\b", noun, re.I)
                else clean(re.sub(r"^[\s,;.]+(?:and|but)?\s*", "", match["rest"] or "").strip())
            )
        noun = re.sub(r"\band\b", "or", noun)
        rest = match["rest"] or "."
        if _OTHER_IS_NOT.search(rest):
            return ""
        rest = re.sub(r"^\s+with no\b", ", no", rest)
        rest = re.sub(r"^\s+without\b", ", no", re.sub(r"^\s+with\b", ";", rest))
        # A lower-case letter after "No", except in a name such as PICC.
        if noun.split()[0][1:].islower():
            noun = noun[0].lower() + noun[1:]
        return mended(without_comparisons(f"No {noun}{rest}"))
    return None


def _denies_too_much(gone: str) -> bool:
    """Whether "no" before `gone` would deny more than the finding that is gone.

    "Resolution of edema and a new right effusion": only a list of nouns of one kind is gone as a
    whole.
    """
    if _NOT_GONE.search(re.sub(r"\bpreviously\b.*?\b(?:seen|noted|described)\b", "", gone)):
        return True
    first, *others = _COORDINATED.split(_GONE_ARTICLE.sub("", gone))
    return any(
        _ITS_OWN.match(other) is not None
        or (_DEVICE.search(other) is None) != (_DEVICE.search(first) is None)
        for other in others
    )

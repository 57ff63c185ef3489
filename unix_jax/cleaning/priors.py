"""Removal of comparisons with earlier examinations; the finding is kept.

A single X-ray cannot show that something is unchanged: a model that is trained to state it invents
it. History that is visible on the image ("prior sternotomy", "old fracture") is no comparison and
stays.
"""

import re

from unix_jax.cleaning.comparison_words import HIDDEN, PRIOR, STUDY
from unix_jax.cleaning.comparisons import COMPARING_OPENING, UNDIVIDED
from unix_jax.cleaning.facts import holds_finding
from unix_jax.cleaning.guard import has_verb, says_nothing_by_words
from unix_jax.cleaning.replacements import replaced, rule
from unix_jax.cleaning.resolved import EXTUBATED, LUNGS_CLEARED, NEARLY_GONE, as_negative
from unix_jax.cleaning.sentences import each_sentence, mended, says_nothing
from unix_jax.cleaning.unchanged_clauses import (
    ONLY_COMPARES,
    without_neutral_tail,
    without_unchanged_clauses,
)
from unix_jax.cleaning.words_of_change import without_comparisons

_IS_PRESENT = re.compile(r"\b(?:is|are) present\W*$", re.IGNORECASE)
# A finding that is not seen in a study with a hidden date may be gone or may be new.
_NOT_SEEN_WHEN = re.compile(
    r"(?<!which )\b(?:is|are) not (?:\w+ )?(?:seen|visuali[sz]ed|identified|present|evident)"
    rf" (?:on|in) (?:the )?{HIDDEN} {STUDY}",
    re.IGNORECASE,
)
# The first size is an earlier one: "The 4 mm nodule is now 9 mm.", "moderate edema, now severe",
# "The previously noted 8 mm nodule measures 6 mm."
_TWO_SIZES = re.compile(
    r"^(?!.*\b(?:previously|formerly|from)\b)(?:.*\b\d+(?:\.\d+)? ?-?(?:mm|cm)\b.*"
    r"\bnow (?:\w+ ){0,2}?\d|.*\b(?:tiny|trace|minimal|small|mild|moderate|large|marked|severe)\b"
    r"[^.;]*,? now (?:tiny|trace|minimal|small|mild|moderate|large|marked|severe)\b)"
    r"|^.*\bpreviously (?:seen|noted|described|identified|demonstrated) \d+(?:\.\d+)?"
    r" ?-?(?:mm|cm)\b"
    r".*\b(?:measures|measuring|is|are) (?:\w+ ){0,2}?\d+(?:\.\d+)? ?-?(?:mm|cm)\b",
    re.IGNORECASE,
)
# A finding that was named before: "This has developed in the interval, and may be ..."
_WAS_BEFORE = rule(
    r"^(this|it|these|they) (?:(?:was|were|has been|have been) present previously"
    rf"|(?:was|were) not (?:present|seen|identified|noted) (?:on|in) {PRIOR}"
    r"|ha(?:s|ve) developed(?: in the interval)?)\s*,?\s+and"
    r" (?=(?:is|are|may|might|could|likely|probably)\b)",
    r"\1 ",
)
# A first clause that lost its verb, before another one: "The effusion, and the lungs are clear."
_BEFORE_CLAUSE = re.compile(
    r"^(?P<subject>(?!no\b)[^,;.]+?)(?<!ly)(?P<rest>,?\s+(?P<joint>(?:and|but|whereas|while)"
    r"\s+(?:the|there|its?|their|no|an?))\b.*)$",
    re.IGNORECASE,
)
_SINGULAR_VERB = re.compile(
    r"\b(?:(?P<singular>is|has|was|appears|persists|remains|shows|demonstrates)"
    r"|are|have|were|appear|persist|remain|show|demonstrate)\b",
    re.IGNORECASE,
)
# Sentences without any of these contain no comparison. Most skip the slow patterns in this way.
_TRIGGER = re.compile(
    r"compar|prior|previous|progressive|similar|perceptible|\bmoved|\bmigrated|currently|stability"
    r"|remaining"
    r"|more prominent|differ|earlier|recent|\bsince\b|\blast\b|\bold(?:er)? (?:exam|stud|CT|scan"
    r"|chest|x-?ray|radiogr"
    r"|film)|interval|again"
    r"|redemonstrat|re-demonstrat|remain|persist|continue|stable|unchanged|similar|change|increas"
    r"|constant|better (?:seen|visual|apprec|demons)|decreas|improv|wors|resol|grown"
    r"|\bfrom \d|received|\bnot (?:\w+ )?(?:seen|present"
    r"|visual\w+|ident\w+|evident) (?:on|in) |enlarging|\bnow\b|progress|clearing|removal"
    r"|removed|\bnew|no longer|before|dating back"
    r"|develop|cleared|clear|recurred|evolv|advanced|withdrawn|retract|reposition|conspicuous"
    r"|aerat|pulled|insert|yesterday|better|greater|diminish|occurred|more (?:prom|dens|ext|app"
    r"|pron|conf)|less "
    r"(?:prom|dens|ext|app|pron|conf)|larger|smaller|been placed|absence"
    r"|than (?:the|on|prev)|today|interim|none (?:is|are) available|from (?:the"
    r"|X{3}|_{2})|extubat",
    re.IGNORECASE,
)


def drop_priors(text: str) -> str:
    """Removes comparisons with earlier examinations.

    "Stable mild cardiomegaly compared to ___." -> "Mild cardiomegaly."
    "There is a nodule, which has increased since the prior study." -> "There is a nodule."
    "The pneumothorax has resolved." -> "No pneumothorax."
    "The mediastinum is stable." -> "": nothing is stated about the mediastinum.
    """
    return each_sentence(text, without_priors)


def without_priors(sentence: str) -> str:
    """`drop_priors` for one sentence; "" if it only compares."""
    if not _TRIGGER.search(sentence):
        return sentence
    if ONLY_COMPARES.match(sentence) and not holds_finding(sentence):
        return ""
    if _NOT_SEEN_WHEN.search(sentence) or _TWO_SIZES.match(sentence):
        # The guard refuses an empty sentence.
        return ""
    pattern, replacement = _WAS_BEFORE
    later = pattern.sub(replacement, sentence)
    if later != sentence:
        return without_priors(mended(later))
    extubated = EXTUBATED.match(COMPARING_OPENING[0].sub("", sentence))
    if extubated:
        rest = without_priors(mended(extubated["rest"] or ""))
        return " ".join(filter(None, ("No endotracheal tube.", rest)))
    gone = as_negative(COMPARING_OPENING[0].sub("", sentence), without_priors)
    if gone is not None:
        return gone
    pruned = without_unchanged_clauses(replaced(sentence, UNDIVIDED))
    changed = NEARLY_GONE.sub(" ", LUNGS_CLEARED.sub("lungs are clear", pruned))
    changed = without_comparisons(changed)
    if changed == sentence:
        return sentence
    changed = mended(changed)
    # "Is present" states nothing about a part of the body.
    if (
        _IS_PRESENT.search(changed)
        and not _IS_PRESENT.search(sentence)
        and not holds_finding(changed)
        and says_nothing_by_words(changed)
    ):
        return ""
    if says_nothing(changed) or (ONLY_COMPARES.match(changed) and not holds_finding(changed)):
        return ""
    changed = _with_verb(changed, sentence)
    if not has_verb(changed):
        changed = mended(re.sub(r"^the\s+", "", changed, flags=re.IGNORECASE))
    return without_neutral_tail(changed)


def _with_verb(changed: str, sentence: str) -> str:
    """The changed sentence with "is present" in a first clause that lost its verb."""
    found = _BEFORE_CLAUSE.match(changed)
    if found is None or has_verb(found["subject"]) or not holds_finding(found["subject"]):
        return changed
    joint = re.search(rf"\b{found['joint']}\b", sentence, re.IGNORECASE)
    verb = _SINGULAR_VERB.search(sentence, 0, joint.start()) if joint else None
    if verb is None or not has_verb(found["rest"]):
        return changed
    return f"{found['subject']} {'is' if verb['singular'] else 'are'} present{found['rest']}"

"""Removal of marks of de-identification with the words that depend on them.

The hidden word is unknown. A mark is removed with the words that only lead to it ("at ___", "Dr.
___"). The words around it stay if they form a sentence without it; a sentence of which too little
is left is removed.
"""

import re

from unix_jax.cleaning.facts import holds_finding
from unix_jax.cleaning.hidden_meaning import NO_OF, UNTOLD
from unix_jax.cleaning.hidden_words import completed
from unix_jax.cleaning.marks import ANY_MARK, MARK, MARKS
from unix_jax.cleaning.sentences import each_sentence, mended, says_nothing

_WORD = re.compile(r"[^\W\d_]{2,}")
# An adjective whose noun is hidden and not known from the other words.
_ADJECTIVE = (
    r"(?:(?!(?:interval|normal|hospital|several|all|scar|scars|clinic|topic|particular|lumbar"
    r"|similar|mortal|level"
    r"|material|focal|clavicular|terminal|proximal)\b)(?:[a-z]{2,}(?:[a-z]al|[a-z]ar|ic|ous))"
    r"|left|right|upper|lower|prominent|both|very|transverse|exact"
    r"|superimposed|superimposing|overlying|telemetry|associated|blood|several|visualized"
    r"|bilateral|noncontrast|adjacent|free|round|punctate|residual|collecting|dilated"
    r"|implantable|large|small"
    r"|left-sided|right-sided|superior|inferior|anterior|posterior)"
)
_HEADLESS = re.compile(
    rf"\b{_ADJECTIVE}\s+{MARKS}(?=\s*(?:[.,;:)]|$)|\s+(?:is|are|was|were|seen|noted|identified"
    rf"|visualized|overl\w+|project\w*"
    r"|over|in|at|within|with|which|bilateral|intact|appears?|remains?|unchanged|stable|may|has"
    r"|have)\b)"
    rf"|\b(?:mild|moderate|severe|marked|minimal|{_ADJECTIVE})\s+{MARKS}\s+of\b"
    rf"|\b(?:known|patient with)\s+{MARKS}|\b(?:normal|clear|unremarkable)\s+{MARKS}\s+(?="
    rf"(?:pneumothorax|effusion|consolidation|edema)\b)"
    rf"|\b(?:nodule|mass|opacity|opacities|density|lesion|effusion|consolidation"
    rf"|scarring)\s+{MARKS}\s+the\b"
    rf"|\bfindings\s+{MARKS}\s+(?=\w+\s+\w+\s*\.?$)"
    rf"|\b(?:amount|degree|portions?|causing|old|remote|involving)\s+(?:of\s+)?{MARKS}(?=\s+"
    rf"(?:over|in|of|is|are|seen|noted|within)\b|\s*[.,;]|$)"
    rf"|\blobe\s+{MARKS}(?=\s*,|\s+and\b)|\d[a-z]{{0,2}}(?:-\d)?X{{3,}}|^one\s+{MARKS}"
    rf"|\ban?\s+{MARKS}\s+(?:noted|seen)\b"
    rf"|\bfurther\s+{MARKS}\s*\.?$|\bsoft tissue\s+{MARKS}(?=\s+(?:is|around"
    rf"|about|over|along)\b|\s*\.?$)|\b(?:represent"
    rf"|reflect)\s+{MARKS}\s+on\b"
    rf"|\bnot\s+(?:\w+ly\s+)?{MARKS}\s*\.?$|\bthe\s+{MARKS}\s+(?:appear|which)\b"
    rf"|\bcould not \w+ {MARKS}"
    # The hidden word may have been "no".
    rf"|^(?:there (?:is|are)\s+)?{MARKS}\s+(?:(?:pleural|focal)\s+)?(?:pneumothorax"
    rf"|pneumothoraces|effusions?|consolidations?|fractures?|pneumonia|edema)\s*\.?$"
    rf"|\b(?:seen|visualized|demonstrated) (?:on|in|by) {MARKS} (?=is|are\b)|\bof-{MARK}"
    rf"|{MARK}-of-\w+",
    re.IGNORECASE,
)
# The hidden word is the verb, or decides whether something is present.
_BROKEN = re.compile(
    rf"\b(?:is|are|was|were)\s+(?:an?\s+)?{MARKS}\s+(?:evidence|signs?|of)\b"
    rf"|\bnot\s+{MARKS}\s+(?:and|or)\b|\bsuggesting\s+{MARK}\s+physiology|{MARK}\s+cell\b"
    rf"|\b(?:do|does|did)\s+not\s+{MARK}\s+the\b|^{MARK}\s+correlated\b"
    rf"|^please\s+{MARKS}\s+to\b"
    rf"|^{MARK}\s+(?:left|right)\s+costophrenic\s+angles?,"
    rf"|^\s*{MARKS}\s+evidence of\b|\bthere\s+{MARKS}|\bto\s+{MARKS}\s+(?:within|in"
    r"|on|at|over|above|below|the)\b"
    rf"|\b(?:may|might|could|would|should|will)\s+{MARKS}(?!\s+(?:be|represent|reflect|have)\b)"
    rf"|\bwhich\s+{MARKS}(?!\s+(?:may|is|are|has|have|represent|reflect|could)\b)"
    rf"|\b(?:overall|but|with)\s+{MARKS}\s+change\b|\bthere (?:is|are|has been) "
    rf"(?:an? )?(?:[\w-]+ )?{MARKS}\s*[.,;]?$"
    rf"|^if\b.*{MARK}|^(?:recommend|consider|suggest|followup|follow-up)\b.*{MARK}"
    rf"|\bconsider\s+{MARKS}|\b(?:can|cannot|did|does)\s+{MARKS}"
    # An adjective whose noun is hidden would be joined to another.
    rf"|\b(?!(?:of|in|is|are|and|the|with|both|from|or|to|as|on|at|for|within|left|right|was"
    rf"|were|heart)\b)\w+\s+{MARKS}\s+(?:and|or)\s+(?=\w+\s+\w+\s*\.?$)(?<!lungs )",
    re.IGNORECASE,
)
# A mark with the words that only lead to it.
_SERVING = re.compile(
    r"(?:[,(]?\s*\b(?:(?:dated|performed|obtained|from|on|at|by|in|approximately|about"
    r"|per|since|of|to"
    r"|as|as of|Dr\.?|Drs\.?|Mr\.?|Mrs\.?|Ms\.?|the|an?|hours?)\s+){1,4})"
    rf"{MARKS}(?:\s*(?:[ap]\.?m\b\.?|hours|hrs|years?[- ]old|'s))?(?=\s*[,.;:)]|\s*$)",
    re.IGNORECASE,
)
_DATED = re.compile(
    rf"\b(?:on|from|dated|at|of)\s+\[\*\*[\d/ -]+\*\*\]|\b(?:on|dated|from)\s+{MARKS}"
    r"(?=\s+(?:at|in|with)\b)",
    re.IGNORECASE,
)
_AGE = re.compile(rf"\b(an?\s+)?{MARK}[- ]years?[- ]old\b", re.IGNORECASE)
_HYPHENATED = re.compile(rf"(?:\b\w+-)?{MARKS}(?:-\w+(?:-{MARK})?)|\b\w+-{MARK}")
_VERB_FIRST = re.compile(
    r"^(?:is|are|was|were|has|have|had|may|would|could|should|will|can|appears?|be|to|remains?"
    r"|within|from|of|unremarkable|intact|normal)\b",
    re.IGNORECASE,
)
_OPENING_MARK = re.compile(rf"^\W*(?:(?:the|both|visualized)\s+)?{MARK}", re.IGNORECASE)
# The position of a device is kept, even if its name was hidden.
_DEVICE = re.compile(r"\b(?:tips?|catheters?|leads?|tubes?|lines?|wires?)\b", re.IGNORECASE)
# An article whose noun was hidden.
_ORPHAN = re.compile(
    r"\b(the|an?)\s+(bilaterally|from|in|on|at|with|within|is|are|was|were|and|or|to|of|the)\b",
    re.IGNORECASE,
)
_LOST_SUBJECT = re.compile(
    rf"^\s*(?:the\s+|both\s+|visualized\s+)?{MARKS}\s+(?P<next>\w+)", re.IGNORECASE
)
_SUBJECT_VERB = re.compile(
    r"is|are|was|were|has|have|had|may|would|could|should|will|can|appears?|be|to|remains?|within"
    r"|from|of|unremarkable|intact|normal|in|at|on|by|for|stable|unchanged",
    re.IGNORECASE,
)


def drop_placeholders(text: str) -> str:
    """Removes marks of de-identification.

    "Nodule as on ___, seen by Dr. ___." -> "Nodule, seen."
    "XXXX are normal." -> "": it is unknown what is normal.
    "Opacities XXXX representing scarring." -> "Opacities possibly representing scarring."
    """
    return each_sentence(text, without_placeholders) if ANY_MARK.search(text) else text


def without_placeholders(sentence: str) -> str:
    """`drop_placeholders` for one sentence."""
    if not ANY_MARK.search(sentence):
        return sentence
    if UNTOLD.match(sentence):
        return ""
    before = sentence
    sentence = completed(sentence)
    if ANY_MARK.search(sentence) and (
        _BROKEN.search(sentence) or _HEADLESS.search(sentence) or _is_lost(sentence)
    ):
        return ""
    sentence = NO_OF.sub(r"\1 ", sentence)
    sentence = _AGE.sub(r"\1 ", sentence)
    sentence = _SERVING.sub(" ", _DATED.sub(" ", sentence))
    sentence = _HYPHENATED.sub(" ", sentence)
    sentence = ANY_MARK.sub(" ", sentence)
    if _ORPHAN.search(sentence):
        if not _DEVICE.search(sentence):
            return ""
        sentence = _ORPHAN.sub(r"\1 structure \2", sentence)
    result = mended(sentence)
    headless = _OPENING_MARK.match(before) is not None and _VERB_FIRST.match(result) is not None
    return "" if headless or says_nothing(result) else result


def _is_lost(sentence: str) -> bool:
    """Whether more words are hidden than visible, or the subject is hidden."""
    hidden, said = len(ANY_MARK.findall(sentence)), len(_WORD.findall(ANY_MARK.sub(" ", sentence)))
    subject = _LOST_SUBJECT.match(sentence)
    return (hidden >= said and not holds_finding(ANY_MARK.sub(" ", sentence))) or (
        subject is not None and bool(_SUBJECT_VERB.fullmatch(subject["next"]))
    )

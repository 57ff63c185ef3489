"""Sentences whose meaning depends on a hidden word, as in "There is XXXX pneumothorax"."""

import re
from collections.abc import Container

from unix_jax.cleaning.facts import facts, statements
from unix_jax.cleaning.hidden_context import DIAGNOSIS, END, PLACE, SIGN, SIGN_SEEN, SUBJECT
from unix_jax.cleaning.hidden_words import completed
from unix_jax.cleaning.marks import ANY_MARK, MARK, MARKS

# If the hidden word may have been "no", "not" or a word of doubt, the sentence without it may state
# the opposite. These findings are often denied, so that "no" is possible:
_OFTEN_DENIED = (
    r"(?:pneumothora\w+|(?:hydro|hemo)\w*thora\w+|effusions?|consolidations?|infiltrat\w+|edema"
    r"|pneumonia|fractures?|cardiomegaly|mass(?:es)?|nodules?|(?:free|subdiaphragmatic) air"
    r"|pneumoperitoneum|pneumomediastinum|adenopathy|lymphadenopathy|abnormalit\w+|malignan\w+"
    r"|metasta\w+|failure|congestion|tuberculosis|aneurysm|dissection|hernia|shift|collapse"
    r"|disease(?! of\b)|process)\b"
)
_NOT_A_PLACE = (
    r"(?:(?!(?:of|in|on|with|is|are|was|were|and|or|the|at|within|over|may|left|right|bilateral"
    r"|bibasilar|bilaterally|biapical|upper|lower|middle|basilar|apical|degenerative|granulomatous"
    r"|displaced|calcified|healed|healing|old|chronic|small|large|moderate|mild|sub\w+|representing"
    r"|hiatal|interstitial|due|from|to)\b)[\w-]+\s+)"
)
_STATED_OF = (
    r"(?:seen|noted|identified|present|visuali[sz]ed|excluded|evident|demonstrated(?!\s+(?:an?"
    r"|the|no)\b)"
    r"|appreciated|detected|visible|clear|normal|intact|enlarged|prominent"
    r"|elevated|displaced"
    r"|widened|dilated|collapsed|fractured|resolved|cleared|removed|within (?:the )?(?:normal"
    r"|limits)"
    r"|an?\s|in size)"
)
_MAY_DENY = re.compile(
    rf"(?:^|\bthere (?:is|are)\s+|\b(?:shows?|demonstrates?|reveals?|with)\s+)(?:{MARKS})\s+"
    rf"(?:{_NOT_A_PLACE}{{0,3}}{_OFTEN_DENIED}"
    r"|(?:acute|significant|focal|definite|visible|suspicious|obvious|discrete|other|convincing"
    rf"|radiographic|gross|further|active)\b|(?:[\w-]+\s+){{1,4}}or\s+(?:\w+\s+)?{_OFTEN_DENIED})"
    rf"|(?:^|\bwith\s+)(?:{MARKS})\s+(?:bilateral|left|right)(?:-sided)?\s+(?:pleural\s+)?"
    rf"effusions?{END}"
    # The word before it is not a mark, which consists of X.
    rf"|(?<!\bwhich )(?<!\bthat )(?<!\bthis )(?<!\bit )(?<!\bthere )(?<!\bvolumes )(?<!\bpatient )"
    rf"\b(?:is|are|was|were|has|have|had|appears?|remains?)\s+{MARKS}(?=\s*(?:[.,;]|$))"
    rf"|(?:(?<=[a-wyz])|(?<=[a-wyz]x))\s+{MARKS}\s+(?:\w+ly\s+)?{_STATED_OF}",
    re.IGNORECASE,
)
_ANY_FINDING = (
    rf"(?:{DIAGNOSIS}|(?:[\w-]+\s+){{0,2}}?(?:{SIGN}|{_OFTEN_DENIED}|crowding|metasta\w+))"
)
# What a report concludes from a sign.
_INTERPRETATION = (
    rf"(?:{DIAGNOSIS}|(?:[\w-]+\s+){{0,2}}?(?:eventration|bronchitis|hypertension|failure|tuberculosis"
    r"|sarcoid\w*|asthma|pneumonitis|metasta\w+|malignan\w+|lymphoma|abscess|empyema|hemorrhage)\b)"
)
_MAY_DOUBT = re.compile(
    rf"(?<=[\w,]\s)(?:{MARKS})\s+an?\s+\w"
    rf"|(?<!\bthere )\b(?:is|are|was|were)\s+{MARKS}\s+{_ANY_FINDING}"
    rf"|{MARKS}\s+(?:for|of)\s+(?:(?:an?|the|any)\s+)?{_ANY_FINDING}"
    rf"|(?<!\ba )(?<!\ban )(?<!\bthe )(?:{MARKS})\s+(?:[\w-]+\s+){{0,3}}?(?:versus|vs)\b"
    rf"|\b{SIGN_SEEN}\s+(?:[^.;,]*\b{PLACE}\s+)?{MARKS}\s+{_ANY_FINDING}"
    rf"|\b{SUBJECT}\s+{MARKS}\s+{_INTERPRETATION}"
    # "may", "cannot" or "less" before these.
    rf"|{MARKS}\s+be\s+(?:excluded|present|seen|due|related|secondary)\b"
    rf"|\b(?:is|are)\s+{MARKS}\s+likely\b|{MARKS}\s+than\b",
    re.IGNORECASE,
)
# A finding that a sentence states as present is not "not seen" in it.
_SEEN = re.compile(
    rf"^there (?:is|are) (?!X{{3}}|_)(?:(?!X{{3}}|__)[\w/-]+ ){{1,6}}?{MARKS}"
    r" (?:seen|noted|identified|present) (?:throughout|within|in|along)\b"
    r"(?! the (?:lateral|frontal|PA|AP)\b)",
    re.IGNORECASE,
)
# "Edema and XXXX bilateral effusions": the word may be "small" or "possible".
_HEDGE = re.compile(
    r"\b(?:may|might|could|possibl\w+|probabl\w+|likely|suggest\w*|versus|vs|compatible|consistent"
    r"|suspect\w*|suspicious|question\w*|concern\w*|favor\w*|cannot)\b",
    re.IGNORECASE,
)
_AND_FINDING = re.compile(
    rf"(?<!left )(?<!right )\b(?:and|with)\s+{MARKS}\s+(?P<finding>(?:[\w-]+\s+){{0,3}}?"
    r"(?:effusions?|atelectasis|edema"
    r"|pneumonia|congestion|infiltrates?|pneumothorax|pneumothoraces|consolidations?))\b",
    re.IGNORECASE,
)
# "No XXXX of the effusions" may be "no change", of effusions that are present.
_DENIES_PART = re.compile(rf"\bno\s+{MARKS}\s+of\s+(?:the|these|this|those)\b", re.IGNORECASE)
# "No pneumothorax, XXXX effusion." The word may be "no" or "small".
_AFTER_DENIAL = re.compile(
    rf"^(?:there (?:is|are) )?no\b[^.;]*,\s*{MARKS}\s+(?:[\w-]+\s+){{0,2}}?{_OFTEN_DENIED}\W*$",
    re.IGNORECASE,
)
# The only statement about a part of the body, or about an advice, is hidden.
UNTOLD = re.compile(
    rf"^(?:the )?(?:central airways?|airways?|lungs?|cardiomediastinal silhouette|trachea"
    rf"|clinical correlation) (?:is|are|appears?) {MARKS}{END}",
    re.IGNORECASE,
)
_DENIES = re.compile(r"\b(?:no|not|without|nor|neither|negative)\b", re.IGNORECASE)
_SAYS_WHETHER = re.compile(
    rf"^soft tissue {MARK} (?:around|about|over|along)\b"
    r"|^(?:(?:there (?:is|are)|an?|the)\s+)*(?:no|possibl[ey]|probabl[ey]|question(?:able)?"
    r"|suspect\w*|suspicious|likely|suggest\w+|concern\w*|cannot)\b"
    r"|\b(?:is|are|was|were|be)\s+not\s+(?:\w+ly\s+)?(?:seen|identified|visuali[sz]ed|present|noted"
    r"|demonstrated|evident|appreciated|excluded)\b",
    re.IGNORECASE,
)
_NO_HIDDEN = re.compile(rf"\b(no) {MARKS} (?!of\b|or\b|and\b|evidence\b)(?=[a-z])", re.IGNORECASE)
NO_OF = re.compile(rf"\b([Nn]o)\s+{MARKS}\s+of\s+(?:an?\s+)?")
_WORD = re.compile(r"[^\W\d_]{2,}")


def denying_others(sentence: str, stated: Container[str]) -> str:
    """Replaces "No XXXX infiltrates" by "No other infiltrates" if the report states infiltrates.

    The hidden word is most likely "new": without it the sentence would deny what was stated.

    stated: names of `facts` of what the report states as present.
    """
    if not _NO_HIDDEN.search(sentence):
        return sentence
    denied = (name for name in facts(sentence).counts if name.startswith("the negative finding"))
    if any(name.replace("negative ", "", 1) in stated for name in denied):
        return _NO_HIDDEN.sub(r"\1 other ", sentence)
    return sentence


def hides_meaning(sentence: str, rest: str = "") -> str:
    """Why a sentence cannot be understood without its hidden words; "" if it can.

    "There is XXXX pneumothorax.": the word may be "no". "The heart is XXXX enlarged.": "not". "Mass
    XXXX for malignancy.": "suspicious". In "No fracture is XXXX seen" the denial exists already.
    """
    if not ANY_MARK.search(sentence) or UNTOLD.match(sentence):
        return ""
    if _DENIES_PART.search(sentence):
        return "hides what is denied"
    if _AFTER_DENIAL.search(sentence):
        return "hides a word that may have been a negation"
    sentence = completed(sentence)
    sentence = NO_OF.sub(r"\1 ", sentence)
    if not ANY_MARK.search(sentence):
        return ""
    denied = _DENIES.search(sentence) is not None
    if not denied and _MAY_DENY.search(sentence) and not _SEEN.match(sentence):
        return "hides a word that may have been a negation"
    if _MAY_DOUBT.search(sentence) or _may_be_doubted(sentence, rest):
        return "hides a word that may have been one of doubt"
    return ""


def _may_be_doubted(sentence: str, rest: str) -> bool:
    """Whether a hidden word may cast doubt on a finding after "and" that `rest` does not state."""
    found = _AND_FINDING.search(sentence)
    if found is None or _HEDGE.search(sentence) or _DENIES.search(sentence, 0, found.start()):
        return False
    certain = statements(rest)
    names = statements(found["finding"])
    return any(name.startswith("the finding") and name not in certain for name in names)


def says_whether(sentence: str) -> bool:
    """Whether it states that something hidden is possible or absent: "Possible XXXX in the
    right lung." Such a sentence is not left out. "No XXXX." names nothing at all.
    """
    return (
        _SAYS_WHETHER.search(sentence) is not None and len(_WORD.findall(_unmarked(sentence))) > 1
    )


def _unmarked(sentence: str) -> str:
    return ANY_MARK.sub(" ", sentence)

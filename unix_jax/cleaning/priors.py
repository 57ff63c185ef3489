"""Comparison with earlier examinations, taken out so that the finding itself stays.

One X-ray cannot show that something is unchanged: a model trained to say so invents it. History
that the film does show ("prior sternotomy", "old fracture") is no comparison and stays.
"""

import re

from unix_jax.cleaning.placeholders import MARK
from unix_jax.cleaning.sentences import each_sentence, mended, says_nothing

_STUDY = (
    r"(?:exam(?:ination)?s?|stud(?:y|ies)|(?:chest\s+)?radiographs?|(?:chest\s+)?films?|imaging"
    r"|images?|(?:chest\s+)?x-?\s?(?:rays?|X{3,}|_{2,})|radiography|(?:chest\s+)?CTs?(?:\s+scans?)?"
    r"|scans?|reports?|comparisons?|(?:computed\s+)?tomogra(?:ms?|phy))"
)
_MARK = rf"{MARK}(?:[,/\s]+{MARK}){{0,4}}"
_EARLIER = (
    r"(?:prior|previous|earlier|recent|last|old|older|comparison|preceding|outside|available)"
)
_WHEN = (
    r"(?:\s*,?\s*(?:(?:performed|obtained|dated?|done|taken|from|on|of|in"
    rf"|at)\s+){{1,2}}(?:the\s+)?(?:{_MARK}"
    r"|\d{1,4}(?:[/-]\d{1,4}){0,2}|yesterday|same day|(?:\w+\s+)?(?:days?|weeks?"
    r"|months?|years?) (?:ago|earlier|prior))"
    rf"|\s+{_MARK}|\s+(?:\w+\s+)?(?:days?|weeks?|months?|years?) (?:ago|earlier|prior))?"
)
# "the most recent prior chest radiograph of 1/2", "prior", "XXXX exam": something earlier.
_PRIOR = (
    r"(?:(?:the|a|an|any|multiple|most|her|his|their|patient's)\s+){0,3}"
    rf"(?:(?:{_EARLIER}|{_MARK})(?:[\s,]+(?:{_EARLIER}|{_MARK}|chest|abdomen|thoracic"
    r"|frontal|lateral"
    rf"|PA|AP|portable|and)){{0,4}}(?:\s+(?:{_STUDY}(?:[\s/]+{_STUDY})?))?"
    rf"|(?:(?:abdomen|abdominal|chest|thoracic)\s+)?{_STUDY}(?:\s+{_STUDY})?)"
    rf"(?=[\s,.;:)]|$){_WHEN}"
)
_STOP = (
    r"(?=\s*(?:[.,;:)]|$|\b(?:and|with|but|without|which|or|in|at|of|is|are|may|as"
    r"|there|no|due|likely|possibly|suggest\w*|most|consistent|compatible)\b))"
)
_COMPARED = (
    r"(?:(?:when|as|if)\s+)?(?:(?:compar(?:ed|ing)|in comparison|relative"
    r"|with comparison)\s+(?:to|with|made to)?"
    r"|comparison (?:is )?(?:made )?(?:to|with))"
)
_DEGREE = (
    r"\b(?:(?:similar to|stable to|grossly|essentially|overall|relatively|otherwise"
    r"|slightly|mildly|minimally|markedly|significantly"
    r"|moderately|somewhat|largely|not|both|likely|probably|also|now|much|generally"
    r"|completely|partially|"
    r"substantially|in)\s+){0,3}"
)
_CHANGED = (
    r"(?:stable|unchanged|similar|increased|decreased|larger|smaller|enlarged|improved"
    r"|worse|worsened|better"
    r"|progressed|changed|(?:more|less) \w+"
    r"|diminished|reduced|new|the same)"
)
_ASPECT = (
    r"(?:\s+(?:in|appearance|from)?\s*(?:(?:the\s+)?(?:size|appearance|position"
    r"|configuration|contour|extent"
    r"|number|density|location|alignment|degree|interval|severity)(?:\s+and\s+(?:size"
    r"|appearance|contour|position|configuration))?))?"
)
_BE = (
    r"\b(?:(?:is|are|was|were|has|have|had|been|be|appears?|appeared|remains?|seems?"
    r"|looks?|to be|which|that)\s+){1,4}"
)
_AND_VERB = (
    r"(?:\s*,?\s+and\s+(?=(?:is|are|appears?|represents?|reflects?|may|has|have|likely"
    r"|most|suggests?)\b))?"
)
_NOUN_END = r"(?=\s*(?:[.,;:)]|$))"


def _rule(pattern: str, replacement: str = " ") -> tuple[re.Pattern[str], str]:
    return re.compile(pattern, re.IGNORECASE), replacement


# Sentences that say nothing but a comparison, or tell of something that is no longer there.
_DROPPED = re.compile(
    rf"^(?:no (?:{_MARK}\s+|significant |interval |appreciable |relevant |definite "
    r"|substantial |acute )*"
    r"changes?(?:\s+(?:is|are|was|were)?\s*(?:seen|noted|identified|demonstrated)?)?"
    r"(?:\s+(?:from|since|compared|with)\b[^.]*)?"
    rf"|(?:grossly |essentially )?(?:{_CHANGED})(?: (?:exam|examination|study|chest"
    r"|appearance|radiograph))?(?: of the chest)?"
    rf"|no (?:prior |previous |available )?comparisons?(?:\s+(?:{_STUDY}|available"
    r"|for review|are|is|at this time))*"
    r"|comparison is made[^.]*|none available"
    rf"|(?:the )?heart and lungs? ha(?:s|ve) {_MARK} in the interval"
    r"|(?:appearance )?(?:is |are )?not (?:significantly )?changed[^.,;]*"
    rf"|comparison:?(?:\s*(?:{_MARK}|none|\d[\d/-]*|available|{_STUDY}|chest|to|with|of"
    r"|from|dated|,))*"
    r"|(?:this|it|these|they) (?:has|have|was|were|is|are)\b[^.\d]*\b(?:since|prior"
    r"|previous|previously)\b[^.\d]*"
    r"|(?:prior|previous|recommend|suggest)?[^,;.]{0,40}\bcomparison\b[^,;.]{0,60}\b"
    r"(?:would|may|might|could|recommended|useful|helpful|suggested)\b[^;]*"
    r"|recommend comparison\b.*"
    r"|(?:if|in the absence of|no prior|no previous|as prior|recommend|consider)\b.*\b"
    rf"(?:comparisons?|(?:prior|previous|outside) {_STUDY})\b.*"
    rf"|comparison {_STUDY}\b.*|the most recent {_STUDY} (?:is|are) not\b.*"
    rf"|(?:the )?(?:{_MARK} )?(?:appearance|this|it|these|findings?) (?:is|are|was|were"
    rf"|appears?) {_DEGREE}"
    rf"(?:{_CHANGED}|present|seen|noted)\b(?:\s*(?:to|from|since|on|compared|in)\b[^,;]*)?"
    r")\s*[.;:]*$",
    re.IGNORECASE,
)
# What was there and is gone; one X-ray cannot show it.
_GONE = re.compile(
    r"^(?:[^,;]*\b(?:no longer (?:seen|visualized|present|identified|evident|visible)"
    r"|not (?:seen|present|visualized|identified) on (?:the )?(?:\w+ )?(?:prior|previous))[^,;]*"
    r"|(?:there (?:is|are|has been|have been)|there's been)?\s*(?:the )?(?:interval )?"
    r"(?:removal|resolution|clearing) of [^,;]*"
    r"|(?:in the interval,? )?[^,;]*\b(?:has|have) (?:been (?:removed|extubated)|"
    r"(?:nearly |almost |essentially |completely )?(?:resolved|cleared))"
    r"(?: in the interval)?"
    r")\s*[.;:]*$",
    re.IGNORECASE,
)
_ANOTHER_CLAUSE = re.compile(
    r"\b(?:but|however|although|with|there (?:is|are|has been))\b(?!.*\b(?:removal|removed)\b)",
    re.IGNORECASE,
)

_PHRASES = (
    # An opening: "Comparison XXXX. Clear lungs", "Compared to the prior, ...", "Since ..., ..."
    _rule(rf"^comparison:?\s+{_MARK}[\s,.:]+(?=(?-i:[A-Z]))"),
    _rule(rf"^no comparisons?(?:\s+{_STUDY})?[.:]*\s+(?=(?-i:[A-Z][a-z]))"),
    _rule(
        r"^(?:(?:there (?:is|are|has been)|there's been) )?no (?:(?:significant"
        r"|interval|appreciable|definite|\w+ly) )*changes? (?:is |are )?(?:seen )?in "
        r"(?:the )?(?:(?:size|appearance|position) of (?:the )?)?(?=\w)",
        "",
    ),
    _rule(
        r"^(?:once )?again,? (?:seen|noted|demonstrated|identified|visualized) (is"
        r"|are)\b",
        r"There \1",
    ),
    _rule(rf"^(?:{_COMPARED}|since|from)\s+{_PRIOR}\s*,\s*"),
    _rule(r"^in the interval,?\s+"),
    # "no new" bounds what is seen now: nothing beside what was described.
    _rule(
        r"\b(no|without)(\s+(?:definite|evidence of|focal))?\s+(?:new|interval) "
        r"(?=acute\b)",
        r"\1\2 ",
    ),
    _rule(r"\b(no|without)(\s+(?:definite|evidence of|focal))?\s+new\b", r"\1\2 other"),
    # "appears slightly larger than the prior study", "which has increased in size since XXXX"
    _rule(
        rf",?\s*(?:and\s+)?{_BE}{_DEGREE}{_CHANGED}{_ASPECT}\s*,?\s*{_DEGREE}(?:(?:than"
        rf"(?: on)?|to|from|since|versus|{_COMPARED})\s+|(?:to|with) that "
        rf"(?:seen )?on\s+){_PRIOR}{_AND_VERB}",
    ),
    _rule(
        rf",?\s*(?:and\s+)?(?:of\s+)?{_DEGREE}{_CHANGED}{_ASPECT}"
        rf"(?:\s+{_MARK})?\s*,?\s*{_DEGREE}(?:than(?: on)?|to|from|since|versus"
        rf"|{_COMPARED})\s+{_PRIOR}{_AND_VERB}",
    ),
    _rule(
        r"[,-]?\s*(?:\b(?:which|that|and) (?:was|were|are|is)\s+)?(?:\bas\s+)?(?:\b"
        r"(?:more|better|best|not|also)\s+)?(?:\b(?:readily|clearly|well)\s+)?\b(?:seen"
        r"|noted|present|identified|described|visualized|demonstrated|as)\s+"
        rf"(?:also\s+)?(?:on|in)\s+(?:(?:the|multiple|most|his|her|patient's)\s+){{0,3}}"
        rf"(?:{_EARLIER}\s+){{1,2}}(?:(?:PA|AP|chest|abdomen|frontal"
        rf"|lateral)\s+){{0,2}}{_STUDY}(?:[\s/]+(?:{_STUDY}|chest|abdomen)){{0,3}}{_WHEN}",
    ),
    _rule(rf",?\s*(?:in\s+)?(?:(?:{_COMPARED})|since)\s+{_PRIOR}{_STOP}"),
    _rule(
        rf",?\s*(?:from|than|to)\s+(?:the\s+|multiple\s+)?{_EARLIER}(?:\s+{_EARLIER})?"
        rf"(?:\s+(?:chest\s+)?{_STUDY}{_WHEN})?{_STOP}",
    ),
    _rule(
        r",?\s*\b(?:as (?:before|previously(?: (?:seen|noted|described))?|on prior)|"
        r"(?:seen|noted|identified|described) previously)\b",
    ),
    _rule(r",?\s*\b(?:in|during|over|since) the (?:short |prior )?interval\b"),
    # interval + noun
    _rule(
        r"\b(?:(?:significant|slight|mild|marked|minimal|moderate|apparent|further"
        r"|some)\s+)?interval (?:increase|decrease|reduction)d?(?: in size)?(?: of"
        r"| in) (?:the )?",
    ),
    _rule(
        r"\b(?:there (?:has|have) been|there's been|there (?:is|are))\s+"
        r"(?:apparent\s+)?interval (?:development|appearance|improvement|worsening"
        r"|progression)(?: of| in)?\s+",
        "There is ",
    ),
    _rule(
        r"\binterval (?:development|appearance|improvement|worsening|progression"
        r"|placement)(?: of| in)?\s+",
    ),
    _rule(
        r",?\s*\b(?:with(?:out|\s+no)?|no) (?:significant |appreciable )?(?:interval"
        r"|significant) changes?\b(?:\s+in (?:size|appearance|position))?",
    ),
    _rule(r"(?<!short )(?<!short-)\binterval\b(?!\s+(?:follow|radiograph|between))"),
    # again
    _rule(
        r"\b(?:once again|again),?\s+(?=(?:is |are )?(?:seen|noted|demonstrated"
        r"|identified|visualized|present|there|shows?|appreciated))",
    ),
    _rule(
        r"\b((?:seen|noted|demonstrated|identified|visualized|present))\s+"
        r"(?:once )?again\b",
        r"\1",
    ),
    _rule(r"\b(?:there is|there are)\s+(?:again\s+)?redemonstration of\s+", "There is "),
    _rule(r"\b(?:redemonstration|re-demonstration)(?: of| in)?\s+"),
    _rule(r"\b(is|are)\s+(?:again\s+)?re-?demonstrated\b", r"\1 seen"),
    _rule(r",?\s*\bre-?demonstrated\b"),
    _rule(r"\bagain\b,?"),
    _rule(r"\bthere (is|are) (?:of|in)\b", r"there \1"),
    # remain, persist, continue
    _rule(r"^(?:(?:near|nearly|essentially|completely|interval)\s+)*resolved [^,.;]*(?:[,.;]|$)"),
    _rule(r"\bpersists?\b(?=\s+(?:in|at|on|within|over)\b)", "is present"),
    _rule(
        r"\b(?:stable|unchanged|persistent),\s+(?=(?:mild|moderate|marked|severe|normal"
        r"|small|large|minimal|\w+ly)\b)",
        "",
    ),
    _rule(r"(?<=\w) and (?:stable|unchanged)\s+(?=\w)"),
    _rule(
        rf",?\s*\b(?:which|that|and)\s+{_BE}{_DEGREE}(?:improved|worsened|increased"
        rf"|decreased|progressed|larger|smaller){_ASPECT}{_NOUN_END}",
    ),
    _rule(rf"\b(?:remains|continues to be)\s+(?:stable|unchanged){_ASPECT}{_NOUN_END}"),
    _rule(r"\b(?:remains|continues to be)\s+(?=\w)", "is "),
    _rule(r"\b(?:remain|continue to be)\s+(?=\w)", "are "),
    _rule(rf"\b(?:remains?|persists?){_NOUN_END}"),
    _rule(r"\bpersistent(?:ly)?\b"),
    _rule(r"\bcontinued\b(?=\s+\w)"),
    # stable and unchanged: predicates, then adjectives
    _rule(rf"\b(?:has|have) not (?:\w+ly )?changed(?: \w+ly)?{_NOUN_END}"),
    _rule(
        rf"\b(?:is|are)\s+{_DEGREE}(?:stable|unchanged)(?:,|,?\s+and)\s+(?=(?:is|are|may"
        r"|represents?|indicates?|suggests?|most|likely|overl\w+)\b)",
    ),
    _rule(rf",?\s*(?:but\s+)?(?:this|which) (?:is|appears) {_DEGREE}(?:stable|unchanged){_ASPECT}"),
    _rule(
        rf"\b(?:has|have)\s+(?:been\s+)?{_DEGREE}(?:increased|decreased|progressed"
        r"|improved|worsened|enlarged)(?:\s+in (?:size|number|extent"
        rf"|severity))?{_NOUN_END}",
    ),
    _rule(
        rf",?\s*(?:and\s+)?{_BE}{_DEGREE}(?:stable|unchanged|similar|(?:un)?changed)"
        rf"(?:\s+and\s+unchanged)?{_ASPECT}{_NOUN_END}",
    ),
    _rule(
        rf"\b((?:is|are|appears?)\s+){_DEGREE}(?:stable|unchanged)(?:\s+(?:in"
        r"|to)\s+\w+)?(?:,|\s+and)\s+(?=\w)",
        r"\1",
    ),
    _rule(
        rf"\b(?:is|are|appears?)\s+{_DEGREE}(?:stable|unchanged){_ASPECT}(?=\s+(?:with"
        r"|without)\b)",
    ),
    _rule(
        r",?\s*\bin (?:grossly\s+)?(?:stable|unchanged|similar)(?:,?\s+(?:stable"
        r"|X{3,}))? (?:position|location|appearance|alignment|configuration)s?\b",
    ),
    _rule(
        r"\b(?:grossly\s+)?(?:stable|unchanged|similar) (?:in )?(?:appearance|position"
        r"|size|configuration|contour) of\s+(?=\w)",
    ),
    _rule(
        r"\bwith\s+(?:grossly\s+)?(?:stable|unchanged|similar) (?:position|appearance"
        r"|configuration|alignment|placement)\b",
    ),
    _rule(
        rf",?\s*(?:and\s+)?{_DEGREE}\b(?:stable|unchanged|similar)"
        rf"(?:\s+appearing)?{_ASPECT}{_NOUN_END}",
    ),
    _rule(rf",?\s*\b{_DEGREE}(?:stable|unchanged)\s+and\s+"),
    _rule(rf"{_DEGREE}\b(?:stable[- ]appearing|stable|unchanged)\b,?"),
    # newness and change without a named prior
    _rule(
        r"\b(?:the\s+)?previously[- ](?:seen|noted|described|identified|visualized"
        r"|demonstrated)\b",
    ),
    _rule(
        r"\b(?:worsening|worsened|improving|improved|resolving|increasing|decreasing)\b(?=\s+\w)"
    ),
    _rule(r"\bthere is the\b", "there is"),
    _rule(r"(?<!\bof )\bnew(?:ly)?\b(?!\s+(?:york|born))"),
)
_PREDICATE_GONE = re.compile(
    r"\b(?:is|are|was|were|has|have|had|been|appears?|shows?|seen|noted|may|can|could"
    r"|represents?)\b",
    re.IGNORECASE,
)
# Sentences without any of these hold no comparison; most are passed by without the slow patterns.
_TRIGGER = re.compile(
    r"compar|prior|previous|earlier|recent|\bsince\b|\blast\b|\bold(?:er)? (?:exam|stud"
    r"|film)|interval|again"
    r"|redemonstrat|re-demonstrat|remain|persist|continue|stable|unchanged|similar|change|increas"
    r"|decreas|improv|wors|resol|progress|clearing|removal|removed|\bnew|no longer|before"
    r"|than (?:the|on)|from (?:the|X{3}|_{2})|extubat",
    re.IGNORECASE,
)


def drop_priors(text: str) -> str:
    """Without comparison with earlier examinations.

    "Stable mild cardiomegaly compared to ___." -> "Mild cardiomegaly."
    "There is a nodule, which has increased since the prior study." -> "There is a nodule."
    "The mediastinum is stable." -> "": nothing is said of the mediastinum itself.
    """
    return each_sentence(text, _without_priors)


def _without_priors(sentence: str) -> str:
    if not _TRIGGER.search(sentence):
        return sentence
    if _DROPPED.match(sentence) or _is_gone(sentence):
        return ""
    changed = sentence
    for pattern, replacement in _PHRASES:
        changed = pattern.sub(replacement, changed)
    if changed == sentence:
        return sentence
    changed = mended(changed)
    if says_nothing(changed):
        return ""
    if not _PREDICATE_GONE.search(changed) and _PREDICATE_GONE.search(sentence):
        changed = mended(re.sub(r"^the\s+", "", changed, flags=re.IGNORECASE))
    return changed


def _is_gone(sentence: str) -> bool:
    """Whether a sentence only tells of what is no longer there."""
    match = _GONE.match(sentence)
    if match is None:
        return False
    opening = re.match(r"^there (?:is|are|has been|have been)\b", sentence, re.IGNORECASE)
    return _ANOTHER_CLAUSE.search(sentence, opening.end() if opening else 0) is None

"""Parts of patterns that name an earlier examination, a change, or its degree."""

from unix_jax.cleaning.marks import MARK

STUDY = (
    r"(?:exam(?:ination)?s?|stud(?:y|ies)|(?:chest\s+)?radiographs?|(?:chest\s+)?films?|imaging"
    r"|images?|(?:chest\s+)?x-?\s?rays?|(?:chest\s+)?x-\s?(?:X{3,}|_{2,})|radiography|"
    r"(?:chest\s+)?CTs?(?:\s+scans?)?"
    r"|scans?|reports?|comparisons?|(?:computed\s+)?tomogra(?:ms?|phy))"
)
HIDDEN = rf"{MARK}(?:[,/\s]+{MARK}){{0,4}}"
EARLIER = (
    r"(?:priors?|previous|earlier|recent|last|old|older|comparison|preceding|outside|available)"
)
WHEN = (
    r"(?:\s*,?\s*(?:(?:performed|obtained|dated?|done|taken|from|on|of|in"
    rf"|at)\s+){{1,2}}(?:the\s+)?(?:{HIDDEN}"
    r"|\d{1,4}(?:[/-]\d{1,4}){0,2}(?:\s+(?:days?|weeks?|months?|years?) (?:ago|earlier|prior))?"
    r"|yesterday|same day|(?:\w+\s+)?(?:days?|weeks?"
    r"|months?|years?) (?:ago|earlier|prior))"
    rf"|\s+{HIDDEN}|\s+(?:\w+\s+)?(?:days?|weeks?|months?|years?) (?:ago|earlier|prior))?"
)
AMOUNT = r"\d+(?:\.\d+)?(?:\s*x\s*\d+(?:\.\d+)?)*\s*-?(?:mm|cm|centimeters?|millimeters?)?(?!\w)"
SIZE_WORD = r"(?:tiny|trace|minimal|small|mild|moderate|large|marked|severe|extensive)"
# An earlier examination: "the most recent prior chest radiograph of 1/2", "prior", "XXXX exam".
PRIOR = (
    r"(?:(?:the|a|an|any|multiple|most|her|his|their|patient's)\s+){0,3}"
    rf"(?:(?:{EARLIER}|{HIDDEN})(?:[\s,]+(?:{EARLIER}|{HIDDEN}|chest|abdomen|thoracic"
    r"|frontal|lateral"
    rf"|PA|AP|portable|and)){{0,4}}(?:\s+(?:{STUDY}(?:[\s/]+{STUDY})?))?"
    rf"|(?:(?:abdomen|abdominal|chest|thoracic)\s+)?{STUDY}(?:\s+{STUDY})?)"
    rf"(?=[\s,.;:)]|$){WHEN}"
)
STOP = (
    r"(?=\s*(?:[.,;:)]|$|\b(?:and|with|but|without|which|or|in|at|of|is|are|may|as"
    r"|there|no|due|likely|possibly|suggest\w*|most|consistent|compatible)\b))"
)
COMPARED = (
    r"(?:(?:when|as|if)\s+)?(?:(?:compar(?:ed|ing)|in comparison|relative"
    r"|with comparison)\s+(?:to|with|made to)?"
    r"|comparison (?:is )?(?:made )?(?:to|with))"
)
DEGREE = (
    r"\b(?:(?:similar to|stable to|grossly|essentially|overall|relatively|otherwise"
    r"|slightly|mildly|minimally|markedly|significantly"
    r"|moderately|somewhat|largely|not|both|likely|probably|also|now|much|generally"
    r"|completely|partially|"
    r"substantially|in)\s+){0,3}"
)
CHANGED = (
    r"(?:stable|unchanged|similar|increased|decreased|larger|smaller|enlarged|improved"
    r"|worse|worsened|better"
    r"|progressed|changed|(?:more|less) \w+"
    r"|diminished|reduced|new|the same)"
)
ASPECT = (
    r"(?:\s+(?:in|appearance|from)?\s*(?:(?:the\s+)?(?:size|appearance|position"
    r"|configuration|contour|extent"
    r"|number|density|location|alignment|degree|interval|severity)(?:\s+and\s+(?:size"
    r"|appearance|contour|position|configuration|number|density|extent))?))?"
)
BE = (
    r"\b(?:(?:is|are|was|were|has|have|had|been|be|appears?|appeared|remains?|seems?"
    r"|looks?|to be|which|that)\s+){1,4}"
)
AND_VERB = (
    r"(?:\s*,?\s+and\s+(?=(?:is|are|appears?|represents?|reflects?|may|has|have|likely"
    r"|most|suggests?)\b))?"
)
# The start of a finding's name, with adjectives that belong to it.
FINDING = (
    r"(?:airspace|opaci|effusion|edema|consolid|pneumoth|infiltr|atelect|congest|nodul|mass\b"
    r"|interstitial|pleural)"
)
NOUN_END = r"(?=\s*(?:[.,;:)]|$))"
# The end of a statement that a finding is gone: "has resolved since the prior study".
TILL_NOW = (
    rf"(?:\s+(?:completely|entirely|in the interval|on (?:today's|the current) \w+))*"
    rf"(?:\s*,?\s+(?:since|from|compared (?:to|with)|when compared (?:to|with))\s+{PRIOR})?"
)
NOT_QUITE = (
    r"(?:nearly|almost|partially|partly|mostly|largely|incompletely|substantially|virtually|near)"
)

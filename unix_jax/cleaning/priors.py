"""Removal of comparisons with earlier examinations, which keeps the finding itself.

One X-ray cannot show that something is unchanged: a model trained to say so invents it. History
that the film does show ("prior sternotomy", "old fracture") is no comparison and stays.
"""

import re

from unix_jax.cleaning.facts import DEVICES, holds_finding
from unix_jax.cleaning.guard import has_verb, says_nothing_by_words
from unix_jax.cleaning.placeholders import MARK
from unix_jax.cleaning.sentences import each_sentence, mended, says_nothing

_STUDY = (
    r"(?:exam(?:ination)?s?|stud(?:y|ies)|(?:chest\s+)?radiographs?|(?:chest\s+)?films?|imaging"
    r"|images?|(?:chest\s+)?x-?\s?rays?|(?:chest\s+)?x-\s?(?:X{3,}|_{2,})|radiography|"
    r"(?:chest\s+)?CTs?(?:\s+scans?)?"
    r"|scans?|reports?|comparisons?|(?:computed\s+)?tomogra(?:ms?|phy))"
)
_MARK = rf"{MARK}(?:[,/\s]+{MARK}){{0,4}}"
_EARLIER = (
    r"(?:priors?|previous|earlier|recent|last|old|older|comparison|preceding|outside|available)"
)
_WHEN = (
    r"(?:\s*,?\s*(?:(?:performed|obtained|dated?|done|taken|from|on|of|in"
    rf"|at)\s+){{1,2}}(?:the\s+)?(?:{_MARK}"
    r"|\d{1,4}(?:[/-]\d{1,4}){0,2}|yesterday|same day|(?:\w+\s+)?(?:days?|weeks?"
    r"|months?|years?) (?:ago|earlier|prior))"
    rf"|\s+{_MARK}|\s+(?:\w+\s+)?(?:days?|weeks?|months?|years?) (?:ago|earlier|prior))?"
)
_AMOUNT = r"\d+(?:\.\d+)?(?:\s*x\s*\d+(?:\.\d+)?)*\s*-?(?:mm|cm|centimeters?|millimeters?)?(?!\w)"
_SIZE_WORD = r"(?:tiny|trace|minimal|small|mild|moderate|large|marked|severe|extensive)"
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
    r"|appearance|contour|position|configuration|number|density|extent))?))?"
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
    rf"^(?:(?:there (?:is|are|has been|have been) )?(?:no|little|minimal) (?:{_MARK}\s+|overall "
    rf"|other |gross |significant |interval |appreciable |relevant |definite "
    r"|substantial |acute (?!changes\b))*"
    r"changes?(?:\s+(?:is|are|was|were)?\s*(?:seen|noted|identified|demonstrated|found)?"
    r"(?:\s+in (?:the )?[a-z ]+)?)?"
    r"(?:\s+(?:from|since|compared|with)\b[^.]*)?"
    rf"|(?:grossly |essentially )?(?:{_CHANGED})(?: (?:exam|examination|study|chest"
    r"|appearance|radiograph))?(?: of the chest)?"
    rf"|no (?:prior |previous |available )?comparisons?(?:\s+(?:{_STUDY}|available"
    r"|for review|are|is|at this time))*"
    r"|comparison is made[^.]*|none available"
    r"|(?:the )?heart and mediastinum (?:is|are) (?:stable|unchanged) given (?:the )?lung volumes"
    rf"|(?:overall,? )?this is not {_MARK} to represent a (?:significant )?change\b.*"
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
    rf"|(?:the )?(?:\w+ )?{_MARK} (?:has|have) been removed\b[^,;]*"
    rf"|[^,;]*\b(?:may|might) (?:be|have been) (?:\w+ly )?{_CHANGED}\s+(?:compared|from|since)\b"
    r"[^,;]*"
    rf"|comparison (?:to|with) {_PRIOR}[^;]*\b(?:useful|helpful|recommended)\b[^;]*"
    rf"|comparison {_STUDY}\b.*|the most recent {_STUDY} (?:is|are) not\b.*"
    rf"|(?:the )?(?:{_MARK} )?(?:appearance|this|it|these|findings?) (?:is|are|was|were"
    rf"|appears?) {_DEGREE}"
    rf"(?:{_CHANGED}|present|seen|noted)\b(?:\s*(?:to|from|since|on|compared|in)\b[^,;]*)?"
    r")\s*[.;:]*$",
    re.IGNORECASE,
)
# What was there and is gone is a negative finding: "The effusion has resolved." -> "No effusion."
_TILL_NOW = (
    rf"(?:\s+(?:completely|entirely|in the interval|on (?:today's|the current) \w+))*"
    rf"(?:\s*,?\s+(?:since|from|compared (?:to|with)|when compared (?:to|with))\s+{_PRIOR})?"
)
_NOT_QUITE = (
    r"(?:nearly|almost|partially|partly|mostly|largely|incompletely|substantially|virtually|near)"
)
_GONE = (
    re.compile(
        rf"^(?:in the interval,?\s+)?(?P<np>[^;.]+?)\s+(?:has|have|had)\s+(?:(?:now|completely"
        rf"|since|interval|also|fully|been"
        rf"|entirely|subsequently)\s+)*(?:resolved|cleared|removed){_TILL_NOW}\s*"
        rf"(?P<rest>[,;.].*)?$",
        re.IGNORECASE,
    ),
    re.compile(
        rf"^(?P<np>[^,;.]+?)\s+(?:is|are)\s+(?:now\s+)?(?:no longer (?:clearly |well )?(?:seen"
        rf"|visualized|present|identified|evident|visible|demonstrated|appreciated)|resolved)"
        rf"{_TILL_NOW}\s*(?P<rest>[,;.].*)?$",
        re.IGNORECASE,
    ),
    re.compile(
        r"^(?:there (?:is|are|has been|have been)\s+)?(?:the\s+|an?\s+)?(?:apparent\s+)?"
        r"(?:complete\s+)?(?:interval\s+)?"
        rf"(?:complete\s+)?(?:removal|resolution) of\s+(?P<np>[^,;.]+?){_TILL_NOW}"
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
        r"^(?:(?:interval(?:ly)?|essentially|completely)\s+)*resolved\s+(?P<np>[^,;.]+?)\s*"
        r"(?P<rest>[,;.].*)?$",
        re.I,
    ),
)
_NEARLY_GONE = re.compile(
    rf"\s+(?:has|have|is|are)\s+(?:now\s+)?(?:{_NOT_QUITE})(?:\s+completely)?\s+(?:been\s+)?"
    rf"(?:resolved|cleared)"
    rf"{_TILL_NOW}(?=\s*(?:[,;.]|$))"
    rf"|^(?:there (?:is|has been)\s+)?(?:(?:the|an?|interval)\s+)*(?:near(?:ly)?|{_NOT_QUITE}"
    rf"|partial|incomplete)"
    r"(?:[\s-]+(?:complete|total|interval))*\s+(?:resolution|clearing) of\s+(?:the\s+)?",
    re.IGNORECASE,
)
_IS_PRESENT = re.compile(r"\b(?:is|are) present\W*$", re.IGNORECASE)
_EXTUBATED = re.compile(
    r"^(?:there has been\s+)?(?:interval\s+)?(?:extubation|(?:the\s+)?patient\s+(?:is|was"
    r"|has been)\s+(?:now\s+|since\s+)?extubated)"
    rf"{_TILL_NOW}(?:\s*[.]|$|\s*(?:[,;]|\bwith\b|\band\b)\s+(?P<rest>.+)$)",
    re.IGNORECASE,
)
_LUNGS_CLEARED = re.compile(r"\blungs? ha(?:s|ve) (?:now )?cleared\b", re.IGNORECASE)
_GONE_ARTICLE = re.compile(
    r"^(?:(?:the|this|these|those|previously|previous|prior|seen|noted|described|identified|an?"
    r"|visualized|interval|all)\s+)+",
    re.IGNORECASE,
)

# What is not seen in a study whose time is hidden may be gone, or may be new.
_NOT_SEEN_WHEN = re.compile(
    r"(?<!which )\b(?:is|are) not (?:\w+ )?(?:seen|visuali[sz]ed|identified|present|evident)"
    rf" (?:on|in) (?:the )?{_MARK} {_STUDY}",
    re.IGNORECASE,
)

# Of something that was named before: "This has developed in the interval, and may be ..."
_WAS_BEFORE = _rule(
    r"^(this|it|these|they) (?:(?:was|were|has been|have been) present previously"
    rf"|(?:was|were) not (?:present|seen|identified|noted) (?:on|in) {_PRIOR}"
    r"|ha(?:s|ve) developed(?: in the interval)?)\s*,?\s+and"
    r" (?=(?:is|are|may|might|could|likely|probably)\b)",
    r"\1 ",
)
_COMPARING_OPENING = _rule(rf"^(?:{_COMPARED}|since|from)\s+{_PRIOR}\s*,\s*")
_PHRASES = (
    _rule(r"^(?:chest\s+)?comparisons?:\s+(?=there\b)", ""),
    _rule(
        rf",?\s*\bdating back to (?:(?:multiple |several |prior )*{_STUDY}"
        rf"(?:\s+(?:in|from|of|on)\s+{MARK})?|{MARK})",
        "",
    ),
    _rule(
        r"^((?:these|those) [\w ]+?) (?:appear|are) (?:\w+ly )?"
        r"(?:increased|decreased|improved|worse)"
        rf"(?:\s+(?:as )?compared (?:to|with)\s+{_PRIOR}|\s+(?:since|from)\s+{_PRIOR})\s*\.?$",
        r"\1 are present.",
    ),
    _rule(r"\s+(?:has|have) ((?:in|de)creased) in opacity\b", r" of \1 opacity"),
    _rule(rf",?\s*\bwhich (?:has|have) been there (?:on|in) {_PRIOR}", ""),
    _rule(
        r"^(?:there (?:is|are) )?(?:improved|improving|increased|decreased) lung volumes"
        r"(?: bilaterally)?(?: with|,) (?=\w)",
        "",
    ),
    _rule(r"^(?:improved|improving|increased|decreased) lung volumes without (?=\w)", "No "),
    _rule(
        r"^(?:the )?lung volumes are (?:decreased|lower|improved|increased) (?:from|since)"
        rf" {_PRIOR},? and (?=there\b)",
        "",
    ),
    _rule(r"\blower (?=lung volumes (?:as )?compared\b)", "low "),
    _rule(r"\bthere(?:'s| has| have) been (?:interval )?(?:placement|insertion) of ", "there is "),
    _rule(r"^there(?:'s| has| have) been (?:interval )?development of ", ""),
    _rule(r"\b(?:there is )?persistence of (?=an?\b)", "there is "),
    _rule(r"\bhas become (?=normal\b)", "is "),
    _rule(r"\b(?:resolving or developing|developing or resolving) (?=\w)", ""),
    _rule(
        r"\b(small|mild|minimal|moderate|large) but (?:increasing|decreasing|enlarging|improving"
        r"|worsening|stable|unchanged) (?=\w)",
        r"\1 ",
    ),
    _rule(r"\b(?:stable|unchanged)/(?=\w)", ""),
    _rule(rf",\s*(?:small|mild|slight|minimal) interval changes? (?:from|since) {_PRIOR}", ""),
    _rule(r"\b(?:stable|unchanged) ((?:\w+ )?cardiomegaly) and mediastinal contours?\b", r"\1"),
    _rule(r"\b(is|are) likewise (?:stable|unchanged)(?=\s*(?:[.,;]|$))", r"\1 present"),
    _rule(r"\bremain (?=which\b)", "are present "),
    _rule(
        rf"\b(leads) in (?:stable|unchanged) position(?: (?:since|from) {_PRIOR})?(?=\s*[.,;])",
        r"\1 in place",
    ),
    _rule(r"^(?:the )?heart and mediastinum are (?:stable|unchanged) (?=normal\b)", ""),
    _rule(
        r"^((?:considering|accounting for|allowing for|given)\b[^,;.]*? factors)"
        rf" (?:{_MARK} )?(?:stable|unchanged) (?:cardiomediastinal silhouette with )?(?=\w)",
        r"\1, ",
    ),
    _rule(
        r"^(?:there (?:is|has been) )?(?:interval )?(?:improvement|decrease) in ([^.;,]*?) with"
        r" (mild|small|minimal|moderate) residual(?=\s*[.;]|$)",
        r"\2 residual \1",
    ),
    _rule(rf"\s+with {_MARK} residual(?=\s*(?:[.;]|$))", ""),
    _rule(r"\s+and improved aeration (?=bilaterally\b)"),
    _rule(
        r"\s+and (?:stable|unchanged) (?:mediastinal|hilar|cardiac|mediastinal and hilar) contours?"
        r"(?=\s*[.,;])",
        "",
    ),
    _rule(
        r"^(?:there is )?(?:significant |interval |marked )*improvement in aeration bilaterally,?"
        r" with (?=\w)",
        "",
    ),
    _rule(rf"\bwith stable appearance of (?:the )?lungs? {_MARK} (?=with\b)", ""),
    _rule(
        r"\s+(?:has|have) (?:\w+ly )?(?:in|de)creased in (?:size and number|number and size)"
        rf"(?:\s+{_MARK})?(?:\s+(?:since|from|compared (?:to|with))\s+{_PRIOR})?",
        "",
    ),
    _rule(rf"\bin (?:stable|unchanged)\s*,\s*(?:{_MARK}\s+)?(?=position\b)", "in stable "),
    _rule(
        r"\b(?:mildly|slightly|markedly|significantly|moderately)\s+"
        rf"(?:improved|worsened|progressed|increased|decreased)\s+(?={_MARK}\s)",
        "",
    ),
    _rule(
        rf"\s*,?\s*\bcompared {_MARK}\s+(?:chest|thorax|abdomen|{_STUDY})"
        rf"(?:\s+(?:from|of|dated)\s+{_MARK})?",
        "",
    ),
    _rule(
        r"\b(?:has|have) (?:in|de)creased(?: \w+)? in size (?:(?:from|since|compared (?:to|with))"
        rf" )?{_PRIOR}\s*,?\s+now (?=measuring\b)",
        ", ",
    ),
    _rule(
        rf"\bwhich (?:is|are|appears?) {_DEGREE}(?:unchanged|stable|similar)"
        rf"(?:\s+(?:from|since|to|compared (?:to|with))\s+{_PRIOR})?\s*,?\s+and\s+"
        rf"(?={_MARK}\s+represent|may\b|might\b|could\b|likely\b|possibly\b|probably\b)",
        "which ",
    ),
    _rule(
        r",?\s*(?:however|but),?\s+(?:in |given |due to )?the (?:absence|lack) of (?:an? |any )?"
        rf"(?:prior |previous |comparison )+{_STUDY}\s*,",
        ",",
    ),
    _rule(
        r"^(?:there (?:is|has been) )?(?:(?:an?|interval|significant|slight|mild|further) )*"
        r"(?:increase|decrease)d? in (?:the )?(?:size and number|number and size) of (?:the )?",
        "",
    ),
    # An earlier size or degree beside that of now.
    _rule(
        rf"\s*[,(]?\s*\b(?:previously|formerly|compared (?:to|with))\s+(?:measur\w+\s+|about\s+"
        rf"|approximately\s+)*"
        rf"{_AMOUNT}(?:\s+(?:previously|before|on the prior(?:\s+{_STUDY})?))?(?:\s+(?:on|in"
        rf"|from)\s+{_PRIOR})?(?:\s*\)|(?=\s*(?:[.,;)]|$)))",
        "",
    ),
    _rule(
        r",?\s+(?:(?:which|that)\s+)?(?:has|have)\s+(?:\w+ly\s+)?(?:increased|decreased|enlarged"
        r"|grown|improved|worsened"
        rf"|progressed|diminished)(?:\s+in (?:size|extent|severity))?,?\s+"
        rf"(?:from\s+{_AMOUNT}\s*)(?:to|now)\s+(?=\d)",
        " measures ",
    ),
    _rule(
        r"\s+(has|have)\s+(?:\w+ly\s+)?(?:increased|decreased|enlarged|improved|worsened"
        r"|progressed|diminished)"
        rf"(?:\s+in (?:size|extent|severity))?\s+from\s+{_SIZE_WORD}\s+to\s+(?={_SIZE_WORD}\b)",
        r" <\1> ",
    ),
    _rule(
        rf"\s+(?:is|are)\s+{_DEGREE}(?:stable|unchanged),?\s+as\s+(?:is|are)\s+(?:the\s+)?",
        " and ",
    ),
    _rule(r"^overall,? (?:stable|unchanged) appearance of the chest (?=suggest)", "Appearance "),
    _rule(r"^(?:stable|unchanged) appearance\s+(?!of\b|and\b|to\b|with\b)(?=\w)", ""),
    # "No change in the effusion or edema": both are there.
    _rule(
        r"^((?:there (?:is|has been)\s+)?no\s+(?:\w+\s+){0,3}?changes?\s+in\s+[^.;,]*?)\s+or\s+",
        r"\1 and ",
    ),
    _rule(rf"^comparison (?:is|was) made (?:with|to) {_PRIOR}\s*,?\s+and\s+", ""),
    _rule(rf"^(?:the )?(?:lack|absence) of {_PRIOR} limits (?:\w+ )?\w+[;,.]\s*", ""),
    _rule(
        r",?\s*(?:when |as )?(?:compared (?:to|with)|since|from) (?:yesterday|earlier today"
        r"|this morning|last \w+|the day before)(?=\s*(?:[.,;]|$))",
        "",
    ),
    _rule(
        r",\s*(?:(?:slightly|mildly|markedly|significantly|somewhat) )?(?:increased|decreased"
        rf"|improved|worsened|larger|smaller|progressed)(?:\s+from\s+{_SIZE_WORD})?"
        r"(?=\s*(?:[.;]|$))",
        "",
    ),
    _rule(
        r"^(?:(?:slightly|mildly|markedly|significantly|somewhat|minimally|much)\s+)?(?:larger"
        r"|smaller|(?:more|less) conspicuous|(?:increased|improved)(?=\s+(?:[\w-]+\s+){0,4}?"
        r"(?:pneumothora|effusion)))\s+(?=\w)",
        "",
    ),
    _rule(r"\b(?:much|markedly|slightly|significantly|somewhat)\s+(?=(?:improved|worsened)\s+\w)"),
    _rule(r"^(?:the )?(?:lungs?|bases?|lung bases) (?:is|are) better aerated\b"),
    _rule(r"\b(?:stable|unchanged) position (?=(?:left|right)\b)", ""),
    _rule(r"<has>", "is"),
    _rule(r"<have>", "are"),
    _rule(
        rf"(?:,\s*|\s+)(?:{_CHANGED}\s+)?since\s+(?:approximately\s+)?(?:\d[\d:.]*\s*"
        rf"(?:[ap]\.?m\.?)?|yesterday|earlier"
        r"(?:\s+(?:today|this \w+|the same day))?|the same day|this morning|last \w+)(?=\s*"
        r"(?:[.,;]|$))",
        "",
    ),
    _rule(r"^no evidence of (?:\w+ )?change (?:in|of) (?:the )?", ""),
    _rule(
        r"^(?:there (?:is|has been)\s+)?(?:(?:interval|slight|mild|some|little"
        r"|minimal)\s+)*changes?\s+in\s+(?:the\s+)?(?:(?:size|appearance|extent|position) of\s+"
        r"(?:the\s+)?)?(?=\w)",
        "",
    ),
    _rule(
        rf"^(?:new|not (?:\w+ly )?changed|(?:\w+ly )?unchanged|stable|again (?:seen|noted))"
        rf"(?:\s+(?:from|since|compared (?:to|with)|on)\s+{_PRIOR})?\s+(is|are)\s+",
        r"There \1 ",
    ),
    _rule(
        r",?\s+as (?:is|are) (?:the )?(?:\w+ ){0,3}?(?:mediastin\w+|hil\w+|heart|contours?"
        r"|silhouette|aorta|lungs?|bon\w+)(?=\s*(?:[.,;]|$))"
    ),
    _rule(
        r"^(?:stable|unchanged)\s+(?:(?:appearance|position|size) of (?:the )?)?(?:(?:heart"
        r"|cardiac|mediastinal|hilar|cardiomediastinal|bony|osseous"
        r"|and|cardiopulmonary|pulmonary|thoracic|aortic)\s+){1,4}(?:size|contours?|silhouettes?"
        r"|structures?|thorax|configuration"
        r"|vascularity|vasculature)\s*(?:,|,?\s+and|\s+with)\s+(?=(?:clear|normal|no|mild"
        r"|moderate|small|large|low|tortuous|well)\b)",
        "",
    ),
    # What moved is where it is now.
    _rule(
        r"\s+(?:has|have)\s+(?:been\s+)?(?:\w+ly\s+)?(?:advanced|withdrawn|retracted"
        r"|repositioned|pulled back|exchanged|replaced|placed|inserted)(?:\s+(?:slightly"
        r"|somewhat|in the interval|\d+ cm))?\s*,?\s+and\s+(?:is\s+|are\s+)?(?:now\s+)?(?=ends?"
        r"|terminates?|is|are|projects?|lies|overl|courses?|extends?|passes)"
    ),
    _rule(
        r"(?:overall|slightly|mildly|significantly|there is|\s)*(?<!not )\b(?:improved|increased"
        r"|better|improvement in)\s+(?:\w+\s+)?(?:aeration|inspiration|inspiratory effort)(?:\s+"
        r"(?:of|in|at)\s+(?:the\s+|both\s+)?(?:\w+\s+){0,2}(?:lungs?|bases?|lobes?))?\s*(?:,"
        r"|\bwith\b|\band\b)\s+"
    ),
    _rule(
        r",?\s*\bboth\s+(?:(?:of which\s+)?(?:are|appear|remain)\s+)?(?:stable|unchanged)(?=\s*"
        r"(?:[.,;]|$))"
    ),
    _rule(rf"\s+and with {_PRIOR}(?:,? if (?:possible|available))?(?=\s*(?:[.]|$))"),
    _rule(
        rf",?\s*(?:as\s+)?compared (?:to|with) (?:the )?(?:prior|previous|earlier) "
        rf"(?:{_STUDY} )?(?:of |from )?(?:earlier )?(?:on )?the same (?:day|date|{_MARK})"
    ),
    _rule(rf"^(?:without|with no) (?:a |any )?{_PRIOR}\s*,\s*"),
    _rule(
        r"^((?:this|these|it)) ha(?:s|ve) developed in the interval,? and\s+(?=may|is|are)", r"\1 "
    ),
    _rule(
        rf",?\s+(?:and\s+)?(?:which\s+)?(?:is|are|was|were)\s+(?:\w+ly\s+)?better\s+"
        rf"(?:appreciated|visualized|seen|demonstrated)\s+(?:on|in|by)\s+(?:the\s+)?{_PRIOR}"
    ),
    _rule(
        r"^(?:there (?:is|has been)\s+)?(?:(?:an?|marked|moderate|mild|slight|significant"
        r"|interval)\s+)*increase in\s+"
        r"(?:the\s+)?(?:size of (?:the )?)?(heart|cardiac)(?:\s+size|(\s+silhouette))?(?=\s*"
        r"(?:[.,;]|$))",
        r"Increased \1\2 size",
    ),
    _rule(
        r",?\s+(?:as|because|since) (?:there (?:is|are) )?no (?:prior|previous|comparison|old)"
        r"(?:\s+\w+){0,2}?(?:\s+(?:is|are))?\s+available(?:\s+for\s+\w+)?"
    ),
    _rule(
        rf",?\s*previously (?:\w+ly )?(?:demonstrated|seen|noted)(?:\s+(?:on )?{_MARK}(?:\s+"
        rf"(?:abdomen|chest|pelvis|and|CT|{_MARK}))*)?(?=\s*(?:[.,;]|$))"
    ),
    _rule(rf",?\s*no (?:recent|prior|old) {_MARK} for comparison"),
    _rule(rf",?\s*which does not appear to be present on {_PRIOR}"),
    _rule(
        r",?\s*as seen on (?:the |a )?(?:comparison|prior|previous) (?:[\w]+ ){0,4}(?:CT|study"
        r"|exam)\b"
    ),
    _rule(
        rf",?\s*(?:which |and )?(?:incidentally )?(?:(?:was|were|is|are) )?also (?:seen|noted"
        rf"|present) on {_PRIOR}(?: of \d+ \w+ ago)?"
    ),
    _rule(rf",?\s*which (?:was|were) (?:seen|noted|present) (?:on|in) {_PRIOR}(?:/CT)?"),
    _rule(rf"\b(?:stable|unchanged) in (?:the )?(?:prior|previous) {_STUDY}"),
    _rule(
        rf",\s*(?:as\s+)?(?:better|also)\s+(?:appreciated|visualized|seen|demonstrated)\s+(?:on"
        rf"|in|by)\s+(?:the\s+)?{_PRIOR}"
    ),
    _rule(rf",?\s+(?:which\s+)?(?:have|has) been there on {_PRIOR}"),
    _rule(r"\bare redemonstrated\b", "are seen"),
    _rule(r"^redemonstrated (is|are)\b", r"There \1"),
    _rule(rf"\bappears?\s+(?:less|more)\s+distinct\s+than\s+(?:on\s+)?{_PRIOR}", "is present"),
    _rule(
        rf"^(this|these)\s+(?:was|were)\s+(?:also\s+)?(?:present|seen|noted)\s+(?:previously|"
        rf"(?:on|in)\s+{_PRIOR})\s+and\s+(?=is|are|may)",
        r"\1 ",
    ),
    _rule(
        r"\bredemonstration\s+(?:with no|without)\s+(?:significant\s+)?"
        r"(?:interval\s+)?changes?\s+(?:of|in)\s+",
        "",
    ),
    _rule(
        r"\bthere is redemonstration\s+(?:with no|without)\s+(?:significant\s+)?"
        r"(?:interval\s+)?changes?\s+(?:of|in)\s+",
        "there is ",
    ),
    _rule(
        rf"\b(?:{_NOT_QUITE})(?:[\s-]+complete(?:ly)?)?[\s-]+(?:resolved|resolving|cleared)\s+"
        rf"(?=\w)"
    ),
    _rule(r"\b(?:increased|decreased)\s+size\s+of\s+(?:the\s+)?(?=\w)", ""),
    _rule(
        r",?\s+(?:or|and|nor)\s+(?:(?:significant|interval|acute|other)\s+)*changes?(?=\s*"
        r"(?:[.,;]|$))"
    ),
    _rule(r"\b(is|are)\s+now\s+(?=\w)", r"\1 "),
    _rule(
        r"\bnow\s+(?=(?:projects?|measur\w+|seen|ends?|terminates?|minimal|mild|small|moderate)\b)"
    ),
    _rule(
        rf",\s*(?:previously|formerly)\s+{_SIZE_WORD}\s*,?\s+(?:is|are)?\s*(?:now\s+)?"
        rf"(?={_SIZE_WORD})",
        " <has> ",
    ),
    _rule(r"<has>", "is"),
    _rule(
        r"\b(is|are)\s+(?:now\s+)?(?:\w+ly\s+)?(?:improving|improved|worsening|worsened"
        r"|resolving|clearing|progressing|increasing|decreasing)(?=\s*(?:[.,;]|$))",
        r"\1 present",
    ),
    _rule(
        r"\bpersists(?:,?\s+(?:but|and|although)\s+(?:is|appears)?\s*(?:now\s+)?(?:\w+ly\s+)?"
        r"(?:smaller|larger|improved|worse|decreased|increased))(?=\s*(?:[.,;]|$))",
        "is present",
    ),
    _rule(
        r"\bpersist(?:,?\s+(?:but|and|although)\s+(?:are|appear)?\s*(?:now\s+)?(?:\w+ly\s+)?"
        r"(?:smaller|larger|improved|worse|decreased|increased))(?=\s*(?:[.,;]|$))",
        "are present",
    ),
    _rule(
        r"^the patient has (?:now |since |also |again )?(?:developed|received)\s+(?=an?\b|new\b"
        r"|bilateral\b|right\b|left\b)",
        "There is ",
    ),
    _rule(
        r"\b(with|and)\s+(?:(?:interval|slight|mild|some|an?|further)\s+)*(?:decrease|increase"
        r"|improvement|worsening|progression)(?:\s+in size)?\s+(?:in|of)\s+(?:the\s+)?(?=\w)",
        r"\1 ",
    ),
    _rule(r"\bnew(?:ly)?\s+(?:placed|inserted|developed|developing|seen)\s+"),
    _rule(
        r"^(?:overall,?\s+)?(?:stable|unchanged)\s+(?:appearance of (?:the )?)?(?:chest|exam"
        r"(?:ination)?|study|radiographs?)\s*,?\s*(?:with|and)\s+(?=\w)"
    ),
    # Larger, smaller, more or less than before.
    _rule(
        r"\b(is|are)\s+(?:now\s+)?(?:(?:slightly|mildly|markedly|significantly|somewhat"
        r"|minimally|overall|much)\s+)*"
        r"(?:larger|smaller|worse|better|greater|(?:more|less)\s+(?:conspicuous|prominent"
        r"|apparent|extensive|pronounced"
        r"|dense|confluent|evident|distinct|severe|marked))(?:\s+(?:than|as|versus)\s+"
        r"(?:previously|before|earlier"
        rf"|(?:on|in)\s+{_PRIOR}|{_PRIOR})(?:\s+(?:seen|noted|described))?|\s+(?:compared (?:to"
        rf"|with)|since|from)\s+{_PRIOR})?(?=\s*(?:[.,;]|$))",
        r"\1 present",
    ),
    _rule(
        r",\s+(?:(?:slightly|mildly|markedly|significantly|somewhat|minimally|overall|much)\s+)*"
        r"(?:larger|smaller|worse|better|greater|(?:more|less)\s+(?:conspicuous|prominent"
        r"|apparent|extensive|pronounced"
        r"|dense|confluent|evident|distinct|severe|marked))\s+(?:than\s+(?:previously|before"
        r"|earlier"
        rf"|(?:on|in)\s+{_PRIOR}|{_PRIOR})|(?:compared (?:to|with)|since|from)\s+{_PRIOR})(?=\s*"
        rf"(?:[.,;]|$))",
        "",
    ),
    # No earlier study to compare with.
    _rule(
        rf"^(?:in|with|given|due to)?\s*(?:the\s+)?(?:absence|lack) of (?:(?:any|an?"
        rf"|the)\s+)?{_PRIOR}"
        r"(?:\s+(?:for|available)(?:\s+for)?(?:\s+\w+)?)?\s*,?\s*"
    ),
    _rule(
        rf",?\s*\b(?:no|without)\s+(?:(?:any|an?)\s+)?(?:available\s+)?(?:priors?|previous"
        rf"|comparisons?|old|earlier)"
        rf"(?:\s+{_STUDY})*(?:\s+(?:is|are|were|was))?(?:\s+available)?"
        r"(?:\s+(?:for|at)\s+(?:this\s+)?\w+)?\s*(?:[,;]\s*|$|(?=\.)|(?=\sshow|\sdemonstrat"
        r"|\sreveal))"
    ),
    # Words of change in front of the finding, and behind it.
    _rule(
        r"^(?:there (?:is|are|has been|have been)\s+)?(?:no|without)\s+(?:(?:significant|interval"
        r"|appreciable|substantial|definite|relevant|further|overall|gross|major|\w+ly)\s+)*"
        r"(?:changes?|increase|decrease|improvement|worsening|progression)\s+(?:seen\s+|noted\s+)?"
        r"(?:in|of|to)\s+(?:the\s+|this\s+)?(?:(?:size|appearance|position|extent|degree)"
        r"(?:\s+(?:and|or)\s+\w+)?\s+of\s+(?:the\s+)?)?(?=\w)",
        "",
    ),
    _rule(
        r"\b(?:there(?:'s been| (?:is|are|has been|have been))\s+)?(?:an?\s+)?(?:(?:significant"
        r"|slight|mild|marked"
        r"|minimal|moderate|apparent|further|some|continued|partial|interval|considerable"
        r"|overall|mildly)\s+)+"
        r"(?:increase|decrease|improvement|worsening|progression|reduction|development"
        r"|partial clearing"
        r"|appearance)(?:/\w+)?\s+(?:in|of)\s+(?:the\s+)?(?:(?:size|extent|degree|appearance"
        r"|amount|number)\s+of\s+(?:the\s+)?)?(?=\w)",
        "",
    ),
    _rule(
        r"(?:,?\s+(?:which|that))?\s+(?:has|have)\s+(?:(?:now|also|since|slightly|mildly"
        r"|markedly|significantly|somewhat|further"
        r"|not|largely|moderately|minimally|partially|\w+ly)\s+)*(?:been\s+)?(?:developed|appeared"
        r"|recurred|reaccumulated|re-accumulated|evolved|cleared somewhat|occurred|increased"
        r"|decreased|improved|worsened|progressed|diminished|enlarged|changed)"
        r"(?:\s+in\s+(?:size|extent|number|severity|appearance|degree|the interval))*"
        r"(?:\s+(?:significantly|substantially|slightly|appreciably|markedly))?"
        rf"(?:\s+(?:since|from|compared (?:to|with)|when compared (?:to|with))\s+{_PRIOR})?"
        r"(?=\s*(?:[.,;]|$)|\s+(?:in|with|at|within|over|and|on|of)\b)"
    ),
    _rule(
        rf"^(?:no|{_MARK})\s+(?:(?:significant|interval|acute)\s+)*changes?,?\s+(?=(?!in\b|of\b"
        rf"|to\b|from\b"
        r"|since\b|is\b|are\b|compared\b|seen\b|noted\b|identified\b|when\b|on\b|with\b)\w)"
    ),
    _rule(
        r"^(?:there (?:has been|is|have been)\s+)?(?:improvement|worsening|progression"
        r"|interval enlargement)"
        r"(?:/\w+)?\s+(?:in|of)\s+(?:the\s+)?"
    ),
    _rule(r"\binterval\s+(?:improvement|decrease|increase)/\w+\s+(?:in\s+|of\s+)?(?:the\s+)?"),
    _rule(
        r",?\s*\bwith\s+(?:(?:some|mild|slight|significant|partial|interval|further)\s+)*"
        r"(?:improvement"
        r"|worsening|progression|clearing|increase|decrease)\s*(?=[.,;]|$)"
    ),
    _rule(r"\bin the interim\b"),
    _rule(r"^(?:mild |slight )?(?:increase|decrease)\s+in\s+(?:the\s+)?(?=\w)"),
    _rule(
        rf"\b(is|are)\s+(?:similar|stable|unchanged)\s+(?:to|from|since|compared (?:to"
        rf"|with))\s+{_PRIOR}\s+and\s+(?=within|normal)",
        r"\1 ",
    ),
    _rule(
        rf",?\s*\bnot\s+(?:\w+ly\s+)?{_MARK}\s+(?:from|since|compared (?:to|with)|to)\s+{_PRIOR}"
    ),
    _rule(
        rf",?\s*\(?(?:which\s+(?:is|was|are|were)\s+)?\bnot\s+(?:\w+\s+){{0,2}}?(?:seen|present"
        rf"|visualized"
        rf"|identified|appreciated|evident|demonstrated)\s+(?:on|in)\s+{_PRIOR}\)?"
    ),
    _rule(r",?\s*\b(?:than|as)\s+previously(?:\s+(?:seen|noted|described|demonstrated))?\b"),
    _rule(
        r"\s+(?:is|are|appears?)\s+(?:\w+ly\s+)?(?:larger|smaller|better|worse|less \w+|more \w+)"
        r"(?=\s*(?:than previously|[.,;]|$)(?<!better)(?<!worse))(?:\s+than previously)"
    ),
    _rule(
        r"\b(?:decreased|decreasing|diminished)\s+(?=(?:[\w-]+\s+){0,4}?(?:airspace|opaci"
        r"|effusion|edema"
        r"|consolid|pneumoth|infiltr|atelect|congest|nodul|mass\b|interstitial|pleural))"
    ),
    _rule(r"\b(?:new|newly)\s+(?:develop\w+\s+)?(?=\w)(?<!no new )(?<!without new )(?<!of new )"),
    # An opening: "Comparison XXXX. Clear lungs", "Compared to the prior, ...", "Since ..., ..."
    _rule(rf"^comparison:?\s+(?:{_MARK}|none)[\s,.:]+(?=(?-i:[A-Z]))"),
    _rule(rf"^no comparisons?(?:\s+(?:chest\s+)?{_STUDY})?[.:]*\s+(?=(?-i:[A-Z][a-z]))"),
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
    _COMPARING_OPENING,
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
        "",
    ),
    _rule(
        r"\binterval (?:development|appearance|improvement|worsening|progression"
        r"|placement|insertion)(?: of| in)?\s+",
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
    _rule(
        rf"\b(?:remains|continues to be)\s+(?:stable|unchanged){_ASPECT}{_NOUN_END}", "is present"
    ),
    _rule(r"\b(?:remains|continues to be)\s+(?=\w)", "is "),
    _rule(r"\b(?:remain|continue to be)\s+(?=\w)", "are "),
    _rule(rf"\b(?:remains|persists){_NOUN_END}", "is present"),
    _rule(rf"\b(?:remain|persist){_NOUN_END}", "are present"),
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
        rf"\b(?:is|appears|remains)\s+{_DEGREE}(?:stable|unchanged|similar)"
        rf"(?:\s+and\s+unchanged)?{_ASPECT}{_NOUN_END}",
        "is present",
    ),
    _rule(
        rf"\b(?:are|appear|remain)\s+{_DEGREE}(?:stable|unchanged|similar)"
        rf"(?:\s+and\s+unchanged)?{_ASPECT}{_NOUN_END}",
        "are present",
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
        r"\b(?:worsening|worsened|improving|improved|resolving|increasing|decreasing|enlarging"
        r"|evolving)\b(?=\s+\w)"
    ),
    _rule(r",?\s+which\s+(?:is|are)\s+present(?=\s*(?:[.,;]|$))"),
    _rule(r"^overall,?\s+with\s+", ""),
    _rule(r"\bthere is the\b", "there is"),
    _rule(r"(?<!\bof )\bnew(?:ly)?\b(?!\s+(?:york|born))"),
)
# Sentences without any of these hold no comparison; most are passed by without the slow patterns.
_TRIGGER = re.compile(
    r"compar|prior|previous|earlier|recent|\bsince\b|\blast\b|\bold(?:er)? (?:exam|stud"
    r"|film)|interval|again"
    r"|redemonstrat|re-demonstrat|remain|persist|continue|stable|unchanged|similar|change|increas"
    r"|decreas|improv|wors|resol|grown|\bfrom \d|received|\bnot (?:\w+ )?(?:seen|present"
    r"|visual\w+|ident\w+|evident) (?:on|in) |enlarging|\bnow\b|progress|clearing|removal"
    r"|removed|\bnew|no longer|before|dating back"
    r"|develop|cleared|clear|recurred|evolv|advanced|withdrawn|retract|reposition|conspicuous"
    r"|aerat|pulled|insert|yesterday|better|greater|diminish|occurred|more (?:prom|dens|ext|app"
    r"|pron|conf)|less "
    r"(?:prom|dens|ext|app|pron|conf)|larger|smaller|absence|than (?:the|on|prev)|from (?:the"
    r"|X{3}|_{2})|extubat",
    re.IGNORECASE,
)


# A clause of its own within a sentence.
_SEGMENT = re.compile(
    r"(?P<join>\s*[,;]\s+(?:(?:and|but)\s+)?|\s+but\s+|\s+(?=with(?:out)?\s)"
    r"|\s+and\s+(?=(?:(?:the|there|no|heart|lungs?|mediastin\w+|cardio\w+|cardiac|hilar|pleural"
    r"|pulmonary|osseous|bony|tortuous|normal|stable|unchanged)\b)))",
    re.IGNORECASE,
)
_COMMA_OF_ADJECTIVES = re.compile(
    r"\b(stable|unchanged),\s+(?=(?:mild|moderate|marked|severe|normal|small|large|minimal"
    r"|chronic|coarse"
    r"|prominent|enlarged|tortuous|calcified|diffuse|scattered|low|left|right|bilateral|\w+ly"
    r"|non\w+|\w+ed|\w+ous|\w+ic)\s)",
    re.IGNORECASE,
)
_CHANGE_WORD = re.compile(
    r"\b(?:stable|unchanged|similar|same|chang\w+|interval|compar\w+|prior|previous\w*|persist\w*"
    r"|remains?|again|re-?demonstrat\w+)\b",
    re.IGNORECASE,
)
_VERB = re.compile(
    r"\b(?:is|are|was|were|has|have|appears?|remains?|may|could|shows?|seen|noted|within|normal"
    r"|present|identified|intact|unremarkable|clear|enlarged)\b",
    re.IGNORECASE,
)
_FINITE = re.compile(
    r"\b(?:is|are|was|were|has|have|appears?|remains?|may|could|shows?)\b", re.IGNORECASE
)
_NEUTRAL_TAIL = re.compile(r"(?:,?\s+and|,)\s+(?P<tail>[a-z /-]+?)\s*\.?$", re.IGNORECASE)


def drop_priors(text: str) -> str:
    """Without comparison with earlier examinations.

    "Stable mild cardiomegaly compared to ___." -> "Mild cardiomegaly."
    "There is a nodule, which has increased since the prior study." -> "There is a nodule."
    "The pneumothorax has resolved." -> "No pneumothorax."
    "The mediastinum is stable." -> "": nothing is said of the mediastinum itself.
    """
    return each_sentence(text, without_priors)


def without_priors(sentence: str) -> str:
    """One sentence, as `drop_priors`; "" where it only compares."""
    if not _TRIGGER.search(sentence):
        return sentence
    if _DROPPED.match(sentence) and not holds_finding(sentence):
        return ""
    if _NOT_SEEN_WHEN.search(sentence):
        # Nothing is left, which the guard refuses.
        return ""
    pattern, replacement = _WAS_BEFORE
    later = pattern.sub(replacement, sentence)
    if later != sentence:
        return without_priors(mended(later))
    extubated = _EXTUBATED.match(_COMPARING_OPENING[0].sub("", sentence))
    if extubated:
        rest = without_priors(mended(extubated["rest"] or ""))
        return " ".join(filter(None, ("No endotracheal tube.", rest)))
    gone = _as_negative(_COMPARING_OPENING[0].sub("", sentence))
    if gone is not None:
        return gone
    pruned = _pruned(sentence)
    changed = _NEARLY_GONE.sub(" ", _LUNGS_CLEARED.sub("lungs are clear", pruned))
    changed = _replaced(changed)
    if changed == sentence:
        return sentence
    changed = mended(changed)
    # Of a part of the body "is present" says nothing.
    if (
        _IS_PRESENT.search(changed)
        and not _IS_PRESENT.search(sentence)
        and not holds_finding(changed)
        and says_nothing_by_words(changed)
    ):
        return ""
    if says_nothing(changed) or (_DROPPED.match(changed) and not holds_finding(changed)):
        return ""
    if not has_verb(changed):
        changed = mended(re.sub(r"^the\s+", "", changed, flags=re.IGNORECASE))
    tail = _NEUTRAL_TAIL.search(changed)
    if (
        tail
        and not _VERB.search(changed)
        and says_nothing(tail["tail"])
        and not re.search(r"\b(?:left|right|both)\b", tail["tail"])
    ):
        changed = mended(changed[: tail.start()] + ".")
    return changed


def _replaced(text: str) -> str:
    for pattern, replacement in _PHRASES:
        text = pattern.sub(replacement, text)
    return text


def _as_negative(sentence: str) -> str | None:
    """ "No <what is gone>", with what else the sentence says; None where nothing is gone."""
    for pattern in _GONE:
        match = pattern.match(sentence)
        if match is None:
            continue
        if _denies_too_much(match["np"]) and holds_finding(match["np"]):
            # Nothing is left, which the guard refuses.
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
                else without_priors(
                    re.sub(r"^[\s,;.]+(?:and|but)?\s*", "", match["rest"] or "").strip()
                )
            )
        noun = re.sub(r"\band\b", "or", noun)
        rest = match["rest"] or "."
        rest = re.sub(r"^\s+with no\b", ", no", rest)
        rest = re.sub(r"^\s+without\b", ", no", re.sub(r"^\s+with\b", ";", rest))
        # A small letter after "No", except in a name such as PICC.
        if noun.split()[0][1:].islower():
            noun = noun[0].lower() + noun[1:]
        return mended(_replaced(f"No {noun}{rest}"))
    return None


# What says that something is there, or that not all of it is gone, among what is said to be gone.
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
# A second thing with an article or a size of its own is a statement of its own.
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


def _denies_too_much(gone: str) -> bool:
    """Whether "no" before what is said to be gone would deny more than that.

    "Resolution of edema and a new right effusion": only a list of like nouns is gone as a whole.
    """
    if _NOT_GONE.search(re.sub(r"\bpreviously\b.*?\b(?:seen|noted|described)\b", "", gone)):
        return True
    first, *others = _COORDINATED.split(_GONE_ARTICLE.sub("", gone))
    return any(
        _ITS_OWN.match(other) is not None
        or (_DEVICE.search(other) is None) != (_DEVICE.search(first) is None)
        for other in others
    )


# "Two left chest tubes have been removed": how many is not kept.
_COUNT = re.compile(r"^(?:two|three|four|both|all|\d)(?: of the)?\s+(?=[a-z])", re.IGNORECASE)


def _pruned(sentence: str) -> str:
    """Without the clauses that say of a part of the body only that it did not change."""
    pieces = _SEGMENT.split(_COMMA_OF_ADJECTIVES.sub(r"\1 ", sentence))
    clauses, joins = _merged(pieces[::2], pieces[1::2])
    if len(clauses) < 2:
        return sentence
    kept: list[str] = []
    dropped = False
    for index, clause in enumerate(clauses):
        bare = re.sub(r"^with(?:out)?\s+", "", clause, flags=re.IGNORECASE)
        compares = _CHANGE_WORD.search(bare) is not None
        left = _replaced(bare) if compares else bare
        empty = says_nothing(left) or bool(compares and _DROPPED.match(bare))
        verbless = _VERB.search(left) is None
        if (
            empty
            and not holds_finding(bare)
            and (compares or (dropped and verbless))
            and not _completed(clauses, index)
        ):
            dropped = True
            continue
        if kept:
            kept.append(joins[index - 1])
        elif dropped:
            clause = re.sub(r"^(?:with no|without)\s+", "no ", clause, flags=re.IGNORECASE)
            clause = re.sub(r"^with\s+", "", clause, flags=re.IGNORECASE)
        kept.append(clause)
    if not dropped:
        return sentence
    text = mended("".join(kept))
    return text if not text or text[-1] in ".!?" else f"{text}."


def _merged(clauses: list[str], joins: list[str]) -> tuple[list[str], list[str]]:
    """ "and" joins two clauses only where both have a verb; else it joins two nouns."""
    merged, kept = [clauses[0]], []
    for join, clause in zip(joins, clauses[1:], strict=True):
        bare = join.strip().lower() == "and"
        if bare and not (_FINITE.search(merged[-1]) and _FINITE.search(clause)):
            merged[-1] += join + clause
        else:
            kept.append(join)
            merged.append(clause)
    return merged, kept


def _completed(clauses: list[str], index: int) -> bool:
    """Whether it is the subject of the next one: "stable heart size and lungs are clear"."""
    clause = clauses[index]
    following = clauses[index + 1] if index + 1 < len(clauses) else ""
    if re.match(r"^(?:since|compared|in comparison|when compared|in the)\b", clause, re.I):
        return True
    return _VERB.search(clause) is None and bool(
        re.match(r"^(?:\w+\s+){0,4}?(?:is|are|appears?|remains?)\b", following)
        and not re.match(r"^(?:the|there|heart|lungs?|no|cardi\w+)\b", following, re.I)
    )

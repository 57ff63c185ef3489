"""Marks of de-identification: ___ (MIMIC-CXR), XXXX (Open-I) and [** ... **] (MIMIC-III).

What stood there is unknown. A mark goes with the words that only served it ("at ___", "Dr. ___");
where the words around it still make a sentence they stay, and a sentence of which too little is
left goes as a whole.
"""

import re
from collections.abc import Container

from unix_jax.cleaning.facts import facts, holds_finding
from unix_jax.cleaning.sentences import each_sentence, mended, says_nothing

MARK = (
    r"(?:\[\*\*[^\]]{0,80}\*\*\]|_{2,}|(?<![A-Za-z])X{3,}(?:'?s)?\b"
    r"|X{4,}(?=[a-z]{1,2}\b|[AP]M\b|<))"
)
_MARKS = rf"{MARK}(?:[\s,/:<>-]{{0,3}}{MARK}){{0,12}}"
ANY_MARK = re.compile(MARK)
_ANY = ANY_MARK
_WORD = re.compile(r"[^\W\d_]{2,}")

_PHRASE_END = (
    r"(?=\s*(?:[.,;:)]|$)|\s+(?:and|or|with|in|on|of|at|is|are|was|were|appears?|remains?)\b)"
)


def _rule(pattern: str, replacement: str) -> tuple[re.Pattern[str], str]:
    return re.compile(pattern, re.IGNORECASE), replacement


# Open-I hides ordinary words too. Where only one word fits it is set in; where several do, a word
# that claims no more than they all would. Devices and sides are never guessed.
_NORMAL = r"(?:normal|unremarkable|intact|stable|within)\b"
_DIAGNOSIS = (
    r"(?:an? )?(?:[\w-]+ ){0,2}?(?:atelecta\w+|scar\w*|edema|congestion|artifacts?|granulomas?"
    r"|pneumonia|infiltrates?|effusions?|(?:lymph)?adenopathy|nipples?|fibrosis|thickening"
    r"|vessels?|fat"
    r"|consolidation|infection|aspiration|mass|malignancy|emphysema|copd|hernia|fractures?"
    r"|combination)\b"
)
_SIGN = (
    r"(?:opacit(?:y|ies)|opacification|densit(?:y|ies)|diseases?|markings|prominence|nodules?"
    r"|blunting"
    r"|lesions?|shadows?|lucenc(?:y|ies)|focus|foci|infiltrates?|consolidations?|fullness)"
)
_END = r"(?=\s*(?:[.,;:)]|$))"
_TIP = (
    r"(?=\s+(?:(?:is |are )?(?:noted|seen|identified|present)\s+)?(?:with (?:its |the |a |an )?"
    r"(?:distal )?(?:tip|leads?\b|catheter tip)|tip (?:is|in|at|over|within|project|terminat|lies)"
    r"|(?:terminates?|ends?) (?:in|at|over|within)|(?:has|have) (?:its |the )?(?:distal )?tip))"
)
_HEDGED = (
    r"(?:suggesting|suggestive of|suggests|(?:consistent|compatible) with|(?:which )?(?:may"
    r"|might|could) (?:represent|reflect)"
    r"|representing|sequela of)"
)
_SIGN_SEEN = rf"(?:{_SIGN}|congestion|mass(?:es)?|thickening|effusions?|atelectasis|edema)"
_PLACE = (
    r"(?:lobes?|bases?|apex|apices|lungs?|lingula|angles?|sulcus|sulci|hilum|hila|zones?|regions?)"
)
# The start of a sentence that denies nothing.
_AFFIRMED = r"^(?!.*\b(?:no|not|without|nor|neither|negative|free of|clear of)\b)"
# What rules without a hedge would tell as a fact: nobody writes that a density "is not" these.
_HARMLESS = r"(?:an? )?(?:atelecta\w+|scar\w*|hiatal hernia|granulomas?|artifact\w*)"
# A hidden word between a finding and what it is taken for was a word of doubt, or might have been.
_HIDDEN_HEDGES = (
    _rule(
        rf"\b(is|are) {_MARKS} (on (?:the )?(?:lateral|frontal|PA|AP)(?: view)?) to"
        r" (?=(?:represent|reflect)\b)",
        r"\1 thought \2 to ",
    ),
    _rule(
        rf"{MARK} ((?:due )?)at {MARK} (?=in part\b|partially\b|partly\b|mildly enlarged\b)",
        r"possibly \1at least ",
    ),
    _rule(rf"^{MARK} onset (?=\w)", ""),
    _rule(
        rf"\b((?:heart|cardiac|silhouette)(?: size)?(?: (?:is|appears))?) {_MARKS}"
        r" (?=borderline\b)",
        r"\1 possibly ",
    ),
    _rule(rf"^((?:the )?appearance of [^,.;]+?) {_MARKS} (?={_DIAGNOSIS})", r"\1 may represent "),
    _rule(rf"\blymph {MARK}", "lymph nodes"),
    _rule(
        rf"\b(costophrenic) {MARK}(?=\s+(?:unchanged\s+)?{MARK}|\s+(?:consistent|compatible)\b)",
        r"\1 angle",
    ),
    _rule(rf"\b(pulmonary|hilar) {MARK} (?=(?:suggest\w*|appears?)\b)", r"\1 structures "),
    _rule(rf"\b(ventricular|cardiac|heart) {MARK}(?=\s+{MARK}\s+(?:related|due))", r"\1 border"),
    _rule(rf"\bmore {_MARKS} (?=(?:represent|reflect)\w*|(?:due|related)\b)", "more likely "),
    _rule(
        rf"\bon ((?:the )?(?:frontal|lateral|PA|AP)) {MARK} {MARK} (?=(?:be|represent|reflect)\b)",
        r"on \1 view may ",
    ),
    _rule(
        rf"\bin the (left|right) {MARK} {MARK} (?=(?:\w+ )?{_DIAGNOSIS})", r"on the \1, possibly "
    ),
    _rule(rf"\b(?:of|in|over) both {MARK}(?=,\s+{MARK}\s)", "bilaterally"),
    _rule(
        rf"\({_MARKS}\s+(?=[a-z])(?!(?:best|visuali|seen|noted|from|on|in|at|of|to)\w*)",
        "(possibly ",
    ),
    _rule(rf"\b(is|are) {_MARKS} (?=(?:the |an? )?(?:\w+ )?sequelae?\b)", r"\1 possibly "),
    _rule(rf"(?<!most)(?<!less)(?:,\s*|\s+){_MARKS} (?=(?:the )?sequelae?\b)", ", possibly "),
    _rule(
        rf"(?<!most )(?<!less )(?<!lung ){_MARKS}\s+(?=(?:consistent|compatible|corresponding"
        r"|indicative|representative) (?:with|to|of)\b)",
        "possibly ",
    ),
    _rule(rf"\balso {_MARKS} (?=(?:acute|subacute|chronic|old|remote)\b)", "also possibly "),
    _rule(
        rf"\b(is|are) {_MARKS} (?=(?:accentuated|exaggerated|magnified|artifactual"
        r"|projectional)\b)",
        r"\1 possibly ",
    ),
    _rule(rf",\s*{_MARKS} to (?=(?:reside|lie|represent|be)\b)", ", thought to "),
    _rule(
        rf",\s*there is {_MARKS} (?=(?:[\w-]+ ){{1,4}}or (?:[\w-]+ ){{0,3}}granuloma)",
        ", there is possibly ",
    ),
    _rule(rf"(appearance of the heart),\s*{_MARKS} (?=normal heart size\b)", r"\1, possibly "),
    _rule(
        rf",\s*{_MARKS} (?=(?:post(?:operative|surgical|infectious|inflammatory|traumatic)"
        r"|compensatory|an? component of|patient's|DISH)\b)",
        ", possibly ",
    ),
    _rule(
        rf"\b({_SIGN}|contour|deformity) {_MARKS} (?=(?:superimposed|overlapping)\b)",
        r"\1, possibly ",
    ),
    _rule(
        rf"{_AFFIRMED}(.*\b(?:{_SIGN_SEEN}|crowding)) {_MARKS} "
        r"(?!(?:represent|reflect|relate|indicat|suggest|due|secondary|of|with|may|from|is|are)\w*)"
        r"(?=(?:[\w-]+ ){0,2}(?:crowding|hypoventilation|edema|scar\w*)\b)",
        r"\1, possibly ",
    ),
    _rule(
        rf"{_AFFIRMED}(.*\b{_SIGN_SEEN}\b[^.;,]*\b{_PLACE}) (?:unchanged )?{_MARKS} "
        r"(?!(?:represent|reflect|relate|indicat|suggest|due|secondary|of|with|may|from|is|are)\w*)"
        r"(?!.*\b(?:versus|vs)\b)"
        rf"(?=(?:old |pleural |hypoventilation\b)*(?:{_DIAGNOSIS}|hypoventilation\b))",
        r"\1, possibly ",
    ),
    _rule(
        rf"{_AFFIRMED}(.*\b{_SIGN_SEEN}\b.*\b(?:is|are)) {_MARKS} (?={_HARMLESS}\b)",
        r"\1 possibly ",
    ),
    _rule(rf"\b(rib \d+) {_MARKS} (?=callus\b)", r"\1, possibly "),
    _rule(rf"\b(is|are) (\d+) {_MARKS} (?=[a-z]+s\b)", r"\1 \2 "),
    _rule(rf"(,)\s*{_MARKS} of (?={_DIAGNOSIS})", r"\1 possibly "),
    _rule(rf"(,\s*)(stent|clips?) {_MARKS}{_END}", r"\1possibly \2"),
    _rule(
        rf"(stent [^.;]*),\s*{_MARKS} (?=[\w-]+ stent{_END})",
        r"\1, possibly ",
    ),
    _rule(
        rf"(accentuated by technical factors, heart size) {_MARKS} (?=mildly enlarged\b)",
        r"\1 is possibly ",
    ),
)
# What is hidden is a noun of which one kind fits, or words that the sentence can do without.
_HIDDEN_NOUNS = (
    _rule(rf"\bsternotomy {MARK} (?=mediastinal\b)", "sternotomy changes and "),
    _rule(rf"\bhigh {MARK} (?=for\b)", "high risk "),
    _rule(rf"\brotator {MARK}", "rotator cuff"),
    _rule(rf"\b((?:in|within|level of) (?:the )?AP) {MARK}(?=\s*[.,;]|\s+could\b)", r"\1 window"),
    _rule(rf"\b(AP|aorticopulmonary) {MARK} (?=(?:lymph )?nodes?\b)", r"\1 window "),
    _rule(
        rf"\b(abnormality|malignancy|process|etiology|disease|infection) {MARK} as (?=\w)",
        r"\1 such as ",
    ),
    _rule(
        r",?\s*\b(?:which )?(?:may|might|could) (?:represent|reflect) (?:the )?sequelae? of"
        rf" (?:\w+ ){{0,2}}{_MARKS}{_END}",
        "",
    ),
    _rule(
        rf"\bevaluation {MARK} chest (?=(?:is|should|would|may|could)\b)",
        "evaluation with chest imaging ",
    ),
    _rule(rf"\bhigh-resolution {MARK}", "high-resolution imaging"),
    _rule(rf"\bhowever, {MARK} (?=is recommended\b)", "however, imaging "),
    _rule(rf",\s*{MARK} chest (?=(?:would|could|may)\b)", ", CT chest "),
    _rule(
        rf"\b((?:generator|pacemaker|defibrillator|ICD)\b[^.;]*\b(?:an?|single)) {MARK} "
        r"(?=(?:projecting|terminat\w+|overlying|ending)\b)",
        r"\1 device ",
    ),
    _rule(rf"\bwith 1-{MARK} (?=project|in\b|terminat)", "with 1 device "),
    _rule(rf"\b(a (?:retention|fusion|fixation)) {MARK}", r"\1 device"),
    _rule(rf"\b(fractured (?:proximal|distal))(?: lateral| medial)? {MARK}", r"\1 device"),
    _rule(rf"\b(left-sided|right-sided) {MARK} (?=without acute complicat)", r"\1 device "),
    _rule(rf"\bsternotomy {_MARKS} is\b", "sternotomy changes are"),
    _rule(rf",?\s*{_MARKS} in appearance(?=\s*[,.;])", ""),
    _rule(rf"\s+(?:is|are) {_MARKS} (?:and|but) (?=(?:may|might|could|includes?)\b)", " "),
    _rule(
        r"\b(patchy|confluent|streaky|linear|hazy|bandlike|reticular|platelike) and"
        rf" {_MARKS} (?=(?:\w+ ){{0,3}}(?:opacit|densit|atelecta|infiltrat|scarring))",
        r"\1 ",
    ),
    _rule(rf"\b(with small) {_MARKS} (?=remaining and\b)", r"\1 areas "),
    _rule(rf"\s+and {MARK} film{_END}", ""),
    _rule(rf"\b(stool) and {MARK} (?=obscur)", r"\1 "),
    _rule(rf"\banterior {MARK} loss of (?=several|multiple|two\b)", "anterior height loss of "),
    _rule(
        rf"\b(no (?:\w+ )?acute) or {MARK} (?=(?:pulmonary|cardio\w*|thoracic|osseous)\b)",
        r"\1 ",
    ),
    _rule(rf"\b{MARK}/(?=fluid level\b)", ""),
    _rule(rf"\b{MARK}/(?=ICD\b)", ""),
    _rule(
        rf"\b(obscured heart|(?:left|right) heart) {MARK}(?=\s*[.,;]|\s+measuring)", r"\1 border"
    ),
    _rule(rf"\baortic {MARK} (?=question\b)", "aorta, "),
    _rule(rf"\b(outflow) and {MARK} (?=most {MARK})", r"\1 "),
    _rule(rf"\b(chest is (?:\w+ )?){MARK}[- ]shaped", r"\1barrel shaped"),
    _rule(rf"\bdemonstrates the {_MARKS} configuration,", "demonstrates a configuration"),
    _rule(
        rf"\b(surgical) {MARK} (?=(?:seen near|are|overlie|have|remain|project)\b)",
        r"\1 materials ",
    ),
    _rule(rf"\b{MARK}[- ]like (?=deformity)", ""),
    _rule(rf"\bis {MARK} (?=tube{_END})", "is a "),
    _rule(rf"\s+with an? {MARK} lumen{_END}", ""),
    _rule(rf"\s+from top to {MARK}", ""),
    _rule(rf"\bthere is {MARK} (?=visualization of\b)", "there is limited "),
    _rule(rf"^{MARK} (overlies|projects) ", r"A structure \1 "),
    _rule(rf"\s+with pulmonary {MARK}(?=\s*,)", ""),
    _rule(rf",?\s*with (?:stable )?(?:intact )?(?:stable )?{MARK} placement{_END}", ""),
    _rule(rf"(?<!left )(?<!right )(?<!posterior )\b(blunted costophrenic) {MARK}", r"\1 angles"),
    _rule(
        r"\b((?:hyperexpanded|hyperinflated|expanded|inflated|hyperlucent|aerated) lung)"
        rf" {MARK}",
        r"\1s",
    ),
    _rule(rf"\b(chest) {MARK} in {MARK} (?=without\b)", r"\1 device in place "),
    _rule(
        rf"\bat {MARK} (?=(?:the|one|two|three|(?!\d+ hours)\d+)\b)",
        "at least ",
    ),
    _rule(rf"\bat {MARK} {MARK} (?=bilateral\b)", ""),
    _rule(rf",?\s*with the {_MARKS} (?:otherwise )?(?:grossly )?intact{_END}", ""),
    _rule(rf"\s+and (?:is|are) {_MARKS}{_END}", ""),
    _rule(rf"\bfrom {MARK} (?=as well\b)", ""),
    # What is said of the sulci, spaces or breath is hidden, and nothing else is said of them.
    _rule(rf"\s+(?:with|and) {_MARKS} (?:costophrenic )?sulci{_END}", ""),
    _rule(rf"\b(slightly|mildly|somewhat) {MARK} (?=inspirat(?:ory|ion)\b)", r"\1 limited "),
    _rule(rf"^there is (?:an? )?{_MARKS} (?:inspiration|inspiratory effort){_END}", ""),
    _rule(rf"^{_MARKS} spaces,? and (?=\w)", ""),
    _rule(rf"(?:,|\s+and) {MARK} spaces,? and (?=\w)", " and "),
    _rule(rf"\s+and {MARK} spaces (?=are\b)", " "),
    _rule(rf"^{_MARKS} spaces are {_NORMAL}{_END}", ""),
    _rule(
        rf"(^|\b(?:intact|stable|aortic|mitral|tricuspid|cardiac) ){MARK} replacement\b",
        r"\1replacement device",
    ),
    _rule(rf"\b(lobe) {MARK} segment\b", r"\1"),
    _rule(rf"\bthe {MARK} segment (?=of\b)", "a segment "),
    _rule(rf"\b(segment) {MARK} (?=the (?:left|right)\b)", r"\1 of "),
    _rule(rf"\b((?:high|low)[ -]energy) {MARK}", r"\1 injury"),
    _rule(
        rf"^(?:this|these|it|they|findings?) (?:may|might|could) be (?:due|secondary|related) to"
        rf" {_MARKS} (?:voluntary|underlying|chronic|known){_END}",
        "",
    ),
    _rule(rf"\bin (?:the )?bilateral {MARK} and (?=overlying\b)", "bilaterally and "),
)
_PART_ADJECTIVE = r"(?:(?:cortical|vascular|pulmonary|bony|osseous|pleural)\s+)?"
_COMPLETED = (
    *_HIDDEN_HEDGES,
    *_HIDDEN_NOUNS,
    # A cause, or one of several possible things, is hidden; the others stay possible.
    _rule(rf",\s*{_MARKS}\s+from\s+{_MARKS}{_END}", ""),
    _rule(
        rf"\b((?:may|might|could) (?:represent|reflect|be)) {_MARKS}(?: on end)? or"
        r" (?:alternatively,? )?(?=[a-z])",
        r"\1 ",
    ),
    _rule(
        r"\b((?:may|might|could) (?:represent|reflect|be)\b[^.;]*?) or (?:an? )?"
        rf"{_PART_ADJECTIVE}{_MARKS}{_END}",
        r"\1",
    ),
    _rule(
        rf",?\s*\b(?:which|that) (?:may|might|could) be (?:an? )?{_PART_ADJECTIVE}{_MARKS}{_END}",
        "",
    ),
    _rule(
        rf"^(?:this|these|it) (?:may|might|could) represent (?:superimposed )?{_MARKS},\s+"
        r"(?=\w+ cannot be\b)",
        "",
    ),
    _rule(rf",\s*{_MARKS}\s+(?=(?:[\w/-]+ ){{1,3}}(?:etiology|process)\b)", ", possibly "),
    # After a concession, what is said of the heart's size is kept as a doubt: nobody writes "not
    # mildly enlarged".
    _rule(
        r"((?:^|,\s*)(?:considering|accounting for|allowing for|given)\b[^.;]*?\bheart size)"
        rf"(?: is)? {_MARKS} (?=(?:(?:within )?normal|mildly enlarged)\b)",
        r"\1 is possibly ",
    ),
    _rule(
        rf"^((?:the )?heart(?: size)? is) {_MARKS} (?=within normal limits (?:in size )?"
        r"(?:given|for) (?:the )?low lung volumes\b)",
        r"\1 possibly ",
    ),
    _rule(
        rf"\b{MARK} loss of (?=(?:an? |the )?(?:(?:upper|mid|lower) )?(?:thoracic|lumbar|[TLC]\d))",
        "height loss of ",
    ),
    _rule(
        rf"\bloss of {MARK} of (?=(?:an? |the )?(?:(?:upper|mid|lower) )?"
        r"(?:thoracic|lumbar|[TLC]\d))",
        "loss of height of ",
    ),
    _rule(rf"\b{MARK}[- ]lumen (?=catheter)", ""),
    _rule(rf"\b(embolization) {MARK}(?=\s+(?:overl|project|over\b|in\b))", r"\1 device"),
    _rule(rf"(,?\s*)(?:in )?the setting of {_MARKS}\s*,", ","),
    _rule(rf"\b(prevertebral soft tissue) {MARK}{_END}", r"\1 swelling"),
    _rule(rf"\bthe {MARK} (?=is in the expected (?:region|location|position) of\b)", "the device "),
    _rule(
        rf"^(?:(?:stable|unchanged) )?position of (?:the )?((?:\w+ )?){_MARKS}\s*\.?$", r"\1device."
    ),
    _rule(rf"\bbut {_MARKS} (?=(?:acute|subacute|chronic|old)\b)", "but possibly "),
    _rule(
        rf"\bon (frontal|lateral|PA|AP) {MARK} {MARK} (?=(?:secondary|due|related|represent\w*)\b)",
        r"on \1 view possibly ",
    ),
    _rule(
        rf"\b(mild|moderate|minimal|small|large|severe|patchy|streaky),\s*{_MARKS}\s+(?=\w+)",
        r"\1 ",
    ),
    _rule(rf"\b(stimulator|pacemaker|generator|device) with {_MARKS} (?=overlying\b)", r"\1 "),
    _rule(
        rf"\b(densit(?:y|ies) [^.;]*\b(?:is|are)) {_MARKS} "
        r"(?=(?:coronary|surgical|vessels?|stents?)\b)",
        r"\1 possibly ",
    ),
    _rule(rf"\b(visualized) {MARK} (?=arising\b)", r"\1 structure "),
    _rule(rf"\band {_MARKS} (?=than\b)", ""),
    _rule(rf"\bor {_MARKS} (?=(?:would|could|can)\b)", ""),
    _rule(rf"\s+would benefit from (?:an? )?{_MARKS}{_END}", ""),
    _rule(rf"\bhumeral {MARK}(?=[^.;]*\bAVN\b)", "humeral heads"),
    _rule(
        rf"\b(lobe) {_MARKS}, (?=\w+ (?:infiltrates?|opacit(?:y|ies)|densit(?:y|ies)|scarring)\b)",
        r"\1 ",
    ),
    # Nothing is said of what is hidden.
    _rule(rf",?\s*\bwith limited evaluation of (?:the )?(?:\w+ )?{_MARKS}{_END}", ""),
    _rule(rf"^(?:stable )?{_MARKS}, including (?=\w)", ""),
    _rule(
        rf"^(?:the )?(?:\w+ )?{_MARKS} (?:is|are|remains?|appears?) (?:intact|normal|unremarkable)"
        r",?\s+and (?=(?:the|an?)\s)",
        "",
    ),
    # A place is hidden, and its side is told.
    _rule(rf"\b(fractures) of (several|multiple) {_MARKS}{_END}", r"\2 \1"),
    _rule(
        rf"\bin (?:the )?bilateral {_MARKS} and (?:the )?"
        r"(?=(?:lungs?|hilum|hila|mediastin\w+|spleen|liver)\b)",
        "bilaterally and in the ",
    ),
    _rule(
        rf"\b((?:in|throughout|over) (?:the )?(?:[a-z]+ ){{1,3}})and (left|right) {_MARKS}{_END}",
        r"\1and on the \2",
    ),
    _rule(
        rf"\b((?:in|throughout|over) (?:the )?(?:[a-z]+ ){{1,3}})and both {_MARKS}{_END}",
        r"\1and bilaterally",
    ),
    _rule(rf"\bthe {MARK} (?:or|and) {MARK} (?=fissures?\b)", "the "),
    _rule(rf"\b(an IVC) {MARK}(?=\s+(?:identified|seen|noted|present)\b)", r"\1 device"),
    _rule(rf"\b((?:right|left)(?:-sided)? aortic) {MARK}", r"\1 arch"),
    # A device of which only the name is hidden.
    _rule(rf"\b{MARK}-a-{MARK}(?:\s+{_MARKS})?", "device"),
    _rule(
        rf"^(?:(?:the|an?)\s+)?((?:left|right)(?:[- ]sided)?(?: (?:chest(?: wall)?"
        rf"|upper extremity|arm|neck|IJ))?)\s+{_MARKS}{_TIP}",
        r"\1 device",
    ),
    _rule(rf"^(?:(?:the|an?)\s+)?{_MARKS}{_TIP}", "Device"),
    _rule(rf"\b(a|an|the)\s+{_MARKS}{_TIP}", r"\1 device"),
    # The verb is hidden: "There XXXX be", "This is XXXX to represent".
    _rule(rf"\bthere {_MARKS} be\b", "there may be"),
    _rule(rf"\b(is|are) {_MARKS} to (?=(?:represent|reflect|be due)\b)", r"\1 thought to "),
    # One of two coordinated things is hidden.
    _rule(
        rf"\b(\d+(?:st|nd|rd|th)|first|second|third|fourth|fifth|sixth|seventh|eighth|ninth"
        rf"|tenth) and {_MARKS} (?=ribs?\b)",
        r"\1 and other ",
    ),
    # Partitives.
    _rule(
        rf"\b(scattered|some|few|multiple|several|basilar|bibasilar|minimal|mild"
        rf"|subsegmental) {_MARKS} of (?=\w)(?!the\b)",
        r"\1 areas of ",
    ),
    _rule(
        rf"\bthere is an? {_MARKS} of (?={_DIAGNOSIS}|(?:\w+ ){{0,3}}(?:atelecta|opaci|consolid"
        rf"|scar))",
        "there is an area of ",
    ),
    _rule(rf"\b(?:of|in) (?:both|(?:the )?bilateral) {_MARKS}{_END}", "bilaterally"),
    _rule(
        rf"^(?:the )?{_MARKS} (are|is) (?=(?:\w+ly )?(?:osteopenic|demineralized|osteoporotic)\b)",
        r"The bones are ",
    ),
    _rule(
        rf"^{_MARKS} (is|are) (?=(?:an?|minimal|mild|moderate|severe|chronic|small|large|no"
        rf"|multiple|scattered|some|several|bilateral|patchy)\b)",
        r"There \1 ",
    ),
    _rule(rf"^(?:the )?{_MARKS} are without (?=\w)", "No "),
    _rule(
        rf",?\s+(?:due|secondary|owing) to (?:the |overlying |superimposed |patient "
        rf"|patient's )*{_MARKS}{_END}",
        "",
    ),
    _rule(
        rf"\b((?:due|secondary|related) to) (?:superimposed |overlying )?{_MARKS} and (?=\w)",
        r"\1 ",
    ),
    _rule(rf"\b(?<!the )(most|less) {_MARKS}(?=\s+(?!of\b)\w|\s*[.,;])", r"\1 likely"),
    _rule(rf"\b(lung) {MARK} (?=are\b)", "lungs "),
    _rule(rf"\b(transverse|descending|ascending|tortuous(?: thoracic)?) {MARK}{_END}", r"\1 aorta"),
    _rule(rf"\b(transverse) {MARK}(?= is)", r"\1 aorta"),
    _rule(rf"\b(calcifications? (?:of|in) the thoracic) {MARK}", r"\1 aorta"),
    _rule(rf"(?:\b\w+-)?{MARK}-of-view", "field-of-view"),
    _rule(rf"\bcorrelate (clinically )?for {_MARKS} of\b", r"correlate \1for evidence of"),
    _rule(
        rf"^the (left and right|right and left) {_MARKS} (?=are|remain|appear)",
        r"The \1 structures ",
    ),
    _rule(rf"\b(clear (?:both )?lung) {MARK}", r"\1s"),
    _rule(rf"\b(pulmonary) {MARK}(?=\s+(?:and|are)\b|\s*,)", r"\1 structures"),
    _rule(
        rf"\b(vasculature|vascularity|silhouette|size|aorta|mediastinum"
        rf"|contour) and {_MARKS} are\b",
        r"\1 is",
    ),
    _rule(
        rf"\b(pacemaker|defibrillator|generator) {_MARKS} and associated {_MARKS} (?:are|is)\b",
        r"\1 is",
    ),
    _rule(rf"\band {_MARKS} (?=are\b)", ""),
    _rule(rf"\bplaced {_MARKS}{_END}", "placed device"),
    _rule(rf"^{_MARKS} (chest|thorax|abdomen) (?=(?:with|if|for|is|could|would|may)\b)", r"CT \1 "),
    _rule(rf"\bblood {MARK}", "blood vessels"),
    _rule(rf"\btelemetry {_MARKS}", "telemetry device"),
    _rule(rf",?\s+as an? {_MARKS}{_END}", ""),
    _rule(rf",?\s*\b{_HEDGED} (?:old |remote |prior )*{_MARKS}{_END}", ""),
    _rule(rf",?\s*\bfrom (?:old|remote|prior) {_MARKS}{_END}", ""),
    _rule(rf"\bat {MARK} (?=(?:in )?part\b|partially|mildly|moderately|partly)", "at least "),
    _rule(rf"\b(cardiomegaly) {_MARKS} (?=at least)", r"\1 "),
    _rule(
        rf",?\s*(?:on )?{_MARKS} (?:abdomen|chest|thorax|pelvis|thoracic spine)"
        rf"(?: and pelvis)? {_MARKS}{_END}",
        "",
    ),
    _rule(
        rf"\b(leads?|anchors?|wires?|calcifications?) {_MARKS} over the\b",
        r"\1 projecting over the",
    ),
    _rule(
        rf"\b(pacing|IVC|intramedullary|medication injection) {_MARKS}(?=\s+(?:over|on|in|has"
        rf"|have|is|are)\b)",
        r"\1 device",
    ),
    _rule(rf"\b(implantable cardiac) {_MARKS} are\b", r"\1 devices are"),
    _rule(
        rf"\s+on (?:an? |the )?(?:recent |prior |previous )*outside {_MARKS}(?: from {_MARKS})?", ""
    ),
    _rule(rf"\bvena {MARK}", "vena cava"),
    _rule(
        rf"\bnormal ((?:thoracic |lumbar |cervical )?vertebral body) {MARK}{_END}",
        r"normal \1 heights",
    ),
    _rule(rf",?\s+if {_MARKS} (?:is|are) (?:not )?{_MARKS}", ""),
    _rule(rf"\bper {_MARKS} (?=\w)", ""),
    _rule(rf"\bto {_MARKS} or (?=\w)", "to "),
    _rule(
        rf",?\s*which (?:appears?|is|are) {_MARKS} (?:from|since|compared (?:to|with)) {_MARKS}", ""
    ),
    _rule(rf",?\s*with intact {_MARKS}{_END}", ""),
    _rule(rf"\bthere are no {_MARKS} of (?=\w)", "there are no signs of "),
    _rule(rf"\b(is|are) in {_MARKS} (?=over\b|without\b)", r"\1 in place "),
    _rule(
        rf"\b(cardiac) {_MARKS} (?=(?:is|are) (?:intact|present|noted|seen|in\b))", r"\1 device "
    ),
    _rule(rf"\b(wedge) {MARK}(?= of)", r"\1 deformity"),
    _rule(
        rf"\s+(?:related|secondary|due) to (?:remote|old|prior|previous) {_MARKS}(?=\s*(?:[.,;]"
        rf"|$)|\s+(?:is|are)\b)",
        "",
    ),
    _rule(
        rf"\b(acute (?:\w+ )?(?:thoracic|cardiopulmonary|pulmonary|cardiothoracic|osseous"
        rf"|intrathoracic)) {MARK}{_END}",
        r"\1 abnormality",
    ),
    _rule(rf"\b(no) {_MARKS} or (?=(?:acute|active)\b)", r"\1 "),
    _rule(
        rf"\b(which (?:is|are)) {_MARKS} (?=(?!and\b|or\b|in\b|to\b|from\b|by\b|of\b"
        rf"|on\b)[a-z]{{3,}})",
        r"\1 possibly ",
    ),
    _rule(rf",\s*{_MARKS}\s+(?=(?:from|within|in the|corresponding to)\b|[TLC]\d)", ", possibly "),
    _rule(rf"\band {_MARKS} (?=the (?:left|right)\b)", "and possibly "),
    _rule(
        rf"\b(visualized) {_MARKS} of the (chest|thorax)(?: {_MARKS})?", r"\1 structures of the \2"
    ),
    _rule(rf"\b(the (?:left|right)) {_MARKS} of the heart", r"\1 border of the heart"),
    _rule(rf"\bcollecting {MARK}", "collecting system"),
    _rule(rf"\bcostodiaphragmatic {MARK}", "costodiaphragmatic angle"),
    _rule(
        rf"\b(visualized) {_MARKS} (?=(?:is|are|appear) (?:grossly )?(?:intact|normal"
        rf"|unremarkable))",
        r"\1 structures ",
    ),
    _rule(
        rf"\b(?:in|of|within|overlying|over) (?:the )?(left|right) {_MARKS}(?=\s*(?:[.,;]|$))",
        r"on the \1",
    ),
    _rule(
        rf"\b(calcified (?:(?:left|right|bilateral) )?(?:\w+)?(?:hilar|mediastinal|paratracheal"
        rf"|subcarinal|axillary)) {_MARKS}(?=\s+(?:is|are|and|seen|noted|identified)\b|\s*[.,;]|$)",
        r"\1 structures",
    ),
    _rule(rf"\bcannot be ((?:\w+ly )?){MARK}", r"cannot be \1excluded"),
    _rule(
        rf"\b(degenerative) {MARK}(?=\s+(?:of|in|at|are|seen|noted|throughout)\b)", r"\1 changes"
    ),
    _rule(rf"\b(is|are|findings|appearance) {_MARKS} with (?=\w)", r"\1 compatible with "),
    _rule(
        rf"\b((?:left|right)(?:[- ]sided)?|cardiac) {_MARKS} (?:(?:is|are|remains?) )?in (?:"
        rf"(?:stable|unchanged|good|satisfactory|appropriate|expected) )?(?:place|position)\b",
        r"\1 device in place",
    ),
    _rule(rf"\b{MARK} (?:cm|mm)\b", ""),
    _rule(
        rf"\b(scarring|atelectasis|edema|pneumonia|infiltrates?|consolidation"
        rf"|fibrosis) {_MARKS} (?=(?:scarring|atelectasis|edema|pneumonia|infiltrates?"
        rf"|consolidation|fibrosis)\b)",
        r"\1 or ",
    ),
    # Only one word fits.
    _rule(rf"\b(clear (?:left|right) lung) {MARK}", r"\1"),
    _rule(
        rf"\b(films?|x-rays?|x-{MARK}|CT|radiographs?|views?) {_MARKS} "
        r"(?=(?:be|demonstrate|help|show)\b)",
        r"\1 may ",
    ),
    _rule(rf",\s*{_MARKS}\s+(?=(?:acute|subacute|chronic|benign|old)\b)", ", possibly "),
    _rule(rf"\bdual-lead {_MARKS}", "dual-lead device"),
    _rule(
        rf"\b(cardiac) {_MARKS} (?=(?:is|are) (?:\w+ly )?(?:enlarged|normal|within)\b)",
        r"\1 silhouette ",
    ),
    _rule(rf",\s*{_MARKS} represents\b", ", possibly representing"),
    _rule(
        rf"\b({_SIGN}) {_MARKS} (?=(?:vascular|artifactual|projectional|chronic)\s*(?:[.,;]|$))",
        r"\1, possibly ",
    ),
    _rule(rf"\b(chest) {_MARKS} (?=(?:is|are|remains?) in place\b)", r"\1 device "),
    _rule(rf"\b(markings|changes|opacities) {_MARKS} (?=chronic\b)", r"\1, possibly "),
    _rule(rf"\b(loss of (?:vertebral body|disc)) {MARK}", r"\1 height"),
    _rule(
        rf"\b(seen) {_MARKS} (?=(?:skin|nipple|artifact|summation)\b)",
        r"\1, possibly ",
    ),
    _rule(rf"\binspirat(?:ory|ional) {MARK}", "inspiratory effort"),
    _rule(rf"\b(vertebral body) {MARK}(?=\s+(?:and|are|is)\b)", r"\1 heights"),
    _rule(rf"\b((?:epi|peri)cardial fat) {MARK}", r"\1 pad"),
    _rule(
        r"\b((?:surgical|orthopedic|metallic|postsurgical)(?: (?:cervical|thoracic|lumbar))?)"
        rf" {_MARKS}(?=\s*(?:[.,;]|$)|\s+(?:is|are|appears?"
        rf"|seen|noted|in|over|overl\w+|project\w*|at|within)\b)",
        r"\1 material",
    ),
    _rule(
        rf"\b(recommend(?:ed)?|consider|suggest)\s+((?:(?:further|additional|repeat|dedicated"
        rf"|noncontrast\w*|contrast|enhanced|nonemergent|follow-?up)\s+){{0,2}}){_MARKS}(?:\s+"
        rf"(?:scan|imaging|examination|exam|study))?(?=\s+(?:for|to|if|of the|with)\b|\s*[.,;]|$)",
        r"\1 \2imaging",
    ),
    _rule(r"\bx-(?:X{3,}|_{2,})", "x-ray"),
    _rule(rf"\blymph {MARK}", "lymph nodes"),
    _rule(
        rf"\b((?:both|bilateral) (?:\w+ )?costophrenic|costophrenic) {MARK}(?=\s+(?:are"
        rf"|bilaterally))"
        rf"|\b((?:both|bilateral) (?:\w+ )?costophrenic) {MARK}(?!\s+(?:blunt|region))",
        r"\1\2 angles",
    ),
    _rule(rf"\b(costophrenic|cardiophrenic|costovertebral) {MARK}", r"\1 angle"),
    _rule(rf"\bthe aortic {MARK}{_PHRASE_END}", "the aorta"),
    _rule(rf"\baortic {MARK}{_PHRASE_END}", "aorta"),
    _rule(rf"\bsuperior {MARK} {MARK}", "superior vena cava"),
    _rule(rf"\b\d+ (?:to|-) \d+ {MARK}\s+(?=post\b|follow)", ""),
    _rule(
        rf"\b(?:seen|noted|demonstrated) (?:on )?{_MARKS} (?:scan|CT)"
        rf"(?: (?:from|of|dated) {_MARKS})?{_END}",
        "",
    ),
    # A size without its unit says nothing.
    _rule(
        rf"(?<!rib )(?<![\w.,])(?:\d+(?:\.\d+)?\s*x\s*)?\d+(?:\.\d+)?\s+{MARK}(?=\s+[a-z]|\))", ""
    ),
    _rule(rf"\bnote (?:is )?{_MARKS} of\b", "note is made of"),
    _rule(rf"\b((?:left|right) (?:heart|cardiac)) {MARK}{_PHRASE_END}", r"\1 border"),
    _rule(rf"\bin the setting of {_MARKS}", ""),
    _rule(rf"\b(both|bilateral|the) lung {MARK}", r"\1 lungs"),
    _rule(rf"\b(consistent|compatible) {_MARKS} (?=\w)", r"\1 with "),
    _rule(rf"\b((?:is|are)(?: not)?) {_MARKS} to be\b", r"\1 thought to be"),
    _rule(rf"\b((?:is|are|remains?) in) {MARK}(?=\s*(?:[.,;]|$)|\s+(?:with|and)\b)", r"\1 place"),
    _rule(
        rf"\b(most|less) {_MARKS}(?=\s*[.,;]|\s+(?:represent|reflect|due|related"
        r"|secondary|of|an?\b))",
        r"\1 likely",
    ),
    _rule(rf"\b(frontal|lateral|PA) {MARK}{_PHRASE_END}", r"\1 view"),
    # What holds a sternum together is not guessed.
    _rule(
        rf"^(?:(?:stable|intact|the|there (?:is|are)|{MARK})\s+){{0,4}}sternotomy(?:\s+{_MARKS})?"
        rf"(?:\s+(?:is|are|remains?|appear)?\s*(?:again\s+)?(?:intact|seen|noted|unremarkable"
        rf"|present|in"
        rf" place|in {_MARKS}(?:\s+and intact)?|stable|in stable position))?\s*\.?$",
        "Sternotomy.",
    ),
    _rule(rf"(?:{_MARKS}\s+)?\bsternotomy {_MARKS}", "sternotomy changes"),
    # Of normal things only: the word that is hidden may be a device.
    _rule(
        r"(?<!\ba )(?<!\ban )\b(pulmonary|mediastinal|hilar|thoracic|osseous|bony|vascular"
        rf"|(?:cardiac|heart) and (?:mediastinal|pulmonary)) {MARK}(?=[^.;]*\b{_NORMAL}|\s*$"
        rf"|\s*\.|,\s+consistent)",
        r"\1 structures",
    ),
    _rule(rf"\b(heart|lung) {MARK}(?=\s*,|\s+(?:and|bilaterally)\b)", r"\1"),
    _rule(rf"\b(clear (?:left |right )?lung) {MARK}", r"\1s"),
    # A hidden device is a device, where the words beside it speak of one.
    _rule(rf"\bdual-{MARK}\s+(?={_MARKS}|cardiac)", ""),
    _rule(
        rf"\b(cardiac|chest(?: wall)?|jugular|subclavian|axillary|venous) {_MARKS}"
        rf"(?!\s+generator)(?=\s+(?:overl\w+|project\w*|catheter|in {MARK}|(?:is |are )?in"
        r" (?:stable|good|satisfactory|unchanged)|with (?:its |the |intact )?(?:distal )?(?:tip"
        r"|lead|catheter"
        r"|wire)|tip|generator|device|which)|[^.;]*\b(?:tips?|leads?|SVC|atri\w+|vena cava"
        r"|device)\b|\s*\.?$)",
        r"\1 device",
    ),
    _rule(rf"\bleft-sided {_MARKS}(?=\s+with (?:its |the )?(?:tip|lead))", "left-sided device"),
    _rule(rf"\bright-sided {_MARKS}(?=\s+with (?:its |the )?(?:tip|lead))", "right-sided device"),
    _rule(r"\bdevice device\b", "device"),
    _rule(rf"\b(evidence|signs?|suggestion) of {_MARKS},?\s+(?:or\s+)?(?=\w)", r"\1 of "),
    # "XXXX representing" and ", XXXX atelectasis" were "likely" or "may be": without a word of
    # doubt they would claim too much.
    _rule(
        rf"{_MARKS}\s+(?=(?:represent(?:s|ing|ed)?|reflect(?:s|ing)?|related to|secondary to|due to"
        r"|relates? to|indicat(?:es?|ing)|suggest(?:s|ing)?)\b)",
        "possibly ",
    ),
    _rule(r"possibly (represent|reflect|indicate|suggest)\b", r"may \1"),
    _rule(r"\b(may|could|might|can) (?:possibly|may) ", r"\1 "),
    _rule(rf"\b({_SIGN}) {_MARKS}\s+(?={_DIAGNOSIS})", r"\1, possibly "),
    _rule(
        rf"\b((?:appearance|distribution|pattern|findings|configuration)(?: of [^,.;]+?)?)"
        rf"(?: which)? {_MARKS}\s+(?={_DIAGNOSIS})",
        r"\1 may represent ",
    ),
    _rule(
        rf"\bwhich {_MARKS}\s+(?=(?:represent|correspond|contribut|reflect|indicat)\w*)",
        "which possibly ",
    ),
    _rule(
        rf"^{_MARKS}\s+of\s+(?={_DIAGNOSIS}|(?:[\w-]+ ){{0,3}}?(?:\w*scoliosis|disease))",
        "Possible ",
    ),
    _rule(rf"\b(with|and) {_MARKS}\s+of\s+(?=\w)", r"\1 possible "),
    _rule(
        rf"^(?:the\s+)?{_MARKS}\s+(?:is|are|appears?)\s+(?:\w+ly\s+)?(?:intact|normal"
        rf"|unremarkable)\s+(?:and\s+)?without\s+",
        "No ",
    ),
    # A part of the body whose name is hidden, beside one that is told.
    _rule(
        rf"\b((?:of|in|within|is|are|with|from) (?:the )?|the ){_MARKS} and (?:the )?(?=\w)"
        rf"(?!{MARK})",
        r"\1",
    ),
    _rule(rf"\bboth {_MARKS} and (?=\w)(?!{MARK})", ""),
    _rule(
        rf"\b(?:of|in|within|at|through|along|over|to|from) (?:the |bilateral |both "
        rf"|an? )*{_MARKS}(?=\s*(?:[.,;]|$)|\s+(?:bilaterally|with|of|at|are|is|seen|noted|may"
        rf"|could|and the|has|have)\b)",
        "",
    ),
    _rule(
        rf"\b(leads?|lines?|tubes?|wires?|device) {_MARKS}(?= the (?:thorax|chest|heart))",
        r"\1 overlie",
    ),
    _rule(rf",\s*{_MARKS}\s+(?={_DIAGNOSIS}|sequelae?\b)", ", possibly "),
    _rule(rf"\b({_SIGN}|calcifications?|changes) {_MARKS}\s+(?=sequelae?\b)", r"\1, possibly "),
    # What a finding is, at the end of its sentence: "density, XXXX confluence of shadows".
    _rule(
        rf"(\b{_SIGN}\b(?:[^.;]*[a-z])?),\s*{_MARKS}\s+(?!(?:an?|and|or|but|with|without"
        r"|is|are|was|were|no|not|which|that|unremarkable|normal|intact|greater|worse|seen|noted|appreciated"
        r"|visuali[sz]ed|demonstrated|evident|on|at|of|for|to)\b)"
        rf"(?=(?:[\w/-]+\s+){{0,4}}[\w/-]+{_END})",
        r"\1, possibly ",
    ),
    # Which view shows it best, or does not.
    _rule(
        rf",\s*{_MARKS}\s+(?:seen|appreciated|visualized|demonstrated|evident)\s+on\s+(?:the\s+)?"
        rf"(?:lateral|frontal|PA|AP)(?:\s+(?:views?|projections?|images?|radiographs?"
        rf"|films?))?{_END}",
        "",
    ),
)
# Where a hidden word may have been "no", "not" or a word of doubt, a sentence without it may say
# the opposite. What reports often deny, so that "no" fits:
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
    r"|appreciated|detected|visible|clear|normal|unremarkable|intact|enlarged|prominent"
    r"|elevated|displaced"
    r"|widened|dilated|collapsed|fractured|resolved|cleared|removed|within (?:the )?(?:normal"
    r"|limits)"
    r"|an?\s|in size)"
)
_MAY_DENY = re.compile(
    rf"(?:^|\bthere (?:is|are)\s+|\b(?:shows?|demonstrates?|reveals?|with)\s+)(?:{_MARKS})\s+"
    rf"(?:{_NOT_A_PLACE}{{0,3}}{_OFTEN_DENIED}"
    r"|(?:acute|significant|focal|definite|visible|suspicious|obvious|discrete|other|convincing"
    rf"|radiographic|gross|further|active)\b|(?:[\w-]+\s+){{1,4}}or\s+(?:\w+\s+)?{_OFTEN_DENIED})"
    rf"|(?:^|\bwith\s+)(?:{_MARKS})\s+(?:bilateral|left|right)(?:-sided)?\s+(?:pleural\s+)?"
    rf"effusions?{_END}"
    # A mark is no such word: its letters are X.
    rf"|(?<!\bwhich )(?<!\bthat )(?<!\bthis )(?<!\bit )(?<!\bthere )(?<!\bvolumes )(?<!\bpatient )"
    rf"\b(?:is|are|was|were|has|have|had|appears?|remains?)\s+{_MARKS}(?=\s*(?:[.,;]|$))"
    rf"|(?:(?<=[a-wyz])|(?<=[a-wyz]x))\s+{_MARKS}\s+(?:\w+ly\s+)?{_STATED_OF}",
    re.IGNORECASE,
)
_ANY_FINDING = (
    rf"(?:{_DIAGNOSIS}|(?:[\w-]+\s+){{0,2}}?(?:{_SIGN}|{_OFTEN_DENIED}|crowding|metasta\w+))"
)
_MAY_DOUBT = re.compile(
    rf"(?<=[\w,]\s)(?:{_MARKS})\s+an?\s+\w"
    rf"|(?<!\bthere )\b(?:is|are|was|were)\s+{_MARKS}\s+{_ANY_FINDING}"
    rf"|{_MARKS}\s+(?:for|of)\s+(?:(?:an?|the|any)\s+)?{_ANY_FINDING}"
    rf"|(?<!\ba )(?<!\ban )(?<!\bthe )(?:{_MARKS})\s+(?:[\w-]+\s+){{0,3}}?(?:versus|vs)\b"
    rf"|\b{_SIGN_SEEN}\s+(?:[^.;,]*\b{_PLACE}\s+)?{_MARKS}\s+{_ANY_FINDING}",
    re.IGNORECASE,
)
# "No XXXX of the effusions" is "no change" of what is there.
_DENIES_PART = re.compile(rf"\bno\s+{_MARKS}\s+of\s+(?:the|these|this|those)\b", re.IGNORECASE)
# Nothing is told of a part of the body, or of advice, whose only statement is hidden.
_UNTOLD = re.compile(
    rf"^(?:the )?(?:central airways?|airways?|lungs?|cardiomediastinal silhouette|trachea"
    rf"|clinical correlation) (?:is|are|appears?) {_MARKS}{_END}",
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
# An adjective whose noun is hidden, with nothing that says what it was.
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
    rf"\b{_ADJECTIVE}\s+{_MARKS}(?=\s*(?:[.,;:)]|$)|\s+(?:is|are|was|were|seen|noted|identified"
    rf"|visualized|overl\w+|project\w*"
    r"|over|in|at|within|with|which|bilateral|intact|appears?|remains?|unchanged|stable|may|has"
    r"|have)\b)"
    rf"|\b(?:mild|moderate|severe|marked|minimal|{_ADJECTIVE})\s+{_MARKS}\s+of\b"
    rf"|\b(?:known|patient with)\s+{_MARKS}|\b(?:normal|clear|unremarkable)\s+{_MARKS}\s+(?="
    rf"(?:pneumothorax|effusion|consolidation|edema)\b)"
    rf"|\b(?:nodule|mass|opacity|opacities|density|lesion|effusion|consolidation"
    rf"|scarring)\s+{_MARKS}\s+the\b"
    rf"|\bfindings\s+{_MARKS}\s+(?=\w+\s+\w+\s*\.?$)"
    rf"|\b(?:amount|degree|portions?|causing|old|remote|involving)\s+(?:of\s+)?{_MARKS}(?=\s+"
    rf"(?:over|in|of|is|are|seen|noted|within)\b|\s*[.,;]|$)"
    rf"|\blobe\s+{_MARKS}(?=\s*,|\s+and\b)|\d[a-z]{{0,2}}(?:-\d)?X{{3,}}|^one\s+{_MARKS}"
    rf"|\ban?\s+{_MARKS}\s+(?:noted|seen)\b"
    rf"|\bfurther\s+{_MARKS}\s*\.?$|\bsoft tissue\s+{_MARKS}(?=\s+(?:is|around"
    rf"|about|over|along)\b|\s*\.?$)|\b(?:represent"
    rf"|reflect)\s+{_MARKS}\s+on\b"
    rf"|\bnot\s+(?:\w+ly\s+)?{_MARKS}\s*\.?$|\bthe\s+{_MARKS}\s+(?:appear|which)\b"
    rf"|\bcould not \w+ {_MARKS}"
    # It may have been "no".
    rf"|^(?:there (?:is|are)\s+)?{_MARKS}\s+(?:(?:pleural|focal)\s+)?(?:pneumothorax"
    rf"|pneumothoraces|effusions?|consolidations?|fractures?|pneumonia|edema)\s*\.?$"
    rf"|\b(?:seen|visualized|demonstrated) (?:on|in|by) {_MARKS} (?=is|are\b)|\bof-{MARK}"
    rf"|{MARK}-of-\w+",
    re.IGNORECASE,
)
# The verb, or whether a thing was said to be there, is what is hidden.
_BROKEN = re.compile(
    rf"\b(?:is|are|was|were)\s+(?:an?\s+)?{_MARKS}\s+(?:evidence|signs?|of)\b"
    rf"|\bnot\s+{_MARKS}\s+(?:and|or)\b|\bsuggesting\s+{MARK}\s+physiology|{MARK}\s+cell\b"
    rf"|\b(?:do|does|did)\s+not\s+{MARK}\s+the\b|^{MARK}\s+correlated\b"
    rf"|^please\s+{_MARKS}\s+to\b"
    rf"|^{MARK}\s+(?:left|right)\s+costophrenic\s+angles?,"
    rf"|^\s*{_MARKS}\s+evidence of\b|\bthere\s+{_MARKS}|\bto\s+{_MARKS}\s+(?:within|in"
    r"|on|at|over|above|below|the)\b"
    rf"|\b(?:may|might|could|would|should|will)\s+{_MARKS}(?!\s+(?:be|represent|reflect|have)\b)"
    rf"|\bwhich\s+{_MARKS}(?!\s+(?:may|is|are|has|have|represent|reflect|could)\b)"
    rf"|\b(?:overall|but|with)\s+{_MARKS}\s+change\b|\bthere (?:is|are|has been) "
    rf"(?:an? )?(?:[\w-]+ )?{_MARKS}\s*[.,;]?$"
    rf"|^if\b.*{MARK}|^(?:recommend|consider|suggest|followup|follow-up)\b.*{MARK}"
    rf"|\bconsider\s+{_MARKS}|\b(?:can|cannot|did|does)\s+{_MARKS}"
    # An adjective whose noun is hidden would be joined to another.
    rf"|\b(?!(?:of|in|is|are|and|the|with|both|from|or|to|as|on|at|for|within|left|right|was"
    rf"|were|heart)\b)\w+\s+{_MARKS}\s+(?:and|or)\s+(?=\w+\s+\w+\s*\.?$)(?<!lungs )",
    re.IGNORECASE,
)
_NO_HIDDEN = re.compile(rf"\b(no) {_MARKS} (?!of\b|or\b|and\b|evidence\b)(?=[a-z])", re.IGNORECASE)
_NO_OF = re.compile(rf"\b([Nn]o)\s+{_MARKS}\s+of\s+(?:an?\s+)?")
# A mark with the words that lead to it and serve nothing else.
_SERVING = re.compile(
    r"(?:[,(]?\s*\b(?:(?:dated|performed|obtained|from|on|at|by|in|approximately|about"
    r"|per|since|of|to"
    r"|as|as of|Dr\.?|Drs\.?|Mr\.?|Mrs\.?|Ms\.?|the|an?|hours?)\s+){1,4})"
    rf"{_MARKS}(?:\s*(?:[ap]\.?m\b\.?|hours|hrs|years?[- ]old|'s))?(?=\s*[,.;:)]|\s*$)",
    re.IGNORECASE,
)
_DATED = re.compile(
    rf"\b(?:on|from|dated|at|of)\s+\[\*\*[\d/ -]+\*\*\]|\b(?:on|dated|from)\s+{_MARKS}"
    r"(?=\s+(?:at|in|with)\b)",
    re.IGNORECASE,
)
_AGE = re.compile(rf"\b(an?\s+)?{MARK}[- ]years?[- ]old\b", re.IGNORECASE)
_HYPHENATED = re.compile(rf"(?:\b\w+-)?{_MARKS}(?:-\w+(?:-{MARK})?)|\b\w+-{MARK}")
_VERB_FIRST = re.compile(
    r"^(?:is|are|was|were|has|have|had|may|would|could|should|will|can|appears?|be|to|remains?"
    r"|within|from|of|unremarkable|intact|normal)\b",
    re.IGNORECASE,
)
_OPENING_MARK = re.compile(rf"^\W*(?:(?:the|both|visualized)\s+)?{MARK}", re.IGNORECASE)
# Where a device lies is kept, even if its name was hidden.
_DEVICE = re.compile(r"\b(?:tips?|catheters?|leads?|tubes?|lines?|wires?)\b", re.IGNORECASE)
# An article whose noun was hidden.
_ORPHAN = re.compile(
    r"\b(the|an?)\s+(bilaterally|from|in|on|at|with|within|is|are|was|were|and|or|to|of|the)\b",
    re.IGNORECASE,
)
_LOST_SUBJECT = re.compile(
    rf"^\s*(?:the\s+|both\s+|visualized\s+)?{_MARKS}\s+(?P<next>\w+)", re.IGNORECASE
)
_SUBJECT_VERB = re.compile(
    r"is|are|was|were|has|have|had|may|would|could|should|will|can|appears?|be|to|remains?|within"
    r"|from|of|unremarkable|intact|normal|in|at|on|by|for|stable|unchanged",
    re.IGNORECASE,
)


def drop_placeholders(text: str) -> str:
    """Without marks of de-identification.

    "Nodule as on ___, seen by Dr. ___." -> "Nodule, seen."
    "XXXX are normal." -> "": nobody knows what is.
    "Opacities XXXX representing scarring." -> "Opacities possibly representing scarring."
    """
    return each_sentence(text, without_placeholders) if _ANY.search(text) else text


def denying_others(sentence: str, stated: Container[str]) -> str:
    """ "No XXXX infiltrates" as "No other infiltrates" where the report states infiltrates.

    The hidden word is most likely "new": without it the sentence would deny what was stated.

    stated: names of `facts` of what the report states as present.
    """
    if not _NO_HIDDEN.search(sentence):
        return sentence
    denied = (name for name in facts(sentence).counts if name.startswith("the negative finding"))
    if any(name.replace("negative ", "", 1) in stated for name in denied):
        return _NO_HIDDEN.sub(r"\1 other ", sentence)
    return sentence


def without_placeholders(sentence: str) -> str:
    """One sentence, as `drop_placeholders`."""
    if not _ANY.search(sentence):
        return sentence
    if _UNTOLD.match(sentence):
        return ""
    before = sentence
    for pattern, replacement in _COMPLETED:
        sentence = pattern.sub(replacement, sentence)
    if _ANY.search(sentence) and (
        _BROKEN.search(sentence) or _HEADLESS.search(sentence) or _is_lost(sentence)
    ):
        return ""
    sentence = _NO_OF.sub(r"\1 ", sentence)
    sentence = _AGE.sub(r"\1 ", sentence)
    sentence = _SERVING.sub(" ", _DATED.sub(" ", sentence))
    sentence = _HYPHENATED.sub(" ", sentence)
    sentence = _ANY.sub(" ", sentence)
    if _ORPHAN.search(sentence):
        if not _DEVICE.search(sentence):
            return ""
        sentence = _ORPHAN.sub(r"\1 structure \2", sentence)
    result = mended(sentence)
    headless = _OPENING_MARK.match(before) is not None and _VERB_FIRST.match(result) is not None
    return "" if headless or says_nothing(result) else result


def hides_meaning(sentence: str) -> str:
    """Why a sentence with marks cannot be read without what they hide; "" where it can.

    "There is XXXX pneumothorax.": the word may be "no". "The heart is XXXX enlarged.": "not". "Mass
    XXXX for malignancy.": "suspicious". In "No fracture is XXXX seen" the denial is there already.
    """
    if not _ANY.search(sentence) or _UNTOLD.match(sentence):
        return ""
    if _DENIES_PART.search(sentence):
        return "hides what is denied"
    for pattern, replacement in _COMPLETED:
        sentence = pattern.sub(replacement, sentence)
    sentence = _NO_OF.sub(r"\1 ", sentence)
    if not _ANY.search(sentence):
        return ""
    denied = _DENIES.search(sentence) is not None
    if not denied and _MAY_DENY.search(sentence):
        return "hides a word that may have been a negation"
    if _MAY_DOUBT.search(sentence):
        return "hides a word that may have been one of doubt"
    return ""


def says_whether(sentence: str) -> bool:
    """Whether it says that something hidden is possible, or is not there: "Possible XXXX in the
    right lung." Such a sentence is not left out. "No XXXX." names nothing at all.
    """
    return (
        _SAYS_WHETHER.search(sentence) is not None and len(_WORD.findall(_unmarked(sentence))) > 1
    )


def _unmarked(sentence: str) -> str:
    return _ANY.sub(" ", sentence)


def _is_lost(sentence: str) -> bool:
    """Whether more is hidden than said, or the subject itself is."""
    hidden, said = len(_ANY.findall(sentence)), len(_WORD.findall(_ANY.sub(" ", sentence)))
    subject = _LOST_SUBJECT.match(sentence)
    return (hidden >= said and not holds_finding(_ANY.sub(" ", sentence))) or (
        subject is not None and bool(_SUBJECT_VERB.fullmatch(subject["next"]))
    )

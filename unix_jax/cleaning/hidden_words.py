"""Table of marks whose sentence can be completed, and the completion of a sentence.

Open-I hides ordinary words, too. If only one word is possible, it is restored; if several are, a
word is inserted that claims no more than they all would. Devices and sides are never guessed.
"""

from unix_jax.cleaning.hidden_context import DIAGNOSIS, END, HEDGED, NORMAL, PHRASE_END, SIGN, TIP
from unix_jax.cleaning.hidden_hedges import HIDDEN_HEDGES
from unix_jax.cleaning.hidden_nouns import HIDDEN_NOUNS
from unix_jax.cleaning.marks import MARK, MARKS
from unix_jax.cleaning.replacements import replaced, rule

_PART_ADJECTIVE = r"(?:(?:cortical|vascular|pulmonary|bony|osseous|pleural)\s+)?"
# A cause or one of several possibilities is hidden; the others stay possible.
_ONE_OF_SEVERAL = (
    rule(rf",\s*{MARKS}\s+from\s+{MARKS}{END}", ""),
    rule(
        rf"\b((?:may|might|could) (?:represent|reflect|be)) {MARKS}(?: on end)? or"
        r" (?:alternatively,? )?(?=[a-z])",
        r"\1 ",
    ),
    rule(
        r"\b((?:may|might|could) (?:represent|reflect|be)\b[^.;]*?) or (?:an? )?"
        rf"{_PART_ADJECTIVE}{MARKS}{END}",
        r"\1",
    ),
    rule(
        rf",?\s*\b(?:which|that) (?:may|might|could) be (?:an? )?{_PART_ADJECTIVE}{MARKS}{END}",
        "",
    ),
    rule(
        rf"^(?:this|these|it) (?:may|might|could) represent (?:superimposed )?{MARKS},\s+"
        r"(?=\w+ cannot be\b)",
        "",
    ),
    rule(rf",\s*{MARKS}\s+(?=(?:[\w/-]+ ){{1,3}}(?:etiology|process)\b)", ", possibly "),
)

# After a concession, a hidden word before the size of the heart becomes a doubt, since nobody
# writes "not mildly enlarged".
_HEART_SIZE = (
    rule(
        r"((?:^|,\s*)(?:considering|accounting for|allowing for|given)\b[^.;]*?\bheart size)"
        rf"(?: is)? {MARKS} (?=(?:(?:within )?normal|mildly enlarged)\b)",
        r"\1 is possibly ",
    ),
    rule(
        rf"^((?:the )?heart(?: size)? is) {MARKS} (?=within normal limits (?:in size )?"
        r"(?:given|for) (?:the )?low lung volumes\b)",
        r"\1 possibly ",
    ),
)

# Nouns of which the words beside the mark leave one kind.
_NOUNS_BY_CONTEXT = (
    rule(
        rf"\b{MARK} loss of (?=(?:an? |the )?(?:(?:upper|mid|lower) )?(?:thoracic|lumbar|[TLC]\d))",
        "height loss of ",
    ),
    rule(
        rf"\bloss of {MARK} of (?=(?:an? |the )?(?:(?:upper|mid|lower) )?"
        r"(?:thoracic|lumbar|[TLC]\d))",
        "loss of height of ",
    ),
    rule(rf"\b{MARK}[- ]lumen (?=catheter)", ""),
    rule(rf"\b(embolization) {MARK}(?=\s+(?:overl|project|over\b|in\b))", r"\1 device"),
    rule(rf"(,?\s*)(?:in )?the setting of {MARKS}\s*,", ","),
    rule(rf"\b(prevertebral soft tissue) {MARK}{END}", r"\1 swelling"),
    rule(rf"\bthe {MARK} (?=is in the expected (?:region|location|position) of\b)", "the device "),
    rule(
        rf"^(?:(?:stable|unchanged) )?position of (?:the )?((?:\w+ )?){MARKS}\s*\.?$", r"\1device."
    ),
    rule(rf"\bbut {MARKS} (?=(?:acute|subacute|chronic|old)\b)", "but possibly "),
    rule(
        rf"\bon (frontal|lateral|PA|AP) {MARK} {MARK} (?=(?:secondary|due|related|represent\w*)\b)",
        r"on \1 view possibly ",
    ),
    rule(
        rf"\b(mild|moderate|minimal|small|large|severe|patchy|streaky),\s*{MARKS}\s+(?=\w+)",
        r"\1 ",
    ),
    rule(rf"\b(stimulator|pacemaker|generator|device) with {MARKS} (?=overlying\b)", r"\1 "),
    rule(
        rf"\b(densit(?:y|ies) [^.;]*\b(?:is|are)) {MARKS} "
        r"(?=(?:coronary|surgical|vessels?|stents?)\b)",
        r"\1 possibly ",
    ),
    rule(rf"\b(visualized) {MARK} (?=arising\b)", r"\1 structure "),
    rule(rf"\band {MARKS} (?=than\b)", ""),
    rule(rf"\bor {MARKS} (?=(?:would|could|can)\b)", ""),
    rule(rf"\s+would benefit from (?:an? )?{MARKS}{END}", ""),
    rule(rf"\bhumeral {MARK}(?=[^.;]*\bAVN\b)", "humeral heads"),
    rule(
        rf"\b(lobe) {MARKS}, (?=\w+ (?:infiltrates?|opacit(?:y|ies)|densit(?:y|ies)|scarring)\b)",
        r"\1 ",
    ),
)

# The report states nothing about what is hidden.
_NOTHING_SAID = (
    rule(rf",?\s*\bwith limited evaluation of (?:the )?(?:\w+ )?{MARKS}{END}", ""),
    rule(rf"^(?:stable )?{MARKS}, including (?=\w)", ""),
    rule(
        rf"^(?:the )?(?:\w+ )?{MARKS} (?:is|are|remains?|appears?) (?:intact|normal|unremarkable)"
        r",?\s+and (?=(?:the|an?)\s)",
        "",
    ),
)

# The position is hidden, and its side is stated.
_PLACES = (
    rule(rf"\b(fractures) of (several|multiple) {MARKS}{END}", r"\2 \1"),
    rule(
        rf"\bin (?:the )?bilateral {MARKS} and (?:the )?"
        r"(?=(?:lungs?|hilum|hila|mediastin\w+|spleen|liver)\b)",
        "bilaterally and in the ",
    ),
    rule(
        rf"\b((?:in|throughout|over) (?:the )?(?:[a-z]+ ){{1,3}})and (left|right) {MARKS}{END}",
        r"\1and on the \2",
    ),
    rule(
        rf"\b((?:in|throughout|over) (?:the )?(?:[a-z]+ ){{1,3}})and both {MARKS}{END}",
        r"\1and bilaterally",
    ),
    rule(rf"\bthe {MARK} (?:or|and) {MARK} (?=fissures?\b)", "the "),
    rule(rf"\b(an IVC) {MARK}(?=\s+(?:identified|seen|noted|present)\b)", r"\1 device"),
    rule(rf"\b((?:right|left)(?:-sided)? aortic) {MARK}", r"\1 arch"),
)

# Only the name of the device is hidden.
_NAMELESS_DEVICES = (
    rule(rf"\b{MARK}-a-{MARK}(?:\s+{MARKS})?", "device"),
    rule(
        rf"^(?:(?:the|an?)\s+)?((?:left|right)(?:[- ]sided)?(?: (?:chest(?: wall)?"
        rf"|upper extremity|arm|neck|IJ))?)\s+{MARKS}{TIP}",
        r"\1 device",
    ),
    rule(rf"^(?:(?:the|an?)\s+)?{MARKS}{TIP}", "Device"),
    rule(rf"\b(a|an|the)\s+{MARKS}{TIP}", r"\1 device"),
)

# The verb is hidden: "There XXXX be", "This is XXXX to represent".
_VERBS = (
    rule(rf"\bthere {MARKS} be\b", "there may be"),
    rule(rf"\b(is|are) {MARKS} to (?=(?:represent|reflect|be due)\b)", r"\1 thought to "),
    # One of two coordinated words is hidden.
    rule(
        rf"\b(\d+(?:st|nd|rd|th)|first|second|third|fourth|fifth|sixth|seventh|eighth|ninth"
        rf"|tenth) and {MARKS} (?=ribs?\b)",
        r"\1 and other ",
    ),
)

# "Minimal XXXX of atelectasis": areas.
_PARTITIVES = (
    rule(
        rf"\b(scattered|some|few|multiple|several|basilar|bibasilar|minimal|mild"
        rf"|subsegmental) {MARKS} of (?=\w)(?!the\b)",
        r"\1 areas of ",
    ),
    rule(
        rf"\bthere is an? {MARKS} of (?={DIAGNOSIS}|(?:\w+ ){{0,3}}(?:atelecta|opaci|consolid"
        rf"|scar))",
        "there is an area of ",
    ),
)

# Words that the words on both sides of the mark leave possible, or make dispensable.
_WORDS_BY_CONTEXT = (
    rule(rf"\b(?:of|in) (?:both|(?:the )?bilateral) {MARKS}{END}", "bilaterally"),
    rule(
        rf"^(?:the )?{MARKS} (are|is) (?=(?:\w+ly )?(?:osteopenic|demineralized|osteoporotic)\b)",
        r"The bones are ",
    ),
    rule(
        rf"^{MARKS} (is|are) (?=(?:an?|minimal|mild|moderate|severe|chronic|small|large|no"
        rf"|multiple|scattered|some|several|bilateral|patchy)\b)",
        r"There \1 ",
    ),
    rule(rf"^(?:the )?{MARKS} are without (?=\w)", "No "),
    rule(
        rf",?\s+(?:due|secondary|owing) to (?:the |overlying |superimposed |patient "
        rf"|patient's )*{MARKS}{END}",
        "",
    ),
    rule(
        rf"\b((?:due|secondary|related) to) (?:superimposed |overlying )?{MARKS} and (?=\w)",
        r"\1 ",
    ),
    rule(rf"\b(?<!the )(most|less) {MARKS}(?=\s+(?!of\b)\w|\s*[.,;])", r"\1 likely"),
    rule(rf"\b(lung) {MARK} (?=are\b)", "lungs "),
    rule(rf"\b(transverse|descending|ascending|tortuous(?: thoracic)?) {MARK}{END}", r"\1 aorta"),
    rule(rf"\b(transverse) {MARK}(?= is)", r"\1 aorta"),
    rule(rf"\b(calcifications? (?:of|in) the thoracic) {MARK}", r"\1 aorta"),
    rule(rf"(?:\b\w+-)?{MARK}-of-view", "field-of-view"),
    rule(rf"\bcorrelate (clinically )?for {MARKS} of\b", r"correlate \1for evidence of"),
    rule(
        rf"^the (left and right|right and left) {MARKS} (?=are|remain|appear)",
        r"The \1 structures ",
    ),
    rule(rf"\b(clear (?:both )?lung) {MARK}", r"\1s"),
    rule(rf"\b(pulmonary) {MARK}(?=\s+(?:and|are)\b|\s*,)", r"\1 structures"),
    rule(
        rf"\b(vasculature|vascularity|silhouette|size|aorta|mediastinum"
        rf"|contour) and {MARKS} are\b",
        r"\1 is",
    ),
    rule(
        rf"\b(pacemaker|defibrillator|generator) {MARKS} and associated {MARKS} (?:are|is)\b",
        r"\1 is",
    ),
    rule(rf"\band {MARKS} (?=are\b)", ""),
    rule(rf"\bplaced {MARKS}{END}", "placed device"),
    rule(rf"^{MARKS} (chest|thorax|abdomen) (?=(?:with|if|for|is|could|would|may)\b)", r"CT \1 "),
    rule(rf"\bblood {MARK}", "blood vessels"),
    rule(rf"\btelemetry {MARKS}", "telemetry device"),
    rule(rf",?\s+as an? {MARKS}{END}", ""),
    rule(rf",?\s*\b{HEDGED} (?:old |remote |prior )*{MARKS}{END}", ""),
    rule(rf",?\s*\bfrom (?:old|remote|prior) {MARKS}{END}", ""),
    rule(rf"\bat {MARK} (?=(?:in )?part\b|partially|mildly|moderately|partly)", "at least "),
    rule(rf"\b(cardiomegaly) {MARKS} (?=at least)", r"\1 "),
    rule(
        rf",?\s*(?:on )?{MARKS} (?:abdomen|chest|thorax|pelvis|thoracic spine)"
        rf"(?: and pelvis)? {MARKS}{END}",
        "",
    ),
    rule(
        rf"\b(leads?|anchors?|wires?|calcifications?) {MARKS} over the\b",
        r"\1 projecting over the",
    ),
    rule(
        rf"\b(pacing|IVC|intramedullary|medication injection) {MARKS}(?=\s+(?:over|on|in|has"
        rf"|have|is|are)\b)",
        r"\1 device",
    ),
    rule(rf"\b(implantable cardiac) {MARKS} are\b", r"\1 devices are"),
    rule(
        rf"\s+on (?:an? |the )?(?:recent |prior |previous )*outside {MARKS}(?: from {MARKS})?", ""
    ),
    rule(rf"\bvena {MARK}", "vena cava"),
    rule(
        rf"\bnormal ((?:thoracic |lumbar |cervical )?vertebral body) {MARK}{END}",
        r"normal \1 heights",
    ),
    rule(rf",?\s+if {MARKS} (?:is|are) (?:not )?{MARKS}", ""),
    rule(rf"\bper {MARKS} (?=\w)", ""),
    rule(rf"\bto {MARKS} or (?=\w)", "to "),
    rule(
        rf",?\s*which (?:appears?|is|are) {MARKS} (?:from|since|compared (?:to|with)) {MARKS}", ""
    ),
    rule(rf",?\s*with intact {MARKS}{END}", ""),
    rule(rf"\bthere are no {MARKS} of (?=\w)", "there are no signs of "),
    rule(rf"\b(is|are) in {MARKS} (?=over\b|without\b)", r"\1 in place "),
    rule(rf"\b(cardiac) {MARKS} (?=(?:is|are) (?:intact|present|noted|seen|in\b))", r"\1 device "),
    rule(rf"\b(wedge) {MARK}(?= of)", r"\1 deformity"),
    rule(
        rf"\s+(?:related|secondary|due) to (?:remote|old|prior|previous) {MARKS}(?=\s*(?:[.,;]"
        rf"|$)|\s+(?:is|are)\b)",
        "",
    ),
    rule(
        rf"\b(acute (?:\w+ )?(?:thoracic|cardiopulmonary|pulmonary|cardiothoracic|osseous"
        rf"|intrathoracic)) {MARK}{END}",
        r"\1 abnormality",
    ),
    rule(rf"\b(no) {MARKS} or (?=(?:acute|active)\b)", r"\1 "),
    rule(
        rf"\b(which (?:is|are)) {MARKS} (?=(?!and\b|or\b|in\b|to\b|from\b|by\b|of\b"
        rf"|on\b)[a-z]{{3,}})",
        r"\1 possibly ",
    ),
    rule(rf",\s*{MARKS}\s+(?=(?:from|within|in the|corresponding to)\b|[TLC]\d)", ", possibly "),
    rule(rf"\band {MARKS} (?=the (?:left|right)\b)", "and possibly "),
    rule(rf"\b(visualized) {MARKS} of the (chest|thorax)(?: {MARKS})?", r"\1 structures of the \2"),
    rule(rf"\b(the (?:left|right)) {MARKS} of the heart", r"\1 border of the heart"),
    rule(rf"\bcollecting {MARK}", "collecting system"),
    rule(rf"\bcostodiaphragmatic {MARK}", "costodiaphragmatic angle"),
    rule(
        rf"\b(visualized) {MARKS} (?=(?:is|are|appear) (?:grossly )?(?:intact|normal"
        rf"|unremarkable))",
        r"\1 structures ",
    ),
    rule(
        rf"\b(?:in|of|within|overlying|over) (?:the )?(left|right) {MARKS}(?=\s*(?:[.,;]|$))",
        r"on the \1",
    ),
    rule(
        rf"\b(calcified (?:(?:left|right|bilateral) )?(?:\w+)?(?:hilar|mediastinal|paratracheal"
        rf"|subcarinal|axillary)) {MARKS}(?=\s+(?:is|are|and|seen|noted|identified)\b|\s*[.,;]|$)",
        r"\1 structures",
    ),
    rule(rf"\bcannot be ((?:\w+ly )?){MARK}", r"cannot be \1excluded"),
    rule(rf"\b(degenerative) {MARK}(?=\s+(?:of|in|at|are|seen|noted|throughout)\b)", r"\1 changes"),
    rule(rf"\b(is|are|findings|appearance) {MARKS} with (?=\w)", r"\1 compatible with "),
    rule(
        rf"\b((?:left|right)(?:[- ]sided)?|cardiac) {MARKS} (?:(?:is|are|remains?) )?in (?:"
        rf"(?:stable|unchanged|good|satisfactory|appropriate|expected) )?(?:place|position)\b",
        r"\1 device in place",
    ),
    rule(rf"\b{MARK} (?:cm|mm)\b", ""),
    rule(
        rf"\b(scarring|atelectasis|edema|pneumonia|infiltrates?|consolidation"
        rf"|fibrosis) {MARKS} (?=(?:scarring|atelectasis|edema|pneumonia|infiltrates?"
        rf"|consolidation|fibrosis)\b)",
        r"\1 or ",
    ),
)

# Only one word is possible.
_ONE_WORD = (
    rule(rf"\b(clear (?:left|right) lung) {MARK}", r"\1"),
    rule(
        rf"\b(films?|x-rays?|x-{MARK}|CT|radiographs?|views?) {MARKS} "
        r"(?=(?:be|demonstrate|help|show)\b)",
        r"\1 may ",
    ),
    rule(rf",\s*{MARKS}\s+(?=(?:acute|subacute|chronic|benign|old)\b)", ", possibly "),
    rule(rf"\bdual-lead {MARKS}", "dual-lead device"),
    rule(
        rf"\b(cardiac) {MARKS} (?=(?:is|are) (?:\w+ly )?(?:enlarged|normal|within)\b)",
        r"\1 silhouette ",
    ),
    rule(rf",\s*{MARKS} represents\b", ", possibly representing"),
    rule(
        rf"\b({SIGN}) {MARKS} (?=(?:vascular|artifactual|projectional|chronic)\s*(?:[.,;]|$))",
        r"\1, possibly ",
    ),
    rule(rf"\b(chest) {MARKS} (?=(?:is|are|remains?) in place\b)", r"\1 device "),
    rule(rf"\b(markings|changes|opacities) {MARKS} (?=chronic\b)", r"\1, possibly "),
    rule(rf"\b(loss of (?:vertebral body|disc)) {MARK}", r"\1 height"),
    rule(
        rf"\b(seen) {MARKS} (?=(?:skin|nipple|artifact|summation)\b)",
        r"\1, possibly ",
    ),
    rule(rf"\binspirat(?:ory|ional) {MARK}", "inspiratory effort"),
    rule(rf"\b(vertebral body) {MARK}(?=\s+(?:and|are|is)\b)", r"\1 heights"),
    rule(rf"\b((?:epi|peri)cardial fat) {MARK}", r"\1 pad"),
    rule(
        r"\b((?:surgical|orthopedic|metallic|postsurgical)(?: (?:cervical|thoracic|lumbar))?)"
        rf" {MARKS}(?=\s*(?:[.,;]|$)|\s+(?:is|are|appears?"
        rf"|seen|noted|in|over|overl\w+|project\w*|at|within)\b)",
        r"\1 material",
    ),
    rule(
        rf"\b(recommend(?:ed)?|consider|suggest)\s+((?:(?:further|additional|repeat|dedicated"
        rf"|noncontrast\w*|contrast|enhanced|nonemergent|follow-?up)\s+){{0,2}}){MARKS}(?:\s+"
        rf"(?:scan|imaging|examination|exam|study))?(?=\s+(?:for|to|if|of the|with)\b|\s*[.,;]|$)",
        r"\1 \2imaging",
    ),
    rule(r"\bx-(?:X{3,}|_{2,})", "x-ray"),
    rule(rf"\blymph {MARK}", "lymph nodes"),
    rule(
        rf"\b((?:both|bilateral) (?:\w+ )?costophrenic|costophrenic) {MARK}(?=\s+(?:are"
        rf"|bilaterally))"
        rf"|\b((?:both|bilateral) (?:\w+ )?costophrenic) {MARK}(?!\s+(?:blunt|region))",
        r"\1\2 angles",
    ),
    rule(rf"\b(costophrenic|cardiophrenic|costovertebral) {MARK}", r"\1 angle"),
    rule(rf"\bthe aortic {MARK}{PHRASE_END}", "the aorta"),
    rule(rf"\baortic {MARK}{PHRASE_END}", "aorta"),
    rule(rf"\bsuperior {MARK} {MARK}", "superior vena cava"),
    rule(rf"\b\d+ (?:to|-) \d+ {MARK}\s+(?=post\b|follow)", ""),
    rule(
        rf"\b(?:seen|noted|demonstrated) (?:on )?{MARKS} (?:scan|CT)"
        rf"(?: (?:from|of|dated) {MARKS})?{END}",
        "",
    ),
)

# A size without its unit has no meaning.
_SIZES = (
    rule(
        rf"(?<!rib )(?<![\w.,])(?:\d+(?:\.\d+)?\s*x\s*)?\d+(?:\.\d+)?\s+{MARK}(?=\s+[a-z]|\))", ""
    ),
)

# Fixed phrases: "note is made of", "compatible with", "in place", "most likely".
_IDIOMS = (
    rule(rf"\bnote (?:is )?{MARKS} of\b", "note is made of"),
    rule(rf"\b((?:left|right) (?:heart|cardiac)) {MARK}{PHRASE_END}", r"\1 border"),
    rule(rf"\bin the setting of {MARKS}", ""),
    rule(rf"\b(both|bilateral|the) lung {MARK}", r"\1 lungs"),
    rule(rf"\b(consistent|compatible) {MARKS} (?=\w)", r"\1 with "),
    rule(rf"\b((?:is|are)(?: not)?) {MARKS} to be\b", r"\1 thought to be"),
    rule(rf"\b((?:is|are|remains?) in) {MARK}(?=\s*(?:[.,;]|$)|\s+(?:with|and)\b)", r"\1 place"),
    rule(
        rf"\b(most|less) {MARKS}(?=\s*[.,;]|\s+(?:represent|reflect|due|related"
        r"|secondary|of|an?\b))",
        r"\1 likely",
    ),
    rule(rf"\b(frontal|lateral|PA) {MARK}{PHRASE_END}", r"\1 view"),
)

# The material after a sternotomy is not guessed.
_STERNOTOMY = (
    rule(
        rf"^(?:(?:stable|intact|the|there (?:is|are)|{MARK})\s+){{0,4}}sternotomy(?:\s+{MARKS})?"
        rf"(?:\s+(?:is|are|remains?|appear)?\s*(?:again\s+)?(?:intact|seen|noted|unremarkable"
        rf"|present|in"
        rf" place|in {MARKS}(?:\s+and intact)?|stable|in stable position))?\s*\.?$",
        "Sternotomy.",
    ),
    rule(rf"(?:{MARKS}\s+)?\bsternotomy {MARKS}", "sternotomy changes"),
)

# Only if they are normal: otherwise the hidden word may be a device.
_NORMAL_THINGS = (
    rule(
        r"(?<!\ba )(?<!\ban )\b(pulmonary|mediastinal|hilar|thoracic|osseous|bony|vascular"
        rf"|(?:cardiac|heart) and (?:mediastinal|pulmonary)) {MARK}(?=[^.;]*\b{NORMAL}|\s*$"
        rf"|\s*\.|,\s+consistent)",
        r"\1 structures",
    ),
    rule(rf"\b(heart|lung) {MARK}(?=\s*,|\s+(?:and|bilaterally)\b)", r"\1"),
    rule(rf"\b(clear (?:left |right )?lung) {MARK}", r"\1s"),
)

# A hidden device becomes "device" if the words beside it describe one.
_DEVICES = (
    rule(rf"\bdual-{MARK}\s+(?={MARKS}|cardiac)", ""),
    rule(
        rf"\b(cardiac|chest(?: wall)?|jugular|subclavian|axillary|venous) {MARKS}"
        rf"(?!\s+generator)(?=\s+(?:overl\w+|project\w*|catheter|in {MARK}|(?:is |are )?in"
        r" (?:stable|good|satisfactory|unchanged)|with (?:its |the |intact )?(?:distal )?(?:tip"
        r"|lead|catheter"
        r"|wire)|tip|generator|device|which)|[^.;]*\b(?:tips?|leads?|SVC|atri\w+|vena cava"
        r"|device)\b|\s*\.?$)",
        r"\1 device",
    ),
    rule(rf"\bleft-sided {MARKS}(?=\s+with (?:its |the )?(?:tip|lead))", "left-sided device"),
    rule(rf"\bright-sided {MARKS}(?=\s+with (?:its |the )?(?:tip|lead))", "right-sided device"),
    rule(r"\bdevice device\b", "device"),
    rule(rf"\b(evidence|signs?|suggestion) of {MARKS},?\s+(?:or\s+)?(?=\w)", r"\1 of "),
)

# "XXXX representing" and ", XXXX atelectasis" were "likely" or "may be". Without a word of doubt
# they would claim too much.
_DOUBT = (
    rule(
        rf"{MARKS}\s+(?=(?:represent(?:s|ing|ed)?|reflect(?:s|ing)?|related to|secondary to|due to"
        r"|relates? to|indicat(?:es?|ing)|suggest(?:s|ing)?)\b)",
        "possibly ",
    ),
    rule(r"possibly (represent|reflect|indicate|suggest)\b", r"may \1"),
    rule(r"\b(may|could|might|can) (?:possibly|may) ", r"\1 "),
    rule(rf"\b({SIGN}) {MARKS}\s+(?={DIAGNOSIS})", r"\1, possibly "),
    rule(
        rf"\b((?:appearance|distribution|pattern|findings|configuration)(?: of [^,.;]+?)?)"
        rf"(?: which)? {MARKS}\s+(?={DIAGNOSIS})",
        r"\1 may represent ",
    ),
    rule(
        rf"\bwhich {MARKS}\s+(?=(?:represent|correspond|contribut|reflect|indicat)\w*)",
        "which possibly ",
    ),
    rule(
        rf"^{MARKS}\s+of\s+(?={DIAGNOSIS}|(?:[\w-]+ ){{0,3}}?(?:\w*scoliosis|disease))",
        "Possible ",
    ),
    rule(rf"\b(with|and) {MARKS}\s+of\s+(?=\w)", r"\1 possible "),
    rule(
        rf"^(?:the\s+)?{MARKS}\s+(?:is|are|appears?)\s+(?:\w+ly\s+)?(?:intact|normal"
        rf"|unremarkable)\s+(?:and\s+)?without\s+",
        "No ",
    ),
)

# The name of a part of the body is hidden, beside one that is stated.
_PARTS = (
    rule(
        rf"\b((?:of|in|within|is|are|with|from) (?:the )?|the ){MARKS} and (?:the )?(?=\w)"
        rf"(?!{MARK})",
        r"\1",
    ),
    rule(rf"\bboth {MARKS} and (?=\w)(?!{MARK})", ""),
    rule(
        rf"\b(?:of|in|within|at|through|along|over|to|from) (?:the |bilateral |both "
        rf"|an? )*{MARKS}(?=\s*(?:[.,;]|$)|\s+(?:bilaterally|with|of|at|are|is|seen|noted|may"
        rf"|could|and the|has|have)\b)",
        "",
    ),
    rule(
        rf"\b(leads?|lines?|tubes?|wires?|device) {MARKS}(?= the (?:thorax|chest|heart))",
        r"\1 overlie",
    ),
    # In a list of what is denied: "No pneumothorax, XXXX effusion, or consolidation."
    rule(rf"^((?:there (?:is|are) )?no\b[^.;]*?),\s*{MARKS}\s+(?=[^.;]*\bor\b)", r"\1, "),
    rule(rf",\s*{MARKS}\s+(?={DIAGNOSIS}|sequelae?\b)", ", possibly "),
    rule(rf"\b({SIGN}|calcifications?|changes) {MARKS}\s+(?=sequelae?\b)", r"\1, possibly "),
)

# The interpretation of a finding at the end of the sentence: "density, XXXX confluence of shadows".
_LAST_PARTS = (
    rule(
        rf",\s*{MARKS} on the (left|right), (?=(?:small|moderate|large|trace|minimal|mild) on the"
        r"\b)",
        r", present on the \1 and ",
    ),
    rule(
        rf"(\b{SIGN}\b(?:[^.;]*[a-z])?),\s*{MARKS}\s+(?!(?:an?|and|or|but|with|without"
        r"|is|are|was|were|no|not|which|that|unremarkable|normal|intact|greater|worse|seen|noted|appreciated"
        r"|visuali[sz]ed|demonstrated|evident|on|at|of|for|to)\b)"
        rf"(?=(?:[\w/-]+\s+){{0,4}}[\w/-]+{END})",
        r"\1, possibly ",
    ),
    # The view that shows it best, or does not show it.
    rule(
        rf",\s*{MARKS}\s+(?:seen|appreciated|visualized|demonstrated|evident)\s+on\s+(?:the\s+)?"
        rf"(?:lateral|frontal|PA|AP)(?:\s+(?:views?|projections?|images?|radiographs?"
        rf"|films?))?{END}",
        "",
    ),
)

_COMPLETED = (
    *HIDDEN_HEDGES,
    *HIDDEN_NOUNS,
    *_ONE_OF_SEVERAL,
    *_HEART_SIZE,
    *_NOUNS_BY_CONTEXT,
    *_NOTHING_SAID,
    *_PLACES,
    *_NAMELESS_DEVICES,
    *_VERBS,
    *_PARTITIVES,
    *_WORDS_BY_CONTEXT,
    *_ONE_WORD,
    *_SIZES,
    *_IDIOMS,
    *_STERNOTOMY,
    *_NORMAL_THINGS,
    *_DEVICES,
    *_DOUBT,
    *_PARTS,
    *_LAST_PARTS,
)


def completed(sentence: str) -> str:
    """The sentence with the marks replaced that the table knows; its spacing is not repaired."""
    return replaced(sentence, _COMPLETED)

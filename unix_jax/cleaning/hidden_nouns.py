"""Table of marks that hide a noun of which only one kind is possible, or dispensable words."""

from unix_jax.cleaning.hidden_context import END, NORMAL
from unix_jax.cleaning.marks import MARK, MARKS
from unix_jax.cleaning.replacements import rule

# The hidden word is a noun of which one kind is possible, or is dispensable.
HIDDEN_NOUNS = (
    rule(rf"\b(acute) {MARKS}[- ]related (?=(?:findings?|injur\w+|abnormalit\w+)\b)", r"\1 "),
    rule(rf"^(?:(?:this|most|likely|{MARK}) )*(?:represents?|reflects?) {MARKS} lungs?{END}", ""),
    rule(rf"^((?:the )?(?:[\w-]+ ){{0,3}}leads) {MARKS} over (?=the\b)", r"\1 overlie "),
    rule(rf"\b(the aortic) {MARK} (?=is (?:on the )?(?:left|right)\b)", r"\1 arch "),
    rule(rf"\bsternotomy {MARK} (?=mediastinal\b)", "sternotomy changes and "),
    rule(rf"\bhigh {MARK} (?=for\b)", "high risk "),
    rule(rf"\brotator {MARK}", "rotator cuff"),
    rule(rf",?\s*\bage {MARKS}{END}", ""),
    # A nipple that looks like a nodule is its shadow; elsewhere it may be a ring or a marker.
    rule(rf"^([^.;]*\b(?:opacit|densit|nodul)[^.;]*\bnipple) {MARK}{END}", r"\1 shadow"),
    rule(rf"\b(spinal) {MARK} (?=placement\b)", r"\1 device "),
    rule(
        rf"\b((?:within|in) the thoracic) {MARK} (?=(?:cannot|could|may|might|is|are)\b)",
        r"\1 structures ",
    ),
    rule(rf"\b((?:in|within|level of) (?:the )?AP) {MARK}(?=\s*[.,;]|\s+could\b)", r"\1 window"),
    rule(rf"\b(AP|aorticopulmonary) {MARK} (?=(?:lymph )?nodes?\b)", r"\1 window "),
    rule(
        rf"\b(abnormality|malignancy|process|etiology|disease|infection) {MARK} as (?=\w)",
        r"\1 such as ",
    ),
    rule(
        r",?\s*\b(?:which )?(?:may|might|could) (?:represent|reflect) (?:the )?sequelae? of"
        rf" (?:\w+ ){{0,2}}{MARKS}{END}",
        "",
    ),
    rule(
        rf"\bevaluation {MARK} chest (?=(?:is|should|would|may|could)\b)",
        "evaluation with chest imaging ",
    ),
    rule(rf"\bhigh-resolution {MARK}", "high-resolution imaging"),
    rule(rf"\bhowever, {MARK} (?=is recommended\b)", "however, imaging "),
    rule(rf",\s*{MARK} chest (?=(?:would|could|may)\b)", ", CT chest "),
    rule(
        rf"\b((?:generator|pacemaker|defibrillator|ICD)\b[^.;]*\b(?:an?|single)) {MARK} "
        r"(?=(?:projecting|terminat\w+|overlying|ending)\b)",
        r"\1 device ",
    ),
    rule(rf"\bwith 1-{MARK} (?=project|in\b|terminat)", "with 1 device "),
    rule(rf"\b(a (?:retention|fusion|fixation)) {MARK}", r"\1 device"),
    rule(rf"\b(fractured (?:proximal|distal))(?: lateral| medial)? {MARK}", r"\1 device"),
    rule(rf"\b(left-sided|right-sided) {MARK} (?=without acute complicat)", r"\1 device "),
    rule(rf"\bsternotomy {MARKS} is\b", "sternotomy changes are"),
    rule(rf",?\s*{MARKS} in appearance(?=\s*[,.;])", ""),
    rule(rf"\s+(?:is|are) {MARKS} (?:and|but) (?=(?:may|might|could|includes?)\b)", " "),
    rule(
        r"\b(patchy|confluent|streaky|linear|hazy|bandlike|reticular|platelike) and"
        rf" {MARKS} (?=(?:\w+ ){{0,3}}(?:opacit|densit|atelecta|infiltrat|scarring))",
        r"\1 ",
    ),
    rule(rf"\b(with small) {MARKS} (?=remaining and\b)", r"\1 areas "),
    rule(rf"\s+and {MARK} film{END}", ""),
    rule(rf"\b(stool) and {MARK} (?=obscur)", r"\1 "),
    rule(rf"\banterior {MARK} loss of (?=several|multiple|two\b)", "anterior height loss of "),
    rule(
        rf"\b(no (?:\w+ )?acute) or {MARK} (?=(?:pulmonary|cardio\w*|thoracic|osseous)\b)",
        r"\1 ",
    ),
    rule(rf"\b{MARK}/(?=fluid level\b)", ""),
    rule(rf"\b{MARK}/(?=ICD\b)", ""),
    rule(rf"\b(obscured heart|(?:left|right) heart) {MARK}(?=\s*[.,;]|\s+measuring)", r"\1 border"),
    rule(rf"\baortic {MARK} (?=question\b)", "aorta, "),
    rule(rf"\b(outflow) and {MARK} (?=most {MARK})", r"\1 "),
    rule(rf"\b(chest is (?:\w+ )?){MARK}[- ]shaped", r"\1barrel shaped"),
    rule(rf"\bdemonstrates the {MARKS} configuration,", "demonstrates a configuration"),
    rule(
        rf"\b(surgical) {MARK} (?=(?:seen near|are|overlie|have|remain|project)\b)",
        r"\1 materials ",
    ),
    rule(rf"\b{MARK}[- ]like (?=deformity)", ""),
    rule(rf"\bis {MARK} (?=tube{END})", "is a "),
    rule(rf"\s+with an? {MARK} lumen{END}", ""),
    rule(rf"\s+from top to {MARK}", ""),
    rule(rf"\bthere is {MARK} (?=visualization of\b)", "there is limited "),
    rule(rf"^{MARK} (overlies|projects) ", r"A structure \1 "),
    rule(rf"\s+with pulmonary {MARK}(?=\s*,)", ""),
    rule(rf",?\s*with (?:stable )?(?:intact )?(?:stable )?{MARK} placement{END}", ""),
    rule(rf"(?<!left )(?<!right )(?<!posterior )\b(blunted costophrenic) {MARK}", r"\1 angles"),
    rule(
        r"\b((?:hyperexpanded|hyperinflated|expanded|inflated|hyperlucent|aerated) lung)"
        rf" {MARK}",
        r"\1s",
    ),
    rule(rf"\b(chest) {MARK} in {MARK} (?=without\b)", r"\1 device in place "),
    rule(
        rf"\bat {MARK} (?=(?:the|one|two|three|(?!\d+ hours)\d+)\b)",
        "at least ",
    ),
    rule(rf"\bat {MARK} {MARK} (?=bilateral\b)", ""),
    rule(rf",?\s*with the {MARKS} (?:otherwise )?(?:grossly )?intact{END}", ""),
    rule(rf"\s+and (?:is|are) {MARKS}{END}", ""),
    rule(rf"\bfrom {MARK} (?=as well\b)", ""),
    # The only statement about the sulci, the spaces or the inspiration is hidden.
    rule(rf"\s+(?:with|and) {MARKS} (?:costophrenic )?sulci{END}", ""),
    rule(rf"\b(slightly|mildly|somewhat) {MARK} (?=inspirat(?:ory|ion)\b)", r"\1 limited "),
    rule(rf"^there is (?:an? )?{MARKS} (?:inspiration|inspiratory effort){END}", ""),
    rule(rf"^{MARKS} spaces,? and (?=\w)", ""),
    rule(rf"(?:,|\s+and) {MARK} spaces,? and (?=\w)", " and "),
    rule(rf"\s+and {MARK} spaces (?=are\b)", " "),
    rule(rf"^{MARKS} spaces are {NORMAL}{END}", ""),
    rule(
        rf"(^|\b(?:intact|stable|aortic|mitral|tricuspid|cardiac) ){MARK} replacement\b",
        r"\1replacement device",
    ),
    rule(rf"\b(lobe) {MARK} segment\b", r"\1"),
    rule(rf"\bthe {MARK} segment (?=of\b)", "a segment "),
    rule(rf"\b(segment) {MARK} (?=the (?:left|right)\b)", r"\1 of "),
    rule(rf"\b((?:high|low)[ -]energy) {MARK}", r"\1 injury"),
    rule(
        rf"^(?:this|these|it|they|findings?) (?:may|might|could) be (?:due|secondary|related) to"
        rf" {MARKS} (?:voluntary|underlying|chronic|known){END}",
        "",
    ),
    rule(rf"\bin (?:the )?bilateral {MARK} and (?=overlying\b)", "bilaterally and "),
)

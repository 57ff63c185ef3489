"""Table of marks that may hide a word of doubt, with a word that claims no more."""

from unix_jax.cleaning.hidden_context import DIAGNOSIS, END, PLACE, SIGN, SIGN_SEEN
from unix_jax.cleaning.marks import MARK, MARKS
from unix_jax.cleaning.replacements import rule

# The start of a sentence that denies nothing.
_AFFIRMED = r"^(?!.*\b(?:no|not|without|nor|neither|negative|free of|clear of)\b)"
# Harmless findings that the hidden word does not deny: nobody writes that a density "is not" these.
_HARMLESS = r"(?:an? )?(?:atelecta\w+|scar\w*|hiatal hernia|granulomas?|artifact\w*)"
# A hidden word between a finding and its interpretation was a word of doubt, or may have been one.
HIDDEN_HEDGES = (
    rule(
        rf"\b(is|are) {MARKS} (on (?:the )?(?:lateral|frontal|PA|AP)(?: view)?) to"
        r" (?=(?:represent|reflect)\b)",
        r"\1 thought \2 to ",
    ),
    rule(
        rf"{MARK} ((?:due )?)at {MARK} (?=in part\b|partially\b|partly\b|mildly enlarged\b)",
        r"possibly \1at least ",
    ),
    rule(rf"^{MARK} onset (?=\w)", ""),
    rule(
        rf"\b((?:heart|cardiac|silhouette)(?: size)?(?: (?:is|appears))?) {MARKS}"
        r" (?=borderline\b)",
        r"\1 possibly ",
    ),
    rule(rf"^((?:the )?appearance of [^,.;]+?) {MARKS} (?={DIAGNOSIS})", r"\1 may represent "),
    rule(rf"\blymph {MARK}", "lymph nodes"),
    rule(
        rf"\b(costophrenic) {MARK}(?=\s+(?:unchanged\s+)?{MARK}|\s+(?:consistent|compatible)\b)",
        r"\1 angle",
    ),
    rule(rf"\b(pulmonary|hilar) {MARK} (?=(?:suggest\w*|appears?)\b)", r"\1 structures "),
    rule(rf"\b(ventricular|cardiac|heart) {MARK}(?=\s+{MARK}\s+(?:related|due))", r"\1 border"),
    rule(rf"\bmore {MARKS} (?=(?:represent|reflect)\w*|(?:due|related)\b)", "more likely "),
    rule(
        rf"\bon ((?:the )?(?:frontal|lateral|PA|AP)) {MARK} {MARK} (?=(?:be|represent|reflect)\b)",
        r"on \1 view may ",
    ),
    rule(rf"\bin the (left|right) {MARK} {MARK} (?=(?:\w+ )?{DIAGNOSIS})", r"on the \1, possibly "),
    rule(rf"\b(?:of|in|over) both {MARK}(?=,\s+{MARK}\s)", "bilaterally"),
    rule(
        rf"\({MARKS}\s+(?=[a-z])(?!(?:best|visuali|seen|noted|from|on|in|at|of|to)\w*)",
        "(possibly ",
    ),
    rule(rf"\b(is|are) {MARKS} (?=(?:the |an? )?(?:\w+ )?sequelae?\b)", r"\1 possibly "),
    rule(rf"(?<!most)(?<!less)(?:,\s*|\s+){MARKS} (?=(?:the )?sequelae?\b)", ", possibly "),
    rule(
        rf"(?<!most )(?<!less )(?<!lung ){MARKS}\s+(?=(?:consistent|compatible|corresponding"
        r"|indicative|representative) (?:with|to|of)\b)",
        "possibly ",
    ),
    rule(rf"\balso {MARKS} (?=(?:acute|subacute|chronic|old|remote)\b)", "also possibly "),
    rule(
        rf"\b(is|are) {MARKS} (?=(?:accentuated|exaggerated|magnified|artifactual"
        r"|projectional)\b)",
        r"\1 possibly ",
    ),
    rule(rf",\s*{MARKS} to (?=(?:reside|lie|represent|be)\b)", ", thought to "),
    rule(
        rf",\s*there is {MARKS} (?=(?:[\w-]+ ){{1,4}}or (?:[\w-]+ ){{0,3}}granuloma)",
        ", there is possibly ",
    ),
    rule(rf"(appearance of the heart),\s*{MARKS} (?=normal heart size\b)", r"\1, possibly "),
    rule(
        rf",\s*{MARKS} (?=(?:post(?:operative|surgical|infectious|inflammatory|traumatic)"
        r"|compensatory|an? component of|patient's|DISH)\b)",
        ", possibly ",
    ),
    rule(
        rf"\b({SIGN}|contour|deformity) {MARKS} (?=(?:superimposed|overlapping)\b)",
        r"\1, possibly ",
    ),
    rule(
        rf"{_AFFIRMED}(.*\b(?:{SIGN_SEEN}|crowding)) {MARKS} "
        r"(?!(?:represent|reflect|relate|indicat|suggest|due|secondary|of|with|may|from|is|are)\w*)"
        r"(?=(?:[\w-]+ ){0,2}(?:crowding|hypoventilation|edema|scar\w*)\b)",
        r"\1, possibly ",
    ),
    rule(
        rf"{_AFFIRMED}(.*\b{SIGN_SEEN}\b[^.;,]*\b{PLACE}) (?:unchanged )?{MARKS} "
        r"(?!(?:represent|reflect|relate|indicat|suggest|due|secondary|of|with|may|from|is|are)\w*)"
        r"(?!.*\b(?:versus|vs)\b)"
        rf"(?=(?:old |pleural |hypoventilation\b)*(?:{DIAGNOSIS}|hypoventilation\b))",
        r"\1, possibly ",
    ),
    rule(
        rf"{_AFFIRMED}(.*\b{SIGN_SEEN}\b.*\b(?:is|are)) {MARKS} (?={_HARMLESS}\b)",
        r"\1 possibly ",
    ),
    rule(rf"\b(rib \d+) {MARKS} (?=callus\b)", r"\1, possibly "),
    rule(rf"\b(is|are) (\d+) {MARKS} (?=[a-z]+s\b)", r"\1 \2 "),
    rule(rf"(,)\s*{MARKS} of (?={DIAGNOSIS})", r"\1 possibly "),
    rule(rf"(,\s*)(stent|clips?) {MARKS}{END}", r"\1possibly \2"),
    rule(
        rf"(stent [^.;]*),\s*{MARKS} (?=[\w-]+ stent{END})",
        r"\1, possibly ",
    ),
    rule(
        rf"(accentuated by technical factors, heart size) {MARKS} (?=mildly enlarged\b)",
        r"\1 is possibly ",
    ),
)

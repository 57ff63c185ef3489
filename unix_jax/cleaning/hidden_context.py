"""Parts of patterns for the words beside a mark of de-identification."""

NORMAL = r"(?:normal|unremarkable|intact|stable|within)\b"
DIAGNOSIS = (
    r"(?:an? )?(?:[\w-]+ ){0,2}?(?:atelecta\w+|scar\w*|edema|congestion|artifacts?|granulomas?"
    r"|pneumonia|infiltrates?|effusions?|(?:lymph)?adenopathy|nipples?|fibrosis|thickening"
    r"|vessels?|fat"
    r"|consolidation|infection|aspiration|mass|malignancy|emphysema|copd|hernia|fractures?"
    r"|combination)\b"
)
SIGN = (
    r"(?:opacit(?:y|ies)|opacification|densit(?:y|ies)|diseases?|markings|prominence|nodules?"
    r"|blunting"
    r"|lesions?|shadows?|lucenc(?:y|ies)|focus|foci|infiltrates?|consolidations?|fullness)"
)
END = r"(?=\s*(?:[.,;:)]|$))"
TIP = (
    r"(?=\s+(?:(?:is |are )?(?:noted|seen|identified|present)\s+)?(?:with (?:its |the |a |an )?"
    r"(?:distal )?(?:tip|leads?\b|catheter tip)|tip (?:is|in|at|over|within|project|terminat|lies)"
    r"|(?:terminates?|ends?) (?:in|at|over|within)|(?:has|have) (?:its |the )?(?:distal )?tip))"
)
HEDGED = (
    r"(?:suggesting|suggestive of|suggests|(?:consistent|compatible) with|(?:which )?(?:may"
    r"|might|could) (?:represent|reflect)"
    r"|representing|sequela of)"
)
SIGN_SEEN = rf"(?:{SIGN}|congestion|mass(?:es)?|thickening|effusions?|atelectasis|edema)"
# What an interpretation may follow.
SUBJECT = (
    r"(?:lungs|(?:hemi)?diaphragms?|mediastinum|hil(?:a|um)|deformit(?:y|ies)(?: of [TL]\d{1,2})?"
    r"|cuffing"
    r"|cardiomegaly|findings?|concern\w*|suspicio(?:us|n)|appearance|pneumothorax|effusions?)"
)
PLACE = (
    r"(?:lobes?|bases?|apex|apices|lungs?|lingula|angles?|sulcus|sulci|hilum|hila|zones?|regions?)"
)
PHRASE_END = (
    r"(?=\s*(?:[.,;:)]|$)|\s+(?:and|or|with|in|on|of|at|is|are|was|were|appears?|remains?)\b)"
)

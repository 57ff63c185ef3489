"""Table of words of change, and the removal of every comparison from a sentence.

It follows `comparisons`: phrases that name an earlier examination are removed first.
"""

from unix_jax.cleaning.comparison_words import (
    AND_VERB,
    ASPECT,
    BE,
    CHANGED,
    COMPARED,
    DEGREE,
    EARLIER,
    FINDING,
    HIDDEN,
    NOUN_END,
    PRIOR,
    STOP,
    STUDY,
    WHEN,
)
from unix_jax.cleaning.comparisons import COMPARING_OPENING, COMPARISONS
from unix_jax.cleaning.replacements import replaced, rule

# Words of change before and after the finding.
_BESIDE_FINDINGS = (
    rule(
        r"^(?:there (?:is|are|has been|have been)\s+)?(?:no|without)\s+(?:(?:significant|interval"
        r"|appreciable|substantial|definite|relevant|further|overall|gross|major|\w+ly)\s+)*"
        r"(?:changes?|increase|decrease|improvement|worsening|progression)\s+(?:seen\s+|noted\s+)?"
        r"(?:in|of|to)\s+(?:the\s+|this\s+)?(?:(?:size|appearance|position|extent|degree)"
        r"(?:\s+(?:and|or)\s+\w+)?\s+of\s+(?:the\s+)?)?(?=\w)",
        "",
    ),
    rule(
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
    rule(
        r"(?:,?\s+(?:which|that))?\s+(?:has|have)\s+(?:(?:now|also|since|slightly|mildly"
        r"|markedly|significantly|somewhat|further"
        r"|not|largely|moderately|minimally|partially|\w+ly)\s+)*(?:been\s+)?(?:developed|appeared"
        r"|recurred|reaccumulated|re-accumulated|evolved|cleared somewhat|occurred|increased"
        r"|decreased|improved|worsened|progressed|diminished|enlarged|changed)"
        r"(?:\s+in\s+(?:size|extent|number|severity|appearance|degree|the interval))*"
        r"(?:\s+(?:significantly|substantially|slightly|appreciably|markedly))?"
        rf"(?:\s+(?:since|from|compared (?:to|with)|when compared (?:to|with))\s+{PRIOR})?"
        r"(?:\s*,?\s+(?:and|but)\s+(?=(?:now\s+)?(?:is|are|measures?|remains?|appears?)\b)"
        r"|(?=\s*(?:[.,;]|$)|\s+(?:in|with|at|within|over|and|on|of)\b))",
        " ",
    ),
    rule(
        rf"^(?:no|{HIDDEN})\s+(?:(?:significant|interval|acute)\s+)*changes?,?\s+(?=(?!in\b|of\b"
        rf"|to\b|from\b"
        r"|since\b|is\b|are\b|compared\b|seen\b|noted\b|identified\b|when\b|on\b|with\b)\w)"
    ),
    rule(
        r"^(?:there (?:has been|is|have been)\s+)?(?:improvement|worsening|progression"
        r"|interval enlargement)"
        r"(?:/\w+)?\s+(?:in|of)\s+(?:the\s+)?"
    ),
    rule(r"\binterval\s+(?:improvement|decrease|increase)/\w+\s+(?:in\s+|of\s+)?(?:the\s+)?"),
    rule(
        r",?\s*\bwith\s+(?:(?:some|mild|slight|significant|partial|interval|further)\s+)*"
        r"(?:improvement"
        r"|worsening|progression|clearing|increase|decrease)\s*(?=[.,;]|$)"
    ),
    rule(r"\bin the interim\b"),
    rule(r"^(?:mild |slight )?(?:increase|decrease)\s+in\s+(?:the\s+)?(?=\w)"),
    rule(
        rf"\b(is|are)\s+(?:similar|stable|unchanged)\s+(?:to|from|since|compared (?:to"
        rf"|with))\s+{PRIOR}\s+and\s+(?=within|normal)",
        r"\1 ",
    ),
    rule(rf",?\s*\bnot\s+(?:\w+ly\s+)?{HIDDEN}\s+(?:from|since|compared (?:to|with)|to)\s+{PRIOR}"),
    rule(
        rf",?\s*\(?(?:which\s+(?:is|was|are|were)\s+)?\bnot\s+(?:\w+\s+){{0,2}}?(?:seen|present"
        rf"|visualized"
        rf"|identified|appreciated|evident|demonstrated)\s+(?:on|in)\s+{PRIOR}\)?"
    ),
    rule(r",?\s*\b(?:than|as)\s+previously(?:\s+(?:seen|noted|described|demonstrated))?\b"),
    rule(
        r"\s+(?:is|are|appears?)\s+(?:\w+ly\s+)?(?:larger|smaller|better|worse|less \w+|more \w+)"
        r"(?=\s*(?:than previously|[.,;]|$)(?<!better)(?<!worse))(?:\s+than previously)"
    ),
    rule(
        r"\b(?:decreased|decreasing|diminished)\s+(?!lung volumes?\b)(?=(?:[\w-]+\s+){0,4}?"
        rf"{FINDING})"
    ),
    rule(r"\b(?:new|newly)\s+(?:develop\w+\s+)?(?=\w)(?<!no new )(?<!without new )(?<!of new )"),
)

# Openings: "Comparison XXXX. Clear lungs", "Compared to the prior, ...", "Since ..., ..."
_OPENINGS = (
    rule(rf"^comparison:?\s+(?:{HIDDEN}|none)[\s,.:]+(?=(?-i:[A-Z]))"),
    rule(rf"^no comparisons?(?:\s+(?:chest\s+)?{STUDY})?[.:]*\s+(?=(?-i:[A-Z][a-z]))"),
    rule(
        r"^(?:(?:there (?:is|are|has been)|there's been) )?no (?:(?:significant"
        r"|interval|appreciable|definite|\w+ly) )*changes? (?:is |are )?(?:seen )?in "
        r"(?:the )?(?:(?:size|appearance|position) of (?:the )?)?(?=\w)",
        "",
    ),
    rule(
        r"^(?:once )?again,? (?:seen|noted|demonstrated|identified|visualized) (is"
        r"|are)\b",
        r"There \1",
    ),
    COMPARING_OPENING,
    rule(r"^\s*(there is) (?:little|no|minimal)(?: \w+)? changes? (?:and|but|with)\s+", r"\1 "),
    rule(r"^in the interval,?\s+"),
)

# "No new" excludes only what was not described before.
_NO_NEW = (
    rule(
        r"^(?:newly (?:appeared|developed)|better (?:seen|visuali[sz]ed|appreciated|demonstrated)"
        r"(?: on (?:today's|the current|this) \w+)?) (is|are)\b",
        r"There \1",
    ),
    rule(
        r"\b(no|without)(\s+(?:definite|evidence of|focal))?\s+(?:new|interval) "
        r"(?=acute\b)",
        r"\1\2 ",
    ),
    rule(
        r"\b(no|without)(\s+(?:definite|evidence of|focal))?\s+new(?:ly)?\b"
        r"(?:\s+(?:appeared|developed|occurred)\b)?",
        r"\1\2 other",
    ),
    rule(
        r"\b(no|without)((?:\s+(?!new)(?:\w+ly|large|small|significant|acute|discrete|gross|obvious"
        r"|additional|other|suspicious|convincing|radiographic|evidence of|sign of|signs of)){1,3})"
        r"\s+new(?:ly)?\b",
        r"\1 other\2",
    ),
    rule(
        rf"\b(no|without)\s+interval\s+(?={FINDING})",
        r"\1 other ",
    ),
)

# "appears slightly larger than the prior study", "which has increased in size since XXXX"
_COMPARED_FINDINGS = (
    rule(
        rf",?\s*(?:and\s+)?{BE}{DEGREE}{CHANGED}{ASPECT}\s*,?\s*{DEGREE}(?:(?:than"
        rf"(?: on)?|to|from|since|versus|{COMPARED})\s+|(?:to|with) that "
        rf"(?:seen )?on\s+){PRIOR}{AND_VERB}",
    ),
    rule(
        rf",?\s*(?:and\s+)?(?:of\s+)?{DEGREE}{CHANGED}{ASPECT}"
        rf"(?:\s+{HIDDEN})?\s*,?\s*{DEGREE}(?:than(?: on)?|to|from|since|versus"
        rf"|{COMPARED})\s+{PRIOR}{AND_VERB}",
    ),
    rule(
        r"[,-]?\s*(?:\b(?:which|that|and) (?:was|were|are|is)\s+)?(?:\bas\s+)?(?:\b"
        r"(?:more|better|best|not|also)\s+)?(?:\b(?:readily|clearly|well)\s+)?\b(?:seen"
        r"|noted|present|identified|described|visualized|demonstrated|as)\s+"
        rf"(?:also\s+)?(?:on|in)\s+(?:(?:the|multiple|most|his|her|patient's)\s+){{0,3}}"
        rf"(?:{EARLIER}\s+){{1,2}}(?:(?:PA|AP|chest|abdomen|frontal"
        rf"|lateral)\s+){{0,2}}{STUDY}(?:[\s/]+(?:{STUDY}|chest|abdomen)){{0,3}}{WHEN}",
    ),
    rule(rf",?\s*(?:\bin\s+)?(?:(?:{COMPARED})|since)\s+{PRIOR}{STOP}"),
    rule(
        rf",?\s*(?:from|than|to)\s+(?:the\s+|multiple\s+)?{EARLIER}(?:\s+{EARLIER})?"
        rf"(?:\s+(?:chest\s+)?{STUDY}{WHEN})?{STOP}",
    ),
    rule(
        r",?\s*\b(?:as (?:before|previously(?: (?:seen|noted|described))?|on prior)|"
        r"(?:seen|noted|identified|described) previously)\b",
    ),
    rule(r",?\s*\b(?:in|during|over|since) the (?:short |prior )?interval\b"),
)

# "Interval" with a noun.
_INTERVAL = (
    rule(
        r"\b(?:(?:significant|slight|mild|marked|minimal|moderate|apparent|further"
        r"|some)\s+)?interval (?:increase|decrease|reduction)d?(?: in size)?(?: of"
        r"| in) (?:the )?",
    ),
    rule(
        r"\b(?:there (?:has|have) been|there's been|there (?:is|are))\s+"
        r"(?:apparent\s+)?interval (?:development|appearance|improvement|worsening"
        r"|progression)(?: of| in)?\s+",
        "",
    ),
    rule(
        r"\binterval (?:development|appearance|improvement|worsening|progression"
        r"|placement|insertion)(?: of| in)?\s+",
    ),
    rule(
        r",?\s*\b(?:with(?:out|\s+no)?|no) (?:significant |appreciable )?(?:interval"
        r"|significant) changes?\b(?:\s+in (?:size|appearance|position))?",
    ),
    rule(r"(?<!short )(?<!short-)\binterval\b(?!\s+(?:follow|radiograph|between))"),
)

# "Again".
_AGAIN = (
    rule(
        r"\b(?:once again|again),?\s+(?=(?:is |are )?(?:seen|noted|demonstrated"
        r"|identified|visualized|present|there|shows?|appreciated))",
    ),
    rule(
        r"\b((?:seen|noted|demonstrated|identified|visualized|present))\s+"
        r"(?:once )?again\b",
        r"\1",
    ),
    rule(r"\b(?:there is|there are)\s+(?:again\s+)?redemonstration of\s+", "There is "),
    rule(r"\b(?:redemonstration|re-demonstration)(?: of| in)?\s+"),
    rule(r"\b(is|are)\s+(?:again\s+)?re-?demonstrated\b", r"\1 seen"),
    rule(r",?\s*\bre-?demonstrated\b"),
    rule(r"\bagain\b,?"),
    rule(r"\bthere (is|are) (?:of|in)\b", r"there \1"),
)

# "Remain", "persist", "continue".
_REMAINS = (
    rule(r"^(?:(?:near|nearly|essentially|completely|interval)\s+)*resolved [^,.;]*(?:[,.;]|$)"),
    rule(r"\bpersists?\b(?=\s+(?:in|at|on|within|over)\b)", "is present"),
    rule(
        r"\b(?:stable|unchanged|persistent),\s+(?=(?:mild|moderate|marked|severe|normal"
        r"|small|large|minimal|\w+ly)\b)",
        "",
    ),
    rule(r"(?<=\w) and (?:stable|unchanged)\s+(?=\w)"),
    rule(
        rf",?\s*\b(?:which|that|and)\s+{BE}{DEGREE}(?:improved|worsened|increased"
        rf"|decreased|progressed|larger|smaller){ASPECT}{NOUN_END}",
    ),
    rule(rf"\b(?:remains|continues to be)\s+(?:stable|unchanged){ASPECT}{NOUN_END}", "is present"),
    rule(r"\b(?:remains|continues to be)\s+(?=\w)", "is "),
    rule(r"\b(?:remain|continue to be)\s+(?=\w)", "are "),
    rule(rf"\b(?:remains|persists){NOUN_END}", "is present"),
    rule(rf"\b(?:remain|persist){NOUN_END}", "are present"),
    rule(r"\bpersistent(?:ly)?\b"),
    rule(r"\bcontinued\b(?=\s+\w)"),
)

# "Stable" and "unchanged": predicates, then adjectives.
_STABLE = (
    rule(
        rf"^(?:the )?(?:extent|position|location|severity|degree|amount|number)s? of (?=(?:the )?"
        rf"[^,;.]+? (?:is|are|remains?|appears?) {DEGREE}(?:stable|unchanged|similar){ASPECT}"
        rf"{NOUN_END})",
        "",
    ),
    rule(
        rf",?\s*\b{DEGREE}{CHANGED} on the (?:left|right)(?:,|,?\s+(?:and|but))\s+{DEGREE}"
        rf"{CHANGED} on the (?:left|right){NOUN_END}"
    ),
    rule(rf"\b(?:has|have) not (?:\w+ly )?changed(?: \w+ly)?{NOUN_END}"),
    rule(
        rf"\b(?:is|are)\s+{DEGREE}(?:stable|unchanged){ASPECT}(?:,|,?\s+and)\s+(?=(?:is|are|may"
        r"|has|have|can|could|might|represents?|indicates?|suggests?|most|likely|overl\w+|ends?"
        r"|terminates?|measures?|projects?|lies|courses?|extends?|crosses|reaches|abuts|obscures?"
        r"|occup\w+|involves?|contains?|shows?|demonstrates?|reflects?|causes?)\b)",
    ),
    # What follows is a clause of its own.
    rule(
        rf"\b(is|are)\s+{DEGREE}(?:stable|unchanged|similar){ASPECT}(?=,?\s+(?:but|whereas|while"
        r"|although|though|and\s+(?:there|its?|their|this|these|no|(?:[\w-]+\s+){1,4}?(?:is|are|was"
        r"|were|has|have|appears?|remains?))\b))",
        r"\1 present",
    ),
    rule(rf",?\s*(?:but\s+)?(?:this|which) (?:is|appears) {DEGREE}(?:stable|unchanged){ASPECT}"),
    rule(
        rf"\b(?:has|have)\s+(?:been\s+)?{DEGREE}(?:increased|decreased|progressed"
        r"|improved|worsened|enlarged)(?:\s+in (?:size|number|extent"
        rf"|severity))?{NOUN_END}",
    ),
    rule(
        rf"\b(?:is|appears|remains)\s+{DEGREE}(?:stable|unchanged|similar)"
        rf"(?:\s+and\s+unchanged)?{ASPECT}{NOUN_END}",
        "is present",
    ),
    rule(
        rf"\b(?:are|appear|remain)\s+{DEGREE}(?:stable|unchanged|similar)"
        rf"(?:\s+and\s+unchanged)?{ASPECT}{NOUN_END}",
        "are present",
    ),
    rule(
        rf",?\s*(?:and\s+)?{BE}{DEGREE}(?:stable|unchanged|similar|(?:un)?changed)"
        rf"(?:\s+and\s+unchanged)?{ASPECT}{NOUN_END}",
    ),
    rule(
        rf"\b((?:is|are|appears?)\s+){DEGREE}(?:stable|unchanged)(?:\s+(?:in"
        r"|to)\s+\w+)?(?:,|\s+and)\s+(?=\w)",
        r"\1",
    ),
    rule(
        rf"\b(?:is|are|appears?)\s+{DEGREE}(?:stable|unchanged){ASPECT}(?=\s+(?:with"
        r"|without)\b)",
    ),
    rule(
        r",?\s*\bin (?:grossly\s+)?(?:stable|unchanged|similar)(?:,?\s+(?:stable"
        r"|X{3,}))? (?:position|location|appearance|alignment|configuration)s?\b",
    ),
    rule(
        r"\b(?:grossly\s+)?(?:stable|unchanged|similar) (?:in )?(?:appearance|position"
        r"|size|configuration|contour)s? of\s+(?=\w)",
    ),
    rule(
        r"\bwith\s+(?:grossly\s+)?(?:stable|unchanged|similar) (?:position|appearance"
        r"|configuration|alignment|placement)\b",
    ),
    rule(
        rf",?\s*(?:and\s+)?{DEGREE}\b(?:stable|unchanged|similar)"
        rf"(?:\s+appearing)?{ASPECT}{NOUN_END}",
    ),
    rule(rf",?\s*\b{DEGREE}(?:stable|unchanged)\s+and\s+"),
    rule(rf"{DEGREE}\b(?:stable[- ]appearing|stable|unchanged)\b,?"),
)

# Another word for it.
_CONSTANT = rule(r"\b((?:is|are|remains?|appears?)\s+(?:\w+ly\s+)?)constant\b", r"\1unchanged")

# Newness and change without a named earlier examination.
_NEW = (
    rule(
        r"\b(?:the\s+)?previously[- ](?:seen|noted|described|identified|visualized"
        r"|demonstrated)\b",
    ),
    rule(
        r"\b(?:(?:slowly|rapidly|gradually|steadily|slightly|mildly|markedly|minimally|partially)\s+)?"
        r"(?:worsening|worsened|improving|improved|resolving|increasing|decreasing|enlarging"
        r"|evolving)\b(?=\s+\w)"
    ),
    rule(r",?\s+which\s+(?:is|are)\s+present(?=\s*(?:[.,;]|$))"),
    rule(r"^overall,?\s+with\s+", ""),
    rule(r"\bthere is the\b", "there is"),
    rule(r"(?<!\bof )\bnew(?:ly)?\b(?!\s+(?:york|born))"),
)

_WORDS_OF_CHANGE = (
    # Before "new" goes by itself.
    *_NO_NEW,
    *_BESIDE_FINDINGS,
    *_OPENINGS,
    *_COMPARED_FINDINGS,
    *_INTERVAL,
    *_AGAIN,
    *_REMAINS,
    *_STABLE,
    *_NEW,
)


def without_comparisons(text: str) -> str:
    """`text` without the phrases and words of both tables; its spacing is not repaired."""
    return replaced(text, (_CONSTANT, *COMPARISONS, *_WORDS_OF_CHANGE))

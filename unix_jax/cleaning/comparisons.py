"""Table of phrases that compare with an earlier examination, with the text that keeps the finding.

The order of the table matters: a phrase comes before the shorter ones that are part of it. The
words of change that remain are in `words_of_change`.
"""

from unix_jax.cleaning.comparison_words import (
    AMOUNT,
    CHANGED,
    COMPARED,
    DEGREE,
    HIDDEN,
    NOT_QUITE,
    PRIOR,
    SIZE_WORD,
    STUDY,
)
from unix_jax.cleaning.marks import MARK
from unix_jax.cleaning.replacements import rule

COMPARING_OPENING = rule(rf"^(?:{COMPARED}|since|from)\s+{PRIOR}\s*,\s*")
_COMPARATIVE = (
    r"(?:larger|smaller|bigger|worse|better|greater|increased|decreased|improved|worsened|reduced"
    r"|diminished|(?:more|less) (?:conspicuous|prominent|apparent|extensive|pronounced|perceptible"
    r"|dense|confluent|evident|distinct|severe|marked|visible|obvious|noticeable))"
)
_DEGREES = (
    r"(?:(?:slightly|mildly|markedly|significantly|somewhat|minimally|moderately|overall|much|now"
    r"|also|again)\s+)*"
)
_THAN_BEFORE = (
    r"(?:\s+(?:than|as|versus)\s+(?:previously|before|earlier"
    rf"|(?:on|in)\s+{PRIOR}|{PRIOR})(?:\s+(?:seen|noted|described))?"
    rf"|\s+(?:(?:when|as)\s+)?(?:compared (?:to|with)|since|from)\s+{PRIOR})?(?=\s*(?:[.,;]|$))"
)
# Not of the heart, the vessels and the like, whose increase is the finding.
LESION = (
    r"(?:nodules?|nodule/mass|mass(?:es)?|effusions?|pneumothorax|pneumothoraces|lesions?|edema"
    r"|consolidations?|infiltrates?|atelectasis|opacit(?:y|ies)|collections?|hematoma)"
)

# Words of a comparison around a finding that is present.
_PRESENT_FINDINGS = (
    rule(
        r"^(?:overall,? )?(?:the )?(?:overall )?(?:size|extent|degree|amount|volume|severity) of"
        r" (?:the )?(?=[^.;,]*\b(?:effusion|pneumothorax|mass|nodule|lesion|edema|opacit|consolid"
        r"|infiltrat|atelecta|collection|hematoma))([^.;,]*?) (?:appears?|is|are|remains?|seems?"
        rf"|has|have)(?: to be)? {_DEGREES}{_COMPARATIVE}(?: in (?:size|extent))?{_THAN_BEFORE}",
        r"\1",
    ),
    rule(
        rf"^([^.;]*\b{LESION}\b[^.;,]*?) (is|are) {_DEGREES}(?:in|de)creased(?: in (?:size|extent"
        rf"|number|severity)(?: and (?:size|number))?)?{_THAN_BEFORE}",
        r"\1 \2 present",
    ),
    rule(rf"\s+and (?:appears?|seems?) (?:to be )?{_DEGREES}{_COMPARATIVE}{_THAN_BEFORE}", ""),
    rule(rf"\b(?:appears|seems) (?:to be )?{_DEGREES}{_COMPARATIVE}{_THAN_BEFORE}", "is present"),
    rule(rf"\b(?:appear|seem) (?:to be )?{_DEGREES}{_COMPARATIVE}{_THAN_BEFORE}", "are present"),
    rule(rf"\b(is|are) {_DEGREES}(?:more|less) perceptible{_THAN_BEFORE}", r"\1 present"),
    rule(r"\bmore (?=prominent (?:interstitial|vascular|bronchovascular|markings)\b)", ""),
    rule(
        r"^(?:grossly |essentially )?similar(?:[- ]appearing| appearance of(?: the)?)? (?=\w)"
        r"(?!(?:changes|findings?|to|in|exam\w*|stud\w+|appearance|chest)\b)",
        "",
    ),
    rule(
        r"^remaining (?=(?:[\w-]+ ){0,2}(?:obliteration|opacit|effusion|pneumothora|atelecta"
        r"|consolid|infiltrat|edema|blunting|thicken|densit|nodul))",
        "",
    ),
    rule(
        r"(?<!no )(?<!or )(?<!without )(?<!and )\bprogressive (?!massive|multifocal|systemic)"
        r"(?=\w)",
        "",
    ),
    rule(r"^(?:currently|now),?\s+(?=there\b|located\b|within\b|lies\b|in\b|at\b)", ""),
    rule(
        r"\b(has|have) (?:now )?(?:moved|migrated)(?: back)? (?:in)?to (?=(?:the|a)\b)", r"<\1> in "
    ),
    rule(
        r"(?<=\w,\s)there (?:has|have) been (?:interval )?development of (?=(?:multiple|several"
        r"|numerous|many|bilateral|scattered|\w+ (?:nodules|opacities|effusions|infiltrates))\b)",
        "there are ",
    ),
    rule(r"(?<=\w,\s)there (?:has|have) been (?:interval )?development of (?=\w)", "there is "),
    rule(
        r"^(?:interval )?(?:decrease|increase|improvement|worsening)d? and (?=(?:left|right"
        r"|bilateral|bibasilar|basilar)\b)",
        "",
    ),
    rule(
        r"^(?:interval )?(?:decrease|increase) (?!in\b|of\b)(?=(?:[\w-]+ ){1,5}(?:area|opacit"
        r"|densit|effusion|nodul|mass\b))",
        "",
    ),
)
# Not of the heart, the vessels and the volume of the lungs, which are findings if increased.
_COMPARED_NOUN = (
    r"(?!(?:the )?(?:heart|cardiac|cardiomediastinal|lung|volumes?|inspirat\w+|vascular\w*"
    r"|vasculature|size|pulmonary (?:vascul|markings|arter)))"
    r"[^.;,]*?"
)
_PLACE = r"(?:\s+(?!(?:is|are|was|were|has|have|appears?|seems?)\b)\w+){1,5}?"
# Removed before the sentence is divided into clauses: advice and reasons that refer to earlier
# examinations, and phrases that a division would break.
UNDIVIDED = (
    rule(r"(?<!the )\binterim\b", "interval"),
    rule(r"\b(no (?:[\w-]+ )?acute) or progressive (?=\w)", r"\1 "),
    rule(
        r"\s+on today['\u2019]?s (?:exam(?:ination)?|study|radiograph|film|x-?ray)"
        r"(?=\s*(?:[.,;]|$)|\s+and\b)",
        "",
    ),
    rule(r"^if none (?:is|are) available,?\s+", ""),
    rule(
        r"^(?:\w+ly )?(?:in|de)creased (?=\w)"
        rf"({_COMPARED_NOUN}),?\s+(?:since|from|{COMPARED})\s+{PRIOR}(?=\s*(?:[.;]|$))",
        r"\1",
    ),
    rule(
        r"\b(there (?:is|are)) (?:\w+ly )?(?:in|de)creased (?=\w)"
        rf"({_COMPARED_NOUN}),?\s+(?:since|from|{COMPARED})\s+{PRIOR}(?=\s*(?:[.;]|$))",
        r"\1 \2",
    ),
    rule(
        r"\b(is|are) (?:\w+ly )?(?:more|less)\s+(?:than (?:previously|before)|than\s+(?:on\s+)?"
        rf"{PRIOR})(?=\s*(?:[.,;]|$))",
        r"\1 present",
    ),
    rule(
        rf"^([^.;,]*\b{LESION}\b(?:\s+(?:in|at|on|of)\s+the{_PLACE})?)\s+(?:\w+ly\s+)?"
        r"(?:in|de)creased(?:\s+in\s+(?:size|extent|number|severity))?(?=\s*(?:[.;,]|$))",
        r"\1",
    ),
    rule(
        r",?\s*(?:however|but|and)?,?\s*\b(?:recommend|suggest|consider|advise)(?:ed|ing)?"
        r" (?:\w+ )?comparison (?:with|to)\b[^.;]*",
        "",
    ),
    rule(
        r",?\s*\bgiven (?:the |its |their |this )?(?:interval |long-?term |overall )?stability"
        rf"(?: over time|(?: (?:since|from|compared (?:to|with))) {PRIOR})?",
        "",
    ),
    rule(
        r",?\s*(?:and |with )?\b(?:no|without)(?: any)? (?:evidence|findings?|signs?|suggestion) of"
        r" (?:(?:disease|interval) (?:progression|worsening)|(?:progression|worsening) of (?:the )?"
        r"disease)",
        "",
    ),
    rule(r"\bsuggesting no (?:\w+ )?(?:progression|change) (?:of|in) (?=the\b)", "suggesting "),
    rule(
        rf"\bis not (?:{HIDDEN} )?(?:(?:thought|felt|believed) )?to be (?:significantly "
        rf"|substantially )?(?:different|changed)(?: from {PRIOR})?,? but is (?:{HIDDEN} )?",
        "is ",
    ),
    rule(
        rf",?\s+which (?:is|are) (?:better|best) (?:appreciated|seen|visualized|demonstrated)"
        rf"(?:\s+(?:on|in|by)(?: the)?)? {HIDDEN}(?: of {HIDDEN})?",
        "",
    ),
    rule(
        r"(?<!seen)(?<!noted)(?<!described)(?<!demonstrated)(?<!identified)(?<!visualized)"
        r"(?<!present)(?<!appreciated)(?<!there)"
        r"\s+on (?:the )?(?:old|prior|previous|earlier|recent) (?:chest )?(?:CT scans?|CTs?|films?"
        r"|radiographs?|studies|x-?rays?)(?=\s*\.?$)",
        "",
    ),
    rule(
        rf"\s+(?:seen|noted|identified|described) (?:on|in) (?:the )?{HIDDEN} (?:chest|CT|{STUDY})"
        r"(?= (?:is|are) not (?:seen|visuali[sz]ed|identified|evident)\b)",
        "",
    ),
    rule(r"(?<!there )\b(is|are) redemonstration (?:of|in|over) (?=\w)", r"\1 seen at "),
    rule(
        r"^(?:there(?:'s| has) been )?interval enlargement (?:of|in) (?:the )?(?=cardiac|heart)",
        "Enlargement of the ",
    ),
    rule(
        r"(?:there (?:is|has been) )?(?:(?:significant|interval|marked|mild|some|overall) )*"
        r"(?:improvement in|improved|better) aeration(?: bilaterally| of (?:the )?lungs?)?,?\s*"
        r"(?:with|and) (?=\w)",
        "",
    ),
    rule(r"\s+and (?:improved|better) aeration bilaterally\b", ""),
    rule(
        r"^(?:stable|unchanged) appearance of (?:the )?(?=[^,;.]*\b(?:left|right|bilateral)\b[^,;.]"
        r"* with\b)",
        "",
    ),
)

_CONSTRUCTIONS = (
    rule(r"^(?:chest\s+)?comparisons?:\s+(?=there\b)", ""),
    rule(
        rf",?\s*\bdating back to (?:(?:multiple |several |prior )*{STUDY}"
        rf"(?:\s+(?:in|from|of|on)\s+{MARK})?|{MARK})",
        "",
    ),
    rule(
        r"^((?:these|those) [\w ]+?) (?:appear|are) (?:\w+ly )?"
        r"(?:increased|decreased|improved|worse)"
        rf"(?:\s+(?:as )?compared (?:to|with)\s+{PRIOR}|\s+(?:since|from)\s+{PRIOR})\s*\.?$",
        r"\1 are present.",
    ),
    rule(r"\s+(?:has|have) ((?:in|de)creased) in opacity\b", r" of \1 opacity"),
    rule(rf",?\s*\bwhich (?:has|have) been there (?:on|in) {PRIOR}", ""),
    rule(
        r"^(?:there (?:is|are) )?(?:improved|improving) lung volumes(?: bilaterally)?(?: with|,)"
        r" (?=\w)",
        "",
    ),
    rule(r"^(?:improved|improving) lung volumes without (?=\w)", "No "),
    rule(
        r"^(?:the )?lung volumes are (?:decreased|lower|improved|increased) (?:from|since)"
        rf" {PRIOR},? and (?=there\b)",
        "",
    ),
    rule(r"\blower (?=lung volumes (?:as )?compared\b)", "low "),
    rule(
        r"\b(consistent|compatible)(?: with)? (?:interval )?(?:worsening|progression|improvement)"
        r" of (?=\w)",
        r"\1 with ",
    ),
    rule(
        r"\b(there) (?:does )?(appears?) to be (?:interval )?(?:progression|worsening|improvement)"
        r" (?:of|in) (?:the )?(?=\w)",
        r"\1 appears to be ",
    ),
    rule(r"\bthere(?:'s| has| have) been (?:interval )?(?:placement|insertion) of ", "there is "),
    rule(r"^there(?:'s| has| have) been (?:interval )?development of ", ""),
    rule(r"\b(?:there is )?persistence of (?=an?\b)", "there is "),
    rule(r"\bhas become (?=normal\b)", "is "),
    rule(r"\b(?:resolving or developing|developing or resolving) (?=\w)", ""),
    rule(
        r"\b(small|mild|minimal|moderate|large) but (?:increasing|decreasing|enlarging|improving"
        r"|worsening|stable|unchanged) (?=\w)",
        r"\1 ",
    ),
    rule(r"\b(?:stable|unchanged)/(?=\w)", ""),
    rule(rf",\s*(?:small|mild|slight|minimal) interval changes? (?:from|since) {PRIOR}", ""),
    rule(r"\b(?:stable|unchanged) ((?:\w+ )?cardiomegaly) and mediastinal contours?\b", r"\1"),
    rule(r"\b(is|are) likewise (?:stable|unchanged)(?=\s*(?:[.,;]|$))", r"\1 present"),
    rule(r"\bremain (?=which\b)", "are present "),
    rule(
        rf"\b(leads) in (?:stable|unchanged) position(?: (?:since|from) {PRIOR})?(?=\s*[.,;])",
        r"\1 in place",
    ),
    rule(r"^(?:the )?heart and mediastinum are (?:stable|unchanged) (?=normal\b)", ""),
    rule(
        r"^((?:considering|accounting for|allowing for|given)\b[^,;.]*? factors)"
        rf" (?:{HIDDEN} )?(?:stable|unchanged) (?:cardiomediastinal silhouette with )?(?=\w)",
        r"\1, ",
    ),
    rule(
        r"^(?:there (?:is|has been) )?(?:interval )?(?:improvement|decrease) in ([^.;,]*?) with"
        r" (mild|small|minimal|moderate) residual(?=\s*[.;]|$)",
        r"\2 residual \1",
    ),
    rule(rf"\s+with {HIDDEN} residual(?=\s*(?:[.;]|$))", ""),
    rule(r"\s+and improved aeration (?=bilaterally\b)"),
    rule(
        r"\s+and (?:stable|unchanged) (?:mediastinal|hilar|cardiac|mediastinal and hilar) contours?"
        r"(?=\s*[.,;])",
        "",
    ),
    rule(
        r"^(?:there is )?(?:significant |interval |marked )*improvement in aeration bilaterally,?"
        r" with (?=\w)",
        "",
    ),
    rule(rf"\bwith stable appearance of (?:the )?lungs? {HIDDEN} (?=with\b)", ""),
    rule(
        r"\s+(?:has|have) (?:\w+ly )?(?:in|de)creased in (?:size and number|number and size)"
        rf"(?:\s+{HIDDEN})?(?:\s+(?:since|from|compared (?:to|with))\s+{PRIOR})?",
        "",
    ),
    rule(rf"\bin (?:stable|unchanged)\s*,\s*(?:{HIDDEN}\s+)?(?=position\b)", "in stable "),
    rule(
        r"\b(?:mildly|slightly|markedly|significantly|moderately)\s+"
        rf"(?:improved|worsened|progressed|increased|decreased)\s+(?={HIDDEN}\s)",
        "",
    ),
    rule(
        rf"\s*,?\s*\bcompared {HIDDEN}\s+(?:chest|thorax|abdomen|{STUDY})"
        rf"(?:\s+(?:from|of|dated)\s+{HIDDEN})?",
        "",
    ),
    rule(
        r"\b(?:has|have) (?:in|de)creased(?: \w+)? in size (?:(?:from|since|compared (?:to|with))"
        rf" )?{PRIOR}\s*,?\s+now (?=measuring\b)",
        ", ",
    ),
    rule(
        rf"\bwhich (?:is|are|appears?) {DEGREE}(?:unchanged|stable|similar)"
        rf"(?:\s+(?:from|since|to|compared (?:to|with))\s+{PRIOR})?\s*,?\s+and\s+"
        rf"(?={HIDDEN}\s+represent|may\b|might\b|could\b|likely\b|possibly\b|probably\b)",
        "which ",
    ),
    rule(
        r",?\s*(?:however|but),?\s+(?:in |given |due to )?the (?:absence|lack) of (?:an? |any )?"
        rf"(?:prior |previous |comparison )+{STUDY}\s*,",
        ",",
    ),
    rule(
        r"^(?:there (?:is|has been) )?(?:(?:an?|interval|significant|slight|mild|further) )*"
        r"(?:increase|decrease)d? in (?:the )?(?:size and number|number and size) of (?:the )?",
        "",
    ),
)

# An earlier size or degree beside the present one.
_EARLIER_SIZES = (
    rule(
        rf"\s*[,(]?\s*\b(?:previously|formerly|compared (?:to|with))\s+(?:measur\w+\s+|about\s+"
        rf"|approximately\s+)*"
        rf"{AMOUNT}(?:\s+(?:previously|before|on the prior(?:\s+{STUDY})?))?(?:\s+(?:on|in"
        rf"|from)\s+{PRIOR})?(?:\s*\)|(?=\s*(?:[.,;)]|$)))",
        "",
    ),
    rule(
        r",?\s+(?:(?:which|that)\s+)?(?:has|have)\s+(?:\w+ly\s+)?(?:increased|decreased|enlarged"
        r"|grown|improved|worsened"
        rf"|progressed|diminished)(?:\s+in (?:size|extent|severity))?,?\s+"
        rf"(?:from\s+{AMOUNT}\s*)(?:to|now)\s+(?=\d)",
        " measures ",
    ),
    rule(
        r"\s+(has|have)\s+(?:\w+ly\s+)?(?:increased|decreased|enlarged|improved|worsened"
        r"|progressed|diminished)"
        rf"(?:\s+in (?:size|extent|severity))?\s+from\s+{SIZE_WORD}\s+to\s+(?={SIZE_WORD}\b)",
        r" <\1> ",
    ),
    rule(
        rf"\s+(?:is|are)\s+{DEGREE}(?:stable|unchanged),?\s+as\s+(?:is|are)\s+(?:the\s+)?",
        " and ",
    ),
    rule(r"^overall,? (?:stable|unchanged) appearance of the chest (?=suggest)", "Appearance "),
    rule(r"^(?:stable|unchanged) appearance\s+(?!of\b|and\b|to\b|with\b)(?=\w)", ""),
)

# "No change in the effusion or edema": both are present.
_CHANGE_OF = (
    rule(
        r"^((?:there (?:is|has been)\s+)?no\s+(?:\w+\s+){0,3}?changes?\s+in\s+[^.;,]*?)\s+or\s+",
        r"\1 and ",
    ),
)

_PHRASES = (
    rule(rf"^comparison (?:is|was) made (?:with|to) {PRIOR}\s*,?\s+and\s+", ""),
    rule(rf"^(?:the )?(?:lack|absence) of {PRIOR} limits (?:\w+ )?\w+[;,.]\s*", ""),
    rule(
        r",?\s*(?:when |as )?(?:compared (?:to|with)|since|from) (?:yesterday|earlier today"
        r"|this morning|last \w+|the day before)(?=\s*(?:[.,;]|$))",
        "",
    ),
    rule(
        r",\s*(?:(?:slightly|mildly|markedly|significantly|somewhat) )?(?:increased|decreased"
        rf"|improved|worsened|larger|smaller|progressed)(?:\s+from\s+{SIZE_WORD})?"
        r"(?=\s*(?:[.;]|$))",
        "",
    ),
    rule(
        r"^(?:(?:slightly|mildly|markedly|significantly|somewhat|minimally|much)\s+)?(?:larger"
        r"|smaller|(?:more|less) conspicuous|(?:increased|improved)(?=\s+(?:[\w-]+\s+){0,4}?"
        r"(?:pneumothora|effusion)))\s+(?=\w)",
        "",
    ),
    rule(r"\b(?:much|markedly|slightly|significantly|somewhat)\s+(?=(?:improved|worsened)\s+\w)"),
    rule(r"^(?:the )?(?:lungs?|bases?|lung bases) (?:is|are) better aerated\b"),
    rule(r"\b(?:stable|unchanged) position (?=(?:left|right)\b)", ""),
    rule(r"<has>", "is"),
    rule(r"<have>", "are"),
    rule(
        rf"(?:,\s*|\s+)(?:{CHANGED}\s+)?since\s+(?:approximately\s+)?(?:\d[\d:.]*\s*"
        rf"(?:[ap]\.?m\.?)?|yesterday|earlier"
        r"(?:\s+(?:today|this \w+|the same day))?|the same day|this morning|last \w+)(?=\s*"
        r"(?:[.,;]|$))",
        "",
    ),
    rule(r"^no evidence of (?:\w+ )?change (?:in|of) (?:the )?", ""),
    rule(
        r"^(?:there (?:is|has been)\s+)?(?:(?:interval|slight|mild|some|little"
        r"|minimal)\s+)*changes?\s+in\s+(?:the\s+)?(?:(?:size|appearance|extent|position) of\s+"
        r"(?:the\s+)?)?(?=\w)",
        "",
    ),
    rule(
        rf"^(?:new|not (?:\w+ly )?changed|(?:\w+ly )?unchanged|stable|again (?:seen|noted))"
        rf"(?:\s+(?:from|since|compared (?:to|with)|on)\s+{PRIOR})?\s+(is|are)\s+",
        r"There \1 ",
    ),
    rule(
        r",?\s+as (?:is|are) (?:the )?(?:\w+ ){0,3}?(?:mediastin\w+|hil\w+|heart|contours?"
        r"|silhouette|aorta|lungs?|bon\w+)(?=\s*(?:[.,;]|$))"
    ),
    rule(
        r"^(?:stable|unchanged)\s+(?:(?:appearance|position|size) of (?:the )?)?(?:(?:heart"
        r"|cardiac|mediastinal|hilar|cardiomediastinal|bony|osseous"
        r"|and|cardiopulmonary|pulmonary|thoracic|aortic)\s+){1,4}(?:size|contours?|silhouettes?"
        r"|structures?|thorax|configuration"
        r"|vascularity|vasculature)\s*(?:,|,?\s+and|\s+with)\s+(?=(?:clear|normal|no|mild"
        r"|moderate|small|large|low|tortuous|well)\b)",
        "",
    ),
)

# A device that moved is at its present position.
_MOVED = (
    rule(
        r"\s+(?:has|have)\s+(?:been\s+)?(?:\w+ly\s+)?(?:advanced|withdrawn|retracted"
        r"|repositioned|pulled back|exchanged|replaced|placed|inserted)(?:\s+(?:slightly"
        r"|somewhat|in the interval|\d+ cm))?\s*,?\s+and\s+(?:is\s+|are\s+)?(?:now\s+)?(?=ends?"
        r"|terminates?|is|are|projects?|lies|overl|courses?|extends?|passes)"
    ),
)

_FURTHER_PHRASES = (
    # The place is also that of the finding which is left there.
    rule(
        r"^(?:(?:overall|slightly|mildly|significantly|there is)\s+)*(?:improved|increased|better"
        r"|improvement in)\s+(?:\w+\s+)?aeration\s+(?:of|in|at)\s+"
        r"((?:the\s+)?(?:left|right|both)\s+"
        r"(?:\w+\s+)?(?:lungs?|bases?|lobes?))\s*(?:,\s*)?(?:with|but)\s+(?:persistent|persisting"
        r"|residual|remaining|continued)\s+",
        r"In \1, ",
    ),
    rule(
        r"(?:overall|slightly|mildly|significantly|there is|\s)*(?<!not )\b(?:improved|increased"
        r"|better|improvement in)\s+(?:\w+\s+)?(?:aeration|inspiration|inspiratory effort)(?:\s+"
        r"(?:of|in|at)\s+(?:the\s+|both\s+)?(?:\w+\s+){0,2}(?:lungs?|bases?|lobes?))?\s*(?:,"
        r"|\bwith\b|\band\b)\s+"
    ),
    rule(
        rf"(?<!patient )\bhas been (?:placed|inserted)(?: in the interval)?(?: since {PRIOR})?"
        r"(?=\s*(?:[.,;]|$)|\s+(?:in|into|with|over|at)\b)",
        "is in place",
    ),
    rule(
        rf"\bhave been (?:placed|inserted)(?: in the interval)?(?: since {PRIOR})?"
        r"(?=\s*(?:[.,;]|$)|\s+(?:in|into|with|over|at)\b)",
        "are in place",
    ),
    rule(r"\b(is|are) in place (?=(?:in|into|over|at)\b)", r"\1 present "),
    rule(r"\b(is|are) present into\b", r"\1 present in"),
    rule(
        r",?\s*\bboth\s+(?:(?:of which\s+)?(?:are|appear|remain)\s+)?(?:stable|unchanged)(?=\s*"
        r"(?:[.,;]|$))"
    ),
    rule(rf"\s+and with {PRIOR}(?:,? if (?:possible|available))?(?=\s*(?:[.]|$))"),
    rule(
        rf",?\s*(?:as\s+)?compared (?:to|with) (?:the )?(?:prior|previous|earlier) "
        rf"(?:{STUDY} )?(?:of |from )?(?:earlier )?(?:on )?the same (?:day|date|{HIDDEN})"
    ),
    rule(rf"^(?:without|with no) (?:a |any )?{PRIOR}\s*,\s*"),
    rule(
        r"^((?:this|these|it)) ha(?:s|ve) developed in the interval,? and\s+(?=may|is|are)", r"\1 "
    ),
    rule(
        rf",?\s+(?:and\s+)?(?:which\s+)?(?:is|are|was|were)\s+(?:\w+ly\s+)?better\s+"
        rf"(?:appreciated|visualized|seen|demonstrated)\s+(?:on|in|by)\s+(?:the\s+)?{PRIOR}"
    ),
    rule(
        r"^(?:there (?:is|has been)\s+)?(?:(?:an?|marked|moderate|mild|slight|significant"
        r"|interval)\s+)*increase in\s+"
        r"(?:the\s+)?(?:size of (?:the )?)?(heart|cardiac)(?:\s+size|(\s+silhouette))?(?=\s*"
        r"(?:[.,;]|$))",
        r"Increased \1\2 size",
    ),
    rule(
        r",?\s+(?:as|because|since) (?:there (?:is|are) )?no (?:prior|previous|comparison|old)"
        r"(?:\s+\w+){0,2}?(?:\s+(?:is|are))?\s+available(?:\s+for\s+\w+)?"
    ),
    rule(
        rf",?\s*previously (?:\w+ly )?(?:demonstrated|seen|noted)(?:\s+(?:on )?{HIDDEN}(?:\s+"
        rf"(?:abdomen|chest|pelvis|and|CT|{HIDDEN}))*)?(?=\s*(?:[.,;]|$))"
    ),
    rule(rf",?\s*no (?:recent|prior|old) {HIDDEN} for comparison"),
    rule(rf",?\s*which does not appear to be present on {PRIOR}"),
    rule(
        r",?\s*as seen on (?:the |a )?(?:comparison|prior|previous) (?:[\w]+ ){0,4}(?:CT|study"
        r"|exam)\b"
    ),
    rule(
        rf",?\s*(?:which |and )?(?:incidentally )?(?:(?:was|were|is|are) )?also (?:seen|noted"
        rf"|present) on {PRIOR}(?: of \d+ \w+ ago)?"
    ),
    rule(rf",?\s*which (?:was|were) (?:seen|noted|present) (?:on|in) {PRIOR}(?:/CT)?"),
    rule(rf"\b(?:stable|unchanged) in (?:the )?(?:prior|previous) {STUDY}"),
    rule(
        rf",\s*(?:as\s+)?(?:better|also)\s+(?:appreciated|visualized|seen|demonstrated)\s+(?:on"
        rf"|in|by)\s+(?:the\s+)?{PRIOR}"
    ),
    rule(rf",?\s+(?:which\s+)?(?:have|has) been there on {PRIOR}"),
    rule(r"\bare redemonstrated\b", "are seen"),
    rule(r"^redemonstrated (is|are)\b", r"There \1"),
    rule(rf"\bappears?\s+(?:less|more)\s+distinct\s+than\s+(?:on\s+)?{PRIOR}", "is present"),
    rule(
        rf"^(this|these)\s+(?:was|were)\s+(?:also\s+)?(?:present|seen|noted)\s+(?:previously|"
        rf"(?:on|in)\s+{PRIOR})\s+and\s+(?=is|are|may)",
        r"\1 ",
    ),
    rule(
        r"\bredemonstration\s+(?:with no|without)\s+(?:significant\s+)?"
        r"(?:interval\s+)?changes?\s+(?:of|in)\s+",
        "",
    ),
    rule(
        r"\bthere is redemonstration\s+(?:with no|without)\s+(?:significant\s+)?"
        r"(?:interval\s+)?changes?\s+(?:of|in)\s+",
        "there is ",
    ),
    rule(
        rf"\b(?:{NOT_QUITE})(?:[\s-]+complete(?:ly)?)?[\s-]+(?:resolved|resolving|cleared)\s+"
        rf"(?=\w)"
    ),
    rule(r"\b(?:increased|decreased)\s+size\s+of\s+(?:the\s+)?(?=\w)", ""),
    rule(
        r",?\s+(?:or|and|nor)\s+(?:(?:significant|interval|acute|other)\s+)*changes?(?=\s*"
        r"(?:[.,;]|$))"
    ),
    rule(r"\b(is|are)\s+now\s+(?=\w)", r"\1 "),
    rule(
        r"\bnow\s+(?=(?:projects?|measur\w+|seen|ends?|terminates?|minimal|mild|small|moderate"
        r"|\d+)\b)"
    ),
    rule(
        rf",\s*(?:previously|formerly)\s+{SIZE_WORD}\s*,?\s+(?:is|are)?\s*(?:now\s+)?"
        rf"(?={SIZE_WORD})",
        " <has> ",
    ),
    rule(r"<has>", "is"),
    rule(
        r"\b(is|are)\s+(?:now\s+)?(?:\w+ly\s+)?(?:improving|improved|worsening|worsened"
        r"|resolving|clearing|progressing|increasing|decreasing)(?=\s*(?:[.,;]|$))",
        r"\1 present",
    ),
    rule(
        r"\bpersists(?:,?\s+(?:but|and|although)\s+(?:is|appears)?\s*(?:now\s+)?(?:\w+ly\s+)?"
        r"(?:smaller|larger|improved|worse|decreased|increased))(?=\s*(?:[.,;]|$))",
        "is present",
    ),
    rule(
        r"\bpersist(?:,?\s+(?:but|and|although)\s+(?:are|appear)?\s*(?:now\s+)?(?:\w+ly\s+)?"
        r"(?:smaller|larger|improved|worse|decreased|increased))(?=\s*(?:[.,;]|$))",
        "are present",
    ),
    rule(
        r"^the patient has (?:now |since |also |again )?(?:developed|received)\s+(?=an?\b|new\b"
        r"|bilateral\b|right\b|left\b)",
        "There is ",
    ),
    rule(
        r"\b(with|and)\s+(?:(?:interval|slight|mild|some|an?|further)\s+)*(?:decrease|increase"
        r"|improvement|worsening|progression)(?:\s+in size)?\s+(?:in|of)\s+(?:the\s+)?(?=\w)",
        r"\1 ",
    ),
    rule(r"\bnew(?:ly)?\s+(?:placed|inserted|developed|developing|seen)\s+"),
    rule(
        r"^(?:overall,?\s+)?(?:stable|unchanged)\s+(?:appearance of (?:the )?)?(?:chest|exam"
        r"(?:ination)?|study|radiographs?)\s*,?\s*(?:with|and)\s+(?=\w)"
    ),
)

# Larger, smaller, more or less than before.
_LARGER = (
    rule(
        r"\b(is|are)\s+(?:now\s+)?(?:(?:slightly|mildly|markedly|significantly|somewhat"
        r"|minimally|overall|much)\s+)*"
        r"(?:larger|smaller|worse|better|greater|(?:more|less)\s+(?:conspicuous|prominent"
        r"|apparent|extensive|pronounced"
        r"|dense|confluent|evident|distinct|severe|marked))(?:\s+(?:than|as|versus)\s+"
        r"(?:previously|before|earlier"
        rf"|(?:on|in)\s+{PRIOR}|{PRIOR})(?:\s+(?:seen|noted|described))?|\s+(?:compared (?:to"
        rf"|with)|since|from)\s+{PRIOR})?(?=\s*(?:[.,;]|$))",
        r"\1 present",
    ),
    rule(
        r",\s+(?:(?:slightly|mildly|markedly|significantly|somewhat|minimally|overall|much)\s+)*"
        r"(?:larger|smaller|worse|better|greater|(?:more|less)\s+(?:conspicuous|prominent"
        r"|apparent|extensive|pronounced"
        r"|dense|confluent|evident|distinct|severe|marked))\s+(?:than\s+(?:previously|before"
        r"|earlier"
        rf"|(?:on|in)\s+{PRIOR}|{PRIOR})|(?:compared (?:to|with)|since|from)\s+{PRIOR})(?=\s*"
        rf"(?:[.,;]|$))",
        "",
    ),
)

# There is no earlier study for comparison.
_NO_EARLIER_STUDY = (
    rule(
        rf"^(?:in|with|given|due to)?\s*(?:the\s+)?(?:absence|lack) of (?:(?:any|an?"
        rf"|the)\s+)?{PRIOR}"
        r"(?:\s+(?:for|available)(?:\s+for)?(?:\s+\w+)?)?\s*,?\s*"
    ),
    rule(
        rf",?\s*\b(?:no|without)\s+(?:(?:any|an?)\s+)?(?:available\s+)?(?:priors?|previous"
        rf"|comparisons?|old|earlier)"
        rf"(?:\s+{STUDY})*(?:\s+(?:is|are|were|was))?(?:\s+available)?"
        r"(?:\s+(?:for|at)\s+(?:this\s+)?\w+)?\s*(?:[,;]\s*|$|(?=\.)|(?=\sshow|\sdemonstrat"
        r"|\sreveal))"
    ),
)

COMPARISONS = (
    *_PRESENT_FINDINGS,
    *_CONSTRUCTIONS,
    *_EARLIER_SIZES,
    *_CHANGE_OF,
    *_PHRASES,
    *_MOVED,
    *_FURTHER_PHRASES,
    *_LARGER,
    *_NO_EARLIER_STUDY,
)

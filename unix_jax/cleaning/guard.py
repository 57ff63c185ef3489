"""Guard against unsafe changes of a report: nothing lost, nothing added, complete sentences.

The guard is independent of the rules. It is asked after each of them; a refusal sets the report
aside with the reason.
"""

import re
from collections import Counter

from unix_jax.cleaning.facts import (
    Facts,
    critical_first,
    difference,
    facts,
    holds_finding,
    mentions,
    negations,
    normal_statements,
    of_now,
    qualities,
    statements,
    states_something,
)
from unix_jax.data.report_sections import report_sections, sections_as_read, split_written

_VERB = re.compile(
    r"\b(?:is|are|was|were|has|have|had|may|might|could|can|cannot|should|would|will|appears?"
    r"|seems?"
    r"|shows?|demonstrates?|reveals?|overl(?:ies|ie|ay|ays)|projects?|terminates?|represents?|lies?"
    r"|reflects?|suggests?|obscures?|measures?|extends?|ends?|courses?|recommend(?:ed)?|suggested"
    r"|correlate|consider|seen|noted|identified|present|visualized|limits?|accentuates?)\b",
    re.IGNORECASE,
)
_BAD_START = re.compile(
    r"^(?:is|are|was|were|has|have|had|may|might|could|should|will|would|be|been|of|from|by|than"
    r"|which|that|who|and|or|but|nor|including|representing|due|size|limits|changed?|slightly"
    r"|mildly"
    r"|significantly"
    r"|to(?! (?:the )?(?:left|right))|into|since|versus|(?:the|an?)(?=\W*$))\b",
    re.IGNORECASE,
)
_BAD_END = re.compile(
    r"\b(?:and|or|with|of|to|in|on|at|by|from|for|the|an?|as|is|are|was|were|be|been|has|have"
    r"|had|may"
    r"|which|that|than|but|since|per|via|into|over|versus|appears?|remains?|possibly|no"
    r"|mildly|slightly|significantly|without|could|might|within|between|overlying|representing"
    r"|measuring|approximately|whether|including|demonstrating|involving|causing|projecting|least"
    r"|residual|adjacent|both|-view|very|suggesting|reflecting|outside|same|raise|intact|cannot"
    r"|can|not|if|known|nipple|(?:is|are) (?:more|less|also)|not as \w+"
    r"|(?:must be|is|are) considered|(?<!less )(?<!more )(?<!most )likely)"
    r"\W*$",
    re.IGNORECASE,
)
_BROKEN = re.compile(
    r"\b(?:the|an?)\s+(?:is|are|was|were|of|in|on|at|and|or|with|the|an?|to|from|has|have|may)\b"
    r"|\b(?:of|in|with|from|for|and|or|at|by|into|within)\s+(?:and|or|of|is|are|was|were|from|has"
    r"|have|may|with|which)\b"
    r"|\b(?:is|are)\s+(?:is|are|of|the\W|and|or|to(?! be))\b"
    r"|\b(?:has|have)(?: been)? (?:with|to|for|in|on|at|and|is|are)\b|\b(?:Mr|Mrs|Ms"
    r"|Dr)\. (?:has|is|and)\b"
    r"|\b(?:is|are) (?:may|might|could|includes?)\b|\bin without\b|\bno the\b"
    r"|\b(?:do|does|did) not the\b|\bas with an?\b|^it is for\b"
    r"|\ban? (?:vascular|cortical|osseous|voluntary|retention) (?:or|and|in|on|with|considering)\b"
    r"|\b(?:amount|degree|portion|number) of (?:\w+ing|in|over)\b|\b(?:other|no) or\b"
    r"|\bstatus post (?:with|and|or|in)\b"
    r"|\b(?:suggests?|suspicious for|due to|with) or\b|, from (?:19|20)\d\d\b|\bwithin limits\b"
    r"|\bwhether (?:the |this |it )?\w*\W*$|\band (?:in|of) the (?:position|size|appearance"
    r"|location)\b"
    r"|\b(?:and|or|with|of|in|but|has|have|is|are),(?! as\b)"
    r"|^(?!post|bronchiect|degener|emphys|fibro|chronic|cystic|interst)(?:\w+ )?changes with\b"
    r"|\b(?:sternal|mediastinal|hilar|pulmonary|cardiac|pleural|osseous|bony|vascular|thoracic"
    r"|aortic)"
    r"\s+(?:from|is|are|was|were|of)\b|\b(?:is|are|has|have|the|an?|of|in|at|with|by"
    r"|for|(?<!less )(?<!more )(?<!most )likely|no)\s*[,;.]"
    r"|, (?:position|appearance)\W*$|\bwith (?:(?:the )?lungs? with|in|at|on|over|within)\b"
    r"|\bin the AP(?=\W*$| (?:could|may|is)\b)|\bas (?:aneurysm|mass)\b|\bthe,"
    r"|^(?:(?:an?|the|there (?:is|are|may be)) )*(?:\w+ly )?(?:calcified|probable|possible"
    r"|questionable|small|tiny|large|mild|moderate|dense|round(?:ed)?|subtle|vague|focal|minimal"
    r"|multiple|several|few|old|healed) (?:in(?! size)|within|at|over(?:lying)?|of the)\b"
    r"|\b(?:body|lobe|lung|heart|fissure) the\b|\bappears? to (?:above|below|in|within|over)\b"
    r"|\b(?:no|without)\s+(?:is|are|of|in|on|and|or)\b|\b(?:due|secondary|related) (?:in|and|or)\b"
    # A clause after a verb that lost its predicate, and words beside a hidden one.
    r"|\b(?:is|are) (?:there|its|their|but|whereas|while|although|ends|measures|terminates)\b"
    r"|\b(?:do|does|did) (?:may|might|could)\b|\brepresent for\b|\bby (?:ends?|is|are|was)\b"
    r"|\b(?:was|were|appears?|demonstrates?|shows?)(?:,| (?:and|but|there)\b)|\bbut and\b"
    r"|\ban? \d+(?:\.\d+)?(?: ?x ?\d+(?:\.\d+)?)? ?-?(?:mm|cm) (?:in|at|within|over|is|are)\b"
    r"|\bthere (?:is|are) (?:(?:in|de)creased|suspected) (?:in|at|within|over|of)\b"
    r"|^(?:suspected|(?:in|de)creased|probable) (?:in|at|within|over|of)\b"
    r"|\b(?:demonstrates?|shows?|reveals?)\W*$|^(?:slowly|rapidly|gradually|steadily)\b"
    r"|\bmeasur(?:es?|ing) (?:x|by|in|at|cm|mm)\b|\b[TL] (?:and|or|through|to)\b"
    r"|\bno (?:focal|acute|large|new|other|significant|definite|\w+ly)\s*[,;]"
    r"|[-\u2013\u2014]\s*[.;,]"
    r"|\b(?:greater|less) (?:left|right)\b|\bmm was \d|\beach\W*$"
    r"|\b(?:effusions?|edema|atelectasis|opacit(?:y|ies)|nodules?|mass(?:es)?|consolidations?"
    r"|pneumothora(?:x|ces)) in (?:size|extent|number) (?:but|and)\b"
    r"|(?<!may)(?<!might)(?<!could)(?<!would)(?<!should)(?<!must)(?<!can)(?<!cannot)(?<!will)(?<!to)"
    r"(?<!not)(?<!ly)(?<!also)(?<!well)(?<!still)(?<!again)(?<!and)(?<!or) be\b",
    re.IGNORECASE,
)
# A change or property without its noun.
_BARE = re.compile(
    r"^(?:the |an? )?(?:\w+ly |mild |moderate |marked |severe |slight )*(?:enlargement|enlarged"
    r"|prominen\w+|elevat\w+|displace\w+|widening|dilat\w+"
    r"|broken|fractured|calcified|thickened|tortuous|widened|blunt\w+|loss|narrowing|deviat\w+"
    r"|and \w+|suspicious|concerning|consistent|compatible|suggestive|possibl[ey]|questionable)\W*$"
    # Findings and parts of the body without a statement.
    r"|^there is lung volumes\b|^(?:subcutaneous )?soft tissues?\W*$"
    r"|^(?:these|those|this) \w+\W*$"
    r"|^(?:these |the |this )?findings? including\b(?!.*\b(?:is|are|was|were|may|suggests?)\b)"
    r"|^(?:\w+ )?(?:contours?|silhouettes?|structures?) and\b(?!.*\b(?:is|are|normal|clear|intact"
    r"|unremarkable|within|appears?|seen|noted)\b)",
    re.IGNORECASE,
)
_CHANGE = (
    r"(?:develop|increas|decreas|improv|worsen|progress|clear|resolv|enlarg|diminish|chang)(?:ed)\b"
)
_HISTORY = (
    r"(?:\w+[ /-]){0,4}?(?:granulo|gunshot|avn|embol|infarct|infect|inflam|surg|stern|thorac"
    r"|cholecyst|cabg|bypass|fract|trauma"
    r"|injur|tb\b|tubercul|expos|asbest|diseas|mastect|lobect|resect|radiat|histopl|rib\b|pneumon"
    r"|operat|interven|valve|fusion|verteb|kyph|lumpect|lamin|hernia|replac|repair|insult|scar"
    r"|procedure|biops|cardiac surg|coronary|empyema|therap|cerv|sten|spin|process|mi\b|ct.guid"
    r"|median|midline|abdom\w+ (?:surg|oper)|healed|arthro|pleu|ortho|mediastin)"
)
_SIZE = r"(?:tiny|trace|minimal|small|mild|moderate|large|marked|severe|extensive)\b"
_SPEAKS_OF_PRIOR = re.compile(
    rf"\b(?:compared|comparing) (?:to|with)\b(?! (?:the )?(?:left|right|contralateral|other"
    rf"|opposite))"
    rf"|\bcomparisons?\b|\b(?:prior|previous)\b(?![ /]{_HISTORY})"
    r"|\bpreviously\b|\bsince\b|\b(?<!short )(?<!short-)(?<!term )interval\b(?! (?:follow|radiogr))"
    r"|\bunchanged\b|\bstable\b|\bpersist(?:s|ent|ently|ed)?\b|\bremains?\b|\bagain\b"
    r"|\bre-?demonstrat|\b(?:no|without|not|nor) (?:(?:significant(?:ly)?|interval|apprecia\w+"
    r"|substantial(?:ly)?|definite(?:ly)?|relevant|gross(?:ly)?|further|really|much|major) ){0,3}"
    r"chang(?:e|ed|es)\b(?! of)"
    rf"|\b(?:has|have) (?:\w+ ){{0,3}}{_CHANGE}|\bno longer\b|\b(?:is|are) (?:\w+ )?(?:new|improved"
    r"|worse|worsened|decreased since|resolved)\b|\bimprov(?:ed|ing|ement)\b|\bworsen(?:ed|ing)\b"
    r"|\bresolv(?:ed|ing)\b|\bnew(?:ly)?\b(?! (?:york|born))"
    r"|^there has been (?:\w+ )*(?:resolution|removal)\b|\b(?:increased|decreased) size of\b"
    r"|\benlarging\b|\bnow (?=proj|meas|seen|ends?|term|mini|mild|small)"
    r"|\bor significant change\b|(?:^|been |interval )clearing of\b|\b(?:is|are) clearing\b"
    r"|\bdating back\b|\bpriors\b|\byesterday\b"
    r"|, (?:increased|decreased|larger|smaller|improved|worsened)[.]?$"
    r"|\b(?:has|have) been "
    r"(?:removed|replaced|exchanged|inserted)\b|\bappears? to be (?:\w+ )?progression\b"
    r"|^(?:increase|decrease)d? in\b|\bas before\b"
    r"|^(?:grossly |essentially )?similar\b(?! to (?:the )?(?:left|right))"
    r"|\b(?:slightly|mildly|somewhat|markedly|significantly|minimally|much) (?:smaller|larger"
    r"|improved|worse)\b(?! (?:than|on|in|at) (?:the )?(?:left|right|base|bases|lower|upper))"
    r"|\bwith (?:complete |interval )?resolution of\b|\b(?:has|have) (?:now )?(?:moved|migrated)\b"
    r"|^now (?:located|in|within|at)\b|\bstability over\b|\bdisease progression\b"
    r"|\bprogression of (?:the )?disease\b|^(?:interval )?(?:decrease|increase) and\b"
    r"|^(?!.*\b(?:heart|cardi\w+|aort\w+|silhouette)\b).*\b(?:is|are) (?:\w+ ){0,3}"
    r"(?:in|de)creased in (?:size|number)\b"
    r"|\binterim\b|\bnow\b|\bcontinued\b|\bcontinues? to\b"
    rf"|\b(?:has|have) (?:\w+ ){{0,3}}(?:shrunk|grown|doubled|tripled|(?:re-?)?accumulated"
    r"|re-?expanded|returned|recurred|reappeared)\b|\bre-?(?:accumulated|expanded)\b"
    r"|\breturn(?:ed|s)? to (?:normal|baseline)\b|\bformerly\b|\bovernight\b|\bprogressing\b"
    r"|\b(?:over|during|in) the (?:past|last)\b|\(was \d|\bremoved\W*$|\bnot (?:in|de)creased\b"
    r"|\b(?:is|are) (?:(?:now|slightly|mildly|much|markedly|somewhat|minimally) )*(?:smaller"
    r"|larger|bigger)"
    r"\b(?! (?:than|on) the (?:left|right))|\bstill (?:present|seen|noted|visible|evident|there"
    r"|with)\b"
    rf"|\b(?:in|de)creased from (?:\d|{_SIZE})|\b(?:in|de)creased, now\b"
    r"|\b(?:less|more) (?:(?:pleural|pulmonary|interstitial) )?(?:edema|effusions?|atelectasis"
    r"|opaci\w+"
    r"|consolidations?|congestion|fluid|infiltrat\w+)\b"
    r"|\b(?:near-?complete |partial |interval |complete )?resolution of (?:most|much|some)\b"
    r"|\bprogressive(?! (?:massive|multifocal|systemic))\b|\bnone (?:is|are) available\b"
    r"|\b(?:no|without|not) (?:\w+ ){0,4}(?:enlargement|growth|progression) of (?:the|this|that"
    r"|these|an?) (?!heart|card|aort|azyg|pulmonary art|hil|mediast)"
    r"|\b(?:is|are|has|have) (?:\w+ )?(?:gone|disappeared)\b"
    r"|\bshows? (?:interval )?(?:growth|improvement|worsening|progression|stability|no growth)\b"
    r"|, (?:\w+ )?(?:in|de)crease in\b|, (?:\w+ )?(?:improvement|worsening) (?:in|of)\b"
    r"|\bbetter (?:aerated|inflated|expanded)\b|\bre-?expansion\b|\b(?:on|from) (?:the )?recent "
    r"(?:chest |abdom\w+ )?(?:CT|MR|radiogr|film|stud|exam)"
    r"|\b(?:effusions?|edema|atelectasis|pneumothorax|consolidations?|opacit(?:y|ies)|nodules?"
    r"|infiltrates?) (?:\w+ly )?(?:in|de)creased\b"
    r"|\b(?:more|less) \w+ than\b|\b(?:days?|weeks?|months?|years?) ago\b"
    r"|\bover \d+ (?:days?|weeks?|months?|years?)\b|, (?:worse|better)\W*$"
    r"|\b(?:in|de)creased (?:on the|left and|right and) (?:left|right)\b"
    r"|\b(?:is|are|remains?) (?:\w+ly )?constant\b|\bthere (?:is|are) still\b"
    r"|\bat most (?:\w+ )?changed\b|\bwhen it (?:was|measured)\b"
    r"|\bshows? (?:an? )?(?:in|de)crease\b|\b(?:more|less) conspicuous (?:and|but)\b"
    r"|\b(?:has|have) yet to\b|\b(?:little|hardly any|minimal|barely any) (?:\w+ )?changes? in\b"
    r"|\bwas (?:seen|present|noted|visible) (?:in|on)\W* but\b"
    r"|\bbut (?:is|are) not (?:\w+ )?today\b",
    re.IGNORECASE,
)


# Parts of the body, and that they are normal. A sentence of these words alone states nothing if it
# otherwise stated only a change.
_ANATOMY = (
    r"normal\w*|unremarkable|intact|clear|limits?|heart|cardiac|lungs?|pulmonary|mediastin\w+"
    r"|cardiomediastin\w+|(?:peri)?hilar|hila|hilum|hilus|pleural?|bony|osseous|skelet\w+"
    r"|spine|spinal"
    r"|ribs?|aort\w+|vascul\w+|soft|tissues?|structures?|silhouettes?|contours?|size|volumes?|shape"
    r"|abdom\w+|upper|lower|left|right|bilateral\w*|appearances?"
    r"|configuration|alignment|position\w*|place|cardiopulmonary|sulc\w+|diaphragm\w*"
    r"|hemidiaphragm\w*|trache\w+|airways?|bones?|vertebra\w*|bodies|body|base|bases|apex|apices"
    r"|fields?"
    r"|zones?|midline|central|great|vessels|projections?|apical|lobes?|lordotic|costophrenic|angles?"
    r"|aerat\w+"
    r"|inferior|superior|quadrant|extremity|[a-z]+-sided|extent|inflat\w+|bronchovascular"
    r"|basilar|cortical|venous|pelvis|nasopharynx|skin|neck|parenchyma|surfaces?|lumbar|cervical"
    r"|segments?|spaces?"
)
# Words without a meaning for the image by themselves: a sentence of these alone may be removed.
_IS_ANATOMY = re.compile(_ANATOMY, re.IGNORECASE)
_EMPTY = re.compile(
    rf"{_ANATOMY}|"
    # function words, empty verbs and adverbs
    r"the|this|that|these|those|there|there's|with|without|within|have|been|were|also|both|from"
    r"|appears?"
    r"|seen|noted|visualized|visible|identified|remaining|remainder|remains?|grossly|mildly"
    r"|slightly"
    r"|otherwise|likewise|likely|evidence|signs?|some|many|over|overlying|made|note|incidental\w*"
    r"|visualization"
    r"|demonstrat\w+|show\w*|present|apparent\w*|obvious|findings?|well|could|would|should|will"
    r"|more|less"
    r"|very|than|into|each|appearing|slight|multiple|found|generally|better|perhaps|definitely"
    r"|relatively|essentially|overall|same|such|just|only|most|much|even|still|about|approximately"
    r"|under|above|below|where|while|which|particularly|because|however|therefore|other|their"
    r"|them|they"
    r"|not|and|for|are|was|has|its|had|but|any|may|might|can|cannot|due|per|via|out|our|you|your"
    r"|his|her"
    r"|him|she|here|when|then|none|nor|near|level|given|being|does|did|done|unable|unclear|who|whom"
    # change and earlier examinations
    r"|constant|slowly|rapidly|gradually|steadily|appeared|moved|migrated|outward|represent\w*|focused|interval|change\w*|unchanged|stable|stability|since|prior|priors|previous\w*|again|compar\w+"
    r"|similar\w*|improv\w+|increas\w+|decreas\w+|progress\w*|wors\w+|resol\w+|substantial\w*"
    r"|appreciabl\w*|significantly|clinically|removal|earlier|recent\w*|outside|available"
    r"|availability"
    r"|current|persist\w*|time|hours?|days?|weeks?|months?|years?|ago|today\w*|yesterday|interim"
    r"|absence"
    r"|lack|old|last|previously|evol\w+|short|long|term|further|differ\w+|major|gross|detrimental"
    r"|secondary|associated|intravenous|chronicity|lumen|removed|verify|cross|sectional|partial\w*|excluded|having|current\w*|remote|markedly|largely|moderately"
    r"|somewhat|as|now|exists?|establish\w*|document\w*"
    # the examination and its technique
    r"|chest|thora\w+|process|acute|focal|definite|significant|relevant"
    r"|reveals?|contrast|noncontrast\w*|enhanced|two-view|swimmers?|crosstable|cross-table"
    r"|sternum|computed"
    r"|condition|dedicated|detailed|resolution|parenchyma|setting|neck|online|point|age|field"
    r"|of-view|vi?ew"
    r"|study|studies|exam\w*|views?|film\w*|radiograph\w*|x-?rays?|images?|imaging|technique"
    r"|technical\w*"
    r"|limited|lateral|frontal|portable|inspirat\w+|effort|quality|obtained|performed|consists?"
    r"|two|one"
    r"|three|four|single|evaluat\w+|assess\w*|scans?|tomogra\w+|radiologist|certified|interpret\w*"
    r"|review(?:ed)?|submitted|provided|acquired|taken|dated?|upright|supine|erect|report\w*"
    r"|dictat\w+|ap|pa"
    r"|rotat\w+|oblique|decubitus|magnification|bedside|cassettes?|addend\w*|reading|read|wet"
    r"|preliminary"
    # advice and notifications
    r"|exact|voluntary|suboptimal|raise|around|entered|surgical|trauma|nursing|agree\w*"
    r"|concur\w*|including|little|longer|end|cardio|region|tenderness|discordant"
    r"|high|dyspnea|superimposed|top|artifact\w*"
    r"|term|enhanced|near|after|following|upon|icu|urgently|promptly|define|benefit|orientation"
    r"|nonemergent|already|appropriate|treatment|side|area|determine\w*|alternatively"
    r"|concern|elsewhere|presence|workup|establish|versus|additional|like|case|through|expected"
    r"|suited|options?"
    r"|choice|best|reference|possible|possibly|follow(?:ed)?|ordered|desired?|needed|repeat|lumbar"
    r"|cervical|through|mid"
    r"|recommend\w*|consider\w*|correlat\w+|suggest\w*|follow-?\s?up|clinical\w*|helpful"
    r"|informative|needed"
    r"|necessary|useful|useful|warranted|indicated|characteriz\w+|history|patient\w*|symptoms?"
    r"|discuss\w*"
    r"|results?|(?:tele)?phone\w*|call\w*|drs?|doctors?|thank\w*|communicat\w+|convey\w+"
    r"|critical|signed"
    r"|electronic\w*|physicians?|practitioners?|clinicians?|providers?|nurses?|residents?|attending|referring"
    r"|ordering"
    r"|technologist|trying|arrange|admission|staff|team|pag(?:e|ed|er|ing)|notif\w+|informed?"
    r"|aware|relayed|e-?mail\w*|text(?:ed)?|told|sent|message"
    r"|acknowledg\w+|receipt|received|accepted|questions?|regarding|concerning|contact\w*"
    r"|department|emergency"
    r"|service|opportunity|assist\w*|care|primordial|veriphy|transcri\w+|verbal\w*|directly"
    r"|immediate\w*"
    r"|urgent\w*|person|secure|fax\w*|order|room|left|system|employed|using|feel|free|please"
    r"|participate"
    r"|discovery|medical|house|covering|md|rn|np|am|pm|report|office|dashboard|flagged|confirm\w*"
    r"|posted|requests?|requested|courtesy|referral|minutes?|personally|observation"
    r"|january|february|march|april|june|july|august|september|october|november|december"
    r"|monday|tuesday|wednesday|thursday|friday|saturday|sunday",
    re.IGNORECASE,
)
# Words that a rule may remove from a sentence that mentions a change or contains a mark.
_MODIFIED_CHANGE = re.compile(
    r"\b(?:(?:tiny|minimal|mild|moderate|large|marked|severe|small|considerable|partial|slight"
    r"|dramatic"
    r"|subtle)\s+(?:interval\s+)?)(?=(?:interval|increases?|decreases?|improvement|worsening"
    r"|progression"
    r"|reduction|development|clearing|change)\b)",
    re.IGNORECASE,
)
_CHANGE_OR_GONE = re.compile(
    r"(?:perceptible|noticeable|related|dating|pulled|back|insertion|new\w*|grown|enlarging|longer|distinct|develop\w*"
    r"|appeared|occurred|diminish\w*"
    r"|reduc\w+|enlarge\w*|larger|smaller|clear\w+|removed"
    r"|placement|placed|insert\w+|redemonstrat\w*|re-demonstrat\w*|continu\w+|recur\w*|advanced"
    r"|withdrawn"
    r"|retracted|repositioned|conspicuous|confluent|extensive|pronounced|measur\w+|exchanged"
    r"|nearly|almost"
    r"|partial\w*|mostly|largely|incomplete\w*|virtually|complete\w*|described|now|once"
    r"|appreciated"
    r"|onset|becom\w+|somewhat|having|during|demonstrated|before|readily|best|note[ds]?"
    r"|worse|prominent"
    r"|dense|known|additional|known|known|entirely|fully|subsequent\w*|formerly|undergone"
    r"|resum\w+|re-?accum\w+"
    r"|extubat\w+|patient|degree|number|amount|severity|location"
    r"|locations|density"
    r"|consolidated|nodular|residual|dramatic\w*|subtle|latter)",
    re.IGNORECASE,
)
_WORD = re.compile(r"[^\W\d_]+(?:['-][^\W\d_]+)*")
# A mark with the words that a hyphen joins to it.
_HIDDEN_MARK = re.compile(r"\[\*\*.*?\*\*\]|(?:\w+-)?(?:_{2,}|\w*X{3,}\w*)(?:-[\w-]+)?")
# Words that the rules may insert.
_SETS_IN = (
    "a abnormality an and angle angles aorta appear appearance appears arch are area areas "
    "bilaterally blood bones border cava changes clear compatible deformity device devices "
    "effort endotracheal evidence excluded field field-of-view heads height heights "
    "imaging increased indicate inspiratory is least left-sided likely lungs made material may "
    "measure "
    "measures "
    "no nodes note or other overlie pad place possible possibly present projecting ray "
    "reflect represent representing right-sided seen signs silhouette structure structures "
    "suggest swelling system telemetry the there thought tube tubes vena vessels view views was "
    "with x-ray "
    "barrel cuff device injury limited low materials more risk shadow such window "
)
_SET_IN = frozenset(_SETS_IN.split())


# Facts that may replace a hidden word: a doubt, or a device or structure without its kind.
_OF_HIDDEN = (
    "doubt",
    'the finding "devices"',
    'the negative finding "devices"',
    'the finding "nodes"',
    'the negative finding "abnormalit"',
    'the negative finding "swelling"',
    'the finding "deform"',
)


# Doubt or a cause whose object is hidden: "suggesting XXXX.", "related to old XXXX."
_HIDDEN_DIAGNOSIS = re.compile(
    r"\b(?:suggest(?:ing|s|ive)|consistent|compatible|may|might|could|representing|sequela"
    r"|related)\b(?:\s+(?:of|with|to|represent|reflect|be|sequelae?))*"
    r"\s+(?:(?:an?|old|remote|prior|superimposed|vascular)\s+)*(?:(?:X{3,}|_{2,})\s*)+(?=[.,;:)]|$|(?<=\s)(?:is|are)\b)",
    re.IGNORECASE,
)
_HIDDEN_DEVICE = re.compile(
    r"\bin\s+(?:(?!X{3}|_{2})\w+,?\s+)*(?:place|position)\b|\b(?:tips?|terminat\w+)\b",
    re.IGNORECASE,
)


# "No enlarging effusion" denies no effusion.
_DENIES_GROWTH = re.compile(
    r"\b(?:no|not|without)\s+(?!(?:[\w-]+ )?acute or progressive)(?:[\w-]+\s+){0,3}?"
    r"(?:enlarging|growing|expanding|evolving|developing"
    r"|larger|smaller|progressive|recurrent|increasing|worsening|improving)\b"
    # A stable finding is present, whatever "no" before it meant.
    r"|\b(?:no|without)\s+(?:evidence of\s+)?(?:an?\s+)?(?:stable|unchanged)\b"
    r"|\b(?:no|without)\s+[^.;,]*?\w\s+and\s+(?:stable|unchanged)\b"
    r"(?!\s+(?:heart|card\w+ (?:size|sil|cont|med)|cardiomed|mediast|hil|lung|appear|bon|oss"
    r"|aort))",
    re.IGNORECASE,
)


def refusal(before: str, after: str, *, hidden: bool = False) -> str:
    """Why a sentence must not become `after`; "" if it may.

    The counts of `facts` must be the same before and after. Beyond them every word that goes must
    be one that says nothing by itself, and every word that comes one that the rules set in: a
    finding that the counts do not know is not lost either.

    hidden: whether the change takes out hidden words. A statement that something is normal may then
      go with its hidden subject.
    """
    if not after:
        now = of_now(before)
        if holds_finding(now) or (not hidden and states_something(now)):
            had = facts(before)
            return f"would lose {_told(critical_first(had.counts)[:6], had) or 'a finding'}"
        if hidden and _HIDDEN_DEVICE.search(before):
            return "would lose a device whose name is hidden"
        word = next((w for w in content_words(of_now(before)) if not _says_nothing(w)), "")
        return f'would lose "{word}"' if word else ""
    if len(_DENIES_GROWTH.findall(before)) > len(_DENIES_GROWTH.findall(after)):
        return "would deny more than a change"
    if hidden:
        # A doubt about a hidden word is removed with it.
        before = _HIDDEN_DIAGNOSIS.sub("", before)
    had, has = facts(before), facts(after)
    lost, new = difference(had, has)
    if hidden:
        new = [name for name in new if name not in _OF_HIDDEN]
        lost = [name for name in lost if name != "normal"]
    if lost:
        return f"would lose {_told(lost, had)}"
    if new:
        return f"would add {_told(new, has)}"
    return _word_refusal(before, after, hidden)


def _word_refusal(before: str, after: str, hidden: bool) -> str:
    """`refusal` by the words alone."""
    had = Counter(content_words(_MODIFIED_CHANGE.sub(" ", of_now(before))))
    # A part of the body may be removed only with a comparison or a hidden word.
    may_lose_anatomy = hidden or speaks_of_prior(before) or _HIDDEN_MARK.search(before) is not None
    for word in had - Counter(content_words(of_now(after))):
        parts = word.split("-")
        if not all(map(may_go, parts)) or not (
            may_lose_anatomy or not any(map(_IS_ANATOMY.fullmatch, parts))
        ):
            return f'would lose "{word}"'
    for word in Counter(content_words(after)) - Counter(content_words(before)):
        if word not in _SET_IN:
            return f'would add "{word}"'
    return ""


# A title with the name after it, and a name with the title after it.
_NAME = re.compile(
    r"\b(?:(?:Drs?|Mr|Mrs|Ms|Miss|Nurse|Doctor|Prof)\b\.?(?:\s+(?:and\s+)?(?!There|The"
    r"|No\b)[A-Z][\w'-]*\.?){1,3}"
    r"|(?:[A-Z][a-z'-]+\.?\s+){1,2}[A-Z][\w'-]+,\s+(?:M\.?D|R\.?N|N\.?P|P\.?A)\b)"
)


def says_nothing_by_words(sentence: str) -> bool:
    """Whether no word of it has a meaning for the image by itself."""
    return all(map(_says_nothing, content_words(sentence)))


def _says_nothing(word: str) -> bool:
    return all(len(part) < 3 or _EMPTY.fullmatch(part) for part in word.split("-"))


def may_go(word: str) -> bool:
    """Whether a word has no meaning for the image by itself, or only that of a change."""
    return len(word) < 3 or bool(_EMPTY.fullmatch(word) or _CHANGE_OR_GONE.fullmatch(word))


def content_words(text: str) -> list[str]:
    """Words of three letters or more, in lower case, without names and hidden words."""
    words = (w.removesuffix("'s") for w in _WORD.findall(_without_names(text).lower()))
    return [word for word in words if len(word) > 2]


def _without_names(text: str) -> str:
    return _NAME.sub(" ", _HIDDEN_MARK.sub(" ", text))


def _told(names: list[str], of: Facts) -> str:
    return ", ".join(of.words.get(name, name) for name in names)


def rewriting_problems(original: str, rewrite: str) -> list[str]:
    """What a rewritten report lost or brought in, each a sentence that says how to put it right.

    A rewrite may say in one sentence what the original said in two, so that statements are compared
    as sets: each finding word and device, present, denied or doubted; the side nearest to it; each
    measurement. So is what is said of each finding: degree, age, part of the lung, number, strength
    of a doubt, and where a device lies. Negations and statements that something is normal must not
    become more.
    """
    before, after = _sections(original), " ".join(split_written(rewrite)).strip() or rewrite
    had, has = statements(before), statements(after)
    found = [f"Keep {had[name]}." for name in critical_first(had.keys() - has.keys())]
    found += [f"Do not add {has[name]}." for name in critical_first(has.keys() - had.keys())]
    found += _quality_problems(before, after)
    if negations(after) > negations(before):
        found.append("Do not add a negation.")
    elif negations(before) and not negations(after):
        found.append("Keep the negations.")
    if normal_statements(after) > normal_statements(before):
        found.append("Do not add that something is normal.")
    return found


def _quality_problems(before: str, after: str) -> list[str]:
    had, has = qualities(before), qualities(after)
    lost, new = had.keys() - has.keys(), has.keys() - had.keys()
    # "Right opacity. Left opacity." may become one plural, and the other way round.
    lost -= {f'the plural of "{stem}"' for stem, n in mentions(after).items() if n != 1}
    new -= {f'the plural of "{stem}"' for stem, n in mentions(before).items() if n != 1}
    return [
        *(f"Keep {had[name]}." for name in critical_first(lost)),
        *(f"Do not add {has[name]}." for name in critical_first(new)),
    ]


def _sections(report: str) -> str:
    """The complete text of a report on one line, with every heading within it."""
    sections = sections_as_read(report)
    sections = sections if any(sections) else report_sections(report)
    return " ".join(filter(None, sections)) or report


_NOTHING_ACUTE = re.compile(
    r"no acute (?:\w+ )?(?:findings?|process|abnormality|abnormalities)\b", re.IGNORECASE
)


# A clause that needs a verb: "..., but the left effusion", "Neither the effusion nor the edema",
# "The effusion and is moderate".
_OPEN_CLAUSE = re.compile(
    r"(?:,\s*(?:but|and)|\bwhereas|\bwhile|\balthough|^neither)\s+(?:the|this|these|that|those)\s+"
    r"(?P<clause>[^,;.]*)\W*$"
    r"|^(?P<first>[^,;.]*?)(?=,?\s+(?:although|whereas|while)\b|\s+(?:and|but)\s+(?:is|are|was|were|has|have|remains?"
    r"|appears?|there|still)\b)",
    re.IGNORECASE,
)


def _without_verb(sentence: str) -> bool:
    """Whether the first or the last clause has a subject alone."""
    return any(not has_verb(m["clause"] or m["first"]) for m in _OPEN_CLAUSE.finditer(sentence))


def broken(before: str, after: str) -> bool:
    """Whether a change made a sentence incomplete."""
    if _without_verb(after) and not _without_verb(before):
        return True
    if _BARE.match(after) and not _BARE.match(before):
        return True
    for pattern in (_BAD_START, _BAD_END):
        if pattern.search(after) and not pattern.search(before):
            return True
    if len(_BROKEN.findall(after)) > len(_BROKEN.findall(before)):
        return True
    if has_verb(after) or states_something(after) or _NOTHING_ACUTE.match(after):
        return False
    return says_nothing_by_words(after)


def has_verb(sentence: str) -> bool:
    """Whether it contains a possible verb of a main clause."""
    return _VERB.search(sentence) is not None


def speaks_of_prior(sentence: str) -> bool:
    """Whether a sentence mentions a change or an earlier examination."""
    return _SPEAKS_OF_PRIOR.search(sentence) is not None

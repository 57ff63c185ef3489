"""Counts of the statements in a report: finding words and devices with their polarity, sides,
measurements, negations, doubts and statements that something is normal.

It knows nothing of the rules. `guard` compares these counts before and after a change. Where the
lexicon is wrong it is wrong before and after alike.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Iterator

# One name of each device, and the ways in which reports write it.
DEVICES = {
    "endotracheal tube": r"endotracheal|\bett?\b|\bintubat|\bextubat",
    "tracheostomy": r"tracheostomy",
    "nasogastric tube": r"nasogastric|\bng\b|\bngt\b",
    "orogastric tube": r"orogastric|\bog\b|\bogt\b",
    "Dobhoff tube": r"dobb?-?hoff",
    "feeding tube": r"feeding tube|dobb?-?hoff",
    "chest tube": r"chest tube|thoracostomy|pleural (?:drain|catheter)|pigtail|drainage catheter",
    "drain": r"\bdrain(?:s|age)?\b|pigtail",
    "PICC": r"\bpicc\b|peripherally inserted",
    "port": r"\bport(?:-?a-?cath)?s?\b|\bmediport",
    "dialysis catheter": r"dialysis",
    "pulmonary artery catheter": r"swan|pulmonary artery catheter",
    "Hickman": r"hickman",
    "pacemaker": r"pacemaker|\bpac(?:ing|er)\b",
    "defibrillator": r"\ba?icd\b|defibrillator",
    "sternal wires": r"stern\w+ wire|cerclage|median wire",
    "clips": r"\bclips?\b",
    "stent": r"\bstents?\b|endograft|stent[- ]graft",
    "valve prosthesis": r"prosthetic valve|valv\w* (?:replacement|prosthes[ie]s|ring|repair)"
    r"|artificial valve|annuloplasty|\btavr\b|prosthetic \w+ valve",
    "balloon pump": r"balloon pump|\biabp\b",
    "ventricular assist device": r"\blvad\b|assist device|impella",
    "ECMO cannula": r"\becmo\b|cannula",
    "rods, screws or plates": r"\brods?\b|\bscrews?\b|hardware|fixation|\bplates?\b(?!-?like)",
    "joint replacement": r"arthroplasty|joint (?:replacement|prosthesis)|humeral prosthesis",
    "vena cava filter": r"\bfilter\b",
    "shunt": r"\bshunt\b",
    "stimulator": r"stimulator",
    "loop recorder": r"loop recorder",
    "monitor leads": r"monitor",
    "coils": r"\bcoils?\b",
}

# Stems, so that singular and plural, noun and verb count as one. The name of a word is its first
# alternative.
_STEMS = (
    "abnormalit abscess adenopath|lymphaden airspace"
    "|air[-\\s]space air-fluid aneurysm arthri asbest "
    "atelecta atheroscler blunt|obliterat bronchiect bulla|bulle|bleb calcif cancer|carcinom "
    "cardiomegal cavit|cavern cephaliz collaps compressi congest consolidat contusion copd crowd "
    "cuffing curvature cyst deform degenerat deminerali densit deviat diseas dislocat|sublux "
    "disrupt|broken retrolisth|spondylolisth|anterolisth goit(?:er|re) syndesmophyt|enthesophyt "
    "displace dissect dilat|ectasi|ectatic disten edema"
    "|oedema effusion elevat embol emphysem empyem "
    "enlarg|(?:heart|cardiac)\\s(?:size|silhouette)\\s(?:has|is)\\s(?:increased|larger)"
    "|increased?\\s(?:in\\s)?(?:the\\s)?(?:size\\sof\\s(?:the\\s)?)?(?:heart|cardiac)\\ssi"
    "(?:ze|lhouette) eros eventrat failure "
    "fibros|fibrot flatten fluid foreign fractur|fx\\b granulom haz[ie] "
    "hemothora|haemothora hemorrhag|haemorrhag|hematoma|haematoma|bleed hernia hyperinflat"
    "|hyperexpan|hyperaerat|overinflat "
    "hyperlucen|lucen|radiolucen hypertroph infarct infect infiltrat inflammat interstit kerley "
    "kypho lesion lymphoma malignan malposition|misplac marking mass"
    "(?:es)?\\b metasta neoplas nodul "
    "(?<!lymph\\s)nodes? obscur opaci osteopeni|osteopor osteophyt"
    "|spur perforat pneumatocel pneumomediast "
    "pneumonia pneumonit pneumoperiton|free\\s(?:intra\\w+\\s)?(?:air|gas)"
    "|(?:air|gas|lucency)\\s(?:\\w+\\s)?(?:under|underneath|beneath|below)\\s(?:\\w+\\s){0,2}"
    "(?:hemi-?)?diaphragm|sub-?(?:diaphragmatic|phrenic)\\s(?:free\\s)?(?:air|gas)"
    "|(?:intra|extra)-?(?:periton|abdom|lumin)\\w*\\s(?:free\\s)?(?:air|gas) pneumothora|ptx "
    "prominen reticul retract sarcoid scar sclero scolio|dextrosc|levosc sequela shift spondyl "
    "stenos subcutaneous\\s(?:air|gas)|crepitus tension thicken tortuo|unfold tubercul|tb\\b "
    "tumou?r varic volume\\sloss|loss\\sof\\svolume wedg(?:e|ing) widen sternotomy cabg|bypass "
    "cholecystectomy mastectomy thoracotomy lobectomy|pneumonectomy surger|surgic|postop|postsurg "
    "bullet|shrapnel catheter leads?\\b wires?\\b sutures?|staples? prosthe replacement "
    "(?:venous|central|jugular|arterial|subclavian)\\slines? generator devices?\\b process\\b"
)
# "hydropneumothorax", "micronodular": the finding within a compound.
_COMPOUND = (
    r"(?:hydro|ha?emo|pyo|fibro|reticulo|micro|multi|bronchi?o?|osteo|peri|pleuro|para|tracheo"
    r"|lymph)?-?"
)
_WORDS = (
    {
        re.sub(r"[(\\?].*", "", stem.split("|")[0]) or "line": re.compile(
            rf"(?<![a-z]){_COMPOUND}(?:{stem})\w*", re.IGNORECASE
        )
        for stem in _STEMS.split()
    }
    | {"tube": re.compile(r"\b(?<!endotracheal )tubes?\b", re.IGNORECASE)}
    | {name: re.compile(pattern, re.IGNORECASE) for name, pattern in DEVICES.items()}
)
_ANY_WORD = re.compile(
    "|".join(f"(?:{pattern.pattern})" for pattern in _WORDS.values()), re.IGNORECASE
)
# Findings that messages name first.
_CRITICAL = ("pneumothora", "tension", "pneumoperiton", "hemothora", "hemorrhag", "malposition")

# Words that deny. What denies only a change or an earlier examination denies no finding.
_ABSENT = r"(?<!not )(?<!to )(?<!until )(?<!has been )"
_OF_CHANGE = (
    r"(?!(?:\W+(?:of|any|significant(?:ly)?|interval|appreciabl[ey]|substantial(?:ly)?|definite"
    r"(?:ly)?"
    r"|obvious|relevant|gross(?:ly)?|evidence of|further|apparent|evident|marked(?:ly)?|been|the"
    r"|available|XXXX|_{2,}|much|major|acute|radiographic|any|clear|visible|additional|other"
    r"|convincing|large|overall|great(?:ly)?|previous|other|suspicious|detrimental|short|focal"
    r"|concerning|recent|for|an?|thought|felt|believed|to|be)){0,4}"
    r"\W+(?:chang\w+|compar\w+|since|priors?|previous(?:ly)?|increas\w+|decreas\w+|improve\w*"
    r"|progress\w*|worsen\w*|older?|different\w*|difference|interval change|longer))"
)
_NEGATION = re.compile(
    rf"\b(?:no|not|without|absent|absence|free of|negative for|neither|nor|cannot(?! be "
    rf"(?:\w+ly )?(?:excluded|X{{3,}}|_{{2,}}))"
    rf"|nothing|none|never|lack(?:s|ing)?)\b{_OF_CHANGE}"
    rf"|\bno longer\b|\b(?:removal|resolution) of\b|{_ABSENT}\bresolved\b"
    rf"|{_ABSENT}\b(?:been )?(?:cleared|removed)\b|\bextubat\w*",
    re.IGNORECASE,
)
_DENIES_BEFORE = re.compile(
    rf"{_ABSENT}\b(?:resolved|cleared|removed)(?=\W*$)|\bno longer\b|\bnot (?:\w+ )?(?:seen|present"
    rf"|identified|visualized|evident|visible|demonstrated|appreciated)\b|\b(?:is|are) absent\b"
    rf"|\b(?:has|have) (?:\w+ )?{_ABSENT}(?:resolved|cleared|been removed)",
    re.IGNORECASE,
)
_SCOPE_END = re.compile(
    r"[.;:]|\b(?:but|however|although|though|except|other than|there (?:is|are)|which|while"
    r"|otherwise)\b",
    re.IGNORECASE,
)
_GONE_VERBS = ("resolved", "cleared", "removed")
_REMOVAL_END = re.compile(rf"{_SCOPE_END.pattern}|\bwith\b(?!out)", re.IGNORECASE)
_CLAUSE = re.compile(
    r"[.;:](?=\s|$)|\b(?:but|however|although|though|while)\b|,\s+(?=no\b|there\b|without\b)",
    re.IGNORECASE,
)

_LUNGS_CLEARED = re.compile(r"\blungs?\s+ha(?:s|ve)\s+(?:now\s+)?cleared\b", re.IGNORECASE)
# More or less than before: not a finding by itself.
_COMPARATIVE = re.compile(
    r"\b(?:more|less)\s+(?:prominent|dense|consolidated|confluent|nodular|extensive)(?=\s*"
    r"(?:[.,;]|$|than"
    r"|compared|when compared|since|from|on (?:the )?(?:current|today)))",
    re.IGNORECASE,
)
# "Not seen earlier" is not a negative finding. A finding that grew is the finding. An earlier size
# or degree is not that of the finding.
_SIZE_WORD = r"(?:tiny|trace|minimal|small|mild|moderate|large|marked|severe|extensive)"
_AMOUNT = r"\d+(?:\.\d+)?(?:\s*x\s*\d+(?:\.\d+)?)*\s*-?(?:mm|cm|centimeters?|millimeters?)?"
_OF_PRIORS = re.compile(
    r"\b(?:near(?:ly)?|almost|partial(?:ly)?|partly|mostly|largely|incomplete(?:ly)?"
    r"|substantially|virtually)"
    r"(?:[\s-]+(?:complete(?:ly)?|total(?:ly)?|entirely|interval))*[\s-]+(?:been\s+)?(?:resolved"
    r"|cleared"
    r"|removed|resolution|clearing|resolving)\b(?:\s+of\b)?|"
    r"\b(?:no|without)(?: any)? (?:evidence|findings?|signs?|suggestion) of (?:(?:disease|interval)"
    r" (?:progression|worsening)|(?:progression|worsening) of (?:the )?disease)\b|"
    r"\bnot\s+(?:\w+\s+){0,5}?(?:on|in|from)\s+(?:the\s+|an?\s+|his\s+|her\s+|that\s+)?(?:\w+\s+)?"
    r"(?:prior|previous|comparison|earlier|preceding)\b"
    r"|\bnot\s+(?:\w+\s+){0,3}?(?:on|in|from)\s+(?:the\s+)?(?:_{2,}|X{3,})(?!\s+(?:study|view"
    r"|film|radiograph))|\bnot\s+(?:\w+\s+)?(?:seen|present"
    r"|visualized|identified)\s+(?:previously|before)\b"
    r"|\b(?:surgical|trauma|thoracic surgery|infectious disease|critical care|pulmonary)\s+"
    r"(?:team|service|staff|resident|attending)\b"
    r"|\bversus (?:the )?(?:prior|previous)\b|^comparison:?\s+none\b"
    r"|\bif none (?:is|are) available\b"
    rf"|\b(?:increased|decreased) from {_SIZE_WORD}(?!\w)"
    r"|\b(?:advanced|withdrawn|retracted|pulled back)\s+(?:by\s+)?\d+(?:\.\d+)? ?cm"
    r"|\benlarging\b|\binterval enlargement\b(?! (?:of|in) (?:the )?(?:heart|cardi))"
    r"|\b(?:has|have)\s+(?:\w+ly\s+)?enlarged\b"
    rf"|\b(?:previously|formerly)\s+(?:measur\w+\s+|about\s+|approximately\s+)*(?:{_AMOUNT}"
    rf"|{_SIZE_WORD})(?!\w)"
    rf"|\bcompared (?:to|with)\s+(?:about\s+|approximately\s+)?{_AMOUNT}(?:\s+(?:previously"
    rf"|before|on the prior))?"
    rf"|\bfrom\s+{_AMOUNT}\s*(?=to\s+\d)|\bfrom\s+{_SIZE_WORD}\s+(?=to\s+{_SIZE_WORD})"
    r"|\bboth\s+(?:(?:of which\s+)?(?:are|appear|remain)\s+)?(?:stable|unchanged|similar)"
    r"|\bimprov\w+ lung volumes bilaterally\b"
    r"|\b(?:improve\w+(?: in)?|better)\s+(?:\w+\s+)?aeration\s+bilaterally\b"
    r"|\b(?:improve\w+|increase\w*|better)\s+(?:\w+\s+)?aeration\s+(?:of|in|at)\s+(?:the\s+)?"
    r"(?:left|right|both|bilateral)"
    r"(?:\s+(?:upper|lower|mid|middle|lung))?\s+(?:lungs?|bases?|lobes?)"
    # Otherwise the place is also that of a finding.
    r"(?!\s*,?\s*(?:with|but)\s+(?:persist|residual|remaining|continued))"
    r"|\b(?:in|on)\s+(?:the\s+)?(?:absence|lack)\s+of\s+(?:\w+\s+){0,2}?(?:prior|previous"
    r"|comparison|old)\w*",
    re.IGNORECASE,
)

_HEDGE = re.compile(
    r"\b(?:may|might|could|possibl[ey]|possibility|(?:im)?probabl[ey]|(?:un)?likely|doubtful"
    r"|suspect\w*|suspicious"
    r"|suspicion|suggest\w*|question\w*|presum\w+|equivocal|indeterminate|concern(?:ing)? for"
    r"|cannot be excluded|not excluded|versus|vs|favor\w*|consider(?:ation)?"
    r"|compatible|consistent)\b",
    re.IGNORECASE,
)
_FURTHER = re.compile(r",\s*(?:and|with)\b|;", re.IGNORECASE)
# Characters by which a finding before a side counts as farther than one after it.
_BEHIND = 15
_NORMAL = re.compile(
    r"\b(?:normal|unremarkable|clear(?!\w)|intact|within (?:the )?(?:\w+ )?(?:normal )?limits"
    r"|negative)\b",
    re.IGNORECASE,
)
SIDES = {
    "left": re.compile(r"\b(?:left|L(?:UL|LL)|lt)\b|\bleft(?=\w)", re.IGNORECASE),
    "right": re.compile(r"\b(?:right|R(?:UL|ML|LL)|rt)\b|\bright(?=\w)", re.IGNORECASE),
    "bilateral": re.compile(
        r"\b(?:bilateral(?:ly)?|bibasilar|biapical|bihilar|both)\b", re.IGNORECASE
    ),
}
_MEASURE = re.compile(
    r"(?<![\w.])(?P<size>\d+(?:\.\d+)?)(?:\s*x\s*\d+(?:\.\d+)?)*\s*-?(?P<unit>mm|cm|centimeters?"
    r"|millimeters?|%|French)(?![a-z])"
    r"|(?<![\w.])(?P<vertebra>[TL]\d{1,2})(?!\w)|\b(?P<rib>\d{1,2})(?:st|nd|rd|th)\b",
    re.IGNORECASE,
)
# Properties of a finding by kind: words on one line count as the same.
_QUALITIES = r"""
trace: trace|tiny|minute|punctate
minimal: minimal(?:ly)?
small: small
mild: mild(?:ly)?|slight(?:ly)?
moderate: moderate(?:ly)?|medium[- ]sized
large: large|big|massive|huge
severe: severe(?:ly)?|marked(?:ly)?|profound(?:ly)?
extensive: extensive(?:ly)?|diffuse(?:ly)?|widespread
focal: focal(?:ly)?|local(?:ized|ised)
loculated: loculated
complete: complete(?:ly)?|entire(?:ly)?
partial: partial(?:ly)?|incomplete(?:ly)?
subtle: subtle|faint
borderline: borderline
deep sulcus: deep sulcus
acute: acute(?:ly)?
subacute: subacute
chronic: chronic(?:ally)?|long-?standing
old: remote(?!\W+(?:films?|stud\w+|exam\w*|radiograph\w*|images?|reports?))
old: (?<!year )(?<!years )old(?!\W+(?:films?|stud\w+|exam\w*|radiograph\w*|images?|reports?))
healed: healed
healing: healing
upper: upper(?!\W+limits?)|RUL|LUL
middle: middle|mid|RML
lower: lower|RLL|LLL
lingular: lingula\w*
basal: (?:bi)?bas(?:al|ilar|es?)
apical: (?:bi)?api(?:cal|ces)|apex
perihilar: perihilar
anterior: anterior(?:ly)?
posterior: posterior(?:ly)?
medial: medial(?:ly)?
peripheral: peripheral(?:ly)?(?!\W+inserted)
central: central(?:ly)?(?!\W+(?:venous|lines?|catheters?))
proximal: proximal(?:ly)?
distal: distal(?:ly)?
retrocardiac: retrocardiac
1: single|solitary
2: two|couple
3: three
4: four
5: five
6: six
7: seven
8: eight
9: nine
10: ten
several: multiple|several|numerous|many|innumerable|multifocal|scattered
few: few
unlikely: unlikely|(?:less|not) likely|doubtful|improbabl[ey]
likely: (?<!less )(?<!not )(?:likely|probabl[ey])|favou?r\w*|presum\w+
possible: possibl[ey]|possibility|may|might|could|cannot be excluded|not excluded
suspected: suspect\w*|suspici\w+|suggest\w*|concern(?:ing)? for
questionable: question\w*|equivocal
indeterminate: (?:age-)?indeterminate
compatible: compatible|consistent
versus: versus|vs
too low: too (?:low|deep|far)|low[- ]lying
too high: too high|high[- ]lying
too high: (?<=is )high|(?<=are )high|high in position
too low: (?<=is )low|low in position
well placed: (?:good|satisfactory|appropriate|adequate|acceptable|standard) position(?:ing)?
well placed: (?:proper|correct|expected|normal) position(?:ing)?
well placed: (?:good|satisfactory|appropriate|adequate|standard|proper|correct) (?:place|loca)\w+
well placed: (?:well|appropriately|properly|correctly)[- ](?:positioned|placed|located)
above: above(?=\W+(?:the|carina|level))|superior to
below: (?:below|beneath|under(?:neath)?)(?=\W+(?:the|carina|diaphragm|left|right))|inferior to
coiled: coil(?:s|ed|ing)|kink\w*|loop(?:s|ed|ing)
mainstem: main-?\s?stem|bronchus intermedius
stomach: stomach|gastric
esophagus: o?esophag\w+
trachea: trachea\w*
carina: carina\w*
atrium: atri(?:um|al)
ventricle: ventric(?:le|ular)
vena cava: vena cava|svc|ivc|cavo-?atrial
jugular: jugular
subclavian: subclavian
brachiocephalic: brachiocephalic|innominate
duodenum: duoden\w+|post-?pyloric
diaphragm: (?:hemi-?)?diaphragm\w*
midline: midline
air: air(?!\W?(?:spaces?|ways?|ation))|gas
"""


def _quality_words() -> dict[str, re.Pattern[str]]:
    found: dict[str, list[str]] = {}
    for line in _QUALITIES.strip().splitlines():
        name, _, pattern = line.partition(": ")
        found.setdefault(name, []).append(pattern)
    return {
        name: re.compile(rf"(?<![\w-])(?:{'|'.join(patterns)})(?!\w)", re.IGNORECASE)
        for name, patterns in found.items()
    }


_QUALITY_WORDS = _quality_words()
# Degrees of a change, and numbers of images and of days, are not properties of a finding.
_NO_QUALITY = re.compile(
    r"\b(?:\w+ly|trace|minimal|mild|moderate|large|marked|severe|small|partial|slight|subtle"
    r"|extensive|complete|little)\s+(?:and\s+\w+\s+)?(?:interval\s+)?(?=(?:increas|decreas|improve|worse"
    r"|progress|reduc|resol|clear(?:ing|ed)|remov|chang|larger|smaller|more|less|better|different|unchanged|stable|similar"
    r"|diminish|developed)\w*)"
    r"|\b(?:increas|decreas|improv|worsen|progress|resolv|clear|chang|diminish)ed\s+(?:\w+ly)\b"
    r"|\b(?:single|two|three|four|multiple|several|both)[\s-]+(?:\w+\s+){0,2}?(?:views?|images?|films?"
    r"|radiographs?|projections?|stud(?:y|ies)|exam\w*|days?|weeks?|months?|years?|hours?)\b"
    r"|\b(?:lower|middle|upper|high|low) (?:limits?|end) of normal\b",
    re.IGNORECASE,
)
# Between a finding and a following word that describes it.
_IS = re.compile(
    r"\W+(?:(?:is|are|was|were|appears?|seems?)\W+(?:\w+ly\W+)?"
    r"|(?:seen\s+|noted\s+)?(?:in|at|within|of|involving)\s+(?:the\s+|an?\s+)?"
    r"(?:(?:left|right|both)\s+)?)",
    re.IGNORECASE,
)
_GONE = re.compile(r"\b(?:resol(?:ved|ution)|cleared|removed|removal|no longer)\b", re.IGNORECASE)
# The singular of a noun, and verbs of the third person.
_NO_PLURAL = re.compile(
    r".*(?:ss|[iu]s)|(?:obscur|elevat|displac|compress|widen|thicken|flatten|retract|shift|enlarg"
    r"|deviat|distend|blunt|drain|collaps)\w*|.*[^s]",
    re.IGNORECASE,
)
_NAMES = {False: "the finding", True: "the negative finding"}


@dataclasses.dataclass(frozen=True)
class Facts:
    """Counts of one text.

    counts: by a name such as 'the negative finding "effusion"'; the words in it are stems.
    words: the name with the word as the text has it, for messages.
    """

    counts: Counter[str]
    words: dict[str, str] = dataclasses.field(default_factory=dict)


def facts(text: str) -> Facts:
    """Everything counted in `text`, which may be a sentence or a section."""
    text = of_now(text)
    counts: Counter[str] = Counter()
    words: dict[str, str] = {}
    for clause in _clauses(text):
        for found in _in_clause(clause):
            name = f'{_NAMES[found.denied]} "{found.stem}"'
            counts[name] += 1
            words.setdefault(name, f'{_NAMES[found.denied]} "{found.word}"')
    counts.update(
        f'the side "{side}"' for side, pattern in SIDES.items() for _ in pattern.finditer(text)
    )
    counts.update(f'the number "{number}"' for number in measurements(text))
    counts.update("a negation" for _ in _NEGATION.finditer(text))
    counts.update("doubt" for _ in _HEDGE.finditer(text))
    counts.update("normal" for _ in _NORMAL.finditer(text))
    return Facts(counts, words)


def statements(text: str) -> dict[str, str]:
    """The statements of `text` about each finding word: by a name with stems, the wording.

    Present, denied or doubted, and the nearest side. A repeated statement counts once, since a
    rewritten report may state it once.
    """
    found: dict[str, str] = {}
    for clause in _clauses(of_now(text)):
        words = list(_in_clause(clause))
        for word in words:
            kind = _NAMES[word.denied]
            if not word.denied and _doubted(word, words, clause):
                kind = "the possible finding"
            found[f'{kind} "{word.stem}"'] = f'{kind} "{word.word}"'
        for side, pattern in SIDES.items():
            for match in pattern.finditer(clause):
                if words:
                    near = min(words, key=lambda w: (_distance(w, match.start()), w.start))
                    found[f'the side "{side}" of "{near.stem}"'] = (
                        f'the side "{side}" of "{near.word}"'
                    )
    found |= {f'the number "{n}"': f'the number "{n}"' for n in measurements(of_now(text))}
    return found


def qualities(text: str) -> dict[str, str]:
    """The properties of the findings in `text`, with names as in `statements`.

    Degree, age, part of the lung, number, strength of a doubt, and where a device lies: each with
    the finding nearest to it in its clause, or alone where there is none. Words that mean the same
    have one name. The plural of a finding is a quality where `text` states it once.
    """
    found: dict[str, str] = {}
    stated: dict[str, list[str]] = {}
    for clause in _clauses(_NO_QUALITY.sub(" ", of_now(text))):
        words = list(_in_clause(clause))
        gone = _GONE.search(clause) is not None
        for word in words:
            if not word.denied:
                stated.setdefault(word.stem, []).append(word.word)
        for name, pattern in _QUALITY_WORDS.items():
            for match in pattern.finditer(clause):
                near = _described(words, clause, match.start())
                if near is None:
                    found[f'"{name}"'] = f'"{match[0].lower()}"'
                elif not (gone and near.denied):
                    found[f'"{name}" of "{near.stem}"'] = f'"{match[0].lower()}" of "{near.word}"'
    for stem, forms in stated.items():
        if len(forms) == 1 and not _NO_PLURAL.fullmatch(forms[0]):
            found[f'the plural of "{stem}"'] = f'the plural "{forms[0]}"'
    return found


def mentions(text: str) -> Counter[str]:
    """The number of times that `text` states each finding as present, by stem."""
    clauses = _clauses(of_now(text))
    return Counter(f.stem for clause in clauses for f in _in_clause(clause) if not f.denied)


def _described(words: list["_Found"], clause: str, place: int) -> "_Found | None":
    """The finding that a word at `place` describes: "effusion is small", else the nearest."""
    for word in words:
        if word.end < place and _IS.fullmatch(clause, word.end, place):
            return word
    return min(words, key=lambda w: (_distance(w, place), w.start), default=None)


def unsaid(text: str, kept: str) -> list[str]:
    """Names of the findings that `text` states, as present or possible, and `kept` does not."""
    denied = "the negative finding"
    stems = {name.split('"')[1] for name in statements(kept) if not name.startswith(denied)}
    return critical_first(
        told
        for name, told in statements(text).items()
        if name.startswith(("the finding", "the possible finding", "the number"))
        and name.split('"')[1] not in stems
    )


def _distance(word: "_Found", place: int) -> int:
    """Distance from a side to a finding; the finding after the side is preferred."""
    return word.start - place if word.start > place else place - word.end + _BEHIND


def _doubted(word: "_Found", words: list["_Found"], clause: str) -> bool:
    """Whether a word of doubt precedes it, or follows it without another finding after that word.

    Doubt ends at a further finding: "likely atelectasis, and a small effusion".
    """
    last = max(other.start for other in words)
    return any(
        hedge.start() > last
        or (hedge.start() < word.start and not _FURTHER.search(clause, hedge.end(), word.start))
        for hedge in _HEDGE.finditer(clause)
    )


def of_now(text: str) -> str:
    """The text without statements about an earlier examination only."""
    text = _LUNGS_CLEARED.sub("lungs are clear", text)
    return _COMPARATIVE.sub(" ", _OF_PRIORS.sub(" ", text))


def measurements(text: str) -> Iterator[str]:
    """Sizes with their unit, vertebrae and ribs; no dates and times."""
    for match in _MEASURE.finditer(text):
        if match["size"]:
            yield f"{match['size']} {match['unit'].lower()}"
        else:
            yield (match["vertebra"] or match["rib"]).upper()


def holds_finding(text: str) -> bool:
    """Whether the text contains a finding word, a device or a measurement, present or denied."""
    text = _COMPARATIVE.sub(" ", text)
    return _ANY_WORD.search(text) is not None or next(measurements(text), None) is not None


def states_something(text: str) -> bool:
    """Whether the text contains a finding, or states that something is normal."""
    return holds_finding(text) or _NORMAL.search(text) is not None


def _clauses(text: str) -> list[str]:
    return [clause for clause in _CLAUSE.split(text) if clause]


@dataclasses.dataclass(frozen=True)
class _Found:
    stem: str
    word: str
    denied: bool
    start: int
    end: int


def _in_clause(clause: str) -> Iterator[_Found]:
    spans = _denied_spans(clause)
    for name, pattern in _WORDS.items():
        for match in pattern.finditer(clause):
            denied = any(start <= match.start() < end for start, end in spans)
            yield _Found(name, match[0].lower(), denied, match.start(), match.end())


def _denied_spans(clause: str) -> list[tuple[int, int]]:
    spans = []
    for match in _NEGATION.finditer(clause):
        gone = match[0].lower()
        removal = gone.startswith(("removal", "resolution")) or gone.endswith(_GONE_VERBS)
        end = _REMOVAL_END if removal else _SCOPE_END
        stop = end.search(clause, match.end())
        spans.append((match.start(), stop.start() if stop else len(clause)))
    for match in _DENIES_BEFORE.finditer(clause):
        spans.append((0, match.start()))
    return spans


def difference(before: Facts, after: Facts) -> tuple[list[str], list[str]]:
    """Names of (what was lost, what is new), critical findings first."""
    lost, new = before.counts - after.counts, after.counts - before.counts
    return critical_first(lost), critical_first(new)


def critical_first(names: Iterable[str]) -> list[str]:
    """Sorted, with critical findings first."""
    return sorted(names, key=lambda name: (not any(word in name for word in _CRITICAL), name))


def negations(text: str) -> int:
    """The number of negations in `text`, except those of a change."""
    return sum(1 for _ in _NEGATION.finditer(of_now(text)))


def normal_statements(text: str) -> int:
    """The number of statements in `text` that something is normal."""
    return sum(1 for _ in _NORMAL.finditer(text))

"""Whether a sentence may be changed as a rule proposes: nothing lost, nothing new, still a sentence.

The guard is independent of the rules. It is asked after each of them; a refusal sets the report
aside with the reason.
"""

import re

from unix_jax.cleaning.facts import difference, facts, holds_finding, states_something

_VERB = re.compile(
    r"\b(?:is|are|was|were|has|have|had|may|might|could|can|cannot|should|would|will|appears?|seems?"
    r"|shows?|demonstrates?|reveals?|overl(?:ies|ie|ay|ays)|projects?|terminates?|represents?|lies?"
    r"|reflects?|suggests?|obscures?|measures?|extends?|ends?|courses?|recommend(?:ed)?|suggested"
    r"|correlate|consider|seen|noted|identified|present|visualized|limits?|accentuates?)\b",
    re.IGNORECASE,
)
_BAD_START = re.compile(
    r"^(?:is|are|was|were|has|have|had|may|might|could|should|will|would|be|been|of|from|by|than"
    r"|which|that|who|and|or|but|nor|representing|due|changed?|slightly|mildly|significantly"
    r"|to(?! (?:the )?(?:left|right))|into|since|versus|(?:the|an?)(?=\W*$))\b",
    re.IGNORECASE,
)
_BAD_END = re.compile(
    r"\b(?:and|or|with|of|to|in|on|at|by|from|for|the|an?|as|is|are|was|were|be|been|has|have|had|may"
    r"|which|that|than|but|since|per|via|into|over|versus|appears?|remains?|possibly|no"
    r"|mildly|slightly|significantly|without|could|might|within|between|overlying|representing)"
    r"\W*$",
    re.IGNORECASE,
)
_BROKEN = re.compile(
    r"\b(?:the|an?)\s+(?:is|are|was|were|of|in|on|at|and|or|with|the|an?|to|from|has|have|may)\b"
    r"|\b(?:of|in|with|from|for|and|or|at|by|into|within)\s+(?:and|or|of|is|are|was|were|from|has"
    r"|have|may|with|which)\b"
    r"|\b(?:is|are)\s+(?:is|are|of|the\W|and|or)\b|\b(?:is|are|has|have|the|an?|of|in|at)\s*[,;.]"
    r"|\b(?:no|without)\s+(?:is|are|of|in|on|and|or)\b|\b(?:due|secondary|related) (?:in|and|or)\b",
    re.IGNORECASE,
)
_CHANGE = (
    r"(?:develop|increas|decreas|improv|worsen|progress|clear|resolv|enlarg|diminish|chang)(?:ed)\b"
)
_HISTORY = (
    r"(?:\w+[ /-]){0,4}?(?:granulo|gunshot|avn|embol|infarct|infect|inflam|surg|stern|thorac|cholecyst|cabg|bypass|fract|trauma"
    r"|injur|tb\b|tubercul|expos|asbest|diseas|mastect|lobect|resect|radiat|histopl|rib\b|pneumon"
    r"|operat|interven|valve|fusion|verteb|kyph|lumpect|lamin|hernia|replac|repair|insult|scar"
    r"|procedure|biops|cardiac surg|coronary|empyema|therap|cerv|sten|spin|process|mi\b|ct.guid"
    r"|median|midline|abdom\w+ (?:surg|oper)|healed|arthro|pleu|ortho|mediastin)"
)
_SPEAKS_OF_PRIOR = re.compile(
    rf"\b(?:compared|comparing) (?:to|with)\b(?! (?:the )?(?:left|right|contralateral|other|opposite))"
    rf"|\bcomparisons?\b|\b(?:prior|previous)\b(?! {_HISTORY})"
    r"|\bpreviously\b|\bsince\b|\b(?<!short )(?<!short-)(?<!term )interval\b(?! (?:follow|radiogr))"
    r"|\bunchanged\b|\bstable\b|\bpersist(?:s|ent|ently|ed)?\b|\bremains?\b|\bagain\b"
    r"|\bre-?demonstrat|\b(?:no|without|not|nor) (?:(?:significant(?:ly)?|interval|apprecia\w+|substantial(?:ly)?|definite(?:ly)?|relevant|gross(?:ly)?|further|really|much|major) ){0,3}"
    r"chang(?:e|ed|es)\b(?! of)"
    rf"|\b(?:has|have) (?:\w+ ){{0,3}}{_CHANGE}|\bno longer\b|\b(?:is|are) (?:\w+ )?(?:new|improved"
    r"|worse|worsened|decreased since|resolved)\b|\bimprov(?:ed|ing|ement)\b|\bworsen(?:ed|ing)\b"
    r"|\bresolv(?:ed|ing)\b|\bnew(?:ly)?\b(?! (?:york|born))"
    r"|^(?:increase|decrease)d? in\b|\bas before\b|\bin the interim\b|\bcontinued\b|\bcontinues? to\b"
    r"|\b(?:more|less) \w+ than\b|\b(?:days?|weeks?|months?|years?) ago\b",
    re.IGNORECASE,
)


# A sentence that advises, or speaks of the study itself, states nothing that the film shows.
_ADVICE = re.compile(
    r"\b(?:recommend\w*|consider|correlat\w+|suggest\w*|follow-?up|further|if|study|exam\w*|views?|film\w*"
    r"|radiograph\w*|technique|technical\w*|limited|discuss\w*|report\w*|result\w*|comparison|clinical\w*"
    r"|(?:tele)?phone\w*|Drs?|thank\w*|communicat\w+|conveyed|critical|dictat\w+|signed|physician|paged"
    r"|reviewed|interpret\w*|patient|imaging|CT|scan|x-ray|notified|helpful|informative|needed)\b",
    re.IGNORECASE,
)
# Words that name a part of the body, a degree or a study, and no finding.
_FAMILIAR = re.compile(
    r"the|this|that|these|those|there|with|without|within|have|been|were|also|both|from|appears?|seen"
    r"|noted|visualized|visible|identified|remaining?|remains?|normal|unremarkable|intact|clear|limits?"
    r"|grossly|mildly|slightly|otherwise|likely|evidence|signs?|heart|cardiac|lungs?|pulmonary|mediastin\w+"
    r"|cardiomediastin\w+|hilar|hila|hilum|pleural?|bony|osseous|skelet\w+|thora\w+|chest|spine|spinal"
    r"|ribs?|aort\w+|vascul\w+|soft|tissues?|structures?|silhouette|contours?|size|volumes?|shape|abdom\w+"
    r"|upper|lower|left|right|bilateral\w*|lateral|frontal|portable|interval|change\w*|stable|unchanged"
    r"|appearance|process|acute|focal|definite|significant|other|some|many|since|prior|previous\w*|again"
    r"|over|overlying|seen|made|note|incidental\w*|visualization|configuration|alignment|position|place"
    r"|demonstrat\w+|show\w*|present|apparent|obvious|findings?|cardiopulmonary|well"
    r"|sulc\w+|diaphragm\w*|hemidiaphragm\w*|trache\w+|airways?|bones?|vertebra\w*|bodies|body|base|bases"
    r"|apex|apices|field|zones?|midline|central|great|vessels|inspirat\w+|effort|quality|images?|obtained"
    r"|performed|consists?|two|single|time|hours?|could|would|should|will|more|less|very|than|into|each"
    r"|studies|silhouettes|three|certified|radiologist|level|message|sent|appearing|slight|multiple"
    r"|projections?|apical|lordotic|characterization|costophrenic|angles?|aeration|found|inferior|superior|department|generally|evaluate|better|\w+-sided|perhaps|quadrant|extremity|definitely"
    r"|compar\w+|similar\w*|apparently|relatively|essentially|overall|improv\w+|increas\w+|decreas\w+"
    r"|progress\w*|wors\w+|resol\w+|substantial\w*|appreciabl\w*|significantly|clinically|removal"
    r"|same|such|just|only|most|much|even|still|about|approximately|under|above|below|where|while|which",
    re.IGNORECASE,
)


def refusal(before: str, after: str, *, hidden: bool = False) -> str:
    """Why a sentence must not become `after`, or "" where it may.

    hidden: whether the change takes out hidden words. A statement that something is normal may then
      go with its hidden subject.
    """
    if not after:
        if word := _unfamiliar(before):
            return f'would lose "{word}"'
        if holds_finding(before) or (not hidden and states_something(before)):
            lost = _named(facts(before).counts)
            return f"would lose {lost}"
        return ""
    lost, new = difference(facts(before), facts(after))
    if hidden:
        new = [name for name in new if name not in ("doubt", 'the finding "devices"')]
        lost = [name for name in lost if name != "normal"]
    if lost:
        return f"would lose {', '.join(lost)}"
    if new:
        return f"would bring in {', '.join(new)}"
    return ""


def _unfamiliar(sentence: str) -> str:
    """A word that is not known to say nothing by itself, or "" where all are."""
    if _ADVICE.search(sentence):
        return ""
    words = re.findall(r"[a-z][a-z'-]{3,}", re.sub(r"X{3,}|_{2,}", " ", sentence.lower().replace("xxxx", " ")))
    return next((word for word in words if not _FAMILIAR.fullmatch(word)), "")


def _named(counts: dict[str, int]) -> str:
    return ", ".join(sorted(counts)[:6])


def broken(before: str, after: str) -> bool:
    """Whether a changed sentence is none any more, by what the change itself brought about."""
    for pattern in (_BAD_START, _BAD_END):
        if pattern.search(after) and not pattern.search(before):
            return True
    if len(_BROKEN.findall(after)) > len(_BROKEN.findall(before)):
        return True
    return (
        not has_verb(after)
        and not states_something(after)
        and not _ADVICE.search(after)
        and not _unfamiliar(after)
    )


def has_verb(sentence: str) -> bool:
    """Whether a word of it may be a verb of a main clause."""
    return _VERB.search(sentence) is not None


def speaks_of_prior(sentence: str) -> bool:
    """Whether a sentence speaks of change or of an earlier examination."""
    return _SPEAKS_OF_PRIOR.search(sentence) is not None

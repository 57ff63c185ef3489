"""Notes to doctors: notifications by telephone or otherwise, signatures and thanks.

A sentence that also contains a finding is cut at the note. If no cut keeps the finding, the rule
returns "", which the guard refuses, and the report is set aside.
"""

import re
from collections.abc import Iterator

from unix_jax.cleaning.facts import states_something
from unix_jax.cleaning.guard import broken, refusal
from unix_jax.cleaning.marks import MARK
from unix_jax.cleaning.sentences import each_sentence, mended

_PERSON = (
    r"(?:Drs?\b\.?|M\.?[DO]\.?s?\b|(?:house|care|primary|clinical|medical|surgical|ICU|ED|ER|trauma"
    r"|covering) (?:staff|team|officer)|(?:the )?(?:\w+ )?(?:physicians?|providers?|clinicians?"
    r"|doctors?|nurses?|attendings?|residents?|interns?|surgeons?|radiologists?|practitioners?|team)\b|R\.?N\b"
    r"|N\.?P\b)"
)
_TOLD = (
    r"(?:discuss\w*|communicat\w+|convey\w+|notif\w+|telephon\w+|phoned?|pag(?:ed|er|ing)|call"
    r"(?:ed)?"
    r"|relay\w+|e-?mail\w*|told|text(?:ed)?|inform\w+|(?:made )?aware|alerted|advised|brought to"
    r"|report(?:ed)?|transmitted|review\w*|sent|given|acknowledg\w+|confirm\w+|d/w|flagged|messaged"
    r"|contacted|updated|faxed|posted|entered)"
)
_MESSAGE = (
    r"(?:notifications?|e-?mails?|messages?|pages?|(?:telephone |phone )?calls?|communications?"
    r"|alerts?|texts?|fax(?:es)?|discussions?|conversations?|verbal reports?)"
)
_WAY = (
    r"(?:phone|telephone|person|pager|e-?mail|secure|discovery|today|approximately|about|dictation"
    r"|text|voice|fax|veriphy|dashboard|\w+day)"
)
_NOTES = re.compile(
    r"\b(?:tele)?phoned?\b|\btelephone\b|\bpag(?:ed|er|ing)\b|\bDrs?\b\.?(?=\s)"
    r"|\bnotif(?:y|ied|ications?)\b|\bprimordial\b"
    r"|\bveriphy\b|\bcommunicated\b|\bconveyed\b|\bcritical results?\b|\bdictat(?:ed|ion|ing)\b"
    r"|\b(?:were|was|been|I|we) discussed\b|\bdiscussed with\b|\blike to discuss\b|\binformed of\b"
    r"|\backnowledg|\bcertified radiologist\b|\bstaff radiologist\b|\belectronically signed\b"
    r"|\bthank(?:s| you)\b|\bd/w\b|\bmade aware\b|\brelayed\b|\bcalled (?:to|in|by|at)\b"
    r"|\bwas (?:told|called|alerted|texted|messaged|contacted)\b|^results called\b"
    r"|\bopportunity to assist\b|\bquestions (?:about|regarding|concerning)\b"
    rf"|\b{_PERSON}\s+(?:(?:was|were|is|are|now|immediately|promptly)\s+)*(?:contacted|informed"
    r"|notified|told|alerted|messaged|texted)\b"
    r"|\b(?:attending|referring|ordering) (?:physician|provider|clinician|doctor)|\bread[- ]?back\b"
    r"|\be-?mail(?:ed)?\b|\breceipt of\b|\btranscri(?:bed|ption)\b|\b(?:results?|findings?) "
    r"(?:were|was) \w+ed to\b"
    rf"|\b{_TOLD} (?:to|with|by) (?:the )?{_PERSON}|\bnote to (?:the )?{_PERSON}"
    rf"|\b{_PERSON}(?:\s+\S+)? (?:is |are |was )?(?:made )?aware\b|\bresults were faxed\b"
    rf"|\b{_MESSAGE}\s+(?:was|were|has been)\s+(?:\w+\s+)?(?:sent|left|made|placed)\b"
    rf"|\bmessage was left\b"
    r"|\bwas left with\b|\bdashboard\b|\bcritical communications?\b|^(?:\w+\s+)?notification "
    r"(?:to|of)\b"
    r"|\b(?:call|page) was (?:placed|made|sent)\b|\bend of report\b"
    r"|\bagrees? with the (?:above|interpretation|findings?|report|preliminary)\b"
    r"|\bthe courtesy of\b"
    r"|^\d+ (?:minutes?|hours?) after (?:the )?(?:discovery|observation)\b",
    re.IGNORECASE,
)
_WHEN_TOLD = (
    r"(?:\s*,?\s+(?:(?:at|by|via|on|in|over|around|approximately|immediately|upon|directly|per)\b"
    rf"\s*(?:the\s+)?(?:time of|\d|{MARK}|{_WAY}).*))?\s*[.;]?$"
)
_THE = r"(?:(?:the|these|this|an?|above|critical|urgent|unexpected|significant)\s+)*"
_TOPIC = (
    rf"{_THE}(?:(?:findings?|results?|presence|discovery|diagnosis|impression|possibility)"
    r"\s+of\s+)?"
)
# The finding within the note: "Dr. ___ was notified of the large pneumothorax at 5 pm."
_WITHIN = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"^(?:the\s+|an?\s+|critical\s+)*(?:findings?|results?|presence|discovery"
        r"|diagnosis)\s+of\s+"
        rf"(?P<finding>[^;]+?)\s+(?:was|were|has been|have been)\s+(?:\w+ly\s+)?{_TOLD}\b.*$",
        rf"^(?:the\s+|an?\s+|critical\s+|urgent\s+|direct\s+)*{_MESSAGE}\s+(?:of|regarding|about"
        rf"|concerning|for|describing)\s+"
        rf"{_TOPIC}(?P<finding>[^;]+?)\s+(?:was|were|has been|have been|is|sent)\s+.*$",
        rf"^(?:the\s+|an?\s+|\w+\s+)*{_MESSAGE}\s+(?:(?:was|were|has been)\s+(?:\w+ly\s+)?"
        rf"(?:sent|placed|made|left|issued)"
        rf"|to|with)\b[^,;]*?\s(?:of|about|regarding|concerning|describing|for)\s+{_TOPIC}"
        rf"(?P<finding>.+)$",
        r"^.*?\b(?:agree[sd]?|concur\w*)\s+(?:with\s+(?:the\s+)?(?:(?:finding|impression"
        r"|diagnosis)\s+of\s+)?|that\s+)?(?P<finding>.+)$",
        rf"^(?:the|these|this|critical|\s)*findings?,?\s+(?:including|namely|of)\s+"
        rf"(?P<finding>[^;]+?)\s*,?\s+(?:was|were|has been|have been)\s+(?:\w+ly\s+)?{_TOLD}\b.*$",
        rf"^[^,;]*?\b(?:was|were|has been|have been)\s+(?:\w+ly\s+)?{_TOLD}\s+(?:at|on|by"
        rf"|via)\s+[^,;]*?\s(?:about|regarding|concerning)\s+"
        rf"{_TOPIC}(?P<finding>.+)$",
        rf"^(?:I|we)\s+(?:have\s+)?(?:\w+ly\s+)?{_TOLD}\s+{_TOPIC}(?P<finding>[^;]+?)\s+(?:with"
        rf"|to|by|via)\s+.*$",
        rf"^[^,;]*?\b(?:(?:was|were|has been|have been|is|are)\s+)?(?:(?:also|immediately"
        rf"|directly|urgently"
        rf"|promptly|verbally|personally)\s+)*{_TOLD}(?:\s+(?:by|via|over)\s+(?:the\s+)?"
        rf"(?:\w+\s+)?{_WAY})?"
        rf"\s+(?:(?:of|about|regarding|concerning|with)\s+|that\s+(?:there (?:is|was)\s+)?){_TOPIC}"
        rf"(?P<finding>.+?){_WHEN_TOLD}",
        rf"^{_PERSON}[^,;]*?\s+(?:is|was|are|were)\s+(?:\w+\s+)?aware\s+of\s+{_TOPIC}"
        rf"(?P<finding>.+?){_WHEN_TOLD}",
    )
)
# An opening that names the reader: "After review with the staff radiologist there is ..."
_REVIEWED_BY = re.compile(
    rf"^(?:after|upon|following|on|per|as per|as|in)\s+[^.;]*?\b{_PERSON}"
    rf"(?:\s+(?:\S*(?:X{{3,}}|_{{2,}})\S*))*(?:\s+by\s+(?:tele)?phone)?"
    r"\s*,?\s+(?=(?:there (?:is|are)|the|an?|no|we)\b)",
    re.IGNORECASE,
)
_OPENING = re.compile(r"^(?P<note>(?:[^,:;]|:(?=\d))*)[,:;]\s+(?P<rest>.+)$")
# A note after the finding in its sentence: "... of the mass, discussed with Dr. Smith at 5 pm."
_AT_END = re.compile(
    r"[,;:(-]*\s+(?:(?:and|as|which|that)\s+)*(?:(?:this|these|the|above|findings?|results?|it"
    r"|critical)"
    r"\s+)*(?:(?:was|were|is|has been|have been|being|will be)\s+)?(?:\w+ly\s+)?"
    rf"(?:{_TOLD}\s+(?:\w+ly\s+)?(?:(?:to|with|by|via|in|at|over|on|as)\b|(?:the\s+)?{_PERSON}"
    rf"|{MARK}).{{0,300}}$"
    rf"|(?:per|by)\s+{_PERSON}.{{0,200}}$)",
    re.IGNORECASE,
)
_THANKS = re.compile(
    rf"[,;]?\s+(?:(?:{MARK}|thanks?|you)\s+)*for (?:the|this|your) opportunity to\b.*$",
    re.IGNORECASE,
)
_IN_BRACKETS = re.compile(r"\s*[(\[](?P<note>[^)\]]*)[)\]]")
_CLAUSE = re.compile(
    r"\s*(?:[;,]|:(?!\d)|\s(?:and|but)(?=\s+(?:Dr|(?:the )?(?:ordering|referring|attending|primary"
    r"|covering"
    r"|ICU|ED|clinical|medical|surgical|trauma|nursing)|this|these|was|were|I\b|findings"
    r"|results))|\s[-\u2013\u2014])\s*",
    re.IGNORECASE,
)
# Who was told, left by a cut at "was paged": "Left pneumothorax; the ICU resident."
_ENDS_WITH_PERSON = re.compile(
    rf"(?:^|[,;:]\s*|\band\s+)(?:the\s+|an?\s+)?(?:[\w/-]+\s+){{0,3}}{_PERSON}\W*$", re.IGNORECASE
)
_FINDING_OF = re.compile(
    r"^(?:(?:the|an?|critical|urgent|unexpected|important|acute)\s+)*(?:findings?|results?) of\s+",
    re.IGNORECASE,
)


def drop_notes(text: str) -> str:
    """Removes notifications by telephone or otherwise, signatures and thanks.

    "Mass in the left lung, discussed with Dr. Smith at 5 pm." -> "Mass in the left lung."
    "Dr. Smith was notified of the left pneumothorax." -> "Left pneumothorax."
    """
    return each_sentence(text, without_notes)


def without_notes(sentence: str) -> str:
    """`drop_notes` for one sentence, which is cut at the note if it also contains a finding."""
    if not _is_note(sentence):
        return sentence
    if not states_something(sentence) and not refusal(sentence, ""):
        return ""
    for cut in _cuts(sentence):
        if (
            cut
            and not _is_note(cut)
            and not _ENDS_WITH_PERSON.search(cut)
            and not _begins_with_reader(sentence, cut)
            and not refusal(sentence, cut)
            and not broken(sentence, cut)
        ):
            return cut
    return ""


# Words for a notification for which there is no cut.
_TELLS = re.compile(
    r"\b(?:was|were|been) (?:informed|told|notified|alerted|contacted)\b"
    r"|\b(?:nurse|doctor|physician|team|RN|MD) (?:contacted|informed|notified|told|aware)\b"
    r"|\breported to (?:the )?(?:E[DR]|ICU|floor|team|nurse|doctor|physician)\b|\bmessages? sent\b"
    r"|\bplease call\b|\bwet read\b|\bsecure (?:chat|message)\b|\bknows? about\b",
    re.IGNORECASE,
)


def tells_somebody(sentence: str) -> bool:
    """Whether a sentence still states who was informed."""
    return _TELLS.search(sentence) is not None


def _begins_with_reader(sentence: str, cut: str) -> bool:
    """Whether a cut starts with who was told: "Surgery: ..." of "Discussed with surgery: ..."."""
    first = re.match(r"\w+", cut)
    return first is not None and bool(
        re.match(
            rf"[^,;:]*\b{_TOLD} (?:with|to|by) (?:the )?{re.escape(first[0])}\b",
            sentence,
            re.IGNORECASE,
        )
    )


def _is_note(text: str) -> bool:
    return _NOTES.search(text) is not None or (
        _AT_END.search(text) is not None and re.search(_PERSON, text) is not None
    )


def _cuts(sentence: str) -> Iterator[str]:
    """The sentence without the note, in several versions; the ones that keep most come first."""
    unbracketed = _IN_BRACKETS.sub(lambda m: "" if _is_note(m["note"]) else m[0], sentence)
    if unbracketed != sentence:
        yield mended(unbracketed)
    yield mended(_THANKS.sub(".", sentence))
    yield _as_finding(_AT_END.sub(".", sentence))
    opened = _REVIEWED_BY.sub("", sentence, count=1)
    if opened != sentence:
        yield mended(opened)
    rest = sentence
    while opening := _OPENING.match(rest):
        rest = opening["rest"]
        if not states_something(opening["note"]):
            yield mended(rest)
    for pattern in _WITHIN:
        found = pattern.match(sentence)
        if found:
            yield _as_finding(found["finding"] + ".")
    clauses = _CLAUSE.split(sentence)
    kept = [c for c in clauses if not _is_note(c) and not _AT_END.search(f" {c}")]
    yield mended(", ".join(kept).rstrip(".") + ".")
    kept = [c for c in kept if states_something(c)]
    yield mended(", ".join(kept).rstrip(".") + ".")


def _as_finding(text: str) -> str:
    """The text without "the critical finding of" before it."""
    return mended(_FINDING_OF.sub("", text))

"""Removal of a language model's prefaces before a report, and of its remarks after it."""

import re

# ---- what surrounds a report
SECTION = r"(?P<name>FINDINGS?|IMPRESSIONS?)"
ANY_HEADING = re.compile(
    rf"(?<![A-Za-z]){SECTION}(?:[*_\"' \t]{{0,6}}(?:[:：]|$)|[ \t]+[-–—]{{1,2}}[ \t]|[*_]{{2}})",
    re.IGNORECASE | re.MULTILINE,
)
_TALK_ALONE = re.compile(
    r"(?:(?:sure|certainly|of course|ok(?:ay)?|understood|absolutely|alright|all right|great|got it"
    r"|no problem|yes|thanks?(?: you)?|happy to help|assistant|json|done"
    r"|here you (?:go|are))(?: thing)?[\s,.!:–—-]*)+",
    re.IGNORECASE,
)
_TALK_START = re.compile(
    r"(?:(?:sure|certainly|of course|ok(?:ay)?|understood|absolutely|alright|great|yes|assistant)"
    r"(?: thing)?[\s,.!:–—-]+)*"
    r"(?:here(?:'s|’s| is| are)|below|the following|this is|following|as requested"
    r"|i(?:'ve|’ve|'ll|’ll| have| will)?\b|let me\b|(?:my |the |a )?(?:final|cleaned|clean"
    r"|rewritten|revised|corrected|edited|updated|requested|de-identified)\b|answer|output|result|response"
    r"|report|rewrite)",
    re.IGNORECASE,
)
_TALK_NOUN = re.compile(
    r"\b(?:reports?|rewrit\w+|rewrote|versions?|texts?|answers?|output|lines?|format\w*|response|result"
    r"|cleaned|revised|corrected|edited|draft|json|object|code|block)\b",
    re.IGNORECASE,
)
# Statements about the rewriting that no report contains.
ABOUT_THE_TASK = (
    r"no (?:other |further |additional |more )?(?:changes?|edits?|modifications?|alterations?"
    r"|corrections?|revisions?)(?: was| were| is| are)? (?:needed|required|necessary|made)\b"
    r"(?! (?:in|of|at|for|on|to) (?!the (?:report|text|original|wording)))"
    r"|(?:(?:all|every|each|the|these|your|of|given|above|formatting|provided) ){0,4}(?:rules?"
    r"|instructions?|requirements?|constraints?)"
    r"(?: (?:was|were|is|are|has|have|been)){0,2}"
    r" (?:followed|met|applied|observed|satisfied|respected|obeyed)\b"
    r"|(?:everything else|the rest|(?:all )?other (?:content|text|findings|details|information))"
    r" (?:was|were|is|are|has been|have been) (?:kept|preserved|retained|left (?:as|un))"
    r"|(?:removed|omitted|deleted|dropped|took out|left out|stripped)(?: (?:the|all|any|every|one"
    r"|an?|prior|previous)){0,3} (?:dates?|names?|comparisons?|references?|mentions?"
    r"|placeholders?)\b|(?:word|character|token) count\b"
    r"|(?:the )?(?:rewriting|task|cleaning|rewrite|report)(?: is| has been)? (?:now )?"
    r"(?:complete(?:d)?|done|finished)\b"
    r"|(?:the |this |my )?(?:report|rewrite|answer|output|text)(?: now)? (?:follows|meets|adheres"
    r"|complies|conforms|satisfies|keeps all|contains all)\b"
)
_SYMBOL = re.compile(r"[^\w\s]*[✅✔☑✓❌⚠ℹ📝🎉👍😊🙂🩺💡🔍]")
_REMARK = re.compile(
    rf"(?:[^\w\"'“<]|_)*(?:(?P<task>{ABOUT_THE_TASK}"
    r"|(?:all |any |the )*(?:(?:prior|previous|patient) )?(?:references?|mentions?|comparisons?"
    r"|dates?|names?|placeholders?)\b[^.\n]{0,200}\b(?:removed|omitted|deleted|dropped|left out)\b"
    r"|no (?:references?|mentions?|comparisons?|dates?|names?|placeholders?)"
    r"(?: to (?:the |any )?(?:prior|previous|earlier) \w+)? remains?\b)"
    r"|(?:please )?let me know\b|(?:i )?hope (?:this|that|it)\b|feel free\b"
    r"|if you (?:need|would like|want|have any (?:questions?|other|further))\b|is there anything\b"
    r"|(?P<note>notes?|comments?|changes|removed|(?P<changes>explanation|changes? made|rationale"
    r"|edits|summary of (?:the )?changes))\b[*_ ]*:"
    r"|i(?:'ve|’ve| have)? (?:also )?(?:removed|rewrote|rewritten|kept|omitted|changed|deleted"
    r"|dropped|left out|preserved|retained|took out|taken out)\b"
    r"|this (?:rewrite|rewritten|version|revised|cleaned|report (?:has been|was) \w*(?:ed|en))\b"
    r"|end of (?:the )?report\b)",
    re.IGNORECASE,
)
# A text after "Note:" is a remark only if it mentions the rewriting: radiologists write notes, too.
_ABOUT_REWRITING = re.compile(
    r"\b(?:i|me|you|rewr\w+|omitted|deleted|de-?identif\w+|instruct\w+|requested|your"
    r"|original report|(?:references?|mentions?|comparisons?|names?|dates?|views?)\b.*\bremoved"
    r"|removed\b.*\b(?:references?|mentions?|comparisons?|names?|dates?|views?))\b",
    re.IGNORECASE,
)
# Words that a sentence of a report is likely to contain, unlike one about the answer.
_CHEST = re.compile(
    r"\b(?:lungs?|pulmonary|pleura\w*|effusions?|pneumo\w+|hearts?|cardi\w+|opaci\w+|consolidat\w+"
    r"|nodul\w+|mass(?:es)?|edema|fractur\w+|tubes?|catheters?|atelecta\w+|hil(?:ar|um|a)"
    r"|mediastin\w+|aort\w+|clear|normal|acute|left|right|bilateral|chest)\b",
    re.IGNORECASE,
)
_JSON_BEFORE = re.compile(r"[{}]|\[\s*[\"']|[\"']\s*:\s*[\"'\[]")
_SENTENCE_END = re.compile(r"(?<=[.!?:])\s+|\n+")


def without_preface(text: str) -> str:
    """The text from its first heading on, if everything before it is about the answer."""
    found = re.search(r"(?<!\w)(?:FINDINGS|IMPRESSION):", text)
    # What stands before the report in JSON is no preface.
    if found is None or _JSON_BEFORE.search(text[: found.start()]):
        return text
    before = text[: found.start()].strip(" \t\n\"'“‘`*_#-")
    sentences = [part.strip(" \t\"'*_#-") for part in _SENTENCE_END.split(before)]
    return text[found.start() :] if all(map(_is_talk, filter(None, sentences))) else text


def _is_talk(sentence: str) -> bool:
    if _TALK_ALONE.fullmatch(sentence):
        return True
    if _mentions_chest(sentence):
        return False
    introduces = sentence.endswith(":") or _TALK_START.match(sentence)
    return bool(introduces and _TALK_NOUN.search(sentence))


def _mentions_chest(sentence: str) -> bool:
    return bool(_CHEST.search(re.sub(r"(?i)chest (?=x-?ray|radio)", "", sentence)))


def without_remarks(text: str) -> str:
    """The text without paragraphs, lines and sentences at its end that are about the rewriting."""
    while True:
        text = text.rstrip()
        starts = {
            match.end()
            for pattern in (r"\n[ \t]*\n", r"\n", r"(?<=[.!?)\"”`])\s+")
            for match in [*re.finditer(pattern, text)][-12:]
        }
        cut = next((start for start in sorted(starts) if _is_remark(text[start:])), None)
        if cut is None:
            return text
        text = text[:cut]


def _is_remark(text: str) -> bool:
    """Whether the complete text is about the rewriting."""
    if ANY_HEADING.search(text):
        return False
    if _SYMBOL.match(text) and not _CHEST.search(text):
        return True
    if _TALK_ALONE.fullmatch(text.strip("()[]*_ \t\n")):
        return True
    found = _REMARK.match(text)
    if found is None or (
        found["task"] and _mentions_chest(re.split(r"[.!?\n]", text[found.start("task") :])[0])
    ):
        return False
    if found["changes"]:
        return True
    if found["note"] and not _ABOUT_REWRITING.search(text):
        return False
    sentences = _SENTENCE_END.split(text[found.end() :])
    return not any(_CHEST.search(part) and not _REMARK.match(part) for part in sentences[1:])

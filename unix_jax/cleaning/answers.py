"""Parser of a language model's replies: a rewritten report, or a judge's verdict.

Models surround what was asked for: reasoning in tags or channels, with or without its opening
marker; prefaces and remarks; fences, bold headings, JSON, characters without width. Only what is
recognised as such is removed. Everything else stays, so that the checks of the report see it.
"""

import html
import json
import re
import unicodedata
from collections.abc import Iterator
from typing import Any

# Replies are read in linear time; longer ones are no report of any chest.
_MOST_CHARACTERS = 100_000

# ---- characters

# Hyphens that look like "-" hide "left-sided" from every later comparison.
_HYPHENS = str.maketrans({"\u2010": "-", "\u2011": "-"})
_ESCAPED_TAG = re.compile(r"&lt;(/?[\w:-]{1,40}|/?[|｜][\w:-]{1,40}[|｜])&gt;")

# ---- reasoning

# <think>, </seed:think>, [THINK], ◁/think▷, <|begin_of_thought|>, <|END_THINKING|>, <unused94>.
_TAG = re.compile(
    r"[<\[◁＜]\s{0,3}[|｜]?\s{0,3}(?P<slash>/?)\s{0,3}(?P<name>[A-Za-z][\w:-]{0,39})"
    r"(?:\s[^<>\[\]]{0,200})?(?P<empty>/?)[|｜]?\s{0,3}[>\]▷＞]"
)
_REASONING_NAME = re.compile(
    r"think|thought|reasoning|reflect|scratch_?pad|analysis|rationale|deliberat|monologue"
    r"|\bcot\b|chain_of|\bplan(?:ning)?\b|\bdetails\b|inner_(?:prefix|suffix)|unused9[45]$",
    re.IGNORECASE,
)
_CLOSING_NAME = re.compile(r"end[_-]|eot|inner_suffix|unused95$", re.IGNORECASE)
# Markers that are no tag of their own, written as one.
_OTHER_MARKERS = (
    (re.compile(r"<\|channel>\s*(?:thought|analysis)\b"), "<think>"),
    (re.compile(r"<channel\|>"), "</think>"),
    (re.compile(r"\A\s*Thinking ?(?:\.\.\.|…)[ \t]*$", re.MULTILINE), "<think>"),
    (re.compile(r"^[ \t]*(?:\.\.\.|…) ?done thinking\.?[ \t]*$", re.MULTILINE), "</think>"),
    (re.compile(r"```(?:think|thought|reason|analysis)\w*[ \t]*\n.*?```", re.DOTALL), ""),
)
# OpenAI's harmony: <|channel|>analysis<|message|>...<|end|><|start|>assistant<|channel|>final...
_CHANNEL = re.compile(r"<\|channel\|>\s*(?P<name>\w+)[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>")
_CHANNEL_END = re.compile(r"<\|(?:end|return|call|start|channel)\|>")
# The same where the server dropped the special tokens.
_BARE_ANALYSIS = re.compile(r"\A\s*(?:assistant)?(?:analysis|commentary)(?P<glued>[A-Z])?")
_BARE_FINAL = re.compile(r"assistant\s*final")

_REASONING_LABEL = re.compile(
    r"\A[\W_]*(?:(?:here is |here's )?(?:my |the )?(?:step[- ]by[- ]step )?"
    r"(?:reasoning|thinking|thoughts?|analysis|rationale|chain of thought)(?: process)?)"
    r"[*_ ]*(?::|\n)",
    re.IGNORECASE,
)
_ANSWER_LABEL = re.compile(
    r"^[#*_> \t]{0,8}(?:here is |here's )?(?:my |the )?(?:final |cleaned |rewritten |revised )?"
    r"(?:answer|response|report|output|verdict|decision|rewrite)[*_ \t]{0,4}(?::[*_]{0,2}|$)",
    re.IGNORECASE | re.MULTILINE,
)

# ---- special tokens

_END_OF_TURN = re.compile(
    r"<[|｜](?:im_end|eot_id|eom_id|endoftext|end_of_text|end|return|eos|end[▁_]of[▁_]sentence"
    r"|END_RESPONSE|END_OF_TURN_TOKEN)[|｜]>|</s>|<end_of_turn>|<eos>"
)
_START_OF_TURN = re.compile(
    r"<[|｜](?:im_start|start)[|｜]>\s*\w+|<\|start_header_id\|>\s*\w+\s*<\|end_header_id\|>"
    r"|<start_of_turn>\s*\w+|<[|｜][^<>|｜\n]{1,40}[|｜]>|<bos>|<s>|\[/?INST\]"
)

# ---- what surrounds a report

_SECTION = r"(?P<name>FINDINGS?|IMPRESSIONS?)"
_ANY_HEADING = re.compile(
    rf"(?<![A-Za-z]){_SECTION}[*_\"' \t]{{0,6}}(?:[:：]|$)", re.IGNORECASE | re.MULTILINE
)
_LONE_FENCE = re.compile(r"\A```(?:[\w+-]*[ \t]*\n)?|\s*```\Z")
_FENCE = re.compile(r"(?:```|~~~)(?:[\w+-]*[ \t]*\n)?(.*?)(?:```|~~~|\Z)", re.DOTALL)
_XML_SECTION = re.compile(r"<(/?)(findings|impression)\s*>", re.IGNORECASE)
_XML_TAG = re.compile(r"<(/?)([A-Za-z][\w:-]{0,39})(?:\s[^<>]{0,200})?>")
_LAYOUT_TAG = re.compile(r"</?(?:b|strong|i|em|u|span|code)\s*>", re.IGNORECASE)
_BREAK_TAG = re.compile(r"</?(?:br|p|div|h[1-6]|ul|ol|hr|pre)\s*/?>", re.IGNORECASE)
_BOXED = re.compile(r"\\boxed\{(?:\\text\{)?([^{}]*)\}?\}")
# "[**Name**]" is a mark of de-identification, no bold type.
_BOLD = re.compile(r"(?<![\[*])\*{2,3}(?![\]*])")
_ITALIC = re.compile(r"(?<![\w*\[])\*(?=\S)([^*\n]{1,2000}?)(?<=\S)\*(?![\w*\]])")
_UNDERSCORED = re.compile(r"(?<![\w_])__?(?=[A-Za-z])([^_\n]{1,2000}?)__?(?![\w_])")
_RULE_LINE = re.compile(r"^[ \t]*(?:-{3,}|\*{3,}|={3,}|_{20,})[ \t]*$", re.MULTILINE)
_QUOTED_LINE = re.compile(r"^[ \t]*>+[ \t]?", re.MULTILINE)
_QUOTED_HEADING = re.compile(
    rf"^[ \t]*>[>*_# \t\d.-]{{0,9}}{_SECTION}", re.IGNORECASE | re.MULTILINE
)
_BULLET = re.compile(r"^[ \t]*[-*•‣▪–][ \t]+(?P<text>\S.*?)[ \t]*$", re.MULTILINE)

_LINE_HEADING = re.compile(
    rf"^[ \t]*(?:#{{1,6}}[ \t]*)?(?:\d[.)][ \t]+)?{_SECTION}[ \t]*(?:[:：][ \t]*|$)",
    re.IGNORECASE | re.MULTILINE,
)
_INLINE_HEADING = re.compile(
    r"(?:(?<=[.!?:]\s)|(?<=[.!?]))(?P<name>[Ff]indings|[Ii]mpression)[ \t]*[:：][ \t]*"
    r"|(?<!\w)(?P<upper>FINDINGS|IMPRESSION)[ \t]*[:：][ \t]*"
)
_QUOTES = {'"': '"', "'": "'", "“": "”", "‘": "’", "«": "»", "`": "`"}

_TALK_ALONE = re.compile(
    r"(?:(?:sure|certainly|of course|ok(?:ay)?|understood|absolutely|alright|all right|great|got it"
    r"|no problem|yes|thanks?(?: you)?|happy to help|assistant|done|here you (?:go|are))(?: thing)?"
    r"[\s,.!:–—-]*)+",
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
    r"|cleaned|revised|corrected|edited)\b",
    re.IGNORECASE,
)
_REMARK = re.compile(
    r"[(\[*_\s]*(?:(?:please )?let me know\b|(?:i )?hope (?:this|that|it)\b|feel free\b"
    r"|if you (?:need|would like|want|have any (?:questions?|other|further))\b|is there anything\b"
    r"|(?P<note>notes?|comments?|changes|removed|(?P<changes>explanation|changes? made|rationale"
    r"|edits|summary of (?:the )?changes))\b[*_ ]*:"
    r"|i(?:'ve|’ve| have)? (?:also )?(?:removed|rewrote|rewritten|kept|omitted|changed|deleted"
    r"|preserved|retained|took out|taken out)\b"
    r"|this (?:rewrite|rewritten|version|revised|cleaned|report (?:has been|was) \w*(?:ed|en))\b"
    r"|(?:all |any |the )?(?:references?|mentions?|comparisons?)\b[^.\n]{0,200}\b(?:removed"
    r"|omitted)|end of (?:the )?report\b)",
    re.IGNORECASE,
)
# A remark under "Note:" is one only if it speaks of the rewriting: a radiologist writes notes too.
_ABOUT_REWRITING = re.compile(
    r"\b(?:i|me|you|rewr\w+|omitted|deleted|de-?identif\w+|instruct\w+|requested|your"
    r"|original report|(?:references?|mentions?|comparisons?|names?|dates?|views?)\b.*\bremoved"
    r"|removed\b.*\b(?:references?|mentions?|comparisons?|names?|dates?|views?))\b",
    re.IGNORECASE,
)
# What a sentence of a report is likely to name, and one about the answer is not.
_CHEST = re.compile(
    r"\b(?:lungs?|pulmonary|pleura\w*|effusions?|pneumo\w+|hearts?|cardi\w+|opaci\w+|consolidat\w+"
    r"|nodul\w+|mass(?:es)?|edema|fractur\w+|tubes?|catheters?|atelecta\w+|hil(?:ar|um|a)"
    r"|mediastin\w+|aort\w+|clear|normal|acute|left|right|bilateral|chest)\b",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"(?<=[.!?:])\s+|\n+")

_LEFT_OVER = re.compile(
    r"```|~~~|<!--|</?[A-Za-z_][\w:-]*[^<>]{0,40}>|<[|｜]|[|｜]>|(?<!\[)\*\*(?!\])|\\boxed|\A[{\[](?!\*)"
    r"|(?:\A|\s)#{1,6}\s|\|\s*-{3,}"
)
_TALK_LEFT = re.compile(
    r"\b(?:let me know|as an ai\b|language model|the (?:original|rewritten) report"
    r"|(?:cleaned|rewritten|revised) report"
    r"|I(?:'ve| have)? (?:removed|rewrote|rewritten|kept|omitted|deleted))\b",
    re.IGNORECASE,
)

_REPORT_KEYS = frozenset(
    {
        "report",
        "cleaned_report",
        "rewritten_report",
        "revised_report",
        "rewrite",
        "cleaned",
        "answer",
        "output",
        "text",
        "result",
        "response",
        "final",
        "final_answer",
        "final_report",
        "content",
    }
)
_WRAPPERS = _REPORT_KEYS - {"text", "content"}
_TALK_KEYS = frozenset(
    {
        "reasoning",
        "reason",
        "thinking",
        "thought",
        "thoughts",
        "analysis",
        "explanation",
        "rationale",
        "note",
        "notes",
        "comment",
        "comments",
        "changes",
        "removed",
        "changes_made",
    }
)


def plain_answer(answer: str) -> str:
    """The report of a reply to the rewriting prompt, on one line; "" if there is none.

    Removes reasoning, prefaces, remarks about the rewriting, fences, tags and Markdown around the
    report, and writes its headings as FINDINGS: and IMPRESSION:. Text that is none of these stays.
    """
    text = _without_reasoning(answer)
    return "" if text is None else _report(text)


def why_unusable(answer: str) -> str:
    """Why no report can be read from a reply, in a sentence for the model and the user; or ""."""
    if len(answer) > _MOST_CHARACTERS:
        return (
            f"The answer has {len(answer):,} characters; expected one report, "
            f"of at most {_MOST_CHARACTERS:,}."
        )
    text = _without_reasoning(answer)
    if text is None:
        return "The reasoning has no end, so no report follows it. Write the report after it."
    report = _report(text)
    if answer.strip() and not report:
        return "Nothing but reasoning or a preface was written. Write the report."
    left = _LEFT_OVER.search(report)
    if left is not None:
        return f'Write plain text without markup: "{left[0].strip()}" is in the report.'
    left = _TALK_LEFT.search(report)
    if left is not None:
        return f'Write the report alone: "{left[0]}" speaks about it.'
    return ""


def _without_reasoning(answer: str) -> str | None:
    """What follows the reasoning, of visible characters only; None if the reasoning never ends."""
    if len(answer) > _MOST_CHARACTERS:
        return None
    text = _visible(answer)
    channels = list(_CHANNEL.finditer(text))
    if channels:
        finals = [found for found in channels if found["name"].lower() == "final"]
        if not finals:
            return None
        start = finals[-1].end()
        end = _CHANNEL_END.search(text, start)
        text = text[start : end.start() if end else None]
    elif bare := _BARE_ANALYSIS.match(text):
        *before, text = _BARE_FINAL.split(text)
        if bare["glued"] and not before:
            return None
    for pattern, marker in _OTHER_MARKERS:
        text = pattern.sub(marker, text)
    outside = _outside_tags(text)
    return None if outside is None else _own_turn(_after_label(outside)).strip()


def _visible(text: str) -> str:
    """Without characters that have no width, and with one kind of line end and hyphen."""
    lines = "\n".join(text.splitlines()).translate(_HYPHENS)
    shown = (
        char for char in lines if char in "\n\t" or unicodedata.category(char) not in ("Cf", "Cc")
    )
    return _ESCAPED_TAG.sub(r"<\1>", "".join(shown))


def _outside_tags(text: str) -> str | None:
    """What stands outside tags of reasoning; None if one is opened and nothing closes it.

    Reasoning may speak of its own tags. Where they do not pair up, it ends at the last closing one.
    """
    depth, start, outside, paired, last_close, opened = 0, 0, list[str](), True, -1, -1
    for tag in _TAG.finditer(text):
        if tag["empty"] or not _REASONING_NAME.search(tag["name"]):
            continue
        if tag["slash"] or _CLOSING_NAME.match(tag["name"]):
            last_close = tag.end()
            paired = paired and depth > 0
            depth = max(depth - 1, 0)
            if depth == 0:
                start = tag.end()
        else:
            if depth == 0:
                outside.append(text[start : tag.start()])
            depth += 1
            opened = tag.start()
    if depth and opened > last_close:
        return None
    if depth or not paired:
        return text[last_close:]
    return "\n".join([*outside, text[start:]])


def _after_label(text: str) -> str:
    """ "Reasoning: ... Answer: ..." without the first part."""
    if not _REASONING_LABEL.match(text):
        return text
    *_, last = [None, *_ANSWER_LABEL.finditer(text)]
    return text if last is None else text[last.end() :]


def _own_turn(text: str) -> str:
    """What the model wrote before it ended its turn, without special tokens."""
    parts = (_START_OF_TURN.sub("\n", part).strip() for part in _END_OF_TURN.split(text))
    return next(filter(None, parts), "")


# ---- reports


def _report(text: str) -> str:
    for _ in range(4):
        inner = _inner(text)
        if inner == text:
            break
        text = inner
    return " ".join(_unquoted(_without_remarks(_without_preface(_plain(text)))).split())


def _inner(text: str) -> str:
    """What a fence, a tag or JSON around the report holds; the text itself if there is none."""
    text = _unquoted(text)
    text = _LONE_FENCE.sub("", text) if text.count("```") == 1 else text
    holding = [match for match in _FENCE.finditer(text) if _holds_report(match[1])]
    if len(holding) == 1 and _only_talk_around(text, *holding[0].span()):
        return holding[0][1].strip()
    first: dict[str, tuple[int, int]] = {}
    last: dict[str, tuple[int, int]] = {}
    for tag in _XML_TAG.finditer(text):
        name = tag[2].lower()
        if tag[1]:
            last[name] = tag.span()
        else:
            first.setdefault(name, tag.span())
    for name, (start, inside) in first.items():
        end, after = last.get(name, (-1, -1))
        wraps = end >= inside and name not in ("findings", "impression")
        if wraps and _holds_report(text[inside:end]) and _only_talk_around(text, start, after):
            return text[inside:end].strip()
    for tag in _XML_TAG.finditer(text):
        # The other half was a stop sequence, or part of the prompt.
        alone = tag[2].lower() not in (first if tag[1] else last)
        if alone and tag[2].lower() in _WRAPPERS and tag.start() == 0 and not tag[1]:
            return text[tag.end() :].strip()
        if alone and tag[2].lower() in _WRAPPERS and tag.end() == len(text) and tag[1]:
            return text[: tag.start()].strip()
    if text.startswith("{"):
        try:
            value = json.loads(text, strict=False, object_pairs_hook=_once_each)
        except (ValueError, RecursionError):
            return text
        return _report_in(value) or text
    return text


def _holds_report(text: str) -> bool:
    return bool(_ANY_HEADING.search(text) or _XML_SECTION.search(text))


def _only_talk_around(text: str, start: int, end: int) -> bool:
    """Whether nothing outside [start, end) is part of a report."""
    before, after = text[:start], text[end:]
    if _holds_report(before) or _holds_report(after):
        return False
    return not _without_preface(f"{before}\nFINDINGS:").removesuffix("FINDINGS:").strip() and not (
        _without_remarks(f"\n{after}").strip()
    )


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name.strip().lower() for name, _ in pairs]
    if len(set(names)) < len(names):
        raise ValueError("a name occurs twice")
    return dict(zip(names, (value for _, value in pairs), strict=True))


def _report_in(value: Any) -> str:
    """The report of a JSON object; "" where a field is neither part of it nor a remark."""
    if isinstance(value, str):
        return value
    if not isinstance(value, dict):
        return ""
    fields = {name: content for name, content in value.items() if name not in _TALK_KEYS}
    if fields and set(fields) <= {"findings", "impression"}:
        texts = {name: _joined(fields.get(name)) for name in ("findings", "impression")}
        return " ".join(
            text if _LINE_HEADING.match(text) else f"{name.upper()}: {text}"
            for name, text in texts.items()
            if text
        )
    if len(fields) == 1 and set(fields) <= _REPORT_KEYS:
        return _report_in(next(iter(fields.values())))
    return ""


def _joined(value: Any) -> str:
    texts = value if isinstance(value, list) else [value]
    return " ".join(text.strip() for text in texts if isinstance(text, str))


def _plain(text: str) -> str:
    """Without Markdown and layout tags, with headings in their one form."""
    text = _XML_SECTION.sub(lambda tag: "\n" if tag[1] else f"\n{tag[2].upper()}: ", text)
    text = _BREAK_TAG.sub("\n", _LAYOUT_TAG.sub("", text))
    text = _BOXED.sub(r"\1", text)
    text = _QUOTED_LINE.sub("", text) if _QUOTED_HEADING.search(text) else text
    text = _RULE_LINE.sub("", text)
    text = _BULLET.sub(_as_sentence, _BOLD.sub("", text))
    text = _UNDERSCORED.sub(r"\1", _ITALIC.sub(r"\1", text))
    text = _LINE_HEADING.sub(lambda found: _heading(found["name"]), text)
    text = _INLINE_HEADING.sub(lambda found: _heading(found["name"] or found["upper"]), text)
    text = html.unescape(text)
    # One heading above the same heading: a title, as in "## FINDINGS" over "FINDINGS: ...".
    return re.sub(r"(FINDINGS|IMPRESSION):\s+\1:", r"\1:", text)


def _as_sentence(bullet: re.Match[str]) -> str:
    text = bullet["text"]
    return text if text[-1] in ".!?:;,*_" else f"{text}."


def _heading(name: str) -> str:
    return f"{'FINDINGS' if name.upper().startswith('FINDING') else 'IMPRESSION'}: "


def _without_preface(text: str) -> str:
    """The text from its first heading on, if all that precedes it is talk about the answer."""
    found = re.search(r"(?<!\w)(?:FINDINGS|IMPRESSION):", text)
    if found is None:
        return text
    before = text[: found.start()].strip(" \t\n\"'“‘`*_#-")
    sentences = [part.strip(" \t\"'*_#-") for part in _SENTENCE_END.split(before)]
    return text[found.start() :] if all(map(_is_talk, filter(None, sentences))) else text


def _is_talk(sentence: str) -> bool:
    if _TALK_ALONE.fullmatch(sentence):
        return True
    if _CHEST.search(re.sub(r"(?i)chest (?=x-?ray|radio)", "", sentence)):
        return False
    introduces = sentence.endswith(":") or _TALK_START.match(sentence)
    return bool(introduces and _TALK_NOUN.search(sentence))


def _without_remarks(text: str) -> str:
    """The text without paragraphs, lines and sentences at its end that speak of the rewriting."""
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
    """Whether all of a text speaks of the rewriting."""
    found = _REMARK.match(text)
    if found is None or _ANY_HEADING.search(text):
        return False
    if found["changes"]:
        return True
    if found["note"] and not _ABOUT_REWRITING.search(text):
        return False
    sentences = _SENTENCE_END.split(text[found.end() :])
    return not any(_CHEST.search(part) and not _REMARK.match(part) for part in sentences[1:])


def _unquoted(text: str) -> str:
    text = text.strip()
    closing = _QUOTES.get(text[:1])
    inside = text[1:-1]
    if closing and len(text) > 1 and text.endswith(closing) and closing not in inside:
        return inside
    # A preface may have taken the opening one with it.
    if text[-1:] in ('"', "”", "`") and not any(mark in text[:-1] for mark in '"“`'):
        return text[:-1]
    return text


# ---- verdicts

_DECISION_KEYS = frozenset(
    {
        "answer",
        "verdict",
        "decision",
        "judgement",
        "judgment",
        "result",
        "response",
        "final_answer",
        "final_verdict",
        "output",
        "conclusion",
        "assessment",
        "accept",
        "accepted",
        "approved",
        "pass",
        "passed",
        "ok",
        "valid",
        "faithful",
        "correct",
    }
)
_REASON_KEYS = ("reason", "explanation", "rationale", "comment", "why", "justification", "problem")
_DECISIONS = {"yes": True, "no": False, "true": True, "false": False}

_QUESTION = re.compile(
    r"[(\[\"'“*]{0,3}\byes[\"'”]? ?(?:/|or) ?[\"'“]?no\b[)\]\"'”*]*\s*[:?]", re.IGNORECASE
)
_LEADING = re.compile(r"\A[\W_]*(?P<word>yes|no)\b", re.IGNORECASE)
_LABELLED = re.compile(
    r"(?:^|[.!?;{,])[\W_]{0,8}(?:(?:so|therefore|thus|hence|overall|my|the)[\s,]+){0,3}(?:final )?"
    r"(?:answer|verdict|decision|judge?ment|conclusion|result|response|assessment|a(?=:))"
    r"[\W_]{0,4}(?:is|:|=|-|–|—|\n)[\W_]{0,8}(?P<word>yes|no|true|false)\b",
    re.IGNORECASE | re.MULTILINE,
)
_LAST_LINE = re.compile(r"\n[\W_]*(?P<word>yes|no)[\W_]*\Z", re.IGNORECASE)

_BOTH = re.compile(
    r"[\W_]*(?:(?:and|or|but|yet|then|maybe|also)[\W_]+)?(?P<word>yes|no)\b[\"'”]?\s*(?:[^\w\s]|$)"
    r"|[\W_]*(?:and|or|but|yet)[\W_]+(?P<joined>yes|no)\b|\s*\?",
    re.IGNORECASE,
)
_HEDGE = re.compile(
    r"[\W_]*(?:in part|to (?:a|some)|sort of|kind of|i (?:think|guess|suppose)|but|however|except"
    r"|although|though|part(?:ly|ially)|most(?:ly)?|almost|nearly|largely|only if|if|unless|apart"
    r"|aside|with (?:the |one |an |a |some |minor )?(?:exceptions?|reservations?|caveats?|changes?"
    r"|corrections?)|maybe|perhaps|probably|possibly|wait|actually)\b",
    re.IGNORECASE,
)
# "No finding is missing" says the contrary of "No. A finding is missing".
_STATEMENT = re.compile(
    r"[ \t]+(?!(?:the|it|its|this|that|because|since|as|there|a|an|one|rewrite|original|by|due|both"
    r"|and|but|for|in|here|they|we|i|two|some|several)\b)[A-Za-z]|-\w",
    re.IGNORECASE,
)


def _set_of(words: str) -> frozenset[str]:
    return frozenset(words.split())


# What begins to judge and says nothing yet: "Let me compare the rewrite with the original."
_OPENING = _set_of(
    "let let's me us i i'll i'm we will now first next then ok okay sure check checking compare "
    "comparing verify verifying look looking judge judging see carefully step one two three 1 2 3 "
    "reasoning analysis comparison assessment evaluation explanation reason the this that a both "
    "rewrite original report reports text texts with against to at and of each section sections "
    "finding findings my is here verdict answer json"
)
# Beside a yes only these words may stand, so that nothing in it can name a fault or a finding.
_ABOUT = _set_of(
    "the a an this that these those it its they their of in to from with by for as at on than i "
    "you we is are was were be been being has have had does do did so also very fully completely "
    "entirely exactly all every everything each both any rewrite rewritten rewriting report "
    "reports original version text sentence sentences content information meaning finding "
    "findings statement statements fact facts detail details side sides number numbers "
    "measurement measurements device devices position positions tip tips degree degrees "
    "diagnosis diagnoses polarity doubt doubts uncertainty negative clinical "
    "medical x-ray radiological relevant and or verdict answer reason explanation because since "
    "section sections requirement requirements instruction instructions rule rules task"
)
_PRAISE = _set_of(
    "kept keeps keep preserved preserves preserve retained retains retain maintained maintains "
    "faithful faithfully accurate accurately correct correctly complete good fine ok okay perfect "
    "perfectly true equivalent identical same unchanged intact consistent matches match matching "
    "follows follow meets meet conveys convey acceptable accepted approved valid "
    "present reflects reflect agrees agree satisfied met remain remains"
)
_FAULTS = _set_of(
    "missing lost lose loses loss omitted omits omission omissions dropped drops invented invents "
    "hallucinated hallucination hallucinations contradiction contradictions contradicted incorrect "
    "wrong reversed unsupported fabricated added adds addition additions new changed changes "
    "change altered alters different differs differ difference differences error errors mistake "
    "mistakes issue issues problem problems discrepancy discrepancies introduced moved removed "
    "fault faults left out gone"
)
# What may follow a further fault: "nothing is missing or added to the report".
_AFTER_FAULT = _set_of("or nor and in to from the at all by rewrite report original text")
_NOT = _set_of("no not nothing none without never neither nor")
# What a rewrite has to leave out, and how it is told.
_TO_LEAVE_OUT = _set_of(
    "comparison comparisons prior priors previous earlier examination examinations exam exams "
    "study studies date dates name names placeholder placeholders mark marks de-identification "
    "view views technique reference references communication"
)
_LEFT_OUT = _set_of(
    "omitted removed dropped deleted left out gone taken rightly correctly appropriately properly"
)
# What a rewrite may word in another way.
_STYLE = _set_of("wording phrasing style grammar formatting order spelling punctuation")
_REWORDED = _set_of("differs different changed improved better simplified shorter shortened")
_AROUND = _set_of("the a and or of to with is was are were all been has have any")
_PIECE_END = re.compile(
    r"[.!?;:()\n]+|\s[-–—]\s|,?\s+(?:but|while|yet)\s+"
    r"|(?:,\s*(?:and\s+)?|\s+and\s+)(?=(?:no|nothing|none|without|all|the|every|everything|it|is)\b)",
    re.IGNORECASE,
)


def verdict(answer: str) -> tuple[bool, str] | None:
    """(accepted, reason) of a judge's reply; None if neither yes nor no can be told.

    Read are a reply that begins with the word, a labelled one ("Answer: yes", "The verdict is
    no."), the word alone on the last line, and a JSON object. All of them must agree. A yes that is
    limited ("Yes, but ...", "Yes and no"), or that stands beside anything but words that the
    rewrite is faithful, before or after it, is no yes.
    """
    text = _without_reasoning(answer)
    if text is None:
        return None
    objects, text = _objects(text)
    words = _XML_TAG.sub("\n", _BOXED.sub(r"\1", text)).replace("```", "\n").replace("**", "")
    words = _QUESTION.sub(": ", words).strip()
    said = list(_in_words(words))
    readings = [*map(_decided, objects), *said]
    found = [reading for reading in readings if reading is not None]
    if len(found) < len(readings) or len({accepted for accepted, _ in found}) != 1:
        return None
    if found[0][0] and not said and not _leads_to_yes(words):
        return None
    reason = next((reason for _, reason in found if reason), "") or _folded(words)
    return found[0][0], "" if reason.lower().strip(" .") in _DECISIONS else reason[:500]


def _in_words(text: str) -> Iterator[tuple[bool, str] | None]:
    matches = [_LEADING.match(text), *_LABELLED.finditer(text), _LAST_LINE.search(text)]
    in_order = sorted(filter(None, matches), key=lambda found: found.start())
    for found in in_order:
        decision = _decision(found["word"], text[found.end("word") :])
        # What follows the first one has been read with it.
        before = text[: in_order[0].start()]
        faithful = decision is None or not decision[0] or _leads_to_yes(before)
        yield decision if faithful else None


def _decision(word: str, rest: str) -> tuple[bool, str] | None:
    """What "yes" or "no" means with what follows it; None if that takes it back."""
    accepted = _DECISIONS[word.lower()]
    both = _BOTH.match(rest)
    if both and (both["word"] or both["joined"] or "").lower() != word.lower():
        return None
    if (_HEDGE if accepted else _STATEMENT).match(rest):
        return None
    reason = _folded(rest)
    return None if accepted and not _is_praise(reason) else (accepted, reason)


def _is_praise(reason: str) -> bool:
    """Whether what follows a yes only restates that the rewrite is faithful."""
    return all(map(_piece_is_praise, _PIECE_END.split(reason)))


def _leads_to_yes(before: str) -> bool:
    """Whether what precedes a yes opens the judgement or restates that the rewrite is faithful."""
    return all(
        set(re.findall(r"[\w'’]+", piece.lower())) <= _OPENING or _piece_is_praise(piece)
        for piece in _PIECE_END.split(before)
    )


def _piece_is_praise(piece: str) -> bool:
    words = re.findall(r"[^\W_]+(?:[-'’][^\W_]+)*", piece.lower())
    words = [part for word in words for part in re.sub(r"n['’]t$", " not", word).split()]
    if not words or words in (["yes"], ["no", "reason"]):
        return True
    said = set(words)
    if said & _TO_LEAVE_OUT:
        return bool(said & _LEFT_OUT) and said <= _TO_LEAVE_OUT | _LEFT_OUT | _AROUND
    if said & _STYLE:
        return said <= _STYLE | _REWORDED | _AROUND
    if not said <= _ABOUT | _PRAISE | _FAULTS | _NOT:
        return False
    negated = [place for place, word in enumerate(words) if word in _NOT]
    faults = [place for place, word in enumerate(words) if word in _FAULTS]
    praises = [place for place, word in enumerate(words) if word in _PRAISE]
    if not negated:
        return not faults and bool(praises)
    if {words[place] for place in negated[1:]} - {"nor"} or not faults:
        return False
    if faults[0] < negated[0] or any(place > negated[0] for place in praises):
        return False
    _, *further = re.split(r",|\band\b|\bor\b", piece.lower().split(words[faults[0]], 1)[1])
    return all(set(part.split()) <= _FAULTS | _AFTER_FAULT for part in further)


def _objects(text: str) -> tuple[list[dict[str, Any]], str]:
    """(the JSON objects that decide something, the text without them)."""
    decoder = json.JSONDecoder(strict=False, object_pairs_hook=_once_each)
    objects, start = list[dict[str, Any]](), 0
    for _ in range(8):
        start = text.find("{", start)
        if start < 0:
            break
        try:
            value, end = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            start += 1
            continue
        if not _DECISION_KEYS & set(value):
            start = end
            continue
        objects.append(value)
        text = text[:start] + text[end:]
    return objects, text


def _decided(value: dict[str, Any]) -> tuple[bool, str] | None:
    """What a JSON object decides; None if it does not, or says both."""
    named = [value[name] for name in _DECISION_KEYS & set(value)]
    if len(named) == 1 and isinstance(named[0], dict):
        return _decided(named[0]) if _DECISION_KEYS & set(named[0]) else None
    reason = next((_joined(value[name]) for name in _REASON_KEYS if value.get(name)), "")
    readings: list[tuple[bool, str] | None] = []
    for content in named:
        if isinstance(content, bool):
            readings.append((content, ""))
        else:
            said = content.strip(" \t\n.!*") if isinstance(content, str) else ""
            found = re.match(r"(?i)(yes|no|true|false)\b(.*)", said, re.DOTALL)
            readings.append(_decision(found[1], found[2]) if found else None)
    decided = [reading for reading in readings if reading is not None]
    if len(decided) < len(readings) or len({accepted for accepted, _ in decided}) != 1:
        return None
    accepted, said = decided[0]
    reason = _folded(reason or said)
    return None if accepted and not _is_praise(reason) else (accepted, reason)


def _folded(text: str) -> str:
    return " ".join(text.lstrip(" \t\n.,:;!–—-*_\"'”)]}").rstrip(" \t\n,:;*_\"'}").split())

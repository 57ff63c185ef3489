"""Removal of reasoning from a language model's reply: tags, channels, labels, special tokens."""

import re
import unicodedata

# A longer reply is not a report of a chest X-ray.
MOST_CHARACTERS = 100_000
# ---- characters
# With another hyphen "left-sided" would differ from itself in every later comparison.
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
# Radiologists write in square brackets, too: "[Details limited by rotation.]".
_BRACKETED = re.compile(
    r"\[\s*/?(?:\w+[_-])?(?:think|thinking|thoughts?|reasoning)\s*\]", re.IGNORECASE
)
_CLOSING_NAME = re.compile(r"end[_-]|eot|inner_suffix|unused95$", re.IGNORECASE)
# Markers without the form of a tag, with the tag that replaces them.
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
# The same after the server removed the special tokens.
_BARE_ANALYSIS = re.compile(r"\A\s*(?:assistant)?(?:analysis|commentary)(?P<glued>[A-Z])?")
_BARE_FINAL = re.compile(r"assistant\s*final")
_REASONING_LABEL = re.compile(
    r"\A[\W_]*(?:(?:here is |here's )?(?:my |the )?(?:step[- ]by[- ]step )?"
    r"(?:reasoning|thinking|thoughts?|analysis|rationale|chain of thought)(?: process)?)"
    r"[*_ ]*(?::|\n)",
    re.IGNORECASE,
)
# Thoughts without a label; they end at the label of a report.
_THOUGHTS = re.compile(
    r"\A[\W_]*(?:(?:ok(?:ay)?|alright|sure|right|so|well)\b[\s,.!]+)*(?:let me(?! know)|let['’]s"
    r"|let us|(?:i|we)(?:['’]ll| will| need| have| should| must|['’]m| am| are)\b|first\b"
    r"|step (?:1|one)\b|to (?:rewrite|clean)\b|looking at\b|the user\b)",
    re.IGNORECASE,
)
_HEADING_FIRST = re.compile(r"[\W_]*(?:findings?|impressions?)\b", re.IGNORECASE)
_ANSWER_LABEL = re.compile(
    r"(?:^|(?<=[.!?…] ))[#*_> \t]{0,8}(?:here is |here's )?(?:my |the )?"
    r"(?:final |cleaned |rewritten |revised )?(?:answer|response|report|output|verdict|decision"
    r"|rewrite)[*_ \t]{0,4}(?::[*_]{0,2}|$)",
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


def without_reasoning(answer: str) -> str | None:
    """The visible text after the reasoning; None if the reasoning does not end."""
    text = without_tagged_reasoning(answer)
    return None if text is None else after_label(text)[1].strip()


def without_tagged_reasoning(answer: str) -> str | None:
    """As `without_reasoning`, but with reasoning that has only a label or nothing before it."""
    if len(answer) > MOST_CHARACTERS:
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
    return None if outside is None else _own_turn(outside)


def _visible(text: str) -> str:
    """The text without zero-width characters, with one kind of line end and hyphen."""
    lines = "\n".join(text.splitlines()).translate(_HYPHENS)
    shown = (
        char for char in lines if char in "\n\t" or unicodedata.category(char) not in ("Cf", "Cc")
    )
    return _ESCAPED_TAG.sub(r"<\1>", "".join(shown))


def _outside_tags(text: str) -> str | None:
    """The text outside tags of reasoning; None if a tag is not closed.

    Reasoning may mention its own tags. If the tags are not paired, it ends at the last closing tag.
    """
    depth, start, outside, paired, last_close, opened = 0, 0, list[str](), True, -1, -1
    for tag in _TAG.finditer(text):
        if tag["empty"] or not _REASONING_NAME.search(tag["name"]):
            continue
        if tag[0].startswith("[") and not _BRACKETED.fullmatch(tag[0]):
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


def after_label(text: str) -> tuple[str, str]:
    """(the reasoning, the answer) of "Reasoning: ... Answer: ..."; ("", text) without these."""
    *_, last = [None, *_ANSWER_LABEL.finditer(text)]
    if last is None:
        return "", text
    answer = text[last.end() :]
    thoughts = _THOUGHTS.match(text) and _HEADING_FIRST.match(answer)
    if thoughts or _REASONING_LABEL.match(text):
        return text[: last.start()], answer
    return "", text


def _own_turn(text: str) -> str:
    """The text of the model before the end of its turn, without special tokens."""
    parts = (_START_OF_TURN.sub("\n", part).strip() for part in _END_OF_TURN.split(text))
    return next(filter(None, parts), "")

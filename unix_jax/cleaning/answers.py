"""Parser of a language model's reply that contains a rewritten report.

Models surround the report with reasoning (`reasoning`), prefaces and remarks (`remarks`), fences,
bold headings, JSON and characters without width. Only what is recognised as such is removed.
Everything else stays, so that the checks of the report see it.
"""

import html
import re
from typing import Any

from unix_jax.cleaning.answer_json import joined, values_in
from unix_jax.cleaning.reasoning import MOST_CHARACTERS, without_reasoning
from unix_jax.cleaning.remarks import (
    ABOUT_THE_TASK,
    ANY_HEADING,
    SECTION,
    without_preface,
    without_remarks,
)

_FENCE_MARK = re.compile(r"`{3,}")
_LONE_FENCE = re.compile(r"\A`{3,}(?:[\w+-]*[ \t]*\n)?|\s*`{3,}\Z")
_FENCE = re.compile(r"(?:`{3,}|~{3,})(?:[\w+-]*[ \t]*\n)?(.*?)(?:`{3,}|~{3,}|\Z)", re.DOTALL)
# "\n" as two characters.
_LITERAL_BREAK = re.compile(r"(?:\\r)?\\n")
_XML_SECTION = re.compile(r"<(/?)(findings|impression)\s*>", re.IGNORECASE)
XML_TAG = re.compile(r"<(/?)([A-Za-z][\w:-]{0,39})(?:\s[^<>]{0,200})?>")
_LAYOUT_TAG = re.compile(r"</?(?:b|strong|i|em|u|span|code)\s*>", re.IGNORECASE)
_BREAK_TAG = re.compile(r"</?(?:br|p|div|h[1-6]|ul|ol|hr|pre)\s*/?>", re.IGNORECASE)
BOXED = re.compile(r"\\boxed\{(?:\\text\{)?([^{}]*)\}?\}")
# "[**Name**]" is a mark of de-identification, not bold type.
_BOLD = re.compile(r"(?<![\[*])\*{2,3}(?![\]*])")
_ITALIC = re.compile(r"(?<![\w*\[])\*(?=\S)([^*\n]{1,2000}?)(?<=\S)\*(?![\w*\]])")
_UNDERSCORED = re.compile(r"(?<![\w_])__?(?=[A-Za-z])([^_\n]{1,2000}?)__?(?![\w_])")
_RULE_LINE = re.compile(r"^[ \t]*(?:-{3,}|\*{3,}|={3,}|_{20,})[ \t]*$", re.MULTILINE)
_QUOTED_LINE = re.compile(r"^[ \t]*>+[ \t]?", re.MULTILINE)
_QUOTED_HEADING = re.compile(
    rf"^[ \t]*>[>*_# \t\d.-]{{0,9}}{SECTION}", re.IGNORECASE | re.MULTILINE
)
_BULLET = re.compile(r"^[ \t]*[-*•‣▪–][ \t]+(?P<text>\S.*?)[ \t]*$", re.MULTILINE)
_BOLD_HEADING = re.compile(
    rf"(?<![\[*_])[*_]{{2,3}}[ \t]*{SECTION}[ \t]*[:：]?[ \t]*[*_]{{2,3}}(?![*_\]])"
    r"[ \t]*(?:[:：]|[-–—]{1,2}[ \t])?[ \t]*",
    re.IGNORECASE,
)
# "FINDINGS The lungs are clear."
_HEADING_ALONE = re.compile(
    r"^[ \t]*(?P<name>FINDINGS|IMPRESSION)[ \t]+(?=[A-Z][a-z])", re.MULTILINE
)
_LINE_HEADING = re.compile(
    rf"^[ \t]*(?:#{{1,6}}[ \t]*)?(?:\d[.)][ \t]+)?{SECTION}[ \t]*"
    r"(?:[:：][ \t]*|[-–—]{1,2}[ \t]+|$)",
    re.IGNORECASE | re.MULTILINE,
)
_INLINE_HEADING = re.compile(
    r"(?:(?<=[.!?:]\s)|(?<=[.!?]))(?P<name>[Ff]indings|[Ii]mpression)[ \t]*[:：][ \t]*"
    r"|(?<!\w)(?P<upper>FINDINGS|IMPRESSION)[ \t]*(?:[:：]|[-–—]{1,2}(?=[ \t]))[ \t]*"
)
_QUOTES = {'"': '"', "'": "'", "“": "”", "‘": "’", "«": "»", "`": "`"}
_LEFT_OVER = re.compile(
    r"```|~~~|<!--|</?[A-Za-z_][\w:-]*[^<>]{0,40}>|<[|｜]|[|｜]>|(?<!\[)\*\*(?!\])|\\boxed|\A[{\[](?!\*)"
    r"|(?:\A|\s)#{1,6}\s|\|\s*-{3,}"
    # JSON
    r"|[{}]|[\"']\s*\]|[.]\s+\]\Z|[\"']\s*[:,]\s*[\"'\[]|\\(?:[\\nrt\"']|\Z)"
)
_TALK_LEFT = re.compile(
    rf"\b(?:{ABOUT_THE_TASK}"
    r"|let me know|as an ai\b|language model|the (?:original|rewritten) report"
    r"|(?:cleaned|rewritten|revised) report"
    r"|I(?:'ve| have)? (?:removed|rewrote|rewritten|kept|omitted|deleted|dropped))\b",
    re.IGNORECASE,
)


def set_of(words: str) -> frozenset[str]:
    return frozenset(words.split())


# The name of a field or tag that holds the report consists of these words.
_REPORT_WORDS = set_of(
    "report reports cleaned clean rewritten rewrite revised corrected final new answer output text "
    "result response content radiology chest xray version message completion data"
)
_NOT_A_WRAPPER = set_of("text content message data")
# Fields and tags beside the report.
_TALK_NAMES = set_of(
    "analysis note notes comment comments changes changed removed omitted modifications edits "
    "status success confidence language original original_report original_text input "
    "step_by_step steps"
)
_THOUGHT_WORDS = set_of(
    "reasoning reason reasons thinking thought thoughts think cot explanation explanations "
    "rationale justification changes"
)


def plain_answer(answer: str) -> str:
    """The report of a reply to the rewriting prompt, on one line; "" if there is none.

    Removes reasoning, prefaces, remarks about the rewriting, fences, tags and Markdown around the
    report, and writes its headings as FINDINGS: and IMPRESSION:. Text that is none of these stays.
    """
    text = without_reasoning(answer)
    return "" if text is None else _report(text)


def why_unusable(answer: str) -> str:
    """Why no report can be read from a reply, in a sentence for the model and the user; or ""."""
    if len(answer) > MOST_CHARACTERS:
        return (
            f"The answer has {len(answer):,} characters; expected one report, "
            f"of at most {MOST_CHARACTERS:,}."
        )
    text = without_reasoning(answer)
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


# ---- reports
def _report(text: str) -> str:
    for _ in range(6):
        inner = _inner(text)
        if inner == text:
            inner = _LITERAL_BREAK.sub("\n", text)
        if inner == text:
            break
        text = inner
    report = _unquoted(without_remarks(_once(without_preface(_plain(text)))))
    return " ".join(report.split())


def _inner(text: str) -> str:
    """The content of a fence, a tag or JSON around the report; without these, the text itself."""
    text = _without_talk_elements(_unquoted(text))
    text = _LONE_FENCE.sub("", text) if len(_FENCE_MARK.findall(text)) == 1 else text
    return _in_fence(text) or _in_tag(text) or _in_json(text) or text


def _in_fence(text: str) -> str:
    holding = [match for match in _FENCE.finditer(text) if _holds_report(match[1])]
    if not holding or len({" ".join(match[1].split()) for match in holding}) > 1:
        return ""
    first, *same = holding
    for match in reversed(same):
        text = f"{text[: match.start()]}\n{text[match.end() :]}"
    return first[1].strip() if _only_talk_around(text, *first.span()) else ""


def _in_tag(text: str) -> str:
    first: dict[str, tuple[int, int]] = {}
    last: dict[str, tuple[int, int]] = {}
    for tag in XML_TAG.finditer(text):
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
    for tag in XML_TAG.finditer(text):
        name = tag[2].lower()
        # The other half was a stop sequence, or part of the prompt.
        if name in (first if tag[1] else last) or name in _NOT_A_WRAPPER or not _is_report(name):
            continue
        if tag.start() == 0 and not tag[1]:
            return text[tag.end() :].strip()
        if tag.end() == len(text) and tag[1]:
            return text[: tag.start()].strip()
    return ""


def _in_json(text: str) -> str:
    for value, start, end in values_in(text):
        report = _report_in(value)
        if report and _only_talk_around(text, start, end):
            return report
    return ""


def _without_talk_elements(text: str) -> str:
    """The text without elements like <explanation>...</explanation>, if it holds the report."""
    start, outside, opened = 0, list[str](), None
    for tag in XML_TAG.finditer(text):
        if opened is None and not tag[1] and _is_talk(tag[2].lower()):
            opened = tag
        elif opened is not None and tag[1] and tag[2].lower() == opened[2].lower():
            outside.append(text[start : opened.start()])
            start, opened = tag.end(), None
    rest = "\n".join([*outside, text[start:]])
    return rest.strip() if _holds_report(rest) else text


def _is_report(name: str) -> bool:
    return set(re.split(r"[_\W]+", name)) <= _REPORT_WORDS


def _is_talk(name: str) -> bool:
    return name in _TALK_NAMES or not _THOUGHT_WORDS.isdisjoint(re.split(r"[_\W]+", name))


def _once(text: str) -> str:
    """The report of a reply that repeats it; other texts unchanged."""
    heading = re.match(r"FINDINGS:|IMPRESSION:", text)
    if heading is None:
        return text
    starts = [found.start() for found in re.finditer(rf"(?<!\w){heading[0]}", text)]
    parts = [text[a:b] for a, b in zip(starts, [*starts[1:], None], strict=True)]
    last = parts[-1].split()
    for part in parts[:-1]:
        words = part.split()
        between = " ".join(words[len(last) :])
        if words[: len(last)] != last or without_preface(f"{between} FINDINGS:") != "FINDINGS:":
            return text
    return parts[-1]


def _holds_report(text: str) -> bool:
    return bool(ANY_HEADING.search(text) or _XML_SECTION.search(text))


def _only_talk_around(text: str, start: int, end: int) -> bool:
    """Whether nothing outside [start, end) is part of a report."""
    before, after = text[:start], text[end:]
    if _holds_report(before) or _holds_report(after):
        return False
    return not without_preface(f"{before}\nFINDINGS:").removesuffix("FINDINGS:").strip() and not (
        without_remarks(f"\n{after}").strip()
    )


def _report_in(value: Any) -> str:
    """The report of a value of JSON; "" if a field is neither part of it nor a remark."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and len(value) == 1:
        return _report_in(value[0])
    if not isinstance(value, dict):
        return ""
    # A field without text holds nothing of a report.
    fields = {
        name: content
        for name, content in value.items()
        if not _is_talk(name)
        and not (content is None or isinstance(content, bool) or content == "")
    }
    if fields and set(fields) <= {"findings", "impression"}:
        if not all(map(_is_text, fields.values())):
            return ""
        texts = {name: joined(fields.get(name)) for name in ("findings", "impression")}
        return "\n".join(
            text if _LINE_HEADING.match(text) else f"{name.upper()}: {text}"
            for name, text in texts.items()
            if text
        )
    if len(fields) == 1 and _is_report(next(iter(fields))):
        return _report_in(next(iter(fields.values())))
    return ""


def _is_text(value: Any) -> bool:
    parts = value if isinstance(value, list) else [value]
    return all(isinstance(part, str) for part in parts)


def _plain(text: str) -> str:
    """The text without Markdown and layout tags, with headings in one form."""
    text = _XML_SECTION.sub(lambda tag: "\n" if tag[1] else f"\n{tag[2].upper()}: ", text)
    text = _BREAK_TAG.sub("\n", _LAYOUT_TAG.sub("", text))
    text = _BOLD_HEADING.sub(lambda found: _heading(found["name"]), BOXED.sub(r"\1", text))
    text = _QUOTED_LINE.sub("", text) if _QUOTED_HEADING.search(text) else text
    text = _RULE_LINE.sub("", text)
    text = _BULLET.sub(_as_sentence, _BOLD.sub("", text))
    text = _UNDERSCORED.sub(r"\1", _ITALIC.sub(r"\1", text))
    text = _HEADING_ALONE.sub(r"\g<name>: ", text)
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


def _unquoted(text: str) -> str:
    text = text.strip()
    closing = _QUOTES.get(text[:1])
    inside = text[1:-1]
    if closing and len(text) > 1 and text.endswith(closing) and closing not in inside:
        return inside
    # The opening quotation mark may have been removed with a preface.
    if text[-1:] in ('"', "”", "`") and not any(mark in text[:-1] for mark in '"“`'):
        return text[:-1]
    return text

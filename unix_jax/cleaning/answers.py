"""Parser of a language model's reply that contains a rewritten report.

Models surround the report with reasoning (`reasoning`), prefaces and remarks (`remarks`), fences,
bold headings, JSON and characters without width. Only what is recognised as such is removed.
Everything else stays, so that the checks of the report see it.
"""

import ast
import html
import json
import re
from typing import Any

from unix_jax.cleaning.reasoning import MOST_CHARACTERS, without_reasoning
from unix_jax.cleaning.remarks import ANY_HEADING, SECTION, without_preface, without_remarks

_LONE_FENCE = re.compile(r"\A```(?:[\w+-]*[ \t]*\n)?|\s*```\Z")
_FENCE = re.compile(r"(?:`{3,6}|~{3,6})(?:[\w+-]*[ \t]*\n)?(.*?)(?:`{3,6}|~{3,6}|\Z)", re.DOTALL)
_XML_SECTION = re.compile(r"<(/?)(findings|impression)\s*>", re.IGNORECASE)
XML_TAG = re.compile(r"<(/?)([A-Za-z][\w:-]{0,39})(?:\s[^<>]{0,200})?>")
_LAYOUT_TAG = re.compile(r"</?(?:b|strong|i|em|u|span|code)\s*>", re.IGNORECASE)
_BREAK_TAG = re.compile(r"</?(?:br|p|div|h[1-6]|ul|ol|hr|pre)\s*/?>", re.IGNORECASE)
BOXED = re.compile(r"\\boxed\{(?:\\text\{)?([^{}]*)\}?\}")
# "[**Name**]" is a mark of de-identification, not bold type.
_BOLD = re.compile(r"(?<![\[*])\*{2,3}(?![\]*])")
_BOLD_HEADING = re.compile(
    rf"^[ \t]*\*{{2,3}}{SECTION}\*{{2,3}}[ \t]+(?=\w)", re.IGNORECASE | re.MULTILINE
)
_ITALIC = re.compile(r"(?<![\w*\[])\*(?=\S)([^*\n]{1,2000}?)(?<=\S)\*(?![\w*\]])")
_UNDERSCORED = re.compile(r"(?<![\w_])__?(?=[A-Za-z])([^_\n]{1,2000}?)__?(?![\w_])")
_RULE_LINE = re.compile(r"^[ \t]*(?:-{3,}|\*{3,}|={3,}|_{20,})[ \t]*$", re.MULTILINE)
_QUOTED_LINE = re.compile(r"^[ \t]*>+[ \t]?", re.MULTILINE)
_QUOTED_HEADING = re.compile(
    rf"^[ \t]*>[>*_# \t\d.-]{{0,9}}{SECTION}", re.IGNORECASE | re.MULTILINE
)
_BULLET = re.compile(r"^[ \t]*[-*•‣▪–][ \t]+(?P<text>\S.*?)[ \t]*$", re.MULTILINE)
_LINE_HEADING = re.compile(
    rf"^[ \t]*(?:#{{1,6}}[ \t]*)?(?:\d[.)][ \t]+)?{SECTION}[ \t]*(?:[:：][ \t]*|$)",
    re.IGNORECASE | re.MULTILINE,
)
_INLINE_HEADING = re.compile(
    r"(?:(?<=[.!?:]\s)|(?<=[.!?]))(?P<name>[Ff]indings|[Ii]mpression)[ \t]*[:：][ \t]*"
    r"|(?<!\w)(?P<upper>FINDINGS|IMPRESSION)[ \t]*[:：][ \t]*"
)
_QUOTES = {'"': '"', "'": "'", "“": "”", "‘": "’", "«": "»", "`": "`"}
_LEFT_OVER = re.compile(
    r"```|~~~|<!--|</?[A-Za-z_][\w:-]*[^<>]{0,40}>|<[|｜]|[|｜]>|(?<!\[)\*\*(?!\])|\\boxed|\A[{\[](?!\*)"
    r"|(?:\A|\s)#{1,6}\s|\|\s*-{3,}|[\"'”][\s,]*[}\]]+\s*\Z|[\"'”]\s*,\s*[\"'“]\w+[\"'”]\s*:"
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
        "chain_of_thought",
        "cot",
        "plan",
        "steps",
        "status",
    }
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
    # Line ends of a JSON text without its quotation marks.
    text = text if "\n" in text.strip() else text.replace("\\n", "\n")
    for _ in range(4):
        inner = _inner(text)
        if inner == text:
            break
        text = inner
    return " ".join(_unquoted(without_remarks(without_preface(_plain(text)))).split())


def _inner(text: str) -> str:
    """The content of a fence, a tag or JSON around the report; without these, the text itself."""
    text = _unquoted(text)
    text = _LONE_FENCE.sub("", text) if text.count("```") == 1 else text
    holding = [match for match in _FENCE.finditer(text) if _holds_report(match[1])]
    if len(holding) == 1 and _only_talk_around(text, *holding[0].span()):
        return holding[0][1].strip()
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
        # The other half was a stop sequence, or part of the prompt.
        alone = tag[2].lower() not in (first if tag[1] else last)
        if alone and tag[2].lower() in _WRAPPERS and tag.start() == 0 and not tag[1]:
            return text[tag.end() :].strip()
        if alone and tag[2].lower() in _WRAPPERS and tag.end() == len(text) and tag[1]:
            return text[: tag.start()].strip()
    return _in_json(text) or text


def _in_json(text: str) -> str:
    """The report of the JSON value in a text, with nothing but talk around it; or ""."""
    begin = re.search(r"[{\[](?=\s*[\"'{])", text)
    if begin is None:
        return ""
    start = begin.start()
    try:
        decoder = json.JSONDecoder(strict=False, object_pairs_hook=once_each)
        value, end = decoder.raw_decode(text, start)
    except (ValueError, RecursionError):
        end = text.rfind("}") + 1
        value = _python_dict(text[start:end])
    return _report_in(value) if _only_talk_around(text, start, end) else ""


def _python_dict(text: str) -> dict[str, Any] | None:
    """A dictionary as Python writes it; None for any other text."""
    try:
        node = ast.parse(text, mode="eval").body
        if not isinstance(node, ast.Dict):
            return None
        keys = [str(ast.literal_eval(key)) for key in node.keys if key is not None]
        return once_each([*zip(keys, map(ast.literal_eval, node.values), strict=True)])
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return None


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


def once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name.strip().lower() for name, _ in pairs]
    if len(set(names)) < len(names):
        raise ValueError("a name occurs twice")
    return dict(zip(names, (value for _, value in pairs), strict=True))


def _report_in(value: Any) -> str:
    """The report of a JSON object; "" if a field is neither part of it nor a remark."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and len(value) == 1:
        return _report_in(value[0]) if isinstance(value[0], dict) else ""
    if not isinstance(value, dict):
        return ""
    fields = {name: content for name, content in value.items() if name not in _TALK_KEYS}
    if fields and set(fields) <= {"findings", "impression"}:
        texts = {name: joined(fields.get(name)) for name in ("findings", "impression")}
        return " ".join(
            text if _LINE_HEADING.match(text) else f"{name.upper()}: {text}"
            for name, text in texts.items()
            if text
        )
    if len(fields) == 1:
        name, content = next(iter(fields.items()))
        if name in _REPORT_KEYS or (isinstance(content, str) and _holds_report(content)):
            return _report_in(content)
    return ""


def joined(value: Any) -> str:
    texts = value if isinstance(value, list) else [value]
    return " ".join(text.strip() for text in texts if isinstance(text, str))


def _plain(text: str) -> str:
    """The text without Markdown and layout tags, with headings in one form."""
    text = _XML_SECTION.sub(lambda tag: "\n" if tag[1] else f"\n{tag[2].upper()}: ", text)
    text = _BREAK_TAG.sub("\n", _LAYOUT_TAG.sub("", text))
    text = BOXED.sub(r"\1", text)
    text = _QUOTED_LINE.sub("", text) if _QUOTED_HEADING.search(text) else text
    text = _RULE_LINE.sub("", text)
    text = _BOLD_HEADING.sub(r"\g<name>: ", text)
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

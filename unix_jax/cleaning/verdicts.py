"""Parser of a language model's reply that contains the verdict of a judge."""

import json
import re
from collections.abc import Iterator
from typing import Any

from unix_jax.cleaning.answers import BOXED, XML_TAG, joined, once_each
from unix_jax.cleaning.reasoning import without_reasoning

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
    r"(?:(?:answer|verdict|decision|judge?ment|conclusion|result|response|assessment|a(?=:))"
    r"[\W_]{0,4}(?:is|:|=|-|–|—|\n)|i(?: would|'d|’d) say)[\W_]{0,8}(?P<word>yes|no|true|false)\b",
    re.IGNORECASE | re.MULTILINE,
)
_LAST_LINE = re.compile(r"(?:\n|(?<=[.!])\s)[\W_]*(?P<word>yes|no)[\W_]*\Z", re.IGNORECASE)
# "Is the rewrite faithful?" A question about a fault would turn the answer around.
_ASKS = re.compile(
    r"\A\W*(?:is|are|does|do|has|have|did|was|were)\b[^.!?\n]{0,200}?\?\s*(?=\W*(?:yes|no)\b)",
    re.IGNORECASE,
)
# "Missing: none."
_NONE_OF = re.compile(
    r"\b(?P<fault>missing|added|lost|invented|omitted|omissions?|additions?|errors?|issues?|problems?"
    r"|contradictions?|differences?)\s*:\s*(?:none|nothing|no|n/a|0)\b(?=\s*(?:[.;,\n]|$))",
    re.IGNORECASE,
)
# A no that is taken back.
_THEN_YES = re.compile(
    r"\b(?:so|wait|thus|therefore|hence|actually)\b\W+(?:\w+\W+){0,3}?yes\b", re.IGNORECASE
)
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
# "No finding is missing" is the opposite of "No. A finding is missing".
_STATEMENT = re.compile(
    r"[ \t]+(?!(?:the|it|its|this|that|because|since|as|there|a|an|one|rewrite|original|by|due|both"
    r"|and|but|for|in|here|they|we|i|two|some|several)\b)[A-Za-z]|-\w",
    re.IGNORECASE,
)


def _set_of(words: str) -> frozenset[str]:
    return frozenset(words.split())


# Fields of a JSON object that do not judge. Reasoning may name every fault on its way.
_NEUTRAL_KEYS = _set_of(
    "confidence score rating id index number model reasoning analysis thinking thought thoughts "
    "chain_of_thought cot steps plan comparison"
)
# A piece of one of these words alone: "Reason: all findings are kept."
_LABELS = _set_of(
    "reason explanation rationale justification comment why yes definitely absolutely certainly"
)
# Words of an opening without a judgement: "Let me compare the rewrite with the original."
_OPENING = _set_of(
    "let let's me us i i'll i'm we will now first next then ok okay sure check checking compare "
    "comparing verify verifying look looking judge judging see carefully step one two three 1 2 3 "
    "reasoning analysis comparison assessment evaluation explanation reason the this that a both "
    "rewrite original report reports text texts with against to at and of each section sections "
    "finding findings my is here verdict answer json"
)
# Only these words may occur beside a yes, so that none can name a fault or a finding.
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
# Words after a further fault: "nothing is missing or added to the report".
_AFTER_FAULT = _set_of("or nor and in to from the at all by rewrite report original text")
_NOT = _set_of("no not nothing none without never neither nor")
# Contents that a rewrite must omit, and words for the omission.
_TO_LEAVE_OUT = _set_of(
    "comparison comparisons prior priors previous earlier examination examinations exam exams "
    "study studies date dates name names placeholder placeholders mark marks de-identification "
    "view views technique reference references communication"
)
_LEFT_OUT = _set_of(
    "omitted removed dropped deleted left out gone taken rightly correctly appropriately properly"
)
# Properties that may differ in a rewrite.
_STYLE = _set_of("wording phrasing style grammar formatting order spelling punctuation")
_REWORDED = _set_of("differs different changed improved better simplified shorter shortened")
_AROUND = _set_of("the a and or of to with is was are were all been has have any")
_PIECE_END = re.compile(
    r"[.!?;:()\n]+|\s[-–—]\s|,?\s+(?:but|while|yet)\s+"
    r"|(?:,\s*(?:and\s+)?|\s+and\s+)(?=(?:no|nothing|none|without|all|the|every|everything|it|is)\b)",
    re.IGNORECASE,
)


def verdict(answer: str) -> tuple[bool, str] | None:
    """(accepted, reason) of a judge's reply; None if it is neither yes nor no.

    Read are a reply that begins with the word, a labelled one ("Answer: yes", "The verdict is
    no."), the word alone on the last line, and a JSON object. All of them must agree. A yes that is
    limited ("Yes, but ...", "Yes and no"), or that stands beside anything but words that the
    rewrite is faithful, before or after it, is no yes.
    """
    text = without_reasoning(answer)
    if text is None:
        return None
    objects, text = _objects(text)
    words = XML_TAG.sub("\n", BOXED.sub(r"\1", text)).replace("```", "\n").replace("**", "")
    words = _NONE_OF.sub(r"nothing \g<fault>", _QUESTION.sub(": ", words)).strip()
    if (asked := _ASKS.match(words)) and _names_praise(asked[0]):
        words = words[asked.end() :]
    said = list(_in_words(words))
    readings = [*map(_decided, objects), *said]
    found = [reading for reading in readings if reading is not None]
    if len(found) < len(readings) or len({accepted for accepted, _ in found}) != 1:
        return None
    if found[0][0] and not said and not _leads_to_yes(words):
        return None
    reason = next((reason for _, reason in found if reason), "") or _folded(words)
    return found[0][0], "" if reason.lower().strip(" .") in _DECISIONS else reason[:500]


def _names_praise(text: str) -> bool:
    """Whether words of praise and none of a fault are in a text."""
    said = set(re.findall(r"\w+", text.lower()))
    return bool(said & _PRAISE) and not said & _FAULTS


def _in_words(text: str) -> Iterator[tuple[bool, str] | None]:
    matches = [_LEADING.match(text), *_LABELLED.finditer(text), _LAST_LINE.search(text)]
    in_order = sorted(filter(None, matches), key=lambda found: found.start())
    for found in in_order:
        decision = _decision(found["word"], text[found.end("word") :])
        # The text after the first word was parsed with it.
        before = text[: in_order[0].start()]
        faithful = decision is None or not decision[0] or _leads_to_yes(before)
        yield decision if faithful else None


def _decision(word: str, rest: str) -> tuple[bool, str] | None:
    """The decision of "yes" or "no" with the text after it; None if that text withdraws it."""
    accepted = _DECISIONS[word.lower()]
    both = _BOTH.match(rest)
    if both and (both["word"] or both["joined"] or "").lower() != word.lower():
        return None
    if (_HEDGE if accepted else _STATEMENT).match(rest):
        return None
    reason = _folded(rest)
    if accepted:
        return (True, reason) if _is_praise(reason) else None
    # "No, everything is kept." says both.
    praised = len(reason.split()) > 1 and _names_praise(reason) and _is_praise(reason)
    withdrawn = praised or _THEN_YES.search(rest)
    return None if withdrawn else (False, reason)


def _is_praise(reason: str) -> bool:
    """Whether the text after a yes only states that the rewrite is faithful."""
    return all(map(_piece_is_praise, _PIECE_END.split(reason)))


def _leads_to_yes(before: str) -> bool:
    """Whether the text before a yes is an opening, or states that the rewrite is faithful."""
    return all(
        set(re.findall(r"[\w'’]+", piece.lower())) <= _OPENING or _piece_is_praise(piece)
        for piece in _PIECE_END.split(before)
    )


def _piece_is_praise(piece: str) -> bool:
    words = re.findall(r"[^\W_]+(?:[-'’][^\W_]+)*", piece.lower())
    words = [part for word in words for part in re.sub(r"n['’]t$", " not", word).split()]
    if not words or words == ["no", "reason"] or (len(words) == 1 and words[0] in _LABELS):
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
    decoder = json.JSONDecoder(strict=False, object_pairs_hook=once_each)
    objects, start = list[dict[str, Any]](), 0
    for _ in range(8):
        start = text.find("{", start)
        if start < 0:
            break
        try:
            value, end = decoder.raw_decode(text, start)
            value = {name.removeprefix("is_"): content for name, content in value.items()}
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
    """The decision of a JSON object; None without one, or with both."""
    named = [value[name] for name in _DECISION_KEYS & set(value)]
    if len(named) == 1 and isinstance(named[0], dict):
        return _decided(named[0]) if _DECISION_KEYS & set(named[0]) else None
    reason = next((joined(value[name]) for name in _REASON_KEYS if value.get(name)), "")
    readings: list[tuple[bool, str] | None] = []
    for content in named:
        if isinstance(content, list) and len(content) == 1:
            content = content[0]
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
    if accepted and not all(map(_allows_yes, *zip(*value.items(), strict=True))):
        return None
    return None if accepted and not _is_praise(reason) else (accepted, reason)


def _allows_yes(name: str, content: Any) -> bool:
    """Whether a field beside a yes names no fault."""
    words = set(re.findall(r"[a-z]+", name))
    if name in _DECISION_KEYS | set(_REASON_KEYS) | _NEUTRAL_KEYS or not content:
        # False beside "complete" is a fault, beside "omissions" it is none.
        return bool(content is not False or not words & _PRAISE or words & _FAULTS)
    if isinstance(content, str):
        said = content.strip(" .!").lower()
        if said in _DECISIONS:
            content = _DECISIONS[said]
        else:
            return said in ("none", "nothing", "n/a", "null") or _is_praise(content)
    if isinstance(content, bool):
        return content is not bool(words & _FAULTS) if words & (_FAULTS | _PRAISE) else content
    if isinstance(content, list):
        return all(isinstance(item, str) and _allows_yes(name, item) for item in content)
    return False


def _folded(text: str) -> str:
    return " ".join(text.lstrip(" \t\n.,:;!–—-*_\"'”)]}").rstrip(" \t\n,:;*_\"'}").split())

"""Parser of a language model's reply that contains the verdict of a judge."""

import re
from collections.abc import Collection, Iterator
from typing import Any

from unix_jax.cleaning.answer_json import joined, values_in
from unix_jax.cleaning.answers import BOXED, XML_TAG, set_of
from unix_jax.cleaning.reasoning import after_label, without_tagged_reasoning

_DECISION_KEYS = set_of(
    "answer verdict decision judgement judgment result response final_answer final_verdict output "
    "conclusion assessment accept accepted approved pass passed ok valid faithful correct"
)
_REASON_KEYS = ("reason", "explanation", "rationale", "comment", "why", "justification", "problem")
# Fields that may weigh both sides, as labelled reasoning does.
_REASONING_KEYS = set_of("reasoning analysis thinking thought thoughts chain_of_thought cot steps")
# Fields beside the decision that say nothing about the rewrite.
_NEUTRAL_KEYS = frozenset({"confidence", "certainty", "id", "language", "format", "status"})
_EMPTY = frozenset({"", "none", "nothing", "n/a", "na", "nil", "no", "false", "0", "-", "[]"})
_DECISIONS = {"yes": True, "no": False, "true": True, "false": False}
_QUESTION = re.compile(
    r"[(\[\"'“*]{0,3}\byes[\"'”]? ?(?:/|or) ?[\"'“]?no\b[)\]\"'”*]*\s*[:?]", re.IGNORECASE
)
# "So clearly no."
_STRESSED = (
    r"(?:(?:so|therefore|thus|hence|overall|clearly|definitely|certainly|absolutely|simply)\b"
    r"[\W_]{1,4})"
)
_LEADING = re.compile(rf"\A[\W_]*{_STRESSED}{{0,2}}(?P<word>yes|no)\b", re.IGNORECASE)
_LABELLED = re.compile(
    r"(?:^|[.!?;{,])[\W_]{0,8}(?:(?:so|therefore|thus|hence|overall|my|the)[\s,]+){0,3}"
    r"(?:(?:final )?"
    r"(?:answer|verdict|decision|judge?ment|conclusion|result|response|assessment|a(?=:))"
    r"[\W_]{0,4}(?:is|would be|must be|has to be|:|=|-|–|—|\n)[\W_]{0,8}(?:an? )?"
    r"|i(?:['’]d| would| will|['’]ll| must| have to)?[\s,]+(?:say|answer|respond|reply|vote"
    r"|go with)[\W_]{1,4}|(?:it is|it['’]s|this is|that is|that['’]s) (?:an? )?(?=\w+[.!]?\s*\Z))"
    rf"{_STRESSED}?(?P<word>yes|no|true|false)\b",
    re.IGNORECASE | re.MULTILINE,
)
_LAST_WORD = re.compile(
    rf"(?:(?:\n|[.!;]\s)[\W_]*{_STRESSED}{{0,2}}|,\s(?:and\s)?{_STRESSED}{{1,2}})"
    r"(?P<word>yes|no)[\W_]*\Z",
    re.IGNORECASE,
)
_ASKED_BEFORE = re.compile(r"[^.?!\n]{1,300}\?")
# "Is the rewrite faithful? No."
_QUESTIONED = re.compile(
    r"(?:\A|\n|[.!]\s)(?P<question>[^.?!\n]{1,300})\?[\W_]*(?P<word>yes|no)\b", re.IGNORECASE
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
    r"|and|but|for|in|here|they|we|i|two|some|several|way)\b)[A-Za-z]|-\w",
    re.IGNORECASE,
)


# Words of a label, or words that strengthen.
_BESIDE = set_of(
    "reason reasons reasoning explanation rationale justification comment comments note notes why "
    "because analysis summary details answer verdict decision final confidence high "
    "definitely certainly absolutely indeed sure clearly surely undoubtedly"
)
_ASKED = set_of("say says what same whether still")
# Words of an opening without a judgement: "Let me compare the rewrite with the original."
_OPENING = set_of(
    "let let's me us i i'll i'm we will now first next then ok okay sure check checking compare "
    "comparing verify verifying look looking judge judging see carefully step one two three 1 2 3 "
    "reasoning analysis comparison assessment evaluation explanation reason the this that a both "
    "rewrite original report reports text texts with against to at and of each section sections "
    "finding findings my is here verdict answer json q question"
)
# Only these words may occur beside a yes, so that none can name a fault or a finding.
_ABOUT = set_of(
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
_PRAISE = set_of(
    "kept keeps keep preserved preserves preserve retained retains retain maintained maintains "
    "faithful faithfully accurate accurately correct correctly complete good fine ok okay perfect "
    "perfectly true equivalent identical same unchanged intact consistent matches match matching "
    "follows follow meets meet conveys convey acceptable accepted approved valid "
    "present reflects reflect agrees agree satisfied met remain remains"
)
_FAULTS = set_of(
    "missing lost lose loses loss omitted omits omission omissions dropped drops invented invents "
    "hallucinated hallucination hallucinations contradiction contradictions contradicted incorrect "
    "wrong reversed unsupported fabricated added adds addition additions new changed changes "
    "change altered alters different differs differ difference differences error errors mistake "
    "mistakes issue issues problem problems discrepancy discrepancies introduced moved removed "
    "fault faults left out gone"
)
# Words after a further fault: "nothing is missing or added to the report".
_AFTER_FAULT = set_of("or nor and in to from the at all by rewrite report original text")
_NOT = set_of("no not nothing none without never neither nor")
# Contents that a rewrite must omit, and words for the omission.
_TO_LEAVE_OUT = set_of(
    "comparison comparisons prior priors previous earlier examination examinations exam exams "
    "study studies date dates name names placeholder placeholders mark marks de-identification "
    "view views technique reference references communication"
)
_LEFT_OUT = set_of(
    "omitted removed dropped deleted left out gone taken rightly correctly appropriately properly"
)
# Properties that may differ in a rewrite.
_STYLE = set_of("wording phrasing style grammar formatting order spelling punctuation")
_REWORDED = set_of("differs different changed improved better simplified shorter shortened")
_AROUND = set_of(
    "the a and or of to with is was are were all been has have any as instructed required requested"
)
# "Missing: none."
_NONE_LISTED = re.compile(
    r"(?:^|(?<=[.;,\n]))(?P<named>[\w \t*_-]{3,60}?)[*_]*[ \t]*[:=][*_]*[ \t]*"
    r"(?:none|nothing|no|nil|n/a|zero|0)\b(?=[\s.;,]*(?:$|\n|[.;,]))",
    re.IGNORECASE | re.MULTILINE,
)
# Neither reworded nor rightly omitted contents are a reason for a no, nor against it.
_NO_FAULT = _TO_LEAVE_OUT | _STYLE
_SAYING_NOTHING = (["yes"], ["no", "reason"], ["no", "doubt"], ["without", "doubt"])
_CONTRASTS = set_of(
    "but however now instead became becomes turned not while unlike unfaithful incomplete "
    "inaccurate swapped flipped moves shifted replaced replaces confused mixed absent lacks "
    "lacking vanished vs versus"
)
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
    text = without_tagged_reasoning(answer)
    if text is None:
        return None
    reasoning, text = after_label(text)
    objects, text = _objects(text)
    words = XML_TAG.sub(_as_label, BOXED.sub(r"\1", text)).replace("```", "\n").replace("**", "")
    words = _NONE_LISTED.sub(_as_statement, _QUESTION.sub(": ", words)).strip()
    said = list(_in_words(words))
    readings = [*map(_decided, objects), *said]
    found = [reading for reading in readings if reading is not None]
    if len(found) < len(readings) or len({accepted for accepted, _ in found}) != 1:
        return None
    unsupported = not said and not _leads_to_yes(words)
    if found[0][0] and (unsupported or _names_a_fault(reasoning)):
        return None
    reason = next((reason for _, reason in found if reason), "") or _folded(words)
    return found[0][0], "" if reason.lower().strip(" .") in _DECISIONS else reason[:500]


def _as_label(tag: re.Match[str]) -> str:
    """ "missing: " for "<missing>"."""
    names_a_fault = not tag[1] and _FAULTS & set(_words(tag[2]))
    return f"\n{tag[2].replace('_', ' ')}: " if names_a_fault else "\n"


def _as_statement(listed: re.Match[str]) -> str:
    """ "Without errors" for "Errors: none"."""
    named = set(_words(listed["named"]))
    return " without errors" if named & _FAULTS and named <= _FAULTS | _ABOUT else listed[0]


def _in_words(text: str) -> Iterator[tuple[bool, str] | None]:
    patterns = (_LABELLED, _QUESTIONED, _LAST_WORD)
    matches = [found for each in patterns for found in each.finditer(text)]
    leading = _LEADING.match(text)
    # "No finding is missing. Answer: yes" begins with a statement.
    if leading and not (matches and _is_statement(leading["word"], text[leading.end() :])):
        matches.append(leading)
    in_order = sorted(matches, key=lambda found: found.start("word"))
    # What follows is part of the text after the first ones.
    for found in in_order[:20]:
        decision = _decision(found["word"], text[found.end("word") :])
        question = found.groupdict().get("question", "")
        if question and not _asks_for_praise(question):
            decision = None
        # The text after the first word was parsed with it.
        start = in_order[0].start()
        before = _ASKED_BEFORE.sub(_unless_praise, text[: start + text.startswith("?", start)])
        if decision is None:
            yield None
        elif decision[0]:
            yield decision if _leads_to_yes(before) else None
        else:
            yield None if _says_faithful(before) else decision


def _unless_praise(question: re.Match[str]) -> str:
    return "" if _asks_for_praise(question[0]) else question[0]


def _asks_for_praise(question: str) -> bool:
    """Whether a yes to this question accepts the rewrite."""
    words = set(re.findall(r"[\w'’]+", question.lower()))
    return words <= _ABOUT | _PRAISE | _ASKED | _OPENING


def _decision(word: str, rest: str) -> tuple[bool, str] | None:
    """The decision of "yes" or "no" with the text after it; None if that text withdraws it."""
    accepted = _DECISIONS[word.lower()]
    both = _BOTH.match(rest)
    if both and (both["word"] or both["joined"] or "").lower() != word.lower():
        return None
    if (accepted and _HEDGE.match(rest)) or _is_statement(word, rest):
        return None
    reason = _folded(rest)
    return (accepted, reason) if _agrees(accepted, reason) else None


def _is_statement(word: str, rest: str) -> bool:
    return word.lower() == "no" and bool(_STATEMENT.match(rest))


def _agrees(accepted: bool, reason: str) -> bool:
    """Whether the text after a decision does not contradict it."""
    if accepted:
        return _is_praise(reason)
    return not _says_faithful(reason) and not re.search(r"(?i)\byes\b", reason)


def _is_praise(reason: str) -> bool:
    """Whether the text after a yes only states that the rewrite is faithful."""
    return all(map(_piece_is_praise, _PIECE_END.split(reason)))


def _says_faithful(text: str) -> bool:
    """Whether a text states that the rewrite is faithful, and nothing else."""
    pieces = [set(_words(piece)) for piece in _PIECE_END.split(text)]
    praise = _PRAISE | _FAULTS
    return _is_praise(text) and any(said & praise and not said & _NO_FAULT for said in pieces)


def _names_a_fault(reasoning: str) -> bool:
    """Whether labelled reasoning before a yes speaks of a fault."""
    pieces = _PIECE_END.split(_NONE_LISTED.sub(_as_statement, reasoning))
    contradicting = _FAULTS | _CONTRASTS
    return any(
        contradicting & set(_words(piece)) and not _piece_is_praise(piece) for piece in pieces
    )


def _leads_to_yes(before: str) -> bool:
    """Whether the text before a yes is an opening, or states that the rewrite is faithful."""
    return all(
        set(re.findall(r"[\w'’]+", piece.lower())) <= _OPENING or _piece_is_praise(piece)
        for piece in _PIECE_END.split(before)
    )


def _piece_is_praise(piece: str) -> bool:
    words = _words(piece)
    said = set(words)
    if said <= _BESIDE or words in _SAYING_NOTHING:
        return True
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


def _words(piece: str) -> list[str]:
    words = re.findall(r"[^\W_]+(?:[-'’][^\W_]+)*", piece.lower())
    return [part for word in words for part in re.sub(r"n['’]t$", " not", word).split()]


def _objects(text: str) -> tuple[list[dict[str, Any]], str]:
    """(the JSON objects that decide something, the text without them)."""
    objects, rest, after = list[dict[str, Any]](), list[str](), 0
    for value, start, end in values_in(text):
        value = value[0] if isinstance(value, list) and len(value) == 1 else value
        if start < after or not isinstance(value, dict) or not any(map(_decides, value)):
            continue
        objects.append(value)
        rest.append(text[after:start])
        after = end
    return objects, "\n".join([*rest, text[after:]])


def _decides(name: str) -> bool:
    return re.sub(r"^(?:is|was|overall|rewrite_is|rewrite|final)_", "", name) in _DECISION_KEYS


def _decided(value: dict[str, Any]) -> tuple[bool, str] | None:
    """The decision of a JSON object; None without one, with both, or if a field contradicts it."""
    named = [content for name, content in value.items() if _decides(name)]
    if len(named) == 1 and isinstance(named[0], dict):
        inner = {name: content for name, content in value.items() if not _decides(name)}
        return _decided(named[0] | inner) if any(map(_decides, named[0])) else None
    reasons = [
        joined(value[name])
        for name in _REASON_KEYS
        if value.get(name) and not _is_word(value[name], _EMPTY)
    ]
    beside = {
        name: content
        for name, content in value.items()
        if not _decides(name) and name not in _REASON_KEYS
    }
    readings: list[tuple[bool, str] | None] = []
    for content in named:
        content = content[0] if isinstance(content, list) and len(content) == 1 else content
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
    if accepted and not all(_field_agrees(*field) for field in beside.items()):
        return None
    texts = [*filter(None, reasons), said, *map(joined, beside.values())]
    reason = _folded(next(filter(None, texts), ""))
    agrees = all(_agrees(accepted, _folded(text)) for text in [*reasons, said])
    return (accepted, reason) if agrees else None


def _field_agrees(name: str, content: Any) -> bool:
    """Whether a field beside a yes states no fault: "missing": [], "complete": true."""
    if name in _NEUTRAL_KEYS:
        return not _is_word(content, {"low", "very low", "none", "unsure", "uncertain"})
    if name in _REASONING_KEYS and isinstance(content, str):
        return not _names_a_fault(content)
    words = set(name.split("_"))
    if words & _NOT or (words & _PRAISE and not words & _FAULTS):
        affirms = bool(words & _FAULTS) if words & _NOT else True
        return affirms and (content is True or _is_word(content, {"yes", "true"}))
    empty = content in (None, False, 0, [], {}) or _is_word(content, _EMPTY)
    return empty or (isinstance(content, str) and _is_praise(content))


def _is_word(content: Any, words: Collection[str]) -> bool:
    texts = content if isinstance(content, list) else [content]
    return all(isinstance(text, str) and text.strip(" .").lower() in words for text in texts)


def _folded(text: str) -> str:
    return " ".join(text.lstrip(" \t\n.,:;!–—-*_\"'”)]}").rstrip(" \t\n,:;*_\"'}").split())

"""Sentences of report text: splitting, joining, and repair after the removal of words."""

import re
from collections.abc import Callable, Iterable

# A sentence ends at a full stop before a space, but not after a title or a list number.
_END = re.compile(
    r"(?<!\bDr\.)(?<!\bDrs\.)(?<!\bMr\.)(?<!\bMrs\.)(?<!\bMs\.)(?<!\bvs\.)(?<!\bapprox\.)"
    r"(?<!^\d\.)(?<!\s\d\.)(?<!\s\d\d\.)(?<!\bno\.)(?<=[.!?])"
    r"(?<!\b[ap]\.m\.)\s+|(?<=[ap]\.m\.)\s+(?=(?-i:[A-Z]))",
    re.IGNORECASE,
)
_LIST_NUMBER = re.compile(r"^(\d{1,2})[.)](?!\d)\s*")
_INNER_NUMBER = re.compile(r"(?:^|(?<=\s))(\d{1,2})[.)]\s+(?=\S)")
_LETTER = re.compile(r"[^\W\d_]")

# Words that cannot end a sentence; they remain if the words after them were removed.
_DANGLING_END = re.compile(
    r"[\s,:(-]+(?:and|or|with|of|to|in|on|at|by|from|for|the|an|as|is|are|was|were|be|been|has|have"
    r"|had|which|that|than|but|since|per|via|into|over|versus|if|because)(?=\s*[.;!?]?$)",
    re.IGNORECASE,
)
_DANGLING_START = re.compile(
    r"^\s*(?:(?:and|or|of|to|which|that|than|but|then|by)\b|as (?:is|are)\b|[,;:)-])\s*",
    re.IGNORECASE,
)
_SPACED_PUNCTUATION = re.compile(r"\s+(?=[,.;:)!?](?!\d))")
_SPACE_IN_BRACKET = re.compile(r"(?<=[(\[])\s+")
_DOUBLE_COMMA = re.compile(r"[,;](?:\s*,)+")
# The second comma of a pair after the first was removed.
_COMMA_BEFORE_VERB = re.compile(r"^([^,;]+),\s+(?=(?:is|are|has|have|was|were)\s)")
_COMMA_BEFORE_END = re.compile(r"[\s,;:(-]+(?=[.!?]$)|[\s,;:(-]+$")
_EMPTY_BRACKETS = re.compile(r"\(\s*[.,;/]?\s*\)|\[\s*\]|<\s*>|\"\s*\"")
_SPACED_SLASH = re.compile(r"(?<=[a-z])\s+/(?=[a-z])")
_DOUBLE_STOP = re.compile(r"[.;](?:\s*\.)+")
_AN_CONSONANT = re.compile(r"\b([Aa])n(?=\s+(?:[bcdfgjklmnpqrstvwyz]|h(?!our|onest|eir)))")
_A_VOWEL = re.compile(r"\b([Aa])(?=\s+(?:[aeiAEI]|o(?!ne\b)|un(?!i|it)))")

# A sentence of these words alone names a part of the body or an examination and states nothing.
_NEUTRAL = frozenset(
    [
        "the",
        "a",
        "an",
        "this",
        "these",
        "it",
        "they",
        "that",
        "those",
        "there",
        "and",
        "or",
        "of",
        "in",
        "with",
        "is",
        "are",
        "was",
        "were",
        "be",
        "been",
        "has",
        "have",
        "for",
        "to",
        "at",
        "on",
        "overall",
        "appearance",
        "appearances",
        "chest",
        "heart",
        "cardiac",
        "cardiomediastinal",
        "mediastinum",
        "mediastinal",
        "hilar",
        "hila",
        "hilum",
        "silhouette",
        "silhouettes",
        "contour",
        "contours",
        "size",
        "position",
        "lung",
        "lungs",
        "pulmonary",
        "vasculature",
        "vascularity",
        "aorta",
        "aortic",
        "configuration",
        "examination",
        "exam",
        "study",
        "finding",
        "findings",
        "seen",
        "noted",
        "also",
        "otherwise",
        "appear",
        "appears",
        "bony",
        "structures",
        "osseous",
        "thorax",
        "volumes",
        "remainder",
        "right",
        "left",
        "both",
        "base",
        "lobe",
        "lobes",
        "bases",
        "field",
        "fields",
        "soft",
        "tissues",
        "cardio",
        "thoracic",
        "spine",
        "x",
        "ray",
        "process",
        "remaining",
        "visualized",
        "cardiopulmonary",
        "pleural",
        "imaging",
        "interval",
        "change",
        "changes",
        "time",
        "other",
        "which",
        "present",
        "alignment",
        "inflation",
        "aeration",
        "vessels",
        "vascular",
        "structure",
        "surfaces",
        "basilar",
        "venous",
        "improved",
        "surface",
        "spaces",
        "space",
        "margins",
        "diaphragm",
        "diaphragms",
        "hemidiaphragm",
        "hemidiaphragms",
        "trachea",
        "bones",
        "ribs",
        "sulci",
        "upper",
        "abdomen",
        "visualization",
        "central",
        "airway",
        "airways",
        "border",
        "borders",
    ]
)
_WORDS = re.compile(r"[^\W\d_]+")


def split_sentences(text: str) -> list[str]:
    """Sentences with their punctuation and list numbers; only white space is lost."""
    parts = (part for item in _list_items(" ".join(text.split())) for part in _END.split(item))
    return [part for part in parts if part]


def _list_items(text: str) -> list[str]:
    """The items of a text that begins with 1.; items may lack their full stops."""
    starts, expected = [0], 1
    for match in _INNER_NUMBER.finditer(text):
        if int(match[1]) != expected or (expected == 1 and match.start() > 0):
            continue
        expected += 1
        if match.start() > 0:
            starts.append(match.start())
    ends = [*starts, len(text)][1:]
    return [text[start:end].strip() for start, end in zip(starts, ends, strict=True)]


def list_number(sentence: str) -> tuple[str, str]:
    """(number, sentence without it); the number is "" where there is none."""
    match = _LIST_NUMBER.match(sentence)
    return (match[1], sentence[match.end() :]) if match else ("", sentence)


def renumbered(sentences: Iterable[str]) -> list[str]:
    """The sentences with at least one letter, with their list numbers counted again from 1.

    A list of one item loses its number. Numbers that do not increase are not a list and stay.
    """
    kept = [s for s in sentences if _LETTER.search(list_number(s)[1])]
    numbers = [(i, int(n)) for i, s in enumerate(kept) if (n := list_number(s)[0])]
    values = [n for _, n in numbers]
    if values != sorted(set(values)):
        return kept
    for position, (i, _) in enumerate(numbers, 1):
        body = list_number(kept[i])[1]
        kept[i] = body if len(numbers) == 1 else f"{position}. {body}"
    return kept


def each_sentence(text: str, change: Callable[[str], str]) -> str:
    """`text` with every sentence changed; a sentence that becomes "" is omitted.

    `change` sees a sentence without its list number. The next sentence without a number
    receives that of an omitted one. If nothing changes, `text` is returned as it is.
    """
    sentences, changed, pending = split_sentences(text), [], ""
    for sentence in sentences:
        number, body = list_number(sentence)
        result = change(body)
        number = number or pending
        if result != body and not _LETTER.search(result):
            pending = number
            continue
        pending = ""
        if result == body:
            changed.append(
                sentence if list_number(sentence)[0] or not number else f"{number}. {body}"
            )
        else:
            changed.append(f"{number}. {result}" if number else result)
    return text if changed == sentences else " ".join(changed)


def mended(sentence: str) -> str:
    """Repairs spacing, commas, articles and the capital of a sentence that lost words.

    "" if no letter is left.
    """
    for _ in range(20):
        before = sentence
        sentence = " ".join(_EMPTY_BRACKETS.sub(" ", sentence).split())
        sentence = _SPACE_IN_BRACKET.sub("", _SPACED_PUNCTUATION.sub("", sentence))
        sentence = _SPACED_SLASH.sub("/", sentence)
        sentence = _DOUBLE_STOP.sub(".", _DOUBLE_COMMA.sub(",", sentence))
        sentence = _DANGLING_START.sub("", _DANGLING_END.sub("", sentence))
        sentence = _COMMA_BEFORE_END.sub("", _COMMA_BEFORE_VERB.sub(r"\1 ", sentence)).strip()
        if sentence == before:
            break
    if not _LETTER.search(sentence):
        return ""
    sentence = _A_VOWEL.sub(r"\1n", _AN_CONSONANT.sub(r"\1", sentence))
    sentence = _agreeing(sentence)
    # The capital of a letter outside ASCII may be another letter: that of µ is not a unit.
    first = sentence[0].upper() if sentence[0].isascii() else sentence[0]
    return first + sentence[1:]


_SINGULAR_SUBJECT = re.compile(
    r"^((?:the )?(?:soft tissue|heart|mediastinum|aorta"
    r"|(?:heart|cardiac) size|spine|thorax)) (are|appear)\b",
    re.IGNORECASE,
)


def _agreeing(sentence: str) -> str:
    """The verb in the singular if one of several nouns is left: "Heart are" -> "Heart is"."""
    verbs = {"are": "is", "appear": "appears"}
    return _SINGULAR_SUBJECT.sub(lambda m: f"{m[1]} {verbs[m[2].lower()]}", sentence)


def says_nothing(sentence: str) -> bool:
    """Whether only parts of the body and empty verbs are left, as in "The mediastinum is."."""
    return all(word.lower() in _NEUTRAL for word in _WORDS.findall(sentence))

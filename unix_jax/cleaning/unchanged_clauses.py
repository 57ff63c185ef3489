"""Sentences and clauses that only compare, or state only that a part of the body did not change."""

import re

from unix_jax.cleaning.comparison_words import CHANGED, DEGREE, HIDDEN, PRIOR, STUDY
from unix_jax.cleaning.facts import holds_finding
from unix_jax.cleaning.sentences import mended, says_nothing
from unix_jax.cleaning.words_of_change import without_comparisons

# Sentences that state only a comparison, or only that something hidden was removed.
ONLY_COMPARES = re.compile(
    rf"^(?:(?:there (?:is|are|has been|have been) )?(?:no|little|minimal) (?:{HIDDEN}\s+|overall "
    rf"|other |gross |significant |interval |appreciable |relevant |definite "
    r"|substantial |acute (?!changes\b))*"
    r"changes?(?:\s+(?:is|are|was|were)?\s*(?:seen|noted|identified|demonstrated|found)?"
    r"(?:\s+in (?:the )?[a-z ]+)?)?"
    r"(?:\s+(?:from|since|compared|with)\b[^.]*)?"
    rf"|(?:grossly |essentially )?(?:{CHANGED})(?: (?:exam|examination|study|chest"
    r"|appearance|radiograph))?(?: of the chest)?"
    rf"|no (?:prior |previous |available )?comparisons?(?:\s+(?:{STUDY}|available"
    r"|for review|are|is|at this time))*"
    r"|there (?:does )?appears? to (?:be|have been) (?:interval )?(?:progression|worsening"
    r"|improvement|change) (?:of|in) (?:the )?(?:changes|findings?|appearance)\b[^,;]*"
    r"|comparison is made[^.]*|none available"
    r"|(?:the )?heart and mediastinum (?:is|are) (?:stable|unchanged) given (?:the )?lung volumes"
    rf"|(?:overall,? )?this is not {HIDDEN} to represent a (?:significant )?change\b.*"
    rf"|(?:the )?heart and lungs? ha(?:s|ve) {HIDDEN} in the interval"
    r"|(?:appearance )?(?:is |are )?not (?:significantly )?changed[^.,;]*"
    rf"|comparison:?(?:\s*(?:{HIDDEN}|none|\d[\d/-]*|available|{STUDY}|chest|to|with|of"
    r"|from|dated|,))*"
    r"|(?:this|it|these|they) (?:has|have|was|were|is|are)\b[^.\d]*\b(?:since|prior"
    r"|previous|previously)\b[^.\d]*"
    r"|(?:prior|previous|recommend|suggest)?[^,;.]{0,40}\bcomparison\b[^,;.]{0,60}\b"
    r"(?:would|may|might|could|recommended|useful|helpful|suggested)\b[^;]*"
    r"|recommend comparison\b.*"
    r"|(?:if|in the absence of|no prior|no previous|as prior|recommend|consider)\b.*\b"
    rf"(?:comparisons?|(?:prior|previous|outside) {STUDY})\b.*"
    rf"|(?:the )?(?:\w+ )?{HIDDEN} (?:has|have) been removed\b[^,;]*"
    rf"|[^,;]*\b(?:may|might) (?:be|have been) (?:\w+ly )?{CHANGED}\s+(?:compared|from|since)\b"
    r"[^,;]*"
    rf"|comparison (?:to|with) {PRIOR}[^;]*\b(?:useful|helpful|recommended)\b[^;]*"
    rf"|comparison {STUDY}\b.*|the most recent {STUDY} (?:is|are) not\b.*"
    rf"|(?:the )?(?:{HIDDEN} )?(?:appearance|this|it|these|findings?) (?:is|are|was|were"
    rf"|appears?) {DEGREE}"
    rf"(?:{CHANGED}|present|seen|noted)\b(?:\s*(?:to|from|since|on|compared|in)\b[^,;]*)?"
    r")\s*[.;:]*$",
    re.IGNORECASE,
)
_VERB = re.compile(
    r"\b(?:is|are|was|were|has|have|appears?|remains?|may|could|shows?|seen|noted|within|normal"
    r"|present|identified|intact|unremarkable|clear|enlarged)\b",
    re.IGNORECASE,
)
# The boundary between two clauses of a sentence.
_SEGMENT = re.compile(
    r"(?P<join>\s*[,;]\s+(?:(?:and|but)\s+)?|\s+but\s+|\s+(?=with(?:out)?\s)"
    r"|\s+and\s+(?=(?:(?:the|there|no|heart|lungs?|mediastin\w+|cardio\w+|cardiac|hilar|pleural"
    r"|pulmonary|osseous|bony|tortuous|normal|stable|unchanged)\b)))",
    re.IGNORECASE,
)
_COMMA_OF_ADJECTIVES = re.compile(
    r"\b(stable|unchanged),\s+(?=(?:mild|moderate|marked|severe|normal|small|large|minimal"
    r"|chronic|coarse"
    r"|prominent|enlarged|tortuous|calcified|diffuse|scattered|low|left|right|bilateral|\w+ly"
    r"|non\w+|\w+ed|\w+ous|\w+ic)\s)",
    re.IGNORECASE,
)
_CHANGE_WORD = re.compile(
    r"\b(?:stable|unchanged|similar|same|chang\w+|interval|compar\w+|prior|previous\w*|persist\w*"
    r"|remains?|again|re-?demonstrat\w+)\b",
    re.IGNORECASE,
)
_FINITE = re.compile(
    r"\b(?:is|are|was|were|has|have|appears?|remains?|may|could|shows?)\b", re.IGNORECASE
)
_NEUTRAL_TAIL = re.compile(r"(?:,?\s+and|,)\s+(?P<tail>[a-z /-]+?)\s*\.?$", re.IGNORECASE)


def without_unchanged_clauses(sentence: str) -> str:
    """The sentence without clauses that state only that a part of the body did not change."""
    pieces = _SEGMENT.split(_COMMA_OF_ADJECTIVES.sub(r"\1 ", sentence))
    clauses, joins = _merged(pieces[::2], pieces[1::2])
    if len(clauses) < 2:
        return sentence
    kept: list[str] = []
    dropped = False
    for index, clause in enumerate(clauses):
        bare = re.sub(r"^with(?:out)?\s+", "", clause, flags=re.IGNORECASE)
        compares = _CHANGE_WORD.search(bare) is not None
        left = without_comparisons(bare) if compares else bare
        empty = says_nothing(left) or bool(compares and ONLY_COMPARES.match(bare))
        verbless = _VERB.search(left) is None
        if (
            empty
            and not holds_finding(bare)
            and (compares or (dropped and verbless))
            and not _completed(clauses, index)
        ):
            dropped = True
            continue
        if kept:
            kept.append(joins[index - 1])
        elif dropped:
            clause = re.sub(r"^(?:with no|without)\s+", "no ", clause, flags=re.IGNORECASE)
            clause = re.sub(r"^with\s+", "", clause, flags=re.IGNORECASE)
        kept.append(clause)
    if not dropped:
        return sentence
    text = mended("".join(kept))
    return text if not text or text[-1] in ".!?" else f"{text}."


def _merged(clauses: list[str], joins: list[str]) -> tuple[list[str], list[str]]:
    """Joins the parts around an "and" that joins two nouns, not two clauses with a verb each."""
    merged, kept = [clauses[0]], []
    for join, clause in zip(joins, clauses[1:], strict=True):
        bare = join.strip().lower() == "and"
        if bare and not (_FINITE.search(merged[-1]) and _FINITE.search(clause)):
            merged[-1] += join + clause
        else:
            kept.append(join)
            merged.append(clause)
    return merged, kept


def _completed(clauses: list[str], index: int) -> bool:
    """Whether a clause needs the next one: "stable heart size and lungs are clear"."""
    clause = clauses[index]
    following = clauses[index + 1] if index + 1 < len(clauses) else ""
    if re.match(r"^(?:since|compared|in comparison|when compared|in the)\b", clause, re.I):
        return True
    return _VERB.search(clause) is None and bool(
        re.match(r"^(?:\w+\s+){0,4}?(?:is|are|appears?|remains?)\b", following)
        and not re.match(r"^(?:the|there|heart|lungs?|no|cardi\w+)\b", following, re.I)
    )


def without_neutral_tail(sentence: str) -> str:
    """A sentence without a verb, less a last part that only names parts of the body.

    "Mild cardiomegaly and mediastinal contours." -> "Mild cardiomegaly."
    """
    tail = _NEUTRAL_TAIL.search(sentence)
    if (
        tail
        and not _VERB.search(sentence)
        and says_nothing(tail["tail"])
        and not re.search(r"\b(?:left|right|both)\b", tail["tail"])
    ):
        return mended(sentence[: tail.start()] + ".")
    return sentence

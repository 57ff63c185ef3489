"""Dispensable sentences that no rule can clean: repetitions and mere advice.

Nothing is lost if the rest of the report states the same, or if the sentence only advises an
examination, a comparison or a correlation and states no finding of its own.
"""

import re

from unix_jax.cleaning.facts import measurements, normal_statements, qualities, statements
from unix_jax.cleaning.guard import content_words, may_go
from unix_jax.cleaning.marks import ANY_MARK, MARK

_OPENING = r"(?:(?:or|and|also|however|alternatively|otherwise)\b,?\s+)?"
_ADVICE = re.compile(
    rf"^{_OPENING}(?:if|correlat\w+|comparisons?|compare|recommend\w*|consider|suggest"
    r"|as prior|as previous|does this patient|is there)\b"
    rf"|^{_OPENING}(?:an?\s+|the\s+)?(?:(?:{MARK}|low|kv|p|chest|CT|MRI)\s+){{0,4}}(?:scan|films?"
    rf"|radiographs?|x-ray|imaging|{MARK})\s+(?:(?:is|are)\s+(?:the\s+{MARK}|recommended|needed"
    r"|suggested)|(?:can|could|would|should|may|might)\s+be)\b",
    re.IGNORECASE,
)
# A finding in an advice is not stated: "to determine if there is any adenopathy". With "the"
# it is, and so is a reason after it ("as tuberculosis could have this appearance").
_REST = r"(?:(?!\b(?:as|since|because|which|that)\b)[^,;.])*"
_NOT_KNOWN = r"(?!(?:the|this|that|these|those|its?)\b)"
_SUPPOSED = re.compile(
    rf"\b(?:if|whether)\s+{_NOT_KNOWN}{_REST}|\b(?:if|whether)\s+(?:this|these)\s+(?:is|are)\b{_REST}"
    rf"|\b(?:presence|possibility|evidence|signs|risk|symptoms|location) of\s+{_NOT_KNOWN}{_REST}"
    rf"|\bfor\s+(?:any|possible|focal|{MARK}\s+of)\s+{_NOT_KNOWN}{_REST}"
    rf"|\bany\s+{_REST}|\bfactors for\s+{_NOT_KNOWN}{_REST}"
    rf"|^(?:does|has|is|are) (?:this|the) patient\b{_REST}",
    re.IGNORECASE,
)
# Stems that name no finding by themselves.
_VAGUE = frozenset({"abnormalit", "diseas"})
_ASSERTS = re.compile(r"\bthere (?:is|are)\b|\b(?:is|are) (?:seen|noted|present)\b", re.IGNORECASE)


def is_dispensable(sentence: str, rest: str) -> bool:
    """Whether a report without `sentence` states the same.

    Args:
      sentence: a sentence that cannot be cleaned.
      rest: the other sentences of the report, cleaned.
    """
    sentence = " ".join(ANY_MARK.sub(lambda mark: f" {mark[0]} ", sentence).split())
    return _is_repeated(sentence, rest) or (
        _ADVICE.match(sentence) is not None and _is_supposed(sentence, rest)
    )


def _is_repeated(sentence: str, rest: str) -> bool:
    """Whether `rest` states each of its findings in the same way and with the same words."""
    return (
        bool(statements(sentence))
        and not normal_statements(sentence)
        and _covered(sentence, rest)
        and _words_known(sentence, rest)
    )


def _is_supposed(sentence: str, rest: str) -> bool:
    """Whether an advice states only what `rest` states."""
    stated = _SUPPOSED.sub(" ", sentence)
    if _ASSERTS.search(stated) or any(measurements(stated)):
        return False
    # A finding that the rest does not mention is not omitted, although it is only supposed.
    named = {_stem(name) for name in statements(sentence)} - _VAGUE
    if not named <= {_stem(name) for name in statements(rest)}:
        return False
    return _covered(stated, rest) and _words_known(stated, rest)


def _stem(name: str) -> str:
    """The last word in quotation marks of a name of `statements`."""
    return name.split('"')[-2]


def _covered(sentence: str, rest: str) -> bool:
    return (
        statements(sentence).keys() <= statements(rest).keys()
        and qualities(sentence).keys() <= qualities(rest).keys()
    )


def _words_known(sentence: str, rest: str) -> bool:
    known = set(content_words(rest))
    return all(
        word in known or all(map(may_go, word.split("-"))) for word in content_words(sentence)
    )

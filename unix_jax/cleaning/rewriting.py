"""Rewriting of a report: rewrite, check, judge, and retry with the reason for a refusal."""

import dataclasses
from typing import Protocol

from unix_jax.cleaning.answers import plain_answer, why_unusable
from unix_jax.cleaning.checks import problems
from unix_jax.cleaning.endpoint import Completion, Messages, RequestError, Tokens
from unix_jax.cleaning.guard import rewriting_problems
from unix_jax.cleaning.templates import Prompts, filled
from unix_jax.cleaning.verdicts import verdict

# A judge that says neither is asked once more before the rewrite counts as refused.
_JUDGE_TRIES = 2


class Chat(Protocol):
    """What answers: an endpoint, or a stand-in for it."""

    async def complete(self, model: str, messages: Messages, /) -> Completion: ...


@dataclasses.dataclass(frozen=True)
class Rewriting:
    """How a report is rewritten.

    model, judge_model: names at the endpoint.
    max_tries: rewrites of one report at most.
    """

    prompts: Prompts
    model: str
    judge_model: str
    max_tries: int = 3


@dataclasses.dataclass(frozen=True)
class Rewritten:
    """The outcome: a report, or "" and the reason for setting it aside."""

    report: str
    reason: str
    tries: int
    tokens: Tokens


async def rewrite_report(chat: Chat, original: str, how: Rewriting) -> Rewritten:
    """One report through rewriting, checks and judge.

    Raises:
      RequestError, EndpointError: as `ChatEndpoint.complete`.
    """
    spent = [Tokens()]
    try:
        return await _rewritten(chat, original, how, spent)
    except RequestError as error:
        error.tokens = sum(spent, Tokens())
        raise


async def _rewritten(chat: Chat, original: str, how: Rewriting, spent: list[Tokens]) -> Rewritten:
    """`spent` takes the tokens of every answer, so that they count if a later request fails."""
    first = {"role": "user", "content": filled(how.prompts.rewrite, report=original)}
    messages, reason = [first], ""
    for tried in range(1, how.max_tries + 1):
        answer = await chat.complete(how.model, messages)
        spent.append(answer.tokens)
        rewrite = plain_answer(answer.text)
        reason = answer.problem or why_unusable(answer.text)
        reason = reason or " ".join(
            problems(original, rewrite) or rewriting_problems(original, rewrite)
        )
        if not reason:
            reason = await _judged(chat, original, rewrite, how, spent)
            if not reason:
                return Rewritten(rewrite, "", tried, sum(spent, Tokens()))
        again = filled(how.prompts.again, reason=reason, rewrite=rewrite, report=original)
        messages = [
            first,
            {"role": "assistant", "content": rewrite or "(nothing)"},
            {"role": "user", "content": again},
        ]
    return Rewritten("", reason, how.max_tries, sum(spent, Tokens()))


async def _judged(
    chat: Chat, original: str, rewrite: str, how: Rewriting, spent: list[Tokens]
) -> str:
    """Why the rewrite is refused, or ""."""
    prompt = filled(how.prompts.judge, report=original, rewrite=rewrite)
    reason = ""
    for _ in range(_JUDGE_TRIES):
        answer = await chat.complete(how.judge_model, [{"role": "user", "content": prompt}])
        spent.append(answer.tokens)
        found = verdict(answer.text) if not answer.problem else None
        if found is not None:
            accepted, why = found
            return "" if accepted else f"The judge said no: {why or 'no reason given'}"
        reason = answer.problem or _shortened(answer.text)
    return f"The judge said neither yes nor no: {reason or 'nothing'}"


def _shortened(text: str, most: int = 200) -> str:
    """One line of at most `most` characters; of a longer text its end, where an answer stands."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"...{line[-most:]}"

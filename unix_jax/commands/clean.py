"""`unix-jax clean IN OUT`: reports cleaned by rules, or rewritten by a language model."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from unix_jax.errors import UniXError
from unix_jax.storage.arguments import PathText, require_least

if TYPE_CHECKING:
    from collections.abc import Callable

    from unix_jax.cleaning.clean_reports import Summary
    from unix_jax.cleaning.endpoint import ChatEndpoint, Tokens
    from unix_jax.cleaning.report_files import ReportSource
    from unix_jax.cleaning.rewriting import Rewriting
    from unix_jax.commands.progress import ProgressLine

_MILLION = 1_000_000
_LEAST = {
    "concurrency": 1,
    "max_tries": 1,
    "request_tries": 1,
    "budget_tokens": 1,
    "max_tokens": 0,
    "timeout": 0.001,
    "patience": 0,
}


@dataclasses.dataclass
class Clean:
    """Clean radiology reports for training: by rules, or by a language model behind an endpoint."""

    reports: Annotated[PathText, tyro.conf.Positional, tyro.conf.arg(metavar="IN")]
    """JSON lines (.jsonl), .csv or .csv.gz, or a directory of .txt files."""
    out: Annotated[PathText, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """JSON lines to write; those set aside go to OUT.rejected.jsonl."""
    rules_only: bool = False
    """Rules without a language model; so it is without --endpoint."""
    endpoint: str | None = None
    """OpenAI-compatible address, for example https://api.deepseek.com/v1. It receives the reports:
    mind their licence."""
    model: str | None = None
    """Model that rewrites."""
    judge_model: str | None = None
    """Model that judges; the one that rewrites if absent."""
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable with the key."""
    text_field: str = ""
    """Field or column of the whole report; else findings and impression, or report, text, answer.
    """
    concurrency: int = 8
    """Reports in work at the same time."""
    max_tries: int = 3
    """Rewrites of one report before it is set aside."""
    budget_tokens: int | None = None
    """Largest number of tokens, with those of earlier runs for this OUT; then no report begins."""
    price_in: float | None = None
    """Price of a million tokens sent, to show the cost."""
    price_out: float | None = None
    """Price of a million tokens received."""
    request_tries: int = 6
    """Times that one request is sent when the server fails."""
    patience: float = 600.0
    """Seconds that the server may make all requests wait by Retry-After without one answer; longer
    waits stop the run, which can be resumed."""
    timeout: float = 120.0
    """Seconds for one answer."""
    max_tokens: int = 1024
    """Most tokens of one answer, its reasoning included; 0 leaves it to the server."""
    temperature: float | None = 0.0
    """Of the model; None leaves it to the server."""
    rewrite_prompt: PathText = ""
    """File in the place of the package's prompt for rewriting."""
    again_prompt: PathText = ""
    """File in the place of the prompt that follows a refused rewrite."""
    judge_prompt: PathText = ""
    """File in the place of the prompt for judging."""

    def run(self) -> None:
        from unix_jax.cleaning.report_files import open_reports

        self._check()
        source = open_reports(self.reports, self.text_field)
        if self.endpoint is None:
            self._with_rules(source)
        else:
            self._with_endpoint(source)

    def _check(self) -> None:
        if self.endpoint is None and self.model is not None and not self.rules_only:
            raise UniXError("--endpoint: expected an address beside --model, found none")
        if self.endpoint is not None and self.rules_only:
            raise UniXError("--endpoint: not used with --rules-only; give one of them")
        if self.endpoint is not None and not self.model:
            raise UniXError("--model: expected a name beside --endpoint, found none")
        require_least(self, **_LEAST)
        if Path(self.reports).resolve() == Path(self.out).resolve():
            raise UniXError(f"OUT: expected another file than IN, found {self.out}")

    def _with_rules(self, source: "ReportSource") -> None:
        from unix_jax.cleaning.clean_reports import clean_with_rules, rejected_path
        from unix_jax.commands.progress import ProgressLine

        line = ProgressLine(unit="report")
        with line.over(0, len(source)):
            summary = clean_with_rules(
                source, Path(self.out), lambda done, tokens: line.update(done, {})
            )
        print(f"{summary.done} reports -> {self.out}")
        print(f"{summary.rejected} set aside -> {rejected_path(Path(self.out))}")
        for name, count in summary.changed.items():
            print(f"  {name:<12} changed {count}")
        if summary.emptied:
            print(f"  {summary.emptied} kept one section only: nothing was left of the other")

    def _with_endpoint(self, source: "ReportSource") -> None:
        import asyncio

        from unix_jax.cleaning.clean_reports import journal_path
        from unix_jax.cleaning.rewriting import Rewriting
        from unix_jax.cleaning.templates import load_prompts
        from unix_jax.commands.progress import ProgressLine

        assert self.model is not None
        prompts = load_prompts(self.rewrite_prompt, self.again_prompt, self.judge_prompt)
        how = Rewriting(prompts, self.model, self.judge_model or self.model, self.max_tries)
        line = ProgressLine(unit="report")
        try:
            summary = asyncio.run(self._rewrite(source, how, line))
        except KeyboardInterrupt:
            line.say(f"what is done is kept in {journal_path(Path(self.out))}; "
                     "run the same command to go on")  # fmt: skip
            raise
        self._tell(summary)

    async def _rewrite(
        self, source: "ReportSource", how: "Rewriting", line: "ProgressLine"
    ) -> "Summary":
        from unix_jax.cleaning.clean_reports import clean_with_endpoint

        async with self._open_endpoint(line.say) as endpoint:
            with line.over(0, len(source)):
                return await clean_with_endpoint(
                    source,
                    Path(self.out),
                    endpoint,
                    how,
                    concurrency=self.concurrency,
                    budget_tokens=self.budget_tokens,
                    progress=lambda done, tokens: line.update(done, self._numbers(tokens)),
                )

    def _open_endpoint(self, say: "Callable[[str], None]") -> "ChatEndpoint":
        from unix_jax.cleaning.endpoint import ChatEndpoint, Retries, key_from_environment

        assert self.endpoint is not None
        return ChatEndpoint(
            self.endpoint,
            key_from_environment(self.key_variable),
            timeout=self.timeout,
            retries=Retries(self.request_tries, patience=self.patience),
            max_tokens=self.max_tokens or None,
            temperature=self.temperature,
            say=say,
        )

    def _numbers(self, tokens: "Tokens") -> dict[str, float | None]:
        return {"tokens": tokens.total, "cost": self._cost(tokens)}

    def _cost(self, tokens: "Tokens") -> float | None:
        if self.price_in is None and self.price_out is None:
            return None
        sent, received = tokens.sent * (self.price_in or 0), tokens.received * (self.price_out or 0)
        return (sent + received) / _MILLION

    def _tell(self, summary: "Summary") -> None:
        from unix_jax.cleaning.clean_reports import rejected_path

        cost = self._cost(summary.tokens)
        spent = f"{summary.tokens.sent:,} tokens sent, {summary.tokens.received:,} received"
        spent += "" if cost is None else f", cost {cost:.4g}"
        if summary.left:
            raise UniXError(
                f"--budget-tokens: {self.budget_tokens} are spent ({spent}); {summary.left} "
                "reports are left, what is done is kept: raise the budget and run the same command "
                "to go on"
            )
        print(f"{summary.done} reports -> {self.out}")
        aside = summary.rejected + summary.failed
        print(f"{aside} set aside -> {rejected_path(Path(self.out))}")
        print(spent)
        if summary.failed:
            raise UniXError(
                f"{summary.failed} reports failed at the endpoint; "
                "run the same command to try them again"
            )

"""The command `unix-jax clean`: reports cleaned by rules or rewritten by a language model."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from unix_jax.errors import UniXError
from unix_jax.storage.arguments import AnyPathText, PathText, require_least
from unix_jax.storage.bucket_path import any_path
from unix_jax.storage.shown import shown
from unix_jax.storage.working_copy import working_file

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
    """Clean radiology reports for training, by rules or with a language model at an endpoint.

    For example:
        unix-jax clean reports.csv clean.jsonl
        unix-jax clean reports.csv clean.jsonl --endpoint https://api.deepseek.com/v1 --model MODEL
    """

    reports: Annotated[AnyPathText, tyro.conf.Positional, tyro.conf.arg(metavar="IN")]
    """JSON lines (.jsonl), .csv or .csv.gz, or a directory of .txt files."""
    out: Annotated[AnyPathText, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """JSON lines file to write; reports that are set aside go to OUT.rejected.jsonl."""
    rules_only: bool = False
    """Apply only the rules, without a language model. This is the default without --endpoint."""
    endpoint: str | None = None
    """OpenAI-compatible address, for example https://api.deepseek.com/v1. It receives the reports:
    check their licence."""
    model: str | None = None
    """Model that rewrites the reports."""
    judge_model: str | None = None
    """Model that judges the rewrites. The default is the model that rewrites."""
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable that contains the API key."""
    text_field: str = ""
    """Field or column with the complete report. The default is findings and impression, or report,
    text, answer."""
    concurrency: int = 8
    """Number of reports that are processed at the same time."""
    max_tries: int = 3
    """Maximum number of rewrites of a report before it is set aside."""
    budget_tokens: int | None = None
    """Maximum number of tokens, including earlier runs for this OUT; after that, no new report is
    started."""
    price_in: float | None = None
    """Price per million tokens sent, to display the cost."""
    price_out: float | None = None
    """Price per million tokens received."""
    request_tries: int = 6
    """Maximum number of attempts per request if the server fails."""
    patience: float = 600.0
    """Maximum seconds that the server may delay all requests by Retry-After without any answer.
    Longer delays stop the run, which can be resumed."""
    timeout: float = 120.0
    """Timeout in seconds for one answer."""
    max_tokens: int = 1024
    """Maximum number of tokens per answer, including reasoning; with 0 the server decides."""
    temperature: float | None = 0.0
    """Sampling temperature of the model; with None the server decides."""
    rewrite_prompt: PathText = ""
    """File with the prompt for rewriting, instead of the package's."""
    again_prompt: PathText = ""
    """File with the prompt that follows a refused rewrite, instead of the package's."""
    judge_prompt: PathText = ""
    """File with the prompt for judging, instead of the package's."""

    def run(self) -> None:
        from unix_jax.cleaning.report_files import open_reports

        self._check()
        source = open_reports(self.reports, self.text_field)
        with working_file(self.out) as out:
            if self.endpoint is None:
                self._with_rules(source, out)
            else:
                self._with_endpoint(source, out)

    def _check(self) -> None:
        if self.endpoint is None and self.model is not None and not self.rules_only:
            raise UniXError("--endpoint: expected an address together with --model, found none")
        if self.endpoint is not None and self.rules_only:
            raise UniXError("--endpoint: has no effect with --rules-only; omit one of them")
        if self.endpoint is not None and not self.model:
            raise UniXError("--model: expected a name together with --endpoint, found none")
        require_least(self, **_LEAST)
        if any_path(self.reports).resolve() == any_path(self.out).resolve():
            raise UniXError(f"OUT: expected a file other than IN, found {self.out}")

    def _with_rules(self, source: "ReportSource", out: Path) -> None:
        from unix_jax.cleaning.clean_reports import clean_with_rules, rejected_path
        from unix_jax.commands.progress import ProgressLine

        line = ProgressLine(unit="report")
        with line.over(0, len(source)):
            summary = clean_with_rules(source, out, lambda done, tokens: line.update(done, {}))
        print(f"{summary.done} reports -> {self.out}")
        print(f"{summary.rejected} set aside -> {shown(rejected_path(out))}")
        for name, count in summary.changed.items():
            print(f"  {name:<12} changed {count}")
        if summary.emptied:
            print(f"  {summary.emptied} kept only one section; the other became empty")
        self._require_cleaned(summary, out)

    def _with_endpoint(self, source: "ReportSource", out: Path) -> None:
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
            summary = asyncio.run(self._rewrite(source, how, line, out))
        except KeyboardInterrupt:
            line.say(f"finished work is kept in {journal_path(out)}; "
                     "run the same command to resume")  # fmt: skip
            raise
        self._tell(summary, out)

    async def _rewrite(
        self, source: "ReportSource", how: "Rewriting", line: "ProgressLine", out: Path
    ) -> "Summary":
        from unix_jax.cleaning.clean_reports import clean_with_endpoint

        async with self._open_endpoint(line.say) as endpoint:
            with line.over(0, len(source)):
                return await clean_with_endpoint(
                    source,
                    out,
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

    def _tell(self, summary: "Summary", out: Path) -> None:
        from unix_jax.cleaning.clean_reports import rejected_path

        cost = self._cost(summary.tokens)
        spent = f"{summary.tokens.sent:,} tokens sent, {summary.tokens.received:,} received"
        spent += "" if cost is None else f", cost {cost:.4g}"
        if summary.left:
            raise UniXError(
                f"--budget-tokens: {self.budget_tokens} are used ({spent}); {summary.left} "
                "reports remain. Finished work is kept; raise the budget and run the same "
                "command to resume"
            )
        print(f"{summary.done} reports -> {self.out}")
        aside = summary.rejected + summary.failed
        print(f"{aside} set aside -> {shown(rejected_path(out))}")
        print(spent)
        if summary.failed:
            raise UniXError(
                f"{summary.failed} reports failed at the endpoint; "
                "run the same command to try them again"
            )
        self._require_cleaned(summary, out)

    def _require_cleaned(self, summary: "Summary", out: Path) -> None:
        """Raises UniXError where OUT holds no report at all."""
        from unix_jax.cleaning.clean_reports import rejected_path

        if not summary.done:
            raise UniXError(
                f"{self.out}: expected at least one cleaned report, found that all "
                f"{summary.rejected} were set aside; the reasons are in "
                f"{shown(rejected_path(out))}"
            )

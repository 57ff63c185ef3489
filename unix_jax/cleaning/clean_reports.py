"""A cleaning run: each report of a source goes to OUT, or to the file of rejected reports.

OUT and the rejected file are written at the end, in the order of the input. Until then a run with
an endpoint keeps a journal next to OUT. A run with rules alone is fast and starts over.
"""

import asyncio
import contextlib
import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from unix_jax.cleaning.checks import problems
from unix_jax.cleaning.endpoint import ChatEndpoint, EndpointError, RequestError, Tokens
from unix_jax.cleaning.report_files import RawReport, ReportSource
from unix_jax.cleaning.rewriting import Chat, Rewriting, rewrite_report
from unix_jax.cleaning.rules import RULES, clean_sections
from unix_jax.data.records import Record, report_text
from unix_jax.data.report_sections import split_written
from unix_jax.errors import DataError, UniXError
from unix_jax.storage.files import atomic_write
from unix_jax.storage.journal import Entry, Journal, Status

Progress = Callable[[int, Tokens], None]
"""Called with the number of finished reports and the tokens used so far."""

# This number of consecutive failures means that the endpoint is down.
_FAILURES_IN_A_ROW = 8


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The result for one report.

    index: its index in the input.
    status: done; rejected permanently; or failed, to be tried again by a later run.
    report, reason: the cleaned report, or the reason for its absence.
    tries, tokens: the number of rewrites and the tokens used.
    """

    index: int
    status: Status
    report: str = ""
    reason: str = ""
    tries: int = 0
    tokens: Tokens = dataclasses.field(default_factory=Tokens)

    def entry(self) -> Entry:
        """The outcome as an entry of the journal."""
        values = dataclasses.asdict(self)
        return Entry(values.pop("index"), status=values.pop("status"), values=values)

    @classmethod
    def read(cls, journal: Journal, entry: Entry) -> "Outcome":
        """The outcome of an entry that `entry` created.

        Raises:
          UniXError: the entry is not the outcome of a cleaned report.
        """
        try:
            values = {**entry.values, "tokens": Tokens(**entry.values["tokens"])}
            return cls(entry.index, entry.status, **values)
        except (KeyError, TypeError):
            raise UniXError(
                f"{journal.path}: item {entry.index}: expected the outcome of a cleaned report; "
                "remove the file to start again"
            ) from None


@dataclasses.dataclass(frozen=True)
class Summary:
    """The result of a run.

    done, rejected, failed: numbers of reports; the next run tries failed reports again.
    left: number of reports that were not started because the budget was used up; OUT is written
      when it is 0.
    tokens: tokens used by all runs of this journal.
    changed: by rule, the number of reports that it changed (rules alone).
    emptied: reports that lost one complete section and keep the other (rules alone).
    """

    done: int
    rejected: int
    failed: int = 0
    left: int = 0
    tokens: Tokens = dataclasses.field(default_factory=Tokens)
    changed: dict[str, int] = dataclasses.field(default_factory=dict)
    emptied: int = 0


def rejected_path(out: Path) -> Path:
    """The file for reports that are set aside: OUT.rejected.jsonl."""
    return out.with_name(f"{out.stem}.rejected.jsonl")


def journal_path(out: Path) -> Path:
    """The journal of an unfinished run: OUT.partial.jsonl."""
    return out.with_name(f"{out.stem}.partial.jsonl")


def check_out(out: Path, resumable: bool) -> None:
    """Checks that no file of another run would be replaced.

    Raises:
      UniXError: OUT exists without a journal.
    """
    if out.exists() and not (resumable and journal_path(out).exists()):
        raise UniXError(f"{out}: exists already; name a new file")


def clean_with_rules(
    source: ReportSource, out: Path, progress: Progress = lambda done, tokens: None
) -> Summary:
    """Cleans every report by the rules.

    Raises:
      UniXError: OUT exists, or cannot be written.
    """
    check_out(out, resumable=False)
    changed: Counter[str] = Counter()
    emptied = 0

    def outcomes() -> Iterator[tuple[int, Outcome, dict[str, Any]]]:
        nonlocal emptied
        for index in range(len(source)):
            outcome, rules, lost = _by_rules(source, index)
            changed.update(rules)
            emptied += lost
            yield index, outcome, {"by": "rules", "rules": list(rules)}
            progress(index + 1, Tokens())

    done, rejected = _write_outputs(source, out, outcomes())
    in_order = {name: changed[name] for name in RULES if changed[name]}
    return Summary(done, rejected, changed=in_order, emptied=emptied)


def _by_rules(source: ReportSource, index: int) -> tuple[Outcome, tuple[str, ...], bool]:
    """(outcome, the rules that changed something, whether one of two sections was lost)."""
    try:
        raw = source[index]
    except DataError as error:
        return Outcome(index, "rejected", reason=str(error)), (), False
    if raw.vanished:
        return Outcome(index, "rejected", reason=raw.vanished), (), False
    cleaned = clean_sections(raw.findings, raw.impression)
    if cleaned.refused:
        return Outcome(index, "rejected", reason="; ".join(cleaned.refused)), cleaned.applied, False
    findings, impression = cleaned.findings, cleaned.impression
    report = report_text(Record(str(raw.key), findings=findings, impression=impression))
    if not report:
        reason = f"nothing is left after the rules {', '.join(cleaned.applied)}"
        return Outcome(index, "rejected", reason=reason), cleaned.applied, False
    if split_written(report) != (findings, impression):
        # The output is read from the report: what is written must be what was guarded.
        reason = "a section holds a heading of the other one"
        return Outcome(index, "rejected", reason=reason), cleaned.applied, False
    kept = Record(
        str(raw.key),
        findings=findings and raw.findings,
        impression=impression and raw.impression,
    )
    wrong = problems(report_text(kept), report)
    if wrong:
        return Outcome(index, "rejected", reason=" ".join(wrong)), cleaned.applied, False
    lost = bool(raw.findings) != bool(findings) or bool(raw.impression) != bool(impression)
    return Outcome(index, "done", report), cleaned.applied, lost


async def clean_with_endpoint(
    source: ReportSource,
    out: Path,
    endpoint: ChatEndpoint,
    how: Rewriting,
    *,
    concurrency: int = 8,
    budget_tokens: int | None = None,
    progress: Progress = lambda done, tokens: None,
) -> Summary:
    """Cleans every report that the journal next to OUT does not contain yet.

    No report is started after `budget_tokens` are used, over all runs of the journal; started
    reports are finished. OUT is written when no report is left. The journal is kept as long as any
    report has failed.

    Raises:
      UniXError: OUT or the journal cannot be written, or belongs to another run.
      EndpointError: the endpoint cannot be used. Finished work is kept in every case.
    """
    check_out(out, resumable=True)
    header = {
        "input": source.fingerprint(),
        "reports": len(source),
        "model": how.model,
        "judge model": how.judge_model,
        "prompts": how.prompts.fingerprint(),
        "max tries": how.max_tries,
    }
    with Journal(journal_path(out), header) as journal:
        todo = [index for index in range(len(source)) if not journal.settled(index)]
        work = _Work(source, journal, endpoint, how, budget_tokens, progress)
        await work.run(todo, concurrency)
        left = work.left(todo)
        counts = (journal.count("done"), journal.count("rejected"), journal.count("failed"))
        if not left:
            about = {"by": how.model}
            outcomes = (Outcome.read(journal, entry) for entry in journal.entries())
            rows = ((o.index, o, {**about, "tries": o.tries}) for o in outcomes)
            _write_outputs(source, out, rows)
            if not counts[2]:
                journal.remove()
        return Summary(*counts, left, work.tokens)


class _Work:
    """Workers that share one queue, one journal and one budget."""

    def __init__(
        self,
        source: ReportSource,
        journal: Journal,
        chat: Chat,
        how: Rewriting,
        budget: int | None,
        progress: Progress,
    ) -> None:
        self._source, self._journal, self._chat, self._how = source, journal, chat, how
        self._budget, self._progress = budget, progress
        # Of all runs of this journal, those of requests that failed included.
        spent = (Outcome.read(journal, entry).tokens for entry in journal.history())
        self.tokens = sum(spent, Tokens())
        self._begun: set[int] = set()
        self._failures = 0

    async def run(self, todo: list[int], concurrency: int) -> None:
        queue = iter(todo)
        self._allowed_failures = max(_FAILURES_IN_A_ROW, 2 * concurrency)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(concurrency, len(todo))):
                    group.create_task(self._worker(queue))
        except BaseExceptionGroup as errors:
            # All workers meet the same fault: the first is the one to tell.
            raise errors.exceptions[0] from None

    def left(self, todo: list[int]) -> int:
        return sum(index not in self._begun for index in todo)

    async def _worker(self, queue: Iterator[int]) -> None:
        while self._budget is None or self.tokens.total < self._budget:
            index = next(queue, None)
            if index is None:
                return
            self._begun.add(index)
            outcome = await self._outcome(index)
            self._journal.append([outcome.entry()])
            self.tokens += outcome.tokens
            settled = self._journal.count("done") + self._journal.count("rejected")
            self._progress(settled, self.tokens)
            self._failures = self._failures + 1 if outcome.status == "failed" else 0
            if self._failures >= self._allowed_failures:
                raise EndpointError(
                    f"--endpoint: {self._failures} reports failed one after the other: "
                    f"{outcome.reason}; run the same command to resume"
                )

    async def _outcome(self, index: int) -> Outcome:
        try:
            raw = self._source[index]
            if raw.vanished:
                return Outcome(index, "rejected", reason=raw.vanished)
            result = await rewrite_report(self._chat, raw.text, self._how)
        except DataError as error:
            return Outcome(index, "rejected", reason=str(error))
        except RequestError as error:
            status: Status = "failed" if error.again else "rejected"
            return Outcome(index, status, reason=error.reason, tokens=error.tokens)
        return Outcome(
            index,
            "done" if result.report else "rejected",
            result.report,
            result.reason,
            result.tries,
            result.tokens,
        )


def _write_outputs(
    source: ReportSource, out: Path, outcomes: Iterable[tuple[int, Outcome, dict[str, Any]]]
) -> tuple[int, int]:
    """Writes OUT and the rejected file; (lines of the first, lines of the second)."""
    lines = [0, 0]
    # OUT appears last: where it is, the other is too.
    with _written(out) as accepted, _written(rejected_path(out)) as aside:
        for index, outcome, about in outcomes:
            if outcome.status == "done":
                row = output_row(source[index], outcome.report, about)
            else:
                row = {"id": source.name(index), "index": index, "reason": outcome.reason}
                if outcome.status == "failed":
                    row["again"] = True
            lines[outcome.status != "done"] += 1
            (accepted if outcome.status == "done" else aside).write(
                json.dumps(row, ensure_ascii=False) + "\n"
            )
    return lines[0], lines[1]


@contextlib.contextmanager
def _written(path: Path) -> Iterator[TextIO]:
    """A text file, written atomically.

    Raises:
      UniXError: it cannot be written.
    """
    try:
        with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8") as opened:
            yield opened
    except OSError as error:
        raise UniXError(f"{path}: cannot be written: {error.strerror}") from None


def output_row(raw: RawReport, report: str, about: dict[str, Any]) -> dict[str, Any]:
    """The row of the input with its text replaced; `manifest:OUT` reads it as a source."""
    findings, impression = split_written(report)
    row = {**raw.row, "id": raw.key, "findings": findings, "impression": impression}
    row.update(dict.fromkeys(raw.text_fields, report))
    return {**row, "cleaned": about}

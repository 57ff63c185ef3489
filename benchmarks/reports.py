"""Reports per second with refilled rows and with drafts, against the same code without them.

    python benchmarks/reports.py --reports reports.jsonl --tokenizer DIR
    python benchmarks/reports.py --reports reports.jsonl --tokenizer DIR --what steps   # seconds

The model has random weights and writes given reports: at each step, the logit of the report's next
token is replaced by a large one. Thus the cost of a step is that of the shapes, and lengths and
texts are real. `--reports` is a file of JSON lines with `findings`, `impression` and `split`.

refill: `--batches` times `--batch` reports in batches that begin together, against rows that are
refilled. The prefill is included; `context` is the length of its text, after a small image. With
few reports the end counts more, when no report is left for the rows that end.
drafts: reports of the test split at each of `--draft-batches`, with n-grams of the train split,
against one token per step; and texts that do not fit, whose tokens are in random order.
steps: only counts steps, from lengths. The figures of refill are bounded by them.

Ratios are pairwise, with their spread. Every run is compared with the given reports.
"""

import dataclasses
import json
import random
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from common import Timing, interleaved, machine, print_table, ratio

from unix_jax.config import DecoderConfig, SpecialTokens, UniXConfig, VisionConfig
from unix_jax.inference.drafts import NGramDrafter, PromptDrafter
from unix_jax.inference.loaded import LoadedModel
from unix_jax.inference.reports import ReportRequest, decode_reports, ended_reports
from unix_jax.inference.settings import ReportSettings
from unix_jax.models.unix import UniX, init_params, unroll_params
from unix_jax.preprocessing.ngrams import NGrams, count_ids
from unix_jax.preprocessing.text import Tokenizer

BOS, EOS = 0, 1
_FIRST = 8  # ids of words
_IMAGE = 18  # tokens of an image of 64 pixels


@dataclasses.dataclass
class Arguments:
    """Shapes and effort."""

    reports: str
    """File of JSON lines with findings, impression and split."""
    tokenizer: str
    """Directory with tokenizer.json."""
    what: Literal["all", "refill", "drafts", "steps"] = "all"
    """What to measure."""
    width: int = 512
    """Width of the decoder."""
    mlp: int = 1408
    """Width of the MLP."""
    layers: int = 8
    heads: int = 8
    vocab: int = 8192
    """Vocabulary; rarer words of the reports are left out."""
    context: int = 128
    """Number of tokens of the prompt."""
    batch: int = 32
    """Rows of refill."""
    batches: int = 12
    """Number of batches of reports in one run of refill."""
    draft_batches: tuple[int, ...] = (1, 8)
    """Rows of drafts."""
    drafted: int = 8
    """Number of reports in one run of drafts."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of weights and computation."""
    repeats: int = 5
    cpu: bool = False
    """Report CPU seconds of the process instead of wall time."""

    @property
    def clock(self) -> Callable[[], float]:
        return time.process_time if self.cpu else time.perf_counter


def sequences(a: Arguments) -> dict[str, list[list[int]]]:
    """The reports of each split as ids from `_FIRST` on, the most frequent words first."""
    tokenizer = Tokenizer.from_directory(a.tokenizer)
    found: dict[str, list[list[int]]] = {}
    with open(a.reports, encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            parts = ((name.upper(), row[name]) for name in ("findings", "impression"))
            text = " ".join(f"{name}: {section}" for name, section in parts if section)
            if text:
                found.setdefault(row["split"], []).append(tokenizer.encode(text))
    every = [ids for of_split in found.values() for ids in of_split]
    words, counts = np.unique(np.concatenate([np.array(ids) for ids in every]), return_counts=True)
    kept = words[np.argsort(-counts, kind="stable")][: a.vocab - _FIRST]
    number = {int(word): _FIRST + i for i, word in enumerate(kept)}
    return {
        split: [[number[i] for i in ids if i in number] for ids in of_split]
        for split, of_split in found.items()
    }


class Scripted:
    """Makes `UniX` write given reports at its real cost.

    Report i is that of a prompt whose second token is `_FIRST` + i. The prefill puts the number of
    the report and its first position into the first value of the cache, where the steps read them.
    """

    def __init__(self, reports: Sequence[Sequence[int]]) -> None:
        longest = max(map(len, reports)) + 9  # drafted tokens may lie behind the end
        table = np.full((len(reports), longest), EOS, np.int32)
        for row, ids in enumerate(reports):
            table[row, : len(ids)] = ids
        script = jnp.asarray(table)
        forward, decode, logits = _ORIGINAL

        def scripted_forward(self: UniX, batch: Any, *arguments: Any, **options: Any) -> Any:
            output = forward(self, batch, *arguments, **options)
            keys, values = output.context
            about = jnp.stack(
                [batch.token_ids[:, _IMAGE + 1] - _FIRST, batch.und.position.max(axis=1) + 1]
            )
            first = values[0].at[:, 0, 0, :2].set(about.T.astype(values[0].dtype))
            return output._replace(context=(keys, (first, *values[1:])))

        def scripted_decode(self: UniX, streams: Any, positions: Any, *rest: Any) -> Any:
            output = decode(self, streams, positions, *rest)
            cache = output.context
            about = cache.values[0][:: cache.values[0].shape[0] // len(cache.valid), 0, :2]
            report, begin = (about[:, i, None].astype(jnp.int32) for i in (0, 1))
            step = positions[0] - begin
            told = jnp.stack([jnp.broadcast_to(report, step.shape), step], axis=-1)
            hidden = output.streams[0].at[..., :2].set(told.astype(output.streams[0].dtype))
            return output._replace(streams=(hidden, None))

        def scripted_logits(self: UniX, hidden: Any) -> Any:
            plain = logits(self, hidden)
            report, step = (hidden[..., i].astype(jnp.int32) for i in (0, 1))
            token = script[report, jnp.minimum(step, script.shape[1] - 1)]
            return jnp.where(jnp.arange(plain.shape[-1]) == token[..., None], 1e4, plain)

        UniX.forward, UniX.decode, UniX.logits = (  # type: ignore[method-assign]
            scripted_forward, scripted_decode, scripted_logits
        )  # fmt: skip
        jax.clear_caches()


_ORIGINAL = UniX.forward, UniX.decode, UniX.logits


def load(a: Arguments) -> LoadedModel:
    """A random model of these shapes."""
    config = UniXConfig(
        decoder=DecoderConfig(
            a.width, a.mlp, a.layers, a.heads, a.heads, a.width // a.heads, a.vocab, 4096
        ),
        vision=VisionConfig(64, 16, 64, 1, 4),
        special_tokens=SpecialTokens(BOS, EOS, 2, 3, 4),
    )
    make = jax.jit(
        lambda: jax.tree.map(lambda x: x.astype(a.dtype), init_params(config, jax.random.key(0)))
    )
    params = unroll_params(make(), a.layers)
    return LoadedModel(
        UniX(config, jnp.dtype(a.dtype), scan_layers=False), params, None, None, None
    )


def requests(a: Arguments, count: int) -> list[ReportRequest]:
    """Prompts of `context` tokens, whose second token is the number of the report."""
    rest = np.random.default_rng(0).integers(_FIRST, a.vocab, a.context - 3).tolist()
    image = np.zeros((1, 64, 64, 3), np.float32)
    settings = ReportSettings(max_new_tokens=500)
    return [ReportRequest([BOS, _FIRST + i, *rest, EOS], image, 0, settings) for i in range(count)]


def written(loaded: LoadedModel, asked: Sequence[ReportRequest], rows: int, **how: Any) -> Any:
    """The reports of the requests."""
    found = {}
    for state in decode_reports(loaded, asked, rows, **how):
        found |= ended_reports(state, None, EOS)
    return [found[i].token_ids for i in range(len(asked))]


def in_batches(loaded: LoadedModel, asked: Sequence[ReportRequest], rows: int, **how: Any) -> Any:
    """The reports in batches that begin together."""
    found = []
    for begin in range(0, len(asked), rows):
        found += written(loaded, asked[begin : begin + rows], rows, together=True, **how)
    return found


def steps(lengths: Sequence[int], rows: int) -> tuple[int, int]:
    """Steps of batches that begin together, and of refilled rows with groups as `decode_reports`
    forms them; a report of n tokens has n + 1 steps."""
    together = sum(max(lengths[i : i + rows]) + 1 for i in range(0, len(lengths), rows))
    group, waiting = max(rows // 8, 1), [n + 1 for n in lengths]
    left: list[int] = []
    count = 0
    while waiting or left:
        while waiting and rows - len(left) >= group:
            left, waiting = left + waiting[:group], waiting[group:]
        order = sorted(left)
        ended = max(group - (rows - len(left)), 1) if waiting else len(left)
        jump = order[ended - 1]
        left = [n - jump for n in left if n > jump]
        count += jump
    return together, count


def count_steps(reports: Sequence[Sequence[int]]) -> None:
    order = random.Random(0).sample(list(map(len, reports)), len(reports))
    rows = []
    for batch in (8, 32, 128):
        together, refilled = steps(order, batch)
        tokens = sum(order) + len(order)
        rows.append(
            [
                str(batch), f"{tokens / (together * batch):.0%}",
                f"{tokens / (refilled * batch):.0%}", f"{together / refilled:.2f}x",
            ]
        )  # fmt: skip
    print_table(
        f"Row-steps that write a token, {len(reports)} reports of {np.mean(order):.0f} tokens",
        ["batch", "begin together", "refilled", "fewer steps"],
        rows,
    )


def per_second(count: int, timing: Timing) -> str:
    return f"{count / timing.median:.2f}"


def benchmark_refill(a: Arguments, loaded: LoadedModel, reports: list[list[int]]) -> None:
    reports = random.Random(1).sample(reports, a.batch * a.batches)
    Scripted(reports)
    asked = requests(a, len(reports))

    def present() -> None:
        assert in_batches(loaded, asked, a.batch) == reports

    def refilled() -> None:
        assert written(loaded, asked, a.batch) == reports

    found = interleaved({"present": present, "refilled": refilled}, a.repeats, a.clock)
    together, count = steps([len(ids) for ids in reports], a.batch)
    print_table(
        f"Refill, reports/s: {len(reports)} reports, batch {a.batch}, context {a.context}",
        ["begin together", "refilled", "ratio (spread)", "by steps alone"],
        [
            [
                *(per_second(len(reports), timing) for timing in found.values()),
                ratio(found["present"], found["refilled"]), f"{together / count:.2f}x",
            ]
        ],
    )  # fmt: skip


def benchmark_drafts(
    a: Arguments, loaded: LoadedModel, reports: list[list[int]], ngrams: NGrams
) -> None:
    chosen = random.Random(2).sample(reports, a.drafted)
    shuffled = [random.Random(i).sample(ids, len(ids)) for i, ids in enumerate(chosen)]
    asked, rows = requests(a, a.drafted), []
    drafters = {"n-grams": NGramDrafter.create(ngrams), "prompt lookup": PromptDrafter()}
    for text, given in (("reports", chosen), ("random order", shuffled)):
        Scripted(given)
        for batch in a.draft_batches:
            runs: dict[str, Any] = {
                name: lambda d=drafter, b=batch, g=given: _same(
                    in_batches(loaded, asked, b, drafter=d), g
                )
                for name, drafter in {"none": None, **drafters}.items()
            }
            found = interleaved(runs, a.repeats, a.clock)
            for name in drafters:
                rows.append(
                    [
                        text, str(batch), name, per_second(a.drafted, found["none"]),
                        per_second(a.drafted, found[name]), ratio(found["none"], found[name]),
                    ]
                )  # fmt: skip
    print_table(
        f"Drafts, reports/s: {a.drafted} reports, context {a.context}",
        ["text", "batch", "draft", "without", "with", "ratio (spread)"],
        rows,
    )


def _same(found: Any, given: Any) -> None:
    assert found == given, "the reports differ"


def main(a: Arguments) -> None:
    print(machine())
    found = sequences(a)
    every = [ids for of_split in found.values() for ids in of_split]
    count_steps(every)
    if a.what == "steps":
        return
    loaded = load(a)
    shapes = f"{a.dtype}, width {a.width}, {a.layers} layers, {a.heads} heads, MLP {a.mlp}"
    print(f"{shapes}, vocabulary {a.vocab}; random weights that write the reports of {a.reports}")
    if a.what in ("all", "refill"):
        benchmark_refill(a, loaded, every)
    if a.what in ("all", "drafts"):
        ngrams = count_ids(([BOS, *ids, EOS] for ids in found["train"]), "")
        benchmark_drafts(a, loaded, found["test"], ngrams)


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))

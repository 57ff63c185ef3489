"""Padding of packed rows, and the speed of their planning and layout.

    python benchmarks/packing.py REPORTS.jsonl --tokenizer CHECKPOINT

REPORTS.jsonl has `findings` and `impression` on each line; no image is read. The understanding task
of the published size: 576 patches per image, random prompts of the default ones. Beside each other:
one sample per row, padded to the longest text of a batch of as many samples; and packed rows, with
few or many open at a time. Planning is timed in CPU seconds over the first epoch, tokenizing
included, and over later ones, when lengths are known. The generation task, with images of 256
pixels and the reports' captions, has a table of its own: how many positions for images stay empty.
"""

import dataclasses
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from common import machine, print_table

from unix_jax.config import UniXConfig
from unix_jax.data.collate import LoadedSample, collate
from unix_jax.data.config import DataConfig
from unix_jax.data.packing import Planner
from unix_jax.data.records import Record
from unix_jax.data.samples import RecordSamples, Skip, record_samples
from unix_jax.data.sources.fields import parse_object
from unix_jax.preprocessing.text import Tokenizer


@dataclasses.dataclass
class Arguments:
    """Where texts come from, and the rows."""

    reports: Annotated[Path, tyro.conf.Positional]
    """JSON lines with findings and impression."""
    tokenizer: Path
    """Directory with tokenizer.json."""
    und_tokens: tuple[int, ...] = (1376, 2048, 4096)
    """Und tokens of a row."""
    generation: tuple[tuple[int, int], ...] = ((160, 1), (128, 2), (160, 2), (256, 4))
    """Und tokens and images of a row of the generation task."""
    open_rows: tuple[int, ...] = (1, 8, 32)
    rows: int = 16
    """Rows of a step."""
    epochs: int = 3


def read_records(path: Path) -> list[Record]:
    """Records that seem to have an image, which nobody reads."""
    records = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            row = parse_object(line.encode(), f"{path}:{number}")
            sections = (str(row.get(name) or "") for name in ("findings", "impression"))
            records.append(Record(f"line {number}", b"", *sections))
    return records


def unpacked_padding(samples: RecordSamples, data: DataConfig, batch: int) -> float:
    """The padded share with one sample per row, in batches as long as their longest."""
    costs = [samples.cost(index, 0) for index in np.random.default_rng(0).permutation(len(samples))]
    lengths = np.array([cost.und for cost in costs if not isinstance(cost, Skip)])
    batches = [lengths[i : i + batch] for i in range(0, len(lengths), batch)]
    return 1 - lengths.sum() / sum(part.max() * len(part) for part in batches)


def plan(samples: RecordSamples, data: DataConfig) -> tuple[float, list[float], dict[str, int]]:
    """(padded share, samples per second of each epoch, skipped); the last rows do not count."""
    planner = Planner(samples, dataclasses.replace(data, epochs=None))
    used = places = planned = 0
    rates: list[float] = []
    for epoch in range(1, (data.epochs or 1) + 1):
        begin, before = time.process_time(), planned
        while planner.epoch < epoch:
            step = planner.next_step() or []
            used += sum(row.cost.und for row in step)
            places += len(step) * data.und_tokens
            planned += sum(len(row.indices) for row in step)
        rates.append((planned - before) / (time.process_time() - begin))
    return 1 - used / places, rates, planner.skipped


def layout_milliseconds(samples: RecordSamples, config: UniXConfig, data: DataConfig) -> float:
    """Median time to lay out one row of samples whose images are already loaded."""
    image = np.zeros((config.vision.image_size, config.vision.image_size, 3), np.float32)
    planner = Planner(samples, data)
    seconds = []
    for row in planner.next_step() or []:
        loaded = [
            LoadedSample(samples.build(*planner.locate(index)), (image,)) for index in row.indices
        ]
        begin = time.perf_counter()
        collate([loaded], config, data)
        seconds.append(time.perf_counter() - begin)
    return 1e3 * float(np.median(seconds))


def generation_table(a: Arguments, records: list[Record], tokenizer: Tokenizer) -> list[list[str]]:
    """Rows of (row, share of positions for images and for und tokens that stay empty, too long)."""
    config = UniXConfig.preset("published")
    table = []
    for und_tokens, images in a.generation:
        data = DataConfig(
            task="generation", rows=a.rows, und_tokens=und_tokens, vit_images=0, vae_images=images,
            vae_height=256, vae_width=256, caption_dropout=0.1, open_rows=max(a.open_rows),
        )  # fmt: skip
        planner = Planner(record_samples(records, tokenizer, config, data), data)
        rows = []
        while planner.epoch < a.epochs:
            rows += planner.next_step() or []
        samples, used = (
            sum(x) for x in zip(*((len(r.indices), r.cost.und) for r in rows), strict=True)
        )
        table.append(
            [
                f"{und_tokens} tokens, {images} images",
                f"{1 - samples / (len(rows) * images):.1%}",
                f"{1 - used / (len(rows) * und_tokens):.0%}",
                str(planner.skipped["too_long"]),
            ]
        )
    return table


def main(a: Arguments) -> None:
    config = UniXConfig.preset("published")
    records = read_records(a.reports)
    tokenizer = Tokenizer.from_directory(a.tokenizer)
    print(machine())
    table = []
    for und_tokens in a.und_tokens:
        for open_rows in a.open_rows:
            data = DataConfig(
                rows=a.rows,
                und_tokens=und_tokens,
                vit_images=und_tokens // (config.vision.num_patches + 2),
                open_rows=open_rows,
                epochs=a.epochs,
            )
            samples = record_samples(records, tokenizer, config, data)
            padding, rates, skipped = plan(samples, data)
            table.append(
                [
                    f"{und_tokens} tokens, {data.vit_images} images",
                    str(open_rows),
                    f"{unpacked_padding(samples, data, a.rows * data.vit_images):.1%}",
                    f"{padding:.1%}",
                    str(skipped["too_long"]),
                    f"{rates[0]:.0f}",
                    f"{np.median(rates[1:] or rates):.0f}",
                    f"{layout_milliseconds(samples, config, data):.1f}",
                ]
            )
    header = ["row", "open", "padding unpacked", "packed", "too long", "samples/CPU s, 1st epoch"]
    print_table(
        f"Packing {len(records)} reports, {a.rows} rows a step, {a.epochs} epochs",
        [*header, "later", "ms to lay out a row"],
        table,
    )
    print_table(
        "Generation, the same reports",
        ["row", "images empty", "und tokens empty", "too long"],
        generation_table(a, records, tokenizer),
    )


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))

"""The files of the original's data and evaluation, made from bundled X-rays: four kinds."""

import csv
import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

CXR = Path(__file__).parents[1] / "examples" / "cxr"
QUESTION = "<image>\nDescribe the findings of this chest X-ray."


def make_original_files(root: Path, count: int = 6, source: Path = CXR) -> None:
    """Writes train.jsonl, test_data.json, pairs.parquet and prompts.csv, and images below files/.

    Args:
      root: a directory.
      count: images in each file.
      source: a directory with manifest.jsonl, whose rows have an image and a text.
    """
    lines = (source / "manifest.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if row["findings"]][:count]
    names = []
    for number, row in enumerate(rows):
        name = f"files/p10/p1000003{number}/s5041426{number}/{number:08x}.jpg"
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / row["image"], root / name)
        names.append(name)
    answers = [
        f"FINDINGS: {row['findings']}"
        + (f" IMPRESSION: {row['impression']}" if row["impression"] else "")
        for row in rows
    ]
    conversations = [
        {"image": name, "conversations": [{"from": "human", "value": QUESTION},
                                          {"from": "gpt", "value": answer}]}
        for name, answer in zip(names, answers, strict=True)
    ]  # fmt: skip
    (root / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in conversations))
    messages = [
        {"messages": [{"role": "user", "content": QUESTION},
                      {"role": "assistant", "content": answer}],
         "images": [name]}
        for name, answer in zip(names, answers, strict=True)
    ]  # fmt: skip
    (root / "test_data.json").write_text(json.dumps(messages))
    columns = {
        "image": [(root / name).read_bytes() for name in names],
        "captions": [json.dumps([row["impression"] or row["findings"]]) for row in rows],
    }
    pq.write_table(pa.table(columns), root / "pairs.parquet")
    with (root / "prompts.csv").open("w", newline="") as opened:
        table = csv.writer(opened)
        table.writerow(["path", "annotated_prompt", "synthetic_filename", "chexpert_labels"])
        for number, (name, row) in enumerate(zip(names, rows, strict=True)):
            labels = str(dict.fromkeys(row["labels"], 1))
            text = f"{number}: {row['impression'] or row['findings']}"
            table.writerow([name, text, f"{number}.png", labels])

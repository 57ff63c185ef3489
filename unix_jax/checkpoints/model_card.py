"""The model card of an export: README.md with the metadata that the Hugging Face hub reads.

What a run recorded is stated: data, steps, weights, settings and the last validation. What is not
recorded is said to be absent; nothing is invented.
"""

import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from unix_jax import __version__
from unix_jax.checkpoints import native
from unix_jax.checkpoints.run_export import RUN_FILE, resolve_checkpoint
from unix_jax.errors import CheckpointError, UniXError
from unix_jax.storage.json_file import read_json

CARD = "README.md"
_TAGS = ("chest-x-ray", "radiology", "report-generation", "jax", "unix-jax")
_VALIDATION = "validation.jsonl"
_SETTINGS = (
    ("stage", "stage"),
    ("samples per step, at most", "data.rows"),
    ("learning rate", "optimizer.learning_rate"),
    ("schedule", "optimizer.schedule"),
    ("seed", "seed"),
)
_FRONT = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)


def check_license(name: str | None) -> str:
    """The licence that a card must state.

    Raises:
      UniXError: none is given.
    """
    if name is None or not name.strip():
        raise UniXError(
            "--license: expected the licence of the weights, which --push publishes, such as mit, "
            "cc-by-nc-4.0 or other; found none. The licences of the weights and of the data that "
            "training started from bind what is derived from them"
        )
    return name.strip()


def model_card(
    checkpoint: str | os.PathLike[str],
    repository: str,
    license_name: str,
    training_data: str | None = None,
    source_card: str | None = None,
) -> str:
    """The text of README.md.

    Args:
      checkpoint: what is exported: a checkpoint, or the directory of a training run.
      repository: OWNER/NAME on the hub.
      license_name: of the weights.
      training_data: what they were trained on, in words; if absent, the source that the run
        recorded, without the folders of this machine.
      source_card: the card of the checkpoint that these weights were imported from; it is appended.

    Raises:
      UniXError: no licence, or a record of the run that is broken.
    """
    directory = resolve_checkpoint(checkpoint)
    index = native.read_index(directory)
    record = index.get("training") or {}
    run = _run_of(directory)
    settings = {} if run is None else _object(read_json(run / RUN_FILE, CheckpointError), "config")
    front = {"license": check_license(license_name), "library_name": "unix-jax", "tags": [*_TAGS]}
    data = training_data or _data_of(settings) or "not recorded."
    step = record.get("step")
    weights = _WEIGHTS.get(str(record.get("weights")), "imported, as they were published")
    lines = [
        "---",
        yaml.safe_dump(front, sort_keys=False, allow_unicode=True).strip(),
        "---",
        "",
        f"# {repository.partition('/')[2]}",
        "",
        "Weights of a UniX model, which writes reports of chest X-rays and generates chest X-rays "
        f"from text, exported with unix-jax {__version__} in the layout of "
        "[UniX](https://github.com/ZrH42/UniX)'s PyTorch code.",
        "",
        "**Research software, not a medical device.** Do not use it for diagnosis or treatment.",
        "",
        "## Use",
        "",
        "```bash",
        f"unix-jax report xray.png --checkpoint {repository}",
        "```",
        "",
        "## Training",
        "",
        f"- Training data: {data}",
        f"- Steps: {'not recorded' if step is None else step}"
        + (
            f" of {settings['total_steps']}"
            if step is not None and "total_steps" in settings
            else ""
        ),
        f"- Weights: {weights}",
        *(f"- {title}: {value}" for title, value in _settings(settings)),
        "",
        "## Figures",
        "",
        *_figures(run, step),
    ]
    if source_card and source_card.strip():
        body = _FRONT.sub("", source_card).strip()
        lines += ["", "## Card of the weights that these were imported from", "", body]
    return "\n".join(lines) + "\n"


_WEIGHTS = {
    "raw": "those of the last step",
    "average": "the exponential moving average of the trained weights",
}


def _run_of(directory: Path) -> Path | None:
    """The directory of the run that a checkpoint is the export of."""
    run = directory.parent
    return run if (run / RUN_FILE).is_file() else None


def _object(value: Any, name: str) -> dict[str, Any]:
    found = value.get(name) if isinstance(value, Mapping) else None
    return dict(found) if isinstance(found, Mapping) else {}


def _data_of(settings: Mapping[str, Any]) -> str | None:
    """The recorded source, of whose paths the last name alone is public."""
    source = _object(settings, "data").get("source")
    if not isinstance(source, str):
        return None
    return "`" + re.sub(r"/?(?:[^/\s:=*+?&]+/)+(?=[^/\s?&]+)", "", source) + "`"


def _settings(settings: Mapping[str, Any]) -> list[tuple[str, Any]]:
    found = []
    for title, path in _SETTINGS:
        value: Any = settings
        for name in path.split("."):
            value = value.get(name) if isinstance(value, Mapping) else None
        if value is not None:
            found.append((title, value))
    return found


def _figures(run: Path | None, step: int | None) -> list[str]:
    """The numbers of the last validation up to the step, as a table."""
    rows = [] if run is None else _rows(run / _VALIDATION)
    rows = [row for row in rows if step is None or row.get("step", 0) <= step]
    if not rows:
        return ["No figures were recorded with these weights."]
    last = rows[-1]
    values = {
        name: value
        for name, value in last.items()
        if name != "step" and isinstance(value, int | float) and math.isfinite(value)
    }
    table = [f"| {name} | {value:.4g} |" for name, value in values.items()]
    return [
        f"Losses on held-out samples, at step {last.get('step')}:",
        "",
        "| | |",
        "|---|---|",
        *table,
    ]


def _rows(file: Path) -> list[dict[str, Any]]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
        rows = [json.loads(line) for line in lines if line.strip()]
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: cannot be read: {' '.join(str(error).split())}") from error
    return [row for row in rows if isinstance(row, dict)]

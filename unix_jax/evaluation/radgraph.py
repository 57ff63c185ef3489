"""F1-RadGraph: reports annotated by the `radgraph` package, compared by `text.radgraph_scores`.

The package runs in PyTorch. The user supplies its weights. The package would download them from a
hub when it starts; this is refused here, so that nothing is downloaded without a request.
"""

import contextlib
import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from unix_jax.errors import CheckpointError, MetricError
from unix_jax.evaluation.rows import check_reports
from unix_jax.evaluation.text import REWARD_LEVELS, Annotation, radgraph_scores
from unix_jax.extras import require

MODELS = ("radgraph", "radgraph-xl", "modern-radgraph-xl", "echograph")

# Reports to their annotations, in order.
Annotator = Callable[[Sequence[str]], Sequence[Annotation]]


def load_annotator(path: str | os.PathLike[str], model: str = "radgraph") -> Annotator:
    """The package's model as a function of reports.

    Args:
      path: a directory that contains the unpacked archive of the model in a directory of its name:
        `PATH/radgraph/config.json`, `weights.th`, `vocabulary/`. The package still looks for the
        BERT that its `config.json` names in the cache of the Hugging Face hub.
      model: one of `MODELS`; the original's table uses `radgraph`.

    Raises:
      MetricError: another model. CheckpointError: the files do not exist, or the package cannot
        read them. UniXError: the package is not installed.
    """
    if model not in MODELS:
        raise MetricError(f"model: expected one of {', '.join(MODELS)}, found {model!r}")
    directory = Path(path) / model
    for name in ("config.json", "weights.th"):
        if not (directory / name).is_file():
            raise CheckpointError(
                f"{directory / name}: no such file; unpack {model}.tar.gz of the hub's "
                f"StanfordAIMI/RRG_scorers into {directory}"
            )
    package = require("radgraph", "F1-RadGraph", "radgraph>=0.1.18")
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            network = package.RadGraph(model_type=model, model_cache_dir=str(path))
    except Exception as error:  # whatever the package and what it builds on raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise CheckpointError(f"{directory}: radgraph cannot load it: {reason}") from error

    def annotate(reports: Sequence[str]) -> list[Annotation]:
        found = network(list(reports))
        # The package leaves out a report that it fails on.
        return [found.get(str(index), {"entities": {}}) for index in range(len(reports))]

    return annotate


def f1_radgraph(
    predictions: Sequence[str], references: Sequence[str], annotate: Annotator
) -> dict[str, Float[np.ndarray, " N"]]:
    """The F1 of each report by `simple`, `partial` and `complete`; the paper's is the mean partial.

    Args:
      predictions, references: the same number of each; if either text is empty its scores are 0.
      annotate: the result of `load_annotator`, or any function from reports to annotations.

    Raises:
      MetricError: different numbers of strings, or annotations of another number or form.
    """
    check_reports(predictions=predictions, references=references)
    pairs = zip(predictions, references, strict=True)
    full = [index for index, (a, b) in enumerate(pairs) if a and b]
    scores = {level: np.zeros(len(predictions)) for level in REWARD_LEVELS}
    if not full:
        return scores
    texts = [predictions[i] for i in full] + [references[i] for i in full]
    annotations = annotate(texts)
    if len(annotations) != len(texts):
        raise MetricError(f"annotate: expected {len(texts)} annotations, found {len(annotations)}")
    for place, index in enumerate(full):
        pair = annotations[place], annotations[place + len(full)]
        for level, (f1, _, _) in radgraph_scores(*pair).items():
            scores[level][index] = f1
    return scores

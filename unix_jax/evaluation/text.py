"""Metrics of one report against its reference: BLEU, ROUGE-L, RadGraph rewards.

Sources: Papineni et al. 2002 and Chen & Cherry 2014 (smoothing 4) for BLEU; Lin 2004 for ROUGE-L;
Delbrouck et al., arXiv 2210.12186, for the rewards. Tokens, weights and the small constant are
those of the original's evaluation. Nothing is downloaded.
"""

import functools
import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

from unix_jax.errors import MetricError
from unix_jax.evaluation.rows import check_reports, check_texts
from unix_jax.extras import require

_EXTRA = "unix-jax[eval]"
BLEU_NAMES = ("BLEU1", "BLEU2", "BLEU3", "BLEU4")
# The original's weights; those of BLEU3 sum to 0.99.
_BLEU_WEIGHTS = (
    (1.0, 0.0, 0.0, 0.0),
    (0.5, 0.5, 0.0, 0.0),
    (0.33, 0.33, 0.33, 0.0),
    (0.25, 0.25, 0.25, 0.25),
)
REWARD_LEVELS = ("simple", "partial", "complete")
_EPSILON = 1e-10  # of the rewards' denominators

Annotation = Mapping[str, Any]


@functools.cache
def _tokenizer() -> Callable[[str], list[str]]:
    """nltk's `word_tokenize`: Punkt's sentences, then the words of each.

    Punkt's English parameters come from the package `punkt`; nltk would download them.
    """
    trained = require("punkt", "BLEU", _EXTRA).load_model("english")
    nltk_punkt = require("nltk.tokenize.punkt", "BLEU", _EXTRA)
    words = require("nltk.tokenize.destructive", "BLEU", _EXTRA).NLTKWordTokenizer()
    sentences = nltk_punkt.PunktSentenceTokenizer()
    parameters = nltk_punkt.PunktParameters()
    parameters.abbrev_types = set(trained.abbrev_types)
    parameters.collocations = set(trained.collocations)
    parameters.sent_starters = set(trained.sent_starters)
    parameters.ortho_context.update(trained.ortho_context)
    sentences._params = parameters

    def tokenize(text: str) -> list[str]:
        return [word for part in sentences.tokenize(text) for word in words.tokenize(part)]

    return tokenize


def tokenize(text: str) -> list[str]:
    """The tokens that BLEU counts: words, numbers, punctuation marks, clitics ("n't").

    Raises:
      MetricError: not a string. UniXError: nltk or its sentence model is not installed.
    """
    check_texts(text=text)
    return _tokenizer()(text)


def bleu(prediction: str, reference: str) -> dict[str, float]:
    """Sentence BLEU with up to 1, 2, 3 and 4 words, smoothing method 4, case kept.

    Args:
      prediction, reference: texts, with punctuation.

    Returns:
      `BLEU1` to `BLEU4` in [0, 1]; 0 if either text is empty. (The original excludes empty
        predictions from its mean.)

    Raises:
      MetricError: not strings. UniXError: nltk or its sentence model is not installed.
    """
    check_texts(prediction=prediction, reference=reference)
    module = require("nltk.translate.bleu_score", "BLEU", _EXTRA)
    hypothesis, references = tokenize(prediction), [tokenize(reference)]
    if not hypothesis or not references[0]:
        return dict.fromkeys(BLEU_NAMES, 0.0)
    smoothing = module.SmoothingFunction().method4
    with warnings.catch_warnings():  # about orders without a match, which are smoothed or 0
        warnings.simplefilter("ignore")
        return {
            name: float(module.sentence_bleu(references, hypothesis, weights, smoothing))
            for name, weights in zip(BLEU_NAMES, _BLEU_WEIGHTS, strict=True)
        }


@functools.cache
def _rouge_scorer() -> Any:
    return require("rouge_score.rouge_scorer", "ROUGE-L", _EXTRA).RougeScorer(
        ["rougeL"], use_stemmer=False
    )


def rouge_l(prediction: str, reference: str) -> float:
    """F-measure of the longest common subsequence of lower-cased words, without stemming.

    Returns:
      In [0, 1]; 0 if either text has no word.

    Raises:
      MetricError: not strings. UniXError: rouge-score is not installed.
    """
    check_texts(prediction=prediction, reference=reference)
    return float(_rouge_scorer().score(reference, prediction)["rougeL"].fmeasure)


def text_scores(predictions: Sequence[str], references: Sequence[str]) -> dict[str, list[float]]:
    """`BLEU1` to `BLEU4` and `ROUGE_L` of each report; `bootstrap` has their means.

    Raises:
      MetricError: not as many strings of each. UniXError: a package is not installed.
    """
    check_reports(predictions=predictions, references=references)
    scores: dict[str, list[float]] = {name: [] for name in (*BLEU_NAMES, "ROUGE_L")}
    for prediction, reference in zip(predictions, references, strict=True):
        for name, value in bleu(prediction, reference).items():
            scores[name].append(value)
        scores["ROUGE_L"].append(rouge_l(prediction, reference))
    return scores


# --- RadGraph ----------------------------------------------------------------------------------


def radgraph_reward(hypothesis: Annotation, reference: Annotation) -> tuple[float, float, float]:
    """F1 of the entities of two annotated reports: (simple, partial, complete).

    * simple: an entity's tokens and label must match.
    * partial: so must whether it has any relation.
    * complete: so must each relation, with its kind and the tokens at its end.

    Args:
      hypothesis, reference: RadGraph's annotation of a report: `entities`, each by its id with
        `tokens`, `label` and `relations`, pairs of a kind and the id of another entity.

    Returns:
      Each in [0, 1]; all 0 if either has no entity.

    Raises:
      MetricError: not such annotations.
    """
    scores = radgraph_scores(hypothesis, reference)
    return scores["simple"][0], scores["partial"][0], scores["complete"][0]


def radgraph_scores(
    hypothesis: Annotation, reference: Annotation
) -> dict[str, tuple[float, float, float]]:
    """(F1, precision, recall) for each of `REWARD_LEVELS`; otherwise as `radgraph_reward`."""
    found, wanted = _entities("hypothesis", hypothesis), _entities("reference", reference)
    facts = zip(_facts(found), _facts(wanted), strict=True)
    empty = not found or not wanted
    return {
        level: (0.0, 0.0, 0.0) if empty else _overlap(*pair)
        for level, pair in zip(REWARD_LEVELS, facts, strict=True)
    }


def _entities(name: str, annotation: Any) -> Mapping[str, Mapping[str, Any]]:
    entities = annotation.get("entities") if isinstance(annotation, Mapping) else None
    if not isinstance(entities, Mapping):
        raise MetricError(f"{name}: expected an annotation with a mapping `entities`, found none")
    for key, entity in entities.items():
        fields = entity if isinstance(entity, Mapping) else {}
        if not all(isinstance(fields.get(field), str) for field in ("tokens", "label")):
            raise MetricError(f"{name}: entity {key!r}: expected `tokens` and `label`, strings")
        relations = fields.get("relations")
        if not isinstance(relations, list | tuple):
            raise MetricError(f"{name}: entity {key!r}: expected a list `relations`")
        for relation in relations:
            if not isinstance(relation, list | tuple) or len(relation) != 2:
                raise MetricError(
                    f"{name}: entity {key!r}: expected relations (kind, id), found {relation!r}"
                )
            if not isinstance(relation[1], Hashable) or relation[1] not in entities:
                raise MetricError(
                    f"{name}: entity {key!r}: its relation points to {relation[1]!r}, "
                    "which is not an entity"
                )
    return entities


def _facts(entities: Mapping[str, Mapping[str, Any]]) -> tuple[set, set, set]:
    """What must match, one set for each level."""
    simple: set[tuple] = set()
    partial: set[tuple] = set()
    complete: set[tuple] = set()
    for entity in entities.values():
        tokens, label, relations = entity["tokens"], entity["label"], entity["relations"]
        simple.add((tokens, label))
        partial.add((tokens, label, bool(relations)))
        if not relations:
            complete.add((tokens, label))
        # As in the original, case matters only for entities without relations.
        complete.update(
            (tokens.lower(), label, str(kind), entities[other]["tokens"].lower())
            for kind, other in relations
        )
    return simple, partial, complete


def _overlap(found: set, wanted: set) -> tuple[float, float, float]:
    common = len(found & wanted)
    precision = common / (len(found) + _EPSILON)
    recall = common / (len(wanted) + _EPSILON)
    return 2 * precision * recall / (precision + recall + _EPSILON), precision, recall

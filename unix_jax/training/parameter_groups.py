"""Which parameters a stage trains: the others have no gradient, no optimiser state and no EMA.

All parameters of a run are one dictionary of parts: `unix`, and where they are used `autoencoder`,
`rad_dino`, `repa` (the projector), `lora`.
"""

from typing import Any, Literal, get_args

from unix_jax.checkpoints.leaves import flatten, unflatten
from unix_jax.errors import ConfigError

Stage = Literal["understanding", "generation", "all"]

_UNDERSTANDING = (
    "embed_tokens", "lm_head", "vision", "connector", "decoder/layers/und", "decoder/norm/und",
)  # fmt: skip
_GENERATION = (
    "time_embedder", "vae2llm", "llm2vae", "decoder/layers/gen", "decoder/norm/gen",
)  # fmt: skip
# A fixed table, whatever the stage.
_NEVER = ("latent_pos_embed",)
_FROZEN_PARTS = ("autoencoder", "rad_dino")


def is_trained(path: str, stage: Stage, lora: bool = False) -> bool:
    """Whether the parameter `part/path/in/the/part` is trained.

    With `lora` the adapters stand in for the whole of `unix`.

    Raises:
      ConfigError: another stage.
      ValueError: a parameter that belongs to no group.
    """
    if stage not in get_args(Stage):
        raise ConfigError(f"stage: expected one of {get_args(Stage)}, found {stage!r}")
    part, _, name = path.partition("/")
    if part in _FROZEN_PARTS:
        return False
    if part == "lora":
        return True
    if part == "repa":
        return stage != "understanding"
    if part != "unix":
        raise ValueError(f"{path}: expected a parameter of a known part, found {part!r}")
    for group, prefixes in (
        ("understanding", _UNDERSTANDING), ("generation", _GENERATION), ("", _NEVER),
    ):  # fmt: skip
        if any(name == p or name.startswith(f"{p}/") for p in prefixes):
            return not lora and group != "" and stage in (group, "all")
    raise ValueError(f"{path}: expected a parameter of a known group, found none for it")


def split_params(
    params: dict[str, Any], stage: Stage, lora: bool = False
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(trained, frozen): two trees with the names of `params` and no leaf in common."""
    flat = flatten(params)
    trained = {path for path in flat if is_trained(path, stage, lora)}
    halves = (
        {path: x for path, x in flat.items() if (path in trained) == wanted}
        for wanted in (True, False)
    )
    first, second = (unflatten(half) for half in halves)
    return first, second


def merge_params(trained: dict[str, Any], frozen: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `split_params`."""
    return unflatten(flatten(trained) | flatten(frozen))

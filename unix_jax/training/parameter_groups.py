"""Which parameters are trained: patterns over parameter names.

All parameters of a run are one dictionary of parts: `unix`, and where they are used `autoencoder`,
`rad_dino`, `repa` (the projector), `lora`. A parameter's name is its path, such as
`unix/decoder/layers/gen/q_proj/kernel`; layers are stacked, so that a name stands for all of them.

A pattern is a regular expression that matches the whole name, or its end from a `/` on:
`(gen|llm2vae)/.*` matches the name above, and so does `kernel`.
"""

import re
from collections.abc import Iterable
from typing import Any

from unix_jax.checkpoints.leaves import flatten, unflatten
from unix_jax.errors import ConfigError

# What the stages train by default.
UNDERSTANDING = "(und|embed_tokens|lm_head|vision|connector)/.*"
GENERATION = "(gen|time_embedder|vae2llm|llm2vae|repa)/.*"
# With a U-Net as the generation backbone.
GENERATION_UNET = "unet/.*"
JOINT = (
    "(und|embed_tokens|lm_head|vision|connector|gen|time_embedder|vae2llm|llm2vae|repa)/.*"
)  # fmt: skip

# Always frozen: pretrained encoders and a fixed table.
_NEVER = re.compile(r"(autoencoder|rad_dino)/.*|unix/latent_pos_embed")
# All parameters that the und stream depends on.
_UND = "unix/(embed_tokens|vision|connector|decoder/[^/]*/und)/.*|lora/decoder/[^/]*/und/.*"


def compiled(pattern: str, option: str) -> re.Pattern[str]:
    """The pattern over names.

    Raises:
      ConfigError: it is no regular expression; names the `option`.
    """
    try:
        return re.compile(f"(?:.*/)?(?:{pattern})")
    except re.error as error:
        raise ConfigError(
            f"{option}: expected a regular expression over parameter names, found {pattern!r}: "
            f"{error}"
        ) from None


def check_matches(pattern: str, names: Iterable[str], option: str) -> None:
    """Refuses a pattern that matches none of the names.

    Raises:
      ConfigError: it does not; names the `option` and examples of names.
    """
    names, found = list(names), compiled(pattern, option)
    if not any(found.fullmatch(name) for name in names):
        shown = ", ".join(names[:: max(len(names) // 4, 1)][:4])
        raise ConfigError(
            f"{option}: expected a pattern that matches at least one of {len(names)} parameters "
            f"(such as {shown}), found {pattern!r}, which matches none"
        )


def split_params(params: dict[str, Any], trainable: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """(trained, frozen): two trees with the names of `params` and no leaf in common.

    Where there are adapters (the part `lora`), they are trained instead of all of `unix`.

    Raises:
      ConfigError: the pattern matches nothing that can be trained.
    """
    flat, pattern = flatten(params), compiled(trainable, "trainable")
    adapters = {path for path in flat if path.startswith("lora/")}
    candidates = [
        path
        for path in flat
        if not _NEVER.fullmatch(path) and not (adapters and path.startswith("unix/"))
    ]
    trained = adapters | {path for path in candidates if pattern.fullmatch(path)}
    if not trained:
        check_matches(trainable, candidates, "trainable")
    halves = (
        {path: x for path, x in flat.items() if (path in trained) == wanted}
        for wanted in (True, False)
    )
    first, second = (unflatten(half) for half in halves)
    return first, second


def merge_params(trained: dict[str, Any], frozen: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `split_params`."""
    return unflatten(flatten(trained) | flatten(frozen))


def trains_und(trained: dict[str, Any]) -> bool:
    """Whether the und stream has trained parameters, so that gradients must pass through it."""
    return any(re.fullmatch(_UND, path) for path in flatten(trained))

"""Rematerialisation policies: the activations of a layer that the backward pass recomputes."""

from typing import Any, Literal, get_args

import flax.linen as nn
import jax

RematPolicy = Literal["none", "full", "attention", "products", "dots", "dots_no_batch"]

# Names (`checkpoint_name`) of what attention returns and reads, and of what linear layers return.
ATTENTION_OUTPUT, ATTENTION_INPUT = "attention_output", "attention_input"
PRODUCT = "product"

_policies = jax.checkpoint_policies
_POLICIES = {
    "full": _policies.nothing_saveable,
    "attention": _policies.save_only_these_names(ATTENTION_INPUT),
    "products": _policies.save_only_these_names(PRODUCT),
    "dots": _policies.dots_saveable,
    "dots_no_batch": _policies.dots_with_no_batch_dims_saveable,
}


def rematerialised(
    layer: Any, policy: str, *, prevent_cse: bool, kept_names: tuple[str, ...] = ()
) -> Any:
    """The layer class under a policy.

    `none` keeps every intermediate; `full` only the inputs; `attention` queries, keys and values as
    well; `products` the results of linear layers and convolutions instead, so that none of these
    is computed again; `dots` what JAX takes for matrix products; `dots_no_batch` only those without
    a batch axis. The last four also keep the output of attention, which is the most expensive to
    recompute.

    Args:
      prevent_cse: False within a scan, where it costs and has no use.
      kept_names: names of `checkpoint_name` that any policy except `none` keeps.

    Raises:
      ValueError: another policy.
    """
    if policy == "none":
        return layer
    if policy not in _POLICIES:
        raise ValueError(
            f"remat_policy: expected one of {list(get_args(RematPolicy))}, found {policy!r}"
        )
    keep = _POLICIES[policy]
    if policy != "full":
        keep = _policies.save_from_both_policies(keep, _is_cudnn_attention)
        kept_names = (*kept_names, ATTENTION_OUTPUT)
    if kept_names:
        keep = _policies.save_from_both_policies(keep, _policies.save_only_these_names(*kept_names))
    return nn.remat(layer, policy=keep, prevent_cse=prevent_cse)


def _is_cudnn_attention(primitive: Any, *_: Any, **__: Any) -> bool:
    return primitive.name.startswith("dot_product_attention_fwd")

"""Rematerialisation policies: the activations of a layer that the backward pass recomputes."""

from typing import Any, Literal, get_args

import flax.linen as nn
import jax

RematPolicy = Literal["none", "full", "attention", "dots", "dots_no_batch"]

# Names (`checkpoint_name`) of what an attention kernel returns, and of what attention reads.
ATTENTION_KERNEL, ATTENTION_INPUT = "attention_kernel", "attention_input"

_policies = jax.checkpoint_policies
_POLICIES = {
    "full": _policies.nothing_saveable,
    "attention": _policies.save_only_these_names(ATTENTION_INPUT),
    "dots": _policies.dots_saveable,
    "dots_no_batch": _policies.dots_with_no_batch_dims_saveable,
}


def rematerialised(
    layer: Any, policy: str, *, prevent_cse: bool, kept_names: tuple[str, ...] = ()
) -> Any:
    """The layer class under a policy.

    `none` keeps every intermediate; `full` only the inputs; `attention` queries, keys and values as
    well; `dots` all matrix products; `dots_no_batch` only those with weights. The last three also
    keep the output of cuDNN's attention and of splash attention, which are the most expensive to
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
        kept_names = (*kept_names, ATTENTION_KERNEL)
    if kept_names:
        keep = _policies.save_from_both_policies(keep, _policies.save_only_these_names(*kept_names))
    return nn.remat(layer, policy=keep, prevent_cse=prevent_cse)


def _is_cudnn_attention(primitive: Any, *_: Any, **__: Any) -> bool:
    return primitive.name.startswith("dot_product_attention_fwd")

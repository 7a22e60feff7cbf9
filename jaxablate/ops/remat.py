"""What the backward pass of a layer reads as it was, where `jax.checkpoint` computes the rest of the layer anew."""

from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name

_NAME = "kept"
KEEP = jax.checkpoint_policies.save_only_these_names(_NAME)
"""The policy of `jax.checkpoint` that keeps what `kept` marks."""


def kept(tree: Any) -> Any:
    """The same arrays, marked as those without which products, attention or ranks would have to be made again."""
    return jax.tree.map(lambda x: checkpoint_name(x, _NAME), tree)

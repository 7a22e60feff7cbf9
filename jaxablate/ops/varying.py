"""Manual axes of `jax.shard_map`: which of them an array varies over is part of its type.

Loops must keep the types of what they carry, and derivatives of one's own must give each argument's type back. A loop
that starts from plain zeros, or a function that mixes parameters (the same everywhere) with a batch (another on every
device), therefore works outside of `jax.shard_map` only, unless its arguments are made alike first.
"""

from typing import Any

import jax


def match_varying(tree: Any, like: Any = ()) -> Any:
    """The tree with every array varying over all manual axes that any array of it, or of ``like``, varies over.

    Outside of `jax.shard_map` it is the tree itself. The derivative sums over the axes that an array did not vary over,
    as the gradient of replicated parameters must.
    """
    axes = frozenset().union(*map(_axes, jax.tree.leaves((tree, like))))
    if not axes:
        return tree

    def cast(x: jax.Array) -> jax.Array:
        missing = axes - _axes(x)
        return jax.lax.pcast(x, tuple(sorted(missing, key=str)), to="varying") if missing else x

    return jax.tree.map(cast, tree)


def _axes(x: Any) -> frozenset[Any]:
    """Manual axes that an array varies over; JAX 0.10.2 has another name for them than 0.10.1."""
    kind: Any = jax.typeof(x)
    return kind.manual_axis_type.varying if hasattr(kind, "manual_axis_type") else kind.vma

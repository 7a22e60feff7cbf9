"""Manual axes of `jax.shard_map`: which of them an array varies over is part of its type.

Loops must keep the types of what they carry, and derivatives of one's own must give each argument's type back. A loop
that starts from plain zeros, or a function that mixes parameters (the same everywhere) with a batch (another on every
device), therefore works outside of `jax.shard_map` only, unless its arguments are made alike first.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp


def match_varying(tree: Any, like: Any = ()) -> Any:
    """The tree with every array varying over all manual axes that any array of it, or of ``like``, varies over.

    Outside of `jax.shard_map` it is the tree itself. The derivative sums over the axes that an array did not vary over,
    as the gradient of replicated parameters must.
    """
    axes = frozenset().union(*map(varying_axes, jax.tree.leaves((tree, like))))
    if not axes:
        return tree

    def cast(x: jax.Array) -> jax.Array:
        missing = axes - varying_axes(x)
        return jax.lax.pcast(x, tuple(sorted(missing, key=str)), to="varying") if missing else x

    return jax.tree.map(cast, tree)


def mean_over_axes(tree: Any, axes: Sequence[str], weight: Any = 1.0) -> Any:
    """Every array's mean over the devices of manual axes, each with a weight, whatever their sum.

    Without axes it is the tree itself. Where all weigh 0 the mean is 0.
    """
    if not axes:
        return tree
    weight = match_varying(jnp.asarray(weight, jnp.float32), like=tree)
    weight = jax.lax.pcast(weight, tuple(axis for axis in axes if axis not in varying_axes(weight)), to="varying")
    total = jax.lax.psum(weight, tuple(axes))
    share = weight / jnp.where(total == 0, 1, total)
    return jax.tree.map(lambda x: jax.lax.psum(x * share.astype(x.dtype), tuple(axes)), tree)


def any_over_axes(x: jax.Array, axes: Sequence[str]) -> jax.Array:
    """Whether a value is true on any device of manual axes; without axes the array itself."""
    return jax.lax.pmax(x.astype(jnp.int32), tuple(axes)) > 0 if axes else x


def varying_axes(x: Any) -> frozenset[Any]:
    """Manual axes that an array varies over; JAX 0.10.2 has another name for them than 0.10.1."""
    kind: Any = jax.typeof(x)
    return kind.manual_axis_type.varying if hasattr(kind, "manual_axis_type") else kind.vma


def result_like(x: Any, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    """The result of a kernel, which varies over the manual axes that ``x`` varies over."""
    kind: Any = jax.typeof(x)
    name = "manual_axis_type" if hasattr(kind, "manual_axis_type") else "vma"
    return jax.ShapeDtypeStruct(shape, dtype, **{name: getattr(kind, name)})

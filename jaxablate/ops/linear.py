"""Products of activations with weights."""

import math
from typing import Any

import jax


def dot_rows(x: jax.Array, kernel: jax.Array, dimension_numbers: jax.lax.DotDimensionNumbers | None = None,
             precision: Any = None, preferred_element_type: Any = None) -> jax.Array:
    """`jax.lax.dot_general` of the last axes of ``x`` with the first of ``kernel``, as a product of two matrices.

    The gradient of the kernel sums over the leading axes of ``x``. Where these are more than one, XLA's CPU backend
    copies an operand and multiplies at down to a third of its rate for matrices. Where XLA's partitioner splits arrays
    over a mesh (`jax.sharding.get_abstract_mesh`) the axes stay as they are: of two that were made one, it cannot split
    the second.

    >>> x, kernel = jax.numpy.arange(12.0).reshape(1, 2, 6), jax.numpy.ones((6, 3))
    >>> dot_rows(x, kernel).tolist()
    [[[15.0, 15.0, 15.0], [51.0, 51.0, 51.0]]]

    Args:
      x: [..., D], or [..., N, H] with a kernel [N, H, ...].
      kernel: [D, ...].
      dimension_numbers: as of `jax.lax.dot_general`: the last axes of ``x``, the first of the kernel and no batch; by
        default one of each.
      precision: as of `jax.lax.dot_general`.
      preferred_element_type: as of `jax.lax.dot_general`.

    Returns:
      The leading axes of ``x``, then those of the kernel that are not summed over.
    """
    (summed, _), _ = axes = dimension_numbers or (((x.ndim - 1,), (0,)), ((), ()))
    options = {"precision": precision, "preferred_element_type": preferred_element_type}
    if _partitioned():
        return jax.lax.dot_general(x, kernel, axes, **options)
    leading, others = x.shape[:x.ndim - len(summed)], kernel.shape[len(summed):]
    width = math.prod(kernel.shape[:len(summed)])
    out = jax.lax.dot(x.reshape(-1, width), kernel.reshape(width, -1), **options)
    return out.reshape(*leading, *others)


def _partitioned() -> bool:
    """Whether the mesh that is traced for has an axis of several devices that `jax.shard_map` leaves to XLA."""
    mesh = jax.sharding.get_abstract_mesh()
    return any(size > 1 and name not in mesh.manual_axes for name, size in mesh.shape.items())

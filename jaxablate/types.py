"""Names that all rooms share: parameters, batches, residual streams, types of numbers."""

from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

Params = Any
"""Parameters of a model: nested dict from name to array, as Flax Linen makes it."""

Batch = Mapping[str, jax.Array | np.ndarray]
"""A language model's batch: inputs, targets int32 [B, T] and mask float32 [B, T], 1 where the target counts. A text
classifier's: tokens int32 [B, L], mask float32 [B, L], labels int32 [B], weight float32 [B], 0 for a row that is no
text, and index int32 [B], the text's place in its split."""

Stream = Literal["clean", "ablated"]
STREAMS: tuple[Stream, ...] = ("clean", "ablated")
"""Residual streams in the order of every table. (Dicts that come out of `jax.jit` have their keys sorted.)"""


def at_least_float32(dtype: Any) -> np.dtype[Any]:
    """The type in which numbers of this type are computed with care: float64 of float64, float32 of all others.

    It is `jax.numpy.promote_types` with float32, which JAX's strict mode refuses for bfloat16.

    >>> [at_least_float32(x).name for x in ("bfloat16", "int32", "float64")]
    ['float32', 'float32', 'float64']
    """
    return jnp.dtype("float64" if jnp.dtype(dtype) == "float64" else "float32")

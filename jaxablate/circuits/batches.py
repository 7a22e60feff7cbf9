"""Prompts in batches of one size, so that one compilation serves any number of them within a given memory."""

from collections.abc import Iterator

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jaxablate.circuits.metrics import Target
from jaxablate.circuits.nodes import Inputs
from jaxablate.errors import ConfigError


@flax.struct.dataclass
class Batch:
    """Some of the prompts, with what belongs to them."""

    inputs: Inputs
    replacement: jax.Array
    """[S, m or 1, T or 1, D]."""
    target: Target
    weight: jax.Array
    """[m] share of each prompt in the mean over all; 0 where a prompt only fills up the batch."""


def batches(inputs: Inputs, replacement: jax.Array, target: Target, size: int) -> Iterator[tuple[Batch, int]]:
    """All prompts in order; the last batch is filled up with its last prompt.

    Args:
      inputs: prompts [n, T].
      replacement: [S, n or 1, T or 1, D], or any array with prompts on its axis 1.
      target: metric of these prompts.
      size: prompts of a batch.

    Yields:
      A batch, and how many of its prompts are real.

    Raises:
      ConfigError: the size is below 1.
    """
    if size < 1:
        raise ConfigError(f"batch_size={size} must be at least 1; it is the number of prompts computed at once")
    n = inputs.tokens.shape[0]
    size = min(size, n)
    for start in range(0, n, size):
        rows = np.minimum(np.arange(start, start + size), n - 1)
        real = min(size, n - start)
        weight = jnp.asarray((np.arange(size) < real) / n, replacement.dtype)
        yield Batch(take_inputs(inputs, rows), take_prompts(replacement, rows), target.take(rows), weight), real


def take_inputs(inputs: Inputs, rows: np.ndarray) -> Inputs:
    """The prompts ``rows`` [m] int."""
    return jax.tree.map(lambda x: x[rows], inputs)


def take_prompts(values: jax.Array, rows: np.ndarray) -> jax.Array:
    """Values [S, n or 1, ...] of the prompts ``rows`` [m] int; those of all prompts stay as they are."""
    return values if values.shape[1] == 1 else values[:, rows]

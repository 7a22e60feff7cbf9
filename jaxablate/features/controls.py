"""What an autoencoder finds where there is nothing to find: vectors with a site's mean and covariance, else normal.

An autoencoder is sparse and explains variance on any vectors of low rank or uneven variance. What it does beyond that
on a model's activations is due to what their distribution has besides its first two moments.
"""

import dataclasses
import functools
import itertools
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jaxablate.errors import DataError


@flax.struct.dataclass
class Moments:
    """Mean and covariance of C sites."""

    mean: jax.Array
    """[C, D]."""
    root: jax.Array
    """[C, D, D], the symmetric square root of the covariance."""


@dataclasses.dataclass(frozen=True)
class GaussianActivations:
    """(`Moments`, numbered blanks [W, T]) -> normal vectors [W, T, sites, D], the same ones for the same number.

    It takes the place of `jaxablate.features.sites.Reader` in training; `blanks` takes that of the text. A site's draws
    do not depend on what other sites there are.
    """

    names: tuple[str, ...]
    seed: int = 0

    def __call__(self, moments: Moments, blanks_BT: jax.Array) -> jax.Array:
        """Draws of each site; only ``blanks_BT[0, 0]`` is read."""
        key = jax.random.fold_in(jax.random.key(self.seed), blanks_BT[0, 0])
        width = moments.mean.shape[-1]

        def site(i: int, name: str) -> jax.Array:
            own = jax.random.fold_in(key, zlib.crc32(name.encode()))
            return moments.mean[i] + jax.random.normal(own, (*blanks_BT.shape, width)) @ moments.root[i]

        return jnp.stack([site(i, name) for i, name in enumerate(self.names)], axis=2)


def blanks(shape: tuple[int, int]) -> Callable[[int], Iterator[np.ndarray]]:
    """start -> blanks start, start + 1, ...: arrays of a shape [W, T] that hold nothing but their number."""
    return lambda start: (np.full(shape, number, np.int32) for number in itertools.count(start))


def moments(
    activations: Callable[[Any, jax.Array], jax.Array], params: Any, batches: Iterable[np.ndarray]
) -> Moments:
    """Mean and covariance of what `activations` gives on token batches [W, T], added up in float64.

    Args:
      activations: (params, tokens) -> [W, T, sites, D].
      params: of the model.
      batches: few thousand tokens or more; at least one batch.

    Raises:
      DataError: no batches, or activations that are not finite.
    """
    shift, total, products, count = None, 0.0, 0.0, 0
    for tokens in batches:
        if shift is None:  # near the mean, so that products lose no digits
            shift = jnp.mean(_flat(activations, params, tokens), axis=1)
        sums, squares = jax.device_get(_sums(activations, params, tokens, shift))
        total, products = total + sums.astype(np.float64), products + squares.astype(np.float64)
        count += tokens.size
    if shift is None:
        raise DataError("there are no tokens to estimate mean and covariance from")
    mean = total / count
    covariance = products / count - mean[:, :, None] * mean[:, None, :]
    if not np.all(np.isfinite(covariance)):
        raise DataError("activations are NaN or infinite; the model's parameters are damaged or overflow")
    values, vectors = np.linalg.eigh(covariance)
    root = (vectors * np.sqrt(np.maximum(values, 0))[:, None, :]) @ np.swapaxes(vectors, 1, 2)
    return Moments(jnp.asarray(mean + np.asarray(shift), jnp.float32), jnp.asarray(root, jnp.float32))


@functools.partial(jax.jit, static_argnums=0)
def _flat(activations, params: Any, tokens: jax.Array) -> jax.Array:
    """[sites, tokens, D]."""
    found = activations(params, tokens)
    return jnp.moveaxis(found.reshape(-1, *found.shape[2:]), 1, 0)


@functools.partial(jax.jit, static_argnums=0)
def _sums(activations, params: Any, tokens: jax.Array, shift: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Of the activations less the shift: sums [sites, D] and sums of products [sites, D, D]."""
    x = _flat(activations, params, tokens) - shift[:, None]
    return jnp.sum(x, axis=1), jnp.einsum("ctd,cte->cde", x, x)

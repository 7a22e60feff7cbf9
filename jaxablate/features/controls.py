"""Controls: what an autoencoder reaches on vectors with a site's mean and covariance that are otherwise normal.

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
from jaxtyping import Array, Float, Int

from jaxablate.errors import DataError
from jaxablate.features.training import Activations
from jaxablate.models.decoder import SelfAblatingTransformer
from jaxablate.types import Params


@flax.struct.dataclass
class Moments:
    """Mean [C, D] of C sites, and the symmetric square root [C, D, D] of their covariances."""

    mean: Any
    root: Any


@dataclasses.dataclass(frozen=True)
class GaussianActivations:
    """(`Moments`, batch of `batches`) -> normal vectors [W, T, sites, D], the same ones for the same batch.

    It takes the place of `jaxablate.features.sites.Reader` in training, and `batches` takes that of the text. A site's
    draws do not depend on what other sites there are.
    """

    names: tuple[str, ...]
    seed: int = 0

    def __call__(self, moments: Moments, numbers_WT: Int[Array | np.ndarray, "w t"]) -> Float[Array, "w t sites d"]:
        """Draws for each site; only ``numbers_WT[0, 0]`` and the shape are read."""
        key = jax.random.fold_in(jax.random.key(self.seed), numbers_WT[0, 0])
        width = moments.mean.shape[-1]

        def site(i: int, name: str) -> jax.Array:
            own = jax.random.fold_in(key, zlib.crc32(name.encode()))
            return moments.mean[i] + jax.random.normal(own, (*numbers_WT.shape, width)) @ moments.root[i]

        return jnp.stack([site(i, name) for i, name in enumerate(self.names)], axis=2)

    @staticmethod
    def batches(shape: tuple[int, int]) -> Callable[[int], Iterator[np.ndarray]]:
        """start -> batches start, start + 1, ...: arrays [W, T] of a shape that hold nothing but their number."""
        return lambda start: (np.full(shape, number, np.int32) for number in itertools.count(start))


def moments(activations: Activations, params: Params, batches: Iterable[np.ndarray]) -> Moments:
    """Mean and covariance of activations on token batches [W, T], added up in float64.

    Args:
      activations: (params, tokens) -> [W, T, sites, D].
      params: parameters of the model.
      batches: a few thousand tokens or more; at least one batch.

    Raises:
      DataError: no batches, or activations that are not finite.
    """
    shift, total, products, count = None, 0.0, 0.0, 0
    for tokens in batches:
        if shift is None:  # near the mean, so that products lose no digits
            shift = jnp.mean(_by_site(activations, params, tokens), axis=1)
        sums, squares = jax.device_get(_sums(activations, params, tokens, shift))
        total, products = total + sums.astype(np.float64), products + squares.astype(np.float64)
        count += tokens.size
    if shift is None:
        raise DataError("there are no tokens to estimate mean and covariance from")
    mean = np.asarray(total / count)
    covariance = products / count - mean[:, :, None] * mean[:, None, :]
    if not np.all(np.isfinite(covariance)):
        raise DataError("activations are NaN or infinite; the model's parameters are damaged or overflow")
    values, vectors = np.linalg.eigh(covariance)
    root = (vectors * np.sqrt(np.maximum(values, 0))[:, None, :]) @ np.swapaxes(vectors, 1, 2)
    return Moments(jnp.asarray(mean + np.asarray(shift), jnp.float32), jnp.asarray(root, jnp.float32))


def random_params(model: SelfAblatingTransformer, seed: int) -> Params:
    """Parameters of a model as they are drawn before training, for a control."""
    return jax.jit(model.init)(jax.random.key(seed), jnp.zeros((1, 2), jnp.int32))["params"]


@functools.partial(jax.jit, static_argnums=0)
def _by_site(activations: Activations, params: Params, tokens: jax.Array) -> jax.Array:
    """[sites, tokens, D]."""
    x = activations(params, tokens)
    return jnp.moveaxis(x.reshape(-1, *x.shape[2:]), 1, 0)


@functools.partial(jax.jit, static_argnums=0)
def _sums(activations: Activations, params: Params, tokens: jax.Array, shift: jax.Array
          ) -> tuple[jax.Array, jax.Array]:
    """Sums [sites, D] of the shifted activations, and sums [sites, D, D] of their products."""
    x = _by_site(activations, params, tokens) - shift[:, None]
    return jnp.sum(x, axis=1), jnp.einsum("ctd,cte->cde", x, x)

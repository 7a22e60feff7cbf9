"""How the tokens of a text share a space: capacity of each token, alignment of each pair; arrays in, arrays out."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Shaped

from jaxablate.config.checks import require
from jaxablate.ops.masks import weights
from jaxablate.types import at_least_float32


def capacity(x: Shaped[ArrayLike, "*texts rows columns"], mask: Shaped[ArrayLike, "..."] | None = None
             ) -> Float[Array, "*texts rows"]:
    """Share of a dimension that each row has to itself.

    ``C_i = (x_i . x_i)^2 / sum_j (x_i . x_j)^2`` over the real rows of one text (Scherlis et al. 2022, with
    tokens in the place of features): 1 for a row orthogonal to all others, 1/m for m copies of one row. The sum
    over the rows is at most the number of columns. The mask is positive for a real row and 0 for padding, which has no
    part in any sum, and is broadcast to the rows; without one all rows are real.

    Returns:
      Capacities in [0, 1], at least float32; 0 for padding and for a row of zeros, which has no direction to share.
      Gradients are finite everywhere, 0 with respect to those rows.

    Raises:
      ConfigError: x has fewer than two axes, or the mask does not broadcast to its rows.

    >>> x = jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
    >>> capacity(x).tolist()
    [0.5, 0.5, 1.0, 0.0]
    >>> capacity(x, mask=jnp.array([1.0, 0.0, 1.0, 1.0])).tolist()
    [1.0, 0.0, 1.0, 0.0]
    """
    x_LF = _rows(x)
    if mask is not None:
        mask = weights(mask, x_LF.shape[:-1], x_LF.dtype, of="the rows")
    return _capacity(x_LF, mask)


@functools.partial(jax.jit, inline=True)  # outside of another program one of its own, not one an operation
def _capacity(x_LF: jax.Array, mask_L: jax.Array | None) -> jax.Array:
    x_LF = _scaled(x_LF if mask_L is None else jnp.where(mask_L[..., None] > 0, x_LF, 0.0))
    square_L = jnp.sum(x_LF**2, axis=-1)
    overlap_LM = jnp.einsum("...lf,...mf->...lm", _unit(x_LF), x_LF, precision="highest")
    total_L = jnp.sum(overlap_LM**2, axis=-1)
    alive_L = total_L > 0
    return jnp.where(alive_L, jnp.minimum(square_L / jnp.where(alive_L, total_L, 1.0), 1.0), 0.0)


def alignment(x: Shaped[ArrayLike, "*texts rows columns"]) -> Float[Array, "*texts rows rows"]:
    """Absolute cosine of each pair of rows, ``|x_i . x_j| / (|x_i| |x_j|)``.

    Returns:
      Absolute cosines in [0, 1], at least float32, symmetric; 0 wherever one of the rows is zero, its own place on the
      diagonal included. Gradients are finite everywhere.

    Raises:
      ConfigError: x has fewer than two axes.

    >>> print(alignment(jnp.array([[2.0, 0.0], [-3.0, 4.0], [0.0, 0.0]])))
    [[1.  0.6 0. ]
     [0.6 1.  0. ]
     [0.  0.  0. ]]
    """
    return _alignment(_rows(x))


@functools.partial(jax.jit, inline=True)
def _alignment(x_LF: jax.Array) -> jax.Array:
    unit_LF = _unit(_scaled(x_LF))
    return jnp.minimum(jnp.abs(jnp.einsum("...lf,...mf->...lm", unit_LF, unit_LF, precision="highest")), 1.0)


def _rows(x: ArrayLike) -> jax.Array:
    x_LF = jnp.asarray(x)
    require(x_LF.ndim >= 2, f"x has the shape {x_LF.shape}; give rows of columns [..., rows, columns]")
    return x_LF.astype(at_least_float32(x_LF.dtype))


def _scaled(x_LF: jax.Array) -> jax.Array:
    """Rows divided by the greatest entry of their text: neither measure changes, and no square over- or underflows."""
    most = jax.lax.stop_gradient(jnp.max(jnp.abs(x_LF), axis=(-2, -1), keepdims=True, initial=0.0))
    return x_LF / jnp.where(most > 0, most, 1.0)


def _unit(x_LF: jax.Array) -> jax.Array:
    """Rows of length 1; a zero row stays zero, and so does its gradient."""
    square_L1 = jnp.sum(x_LF**2, axis=-1, keepdims=True)
    alive_L1 = square_L1 > 0
    return jnp.where(alive_L1, x_LF / jnp.sqrt(jnp.where(alive_L1, square_L1, 1.0)), 0.0)

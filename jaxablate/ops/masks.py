"""Masks and weights of means: broadcast before anything is counted, and sums that may be divided by."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int, Shaped

from jaxablate.config.checks import require


def weights(mask: Shaped[ArrayLike, "..."] | None, shape: tuple[int, ...], dtype: jax.typing.DTypeLike, of: str
            ) -> Float[Array, "..."]:
    """A mask as numbers of this shape and type, all ones where there is none.

    A denominator may be taken of the result: a mask [1, T] of texts [B, T] counts B times.

    Raises:
      ConfigError: the mask does not broadcast to the shape, which is that of what the mask is ``of``.

    >>> weights(jnp.array([True, False]), (2, 2), jnp.float32, of="the tokens").tolist()
    [[1.0, 0.0], [1.0, 0.0]]
    """
    if mask is None:
        return jnp.ones(shape, dtype)
    mask = jnp.asarray(mask)
    given = (1,) * (len(shape) - mask.ndim) + mask.shape
    require(len(given) == len(shape) and all(a in (1, b) for a, b in zip(given, shape, strict=True)),
            f"mask has the shape {mask.shape}, but {of} have {shape}; give that shape or one that broadcasts to it")
    return jnp.broadcast_to(mask.reshape(given), shape).astype(dtype)


def nonzero_sum(values: Float[ArrayLike, "..."], axis: int | None = None, *, keepdims: bool = False
                ) -> Float[Array, "..."]:
    """The sum of weights that a weighted mean divides by; 1 where it is 0, so that the mean of nothing is 0.

    >>> nonzero_sum(jnp.array([[0.2, 0.3], [0.0, 0.0]]), axis=-1).tolist()
    [0.5, 1.0]
    """
    summed = jnp.sum(values, axis=axis, keepdims=keepdims)
    return jnp.where(summed == 0, 1, summed)


def valid_targets(targets: Int[Array, "*shape"], weights: Float[Array, "*shape"], classes: int
          ) -> tuple[Int[Array, "*shape"], Float[Array, "*shape"]]:
    """Targets outside [0, classes) replaced by 0, and their weights by NaN; by 0 where the weight is 0 already.

    So a mean over targets is NaN, and its gradient too, where one that counts does not exist, while those that do not
    count may be anything, such as -100.

    >>> targets, weights = valid_targets(jnp.array([4, -100, 9]), jnp.array([1.0, 0.0, 0.5]), classes=5)
    >>> targets.tolist(), weights.tolist()
    ([4, 0, 0], [1.0, 0.0, nan])
    """
    exists = (targets >= 0) & (targets < classes)
    return jnp.where(exists, targets, 0), jnp.where(exists | (weights == 0), weights, jnp.nan)

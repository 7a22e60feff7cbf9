"""Measures of labelled texts: rows in the order of the split, importance of each token, tokens that rank highest."""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from jaxablate.config.checks import require
from jaxablate.ops.varying import match_varying
from jaxablate.types import Batch, Params, at_least_float32

TextMeasures = dict[str, np.ndarray]
"""One row a text, in the order of the split."""


def by_text(batches: Iterable[Batch], measure: Callable[[Batch], Mapping[str, Any]]) -> TextMeasures:
    """Measures every text of a split once, whatever batch it came in; filler rows are left out.

    Args:
      batches: the split.
      measure: batch -> arrays by name, [B] or [B, ...]. Rows of unequal length (one entry a token) must be float.

    Returns:
      Arrays by name, [texts, ...], float64 where they were float; short rows are filled up with NaN.
    """
    parts, places = [], []
    for batch in batches:
        real = np.asarray(batch["weight"]) > 0
        parts.append({name: np.asarray(x)[real] for name, x in measure(batch).items()})
        places.append(np.asarray(batch["index"])[real])
    order = np.argsort(np.concatenate(places), kind="stable")
    return {name: _joined([part[name] for part in parts])[order] for name in parts[0]}


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    """Rows of all parts, filled up with NaN to the longest."""
    if jnp.issubdtype(parts[0].dtype, jnp.floating):  # NumPy knows no bfloat16
        parts = [part.astype(np.float64) for part in parts]
    longest = max(part.shape[-1] for part in parts)
    if any(part.ndim > 1 and part.shape[-1] < longest for part in parts):
        parts = [np.pad(part, [(0, 0)] * (part.ndim - 1) + [(0, longest - part.shape[-1])], constant_values=np.nan)
                 for part in parts]
    return np.concatenate(parts)


@functools.partial(jax.jit, static_argnames="model")
def word_importance(model: Any, params: Params, batch: Batch) -> dict[str, jax.Array]:
    """What a `SafrClassifier` says of each text and of each of its tokens.

    Returns:
      ``predicted`` int32 [B], the class with the largest logit (the first of equal ones); ``probability`` [B] of it;
      by token, [B, L], ``gradient``: |gradient x input| (see `gradient_by_token`), and, for a model with VMASK,
      ``vmask``: the probability that the token is kept.
    """
    gradient, log_p, out = gradient_by_token(model, params, batch["tokens"], batch["mask"])
    importance = {"predicted": jnp.argmax(log_p, axis=-1), "probability": jnp.exp(jnp.max(log_p, axis=-1)),
                  "gradient": jnp.abs(gradient)}
    return importance if out.keep is None else importance | {"vmask": out.keep}


def gradient_by_token(
    model: Any, params: Params, tokens: Int[ArrayLike, "batch tokens"], mask: Float[ArrayLike, "batch tokens"], *,
    stream: str = "clean"
) -> tuple[Float[Array, "batch tokens"], Float[Array, "batch classes"], Any]:
    """Gradient of the predicted class's log-probability by the scale of each token's embedding: gradient x input.

    Returns:
      The gradient, log-probabilities of all classes by the stream's logits, and the model's output.
    """

    def confidence(scale: jax.Array) -> tuple[jax.Array, tuple[jax.Array, Any]]:
        out = model.apply({"params": params}, tokens, mask, scale_BL=scale)
        logits = out.logits if stream == "clean" else out.logits_ablated
        log_p = jax.nn.log_softmax(logits.astype(at_least_float32(logits.dtype)))
        predicted = jnp.argmax(log_p, axis=-1)[:, None]
        chosen = jnp.take_along_axis(log_p, predicted, axis=-1)
        return jnp.sum(chosen), (log_p, out)  # no text's probability depends on another's tokens, so the sum will do

    gradient, (log_p, out) = jax.grad(confidence, has_aux=True)(jnp.ones_like(mask))
    return gradient, log_p, out


def highest(values: Float[Array, "*rows entries"], allowed: Bool[Array, "*rows entries"], count: Int[Array, "*rows"]
            ) -> Bool[Array, "*rows entries"]:
    """Marks the largest allowed entries of each row; among equal ones the earlier counts as larger.

    Values are not negative and compared in float32; ``count`` is at most the number of allowed entries, and each row's
    own, which `jaxablate.ops.order_statistics` does not offer. As there, the last winner's value is found by bisection
    over the bits of the floats: XLA's sort is slow on CPU.

    Raises:
      ConfigError: the arrays do not fit each other.

    >>> highest(jnp.array([1.0, 3.0, 3.0, 9.0]), jnp.array([True, True, True, False]), jnp.array(1)).tolist()
    [False, True, False, False]
    """
    shapes = values.shape, allowed.shape, (*count.shape, values.shape[-1])
    require(len(set(shapes)) == 1, f"values {shapes[0]}, allowed {shapes[1]} and count {count.shape} do not fit; give "
            "[..., entries], [..., entries] and [...]")
    bits = jax.lax.bitcast_convert_type(values.astype(jnp.float32) + 0.0, jnp.int32)  # -0.0 + 0.0 is 0.0
    bits = jnp.where(allowed, bits, -1)  # below every float that is not negative

    def with_bit(i: jax.Array, last: jax.Array) -> jax.Array:
        trial = last | (1 << (30 - i))
        return jnp.where(jnp.sum(bits >= trial, axis=-1, keepdims=True) >= count[..., None], trial, last)

    start = match_varying(jnp.zeros((*values.shape[:-1], 1), jnp.int32), like=(bits, count))
    last = jax.lax.fori_loop(0, 31, with_bit, start)
    equal = bits == last
    room = count[..., None] - jnp.sum(bits > last, axis=-1, keepdims=True)
    return (bits > last) | (equal & (jnp.cumsum(equal, axis=-1) <= room))


def top_minus_rest(
    values: Float[Array, "rows entries"], ranking: Float[Array, "rows entries"], allowed: Bool[Array, "rows entries"],
    tenths: int
) -> tuple[Float[Array, " rows"], Float[Array, " rows"]]:
    """Mean of the values that rank highest minus the mean of the others, and its variance if the ranking is shuffled.

    If the ranking is shuffled, every subset of m of the n values is equally likely to be on top. The difference of
    means then has the mean 0 and the variance ``n s^2 / (m (n - m))``, s^2 the variance of the n values (divisor
    n - 1): simple random sampling without replacement. These are the moments over *all* shuffles; drawn ones would add
    noise of their own.

    On top are so many tenths, rounded up, of a row's allowed entries; the ranking is not negative, and equal ones rank
    by place. Both results are NaN for rows with fewer than two entries, and where the ranking is NaN.

    >>> there, ranking = jnp.array([[True, True, True, False]]), jnp.array([[0.1, 0.7, 0.2, 1.0]])
    >>> [round(x.item(), 4) for x in top_minus_rest(jnp.array([[1.0, 4.0, 2.5, 9.0]]), ranking, there, tenths=3)]
    [2.25, 3.375]
    """
    n = jnp.sum(allowed, axis=-1)
    m = (tenths * n + 9) // 10
    top = highest(ranking, allowed, m)
    rest = allowed & ~top

    def total(x: jax.Array, where: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(where, x, 0), axis=-1)

    difference = total(values, top) / jnp.maximum(m, 1) - total(values, rest) / jnp.maximum(n - m, 1)
    mean = total(values, allowed) / jnp.maximum(n, 1)
    square = total(jnp.square(values - mean[:, None]), allowed) / jnp.maximum(n - 1, 1)
    variance = square * n / jnp.maximum(m, 1) / jnp.maximum(n - m, 1)
    defined = (n > 1) & ~jnp.any(allowed & jnp.isnan(ranking), axis=-1)
    return jnp.where(defined, difference, jnp.nan), jnp.where(defined, variance, jnp.nan)

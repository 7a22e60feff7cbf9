"""What every measure of labelled texts shares: rows back in the order of the split, importance of each token."""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxablate.types import Batch, Params

TextMeasures = dict[str, np.ndarray]
"""One row a text, in the order of the split."""


def by_text(batches: Iterable[Batch], measure: Callable[[Batch], Mapping[str, Any]]) -> TextMeasures:
    """Measures every text of a split once, whatever batch it came in.

    Args:
      batches: with ``weight`` [B], 0 for filler rows, which are left out, and ``index`` [B], each text's place.
      measure: batch -> arrays by name, [B] or [B, ...]. Rows of unequal length (one entry a token) must be float.

    Returns:
      Arrays by name, [texts, ...], float64 where they were float; short rows are filled up with NaN.
    """
    parts, places = [], []
    for batch in batches:
        real = np.asarray(batch["weight"]) > 0
        parts.append({name: _plain(x)[real] for name, x in measure(batch).items()})
        places.append(np.asarray(batch["index"])[real])
    order = np.argsort(np.concatenate(places), kind="stable")
    return {name: _join([part[name] for part in parts])[order] for name in parts[0]}


@functools.partial(jax.jit, static_argnames="model")
def word_importance(model: Any, params: Params, batch: Batch) -> dict[str, jax.Array]:
    """What the model says of each text and of each of its tokens.

    Args:
      model: a `SafrClassifier`.
      params: its parameters.
      batch: ``tokens`` and ``mask`` [B, L].

    Returns:
      ``predicted`` int32 [B], the class with the largest logit (the first of equal ones); ``probability`` [B] of it;
      by token, [B, L], ``gradient``: |gradient of its log-probability by the token's scale| (gradient x input), and,
      for a model with VMASK, ``vmask``: the probability that the token is kept.
    """

    def confidence(scale: jax.Array) -> tuple[jax.Array, tuple[Any, ...]]:
        out = model.apply({"params": params}, batch["tokens"], batch["mask"], scale_BL=scale)
        log_p = jax.nn.log_softmax(_wide(out.logits))
        predicted = jnp.argmax(log_p, axis=-1)
        chosen = jnp.take_along_axis(log_p, predicted[:, None], axis=-1)[:, 0]
        return jnp.sum(chosen), (predicted, chosen, out.keep)

    gradient, (predicted, chosen, keep) = jax.grad(confidence, has_aux=True)(jnp.ones_like(batch["mask"]))
    found = {"predicted": predicted, "probability": jnp.exp(chosen), "gradient": jnp.abs(gradient)}
    return found if keep is None else found | {"vmask": keep}


def _wide(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _plain(x: Any) -> np.ndarray:
    x = np.asarray(x)
    return x.astype(np.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x


def _join(parts: list[np.ndarray]) -> np.ndarray:
    longest = max(part.shape[-1] for part in parts) if parts[0].ndim > 1 else 0
    if any(part.ndim > 1 and part.shape[-1] < longest for part in parts):
        parts = [_filled(part, longest) for part in parts]
    return np.concatenate(parts)


def _filled(x: np.ndarray, length: int) -> np.ndarray:
    """[..., length], the last axis filled up with NaN."""
    widths = [(0, 0)] * (x.ndim - 1) + [(0, length - x.shape[-1])]
    return np.pad(x, widths, constant_values=np.nan)

"""Units of a decoder, and where in a text they are strongest: the top examples of every unit in one pass.

A unit is an MLP neuron (mlp_post, as in the papers) or a channel of the concatenated heads (head_out). In the ablated
stream its activation is what its gate lets through. Units are called ``layer.unit``, for example 3.17.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxablate.errors import DataError
from jaxablate.models.decoder import SelfAblatingTransformer
from jaxablate.neurons.units import layer_values

Params = Any
Kind = Literal["neurons", "channels"]
Stream = Literal["clean", "ablated"]
Read = Callable[[Params, jax.Array], tuple[jax.Array, ...]]
"""(params, tokens int32 [B, T]) -> activations of one or more layers, each [B, T, U]; causal, hashable and pure."""
Batch = Mapping[str, np.ndarray]
"""``inputs`` int [B, T] and ``mask`` [B, T], 0 where a row is no text; all batches of one shape."""

NOTHING = -1
"""Stands where a context has no token: before the start of its story or of its window."""


@dataclasses.dataclass(frozen=True)
class UnitReader:
    """Reads the units of chosen layers; equal readers share compiled programs.

    Attributes:
      model: the decoder.
      layers: their numbers. Under `jax.jit` nothing behind the last of them is computed.
      kind: neurons (F a layer) or channels of attention (D a layer).
      stream: clean, or ablated, where an activation is multiplied by its gate.
    """

    model: SelfAblatingTransformer
    layers: tuple[int, ...]
    kind: Kind = "neurons"
    stream: Stream = "clean"

    def __call__(self, params: Params, tokens_BT: jax.Array) -> tuple[jax.Array, ...]:
        """Activations of each layer, float32 [B, T, U]."""
        layers = self.model.apply({"params": params}, tokens_BT).layers
        name = f"{'neurons' if self.kind == 'neurons' else 'attention'} {self.stream}"
        values = (layer_values(layers[i])[name] for i in self.layers)
        return tuple(x.reshape(*x.shape[:2], -1).astype(jnp.float32) for x in values)


@dataclasses.dataclass(frozen=True, eq=False)
class TopExamples:
    """The strongest moments of every unit, one of each window, strongest first.

    Attributes:
      activations: [L, U, m] float32, at the pivot.
      contexts: [L, U, m, C] int32, the tokens up to the pivot, which is the last one. They reach back to the start of
        the story or of the window; before it is `NOTHING`.
      windows: [L, U, m] int32, which window of the text.
      counts: [V] int64, how often each token occurs in the text that was read.
      tokens: how many were read.
    """

    activations: np.ndarray
    contexts: np.ndarray
    windows: np.ndarray
    counts: np.ndarray
    tokens: int

    @property
    def strongest(self) -> np.ndarray:
        """[L, U] the largest activation of each unit in the text."""
        return self.activations[..., 0]


def top_examples(
    read: Read, params: Params, batches: Iterable[Batch], *, vocab_size: int, eot_id: int, examples: int = 20,
    context: int = 24,
) -> TopExamples:
    """The windows in which each unit is strongest, each with the tokens up to the place where it is.

    One example a window, so that contexts are distinct. One pass: for each batch the maximum over T of each row and
    unit is merged on the device into the running best. Besides these (m numbers a unit) only the text itself is held.

    Args:
      read: gives all layers.
      params: of the model.
      batches: windows of text.
      vocab_size: V.
      eot_id: the token that ends a story; contexts do not reach over it.
      examples: m, how many of each unit.
      context: C, tokens of each example, the pivot included.

    Returns:
      `TopExamples`.

    Raises:
      DataError: fewer windows than examples, or an activation that is NaN or infinite.
    """
    best, windows, masks = None, [], []
    for batch in batches:
        inputs, mask = (np.asarray(batch[name]) for name in ("inputs", "mask"))
        if best is None:
            shape = jax.eval_shape(read, params, jax.ShapeDtypeStruct(inputs.shape, jnp.int32))
            best = _nothing_yet(len(shape), shape[0].shape[-1], examples)
        best = _merged(read, params, jnp.asarray(inputs, jnp.int32), jnp.asarray(mask), best, len(windows))
        windows.extend(inputs)
        masks.extend(mask)
    used = sum(bool(np.any(mask)) for mask in masks)
    if used < examples:
        raise DataError(f"{used:,} windows of text are too few for {examples} examples a unit, one of each window; "
                        f"give at least {examples} windows, or ask for fewer examples")
    return _with_contexts(best, np.stack(windows), np.stack(masks), vocab_size, eot_id, context)


def _nothing_yet(layers: int, units: int, examples: int) -> dict[str, jax.Array]:
    nowhere = jnp.zeros((layers, units, examples), jnp.int32)
    return {"value": jnp.full(nowhere.shape, -jnp.inf), "row": nowhere, "position": nowhere,
            "finite": jnp.ones((layers, units), bool)}


@functools.partial(jax.jit, static_argnums=0)
def _merged(read: Read, params: Params, tokens_BT, mask_BT, best: dict[str, jax.Array], first_row) -> dict:
    """Joins a batch's maxima to the best so far; earlier windows win ties."""
    seen = mask_BT[..., None] > 0
    layers = read(params, tokens_BT)
    hidden = [jnp.where(seen, x, -jnp.inf) for x in layers]
    value = jnp.stack([x.max(axis=1).T for x in hidden])  # [L, U, B]
    position = jnp.stack([_first_of(x, x.max(axis=1, keepdims=True)).T for x in hidden])
    finite = jnp.stack([jnp.all(jnp.isfinite(x) | ~seen, axis=(0, 1)) for x in layers])
    rows = jnp.broadcast_to(first_row + jnp.arange(len(tokens_BT), dtype=jnp.int32), value.shape)
    joined = {"value": jnp.concatenate([best["value"], value], -1), "row": jnp.concatenate([best["row"], rows], -1),
              "position": jnp.concatenate([best["position"], position], -1)}
    kept_value, chosen = jax.lax.top_k(joined["value"], best["value"].shape[-1])
    kept = {name: jnp.take_along_axis(joined[name], chosen, axis=-1) for name in ("row", "position")}
    return kept | {"value": kept_value, "finite": best["finite"] & finite}


def _first_of(x_BTU: jax.Array, value_B1U: jax.Array) -> jax.Array:
    """[B, U] where along T a value is first met: argmax as a plain maximum, several times as fast on CPU."""
    left = jnp.arange(x_BTU.shape[1], 0, -1, dtype=jnp.int32)[:, None]
    return x_BTU.shape[1] - jnp.where(x_BTU == value_B1U, left, 0).max(axis=1)


def _with_contexts(best, windows_WT, masks_WT, vocab_size: int, eot_id: int, context: int) -> TopExamples:
    best = {name: np.asarray(x) for name, x in best.items()}
    if not best["finite"].all():
        layer, unit = np.argwhere(~best["finite"])[0]
        raise DataError(f"unit {layer}.{unit} and {(~best['finite']).sum() - 1:,} others have activations that are NaN "
                        "or infinite; the parameters are damaged, take another checkpoint")
    back = np.arange(1 - context, 1)
    at = best["position"][..., None] + back
    tokens = np.where(at >= 0, windows_WT[best["row"][..., None], np.maximum(at, 0)], NOTHING).astype(np.int32)
    ends = (tokens == eot_id) & (back < 0)
    after = np.cumsum(ends[..., ::-1], axis=-1)[..., ::-1] == 0
    counts = np.bincount(windows_WT[masks_WT > 0], minlength=vocab_size)
    return TopExamples(best["value"], np.where(after, tokens, NOTHING), best["row"], counts, int(counts.sum()))

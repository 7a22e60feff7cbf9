"""Reading units of a model: where in a text each is strongest, and how strong it is at the end of short sequences.

A unit of a decoder is an MLP neuron (mlp_post, as in the papers) or a channel of the concatenated heads (head_out). In
the ablated stream its activation is what its gate lets through. Units are called ``layer.unit``, for example 3.17.
`top_examples` and `ShortRuns` take any causal function of (params, tokens) in the place of a `UnitReader`.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Literal, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Integer

from jaxablate.errors import ConfigError, DataError
from jaxablate.models.decoder import SelfAblatingTransformer
from jaxablate.neurons.units import decoder_output, layer_values
from jaxablate.types import Batch, Params, Stream

Read = Callable[[Params, jax.Array], jax.Array | Sequence[jax.Array] | Mapping[str, jax.Array]]
"""(params, tokens int32 [B, T]) -> activations [B, T, U], of one layer, of a sequence of layers, or by name in their
order; causal, hashable and pure."""

NOTHING = -1
"""Stands where a context has no token: before the start of its story or of its window."""
LENGTHS = (4, 8, 16, 24)
"""Lengths to which short sequences are filled up; longer ones to a multiple of the last."""


@dataclasses.dataclass(frozen=True)
class UnitReader:
    """Reads the units of chosen layers of a decoder; equal readers share compiled programs."""

    model: SelfAblatingTransformer
    layers: tuple[int, ...]
    """Under `jax.jit` nothing behind the last of them is computed."""
    kind: Literal["neurons", "channels"] = "neurons"
    stream: Stream = "clean"

    def __call__(self, params: Params, tokens_BT: jax.Array) -> tuple[jax.Array, ...]:
        """Activations of each layer, float32 [B, T, U]."""
        layers = decoder_output(self.model, params, tokens_BT).layers
        name = f"{'neurons' if self.kind == 'neurons' else 'attention'} {self.stream}"
        values = (layer_values(layers[i])[name] for i in self.layers)
        return tuple(x.reshape(*x.shape[:2], -1).astype(jnp.float32) for x in values)


def read_layers(read: Read, params: Params, tokens_BT: jax.Array) -> tuple[jax.Array, ...]:
    """What a reader gives, as one array [B, T, U] for each layer, all of one U.

    Raises:
      ConfigError: it gives something else.
    """
    result = read(params, tokens_BT)
    result = tuple(result.values()) if isinstance(result, Mapping) else result
    layers: tuple[jax.Array, ...] = tuple(result) if isinstance(result, tuple | list) else (cast(jax.Array, result),)
    shapes = [getattr(x, "shape", type(x).__name__) for x in layers]
    if not layers or any(not isinstance(s, tuple) or len(s) != 3 or s[:2] != tokens_BT.shape or s != shapes[0]
                         for s in shapes):
        raise ConfigError(f"the function that reads units gives {shapes} for tokens of shape {tokens_BT.shape}; it "
                          "must give activations [batch, time, units], or a tuple of such arrays, one for each layer")
    return layers


@dataclasses.dataclass(frozen=True, eq=False)
class TopExamples:
    """The strongest moments of every unit, one of each window, strongest first."""

    activations: np.ndarray
    """float32 [L, U, m], at the pivot."""
    contexts: np.ndarray
    """int32 [L, U, m, C], the tokens up to the pivot, which is the last one. They reach back to the start of the story
    or of the window; before it is `NOTHING`."""
    windows: np.ndarray
    """int32 [L, U, m]"""
    counts: np.ndarray
    """int64 [V], how often each token occurs in the text that was read."""
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
    Batches are ``inputs`` int [B, T] and ``mask`` [B, T], 0 where a row is no text; all of one shape. Contexts of C
    tokens, the pivot included, do not reach over ``eot_id``, which ends a story; it is -1 where there is none.

    Raises:
      ConfigError: ``read`` gives no activations [B, T, U].
      DataError: fewer windows than examples, or an activation that is NaN or infinite.
    """
    best, windows, masks = None, [], []
    for batch in batches:
        inputs, mask = (np.asarray(batch[name]) for name in ("inputs", "mask"))
        if best is None:
            tokens = jax.ShapeDtypeStruct(inputs.shape, jnp.int32)
            shapes = jax.eval_shape(functools.partial(read_layers, read), params, tokens)
            nowhere = jnp.zeros((len(shapes), shapes[0].shape[-1], examples), jnp.int32)
            best = {"value": jnp.full(nowhere.shape, -jnp.inf), "row": nowhere, "position": nowhere,
                    "finite": jnp.ones(nowhere.shape[:2], bool)}
        best = _merged(read, params, jnp.asarray(inputs, jnp.int32), mask, best, len(windows))
        windows.extend(inputs)
        masks.extend(mask)
    used = sum(bool(np.any(mask)) for mask in masks)
    if best is None or used < examples:
        raise DataError(f"{used:,} windows of text are too few for {examples} examples a unit, one of each window; "
                        f"give at least {examples} windows, or ask for fewer examples")
    return _with_contexts(best, np.stack(windows), np.stack(masks), vocab_size, eot_id, context)


@functools.partial(jax.jit, static_argnums=0)
def _merged(read: Read, params: Params, tokens_BT: jax.Array, mask_BT: jax.Array, best: dict[str, jax.Array],
            first_row: int) -> dict[str, jax.Array]:
    """Joins a batch's maxima to the best so far; earlier windows win ties."""
    counted = mask_BT[..., None] > 0
    layers = read_layers(read, params, tokens_BT)
    hidden = [jnp.where(counted, x, -jnp.inf) for x in layers]
    value = jnp.stack([x.max(axis=1).T for x in hidden])  # [L, U, B]
    # Where along T it is first met: argmax as a plain maximum, several times as fast on CPU.
    left = jnp.arange(tokens_BT.shape[1], 0, -1, dtype=jnp.int32)[:, None]
    latest = [jnp.where(x == x.max(axis=1, keepdims=True), left, 0).max(axis=1) for x in hidden]
    position = tokens_BT.shape[1] - jnp.stack([x.T for x in latest])
    finite = jnp.stack([jnp.all(jnp.isfinite(x) | ~counted, axis=(0, 1)) for x in layers])
    rows = jnp.broadcast_to(first_row + jnp.arange(len(tokens_BT), dtype=jnp.int32), value.shape)
    joined = {name: jnp.concatenate([best[name], x], -1)
              for name, x in (("value", value), ("row", rows), ("position", position))}
    top_value, chosen = jax.lax.top_k(joined["value"], best["value"].shape[-1])
    top = {name: jnp.take_along_axis(joined[name], chosen, axis=-1) for name in ("row", "position")}
    return top | {"value": top_value, "finite": best["finite"] & finite}


def _with_contexts(best: dict[str, jax.Array], windows_WT: np.ndarray, masks_WT: np.ndarray, vocab_size: int,
                   eot_id: int, context: int) -> TopExamples:
    top = {name: np.asarray(x) for name, x in best.items()}
    if not top["finite"].all():
        layer, unit = np.argwhere(~top["finite"])[0]
        raise DataError(f"unit {layer}.{unit} and {(~top['finite']).sum() - 1:,} others have activations that are NaN "
                        "or infinite; the parameters are damaged, take another checkpoint")
    back = np.arange(1 - context, 1)
    at = top["position"][..., None] + back
    tokens = np.where(at >= 0, windows_WT[top["row"][..., None], np.maximum(at, 0)], NOTHING).astype(np.int32)
    ends = (tokens == eot_id) & (back < 0) & (tokens != NOTHING)
    after = np.cumsum(ends[..., ::-1], axis=-1)[..., ::-1] == 0
    counts = np.bincount(windows_WT[masks_WT > 0], minlength=vocab_size)
    return TopExamples(top["value"], np.where(after, tokens, NOTHING), top["row"], counts, int(counts.sum()))


@dataclasses.dataclass(eq=False)
class ShortRuns:
    """Answers questions about the units of one layer, in large batches of few shapes.

    A question is (sequence, unit): how strong is the unit at the last token when the model reads this sequence from
    position 0? Questions about the same sequence share one run, whatever their units. Sequences are grouped by length,
    so each layer needs one program a length. ``read`` gives this one layer; ``tokens_run`` and ``questions`` count what
    went through so far. Padding counts as tokens.
    """

    read: Read
    params: Params
    batch_tokens: int = 8192
    tokens_run: int = 0
    questions: int = 0

    def __call__(self, sequences_QT: Integer[np.ndarray, "questions time"], units_Q: Integer[np.ndarray, " questions"]
                 ) -> Float[np.ndarray, " questions"]:
        """Activation of each unit at the last token of its sequence, which `NOTHING` may follow.

        Raises:
          ConfigError: ``read`` gives other than one layer [B, T, U].
          DataError: an activation is NaN or infinite.
        """
        lengths = (sequences_QT != NOTHING).sum(1)
        answers = np.empty(len(sequences_QT), np.float32)
        below = 0
        for length in _lengths(int(lengths.max(initial=0))):
            chosen = np.flatnonzero((below < lengths) & (lengths <= length))
            if chosen.size:
                rows = np.full((chosen.size, length), NOTHING, np.int32)
                width = min(length, sequences_QT.shape[1])
                rows[:, :width] = sequences_QT[chosen, :width]
                answers[chosen] = self._answers(rows, units_Q[chosen])
            below = length
        self.questions += len(answers)
        if not np.all(np.isfinite(answers)):
            raise DataError(f"unit {units_Q[~np.isfinite(answers)][0]} of the layer has an activation that is NaN or "
                            "infinite; the parameters are damaged, take another checkpoint")
        return answers

    def _answers(self, rows_QT: np.ndarray, units_Q: np.ndarray) -> np.ndarray:
        # Rows are compared as bytes, much faster than number by number.
        as_bytes = rows_QT.view(np.dtype((np.void, rows_QT.dtype.itemsize * rows_QT.shape[1])))[:, 0]
        _, first_of, inverse = np.unique(as_bytes, return_index=True, return_inverse=True)
        unique, inverse = rows_QT[first_of], inverse.reshape(-1)
        order = np.argsort(inverse, kind="stable")
        ends = np.searchsorted(inverse, np.arange(len(unique) + 1), sorter=order)
        answers = np.empty(len(rows_QT), np.float32)
        for first, values_BU in self._batches(unique):
            asked = order[ends[first] : ends[min(first + len(values_BU), len(unique))]]
            answers[asked] = values_BU[inverse[asked] - first, units_Q[asked]]
        return answers

    def _batches(self, rows_QT: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """(number of its first row, activations [B, U] at the last tokens) of each batch; one runs ahead."""
        size, waiting = max(1, self.batch_tokens // rows_QT.shape[1]), None
        for first in range(0, len(rows_QT), size):
            rows = rows_QT[first : first + size]
            rows = np.pad(rows, ((0, size - len(rows)), (0, 0)))
            running = first, _last(self.read, self.params, rows)
            self.tokens_run += rows.size
            if waiting is not None:
                yield waiting[0], np.asarray(waiting[1])
            waiting = running
        if waiting is not None:
            yield waiting[0], np.asarray(waiting[1])


@functools.partial(jax.jit, static_argnums=0)
def _last(read: Read, params: Params, rows_BT: jax.Array) -> jax.Array:
    """Activations [B, U] at the last token of each row, which `NOTHING` follows."""
    last = jnp.maximum((rows_BT != NOTHING).sum(1) - 1, 0)
    layers = read_layers(read, params, jnp.maximum(rows_BT, 0))
    if len(layers) != 1:
        raise ConfigError(f"short runs read one layer, the function that reads units gives {len(layers)}; give a "
                          "UnitReader of that layer alone")
    return jnp.take_along_axis(layers[0], last[:, None, None], axis=1)[:, 0]


def _lengths(longest: int) -> list[int]:
    """Lengths to fill up to, until the longest is covered.

    >>> _lengths(5), _lengths(40)
    ([4, 8], [4, 8, 16, 24, 48])
    """
    step = LENGTHS[-1]
    lengths = [*LENGTHS, *range(2 * step, longest + step, step)]
    return [length for i, length in enumerate(lengths) if i == 0 or lengths[i - 1] < longest]

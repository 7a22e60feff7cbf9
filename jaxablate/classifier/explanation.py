"""What a classifier makes of one text: which neurons each token occupies, and which tokens share them."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, Float, Int

from jaxablate.classifier.measures import gradient_by_token
from jaxablate.config.checks import require
from jaxablate.errors import DataError
from jaxablate.ops.capacity import alignment, capacity
from jaxablate.types import STREAMS, Params

MOST_NEURONS = 160
"""Columns of an allocation picture; more would be thinner than a pixel."""
LENGTH_MULTIPLE = 16
"""Texts are padded to a multiple of this, so that few lengths are compiled."""

Rows = tuple[tuple[float, ...], ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Explanation:
    """One text as one layer and stream of a classifier sees it; L tokens."""

    words: tuple[str, ...]
    layer: int
    stream: str
    classes: tuple[str, ...]
    predicted: int
    """Class with the largest logit."""
    probabilities: tuple[float, ...]
    keep: tuple[float, ...]
    """Probability that VMASK keeps the token; empty without VMASK."""
    gradient_x_input: tuple[float, ...]
    """Derivative of the predicted class's log-probability by the scale of the token's embedding: positive for a token
    that speaks for that class."""
    capacity: tuple[float, ...]
    """Capacity of the token's neurons; see `jaxablate.ops.capacity.capacity`."""
    owned: tuple[int, ...]
    """Active neurons that no other token drives more; a tie is the earlier token's."""
    active: tuple[int, ...]
    """Neurons that the token drives at all."""
    alignment: Rows
    """[L, L] absolute cosine of two tokens' neurons: how far they share them."""
    attention: Rows
    """[L, L] attention between two tokens: (A_ij + A_ji) / 2, the mean over heads."""
    neurons: tuple[int, ...]
    """The `MOST_NEURONS` active neurons of the layer that reach highest, ordered by the token that drives them most and
    then by falling activation."""
    activations: Rows
    """[L, neurons] activations of these neurons."""
    active_neurons: int
    """Neurons that some token drives."""

    @property
    def verdict(self) -> str:
        """The predicted class and its probability."""
        return f"{self.classes[self.predicted]} ({self.probabilities[self.predicted]:.3f})"

    def partner(self, token: int, pairs: Literal["alignment", "attention"]) -> int | None:
        """The other token that a token goes with most; None where it goes with none."""
        row = np.array(getattr(self, pairs)[token])
        row[token] = 0.0
        return int(np.argmax(row)) if row.any() else None


def explain(model: Any, params: Params, tokens: Sequence[int], words: Sequence[str], *, layer: int = -1,
            stream: str = "clean", classes: Sequence[str] | None = None, pad_id: int = 0) -> Explanation:
    """Explains what a `SafrClassifier` makes of one text.

    Args:
      model: the classifier.
      params: its parameters.
      tokens: ids of the text, at least one; those beyond the model's ``max_length`` are left out, as in training.
      words: how each token is shown.
      layer: number of the layer whose neurons and attention are shown; -1 is the last one.
      stream: clean or, in a gated model, ablated: neurons times their gates, and logits of that stream.
      classes: names of the classes; their numbers by default.
      pad_id: token of the padding, which is part of the result where ``padding="paper"``.

    Raises:
      ConfigError: the model has no such layer or stream.
      DataError: the text is empty.
    """
    config = model.config
    require(-config.n_layers <= layer < config.n_layers,
            f"layer={layer} must be in 0..{config.n_layers - 1} (or -1, the last)")
    streams = STREAMS if config.gated else STREAMS[:1]
    require(stream in streams, f"stream={stream!r} must be {' or '.join(streams)} in this model")
    layer %= config.n_layers
    padded, mask = _padded(config, tokens, pad_id)
    n = int(mask.sum())
    observed = jax.tree.map(np.asarray, observe(model, params, padded, mask, layer=layer, stream=stream))
    by_token = {name: x[:n].astype(np.float64) for name, x in observed.items() if name != "probabilities"}
    neurons_LF = by_token.pop("neurons")
    by_token |= {name: by_token[name][:, :n] for name in ("alignment", "attention")}
    names = tuple(classes or (f"class {i}" for i in range(config.n_classes)))
    return Explanation(
        words=tuple(words[:n]), layer=layer, stream=stream, classes=names,
        predicted=int(np.argmax(observed["probabilities"])), probabilities=_plain(observed["probabilities"]),
        **{"keep": ()} | {name: _plain(x) for name, x in by_token.items()}, **allocate(neurons_LF),
    )


def _padded(config: Any, tokens: Sequence[int], pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """One text as a batch [1, length] of ids and of the mask, cut to what the model takes.

    Raises:
      DataError: the text is empty.
    """
    if not len(tokens):
        raise DataError("the text is empty; give at least one word")
    n = min(len(tokens), config.max_length)
    length = config.max_length if config.padding == "paper" else min(-(-n // LENGTH_MULTIPLE) * LENGTH_MULTIPLE,
                                                                     config.max_length)
    padded, mask = np.full((1, length), pad_id, np.int32), np.zeros((1, length), np.float32)
    padded[0, :n], mask[0, :n] = tokens[:n], 1.0
    return padded, mask


def attention_patterns(model: Any, params: Params, tokens: Sequence[int], *, pad_id: int = 0
                       ) -> dict[str, Float[np.ndarray, "layers heads tokens tokens"]]:
    """Attention weights of every head of a `SafrClassifier` on one text, by stream, a row for each query.

    Tokens beyond the model's ``max_length`` are left out. Rows sum to 1, but where padding is part of the result.

    Raises:
      DataError: the text is empty.
    """
    padded, mask = _padded(model.config, tokens, pad_id)
    n = int(mask.sum())
    return {stream: np.asarray(x)[:, :, :n, :n] for stream, x in _patterns(model, params, padded, mask).items()}


@functools.partial(jax.jit, static_argnames="model")
def _patterns(model: Any, params: Params, tokens: jax.typing.ArrayLike, mask: jax.typing.ArrayLike
              ) -> dict[str, jax.Array]:
    layers = model.apply({"params": params}, tokens, mask).layers
    return {stream: jnp.stack([getattr(layer, stream).attention[0] for layer in layers])
            for stream in (STREAMS if model.config.gated else STREAMS[:1])}


@functools.partial(jax.jit, static_argnames=("model", "layer", "stream"))
def observe(model: Any, params: Params, tokens: Int[ArrayLike, "1 tokens"], mask: Float[ArrayLike, "1 tokens"], *,
            layer: int, stream: str) -> dict[str, jax.Array]:
    """What `explain` needs of one text, padding included: arrays by name, without the axis of texts."""
    gradient, log_p, out = gradient_by_token(model, params, tokens, mask, stream=stream)
    of_layer = out.layers[layer]
    weights = jnp.mean(getattr(of_layer, stream).attention[0], axis=0)
    neurons = jnp.where(jnp.asarray(mask)[0, :, None] > 0, of_layer.neurons(stream)[0], 0)
    observed = {"probabilities": jnp.exp(log_p[0]), "gradient_x_input": gradient[0], "neurons": neurons,
                "capacity": capacity(neurons), "alignment": alignment(neurons),
                "attention": (weights + weights.swapaxes(0, 1)) / 2}
    return observed if out.keep is None else observed | {"keep": out.keep[0]}


def allocate(neurons_LF: Float[np.ndarray, "tokens neurons"]) -> dict[str, Any]:
    """Which token has which neurons: the fields of `Explanation` that follow from activations alone.

    >>> fields = allocate(np.array([[0.0, 3.0, 0.0, 1.0], [2.0, 1.0, 0.0, 1.0]]))
    >>> fields["neurons"], fields["owned"], fields["active"]
    ((1, 3, 0), (2, 1), (2, 3))
    """
    size_LF = np.abs(neurons_LF)
    peak_F, owner_F = size_LF.max(axis=0), size_LF.argmax(axis=0)
    active = np.flatnonzero(peak_F)
    shown = active[np.argsort(-peak_F[active], kind="stable")][:MOST_NEURONS]
    order = shown[np.lexsort((-peak_F[shown], owner_F[shown]))]
    owned = np.bincount(owner_F[active], minlength=len(neurons_LF))
    return {"neurons": tuple(map(int, order)), "activations": _plain(neurons_LF[:, order]),
            "owned": tuple(map(int, owned)), "active": tuple(map(int, np.count_nonzero(neurons_LF, axis=1))),
            "active_neurons": len(active)}


def _plain(x: np.ndarray) -> Any:
    """Nested tuples of Python floats with six significant digits, which is what float32 holds."""
    if x.ndim > 1:
        return tuple(_plain(row) for row in x)
    return tuple(float(f"{v:.6g}") for v in x)

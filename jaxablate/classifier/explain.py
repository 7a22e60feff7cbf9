"""What a classifier makes of one text: which neurons each token occupies, and which tokens share them."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxablate.data.tokenizer import Tokenizer
from jaxablate.errors import ConfigError, DataError
from jaxablate.ops.capacity import alignment, capacity
from jaxablate.reports.axes import short
from jaxablate.reports.panels import Beside, Edge, Grid, Heatmap, Network, Node
from jaxablate.types import STREAMS, Params

MOST_NEURONS = 160
"""Columns of an allocation picture; more would be thinner than a pixel."""
EDGES_PER_TOKEN = 2
"""Arcs of an interaction picture, at most, for each token: the strongest."""
LEAST_ALIGNMENT = 0.05
"""Pairs below share next to nothing and get no arc."""
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
    """Of each class."""
    keep: tuple[float, ...]
    """Probability that VMASK keeps the token; empty without VMASK."""
    gradient_x_input: tuple[float, ...]
    """Derivative of the predicted class's log-probability by the scale of the token's embedding: positive for a token
    that speaks for that class."""
    capacity: tuple[float, ...]
    """See `jaxablate.evaluation.capacity.capacity`, of the token's neurons."""
    owned: tuple[int, ...]
    """Active neurons that no other token drives more; a tie is the earlier token's."""
    active: tuple[int, ...]
    """Neurons that the token drives at all."""
    alignment: Rows
    """[L, L] absolute cosine of two tokens' neurons: how far they share them."""
    attention: Rows
    """[L, L] attention between two tokens: (A_ij + A_ji) / 2, the mean over heads."""
    neurons: tuple[int, ...]
    """Of the layer's active neurons the `MOST_NEURONS` that reach highest; by the token that drives them most, and
    within that by falling activation."""
    activations: Rows
    """[L, neurons]."""
    active_neurons: int
    """Neurons that some token drives."""

    @property
    def verdict(self) -> str:
        """The predicted class and its probability in words."""
        return f"{self.classes[self.predicted]} ({self.probabilities[self.predicted]:.3f})"

    def panels(self) -> tuple[Heatmap, Network, Grid]:
        """Neuron allocation, token interactions, and the numbers of each token."""
        return self.allocation(), self.interactions(self.edge_floor()), self._table()

    def allocation(self) -> Heatmap:
        """Tokens x neurons, with the capacity of each token."""
        caption = (f"Activation of the neurons of layer {self.layer}{self._of_stream()}. Neurons stand under the token "
                   "that drives them most, and the diagonal is what tokens have to themselves. Capacity: 1 for a token "
                   "that shares no direction, 1/m where m tokens have the same.")
        shown = f"{len(self.neurons):,} of {self.active_neurons:,} active neurons"
        return Heatmap(title="Neuron allocation", caption=caption, rows=self.words, values=self.activations,
                       x_label=shown, value_label="activation", columns=tuple(f"neuron {n}" for n in self.neurons),
                       bars=self.capacity, bar_label="capacity")

    def interactions(self, floor: float) -> Network:
        """Tokens in reading order, an arc for each pair whose alignment is at least ``floor``."""
        pairs = [(i, j, self.alignment[i][j]) for i in range(len(self.words)) for j in range(i + 1, len(self.words))]
        edges = tuple(Edge(first=i, second=j, weight=w) for i, j, w in pairs if w >= floor)
        sizes = self.keep or self.capacity
        size_label = "probability of being kept" if self.keep else "capacity"
        caption = (f"Arcs join tokens that share neurons of layer {self.layer}{self._of_stream()}: |cos| of their "
                   f"activations, of {floor:.2f} or more ({len(edges)} of {len(pairs)} pairs). Dots: {size_label}.")
        return Network(title="Token interactions", caption=caption, edges=edges, size_label=size_label,
                       nodes=tuple(Node(label=w, size=s) for w, s in zip(self.words, sizes, strict=True)),
                       weight_label="alignment")

    def edge_floor(self) -> float:
        """Least alignment drawn: of the strongest `EDGES_PER_TOKEN` pairs a token (ties are all drawn)."""
        weights = sorted((w for i, row in enumerate(self.alignment) for w in row[i + 1 :]), reverse=True)
        most = EDGES_PER_TOKEN * len(self.words)
        return max(LEAST_ALIGNMENT, weights[most - 1] if len(weights) >= most else 0.0)

    def partner(self, token: int, pairs: Literal["alignment", "attention"]) -> int | None:
        """The other token that a token goes with most; None where it goes with none."""
        row = np.array(getattr(self, pairs)[token])
        row[token] = 0.0
        return int(np.argmax(row)) if row.any() else None

    def _of_stream(self) -> str:
        return "" if self.stream == STREAMS[0] else f", {self.stream} stream"

    def _table(self) -> Grid:
        rows = tuple(
            (short(word, 24), self.keep[i] if self.keep else None, self.gradient_x_input[i], self.capacity[i],
             self.owned[i], self._named(i, "alignment"), self._named(i, "attention"))
            for i, word in enumerate(self.words)
        )
        caption = ("Gradient x input: how the log-probability of the predicted class changes with the size of the "
                   "token's embedding. Owned: neurons that no other token drives more.")
        return Grid(title="Tokens", caption=caption, rows=rows,
                    columns=("token", "kept", "gradient x input", "capacity", "owned", "shares most with",
                             "attends most with"))

    def _named(self, token: int, pairs: Literal["alignment", "attention"]) -> str:
        other = self.partner(token, pairs)
        return "-" if other is None else f"{short(self.words[other], 16)} ({getattr(self, pairs)[token][other]:.2f})"


def explain(model: Any, params: Params, tokens: Sequence[int], words: Sequence[str], *, layer: int = -1,
            stream: str = "clean", classes: Sequence[str] | None = None, pad_id: int = 0) -> Explanation:
    """Explains what a classifier makes of one text.

    Args:
      model: a `SafrClassifier`.
      params: its parameters.
      tokens: ids of the text, at least one; those beyond the model's ``max_length`` are left out, as in training.
      words: how each token is shown.
      layer: whose neurons and attention; -1 is the last one.
      stream: clean or, in a gated model, ablated: neurons times their gates, logits of that stream.
      classes: names of the classes; their numbers by default.
      pad_id: token of the padding, which is part of the result where ``padding="paper"``.

    Raises:
      ConfigError: the model has no such layer or stream.
      DataError: the text is empty.
    """
    config = model.config
    layer = _checked_layer(config, layer, stream)
    if not len(tokens):
        raise DataError("the text is empty; give at least one word")
    n = min(len(tokens), config.max_length)
    length = config.max_length if config.padding == "paper" else min(-(-n // LENGTH_MULTIPLE) * LENGTH_MULTIPLE,
                                                                     config.max_length)
    padded, mask = np.full((1, length), pad_id, np.int32), np.zeros((1, length), np.float32)
    padded[0, :n], mask[0, :n] = tokens[:n], 1.0
    seen = jax.tree.map(np.asarray, observe(model, params, padded, mask, layer=layer, stream=stream))
    by_token = {name: x[:n].astype(np.float64) for name, x in seen.items() if name != "probabilities"}
    neurons_LF = by_token.pop("neurons")
    by_token |= {name: by_token[name][:, :n] for name in ("alignment", "attention")}
    names = tuple(classes or (f"class {i}" for i in range(config.n_classes)))
    return Explanation(
        words=tuple(words[:n]), layer=layer, stream=stream, classes=names,
        predicted=int(np.argmax(seen["probabilities"])), probabilities=_plain(seen["probabilities"]),
        **{"keep": ()} | {name: _plain(x) for name, x in by_token.items()}, **allocate(neurons_LF),
    )


@functools.partial(jax.jit, static_argnames=("model", "layer", "stream"))
def observe(model: Any, params: Params, tokens: jax.Array, mask: jax.Array, *, layer: int, stream: str
            ) -> dict[str, jax.Array]:
    """What `explain` needs of one text [1, L], padding included: by name, without the axis of texts."""

    def confidence(scale: jax.Array) -> tuple[jax.Array, Any]:
        out = model.apply({"params": params}, tokens, mask, scale_BL=scale)
        logits = out.logits if stream == STREAMS[0] else out.logits_ablated
        log_p = jax.nn.log_softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)))
        return jnp.max(log_p), (jnp.exp(log_p[0]), out)

    gradient, (probabilities, out) = jax.grad(confidence, has_aux=True)(jnp.ones_like(mask))
    of_layer = out.layers[layer]
    block = getattr(of_layer, stream)
    neurons = block.mlp_post if stream == STREAMS[0] else block.mlp_post * of_layer.neuron_gates
    weights = jnp.mean(block.attention[0], axis=0)
    neurons = jnp.where(mask[0, :, None] > 0, neurons[0], 0)
    found = {"probabilities": probabilities, "gradient_x_input": gradient[0], "neurons": neurons,
             "capacity": capacity(neurons), "alignment": alignment(neurons),
             "attention": (weights + weights.swapaxes(0, 1)) / 2}
    return found if out.keep is None else found | {"keep": out.keep[0]}


def allocate(neurons_LF: np.ndarray) -> dict[str, Any]:
    """Which token has which neurons: the fields of `Explanation` that follow from activations alone.

    >>> found = allocate(np.array([[0.0, 3.0, 0.0, 1.0], [2.0, 1.0, 0.0, 1.0]]))
    >>> found["neurons"], found["owned"], found["active"]
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


def side_by_side(before: Explanation, after: Explanation, labels: tuple[str, str] = ("before", "after")
                 ) -> tuple[Beside, Beside]:
    """Allocation and interactions of one text in two models, each pair with one scale and one least alignment."""
    allocations = before.allocation(), after.allocation()
    floor = max(before.edge_floor(), after.edge_floor())
    networks = before.interactions(floor), after.interactions(floor)
    caption = f"{allocations[1].caption} Both have one scale; each model has neurons of its own: compare rows only."
    counts = " and ".join(str(len(network.edges)) for network in networks)
    return (
        Beside(title=allocations[0].title, labels=labels, panels=allocations, caption=caption),
        Beside(title=networks[0].title, labels=labels, panels=networks,
               caption=f"Arcs join tokens whose activations have a |cos| of {floor:.2f} or more: {counts} pairs of "
                       f"{len(before.words) * (len(before.words) - 1) // 2}. Dots: {networks[0].size_label}."),
    )


def shown_words(tokenizer: Tokenizer, text: str, tokens: Sequence[int]) -> list[str]:
    """How to show the tokens of a text: a word that the tokenizer does not know as it stands there, in angle quotes.

    Args:
      tokenizer: the run's.
      text: the text.
      tokens: its first ids, or all.
    """
    if tokenizer.unk_id is None:
        return [tokenizer.decode([token]) for token in tokens]
    words = zip(text.split(), tokens, strict=False)
    return [f"‹{word}›" if token == tokenizer.unk_id else word for word, token in words]


def is_unknown(word: str) -> bool:
    """Whether `shown_words` put the word in quotes."""
    return word.startswith("‹") and word.endswith("›")


def _checked_layer(config: Any, layer: int, stream: str) -> int:
    """The layer counted from 0."""
    if not -config.n_layers <= layer < config.n_layers:
        raise ConfigError(f"layer={layer} must be in 0..{config.n_layers - 1} (or -1, the last)")
    streams = STREAMS if config.gated else STREAMS[:1]
    if stream not in streams:
        raise ConfigError(f"stream={stream!r} must be {' or '.join(streams)} in this model")
    return layer % config.n_layers


def _plain(x: np.ndarray) -> Any:
    """Nested tuples of Python floats with six significant digits, which is what float32 holds."""
    if x.ndim > 1:
        return tuple(_plain(row) for row in x)
    return tuple(float(f"{v:.6g}") for v in x)

"""Mean absolute weight, counted in the ways that matter (docs/papers.md, Feature concentration).

The paper calls the mean |w| over a model's weights its sparsity. Which weights is the question: the released script
means to leave the embeddings out, but tests for names that its converted model does not have, so both embedding
matrices are in, the tied one twice; and the conversion (TransformerLens, ``fold_ln=False``) has centred the matrices
that write to the residual stream and the unembedding, and added biases that are zero everywhere. `released` repeats
that count to the letter; the other figures say what they hold.
"""

import dataclasses
from collections.abc import Iterable, Mapping

import jax
import numpy as np

from jaxablate.reports.panels import Bar, Bars, Grid, Panel
from jaxablate.reports.results import Figure
from jaxablate.suites.suite import Suite
from jaxablate.types import Params

_OF_MODEL = {"embed": "token embedding", "pos_embed": "position embedding", "unembed": "unembedding"}
OF_SOME_FAMILIES = ("unembedding", "MLP gate")
KINDS = (
    "token embedding", "position embedding", "unembedding", "query", "key", "value", "attention output", "MLP gate",
    "MLP up", "MLP down", "layer norm", "bias", "ablation heads",
)
EMBEDDINGS = KINDS[:2]


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightGroup:
    """Weights taken together."""

    name: str
    count: int
    mean_abs: float | None
    """None for a group without weights."""
    rms: float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightsResult:
    """Mean |w| of the whole model and of its parts."""

    transformer: WeightGroup
    """All but the ablation heads; the tied matrix once."""
    without_embeddings: WeightGroup
    """All but the ablation heads, the token and the position embedding."""
    released: WeightGroup
    """The weights that the papers' released script counts, which the module's docstring lists."""
    ablation_heads: WeightGroup
    """Kernels and biases that make relevance scores; empty for a baseline."""
    kinds: tuple[WeightGroup, ...]
    """Each kind of matrix over all layers; biases and layer norms are groups of their own."""
    by_layer: tuple[tuple[int, str, float], ...]
    """(layer, kind, mean |w|) of the weight matrices."""

    def headline(self) -> tuple[Figure, ...]:
        """Mean |w| in each way of counting."""
        figures = [("mean |w|", self.transformer), ("mean |w| w/o embeddings", self.without_embeddings),
                   ("mean |w| as released", self.released), ("mean |w| ablation heads", self.ablation_heads)]
        return tuple(Figure(name, group.mean_abs) for name, group in figures)

    def panels(self) -> tuple[Panel, ...]:
        """Bars and table of the kinds, and mean |w| by layer."""
        groups = (self.transformer, self.without_embeddings, self.released, *self.kinds)
        bars = tuple(Bar(g.name, g.mean_abs) for g in self.kinds if g.mean_abs is not None)
        caption = ("As released: embeddings counted, the tied matrix twice, writing and unembedding matrices centred, "
                   "zero biases of the converted model included, ablation heads left out.")
        table = {(layer, kind): value for layer, kind, value in self.by_layer}
        kinds = [k for k in KINDS if any(kind == k for _, kind in table)]
        return (
            Bars(title="Mean |w| by kind", caption="Over all layers; the tied matrix once.", bars=bars),
            Grid(title="Weights", caption=caption, columns=("weights", "count", "mean |w|", "rms"),
                 rows=tuple((g.name, g.count, g.mean_abs, g.rms) for g in groups)),
            Grid(title="Mean |w| by layer", caption="", columns=("layer", *kinds), rows=tuple(
                (layer, *(table.get((layer, kind)) for kind in kinds)) for layer in sorted({x for x, _ in table}))),
        )


def evaluate(params: Params) -> WeightsResult:
    """Mean |w| of a `SelfAblatingTransformer`'s parameters, summed in float64 on the host."""
    leaves = {tuple(key.key for key in path): np.asarray(x, np.float64)
              for path, x in jax.tree_util.tree_leaves_with_path(dict(params))}
    kinds = {path: kind_of(path) for path in leaves}
    heads = [p for p in leaves if kinds[p] == "ablation heads"]
    rest = [p for p in leaves if kinds[p] != "ablation heads"]
    inner = [p for p in rest if kinds[p] not in (*EMBEDDINGS, "unembedding")]
    by_layer: dict[tuple[int, str], list[np.ndarray]] = {}
    for path, x in leaves.items():
        if path[0].startswith("layer_") and path[-1] == "kernel":
            by_layer.setdefault((int(path[0].removeprefix("layer_")), kinds[path]), []).append(x)
    return WeightsResult(
        transformer=_group("transformer", (leaves[p] for p in rest)),
        without_embeddings=_group("without embeddings", (leaves[p] for p in inner)),
        released=_group("as released", released_weights(leaves)),
        ablation_heads=_group("ablation heads", (leaves[p] for p in heads)),
        kinds=tuple(_group(kind, (leaves[p] for p in leaves if kinds[p] == kind)) for kind in KINDS
                    if kind not in OF_SOME_FAMILIES or kind in kinds.values()),
        by_layer=tuple((layer, kind, _group(kind, arrays).mean_abs or 0.0)
                       for (layer, kind), arrays in sorted(by_layer.items())),
    )


def kind_of(path: tuple[str, ...]) -> str:
    """Kind of a parameter by its path in the tree, one of `KINDS`.

    >>> kind_of(("layer_0", "mlp", "up", "kernel"))
    'MLP up'
    """
    if "attention_scores" in path or "neuron_scores" in path:
        return "ablation heads"
    if path[0] in _OF_MODEL:
        return _OF_MODEL[path[0]]
    if any(part.startswith("ln_") for part in path):
        return "layer norm"
    if path[-1] == "bias":
        return "bias"
    names = {"query": "query", "key": "key", "value": "value", "out": "attention output", "gate": "MLP gate",
             "up": "MLP up", "down": "MLP down"}
    return names[path[-2]]


def released_weights(leaves: Mapping[tuple[str, ...], np.ndarray]) -> Iterable[np.ndarray]:
    """The arrays over which the paper's published mean |w| was taken.

    Ablation heads are dropped. What TransformerLens's conversion does with layer norms left in place: every matrix
    and bias that writes to the residual stream loses its mean over the residual channels; the unembedding, a second
    copy of the tied matrix, loses its mean over the vocabulary; biases of query, key, value and unembedding are zero
    and counted. The paper's shape gives 14,535,249 weights, the number the released notebook prints.
    """
    for path, x in leaves.items():
        kind = kind_of(path)
        if kind == "ablation heads":
            continue
        writing_bias = path[-2:] in (("out", "bias"), ("down", "bias"))
        writes = writing_bias or kind in (*EMBEDDINGS, "attention output", "MLP down")
        yield x - x.mean(-1, keepdims=True) if writes else x
        if kind in ("query", "key", "value") and (*path[:-1], "bias") not in leaves:
            yield np.zeros(x.shape[1:])
        if kind == "token embedding" and ("unembed", "kernel") not in leaves:
            yield x - x.mean(0, keepdims=True)
            yield np.zeros(x.shape[0])


def _group(name: str, arrays: Iterable[np.ndarray]) -> WeightGroup:
    count, total, squares = 0, 0.0, 0.0
    for x in arrays:
        count, total, squares = count + x.size, total + float(np.abs(x).sum()), squares + float(np.square(x).sum())
    if count == 0:
        return WeightGroup(name=name, count=0, mean_abs=None, rms=None)
    return WeightGroup(name=name, count=count, mean_abs=total / count, rms=(squares / count) ** 0.5)


SUITE = Suite(name="weights", about="Mean absolute weight, in every way of counting that has been published.",
              run=lambda run: (evaluate(run.params), {}))

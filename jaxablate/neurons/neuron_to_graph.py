"""Neuron to Graph (Foote et al. 2023): from the top examples of a layer's units to a graph of patterns for each.

Two differences from the paper: tokens are replaced by random ones, not by padding, which these models do not have; and
substitutes come from the model's own embedding, not from another language model.
"""

import dataclasses

import numpy as np

from jaxablate.errors import ConfigError
from jaxablate.neurons.graphs import Pattern, merge
from jaxablate.neurons.pruning import Ask, Cases, Neighbours, Noise, importance, important, prune, substitutes

FIRES = 0.5
"""A unit fires where its activation is above this share of its maximum."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GraphSettings:
    """How graphs are made.

    Attributes:
      build: how many of a unit's top examples a graph is made from; fewer where the unit does not fire in so many.
      share: of an example's activation that a suffix and a substitute have to exceed.
      above: importance from which a context token is part of the pattern.
      replacements: random tokens over which importance is a mean.
      candidates: nearest tokens that are tried in the place of an important one.
    """

    build: int = 20
    share: float = 0.5
    above: float = 0.4
    replacements: int = 3
    candidates: int = 8

    def __post_init__(self):
        for name in ("build", "replacements", "candidates"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("share", "above"):
            if not 0 < getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name):g} must be between 0 and 1")


@dataclasses.dataclass(frozen=True, eq=False)
class Example:
    """What became of one example.

    Attributes:
      length: tokens of the suffix that is enough; 0 where no suffix is, and the example gave no pattern.
      importance: of each token of the suffix by offset, the pivot first.
      named: offsets that its pattern names.
    """

    length: int
    importance: tuple[float, ...]
    named: tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class UnitGraph:
    """The graph of one unit.

    Attributes:
      unit: its number in the layer.
      patterns: merged; empty where the unit is never active, or no suffix of any example is enough.
      examples: those the graph was made from, strongest first.
    """

    unit: int
    patterns: tuple[Pattern, ...]
    examples: tuple[Example, ...]


def build_graphs(
    ask: Ask, activations: np.ndarray, contexts: np.ndarray, noise: Noise, nearest: Neighbours,
    settings: GraphSettings = GraphSettings(),
) -> list[UnitGraph]:
    """Graphs of all units of a layer, their questions to the model put together in large batches.

    Args:
      ask: a `short_runs.ShortRuns` of the layer.
      activations: [U, m] of the top examples, strongest first.
      contexts: [U, m, C] as `examples.TopExamples` has them.
      noise: draws replacements.
      nearest: gives candidates.
      settings: how.

    Returns:
      One graph for each of the U units.
    """
    used = activations[:, : settings.build]
    unit, example = np.nonzero((used > 0) & (used > FIRES * used[:, :1]))
    cases = prune(ask, Cases(unit, contexts[unit, example], used[unit, example]), settings.share)
    explained = cases.lengths > 0
    known = cases[explained]
    weights = importance(ask, known, noise, settings.replacements)
    keep = important(weights, settings.above)
    found = substitutes(ask, known, keep, nearest, settings.share * known.activations)
    strengths = known.activations / activations[known.units, 0]
    patterns = iter([_pattern(*x) for x in zip(known.contexts, keep, weights, found, strengths, strict=True)])
    examples = iter([_example(*x) for x in zip(known.lengths, weights, keep, strict=True)])
    made: list[tuple[list[Pattern], list[Example]]] = [([], []) for _ in activations]
    for u, has_suffix in zip(unit, explained, strict=True):
        made[u][1].append(next(examples) if has_suffix else Example(0, (), ()))
        if has_suffix:
            made[u][0].append(next(patterns))
    return [UnitGraph(u, merge(parts), tuple(seen)) for u, (parts, seen) in enumerate(made)]


def _example(length: int, weights_C: np.ndarray, keep_C: np.ndarray) -> Example:
    return Example(int(length), tuple(weights_C[:length].tolist()), tuple(np.flatnonzero(keep_C).tolist()))


def _pattern(
    context_C: np.ndarray, keep_C: np.ndarray, weights_C: np.ndarray, found: dict[int, list[int]], strength: float
) -> Pattern:
    back = context_C[::-1]
    offsets = range(int(np.flatnonzero(keep_C)[-1]) + 1)
    return Pattern(
        tokens=tuple(frozenset([int(back[i]), *found.get(i, ())]) if keep_C[i] else None for i in offsets),
        importance=tuple(float(weights_C[i]) if keep_C[i] else None for i in offsets), strength=float(strength))

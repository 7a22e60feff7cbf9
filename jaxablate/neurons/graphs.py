"""Neuron to Graph (Foote et al. 2023): from the top examples of a layer's units to a graph of patterns for each.

Of each example: the shortest suffix of its context that is enough (`prune`), the tokens in it that matter
(`importance`), what could stand in their places (`substitutes`). That is a pattern; patterns of a unit are merged
without changing what they match (`merge`) and drawn as a trie (`trie`). All examples of a layer are worked on at once.
E examples, C tokens of context. An offset counts back from the pivot, the token at which the unit is strong: offset 0
is the pivot, 1 the token before it.

Two differences from the paper: tokens are replaced by random ones, not by padding, which these models do not have; and
substitutes come from the model's own embedding, not from another language model. A suffix is run as a sequence of its
own from position 0, with nothing before it: models of this package are trained on windows that start anywhere, so any
token may be first.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from jaxtyping import Bool, Float, Integer

from jaxablate.errors import ConfigError, DataError
from jaxablate.neurons.examples import NOTHING

Ask = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(sequences [Q, T] filled up with `NOTHING`, units [Q]) -> activations [Q] at the last tokens; `examples.ShortRuns` is
one."""
FIRES = 0.5
"""A unit fires where its activation is above this share of its maximum."""
SHORT, STEP = 8, 4
"""Suffixes up to so many tokens are all tried; of longer ones every so many-th first."""
Tokens = frozenset[int] | None
"""Which tokens may stand at one place; None: any."""
Seed = int | tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class GraphSettings:
    """How graphs are made."""

    build: int = 20
    """How many of a unit's top examples a graph is made from; fewer where the unit does not fire in so many."""
    share: float = 0.5
    """Share of an example's activation that a suffix and a substitute have to exceed."""
    above: float = 0.4
    """Importance from which a context token is part of the pattern."""
    replacements: int = 3
    """Random tokens over which importance is a mean."""
    candidates: int = 8
    """Nearest tokens that are tried in the place of an important one."""

    def __post_init__(self):
        for name in ("build", "replacements", "candidates"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("share", "above"):
            if not 0 < getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name):g} must be between 0 and 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pattern:
    """Tokens at and before a place where a unit fires."""

    tokens: tuple[Tokens, ...]
    """Read back from the pivot, which comes first. The last one is not None: what may be anything is not named."""
    importance: tuple[float | None, ...]
    """Importance of each of them, the largest over the examples; None where any may be."""
    strength: float
    """Largest activation of its examples, as a share of the unit's maximum."""
    examples: int = 1


@dataclasses.dataclass(frozen=True, eq=False)
class Example:
    """What became of one example."""

    length: int
    """Tokens of its suffix; 0 where not even the whole context is enough."""
    importance: tuple[float, ...]
    """By offset."""
    named: tuple[int, ...]
    """Offsets that its pattern names."""


@dataclasses.dataclass(frozen=True, eq=False)
class UnitGraph:
    """The graph of one unit."""

    unit: int
    patterns: tuple[Pattern, ...]
    """Merged; empty where the unit is never active, or no suffix of any example is enough."""
    examples: tuple[Example, ...]
    """Those the graph was made from, strongest first."""


def build_graphs(
    ask: Ask, activations: Float[np.ndarray, "units m"], contexts: Integer[np.ndarray, "units m context"],
    counts: Integer[np.ndarray, " vocab"], nearest: "Neighbours", settings: GraphSettings = GraphSettings(), *,
    seed: Seed = 0,
) -> list[UnitGraph]:
    """Graphs of all units of a layer, their questions to the model put together in large batches.

    Activations and contexts of the top examples are as `examples.TopExamples` has them. Replacements are drawn by how
    often each token occurs in the text.
    """
    used = activations[:, : settings.build]
    unit, example = np.nonzero((used > 0) & (used > FIRES * used[:, :1]))
    cases = prune(ask, Cases(unit, contexts[unit, example], used[unit, example]), settings.share)
    explained = cases.lengths > 0
    pruned = cases[explained]
    weights = importance(ask, pruned, Noise(counts, seed), settings.replacements)
    keep = important(weights, settings.above)
    others = substitutes(ask, pruned, keep, nearest, settings.share * pruned.activations)
    strengths = pruned.activations / activations[pruned.units, 0]
    patterns: list[list[Pattern]] = [[] for _ in activations]
    examples: list[list[Example]] = [[] for _ in activations]
    for u, i in zip(unit, np.where(explained, np.cumsum(explained) - 1, -1), strict=True):
        if i < 0:
            examples[u].append(Example(0, (), ()))
            continue
        back, named = pruned.contexts[i][::-1], np.flatnonzero(keep[i]).tolist()
        length = int(pruned.lengths[i])
        examples[u].append(Example(length, tuple(weights[i, :length].tolist()), tuple(named)))
        offsets = range(named[-1] + 1)
        patterns[u].append(Pattern(
            tokens=tuple(frozenset([int(back[o]), *others[i].get(o, ())]) if keep[i, o] else None for o in offsets),
            importance=tuple(float(weights[i, o]) if keep[i, o] else None for o in offsets),
            strength=float(strengths[i])))
    return [UnitGraph(u, merge(p), tuple(e)) for u, (p, e) in enumerate(zip(patterns, examples, strict=True))]


@dataclasses.dataclass(frozen=True, eq=False)
class Cases:
    """Examples of a layer's units."""

    units: np.ndarray
    contexts: np.ndarray
    """[E, C] tokens up to the pivot; `NOTHING` before the first."""
    activations: np.ndarray
    """[E] activation of the unit at the pivot, above 0."""
    lengths: np.ndarray = dataclasses.field(default_factory=lambda: np.empty(0, np.int64))
    """[E] tokens of the shortest suffix that is enough; 0 where none is. Empty before `prune`."""
    suffix_activations: np.ndarray = dataclasses.field(default_factory=lambda: np.empty(0, np.float32))
    """[E] activation at the end of that suffix."""

    def __getitem__(self, chosen: np.ndarray) -> "Cases":
        return Cases(**{name: x[chosen] if len(x) else x for name, x in vars(self).items()})

    def sequences(self, lengths: np.ndarray | None = None) -> np.ndarray:
        """[E, C] suffixes of these lengths (by default the shortest that are enough) from the left, then `NOTHING`."""
        lengths = self.lengths if lengths is None else lengths
        size = self.contexts.shape[1]
        at = size - lengths[:, None] + np.arange(size)
        return np.where(at < size, np.take_along_axis(self.contexts, np.minimum(at, size - 1), axis=1), NOTHING)


def prune(ask: Ask, cases: Cases, share: float = 0.5) -> Cases:
    """The shortest suffix of each context that ends at the pivot and keeps more than a share of the activation.

    All lengths up to `SHORT` are tried. Where none is enough, every `STEP`-th longer one and the whole context are, and
    then the lengths just below the first of these that is enough. So of a long suffix a shorter one may be missed where
    the activation does not grow with the context. `Cases.lengths` and `Cases.suffix_activations` are 0 where not even
    the whole context is enough.
    """
    available = (cases.contexts != NOTHING).sum(1)
    lengths, activations = np.zeros(len(available), np.int64), np.zeros(len(available), np.float32)

    def attempt(tried: np.ndarray) -> None:
        """Lengths [E, n] are tried where they are above 0; the shortest that is enough is recorded."""
        case, column = np.nonzero(tried > 0)
        length = tried[case, column]
        values = ask(cases[case].sequences(length), cases.units[case])
        enough = np.flatnonzero(values > share * cases.activations[case])
        enough = enough[np.argsort(-length[enough], kind="stable")]  # the shortest is written last
        lengths[case[enough]], activations[case[enough]] = length[enough], values[enough]

    short = np.arange(1, SHORT + 1)
    attempt(np.where(short <= available[:, None], short, 0))
    coarse = np.minimum(np.arange(SHORT + STEP, cases.contexts.shape[1] + STEP, STEP), available[:, None])
    attempt(np.where((lengths == 0)[:, None] & (coarse > SHORT), coarse, 0))
    fine = lengths[:, None] - np.arange(STEP - 1, 0, -1)
    attempt(np.where((lengths > SHORT)[:, None] & (fine > SHORT), fine, 0))
    return dataclasses.replace(cases, lengths=lengths, suffix_activations=activations)


def importance(ask: Ask, cases: Cases, noise: "Noise", replacements: int = 3) -> Float[np.ndarray, "examples context"]:
    """1 - activation with a token replaced / activation, for every token of the suffixes.

    Foote et al. replace by the padding token, which these models do not have; here it is the mean over a few tokens
    drawn at random by their frequency in the text. By offset; NaN beyond the suffix, above 1 where the activation turns
    negative. All cases have a suffix.
    """
    case, offset = np.nonzero(np.arange(cases.contexts.shape[1]) < cases.lengths[:, None])
    chosen = cases[case]
    sequences, column = chosen.sequences(), chosen.lengths - 1 - offset
    rows = np.arange(len(case))
    original, values = sequences[rows, column], []
    for _ in range(replacements):
        sequences[rows, column] = noise.other_than(original)
        values.append(ask(sequences, chosen.units))
    result = np.full(cases.contexts.shape, np.nan, np.float32)
    result[case, offset] = 1 - np.mean(values, axis=0) / chosen.suffix_activations
    return result


def important(weights: Float[np.ndarray, "examples context"], above: float) -> Bool[np.ndarray, "examples context"]:
    """The offsets a pattern names: the pivot, and tokens whose importance is above a threshold."""
    return (np.arange(weights.shape[1]) == 0) | (np.nan_to_num(weights, nan=-np.inf) > above)


def substitutes(
    ask: Ask, cases: Cases, keep: Bool[np.ndarray, "examples context"], nearest: Callable[[np.ndarray], np.ndarray],
    bars: Float[np.ndarray, " examples"],
) -> list[dict[int, list[int]]]:
    """For each case by offset the tokens that can stand in the place of the important one that is there.

    They do where the activation exceeds the case's bar, all other tokens being as they are. All cases have a suffix;
    ``nearest`` gives candidates [Q, n] for tokens [Q].
    """
    case, offset = np.nonzero(keep)
    chosen = cases[case]
    sequences, column = chosen.sequences(), chosen.lengths - 1 - offset
    tokens = nearest(sequences[np.arange(len(case)), column])
    question = np.repeat(np.arange(len(case)), tokens.shape[1])
    trial = sequences[question]
    trial[np.arange(len(trial)), column[question]] = tokens.reshape(-1)
    holds = (ask(trial, chosen.units[question]) > bars[case][question]).reshape(tokens.shape)
    result: list[dict[int, list[int]]] = [{} for _ in range(len(cases.units))]
    for i, (e, at) in enumerate(zip(case, offset, strict=True)):
        result[e][int(at)] = tokens[i, holds[i]].tolist()
    return result


class Noise:
    """Draws tokens by how often each occurs in a text, the same ones for the same seed.

    Raises:
      DataError: the text has fewer than two different tokens, so that nothing can be replaced by something else.
    """

    def __init__(self, counts: np.ndarray, seed: Seed = 0):
        if np.count_nonzero(counts) < 2:
            raise DataError(f"the text has {np.count_nonzero(counts)} different tokens; at least 2 are needed to "
                            "replace one by another")
        self._cumulative = np.cumsum(counts) / counts.sum()
        self._rng = np.random.default_rng(seed)

    def other_than(self, tokens: Integer[np.ndarray, " n"]) -> Integer[np.ndarray, " n"]:
        """A token for each of these, different from it."""
        result = self._drawn(tokens.size)
        while (same := np.flatnonzero(result == tokens)).size:
            result[same] = self._drawn(same.size)
        return result

    def _drawn(self, count: int) -> np.ndarray:
        return np.searchsorted(self._cumulative, self._rng.random(count), side="right").astype(np.int32)


class Neighbours:
    """The n tokens whose embeddings [V, D] point in the most similar directions.

    A token that does not occur has an embedding that was never trained and is left out.
    """

    def __init__(self, embedding: np.ndarray, counts: np.ndarray, n: int = 8):
        x = np.asarray(embedding, np.float32)
        self._directions = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
        self._unused = np.flatnonzero(counts[: len(x)] == 0)
        self._n = max(1, min(n, len(x) - len(self._unused) - 1))
        self._nearest: dict[int, np.ndarray] = {}

    def __call__(self, tokens: Integer[np.ndarray, " q"]) -> Integer[np.ndarray, "q n"]:
        """Candidates, nearest first; a token is none of its own neighbours."""
        unique, inverse = np.unique(tokens, return_inverse=True)
        new = np.array([t for t in unique.tolist() if t not in self._nearest], np.int64)
        for first in range(0, len(new), 256):
            self._find(new[first : first + 256])
        rows = [self._nearest[t] for t in unique.tolist()]
        return np.stack(rows)[inverse] if rows else np.empty((0, self._n), np.int32)

    def _find(self, tokens: np.ndarray) -> None:
        cosine = self._directions[tokens] @ self._directions.T
        cosine[:, self._unused] = -np.inf
        cosine[np.arange(len(tokens)), tokens] = -np.inf
        nearest = np.argpartition(-cosine, self._n - 1, axis=1)[:, : self._n]
        order = np.argsort(-np.take_along_axis(cosine, nearest, axis=1), axis=1, kind="stable")
        for token, row in zip(tokens.tolist(), np.take_along_axis(nearest, order, axis=1), strict=True):
            self._nearest[token] = row.astype(np.int32)


def merge(patterns: Iterable[Pattern]) -> tuple[Pattern, ...]:
    """Fewer patterns that match exactly the same places.

    Two patterns that differ at one place become one in which either may stand there; one that matches nothing another
    does not match is dropped. The strongest come first.
    """
    remaining = sorted(patterns, key=lambda p: (-p.strength, [() if t is None else tuple(sorted(t)) for t in p.tokens]))
    changed = True
    while changed:
        changed = False
        for i in range(len(remaining)):
            for j in range(len(remaining) - 1, i, -1):
                if (joined := _joined(remaining[i], remaining[j])) is not None:
                    remaining[i], changed = joined, True
                    del remaining[j]
    return tuple(remaining)


def _joined(a: Pattern, b: Pattern) -> Pattern | None:
    """One pattern that matches what either does; None where there is none."""
    if _covers(a.tokens, b.tokens):
        tokens = a.tokens
    elif _covers(b.tokens, a.tokens):
        tokens = b.tokens
    else:
        different = [i for i, (x, y) in enumerate(zip(a.tokens, b.tokens, strict=False)) if x != y]
        if len(a.tokens) != len(b.tokens) or len(different) != 1:
            return None
        x, y = a.tokens[different[0]], b.tokens[different[0]]
        if x is None or y is None:
            return None
        tokens = (*a.tokens[: different[0]], x | y, *a.tokens[different[0] + 1 :])
    pairs = itertools.zip_longest(a.importance, b.importance)
    weights = [None if t is None else _larger(*pair) for t, pair in zip(tokens, pairs, strict=False)]
    return Pattern(tokens=tokens, importance=tuple(weights), strength=max(a.strength, b.strength),
                   examples=a.examples + b.examples)


def _covers(a: Sequence[Tokens], b: Sequence[Tokens]) -> bool:
    """Whether tokens a match wherever b do."""
    return len(a) <= len(b) and all(x is None or (y is not None and x >= y) for x, y in zip(a, b, strict=False))


def _larger(a: float | None, b: float | None) -> float | None:
    return max((x for x in (a, b) if x is not None), default=None)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Node:
    """A node of the trie."""

    parent: int | None
    """Number of the node after it in the text, None for a pivot."""
    offset: int
    """0 for a pivot, 1 for the token before it."""
    tokens: Tokens
    """What may stand here, None for any."""
    importance: float | None
    """The largest of the patterns that pass here; None for any."""
    strength: float | None = None
    """Strength of the pattern that is complete here; None where none is."""
    examples: int = 0
    """Examples of that pattern; 0 where none is complete here."""


def trie(patterns: Sequence[Pattern]) -> tuple[Node, ...]:
    """Patterns as a tree read back from the pivots; patterns that begin alike share their nodes."""
    nodes: list[Node] = []
    places: dict[tuple[int | None, Tokens], int] = {}
    for pattern in patterns:
        at = None
        for offset, (tokens, weight) in enumerate(zip(pattern.tokens, pattern.importance, strict=True)):
            parent, at = at, places.setdefault((at, tokens), len(nodes))
            if at == len(nodes):
                nodes.append(Node(parent=parent, offset=offset, tokens=tokens, importance=weight))
            nodes[at] = dataclasses.replace(nodes[at], importance=_larger(nodes[at].importance, weight))
        if at is not None:
            nodes[at] = dataclasses.replace(nodes[at], strength=pattern.strength, examples=pattern.examples)
    return tuple(nodes)

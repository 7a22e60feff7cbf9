"""What of an example's context a unit needs: its shortest suffix, the tokens that matter, what could stand there.

The first three steps of Neuron to Graph (Foote et al. 2023), for all examples of a layer at once.
E examples, C tokens of context. An offset counts back from the pivot, the token at which the unit is strong: offset 0
is the pivot, 1 the token before it.

A suffix is run as a sequence of its own from position 0, with nothing before it: models of this package are trained on
windows that start anywhere, so any token may be first.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from jaxablate.errors import DataError
from jaxablate.neurons.examples import NOTHING

Ask = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(sequences [Q, T] filled up with `NOTHING`, units [Q]) -> activations [Q] at the last tokens; `ShortRuns` is one."""
SHORT, STEP = 8, 4
"""Suffixes up to so many tokens are all tried; of longer ones every so many-th first."""


@dataclasses.dataclass(frozen=True, eq=False)
class Cases:
    """Examples of a layer's units.

    Attributes:
      units: [E].
      contexts: [E, C] tokens up to the pivot; `NOTHING` before the first.
      activations: [E] of the unit at the pivot, above 0.
      lengths: [E] tokens of the suffix that is kept; 0 where no suffix is enough. None before `prune`.
      kept: [E] activation at the end of that suffix.
    """

    units: np.ndarray
    contexts: np.ndarray
    activations: np.ndarray
    lengths: np.ndarray | None = None
    kept: np.ndarray | None = None

    def __getitem__(self, chosen: np.ndarray) -> "Cases":
        """Some of the cases."""
        parts = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return Cases(**{name: None if x is None else x[chosen] for name, x in parts.items()})

    def sequences(self, lengths: np.ndarray | None = None) -> np.ndarray:
        """[E, C] the suffixes of these lengths (those that are kept by default), from the left, then `NOTHING`."""
        lengths = self.lengths if lengths is None else lengths
        size = self.contexts.shape[1]
        at = size - lengths[:, None] + np.arange(size)
        return np.where(at < size, np.take_along_axis(self.contexts, np.minimum(at, size - 1), axis=1), NOTHING)


def prune(ask: Ask, cases: Cases, share: float = 0.5) -> Cases:
    """The shortest suffix of each context that ends at the pivot and keeps more than a share of the activation.

    All lengths up to `SHORT` are tried. Where none is enough, every `STEP`-th longer one and the whole context are, and
    then the lengths just below the first of these that is enough. So of a long suffix a shorter one may be missed where
    the activation does not grow with the context.

    Args:
      ask: the model.
      cases: examples.
      share: of the example's own activation.

    Returns:
      The cases with `lengths` and `kept`; 0 for both where not even the whole context is enough.
    """
    available = (cases.contexts != NOTHING).sum(1)
    lengths, kept = np.zeros(len(available), np.int64), np.zeros(len(available), np.float32)

    def attempt(tried: np.ndarray) -> None:
        """Lengths [E, n] are tried where they are above 0; the shortest that is enough is recorded."""
        case, column = np.nonzero(tried > 0)
        length = tried[case, column]
        values = ask(cases[case].sequences(length), cases.units[case])
        enough = np.flatnonzero(values > share * cases.activations[case])
        enough = enough[np.argsort(-length[enough], kind="stable")]  # the shortest is written last
        lengths[case[enough]], kept[case[enough]] = length[enough], values[enough]

    short = np.arange(1, SHORT + 1)
    attempt(np.where(short <= available[:, None], short, 0))
    coarse = np.minimum(np.arange(SHORT + STEP, cases.contexts.shape[1] + STEP, STEP), available[:, None])
    attempt(np.where((lengths == 0)[:, None] & (coarse > SHORT), coarse, 0))
    fine = lengths[:, None] - np.arange(STEP - 1, 0, -1)
    attempt(np.where((lengths > SHORT)[:, None] & (fine > SHORT), fine, 0))
    return dataclasses.replace(cases, lengths=lengths, kept=kept)


def importance(ask: Ask, cases: Cases, noise: "Noise", replacements: int = 3) -> np.ndarray:
    """1 - activation with a token replaced / activation, for every token of the suffixes.

    Foote et al. replace by the padding token, which these models do not have; here it is the mean over a few tokens
    drawn at random by their frequency in the text.

    Args:
      ask: the model.
      cases: pruned examples, all with a suffix.
      noise: draws tokens.
      replacements: how many.

    Returns:
      [E, C] by offset; NaN beyond the suffix. Above 1 where the activation turns negative.
    """
    case, offset = np.nonzero(np.arange(cases.contexts.shape[1]) < cases.lengths[:, None])
    chosen = cases[case]
    sequences, column = chosen.sequences(), chosen.lengths - 1 - offset
    rows = np.arange(len(case))
    original, values = sequences[rows, column], []
    for _ in range(replacements):
        sequences[rows, column] = noise.other_than(original)
        values.append(ask(sequences, chosen.units))
    out = np.full(cases.contexts.shape, np.nan, np.float32)
    out[case, offset] = 1 - np.mean(values, axis=0) / chosen.kept
    return out


def important(importance_EC: np.ndarray, above: float) -> np.ndarray:
    """bool [E, C], the offsets a pattern names: the pivot, and tokens whose importance is above a threshold."""
    keep = np.nan_to_num(importance_EC, nan=-np.inf) > above
    keep[:, 0] = True
    return keep


def substitutes(
    ask: Ask, cases: Cases, keep_EC: np.ndarray, nearest: Callable[[np.ndarray], np.ndarray], bars: np.ndarray
) -> list[dict[int, list[int]]]:
    """Tokens that can stand in the place of an important one, the others being as they are.

    Args:
      ask, cases: as in `importance`.
      keep_EC: from `important`.
      nearest: tokens [Q] -> candidates [Q, n].
      bars: [E] activation that has to be exceeded.

    Returns:
      For each case: offset -> the tokens that do, besides the one that is there.
    """
    case, offset = np.nonzero(keep_EC)
    chosen = cases[case]
    sequences, column = chosen.sequences(), chosen.lengths - 1 - offset
    tokens = nearest(sequences[np.arange(len(case)), column])
    question = np.repeat(np.arange(len(case)), tokens.shape[1])
    trial = sequences[question]
    trial[np.arange(len(trial)), column[question]] = tokens.reshape(-1)
    holds = (ask(trial, chosen.units[question]) > bars[case][question]).reshape(tokens.shape)
    out: list[dict[int, list[int]]] = [{} for _ in range(len(cases.units))]
    for i, (e, at) in enumerate(zip(case, offset, strict=True)):
        out[e][int(at)] = tokens[i, holds[i]].tolist()
    return out


class Noise:
    """Draws tokens by their frequency in a text, the same ones for the same seed.

    Args:
      counts: [V] how often each token occurs.
      seed: of the draws.

    Raises:
      DataError: the text has fewer than two different tokens, so that nothing can be replaced by something else.
    """

    def __init__(self, counts: np.ndarray, seed: int | tuple[int, ...] = 0):
        if np.count_nonzero(counts) < 2:
            raise DataError(f"the text has {np.count_nonzero(counts)} different tokens; at least 2 are needed to "
                            "replace one by another")
        self._cumulative = np.cumsum(counts) / counts.sum()
        self._rng = np.random.default_rng(seed)

    def other_than(self, tokens: np.ndarray) -> np.ndarray:
        """A token for each of these, different from it."""
        out = self._drawn(tokens.size)
        while (same := np.flatnonzero(out == tokens)).size:
            out[same] = self._drawn(same.size)
        return out

    def _drawn(self, count: int) -> np.ndarray:
        return np.searchsorted(self._cumulative, self._rng.random(count), side="right").astype(np.int32)


class Neighbours:
    """The tokens whose embeddings point in the most similar directions.

    Args:
      embedding: [V, D] of the model.
      counts: [V] how often tokens occur; one that does not has an embedding that was never trained and is left out.
      n: candidates of each token.
    """

    def __init__(self, embedding: np.ndarray, counts: np.ndarray, n: int = 8):
        x = np.asarray(embedding, np.float32)
        self._directions = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
        self._unused = np.flatnonzero(counts[: len(x)] == 0)
        self._n = max(1, min(n, len(x) - len(self._unused) - 1))
        self._known: dict[int, np.ndarray] = {}

    def __call__(self, tokens: np.ndarray) -> np.ndarray:
        """[Q] -> [Q, n], nearest first; a token is none of its own neighbours."""
        unique, inverse = np.unique(tokens, return_inverse=True)
        new = np.array([t for t in unique.tolist() if t not in self._known], np.int64)
        for first in range(0, len(new), 256):
            self._find(new[first : first + 256])
        found = [self._known[t] for t in unique.tolist()]
        return np.stack(found)[inverse] if found else np.empty((0, self._n), np.int32)

    def _find(self, tokens: np.ndarray) -> None:
        cosine = self._directions[tokens] @ self._directions.T
        cosine[:, self._unused] = -np.inf
        cosine[np.arange(len(tokens)), tokens] = -np.inf
        nearest = np.argpartition(-cosine, self._n - 1, axis=1)[:, : self._n]
        order = np.argsort(-np.take_along_axis(cosine, nearest, axis=1), axis=1, kind="stable")
        for token, row in zip(tokens.tolist(), np.take_along_axis(nearest, order, axis=1), strict=True):
            self._known[token] = row.astype(np.int32)

"""Which unit tells which recorded fact of a text: information, and how well the best unit tells it on other stories.

Facts are labels of tokens, such as those of the embedded corpus. Each token adds the row of units that fire on it to
one row of a table for each of its labels, in the fold of its story; so one pass over the data is enough to choose units
on some stories and to try them on others.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Integer

from jaxablate.errors import DataError, TooLittleDataError
from jaxablate.neurons.measures import token_selectivity

FOLDS = 10
"""Parts of the split, of whole stories; units are chosen on all but one and tried on that one."""
ROLLS = 3
"""Times that labels are moved along the split to see what a label of another story tells."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Facts:
    """Labels of every token of a split, in the order of the batches."""

    tokens: np.ndarray
    """int [n] ids of the split's tokens; there may be more."""
    story: np.ndarray
    """int [n] number of the story that a token is of, never falling."""
    labels: Mapping[str, np.ndarray]
    """By label int [n], its value at each token."""
    names: Mapping[str, tuple[str, ...]]
    """By label what each value means."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class FactMeasures:
    """What one kind of units tells of one label."""

    label: str
    kind: str
    entropy: float
    """Bits of the label, the most that a unit could tell."""
    information: tuple[np.ndarray, ...]
    """For each layer [units], bits that a unit's firing tells of the label, minus what it tells of labels moved along
    the split (`ROLLS` distances), which is the bias of the estimate and what lies in the rhythm of texts; may be
    negative."""
    directions: tuple[np.ndarray, ...]
    """The same of random directions that fire as often as units of the kind."""
    best: tuple[int, int]
    """(layer, unit) of the greatest information."""
    best_means: tuple[str, str]
    """The two likeliest values of the label: where this unit fires, and where it does not."""
    accuracy: np.ndarray
    """[folds] share of tokens of a fold whose label is told by the firing of one unit. The unit and its two answers are
    those that are best on the other folds."""
    directions_accuracy: np.ndarray
    """The same with the best random direction."""
    majority: np.ndarray
    """The same with the likeliest label, whatever the unit."""


@dataclasses.dataclass(frozen=True, eq=False)
class FactRows:
    """Rows of a table in which the labels of tokens are counted, and how many tokens each row has."""

    facts: Facts
    rows: np.ndarray
    """int32 [n, labels * (1 + ROLLS)]"""
    counts: np.ndarray

    def tables(self, label: str, table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A table's rows of one label: ([FOLDS, values, ...] by fold of the story, [ROLLS, values, ...] moved)."""
        widths = {name: len(values) for name, values in self.facts.names.items()}
        start = sum(list(widths.values())[: list(widths).index(label)])
        parts = table.reshape(FOLDS + ROLLS, sum(widths.values()), *table.shape[1:])
        of_label = parts[:, start : start + widths[label]]
        return of_label[:FOLDS], of_label[FOLDS:]


def fact_rows(facts: Facts, tokens: Integer[np.ndarray, " n"]) -> FactRows:
    """Rows of a split's tokens, in order.

    Raises:
      DataError: facts are of fewer or of other tokens, or there are fewer stories than folds.
    """
    n = len(tokens)
    if len(facts.tokens) < n:
        raise DataError(f"facts are of {len(facts.tokens):,} tokens, the split has {n:,}; give the split's own")
    differs = np.flatnonzero(tokens != facts.tokens[:n])
    if differs.size:
        raise DataError(f"facts are not of this split: its token {differs[0]:,} is {tokens[differs[0]]}, in the facts "
                        f"{facts.tokens[differs[0]]}; give facts in the order of the batches")
    story = facts.story[:n]
    fold = (story - story[0]) * FOLDS // (story[-1] - story[0] + 1)
    if len(np.unique(fold)) < FOLDS:
        raise TooLittleDataError(f"{story[-1] - story[0] + 1} stories are too few for facts; at least {FOLDS} are "
                                 "needed")
    width = sum(len(names) for names in facts.names.values())
    rows, start = [], 0
    for name, names in facts.names.items():
        values = start + facts.labels[name][:n].astype(np.int32)
        shifts = [(i + 1) * n // (ROLLS + 1) for i in range(ROLLS)]
        rows += [fold * width + values, *((FOLDS + i) * width + np.roll(values, s) for i, s in enumerate(shifts))]
        start += len(names)
    stacked = np.stack(rows, axis=-1).astype(np.int32)
    return FactRows(facts, stacked, np.bincount(stacked.ravel(), minlength=(FOLDS + ROLLS) * width))


def fact_measures(rows: FactRows, kind: str, units: Sequence[np.ndarray], directions: Sequence[np.ndarray]
                  ) -> tuple[FactMeasures, ...]:
    """Measures of all labels, from the tables [rows, units] of firings of each layer's units and random directions."""
    result = []
    ends, direction_ends = (np.cumsum([t.shape[1] for t in tables])[:-1] for tables in (units, directions))
    firings, direction_firings = np.concatenate(units, axis=1), np.concatenate(directions, axis=1)
    for label, names in rows.facts.names.items():
        counts, moved_counts = rows.tables(label, rows.counts)
        table, moved = rows.tables(label, firings)
        random, random_moved = rows.tables(label, direction_firings)
        information = corrected_information(table, counts, moved, moved_counts)
        best = int(np.nanargmax(np.nan_to_num(information, nan=-1)))
        layer = int(np.searchsorted(ends, best, side="right"))
        fires = table.sum(0)[:, best]
        accuracy, majority = held_out_accuracy(table, counts)
        result.append(FactMeasures(
            label=label, kind=kind, entropy=entropy(counts.sum(0)), information=tuple(np.split(information, ends)),
            directions=tuple(np.split(corrected_information(random, counts, random_moved, moved_counts),
                                      direction_ends)),
            best=(layer, best - int(sum(t.shape[1] for t in units[:layer]))),
            best_means=(names[fires.argmax()], names[(counts.sum(0) - fires).argmax()]), accuracy=accuracy,
            majority=majority, directions_accuracy=held_out_accuracy(random, counts)[0]))
    return tuple(result)


def corrected_information(
    table: Integer[np.ndarray, "folds values units"], counts: Integer[np.ndarray, "folds values"],
    moved: Integer[np.ndarray, "rolls values units"], moved_counts: Integer[np.ndarray, "rolls values"],
) -> Float[np.ndarray, " units"]:
    """Bits that firing tells of a label, minus the mean of what it tells of moved ones; NaN if it never fires."""
    def bits(t: np.ndarray, c: np.ndarray) -> np.ndarray:
        return token_selectivity(t, c, np.zeros(len(c), bool))[0].information

    chance = np.mean([bits(t, c) for t, c in zip(moved, moved_counts, strict=True)], axis=0)
    return bits(table.sum(0), counts.sum(0)) - chance


def held_out_accuracy(table: Integer[np.ndarray, "folds values units"], counts: Integer[np.ndarray, "folds values"]
                      ) -> tuple[Float[np.ndarray, " folds"], Float[np.ndarray, " folds"]]:
    """How well the best unit, chosen on the other folds, tells a label in each fold, and how well the majority's value.

    >>> table = np.array([[[4, 1], [0, 2]], [[4, 4], [0, 4]]])  # unit 0 fires exactly on value 0
    >>> [x.tolist() for x in held_out_accuracy(table, np.array([[4, 4], [4, 4]]))]
    [[1.0, 1.0], [0.5, 0.5]]
    """
    accuracy, majority = [], []
    for fold in range(len(table)):
        train, given = table.sum(0) - table[fold], counts.sum(0) - counts[fold]
        silent = given[:, None] - train
        unit = int((train.max(0) + silent.max(0)).argmax())
        yes, no = train[:, unit].argmax(), silent[:, unit].argmax()
        right = table[fold, yes, unit] + counts[fold, no] - table[fold, no, unit]
        accuracy.append(right / counts[fold].sum())
        majority.append(counts[fold, given.argmax()] / counts[fold].sum())
    return np.array(accuracy, float), np.array(majority, float)


def entropy(counts: Integer[np.ndarray, " values"]) -> float:
    """Bits of a distribution given by counts.

    >>> entropy(np.array([2, 2, 0]))
    1.0
    """
    share = counts[counts > 0] / counts.sum()
    return float(-np.sum(share * np.log2(share)))

"""Which unit tells which recorded fact of a text: information, and how well the best unit tells it on other stories.

Facts are labels of tokens, such as those of the embedded corpus. Each token adds the row of units that fire on it to
one row of a table for each of its labels, in the fold of its story; so one pass over the data is enough to choose units
on some stories and to try them on others.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from jaxablate.errors import DataError, TooLittleDataError
from jaxablate.neurons.measures import token_selectivity

FOLDS = 10
"""Parts of the split, of whole stories; units are chosen on all but one and tried on that one."""
ROLLS = 3
"""Times that labels are moved along the split to see what a label of another story tells."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Facts:
    """Labels of every token of a split, in the order of the batches.

    Attributes:
      tokens: int [n] token ids, at least as many as the split's inputs; they must be the same.
      story: int [n] number of the story that a token is of, never falling.
      labels: name of a label -> int [n], its value at each token.
      names: name of a label -> what each value means.
    """

    tokens: np.ndarray
    story: np.ndarray
    labels: Mapping[str, np.ndarray]
    names: Mapping[str, tuple[str, ...]]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class FactMeasures:
    """What one kind of units tells of one label.

    Attributes:
      label: its name.
      kind: of the units.
      entropy: bits of the label, the most that a unit could tell.
      information: for each layer [units], bits that a unit's firing tells of the label, minus what it tells of labels
        moved along the split (`ROLLS` distances), which is the bias of the estimate and what lies in the rhythm of
        texts; may be negative.
      directions: the same of random directions that fire as often as units of the kind.
      best: (layer, unit) of the greatest information.
      best_means: the two likeliest values of the label: where this unit fires, and where it does not.
      accuracy: [folds] share of tokens of a fold whose label is told by the firing of one unit. The unit and its two
        answers are those that are best on the other folds.
      directions_accuracy: the same with the best random direction.
      majority: the same with the likeliest label, whatever the unit.
    """

    label: str
    kind: str
    entropy: float
    information: tuple[np.ndarray, ...]
    directions: tuple[np.ndarray, ...]
    best: tuple[int, int]
    best_means: tuple[str, str]
    accuracy: np.ndarray
    directions_accuracy: np.ndarray
    majority: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class FactRows:
    """Where in a table each token's labels are counted.

    Attributes:
      facts: what is counted.
      rows: int32 [n, labels * (1 + ROLLS)] rows from 0 on, of every token.
      counts: [rows of the table] tokens of each.
    """

    facts: Facts
    rows: np.ndarray
    counts: np.ndarray

    @property
    def width(self) -> int:
        """Values of all labels together."""
        return sum(len(names) for names in self.facts.names.values())

    def tables(self, label: str, table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A table's rows of one label: ([FOLDS, values, ...] by fold of the story, [ROLLS, values, ...] moved)."""
        start = 0
        for name, names in self.facts.names.items():
            if name == label:
                break
            start += len(names)
        cut = table.reshape(FOLDS + ROLLS, self.width, *table.shape[1:])[:, start : start + len(names)]
        return cut[:FOLDS], cut[FOLDS:]


def fact_rows(facts: Facts, tokens: int) -> FactRows:
    """Rows of a split's first tokens.

    Args:
      facts: labels of at least so many tokens.
      tokens: n.

    Raises:
      DataError: there are fewer labels than tokens, or fewer stories than folds.
    """
    if len(facts.tokens) < tokens:
        raise DataError(f"facts are of {len(facts.tokens):,} tokens, the split has {tokens:,}; give the split's own")
    story = facts.story[:tokens]
    fold = (story - story[0]) * FOLDS // (story[-1] - story[0] + 1)
    if len(np.unique(fold)) < FOLDS:
        found = story[-1] - story[0] + 1
        raise TooLittleDataError(f"{found} stories are too few for facts; at least {FOLDS} are needed")
    width = sum(len(names) for names in facts.names.values())
    rows, start = [], 0
    for name, names in facts.names.items():
        values = start + facts.labels[name][:tokens].astype(np.int32)
        rows.append(fold * width + values)
        shifts = ((i + 1) * tokens // (ROLLS + 1) for i in range(ROLLS))
        rows += [(FOLDS + i) * width + np.roll(values, shift) for i, shift in enumerate(shifts)]
        start += len(names)
    stacked = np.stack(rows, axis=-1).astype(np.int32)
    return FactRows(facts, stacked, np.bincount(stacked.ravel(), minlength=(FOLDS + ROLLS) * width))


def fact_measures(rows: FactRows, kind: str, units: Sequence[np.ndarray], directions: Sequence[np.ndarray]
                  ) -> tuple[FactMeasures, ...]:
    """Measures of all labels.

    Args:
      rows: what was counted.
      kind: name of the units.
      units: for each layer the table [rows, units] of firings.
      directions: the same of random directions.
    """
    found = []
    sizes = np.cumsum([t.shape[1] for t in units])[:-1], np.cumsum([t.shape[1] for t in directions])[:-1]
    joined, joined_directions = np.concatenate(units, axis=1), np.concatenate(directions, axis=1)
    for label, names in rows.facts.names.items():
        counts, moved_counts = rows.tables(label, rows.counts)
        table, moved = rows.tables(label, joined)
        information = corrected_information(table, counts, moved, moved_counts)
        random_table, random_moved = rows.tables(label, joined_directions)
        random_information = corrected_information(random_table, counts, random_moved, moved_counts)
        by_layer = tuple(np.split(information, sizes[0]))
        best = int(np.nanargmax(np.nan_to_num(information, nan=-1)))
        layer = int(np.searchsorted(sizes[0], best, side="right"))
        means = answers(table.sum(0), counts.sum(0))
        accuracy, majority = held_out_accuracy(table, counts)
        found.append(FactMeasures(
            label=label, kind=kind, entropy=entropy(counts.sum(0)), information=by_layer,
            directions=tuple(np.split(random_information, sizes[1])),
            best=(layer, best - int(sum(len(x) for x in by_layer[:layer]))),
            best_means=(names[means[0][best]], names[means[1][best]]), accuracy=accuracy, majority=majority,
            directions_accuracy=held_out_accuracy(random_table, counts)[0]))
    return tuple(found)


def corrected_information(table: np.ndarray, counts: np.ndarray, moved: np.ndarray, moved_counts: np.ndarray
                          ) -> np.ndarray:
    """Bits [units] that firing tells of a label, minus the mean of what it tells of moved ones; NaN if it never fires.

    Args:
      table: [folds, values, units] firings, of ``counts`` [folds, values] tokens.
      moved: [rolls, values, units], of ``moved_counts`` [rolls, values].
    """
    def bits(t: np.ndarray, c: np.ndarray) -> np.ndarray:
        return token_selectivity(t, c, np.zeros(len(c), bool))[0].information

    chance = np.mean([bits(t, c) for t, c in zip(moved, moved_counts, strict=True)], axis=0)
    return bits(table.sum(0), counts.sum(0)) - chance


def answers(table: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The likeliest value [units] where a unit fires and where it does not.

    Args:
      table: [values, units] firings.
      counts: [values] tokens.
    """
    return table.argmax(0), (counts[:, None] - table).argmax(0)


def held_out_accuracy(table: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How well the best unit tells a label in each fold, chosen on the other folds.

    Args:
      table: [folds, values, units] firings.
      counts: [folds, values] tokens.

    Returns:
      Accuracy of the unit and of the majority's value, both [folds].

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


def entropy(counts: np.ndarray) -> float:
    """Bits of a distribution given by counts."""
    share = counts[counts > 0] / counts.sum()
    return float(-np.sum(share * np.log2(share)))

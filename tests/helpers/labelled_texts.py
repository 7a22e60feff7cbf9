"""Batches of labelled texts as the data makes them, for the tests of the classifier's suites."""

import dataclasses
import functools
import json

import numpy as np

from jaxablate.reports import svg
from jaxablate.reports.panels import panel_from_dict
from jaxablate.runs.run import Split

PAD = 0
_DRAW = {"curves": svg.curves, "bars": svg.bars, "histograms": svg.histograms}


def batches(texts, labels, *, rows=4, length=None, order=None):
    """Texts (lists of ids) in batches of `rows`, each padded to `length` or to its longest, the last one filled up."""
    order = range(len(texts)) if order is None else order
    order = [*order, *[-1] * (-len(order) % rows)]
    out = []
    for index in (order[i : i + rows] for i in range(0, len(order), rows)):
        chosen = [texts[i] if i >= 0 else [] for i in index]
        size = length or max(map(len, chosen))
        tokens = np.array([[*t, *[PAD] * (size - len(t))] for t in chosen], np.int32)
        mask = np.array([[1.0] * len(t) + [0.0] * (size - len(t)) for t in chosen], np.float32)
        out.append({"tokens": tokens, "mask": mask, "index": np.array(index, np.int32),
                    "labels": np.array([labels[i] if i >= 0 else 0 for i in index], np.int32),
                    "weight": np.array([float(i >= 0) for i in index], np.float32)})
    return out


def draw(count, *, vocabulary=20, longest=12, classes=2, seed=0):
    """Random texts of 1 to `longest` words, and labels."""
    rng = np.random.default_rng(seed)
    texts = [rng.integers(1, vocabulary, size=n).tolist() for n in rng.integers(1, longest + 1, size=count)]
    return texts, rng.integers(0, classes, size=count).tolist()


def splits_of(**batches):
    """Splits of a `Run` by name, from the list of each one's batches."""
    return {name: Split(batches=functools.partial(iter, split)) for name, split in batches.items()}


def check_plain(result):
    """A result is plain values: JSON takes it and its panels, exactly, and every panel can be drawn."""
    plain = dataclasses.asdict(result)
    assert json.loads(json.dumps(plain, allow_nan=False)) == json.loads(json.dumps(plain))
    for panel in result.panels():
        assert panel_from_dict(json.loads(json.dumps(dataclasses.asdict(panel), allow_nan=False))) == panel
        if panel.kind in _DRAW:
            assert _DRAW[panel.kind](panel).startswith("<svg")
        else:
            assert all(len(row) == len(panel.columns) for row in panel.rows)
    names = [figure.name for figure in result.headline()]
    assert len(set(names)) == len(names)

"""Explanations of a few texts of the test split, for the report (docs/papers.md, Explanations)."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from jaxablate.classifier.explain import Explanation, explain, shown_words
from jaxablate.data.tokenizer import Tokenizer
from jaxablate.reports.panels import Panel
from jaxablate.reports.results import Figure
from jaxablate.runs.run import Run
from jaxablate.suites.classification import class_names
from jaxablate.suites.suite import Suite
from jaxablate.types import Batch, Params

TEXTS = 3
SHORTEST, LONGEST = 6, 20
"""Tokens of a text that is shown: long enough for tokens to share something, short enough for a picture."""
SPLIT = "test"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExplanationsResult:
    """Explanations in the order of the split; figures there are none, since three texts are no sample."""

    explanations: tuple[Explanation, ...]
    texts: tuple[str, ...]
    labels: tuple[str, ...]
    """The right class of each."""

    def headline(self) -> tuple[Figure, ...]:
        """None: three texts say nothing about others."""
        return ()

    def panels(self) -> tuple[Panel, ...]:
        """Allocation and interactions of each text, under the text and what the model makes of it."""
        shown = zip(self.explanations, self.texts, self.labels, strict=True)
        return tuple(panel for i, (x, text, label) in enumerate(shown, start=1) for panel in _panels(i, x, text, label))


def _panels(number: int, explanation: Explanation, text: str, label: str) -> tuple[Panel, Panel]:
    allocation, interactions, _ = explanation.panels()
    verdict = f"“{text.strip()}” Predicted: {explanation.verdict}; labelled {label}."
    return (dataclasses.replace(allocation, title=f"Text {number}: neuron allocation",
                                caption=f"{verdict} {allocation.caption}"),
            dataclasses.replace(interactions, title=f"Text {number}: token interactions"))


def evaluate(model: Any, params: Params, batches: Iterable[Batch], tokenizer: Tokenizer, texts: Sequence[str], *,
             layer: int = -1) -> ExplanationsResult:
    """Explains the first `TEXTS` texts of `SHORTEST` to `LONGEST` tokens, in the order of the split.

    Args:
      model: a `SafrClassifier`.
      params: its parameters.
      batches: the split, with ``index``: each row's place in ``texts``.
      tokenizer: the run's.
      texts: of the split, as they were read.
      layer: whose neurons and attention.
    """
    classes = class_names(model.config)
    chosen = choose(batches)
    found = tuple(explain(model, params, tokens, shown_words(tokenizer, texts[place], tokens), layer=layer,
                          classes=classes, pad_id=tokenizer.pad_id) for place, tokens, _ in chosen)
    names = classes or [f"class {i}" for i in range(model.config.n_classes)]
    return ExplanationsResult(explanations=found, texts=tuple(texts[i] for i, _, _ in chosen),
                              labels=tuple(names[label] for _, _, label in chosen))


def choose(batches: Iterable[Batch]) -> list[tuple[int, list[int], int]]:
    """Place, tokens and label of the texts to show."""
    fitting = []
    for batch in batches:
        lengths = np.asarray(batch["mask"]).sum(axis=-1).astype(int)
        for row in np.flatnonzero((lengths >= SHORTEST) & (lengths <= LONGEST)):
            place, label = (int(np.asarray(batch[name])[row]) for name in ("index", "labels"))
            fitting.append((place, np.asarray(batch["tokens"])[row, : lengths[row]].tolist(), label))
    return sorted(fitting)[:TEXTS]


def _run(run: Run) -> tuple[ExplanationsResult, dict[str, Any]]:
    layer = run.config.objective.layers[-1]
    result = evaluate(run.model, run.params, run.splits[SPLIT].batches(), run.tokenizer, run.splits[SPLIT].texts,
                      layer=layer)
    return result, {"split": SPLIT, "layer": layer, "shortest": SHORTEST, "longest": LONGEST}


SUITE = Suite(name="explanations", run=_run, task="classification",
              about="Which neurons the tokens of a text occupy, and which tokens share them: the first "
                    f"{TEXTS} texts of {SHORTEST} to {LONGEST} tokens of the {SPLIT} split. Words in ‹ › are "
                    "unknown to the model.")

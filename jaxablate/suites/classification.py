"""Accuracy of a text classifier, class by class, and whether its probabilities mean what they say."""

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Shaped

from jaxablate import stats
from jaxablate.classifier.measures import by_text
from jaxablate.reports.panels import Curves, Grid, Panel, Series
from jaxablate.reports.results import Figure
from jaxablate.runs.run import Run
from jaxablate.stats import Estimate
from jaxablate.suites.suite import Suite
from jaxablate.types import Batch, Params

BINS = 15
"""Bins of equal width over (0, 1] of the probability of the predicted class (Guo et al. 2017)."""
POLARITY = ("negative", "positive")
"""Classes of both sentiment sets, in the order of their labels."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassScores:
    """One class against all others; a ratio without a denominator is 0."""

    name: str
    texts: int
    precision: float
    recall: float
    f1: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class CalibrationBin:
    """Texts whose predicted class has a probability in (low, high]."""

    low: float
    high: float
    texts: int
    confidence: float | None
    """Mean probability of these texts; None for an empty bin."""
    accuracy: float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassificationResult:
    """Scores of one split; the accuracy on the development texts is beside them."""

    texts: int
    accuracy: Estimate
    """It has Wilson's interval; the intervals of other scores are bootstraps over texts."""
    accuracy_ablated: Estimate | None
    """Accuracy of the gated stream's own logits; None without gates."""
    accuracy_dev: Estimate | None
    macro_f1: Estimate
    """Mean F1 of the classes that are in the split or were predicted."""
    cross_entropy: Estimate
    """Nats per text."""
    ece: Estimate
    """Expected calibration error: sum over bins of (share of the texts) * |accuracy - mean probability|. Sampling noise
    only ever adds to it, so it and still more its bootstrap lie high where texts are few."""
    brier: Estimate
    """Mean over texts of the sum over classes of (probability - truth)^2; in [0, 2]."""
    classes: tuple[ClassScores, ...]
    confusion: tuple[tuple[int, ...], ...]
    """Texts by class (row) and predicted class (column)."""
    bins: tuple[CalibrationBin, ...]

    def headline(self) -> tuple[Figure, ...]:
        """Accuracies, macro F1, cross-entropy and both calibration errors."""
        accuracies = (("accuracy", self.accuracy), ("accuracy ablated", self.accuracy_ablated),
                      ("accuracy dev", self.accuracy_dev))
        return (
            *(Figure(name, estimate, unit="fraction", better="up", range=stats.FRACTION)
              for name, estimate in accuracies if estimate is not None),
            Figure("macro F1", self.macro_f1, better="up", range=stats.FRACTION),
            Figure("cross-entropy", self.cross_entropy, unit="nats", better="down", range=stats.COUNT),
            Figure("ECE", self.ece, better="down", range=stats.FRACTION),
            Figure("Brier score", self.brier, better="down", range=(0.0, 2.0)),
        )

    def panels(self) -> tuple[Panel, ...]:
        """Reliability diagram with the numbers behind it, classes, and the confusion matrix."""
        bins = tuple((f"{x.low:.3f} to {x.high:.3f}", x.texts, x.confidence, x.accuracy) for x in self.bins if x.texts)
        classes = tuple((x.name, x.texts, x.precision, x.recall, x.f1) for x in self.classes)
        confusion = tuple((x.name, *counts) for x, counts in zip(self.classes, self.confusion, strict=True))
        return (
            _reliability(self),
            Grid(title="Calibration", caption="Bins without texts are left out.", rows=bins,
                 columns=("probability", "texts", "mean probability", "accuracy")),
            Grid(title="Classes", caption="Each class against all others.", rows=classes,
                 columns=("class", "texts", "precision", "recall", "F1")),
            Grid(title="Confusion", caption="Texts by class (rows) and predicted class (columns).", rows=confusion,
                 columns=("class", *(f"predicted {x.name}" for x in self.classes))),
        )


def evaluate(model: Any, params: Params, batches: Iterable[Batch], *, dev: Iterable[Batch] | None = None,
             classes: Sequence[str] | None = None, seed: int = 0) -> ClassificationResult:
    """Classifies every text of a split once with a `SafrClassifier`; of the development split only for its accuracy.

    ``classes`` names them in the order of the logits, by default by their numbers.
    """
    classify = functools.partial(text_logits, model, params)
    scored, dev_scores = by_text(batches, classify), None if dev is None else by_text(dev, classify)
    shifted = scored["logits"] - scored["logits"].max(-1, keepdims=True)
    label, log_p = scored["label"], shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    n, predicted = len(label), log_p.argmax(-1)
    names = tuple(classes) if classes else tuple(str(c) for c in range(log_p.shape[-1]))
    counts = np.zeros((len(names), len(names), n))  # one 1 for each text, at its class and predicted class
    counts[label, predicted, np.arange(n)] = 1
    truth, p = np.eye(len(names))[label], np.exp(log_p)
    ece, bins = _calibration(p.max(-1), predicted == label, seed)
    f1_draws = np.nanmean(f1_scores(stats.ratio_resamples(counts, np.ones(n), seed=seed)), axis=0)
    return ClassificationResult(
        texts=n, accuracy=_accuracy(scored["logits"], label),
        accuracy_ablated=_accuracy(scored["logits_ablated"], label) if "logits_ablated" in scored else None,
        accuracy_dev=None if dev_scores is None else _accuracy(dev_scores["logits"], dev_scores["label"]),
        macro_f1=_bootstrap(float(np.nanmean(f1_scores(counts.sum(-1)))), f1_draws, n),
        cross_entropy=stats.mean(-np.take_along_axis(log_p, label[:, None], axis=-1)[:, 0], seed=seed), ece=ece,
        brier=stats.mean(np.square(p - truth).sum(-1), seed=seed), bins=bins,
        classes=_class_scores(names, counts.sum(-1)),
        confusion=tuple(tuple(int(x) for x in row) for row in counts.sum(-1)),
    )


@functools.partial(jax.jit, static_argnames="model")
def text_logits(model: Any, params: Params, batch: Batch) -> dict[str, jax.Array]:
    """``logits`` [B, C] and, for gated models, ``logits_ablated``; ``label`` [B] beside them."""
    out = model.apply({"params": params}, batch["tokens"], batch["mask"])
    logits = {"logits": out.logits, "label": batch["labels"]}
    return logits if out.logits_ablated is None else logits | {"logits_ablated": out.logits_ablated}


def f1_scores(confusion: Shaped[np.ndarray, "classes classes ..."]) -> Float[np.ndarray, "classes ..."]:
    """F1 of each class, 2 TP / (2 TP + FP + FN), from counts or shares of texts by class and predicted class.

    NaN for a class that neither is there nor was predicted.

    >>> f1_scores(np.array([[3, 1, 0], [1, 5, 0], [0, 0, 0]])).round(4).tolist()
    [0.75, 0.8333, nan]
    """
    right = np.moveaxis(np.diagonal(confusion), -1, 0)
    both = confusion.sum(0) + confusion.sum(1)
    return np.where(both > 0, 2 * right / np.where(both > 0, both, 1), np.nan)


def _accuracy(logits: np.ndarray, label: np.ndarray) -> Estimate:
    return stats.proportion(int((logits.argmax(-1) == label).sum()), len(label))


def _bootstrap(value: float, draws: np.ndarray, texts: int) -> Estimate:
    """Without an interval for a single text, whose draws are all the same."""
    return stats.from_draws(value, draws if texts > 1 else draws[:0], n=texts)


def _calibration(confidence: np.ndarray, right: np.ndarray, seed: int) -> tuple[Estimate, tuple[CalibrationBin, ...]]:
    """Expected calibration error and the bins it is summed over."""
    place = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    inside = place == np.arange(BINS)[:, None]
    gaps = np.where(inside, right - confidence, 0.0)
    draws = np.abs(stats.ratio_resamples(gaps, np.ones(len(right)), seed=seed)).sum(0)
    bins = []
    for i, row in enumerate(inside):
        mean, accuracy = (float(confidence[row].mean()), float(right[row].mean())) if row.any() else (None, None)
        bins.append(CalibrationBin(low=i / BINS, high=(i + 1) / BINS, texts=int(row.sum()), confidence=mean,
                                   accuracy=accuracy))
    return _bootstrap(float(np.abs(gaps.mean(-1)).sum()), draws, len(right)), tuple(bins)


def _class_scores(names: Sequence[str], counts: np.ndarray) -> tuple[ClassScores, ...]:
    right, predicted, there = np.diagonal(counts), counts.sum(0), counts.sum(1)
    f1 = np.nan_to_num(f1_scores(counts))
    return tuple(
        ClassScores(name=name, texts=int(there[c]), precision=float(right[c] / max(predicted[c], 1)),
                    recall=float(right[c] / max(there[c], 1)), f1=float(f1[c]))
        for c, name in enumerate(names)
    )


def _reliability(result: ClassificationResult) -> Curves:
    filled = [(x.confidence, x.accuracy) for x in result.bins if x.confidence is not None and x.accuracy is not None]
    model = Series(label="model", x=tuple(x for x, _ in filled), y=tuple(y for _, y in filled))
    ends = (min(model.x), 1.0)
    caption = (f"Accuracy of the {result.texts:,} texts by the probability of the predicted class, {BINS} bins of "
               "equal width. Below the diagonal the model is too sure of itself.")
    return Curves(title="Reliability", caption=caption, x_label="mean probability of the predicted class",
                  y_label="accuracy", series=(model, Series(label="calibrated", x=ends, y=ends)))


def class_names(config: Any) -> tuple[str, ...] | None:
    """Names of a classifier's classes; None where they have only numbers."""
    return POLARITY if config.n_classes == len(POLARITY) else None


def _run(run: Run) -> tuple[ClassificationResult, dict[str, Any]]:
    result = evaluate(run.model, run.params, run.splits["test"].batches(), dev=run.splits["dev"].batches(),
                      classes=class_names(run.config.model), seed=run.seed)
    return result, {"split": "test", "bins": BINS, "bootstrap_resamples": stats.RESAMPLES, "seed": run.seed}


SUITE = Suite(name="classification", run=_run, task="classification",
              about="Accuracy of each class and calibration, on every text of the test split.")

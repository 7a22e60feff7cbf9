"""Accuracy of a text classifier, class by class, and whether its probabilities mean what they say."""

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np

from jaxablate import stats
from jaxablate.classifier.texts import by_text
from jaxablate.config import ClassifierConfig
from jaxablate.intervals_old import (
    RESAMPLES,
    mean_interval,
    percentile_interval,
    ratio_resamples,
    wilson,
)
from jaxablate.reports.panels import Curves, Grid, Panel, Series
from jaxablate.reports.results import Figure
from jaxablate.runs.run import Run
from jaxablate.suites.suite import Suite
from jaxablate.types import Batch, Params

BINS = 15
"""Bins of equal width over (0, 1] of the probability of the predicted class (Guo et al. 2017)."""
POLARITY = ("negative", "positive")
"""Classes of both sentiment sets, in the order of their labels."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """One number over the texts of a split."""

    value: float
    interval: tuple[float, float] | None
    """95 %; None with fewer than two texts."""


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
    """Their mean probability; None for an empty bin."""
    accuracy: float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassificationResult:
    """Scores of one split; the accuracy on the development texts is beside them."""

    texts: int
    accuracy: Estimate
    """With Wilson's interval; the other intervals are bootstraps over texts."""
    accuracy_ablated: Estimate | None
    """Of the gated stream's own logits; None without gates."""
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
        figures = (
            _figure("accuracy", self.accuracy, "fraction", "up"),
            _figure("accuracy ablated", self.accuracy_ablated, "fraction", "up"),
            _figure("accuracy dev", self.accuracy_dev, "fraction", "up"),
            _figure("macro F1", self.macro_f1, "", "up"),
            _figure("cross-entropy", self.cross_entropy, "nats", "down"),
            _figure("ECE", self.ece, "", "down"),
            _figure("Brier score", self.brier, "", "down"),
        )
        return tuple(figure for figure in figures if figure is not None)

    def panels(self) -> tuple[Panel, ...]:
        """Reliability diagram with the numbers behind it, classes, and the confusion matrix."""
        return (_reliability(self), _bin_table(self), _class_table(self), _confusion_table(self))


def evaluate(model: Any, params: Params, batches: Iterable[Batch], *, dev: Iterable[Batch] | None = None,
             classes: Sequence[str] | None = None, seed: int = 0) -> ClassificationResult:
    """Classifies every text once.

    Args:
      model: a `SafrClassifier`.
      params: its parameters.
      batches: the split; rows with weight 0 do not count.
      dev: the development split, of which the accuracy alone is reported.
      classes: names of the classes in the order of the logits; None takes their numbers.
      seed: of the bootstrap over texts (`RESAMPLES` draws, percentile interval).
    """
    scored = by_text(batches, functools.partial(text_logits, model, params))
    label, log_p = scored["label"], _log_softmax(scored["logits"])
    predicted = log_p.argmax(-1)
    names = tuple(classes) if classes else tuple(str(c) for c in range(log_p.shape[-1]))
    counts = _confusion(label, predicted, len(names))
    truth, p = np.eye(len(names))[label], np.exp(log_p)
    loss = -np.take_along_axis(log_p, label[:, None], axis=-1)[:, 0]
    ece, bins = _calibration(p.max(-1), predicted == label, seed)
    return ClassificationResult(
        texts=len(label), accuracy=_accuracy(scored["logits"], label),
        accuracy_ablated=_accuracy(scored["logits_ablated"], label) if "logits_ablated" in scored else None,
        accuracy_dev=None if dev is None else _split_accuracy(model, params, dev),
        macro_f1=_macro_f1(counts, seed), cross_entropy=_mean(loss, seed), ece=ece,
        brier=_mean(np.square(p - truth).sum(-1), seed), bins=bins,
        classes=_class_scores(names, counts.sum(-1)),
        confusion=tuple(tuple(int(x) for x in row) for row in counts.sum(-1)),
    )


@functools.partial(jax.jit, static_argnames="model")
def text_logits(model: Any, params: Params, batch: Batch) -> dict[str, jax.Array]:
    """``logits`` [B, C] and, for gated models, ``logits_ablated``; ``label`` [B] beside them."""
    out = model.apply({"params": params}, batch["tokens"], batch["mask"])
    found = {"logits": out.logits, "label": batch["labels"]}
    return found if out.logits_ablated is None else found | {"logits_ablated": out.logits_ablated}


def f1_scores(confusion: np.ndarray) -> np.ndarray:
    """F1 of each class from counts or shares of texts by class and predicted class.

    Args:
      confusion: [C, C, ...], class, predicted class, anything.

    Returns:
      [C, ...] 2 TP / (2 TP + FP + FN); NaN for a class that neither is there nor was predicted.

    >>> f1_scores(np.array([[3, 1, 0], [1, 5, 0], [0, 0, 0]])).round(4).tolist()
    [0.75, 0.8333, nan]
    """
    right = np.moveaxis(np.diagonal(confusion), -1, 0)
    both = confusion.sum(0) + confusion.sum(1)
    return np.where(both > 0, 2 * right / np.where(both > 0, both, 1), np.nan)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def _confusion(label: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """[C, C, texts]: one 1 for each text, at its class and predicted class."""
    out = np.zeros((classes, classes, len(label)))
    out[label, predicted, np.arange(len(label))] = 1
    return out


def _accuracy(logits: np.ndarray, label: np.ndarray) -> Estimate:
    right = int((logits.argmax(-1) == label).sum())
    return Estimate(value=right / len(label), interval=wilson(right, len(label)))


def _split_accuracy(model: Any, params: Params, batches: Iterable[Batch]) -> Estimate:
    scored = by_text(batches, functools.partial(text_logits, model, params))
    return _accuracy(scored["logits"], scored["label"])


def _mean(values: np.ndarray, seed: int) -> Estimate:
    return Estimate(value=float(values.mean()), interval=mean_interval(values, seed=seed))


def _macro_f1(counts: np.ndarray, seed: int) -> Estimate:
    draws = ratio_resamples(counts, np.ones(counts.shape[-1]), seed=seed)
    interval = percentile_interval(np.nanmean(f1_scores(draws), axis=0)) if counts.shape[-1] > 1 else None
    return Estimate(value=float(np.nanmean(f1_scores(counts.sum(-1)))), interval=interval)


def _calibration(confidence: np.ndarray, right: np.ndarray, seed: int) -> tuple[Estimate, tuple[CalibrationBin, ...]]:
    """Expected calibration error and the bins it is summed over."""
    place = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    inside = place == np.arange(BINS)[:, None]
    gaps = np.where(inside, right - confidence, 0.0)
    draws = np.abs(ratio_resamples(gaps, np.ones(len(right)), seed=seed)).sum(0)
    value = float(np.abs(gaps.mean(-1)).sum())
    bins = tuple(_bin(i, confidence[row], right[row]) for i, row in enumerate(inside))
    return Estimate(value=value, interval=percentile_interval(draws) if len(right) > 1 else None), bins


def _bin(i: int, confidence: np.ndarray, right: np.ndarray) -> CalibrationBin:
    mean, accuracy = (float(confidence.mean()), float(right.mean())) if right.size else (None, None)
    return CalibrationBin(low=i / BINS, high=(i + 1) / BINS, texts=right.size, confidence=mean, accuracy=accuracy)


def _class_scores(names: Sequence[str], counts: np.ndarray) -> tuple[ClassScores, ...]:
    right, predicted, there = np.diagonal(counts), counts.sum(0), counts.sum(1)
    f1 = np.nan_to_num(f1_scores(counts))
    return tuple(
        ClassScores(name=name, texts=int(there[c]), precision=float(right[c] / max(predicted[c], 1)),
                    recall=float(right[c] / max(there[c], 1)), f1=float(f1[c]))
        for c, name in enumerate(names)
    )


def _figure(name: str, estimate: Estimate | None, unit: str, better: str) -> Figure | None:
    if estimate is None:
        return None
    return Figure(name, stats.Estimate(estimate.value, *(estimate.interval or (None, None))), unit, better)


def _reliability(result: ClassificationResult) -> Curves:
    filled = [x for x in result.bins if x.texts]
    model = Series(label="model", x=tuple(x.confidence for x in filled), y=tuple(x.accuracy for x in filled))
    ends = (min(model.x), 1.0)
    caption = (f"Accuracy of the {result.texts:,} texts by the probability of the predicted class, {BINS} bins of "
               "equal width. Below the diagonal the model is too sure of itself.")
    return Curves(title="Reliability", caption=caption, x_label="mean probability of the predicted class",
                  y_label="accuracy", series=(model, Series(label="calibrated", x=ends, y=ends)))


def _bin_table(result: ClassificationResult) -> Grid:
    rows = tuple((f"{x.low:.3f} to {x.high:.3f}", x.texts, x.confidence, x.accuracy) for x in result.bins if x.texts)
    return Grid(title="Calibration", caption="Bins without texts are left out.", rows=rows,
                columns=("probability", "texts", "mean probability", "accuracy"))


def _class_table(result: ClassificationResult) -> Grid:
    rows = tuple((x.name, x.texts, x.precision, x.recall, x.f1) for x in result.classes)
    return Grid(title="Classes", caption="Each class against all others.", rows=rows,
                columns=("class", "texts", "precision", "recall", "F1"))


def _confusion_table(result: ClassificationResult) -> Grid:
    names = [x.name for x in result.classes]
    rows = tuple((name, *counts) for name, counts in zip(names, result.confusion, strict=True))
    return Grid(title="Confusion", caption="Texts by class (rows) and predicted class (columns).", rows=rows,
                columns=("class", *(f"predicted {name}" for name in names)))


def class_names(config: ClassifierConfig) -> tuple[str, ...] | None:
    """Names of a model's classes; None where they have only numbers."""
    return POLARITY if config.n_classes == len(POLARITY) else None


def _run(run: Run) -> tuple[ClassificationResult, dict[str, Any]]:
    result = evaluate(run.model, run.params, run.splits["test"].batches(), dev=run.splits["dev"].batches(),
                      classes=class_names(run.config.model), seed=run.seed)
    return result, {"split": "test", "bins": BINS, "bootstrap_resamples": RESAMPLES, "seed": run.seed}


SUITE = Suite(name="classification", run=_run, task="classification",
              about="Accuracy of each class and calibration, on every text of the test split.")

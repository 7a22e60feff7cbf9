"""Can the model do the task that its circuit is of? (docs/papers.md, Attribution and later methods)

A circuit means little where the model cannot do the task, so these figures stand beside every circuit.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxablate.circuits.prompts import NO_ANSWER, PromptPairs
from jaxablate.errors import DataError
from jaxablate.intervals_old import mean_interval, wilson


@dataclasses.dataclass(frozen=True, kw_only=True)
class Competence:
    """How a model answers a task. Intervals are 95 % over prompts: Wilson for fractions, bootstrap for the mean.

    The margin of a prompt is the mean logit of its answers minus the mean logit of its wrong answers; with one of
    each, as in IOI, it is their logit difference.
    """

    n: int
    """Prompts."""
    accuracy: float
    """Fraction of prompts of positive margin; 0.5 by chance. A tie is not positive."""
    accuracy_interval: tuple[float, float] | None
    top1: float
    """Fraction of prompts with an answer whose logit exceeds that of every token that is no answer."""
    top1_interval: tuple[float, float] | None
    logit_difference: float
    """Mean margin."""
    logit_difference_interval: tuple[float, float] | None
    """None with fewer than two prompts."""
    by_group: tuple[tuple[str, int, float, float], ...]
    """(kind of prompt, prompts, accuracy, mean margin), in the order in which the kinds first occur."""


def competence(logits: np.ndarray, pairs: PromptPairs, *, seed: int = 0) -> Competence:
    """Scores the answers to the clean prompts of a task.

    Args:
      logits: [n, V] at the last position of each clean prompt, any float; log-probabilities do as well.
      pairs: the task, n prompts.
      seed: of the bootstrap.

    Returns:
      Accuracy, top-1 accuracy and logit difference with intervals, and by kind of prompt.

    Raises:
      DataError: the logits are not [n, V], not finite, or an answer is beyond V.
    """
    logits = np.asarray(logits, np.float64)
    _check(logits, pairs)
    margin, top = margins(logits, pairs), is_top(logits, pairs)
    right = margin > 0
    n = len(pairs)
    return Competence(
        n=n, accuracy=float(right.mean()), accuracy_interval=wilson(int(right.sum()), n),
        top1=float(top.mean()), top1_interval=wilson(int(top.sum()), n),
        logit_difference=float(margin.mean()), logit_difference_interval=mean_interval(margin, seed=seed),
        by_group=_by_group(margin, pairs.groups))


def margins(logits: np.ndarray, pairs: PromptPairs) -> np.ndarray:
    """[n] mean logit of the answers minus mean logit of the wrong answers.

    Args:
      logits: [n, V].
      pairs: the task, n prompts.

    Example:
      >>> pairs = PromptPairs.from_ids([[7]], [[8]], [[0]], [[1, 2]], name="toy")
      >>> margins(np.array([[5.0, 1.0, 2.0]]), pairs)
      array([3.5])
    """
    return _mean_logit(logits, pairs.answers) - _mean_logit(logits, pairs.wrong_answers)


def is_top(logits: np.ndarray, pairs: PromptPairs) -> np.ndarray:
    """[n] whether some answer's logit exceeds that of every token that is no answer.

    Args:
      logits: [n, V].
      pairs: the task, n prompts.
    """
    listed = pairs.answers != NO_ANSWER
    rows = np.broadcast_to(np.arange(len(logits))[:, None], listed.shape)[listed]
    answer = np.zeros(logits.shape, bool)
    answer[rows, pairs.answers[listed]] = True
    return np.where(answer, logits, -np.inf).max(-1) > np.where(answer, -np.inf, logits).max(-1)


def _mean_logit(logits: np.ndarray, ids: np.ndarray) -> np.ndarray:
    listed = ids != NO_ANSWER
    chosen = np.take_along_axis(logits, np.where(listed, ids, 0), axis=-1)
    return np.where(listed, chosen, 0.0).sum(-1) / listed.sum(-1)


def _by_group(margin: np.ndarray, groups: Sequence[str]) -> tuple[tuple[str, int, float, float], ...]:
    of = np.array(groups)
    parts = {group: margin[of == group] for group in dict.fromkeys(groups)}
    return tuple((group, len(m), float((m > 0).mean()), float(m.mean())) for group, m in parts.items())


def _check(logits: np.ndarray, pairs: PromptPairs) -> None:
    if logits.ndim != 2 or len(logits) != len(pairs):
        raise DataError(f"{pairs.name}: logits of shape {list(logits.shape)} for {len(pairs)} prompts; give [prompts, "
                        "tokens], those of the last position")
    largest = max(int(pairs.answers.max()), int(pairs.wrong_answers.max()))
    if largest >= logits.shape[1]:
        raise DataError(f"{pairs.name}: answer {largest} is beyond the model's {logits.shape[1]} tokens; tokenise the "
                        "prompts with the tokenizer that the model was trained with")
    finite = np.isfinite(logits).all(-1)
    if not finite.all():
        raise DataError(f"{pairs.name}: logits of prompt {int(finite.argmin())} are not finite; look at the model's "
                        "parameters, it cannot be scored")

"""How a task is answered: by the model, by a circuit alone, and with everything patched.

A circuit means little where the model cannot do the task, so these figures stand beside every circuit.
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float

from jaxablate import stats
from jaxablate.circuits.circuit import Circuit
from jaxablate.circuits.faithfulness import metric_values, prompt_draws
from jaxablate.circuits.problem import Problem, takes_problem
from jaxablate.circuits.prompts import NO_ANSWER, PromptPairs
from jaxablate.errors import DataError
from jaxablate.stats import Estimate

CHANCE = 0.5
"""Accuracy of a guess between answer and wrong answer."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Competence:
    """How a model answers a task. Intervals are over prompts: Wilson for fractions, bootstrap for the mean.

    The margin of a prompt is the mean logit of its answers minus the mean logit of its wrong answers; with one of
    each, as in IOI, it is their logit difference.
    """

    n: int
    """Prompts."""
    accuracy: Estimate
    """Fraction of prompts of positive margin; 0.5 by chance. A tie is not positive."""
    top1: Estimate
    """Fraction of prompts with an answer whose logit exceeds that of every token that is no answer."""
    logit_difference: Estimate
    """Mean margin."""
    by_group: tuple[tuple[str, int, float, float], ...]
    """(kind of prompt, prompts, accuracy, mean margin), in the order in which the kinds first occur."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answers:
    """How a task is answered with certain edges patched."""

    kl: Estimate
    """KL(model || this) in nats."""
    accuracy: Estimate
    """Fraction of prompts whose answers have a greater mean logit than their wrong answers."""
    logit_difference: Estimate
    """Mean logit of the answers less that of the wrong answers."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """A circuit on a task."""

    prompts: int
    edges: int
    """Edges of the whole graph."""
    kept: int
    connected: int
    """Kept edges on a path of kept edges from the embedding to the end."""
    heads: int
    """Heads that kept edges lead into and out of."""
    mlps: int
    """MLPs that kept edges lead into and out of."""
    all_heads: int
    all_mlps: int
    model: Answers
    circuit: Answers
    empty: Answers
    """With every edge patched."""
    faithfulness: Estimate
    """Share of the logit difference between `empty` and `model` that the circuit has, which may exceed 1; without a
    value where these are equal."""

    @property
    def incompetent(self) -> bool:
        """Whether the model may be guessing: its accuracy's interval reaches down to chance."""
        low, _ = self.model.accuracy.interval or (0.0, 1.0)
        return low <= CHANCE


def competence(logits: np.ndarray, pairs: PromptPairs, *, seed: int = 0) -> Competence:
    """Scores the answers to the clean prompts of a task.

    Args:
      logits: [n, V] at the last position of each clean prompt, any float; log-probabilities do as well.
      pairs: the task, n prompts.
      seed: seed of the bootstrap.

    Raises:
      DataError: the logits are not [n, V], not finite, or an answer is beyond V.
    """
    logits = np.asarray(logits, np.float64)
    _check(logits, pairs)
    margin, top, groups = margins(logits, pairs), is_top(logits, pairs), np.array(pairs.groups)
    parts = {group: margin[groups == group] for group in dict.fromkeys(pairs.groups)}
    return Competence(
        n=len(pairs), accuracy=stats.proportion(int((margin > 0).sum()), len(pairs)),
        top1=stats.proportion(int(top.sum()), len(pairs)), logit_difference=stats.mean(margin, seed=seed),
        by_group=tuple((group, len(m), float((m > 0).mean()), float(m.mean())) for group, m in parts.items()))


def margins(logits: Float[np.ndarray, "n vocab"], pairs: PromptPairs) -> Float[np.ndarray, " n"]:
    """Mean logit of the answers minus mean logit of the wrong answers of each prompt.

    >>> pairs = PromptPairs.from_ids([[7]], [[8]], [[0]], [[1, 2]], name="toy")
    >>> margins(np.array([[5.0, 1.0, 2.0]]), pairs)
    array([3.5])
    """

    def mean_logit(ids: np.ndarray) -> np.ndarray:
        listed = ids != NO_ANSWER
        chosen = np.take_along_axis(logits, np.where(listed, ids, 0), axis=-1)
        return np.where(listed, chosen, 0.0).sum(-1) / listed.sum(-1)

    return mean_logit(pairs.answers) - mean_logit(pairs.wrong_answers)


def is_top(logits: Float[np.ndarray, "n vocab"], pairs: PromptPairs) -> Bool[np.ndarray, " n"]:
    """Whether some answer's logit exceeds that of every token that is no answer, for each prompt."""
    listed = pairs.answers != NO_ANSWER
    rows = np.broadcast_to(np.arange(len(logits))[:, None], listed.shape)[listed]
    answer = np.zeros(logits.shape, bool)
    answer[rows, pairs.answers[listed]] = True
    return np.where(answer, logits, -np.inf).max(-1) > np.where(answer, -np.inf, logits).max(-1)


@takes_problem
def measure(problem: Problem, kept: Bool[np.ndarray, " edges"], *, seed: int = 0) -> Measured:
    """Runs the model, the circuit ``kept`` and the model with all edges patched on all prompts, whatever the metric."""
    graph, three = problem.graph, np.stack([np.ones_like(kept), kept, np.zeros_like(kept)])
    kl, margin = (metric_values(problem.with_metric(name), three) for name in ("kl", "logit_difference"))
    n = margin.shape[1]
    answers = [Answers(kl=stats.mean(k, seed=seed), accuracy=stats.proportion(int((m > 0).sum()), n),
                       logit_difference=stats.mean(m, seed=seed)) for k, m in zip(kl, margin, strict=True)]
    circuit = Circuit(graph=graph, kept=kept, scores=np.zeros(kept.size))
    is_mlp = graph.source_layers[1:] % 2 == 1
    return Measured(
        prompts=n, edges=kept.size, kept=circuit.n_kept, connected=circuit.connected().n_kept,
        heads=int(circuit.nodes[1:][~is_mlp].sum()), mlps=int(circuit.nodes[1:][is_mlp].sum()),
        all_heads=graph.n_layers * graph.n_heads, all_mlps=graph.n_layers,
        model=answers[0], circuit=answers[1], empty=answers[2], faithfulness=share_of_difference(*margin, seed=seed))


def share_of_difference(model: np.ndarray, circuit: np.ndarray, empty: np.ndarray, *, seed: int = 0,
                        draws: int = 1000) -> Estimate:
    """Faithfulness (circuit - empty) / (model - empty) of metrics [n], means over prompts before the ratio.

    Args:
      model: metric of the model on each prompt.
      circuit: metric of the circuit.
      empty: metric with everything patched.
      seed: seed of the bootstrap over prompts.
      draws: bootstrap draws.

    Returns:
      Without a value where model and empty are equal in the mean.
    """

    def share(rows: np.ndarray | slice = slice(None)) -> float:
        difference = (model[rows] - empty[rows]).mean()
        return float((circuit[rows] - empty[rows]).mean() / difference) + 0.0 if difference else np.nan

    n = len(model)
    drawn = [share(rows) for rows in prompt_draws(n, draws=draws, seed=seed)] if n > 1 else []
    return stats.from_draws(share(), np.array(drawn), n=n)


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

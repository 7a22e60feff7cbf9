"""`METHODS`: every way to score edges, by name. The command line, the suite and the docs read it.

A method from another package is registered by a call, or by an entry point of the group ``jaxablate.circuit_methods``;
``jaxablate circuit --method NAME`` then takes it, and the suite ranks it beside the others:

    METHODS.register(Method("later", "later edges", lambda problem, **_: problem.graph.edge_layer * 1.0))
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxablate.circuits.acdc import TAU, acdc, shuffled_order
from jaxablate.circuits.attribution import eap, eap_ig, mask_gradient, random_scores
from jaxablate.circuits.effects import effects
from jaxablate.circuits.metrics import importance
from jaxablate.circuits.problem import Problem
from jaxablate.circuits.pruning import PruneRow, PruneSettings, prune, prune_with_nulls
from jaxablate.errors import DataError
from jaxablate.registry import Registry

ORACLE_EDGES = 3000
"""Largest graph whose edges the suite patches one by one as a standard for the estimates, or prunes."""
SHARE = 0.05
"""Share of all edges in a circuit made from scores where no size is asked for."""
_MASKS = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Middles of five equal stretches from nothing to everything patched."""
_MASK_GRADIENT_PROMPTS = 16
"""Prompts at once: its derivative keeps much more than a run."""
Progress = Callable[[int, int, int], None]
"""(edges done, edges in all, edges evaluated)."""


@dataclasses.dataclass(frozen=True)
class Method:
    """A way to score all edges of a problem."""

    name: str
    """Name on the command line."""
    label: str
    """Name in tables."""
    run: Callable[..., np.ndarray]
    """(problem, **options) -> [E] by how much the metric changes when each edge alone is patched, or an estimate of
    it. It ignores options that it does not know; ``seed`` and ``progress`` are always given."""
    about: str = ""
    """One line: what a score is."""
    score_label: str = ""
    """What pictures call a score; the label and "score" by default."""
    most_edges: int | None = None
    """The suite leaves the method out on larger graphs."""
    ranked: bool = True
    """Whether the suite ranks circuits made from its scores. ACDC makes circuits of its own."""
    nulls: Callable[..., Sequence[PruneRow]] | None = None
    """(problem, edges=..., seed=..., progress=..., **options) -> what circuits of so many edges are worth on prompts
    held out, in the model and where there is nothing to find. For methods that are trained; the suite and the command
    show it beside their circuits."""

    def scores(self, problem: Problem, *, seed: int = 0, progress: Progress = lambda done, total, evaluated: None,
               **options: Any) -> np.ndarray:
        """[E] float64 scores, checked.

        Raises:
          DataError: the method did not give one number for each edge.
        """
        scores = np.asarray(self.run(problem, seed=seed, progress=progress, **options), np.float64)
        if scores.shape != (problem.graph.n_edges,) or np.isnan(scores).any():
            raise DataError(f"method {self.name!r} gave scores of shape {list(scores.shape)}, "
                            f"{int(np.isnan(scores).sum())} of them NaN; it must give one number for each of "
                            f"{problem.graph.n_edges} edges")
        return scores


def acdc_scores(problem: Problem, *, tau: float = TAU, order_seed: int | None = None,
                progress: Progress = lambda done, total, evaluated: None, **_: Any) -> np.ndarray:
    """[E] nats: rise of KL when ACDC cut, or refused to cut, each edge."""
    order = None if order_seed is None else shuffled_order(problem.graph, order_seed)
    return acdc(problem, (tau,), order=order, progress=progress).runs[tau].rises


def _oracle(problem: Problem, *, progress: Progress, **_: Any) -> np.ndarray:
    return effects(problem, progress=lambda done, total: progress(done, total, done))


def _mask_gradient(problem: Problem, **_: Any) -> np.ndarray:
    return mask_gradient(problem, masks=_MASKS, batch_size=min(problem.batch_size, _MASK_GRADIENT_PROMPTS))


def _pruned(problem: Problem, *, edges: int | None = None, steps: int | None = None, seed: int, progress: Progress,
            **_: Any) -> np.ndarray:
    """Minus the probability that an edge's mask is open, or plus it: as the metric would change if it were cut."""
    result = prune(problem, edges=_count(problem, edges), settings=_settings(steps), seed=seed,
                   progress=_of_edges(problem, progress))
    return importance(problem.target, result.probability)  # which is its own inverse


def _pruning_nulls(problem: Problem, *, edges: int | None = None, steps: int | None = None, seeds: int = 3, seed: int,
                   progress: Progress, **_: Any) -> Sequence[PruneRow]:
    return prune_with_nulls(problem, edges=_count(problem, edges), seeds=seeds, settings=_settings(steps), seed=seed,
                            progress=_of_edges(problem, progress))


def _count(problem: Problem, edges: int | None) -> int:
    return min(math.ceil(SHARE * problem.graph.n_edges) if edges is None else edges, problem.graph.n_edges - 1)


def _settings(steps: int | None) -> PruneSettings:
    return PruneSettings() if steps is None else PruneSettings(steps=steps)


def _of_edges(problem: Problem, progress: Progress) -> Callable[[int, int], None]:
    """Tells of steps as if they were edges."""
    total = problem.graph.n_edges
    return lambda done, steps: progress(total * done // steps, total, total * done // steps)


METHODS: Registry[Method] = Registry("circuit method", (
    Method("acdc", "ACDC", acdc_scores, "rise of KL when the search came to the edge", "rise of KL", ranked=False),
    Method("eap", "EAP", lambda problem, **_: eap(problem), "derivative at the clean run times the source's change"),
    Method("eap-ig", "EAP-IG", lambda problem, **_: eap_ig(problem),
           "the same, the derivative averaged from the replaced to the clean embedding"),
    Method("mask-gradient", "mask gradient", _mask_gradient, "integrated derivative with respect to the edge mask",
           "mask gradient"),
    Method("oracle", "single edges", _oracle, "each edge patched alone, exactly", "effect on logit difference",
           most_edges=ORACLE_EDGES),
    Method("edge-pruning", "edge pruning", _pruned,
           "probability that a mask learnt by gradient descent keeps the edge, beside the same training in a model "
           "with random weights and on a nonsense task", "edge pruning", most_edges=ORACLE_EDGES, nulls=_pruning_nulls),
    Method("random", "random", lambda problem, *, seed, **_: random_scores(problem.graph, seed),
           "standard normal numbers, as a control"),
))
register = METHODS.register

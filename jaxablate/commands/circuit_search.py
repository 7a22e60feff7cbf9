"""A task made ready on a model, and the ways to find a circuit of it: ACDC, or the strongest edges by some score."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxablate.circuits import attribution, nodes
from jaxablate.circuits.acdc import AcdcRun, acdc, shuffled_order
from jaxablate.circuits.effects import single_edge_effects
from jaxablate.circuits.graph import Graph
from jaxablate.circuits.metrics import importance, make_target
from jaxablate.circuits.patching import Ablation, Stream, circuit_config, make_replacement, pair_inputs, run
from jaxablate.circuits.prompts import PromptPairs
from jaxablate.circuits.search import edge_order, first_edges
from jaxablate.commands.circuit_settings import CircuitSettings, Method
from jaxablate.config import ModelConfig
from jaxablate.errors import ConfigError

Progress = Callable[[int, int, int], None]
"""(edges done, edges in all, edges evaluated)."""

SHARE = 0.05
"""Of all edges: size of a circuit made from scores where none is asked for."""
SCORE_LABELS: Mapping[Method, str] = {
    "acdc": "rise of KL", "eap": "EAP score", "eap-ig": "EAP-IG score", "mask-gradient": "mask gradient",
    "oracle": "effect on logit difference", "random": "random score",
}
_MASKS = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Middles of five equal stretches from nothing to everything patched."""
_MASK_GRADIENT_PROMPTS = 16
"""At once; its derivative keeps much more than a run."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Bench:
    """A model, the prompts of a task and what cut edges carry, in float32."""

    config: ModelConfig
    """Of the model, with the arithmetic of circuits."""
    params: nodes.Params
    pairs: PromptPairs
    stream: Stream
    ablation: Ablation
    batch_size: int
    inputs: nodes.Inputs
    replacement: jax.Array
    final: jax.Array
    """[n, D] of the model's own run."""

    @property
    def graph(self) -> Graph:
        """Of the model."""
        return Graph.of(self.config)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Found:
    """A circuit and how it came about."""

    kept: np.ndarray
    """[E] bool."""
    scores: np.ndarray
    """[E] float64."""
    facts: Mapping[str, Any]
    """For `Circuit.about`."""


def prepare(config: ModelConfig, params: Any, pairs: PromptPairs, settings: CircuitSettings) -> Bench:
    """Runs the model once on clean and corrupt prompts.

    Args:
      config: of the model.
      params: its weights, of any type.
      pairs: prompts that fit the model.
      settings: name the stream, the ablation and the size of batches.
    """
    same, params32 = circuit_config(config), nodes.in_type(params, np.float32)
    clean, corrupt = pair_inputs(same, params32, pairs, settings.stream)
    other = make_replacement(settings.ablation, run(same, params32, corrupt), corrupt.valid,
                             settings.stream == "ablated")
    return Bench(config=same, params=params32, pairs=pairs, stream=settings.stream, ablation=settings.ablation,
                 batch_size=settings.batch_size, inputs=clean, replacement=other,
                 final=run(same, params32, clean).final)


def edge_count(settings: CircuitSettings, graph: Graph) -> int:
    """Edges that a circuit made from scores is to have, before those that dangle are left out.

    Raises:
      ConfigError: more than the graph has.
    """
    if settings.edges is None:
        return math.ceil(SHARE * graph.n_edges)
    if settings.edges > graph.n_edges:
        raise ConfigError(f"edges={settings.edges:,} are more than the {graph.n_edges:,} of the model's graph; "
                          f"choose 1 .. {graph.n_edges:,}")
    return settings.edges


def find(bench: Bench, settings: CircuitSettings, resume: Path, progress: Progress) -> Found:
    """Finds the circuit that the settings ask for.

    Args:
      bench: the task on the model.
      settings: method and size.
      resume: file by which an interrupted search of ACDC goes on.
      progress: told how far ACDC or the oracle is.

    Raises:
      ConfigError: a value does not fit the model.
      CheckpointError: the file is of another search, or damaged.
    """
    if settings.chosen_method == "acdc":
        return _by_acdc(bench, settings, resume, progress)
    target = make_target("logit_difference", bench.params, bench.pairs, bench.final)
    scores = _scores(bench, settings, target, progress)
    search, count = settings.search or "top", edge_count(settings, bench.graph)
    order = edge_order(bench.graph, importance(target, scores), search=search, absolute=True)
    facts = {"metric": "logit_difference", "search": search, "ranking": "magnitude", "edges_asked": count}
    return Found(kept=first_edges(bench.graph, order, count), scores=scores, facts=facts)


def rises(found: AcdcRun) -> np.ndarray:
    """[E] nats in the graph's order: by how much cutting each edge raised KL when ACDC came to it.

    0 for edges that were cut unevaluated because nothing of theirs led on. At least tau for the edges kept, less for
    those cut: the threshold at which the decision would have been the other one.
    """
    last = np.maximum.accumulate(np.where(found.removed, np.arange(len(found.kl)), -1))
    before = np.concatenate([[-1], last[:-1]])  # the last edge cut before each
    now = np.where(before < 0, 0.0, found.kl[before])
    out = np.zeros(len(found.kl))
    out[found.order] = found.kl - now
    return out


def _by_acdc(bench: Bench, settings: CircuitSettings, resume: Path, progress: Progress) -> Found:
    order = None if settings.order_seed is None else shuffled_order(bench.graph, settings.order_seed)
    result = acdc(bench.config, bench.params, bench.pairs, taus=[settings.chosen_tau], stream=bench.stream,
                  ablation=bench.ablation, order=order, batch_size=bench.batch_size, progress=progress, resume=resume)
    (found,) = result.runs.values()
    facts = {"tau": settings.chosen_tau, "order_seed": settings.order_seed, "edges_evaluated": result.evaluated,
             "rechecked": result.rechecked, "min_margin": found.min_margin}
    return Found(kept=found.kept, scores=rises(found), facts=facts)


def _scores(bench: Bench, settings: CircuitSettings, target: Any, progress: Progress) -> np.ndarray:
    """[E] by how much the logit difference changes when each edge is patched, as the method has it."""
    task = (bench.config, bench.params, bench.inputs, bench.replacement, target)
    match settings.chosen_method:
        case "eap":
            return attribution.eap(*task, batch_size=bench.batch_size)
        case "eap-ig":
            return attribution.eap_ig(*task, batch_size=bench.batch_size)
        case "mask-gradient":
            return attribution.mask_gradient(*task, masks=_MASKS,
                                             batch_size=min(bench.batch_size, _MASK_GRADIENT_PROMPTS))
        case "oracle":
            return single_edge_effects(*task, batch_size=bench.batch_size,
                                       progress=lambda done, total: progress(done, total, done))
        case "random":
            return attribution.random_scores(bench.graph, settings.seed)
    raise ConfigError(f"method={settings.method!r} is unknown; choose acdc, {', '.join(list(SCORE_LABELS)[1:])}")

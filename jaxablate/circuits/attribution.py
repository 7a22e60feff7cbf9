"""Scores of edges by derivatives: EAP, EAP-IG, mask gradient; and random scores as their control.

Formulas: docs/papers.md, Attribution and later methods.

A score estimates by how much the metric changes when the edge alone is patched (`effects.single_edge_effects` computes
that exactly). Its sign is the change's: an edge that matters lowers the logit difference and raises the divergence.
`metrics.importance` turns both the same way.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxablate.circuits.batches import Batch, batches
from jaxablate.circuits.gradients import gradients
from jaxablate.circuits.graph import Graph
from jaxablate.circuits.metrics import Target
from jaxablate.circuits.nodes import Inputs, Params
from jaxablate.circuits.patching import exact, patched_final, run
from jaxablate.config import ModelConfig
from jaxablate.errors import ConfigError


def eap(config: ModelConfig, params: Params, inputs: Inputs, replacement: jax.Array, target: Target, *,
        batch_size: int = 64) -> np.ndarray:
    """Edge attribution patching (Syed et al. 2023): first-order estimate of what patching each edge does.

    s(u -> v) = sum over positions and channels of (replacement(u) - clean(u)) . dm / d in(v) at the clean run. The
    derivative is total: it takes in everything after v. Equals the derivative of the metric with respect to the edge
    mask where nothing is patched.

    Args:
      config: of the model (`patching.circuit_config`).
      params: its weights.
      inputs: clean prompts [n, T], with gates for the ablated stream.
      replacement: [S, n or 1, T or 1, D] what patched edges carry (`patching.make_replacement`).
      target: metric of these prompts (`metrics.make_target`).
      batch_size: prompts at once. 64 prompts of 20 tokens take 0.6 GB at the paper's shape.

    Returns:
      [E] float64 in the graph's order, mean over prompts, in the metric's unit.

    Raises:
      ConfigError: the metric is the divergence, whose derivative at the clean run is zero; or batch_size is below 1.
    """
    check_slope(target, "EAP")
    total = np.zeros(Graph.of(config).n_edges)
    for batch, _ in batches(inputs, replacement, target, batch_size):
        start, change = start_and_change(config, params, batch)
        total += np.asarray(_edge_scores(config, params, batch, start, change), np.float64)
    return total


def eap_ig(config: ModelConfig, params: Params, inputs: Inputs, replacement: jax.Array, target: Target, *,
           steps: int = 5, batch_size: int = 64) -> np.ndarray:
    """EAP with integrated gradients over the model's input (Hanna et al. 2024).

    As `eap`, with the derivative averaged over ordinary runs from the embeddings x' + (j / steps) (x - x'), j = 0 ..
    steps - 1, where x is the clean embedding and x' its replacement: the corrupt one under resample ablation, zero or a
    mean under the others. Never at the clean run itself, so it serves the divergence too.

    Args:
      config, params, inputs, replacement, target, batch_size: as for `eap`.
      steps: points of the path; the time grows with it.

    Returns:
      [E] float64 as `eap`.

    Raises:
      ConfigError: steps or batch_size is below 1.
    """
    check_steps(steps)
    total = np.zeros(Graph.of(config).n_edges)
    for batch, _ in batches(inputs, replacement, target, batch_size):
        start, change = start_and_change(config, params, batch)
        for point in path(start, batch.replacement, steps):
            total += np.asarray(_edge_scores(config, params, batch, point, change), np.float64) / steps
    return total


def mask_gradient(config: ModelConfig, params: Params, inputs: Inputs, replacement: jax.Array, target: Target, *,
                  masks: Sequence[float | np.ndarray] = (0.0,), batch_size: int = 16) -> np.ndarray:
    """Derivative of the metric with respect to the edge mask, averaged over points of it.

    At 0, nothing patched, it is `eap`. Over ((1/2) / k, (3/2) / k, ...) it integrates from nothing to everything
    patched, and the scores then sum up to the change of the metric between the two, but for the error of the sum.

    Args:
      config, params, inputs, replacement, target: as for `eap`.
      masks: each a number in 0 .. 1 for all edges, or [E]: by how much edges are patched where the derivative is taken.
      batch_size: prompts at once. 16 prompts of 20 tokens take about 1 GB at the paper's shape.

    Returns:
      [E] float64 as `eap`.

    Raises:
      ConfigError: no masks, one out of 0 .. 1, the divergence at nothing but masks of 0, or batch_size below 1.
    """
    points = _mask_points(Graph.of(config).n_edges, masks)
    if not any(point.any() for point in points):
        check_slope(target, "mask gradient where nothing is patched")
    total = np.zeros(Graph.of(config).n_edges)
    for batch, _ in batches(inputs, replacement, target, batch_size):
        for point in points:
            mask = jnp.asarray(point, replacement.dtype)
            total += np.asarray(_mask_gradient(config, params, batch, mask), np.float64) / len(points)
    return total


def random_scores(graph: Graph, seed: int) -> np.ndarray:
    """Scores drawn from the standard normal distribution: what a method without knowledge of the model gives.

    Args:
      graph: whose edges they are.
      seed: the same seed gives the same scores.

    Returns:
      [E] float64.
    """
    return np.random.default_rng(seed).standard_normal(graph.n_edges)


def check_slope(target: Target, method: str) -> None:
    """Refuses a metric that has no slope at the clean run.

    Raises:
      ConfigError: it has none.
    """
    if target.flat_at_model:
        raise ConfigError(f"metric='kl' gives zeros everywhere for {method}: the divergence is least at the clean run "
                          "itself, so its derivative there is zero; take metric='logit_difference', EAP-IG, or the "
                          "mask gradient at masks above 0")


def check_steps(steps: int) -> None:
    """Refuses a path without points.

    Raises:
      ConfigError: steps is below 1.
    """
    if steps < 1:
        raise ConfigError(f"steps={steps} must be at least 1; it is the number of points between the ablated and the "
                          "clean embedding, 5 by default")


def path(start: jax.Array, replacement: jax.Array, steps: int) -> list[jax.Array]:
    """Embeddings [n, T, D] from the replaced ones, included, towards the clean ones ``start`` [n, T, D], excluded."""
    return [replacement[0] + (j / steps) * (start - replacement[0]) for j in range(steps)]


@functools.partial(jax.jit, static_argnums=0)
def start_and_change(config: ModelConfig, params: Params, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Clean embeddings [m, T, D], and what patching changes in each source [S, m, T, D]."""
    sources = run(config, params, batch.inputs).sources
    return sources[0], batch.replacement - sources


@functools.partial(jax.jit, static_argnums=0)
@exact
def _edge_scores(config: ModelConfig, params: Params, batch: Batch, start: jax.Array, change: jax.Array) -> jax.Array:
    """[E]: changes [S, m, T, D] of sources times derivatives of what destinations read, at a run from ``start``."""
    graph = Graph.of(config)
    grads, clean = gradients(config, params, batch.inputs, start, batch.target, batch.weight)
    scores = [jnp.einsum("sbd,bd->s", change[:, :, -1], grads.streams[-1][:, -1])]
    for i in reversed(range(config.n_layers)):
        scores.append(jnp.einsum("sbtd,btd->s", change[: graph.mlp(i)], grads.mlp_inputs[i]))
        ports = grads.input_gradients(config, params, clean.streams[2 * i], i)
        heads = _products(ports, change[: graph.head(i, 0)])
        scores.append(heads.reshape(3, config.n_heads, -1).swapaxes(0, 1).reshape(-1))
    return jnp.concatenate(scores)


def _products(ports: jax.Array, change: jax.Array) -> jax.Array:
    """[3 N, S] from [3, N, n, T, D] and [S, n, T, D]: the bulk of the arithmetic, as one plain product of matrices.

    In this order XLA's CPU product is up to twice as fast as what it makes of the sum written by letters.
    """
    return (change.reshape(change.shape[0], -1) @ ports.reshape(-1, change[0].size).T).T


@functools.partial(jax.jit, static_argnums=0)
@exact
def _mask_gradient(config: ModelConfig, params: Params, batch: Batch, mask: jax.Array) -> jax.Array:
    def score(mask):
        final = patched_final(config, params, batch.inputs, mask, batch.replacement)
        return jnp.sum(batch.target.values(final) * batch.weight)

    return jax.grad(score)(mask)


def _mask_points(n_edges: int, masks: Sequence[float | np.ndarray]) -> list[np.ndarray]:
    """Each [E] float64."""
    if not len(masks):
        raise ConfigError("masks is empty; give at least one number in 0 .. 1")
    points = []
    for mask in masks:
        values = np.asarray(mask, np.float64)
        if values.shape not in ((), (n_edges,)):
            raise ConfigError(f"a mask has shape {values.shape}; give a number, or one for each of {n_edges} edges")
        if not ((values >= 0) & (values <= 1)).all():
            raise ConfigError(f"a mask has values {values.min():g} .. {values.max():g}; they must lie in 0 .. 1")
        points.append(np.broadcast_to(values, (n_edges,)))
    return points

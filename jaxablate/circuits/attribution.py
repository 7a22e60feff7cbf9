"""Scores of edges, nodes, neurons and attention channels by derivatives, and random scores as their control.

A score estimates by how much the metric changes when the edge alone is patched (`effects.effects` computes that
exactly). Its sign is the change's: an edge that matters lowers the logit difference and raises the divergence.
`metrics.importance` turns both the same way.

In the clean run all copies of the residual stream within a layer are equal, so nothing needs 3 N copies of it: the pass
back stops at queries, keys and values, and the way from there to a head's own input is a small linear map for each.
Where a norm follows attention, all destinations read the same sum of heads there, so what patching changes in a head
goes through the derivative of that norm once, for all of them.

Scores of edges, nodes and units are consistent. The derivative with respect to what a node writes is the sum of those
with respect to what its readers read, so a node's score is the sum of EAP over its outgoing edges; and as output
matrices are linear, a head's is the sum over its channels and an MLP's over its neurons (not under zero ablation, which
takes the MLP's output bias away too).
"""

import functools
from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxablate.circuits.blocks import Block, Decoder, Inputs, blocks, exact
from jaxablate.circuits.graph import Graph
from jaxablate.circuits.patching import (
    Activations,
    Edits,
    ablated_values,
    no_edits,
    ordinary_run,
    patched_final,
    source_run,
)
from jaxablate.circuits.problem import Batch, Problem, take_prompts, takes_problem
from jaxablate.errors import ConfigError
from jaxablate.types import Params


@flax.struct.dataclass
class UnitScores:
    """Scores of the units inside nodes; means over prompts, in the metric's unit, signed as those of edges."""

    neurons: Float[np.ndarray, "layers neurons"]
    """MLP neurons, as the down-projection reads them."""
    channels: Float[np.ndarray, "layers heads width"]
    """Attention channels, as the heads' output matrices read them."""

    def __repr__(self) -> str:
        return f"UnitScores(neurons float64{list(self.neurons.shape)}, channels float64{list(self.channels.shape)})"


@takes_problem
def eap(problem: Problem, *, batch_size: int | None = None) -> Float[np.ndarray, " edges"]:
    """Edge attribution patching (Syed et al. 2023): first-order estimate of what patching each edge does.

    s(u -> v) = sum over positions and channels of (replacement(u) - clean(u)) . dm / d in(v) at the clean run. The
    derivative is total: it takes in everything after v. Equals the derivative of the metric with respect to the edge
    mask where nothing is patched. Scores are means over prompts, in the metric's unit, float64 in the graph's order.
    A ``batch_size`` of 64 prompts of 20 tokens takes 0.6 GB at the paper's shape; of 16 tokens 10 GB at that of GPT-2
    small (12 blocks of 12 heads, 768 wide), so take 16 there.

    Raises:
      ConfigError: the metric is the divergence, whose derivative at the clean run is zero; or batch_size is below 1.
    """
    _check_slope(problem, "EAP")
    return _attribute(problem, None, batch_size)


@takes_problem
def eap_ig(problem: Problem, *, steps: int = 5, batch_size: int | None = None) -> Float[np.ndarray, " edges"]:
    """EAP with integrated gradients over the model's input (Hanna et al. 2024).

    As `eap`, with the derivative averaged over ordinary runs from the embeddings x' + (j / steps) (x - x'), j = 0 ..
    steps - 1, where x is the clean embedding and x' its replacement: the corrupt one under resample ablation, zero or a
    mean under the others. Never at the clean run itself, so it serves the divergence too. The time grows with steps.

    Raises:
      ConfigError: steps or batch_size is below 1.
    """
    _check_steps(steps)
    return _attribute(problem, steps, batch_size)


@takes_problem
def mask_gradient(problem: Problem, *, masks: Sequence[float | np.ndarray] | np.ndarray = (0.0,), batch_size: int = 16
                  ) -> Float[np.ndarray, " edges"]:
    """Derivative of the metric with respect to the edge mask, averaged over points of it.

    At 0, nothing patched, it is `eap`. Over ((1/2) / k, (3/2) / k, ...) it integrates from nothing to everything
    patched, and the scores then sum up to the change of the metric between the two, but for the error of the sum.

    Args:
      problem: the model and its prompts.
      masks: each a number in 0 .. 1 for all edges, or [E]: by how much edges are patched where the derivative is taken.
      batch_size: prompts at once. 16 prompts of 20 tokens take about 1 GB at the paper's shape.

    Raises:
      ConfigError: no masks, one out of 0 .. 1, the divergence at nothing but masks of 0, or batch_size below 1.
    """
    points = _mask_points(problem.graph.n_edges, masks)
    if not any(point.any() for point in points):
        _check_slope(problem, "mask gradient where nothing is patched")
    total = np.zeros(problem.graph.n_edges)
    for batch, _ in problem.batches(batch_size):
        for point in points:
            mask = np.asarray(point, batch.weight.dtype)
            total += np.asarray(_mask_gradient(batch, mask), np.float64) / len(points)
    return total


def random_scores(graph: Graph, seed: int) -> Float[np.ndarray, " edges"]:
    """Scores drawn from the standard normal distribution: what a method without knowledge of the model gives."""
    return np.random.default_rng(seed).standard_normal(graph.n_edges)


@takes_problem
def node_eap(problem: Problem, *, steps: int | None = None, batch_size: int | None = None
             ) -> Float[np.ndarray, " sources"]:
    """First-order estimate of what patching all outgoing edges of each node does.

    Without ``steps`` the derivative is that at the clean run, as in `eap`, which see; with a number of them it is
    averaged as in `eap_ig`.
    """
    _check_slope(problem, "EAP") if steps is None else _check_steps(steps)
    return _attribute(problem, steps, batch_size, of_nodes=True)


@takes_problem
def neuron_eap(problem: Problem, *, steps: int | None = None, batch_size: int | None = None) -> UnitScores:
    """First-order estimate of what ablating a single neuron or attention channel does.

    Units are given what the problem's ablation makes of their values in the corrupt run. ``steps`` as in `node_eap`.
    """
    _check_slope(problem, "EAP") if steps is None else _check_steps(steps)
    values = _unit_values(problem.decoder, problem.params, problem.corrupt)
    start, channels, neurons = (
        ablated_values(problem.ablation, x, problem.corrupt.valid, problem.stream == "ablated") for x in values)
    total, done = None, 0
    for batch, real in problem.batches(batch_size, start):
        rows = np.minimum(np.arange(done, done + batch.weight.size), len(problem.pairs) - 1)
        clean, *units = _unit_values(batch.decoder, batch.params, batch.inputs)
        changes = [take_prompts(new, rows) - old for new, old in zip((channels, neurons), units, strict=True)]
        points = _points(clean[0], batch.replacement, steps)
        for point in points:
            found = [np.asarray(x, np.float64) / len(points) for x in _unit_scores(batch, point, *changes)]
            total = found if total is None else [a + b for a, b in zip(total, found, strict=True)]
        done += real
    assert total is not None  # there is at least one prompt
    return UnitScores(channels=total[0], neurons=total[1])


def _check_slope(problem: Problem, method: str) -> None:
    if problem.target.flat_at_model:
        raise ConfigError(f"metric='kl' gives zeros everywhere for {method}: the divergence is least at the clean run "
                          "itself, so its derivative there is zero; take metric='logit_difference', EAP-IG, or the "
                          "mask gradient at masks above 0")


def _check_steps(steps: int) -> None:
    if steps < 1:
        raise ConfigError(f"steps={steps} must be at least 1; it is the number of points between the ablated and the "
                          "clean embedding, 5 by default")


def _attribute(problem: Problem, steps: int | None, batch_size: int | None, of_nodes: bool = False) -> np.ndarray:
    """Scores of edges [E], or of nodes [S], with the derivative at the clean run or averaged over a path."""
    graph, scores_of = problem.graph, _node_scores if of_nodes else _edge_scores
    total = np.zeros(graph.n_sources if of_nodes else graph.n_edges)
    for batch, _ in problem.batches(batch_size):
        start, change = _start_and_change(batch)
        points = _points(start, batch.replacement, steps)
        for point in points:
            total += np.asarray(scores_of(batch, point, change), np.float64) / len(points)
    return total


def _points(start: jax.Array, replacement: jax.Array, steps: int | None) -> list[jax.Array]:
    """Embeddings [n, T, D] where derivatives are taken: the clean ones ``start``, or a path that ends before them."""
    if steps is None:
        return [start]
    return [replacement[0] + (j / steps) * (start - replacement[0]) for j in range(steps)]


@jax.jit
def _start_and_change(batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Clean embeddings [m, T, D], and what patching changes in each source [S, m, T, D]."""
    sources = source_run(batch.decoder, batch.params, batch.inputs).sources
    return sources[0], batch.replacement - sources


def _gradients(batch: Batch, start: jax.Array) -> tuple[Edits, Activations]:
    """Derivatives of the mean metric at the ordinary run from ``start``, laid out as edits, and that run."""

    def score(edits: Edits) -> tuple[jax.Array, Activations]:
        run = ordinary_run(batch.decoder, batch.params, batch.inputs, start, edits)
        return jnp.sum(batch.target.values(run.final) * batch.weight), run

    return jax.grad(score, has_aux=True)(no_edits(batch.decoder, batch.inputs, start.dtype))


@jax.jit
@exact
def _edge_scores(batch: Batch, start: jax.Array, change: jax.Array) -> jax.Array:
    """[E]: changes [S, m, T, D] of sources times derivatives of what destinations read, at a run from ``start``."""
    decoder, graph = batch.decoder, batch.decoder.graph
    of_prompts = blocks(decoder, batch.params, batch.inputs)
    grads, run = _gradients(batch, start)
    change = _through_post_norms(of_prompts, run, change)
    scores = [jnp.einsum("sbd,bd->s", change[:, :, -1], grads.streams[-1][:, -1])]
    for i, block in reversed(list(enumerate(of_prompts))):
        before = change[: graph.destination(f"MLP {i}").fan_in]
        scores.append(jnp.einsum("sbtd,btd->s", before, grads.mlp_inputs[i]))
        heads = _products(_read_gradients(block, run.streams[2 * i], grads.ports[i]), change[: graph.head(i, 0)])
        scores.append(graph.by_edge(heads))
    return jnp.concatenate(scores)


def _through_post_norms(of_prompts: Sequence[Block], run: Activations, change: jax.Array) -> jax.Array:
    """What small changes of sources [S, n, T, D] come to in the stream: those of heads pass the norm that follows."""
    decoder = of_prompts[0].decoder
    if not decoder.post_norms:
        return change
    parts = [change[:1]]
    for i, (block, total) in enumerate(zip(of_prompts, run.totals, strict=True)):
        pull = jax.vjp(block.post_norm, total)[1]  # linear, and its own transpose is the derivative forwards
        push = jax.linear_transpose(lambda d, pull=pull: pull(d)[0], total)
        first, mlp = decoder.graph.head(i, 0), decoder.graph.mlp(i)
        parts += [jax.vmap(lambda c, push=push: push(c)[0])(change[first:mlp]), change[mlp : mlp + 1]]
    return jnp.concatenate(parts)


def _read_gradients(block: Block, stream: jax.Array, ports: Sequence[jax.Array]) -> jax.Array:
    """[N + 2 K, n, T, D] derivatives with respect to what queries, keys and values read, before their norm.

    Args:
      block: the block of the heads.
      stream: [n, T, D] residual stream that enters it.
      ports: derivatives with respect to queries [N, n, T, H], keys and values [K, n, T, H].
    """
    normed, pull_norm = jax.vjp(lambda x: block.decoder.read(block.weights, x), stream)
    through_norm = jax.vmap(lambda d: pull_norm(d)[0])

    def pulled(port: int, d: jax.Array) -> jax.Array:
        # Each head reads a stream of its own, all equal here; projections are linear, so this keeps nothing.
        own = jnp.broadcast_to(normed, (d.shape[0], *normed.shape))
        return through_norm(jax.vjp(functools.partial(block.project, port), own)[1](d)[0])

    # Ports are put together after the norm: before it, XLA's CPU code takes twice the time.
    return jnp.concatenate([pulled(port, d) for port, d in enumerate(ports)])


def _products(ports: jax.Array, change: jax.Array) -> jax.Array:
    """[R, S] from [R, n, T, D] and [S, n, T, D]: the bulk of the arithmetic, as one plain product of matrices.

    In this order XLA's CPU product is up to twice as fast as what it makes of the sum written by letters.
    """
    return (change.reshape(change.shape[0], -1) @ ports.reshape(-1, change[0].size).T).T


@jax.jit
@exact
def _node_scores(batch: Batch, start: jax.Array, change: jax.Array) -> jax.Array:
    """[S]: changes of sources times the derivative with respect to the stream where it is first read with them."""
    grads, run = _gradients(batch, start)
    change = _through_post_norms(blocks(batch.decoder, batch.params, batch.inputs), run, change)
    entered = batch.decoder.graph.written_into
    return jnp.concatenate([jnp.einsum("sbtd,btd->s", change[entered == i], g) for i, g in enumerate(grads.streams)])


@jax.jit
@exact
def _mask_gradient(batch: Batch, mask: Float[Array, " edges"]) -> Float[Array, " edges"]:
    def score(mask: jax.Array) -> jax.Array:
        final = patched_final(batch.decoder, batch.params, batch.inputs, mask, batch.replacement)
        return jnp.sum(batch.target.values(final) * batch.weight)

    return jax.grad(score)(mask)


@functools.partial(jax.jit, static_argnums=0)
@exact
def _unit_values(decoder: Decoder, params: Params, inputs: Inputs) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Embeddings [1, n, T, D], channels [L N, n, T, H] and neurons [L, n, T, F] of an ordinary run."""
    run = ordinary_run(decoder, params, inputs)
    return run.streams[0][None], jnp.concatenate(run.channels), jnp.stack(run.neurons)


@jax.jit
@exact
def _unit_scores(batch: Batch, start: jax.Array, channels: jax.Array, neurons: jax.Array
                 ) -> tuple[jax.Array, jax.Array]:
    """[L, N, H] and [L, F] from the changes of units and the derivatives at a run from ``start``."""
    grads, _ = _gradients(batch, start)
    slopes = jnp.stack(grads.channels)
    return ((channels.reshape(slopes.shape) * slopes).sum((2, 3)), (neurons * jnp.stack(grads.neurons)).sum((1, 2)))


def _mask_points(n_edges: int, masks: Sequence[float | np.ndarray] | np.ndarray) -> list[np.ndarray]:
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

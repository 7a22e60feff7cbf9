"""EAP for nodes, and for what nodes are made of: neurons of MLPs and channels of attention heads.

All are (replaced value - clean value) . dm / d value, summed over positions. They are consistent with edges: the
derivative with respect to what a node writes is the sum of those with respect to what its readers read. So a node's
score is the sum of `attribution.eap` over its outgoing edges; and as output matrices are linear, a head's is the sum
over its channels and an MLP's over its neurons (not under zero ablation, which takes the MLP's output bias away too).
"""

import functools

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jaxablate.circuits.attribution import check_slope, check_steps, path, start_and_change
from jaxablate.circuits.batches import Batch, batches, take_prompts
from jaxablate.circuits.gradients import gradients, no_edits, ordinary_run
from jaxablate.circuits.graph import Graph
from jaxablate.circuits.metrics import Target
from jaxablate.circuits.nodes import Inputs, Params, embed
from jaxablate.circuits.patching import Ablation, ablated_values, exact
from jaxablate.config import ModelConfig


@flax.struct.dataclass
class UnitScores:
    """Scores of the units inside nodes; means over prompts, in the metric's unit, signed as those of edges."""

    neurons: np.ndarray
    """[L, F] float64 of MLP neurons, as the down-projection reads them."""
    channels: np.ndarray
    """[L, N, H] float64 of attention channels, as the heads' output matrices read them."""


def node_eap(config: ModelConfig, params: Params, inputs: Inputs, replacement: jax.Array, target: Target, *,
             steps: int | None = None, batch_size: int = 64) -> np.ndarray:
    """First-order estimate of what patching all outgoing edges of a node does.

    Args:
      config, params, inputs, replacement, target, batch_size: as for `attribution.eap`.
      steps: None takes the derivative at the clean run; a number averages it as `attribution.eap_ig` does.

    Returns:
      [S] float64 by source, mean over prompts.

    Raises:
      ConfigError: as `attribution.eap`, or as `attribution.eap_ig` with steps.
    """
    _check(target, steps)
    total = np.zeros(Graph.of(config).n_sources)
    for batch, _ in batches(inputs, replacement, target, batch_size):
        start, change = start_and_change(config, params, batch)
        points = [start] if steps is None else path(start, batch.replacement, steps)
        for point in points:
            total += np.asarray(_node_scores(config, params, batch, point, change), np.float64) / len(points)
    return total


def neuron_eap(config: ModelConfig, params: Params, inputs: Inputs, corrupt: Inputs, target: Target, *,
               ablation: Ablation = "resample", steps: int | None = None, batch_size: int = 64) -> UnitScores:
    """First-order estimate of what ablating a single neuron or attention channel does.

    Args:
      config, params, inputs, target, batch_size: as for `attribution.eap`.
      corrupt: the corrupt prompts [n, T]: what units are given comes from the run on them.
      ablation: what units are given, as in `patching.make_replacement`.
      steps: None takes the derivative at the clean run; a number averages it from the embeddings that the ablation
        gives to the clean ones, as `attribution.eap_ig` does.

    Raises:
      ConfigError: as `attribution.eap`, or as `attribution.eap_ig` with steps; or the ablation is unknown.
    """
    _check(target, steps)
    embedding, channels, neurons = _unit_values(config, params, corrupt)
    gated = corrupt.neuron_gates is not None
    given = [ablated_values(ablation, x, corrupt.valid, gated) for x in (channels, neurons)]
    start = ablated_values(ablation, embedding, corrupt.valid, gated)
    total, done = None, 0
    for batch, real in batches(inputs, start, target, batch_size):
        rows = np.minimum(np.arange(done, done + batch.weight.size), inputs.tokens.shape[0] - 1)
        values = [take_prompts(x, rows) for x in given]
        found = _batch_unit_scores(config, params, batch, values, steps)
        total = found if total is None else jax.tree.map(np.add, total, found)
        done += real
    return total


def _check(target: Target, steps: int | None) -> None:
    if steps is None:
        check_slope(target, "EAP")
    else:
        check_steps(steps)


@functools.partial(jax.jit, static_argnums=0)
@exact
def _node_scores(config: ModelConfig, params: Params, batch: Batch, start: jax.Array, change: jax.Array) -> jax.Array:
    """[S]; a source of layer j of the graph writes into the stream that enters layer j + 1."""
    grads, _ = gradients(config, params, batch.inputs, start, batch.target, batch.weight)
    entered = Graph.of(config).source_layers + 1
    of_layer = [jnp.einsum("sbtd,btd->s", change[entered == i], g) for i, g in enumerate(grads.streams)]
    return jnp.concatenate(of_layer)


@functools.partial(jax.jit, static_argnums=0)
@exact
def _unit_values(config: ModelConfig, params: Params, inputs: Inputs) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Embeddings [1, n, T, D], channels [L N, n, T, H] and neurons [L, n, T, F] of an ordinary run."""
    start = embed(config, params, inputs)
    units = ordinary_run(config, params, inputs, start, no_edits(config, start))
    return start[None], jnp.concatenate(units.channels), jnp.stack(units.neurons)


def _batch_unit_scores(config, params, batch: Batch, values: list[jax.Array], steps: int | None) -> UnitScores:
    start, channels, neurons = _unit_values(config, params, batch.inputs)
    points = [start[0]] if steps is None else path(start[0], batch.replacement, steps)
    found = [_unit_scores(config, params, batch, point, values[0] - channels, values[1] - neurons) for point in points]
    parts = [np.mean([np.asarray(f[i], np.float64) for f in found], axis=0) for i in range(2)]
    return UnitScores(channels=parts[0], neurons=parts[1])


@functools.partial(jax.jit, static_argnums=0)
@exact
def _unit_scores(config: ModelConfig, params: Params, batch: Batch, start: jax.Array, channels: jax.Array,
                 neurons: jax.Array) -> tuple[jax.Array, jax.Array]:
    """[L, N, H] and [L, F] from the changes of units and the derivatives at a run from ``start``."""
    grads, _ = gradients(config, params, batch.inputs, start, batch.target, batch.weight)
    channels = channels.reshape(config.n_layers, config.n_heads, *channels.shape[1:])
    of_channels, of_neurons = [], []
    for i in range(config.n_layers):
        block = params[f"layer_{i}"]
        slopes = jnp.einsum("btd,nhd->nbth", grads.streams[2 * i + 1], block["attention"]["out"]["kernel"])
        of_channels.append((channels[i] * slopes).sum((1, 2)))
        slopes = grads.streams[2 * i + 2] @ block["mlp"]["down"]["kernel"].T
        of_neurons.append((neurons[i] * slopes).sum((0, 1)))
    return jnp.stack(of_channels), jnp.stack(of_neurons)

"""Derivatives of a metric with respect to what every node reads and writes, by one pass forward and one back.

In the clean run all copies of the residual stream within a layer are equal, so nothing needs 3 N copies of it: the pass
back stops at queries, keys and values, and the way from there to a head's own input is a small linear map for each.
"""

import flax.struct
import jax
import jax.numpy as jnp

from jaxablate.circuits import nodes
from jaxablate.circuits.metrics import Target
from jaxablate.circuits.nodes import Inputs, Params
from jaxablate.circuits.patching import head_gate, neuron_gate
from jaxablate.config import ModelConfig
from jaxablate.models.layers import Mlp
from jaxablate.ops.attention import masked_attention
from jaxablate.ops.normalization import layer_norm


@flax.struct.dataclass
class Edits:
    """Additions to an ordinary run; derivatives with respect to them are derivatives with respect to what they edit."""

    ports: tuple[jax.Array, ...]
    """L times [3, N, n, T, H], to queries, keys and values."""
    mlp_inputs: tuple[jax.Array, ...]
    """L times [n, T, D], to what the MLP of a block reads, before its norm, and nothing else."""
    streams: tuple[jax.Array, ...]
    """2 L + 1 times [n, T, D], to the residual stream that enters each layer of the graph, for all who read it. So it
    is also the derivative with respect to what the nodes of the layer before write."""

    def input_gradients(self, config: ModelConfig, params: Params, stream: jax.Array, block: int) -> jax.Array:
        """Of derivatives: [3, N, n, T, D] with respect to what each head's ports read, before their norm.

        Args:
          config: of the model.
          params: its weights.
          stream: [n, T, D] residual stream that enters the block.
          block: number of the block.
        """
        weights = params[f"layer_{block}"]
        kernels = [weights["attention"][name]["kernel"] for name in nodes.PORT_NAMES]
        normed = jnp.einsum("pnbth,pdnh->pnbtd", self.ports[block], jnp.stack(kernels))
        pull = jax.vjp(lambda x: norm(config, weights["ln_1"], x), stream)[1]
        return jax.vmap(jax.vmap(lambda d: pull(d)[0]))(normed)


@flax.struct.dataclass
class Activations:
    """One ordinary run, unit by unit."""

    streams: tuple[jax.Array, ...]
    """2 L + 1 times [n, T, D]: what enters each layer of the graph."""
    ports: tuple[jax.Array, ...]
    """L times [3, N, n, T, H]: queries, keys and values."""
    channels: tuple[jax.Array, ...]
    """L times [N, n, T, H]: head outputs as the output matrix reads them, gates applied."""
    neurons: tuple[jax.Array, ...]
    """L times [n, T, F]: neurons as the down-projection reads them, gates applied."""
    final: jax.Array
    """[n, D]."""


def no_edits(config: ModelConfig, start: jax.Array) -> Edits:
    """Zeros, for a run that begins with ``start`` [n, T, D]."""
    batch, length, _ = start.shape
    ports = jnp.zeros((3, config.n_heads, batch, length, config.head_width), start.dtype)
    n, zero = config.n_layers, jnp.zeros_like(start)
    return Edits(ports=(ports,) * n, mlp_inputs=(zero,) * n, streams=(zero,) * (2 * n + 1))


def ordinary_run(config: ModelConfig, params: Params, inputs: Inputs, start: jax.Array, edits: Edits) -> Activations:
    """A run from any values of the embedding, with additions.

    Args:
      config: of the model.
      params: its weights.
      inputs: prompts; their tokens are not looked at.
      start: [n, T, D] in place of the embeddings.
      edits: additions.
    """
    visible, length = nodes.visible(config, inputs.valid), start.shape[1]
    x = start + edits.streams[0]
    streams, ports, channels, neurons = [x], [], [], []
    for i in range(config.n_layers):
        block = params[f"layer_{i}"]
        ports.append(_ports(config, block, x) + edits.ports[i])
        gate = head_gate(inputs, i, length)
        out = masked_attention(*ports[i], visible[i], scale=config.attention_scale)
        channels.append(out if gate is None else out * gate)
        attention = block["attention"]["out"]
        x = x + jnp.einsum("nbth,nhd->btd", channels[-1], attention["kernel"]) + attention["bias"]
        x = x + edits.streams[2 * i + 1]
        streams.append(x)
        normed = norm(config, block["ln_2"], x + edits.mlp_inputs[i])
        gate = neuron_gate(inputs, i, length)
        _, post, out = Mlp(config).apply({"params": block["mlp"]}, normed, gate)
        neurons.append(post if gate is None else post * gate)
        x = x + out + edits.streams[2 * i + 2]
        streams.append(x)
    final = nodes.final_norm(config, params, x[:, -1])
    return Activations(tuple(streams), tuple(ports), tuple(channels), tuple(neurons), final)


def gradients(config: ModelConfig, params: Params, inputs: Inputs, start: jax.Array, target: Target, weight: jax.Array
              ) -> tuple[Edits, Activations]:
    """Derivatives of the weighted sum of a metric over prompts, at an ordinary run.

    Args:
      config: of the model.
      params: its weights.
      inputs: prompts.
      start: [n, T, D] what the run begins with.
      target: the metric.
      weight: [n] of the prompts.

    Returns:
      The derivatives, laid out as the edits they belong to, and the run.
    """

    def score(edits: Edits):
        run = ordinary_run(config, params, inputs, start, edits)
        return jnp.sum(target.values(run.final) * weight), run

    return jax.grad(score, has_aux=True)(no_edits(config, start))


def norm(config: ModelConfig, weights: Params, x: jax.Array) -> jax.Array:
    """Layer norm of streams [..., D] with the weights of a block's ``ln_1`` or ``ln_2``."""
    return layer_norm(x, weights["scale"], weights["bias"], config.layer_norm_eps)


def _ports(config: ModelConfig, block: Params, x: jax.Array) -> jax.Array:
    """[3, N, n, T, H] queries, keys and values of all heads from one stream [n, T, D]."""
    normed = norm(config, block["ln_1"], x)
    kernels = [block["attention"][name]["kernel"] for name in nodes.PORT_NAMES]
    return jnp.einsum("btd,pdnh->pnbth", normed, jnp.stack(kernels))

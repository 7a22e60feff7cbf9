"""What single nodes of a decoder compute: one head or one MLP, from a residual stream of its own.

The model computes all heads of a block from one stream; here each may have another. Norm, MLP, attention and gates are
the model's own (`ops.normalization`, `models.layers.Mlp`, `ops.attention`). Weights are those of the model, or of its
blocks stacked (`stack_blocks`), so that one compiled function serves every layer and head.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jaxablate.config import ModelConfig
from jaxablate.models.layers import Mlp
from jaxablate.ops.attention import visible_keys
from jaxablate.ops.normalization import layer_norm

Params = Any
PORT_NAMES = ("query", "key", "value")
"""Names of the kernels of the ports Q, K, V."""


@flax.struct.dataclass
class Inputs:
    """Prompts of one length as the nodes take them; padding at the left."""

    tokens: jax.Array
    """[n, T] int."""
    valid: jax.Array
    """[n, T] bool, False at padding. The last position is a real token."""
    attention_gates: jax.Array | None = None
    """[n, L, N, H] at the last position, for the ablated stream; None for the clean one."""
    neuron_gates: jax.Array | None = None
    """[n, L, F] likewise."""


def embed(config: ModelConfig, params: Params, inputs: Inputs) -> jax.Array:
    """[n, T, D] token plus position embedding; positions count from the first real token, padding has none."""
    position = jnp.maximum(jnp.cumsum(inputs.valid, axis=-1) - 1, 0)
    places = params["pos_embed"]["embedding"][position] * inputs.valid[..., None]
    return params["embed"]["embedding"][inputs.tokens] + places


def project(config: ModelConfig, block: Params, port: int, x: jax.Array) -> jax.Array:
    """Queries, keys or values [N, ..., H] of all heads, each from its own stream x [N, ..., D]; port 0, 1, 2."""
    normed = layer_norm(x, block["ln_1"]["scale"], block["ln_1"]["bias"], config.layer_norm_eps)
    return jnp.einsum("n...d,dnh->n...h", normed, block["attention"][PORT_NAMES[port]]["kernel"])


def project_head(config: ModelConfig, norm: Params, kernel: jax.Array, x: jax.Array) -> jax.Array:
    """Queries, keys or values [..., H] of one head from its stream x [..., D], kernel [D, H]."""
    return layer_norm(x, norm["scale"], norm["bias"], config.layer_norm_eps) @ kernel


def write_heads(block: Params, head_out: jax.Array) -> jax.Array:
    """What heads add to the stream, [N, ..., D] from [N, ..., H]; the output bias belongs to no head."""
    return jnp.einsum("n...h,nhd->n...d", head_out, block["attention"]["out"]["kernel"])


def mlp(config: ModelConfig, block: Params, x: jax.Array, gate: jax.Array | None = None) -> jax.Array:
    """What an MLP adds to the stream [..., D], from the stream before its norm; gate [..., F] or None."""
    normed = layer_norm(x, block["ln_2"]["scale"], block["ln_2"]["bias"], config.layer_norm_eps)
    return Mlp(config).apply({"params": block["mlp"]}, normed, gate)[2]


def final_norm(config: ModelConfig, params: Params, x: jax.Array) -> jax.Array:
    """The stream [..., D] as the output matrix reads it."""
    return layer_norm(x, params["ln_f"]["scale"], params["ln_f"]["bias"], config.layer_norm_eps)


def unembed(params: Params, final: jax.Array) -> jax.Array:
    """Logits [..., V] of the normed stream [..., D]."""
    return final @ params["embed"]["embedding"].T


def visible(config: ModelConfig, valid: jax.Array) -> tuple[jax.Array, ...]:
    """For each block the keys its queries see, [n, T, T] bool."""
    return tuple(visible_keys(valid, config.layer_window(i)) for i in range(config.n_layers))


def spread_gate(gate: jax.Array | None, positions: int) -> jax.Array | None:
    """A gate [n, X] of the last position as a factor [n, positions, X] that is 1 before it.

    A token's gates act on that token alone, and later tokens read its clean stream. So at a position that only reads,
    the ablated stream is a stream that is gated at that position and clean before it (docs/papers.md, Two streams).
    """
    if gate is None:
        return None
    before = jnp.ones((gate.shape[0], positions - 1, gate.shape[1]), gate.dtype)
    return jnp.concatenate([before, gate[:, None]], axis=1)


def stack_blocks(config: ModelConfig, params: Params) -> Params:
    """The blocks' weights with a leading axis [L, ...], without score heads."""
    names = ("ln_1", "ln_2", "attention", "mlp")
    blocks = [{name: params[f"layer_{i}"][name] for name in names} for i in range(config.n_layers)]
    return jax.tree.map(lambda *x: jnp.stack(x), *blocks)


def in_type(params: Params, dtype: Any) -> Params:
    """Weights in a floating type."""
    return jax.tree.map(lambda x: jnp.asarray(np.asarray(x), dtype), params)

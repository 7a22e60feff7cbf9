"""What a block of a decoder computes on given prompts: the one place that every run of a circuit is made from.

`Decoder` is a protocol of small steps: embed, norm and project for one head or for all, attend, combine heads, MLP,
final norm and output matrix. `SelfAblatingDecoder` takes these steps with the parts of `jaxablate.models`; another
family of models adds another class and `decoder_for` chooses it. A `Block` is one block of a decoder with the masks
and gates of certain prompts. The ordinary run and the patched run (`patching`), derivatives (`attribution`) and effects
of single edges (`effects`) are loops over blocks; the search (`live`) calls single steps.

Positions: arrays have T of them, or 1, the last alone, where nothing else is read. Prompts are padded at the left.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, Protocol, TypeVar

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jaxablate.circuits.graph import Graph
from jaxablate.config import ModelConfig
from jaxablate.errors import ConfigError
from jaxablate.models.decoder import SelfAblatingTransformer, output_matrix
from jaxablate.models.layers import activated, normalised
from jaxablate.ops.attention import masked_attention, visible_keys
from jaxablate.ops.cap import capped
from jaxablate.ops.rotary import rotate
from jaxablate.types import Params

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


def exact(function: Callable[P, R]) -> Callable[P, R]:
    """Matrix products in the full precision of their type, on accelerators too: an edge's effect may be tiny."""

    @functools.wraps(function)
    def inner(*args: P.args, **kwargs: P.kwargs) -> R:
        with jax.default_matmul_precision("highest"):
            return function(*args, **kwargs)

    return inner


@flax.struct.dataclass
class Inputs:
    """Prompts of one padded length as the blocks take them."""

    tokens: jax.Array
    """[n, T] int."""
    valid: jax.Array
    """[n, T] bool, False at padding. The last position is a real token."""
    attention_gates: jax.Array | None = None
    """[n, L, N, H] at the last position, for the ablated stream; None for the clean one."""
    neuron_gates: jax.Array | None = None
    """[n, L, F] at the last position, for the ablated stream."""

    @property
    def positions(self) -> jax.Array:
        """[n, T] int, counted from each prompt's first real token; 0 at padding."""
        return jnp.maximum(jnp.cumsum(self.valid, axis=-1) - 1, 0)

    def take(self, rows: np.ndarray) -> "Inputs":
        """The prompts ``rows`` [m] int."""
        if np.array_equal(rows, np.arange(len(self.tokens))):  # then nothing is copied, or compiled
            return self
        return take_rows(self, rows)


@jax.jit
def take_rows(values: T, rows: jax.typing.ArrayLike) -> T:
    """The same pytree with only the given rows (int, [m]) of each of its arrays."""
    return jax.tree.map(lambda x: x[rows], values)


class Decoder(Protocol):
    """Steps of a family of decoders. An instance is hashable: compiled functions take it as a static argument.

    D is the width of the residual stream, N the number of query heads, K that of key and value heads, H their width, F
    the number of neurons of a block. Weights of a block are a pytree whose structure and shapes are those of every
    other block, so that blocks can be stacked and indexed within a compiled function. What a class that derives from
    this one may leave out is what most families do not have: a norm after attention, a cap of the logits.
    """

    @property
    def graph(self) -> Graph:
        """Its edge graph."""
        ...

    @property
    def sizes(self) -> tuple[int, int, int]:
        """(D, F, H)."""
        ...

    def in_type(self, dtype: str) -> "Decoder":
        """The same decoder with all arithmetic in ``float32`` or ``float64``."""
        ...

    def embed(self, params: Params, inputs: Inputs) -> jax.Array:
        """[n, T, D] what enters the first block; a learned position is part of it."""
        ...

    def block(self, params: Params, index: int) -> Params:
        """Weights of a block."""
        ...

    def visible(self, valid: jax.Array, index: int) -> jax.Array:
        """[n, T, T] bool: the keys that each query of a block sees."""
        ...

    def read(self, weights: Params, x: jax.Array) -> jax.Array:
        """Streams [..., D] after the norm before attention."""
        ...

    def project(self, weights: Params, port: int, normed: jax.Array, positions: jax.Array,
                head: int | jax.Array | None = None) -> jax.Array:
        """Queries, keys or values (port 0, 1, 2) of normed streams; positions [n, T or 1] are for rotary embeddings.

        With a ``head``, which may be traced, [..., T, H] of that query head, or key and value head, from [..., T, D].
        Without, of all heads [N or K, ..., T, H], from streams of their own [N or K, ..., T, D] or one [1, ..., T, D].
        """
        ...

    def attend(self, q: jax.Array, k: jax.Array, v: jax.Array, visible: jax.Array) -> jax.Array:
        """Head outputs [..., Q, H] from queries [..., Q, H], keys and values [..., T, H] and a mask [n, Q, T]."""
        ...

    def write(self, weights: Params, channels: jax.Array, head: int | jax.Array | None = None) -> jax.Array:
        """What heads add to the stream: [N, ..., D] from head outputs [N, ..., H], or [..., D] of one head."""
        ...

    def bias(self, weights: Params) -> jax.Array:
        """[D] what attention adds that belongs to no head; 0 in families without."""
        ...

    def combine(self, weights: Params, channels: jax.Array) -> jax.Array:
        """[..., D] what all heads [N, ..., H] write, and the bias, together."""
        ...

    @property
    def post_norms(self) -> bool:
        """Whether `post_norm` changes anything: then heads do not add to the stream one by one."""
        return False

    def post_norm(self, weights: Params, total: jax.Array) -> jax.Array:
        """What attention adds to the stream [..., D], from what all heads and the bias write together."""
        del weights
        return total

    def neurons(self, weights: Params, x: jax.Array) -> jax.Array:
        """Activated neurons [..., F] of an MLP from the stream [..., D] before its norm."""
        ...

    def write_neurons(self, weights: Params, neurons: jax.Array) -> jax.Array:
        """What an MLP adds to the stream [..., D], its bias and a norm after it included, from neurons [..., F]."""
        ...

    def final_norm(self, params: Params, x: jax.Array) -> jax.Array:
        """The stream [..., D] as the output matrix reads it."""
        ...

    def unembedding(self, params: Params) -> jax.Array:
        """[V, D] rows of the output matrix: logits are their products with the normed stream, capped."""
        ...

    @property
    def logit_cap(self) -> float | None:
        """Logits are cap * tanh(products / cap); None leaves the products as they are."""
        return None

    def last_gates(self, params: Params, inputs: Inputs) -> tuple[jax.Array, jax.Array]:
        """Gates of the ablated stream at the last position, [n, L, N, H] and [n, L, F].

        Raises:
          ConfigError: there is no such stream.
        """
        ...


@dataclasses.dataclass(frozen=True)
class SelfAblatingDecoder(Decoder):
    """The `Decoder` of `jaxablate.models.decoder.SelfAblatingTransformer`, whatever family its config is of."""

    config: ModelConfig
    split: bool = False
    """Each query head has keys and values of its own, also where the model's heads share them (`Graph.split`)."""

    @property
    def graph(self) -> Graph:
        graph = Graph.of(self.config)
        return graph.split if self.split else graph

    @property
    def sizes(self) -> tuple[int, int, int]:
        return self.config.d_model, self.config.mlp_width, self.config.head_width

    def in_type(self, dtype: str) -> "SelfAblatingDecoder":
        config = dataclasses.replace(self.config, compute_dtype=dtype, param_dtype=dtype)
        return dataclasses.replace(self, config=config)

    def embed(self, params: Params, inputs: Inputs) -> jax.Array:
        x = params["embed"]["embedding"][inputs.tokens]
        if self.config.scale_embedding:
            x = x * jnp.asarray(self.config.d_model**0.5, x.dtype)
        if self.config.positions == "rotary":
            return x
        return x + params["pos_embed"]["embedding"][inputs.positions] * inputs.valid[..., None]

    def block(self, params: Params, index: int) -> Params:
        return {name: part for name, part in params[f"layer_{index}"].items() if name in _OF_A_BLOCK}

    def visible(self, valid: jax.Array, index: int) -> jax.Array:
        return visible_keys(valid, self.config.layer_window(index))

    def read(self, weights: Params, x: jax.Array) -> jax.Array:
        return self._norm(weights["ln_1"], x)

    def project(self, weights: Params, port: int, normed: jax.Array, positions: jax.Array,
                head: int | jax.Array | None = None) -> jax.Array:
        c, own = self.config, weights["attention"][("query", "key", "value")[port]]
        times = c.n_heads // c.key_heads if port and self.split else 1
        kernel, bias = own["kernel"], own.get("bias")
        if head is not None:
            out = normed @ kernel[:, head // times]
            out = out if bias is None else out + bias[head // times]
        else:
            kernel = jnp.repeat(kernel, times, axis=1) if times > 1 else kernel
            out = (jnp.einsum("...d,dnh->n...h", normed[0], kernel) if normed.shape[0] == 1
                   else jnp.einsum("n...d,dnh->n...h", normed, kernel))
            if bias is not None:
                out = out + _spread_axes(jnp.repeat(bias, times, axis=0), out.ndim)
        if not c.rotary_width or port == 2:
            return out
        return rotate(out, positions, width=c.rotary_width, theta=c.rotary_theta)

    def attend(self, q: jax.Array, k: jax.Array, v: jax.Array, visible: jax.Array) -> jax.Array:
        return masked_attention(q, k, v, visible, scale=self.config.attention_scale, cap=self.config.attention_cap)

    def write(self, weights: Params, channels: jax.Array, head: int | jax.Array | None = None) -> jax.Array:
        kernel = weights["attention"]["out"]["kernel"]
        return jnp.einsum("n...h,nhd->n...d", channels, kernel) if head is None else channels @ kernel[head]

    def bias(self, weights: Params) -> jax.Array:
        out = weights["attention"]["out"]
        return out["bias"] if "bias" in out else jnp.zeros(self.config.d_model, out["kernel"].dtype)

    def combine(self, weights: Params, channels: jax.Array) -> jax.Array:
        return jnp.einsum("n...h,nhd->...d", channels, weights["attention"]["out"]["kernel"]) + self.bias(weights)

    @property
    def post_norms(self) -> bool:
        return self.config.post_norms

    def post_norm(self, weights: Params, total: jax.Array) -> jax.Array:
        return self._norm(weights["ln_1_post"], total) if self.post_norms else total

    def neurons(self, weights: Params, x: jax.Array) -> jax.Array:
        mlp, normed = weights["mlp"], self._norm(weights["ln_2"], x)
        up, c = _linear(mlp["up"], normed), self.config
        pre, times = (_linear(mlp["gate"], normed), up) if c.mlp == "gated" else (up, None)
        return activated(c.activation, pre, times, c.mlp_top_k)

    def write_neurons(self, weights: Params, neurons: jax.Array) -> jax.Array:
        out = _linear(weights["mlp"]["down"], neurons)
        return self._norm(weights["ln_2_post"], out) if self.post_norms else out

    def final_norm(self, params: Params, x: jax.Array) -> jax.Array:
        return self._norm(params["ln_f"], x)

    def unembedding(self, params: Params) -> jax.Array:
        return output_matrix(self.config, params)

    @property
    def logit_cap(self) -> float | None:
        return self.config.logit_cap

    def last_gates(self, params: Params, inputs: Inputs) -> tuple[jax.Array, jax.Array]:
        if not self.config.gated:
            raise ConfigError("stream='ablated' needs a model with gates, this one has ablation='none'; take 'clean'")
        return _last_gates(self, params, inputs)

    def _norm(self, weights: Params, x: jax.Array) -> jax.Array:
        return normalised(self.config.norm, weights, x, self.config.layer_norm_eps)


_OF_A_BLOCK = ("ln_1", "ln_2", "ln_1_post", "ln_2_post", "attention", "mlp")
"""Parameters of a block that its clean stream has, in any family: all but its score heads."""


def _linear(weights: Params, x: jax.Array) -> jax.Array:
    """A product with a kernel, and a bias where there is one."""
    out = x @ weights["kernel"]
    return out + weights["bias"] if "bias" in weights else out


@functools.partial(jax.jit, static_argnums=0)
@exact
def _last_gates(decoder: SelfAblatingDecoder, params: Params, inputs: Inputs) -> tuple[jax.Array, jax.Array]:
    """Gates by the model's own run, which wants the padding at the right."""
    config, lengths = decoder.config, inputs.valid.sum(-1)
    place = (jnp.arange(inputs.valid.shape[1]) - lengths[:, None]) % inputs.valid.shape[1]
    tokens = jnp.take_along_axis(inputs.tokens, place, axis=1)
    gates: Any = SelfAblatingTransformer(config).apply({"params": params}, tokens)
    rows = jnp.arange(len(lengths))
    attention, neuron = (g[rows, lengths - 1] for g in (gates.gates.attention, gates.gates.neuron))
    return attention.reshape(*attention.shape[:2], config.n_heads, config.head_width), neuron


def decoder_for(config: ModelConfig, split: bool = False) -> Decoder:
    """The decoder of a config, in float32; ``split`` as in `SelfAblatingDecoder`."""
    return SelfAblatingDecoder(config, split).in_type("float32")


@flax.struct.dataclass
class Block:
    """One block with the masks and gates of certain prompts.

    All fields of the blocks of a decoder have the same shapes, so blocks can be stacked (`stack`) and indexed (`take`).
    Streams may have more axes before the prompts: [..., n, T or 1, D].
    """

    decoder: Decoder = flax.struct.field(pytree_node=False)
    weights: Params
    positions: jax.Array
    """[n, T] int."""
    visible: jax.Array
    """[n, T, T] bool."""
    head_gate: jax.Array | None
    """[N, n, T, H] factors of head outputs."""
    neuron_gate: jax.Array | None
    """[n, T, F] factors of neurons."""

    def ports(self, x: jax.Array, at_end: bool = False) -> tuple[jax.Array, ...]:
        """Queries [N, ..., n, T, H], keys and values [K, ..., n, T, H] of all heads from one stream; at the end queries
        [..., 1, H]."""
        normed = self.decoder.read(self.weights, x)[None]
        queries = normed[..., -1:, :] if at_end else normed
        return tuple(self.project(port, queries if port == 0 else normed) for port in range(3))

    def project(self, port: int, normed: jax.Array, head: int | jax.Array | None = None) -> jax.Array:
        """`Decoder.project` of this block at the last positions, as many as there are."""
        return self.decoder.project(self.weights, port, normed, self.positions[:, -normed.shape[-2] :], head)

    def channels(self, q: jax.Array, k: jax.Array, v: jax.Array, head: int | jax.Array | None = None) -> jax.Array:
        """Head outputs as the output matrix reads them: [N, ..., n, Q, H], or [..., n, Q, H] of one head.

        Keys and values are those of the query heads, [N, ...], or of the heads that share them, [K, ...].
        """
        count, group = q.shape[-2], self.decoder.graph.group
        if head is None and group > 1:
            k, v = (jnp.repeat(x, group, axis=0) if x.shape[0] < q.shape[0] else x for x in (k, v))
        out = self.decoder.attend(q, k, v, self.visible[:, -count:])
        if self.head_gate is None:
            return out
        gate = self.head_gate[..., -count:, :] if head is None else self.head_gate[head][..., -count:, :]
        return out * (gate if head is not None else _spread_axes(gate, out.ndim))

    def attention(self, x: jax.Array, at_end: bool = False) -> jax.Array:
        """What attention adds to a stream; at the end to its last position alone."""
        return self.post_norm(self.decoder.combine(self.weights, self.channels(*self.ports(x, at_end))))

    def post_norm(self, total: jax.Array) -> jax.Array:
        """`Decoder.post_norm` of this block."""
        return self.decoder.post_norm(self.weights, total)

    def after(self, x: jax.Array, at_end: bool = False) -> jax.Array:
        """The stream after the block, from the stream that enters it; at the end at its last position alone."""
        before = x[..., -1:, :] if at_end else x
        return self.after_attention(before, before + self.attention(x, at_end))

    def after_attention(self, x: jax.Array, with_attention: jax.Array) -> jax.Array:
        """The stream after the block, from the stream that enters it and the same with what attention adds."""
        return with_attention + self.mlp(x if self.decoder.graph.parallel else with_attention)

    def neurons(self, x: jax.Array) -> jax.Array:
        """Neurons [..., n, T or 1, F] as the down-projection reads them."""
        neurons = self.decoder.neurons(self.weights, x)
        return neurons if self.neuron_gate is None else neurons * self.neuron_gate[:, -x.shape[-2] :]

    def mlp(self, x: jax.Array) -> jax.Array:
        """What the MLP adds to a stream."""
        return self.decoder.write_neurons(self.weights, self.neurons(x))

    def take(self, index: int | jax.Array) -> "Block":
        """One of stacked blocks."""
        return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, index, keepdims=False), self)


def blocks(decoder: Decoder, params: Params, inputs: Inputs) -> list[Block]:
    """All blocks of a decoder on prompts."""
    positions, length = inputs.positions, inputs.tokens.shape[1]

    def gates(values: jax.Array | None, index: int) -> jax.Array | None:
        return None if values is None else _spread_gate(values[:, index], length)

    out = []
    for i in range(decoder.graph.n_layers):
        heads = gates(inputs.attention_gates, i)
        out.append(Block(
            decoder=decoder, weights=decoder.block(params, i), positions=positions,
            visible=decoder.visible(inputs.valid, i), head_gate=None if heads is None else heads.transpose(2, 0, 1, 3),
            neuron_gate=gates(inputs.neuron_gates, i)))
    return out


def stack(blocks: Sequence[Block]) -> Block:
    """Blocks along a leading axis, for compiled functions that serve every layer."""
    return jax.tree.map(lambda *x: jnp.stack(x), *blocks)


def _spread_gate(gate: jax.Array, positions: int) -> jax.Array:
    """A gate [n, ...] of the last position as factors [n, positions, ...] that are 1 before it.

    A token's gates act on that token alone, and later tokens read its clean stream. So where only the last position is
    read, the ablated stream is a stream that is gated there and clean before.
    """
    before = jnp.ones((gate.shape[0], positions - 1, *gate.shape[1:]), gate.dtype)
    return jnp.concatenate([before, gate[:, None]], axis=1)


def _spread_axes(gate: jax.Array, ndim: int) -> jax.Array:
    """[N, n, T, H] with axes of size 1 after the heads, up to ``ndim`` axes."""
    return gate.reshape(gate.shape[0], *(1,) * (ndim - gate.ndim), *gate.shape[1:])


def logits(decoder: Decoder, params: Params, final: jax.Array) -> jax.Array:
    """Logits [..., V] from the stream [..., D] after the final norm."""
    return capped(final @ decoder.unembedding(params).T, decoder.logit_cap)

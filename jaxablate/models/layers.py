"""Layers shared by the models: attention projections, gated MLP, score heads, initialisers."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxablate.config import GatedModelConfig, ModelConfig
from jaxablate.gating import hard_top_k
from jaxablate.ops.attention import repeat_heads
from jaxablate.ops.cap import capped
from jaxablate.ops.linear import dot_rows
from jaxablate.ops.normalization import layer_norm, rms_norm
from jaxablate.ops.remat import kept
from jaxablate.ops.rotary import rotate
from jaxablate.types import Params, at_least_float32

FieldEdit = Callable[[str, jax.Array], jax.Array]
"""(name of an activation within its block, its value) -> the value to go on with."""


def unchanged(_name: str, x: jax.Array) -> jax.Array:
    """The `FieldEdit` that edits nothing."""
    return x


def torch_linear_init(fan_in: int) -> nn.initializers.Initializer:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)): PyTorch's default for weights and biases of a linear layer."""
    bound = fan_in**-0.5

    def init(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def torch_dense(features: int, fan_in: int, dtype: Any, param_dtype: str, name: str | None = None, bias: bool = True
                ) -> nn.Dense:
    """`flax.linen.Dense` with PyTorch's default initialisation."""
    init = torch_linear_init(fan_in)
    return nn.Dense(features, use_bias=bias, dtype=dtype, param_dtype=param_dtype, kernel_init=init, bias_init=init,
                    dot_general=dot_rows, name=name)


def normalised(kind: str, weights: Params, x: jax.Array, eps: float) -> jax.Array:
    """The norm of a kind (`ModelConfig.norm`) over the last axis, at least float32; its weights are ``scale`` [D] and,
    for "layer", ``bias`` [D]."""
    if kind == "layer":
        return layer_norm(x, weights["scale"], weights["bias"], eps)
    return rms_norm(x, weights["scale"], eps, offset=kind == "rms_offset")


class Norm(nn.Module):
    """`normalised` over D; statistics and result are at least float32."""

    config: GatedModelConfig
    kind: str = "layer"

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """[..., D] -> [..., D]."""
        width, dtype = x_BTD.shape[-1:], self.config.param_dtype
        start = nn.initializers.zeros_init() if self.kind == "rms_offset" else nn.initializers.ones_init()
        weights = {"scale": self.param("scale", start, width, dtype)}
        if self.kind == "layer":
            weights["bias"] = self.param("bias", nn.initializers.zeros_init(), width, dtype)
        return normalised(self.kind, weights, x_BTD, self.config.layer_norm_eps)


class ScoreHead(nn.Module):
    """Relevance scores: a linear map whose result is at least float32 whatever the compute type.

    bfloat16 results would tie often, and ties decide winners by index.
    """

    features: int
    config: GatedModelConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] -> [..., features], at least float32."""
        init = torch_linear_init(x.shape[-1])
        kernel = self.param("kernel", init, (x.shape[-1], self.features), self.config.param_dtype)
        bias = self.param("bias", init, (self.features,), self.config.param_dtype)
        dtype = jnp.dtype(self.config.compute_dtype)
        wide = at_least_float32(dtype)
        bias = bias.reshape((1,) * (x.ndim - 1) + bias.shape).astype(wide)
        return dot_rows(x.astype(dtype), kernel.astype(dtype), preferred_element_type=wide) + bias


class HeadProjection(nn.Module):
    """Kernel [D, N, H] and bias [N, H], or None, of a projection to N heads, as a module that returns them."""

    config: GatedModelConfig
    heads: int
    bias: bool = True

    @nn.compact
    def __call__(self) -> tuple[jax.Array, jax.Array | None]:
        """Kernel and bias."""
        c = self.config
        init, shape = torch_linear_init(c.d_model), (self.heads, c.head_width)
        kernel = self.param("kernel", init, (c.d_model, *shape), c.param_dtype)
        return kernel, self.param("bias", init, shape, c.param_dtype) if self.bias else None


Projections = jax.Array | tuple[jax.Array, jax.Array]
"""Queries, keys and values of N heads as one product makes them, [..., T, 3, N, H]; where heads share keys and values,
queries [..., T, N, H], and the K others, [..., T, 2, K, H]."""


class Attention(nn.Module):
    """Projections of multi-head attention; heads [N, H] are explicit axes of the kernels."""

    config: ModelConfig

    def setup(self):
        c = self.config
        init = torch_linear_init(c.attention_width)
        self.query = HeadProjection(c, c.n_heads, c.qkv_bias)
        self.key, self.value = (HeadProjection(c, c.key_heads, c.qkv_bias) for _ in range(2))
        self.out = nn.DenseGeneral(c.d_model, axis=(-2, -1), dtype=c.compute_dtype, param_dtype=c.param_dtype,
                                   use_bias=c.out_bias, kernel_init=init, bias_init=init, dot_general=dot_rows)

    def project(self, x_BTD: jax.Array, positions: jax.Array | None = None) -> Projections:
        """Queries, keys and values of [..., T, D], where the config says so turned by their positions, int [T], which
        are 0, 1, ... by default."""
        query, *others = self.query(), self.key(), self.value()
        if self.config.key_heads == self.config.n_heads:
            return self._of_heads(x_BTD, [query, *others], positions, turned=2)  # one product for all three
        queries = self._of_heads(x_BTD, [query], positions, turned=1)
        return queries[..., 0, :, :], self._of_heads(x_BTD, others, positions, turned=1)

    def _of_heads(self, x_BTD: jax.Array, projections: Sequence[tuple[jax.Array, jax.Array | None]],
                  positions: jax.Array | None, turned: int) -> jax.Array:
        """[..., T, projections, N, H], the first ``turned`` of them by position."""
        c, dtype = self.config, jnp.dtype(self.config.compute_dtype)
        kernel = jnp.stack([kernel for kernel, _ in projections], axis=1).astype(dtype)
        out = dot_rows(x_BTD.astype(dtype), kernel)
        biases = [bias for _, bias in projections if bias is not None]
        if biases:
            bias = jnp.stack(biases).astype(dtype)
            out = out + bias.reshape((1,) * (out.ndim - bias.ndim) + bias.shape)
        if not c.rotary_width:
            return out
        places = jnp.arange(x_BTD.shape[-2]) if positions is None else positions
        heads = rotate(out[..., :turned, :, :], places[:, None, None], width=c.rotary_width, theta=c.rotary_theta)
        return jnp.concatenate([heads, out[..., turned:, :, :]], axis=-3)

    def output(self, head_out_BTNH: jax.Array, gate_BTU: jax.Array | None = None) -> jax.Array:
        """[B, T, D]; the gate multiplies the concatenated head outputs, never the bias."""
        if gate_BTU is not None:
            gate = gate_BTU.reshape(head_out_BTNH.shape)
            head_out_BTNH = head_out_BTNH * gate.astype(head_out_BTNH.dtype)
        return self.out(head_out_BTNH)


def unpacked(qkv: Projections) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Queries [..., N, H], keys and values [..., K, H]."""
    if isinstance(qkv, tuple):
        return qkv[0], qkv[1][..., 0, :, :], qkv[1][..., 1, :, :]
    return qkv[..., 0, :, :], qkv[..., 1, :, :], qkv[..., 2, :, :]


def packed(qkv: Projections) -> jax.Array:
    """[..., T, 3, N, H]: shared keys and values repeated for each of their heads."""
    if isinstance(qkv, tuple):
        query, others = qkv
        return jnp.concatenate([query[..., None, :, :], repeat_heads(others, query.shape[-2])], axis=-3)
    return qkv


@dataclasses.dataclass(frozen=True)
class CachedAttention:
    """Attention of one new position over cached keys and values, for generating text."""

    config: ModelConfig
    layer: int
    position: jax.Array
    """int scalar, index of the new position."""
    keys: jax.Array
    """[B, S, K, H] of the clean stream, filled below `position`."""
    values: jax.Array
    """[B, S, K, H] of the clean stream, filled below `position`."""

    def written(self, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The cache with the new position's keys and values [B, 1, K, H] put in."""
        put = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=self.position, axis=1)
        return put(self.keys, k.astype(self.keys.dtype)), put(self.values, v.astype(self.values.dtype))

    def clean(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        """Head outputs [B, 1, N, H] of the clean stream."""
        return self._attend(q, *self.written(k, v))

    def ablated(
        self, q: jax.Array, _k: jax.Array, _v: jax.Array, k_self: jax.Array, v_self: jax.Array
    ) -> jax.Array:
        """Head outputs [B, 1, N, H] of the ablated stream, which sees its own key and value at its own position."""
        return self._attend(q, *self.written(k_self, v_self))

    def _attend(self, q: jax.Array, keys: jax.Array, values: jax.Array) -> jax.Array:
        c, wide = self.config, at_least_float32(q.dtype)
        keys, values = (repeat_heads(x, c.n_heads) for x in (keys, values))
        scores = jnp.einsum("btnh,bsnh->bnts", q, keys, preferred_element_type=wide) * c.attention_scale
        scores = capped(scores, c.attention_cap)
        age = self.position - jnp.arange(keys.shape[1])
        window = c.layer_window(self.layer)
        visible = (age >= 0) if window is None else (age >= 0) & (age < window)
        probs = jax.nn.softmax(jnp.where(visible, scores, -jnp.inf), axis=-1)
        return jnp.einsum("bnts,bsnh->btnh", probs.astype(values.dtype), values)


ACTIVATIONS: Mapping[str, Callable[[jax.Array], jax.Array]] = {
    "gelu_tanh": functools.partial(nn.gelu, approximate=True),
    "gelu": functools.partial(nn.gelu, approximate=False),
    "silu": nn.silu,
    "relu": nn.relu,
}
"""Activation functions by their name in `ModelConfig.activation`."""


def activated(activation: str, pre: jax.Array, up: jax.Array | None = None, top_k: int | None = None) -> jax.Array:
    """Neurons [..., F] from what the activation function takes, times ``up`` in a gated MLP; with ``top_k`` only so
    many of a row, the largest in absolute value, are not zero (`ModelConfig.mlp_top_k`)."""
    neurons = ACTIVATIONS[activation](pre) if up is None else ACTIVATIONS[activation](pre) * up
    return neurons if top_k is None else neurons * hard_top_k(jnp.abs(neurons), top_k).astype(neurons.dtype)


class Mlp(nn.Module):
    """Two linear maps with an activation function between, which a third may multiply (`ModelConfig.mlp`).

    A self-ablating model's gate, which is another thing than the projection of that name, multiplies the neurons.
    """

    config: GatedModelConfig
    activation: str
    gated: bool = False
    bias: bool = True
    top_k: int | None = None

    def setup(self):
        c = self.config
        to_neurons = functools.partial(torch_dense, c.mlp_width, c.d_model, c.compute_dtype, c.param_dtype,
                                       bias=self.bias)
        if self.gated:
            self.gate = to_neurons()
        self.up = to_neurons()
        self.down = torch_dense(c.d_model, c.mlp_width, c.compute_dtype, c.param_dtype, bias=self.bias)

    def __call__(
        self, x_BTD: jax.Array, gate_BTF: jax.Array | None = None, edit: FieldEdit = unchanged
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """What the activation function takes, [B, T, F], the neurons [B, T, F], not yet gated, and the output
        [B, T, D]. The first two are what `edit` makes of them."""
        up = kept(self.up(x_BTD)) if self.gated else None
        pre = kept(edit("mlp_pre", self.gate(x_BTD) if self.gated else self.up(x_BTD)))
        post = edit("mlp_post", activated(self.activation, pre, up, self.top_k))
        gated = post if gate_BTF is None else post * gate_BTF.astype(post.dtype)
        return pre, post, self.down(gated)

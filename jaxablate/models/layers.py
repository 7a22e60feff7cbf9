"""Layers shared by the models: attention projections, gated MLP, score heads, initialisers."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxablate.config import GatedModelConfig, ModelConfig
from jaxablate.ops.normalization import layer_norm
from jaxablate.types import at_least_float32

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


def torch_dense(features: int, fan_in: int, dtype: Any, param_dtype: str, name: str | None = None) -> nn.Dense:
    """`flax.linen.Dense` with PyTorch's default initialisation."""
    init = torch_linear_init(fan_in)
    return nn.Dense(features, dtype=dtype, param_dtype=param_dtype, kernel_init=init, bias_init=init, name=name)


class LayerNorm(nn.Module):
    """LayerNorm over D; statistics and result are at least float32."""

    config: GatedModelConfig

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """[..., D] -> [..., D]."""
        width, dtype = x_BTD.shape[-1:], self.config.param_dtype
        scale = self.param("scale", nn.initializers.ones_init(), width, dtype)
        bias = self.param("bias", nn.initializers.zeros_init(), width, dtype)
        return layer_norm(x_BTD, scale, bias, self.config.layer_norm_eps)


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
        return jnp.dot(x.astype(dtype), kernel.astype(dtype), preferred_element_type=wide) + bias


class HeadKernel(nn.Module):
    """The kernel [D, N, H] of a projection to heads, without bias, as a module that returns it."""

    config: ModelConfig

    @nn.compact
    def __call__(self) -> jax.Array:
        """[D, N, H]."""
        c = self.config
        return self.param("kernel", torch_linear_init(c.d_model), (c.d_model, c.n_heads, c.head_width), c.param_dtype)


class Attention(nn.Module):
    """Projections of multi-head attention; heads [N, H] are explicit axes of the kernels."""

    config: ModelConfig

    def setup(self):
        c = self.config
        init = torch_linear_init(c.d_model)
        self.query, self.key, self.value = (HeadKernel(c) for _ in range(3))
        self.out = nn.DenseGeneral(c.d_model, axis=(-2, -1), dtype=c.compute_dtype, param_dtype=c.param_dtype,
                                   kernel_init=init, bias_init=init)

    def project(self, x_BTD: jax.Array) -> jax.Array:
        """[..., T, D] -> queries, keys and values, [..., T, 3, N, H]."""
        dtype = jnp.dtype(self.config.compute_dtype)
        kernel = jnp.stack([self.query(), self.key(), self.value()], axis=1).astype(dtype)  # one product for all three
        return jnp.einsum("...td,dcnh->...tcnh", x_BTD.astype(dtype), kernel)

    def output(self, head_out_BTNH: jax.Array, gate_BTD: jax.Array | None = None) -> jax.Array:
        """[B, T, D]; the gate multiplies the concatenated head outputs, never the bias."""
        if gate_BTD is not None:
            gate = gate_BTD.reshape(head_out_BTNH.shape)
            head_out_BTNH = head_out_BTNH * gate.astype(head_out_BTNH.dtype)
        return self.out(head_out_BTNH)


def unpacked(qkv: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """[..., 3, N, H] -> queries, keys and values."""
    return qkv[..., 0, :, :], qkv[..., 1, :, :], qkv[..., 2, :, :]


@dataclasses.dataclass(frozen=True)
class CachedAttention:
    """Attention of one new position over cached keys and values, for generating text."""

    config: ModelConfig
    layer: int
    position: jax.Array
    """int scalar, index of the new position."""
    keys: jax.Array
    """[B, S, N, H] of the clean stream, filled below `position`."""
    values: jax.Array
    """[B, S, N, H] of the clean stream, filled below `position`."""

    def written(self, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The cache with the new position's keys and values [B, 1, N, H] put in."""
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
        wide = at_least_float32(q.dtype)
        scores = jnp.einsum("btnh,bsnh->bnts", q, keys, preferred_element_type=wide) * self.config.attention_scale
        age = self.position - jnp.arange(keys.shape[1])
        window = self.config.layer_window(self.layer)
        visible = (age >= 0) if window is None else (age >= 0) & (age < window)
        probs = jax.nn.softmax(jnp.where(visible, scores, -jnp.inf), axis=-1)
        return jnp.einsum("bnts,bsnh->btnh", probs.astype(values.dtype), values)


class Mlp(nn.Module):
    """Two linear maps with an activation function between; the gate multiplies the activated neurons."""

    config: GatedModelConfig
    activation: Callable[[jax.Array], jax.Array] = functools.partial(nn.gelu, approximate=True)

    def setup(self):
        c = self.config
        self.up = torch_dense(c.mlp_width, c.d_model, c.compute_dtype, c.param_dtype)
        self.down = torch_dense(c.d_model, c.mlp_width, c.compute_dtype, c.param_dtype)

    def __call__(
        self, x_BTD: jax.Array, gate_BTF: jax.Array | None = None, edit: FieldEdit = unchanged
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Neurons [B, T, F] before and after the activation function (not yet gated), and the output [B, T, D].

        Each is what `edit` makes of it.
        """
        pre = checkpoint_name(edit("mlp_pre", self.up(x_BTD)), "mlp_pre")
        post = edit("mlp_post", self.activation(pre))
        gated = post if gate_BTF is None else post * gate_BTF.astype(post.dtype)
        return pre, post, edit("mlp_out", self.down(gated))

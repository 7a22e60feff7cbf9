"""Layers shared by the models: attention projections, gated MLP, score heads, initialisers."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxablate.config import ModelConfig
from jaxablate.ops.normalization import layer_norm


def torch_linear_init(fan_in: int) -> nn.initializers.Initializer:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)), PyTorch's default for weights and biases of a linear layer."""
    bound = fan_in**-0.5

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class LayerNorm(nn.Module):
    """LayerNorm over D; statistics and result are at least float32."""

    config: ModelConfig

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
    config: ModelConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] -> [..., features], at least float32."""
        init = torch_linear_init(x.shape[-1])
        kernel = self.param("kernel", init, (x.shape[-1], self.features), self.config.param_dtype)
        bias = self.param("bias", init, (self.features,), self.config.param_dtype)
        dtype = jnp.dtype(self.config.compute_dtype)
        wide = jnp.promote_types(dtype, jnp.float32)
        return jnp.dot(x.astype(dtype), kernel.astype(dtype), preferred_element_type=wide) + bias.astype(wide)


class Attention(nn.Module):
    """Projections of multi-head attention; heads [N, H] are explicit axes of the kernels."""

    config: ModelConfig

    def setup(self):
        c = self.config
        init = torch_linear_init(c.d_model)
        types = {"dtype": c.compute_dtype, "param_dtype": c.param_dtype, "kernel_init": init}
        heads = {"features": (c.n_heads, c.head_width), "use_bias": False, **types}
        self.query, self.key, self.value = (nn.DenseGeneral(**heads) for _ in range(3))
        self.out = nn.DenseGeneral(c.d_model, axis=(-2, -1), bias_init=init, **types)

    def project(self, x_BTD: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries, keys and values, each [B, T, N, H]."""
        return self.query(x_BTD), self.key(x_BTD), self.value(x_BTD)

    def output(self, head_out_BTNH: jax.Array, gate_BTD: jax.Array | None = None) -> jax.Array:
        """[B, T, D]; the gate multiplies the concatenated head outputs, never the bias."""
        if gate_BTD is not None:
            gate = gate_BTD.reshape(head_out_BTNH.shape)
            head_out_BTNH = head_out_BTNH * gate.astype(head_out_BTNH.dtype)
        return self.out(head_out_BTNH)


class Mlp(nn.Module):
    """Two linear maps with a tanh-GELU between; the gate multiplies the activated neurons."""

    config: ModelConfig

    def setup(self):
        c = self.config
        types = {"dtype": c.compute_dtype, "param_dtype": c.param_dtype}
        for name, features, fan_in in (("up", c.mlp_width, c.d_model), ("down", c.d_model, c.mlp_width)):
            init = torch_linear_init(fan_in)
            setattr(self, name, nn.Dense(features, kernel_init=init, bias_init=init, **types))

    def __call__(self, x_BTD: jax.Array, gate_BTF: jax.Array | None = None):
        """Returns (mlp_pre [B,T,F], mlp_post [B,T,F] before the gate, output [B,T,D])."""
        pre = self.up(x_BTD)
        post = nn.gelu(pre, approximate=True)
        gated = post if gate_BTF is None else post * gate_BTF.astype(post.dtype)
        return pre, post, self.down(gated)

"""The SAFR text classifier (docs/papers.md, SAFR): a post-norm encoder behind VMASK, with optional gates."""

from typing import NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jaxablate.config import ClassifierConfig
from jaxablate.config.checks import require
from jaxablate.errors import ConfigError
from jaxablate.gating import gate
from jaxablate.models.layers import HeadProjection, Mlp, Norm, ScoreHead, torch_dense, torch_linear_init
from jaxablate.ops.linear import dot_rows
from jaxablate.ops.masks import nonzero_sum
from jaxablate.types import at_least_float32


@flax.struct.dataclass
class BlockActivations:
    """What one stream computes in one block."""

    attention: jax.Array
    """[B, N, L, L] attention weights: rows sum to 1, keys of padding weigh 0."""
    head_out: jax.Array
    """[B, L, N, H] output of each head, before the gate and the output projection."""
    resid_mid: jax.Array
    """[B, L, D] after attention and the first norm."""
    mlp_pre: jax.Array
    """[B, L, F] neurons before the ReLU."""
    mlp_post: jax.Array
    """[B, L, F] activated neurons, before the gate."""
    resid_post: jax.Array
    """[B, L, D] after the MLP and the second norm."""


@flax.struct.dataclass
class ClassifierLayer:
    """Both streams of one block and its gates (None where the model has none)."""

    clean: BlockActivations
    ablated: BlockActivations | None = None
    attention_gates: jax.Array | None = None
    """[B, L, D]."""
    neuron_gates: jax.Array | None = None
    """[B, L, F]."""

    def neurons(self, stream: str) -> jax.Array:
        """[B, L, F] neurons of a stream as they reach the down-projection: in the ablated one times their gates."""
        if stream == "clean":
            return self.clean.mlp_post
        if self.ablated is None or self.neuron_gates is None:
            raise ConfigError("the model has no ablated stream; take stream='clean'")
        return self.ablated.mlp_post * self.neuron_gates.astype(self.ablated.mlp_post.dtype)


@flax.struct.dataclass
class ClassifierOutput:
    """All of one pass. Under `jax.jit` what nobody reads is never computed."""

    logits: jax.Array
    """[B, C]."""
    logits_ablated: jax.Array | None
    """[B, C] of the gated stream; None without gates."""
    embedded: jax.Array
    """[B, L, D] word embeddings times sqrt(D)."""
    vmask_logits: jax.Array | None
    """[B, L, 2]: to drop a token, to keep it; None without VMASK."""
    keep: jax.Array | None
    """[B, L] probability that a token is kept."""
    vmask: jax.Array | None
    """[B, L] the mask that was used: the probability, or a 0/1 sample in training."""
    masked: jax.Array
    """[B, L, D] embeddings times mask, before the positions."""
    layers: tuple[ClassifierLayer, ...]


class Vmask(nn.Module):
    """p = W2 tanh(W1 e + b1) + b2 for each token's embedding e."""

    width: int
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, x_BLD: jax.Array, noise_BL2: jax.Array | None = None
                 ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Logits [B, L, 2] to drop a token and to keep it (at least float32), probability [B, L] to keep it, the mask.

        The mask [B, L] multiplies the embeddings (as they enter the model, times sqrt(D)). It is the probability or,
        given Gumbel noise, a `straight_through_sample`.
        """
        dtype = at_least_float32(x_BLD.dtype).name
        hidden = jnp.tanh(torch_dense(self.width, x_BLD.shape[-1], dtype, self.param_dtype, name="hidden")(x_BLD))
        logits = torch_dense(2, self.width, dtype, self.param_dtype, name="out")(hidden)
        keep = jax.nn.softmax(logits, axis=-1)[..., 1]
        return logits, keep, keep if noise_BL2 is None else straight_through_sample(logits, noise_BL2)


def straight_through_sample(logits: jax.Array, noise: jax.Array) -> jax.Array:
    """Hard Gumbel-softmax sample of class 1, with the soft sample's gradient (Jang et al. 2017, temperature 1).

    Zeros and ones [...] from logits and noise [..., 2]: 1 where the second sum is the larger, 0 where both are equal.

    >>> straight_through_sample(jnp.array([[0., 1.], [2., 1.]]), jnp.zeros((2, 2))).tolist()
    [1.0, 0.0]
    """
    total = logits + noise
    soft = jax.nn.softmax(total, axis=-1)[..., 1]
    hard = (total[..., 1] > total[..., 0]).astype(soft.dtype)
    return hard + (soft - jax.lax.stop_gradient(soft))


class BlockGates(NamedTuple):
    """Gates of one block."""

    attention: jax.Array
    neurons: jax.Array


class Attention(nn.Module):
    """Multi-head attention of every token to every real token, with biases and scaled scores."""

    config: ClassifierConfig

    def setup(self):
        c = self.config
        self.query, self.key, self.value = (HeadProjection(c, c.n_heads) for _ in range(3))
        init = torch_linear_init(c.d_model)
        self.out = nn.DenseGeneral(c.d_model, axis=(-2, -1), kernel_init=init, bias_init=init, dtype=c.compute_dtype,
                                   param_dtype=c.param_dtype, dot_general=dot_rows)

    def project(self, x_BLD: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries, keys and values, each [B, N, L, H]."""
        dtype = jnp.dtype(self.config.compute_dtype)
        parts = self.query(), self.key(), self.value()
        kernel = jnp.stack([kernel for kernel, _ in parts], 1).astype(dtype)  # one product for all
        bias = jnp.stack([bias for _, bias in parts if bias is not None]).astype(dtype)
        qkv = jnp.einsum("bld,dcnh->cbnlh", x_BLD.astype(dtype), kernel) + bias[:, None, :, None, :]
        return qkv[0], qkv[1], qkv[2]

    def weights(self, q_BNLH: jax.Array, k_BNLH: jax.Array, own_BNLH: jax.Array | None, mask_BL: jax.Array
                ) -> jax.Array:
        """Attention weights [B, N, L, L]; `own` are keys that each token sees at its own position in place of k's."""
        wide = at_least_float32(q_BNLH.dtype)
        scores = jnp.einsum("bnih,bnjh->bnij", q_BNLH, k_BNLH, preferred_element_type=wide)
        if own_BNLH is not None:
            own = jnp.einsum("bnih,bnih->bni", q_BNLH, own_BNLH, preferred_element_type=wide)
            scores = jnp.where(jnp.eye(scores.shape[-1], dtype=bool), own[..., None], scores)
        # The weight of padding is exactly 0, and a row without any real token stays finite.
        hidden = jnp.where(mask_BL > 0, 0, -1e9).astype(wide)
        return jax.nn.softmax(scores * self.config.attention_scale + hidden[:, None, None, :], axis=-1)

    def output(self, head_out_BLNH: jax.Array, gate_BLD: jax.Array | None = None) -> jax.Array:
        """[B, L, D]; the gate multiplies the concatenated head outputs, never the bias."""
        if gate_BLD is not None:
            head_out_BLNH = head_out_BLNH * gate_BLD.reshape(head_out_BLNH.shape).astype(head_out_BLNH.dtype)
        return self.out(head_out_BLNH)


class Block(nn.Module):
    """One post-norm encoder block; its weights serve both streams."""

    config: ClassifierConfig
    layer: int

    def setup(self):
        c = self.config
        self.ln_1, self.ln_2 = Norm(c), Norm(c)
        self.attention, self.mlp = Attention(c), Mlp(c, "relu")
        if c.gated:
            self.attention_scores = ScoreHead(c.d_model, c)
            self.neuron_scores = ScoreHead(c.mlp_width, c)

    def clean(self, x_BLD: jax.Array, mask_BL: jax.Array) -> tuple[BlockActivations, jax.Array, jax.Array]:
        """The ordinary stream: `BlockActivations`, and the keys and values [B, N, L, H] for the gated stream."""
        q, k, v = self.attention.project(x_BLD)
        weights = self.attention.weights(q, k, None, mask_BL)
        head_out = jnp.einsum("bnij,bnjh->binh", weights.astype(v.dtype), v)
        return self._finish(x_BLD, weights, head_out, None), k, v

    def ablated(self, y_BLD: jax.Array, k: jax.Array, v: jax.Array, gates: BlockGates, mask_BL: jax.Array
                ) -> BlockActivations:
        """The gated stream; other tokens are seen through the clean stream, as in the self-ablating transformer."""
        q, k_self, v_self = self.attention.project(y_BLD)
        weights = self.attention.weights(q, k, k_self, mask_BL)
        own = jnp.einsum("bnii->bni", weights)[..., None].astype(v.dtype)
        head_out = jnp.einsum("bnij,bnjh->bnih", weights.astype(v.dtype), v) + own * (v_self - v)
        return self._finish(y_BLD, weights, head_out.transpose(0, 2, 1, 3), gates)

    def gates(self, x_BLD: jax.Array) -> BlockGates:
        """k-winner-take-all gates from scores of the clean stream that enters the block."""
        return BlockGates(gate(self.config, "attention", self.layer)(self.attention_scores(x_BLD)),
                          gate(self.config, "neurons", self.layer)(self.neuron_scores(x_BLD)))

    def _finish(self, x: jax.Array, weights: jax.Array, head_out: jax.Array, gates: BlockGates | None
                ) -> BlockActivations:
        attended = self.attention.output(head_out, None if gates is None else gates.attention)
        mid = self.ln_1(x + attended.astype(x.dtype))
        pre, post, out = self.mlp(mid, None if gates is None else gates.neurons)
        return BlockActivations(weights, head_out, mid, pre, post, self.ln_2(mid + out.astype(mid.dtype)))


class SafrClassifier(nn.Module):
    """Embedding, VMASK, sinusoidal positions, encoder blocks, mean over the tokens, class logits.

    With `ablation="local"` a second stream keeps only k channels and k neurons a token and layer, and has logits of its
    own (neither paper has this).

    Example:
      >>> config = ClassifierConfig(vocab_size=11, max_length=8, d_model=8, n_heads=2, vmask_width=4)
      >>> model = SafrClassifier(config)
      >>> tokens, mask = jnp.array([[3, 4, 5, 0]]), jnp.array([[1., 1., 1., 0.]])
      >>> params = model.init(jax.random.key(0), tokens, mask)["params"]
      >>> out = model.apply({"params": params}, tokens, mask)
      >>> out.logits.shape, out.layers[0].clean.attention.shape
      ((1, 2), (1, 2, 4, 4))
    """

    config: ClassifierConfig

    def setup(self):
        c = self.config
        require(c.vocab_size > 0, "vocab_size=0 stands for the data's; give the vocabulary's size")
        types = {"dtype": at_least_float32(c.compute_dtype), "param_dtype": c.param_dtype}
        self.embed = nn.Embed(c.vocab_size, c.d_model, embedding_init=nn.initializers.normal(1.0), **types)
        if c.vmask:
            self.vmask = Vmask(c.vmask_width, c.param_dtype)
        self.dropout = nn.Dropout(c.dropout)
        self.blocks = [Block(c, i, name=f"layer_{i}") for i in range(c.n_layers)]
        self.classes = torch_dense(c.n_classes, c.d_model, types["dtype"], c.param_dtype)

    def __call__(self, tokens_BL: jax.Array, mask_BL: jax.Array, *, scale_BL: jax.Array | None = None,
                 train: bool = False, noise_BL2: jax.Array | None = None) -> ClassifierOutput:
        """Classifies texts; with `padding="masked"` the logits do not depend on L.

        Args:
          tokens_BL: int token ids, L <= max_length.
          mask_BL: 1 for a real token, 0 for padding.
          scale_BL: multiplies the word embeddings; the gradient by it at 1 is gradient x input.
          train: draws a hard VMASK sample and dropout, from the keys "vmask" and "dropout" (`rngs`).
          noise_BL2: Gumbel noise of VMASK, used in place of a drawn one; also makes the sample hard without `train`.

        Raises:
          ConfigError: more positions than the model has, or arrays of another shape.
        """
        c, shape = self.config, tokens_BL.shape
        require(len(shape) == 2 and mask_BL.shape == shape,
                f"tokens and mask have the shapes {shape} and {mask_BL.shape}; give [batch, tokens] for both")
        batch, length = shape
        require(length <= c.max_length,
                f"{length} tokens exceed the model's max_length={c.max_length}; shorten the input")
        embedded = self.embed(tokens_BL) * c.d_model**0.5
        if scale_BL is not None:
            embedded = embedded * scale_BL[..., None]
        logits = keep = vmask = None
        masked = embedded
        if c.vmask:
            if train and noise_BL2 is None:
                noise_BL2 = jax.random.gumbel(self.make_rng("vmask"), (batch, length, 2), embedded.dtype)
            logits, keep, vmask = self.vmask(embedded, noise_BL2)
            masked = embedded * vmask[..., None]
        positions = sinusoids(length, c.d_model)[None].astype(masked.dtype)
        x = y = self.dropout(masked + positions, deterministic=not train)
        layers = []
        for block in self.blocks:
            clean, k, v = block.clean(x, mask_BL)
            if c.gated:
                gates = block.gates(x)
                ablated = block.ablated(y, k, v, gates, mask_BL)
                layers.append(ClassifierLayer(clean, ablated, gates.attention, gates.neurons))
                y = ablated.resid_post
            else:
                layers.append(ClassifierLayer(clean))
            x = clean.resid_post
        ablated_logits = self._classify(y, mask_BL) if c.gated else None
        return ClassifierOutput(self._classify(x, mask_BL), ablated_logits, embedded, logits, keep, vmask, masked,
                                tuple(layers))

    def _classify(self, x_BLD: jax.Array, mask_BL: jax.Array) -> jax.Array:
        """Logits of the mean over the text's tokens, or over all positions as in the released code."""
        if self.config.padding == "paper":
            return self.classes(jnp.mean(x_BLD, axis=1))
        mask = mask_BL.astype(x_BLD.dtype)
        return self.classes(jnp.einsum("bld,bl->bd", x_BLD, mask) / nonzero_sum(mask, axis=1)[:, None])


def sinusoids(length: int, width: int) -> np.ndarray:
    """Position table [L, D] of Vaswani et al. 2017: sin(p w_i) in column 2i, cos(p w_i) in 2i + 1, w_i = 10000^(-2i/D).

    >>> sinusoids(2, 4).round(4).tolist()
    [[0.0, 1.0, 0.0, 1.0], [0.8415, 0.5403, 0.01, 1.0]]
    """
    angles = np.arange(length)[:, None] * 10000.0 ** (-np.arange(0, width, 2) / width)
    table = np.empty((length, width))
    table[:, 0::2], table[:, 1::2] = np.sin(angles), np.cos(angles)
    return table

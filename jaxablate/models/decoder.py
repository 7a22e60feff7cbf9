"""The self-ablating transformer (Ferrao et al. 2025): a decoder with a gated second stream, GPT-Neo's or another one
(`jaxablate.config.FAMILIES`)."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxablate.config import ModelConfig
from jaxablate.config.checks import require
from jaxablate.config.gated import UNIT_KINDS, UnitKind
from jaxablate.errors import ConfigError
from jaxablate.gating import gate
from jaxablate.models.layers import (
    Attention,
    CachedAttention,
    FieldEdit,
    Mlp,
    Norm,
    Projections,
    ScoreHead,
    packed,
    torch_linear_init,
    unchanged,
    unpacked,
)
from jaxablate.models.stacking import Columns, over_layers
from jaxablate.ops.attention import packed_attention, repeat_heads, two_stream_attention
from jaxablate.ops.cap import capped
from jaxablate.ops.remat import KEEP, kept
from jaxablate.sharding import gather, over_whole_rows
from jaxablate.types import Params, Stream, at_least_float32

Edit = Callable[[str, jax.Array], jax.Array]
"""(site, activation) -> the activation that the rest of the model goes on with, of the same shape.

It is called once at every site, by name: ``{clean|ablated}.layer_{i}.{field}`` with the fields resid_pre, head_out,
attn_out, resid_mid, mlp_pre, mlp_post, mlp_out, resid_post, in that order. Fields are those of `StreamActivations`;
attn_out and mlp_out are what attention and MLP add to the residual stream. What a function leaves alone it returns.
The derivative with respect to whatever it adds is the derivative at that site.
"""


@flax.struct.dataclass
class StreamActivations:
    """What one stream computes in one block."""

    resid_pre: jax.Array
    """[B, T, D] residual stream that enters the block."""
    query: jax.Array
    """[B, T, N, H] as attention takes them: with rotary positions they are turned, as the keys are."""
    key: jax.Array
    """[B, T, K, H] keys of this stream; the ablated stream uses its own at its own position only."""
    value: jax.Array
    """[B, T, K, H] values of this stream, used as its keys are."""
    head_out: jax.Array
    """[B, T, N, H] output of each head, before the gate and the output projection."""
    resid_mid: jax.Array
    """[B, T, D] residual stream between attention and MLP. In parallel blocks the MLP does not read it."""
    mlp_pre: jax.Array
    """[B, T, F] what the neurons' activation function takes."""
    mlp_post: jax.Array
    """[B, T, F] activated neurons, before the gate; in a gated MLP times its other projection."""
    resid_post: jax.Array
    """[B, T, D] residual stream that leaves the block."""


@flax.struct.dataclass
class Gates:
    """Gates of all layers, in [0, 1] for hard ones; the layer is axis 2."""

    attention: jax.Array
    """[B, T, L, U], one for each channel of the concatenated heads, U = N H."""
    neuron: jax.Array
    """[B, T, L, F], one for each neuron."""


@flax.struct.dataclass
class LayerActivations:
    """Both streams of one block, and its scores and gates (None where the model has none)."""

    clean: StreamActivations
    ablated: StreamActivations | None = None
    attention_scores: jax.Array | None = None
    """[B, T, U] relevance scores of the attention channels, U = N H, before top-k."""
    neuron_scores: jax.Array | None = None
    """[B, T, F] relevance scores of the neurons, before top-k."""
    attention_gates: jax.Array | None = None
    """[B, T, U]."""
    neuron_gates: jax.Array | None = None
    """[B, T, F]."""

    def neurons(self, stream: Stream) -> jax.Array:
        """[B, T, F] neurons of a stream as they reach the down-projection: in the ablated one times their gates."""
        if stream == "clean":
            return self.clean.mlp_post
        if self.ablated is None or self.neuron_gates is None:
            raise ConfigError("the model has no ablated stream; take stream='clean'")
        return self.ablated.mlp_post * self.neuron_gates.astype(self.ablated.mlp_post.dtype)


@flax.struct.dataclass
class CleanOutput:
    """The clean stream alone, as at inference."""

    final: jax.Array
    """[B, T, D] residual stream after the final norm."""
    logits: jax.Array
    """[B, T, V]."""
    layers: tuple[StreamActivations, ...]


@flax.struct.dataclass
class DecoderOutput:
    """Both streams. Under `jax.jit` what nobody reads is never computed, the logits included."""

    final_clean: jax.Array
    """[B, T, D] after the final norm."""
    final_ablated: jax.Array | None
    logits_clean: jax.Array
    """[B, T, V]."""
    logits_ablated: jax.Array | None
    layers: tuple[Any, ...]
    """`LayerActivations`, or what was kept of them."""

    @property
    def attention_gates(self) -> jax.Array | None:
        """[B, T, L, U], or None without an ablated stream."""
        return None if self.gates is None else self.gates.attention

    @property
    def neuron_gates(self) -> jax.Array | None:
        """[B, T, L, F], or None without an ablated stream."""
        return None if self.gates is None else self.gates.neuron

    @property
    def gates(self) -> Gates | None:
        """Both kinds of gates, in the form `SelfAblatingTransformer` takes them back."""
        pairs = [(layer.attention_gates, layer.neuron_gates) for layer in self.layers]
        attention, neuron = ([x for x in gates if x is not None] for gates in zip(*pairs, strict=True))
        return Gates(jnp.stack(attention, axis=2), jnp.stack(neuron, axis=2)) if attention else None


Attend = Callable[..., jax.Array]
"""Queries [B, T, N, H], keys and values [B, T, K, H] -> head outputs [B, T, N, H]."""

Scores = tuple[jax.Array, jax.Array]
"""Relevance scores of a layer before top-k: attention channels [B, T, U], neurons [B, T, F]."""

GatePair = tuple[jax.Array, jax.Array]
"""Gates of a layer, shaped as its scores."""

Keep = Callable[[int, LayerActivations], Any]
"""(layer, its activations) -> what an output has of them, a tree of arrays."""


def keep_all(_layer: int, activations: LayerActivations) -> LayerActivations:
    """The `Keep` that keeps everything."""
    return activations


ChangeGate = Callable[[UnitKind, jax.Array, jax.Array], jax.Array]
"""(kind, number of the layer, its gates [B, T, units]) -> the gates that are used."""

ChangeLayer = Callable[[UnitKind, jax.Array], jax.Array]
"""The same of one layer."""


def _of_layer(change: ChangeGate | None, number: jax.Array | None) -> ChangeLayer | None:
    return None if change is None or number is None else lambda kind, gate: change(kind, number, gate)


KeyValueCache = tuple[tuple[jax.Array, jax.Array], ...]
"""For each layer the clean stream's keys and values, [B, S, K, H] with room for S positions."""


class Block(nn.Module):
    """One decoder block; its weights serve both streams."""

    config: ModelConfig
    layer: int
    mesh: Mesh | None = None

    def setup(self):
        c = self.config
        self.ln_1, self.ln_2 = Norm(c, c.norm), Norm(c, c.norm)
        if c.post_norms:
            self.ln_1_post, self.ln_2_post = Norm(c, c.norm), Norm(c, c.norm)
        self.attention, self.mlp = Attention(c), Mlp(c, c.activation, c.mlp == "gated", c.mlp_bias, c.mlp_top_k)
        if c.ablation in ("local", "both"):
            self.attention_scores = ScoreHead(c.attention_width, c)
            self.neuron_scores = ScoreHead(c.mlp_width, c)

    def clean(self, x_BTD: jax.Array, attend: Attend | None = None, edit: FieldEdit = unchanged,
              positions: jax.Array | None = None) -> StreamActivations:
        """The ordinary stream, whose keys and values the ablated stream reads.

        ``attend`` makes head outputs of q, k and v; None attends causally over this very sequence. ``positions``, int
        [T], are 0, 1, ... by default.
        """
        x_BTD = edit("resid_pre", x_BTD)
        qkv = self._projected(x_BTD, positions)
        if attend is None:
            head_out = packed_attention(packed(qkv)[None], **self._attention_options())[0]
        else:
            head_out = attend(*unpacked(qkv))
        return self._finish(x_BTD, qkv, head_out, (None, None), edit)

    def ablated(
        self,
        x_BTD: jax.Array,
        k: jax.Array,
        v: jax.Array,
        gates: GatePair,
        attend: Attend | None = None,
        edit: FieldEdit = unchanged,
        positions: jax.Array | None = None,
    ) -> StreamActivations:
        """The gated stream; earlier positions are seen through the clean stream's keys k and values v.

        ``gates`` are those of attention channels [B, T, U] and of neurons [B, T, F]. ``attend`` makes head outputs of
        q, k, v, k_self and v_self; None attends over this very sequence. ``positions`` are as in `clean`.
        """
        x_BTD = edit("resid_pre", x_BTD)
        qkv = self._projected(x_BTD, positions)
        q, k_self, v_self = unpacked(qkv)
        if attend is None:
            others = (repeat_heads(x, self.config.n_heads) for x in (k, v, k_self, v_self))
            head_out = two_stream_attention(q, *others, **self._attention_options())
        else:
            head_out = attend(q, k, v, k_self, v_self)
        return self._finish(x_BTD, qkv, head_out, gates, edit)

    def both(self, x_SBTD: jax.Array, gates: GatePair | None = None, change: ChangeLayer | None = None
             ) -> tuple[jax.Array, LayerActivations]:
        """Both streams, the clean one first, in the same products; without given gates the block's own.

        Returns:
          What leaves the block, [2, B, T, D], and all activations.
        """
        scores = self.scores(x_SBTD[0])
        pair = self.gates(scores, change) if gates is None else gates
        qkv = self._projected(x_SBTD)
        head_out = packed_attention(packed(qkv), **self._attention_options())
        attention, neurons = (jnp.stack([jnp.ones_like(gate), gate]) for gate in pair)
        both = self._finish(x_SBTD, qkv, head_out, (attention, neurons), unchanged)
        clean, ablated = (jax.tree.map(lambda x, s=s: x[s], both) for s in range(2))
        return both.resid_post, LayerActivations(clean, ablated, *scores, *pair)

    def gates(self, scores: tuple[Any, Any], change: ChangeLayer | None = None) -> GatePair:
        """Gates of the layer's attention channels [B, T, U] and neurons [B, T, F] from their scores, and changed."""
        attention, neurons = (gate(self.config, kind, self.layer) for kind in UNIT_KINDS)
        if self.mesh is not None:
            attention, neurons = (over_whole_rows(self.mesh, function) for function in (attention, neurons))
        pair = attention(scores[0]), neurons(scores[1])
        if change is None:
            return pair
        return change("attention", pair[0]), change("neurons", pair[1])

    def scores(self, x_BTD: jax.Array, overall: Scores | None = None) -> Scores | tuple[None, None]:
        """Local relevance scores, read from a clean residual (`score_source`), where the block has them; with those
        that the model gives it added."""
        if self.config.ablation not in ("local", "both"):
            return overall or (None, None)
        x_BTD = score_input(self.config, x_BTD)
        local = tuple(kept(head(x_BTD)) for head in (self.attention_scores, self.neuron_scores))
        return local if overall is None else (local[0] + overall[0], local[1] + overall[1])

    def _projected(self, x: jax.Array, positions: jax.Array | None = None) -> Projections:
        return kept(self.attention.project(self.ln_1(x), positions))

    def _attention_options(self) -> dict[str, Any]:
        c = self.config
        return {"window": c.layer_window(self.layer), "scale": c.attention_scale, "cap": c.attention_cap}

    def _finish(
        self,
        x: jax.Array,
        qkv: Projections,
        head_out: jax.Array,
        gates: tuple[jax.Array | None, jax.Array | None],
        edit: FieldEdit,
    ) -> StreamActivations:
        """The block after its heads: gate and output projection, MLP, both residual sums."""
        (attention_gate, neuron_gate), c = gates, self.config
        head_out = edit("head_out", head_out)
        out = self.attention.output(head_out, attention_gate)
        out = edit("attn_out", self.ln_1_post(out) if c.post_norms else out)
        mid = kept(edit("resid_mid", x + out.astype(x.dtype)))
        pre, post, out = self.mlp(self.ln_2(x if c.parallel else mid), neuron_gate, edit)
        out = edit("mlp_out", self.ln_2_post(out) if c.post_norms else out)
        after = edit("resid_post", mid + out.astype(x.dtype))
        query, key, value = unpacked(qkv)
        return StreamActivations(resid_pre=x, query=query, key=key, value=value, head_out=head_out, resid_mid=mid,
                                 mlp_pre=pre, mlp_post=post, resid_post=after)


def score_input(config: ModelConfig, x_BTD: jax.Array) -> jax.Array:
    """What a block's score heads read of a clean residual stream [B, T, D] (`ModelConfig.score_input`)."""
    if config.detach_scores:
        x_BTD = jax.lax.stop_gradient(x_BTD)
    return nn.standardize(x_BTD, epsilon=config.layer_norm_eps) if config.score_input == "normalized" else x_BTD


def score_source(config: ModelConfig, layer: int) -> int:
    """The layer whose incoming residual stream a layer's score heads read (`ModelConfig.score_lag`)."""
    return max(0, layer - config.score_lag)


class OutputMatrix(nn.Module):
    """The matrix [V, D] of a model whose logits are not products with its embedding, as a module that returns it."""

    config: ModelConfig
    rows: int

    @nn.compact
    def __call__(self) -> jax.Array:
        """[V, D]."""
        c = self.config
        return self.param("kernel", torch_linear_init(c.d_model), (self.rows, c.d_model), c.param_dtype)


def output_matrix(config: ModelConfig, params: Params) -> jax.Array:
    """[V, D]: logits are its products with the final stream, then capped by `ModelConfig.logit_cap`."""
    return params["embed"]["embedding"] if config.tied else params["unembed"]["kernel"]


def token_logits(config: ModelConfig, params: Params, final: jax.Array) -> jax.Array:
    """[..., V] of the final stream [..., D], products in the output matrix's own type."""
    matrix = output_matrix(config, params)
    return capped(final.astype(matrix.dtype) @ matrix.T, config.logit_cap)


class SelfAblatingTransformer(nn.Module):
    """A decoder whose second stream keeps only k attention channels and k neurons a token and layer.

    The clean stream is an ordinary transformer and is all that runs at inference (`clean`). The ablated stream reads
    the clean stream's keys and values at earlier positions and its own at the current one. With `ablation="global"`
    the clean pass that gives the scores is the clean stream itself, so there is one, not two (docs/papers.md, Relevance
    scores).

    Example:
      >>> shape = dict(vocab_size=11, context_length=8, d_model=8, n_layers=1, n_heads=2)
      >>> config = ModelConfig(**shape, ablation="local", k_attention=2, k_neurons=3)
      >>> model = SelfAblatingTransformer(config)
      >>> tokens = jnp.zeros((1, 5), jnp.int32)
      >>> params = model.init(jax.random.key(0), tokens)["params"]
      >>> out = model.apply({"params": params}, tokens)
      >>> out.logits_ablated.shape, out.neuron_gates.sum(-1).ravel().tolist()
      ((1, 5, 11), [3.0, 3.0, 3.0, 3.0, 3.0])
    """

    config: ModelConfig
    vocab_rows: int | None = None
    """Rows of the embedding where it is padded for a mesh (`MeshConfig.vocab_multiple`); None for vocab_size rows."""
    groups: tuple[Columns, ...] | None = None
    """Which layers are scanned together, where parameters are stacked (`jaxablate.models.stacking`); None where they
    are by layer."""
    mesh: Mesh | None = None
    """Devices that share out a model in training: a layer gathers its parameters over ``fsdp`` where it is scanned, and
    the scores of its gates over ``tensor``. None elsewhere."""
    unroll: bool = False
    """Layers are written out one after another though their parameters are stacked: fewer kernels, more to compile."""

    def setup(self):
        c = self.config
        types = {"dtype": at_least_float32(c.compute_dtype), "param_dtype": c.param_dtype}
        rows = self.vocab_rows or c.vocab_size
        self.embed = nn.Embed(rows, c.d_model, embedding_init=torch_linear_init(c.d_model), **types)
        if c.positions == "learned":
            positions = nn.initializers.normal(c.position_std)
            self.pos_embed = nn.Embed(c.context_length, c.d_model, embedding_init=positions, **types)
        if not c.tied:
            self.unembed = OutputMatrix(c, rows)
        block = nn.remat(Block, methods=["clean", "ablated"]) if c.remat == "blocks" else Block
        self.blocks = [block(c, i, self.mesh, name=f"layer_{i}") for i in range(c.n_layers)]
        self.ln_f = Norm(c, c.norm)
        if c.ablation in ("global", "both"):
            self.attention_scores = ScoreHead(c.n_layers * c.attention_width, c)
            self.neuron_scores = ScoreHead(c.n_layers * c.mlp_width, c)

    def __call__(self, tokens_BT: jax.Array, *, gates: Gates | None = None, edit: Edit | None = None,
                 keep: Keep = keep_all, change_gate: ChangeGate | None = None) -> DecoderOutput:
        """Both streams.

        Args:
          tokens_BT: int token ids, T <= context_length.
          gates: used instead of the computed ones; also gives an ablated stream to a model with `ablation="none"`.
          edit: what to change at which site; an edit of the clean stream reaches the ablated one, as it would.
          keep: what the output has of each layer. Where layers are scanned, what it leaves out takes no memory.
          change_gate: changes the computed gates before they are used.

        Returns:
          `DecoderOutput`; without gates of either kind its ablated fields are None.

        Raises:
          ConfigError: more positions than the model has, or an edit of a model that rematerialises or scans its blocks.
        """
        require(edit is None or self.groups is None, "edit needs parameters by layer (jaxablate.models.stacking), not "
                "scanned ones")
        x = self._embedded(tokens_BT)
        given = [None] * self.config.n_layers if gates is None else [
            (gates.attention[:, :, i], gates.neuron[:, :, i]) for i in range(self.config.n_layers)]
        if gates is None and not self.config.gated:
            clean, final = self._clean_stream(x, edit=edit, keep=keep)
            return DecoderOutput(final, None, self._logits(final), None, clean)
        c = self.config
        # No score waits for a later layer, or is of an earlier one.
        together = c.ablation in ("none", "local") and c.score_lag == 0 and not c.detach_clean
        if self.groups and together:
            layers, final_clean, final_ablated = self._both_streams(x, given, keep, change_gate)
        else:
            layers, final_clean, final_ablated = self._one_after_another(x, given, edit, keep, change_gate)
        return DecoderOutput(final_clean, final_ablated, self._logits(final_clean), self._logits(final_ablated), layers)

    def clean(self, tokens_BT: jax.Array, *, edit: Edit | None = None) -> CleanOutput:
        """The clean stream alone, which is what the paper evaluates. Arguments and errors as in `__call__`."""
        layers, final = self._clean_stream(self._embedded(tokens_BT), edit=edit)
        return CleanOutput(final, self._logits(final), tuple(layer.clean for layer in layers))

    def prefill(self, tokens_BT: jax.Array, length: int) -> KeyValueCache:
        """Clean keys and values of a prompt, with room for `length` positions; the prompt may be empty (T = 0)."""
        c, (batch, filled) = self.config, tokens_BT.shape
        if filled == 0:
            empty = jnp.zeros((batch, length, c.key_heads, c.head_width), c.compute_dtype)
            return ((empty, empty),) * c.n_layers
        pad = ((0, 0), (0, length - filled), (0, 0), (0, 0))
        layers, _ = self._clean_stream(self._embedded(tokens_BT))
        return tuple((jnp.pad(layer.clean.key, pad), jnp.pad(layer.clean.value, pad)) for layer in layers)

    def decode(
        self, tokens_B: jax.Array, position: jax.Array, cache: KeyValueCache, ablated: bool
    ) -> tuple[jax.Array, KeyValueCache]:
        """Logits [B, V] of the token after `tokens_B` at `position`, and the cache with this position filled.

        The cache, from `prefill` and earlier calls, is the clean stream's also where the logits are the ablated one's.
        """
        positions = jnp.asarray(position)[None]
        x = y = self._embedded(tokens_B[:, None], positions)
        attends = [CachedAttention(self.config, i, position, *kv) for i, kv in enumerate(cache)]
        layers, final = self._clean_stream(x, [a.clean for a in attends], positions=positions)
        clean = [layer.clean for layer in layers]
        cache = tuple(a.written(layer.key, layer.value) for a, layer in zip(attends, clean, strict=True))
        if not ablated:
            return self._logits(final)[:, 0], cache
        for block, attend, layer, overall in zip(self.blocks, attends, clean, self._overall_scores(final), strict=True):
            source = clean[score_source(self.config, block.layer)].resid_pre
            gates = block.gates(block.scores(source, overall))
            y = block.ablated(y, layer.key, layer.value, gates, attend.ablated, positions=positions).resid_post
        return self._logits(self.ln_f(y))[:, 0], cache

    def _embedded(self, tokens_BT: jax.Array, positions_T: jax.Array | None = None) -> jax.Array:
        """What enters the first block; positions are 0, 1, ... by default."""
        c, shape, limit = self.config, jnp.shape(tokens_BT), self.config.context_length
        require(len(shape) == 2, f"tokens have the shape {shape}; give [batch, time], a single text as tokens[None]")
        require(shape[1] <= limit, f"{shape[1]} tokens exceed the model's context_length={limit}; shorten the input")
        x = self.embed(tokens_BT)
        if c.scale_embedding:
            x = x * c.d_model**0.5
        if c.positions == "rotary":
            return x
        return x + self.pos_embed(jnp.arange(shape[1]) if positions_T is None else positions_T)[None]

    def _edits(self, edit: Edit | None, block: str) -> dict[str, Any]:
        """The keyword argument that edits one block; none without an edit, for `jax.checkpoint` takes no functions."""
        if edit is None:
            return {}
        remat = self.config.remat
        require(remat == "none", f"edit needs remat='none', not {remat!r}; the same parameters fit")
        return {"edit": lambda field, x: edit(f"{block}.{field}", x)}

    def _clean_stream(
        self, x_BTD: jax.Array, attends: Sequence[Attend] | None = None, edit: Edit | None = None,
        keep: Keep = keep_all, positions: jax.Array | None = None
    ) -> tuple[tuple[Any, ...], jax.Array]:
        """Every layer's activations, and the final norm's output."""

        def body(block: Block, x: jax.Array, attend: Attend | None) -> tuple[jax.Array, Any]:
            edits = self._edits(edit, f"clean.layer_{block.layer}")
            clean = block.clean(x, attend, positions=positions, **edits)
            return clean.resid_post, keep(block.layer, LayerActivations(clean))

        x_BTD, layers = self._over_layers(body, x_BTD, attends or [None] * self.config.n_layers)
        return layers, self.ln_f(x_BTD)

    def _both_streams(self, x_BTD: jax.Array, given: Sequence[GatePair | None], keep: Keep, change: ChangeGate | None
                      ) -> tuple[tuple[Any, ...], jax.Array, jax.Array]:
        """Layers, and the final norm's outputs of both streams, which go through each layer together."""

        def body(block: Block, x: jax.Array, of_layer: Any) -> tuple[jax.Array, Any]:
            gates, number = of_layer
            x, activations = block.both(x, gates, _of_layer(change, number))
            return x, keep(block.layer, activations)

        of_layers = list(zip(given, self._numbers(change), strict=True))
        x_SBTD, layers = self._over_layers(body, jnp.stack([x_BTD, x_BTD]), of_layers)
        final = self.ln_f(x_SBTD)
        return layers, final[0], final[1]

    def _one_after_another(self, x_BTD: jax.Array, given: Sequence[GatePair | None], edit: Edit | None, keep: Keep,
                           change: ChangeGate | None) -> tuple[tuple[Any, ...], jax.Array, jax.Array]:
        """The same with all of the clean stream first."""
        clean, final_clean = self._clean_stream(x_BTD, edit=edit)
        seen = jax.lax.stop_gradient if self.config.detach_clean else lambda x: x
        sources = [clean[score_source(self.config, i)].clean.resid_pre for i in range(len(clean))]

        def body(block: Block, y: jax.Array, of_layer: Any) -> tuple[jax.Array, Any]:
            layer, source, overall, gates, number = of_layer
            scores = block.scores(source, overall)
            gates = block.gates(scores, _of_layer(change, number)) if gates is None else gates
            edits = self._edits(edit, f"ablated.layer_{block.layer}")
            ablated = block.ablated(y, seen(layer.clean.key), seen(layer.clean.value), gates, **edits)
            return ablated.resid_post, keep(block.layer, LayerActivations(layer.clean, ablated, *scores, *gates))

        overall = self._overall_scores(final_clean)
        of_layers = list(zip(clean, sources, overall, given, self._numbers(change), strict=True))
        y, layers = self._over_layers(body, x_BTD, of_layers)
        return layers, final_clean, self.ln_f(y)

    def _numbers(self, change: ChangeGate | None) -> list[jax.Array | None]:
        """The layers' numbers, arrays that a scan can take; None where nobody asks for them."""
        n = self.config.n_layers
        return [None] * n if change is None else list(jnp.arange(n))

    def _over_layers(self, body: Callable[[Block, jax.Array, Any], tuple[jax.Array, Any]], x: jax.Array,
                     inputs: Sequence[Any]) -> tuple[jax.Array, tuple[Any, ...]]:
        """``x, output = body(block, x, input)`` of one layer after another: the last x, and the outputs."""
        if self.groups is None:
            outputs = []
            for block, of_layer in zip(self.blocks, inputs, strict=True):
                x, output = body(block, x, of_layer)
                outputs.append(output)
            return x, tuple(outputs)

        def bound(layer: int, params: Params, x: jax.Array, of_layer: Any) -> tuple[jax.Array, Any]:
            if self.mesh is not None:
                # Kernels in the type in which they are used: half the bytes, and next to the product's gradient.
                params = gather(self.mesh, jax.tree.map(
                    lambda x: x.astype(self.config.compute_dtype) if x.ndim > 1 else x, params))
            return body(Block(self.config, layer, self.mesh, parent=None).bind({"params": params}), x, of_layer)

        if self.config.remat == "blocks":
            bound = jax.checkpoint(bound, static_argnums=0, prevent_cse=False)
        elif not self.unroll:
            # Whatever the backward pass reads is written for each layer: norms and activation functions are cheaper.
            bound = jax.checkpoint(bound, static_argnums=0, prevent_cse=False, policy=KEEP)
        x, outputs = over_layers(bound, self.variables["params"], self.groups, x, inputs, unroll=self.unroll)
        return x, tuple(outputs)

    def _overall_scores(self, final_BTD: jax.Array) -> Sequence[Scores | None]:
        """What the score heads of the whole model give to each layer; None without such heads."""
        c = self.config
        if c.ablation not in ("global", "both"):
            return [None] * c.n_layers
        final_BTD = jax.lax.stop_gradient(final_BTD) if c.detach_scores else final_BTD
        attention = jnp.split(self.attention_scores(final_BTD), c.n_layers, axis=-1)
        neuron = jnp.split(self.neuron_scores(final_BTD), c.n_layers, axis=-1)
        return list(zip(attention, neuron, strict=True))

    def _logits(self, final_BTD: jax.Array) -> jax.Array:
        dtype = jnp.dtype(self.config.compute_dtype)
        wide = at_least_float32(dtype)
        matrix = (self.embed.embedding if self.config.tied else self.unembed()).astype(dtype)
        logits = jnp.einsum("btd,vd->btv", final_BTD.astype(dtype), matrix, preferred_element_type=wide)
        return capped(logits[..., : self.config.vocab_size], self.config.logit_cap)

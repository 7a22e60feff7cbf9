"""Losses: a model's output to a scalar and metrics."""

import functools
from collections.abc import Mapping, Sequence
from typing import cast

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int, Shaped

from jaxablate.config import ClassificationObjective, ModelConfig, ObjectiveConfig, RegularizedObjective
from jaxablate.config.checks import require
from jaxablate.config.gated import UNIT_KINDS, UnitKind
from jaxablate.errors import ConfigError
from jaxablate.gating import hard_top_k
from jaxablate.models.classifier import ClassifierOutput, SafrClassifier
from jaxablate.models.decoder import (
    ChangeGate,
    DecoderOutput,
    Gates,
    LayerActivations,
    SelfAblatingTransformer,
    output_matrix,
)
from jaxablate.ops.attention import attention_weights, repeat_heads
from jaxablate.ops.cross_entropy import linear_cross_entropy
from jaxablate.ops.masks import nonzero_sum, valid_targets, weights
from jaxablate.ops.varying import any_over_axes, mean_over_axes
from jaxablate.regularizers import REGULARIZERS, Site, information_of_gates, mean_over_texts, reconstruction
from jaxablate.types import STREAMS, Batch, Params, at_least_float32

Metrics = dict[str, jax.Array]


@flax.struct.dataclass
class Moment:
    """When in a training a loss is."""

    progress: jax.Array
    """Part of the updates that are done, in [0, 1), a scalar."""
    key: jax.Array
    """PRNG key of the update."""


def language_model_loss(
    model: SelfAblatingTransformer, params: Params, inputs_BT: Int[ArrayLike, "batch time"],
    targets_BT: Int[ArrayLike, "batch time"], objective: ObjectiveConfig,
    mask_BT: Shaped[ArrayLike, "..."] | None = None, gates: Gates | None = None, batch_axes: Sequence[str] = (),
    moment: Moment | None = None,
) -> tuple[jax.Array, Metrics]:
    """clean * CE(clean) + ablated * CE(ablated) + reconstruction * R (docs/papers.md, Losses), and regularisers.

    The mask is 1 where a target counts; None counts all. Mask and targets are as in `linear_cross_entropy`.
    Regularisers are over all positions. ``gates`` are given to the model instead of its own. ``batch_axes`` are axes of
    a `jax.shard_map` over which the rows of a batch are split: the results are those of the whole batch. ``moment`` is
    when in a training the loss is, for what the objective changes during it; without one it is the end, and nothing is
    drawn. The derivative is for reverse mode (`jax.grad`), and forward mode over that.

    Returns:
      The loss, and scalar metrics: `loss`, `loss_clean`; with an ablated stream also `loss_ablated`,
      `reconstruction` (before its coefficient), `gate_information` (where it has a coefficient, before that),
      `live_attention` and `live_neurons` (fraction of units of all layers whose gate exceeds 0.5 at least once in the
      batch). Without one CE(clean) has no coefficient. Each regulariser whose coefficient is not zero is there under
      its name, before its coefficient.

    Raises:
      ConfigError: a regulariser is not registered, or reads what the model does not have.
    """
    keep = functools.partial(_layer_terms, model.config, objective)
    out = cast(DecoderOutput, model.apply({"params": params}, inputs_BT, gates=gates, keep=keep,
                                          change_gate=_change_gate(model.config, objective, moment, batch_axes)))
    dtype = jnp.dtype(model.config.compute_dtype)
    matrix = jnp.asarray(output_matrix(model.config, params)).astype(dtype)
    streams = [out.final_clean] + ([] if out.final_ablated is None else [out.final_ablated])
    losses = linear_cross_entropy(
        tuple(s.astype(dtype) for s in streams), matrix, targets_BT, mask_BT, vocabulary=model.config.vocab_size,
        chunk=objective.ce_chunk, cap=model.config.logit_cap,
    )
    counted = weights(mask_BT, jnp.shape(targets_BT), jnp.float32, of="the targets").sum()
    losses = mean_over_axes(losses, batch_axes, counted)
    metrics = {"loss_clean": losses[0]}
    if out.final_ablated is None:
        loss = losses[0]
    else:
        loss = objective.clean * losses[0] + _ablated_coefficient(objective, moment) * losses[1]
        rebuilt = [layer.reconstruction for layer in out.layers] + [reconstruction(out.final_clean, out.final_ablated)]
        metrics["reconstruction"] = mean_over_axes(jnp.asarray(sum(rebuilt)) / len(rebuilt), batch_axes)
        if objective.reconstruction:  # a zero coefficient would still pay for the term's backward pass
            loss += objective.reconstruction * metrics["reconstruction"]
        metrics["loss_ablated"] = losses[1]
        if objective.gate_information:
            rates = mean_over_axes([layer.rates for layer in out.layers], batch_axes)
            metrics["gate_information"] = jnp.stack([information_of_gates(x) for x in rates]).mean()
            loss += objective.gate_information * metrics["gate_information"]
        for kind in UNIT_KINDS:
            live = jnp.stack([x.live[kind] for x in out.layers])
            metrics[f"live_{kind}"] = jnp.mean(any_over_axes(live, batch_axes), dtype=jnp.float32)
    terms = {name: [x for layer in out.layers for x in layer.terms[name]] for name in _wanted(objective)}
    loss, terms = _regularized(loss, objective, mean_over_axes(terms, batch_axes))
    return loss, {"loss": loss} | metrics | terms


def _ablated_coefficient(objective: ObjectiveConfig, moment: Moment | None) -> jax.typing.ArrayLike:
    if moment is None or not objective.ablated_anneal:
        return objective.ablated
    return objective.ablated * jnp.minimum(moment.progress / objective.ablated_anneal, 1.0)


def _change_gate(config: ModelConfig, objective: ObjectiveConfig, moment: Moment | None, axes: Sequence[str]
                 ) -> ChangeGate | None:
    """What training does to gates: some are those of random winners, and all close slowly; None where nothing."""
    if moment is None or not (objective.gate_anneal or objective.random_gates):
        return None

    def changed(kind: UnitKind, layer: jax.Array, gate: jax.Array) -> jax.Array:
        if objective.random_gates:
            key = jax.random.fold_in(jax.random.fold_in(moment.key, layer), UNIT_KINDS.index(kind))
            for axis in axes:  # each device has other rows
                key = jax.random.fold_in(key, jax.lax.axis_index(axis))
            which, scores = jax.random.split(key)
            k = config.layer_k(kind, 0)
            drawn = hard_top_k(jax.random.uniform(scores, gate.shape), k).astype(gate.dtype)
            gate = jnp.where(jax.random.bernoulli(which, objective.random_gates, (*gate.shape[:-1], 1)), drawn, gate)
        if objective.gate_anneal:
            opened = jnp.maximum(1 - moment.progress / objective.gate_anneal, 0).astype(gate.dtype)
            gate = gate + opened * (1 - gate)
        return gate

    return changed


@flax.struct.dataclass
class _LayerTerms:
    """What a loss needs of one layer."""

    terms: dict[str, list[jax.Array]]
    """Every regulariser of the activations that it reads; empty where it reads none of this layer."""
    reconstruction: jax.Array | None = None
    """`regularizers.reconstruction` of the two streams that leave the block."""
    live: dict[str, jax.Array] | None = None
    """Whether a unit's gate exceeds 0.5 at least once in the batch, for the two kinds of units."""
    rates: jax.Array | None = None
    """Mean gates of all units, both kinds one after another, [U + F]; where the objective asks for them."""


def _layer_terms(config: ModelConfig, objective: ObjectiveConfig, layer: int, x: LayerActivations) -> _LayerTerms:
    terms = {name: [REGULARIZERS[name].term(array, None) for array in _layer_arrays(config, objective, layer, x, name)]
             for name in _wanted(objective)}
    if x.ablated is None:
        return _LayerTerms(terms)
    pair = map(jnp.asarray, (x.attention_gates, x.neuron_gates))
    gates = dict(zip(UNIT_KINDS, pair, strict=True))
    live = {kind: jnp.any(gate > 0.5, axis=(0, 1)) for kind, gate in gates.items()}
    rates = None
    if objective.gate_information:
        rates = jnp.concatenate([gate.mean(axis=(0, 1)) for gate in gates.values()])
    return _LayerTerms(terms, reconstruction(x.clean.resid_post, x.ablated.resid_post), live, rates)


def _wanted(objective: ObjectiveConfig) -> list[str]:
    return [name for name, coefficient in objective.coefficients.items() if coefficient]


def check_regularizers(objective: RegularizedObjective, *, vmask: bool) -> None:
    """Refuses coefficients of regularisers that a loss cannot add, before anything is trained.

    Raises:
      ConfigError: a regulariser is not registered, or reads what the model does not have.
    """
    for name, coefficient in objective.coefficients.items():
        if REGULARIZERS[name].reads == "vmask" and coefficient and not vmask:
            raise ConfigError(f"regularizer {name!r} reads VMASK, which the model does not have; set its coefficient "
                              "to 0")


def _regularized(loss: jax.Array, objective: RegularizedObjective, values: Mapping[str, Sequence[jax.Array]]
                 ) -> tuple[jax.Array, Metrics]:
    """The loss with the named terms, and the terms, each the mean of its ``values`` on the activations it reads."""
    terms = {}
    for name, of_arrays in values.items():
        coefficient = objective.coefficients[name]
        if of_arrays:
            terms[name] = jnp.asarray(sum(of_arrays)) / len(of_arrays)
            if coefficient:  # one of zero would still pay for the term's backward pass
                loss += coefficient * terms[name]
        elif coefficient:
            raise ConfigError(f"regularizer {name!r} reads {REGULARIZERS[name].reads}, which the model does not have; "
                              "set its coefficient to 0")
    return loss, terms


def _layer_arrays(config: ModelConfig, objective: ObjectiveConfig, layer: int, x: LayerActivations, name: str
                  ) -> list[jax.Array]:
    """What a regulariser reads in the chosen layers and streams: neurons as they reach the down-projection (gated ones
    in the ablated stream), or attention weights, computed from queries and keys."""
    site, arrays = REGULARIZERS[name].reads, []
    if layer not in (objective.regularized_layers or range(config.n_layers)):
        return arrays
    options = {"window": config.layer_window(layer), "scale": config.attention_scale, "cap": config.attention_cap}
    for kind in STREAMS if objective.regularized_stream == "both" else (objective.regularized_stream,):
        stream = getattr(x, kind)
        if stream is not None and site == "vectors":
            arrays.append(x.neurons(kind))
        elif stream is not None and site == "attention":
            keys = [x.clean.key] if kind == "clean" else [x.clean.key, stream.key]
            arrays.append(attention_weights(stream.query, *(repeat_heads(k, config.n_heads) for k in keys), **options))
    return arrays


def classification_loss(
    model: SafrClassifier, params: Params, batch: Batch, objective: ClassificationObjective, *, train: bool = False,
    rngs: Mapping[str, jax.Array] | None = None, noise_BL2: Float[Array, "batch tokens 2"] | None = None,
) -> tuple[jax.Array, Metrics]:
    """CE + importance * L_imp + interaction * L_inter + information * H (docs/papers.md, SAFR), and regularisers.

    ``train`` takes a hard VMASK sample and dropout, from the keys `rngs` ("vmask", "dropout"); ``noise_BL2`` is Gumbel
    noise of VMASK in place of a drawn one.

    Returns:
      The loss, and scalar metrics: `loss`, `cross_entropy`, `accuracy`, and every regulariser under its name, before
      its coefficient, also where that is zero: `importance`, `interaction`, with VMASK `information`; with VMASK also
      `kept` (mean of the mask over the texts' tokens); with an ablated stream also `cross_entropy_ablated` and
      `accuracy_ablated`, and `loss` has both cross-entropies.

    A row of weight 0 counts nowhere, whatever its label; the loss is NaN where a label that counts is no class.

    Raises:
      ConfigError: a regulariser is not registered, or reads what the model does not have; or shapes do not fit.
    """
    tokens, labels = jnp.asarray(batch["tokens"]), jnp.asarray(batch["labels"])
    mask = weights(batch["mask"], tokens.shape, jnp.float32, of="the tokens")
    weight = weights(batch["weight"], tokens.shape[:1], jnp.float32, of="the texts")
    require(labels.shape == weight.shape, f"labels have the shape {labels.shape}, but there are {len(tokens)} texts")
    rngs = None if rngs is None else dict(rngs)
    out = cast(ClassifierOutput,
               model.apply({"params": params}, tokens, mask, train=train, noise_BL2=noise_BL2, rngs=rngs))
    real = mask * weight[:, None]
    # The released code counts padding like any token.
    counted = jnp.ones_like(real) * weight[:, None] if model.config.padding == "paper" else real
    metrics = _class_metrics(out.logits, labels, weight)
    loss = (objective.clean if model.config.gated else 1.0) * metrics["cross_entropy"]
    if out.logits_ablated is not None:
        ablated = _class_metrics(out.logits_ablated, labels, weight)
        loss += objective.ablated * ablated["cross_entropy"]
        metrics |= {f"{name}_ablated": value for name, value in ablated.items()}
    if out.vmask is not None:
        metrics["kept"] = mean_over_texts(out.vmask, real)
    loss, terms = _regularized(loss, objective, {
        name: [REGULARIZERS[name].term(x, counted)
               for x in _classifier_arrays(out, objective, REGULARIZERS[name].reads)]
        for name in objective.coefficients})
    return loss, {"loss": loss} | metrics | terms


def _classifier_arrays(out: ClassifierOutput, objective: ClassificationObjective, site: Site) -> list[jax.Array]:
    """What regularisers read in the chosen layers and streams."""
    kinds = STREAMS if objective.stream == "both" else (objective.stream,)
    layers = [out.layers[layer] for layer in objective.layers]
    blocks = [(layer, kind) for layer in layers for kind in kinds if getattr(layer, kind) is not None]
    if site == "vmask":
        return [] if out.vmask_logits is None else [out.vmask_logits]
    if site == "attention":
        return [getattr(layer, kind).attention for layer, kind in blocks]
    return [out.masked] if objective.importance_site == "embedding" else [x.neurons(kind) for x, kind in blocks]


def _class_metrics(logits: jax.Array, labels: jax.Array, weight: jax.Array) -> Metrics:
    """Means over the real rows."""
    labels, weight = valid_targets(labels, weight, logits.shape[-1])
    count = nonzero_sum(weight)
    log_p = jax.nn.log_softmax(logits.astype(at_least_float32(logits.dtype)), axis=-1)
    weight, count = weight.astype(log_p.dtype), count.astype(log_p.dtype)
    nats = -jnp.take_along_axis(log_p, labels[:, None], axis=-1)[:, 0]
    right = (jnp.argmax(logits, axis=-1) == labels).astype(log_p.dtype)
    return {"cross_entropy": jnp.sum(nats * weight) / count, "accuracy": jnp.sum(right * weight) / count}

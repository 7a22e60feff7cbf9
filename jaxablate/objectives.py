"""Model output -> loss and metrics."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxablate.config import ClassificationObjective, ModelConfig, ObjectiveConfig
from jaxablate.models.classifier import ClassifierLayer, ClassifierOutput, SafrClassifier
from jaxablate.models.decoder import DecoderOutput, Gates, LayerActivations, SelfAblatingTransformer
from jaxablate.models.vmask import information, mean_of_means
from jaxablate.ops.attention import attention_weights
from jaxablate.ops.cross_entropy import linear_cross_entropy
from jaxablate.regularizers import interference, polysemanticity, reconstruction


def language_model_loss(
    model: SelfAblatingTransformer,
    params: Any,
    inputs_BT: jax.Array,
    targets_BT: jax.Array,
    objective: ObjectiveConfig,
    mask_BT: jax.Array | None = None,
    gates: Gates | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """clean * CE(clean) + ablated * CE(ablated) + reconstruction * R (docs/papers.md, Losses), and SAFR's terms.

    Args:
      model: the decoder.
      params: its parameters.
      inputs_BT, targets_BT: int token ids; targets are the inputs shifted by one.
      objective: the coefficients.
      mask_BT: 1 where the target counts; None counts all. SAFR's terms are over all positions.
      gates: given to the model instead of its own.

    Returns:
      The loss, and scalar metrics: `loss`, `loss_clean`; with an ablated stream also `loss_ablated`,
      `reconstruction` (before its coefficient), `live_attention` and `live_neurons` (fraction of units of all layers
      whose gate exceeds 0.5 at least once in the batch). Without one CE(clean) has no coefficient. `importance` and
      `interaction` (before their coefficients) are there where their coefficients are not zero.
    """
    out = model.apply({"params": params}, inputs_BT, gates=gates)
    dtype = jnp.dtype(model.config.compute_dtype)
    embedding = params["embed"]["embedding"].astype(dtype)
    streams = [out.final_clean] + ([] if out.final_ablated is None else [out.final_ablated])
    losses = linear_cross_entropy(
        tuple(s.astype(dtype) for s in streams), embedding, targets_BT, mask_BT, chunk=objective.ce_chunk
    )
    metrics = {"loss_clean": losses[0]}
    if out.final_ablated is None:
        loss = losses[0]
    else:
        loss = objective.clean * losses[0] + objective.ablated * losses[1]
        rebuilt = stream_reconstruction(out)
        if objective.reconstruction:  # a zero coefficient would still pay for the term's backward pass
            loss += objective.reconstruction * rebuilt
        metrics |= {"loss_ablated": losses[1], "reconstruction": rebuilt} | live_fractions(out)
    for name, value in _decoder_safr_terms(out, model.config, objective).items():
        loss += getattr(objective, name) * value
        metrics[name] = value
    return loss, {"loss": loss} | metrics


def _decoder_safr_terms(
    out: DecoderOutput, config: ModelConfig, objective: ObjectiveConfig
) -> dict[str, jax.Array]:
    """SAFR's terms on the decoder's streams, means over layers and streams: neurons as they reach the down-projection
    (gated ones in the ablated stream), and attention weights made anew from queries and keys. Only those asked for."""
    chosen = objective.regularized_layers or range(config.n_layers)
    kinds = ("clean", "ablated") if objective.regularized_stream == "both" else (objective.regularized_stream,)
    sites = [(i, kind) for i in chosen for kind in kinds if getattr(out.layers[i], kind) is not None]
    if not sites:
        return {}
    terms = {}
    if objective.importance:
        terms["importance"] = sum(polysemanticity(_neurons(out.layers[i], kind)) for i, kind in sites) / len(sites)
    if objective.interaction:
        weights = (_attention_of(out.layers[i], kind, config, i) for i, kind in sites)
        terms["interaction"] = sum(map(interference, weights)) / len(sites)
    return terms


def _neurons(layer: LayerActivations | ClassifierLayer, stream: str) -> jax.Array:
    return layer.clean.mlp_post if stream == "clean" else layer.ablated.mlp_post * layer.neuron_gates


def _attention_of(layer: LayerActivations, stream: str, config: ModelConfig, index: int) -> jax.Array:
    options = {"window": config.layer_window(index), "scale": config.attention_scale}
    if stream == "clean":
        return attention_weights(layer.clean.query, layer.clean.key, **options)
    return attention_weights(layer.ablated.query, layer.clean.key, layer.ablated.key, **options)


def stream_reconstruction(out: DecoderOutput) -> jax.Array:
    """R: the mean over the L block outputs and the final norm's output of `regularizers.reconstruction`."""
    sites = [(layer.clean.resid_post, layer.ablated.resid_post) for layer in out.layers]
    sites.append((out.final_clean, out.final_ablated))
    return sum(reconstruction(c, a) for c, a in sites) / len(sites)


def live_fractions(out: DecoderOutput) -> dict[str, jax.Array]:
    """Fraction of (layer, unit) whose gate exceeds 0.5 at least once in the batch, for both kinds of units."""

    def live(name: str) -> jax.Array:
        used = [jnp.any(getattr(layer, name) > 0.5, axis=(0, 1)) for layer in out.layers]
        return jax.lax.stop_gradient(jnp.mean(jnp.stack(used), dtype=jnp.float32))

    return {"live_attention": live("attention_gates"), "live_neurons": live("neuron_gates")}


def classification_loss(
    model: SafrClassifier,
    params: Any,
    batch: Mapping[str, jax.Array],
    objective: ClassificationObjective,
    *,
    train: bool = False,
    rngs: Mapping[str, jax.Array] | None = None,
    noise_BL2: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """CE + importance * L_imp + interaction * L_inter + information * H (docs/papers.md, SAFR).

    Args:
      model: the classifier.
      params: its parameters.
      batch: `tokens` int [B, L], `mask` [B, L], `labels` int [B], and `weight` [B], 0 for rows that are no texts.
      objective: the coefficients, and what is regularised.
      train: hard VMASK sample and dropout, from `rngs` ("vmask", "dropout").
      noise_BL2: Gumbel noise of VMASK in place of a drawn one.

    Returns:
      The loss, and scalar metrics: `loss`, `cross_entropy`, `accuracy`, `importance` and `interaction` (before their
      coefficients); with VMASK also `kept` (mean of the mask over the texts' tokens) and `information`; with an ablated
      stream also `cross_entropy_ablated` and `accuracy_ablated`, and `loss` has both cross-entropies.
    """
    out = model.apply({"params": params}, batch["tokens"], batch["mask"], train=train, noise_BL2=noise_BL2, rngs=rngs)
    weight = batch["weight"]
    real = batch["mask"] * weight[:, None]
    # The released code counts padding like any token.
    counted = jnp.ones_like(real) * weight[:, None] if model.config.padding == "paper" else real
    metrics = _class_metrics(out.logits, batch["labels"], weight)
    loss = (objective.clean if model.config.gated else 1.0) * metrics["cross_entropy"]
    if out.logits_ablated is not None:
        ablated = _class_metrics(out.logits_ablated, batch["labels"], weight)
        loss += objective.ablated * ablated["cross_entropy"]
        metrics |= {f"{name}_ablated": value for name, value in ablated.items()}
    terms = _safr_terms(out, objective, counted)
    if out.vmask is not None:
        terms["information"] = information(out.vmask_logits, counted)
        metrics["kept"] = mean_of_means(out.vmask, real)
    for name, value in terms.items():
        if coefficient := getattr(objective, name):  # one of zero would still pay for the term's backward pass
            loss += coefficient * value
    return loss, {"loss": loss} | metrics | terms


def _safr_terms(out: ClassifierOutput, objective: ClassificationObjective, counted: jax.Array) -> dict[str, jax.Array]:
    """Importance and interaction losses before their coefficients, means over the chosen layers and streams."""
    kinds = ("clean", "ablated") if objective.stream == "both" else (objective.stream,)
    blocks = [(out.layers[layer], kind) for layer in objective.layers for kind in kinds]
    sites = [out.masked] if objective.importance_site == "embedding" else [_neurons(*block) for block in blocks]
    return {
        "importance": sum(polysemanticity(x, counted) for x in sites) / len(sites),
        "interaction": sum(interference(getattr(*block).attention, counted) for block in blocks) / len(blocks),
    }


def _class_metrics(logits: jax.Array, labels: jax.Array, weight: jax.Array) -> dict[str, jax.Array]:
    """Means over the real rows."""
    count = jnp.maximum(jnp.sum(weight), 1)
    log_p = jax.nn.log_softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)), axis=-1)
    nats = -jnp.take_along_axis(log_p, labels[:, None], axis=-1)[:, 0]
    right = jnp.argmax(logits, axis=-1) == labels
    return {"cross_entropy": jnp.sum(nats * weight) / count, "accuracy": jnp.sum(right * weight) / count}

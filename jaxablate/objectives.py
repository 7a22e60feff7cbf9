"""Model output -> loss and metrics."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxablate.config import ObjectiveConfig
from jaxablate.models.decoder import DecoderOutput, Gates, SelfAblatingTransformer
from jaxablate.ops.cross_entropy import linear_cross_entropy
from jaxablate.regularizers import reconstruction


def language_model_loss(
    model: SelfAblatingTransformer,
    params: Any,
    inputs_BT: jax.Array,
    targets_BT: jax.Array,
    objective: ObjectiveConfig,
    mask_BT: jax.Array | None = None,
    gates: Gates | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """clean * CE(clean) + ablated * CE(ablated) + reconstruction * R (REFERENCE section 1, "Loss").

    Args:
      model: the decoder.
      params: its parameters.
      inputs_BT, targets_BT: int token ids; targets are the inputs shifted by one.
      objective: the three coefficients.
      mask_BT: 1 where the target counts; None counts all.
      gates: given to the model instead of its own.

    Returns:
      The loss, and scalar metrics: `loss`, `loss_clean`; with an ablated stream also `loss_ablated`,
      `reconstruction` (before its coefficient), `live_attention` and `live_neurons` (fraction of units of all layers
      whose gate exceeds 0.5 at least once in the batch). Without one the loss is CE(clean), uncoefficiented.
    """
    out = model.apply({"params": params}, inputs_BT, gates=gates)
    dtype = jnp.dtype(model.config.compute_dtype)
    embedding = params["embed"]["embedding"].astype(dtype)
    streams = [out.final_clean] + ([] if out.final_ablated is None else [out.final_ablated])
    losses = linear_cross_entropy(
        tuple(s.astype(dtype) for s in streams), embedding, targets_BT, mask_BT, chunk=objective.ce_chunk
    )
    if out.final_ablated is None:
        return losses[0], {"loss": losses[0], "loss_clean": losses[0]}
    rebuilt = stream_reconstruction(out)
    loss = objective.clean * losses[0] + objective.ablated * losses[1]
    if objective.reconstruction:  # a zero coefficient would still pay for the term's backward pass
        loss += objective.reconstruction * rebuilt
    metrics = {"loss": loss, "loss_clean": losses[0], "loss_ablated": losses[1], "reconstruction": rebuilt}
    return loss, metrics | live_fractions(out)


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

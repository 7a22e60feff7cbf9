"""Heads and MLPs of a decoder switched off: the same model with other parameters, which every tool takes."""

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from jaxablate.circuits.graph import START, Graph
from jaxablate.config import ModelConfig
from jaxablate.errors import ConfigError
from jaxablate.models.decoder import CleanOutput, SelfAblatingTransformer
from jaxablate.types import Batch, Params

MEAN_TOKENS = 8192
"""Tokens over which a node's mean is taken."""


def node_means(model: SelfAblatingTransformer, params: Params, batches: Iterable[Batch]) -> dict[str, np.ndarray]:
    """Mean output of every head and MLP in the clean stream: float32 ``head_out`` [L, N H] and ``mlp_out`` [L, D].

    Over the first `MEAN_TOKENS` tokens that count, of batches with ``inputs`` and ``mask`` as a run's splits have them.
    """
    total, count = {}, 0
    for batch in batches:
        mask = np.asarray(batch["mask"]) > 0
        sums = _node_sums(model, params, np.asarray(batch["inputs"]), mask)  # one device has the parameters
        for name, x in jax.device_get(sums).items():
            total[name] = total.get(name, 0) + x.astype(np.float64)
        count += int(mask.sum())
        if count >= MEAN_TOKENS:
            break
    return {name: (x / max(count, 1)).astype(np.float32) for name, x in total.items()}


@functools.partial(jax.jit, static_argnums=0)
def _node_sums(model: SelfAblatingTransformer, params: Params, tokens_BT: jax.Array, mask_BT: jax.Array
               ) -> dict[str, jax.Array]:
    layers = cast(CleanOutput, model.apply({"params": params}, tokens_BT, method="clean")).layers

    def sums(values: Iterable[jax.Array]) -> jax.Array:
        rows = [x.reshape(*mask_BT.shape, -1) for x in values]
        return jnp.stack([jnp.sum(x, axis=(0, 1), where=mask_BT[..., None]) for x in rows])

    return {"head_out": sums(layer.head_out for layer in layers),
            "mlp_out": sums(layer.resid_post - layer.resid_mid for layer in layers)}


def check_nodes(config: ModelConfig, nodes: Sequence[str]) -> None:
    """Raises ConfigError where a model has no such head or MLP."""
    names = set(Graph.of(config).source_names) - {START}
    for node in nodes:
        if node not in names:
            raise ConfigError(f"the model has no node {node!r:.40}; heads are A0.0 .. A{config.n_layers - 1}."
                              f"{config.n_heads - 1}, and MLP 0 .. MLP {config.n_layers - 1}")


def without(config: ModelConfig, params: Params, nodes: Sequence[str], means: Mapping[str, np.ndarray] | None
            ) -> Params:
    """Parameters of the same model, of which heads and MLPs put out their mean, or nothing, in both streams.

    A head writes through its rows of the output projection, an MLP through its last one, so these are what changes.

    Raises:
      ConfigError: there is no such node, or it has no part of its own that could be replaced by a mean.
    """
    check_nodes(config, nodes)
    changed = dict(params)
    for node in nodes:
        layer = int(node.removeprefix("MLP ")) if node.startswith("MLP") else int(node[1:].split(".")[0])
        name = f"layer_{layer}"
        block = dict(changed[name])
        if node.startswith("MLP"):
            if config.post_norms and means is not None:
                raise ConfigError(f"{node} has a norm after it: no constant gives its mean; replace it by zeros")
            down = dict(block["mlp"]["down"])
            down["kernel"] = jnp.zeros_like(down["kernel"])
            value = 0.0 if means is None else means["mlp_out"][layer]
            block["mlp"] = {**block["mlp"], "down": _with_bias(down, value, node, means)}
        else:
            head, out = int(node.split(".")[1]), dict(block["attention"]["out"])
            value = 0.0
            if means is not None:
                of_head = means["head_out"][layer].reshape(config.n_heads, -1)[head]
                value = of_head @ np.asarray(params[name]["attention"]["out"]["kernel"][head], np.float32)
                value = value + np.asarray(out.get("bias", 0.0), np.float32)
            elif "bias" in out:
                value = out["bias"]
            out["kernel"] = out["kernel"].at[head].set(0)
            block["attention"] = {**block["attention"], "out": _with_bias(out, value, node, means)}
        changed[name] = block
    return changed


def _with_bias(linear: dict[str, Any], value: Any, node: str, means: Any) -> dict[str, Any]:
    if "bias" in linear:
        return {**linear, "bias": jnp.broadcast_to(jnp.asarray(value, linear["bias"].dtype), linear["bias"].shape)}
    if means is not None:
        raise ConfigError(f"{node} of a model without biases cannot put out its mean; replace it by zeros")
    return linear

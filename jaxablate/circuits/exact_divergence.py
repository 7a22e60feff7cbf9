"""KL of a set of patched edges by the plain patched run in float64: what fast results are held against."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxablate.circuits import nodes
from jaxablate.circuits.nodes import Inputs, Params
from jaxablate.circuits.patching import Ablation, circuit_config, make_replacement, patched_logits, run
from jaxablate.config import ModelConfig


class ExactDivergence:
    """(removed [E] bool) -> mean KL(clean || patched) over prompts, nats. Prepares itself at its first use.

    Args:
      config: of the model.
      params: its weights.
      batches: (clean, corrupt) prompts.
      ablation: what patched edges carry.
    """

    def __init__(self, config: ModelConfig, params: Params, batches: Sequence[tuple[Inputs, Inputs]],
                 ablation: Ablation):
        self._config, self._params, self._batches = circuit_config(config, "float64"), params, batches
        self._ablation = ablation
        self._prepared = None

    def __call__(self, removed: np.ndarray) -> float:
        with jax.enable_x64(True):
            if self._prepared is None:
                self._params = nodes.in_type(self._params, np.float64)
                self._prepared = [self._prepare(*batch) for batch in self._batches]
            patched = jnp.asarray(removed, np.float64)
            rows = [np.asarray(_divergence(self._config, self._params, *p, patched)) for p in self._prepared]
        return float(np.concatenate(rows).mean())

    def _prepare(self, clean: Inputs, corrupt: Inputs):
        clean, corrupt = (jax.tree.map(_wide, x) for x in (clean, corrupt))
        other = run(self._config, self._params, corrupt)
        gated = clean.attention_gates is not None
        replacement = make_replacement(self._ablation, other, corrupt.valid, gated)
        logits = run(self._config, self._params, clean).logits(self._params)
        return clean, replacement, jax.nn.log_softmax(logits, axis=-1)


def _wide(x: jax.Array) -> jax.Array:
    x = np.asarray(x)
    return jnp.asarray(x, np.float64 if np.issubdtype(x.dtype, np.floating) else x.dtype)


def _divergence(config, params, inputs, replacement, log_probs, patched):
    other = jax.nn.log_softmax(patched_logits(config, params, inputs, patched, replacement), axis=-1)
    return (jnp.exp(log_probs) * (log_probs - other)).sum(-1)

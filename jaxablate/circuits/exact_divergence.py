"""KL of a set of patched edges by the plain patched run in float64: what fast results are held against."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxablate.circuits import nodes
from jaxablate.circuits.nodes import Inputs, Params
from jaxablate.circuits.patching import Ablation, circuit_config, make_replacements, patched_logits, run
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
                self._prepared = self._prepare()
            patched = jnp.asarray(removed, np.float64)
            rows = [np.asarray(_divergence(self._config, self._params, *p, patched)) for p in self._prepared]
        return float(np.concatenate(rows).mean())

    def _prepare(self) -> list[tuple[Inputs, jax.Array, jax.Array]]:
        """(clean prompts, what patched edges carry, clean log-probabilities) of each batch."""
        batches = [tuple(jax.tree.map(_wide, x) for x in batch) for batch in self._batches]
        gated = batches[0][0].attention_gates is not None
        runs = [run(self._config, self._params, corrupt) for _, corrupt in batches]
        others = make_replacements(self._ablation, runs, [corrupt.valid for _, corrupt in batches], gated)
        logits = [run(self._config, self._params, clean).logits(self._params) for clean, _ in batches]
        log_probs = [jax.nn.log_softmax(x, axis=-1) for x in logits]
        return list(zip([clean for clean, _ in batches], others, log_probs, strict=True))


def _wide(x: jax.Array) -> jax.Array:
    x = np.asarray(x)
    return jnp.asarray(x, np.float64 if np.issubdtype(x.dtype, np.floating) else x.dtype)


def _divergence(config, params, inputs, replacement, log_probs, patched):
    other = jax.nn.log_softmax(patched_logits(config, params, inputs, patched, replacement), axis=-1)
    return (jnp.exp(log_probs) * (log_probs - other)).sum(-1)

"""What a circuit is measured by: the logit difference of answers and wrong answers, or the divergence from the model.

Both are functions of the stream after the final norm at the last position, [..., n, D], so that thousands of patched
runs need no logits, or those of a part of the vocabulary at a time. Values are per prompt; their mean is the metric.
"""

from typing import Literal, Protocol, Self

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jaxablate.circuits.divergence import Readout, divergence, readout
from jaxablate.circuits.nodes import Params
from jaxablate.circuits.prompts import NO_ANSWER, PromptPairs
from jaxablate.errors import ConfigError

Metric = Literal["logit_difference", "kl"]
METRICS: tuple[Metric, ...] = ("logit_difference", "kl")


class Target(Protocol):
    """A metric of certain prompts, in their order; a JAX pytree."""

    higher_is_better: bool
    """Whether a greater value is a better answer: what an important edge does when it is patched is the opposite."""
    flat_at_model: bool
    """Whether its derivative at the model itself is zero, so that attribution there says nothing."""

    def values(self, final: jax.Array) -> jax.Array:
        """[..., n] of runs that end in ``final`` [..., n, D]."""
        ...

    def take(self, rows: np.ndarray) -> Self:
        """The metric of the prompts ``rows`` [m] int."""
        ...


@flax.struct.dataclass
class LogitDifference:
    """Mean logit of the answers less mean logit of the wrong answers, in logits.

    Logits are linear in the final stream, so the difference is its product with one direction for each prompt.
    """

    direction: jax.Array
    """[n, D] mean output row of the answers less that of the wrong answers."""
    higher_is_better: bool = flax.struct.field(pytree_node=False, default=True)
    flat_at_model: bool = flax.struct.field(pytree_node=False, default=False)

    def values(self, final: jax.Array) -> jax.Array:
        """[..., n] of runs that end in ``final`` [..., n, D]."""
        return jnp.einsum("...nd,nd->...n", final, self.direction)

    def take(self, rows: np.ndarray) -> "LogitDifference":
        """The metric of the prompts ``rows`` [m] int."""
        return self.replace(direction=self.direction[rows])


@flax.struct.dataclass
class Divergence:
    """KL(clean || patched) in nats, from the next-token distribution of the model itself."""

    clean: Readout
    higher_is_better: bool = flax.struct.field(pytree_node=False, default=False)
    flat_at_model: bool = flax.struct.field(pytree_node=False, default=True)

    def values(self, final: jax.Array) -> jax.Array:
        """[..., n] of runs that end in ``final`` [..., n, D]."""
        return divergence(self.clean, final)

    def take(self, rows: np.ndarray) -> "Divergence":
        """The metric of the prompts ``rows`` [m] int."""
        c = self.clean
        return self.replace(clean=c.replace(final=c.final[rows], log_probs=c.log_probs[:, rows],
                                            mean_row=c.mean_row[rows], log_total=c.log_total[rows]))


def make_target(metric: Metric, params: Params, pairs: PromptPairs, final: jax.Array) -> Target:
    """The metric of a task's prompts.

    Args:
      metric: "logit_difference" or "kl".
      params: weights of the model, in the type of the runs.
      pairs: the prompts.
      final: [n, D] of the model's own run on the clean prompts, in the stream looked at (`patching.Run.final`).

    Raises:
      ConfigError: there is no such metric.
    """
    if metric == "kl":
        return Divergence(readout(params, final))
    if metric != "logit_difference":
        raise ConfigError(f"metric={metric!r} is unknown; choose among {', '.join(METRICS)}")
    table = params["embed"]["embedding"]
    return LogitDifference(_mean_rows(table, pairs.answers) - _mean_rows(table, pairs.wrong_answers))


def importance(target: Target, scores: np.ndarray) -> np.ndarray:
    """How much the answer suffers when an edge is patched, by scores [...] that say how the metric changes.

    The logit difference falls and the divergence rises when an edge that matters is patched. Circuits keep edges of
    greatest importance; ranking by it is what MIB calls ranking by signed score.
    """
    return -np.asarray(scores) if target.higher_is_better else np.asarray(scores)


def _mean_rows(table: jax.Array, tokens: np.ndarray) -> jax.Array:
    """[n, D] mean of the rows of the table [V, D] that tokens [n, A] name; -1 names none."""
    given = tokens != NO_ANSWER
    weight = (given / given.sum(-1, keepdims=True)).astype(table.dtype)
    return jnp.einsum("na,nad->nd", weight, jnp.asarray(table)[np.where(given, tokens, 0)])

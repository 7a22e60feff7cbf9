"""What a circuit is measured by: the logit difference of answers and wrong answers, or the divergence from the model.

Both are functions of the stream after the final norm at the last position, [..., n, D], so that thousands of patched
runs need no logits, or those of a part of the vocabulary at a time. Values are per prompt; their mean is the metric.

KL(clean || patched) is precise where it is tiny. With d = final_patched - final_clean and logits linear in the final
stream, logits change by d W^T, so

    KL = log sum_v p_v exp(d . W_v - d . mean),        p the clean distribution, mean = sum_v p_v W_v.

All exponents vanish with d, so nothing cancels. With capped logits (`Decoder.logit_cap`) their change is no product,
and mean is what d comes to at the slope of the cap; what the mean change differs from it is subtracted. The vocabulary
is gone through in parts: [runs, n, V] is never held.
"""

import dataclasses
import functools
from typing import Literal, Protocol, Self

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxablate.circuits.blocks import exact, take_rows
from jaxablate.circuits.prompts import NO_ANSWER, PromptPairs
from jaxablate.ops.cap import capped
from jaxablate.ops.varying import match_varying

Metric = Literal["logit_difference", "kl"]
METRICS: tuple[Metric, ...] = ("logit_difference", "kl")

_CHUNK = 2048  # rows of the vocabulary at once; fastest of 503 to 7,180 on CPU
_LARGEST_EXPONENT = 80.0  # so the largest divergence is about 80 nats


class Target(Protocol):
    """A metric of certain prompts, in their order; a JAX pytree."""

    @property
    def higher_is_better(self) -> bool:
        """Whether a greater value is a better answer: what an important edge does when patched is the opposite."""
        ...

    @property
    def flat_at_model(self) -> bool:
        """Whether its derivative at the model itself is zero, so that attribution there says nothing."""
        ...

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

    @classmethod
    def of(cls, table: jax.Array, pairs: PromptPairs) -> "LogitDifference":
        """The metric of pairs for a model of output rows ``table`` [V, D]."""
        return cls(_mean_rows(table, pairs.answers) - _mean_rows(table, pairs.wrong_answers))

    def values(self, final: jax.Array) -> jax.Array:
        """[..., n] of runs that end in ``final`` [..., n, D]."""
        return jnp.einsum("...nd,nd->...n", final, self.direction)

    def take(self, rows: np.ndarray) -> "LogitDifference":
        """The metric of the prompts ``rows`` [m] int."""
        return take_rows(self, rows)


@flax.struct.dataclass
class CappedDifference:
    """The same of a model whose logits are cap * tanh(product / cap): each answer's is capped before the mean."""

    rows: jax.Array
    """[n, A, D] output rows of the answers and of the wrong answers."""
    weight: jax.Array
    """[n, A] share of each in the difference: positive for answers, negative for wrong answers, 0 to fill up."""
    cap: float = flax.struct.field(pytree_node=False)
    higher_is_better: bool = flax.struct.field(pytree_node=False, default=True)
    flat_at_model: bool = flax.struct.field(pytree_node=False, default=False)

    @classmethod
    def of(cls, table: jax.Array, pairs: PromptPairs, cap: float) -> "CappedDifference":
        """The metric of pairs for a model of output rows ``table`` [V, D]."""
        parts = [_rows(table, tokens) for tokens in (pairs.answers, pairs.wrong_answers)]
        (rows, weight), (wrong, wrong_weight) = parts
        return cls(jnp.concatenate([rows, wrong], axis=1), jnp.concatenate([weight, -wrong_weight], axis=1), cap)

    def values(self, final: jax.Array) -> jax.Array:
        """[..., n] of runs that end in ``final`` [..., n, D]."""
        logits = capped(jnp.einsum("...nd,nad->...na", final, self.rows), self.cap)
        return jnp.einsum("...na,na->...n", logits, self.weight)

    def take(self, rows: np.ndarray) -> "CappedDifference":
        """The metric of the prompts ``rows`` [m] int."""
        return take_rows(self, rows)


@flax.struct.dataclass
class Divergence:
    """KL(clean || patched) in nats, from the next-token distribution of the model itself."""

    final: jax.Array
    """[n, D] of the clean run, after the final norm."""
    log_probs: jax.Array
    """[parts, n, V / parts] of the clean run; -inf fills up."""
    table: jax.Array
    """[parts, V / parts, D] output matrix; zeros fill up."""
    mean_row: jax.Array
    """[n, D] expected row of the output matrix; with a cap, of its slope at the clean run."""
    log_total: jax.Array
    """[n] log of the sum of the probabilities as it is computed here: 0 but for rounding."""
    cap: float | None = flax.struct.field(pytree_node=False, default=None)
    """Logits are cap * tanh(product / cap)."""
    higher_is_better: bool = flax.struct.field(pytree_node=False, default=False)
    flat_at_model: bool = flax.struct.field(pytree_node=False, default=True)

    @classmethod
    def of(cls, table: jax.Array, final: jax.Array, cap: float | None = None) -> "Divergence":
        """The divergence from a run that ends in ``final`` [n, D], in a model of output rows ``table`` [V, D]."""
        return _divergence_from(table, final, cap)

    def values(self, final: jax.Array) -> jax.Array:
        """[..., n] of runs that end in ``final`` [..., n, D]."""
        change = final - self.final
        mean = jnp.einsum("...nd,nd->...n", change, self.mean_row)
        rows = change.reshape(-1, *change.shape[-2:])
        offset = mean.reshape(rows.shape[:-1])[..., None]

        def part(totals: tuple[jax.Array, jax.Array], chunk: tuple[jax.Array, jax.Array]
                 ) -> tuple[tuple[jax.Array, jax.Array], None]:
            (total, rest), (log_probs, table) = totals, chunk
            logits = jnp.einsum("mnd,vd->mnv", rows, table)
            if self.cap is not None:
                clean = self.final @ table.T
                logits = capped(clean + logits, self.cap) - capped(clean, self.cap)
            logits = logits - offset
            if self.cap is not None:  # the offset is the mean to first order; this is the rest of it
                rest = rest + (jnp.exp(log_probs) * logits).sum(-1)
            return (total + jnp.exp(jnp.minimum(log_probs + logits, _LARGEST_EXPONENT)).sum(-1), rest), None

        start = match_varying(jnp.zeros(rows.shape[:-1], final.dtype), like=(rows, offset, self.log_probs, self.table))
        (total, rest), _ = jax.lax.scan(part, (start, start), (self.log_probs, self.table))
        value = jnp.log(total).reshape(mean.shape) - self.log_total
        return value if self.cap is None else value - rest.reshape(mean.shape)

    def take(self, rows: np.ndarray) -> "Divergence":
        """The metric of the prompts ``rows`` [m] int."""
        return _divergence_rows(self, rows)


@flax.struct.dataclass
class LogitDivergence:
    """`Divergence` from logits themselves, [..., n, V], for models whose last stream is not known."""

    logits: jax.Array
    """[n, V] of the clean run."""
    log_probs: jax.Array
    """[n, V] of the clean run."""
    higher_is_better: bool = flax.struct.field(pytree_node=False, default=False)
    flat_at_model: bool = flax.struct.field(pytree_node=False, default=True)

    @classmethod
    def of(cls, logits: jax.Array) -> "LogitDivergence":
        """The divergence from a run of these logits [n, V]."""
        return cls(logits, jax.nn.log_softmax(logits, axis=-1))

    def values(self, final: jax.Array) -> jax.Array:
        """[..., n] of runs of logits ``final`` [..., n, V]."""
        runs = final.reshape(-1, *final.shape[-2:])
        change = runs - self.logits[None]
        mean = jnp.einsum("mnv,nv->mn", change, jnp.exp(self.log_probs))
        total = jax.nn.logsumexp(self.log_probs[None] + change - mean[..., None], axis=-1)
        rounding = jax.nn.logsumexp(self.log_probs, axis=-1)[None]  # of the sum of the probabilities, 1
        return (total - rounding).reshape(final.shape[:-1])

    def take(self, rows: np.ndarray) -> "LogitDivergence":
        """The metric of the prompts ``rows`` [m] int."""
        return take_rows(self, rows)


def importance(target: Target | Metric, scores: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """How much the answer suffers when an edge is patched, by scores that say how the metric changes.

    The logit difference falls and the divergence rises when an edge that matters is patched. Circuits keep edges of
    greatest importance; ranking by it is what MIB calls ranking by signed score. ``target`` is the metric of a problem
    or a metric's name. Importance turned once more is the change of the metric again.
    """
    higher = target == "logit_difference" if isinstance(target, str) else target.higher_is_better
    return 0.0 - np.asarray(scores) if higher else np.asarray(scores)


@functools.partial(jax.jit, static_argnums=2)
@exact
def _divergence_from(table: Float[Array, "vocab width"], final: Float[Array, "n width"], cap: float | None
                     ) -> Divergence:
    products = final @ table.T
    log_probs = jax.nn.log_softmax(capped(products, cap), axis=-1)
    slopes = 1.0 if cap is None else 1 - jnp.tanh(products / cap) ** 2
    parts = -(-table.shape[0] // _CHUNK)
    width = -(-table.shape[0] // parts)
    fill = parts * width - table.shape[0]
    cut = jnp.pad(log_probs, ((0, 0), (0, fill)), constant_values=-jnp.inf)
    return Divergence(
        final=final,
        log_probs=cut.reshape(final.shape[0], parts, width).swapaxes(0, 1),
        table=jnp.pad(table, ((0, fill), (0, 0))).reshape(parts, width, -1),
        mean_row=jnp.exp(log_probs) * slopes @ table,
        log_total=jax.nn.logsumexp(log_probs, axis=-1), cap=cap,
    )


@jax.jit
def _divergence_rows(of: Divergence, rows: jax.Array) -> Divergence:
    return dataclasses.replace(of, final=of.final[rows], log_probs=of.log_probs[:, rows], mean_row=of.mean_row[rows],
                               log_total=of.log_total[rows])


def _mean_rows(table: jax.Array, tokens: np.ndarray) -> jax.Array:
    """[n, D] mean of the rows of the table [V, D] that tokens [n, A] name; -1 names none."""
    rows, weight = _rows(table, tokens)
    return jnp.einsum("na,nad->nd", weight, rows)


def _rows(table: jax.Array, tokens: np.ndarray) -> tuple[jax.Array, jax.Array]:
    """Rows [n, A, D] of the table [V, D] that tokens [n, A] name, and the weight [n, A] of each in their mean."""
    given = tokens != NO_ANSWER
    weight = (given / given.sum(-1, keepdims=True)).astype(table.dtype)
    return jnp.asarray(table)[np.where(given, tokens, 0)], jnp.asarray(weight, table.dtype)

"""Regularisers: terms of a loss, arrays in and a scalar out, and the registry by which both losses know them.

`polysemanticity` and `interference` are SAFR's importance loss and interaction loss (docs/papers.md, SAFR), and
`information` is VMASK's own term. Each is a mean over texts of a text's mean over its own tokens or pairs, so that
neither padding nor the other texts of a batch change what a text contributes. A mask is 1 for a token that counts and 0
for padding, which may hold anything; a text without tokens does not count. Other positive numbers weigh the tokens of a
text, whatever their sum: only their ratios matter. A mask is broadcast to the tokens [batch, tokens]. Without one every
position counts and that is the mean over everything, as in the released code. All are at least float32.

All derivatives are JAX's own, with respect to the mask as well. A root of a sum of squares is taken by `_length`,
whose gradient at zero is zero, so that zero rows give finite gradients.

Another term is added by one call, from a script or from a package's entry point (group ``jaxablate.regularizers``):

    regularizers.register(Regularizer(name="sparsity", reads="vectors", term=lambda x, mask=None: jnp.mean(jnp.abs(x))))
    ObjectiveConfig(regularizers=(("sparsity", 0.1),))      # or --objective.regularizers sparsity 0.1
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jax.scipy.special import entr
from jaxtyping import Array, Float, Shaped

from jaxablate.config.checks import require
from jaxablate.ops import triton
from jaxablate.ops.masks import nonzero_sum, weights
from jaxablate.registry import Registry
from jaxablate.types import at_least_float32

ArrayLike = jax.typing.ArrayLike
Mask = Shaped[ArrayLike, "..."]
Site = Literal["vectors", "attention", "vmask"]
"""What a term reads. vectors: one of each token, [B, L, D]: neurons, or a classifier's masked embeddings; attention:
weights [B, N, L, L]; vmask: the logits [B, L, 2] of VMASK."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Regularizer:
    """A term that both losses can add, by name."""

    name: str
    """Its name in a config's coefficients, in the log of a run and in reports."""
    reads: Site
    """The losses pass it this activation of every layer and stream that the config chooses, and take the mean."""
    term: Callable[[jax.Array, jax.Array | None], jax.Array]
    """A differentiable function of it and the mask [B, L], 1 for the tokens that count (None: all do), to a scalar."""


_one_program = functools.partial(jax.jit, inline=True)
"""Outside of `jax.jit` a term is one program, not one an operation; inside, ``inline`` leaves everything as it is."""


def polysemanticity(x: Float[ArrayLike, "batch tokens d"], mask: Mask | None = None, *, eps: float = 1e-5
                    ) -> Float[Array, ""]:
    """SAFR's importance loss: how much each token's vector overlaps with those of the text's other tokens.

    With xn_i = x_i / (eps + |x_i|), P_i = sqrt(sum over j != i of (xn_i . x_j)^2) / sqrt(D); the result is the mean of
    P_i over a text's tokens, and of these means over the texts: 0 for orthogonal tokens, never negative. Where x is
    masked by importance (VMASK), only important tokens are long enough to be pushed apart. The gradient at a zero row
    and at P_i = 0 is that of the other terms (subgradient 0, as PyTorch's norm has it).

    Raises:
      ConfigError: x does not have three axes, or the mask does not broadcast to its tokens.

    >>> float(polysemanticity(jnp.array([[[3., 0.], [0., 2.]]])))
    0.0
    >>> round(float(polysemanticity(jnp.array([[[1., 0.], [1., 0.], [9., 9.]]]), jnp.array([[1, 1, 0]]))), 4)
    0.7071
    """
    x = _at_least_float32(x)
    require(x.ndim == 3, f"x has the shape {x.shape}; give [batch, tokens, d], a single text as x[None]")
    tokens = weights(mask, x.shape[:2], x.dtype, of="the tokens")
    return _polysemanticity(x, tokens, eps)


@_one_program
def _polysemanticity(x: jax.Array, tokens: jax.Array, eps: float) -> jax.Array:
    x = jnp.where(tokens[..., None] > 0, x, 0)
    factor = _factor_into_range(x, axes=(-2, -1))
    x, factor = x * factor, factor[..., 0]
    overlap = _off_diagonal(jnp.einsum("bid,bjd->bij", x, x))
    return _mean_over_texts(_length(overlap) / (eps * factor + _length(x)) / factor, tokens) * x.shape[-1] ** -0.5


def interference(attention: Float[ArrayLike, "batch heads tokens tokens"], mask: Mask | None = None
                 ) -> Float[Array, ""]:
    """SAFR's interaction loss: attention between tokens that do not attend alike.

    With I_ik = sum over j of A_ij A_kj for i != k and 0 on the diagonal, the mean over texts of each text's mean over
    heads and pairs (i, k) of A_ik (1 - I_ik); rows of A sum to 1 over the keys that count, so the paper's C = A / (row
    sum) is A itself. Tokens that attend to each other are rewarded for attending to the same places.

    Raises:
      ConfigError: the attention does not have four axes, the last two of one size, or the mask does not broadcast
        to [batch, tokens].

    >>> round(float(interference(jnp.full((1, 1, 2, 2), 0.5))), 4)  # (0.5 + 0.5 + 2 * 0.5 * (1 - 0.5)) / 4
    0.375
    """
    attention = _at_least_float32(attention)
    shape = attention.shape
    require(attention.ndim == 4 and shape[-1] == shape[-2],
            f"attention has the shape {shape}; give [batch, heads, tokens, tokens], one head as attention[:, None]")
    tokens = weights(mask, (shape[0], shape[-1]), attention.dtype, of="the tokens")
    return _interference(attention, tokens)


@_one_program
def _interference(attention: jax.Array, tokens: jax.Array) -> jax.Array:
    rows = jnp.where(tokens[:, None, :, None] > 0, attention, 0)  # keys that do not count have no weight in the others
    alike = _off_diagonal(jnp.einsum("bnij,bnkj->bnik", rows, rows))
    per_token = jnp.mean(jnp.sum(rows * (1 - alike) * tokens[:, None, None, :], axis=-1), axis=1)
    return _mean_over_texts(per_token / nonzero_sum(tokens, axis=-1, keepdims=True), tokens)


def information(logits: Float[ArrayLike, "batch tokens 2"], mask: Mask | None = None) -> Float[Array, ""]:
    """VMASK's information term: mean over texts of the mean over a text's tokens of p log p + (1 - p) log(1 - p).

    It is in [-log 2, 0], nats, of the logits to drop a token and to keep it. Minimising it pulls p towards 1/2, so that
    a token is kept or dropped with certainty only where that pays (Chen & Ji 2020; SAFR's released code has no such
    term).

    Raises:
      ConfigError: the logits have another shape, or the mask does not broadcast to [batch, tokens].

    >>> round(float(information(jnp.zeros((1, 3, 2)))), 4)
    -0.6931
    """
    logits = _at_least_float32(logits)
    shape = logits.shape
    require(logits.ndim == 3 and shape[-1] == 2, f"logits have the shape {shape}; give [batch, tokens, 2]")
    tokens = weights(mask, shape[:2], logits.dtype, of="the tokens")
    return _information(logits, tokens)


@_one_program
def _information(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    log_p = jax.nn.log_softmax(jnp.where(tokens[..., None] > 0, logits, 0), axis=-1)
    return _mean_over_texts(jnp.sum(jnp.exp(log_p) * log_p, axis=-1), tokens)


def reconstruction(clean: Float[ArrayLike, "*batch d"], ablated: Float[ArrayLike, "*batch d"], *, eps: float = 1e-12
                   ) -> Float[Array, ""]:
    """Mean squared difference of two streams after each is L2-normalised over the last axis (docs/papers.md, Losses).

    It is the mean over all entries, so at most 4 / D, at least float32, and 0 where there are none. The least norm
    divided by is ``eps``, so that zero rows give zero and a zero gradient.

    Raises:
      ConfigError: the two have different shapes.

    >>> float(reconstruction(jnp.array([3., 0.]), jnp.array([0., 2.])))
    1.0
    """
    clean, ablated = _at_least_float32(clean), _at_least_float32(ablated)
    require(clean.shape == ablated.shape, f"the streams have shapes {clean.shape} and {ablated.shape}; give equal ones")
    return _reconstruction(clean, ablated, eps * eps) if clean.size else jnp.zeros((), clean.dtype)


def information_of_gates(rates: Float[ArrayLike, "*layers units"]) -> Float[Array, "*layers"]:
    """Sum over units of the entropy of a gate that is open on this share of the tokens, in nats.

    Gates are a function of the text, so what all of them together tell of it, or of the next token, is the entropy of
    the whole mask, which is at most this sum. A gate that never moves, of a rate of 0 or 1, counts as one that moves
    once in a million tokens, and has no gradient.

    >>> round(information_of_gates(jnp.array([0.5, 0.0, 1.0])).item(), 3)
    0.693
    """
    rates = jnp.clip(_at_least_float32(rates), 1e-6, 1 - 1e-6)
    return jnp.sum(entr(rates) + entr(1 - rates), axis=-1)


@_one_program
def _reconstruction(clean: jax.Array, ablated: jax.Array, least_square: float) -> jax.Array:
    rows = _reconstruction_of_rows_on_gpu if triton.fits_rows(clean) else _reconstruction_of_rows
    return jnp.sum(rows(clean, ablated, least_square)) / clean.size


def _reconstruction_of_rows(clean: jax.Array, ablated: jax.Array, least_square: float) -> jax.Array:
    """The sum of squares of each row, [..., 1]."""

    def unit(x: jax.Array) -> jax.Array:
        factor = _factor_into_range(x, axes=-1)
        x = x * factor
        least = jnp.square(factor) * least_square
        return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), axis=-1, keepdims=True), least))

    return jnp.sum(jnp.square(unit(clean) - unit(ablated)), axis=-1, keepdims=True)


@jax.custom_vjp
def _reconstruction_of_rows_on_gpu(clean: jax.Array, ablated: jax.Array, least_square: jax.Array) -> jax.Array:
    one = jax.ShapeDtypeStruct((*clean.shape[:-1], 1), clean.dtype)
    least_square = jnp.asarray(least_square, clean.dtype)
    return triton.by_rows(lambda *x: [_reconstruction_of_rows(*x)], [clean, ablated], [least_square], [one])[0]


_reconstruction_of_rows_on_gpu.defvjp(
    lambda *arrays: (_reconstruction_of_rows_on_gpu(*arrays), arrays),
    lambda arrays, d: jax.vjp(_reconstruction_of_rows, *arrays)[1](d))


def mean_over_texts(values: Float[ArrayLike, "batch tokens"], mask: Mask) -> Float[Array, ""]:
    """Mean over texts of each text's mean over its tokens, weighted by the mask, which is broadcast; a text without
    tokens does not count.

    Raises:
      ConfigError: the mask does not broadcast to the values.

    >>> float(mean_over_texts(jnp.array([[1., 3.], [6., 9.]]), jnp.array([[1., 1.], [1., 0.]])))
    4.0
    """
    values = _at_least_float32(values)
    return _mean_over_texts(values, weights(mask, values.shape, values.dtype, of="the tokens"))


@_one_program
def _mean_over_texts(values: jax.Array, mask: jax.Array) -> jax.Array:
    means = jnp.sum(values * mask, axis=-1) / nonzero_sum(mask, axis=-1)
    return jnp.sum(means) / nonzero_sum((jnp.sum(mask, axis=-1) > 0).astype(values.dtype))


def _at_least_float32(x: ArrayLike) -> jax.Array:
    x = jnp.asarray(x)
    return x.astype(at_least_float32(x.dtype))


def _factor_into_range(x: jax.Array, axes: int | tuple[int, ...]) -> jax.Array:
    """A power of two for which no square of x times it overflows: 1 but for numbers of 1e15 (float32) and more.

    It is a constant to the derivative.
    """
    digits = jnp.finfo(x.dtype).maxexp
    most = jnp.max(jnp.abs(jax.lax.stop_gradient(x)), axis=axes, keepdims=True, initial=0.0)
    return jnp.where(most > 2.0 ** (0.4 * digits), 2.0 ** round(-0.6 * digits), 1.0).astype(x.dtype)


def _off_diagonal(x: jax.Array) -> jax.Array:
    """[..., L, L] with zeros on the diagonal."""
    return jnp.where(jnp.eye(x.shape[-1], dtype=bool), 0, x)


def _length(x: jax.Array) -> jax.Array:
    """Norm over the last axis. The root is taken of 1 where the norm is 0: its gradient there is 0, not NaN."""
    square = jnp.sum(jnp.square(x), axis=-1)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)


REGULARIZERS: Registry[Regularizer] = Registry("regularizer", (
    Regularizer(name="importance", reads="vectors", term=polysemanticity),
    Regularizer(name="interaction", reads="attention", term=interference),
    Regularizer(name="information", reads="vmask", term=information),
))
"""Every term by name. A new one of this package is a function above and a line here."""
register = REGULARIZERS.register

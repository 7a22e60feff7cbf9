"""Regularisers: arrays in, scalars out.

`polysemanticity` and `interference` are SAFR's (docs/papers.md, SAFR). They are means over texts of each text's mean
over its own tokens or pairs, so that neither padding nor the other texts of a batch change what a text contributes.
With every position counted (no mask) that is the mean over everything, as in the released code. Both have derivatives
by hand: half the matrix products of the automatic ones, and finite where a row is zero.
"""

import functools

import jax
import jax.numpy as jnp


def reconstruction(clean: jax.Array, ablated: jax.Array, *, eps: float = 1e-12) -> jax.Array:
    """Mean squared difference of two streams after each is L2-normalised over the last axis (docs/papers.md, Losses).

    Args:
      clean, ablated: [..., D] residual streams.
      eps: least norm divided by, so that zero rows give zero and a zero gradient.

    Returns:
      Scalar, the mean over all entries; at most 4 / D.

    Example:
      >>> float(reconstruction(jnp.array([3., 0.]), jnp.array([0., 2.])))
      1.0
    """
    return jnp.mean(jnp.square(_unit(clean, eps) - _unit(ablated, eps)))


def polysemanticity(x: jax.Array, mask: jax.Array | None = None, *, eps: float = 1e-5) -> jax.Array:
    """SAFR's importance loss: how much each token's vector overlaps with those of the text's other tokens.

    With xn_i = x_i / (eps + |x_i|), P_i = sqrt(sum over j != i of (xn_i . x_j)^2) / sqrt(D); the result is the mean of
    P_i over a text's tokens, and of these means over the texts. Where x is masked by importance (VMASK), only important
    tokens are long enough to be pushed apart.

    Args:
      x: [B, L, D] vectors of the tokens.
      mask: [B, L] 1 for a token that counts, 0 for padding; None counts all. A text without tokens does not count.
      eps: added to a row's norm before it divides.

    Returns:
      Scalar >= 0, at least float32; 0 for orthogonal tokens. The gradient at a zero row and at P_i = 0 is that of the
      other terms (subgradient 0, as PyTorch's norm has it).

    Example:
      >>> float(polysemanticity(jnp.array([[[3., 0.], [0., 2.]]])))
      0.0
      >>> round(float(polysemanticity(jnp.array([[[1., 0.], [1., 0.], [9., 9.]]]), jnp.array([[1, 1, 0]]))), 4)
      0.7071
    """
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    weight = _token_weights(x, mask)
    return _polysemanticity(jnp.where(weight[..., None] > 0, x, 0), weight * x.shape[-1] ** -0.5, eps)


def interference(attention: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """SAFR's interaction loss: attention between tokens that do not attend alike.

    With I_ik = sum over j of A_ij A_kj for i != k and 0 on the diagonal, the mean over heads and pairs (i, k) of
    A_ik (1 - I_ik); rows of A sum to 1, so the paper's C = A / (row sum) is A itself. Tokens that attend to each other
    are rewarded for attending to the same places.

    Args:
      attention: [B, N, L, L] weights; rows sum to 1 over the keys that count.
      mask: [B, L] 1 for a token that counts, 0 for padding; None counts all. A text without tokens does not count.

    Returns:
      Scalar, at least float32: the mean over texts of each text's mean over heads and over its tokens' pairs.

    Example:
      >>> round(float(interference(jnp.full((1, 1, 2, 2), 0.5))), 4)  # (0.5 + 0.5 + 2 * 0.5 * (1 - 0.5)) / 4
      0.375
    """
    attention = attention.astype(jnp.promote_types(attention.dtype, jnp.float32))
    tokens = jnp.ones(attention.shape[:1] + attention.shape[-1:]) if mask is None else mask
    tokens = tokens.astype(attention.dtype)
    count = jnp.sum(tokens, axis=-1)
    texts = jnp.maximum(jnp.sum(count > 0), 1)
    weight = 1 / (attention.shape[1] * jnp.maximum(count, 1) ** 2 * texts)
    rows = attention * tokens[:, None, :, None]  # keys that do not count have no weight in the others
    return _interference(rows, weight[:, None, None, None])


def _unit(x: jax.Array, eps: float) -> jax.Array:
    square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(square, eps * eps))


def _token_weights(x: jax.Array, mask: jax.Array | None) -> jax.Array:
    """[B, L] share of each token in the mean over texts of means over tokens."""
    tokens = jnp.ones(x.shape[:-1], x.dtype) if mask is None else mask.astype(x.dtype)
    count = jnp.sum(tokens, axis=-1, keepdims=True)
    return tokens / (jnp.maximum(count, 1) * jnp.maximum(jnp.sum(count > 0), 1))


def _off_diagonal(x: jax.Array) -> jax.Array:
    """[..., L, L] with zeros on the diagonal."""
    return jnp.where(jnp.eye(x.shape[-1], dtype=bool), 0, x)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _polysemanticity(x, weight, eps):
    """sum_i weight_i sqrt(sum_{j != i} (x_i . x_j)^2) / (eps + |x_i|)."""
    return _polysemanticity_fwd(x, weight, eps)[0]


def _polysemanticity_fwd(x, weight, eps):
    overlap = _off_diagonal(jnp.einsum("bid,bjd->bij", x, x))
    total = jnp.sqrt(jnp.sum(jnp.square(overlap), axis=-1))
    norm = jnp.sqrt(jnp.sum(jnp.square(x), axis=-1))
    return jnp.sum(weight * total / (eps + norm)), (x, weight, overlap, total, norm)


def _polysemanticity_bwd(eps, residuals, cotangent):
    x, weight, overlap, total, norm = residuals
    scaled = cotangent * weight / (eps + norm)
    row = jnp.where(total > 0, scaled / jnp.where(total > 0, total, 1), 0)  # times overlap: by x_i . x_j
    both = overlap * (row[..., :, None] + row[..., None, :])
    length = jnp.where(norm > 0, scaled * total / ((eps + norm) * jnp.where(norm > 0, norm, 1)), 0)
    return jnp.einsum("bij,bjd->bid", both, x) - length[..., None] * x, None


_polysemanticity.defvjp(_polysemanticity_fwd, _polysemanticity_bwd)


@jax.custom_vjp
def _interference(attention, weight):
    """sum weight A_ik (1 - I_ik)."""
    return _interference_fwd(attention, weight)[0]


def _interference_fwd(attention, weight):
    alike = jnp.einsum("bnij,bnkj->bnik", attention, attention)
    return jnp.sum(weight * attention * (1 - _off_diagonal(alike))), (attention, weight, alike)


def _interference_bwd(residuals, cotangent):
    """By A_ik itself, and by A_ij and A_kj inside I: (M + M^T) A with M = A without its diagonal d.

    M A = A A - d A: the products then take A as it is, which is twice as fast on CPU as a product of M + M^T.
    """
    attention, weight, alike = residuals
    diagonal = jnp.einsum("bnii->bni", attention)[..., None]
    through = jnp.einsum("bnik,bnkj->bnij", attention, attention) + jnp.einsum("bnki,bnkj->bnij", attention, attention)
    d_attention = 1 - _off_diagonal(alike) - through + 2 * diagonal * attention
    return cotangent * weight * d_attention, None


_interference.defvjp(_interference_fwd, _interference_bwd)

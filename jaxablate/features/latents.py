"""What a latent is: where in a text it is strongest, and which next tokens it makes likelier."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxablate.features.sae import SparseAutoencoder, require
from jaxablate.types import Params

_AT_ONCE = 1 << 24
"""Logits held at once."""


@dataclasses.dataclass(frozen=True)
class LatentReader:
    """((parameters of a model, an autoencoder of its site), tokens [B, T]) -> latents [B, T, S].

    So latents are units for `jaxablate.neurons.top_examples` and `ShortRuns`, as neurons are. Equal readers share
    compiled programs.
    """

    activations: Callable[[Params, jax.Array], jax.Array]
    """(parameters, tokens [B, T]) -> activations [B, T, one site, D], as `train` takes it: `reader`, `StackedSites`."""

    def __call__(self, params: tuple[Params, SparseAutoencoder], tokens_BT: Int[Array, "b t"]
                 ) -> Float[Array, "b t s"]:
        """The latents, float32 or wider.

        Raises:
          ConfigError: the function gives several sites.
        """
        of_model, sae = params
        x = self.activations(of_model, tokens_BT)
        require(x.ndim == 4 and x.shape[2] == 1,
                f"activations have shape {x.shape}, not [B, T, 1, D]; read the one site that the autoencoder is of")
        return sae.encode(x[:, :, 0].astype(sae.config.dtype))


def promoted(sae: SparseAutoencoder, table: Float[Array | np.ndarray, "vocab d"], k: int = 10
             ) -> tuple[Int[np.ndarray, "s k"], Float[np.ndarray, "s k"]]:
    """The tokens whose logits a latent raises most by what it writes into the residual stream itself.

    W_dec table^T less its mean over the vocabulary, which no softmax sees: the change of each logit for an activation
    of 1, without what later layers make of it and without the final norm's division (Elhage et al. 2021, direct path).
    For sites that are written to the residual stream: resid_pre, attn_out, resid_mid, mlp_out, resid_post.

    Args:
      sae: an autoencoder of vectors of the model's width.
      table: [V, D] output matrix, the final norm's scale multiplied into it: ``embedding * ln_f_scale``.
      k: tokens a latent, the most promoted first. Those that it makes least likely come from ``-table``.

    Returns:
      (token ids [S, k], change of their logits [S, k]).

    Raises:
      ConfigError: the matrix has another width, or fewer than k rows.
    """
    return promoted_by(sae.W_dec, table, k)


def promoted_by(directions: Float[Array | np.ndarray, "s d"], table: Float[Array | np.ndarray, "vocab d"], k: int = 10
                ) -> tuple[Int[np.ndarray, "s k"], Float[np.ndarray, "s k"]]:
    """`promoted` of anything that writes into the residual stream, by the vector that it writes for an activation of 1.

    Raises:
      ConfigError: the matrix has another width, or fewer than k rows.
    """
    table, width = jnp.asarray(table), directions.shape[1]
    require(table.ndim == 2 and table.shape[1] == width,
            f"the output matrix has shape {tuple(table.shape)}, not [V, {width}]; give the one of the model "
            "whose residual stream the autoencoder writes to")
    require(1 <= k <= len(table), f"k={k} must be in 1..{len(table)}, the rows of the output matrix")
    at_once = max(_AT_ONCE // len(table), 1)
    parts = [_promoted(jnp.asarray(directions[i : i + at_once]), table, k)
             for i in range(0, len(directions), at_once)]
    values, tokens = (np.concatenate([np.asarray(part[i]) for part in parts]) for i in (0, 1))
    return tokens, values


@functools.partial(jax.jit, static_argnums=2)
def _promoted(directions: jax.Array, table: jax.Array, k: int) -> Any:
    logits = directions @ table.T
    return jax.lax.top_k(logits - jnp.mean(logits, axis=-1, keepdims=True), k)

"""Where in a decoder activations are read and replaced: names of sites, their widths, and a reader of several.

A site is ``{clean|ablated}.layer_{i}.{field}``, the name that `jaxablate.models.decoder.Edit` is called with. Reading
takes the same way as replacing, so what is replaced is what was read. mlp_out, for one, is the MLP's own output;
resid_post - resid_mid would have the rounding of the residual stream.
"""

import dataclasses
import difflib
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxablate.config import ModelConfig
from jaxablate.errors import ConfigError
from jaxablate.models.decoder import SelfAblatingTransformer
from jaxablate.types import STREAMS, Params

FIELDS = ("resid_pre", "head_out", "attn_out", "resid_mid", "mlp_pre", "mlp_post", "mlp_out", "resid_post")
"""In the order of computation. head_out is the concatenated heads before gate and output projection, mlp_post the
activated neurons before their gate, attn_out and mlp_out what is added to the residual stream."""
_NEURONS = ("mlp_pre", "mlp_post")
_PART_TOKENS = 512
"""Most tokens of a forward pass on CPU, whose caches then hold the activations; at the paper's shape a quarter faster
than 4,096."""


@dataclasses.dataclass(frozen=True)
class Site:
    """One place in a decoder: its name, the name's parts, and the width of its activations."""

    name: str
    stream: str
    layer: int
    field: str
    width: int


def sites(config: ModelConfig) -> tuple[Site, ...]:
    """All sites of a model, clean stream first, then by layer, in the order of computation."""
    width = {field: config.mlp_width if field in _NEURONS else config.d_model for field in FIELDS}
    return tuple(Site(f"{stream}.layer_{layer}.{field}", stream, layer, field, width[field])
                 for stream in STREAMS[: 1 + config.gated] for layer in range(config.n_layers) for field in FIELDS)


def find_site(config: ModelConfig, name: str) -> Site:
    """The site of this name.

    Raises:
      ConfigError: the model has none; the nearest names are given.
    """
    by_name = {site.name: site for site in sites(config)}
    if name in by_name:
        return by_name[name]
    near = difflib.get_close_matches(name, by_name, n=2, cutoff=0.0)
    layers, streams = config.n_layers - 1, "|".join(STREAMS[: 1 + config.gated])
    raise ConfigError(
        f"site {name!r} does not exist; nearest: {' and '.join(near)}; a site is {{{streams}}}.layer_0..{layers}."
        f"{{{'|'.join(FIELDS)}}}"
    )


def paper_site(config: ModelConfig) -> str:
    """The MLP output of the second to last block, where the paper has its autoencoder."""
    return f"clean.layer_{max(config.n_layers - 2, 0)}.mlp_out"


def unrolled(model: SelfAblatingTransformer) -> SelfAblatingTransformer:
    """The same model, of the same parameters, without rematerialisation: its sites can be read and edited."""
    return SelfAblatingTransformer(dataclasses.replace(model.config, remat="none"))


@dataclasses.dataclass(frozen=True)
class Reader:
    """(params, tokens [B, T]) -> activations [B, T, sites, D], one forward pass for all sites; from `reader`.

    It can be compared and hashed, so functions compiled for one serve an equal one.
    """

    model: SelfAblatingTransformer
    names: tuple[str, ...]

    def __call__(self, params: Params, tokens_BT: Int[Array, "b t"]) -> Float[Array, "b t sites d"]:
        """Under `jax.jit` nothing behind the last of the sites is computed."""
        rows, length = tokens_BT.shape
        parts = tokens_BT.reshape(_parts(rows, length), -1, length)
        activations = jax.lax.map(functools.partial(self._read, params), parts)
        return activations.reshape(rows, *activations.shape[2:])

    def _read(self, params: Params, tokens_BT: jax.Array) -> jax.Array:
        by_name = forward(self.model, params, tokens_BT, self.names)[0]
        return jnp.stack([by_name[name] for name in self.names], axis=2)


def _parts(rows: int, length: int) -> int:
    """Equal parts in which a batch is read: on CPU the fewest of at most `_PART_TOKENS` tokens, elsewhere one."""
    if jax.default_backend() != "cpu":
        return 1
    return next(n for n in range(1, rows + 1) if rows % n == 0 and (rows // n * length <= _PART_TOKENS or n == rows))


def reader(model: SelfAblatingTransformer, names: Sequence[str]) -> Reader:
    """A reader of several sites of one width.

    Raises:
      ConfigError: a site does not exist, or they differ in width.
    """
    if not names:
        raise ConfigError("no sites to read; give at least one")
    first, *others = (find_site(model.config, name) for name in names)
    for site in others:
        if site.width != first.width:
            raise ConfigError(f"{first.name} has width {first.width}, {site.name} {site.width}; sites read together "
                              "need one width, so take them in calls of their own")
    return Reader(unrolled(model), tuple(names))


def forward(
    model: SelfAblatingTransformer, params: Params, tokens_BT: Int[Array | np.ndarray, "b t"],
    names: Sequence[str] = (), replaced: Mapping[str, jax.Array] | None = None,
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """One forward pass in which sites are read and replaced.

    Args:
      model: a decoder without rematerialisation (see `unrolled`).
      params: its parameters.
      tokens_BT: token ids.
      names: sites to read, as the model computed them, before any replacement at this very site.
      replaced: site -> what the model goes on with there, broadcast to [B, T, width].

    Returns:
      (activations by site, each [B, T, width]; the final state of each stream after the final norm, [B, T, D], by
      "clean" and "ablated").
    """
    replaced = replaced or {}
    activations: dict[str, jax.Array] = {}

    def edit(name: str, x: jax.Array) -> jax.Array:
        if name in names:
            activations[name] = x.reshape(*x.shape[:2], -1)
        if name not in replaced:
            return x
        width = math.prod(x.shape[2:])
        return jnp.broadcast_to(replaced[name], (*x.shape[:2], width)).reshape(x.shape).astype(x.dtype)

    out: Any = model.apply({"params": params}, tokens_BT, edit=edit)
    finals = {"clean": out.final_clean} | ({} if out.final_ablated is None else {"ablated": out.final_ablated})
    return activations, finals

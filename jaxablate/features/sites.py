"""Where in a decoder activations are read and replaced: names of sites, their widths, and a reader of several.

A site is ``{clean|ablated}.layer_{i}.{field}``, the name by which `jaxablate.models.decoder.Edit` meets it. Reading
goes by the same way as replacing, so what is replaced is what was read. mlp_out, for one, is the MLP's own output, of
which resid_post - resid_mid has the rounding of the residual stream.
"""

import dataclasses
import difflib
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxablate.config import ModelConfig
from jaxablate.errors import ConfigError
from jaxablate.models.decoder import SelfAblatingTransformer

STREAMS = ("clean", "ablated")
FIELDS = ("resid_pre", "head_out", "attn_out", "resid_mid", "mlp_pre", "mlp_post", "mlp_out", "resid_post")
"""In the order of computation. head_out is the concatenated heads before gate and output projection, mlp_post the
activated neurons before their gate, attn_out and mlp_out what is added to the residual stream."""
_NEURONS = ("mlp_pre", "mlp_post")
_PART_TOKENS = 512
"""On CPU, whose caches then hold the activations; at the paper's shape a quarter faster than 4,096."""

Params = Any


@dataclasses.dataclass(frozen=True)
class Site:
    """One place in a decoder.

    Attributes:
      name: the whole name.
      stream, layer, field: its parts.
      width: D, or F of neurons.
    """

    name: str
    stream: str
    layer: int
    field: str
    width: int


def sites(config: ModelConfig) -> tuple[Site, ...]:
    """All sites of a model, clean stream first, then by layer, in the order of computation."""
    streams = STREAMS if config.gated else STREAMS[:1]
    return tuple(
        Site(f"{stream}.layer_{layer}.{field}", stream, layer, field, _width(config, field))
        for stream in streams
        for layer in range(config.n_layers)
        for field in FIELDS
    )


def find_site(config: ModelConfig, name: str) -> Site:
    """The site of this name.

    Raises:
      ConfigError: the model has none; the nearest names are given.
    """
    known = {site.name: site for site in sites(config)}
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=2, cutoff=0.0)
    layers, streams = config.n_layers - 1, "|".join(STREAMS if config.gated else STREAMS[:1])
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

    def __call__(self, params: Params, tokens_BT: jax.Array) -> jax.Array:
        """Under `jax.jit` nothing behind the last of the sites is computed."""
        rows, length = tokens_BT.shape
        parts = tokens_BT.reshape(_parts(rows, length), -1, length)
        found = jax.lax.map(functools.partial(self._read, params), parts)
        return found.reshape(rows, *found.shape[2:])

    def _read(self, params: Params, tokens_BT: jax.Array) -> jax.Array:
        found = read(self.model, params, tokens_BT, self.names)
        return jnp.stack([found[name] for name in self.names], axis=2)


def _parts(rows: int, length: int) -> int:
    """Equal parts in which a batch is read: on CPU the fewest of at most `_PART_TOKENS` tokens, elsewhere one."""
    if jax.default_backend() != "cpu":
        return 1
    return next(n for n in range(1, rows + 1) if rows % n == 0 and (rows // n * length <= _PART_TOKENS or n == rows))


def reader(model: SelfAblatingTransformer, names: Sequence[str]) -> Reader:
    """A reader of several sites of one width.

    Args:
      model: the decoder.
      names: sites.

    Returns:
      `Reader`.

    Raises:
      ConfigError: a site does not exist, or they differ in width.
    """
    found = [find_site(model.config, name) for name in names]
    if not found:
        raise ConfigError("no sites to read; give at least one")
    other = [site for site in found if site.width != found[0].width]
    if other:
        raise ConfigError(
            f"{found[0].name} has width {found[0].width}, {other[0].name} {other[0].width}; sites read together need "
            "one width, so take them in calls of their own"
        )
    return Reader(unrolled(model), tuple(names))


def read(model: SelfAblatingTransformer, params: Params, tokens_BT: jax.Array, names: Sequence[str]):
    """Activations by name, each [B, T, D or F], heads concatenated; `model` must not rematerialise (`unrolled`)."""
    return forward(model, params, tokens_BT, names)[0]


def forward(
    model: SelfAblatingTransformer, params: Params, tokens_BT: jax.Array, names: Sequence[str] = (),
    replaced: dict[str, jax.Array] | None = None,
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """One forward pass in which sites are read and replaced.

    Args:
      model: a decoder without rematerialisation.
      params: its parameters.
      tokens_BT: int token ids.
      names: sites to read, as the model computed them, before any replacement at this very site.
      replaced: site -> what the model goes on with there, broadcast to [B, T, width].

    Returns:
      (activations by site, each [B, T, width]; the final state of each stream after the final norm, [B, T, D], by
      "clean" and "ablated").
    """
    replaced, found = replaced or {}, {}

    def edit(name: str, x: jax.Array) -> jax.Array:
        if name in names:
            found[name] = x.reshape(*x.shape[:2], -1)
        if name not in replaced:
            return x
        width = math.prod(x.shape[2:])
        return jnp.broadcast_to(replaced[name], (*x.shape[:2], width)).reshape(x.shape).astype(x.dtype)

    out = model.apply({"params": params}, tokens_BT, edit=edit)
    finals = {"clean": out.final_clean} | ({} if out.final_ablated is None else {"ablated": out.final_ablated})
    return found, finals


def _width(config: ModelConfig, field: str) -> int:
    return config.mlp_width if field in _NEURONS else config.d_model

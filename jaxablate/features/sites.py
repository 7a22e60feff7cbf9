"""Where activations come from: sites of a decoder, which are read and replaced, and controls without features.

A site is ``{clean|ablated}.layer_{i}.{field}``, the name that `jaxablate.models.decoder.Edit` is called with. Reading
takes the same way as replacing, so what is replaced is what was read. mlp_out, for one, is the MLP's own output;
resid_post - resid_mid would have the rounding of the residual stream.

A control is what an autoencoder reaches on vectors with a site's mean and covariance that are otherwise normal. It is
sparse and explains variance on any vectors of low rank or uneven variance; what it does beyond that on a model's
activations is due to what their distribution has besides its first two moments.
"""

import dataclasses
import difflib
import functools
import itertools
import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxablate.config import ModelConfig
from jaxablate.config.checks import divisors
from jaxablate.errors import ConfigError, DataError
from jaxablate.models.decoder import SelfAblatingTransformer
from jaxablate.types import STREAMS, Params

Activations = Callable[[Params, jax.Array], jax.Array]
"""(model parameters, tokens [W, T]) -> [W, T, sites, D]; `reader` makes one."""
ByName = Callable[[Params, jax.Array], Mapping[str, jax.Array]]
"""(model parameters, tokens [W, T]) -> {site: activation [W, T, ...]} of anybody's model; `StackedSites` makes
`Activations` of it."""
FIELDS = ("resid_pre", "head_out", "attn_out", "resid_mid", "mlp_pre", "mlp_post", "mlp_out", "resid_post")
"""In the order of computation. head_out is the concatenated heads before gate and output projection, mlp_post the
activated neurons before their gate, attn_out and mlp_out what is added to the residual stream."""
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
    width = dict.fromkeys(FIELDS, config.d_model) | {
        "head_out": config.attention_width, "mlp_pre": config.mlp_width, "mlp_post": config.mlp_width}
    return tuple(Site(f"{stream}.layer_{layer}.{field}", stream, layer, field, width[field])
                 for stream in STREAMS[: 1 + config.gated] for layer in range(config.n_layers) for field in FIELDS)


def find_site(config: ModelConfig, name: str, width: int | None = None, what: str = "the autoencoder") -> Site:
    """The site of this name.

    Raises:
      ConfigError: the model has none, and the nearest names are given; or `what` takes activations of another width.
    """
    by_name = {site.name: site for site in sites(config)}
    if name not in by_name:
        near = difflib.get_close_matches(name, by_name, n=2, cutoff=0.0)
        layers, streams = config.n_layers - 1, "|".join(STREAMS[: 1 + config.gated])
        raise ConfigError(f"site {name!r} does not exist; nearest: {' and '.join(near)}; a site is "
                          f"{{{streams}}}.layer_0..{layers}.{{{'|'.join(FIELDS)}}}")
    if width not in (None, by_name[name].width):
        raise ConfigError(f"{what} takes activations of width {width}, {name} of this model has {by_name[name].width}; "
                          "it belongs to another model or site")
    return by_name[name]


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
        count = next(n for n in divisors(rows) if rows // n * length <= _PART_TOKENS or n == rows)

        def read(params: Params, tokens_BT: jax.Array) -> jax.Array:
            by_name = forward(self.model, params, tokens_BT, self.names)[0]
            return jnp.stack([by_name[name] for name in self.names], axis=2)

        def read_parts(params: Params, tokens_BT: jax.Array) -> jax.Array:
            parts = jax.lax.map(functools.partial(read, params), tokens_BT.reshape(count, -1, length))
            return parts.reshape(rows, *parts.shape[2:])

        if count == 1:
            return read(params, tokens_BT)
        return jax.lax.platform_dependent(params, tokens_BT, cpu=read_parts, default=read)


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


@dataclasses.dataclass(frozen=True)
class StackedSites:
    """(params, tokens [W, T]) -> activations [W, T, sites, D] from a function that gives them by name.

    Axes after the first two are taken together: [W, T, N, H] has D = N H.
    """

    read: ByName
    names: tuple[str, ...]

    def __call__(self, params: Params, tokens_WT: jax.Array) -> jax.Array:
        """Under `jax.jit` no activation of another site is computed for itself.

        Raises:
          ConfigError: the function has no such site, or those asked for do not fit the tokens or each other.
        """
        by_name, shape = self.read(params, tokens_WT), tuple(tokens_WT.shape[:2])
        for name in self.names:
            if name not in by_name:
                near = " and ".join(difflib.get_close_matches(name, by_name, n=2, cutoff=0.0))
                raise ConfigError(f"site {name!r} is none of the {len(by_name):,} that the function gives"
                                  + (f"; nearest: {near}" if near else ""))
            if by_name[name].shape[:2] != shape or by_name[name].ndim < 3:
                raise ConfigError(f"activations of {name} have shape {by_name[name].shape} for tokens {shape}; they "
                                  "must be [W, T, ...], a vector for each token")
        found = [by_name[name].reshape(*shape, -1) for name in self.names]
        for name, x in zip(self.names, found, strict=True):
            if x.shape != found[0].shape:
                raise ConfigError(f"{self.names[0]} has width {found[0].shape[-1]}, {name} {x.shape[-1]}; sites read "
                                  "together need one width, so take them in calls of their own")
        return jnp.stack(found, axis=2)


def forward(
    model: SelfAblatingTransformer, params: Params, tokens_BT: Int[Array | np.ndarray, "b t"],
    names: Sequence[str] = (), replaced: Mapping[str, jax.Array] | None = None,
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """One forward pass of a model without rematerialisation (see `unrolled`), in which sites are read and replaced.

    ``names`` are read as the model computed them, before any replacement at the very site. ``replaced`` is what the
    model goes on with there, broadcast to [B, T, width].

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


@flax.struct.dataclass
class Moments:
    """Mean [C, D] of C sites, and the symmetric square root [C, D, D] of their covariances."""

    mean: Any
    root: Any


@dataclasses.dataclass(frozen=True)
class GaussianActivations:
    """(`Moments`, batch of `batches`) -> normal vectors [W, T, sites, D], the same ones for the same batch.

    It takes the place of a `Reader` in training, and `batches` takes that of the text. A site's draws do not depend on
    what other sites there are.
    """

    names: tuple[str, ...]
    seed: int = 0

    def __call__(self, moments: Moments, numbers_WT: Int[Array | np.ndarray, "w t"]) -> Float[Array, "w t sites d"]:
        """Draws for each site; only ``numbers_WT[0, 0]`` and the shape are read."""
        key = jax.random.fold_in(jax.random.key(self.seed), numbers_WT[0, 0])
        width = moments.mean.shape[-1]

        def site(i: int, name: str) -> jax.Array:
            own = jax.random.fold_in(key, zlib.crc32(name.encode()))
            return moments.mean[i] + jax.random.normal(own, (*numbers_WT.shape, width)) @ moments.root[i]

        return jnp.stack([site(i, name) for i, name in enumerate(self.names)], axis=2)

    @staticmethod
    def batches(shape: tuple[int, int]) -> Callable[[int], Iterator[np.ndarray]]:
        """start -> batches start, start + 1, ...: arrays [W, T] of a shape that hold nothing but their number."""
        return lambda start: (np.full(shape, number, np.int32) for number in itertools.count(start))


def moments(activations: Activations, params: Params, batches: Iterable[np.ndarray]) -> Moments:
    """Mean and covariance of activations on token batches [W, T], a few thousand tokens or more, added up in float64.

    Raises:
      DataError: no batches, or activations that are not finite.
    """
    shift, total, products, count = None, 0.0, 0.0, 0
    for tokens in batches:
        if shift is None:  # near the mean, so that products lose no digits
            shift = jnp.mean(jax.jit(activations)(params, tokens), axis=(0, 1))
        sums, squares = jax.device_get(_sums(activations, params, tokens, shift))
        total, products = total + sums.astype(np.float64), products + squares.astype(np.float64)
        count += tokens.size
    if shift is None:
        raise DataError("there are no tokens to estimate mean and covariance from")
    mean = np.asarray(total / count)
    covariance = products / count - mean[:, :, None] * mean[:, None, :]
    if not np.all(np.isfinite(covariance)):
        raise DataError("activations are NaN or infinite; the model's parameters are damaged or overflow")
    values, vectors = np.linalg.eigh(covariance)
    root = (vectors * np.sqrt(np.maximum(values, 0))[:, None, :]) @ np.swapaxes(vectors, 1, 2)
    return Moments(jnp.asarray(mean + np.asarray(shift), jnp.float32), jnp.asarray(root, jnp.float32))


def random_params(model: SelfAblatingTransformer, seed: int) -> Params:
    """Parameters of a model as they are drawn before training, for a control."""
    return _drawn(model, jax.random.key(seed))


@functools.partial(jax.jit, static_argnums=0)
def _drawn(model: SelfAblatingTransformer, key: jax.Array) -> Params:
    return model.init(key, jnp.zeros((1, 2), jnp.int32))["params"]


@functools.partial(jax.jit, static_argnums=0)
def _sums(activations: Activations, params: Params, tokens: jax.Array, shift: jax.Array
          ) -> tuple[jax.Array, jax.Array]:
    """Sums [sites, D] of the shifted activations, and sums [sites, D, D] of their products."""
    x = activations(params, tokens) - shift
    return jnp.sum(x, axis=(0, 1)), jnp.einsum("wtcd,wtce->cde", x, x)

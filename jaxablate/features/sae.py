"""Sparse autoencoders: the registry of their kinds, their settings, and weights by SAELens's names.

With activations x [D], S latents, and matrices as SAELens stores them,

    h = (x - [center] b_dec) W_enc + b_enc          [S], the pre-activations
    f = latents of h                                [S], none below 0
    y = f W_dec + b_dec                             [D], the reconstruction

The latents of a token are

    standard    ReLU(h)                                                  Bricken et al. 2023
    topk        ReLU(h) where h is among the k largest of its token      Gao et al. 2024, equation 3
    batchtopk   ReLU(h) where h is among the k M largest of a batch of M tokens; at inference where it is above a
                threshold, the running mean of the smallest latent kept  Bussmann et al. 2024, equation 4
    jumprelu    ReLU(h) where h is above a threshold of its latent       Rajamanoharan et al. 2024

The loss of standard has the L1 penalty, that of topk and batchtopk the auxiliary loss that revives dead latents; see
`jaxablate.features.step`. An architecture of one's own is an `Architecture`, registered by
``features.ARCHITECTURES.register(...)`` or by an entry point of the group ``jaxablate.autoencoder_architectures``.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxablate.errors import ConfigError
from jaxablate.ops.order_statistics import thresholds, winners
from jaxablate.ops.varying import match_varying
from jaxablate.registry import Registry


@dataclasses.dataclass(frozen=True, kw_only=True)
class Architecture:
    """One kind of sparse autoencoder."""

    name: str
    inference: Callable[[jax.Array, jax.Array, "AutoencoderConfig"], jax.Array]
    """(pre-activations [..., S], thresholds [S], config) -> latents [..., S], none below 0."""
    training: Callable[[jax.Array, Any, "AutoencoderConfig"], jax.Array] | None = None
    """(pre-activations [M, S], what `cut` gave, config) -> latents [M, S] of a part of a batch, differentiated by JAX.
    None for an architecture that can be used but not trained."""
    cut: Callable[[jax.Array, "AutoencoderConfig"], jax.Array] | None = None
    """(pre-activations [..., S] of a whole batch, config) -> scalar that `training` chooses by. Its running mean over
    the steps in which it is above 0 is the threshold at inference. None where each token is on its own."""
    penalty: Callable[[jax.Array, jax.Array], jax.Array] | None = None
    """(latents [M, S], weights of the latents [S]) -> [M], which the L1 coefficient multiplies; None for none."""
    revives: bool = False
    """Whether the loss has dead latents explain the error (Gao et al. 2024, A.2)."""
    uses_k: bool = False
    """Whether `AutoencoderConfig.k` decides how many latents are active."""
    has_threshold: bool = False
    """Whether thresholds belong to its weights."""
    saelens: str | None = None
    """Name under which SAELens reads it at inference; its own name by default."""
    reason_against: Callable[["AutoencoderConfig"], str | None] = lambda config: None
    """Why it cannot have this config; None where it can."""

    def label(self, config: "AutoencoderConfig", l1: float | None = None) -> str:
        """Its name with what decides the sparsity: ``L1 5`` (of standard), ``topk 32``."""
        parts = [] if self.name == "standard" else [self.name]
        parts += [f"{config.k:g}"] if self.uses_k else []
        parts += ["L1" if l1 is None else f"L1 {l1:g}"] if self.penalty else []
        return " ".join(parts)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """Shape and kind of a sparse autoencoder; the defaults are the paper's (docs/papers.md, Feature concentration).

    Raises:
      ConfigError: a field is out of range or does not fit the others, or the architecture is unknown.
    """

    d_in: int = 128
    """Width D of the activations."""
    d_sae: int = 2048
    """Number S of latents."""
    architecture: str = "standard"
    """Name in `ARCHITECTURES`: standard, topk, batchtopk, jumprelu (which can be used, not trained)."""
    k: float = 32
    """Active latents a token, of topk (whole) and batchtopk."""
    decoder: Literal["unit", "free"] = "unit"
    """unit: each latent's decoder vector has norm 1 in every step, and the penalty is the plain L1. free: any norm,
    and the penalty weighs each latent with it (SAELens: scale_sparsity_penalty_by_decoder_norm)."""
    project_gradient: bool = True
    """With a unit decoder: take away the part of the gradient along each vector, after clipping and before Adam.
    The recorded steps of SAELens 5.1.0, which has such a projection, are met without it and not with it: False."""
    center: bool = False
    """Subtract the decoder's bias from the input first (SAELens: apply_b_dec_to_input)."""
    init: Literal["kaiming", "constant_norm", "positive"] = "kaiming"
    """kaiming: U(-b, b) with b = sqrt(6 / D); the encoder is its transpose, the unit decoder is then normalised.
    constant_norm: the same directions with norm 0.1. positive: U(0, 1) directions with norm 0.1, which is what SAELens
    5.1.0's decoder_heuristic_init draws."""
    auxiliary: float = 1.0
    """topk and batchtopk: coefficient of the loss that has dead latents explain the error (Gao et al. 2024, A.2)."""
    threshold_rate: float = 0.01
    """batchtopk: rate of the running mean of the smallest active latent, the threshold at inference."""
    dtype: Literal["float32", "float64"] = "float32"
    normalize: Literal["none", "layer_norm", "constant_norm"] = "none"
    """What is done to each vector first, and undone to its reconstruction (SAELens: normalize_activations). layer_norm:
    less its mean, over its standard deviation (of D - 1, plus 1e-5). constant_norm: times what gives it the norm
    sqrt(D). Such an autoencoder can be used, not trained."""

    def __post_init__(self):
        for name in ("d_in", "d_sae"):
            require(getattr(self, name) >= 2, f"{name}={getattr(self, name)} must be at least 2")
        require(self.auxiliary >= 0, f"auxiliary={self.auxiliary} must not be negative")
        require(0 < self.threshold_rate <= 1, f"threshold_rate={self.threshold_rate} must be above 0 and at most 1")
        if self.kind.uses_k:
            require(0 < self.k < self.d_sae, f"k={self.k} must be above 0 and below d_sae={self.d_sae}")
        if (reason := self.kind.reason_against(self)) is not None:
            raise ConfigError(reason)

    @property
    def kind(self) -> Architecture:
        """The registered architecture."""
        return ARCHITECTURES[self.architecture]


@flax.struct.dataclass
class SparseAutoencoder:
    """Weights and kind of one autoencoder; a pytree of its weights, so that JAX transforms take it as it is.

    Several autoencoders of one kind are one struct with leading axes, for `jax.vmap`.

    >>> sae = init(jax.random.key(0), AutoencoderConfig(d_in=4, d_sae=16))
    >>> x = jnp.ones((3, 4))
    >>> sae.encode(x).shape, sae.decode(sae.encode(x)).shape, sae(x).shape
    ((3, 16), (3, 4), (3, 4))
    """

    W_enc: Any
    """[D, S]."""
    b_enc: Any
    """[S]."""
    W_dec: Any
    """[S, D], a row a latent."""
    b_dec: Any
    """[D]."""
    threshold: Any
    """[S] a latent is active above it at inference; 0 for standard and topk. Not trained by gradients."""
    config: AutoencoderConfig = flax.struct.field(pytree_node=False)

    def __call__(self, x: Float[Array | np.ndarray, "*n d"]) -> Float[Array, "*n d"]:
        """Reconstructions y of activations x."""
        return self.decode(self.encode(x), x)

    def encode(self, x: Float[Array | np.ndarray, "*n d"]) -> Float[Array, "*n s"]:
        """Latents f at inference, of raw activations for all that `fit`, `train` and `load` return.

        Raises:
          ConfigError: the activations have another width than the autoencoder.
        """
        return self.config.kind.inference(self.pre_activations(x), self.threshold, self.config)

    def decode(self, latents: Float[Array | np.ndarray, "*n s"], x: Float[Array | np.ndarray, "*n d"] | None = None
               ) -> Float[Array, "*n d"]:
        """Reconstructions y from latents f; where `AutoencoderConfig.normalize` is not none, of activations ``x``.

        Raises:
          ConfigError: there are more or fewer latents than the autoencoder has, or x is needed and missing.
        """
        _check_last_axis(latents, self.config.d_sae, "latents")
        y = latents @ self.W_dec
        y = y + _row(self.b_dec, y)
        if self.config.normalize == "none":
            return y
        if x is None:
            raise ConfigError(f"normalize={self.config.normalize!r}: each vector has a scale of its own, which latents "
                              "do not tell; give the activations too, decode(latents, x)")
        _, shift, scale = _normalized(x, self.config.normalize)
        return y * scale + shift

    def pre_activations(self, x: Float[Array | np.ndarray, "*n d"]) -> Float[Array, "*n s"]:
        """h of the module's docstring."""
        _check_last_axis(x, self.config.d_in, "activations")
        x = _normalized(x, self.config.normalize)[0]
        pre = (x - _row(self.b_dec, x) if self.config.center else x) @ self.W_enc
        return pre + _row(self.b_enc, pre)

    def penalty_weights(self) -> Float[Array, " s"]:
        """How much the penalty weighs each latent: 1 with a unit decoder, its decoder vector's norm with a free one.

        So the penalty of a free decoder cannot be made small by large vectors (Anthropic's update of April 2024).
        """
        return norms(self.W_dec) if self.config.decoder == "free" else jnp.ones_like(self.b_enc)

    def with_unit_decoder(self) -> "SparseAutoencoder":
        """The decoder's vectors divided by their norms; nothing else changes."""
        return dataclasses.replace(self, W_dec=self.W_dec / norms(self.W_dec)[..., None])

    def fold_decoder_norm(self) -> "SparseAutoencoder":
        """The same function with a unit decoder: norms go into encoder and thresholds, so latents become comparable.

        A topk is the same function only if its decoder has one norm throughout, for ranks change otherwise.
        """
        size = norms(self.W_dec)
        return dataclasses.replace(self, W_enc=self.W_enc * size[None], b_enc=self.b_enc * size,
                                   W_dec=self.W_dec / size[:, None], threshold=self.threshold * size)

    def fold_scale(self, scale: Any) -> "SparseAutoencoder":
        """The autoencoder of raw activations x out of one trained on scale * x: same latents, scaled reconstruction.

        (scale x) W_enc = x (scale W_enc) and y / scale = f (W_dec / scale) + b_dec / scale, as SAELens folds it. With
        `center`, (scale x - b_dec) W_enc = (x - b_dec / scale) (scale W_enc): the same rule.

        Raises:
          ConfigError: vectors are normalised first, so that no scale of theirs matters.
        """
        if self.config.normalize != "none":
            raise ConfigError(f"normalize={self.config.normalize!r} takes every scale of the activations away; there "
                              "is none to fold")
        return dataclasses.replace(self, W_enc=self.W_enc * scale, W_dec=self.W_dec / scale, b_dec=self.b_dec / scale)


def _row(vector: Any, like: Any) -> Any:
    """A vector [S] with as many axes as ``like`` [..., S] has, as JAX's strict mode wants it; a number as it is."""
    return jnp.reshape(vector, (1,) * (jnp.ndim(like) - 1) + jnp.shape(vector)) if jnp.ndim(vector) else vector


def plain(config: AutoencoderConfig) -> dict[str, Any]:
    """Its fields as JSON has them. Files and digests leave out ``normalize`` where it is none, which earlier versions
    did not know."""
    fields = dataclasses.asdict(config)
    return {name: value for name, value in fields.items() if (name, value) != ("normalize", "none")}


def init(key: jax.Array, config: AutoencoderConfig) -> SparseAutoencoder:
    """Weights at the start, drawn as SAELens 5.1.0 draws them (`AutoencoderConfig.init`); all biases are 0."""
    shape, dtype = (config.d_sae, config.d_in), config.dtype
    bound = (6 / config.d_in) ** 0.5  # He et al. 2015 for ReLU, fan-in D
    low = 0.0 if config.init == "positive" else -bound
    decoder = jax.random.uniform(key, shape, dtype, low, bound)
    if config.init != "kaiming":
        decoder = 0.1 * decoder / norms(decoder)[:, None]
    # Each array is its own, for a buffer cannot be donated twice.
    bias, threshold = jnp.zeros(config.d_sae, dtype), jnp.zeros(config.d_sae, dtype)
    # The encoder is the transpose of the decoder before it is normalised, as in SAELens.
    sae = SparseAutoencoder(decoder.T, bias, decoder, jnp.zeros(config.d_in, dtype), threshold, config)
    return sae.with_unit_decoder() if config.decoder == "unit" else sae


def norms(x: Float[Array | np.ndarray, "*n d"]) -> Float[Array, "*n"]:
    """Euclidean norms along the last axis, with a derivative of 0 where a norm is 0."""
    squares = jnp.sum(x * x, axis=-1)
    return jnp.sqrt(jnp.maximum(squares, jnp.finfo(squares.dtype).tiny))


def variances(x: Float[Array, "*n d"], mean: Float[Array, "... d"]) -> Float[Array, "*n"]:
    """|x - mean|^2 along the last axis; 0 where x is the mean but for rounding, as at a site that does not vary."""
    squares = jnp.sum((x - mean) ** 2, axis=-1)
    rounding = jnp.sum((4 * jnp.finfo(squares.dtype).eps * mean) ** 2, axis=-1)
    return jnp.where(squares <= rounding, 0, squares)


def explained(squares: jax.Array, variance: jax.Array) -> jax.Array:
    """Explained variance 1 - squares / variance; NaN where the variance is 0, for there is nothing to explain."""
    return 1 - squares / jnp.where(variance > 0, variance, jnp.nan)


def activation_scale(x: Float[Array, "*sites n d"]) -> Float[Array, "*sites"]:
    """sqrt(D) / mean norm: the factor that gives activations the mean norm sqrt(D) (docs/papers.md)."""
    return x.shape[-1] ** 0.5 / jnp.mean(norms(x), axis=-1)


def over_all(one: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """`one` for each of several stacked along a leading axis.

    All at once on an accelerator; on CPU one after another, since one fills the cores and the caches.
    """
    return functools.partial(jax.lax.platform_dependent, cpu=functools.partial(jax.lax.map, one),
                             default=jax.vmap(one))


def _normalized(x: Any, kind: str) -> tuple[Any, Any, Any]:
    """(z, shift, scale) with z = what `AutoencoderConfig.normalize` makes of x, and z scale + shift the way back."""
    if kind == "none":
        return x, 0, 1
    if kind == "constant_norm":
        scale = norms(x)[..., None] / x.shape[-1] ** 0.5
        return x / scale, 0, scale
    mean = jnp.mean(x, axis=-1, keepdims=True)
    deviation = norms(x - mean)[..., None] / (x.shape[-1] - 1) ** 0.5
    return (x - mean) / (deviation + 1e-5), mean, deviation  # SAELens adds 1e-5 one way only


def _check_last_axis(x: Any, size: int, what: str) -> None:
    if x.ndim == 0 or x.shape[-1] != size:
        raise ConfigError(f"{what} have shape {tuple(x.shape)}; this autoencoder takes [..., {size}]; give the vectors "
                          "it was trained for along the last axis")


def require(holds: bool, message: str) -> None:
    """Raises ConfigError with the message where a condition does not hold."""
    if not holds:
        raise ConfigError(message)


def top_k(pre: Float[Array, "*n s"], k: int) -> Float[Array, "*n s"]:
    """ReLU of the k largest entries of each row, 0 elsewhere; among equal ones the lower index wins. A row with a NaN
    is NaN."""
    fixed = jax.lax.stop_gradient(pre)
    t = thresholds(fixed, k)
    return jnp.where(jnp.isnan(t.kth), t.kth, jnp.where(winners(fixed, t), jax.nn.relu(pre), 0))


def _above(pre: jax.Array, threshold: jax.Array) -> jax.Array:
    """ReLU of entries above the threshold, 0 elsewhere; NaN stays NaN."""
    return jnp.where(pre <= _row(threshold, pre), 0, jax.nn.relu(pre))


def batch_threshold(pre: Float[Array, "*n s"], count: int) -> Float[Array, ""]:
    """The `count`-th largest of all positive entries, or the smallest of them where there are fewer; 0 without any."""
    # Positive floats are ordered as their bits read as integers are. So the threshold is found bit by bit, highest
    # first, by counting: a pass over the array for each bit, in place of a sort of millions of entries.
    bits = jnp.finfo(pre.dtype).bits
    keys = jax.lax.bitcast_convert_type(jax.nn.relu(pre), jnp.dtype(f"int{bits}"))
    wanted = jnp.clip(jnp.sum(keys > 0), 1, count)

    def step(i: jax.Array, key: jax.Array) -> jax.Array:
        trial = key | (jnp.asarray(1, keys.dtype) << (bits - 2 - i).astype(keys.dtype))
        return jnp.where(jnp.sum(keys >= trial) >= wanted, trial, key)

    key = jax.lax.fori_loop(0, bits - 1, step, match_varying(jnp.zeros((), keys.dtype), like=keys))
    return jax.lax.bitcast_convert_type(key, pre.dtype)


ARCHITECTURES: Registry[Architecture] = Registry("autoencoder architecture", [
    Architecture(
        name="standard", penalty=lambda latents, weights: latents @ weights,
        inference=lambda pre, threshold, config: jax.nn.relu(pre), training=lambda pre, cut, config: jax.nn.relu(pre),
    ),
    Architecture(
        name="topk", uses_k=True, revives=True,
        reason_against=lambda config: (
            None if config.k == int(config.k) else f"k={config.k} of topk must be whole; batchtopk takes any mean"),
        inference=lambda pre, threshold, config: top_k(pre, int(config.k)),
        training=lambda pre, cut, config: top_k(pre, int(config.k)),
    ),
    Architecture(
        name="batchtopk", uses_k=True, revives=True, has_threshold=True, saelens="jumprelu",
        inference=lambda pre, threshold, config: _above(pre, threshold),
        cut=lambda pre, config: batch_threshold(pre, int(config.k * (pre.size // pre.shape[-1]))),
        training=lambda pre, cut, config: jnp.where(pre < cut, 0, jax.nn.relu(pre)),  # NaN stays NaN
    ),
    Architecture(
        name="jumprelu", has_threshold=True,
        inference=lambda pre, threshold, config: _above(pre, threshold),
    ),
])

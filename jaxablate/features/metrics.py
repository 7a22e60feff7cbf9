"""How good autoencoders are, over a whole held-out split: sparsity, reconstruction, and what the model loses by it.

For each token x [D] of a site, with the autoencoder's latents f and reconstruction y, and the model run again with y
in the place of x:

    L0, L1                 number of active latents, their sum
    CE score               (CE_ablated - CE_sae) / (CE_ablated - CE), ablated to zero (the paper) or to the mean
    KL                     KL(P || P_sae) of the next-token distributions, mean over tokens, nats
    explained variance     1 - sum |x - y|^2 / sum |x - mean x|^2, sums and mean over the whole split
    the same, SAELens      mean over tokens of 1 - |x - y|^2 / |x - mean of the batch|^2: what SAELens 5.1.0 reports. It
                           depends on the batch, and few tokens near the mean decide it
    cosine                 mean cos(x, y)
    density of a latent    share of tokens for which it is active; dead: active for none of the split

The split is streamed twice, the first time for the mean. One program runs the model, all replacements and the output
matrix for a batch, so what they share is computed once, and logits are held for few tokens at a time.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxablate.errors import ConfigError, DataError, TooLittleDataError
from jaxablate.features import sae as ae
from jaxablate.features.config import AutoencoderConfig
from jaxablate.features.likelihood import compared
from jaxablate.features.sae import Autoencoder
from jaxablate.features.sites import find_site, forward, unrolled
from jaxablate.models.decoder import SelfAblatingTransformer

Params = Any
Batch = Mapping[str, np.ndarray]
"""``inputs`` and ``targets`` int [B, T], ``mask`` [B, T] (1 where a token counts), and perhaps ``unit`` int [B, T]:
which story (or other unit that may be resampled) a token is of. Without it each row is a unit."""

COLUMNS = ("tokens", "ce", "ce_sae", "ce_zero", "ce_mean", "kl_sae", "kl_zero", "kl_mean", "l0", "l1", "squared_error",
           "variance", "explained_variance_saelens", "cosine")
"""What is summed over each unit's tokens. variance: |x - mean x|^2."""
DENSITY_EDGES = tuple(np.arange(-6.0, 0.5, 0.5).tolist())
"""Edges of the density histogram, log10 of the share of tokens; what is below the first one is in the first bin."""

@dataclasses.dataclass(frozen=True)
class Subject:
    """An autoencoder and where it belongs; it takes raw activations (the scale is folded in)."""

    site: str
    sae: Autoencoder
    config: AutoencoderConfig


@dataclasses.dataclass(frozen=True)
class SaeMeasures:
    """Figures of one autoencoder on one split; formulas in the module's docstring.

    Attributes:
      site: where it is.
      tokens: how many.
      l0, l1: means over tokens.
      ce, ce_sae, ce_zero, ce_mean: nats a token of the site's own stream: untouched, with the reconstruction, with the
        site at zero, with its mean.
      ce_score_zero, ce_score_mean: None where ablating the site does not raise the loss, for then there is no score.
      kl_sae, kl_zero, kl_mean: nats a token.
      explained_variance, explained_variance_saelens: as named.
      mse: mean over tokens of the squared error, summed over D.
      cosine: mean over tokens.
      dead: latents that are active for no token.
      density: [S] share of tokens for which a latent is active.
      mean_active: [S] mean of a latent where it is active, 0 for dead ones.
      density_histogram: latents in each bin of `DENSITY_EDGES`; dead ones are in none.
      unit_sums: [units, columns] float64, `COLUMNS` summed over each unit, for intervals.
    """

    site: str
    tokens: int
    l0: float
    l1: float
    ce: float
    ce_sae: float
    ce_zero: float
    ce_mean: float
    ce_score_zero: float | None
    ce_score_mean: float | None
    kl_sae: float
    kl_zero: float
    kl_mean: float
    explained_variance: float
    explained_variance_saelens: float
    mse: float
    cosine: float
    dead: int
    density: np.ndarray
    mean_active: np.ndarray
    density_histogram: tuple[int, ...]
    unit_sums: np.ndarray


def evaluate(
    model: SelfAblatingTransformer,
    params: Params,
    batches: Callable[[], Iterable[Batch]],
    subjects: Sequence[Subject],
    *,
    min_tokens: int = 10_000,
) -> tuple[SaeMeasures, ...]:
    """Measure autoencoders of any sites on a split.

    Args:
      model: the decoder.
      params: its parameters.
      batches: starts the split anew; it is called twice.
      subjects: autoencoders; those of one site and kind run together.
      min_tokens: fewer than so many say too little of dead latents and densities.

    Returns:
      One `SaeMeasures` for each subject, in order.

    Raises:
      ConfigError: a site does not exist, or an autoencoder has another width than its site.
      DataError: too few tokens, or activations that are not finite.
    """
    model = unrolled(model)
    for subject in subjects:
        check_fits(model, subject)
    reading = _Reading(model, tuple(dict.fromkeys(subject.site for subject in subjects)))
    means = _site_means(reading, params, batches(), min_tokens)
    return _summed(functools.partial(_measured, model), params, batches(), means, subjects)


def evaluate_alone(
    activations: Callable[[Params, jax.Array], jax.Array],
    params: Params,
    batches: Callable[[], Iterable[Batch]],
    sites: Sequence[str],
    subjects: Sequence[Subject],
    *,
    min_tokens: int = 10_000,
) -> tuple[SaeMeasures, ...]:
    """Measure autoencoders on vectors from which no model goes on, such as those of a control.

    Args:
      activations: (params, tokens [B, T]) -> [B, T, sites, D].
      params: for it.
      batches: starts the split anew; it is called twice.
      sites: what `activations` gives.
      subjects: autoencoders, each of one of the sites.
      min_tokens: as in `evaluate`.

    Returns:
      One `SaeMeasures` for each subject, in order; cross-entropies and KL are NaN, CE scores None.

    Raises:
      DataError: too few tokens, or activations that are not finite.
    """
    reading = _Alone(activations, tuple(sites))
    means = _site_means(reading, params, batches(), min_tokens)
    return _summed(functools.partial(_measured_alone, reading), params, batches(), means, subjects)


def check_fits(model: SelfAblatingTransformer, subject: Subject) -> None:
    """Raises ConfigError where the site does not exist or the autoencoder has not its width."""
    site, width = find_site(model.config, subject.site), subject.sae.W_enc.shape[-2]
    if width != site.width:
        raise ConfigError(
            f"the autoencoder takes activations of width {width}, {site.name} of this model has {site.width}; it "
            "belongs to another model or site"
        )


def _grouped(subjects: Sequence[Subject]) -> dict[tuple[str, AutoencoderConfig], list[int]]:
    groups: dict[tuple[str, AutoencoderConfig], list[int]] = {}
    for i, subject in enumerate(subjects):
        groups.setdefault((subject.site, subject.config), []).append(i)
    return groups


def _stacked(subjects: Sequence[Subject], members: list[int]) -> Autoencoder:
    return jax.tree.map(lambda *arrays: jnp.stack(arrays), *(subjects[i].sae for i in members))


def _arrays(batch: Batch) -> dict[str, jax.Array]:
    return {name: jnp.asarray(batch[name]) for name in ("inputs", "targets", "mask") if name in batch}


@dataclasses.dataclass(frozen=True)
class _Reading:
    """(params, tokens) -> activations by site, of a model."""

    model: SelfAblatingTransformer
    names: tuple[str, ...]

    def __call__(self, params: Params, tokens: jax.Array) -> dict[str, jax.Array]:
        return forward(self.model, params, tokens, self.names)[0]


@dataclasses.dataclass(frozen=True)
class _Alone:
    """(params, tokens) -> activations by site, of any function that gives them."""

    activations: Callable[[Params, jax.Array], jax.Array]
    names: tuple[str, ...]

    def __call__(self, params: Params, tokens: jax.Array) -> dict[str, jax.Array]:
        found = self.activations(params, tokens)
        return {name: found[:, :, i] for i, name in enumerate(self.names)}


def _summed(measured, params: Params, batches: Iterable[Batch], means, subjects: Sequence[Subject]):
    """Adds up what `measured` gives for each batch; one `SaeMeasures` for each subject."""
    groups = _grouped(subjects)
    stacks = [_stacked(subjects, members) for members in groups.values()]
    totals = [_Total(subject.config.d_sae) for subject in subjects]
    row = 0
    for batch in batches:
        found = jax.device_get(measured(tuple(groups), params, _arrays(batch), means, stacks))
        unit = batch.get("unit", row + np.broadcast_to(np.arange(len(batch["inputs"]))[:, None], batch["inputs"].shape))
        row += len(batch["inputs"])
        for members, values in zip(groups.values(), found, strict=True):
            for i, member in enumerate(members):
                totals[member].add(values, i, np.asarray(unit), np.asarray(batch["mask"]) > 0)
    return tuple(total.measures(subject.site) for subject, total in zip(subjects, totals, strict=True))


def _site_means(reading, params: Params, batches: Iterable[Batch], min_tokens: int) -> dict[str, jax.Array]:
    """Mean of each site over the split, which must have `min_tokens`."""
    sums, count = dict.fromkeys(reading.names, 0.0), 0
    for batch in batches:
        found = jax.device_get(_site_sums(reading, params, _arrays(batch)))
        for name, value in found.items():
            if not np.all(np.isfinite(value)):
                raise DataError(f"activations at {name} are NaN or infinite; the model's parameters are damaged")
            sums[name] = sums[name] + value.astype(np.float64)
        count += int((np.asarray(batch["mask"]) > 0).sum())
    if count < min_tokens:
        raise TooLittleDataError(
            f"{count:,} tokens were read; dead latents and densities need at least {min_tokens:,}; read more of the "
            "split, or take a longer one"
        )
    return {name: jnp.asarray(total / count, jnp.float32) for name, total in sums.items()}


@functools.partial(jax.jit, static_argnums=0)
def _site_sums(reading, params: Params, batch) -> dict[str, jax.Array]:
    mask = (batch["mask"] > 0)[..., None]
    found = reading(params, batch["inputs"])
    return {name: jnp.sum(jnp.where(mask, x, 0), axis=(0, 1)) for name, x in found.items()}


@functools.partial(jax.jit, static_argnums=(0, 1))
def _measured_alone(reading, groups, params: Params, batch, means, stacks: list[Autoencoder]):
    """As `_measured`, without what needs the model to go on."""
    found = reading(params, batch["inputs"])
    return [_reconstructions(saes, found[site], means[site], batch["mask"], config)[1]
            for (site, config), saes in zip(groups, stacks, strict=True)]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _measured(model, groups, params: Params, batch, means, stacks: list[Autoencoder]) -> list[dict[str, jax.Array]]:
    """For each group the figures of `COLUMNS` as arrays [n, B, T], and latents' counts and sums [n, S]."""
    found, final = forward(model, params, batch["inputs"], tuple(means))
    pairs = [_reconstructions(saes, found[site], means[site], batch["mask"], config)
             for (site, config), saes in zip(groups, stacks, strict=True)]
    for name, mean in means.items():
        here = [pair for pair, (site, _) in zip(pairs, groups, strict=True) if site == name]
        ablated = jnp.stack([jnp.zeros_like(mean), mean])[:, None, None] + jnp.zeros_like(found[name])
        values = jnp.concatenate([*(out for out, _ in here), ablated])
        after = _losses(model, params, batch, name, final, values)
        start = 0
        for out, figures in here:
            figures |= _columns(after, slice(start, start + len(out)))
            start += len(out)
    return [figures for _, figures in pairs]


def _losses(model, params: Params, batch, site: str, final, values: jax.Array):
    """The model run with each of values [K, B, T, D] at a site: see `compared`."""
    stream = site.split(".")[0]
    edited = ae.over_all(lambda x: forward(model, params, batch["inputs"], (), {site: x})[1][stream])(values)
    return compared(params["embed"]["embedding"], model.config.compute_dtype, final[stream], edited, batch["targets"])


def _columns(losses, chosen: slice) -> dict[str, jax.Array]:
    """Columns of some autoencoders out of a site's losses, of which the last two are those of zeros and of the mean."""
    ce, ce_edited, kl = losses
    ones = jnp.ones_like(kl[chosen])
    return {"ce": ce * ones, "ce_sae": ce_edited[chosen], "ce_zero": ce_edited[-2] * ones,
            "ce_mean": ce_edited[-1] * ones, "kl_sae": kl[chosen], "kl_zero": kl[-2] * ones,
            "kl_mean": kl[-1] * ones}


def _reconstructions(saes: Autoencoder, x: jax.Array, mean: jax.Array, mask: jax.Array, config: AutoencoderConfig):
    """Reconstructions [n, B, T, D] of x [B, T, D] by n autoencoders, and their figures."""
    out, figures = ae.over_all(lambda sae: _reconstructed(sae, x, mask, config))(saes)
    return out, figures | _errors(x, out, mean, mask)


def _reconstructed(sae: Autoencoder, x: jax.Array, mask: jax.Array, config: AutoencoderConfig):
    """Reconstruction [B, T, D], and figures of the latents: l0 and l1 [B, T], active and total [S]."""
    latents = ae.encode(sae, x.astype(config.dtype), config)
    counted = jnp.where((mask > 0)[..., None], latents, 0)
    figures = {"l0": jnp.sum(latents > 0, axis=-1), "l1": jnp.sum(latents, axis=-1),
               "active": jnp.sum(counted > 0, axis=(0, 1)), "total": jnp.sum(counted, axis=(0, 1))}
    return ae.decode(sae, latents), figures


def _errors(x: jax.Array, out: jax.Array, mean: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
    """Figures of reconstructions `out` [n, B, T, D] of x [B, T, D], each [n, B, T]."""
    counted = (mask > 0)[..., None]
    batch_mean = jnp.sum(jnp.where(counted, x, 0), axis=(0, 1)) / jnp.maximum(jnp.sum(counted), 1)
    squares = jnp.sum((out - x) ** 2, axis=-1)
    variance, batch_variance = (jnp.sum((x - m) ** 2, axis=-1) for m in (mean, batch_mean))
    size = ae.norms(x) * ae.norms(out)
    return {
        "squared_error": squares,
        "variance": variance * jnp.ones_like(squares),
        "explained_variance_saelens": 1 - squares / batch_variance,
        "cosine": jnp.sum(out * x, axis=-1) / jnp.maximum(size, jnp.finfo(size.dtype).tiny),
    }


class _Total:
    """Adds up one autoencoder's figures over batches, in float64 on the host."""

    def __init__(self, latents: int):
        self._units: dict[int, np.ndarray] = {}
        self._active, self._total = np.zeros(latents), np.zeros(latents)

    def add(self, values: Mapping[str, np.ndarray], member: int, unit: np.ndarray, mask: np.ndarray) -> None:
        self._active += values["active"][member]
        self._total += values["total"][member]
        names, place = np.unique(unit[mask], return_inverse=True)
        nothing = np.full(mask.sum(), np.nan)
        columns = [np.ones(mask.sum())] + [
            values[name][member][mask] if name in values else nothing for name in COLUMNS[1:]
        ]
        sums = np.stack([np.bincount(place, weights=np.asarray(c, np.float64), minlength=len(names)) for c in columns])
        for name, column in zip(names.tolist(), sums.T, strict=True):
            self._units[name] = self._units.get(name, 0) + column

    def measures(self, site: str) -> SaeMeasures:
        units = np.stack([self._units[name] for name in sorted(self._units)])
        total = dict(zip(COLUMNS, units.sum(axis=0).tolist(), strict=True))
        tokens = total["tokens"]
        mean = {name: value / tokens for name, value in total.items()}
        density = self._active / tokens
        bins = np.clip(np.log10(density[density > 0]), DENSITY_EDGES[0], DENSITY_EDGES[-1])
        names = ("l0", "l1", "ce", "ce_sae", "ce_zero", "ce_mean", "kl_sae", "kl_zero", "kl_mean",
                 "explained_variance_saelens", "cosine")
        return SaeMeasures(
            site=site, tokens=int(tokens), **{name: mean[name] for name in names},
            ce_score_zero=ce_score(mean["ce"], mean["ce_sae"], mean["ce_zero"]),
            ce_score_mean=ce_score(mean["ce"], mean["ce_sae"], mean["ce_mean"]),
            explained_variance=1 - total["squared_error"] / total["variance"], mse=mean["squared_error"],
            dead=int((self._active == 0).sum()), density=density,
            mean_active=self._total / np.maximum(self._active, 1),
            density_histogram=tuple(np.histogram(bins, DENSITY_EDGES)[0].tolist()), unit_sums=units,
        )


def ce_score(ce: float, ce_sae: float, ce_ablated: float) -> float | None:
    """(CE_ablated - CE_sae) / (CE_ablated - CE): 1 for a perfect reconstruction, 0 for one no better than ablation.

    None where ablation does not raise the loss.

    >>> ce_score(2.0, 2.5, 4.0)
    0.75
    """
    return (ce_ablated - ce_sae) / (ce_ablated - ce) if ce_ablated > ce else None

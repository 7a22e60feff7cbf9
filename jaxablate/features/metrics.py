"""How good autoencoders are, over a whole held-out split: sparsity, reconstruction, and what the model loses by it.

For each token x [D] of a site, with the autoencoder's latents f and reconstruction y, and the model run again with y
in the place of x:

    L0, L1                 number of active latents, their sum
    CE score               (CE_ablated - CE_sae) / (CE_ablated - CE), ablated to zero (docs/papers.md) or the mean
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
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxablate import stats
from jaxablate.config import ModelConfig
from jaxablate.errors import DataError, TooLittleDataError
from jaxablate.features.sae import AutoencoderConfig, SparseAutoencoder, explained, norms, over_all, variances
from jaxablate.features.sites import find_site, forward, unrolled
from jaxablate.models.decoder import SelfAblatingTransformer, output_matrix
from jaxablate.ops.cap import capped
from jaxablate.stats import Estimate
from jaxablate.types import Batch, Params, at_least_float32

MIN_STORIES = 30
"""Below this many stories the resampling unit is a row of a batch."""
COLUMNS: tuple[str, ...] = (
    "tokens", "ce", "ce_sae", "ce_zero", "ce_mean", "kl_sae", "kl_zero", "kl_mean", "l0", "l1", "squared_error",
    "variance", "explained_variance_saelens", "cosine")
"""What is summed over each unit's tokens. variance: |x - mean x|^2."""
DENSITY_EDGES = tuple(np.arange(-6.0, 0.5, 0.5).tolist())
"""Edges of the density histogram, log10 of the share of tokens; what is below the first one is in the first bin."""
FORMULAS: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {
    **{name: operator.itemgetter(name) for name in ("l0", "l1", "explained_variance_saelens", "cosine", "ce", "ce_sae",
                                                    "ce_zero", "ce_mean", "kl_zero", "kl_mean")},
    "mse": lambda c: c["squared_error"],
    "kl": lambda c: c["kl_sae"],
    "explained_variance": lambda c: 1 - c["squared_error"] / np.where(c["variance"] > 0, c["variance"], np.nan),
    "ce_score_zero": lambda c: (c["ce_zero"] - c["ce_sae"]) / (c["ce_zero"] - c["ce"]),
    "ce_score_mean": lambda c: (c["ce_mean"] - c["ce_sae"]) / (c["ce_mean"] - c["ce"]),
}
"""Measure -> how it comes from means over tokens of `COLUMNS`."""
_CPU_CHUNK, _CHUNK = 256, 4096
"""Tokens whose logits are held at once."""


@dataclasses.dataclass(frozen=True)
class SaeMeasures:
    """Figures of one autoencoder on one split; formulas in the module's docstring."""

    site: str
    tokens: int
    estimates: Mapping[str, Estimate]
    """With bootstrap intervals over units. Means over tokens of l0, l1, cosine, mse (squared error summed over D),
    explained_variance_saelens; explained_variance (neither has a value where the site does not vary); in nats a token
    of the site's own stream ce, ce_sae, ce_zero, ce_mean (untouched, with the reconstruction, with the site at zero,
    with its mean) and kl, kl_zero, kl_mean; ce_score_zero, ce_score_mean, which have no value where ablating the site
    does not raise the loss."""
    dead: int
    """Latents that are active for no token."""
    density: np.ndarray
    """[S] share of tokens for which a latent is active."""
    mean_active: np.ndarray
    """[S] mean of a latent where it is active, 0 for dead ones."""
    density_histogram: tuple[int, ...]
    """Latents in each bin of `DENSITY_EDGES`; dead ones are in none."""
    unit: str
    """What intervals are over: stories, or windows (rows of batches)."""
    unit_sums: np.ndarray
    """[units, columns] float64, `COLUMNS` summed over each unit."""


def evaluate(
    model: SelfAblatingTransformer | Callable[[Params, jax.Array], jax.Array],
    params: Params,
    batches: Callable[[], Iterable[Batch]],
    autoencoders: Sequence[tuple[str, SparseAutoencoder]],
    *,
    min_tokens: int = 10_000,
    seed: int = 0,
) -> tuple[SaeMeasures, ...]:
    """Measures autoencoders at any sites of a decoder on a split, or on vectors that no model computes on.

    Args:
      model: the decoder. Or (params, inputs [B, T]) -> activations [B, T, sites, D] of the autoencoders' sites, each
        once, in the order in which they first occur, as `train` takes it; then losses and KL have no value.
      params: parameters of the model.
      batches: starts the split anew; it is called twice. Each batch has ``inputs`` int [B, T], ``mask`` [B, T] (1 where
        a token counts), of a decoder ``targets`` int [B, T], and perhaps ``story`` int [B, T]: the story that a token
        belongs to. Intervals are over stories, or over rows where there are fewer than `MIN_STORIES`.
      autoencoders: pairs (site, autoencoder of raw activations); those of one site and config run together.
      min_tokens: fewer than so many say too little of dead latents and densities.
      seed: seed of resampling.

    Raises:
      ConfigError: a site does not exist, or an autoencoder has another width than its site.
      DataError: too few tokens, or activations that are not finite.
    """
    if isinstance(model, SelfAblatingTransformer):
        model = unrolled(model)
        for name, sae in autoencoders:
            find_site(model.config, name, sae.config.d_in)
    sites = tuple(dict.fromkeys(site for site, _ in autoencoders))
    means, stories = _site_means(model, sites, params, batches(), min_tokens)
    groups: dict[tuple[str, AutoencoderConfig], list[int]] = {}
    for i, (site, sae) in enumerate(autoencoders):
        groups.setdefault((site, sae.config), []).append(i)
    stacks = [_stacked([autoencoders[i][1] for i in members]) for members in groups.values()]
    totals = [_Total(sae.config.d_sae) for _, sae in autoencoders]
    unit, row = "stories" if stories >= MIN_STORIES else "windows", 0
    for batch in batches():
        figures = jax.device_get(_measured(model, tuple(site for site, _ in groups), params, _arrays(batch), means,
                                           stacks))
        mask = np.asarray(batch["mask"]) > 0
        rows = np.broadcast_to(np.arange(row, row + len(mask))[:, None], mask.shape)
        row += len(mask)
        for members, values in zip(groups.values(), figures, strict=True):
            for i, member in enumerate(members):
                totals[member].add(values, i, np.asarray(batch["story"]) if unit == "stories" else rows, mask)
    return tuple(total.measures(site, unit, seed) for (site, _), total in zip(autoencoders, totals, strict=True))


@jax.jit
def _stacked(saes: list[SparseAutoencoder]) -> SparseAutoencoder:
    return jax.tree.map(lambda *arrays: jnp.stack(arrays), *saes)


def _arrays(batch: Batch) -> dict[str, Any]:
    return {name: batch[name] for name in ("inputs", "targets", "mask") if name in batch}


def _read(model: Any, sites: tuple[str, ...], params: Params, tokens: jax.Array
          ) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """Activations by site, and the final states of a decoder by stream."""
    if isinstance(model, SelfAblatingTransformer):
        return forward(model, params, tokens, sites)
    x = model(params, tokens)
    return {name: x[:, :, i] for i, name in enumerate(sites)}, {}


def _site_means(model: Any, sites: tuple[str, ...], params: Params, batches: Iterable[Batch], min_tokens: int
                ) -> tuple[dict[str, jax.Array], int]:
    """Mean of each site over the split, which must have `min_tokens`; and the number of its stories."""
    sums: dict[str, Any] = dict.fromkeys(sites, 0.0)
    count, stories = 0, set[int]()
    for batch in batches:
        for name, value in jax.device_get(_site_sums(model, sites, params, _arrays(batch))).items():
            if not np.all(np.isfinite(value)):
                raise DataError(f"activations at {name} are NaN or infinite; the model's parameters are damaged")
            sums[name] = sums[name] + value.astype(np.float64)
        counted = np.asarray(batch["mask"]) > 0
        count += int(counted.sum())
        stories.update(np.unique(np.asarray(batch["story"])[counted]).tolist() if "story" in batch else ())
    if count < min_tokens:
        raise TooLittleDataError(f"{count:,} tokens were read; dead latents and densities need at least "
                                 f"{min_tokens:,}; read more of the split, or take a longer one")
    return {name: jnp.asarray(total / count, jnp.float32) for name, total in sums.items()}, len(stories)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _site_sums(model: Any, sites: tuple[str, ...], params: Params, batch: dict[str, jax.Array]
               ) -> dict[str, jax.Array]:
    mask = (batch["mask"] > 0)[..., None]
    x = _read(model, sites, params, batch["inputs"])[0]
    return {name: jnp.sum(jnp.where(mask, x, 0), axis=(0, 1)) for name, x in x.items()}


@functools.partial(jax.jit, static_argnums=(0, 1))
def _measured(model: Any, sites: tuple[str, ...], params: Params, batch: dict[str, jax.Array],
              means: dict[str, jax.Array], stacks: list[SparseAutoencoder]) -> list[dict[str, jax.Array]]:
    """For each group the figures of `COLUMNS` as arrays [n, B, T], and latents' counts and sums [n, S]."""
    x, final = _read(model, tuple(means), params, batch["inputs"])
    pairs = [_reconstructions(saes, x[site], means[site], batch["mask"])
             for site, saes in zip(sites, stacks, strict=True)]
    for name, mean in means.items() if final else ():
        stream = name.split(".")[0]
        here = [pair for pair, site in zip(pairs, sites, strict=True) if site == name]
        ablated = jnp.stack([jnp.zeros_like(mean), mean])[:, None, None] + jnp.zeros_like(x[name])
        values = jnp.concatenate([*(out for out, _ in here), ablated])  # [K, B, T, D], every replacement at the site
        edited = over_all(lambda value, name=name, stream=stream:
                          forward(model, params, batch["inputs"], (), {name: value})[1][stream])(values)
        ce, ce_edited, kl = _edit_losses(model.config, output_matrix(model.config, params), final[stream], edited,
                                         batch["targets"])
        start = 0
        for out, figures in here:
            chosen, start = slice(start, start + len(out)), start + len(out)
            ones = jnp.ones_like(kl[chosen])
            figures |= {"ce": ce * ones, "ce_sae": ce_edited[chosen], "ce_zero": ce_edited[-2] * ones,
                        "ce_mean": ce_edited[-1] * ones, "kl_sae": kl[chosen], "kl_zero": kl[-2] * ones,
                        "kl_mean": kl[-1] * ones}
    return [figures for _, figures in pairs]


def _edit_losses(config: ModelConfig, matrix: jax.Array, base: jax.Array, edited: jax.Array, targets: jax.Array
                ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Cross-entropies and KL of next-token distributions before and after edits, logits of few tokens at a time.

    ``matrix`` [V, D] is the output matrix, ``base`` [B, T, D] are the final states, and ``edited`` [K, B, T, D] those
    after each of K edits.

    Returns:
      CE [B, T] of the base, CE [K, B, T] of each edit, KL(base || edit) [K, B, T].
    """
    dtype, wide = jnp.dtype(config.compute_dtype), at_least_float32(config.compute_dtype)
    matrix = matrix.astype(dtype)

    def token(part: tuple[jax.Array, jax.Array, jax.Array]):
        base, edited, target = part

        def log_p(h: jax.Array) -> jax.Array:
            logits = jnp.einsum("d,vd->v", h.astype(dtype), matrix, preferred_element_type=wide)
            return jax.nn.log_softmax(capped(logits, config.logit_cap))

        p = log_p(base)

        def one(h: jax.Array) -> tuple[jax.Array, jax.Array]:
            q = log_p(h)
            return -q[target], jnp.sum(jnp.exp(p) * (p - q))

        return -p[target], *jax.lax.map(one, edited)

    flat = base.reshape(-1, base.shape[-1]), jnp.moveaxis(edited, 0, 2).reshape(-1, len(edited), base.shape[-1])
    on_cpu, elsewhere = (functools.partial(jax.lax.map, token, batch_size=size) for size in (_CPU_CHUNK, _CHUNK))
    arrays = *flat, targets.reshape(-1)
    ce, ce_edited, kl = (on_cpu(arrays) if targets.size <= _CPU_CHUNK else
                         jax.lax.platform_dependent(arrays, cpu=on_cpu, default=elsewhere))
    return ce.reshape(targets.shape), *(x.T.reshape(-1, *targets.shape) for x in (ce_edited, kl))


def _reconstructions(saes: SparseAutoencoder, x: jax.Array, mean: jax.Array, mask: jax.Array
                     ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Reconstructions [n, B, T, D] of x [B, T, D] by n autoencoders, and their figures, most of them [n, B, T]."""
    counted = (mask > 0)[..., None]

    def one(sae: SparseAutoencoder):
        own = x.astype(sae.config.dtype)
        latents = sae.encode(own)
        masked = jnp.where(counted, latents, 0)
        return sae.decode(latents, own), {
            "l0": jnp.sum(latents > 0, axis=-1), "l1": jnp.sum(latents, axis=-1),
            "active": jnp.sum(masked > 0, axis=(0, 1)), "total": jnp.sum(masked, axis=(0, 1)),
        }

    out, figures = over_all(one)(saes)
    batch_mean = jnp.sum(jnp.where(counted, x, 0), axis=(0, 1)) / jnp.maximum(jnp.sum(counted), 1)
    squares = jnp.sum((out - x) ** 2, axis=-1)
    variance, batch_variance = (variances(x, m) for m in (mean, batch_mean))
    size = norms(x) * norms(out)
    return out, figures | {
        "squared_error": squares,
        "variance": variance * jnp.ones_like(squares),
        "explained_variance_saelens": explained(squares, batch_variance),
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
        columns = [np.ones(mask.sum()),
                   *(values[name][member][mask] if name in values else nothing for name in COLUMNS[1:])]
        sums = np.stack([np.bincount(place, weights=np.asarray(c, np.float64), minlength=len(names)) for c in columns])
        for name, column in zip(names.tolist(), sums.T, strict=True):
            self._units[name] = self._units.get(name, 0) + column

    def measures(self, site: str, unit: str, seed: int) -> SaeMeasures:
        units = np.stack([self._units[name] for name in sorted(self._units)])
        density = self._active / units[:, 0].sum()
        bins = np.clip(np.log10(density[density > 0]), DENSITY_EDGES[0], DENSITY_EDGES[-1])
        return SaeMeasures(
            site=site, tokens=int(units[:, 0].sum()), estimates=estimates(units, seed), unit=unit,
            dead=int((self._active == 0).sum()), density=density,
            mean_active=self._total / np.maximum(self._active, 1),
            density_histogram=tuple(np.histogram(bins, DENSITY_EDGES)[0].tolist()), unit_sums=units,
        )


def estimates(unit_sums: np.ndarray, seed: int = 0) -> dict[str, Estimate]:
    """Each of `FORMULAS` with its bootstrap interval over units, from `COLUMNS` summed over each [units, columns]."""
    tokens = unit_sums[:, 0]
    means = dict(zip(COLUMNS, unit_sums.sum(0) / tokens.sum(), strict=True))
    resamples = stats.ratio_resamples(unit_sums.T, tokens, seed=seed) if len(tokens) > 1 else np.zeros((len(means), 0))
    drawn = dict(zip(COLUMNS, resamples, strict=True))
    # Where ablation does not raise the loss, there is no share of a rise to speak of.
    missing = {f"ce_score_{kind}" for kind in ("zero", "mean") if not means[f"ce_{kind}"] > means["ce"]}
    return {name: Estimate(None) if name in missing else
            stats.from_draws(float(formula(means)), formula(drawn), n=len(tokens))
            for name, formula in FORMULAS.items()}

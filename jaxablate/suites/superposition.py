"""How the tokens of a text share neurons: SRS with its nulls, and the distribution of capacity (docs/papers.md, SRS).

The score says what SAFR's regularisers aim at: important tokens have neurons to themselves (capacity of the most
important tokens minus that of the others), and tokens that attend to each other share theirs (alignment of the most
attended pairs minus that of the others).

Each part is compared with its null: importance shuffled over the tokens of each text, attention over its pairs (see
`top_minus_rest`). Their mean over many independent texts is normal.
"""

import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxablate import stats
from jaxablate.classifier.ranking import top_minus_rest
from jaxablate.classifier.texts import TextMeasures, by_text, word_importance
from jaxablate.intervals_old import RESAMPLES, Z_95, both_ends, percentile_interval, ratio_resamples
from jaxablate.ops.capacity import alignment, capacity
from jaxablate.regularizers import interference, polysemanticity
from jaxablate.reports.panels import Bar, Bars, Curves, Grid, Histogram, HistogramGrid, Panel, Series
from jaxablate.reports.results import Figure
from jaxablate.runs.run import Run
from jaxablate.suites.suite import Suite
from jaxablate.types import STREAMS, Batch, Params

TOP_TOKENS = 3
"""Tenths of a text's tokens, rounded up, that are its important ones."""
TOP_PAIRS = 1
"""Tenths of a text's pairs, rounded up, that are its correlated ones."""
OVER = 0.5
"""Capacity above which a token counts as having neurons of its own."""
STEPS = 40
"""Steps of capacity from 0 to 1, in the histogram and in the curve of thresholds."""
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """One part of SRS: mean over texts of [mean of the top ones - mean of the others]."""

    value: float | None
    """None where no text is long enough."""
    interval: tuple[float, float] | None
    """95 %, bootstrap over texts."""
    texts: int
    """Texts long enough to have it: 2 tokens for the importance part, 3 for the interaction part."""
    null_interval: tuple[float, float] | None
    """Middle 95 % over shuffles; their mean is 0."""
    z: float | None
    """value / standard deviation over shuffles; None where no shuffle changes anything."""
    p: float | None
    """Two-sided, of z under the normal law."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Share:
    """A mean over the split with its bootstrap interval over texts."""

    value: float
    interval: tuple[float, float] | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class SiteSuperposition:
    """All measures of one kind of vectors."""

    site: str
    """neurons: the MLP's activated units (of the ablated stream: times its gates); masked embeddings: what VMASK lets
    through, before the positions."""
    layer: int
    """Whose neurons, and whose attention ranks the pairs; the first one's for the embeddings."""
    stream: str
    srs: float | None
    """importance.value + interaction.value."""
    srs_interval: tuple[float, float] | None
    """The same texts drawn for both parts."""
    importance: Part
    interaction: Part
    mean_capacity: Share
    """Over tokens."""
    over: Share
    """Fraction of tokens with a capacity above `OVER`."""
    represented: Share
    """Mean over texts of the sum of a text's capacities divided by its tokens: vectors the site tells apart, as a
    share of those it could."""
    zero_rows: float
    """Fraction of tokens whose vector is zero; their capacity and alignment count as 0."""
    polysemanticity: float
    """SAFR's importance loss of these vectors."""
    interference: float
    """SAFR's interaction loss of this layer's and stream's attention."""
    quantiles: tuple[float, ...]
    """Of the capacity over tokens, at `QUANTILES`."""
    fraction_over: tuple[float, ...]
    """Fraction of tokens with a capacity above i / `STEPS`, i = 0 .. `STEPS`."""
    counts: tuple[int, ...]
    """Tokens by capacity, zero rows left out: [0, 1 / `STEPS`), ..., the last bin holds 1."""

    @property
    def name(self) -> str:
        """One line for tables."""
        where = f"{self.site}, layer {self.layer}" if self.site == "neurons" else self.site
        return where if self.stream == "clean" else f"{where}, {self.stream}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SuperpositionResult:
    """Measures of every site; the first one is the headline."""

    sites: tuple[SiteSuperposition, ...]
    importance: str
    """What ranks the tokens: vmask or gradient."""
    texts: int
    tokens: int

    def headline(self) -> tuple[Figure, ...]:
        """SRS and its parts, and the capacity of the tokens."""
        site = self.sites[0]
        return (
            Figure("SRS", stats.Estimate(site.srs, *both_ends(site.srs_interval)), better="up"),
            *(Figure(f"SRS {name} part", stats.Estimate(part.value, *both_ends(part.interval)), better="up")
              for name, part in (("importance", site.importance), ("interaction", site.interaction))),
            Figure(f"tokens with capacity > {OVER}", stats.Estimate(site.over.value, *both_ends(site.over.interval)),
                   "fraction", range=stats.FRACTION),
            Figure("mean capacity",
                   stats.Estimate(site.mean_capacity.value, *both_ends(site.mean_capacity.interval))),
        )

    def panels(self) -> tuple[Panel, ...]:
        """SRS with its nulls, histograms and thresholds of capacity, and all numbers of all sites."""
        return (_score_bars(self), _score_table(self), _histograms(self), _threshold_curves(self),
                _capacity_table(self), _loss_table(self))


def evaluate(model: Any, params: Params, batches: Iterable[Batch], *, layer: int = -1, seed: int = 0
             ) -> SuperpositionResult:
    """Measures each text by itself; nothing depends on padding or on how the texts are batched.

    Args:
      model: a `SafrClassifier`. Tokens rank by VMASK's keep-probability, or by |gradient x input| without VMASK.
      params: its parameters.
      batches: the split; rows with weight 0 do not count.
      layer: whose neurons are the headline; the other layers are measured beside it.
      seed: of the bootstrap over texts (`RESAMPLES` draws, percentile interval).
    """
    found = by_text(batches, functools.partial(text_measures, model, params))
    sites = sorted({key.rpartition("/")[0] for key in found if "/" in key})
    described = [_site(key, {name.rpartition("/")[2]: x for name, x in found.items() if name.startswith(f"{key}/")},
                       found["tokens"], seed) for key in sites]
    layers = 1 + max(site.layer for site in described)

    def place(site: SiteSuperposition) -> tuple[Any, ...]:
        first = site.layer == layer % layers and site.site == "neurons" and site.stream == "clean"
        return not first, site.site != "neurons", site.layer, STREAMS.index(site.stream)

    return SuperpositionResult(
        sites=tuple(sorted(described, key=place)), importance="vmask" if "by_vmask" in found else "gradient",
        texts=len(found["tokens"]), tokens=int(found["tokens"].sum()),
    )


@functools.partial(jax.jit, static_argnames="model")
def text_measures(model: Any, params: Params, batch: Batch) -> dict[str, jax.Array]:
    """Everything about each text of a batch, by ``site/layer/stream/measure``; see `site_measures`.

    Beside them ``tokens`` [B], each text's length, and ``by_vmask`` [B] where it is VMASK that ranks the tokens.
    """
    mask = batch["mask"] > 0
    out = model.apply({"params": params}, batch["tokens"], batch["mask"])
    found = {"tokens": jnp.sum(mask, axis=-1)}
    ranking = out.keep
    if ranking is None:
        ranking = word_importance(model, params, batch)["gradient"]
    else:
        found["by_vmask"] = jnp.ones(mask.shape[0], bool)
    sites = {"masked embeddings/0/clean": (out.masked, out.layers[0].clean.attention)}
    for i, layer in enumerate(out.layers):
        sites[f"neurons/{i}/clean"] = layer.clean.mlp_post, layer.clean.attention
        if layer.ablated is not None:
            gated = layer.ablated.mlp_post * layer.neuron_gates.astype(layer.ablated.mlp_post.dtype)
            sites[f"neurons/{i}/ablated"] = gated, layer.ablated.attention
    for key, (x, attention) in sites.items():
        found |= {f"{key}/{name}": value for name, value in site_measures(x, attention, ranking, mask).items()}
    return found


def site_measures(x_BLF: jax.Array, attention_BNLL: jax.Array, ranking_BL: jax.Array, mask_BL: jax.Array
                  ) -> dict[str, jax.Array]:
    """Capacity of each token, and both parts of SRS with the variance of their nulls.

    Args:
      x_BLF: vectors of the tokens.
      attention_BNLL: attention weights; a pair i < j ranks by the mean over heads of (A_ij + A_ji) / 2.
      ranking_BL: importance of the tokens, not negative. Equal ones rank by place, the earlier first; so do pairs.
      mask_BL: bool, whether a token is real.

    Returns:
      ``capacity`` [B, L], NaN at padding; ``zero`` [B], tokens with a zero vector; ``importance`` and ``interaction``
      [B], NaN where a text is too short, and their ``.._variance`` under shuffles; both losses of the text.
    """
    x_BLF = x_BLF.astype(jnp.promote_types(x_BLF.dtype, jnp.float32))
    capacity_BL = capacity(x_BLF, mask_BL)
    importance, importance_variance = top_minus_rest(capacity_BL, ranking_BL, mask_BL, TOP_TOKENS)
    attention = attention_BNLL.astype(x_BLF.dtype)
    together = jnp.mean(attention + attention.swapaxes(-1, -2), axis=1) / 2
    pairs_BLL = mask_BL[:, :, None] & mask_BL[:, None, :] & jnp.triu(jnp.ones(together.shape[-2:], bool), k=1)
    interaction, interaction_variance = top_minus_rest(
        *(a.reshape(len(a), -1) for a in (alignment(x_BLF), together, pairs_BLL)), TOP_PAIRS)
    return {
        "capacity": jnp.where(mask_BL, capacity_BL, jnp.nan),
        "zero": jnp.sum(mask_BL & jnp.all(x_BLF == 0, axis=-1), axis=-1),
        "importance": importance, "importance_variance": importance_variance,
        "interaction": interaction, "interaction_variance": interaction_variance,
        "polysemanticity": jax.vmap(lambda x, m: polysemanticity(x[None], m[None]))(x_BLF, mask_BL),
        "interference": jax.vmap(lambda a, m: interference(a[None], m[None]))(attention, mask_BL),
    }


def _site(key: str, found: TextMeasures, tokens: np.ndarray, seed: int) -> SiteSuperposition:
    site, layer, stream = key.split("/")
    capacities = found["capacity"]
    every = capacities[~np.isnan(capacities)]
    sums = {"mean_capacity": np.nansum(capacities, -1), "over": np.sum(capacities > OVER, -1)}  # NaN > x is false
    shares = {name: _share(x, tokens, seed) for name, x in sums.items()}
    draws = {name: _part_draws(found[name], seed) for name in ("importance", "interaction")}
    parts = {name: _part(found[name], found[f"{name}_variance"], draws[name]) for name in draws}
    values = [part.value for part in parts.values()]
    alive = every[every > 0]
    return SiteSuperposition(
        site=site, layer=int(layer), stream=stream, srs=None if None in values else sum(values),
        srs_interval=percentile_interval(draws["importance"] + draws["interaction"]), **parts, **shares,
        represented=_share(sums["mean_capacity"] / tokens, np.ones(len(tokens)), seed),
        zero_rows=float(found["zero"].sum() / tokens.sum()),
        polysemanticity=float(found["polysemanticity"].mean()), interference=float(found["interference"].mean()),
        quantiles=tuple(float(q) for q in np.quantile(every, QUANTILES)),
        fraction_over=tuple(float(np.mean(every > i / STEPS)) for i in range(STEPS + 1)),
        counts=tuple(int(c) for c in np.histogram(alive, bins=STEPS, range=(0, 1))[0]),
    )


def _share(sums: np.ndarray, counts: np.ndarray, seed: int) -> Share:
    draws = ratio_resamples(sums, counts, seed=seed) if len(sums) > 1 else np.zeros(0)
    return Share(value=float(sums.sum() / counts.sum()), interval=percentile_interval(draws))


def _part_draws(values: np.ndarray, seed: int) -> np.ndarray:
    """Bootstrap of the mean over the texts that have the part; all texts are drawn, so that both parts are paired."""
    there = ~np.isnan(values)
    if there.sum() < 2:
        return np.full(RESAMPLES, np.nan)
    return ratio_resamples(np.where(there, values, 0.0), there.astype(float), seed=seed)


def _part(values: np.ndarray, variances: np.ndarray, draws: np.ndarray) -> Part:
    there = ~np.isnan(values)
    texts = int(there.sum())
    if texts == 0:
        return Part(value=None, interval=None, texts=0, null_interval=None, z=None, p=None)
    value = float(values[there].mean())
    deviation = math.sqrt(variances[there].sum()) / texts
    z = value / deviation if deviation > 0 else None
    return Part(value=value, interval=percentile_interval(draws), texts=texts,
                null_interval=(-Z_95 * deviation, Z_95 * deviation), z=z,
                p=None if z is None else math.erfc(abs(z) / math.sqrt(2)))


def _scores(site: SiteSuperposition) -> Mapping[str, tuple[float | None, tuple[float, float] | None]]:
    return {"SRS": (site.srs, site.srs_interval),
            "importance part": (site.importance.value, site.importance.interval),
            "interaction part": (site.interaction.value, site.interaction.interval)}


def _score_bars(result: SuperpositionResult) -> Bars:
    bars = tuple(Bar(f"{site.name}: {name}", stats.Estimate(value, *both_ends(interval))) for site in result.sites
                 for name, (value, interval) in _scores(site).items() if value is not None)
    caption = (f"Superposition regularization score over {result.texts:,} texts; important tokens by "
               f"{_RANKED_BY[result.importance]}. Whiskers: 95 % bootstrap interval over texts. Shuffled importance or "
               "attention gives 0 on average.")
    return Bars(title="Superposition regularization score", caption=caption, bars=bars)


_RANKED_BY = {"vmask": "VMASK's keep-probability", "gradient": "|gradient x input|"}


def _p_value(p: float | None) -> float | str | None:
    """Beyond this the normal tail says nothing of the mean's."""
    return p if p is None or p > 1e-12 else "< 1e-12"


def _score_table(result: SuperpositionResult) -> Grid:
    rows = tuple(
        (site.name, name, part.value, *both_ends(part.interval), *both_ends(part.null_interval), part.z,
         _p_value(part.p), part.texts)
        for site in result.sites
        for name, part in (("importance", site.importance), ("interaction", site.interaction))
    )
    caption = (f"Importance: capacity of the {TOP_TOKENS}0 % most important tokens minus that of the others. "
               f"Interaction: |cosine| of the {TOP_PAIRS}0 % most attended pairs minus that of the others. Null: "
               "importance shuffled over the tokens of each text, attention over its pairs; mean 0, exact "
               "variance over all shuffles.")
    return Grid(title="Parts of SRS and their nulls", caption=caption, rows=rows,
                columns=("site", "part", "value", "95 % from", "to", "null 95 % from", "to", "z", "p", "texts"))


def _histograms(result: SuperpositionResult) -> HistogramGrid:
    edges = tuple(i / STEPS for i in range(STEPS + 1))
    cells = tuple(
        Histogram(title=site.name, edges=edges, counts=site.counts, mark=site.mean_capacity.value,
                  apart=result.tokens - sum(site.counts), apart_label="zero", note=f"median {site.quantiles[2]:.3f}")
        for site in result.sites
    )
    caption = (f"Tokens by the share of a dimension that they have to themselves in their text, {result.tokens:,} "
               "tokens. Those without any active neuron are the bar at the left.")
    return HistogramGrid(title="Capacity of the tokens", caption=caption, x_label="capacity", histograms=cells,
                         log_x=False, mark_label="mean")


def _threshold_curves(result: SuperpositionResult) -> Curves:
    at = tuple(i / STEPS for i in range(STEPS + 1))
    return Curves(title="Tokens over a capacity threshold", caption="Fraction of tokens with a capacity above it.",
                  x_label="threshold", y_label="fraction of tokens",
                  series=tuple(Series(label=site.name, x=at, y=site.fraction_over) for site in result.sites))


def _capacity_table(result: SuperpositionResult) -> Grid:
    rows = tuple((site.name, site.mean_capacity.value, *both_ends(site.mean_capacity.interval), site.over.value,
                  *both_ends(site.over.interval), site.represented.value, site.zero_rows, *site.quantiles)
                 for site in result.sites)
    return Grid(title="Capacity by site", rows=rows,
                caption="Represented: mean over texts of the sum of capacities divided by the number of tokens.",
                columns=("site", "mean", "95 % from", "to", f"over {OVER}", "95 % from", "to", "represented",
                         "zero rows", *(f"{q:.0%} quantile" for q in QUANTILES)))


def _loss_table(result: SuperpositionResult) -> Grid:
    rows = tuple((site.name, site.polysemanticity, site.interference) for site in result.sites)
    caption = ("SAFR's losses on the split, padding left out: means over texts of each text's mean over its tokens (of "
               "the site's vectors) and over its pairs (of the attention that ranks the site's pairs).")
    return Grid(title="Regularisers", caption=caption, rows=rows,
                columns=("site", "importance loss", "interaction loss"))


def _run(run: Run) -> tuple[SuperpositionResult, dict[str, Any]]:
    layer = run.config.objective.layers[-1]
    result = evaluate(run.model, run.params, run.splits["test"].batches(), layer=layer, seed=run.seed)
    return result, {"split": "test", "layer": layer, "importance": result.importance, "top_tokens": TOP_TOKENS / 10,
                    "top_pairs": TOP_PAIRS / 10, "null": "exact moments over all shuffles",
                    "bootstrap_resamples": RESAMPLES, "seed": run.seed}


SUITE = Suite(name="superposition", run=_run, task="classification",
              about="SRS of the classifier's neurons and the capacity of its tokens, on every text of the test split.")

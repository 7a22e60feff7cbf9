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
from collections.abc import Iterable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxablate import stats
from jaxablate.classifier.measures import TextMeasures, by_text, top_minus_rest, word_importance
from jaxablate.config import ClassificationConfig
from jaxablate.ops.capacity import alignment, capacity
from jaxablate.regularizers import interference, polysemanticity
from jaxablate.reports.panels import Bar, Bars, Curves, Grid, Histogram, HistogramGrid, Panel, Series
from jaxablate.reports.results import Figure
from jaxablate.runs.run import Run
from jaxablate.stats import Estimate
from jaxablate.suites.suite import Suite
from jaxablate.types import STREAMS, Batch, Params, at_least_float32

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
class Null:
    """What a part of SRS is where its ranking is shuffled within each text; the mean over shuffles is 0."""

    middle: Estimate
    """0 with the middle 95 % over shuffles."""
    z: float | None
    """The part divided by its standard deviation over shuffles; None where no shuffle changes anything."""
    p: float | None
    """Two-sided, of z under the normal law."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SiteSuperposition:
    """All measures of one kind of vectors."""

    site: str
    """neurons: the MLP's activated units (of the ablated stream: times its gates); masked embeddings: what VMASK lets
    through, before the positions."""
    layer: int
    """Layer of the neurons and of the attention that ranks the pairs; for the embeddings the first layer's."""
    stream: str
    srs: Estimate
    """Sum of both parts; the same texts are drawn for both. None where no text is long enough."""
    importance: Estimate
    """Mean over texts of [mean capacity of the top tokens - mean of the others]; a text needs 2 tokens."""
    importance_null: Null
    interaction: Estimate
    """Mean over texts of [mean alignment of the top pairs - mean of the others]; a text needs 3 tokens."""
    interaction_null: Null
    mean_capacity: Estimate
    """Mean over tokens."""
    important_capacity: Estimate
    """Mean over texts of the mean capacity of the top tokens; a text needs 2 tokens."""
    other_capacity: Estimate
    """The same of the other tokens. `mean_capacity` need not lie between the two: tokens of short texts, which have
    more to themselves, count less in it."""
    over: Estimate
    """Fraction of tokens with a capacity above `OVER`."""
    represented: Estimate
    """Mean over texts of the sum of a text's capacities divided by its tokens: how many of its tokens have a
    dimension of their own, as a share of all."""
    zero_rows: float
    """Fraction of tokens whose vector is zero; their capacity and alignment count as 0."""
    polysemanticity: float
    """SAFR's importance loss of these vectors."""
    interference: float
    """SAFR's interaction loss of this layer's and stream's attention."""
    quantiles: tuple[float, ...]
    """Quantiles of the capacity over tokens, at `QUANTILES`."""
    fraction_over: tuple[float, ...]
    """Fraction of tokens with a capacity above i / `STEPS`, i = 0 .. `STEPS`."""
    counts: tuple[int, ...]
    """Tokens by capacity, zero rows left out: [0, 1 / `STEPS`), ..., the last bin holds 1."""

    @property
    def name(self) -> str:
        """Name in tables."""
        where = f"{self.site}, layer {self.layer}" if self.site == "neurons" else self.site
        return where if self.stream == "clean" else f"{where}, {self.stream}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SuperpositionResult:
    """Measures of every site; the first one is the headline."""

    sites: tuple[SiteSuperposition, ...]
    importance: str
    """Ranking of the tokens: vmask or gradient."""
    texts: int
    tokens: int

    def headline(self) -> tuple[Figure, ...]:
        """SRS and its parts, and the capacity of the tokens."""
        site = self.sites[0]
        return (
            Figure("SRS", site.srs, better="up"),
            Figure("SRS importance part", site.importance, better="up"),
            Figure("SRS interaction part", site.interaction, better="up"),
            Figure(f"tokens with capacity > {OVER}", site.over, unit="fraction", range=stats.FRACTION),
            Figure("mean capacity", site.mean_capacity, range=stats.FRACTION),
            Figure("mean capacity of important tokens", site.important_capacity, range=stats.FRACTION),
            Figure("mean capacity of other tokens", site.other_capacity, range=stats.FRACTION),
        )

    def panels(self) -> tuple[Panel, ...]:
        """SRS with its nulls, histograms and thresholds of capacity, and all numbers of all sites."""
        losses = Grid(
            title="Regularisers", columns=("site", "importance loss", "interaction loss"),
            rows=tuple((site.name, site.polysemanticity, site.interference) for site in self.sites),
            caption="SAFR's losses on the split, padding left out: means over texts of each text's mean over its "
                    "tokens (of the site's vectors) and over its pairs (of the attention that ranks the site's pairs).")
        return (*_score_panels(self), *_capacity_panels(self), losses)


def evaluate(model: Any, params: Params, batches: Iterable[Batch], *, layer: int = -1, seed: int = 0
             ) -> SuperpositionResult:
    """Measures each text by itself; nothing depends on padding or on how the texts are batched.

    Tokens rank by VMASK's keep-probability, or by |gradient x input| without VMASK. The neurons of ``layer`` are the
    headline; the other layers are measured beside it.
    """
    measures = by_text(batches, functools.partial(text_measures, model, params))
    keys = sorted({key.rpartition("/")[0] for key in measures if "/" in key})
    sites = [_site(key, {name.rpartition("/")[2]: x for name, x in measures.items() if name.startswith(f"{key}/")},
                   measures["tokens"], seed) for key in keys]
    layers = 1 + max(site.layer for site in sites)

    def place(site: SiteSuperposition) -> tuple[Any, ...]:
        first = site.layer == layer % layers and site.site == "neurons" and site.stream == "clean"
        return not first, site.site != "neurons", site.layer, STREAMS.index(site.stream)

    return SuperpositionResult(
        sites=tuple(sorted(sites, key=place)), importance="vmask" if "by_vmask" in measures else "gradient",
        texts=len(measures["tokens"]), tokens=int(measures["tokens"].sum()),
    )


@functools.partial(jax.jit, static_argnames="model")
def text_measures(model: Any, params: Params, batch: Batch) -> dict[str, jax.Array]:
    """Everything about each text of a batch, by ``site/layer/stream/measure``; see `site_measures`.

    Beside them ``tokens`` [B], each text's length, and ``by_vmask`` [B] where it is VMASK that ranks the tokens.
    """
    mask = jnp.asarray(batch["mask"]) > 0
    out = model.apply({"params": params}, batch["tokens"], batch["mask"])
    measures = {"tokens": jnp.sum(mask, axis=-1)}
    if out.keep is None:
        ranking = word_importance(model, params, batch)["gradient"]
    else:
        ranking, measures["by_vmask"] = out.keep, jnp.ones(mask.shape[0], bool)
    sites = {"masked embeddings/0/clean": (out.masked, out.layers[0].clean.attention)}
    for i, layer in enumerate(out.layers):
        for stream in STREAMS if layer.ablated is not None else STREAMS[:1]:
            sites[f"neurons/{i}/{stream}"] = layer.neurons(stream), getattr(layer, stream).attention
    for key, (x, attention) in sites.items():
        measures |= {f"{key}/{name}": value for name, value in site_measures(x, attention, ranking, mask).items()}
    return measures


def site_measures(
    x_BLF: Float[Array, "batch tokens units"], attention_BNLL: Float[Array, "batch heads tokens tokens"],
    ranking_BL: Float[Array, "batch tokens"], mask_BL: Bool[Array, "batch tokens"]
) -> dict[str, jax.Array]:
    """Capacity of each token, and both parts of SRS with the variance of their nulls.

    Tokens rank by their importance, which is not negative, and a pair i < j by the mean over heads of
    (A_ij + A_ji) / 2; equal ones by place, the earlier first.

    Returns:
      ``capacity`` [B, L], NaN at padding; ``zero`` [B], tokens with a zero vector; ``importance`` and ``interaction``
      [B], NaN where a text is too short, and their ``.._variance`` under shuffles; both losses of the text.
    """
    x_BLF = x_BLF.astype(at_least_float32(x_BLF.dtype))
    capacity_BL = capacity(x_BLF, mask_BL)
    importance, importance_variance = top_minus_rest(capacity_BL, ranking_BL, mask_BL, TOP_TOKENS)
    attention = attention_BNLL.astype(x_BLF.dtype)
    together = jnp.mean(attention + attention.swapaxes(-1, -2), axis=1) / 2
    pairs_BLL = mask_BL[:, :, None] & mask_BL[:, None, :] & jnp.triu(jnp.ones(together.shape[-2:], bool), k=1)
    aligned, ranked, allowed = (a.reshape(len(a), -1) for a in (alignment(x_BLF), together, pairs_BLL))
    interaction, interaction_variance = top_minus_rest(aligned, ranked, allowed, TOP_PAIRS)
    return {
        "capacity": jnp.where(mask_BL, capacity_BL, jnp.nan),
        "zero": jnp.sum(mask_BL & jnp.all(x_BLF == 0, axis=-1), axis=-1),
        "importance": importance, "importance_variance": importance_variance,
        "interaction": interaction, "interaction_variance": interaction_variance,
        "polysemanticity": jax.vmap(lambda x, m: polysemanticity(x[None], m[None]))(x_BLF, mask_BL),
        "interference": jax.vmap(lambda a, m: interference(a[None], m[None]))(attention, mask_BL),
    }


def _site(key: str, measures: TextMeasures, tokens: np.ndarray, seed: int) -> SiteSuperposition:
    site, layer, stream = key.split("/")
    capacities = measures["capacity"]
    every = capacities[~np.isnan(capacities)]
    total, over = np.nansum(capacities, -1), np.sum(capacities > OVER, -1)  # NaN > x is false
    importance, importance_draws = _part(measures["importance"], seed)
    interaction, interaction_draws = _part(measures["interaction"], seed)
    top = (TOP_TOKENS * tokens + 9) // 10
    important, _ = _part(total / tokens + (1 - top / tokens) * measures["importance"], seed)
    others, _ = _part(total / tokens - top / tokens * measures["importance"], seed)
    both = importance.value is not None and interaction.value is not None
    srs = float(importance) + float(interaction) if both else None
    return SiteSuperposition(
        site=site, layer=int(layer), stream=stream, importance=importance, interaction=interaction,
        importance_null=_null(importance, measures["importance_variance"]),
        interaction_null=_null(interaction, measures["interaction_variance"]),
        srs=stats.from_draws(srs, importance_draws + interaction_draws, n=len(tokens)),
        mean_capacity=stats.ratio(total, tokens, seed=seed), important_capacity=important,
        other_capacity=others,
        over=stats.ratio(over, tokens, seed=seed),
        represented=stats.mean(total / tokens, seed=seed),
        zero_rows=float(measures["zero"].sum() / tokens.sum()),
        polysemanticity=float(measures["polysemanticity"].mean()), interference=float(measures["interference"].mean()),
        quantiles=tuple(float(q) for q in np.quantile(every, QUANTILES)),
        fraction_over=tuple(float(np.mean(every > i / STEPS)) for i in range(STEPS + 1)),
        counts=tuple(int(c) for c in np.histogram(every[every > 0], bins=STEPS, range=(0, 1))[0]),
    )


def _part(values: np.ndarray, seed: int) -> tuple[Estimate, np.ndarray]:
    """Mean over the texts that have the part, and its bootstrap: all texts are drawn, so that both parts are paired."""
    there = ~np.isnan(values)
    n = int(there.sum())
    draws = (stats.ratio_resamples(np.where(there, values, 0.0), there.astype(float), seed=seed) if n > 1
             else np.full(stats.RESAMPLES, np.nan))
    return stats.from_draws(float(values[there].mean()) if n else None, draws, n=n), draws


def _null(part: Estimate, variances: np.ndarray) -> Null:
    if part.value is None:
        return Null(middle=Estimate(None), z=None, p=None)
    variances = variances[~np.isnan(variances)]
    deviation = math.sqrt(variances.sum()) / variances.size
    half = stats.Z_95 * deviation
    z = part.value / deviation if deviation > 0 else None
    return Null(middle=Estimate(0.0, -half, half, n=variances.size, how="all shuffles"), z=z,
                p=None if z is None else math.erfc(abs(z) / math.sqrt(2)))


def _score_panels(result: SuperpositionResult) -> tuple[Bars, Grid]:
    """SRS of each site with its parts, and the parts beside their nulls."""
    bars, rows = [], []
    for site in result.sites:
        bars.append(Bar(f"{site.name}: SRS", site.srs))
        for name, part, null in (("importance", site.importance, site.importance_null),
                                 ("interaction", site.interaction, site.interaction_null)):
            bars.append(Bar(f"{site.name}: {name} part", part))
            beyond = null.p is not None and null.p <= 1e-12  # there the normal tail says nothing of the mean's
            rows.append((site.name, name, part, null.middle, null.z, "< 1e-12" if beyond else null.p, part.n))
    ranked_by = {"vmask": "VMASK's keep-probability", "gradient": "|gradient x input|"}[result.importance]
    return (
        Bars(title="Superposition regularization score",
             bars=tuple(bar for bar in bars if bar.estimate.value is not None),
             caption=f"Superposition regularization score over {result.texts:,} texts; important tokens by "
                     f"{ranked_by}. Whiskers: 95 % bootstrap interval over texts. Shuffled importance or attention "
                     "gives 0 on average."),
        Grid(title="Parts of SRS and their nulls", rows=tuple(rows),
             columns=("site", "part", "value", "null", "z", "p", "texts"),
             caption=f"Importance: capacity of the {TOP_TOKENS}0 % most important tokens minus that of the others. "
                     f"Interaction: |cosine| of the {TOP_PAIRS}0 % most attended pairs minus that of the others. Null: "
                     "importance shuffled over the tokens of each text, attention over its pairs; mean 0, exact "
                     "variance over all shuffles."),
    )


def _capacity_panels(result: SuperpositionResult) -> tuple[HistogramGrid, Curves, Grid]:
    """Capacity of the tokens of each site: histograms, the share above each threshold, and the numbers."""
    edges = tuple(i / STEPS for i in range(STEPS + 1))
    histograms = tuple(
        Histogram(title=site.name, edges=edges, counts=site.counts, mark=site.mean_capacity.value,
                  apart=result.tokens - sum(site.counts), apart_label="zero", note=f"median {site.quantiles[2]:.3f}")
        for site in result.sites
    )
    rows = tuple((site.name, site.mean_capacity, site.important_capacity, site.other_capacity, site.over,
                  site.represented, site.zero_rows, *site.quantiles) for site in result.sites)
    return (
        HistogramGrid(title="Capacity of the tokens", x_label="capacity", histograms=histograms, log_x=False,
                      mark_label="mean",
                      caption="Tokens by the share of a dimension that they have to themselves in their text, "
                              f"{result.tokens:,} tokens. Those without any active neuron are the bar at the left."),
        Curves(title="Tokens over a capacity threshold", caption="Fraction of tokens with a capacity above it.",
               x_label="threshold", y_label="fraction of tokens",
               series=tuple(Series(label=site.name, x=edges, y=site.fraction_over) for site in result.sites)),
        Grid(title="Capacity by site", rows=rows,
             caption="Represented: mean over texts of the sum of capacities divided by the number of tokens.",
             columns=("site", "mean", "of important tokens", "of the others", f"over {OVER}", "represented",
                      "zero rows", *(f"{q:.0%} quantile" for q in QUANTILES))),
    )


def _run(run: Run) -> tuple[SuperpositionResult, dict[str, Any]]:
    layer = cast(ClassificationConfig, run.config).objective.layers[-1]
    result = evaluate(run.model, run.params, run.splits["test"].batches(), layer=layer, seed=run.seed)
    return result, {"split": "test", "layer": layer, "importance": result.importance, "top_tokens": TOP_TOKENS / 10,
                    "top_pairs": TOP_PAIRS / 10, "null": "exact moments over all shuffles",
                    "bootstrap_resamples": stats.RESAMPLES, "seed": run.seed}


SUITE = Suite(name="superposition", run=_run, task="classification",
              about="SRS of the classifier's neurons and the capacity of its tokens, on every text of the test split.")

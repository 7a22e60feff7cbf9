"""What the suite ``sae`` shows: the figures of stored autoencoders, their tables and pictures."""

import dataclasses
from collections.abc import Mapping, Sequence

from jaxablate import stats
from jaxablate.features.metrics import DENSITY_EDGES
from jaxablate.reports.panels import Curves, Grid, Histogram, HistogramGrid, Panel, Series
from jaxablate.reports.results import Figure
from jaxablate.stats import number

MOST_HISTOGRAMS = 24


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """A value and its 95 % interval; None where there is none."""

    value: float | None
    low: float | None = None
    high: float | None = None

    def text(self) -> str:
        """``value ± half width of the interval``, or a dash.

        >>> Estimate(value=2.0, low=1.5, high=2.5).text(), Estimate(value=0.25).text(), Estimate(value=None).text()
        ('2.00 ± 0.50', '0.2500', '-')
        """
        if self.low is None or self.high is None or self.high <= self.low:
            return number(self.value)
        return f"{number(self.value, self.low, self.high)} ± {number((self.high - self.low) / 2, self.low, self.high)}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredAutoencoder:
    """One autoencoder and its figures; see `jaxablate.features.metrics` for what each is."""

    name: str
    """Of its folder."""
    site: str
    kind: str
    """Its kind and what decides its sparsity: ``L1 5``, ``topk 32``."""
    control: str
    """none, gaussian or random-weights."""
    seed: int | None
    """None where it is not known, as of an autoencoder that another program trained."""
    steps: int | None
    learning_rate: float | None
    latents: int
    group: str
    """The same for autoencoders that differ in their seed alone."""
    tokens: int
    measures: Mapping[str, Estimate]
    """l0, l1, ce_score_zero, ce_score_mean, kl, explained_variance, explained_variance_saelens, cosine, mse, ce,
    ce_sae, ce_zero, ce_mean, kl_zero, kl_mean; those of losses are None for controls."""
    dead: int
    """Latents that are active for no token of the split."""
    density_histogram: tuple[int, ...]
    """Latents that are not dead, by density, in bins of `jaxablate.features.metrics.DENSITY_EDGES`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seeds:
    """Autoencoders that differ in their seed alone: means with 95 % Student intervals."""

    members: tuple[str, ...]
    """Names of their folders."""
    means: Mapping[str, Estimate]
    """As `StoredAutoencoder.measures`, and ``dead``."""


_HEADLINE = (("L0", "l0", "latents", "down"), ("CE score", "ce_score_zero", "", "up"),
             ("explained var.", "explained_variance", "", "up"))
"""(name, measure, unit, better) of the headline."""


def figures(rows: Sequence[StoredAutoencoder], seeds: Sequence[Seeds], paper_site: str) -> tuple[Figure, ...]:
    """Headline figures of everything but controls, the paper's site first."""
    of_seeds = {name: group for group in seeds for name in group.members}
    firsts: dict[str, StoredAutoencoder] = {}
    for row in rows:
        if row.control == "none":
            firsts.setdefault(row.group, row)
    ordered = sorted(firsts.values(), key=lambda row: row.site != paper_site)
    out = []
    for row, label in zip(ordered, _labels(ordered, paper_site), strict=True):
        measures = of_seeds[row.name].means if row.name in of_seeds else row.measures
        out += [Figure(f"{name} at {label}", stats.Estimate(**dataclasses.asdict(measures[key])), unit, better)
                for name, key, unit, better in _HEADLINE]
    return tuple(out)


def panels(
    rows: Sequence[StoredAutoencoder], seeds: Sequence[Seeds], passed_over: Sequence[tuple[str, str]], units: str
) -> tuple[Panel, ...]:
    """Tables, histograms of densities, curves over coefficients, and what was passed over.

    Args:
      rows: every autoencoder that was measured.
      seeds: groups of them.
      passed_over: (folder, why).
      units: what intervals are over, in words.
    """
    out: list[Panel] = [_losses(rows, units), _reconstructions(rows, units)] if rows else []
    out += [_over_seeds(rows, seeds)] if seeds else []
    out += [panel for y in ("explained_variance", "ce_score_zero") if (panel := _curves(rows, y)) is not None]
    out += [_densities(rows)] if rows else []
    out += [_trained(rows)] if rows else []
    if passed_over:
        out.append(Grid(title="Passed over", caption="Folders that hold no autoencoder of this checkpoint.",
                        columns=("folder", "why"), rows=tuple(passed_over)))
    return tuple(out)


def _labels(rows: Sequence[StoredAutoencoder], paper_site: str) -> list[str]:
    """Short names: the kind, with the site where it is not the paper's, and what else tells them apart."""
    short = [row.kind if row.site == paper_site else f"{row.kind}, {row.site}" for row in rows]
    longer = [f"{label}, {row.latents:,} latents, {number(row.steps)} steps, rate {number(row.learning_rate)}"
              for label, row in zip(short, rows, strict=True)]
    whole = [f"{label}, {row.name[-8:]}" for label, row in zip(short, rows, strict=True)]
    return [next(names[i] for names in (short, longer, whole) if names.count(names[i]) == 1 or names is whole)
            for i in range(len(rows))]


def _who(row: StoredAutoencoder) -> tuple[str, str, str, str]:
    return row.site, row.kind, CONTROLS[row.control], "-" if row.seed is None else str(row.seed)


_WHO = ("site", "kind", "trained on", "seed")
CONTROLS = {"none": "the model", "gaussian": "Gaussian vectors", "random-weights": "random weights"}
"""Control -> what an autoencoder was trained on, in words."""


def _losses(rows: Sequence[StoredAutoencoder], units: str) -> Grid:
    names = ("l0", "ce_score_zero", "ce_score_mean", "kl")
    return Grid(
        title="Sparsity, and what the model loses", columns=(*_WHO, "L0", "CE score", "CE score, mean", "KL", "dead"),
        rows=tuple((*_who(row), *(row.measures[name].text() for name in names), f"{row.dead:,} of {row.latents:,}")
                   for row in rows),
        caption="L0: active latents a token. CE score: share of the loss that the site saves, against zeros (and "
                "against its mean), which its reconstruction saves too; 1 at best. KL: nats a token from the model to "
                "the one with the reconstruction. Dead: active for no token of the split. "
                f"{_INTERVALS.format(units)} The losses of controls mean nothing and are left out.",
    )


_INTERVALS = "± half of the 95 % bootstrap interval over {}; of Gaussian vectors over rows of 256 of them."


def _reconstructions(rows: Sequence[StoredAutoencoder], units: str) -> Grid:
    names = ("explained_variance", "explained_variance_saelens", "cosine", "mse", "l1")
    return Grid(
        title="Reconstruction",
        columns=(*_WHO, "explained variance", "as SAELens has it", "cosine", "squared error", "L1"),
        rows=tuple((*_who(row), *(row.measures[name].text() for name in names)) for row in rows),
        caption="Explained variance: 1 - squared error / variance, sums over the split. SAELens 5.1.0 reports the mean "
                "over tokens of 1 - squared error / squared distance to the batch's mean, which few tokens near the "
                "mean decide. L1: sum of a token's latents, where activations are scaled to the mean norm sqrt(width). "
                f"{_INTERVALS.format(units)}",
    )


def _over_seeds(rows: Sequence[StoredAutoencoder], seeds: Sequence[Seeds]) -> Grid:
    by_name = {row.name: row for row in rows}
    names = ("l0", "ce_score_zero", "explained_variance", "dead")
    return Grid(
        title="Over seeds", columns=(*_WHO[:3], "seeds", "L0", "CE score", "explained variance", "dead"),
        rows=tuple((*_who(by_name[group.members[0]])[:3], len(group.members),
                    *(group.means[name].text() for name in names)) for group in seeds),
        caption="Mean and 95 % Student interval over autoencoders that differ in the seed of their weights alone. "
                "All saw the same activations.",
    )


def _curves(rows: Sequence[StoredAutoencoder], measure: str) -> Curves | None:
    """A measure against L0, a curve for each site and source; None with fewer than two points."""
    series: dict[str, list[tuple[float, float]]] = {}
    parts = [(row.site.removeprefix("clean."), row.kind.split()[0], CONTROLS[row.control]) for row in rows]
    varied = [i for i in range(3) if len({part[i] for part in parts}) > 1] or [2]
    for row, part in zip(rows, parts, strict=True):
        y, x = row.measures[measure].value, row.measures["l0"].value
        if y is not None and x:
            series.setdefault(", ".join(part[i] for i in varied), []).append((x, y))
    if len({point for points in series.values() for point in points}) < 2:
        return None
    name = {"explained_variance": "explained variance", "ce_score_zero": "CE score"}[measure]
    lines = tuple(Series(label=label, x=tuple(x for x, _ in sorted(points)), y=tuple(y for _, y in sorted(points)))
                  for label, points in series.items())
    return Curves(title=f"{name[0].upper()}{name[1:]} and sparsity", x_label="L0, active latents a token",
                  y_label=name, series=lines, log_x=True,
                  caption="A dot an autoencoder: farther left is sparser, higher is better.")


def _densities(rows: Sequence[StoredAutoencoder]) -> HistogramGrid:
    edges = tuple(10.0**edge for edge in DENSITY_EDGES)
    shown = rows[:MOST_HISTOGRAMS]
    drawn = tuple(
        Histogram(title=f"{row.site.removeprefix('clean.')}, {row.kind}", edges=edges, counts=row.density_histogram,
                  apart=row.dead, apart_label="dead",
                  note=", ".join([CONTROLS[row.control], *([] if row.seed is None else [f"seed {row.seed}"])]))
        for row in shown
    )
    more = f" The first {MOST_HISTOGRAMS} of {len(rows)}." if len(rows) > MOST_HISTOGRAMS else ""
    return HistogramGrid(title="Densities of latents", x_label="share of tokens for which a latent is active",
                         histograms=drawn, caption=f"Number of latents by density.{more}")


def _trained(rows: Sequence[StoredAutoencoder]) -> Grid:
    return Grid(
        title="How they were trained", columns=("folder", "latents", "steps", "learning rate", "tokens measured"),
        rows=tuple((row.name, row.latents, row.steps, row.learning_rate, row.tokens) for row in rows),
        caption="Everything else is in cfg.json of the folder, under autoencoders in the working directory.",
    )

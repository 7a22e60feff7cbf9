"""Suite ``sae``: every autoencoder stored in a working directory, over the whole validation split.

The paper reports L0 and CE score of one autoencoder a model (docs/papers.md, Feature concentration). Here they stand
with intervals over stories and over seeds, beside what the reconstruction explains, and beside controls: autoencoders
of Gaussian vectors of the site's mean and covariance, and of the same model with random weights.
`jaxablate.features.metrics` has the formulas.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

import msgspec
import numpy as np

from jaxablate import features, stats
from jaxablate.config import Config
from jaxablate.errors import ConfigError, DataError
from jaxablate.features.files import autoencoder_folders, without_seed
from jaxablate.features.metrics import DENSITY_EDGES, FORMULAS
from jaxablate.features.sites import random_params
from jaxablate.reports.panels import Curves, Grid, Histogram, HistogramGrid, Panel, Series
from jaxablate.reports.results import Better, Figure
from jaxablate.runs.run import Run
from jaxablate.stats import Estimate, number
from jaxablate.suites.suite import Suite
from jaxablate.types import Batch, Params

AT_ONCE = 8
"""Autoencoders in one pass over the split."""
BLANKS = (16, 256)
"""Shape of a batch of a Gaussian control, whose vectors belong to no text."""
CONTROLS = {"none": "the model", "gaussian": "Gaussian vectors", "random-weights": "random weights"}
"""Control -> what its autoencoders were trained on, for readers."""
MOST_HISTOGRAMS = 24
RANGES: Mapping[str, tuple[float, float]] = {
    **dict.fromkeys(("l0", "l1", "dead", "mse", "ce", "ce_sae", "ce_zero", "ce_mean", "kl", "kl_zero", "kl_mean"),
                    stats.COUNT),
    **dict.fromkeys(("explained_variance", "explained_variance_saelens"), (-math.inf, 1.0)), "cosine": (-1.0, 1.0),
}
"""Measure -> least and greatest number possible, where there are limits."""
_HELD_OUT = 1 << 20
"""Added to the seed of a Gaussian control's held-out draws, so that they are not those it was trained on."""
_HEADLINE: tuple[tuple[str, str, str, Better], ...] = (
    ("L0", "l0", "latents", "down"), ("CE score", "ce_score_zero", "", "up"),
    ("explained var.", "explained_variance", "", "up"))
"""(name, measure, unit, better) of the headline."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredAutoencoder:
    """One autoencoder and its figures; see `jaxablate.features.SaeMeasures` for what each is."""

    name: str
    """Name of its folder."""
    site: str
    kind: str
    """Its architecture and what decides its sparsity: ``L1 5``, ``topk 32``."""
    control: str
    """none, gaussian or random-weights."""
    seed: int | None
    """None where it is not known, as for an autoencoder that another program trained."""
    steps: int | None
    learning_rate: float | None
    latents: int
    group: str
    """The same for autoencoders that differ in their seed alone."""
    tokens: int
    measures: Mapping[str, Estimate]
    """`SaeMeasures.estimates`; those of losses have no value for controls."""
    dead: int
    """Latents that are active for no token of the split."""
    density_histogram: tuple[int, ...]
    """Latents that are not dead, by density, in bins of `jaxablate.features.metrics.DENSITY_EDGES`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seeds:
    """Autoencoders that differ in their seed alone."""

    members: tuple[str, ...]
    """Names of their folders."""
    means: Mapping[str, Estimate]
    """`StoredAutoencoder.measures` and ``dead``, each a mean with a 95 % Student interval."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SaeResult:
    """All stored autoencoders."""

    paper_site: str
    autoencoders: tuple[StoredAutoencoder, ...]
    seeds: tuple[Seeds, ...]
    """Groups of several seeds."""
    passed_over: tuple[tuple[str, str], ...]
    """(folder, why)."""
    unit: str
    """What is drawn with replacement for the intervals: stories or windows."""
    units: int

    def headline(self) -> tuple[Figure, ...]:
        """L0, CE score and explained variance of each kind but controls, the paper's site first.

        Intervals are over seeds where there are several.
        """
        means = {name: group.means for group in self.seeds for name in group.members}
        firsts: dict[str, StoredAutoencoder] = {}
        for row in self.autoencoders:
            if row.control == "none":
                firsts.setdefault(row.group, row)
        ordered = sorted(firsts.values(), key=lambda row: row.site != self.paper_site)
        figures = []
        for row, label in zip(ordered, _labels(ordered, self.paper_site), strict=True):
            measures = means.get(row.name, row.measures)
            figures += [Figure(f"{name} at {label}", measures[key], unit, better, RANGES.get(key))
                        for name, key, unit, better in _HEADLINE]
        return tuple(figures)

    def panels(self) -> tuple[Panel, ...]:
        """Tables, histograms of densities, curves over coefficients, and what was passed over."""
        rows, panels = self.autoencoders, list[Panel]()
        if rows:
            intervals = (f"In brackets: 95 % bootstrap intervals over {self.units:,} {self.unit}; of Gaussian vectors "
                         "over rows of 256 of them.")
            panels += [_losses(rows, intervals), _reconstructions(rows, intervals)]
            panels += [_over_seeds(rows, self.seeds)] if self.seeds else []
            curves = (_curves(rows, y) for y in ("explained_variance", "ce_score_zero"))
            panels += [*(curve for curve in curves if curve is not None), _densities(rows), _trained(rows)]
        if self.passed_over:
            panels.append(Grid(title="Passed over", caption="Folders that hold no autoencoder of this checkpoint.",
                               columns=("folder", "why"), rows=self.passed_over))
        return tuple(panels)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Member:
    """One stored autoencoder of this checkpoint: its folder's name, and what is in it."""

    name: str
    saved: features.SavedAutoencoder

    @property
    def identity(self) -> Mapping[str, Any]:
        """What decided its weights, as the command stored it; empty for another program's."""
        return self.saved.details.get("identity", {})

    @property
    def control(self) -> str:
        return self.identity.get("control", "none")

    @property
    def order(self) -> tuple[Any, ...]:
        """By site, kind, what decides the sparsity, control, seed."""
        config, run = self.saved.sae.config, self.identity.get("run", {})
        return (self.saved.name, config.architecture, run.get("l1", 0.0), config.k, list(CONTROLS).index(self.control),
                run.get("seed", 0), self.name)


def lacks(workdir: Path) -> str | None:
    """Why there is nothing to measure in a working directory; None where an autoencoder is stored."""
    missing = f"no autoencoder is stored; train one: jaxablate sae --workdir {workdir}"
    return None if autoencoder_folders(workdir) else missing


def measure(run: Run) -> SaeResult:
    """Measures every stored autoencoder of the run's parameters.

    Raises:
      ConfigError: the run has no working directory, or nothing is stored in it.
      DataError: the split is too short, or activations are not finite.
    """
    if run.workdir is None or (reason := lacks(run.workdir)) is not None:
        raise ConfigError(reason if run.workdir else "the suite sae needs a working directory")
    assert isinstance(run.config, Config)
    members, passed_over = _members(autoencoder_folders(run.workdir), run)
    of_model = [member for member in members if member.control == "none"]
    parts = [of_model[start : start + AT_ONCE] for start in range(0, len(of_model), AT_ONCE)]
    parts += [[member] for member in members if member.control != "none"]
    measures: dict[str, features.SaeMeasures] = {}
    for part in parts:
        subject = _subject(run, part[0])
        if isinstance(subject, str):
            passed_over.append((part[0].name, subject))
            continue
        found = features.evaluate(*subject, [(member.saved.name, member.saved.sae) for member in part], seed=run.seed)
        measures |= {member.name: m for member, m in zip(part, found, strict=True)}
    rows = [_row(member, measures[member.name]) for member in sorted(members, key=lambda member: member.order)
            if member.name in measures]
    # Gaussian vectors belong to no story, so their rows do not say what the others' intervals are over.
    widest = max(measures.values(), key=lambda m: (m.unit == "stories", len(m.unit_sums)), default=None)
    return SaeResult(paper_site=features.paper_site(run.config.model), autoencoders=tuple(rows),
                     seeds=seed_groups(rows), passed_over=tuple(passed_over), unit=widest.unit if widest else "windows",
                     units=len(widest.unit_sums) if widest else 0)


def seed_groups(rows: Sequence[StoredAutoencoder]) -> tuple[Seeds, ...]:
    """Groups of autoencoders that differ in their seed alone, with the means of their measures."""
    def mean(name: str, values: Sequence[float | None]) -> Estimate:
        numbers = [value for value in values if value is not None]
        if len(numbers) < len(values):
            return Estimate(None)
        return stats.student(numbers, within=RANGES.get(name, stats.UNBOUNDED))

    groups: dict[str, list[StoredAutoencoder]] = {}
    for row in rows:
        groups.setdefault(row.group, []).append(row)
    return tuple(Seeds(members=tuple(row.name for row in group),
                       means={name: mean(name, [row.measures[name].value for row in group]) for name in FORMULAS}
                       | {"dead": mean("dead", [row.dead for row in group])})
                 for group in groups.values() if len(group) > 1)


def of_checkpoint(run: Run) -> list[tuple[str, features.SavedAutoencoder]]:
    """Stored autoencoders of the run's parameters but controls, by name, in the order of tables."""
    if run.workdir is None:
        return []
    members, _ = _members(autoencoder_folders(run.workdir), run)
    return [(member.name, member.saved) for member in sorted(members, key=lambda member: member.order)
            if member.control == "none"]


def _members(folders: Sequence[Path], run: Run) -> tuple[list[_Member], list[tuple[str, str]]]:
    """Autoencoders of the run's parameters, and (folder's name, why) of the folders that hold no such one."""
    members, passed_over, own = [], [], features.fingerprint(run.params)
    for folder in folders:
        try:
            member = _Member(name=folder.name, saved=features.load(folder, run.model.config))
            _check_identity(member.identity)
        except (ConfigError, DataError) as error:
            passed_over.append((folder.name, str(error)))
            continue
        owner = member.identity.get("model", member.saved.fingerprint)
        if owner in (None, own):
            members.append(member)
        else:
            passed_over.append((folder.name, f"it belongs to another model: that has fingerprint {owner[:12]}..., this "
                                f"checkpoint {own[:12]}..."))
    return members, passed_over


class _Run(TypedDict):
    l1: float
    seed: int


class _Settings(TypedDict):
    steps: int
    learning_rate: float | None


class _Identity(TypedDict):
    """What the suite takes of an identity that the command stored."""

    model: str
    control: Literal["none", "gaussian", "random-weights"]
    control_seed: Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
    run: _Run
    settings: _Settings


def _check_identity(identity: Any) -> None:
    """Raises DataError where what was stored beside the weights is not what the command stores."""
    try:
        if identity != {}:  # another program's autoencoder has none
            msgspec.convert(identity, _Identity)
    except msgspec.ValidationError as error:
        raise DataError(f"its cfg.json is damaged: jaxablate.details.identity: {error}") from error


def _subject(run: Run, member: _Member) -> tuple[Any, Params, Callable[[], Iterable[Batch]]] | str:
    """Model, parameters and batches that an autoencoder is measured on; or why it cannot be measured."""
    saved, text = member.saved, run.splits["valid"].batches
    if member.control == "none":
        return run.model, run.params, text
    if member.control == "random-weights":  # those it was trained on, drawn again from their seed
        params = random_params(run.model, member.identity["control_seed"])
        if saved.fingerprint != features.fingerprint(params):
            return ("its random weights are drawn otherwise by this version of JAX; train it anew: jaxablate sae "
                    "--control random-weights")
        return features.reader(run.model, [saved.name]), params, text
    if saved.moments is None:
        return "the mean and covariance of this control are missing"
    # New draws of its own mean and covariance, as many as the split has tokens.
    count = math.ceil(sum(int((np.asarray(batch["mask"]) > 0).sum()) for batch in text()) / math.prod(BLANKS))

    def draws() -> Iterator[Batch]:
        for numbers in itertools.islice(features.GaussianActivations.batches(BLANKS)(0), count):
            yield {"inputs": numbers, "mask": np.ones(BLANKS, np.float32)}

    return features.GaussianActivations((saved.name,), seed=_HELD_OUT + run.seed), saved.moments, draws


def _row(member: _Member, m: features.SaeMeasures) -> StoredAutoencoder:
    config, identity = member.saved.sae.config, member.identity
    run, settings = identity.get("run", {}), identity.get("settings", {})
    return StoredAutoencoder(
        name=member.name, site=m.site, kind=config.kind.label(config, run.get("l1")), control=member.control,
        seed=run.get("seed"), steps=settings.get("steps"), learning_rate=settings.get("learning_rate"),
        latents=config.d_sae, tokens=m.tokens, dead=m.dead, measures=m.estimates,
        group=without_seed(identity) if identity else member.name, density_histogram=m.density_histogram,
    )


def _labels(rows: Sequence[StoredAutoencoder], paper_site: str) -> list[str]:
    """The shortest names that differ: the kind, with the site where it is not the paper's, and what else it takes."""
    short = [row.kind if row.site == paper_site else f"{row.kind}, {row.site}" for row in rows]
    longer = [f"{label}, {row.latents:,} latents, {number(row.steps)} steps, rate {number(row.learning_rate)}"
              for label, row in zip(short, rows, strict=True)]
    folders = [f"{label}, {row.name}" for label, row in zip(short, rows, strict=True)]
    # Another program's folder, whose group is its own name, does not end with a digest.
    digests = [folder if row.group == row.name else f"{label}, {row.name[-8:]}"
               for folder, label, row in zip(folders, short, rows, strict=True)]
    return [next(names[i] for names in (short, longer, digests, folders) if names is folders
                 or names.count(names[i]) == 1) for i in range(len(rows))]


_WHO = ("site", "kind", "trained on", "seed")


def _who(row: StoredAutoencoder) -> tuple[str, str, str, str]:
    return row.site, row.kind, CONTROLS[row.control], "-" if row.seed is None else str(row.seed)


def _losses(rows: Sequence[StoredAutoencoder], intervals: str) -> Grid:
    columns = {"L0": "l0", "CE score": "ce_score_zero", "CE score, mean": "ce_score_mean", "KL": "kl"}
    return Grid(
        title="Sparsity, and what the model loses", columns=(*_WHO, *columns, "dead"),
        rows=tuple((*_who(row), *(row.measures[name] for name in columns.values()),
                    f"{row.dead:,} of {row.latents:,}") for row in rows),
        caption="L0: active latents a token. CE score: share of the loss that the site saves, against zeros (and "
                "against its mean), which its reconstruction saves too; 1 at best. KL: nats a token from the model to "
                "the one with the reconstruction. Dead: active for no token of the split. "
                f"{intervals} The losses of controls mean nothing and are left out.",
    )


def _reconstructions(rows: Sequence[StoredAutoencoder], intervals: str) -> Grid:
    columns = {"explained variance": "explained_variance", "as SAELens has it": "explained_variance_saelens",
               "cosine": "cosine", "squared error": "mse", "L1": "l1"}
    return Grid(
        title="Reconstruction", columns=(*_WHO, *columns),
        rows=tuple((*_who(row), *(row.measures[name] for name in columns.values())) for row in rows),
        caption="Explained variance: 1 - squared error / variance, sums over the split. SAELens 5.1.0 reports the mean "
                "over tokens of 1 - squared error / squared distance to the batch's mean, which few tokens near the "
                "mean decide. L1: sum of a token's latents, where activations are scaled to the mean norm sqrt(width). "
                + intervals,
    )


def _over_seeds(rows: Sequence[StoredAutoencoder], seeds: Sequence[Seeds]) -> Grid:
    by_name = {row.name: row for row in rows}
    columns = {"L0": "l0", "CE score": "ce_score_zero", "explained variance": "explained_variance", "dead": "dead"}
    return Grid(
        title="Over seeds", columns=(*_WHO[:3], "seeds", *columns),
        rows=tuple((*_who(by_name[group.members[0]])[:3], len(group.members),
                    *(group.means[name] for name in columns.values())) for group in seeds),
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
    histograms = tuple(
        Histogram(title=f"{row.site.removeprefix('clean.')}, {row.kind}", edges=edges, counts=row.density_histogram,
                  apart=row.dead, apart_label="dead",
                  note=", ".join([CONTROLS[row.control], *([] if row.seed is None else [f"seed {row.seed}"])]))
        for row in rows[:MOST_HISTOGRAMS]
    )
    more = f" The first {MOST_HISTOGRAMS} of {len(rows)}." if len(rows) > MOST_HISTOGRAMS else ""
    return HistogramGrid(title="Densities of latents", x_label="share of tokens for which a latent is active",
                         histograms=histograms, caption=f"Number of latents by density.{more}")


def _trained(rows: Sequence[StoredAutoencoder]) -> Grid:
    return Grid(
        title="How they were trained", columns=("folder", "latents", "steps", "learning rate", "tokens measured"),
        rows=tuple((row.name, row.latents, row.steps, row.learning_rate, row.tokens) for row in rows),
        caption="Everything else is in cfg.json of the folder, under autoencoders in the working directory.",
    )


SUITE = Suite(name="sae", lacks=lacks,
              run=lambda run: (measure(run), {"bootstrap_resamples": stats.RESAMPLES, "seed": run.seed}),
              about="Sparse autoencoders stored with the run: L0, CE score, explained variance, dead latents.")

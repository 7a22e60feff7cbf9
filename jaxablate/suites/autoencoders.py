"""Suite ``sae``: every autoencoder stored in a working directory, over the whole validation split.

The paper reports L0 and CE score of one autoencoder a model (docs/papers.md, Feature concentration). Here they
stand with intervals over stories and over seeds, beside what the reconstruction explains, and beside controls:
autoencoders of Gaussian vectors of the site's mean and covariance, and of the same model with random weights.
`jaxablate.features.metrics` has the formulas.
"""

import dataclasses
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxablate import features, stats
from jaxablate.commands import sae_jobs
from jaxablate.errors import ConfigError, DataError
from jaxablate.intervals_old import RESAMPLES, interval_ends, percentile_interval, ratio_resamples
from jaxablate.reports.panels import Panel
from jaxablate.reports.results import Figure
from jaxablate.runs.run import Run
from jaxablate.suites import autoencoders_panels as sae_panels
from jaxablate.suites.autoencoders_panels import Estimate, Seeds, StoredAutoencoder
from jaxablate.suites.suite import Suite
from jaxablate.types import Batch

MIN_STORIES = 30
"""Below this many stories the resampling unit is a window."""
AT_ONCE = 8
"""Autoencoders in one pass over the split."""
BLANKS = (16, 256)
"""Shape of a batch of a Gaussian control, whose vectors belong to no text."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SaeResult:
    """All stored autoencoders."""

    paper_site: str
    autoencoders: tuple[StoredAutoencoder, ...]
    seeds: tuple[Seeds, ...]
    """Autoencoders that differ in nothing but the seed of their weights, where there are several."""
    passed_over: tuple[tuple[str, str], ...]
    """(folder, why)."""
    unit: str
    """What is drawn with replacement for the intervals: stories or windows."""
    units: int

    def headline(self) -> tuple[Figure, ...]:
        """L0, CE score and explained variance of each kind; intervals over seeds where there are several."""
        return sae_panels.figures(self.autoencoders, self.seeds, self.paper_site)

    def panels(self) -> tuple[Panel, ...]:
        """Tables, densities, and what sparsity costs."""
        return sae_panels.panels(self.autoencoders, self.seeds, self.passed_over, f"{self.units:,} {self.unit}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Opened:
    """One stored autoencoder of this checkpoint."""

    name: str
    saved: features.Saved
    control: str

    @property
    def subject(self) -> features.Subject:
        """As it is measured."""
        return features.Subject(self.saved.site, self.saved.sae, self.saved.config)


def lacks(workdir: Path) -> str | None:
    """Why there is nothing to measure in a working directory; None where an autoencoder is stored."""
    if sae_jobs.stored(workdir):
        return None
    return f"no autoencoder is stored; train one: python eval.py sae --workdir {workdir}"


def open_stored(folders: Sequence[Path], model: Any, params: Any) -> tuple[list[Opened], list[tuple[str, str]]]:
    """Autoencoders of these parameters, and the folders that hold no such one.

    Args:
      folders: of autoencoders.
      model: the decoder.
      params: its parameters.

    Returns:
      Those that can be measured, and (folder's name, why) of the others.
    """
    found, passed_over, of_run = [], [], features.fingerprint(params)
    for folder in folders:
        try:
            saved = features.load_autoencoder(folder, model.config)
        except (ConfigError, DataError) as error:
            passed_over.append((folder.name, str(error)))
            continue
        identity = saved.details.get("identity", {})
        owner = identity.get("model", saved.fingerprint)
        if owner not in (None, of_run):
            passed_over.append((folder.name, f"it belongs to another model: that has fingerprint {owner[:12]}..., this "
                                f"checkpoint {of_run[:12]}..."))
            continue
        found.append(Opened(name=folder.name, saved=saved, control=identity.get("control", "none")))
    return found, passed_over


def measure(run: Run) -> SaeResult:
    """Measures every stored autoencoder of the subject's parameters.

    Raises:
      ConfigError: the subject has no working directory, or nothing is stored in it.
      DataError: the split is too short, or activations are not finite.
    """
    if run.workdir is None or (reason := lacks(run.workdir)) is not None:
        raise ConfigError(reason if run.workdir else "the suite sae needs a working directory")
    opened, passed_over = open_stored(sae_jobs.stored(run.workdir), run.model, run.params)
    batches, unit = with_units(run.splits["valid"].batches, run.tokenizer.eot_id)
    found: dict[str, features.SaeMeasures] = {}
    for control in dict.fromkeys(one.control for one in opened):
        group = [one for one in opened if one.control == control]
        for start in range(0, len(group), AT_ONCE):
            part = group[start : start + AT_ONCE]
            measures, refused = _MEASURES[control](run, batches, part)
            found |= measures
            passed_over += refused
    rows = [_row(one, found[one.name], run.seed) for one in sorted(opened, key=_order) if one.name in found]
    units = max((len(m.unit_sums) for m in found.values()), default=0)
    return SaeResult(paper_site=features.paper_site(run.config.model), autoencoders=tuple(rows), seeds=_seeds(rows),
                     passed_over=tuple(passed_over), unit=unit, units=units)


def with_units(batches: Callable[[], Iterator[Batch]], eot_id: int) -> tuple[Callable[[], Iterator[Batch]], str]:
    """Batches that say which story each target is of, or which window where there are few stories.

    Args:
      batches: starts the split anew, in file order.
      eot_id: token that ends a story; it is the last target of its story.

    Returns:
      Function that starts the split anew, with ``unit`` int [B, T] in each batch; and what a unit is.
    """
    ends = sum(int(((np.asarray(b["targets"]) == eot_id) & (np.asarray(b["mask"]) > 0)).sum()) for b in batches())

    def numbered() -> Iterator[Batch]:
        story = 0
        for batch in batches():
            last = (np.asarray(batch["targets"]) == eot_id) & (np.asarray(batch["mask"]) > 0)
            yield {**batch, "unit": story + np.cumsum(last.ravel()).reshape(last.shape) - last}
            story += int(last.sum())

    return (numbered, "stories") if ends >= MIN_STORIES else (batches, "windows")


def _of_model(run: Run, batches, part: list[Opened]):
    found = features.evaluate(run.model, run.params, batches, [one.subject for one in part])
    return {one.name: measures for one, measures in zip(part, found, strict=True)}, []


def _of_random_weights(run: Run, batches, part: list[Opened]):
    """Each on the weights it was trained on, drawn again from their seed."""
    measures, refused = {}, []
    for one in part:
        params = sae_jobs.random_params(run.model, one.saved.details["identity"]["control_seed"])
        if one.saved.fingerprint != features.fingerprint(params):
            refused.append((one.name, "its random weights are drawn otherwise by this version of JAX; train it anew: "
                                      "python eval.py sae --control random-weights"))
            continue
        reader = features.reader(run.model, [one.saved.site])
        measures[one.name], = features.evaluate_alone(reader, params, batches, [one.saved.site], [one.subject])
    return measures, refused


def _of_gaussian(run: Run, batches, part: list[Opened]):
    """Each on new draws of its own mean and covariance, as many as the split has tokens."""
    tokens = sum(int((np.asarray(batch["mask"]) > 0).sum()) for batch in run.splits["valid"].batches())
    count = -(-tokens // (BLANKS[0] * BLANKS[1]))
    measures = {}
    for one in part:
        if one.saved.moments is None:
            continue
        draws = features.GaussianActivations((one.saved.site,), seed=_HELD_OUT + run.seed)
        blanks = features.blanks(BLANKS)

        def numbered(blanks=blanks) -> Iterator[Batch]:
            for _, inputs in zip(range(count), blanks(0), strict=False):
                yield {"inputs": inputs, "mask": np.ones(BLANKS, np.float32)}

        measures[one.name], = features.evaluate_alone(draws, one.saved.moments, numbered, [one.saved.site],
                                                      [one.subject])
    refused = [(one.name, "the mean and covariance of this control are missing") for one in part
               if one.saved.moments is None]
    return measures, refused


_MEASURES = {"none": _of_model, "random-weights": _of_random_weights, "gaussian": _of_gaussian}
_HELD_OUT = 1 << 20
"""Added to the seed of a Gaussian control's held-out draws, so that they are not those it was trained on."""


def _order(one: Opened) -> tuple[Any, ...]:
    """By site, kind, what decides the sparsity, control, seed."""
    config, run = one.saved.config, one.saved.details.get("identity", {}).get("run", {})
    return (one.saved.site, config.architecture, run.get("l1", 0.0), config.k, list(_MEASURES).index(one.control),
            run.get("seed", 0), one.name)


def _row(one: Opened, m: features.SaeMeasures, seed: int) -> StoredAutoencoder:
    config, identity = one.saved.config, one.saved.details.get("identity")
    run, settings = (identity["run"], identity["settings"]) if identity else ({}, {})
    l1 = f"L1 {run['l1']:g}" if run else "L1"
    kind = l1 if config.architecture == "standard" else config.architecture
    kind += f" {config.k:g}" if config.architecture in ("topk", "batchtopk") else ""
    return StoredAutoencoder(
        name=one.name, site=m.site, kind=kind, control=one.control, seed=run.get("seed"), steps=settings.get("steps"),
        learning_rate=settings.get("learning_rate"), latents=config.d_sae, tokens=m.tokens, dead=m.dead,
        group=sae_jobs.without_seed(identity) if identity else one.name, density_histogram=m.density_histogram,
        measures=estimates(m, seed),
    )


_FORMULAS: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    **{name: operator.itemgetter(name) for name in ("l0", "l1", "explained_variance_saelens", "cosine", "ce", "ce_sae",
                                                    "ce_zero", "ce_mean", "kl_zero", "kl_mean")},
    "mse": lambda c: c["squared_error"],
    "kl": lambda c: c["kl_sae"],
    "explained_variance": lambda c: 1 - c["squared_error"] / c["variance"],
    "ce_score_zero": lambda c: (c["ce_zero"] - c["ce_sae"]) / (c["ce_zero"] - c["ce"]),
    "ce_score_mean": lambda c: (c["ce_mean"] - c["ce_sae"]) / (c["ce_mean"] - c["ce"]),
}
"""Measures from means over tokens of `features.COLUMNS`."""


def estimates(m: features.SaeMeasures, seed: int) -> dict[str, Estimate]:
    """Each measure with its bootstrap interval over the units; no value where the measure has none."""
    tokens = m.unit_sums[:, 0]
    means = dict(zip(features.COLUMNS, m.unit_sums.sum(0) / tokens.sum(), strict=True))
    draws = ratio_resamples(m.unit_sums.T, tokens, seed=seed) if len(tokens) > 1 else np.zeros((len(means), 0))
    drawn = dict(zip(features.COLUMNS, draws, strict=True))
    out = {}
    for name, formula in _FORMULAS.items():
        missing = getattr(m, name, 0.0) is None or not np.isfinite(formula(means))
        interval = None if missing else percentile_interval(formula(drawn))
        out[name] = Estimate(value=None if missing else float(formula(means)), **interval_ends(interval))
    return out


def _seeds(rows: Sequence[StoredAutoencoder]) -> tuple[Seeds, ...]:
    groups: dict[str, list[StoredAutoencoder]] = {}
    for row in rows:
        groups.setdefault(row.group, []).append(row)
    return tuple(Seeds(members=tuple(row.name for row in group),
                       means={name: _mean([row.measures[name].value for row in group]) for name in _FORMULAS}
                       | {"dead": _mean([row.dead for row in group])})
                 for group in groups.values() if len(group) > 1)


def _mean(values: Sequence[float | None]) -> Estimate:
    if None in values:
        return Estimate(value=None)
    return Estimate(value=float(np.mean(values)), **interval_ends(stats.student(values).interval))


def _run(run: Run) -> tuple[SaeResult, dict[str, Any]]:
    return measure(run), {"bootstrap_resamples": RESAMPLES, "seed": run.seed}


SUITE = Suite(name="sae", run=_run, lacks=lacks,
              about="Sparse autoencoders stored with the run: L0, CE score, explained variance, dead latents.")

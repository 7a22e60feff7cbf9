"""Tests of pairs over seeds, their power, and verdicts, by the rules of docs/claims.md."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.claims.runs import Row
from benchmarks.claims.studies import Claim, Study
from jaxablate import stats
from jaxablate.stats import Estimate

TOLERANCE, COMPETENT, LEAST_PAIRS = 0.02, 0.75, 3
"""Nats between a pair's losses; share of prompts answered by a model whose circuit counts; pairs of a comparison."""
POWER, LEVEL = 0.8, 0.05


CONTRASTED = ("edges", "L0", "bits above random")
"""Figures of `contrasts`."""


def contrasts(rows: Sequence[Row], study: Study) -> Iterator[Row]:
    """A row for each of the study's pairs of variants and seed: the figures are differences from each one's own
    baseline of equal loss, ``equal`` has the second variant's."""
    there = {(row["variant"], row["seed"]): row for row in rows if row.get("equal") is not None}
    for name, (ours, theirs) in study.contrasts.items():
        for seed in sorted({seed for variant, seed in there if variant == ours}):
            if (theirs, seed) in there:
                one, other = (_from_baseline(there[variant, seed]) for variant in (ours, theirs))
                apart = max(one["loss"], other["loss"])
                yield {"variant": name, "seed": seed, "run": one | {"loss": apart}, "equal": other | {"loss": 0.0}}


def _from_baseline(row: Row) -> dict[str, Any]:
    run, equal = row["run"], row["equal"]
    out: dict[str, Any] = {"loss": abs(run["loss"] - equal["loss"]), "answers": min(run["answers"], equal["answers"])}
    for figure in CONTRASTED:
        ours, theirs = run.get(figure), equal.get(figure)
        out |= {figure: None if None in (ours, theirs) else ours - theirs, f"{figure} of baseline": theirs}
    return out


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compared:
    """What one test is of."""

    claim: Claim
    models: str
    variants: Sequence[str]
    pairs: Mapping[int, tuple[float, float, float]]
    """(the models' figure, the reference's, what effects are relative to) of each seed, means over the variants."""
    left_out: Mapping[str, int]
    """Pairs that do not count by the rules of docs/claims.md: too far ``apart`` in loss, a model ``unable`` to do the
    task, a figure ``lacking``."""

    @property
    def differences(self) -> list[float]:
        """The models' figure minus the reference's, by seed."""
        return [ours - theirs for ours, theirs, _ in self.pairs.values()]

    def test(self) -> tuple[Estimate, float | None]:
        """The mean difference with its interval, and the two-sided p."""
        ours, theirs, _ = zip(*self.pairs.values(), strict=True)
        return stats.t_test(ours, theirs, paired=True)


def compared(rows: Sequence[Row], claim: Claim, models: str, variants: Sequence[str]) -> Compared:
    """One comparison, with those pairs that count."""
    by_seed: dict[int, list[tuple[float, float, float]]] = {}
    left_out: dict[str, int] = dict.fromkeys(("apart", "unable", "lacking"), 0)
    for row in rows:
        if row["variant"] not in variants or row.get(claim.against) is None:
            continue
        ours, theirs = row["run"], row[claim.against]
        apart = claim.against == "equal" and abs(ours["loss"] - theirs["loss"]) > TOLERANCE
        values = ours.get(claim.figure), theirs.get(claim.figure), theirs.get(claim.scale or claim.figure)
        answers = (ours["answers"], theirs["answers"]) if claim.competent else ()
        unable = any(x is not None and x < COMPETENT for x in answers)
        if apart or unable or None in (*values, *answers):
            left_out["apart" if apart else "unable" if unable else "lacking"] += 1
            continue
        by_seed.setdefault(row["seed"], []).append(values)
    whole = {seed: tuple(np.mean(x, axis=0).tolist()) for seed, x in sorted(by_seed.items())}
    return Compared(claim=claim, models=models, variants=variants, pairs=whole, left_out=left_out)


def smallest(differences: Sequence[float], level: float = LEVEL) -> float:
    """The smallest true difference that a two-sided paired t-test of so many finds in 80 % of cases, with the standard
    deviation that these have.

    >>> round(smallest([-1.0, 0.0, 1.0, 0.0, 0.5]), 2)
    1.25
    """
    from scipy import special
    from scipy.stats import nct

    n = len(differences)
    critical = float(special.stdtrit(n - 1, 1 - level / 2))

    def power(effect: float) -> float:
        return float(1 - nct.cdf(critical, n - 1, effect) + nct.cdf(-critical, n - 1, effect))

    low, high = 0.0, 1.0
    while power(high) < POWER:  # far beyond what is needed nct.cdf is not a number
        low, high = high, 1.5 * high
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if power(middle) > POWER else (middle, high)
    return high * float(np.std(differences, ddof=1)) / math.sqrt(n)


def verdict(claim: Claim, difference: Estimate, p: float | None, scale: float, seeds: int) -> str:
    """By the rules of docs/claims.md. Published effects are relative to ``scale``."""
    size = claim.published if claim.absolute else claim.published * scale
    value, (low, high) = float(difference), _interval(difference, seeds, claim.level)
    if claim.kind != "effect":
        below, above = ("holds", "does not hold") if claim.kind == "at most" else ("does not hold", "holds")
        return below if high < size else above if low > size else "undecided"
    significant = p is not None and p < claim.level
    beyond = low > size / 2 if size < 0 else high < size / 2
    if significant and value * size > 0:
        return "only in sign" if beyond else "holds"
    return "does not hold" if beyond or significant else "undecided"


def _interval(difference: Estimate, seeds: int, level: float) -> tuple[float, float]:
    """Student's interval of a mean over seeds at another level than that of 5 % which it has."""
    from scipy import special

    if difference.interval is None:
        return -math.inf, math.inf
    wider = float(special.stdtrit(seeds - 1, 1 - level / 2) / special.stdtrit(seeds - 1, 1 - LEVEL / 2))
    value = float(difference)
    low, high = (value + wider * (end - value) for end in difference.interval)
    return low, high


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tested:
    """A comparison, tested as one of a family."""

    of: Compared
    difference: Estimate
    """The mean difference with its 95 % interval; no value where there are too few pairs."""
    p: float | None
    """After Holm's correction over the family."""
    family: int
    """Comparisons that are corrected together, with those that have too few pairs."""

    @property
    def power_from(self) -> tuple[float, float]:
        """The smallest difference that the test alone would find, and that it would find at Holm's first step."""
        return smallest(self.of.differences), smallest(self.of.differences, self.of.claim.level / self.family)


def tested(family: Sequence[Compared]) -> list[Tested]:
    """Each with its difference and its p after Holm's correction over all of them. Those with fewer than `LEAST_PAIRS`
    pairs that count are not tested, but count in the correction."""
    found = [x.test() if len(x.pairs) >= LEAST_PAIRS else (Estimate(None), None) for x in family]
    after = stats.holm([1.0 if p is None else p for _, p in found])
    return [Tested(of=x, difference=difference, p=None if p is None else q, family=len(family))
            for x, (difference, p), q in zip(family, found, after, strict=True)]


def primary(rows: Sequence[Row], study: Study) -> list[Tested]:
    """The comparisons that verdicts are of, but those without any pair; each letter of claims' names is a family."""
    rows = [*rows, *contrasts(rows, study)]
    out = []
    for letter in dict.fromkeys(claim.name[0] for claim in study.claims):
        family = [compared(rows, claim, models, variants) for claim in study.claims if claim.name[0] == letter
                  for models, variants in claim.groups.items()]
        out += [x for x in tested(family) if x.of.pairs or any(x.of.left_out.values())]
    return out


def complete(rows: Sequence[Row], claim: Claim, models: str, variants: Sequence[str]) -> Compared | None:
    """The comparison over those variants alone that have a pair which counts for every seed; None where these are all
    variants or none."""
    seeds = {variant: set(compared(rows, claim, models, (variant,)).pairs) for variant in variants}
    every = set().union(*seeds.values())
    whole = tuple(variant for variant in variants if every and seeds[variant] == every)
    if not whole or len(whole) == len(variants):
        return None
    return compared(rows, claim, f"{models}: {', '.join(whole)}", whole)


def second_look(rows: Sequence[Row], study: Study) -> list[Row]:
    """Rows of the first look's seeds, and of those further seeds that have a run of every variant that is compared;
    empty where there is no such seed."""
    first = study.first_look
    if first is None:
        return []
    needed = {variant for claim in study.claims if claim.level < LEVEL and claim.scale is None
              for variants in claim.groups.values() for variant in variants}
    have: dict[int, set[str]] = {}
    for row in rows:
        if row["seed"] >= first and row.get("equal") is not None:
            have.setdefault(row["seed"], set()).add(row["variant"])
    more = {seed for seed, variants in have.items() if needed <= variants}
    return [row for row in rows if row["seed"] < first or row["seed"] in more] if more else []

"""Tables of docs/claims.md: all primary comparisons, one table a claim, every cell."""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.claims.comparisons import (
    LEAST_PAIRS,
    Compared,
    compared,
    corrected,
    local_against_global,
    primary,
    smallest,
    verdict,
)
from benchmarks.claims.runs import Row
from benchmarks.claims.studies import Claim, Study
from jaxablate import stats
from jaxablate.reports.panels import Grid
from jaxablate.stats import Estimate


def _line(of: tuple[Compared, Estimate, float | None], with_verdict: bool) -> tuple[Any, ...]:
    x, difference, p = of
    figure = x.claim.figure + (" (last step)" if x.claim.against == "last" else "")
    if difference.value is None:
        return x.models, figure, "", "", "", "", "no verdict", "", len(x.pairs), x.left_out, ""
    ours, theirs, scale = (float(np.mean(side)) for side in zip(*x.pairs.values(), strict=True))
    published = answer = ""
    if with_verdict:
        published, answer = _published(x.claim, scale), verdict(x.claim, difference, p, scale, list(x.pairs))
    return (x.models, figure, theirs, ours, published, difference, answer, "" if p is None else f"{p:.4f}",
            len(x.pairs), x.left_out, f"{smallest(x.differences):.2g}")


def _published(claim: Claim, scale: float) -> str:
    """The paper's difference, as it would be here where it is relative."""
    if not claim.has_figure:
        return "no figure"
    if claim.absolute:
        return f"{claim.published:.2g}"
    return f"{claim.published * scale:.2g} ({100 * claim.published:+.0f} %)"


COLUMNS = ("models", "measure", "reference", "value", "published", "difference", "verdict", "p, Holm", "seeds",
           "left out", "power from")


def summary(rows: Sequence[Row], study: Study) -> Grid:
    """All primary comparisons."""
    lines = tuple((x[0].claim.name, *_line(x, True)) for x in primary(rows, study))
    return Grid(title="", caption="", columns=("claim", *COLUMNS), rows=lines)


def claim_table(rows: Sequence[Row], study: Study, claim: Claim) -> Grid:
    """One claim: its primary comparisons, its further measures, and each cell by itself."""
    lines = [_line(x, True) for x in primary(rows, study) if x[0].claim.name == claim.name]
    rows = [*rows, *local_against_global(rows)]
    for figure, against in claim.secondary:
        of_figure = dataclasses.replace(claim, figure=figure, against=against)
        lines += _secondary(rows, of_figure, claim.groups)
    if claim.figure == "edges" and claim.scale is None:
        lines += [line for group in claim.groups.items() if (line := at_equal_margin(rows, claim, *group))]
    cells = dict.fromkeys(row["variant"] for row in rows if re.fullmatch(claim.cells, row["variant"]))
    lines += _secondary(rows, claim, {variant: (variant,) for variant in cells})
    return Grid(title=f"{claim.name}: {claim.says}", caption="", columns=COLUMNS, rows=tuple(lines))


def _secondary(rows: Sequence[Row], claim: Claim, groups: Mapping[str, Sequence[str]]) -> list[tuple[Any, ...]]:
    some = [compared(rows, claim, models, variants) for models, variants in groups.items()]
    return [_line(x, False) for x in corrected([x for x in some if len(x.pairs) >= LEAST_PAIRS])]


def at_equal_margin(rows: Sequence[Row], claim: Claim, models: str, variants: Sequence[str]) -> tuple[Any, ...] | None:
    """The difference in edges where the difference in logit difference is 0: the intercept of a line through the seeds'
    differences, with Student's interval. None for fewer than four seeds."""
    from scipy import special

    edges, margins = (compared(rows, dataclasses.replace(claim, figure=figure), models, variants)
                      for figure in (claim.figure, "logit difference"))
    seeds = sorted(edges.pairs.keys() & margins.pairs.keys())
    if len(seeds) <= LEAST_PAIRS:
        return None
    x, y = (np.array([of.pairs[seed][0] - of.pairs[seed][1] for seed in seeds]) for of in (margins, edges))
    design = np.stack([np.ones_like(x), x], axis=-1)
    fit, *_ = np.linalg.lstsq(design, y, rcond=None)
    freedom = len(seeds) - 2
    variance = float(np.sum((y - design @ fit) ** 2)) / freedom * np.linalg.pinv(design.T @ design)[0, 0]
    half = float(special.stdtrit(freedom, 0.975)) * math.sqrt(variance)
    value = float(fit[0])
    interval = Estimate(value, value - half, value + half)
    return (models, "edges at equal logit difference", "", "", "", interval, "", "", len(seeds), edges.left_out, "")


def cells(rows: Sequence[Row], figures: Sequence[str]) -> Grid:
    """Every cell: means over seeds with Student's intervals."""
    out = []
    for name in dict.fromkeys(row["variant"] for row in rows):
        of = [row["run"] for row in rows if row["variant"] == name]
        values = [[x[figure] for x in of if x.get(figure) is not None] for figure in figures]
        out.append((name, len(of), *(stats.student(x) if x else "" for x in values)))
    return Grid(title="", caption="", columns=("runs", "seeds", *figures), rows=tuple(out))


def all_tables(rows: Sequence[Row], study: Study) -> dict[str, Grid]:
    """Tables by name: ``summary``, one of each claim, those of every cell."""
    of_claims = {claim.name: claim_table(rows, study, claim) for claim in study.claims}
    found = {"summary": summary(rows, study)} | of_claims if study.claims else {}
    return found | {name: cells(rows, figures) for name, figures in study.shown.items()}

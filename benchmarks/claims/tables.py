"""Tables of docs/claims.md: all primary comparisons, one table a claim, every cell."""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.claims.comparisons import (
    COMPETENT,
    LEAST_PAIRS,
    Tested,
    compared,
    complete,
    contrasts,
    primary,
    second_look,
    tested,
    verdict,
)
from benchmarks.claims.runs import Row
from benchmarks.claims.studies import Claim, Study
from jaxablate import stats
from jaxablate.reports.panels import Grid
from jaxablate.stats import COUNT, FRACTION, UNBOUNDED, Estimate


def _line(x: Tested, with_verdict: bool, note: str = "") -> tuple[Any, ...]:
    of, claim = x.of, x.of.claim
    figure = claim.figure + (" (last step)" if claim.against == "last" and not claim.best_epoch else "") + note
    left_out = ", ".join(f"{count} {why}" for why, count in of.left_out.items() if count) or "0"
    if x.difference.value is None:
        return of.models, figure, "", "", "", "", "no verdict", "", len(of.pairs), left_out, ""
    ours, theirs, scale = (float(np.mean(side)) for side in zip(*of.pairs.values(), strict=True))
    alone, first = x.power_from
    published = answer = ""
    power = _two_digits(alone)
    if with_verdict:
        published, power = _published(claim, scale), f"{power} ({_two_digits(first)})"
        answer = verdict(claim, x.difference, x.p, scale, len(of.pairs))
    return (of.models, figure, theirs, ours, published, x.difference, answer, "" if x.p is None else f"{x.p:.4f}",
            len(of.pairs), left_out, power)


def _two_digits(value: float) -> str:
    return f"{float(f'{value:.2g}'):g}"


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
    lines = tuple((x.of.claim.name, *_line(x, True)) for x in primary(rows, study))
    return Grid(title="", caption="", columns=("claim", *COLUMNS), rows=lines)


def claim_table(rows: Sequence[Row], study: Study, claim: Claim) -> Grid:
    """One claim: its primary comparisons, its further measures, and each cell by itself. A row that would say again
    what another says is left out, but counts in the correction."""
    lines = [_line(x, True) for x in primary(rows, study) if x.of.claim.name == claim.name]
    rows = [*rows, *contrasts(rows, study)]
    whole = {x.models: x.variants for group in claim.groups.items() if (x := complete(rows, claim, *group))}
    for against in dict.fromkeys((claim.against, "last")):
        lines += _secondary(rows, dataclasses.replace(claim, against=against), whole)
    if claim.competent:
        unable = {name for name, of in claim.groups.items() if compared(rows, claim, name, of).left_out["unable"]}
        of_all = _secondary(rows, dataclasses.replace(claim, competent=False), claim.groups, ", able or not")
        lines += [line for line in of_all if line[0] in unable]
    for figure, against in claim.secondary:
        lines += _secondary(rows, dataclasses.replace(claim, figure=figure, against=against), claim.groups)
    if claim.figure == "edges" and claim.scale is None:
        lines += [line for group in claim.groups.items() if (line := at_equal_margin(rows, claim, *group))]
    cells = dict.fromkeys(row["variant"] for row in rows if re.fullmatch(claim.cells, row["variant"]))
    of_cells = _secondary(rows, claim, {variant: (variant,) for variant in cells})
    alone = {*claim.groups.values(), *whole.values()}  # those of one variant are there already
    lines += [line for line in of_cells if (line[0],) not in alone]
    return Grid(title=f"{claim.name}: {claim.says}", caption="", columns=COLUMNS, rows=tuple(lines))


def _secondary(rows: Sequence[Row], claim: Claim, groups: Mapping[str, Sequence[str]], note: str = ""
               ) -> list[tuple[Any, ...]]:
    some = [compared(rows, claim, models, variants) for models, variants in groups.items()]
    return [_line(x, False, note) for x in tested([x for x in some if len(x.pairs) >= LEAST_PAIRS])]


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
    return (models, "edges at equal logit difference", "", "", "", interval, "", "", len(seeds), "", "")


WITHIN = {"answers": FRACTION, "N2G F1": FRACTION, "accuracy": FRACTION, "capacity": FRACTION,
          "capacity of important": FRACTION, "capacity of others": FRACTION, "L0": COUNT, "L0 extrapolated": COUNT,
          "minutes": COUNT, "edges": COUNT, "edges tau 0.1": COUNT, "edges tau 0.01": COUNT, "edges by masks": COUNT,
          "CMD": COUNT}
"""Ranges that intervals of means may not leave."""


def cells(rows: Sequence[Row], figures: Sequence[str]) -> Grid:
    """Every cell: means over seeds with Student's intervals. Beside the share of prompts that models answer stands how
    many of them do the task."""
    columns = [x for figure in figures for x in ((figure, "do the task") if figure == "answers" else (figure,))]
    out = []
    for name in dict.fromkeys(row["variant"] for row in rows):
        of = [row["run"] for row in rows if row["variant"] == name]
        line = []
        for figure in columns:
            values = [x[figure] for x in of if x.get(figure) is not None]
            if figure == "do the task":
                line.append(sum(x["answers"] is not None and x["answers"] >= COMPETENT for x in of))
            else:
                line.append(stats.student(values, within=WITHIN.get(figure, UNBOUNDED)) if values else "")
        out.append((name, len(of), *line))
    return Grid(title="", caption="", columns=("runs", "seeds", *columns), rows=tuple(out))


def all_tables(rows: Sequence[Row], study: Study) -> dict[str, Grid]:
    """Tables by name: ``summary``, one of each claim, those of every cell, and ``second look`` where there is one."""
    first = [row for row in rows if study.first_look is None or row["seed"] < study.first_look]
    of_claims = {claim.name: claim_table(first, study, claim) for claim in study.claims}
    found = {"summary": summary(first, study)} | of_claims if study.claims else {}
    if more := second_look(rows, study):
        found["second look"] = summary(more, study)
    return found | {name: cells(rows, figures) for name, figures in study.shown.items()}

"""What docs/claims.md registers: claims, the figures they are read from, the runs they are of."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from jaxablate.errors import ConfigError
from jaxablate.types import STREAMS, Stream

PAPER_KS = (1, 2, 4, 8)
"""The published numbers of winners."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Claim:
    """A claim of docs/claims.md, by the figure that it is read from."""

    name: str
    says: str
    figure: str
    published: float
    """Relative difference from the baseline, or difference where it is `absolute`; of a claim without a figure, twice
    what the docs call too little to count."""
    groups: Mapping[str, tuple[str, ...]]
    """Variants that one primary comparison is the mean over."""
    against: Literal["equal", "last"] = "equal"
    best_epoch: bool = False
    """Whether what is called last is the best epoch."""
    absolute: bool = False
    has_figure: bool = True
    """Whether the paper says how much."""
    kind: Literal["effect", "at most", "at least"] = "effect"
    """effect: the difference is to have the published sign; else it is to be on one side of the published size."""
    level: float = 0.05
    """Below which a corrected p counts; half of it where seeds are added after a look."""
    competent: bool = False
    """Only of models that do the task."""
    scale: str | None = None
    """The figure that the published effect is relative to; None for the reference's own."""
    secondary: tuple[tuple[str, Literal["equal", "last"]], ...] = ()
    """Further figures, and what they are against."""
    cells: str = "(local|global|both)-k.*"
    """A regular expression of the variants that are shown one by one."""


def _gated(*ks: int) -> dict[str, tuple[str, ...]]:
    return {scores: tuple(f"{scores}-k{k}" for k in ks) for scores in ("local", "global")}


def _first_paper(letter: str, groups: Mapping[str, tuple[str, ...]], level: float = 0.05) -> tuple[Claim, ...]:
    """The first paper's claims on one corpus."""
    claims = (
        Claim(name=f"{letter}1", says="circuits are smaller", figure="edges", published=41.9 / 79 - 1, competent=True,
              groups=groups, secondary=(("edges", "last"), *((x, "equal") for x in (
                  "edges tau 0.1", "edges tau 0.01", "edges, other orders", "CPR", "CMD", "edges by masks")))),
        Claim(name=f"{letter}2", says="features are more concentrated", figure="L0", published=4.926 / 7.22 - 1,
              groups=groups, secondary=(("L0", "last"), ("CE score", "equal"))),
        Claim(name=f"{letter}3", says="neurons are more specialised", figure="bits above random", published=0.2,
              has_figure=False, groups=groups, secondary=(("bits above random", "last"), *((x, "equal") for x in (
                  "bits above shuffled", "N2G F1", "channel bits above random")))),
        Claim(name=f"{letter}4", says="weights are not sparser", figure="mean |w|", published=0.706 / 0.44 - 1,
              against="last", groups=groups, secondary=(("mean |w|", "equal"), ("kurtosis", "last"),
                                                        ("kurtosis", "equal"))),
        Claim(name=f"{letter}5", says="the cost is small", figure="loss", published=math.log(6.629 / 5.73),
              against="last", absolute=True, kind="at most", groups=groups),
    )
    return tuple(dataclasses.replace(claim, level=level) for claim in claims)


def _sparse(claims: Sequence[Claim], letter: str, groups: Mapping[str, tuple[str, ...]]) -> Iterator[Claim]:
    """Claims 1 to 3 under another letter, of weight-sparse models, for which no effect is published: a tenth of the
    baseline's figure counts."""
    for claim in claims[:3]:
        yield dataclasses.replace(claim, name=f"{letter}{claim.name[1:]}", groups=groups, cells=".*sparse-.*",
                                  published=math.copysign(0.2, claim.published), has_figure=False, level=0.05)


LOCAL_GLOBAL = {f"local-global-k{k}": (f"local-k{k}", f"global-k{k}") for k in (*PAPER_KS, 16)}
"""What local scores change, beside what global ones change."""
TWO_LOOKS = 0.025
"""Level of each of two looks at the embedded corpus."""
E6 = Claim(name="E6", says="local scores make smaller circuits than global ones", figure="edges", competent=True,
           level=TWO_LOOKS, published=39.0 / 44.8 - 1, scale="edges of baseline", cells="local-global-k.*",
           groups={"local against global": tuple(f"local-global-k{k}" for k in PAPER_KS)})


def _second_paper(name: str, says: str, figure: str, lambdas: str, published: float = 0.04, **options: Any) -> Claim:
    """A claim of the second paper: lambdas (importance-interaction) against none, in a difference, not a ratio."""
    return Claim(name=name, says=says, figure=figure, published=published, absolute=True, has_figure=False, cells=".*",
                 against="last", best_epoch=True,
                 groups={f"({lambdas.replace('-', ', ')})": (f"lambdas-{lambdas}",)}, **options)


SAFR = (
    _second_paper("S1", "accuracy does not suffer", "accuracy", "1-1", -0.01, kind="at least"),
    _second_paper("S2", "important tokens get neurons of their own", "importance part", "1-0"),
    _second_paper("S3", "important tokens are given more", "capacity of important", "1-0",
                  secondary=(("capacity", "last"), ("capacity of others", "last"))),
    _second_paper("S4", "correlated tokens share neurons", "interaction part", "0-1"),
    _second_paper("S5", "both at once", "SRS", "1-1",
                  secondary=(("importance part", "last"), ("interaction part", "last"))),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """What one sweep's runs are for."""

    baseline: str = "baseline"
    suites: frozenset[str] = frozenset({"perplexity", "circuits", "neurons"})
    """A run that has them counts as finished; ``measure`` adds what it lacks of others."""
    circuit_streams: tuple[Stream, ...] = STREAMS
    """Streams whose circuits ``measure`` searches."""
    claims: tuple[Claim, ...] = ()
    contrasts: Mapping[str, tuple[str, str]] = dataclasses.field(default_factory=dict)
    """Variants that are no runs: what the first of two changes of the baseline, beside what the second does."""
    first_look: int | None = None
    """Seeds, from 0 on, that the claims' tables are of; with further ones there is a summary of a second look."""
    shown: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=lambda: {
        "training": ("loss", "loss ablated", "mean |w|", "kurtosis", "leaked nats", "minutes"),
        "circuits": ("answers", "edges", "edges tau 0.1", "edges tau 0.01", "edges by masks", "CPR", "CMD"),
        "features": ("L0", "L0 extrapolated", "CE score", "bits above random", "bits above shuffled", "N2G F1")})
    """Tables of every cell, and their figures; minutes are those of training."""


def _safr(claims: tuple[Claim, ...] = ()) -> Study:
    return Study(baseline="lambdas-0-0", suites=frozenset({"classification", "superposition"}), claims=claims, shown={
        "cells": ("accuracy", "SRS", "importance part", "interaction part", "capacity", "capacity of important",
                  "capacity of others", "minutes")})


_EMBEDDED = _first_paper("E", _gated(*PAPER_KS), TWO_LOOKS)
_LONG = _first_paper("L", _gated(8))[:3]
STUDIES = {
    "embedded": Study(first_look=5, contrasts=LOCAL_GLOBAL, claims=(*_EMBEDDED, E6, *_sparse(_EMBEDDED, "W", {
        "weight-sparse": tuple(f"sparse-{part}" for part in (0.5, 0.2, 0.1, 0.05))}))),
    "long": Study(claims=(*_LONG, *_sparse(_LONG, "V", {
        "half of the weights": ("sparse-0.5",), "a fifth": ("sparse-0.2",)}))),
    "tinystories": Study(suites=frozenset({"perplexity", "neurons"}), circuit_streams=("clean",), claims=_first_paper(
        "T", {"gated": ("local-k8", "local-k2", "global-k8")})),
    "sst2": _safr(SAFR),
    "imdb": _safr(),
    "recipes": Study(suites=frozenset({"perplexity", "leakage"}), shown={
        "cells": ("loss", "loss ablated", "live neurons", "live channels", "leaked nats", "minutes")}),
}
"""Studies by the name of the sweep's folder, without ``claims_``."""


def study_of(folder: Path) -> tuple[str, Study]:
    """The name of a folder's study, and the study."""
    name = folder.resolve().name.removeprefix("claims_")
    if name not in STUDIES:
        raise ConfigError(f"{folder} is no folder of a study; its name must be one of {', '.join(STUDIES)}, with or "
                          "without claims_ before it")
    return name, STUDIES[name]

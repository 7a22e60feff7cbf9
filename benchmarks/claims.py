"""The papers' claims: measures what no suite does of a sweep's runs, and makes the tables of docs/claims.md.

    jaxablate sweep claims_embedded --workdir runs/claims_embedded --jobs 2
    python -m benchmarks.claims measure --folder runs/claims_embedded --jobs 2
    python -m benchmarks.claims tables --folder runs/claims_embedded --write

``measure`` goes over the runs that are trained and scored. For each of them it finds the checkpoint of equal loss of
the baseline with the same seed, makes a working directory of that checkpoint alone (FOLDER/matched/seed-0/step-1500),
scores it, trains autoencoders on both and makes graphs of their neurons. What is there is not measured again, so it may
be stopped and started. Figures of each run come from its ``results.json`` and the index of its graphs; ``tables
--write`` keeps them in claims.json and the tables in the docs. `benchmarks.claims_data` writes what some of the sweeps
train on.
"""

import dataclasses
import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np
import tyro

from jaxablate import stats
from jaxablate.commands import score
from jaxablate.commands.match import clean_loss, measured_losses, nearest
from jaxablate.errors import ConfigError
from jaxablate.exits import guarded
from jaxablate.files import write, write_json
from jaxablate.provenance import provenance
from jaxablate.reports import results
from jaxablate.reports.neuron_records import INDEX
from jaxablate.reports.panels import Grid
from jaxablate.reports.results import Results
from jaxablate.reports.tables import markdown
from jaxablate.runs.checkpoint import FOLDER, saved_steps
from jaxablate.runs.run import open_run
from jaxablate.stats import Estimate
from jaxablate.suites import perplexity

RECORD = Path(__file__).with_suffix(".json")
DOCS = Path(__file__).parent.parent / "docs" / "claims.md"
BASELINE, MATCHED, LOSSES, GRAPHS = "baseline", "matched", "losses.json", "neurons/graphs"
SUITES = ("perplexity", "ioi", "weights", "circuits", "neurons")
"""What a baseline's checkpoint of equal loss is scored by."""
AUTOENCODERS = ("--l1", "0.5", "1", "2", "--seeds", "0", "1", "2", "--steps", "500", "--width", "8",
                "--tokens-per-step", "2048", "--buffer-batches", "32")
EXPLAINED = 0.9
"""Explained variance at which latents are counted."""
TOLERANCE, COMPETENT, LEAST_PAIRS = 0.02, 0.75, 3
"""Nats between a pair's losses; share of prompts answered by a model whose circuit counts; pairs of a comparison."""
POWER = 0.8
PAPER_KS = (1, 2, 4, 8)
"""The published numbers of winners."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Measure a sweep's runs for docs/claims.md, or make its tables."""

    what: Annotated[Literal["measure", "tables"], tyro.conf.Positional]
    """measure: find checkpoints of equal loss, score them, train autoencoders, make graphs. tables: print them."""
    folder: Path = Path("runs/claims_embedded")
    """Folder of the sweep."""
    jobs: int = 1
    """Processes at once."""
    write: bool = False
    """Keep the runs' figures in claims.json and the tables in docs/claims.md."""


# Measuring -----------------------------------------------------------------------------------------------------------


def finished(folder: Path, suites: Iterable[str]) -> list[tuple[str, int, Path, Results]]:
    """(variant, seed, working directory, results) of every run that has these suites, by name."""
    found = []
    for path in sorted(folder.glob(f"*/seed-*/{results.FILE_NAME}")):
        variant, seed = path.parent.parent.name, int(path.parent.name.removeprefix("seed-"))
        measured = results.read(path.parent)
        if variant != MATCHED and set(suites) <= measured.suites.keys():
            found.append((variant, seed, path.parent, measured))
    return found


def measure(options: Options) -> None:
    """Everything that is lacking, the pairs of equal loss first."""
    runs = finished(options.folder, study_of(options.folder)[1].suites)
    baselines = {seed: path for variant, seed, path, _ in runs if variant == BASELINE}
    workdirs = [path for variant, _, path, _ in runs if variant == BASELINE]
    for variant, seed, path, measured in runs:
        if variant != BASELINE and seed in baselines:
            step = matched_step(options.folder, seed, baselines[seed], loss_of(measured))
            workdirs += [alone(options.folder, seed, baselines[seed], step), path]
    workdirs = list(dict.fromkeys(workdirs))
    with ThreadPoolExecutor(options.jobs) as pool:
        for path, problem in zip(workdirs, pool.map(_complete, workdirs), strict=True):
            print(path, problem or "is measured", flush=True)


def loss_of(measured: Results) -> float:
    """Clean validation loss, nats a token."""
    return float(clean_loss(measured) or math.nan)


def matched_step(folder: Path, seed: int, baseline: Path, target: float) -> int:
    """Step of the baseline whose loss is nearest to the target; losses that were measured are kept."""
    path = folder / MATCHED / f"seed-{seed}" / LOSSES
    known = {int(step): loss for step, loss in json.loads(path.read_text()).items()} if path.exists() else {}

    def loss(step: int) -> float:
        if step not in known:
            run = open_run(baseline, str(step))
            record, _ = score.run_suite(perplexity.SUITE, run)
            known[step] = loss_of(score.with_record(score.empty_results(run), record))
            write_json(path, known)
        return known[step]

    return nearest(measured_losses(saved_steps(baseline / FOLDER), loss, target), target)


def alone(folder: Path, seed: int, baseline: Path, step: int) -> Path:
    """A working directory that has one checkpoint of a run and nothing else."""
    path = folder / MATCHED / f"seed-{seed}" / f"step-{step}"
    if not path.exists():
        making = path.with_name(f"{path.name}.partial")
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir(parents=True)
        for name in ("config.json", "run.json"):
            shutil.copy(baseline / name, making / name)
        for name in ("tokenizer", f"{FOLDER}/{step}"):
            shutil.copytree(baseline / name, making / name)
        making.rename(path)
    return path


def _complete(path: Path) -> str:
    """Scores a working directory, trains its autoencoders, makes its graphs, where that is lacking; what went wrong, if
    anything."""
    have = results.read(path).suites if (path / results.FILE_NAME).exists() else {}
    lines = []
    if not set(SUITES) <= have.keys():
        lines.append(("score", str(path), "--missing", "--suites", *SUITES))
    if "sae" not in have:
        lines.append(("sae", "--workdir", str(path), *AUTOENCODERS))
    if not (path / GRAPHS / INDEX).exists():
        lines.append(("neurons", "--workdir", str(path)))
    for line in lines:
        done = subprocess.run([sys.executable, "-m", "jaxablate", *line], capture_output=True, text=True, check=False)
        if done.returncode:
            return f"{line[0]} failed: {done.stderr.strip()[-300:]}"
    return ""


# Figures of a run ----------------------------------------------------------------------------------------------------

NAMED = {
    "answers": "task accuracy clean", "logit difference": "task logit diff clean",
    "bits above random": "token information neurons clean above random",
    "channel bits above random": "token information attention clean above random",
    "mean |w|": "mean |w| w/o embeddings", "live neurons": "live neurons", "live channels": "live attention",
    "leaked nats": "probe of gates", "accuracy": "accuracy", "SRS": "SRS", "importance part": "SRS importance part",
    "interaction part": "SRS interaction part", "capacity": "mean capacity",
    "capacity of important": "mean capacity of important tokens",
}
"""Figures of ``results.json``, by what tables here call them."""


def figures(path: Path, measured: Results) -> dict[str, float | None]:
    """What is compared, of one run; None where it does not have it."""
    named = {f.name: f.estimate.value for s in measured.suites.values() for f in s.figures}
    out: dict[str, Any] = {"step": measured.step} | {ours: named.get(name) for ours, name in NAMED.items()}
    if "perplexity" in measured.suites:
        out |= {"loss": loss_of(measured), "loss ablated": _ablated_loss(measured)}
        out |= _circuits(measured) | _above_shuffled(measured) | _autoencoders(measured) | _graphs(path)
        out |= _kurtosis(path)
    if out["importance part"] is not None and out["capacity of important"] is not None:
        out["capacity of others"] = out["capacity of important"] - out["importance part"]
    return out


def _ablated_loss(measured: Results) -> float | None:
    rows = measured.suites["perplexity"].details["losses"]
    return next((x["loss"]["value"] for x in rows if x["stream"] == "ablated" and x["end_of_text"]), None)


def _circuits(measured: Results) -> dict[str, float | None]:
    if "circuits" not in measured.suites:
        return {}
    stream = next(s for s in measured.suites["circuits"].details["streams"] if s["stream"] == "clean")
    counts = {(c["varied"], c["tau"]): float(np.mean(c["counts"])) for c in stream["counts"]}
    by_method = {r["method"]: r for r in stream["rankings"]}
    eap, pruned = by_method["EAP-IG"], by_method["edge pruning"]
    return {"edges": counts["prompts", 0.03], "edges tau 0.1": counts["prompts", 0.1],
            "edges tau 0.01": counts["prompts", 0.01], "edges, other orders": counts.get(("order", 0.03)),
            "CPR": eap["cpr"]["value"], "CMD": eap["cmd"]["value"],
            "edges by masks": _edges_for(pruned["percents"], pruned["faithfulness"], stream["edges"])}


def _edges_for(percents: Sequence[float], faithfulness: Sequence[float] | None, edges: int) -> float | None:
    """Edges from which on a ranking's circuits have 90 % of the logit difference, between the sizes that were tried.

    >>> _edges_for([1, 10, 100], [0.0, 0.8, 1.0], 200)
    110.0
    """
    if faithfulness is None:
        return None
    enough = len(faithfulness)
    while enough and faithfulness[enough - 1] >= 0.9:
        enough -= 1
    if enough in (0, len(faithfulness)):
        return None
    a, b = faithfulness[enough - 1], faithfulness[enough]
    p, q = percents[enough - 1], percents[enough]
    return edges * (p + (q - p) * (0.9 - a) / (b - a)) / 100


def _above_shuffled(measured: Results) -> dict[str, float | None]:
    if "neurons" not in measured.suites:
        return {}
    groups = measured.suites["neurons"].details["groups"]
    whole = next(g for g in groups if g["kind"] == "neurons clean" and g["layer"] is None)
    bits = next(m for m in whole["measures"] if m["measure"] == "information")
    return {"bits above shuffled": bits["mean"]["value"] - bits["shuffled"]}


def _autoencoders(measured: Results) -> dict[str, float | None]:
    record = measured.suites.get("sae")
    if record is None:
        return {}
    by_seed: dict[int, list[tuple[float, float, float]]] = {}
    for row in record.details["autoencoders"]:
        if row["control"] == "none":
            m = row["measures"]
            point = (m["explained_variance"]["value"], m["l0"]["value"], m["ce_score_zero"]["value"])
            by_seed.setdefault(row["seed"], []).append(point)
    found = [at_explained(points) for points in by_seed.values()]
    return {"L0": float(np.mean([l0 for l0, _, _ in found])), "CE score": float(np.mean([ce for _, ce, _ in found])),
            "L0 extrapolated": float(np.mean([outside for _, _, outside in found]))}


def at_explained(points: Iterable[tuple[float, float, float]]) -> tuple[float, float, bool]:
    """(L0, CE score, whether beyond the points) at `EXPLAINED`, of autoencoders' (explained variance, L0, CE score).

    log L0 and the CE score are straight lines in the explained variance between neighbours.

    >>> at_explained([(0.8, 4.0, 0.9), (1.0, 16.0, 1.0)])
    (8.0, 0.95, False)
    """
    points = sorted(points)
    above = min(max(sum(p[0] < EXPLAINED for p in points), 1), len(points) - 1)
    (a, l0, ce), (b, more, better) = points[above - 1], points[above]
    part = (EXPLAINED - a) / (b - a)
    return (round(math.exp(math.log(l0) + part * math.log(more / l0)), 9), ce + part * (better - ce),
            not points[0][0] <= EXPLAINED <= points[-1][0])


def _graphs(path: Path) -> dict[str, float | None]:
    index = path / GRAPHS / INDEX
    if not index.exists():
        return {}
    summary = json.loads(index.read_text())["summary"]
    return {"N2G F1": summary["f1"]["value"], "N2G gain": summary["gain"]["value"]}


def _kurtosis(path: Path) -> dict[str, float | None]:
    """Excess kurtosis of all weights in matrices, embeddings and score heads left out."""
    params = open_run(path).params
    parts = [np.asarray(x, np.float64).ravel() for at, x in jax.tree_util.tree_leaves_with_path(params)
             if x.ndim > 1 and not re.search("embed|scores", jax.tree_util.keystr(at))]
    w = np.concatenate(parts)
    w = w - w.mean()
    return {"kurtosis": float((w**4).mean() / (w**2).mean() ** 2 - 3)}


Row = Mapping[str, Any]
"""A run: its ``variant``, ``seed`` and figures (``run``), and those of its pair: the baseline's ``last`` checkpoint,
and its checkpoint of ``equal`` loss."""


def collect(folder: Path, study: "Study") -> list[Row]:
    """Every run's figures with those of its pair."""
    runs = finished(folder, study.suites)
    last = {seed: figures(path, measured) for variant, seed, path, measured in runs if variant == study.baseline}
    equal = {}
    for path in sorted(folder.glob(f"{MATCHED}/seed-*/step-*/{results.FILE_NAME}")):
        measured, seed = results.read(path.parent), int(path.parent.parent.name.removeprefix("seed-"))
        if set(SUITES) <= measured.suites.keys():
            equal[seed, measured.step] = figures(path.parent, measured)
    rows = []
    for variant, seed, path, measured in runs:
        is_baseline = variant == study.baseline
        row = {"variant": variant, "seed": seed, "run": last[seed] if is_baseline else figures(path, measured)}
        if not is_baseline and seed in last:
            near = [(abs(x["loss"] - row["run"]["loss"]), i, x) for i, ((of, _), x) in enumerate(equal.items())
                    if of == seed]
            row |= {"last": last[seed], "equal": min(near)[-1] if near else None}
        rows.append(row)
    return rows


# Comparisons ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Claim:
    """A claim of docs/claims.md, by the figure that it is read from."""

    name: str
    says: str
    figure: str
    published: float
    """Relative difference from the baseline, or difference where it is `absolute`; where none is published, twice what
    the docs call too little to count."""
    groups: Mapping[str, tuple[str, ...]]
    """Variants that one primary comparison is the mean over."""
    against: Literal["equal", "last"] = "equal"
    absolute: bool = False
    kind: Literal["effect", "at most", "at least"] = "effect"
    """effect: the difference is to have the published sign; else it is to be on one side of the published size."""
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


def _first_paper(letter: str, groups: Mapping[str, tuple[str, ...]]) -> tuple[Claim, ...]:
    """The first paper's claims on one corpus."""
    return (
        Claim(name=f"{letter}1", says="circuits are smaller", figure="edges", published=41.9 / 79 - 1, competent=True,
              groups=groups, secondary=tuple((x, "equal") for x in (
                  "edges tau 0.1", "edges tau 0.01", "edges, other orders", "CPR", "CMD", "edges by masks"))),
        Claim(name=f"{letter}2", says="features are more concentrated", figure="L0", published=4.926 / 7.22 - 1,
              groups=groups, secondary=(("CE score", "equal"),)),
        Claim(name=f"{letter}3", says="neurons are more specialised", figure="bits above random", published=0.2,
              groups=groups, secondary=tuple((x, "equal") for x in (
                  "bits above shuffled", "N2G F1", "channel bits above random"))),
        Claim(name=f"{letter}4", says="weights are not sparser", figure="mean |w|", published=0.706 / 0.44 - 1,
              against="last", groups=groups, secondary=(("mean |w|", "equal"), ("kurtosis", "last"),
                                                        ("kurtosis", "equal"))),
        Claim(name=f"{letter}5", says="the cost is small", figure="loss", published=math.log(6.629 / 5.73),
              against="last", absolute=True, kind="at most", groups=groups),
    )


def _sparse(claims: Sequence[Claim]) -> Iterator[Claim]:
    """The same of weight-sparse models, of which nothing is published: a tenth of the baseline's figure counts."""
    variants = tuple(f"sparse-{part}" for part in (0.5, 0.2, 0.1, 0.05))
    for claim in claims[:3]:
        yield dataclasses.replace(claim, name=claim.name.replace("E", "W"), groups={"weight-sparse": variants},
                                  cells=".*sparse-.*", published=math.copysign(0.2, claim.published))


LOCAL_GLOBAL = "local-global"
"""Variants that are no runs: what local scores change, beside what global ones change."""
E6 = Claim(name="E6", says="local scores make smaller circuits than global ones", figure="edges", competent=True,
           published=39.0 / 44.8 - 1, scale="edges of baseline", cells=f"{LOCAL_GLOBAL}-k.*",
           groups={"local against global": tuple(f"{LOCAL_GLOBAL}-k{k}" for k in PAPER_KS)})


def _second_paper(name: str, says: str, figure: str, lambdas: str, published: float = 0.04, **options: Any) -> Claim:
    """A claim of the second paper: lambdas (importance-interaction) against none, in a difference, not a ratio."""
    return Claim(name=name, says=says, figure=figure, published=published, absolute=True, against="last", cells=".*",
                 groups={f"({lambdas.replace('-', ', ')})": (f"lambdas-{lambdas}",)}, **options)


SAFR = (
    _second_paper("S1", "accuracy does not suffer", "accuracy", "1-1", -0.01, kind="at least"),
    _second_paper("S2", "important tokens get neurons of their own", "importance part", "1-0"),
    _second_paper("S3", "... by giving them more", "capacity of important", "1-0",
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
    """A run that has them counts as finished."""
    claims: tuple[Claim, ...] = ()
    shown: tuple[str, ...] = ("loss", "loss ablated", "answers", "edges", "edges tau 0.1", "edges tau 0.01", "CPR",
                              "CMD", "edges by masks", "L0", "L0 extrapolated", "CE score", "bits above random",
                              "N2G F1", "mean |w|", "kurtosis", "leaked nats")
    """Figures of the table of all cells."""


def _safr(claims: tuple[Claim, ...] = ()) -> Study:
    return Study(baseline="lambdas-0-0", suites=frozenset({"classification", "superposition"}), claims=claims, shown=(
        "accuracy", "SRS", "importance part", "interaction part", "capacity", "capacity of important",
        "capacity of others"))


_EMBEDDED = _first_paper("E", _gated(*PAPER_KS))
STUDIES = {
    "embedded": Study(claims=(*_EMBEDDED, E6, *_sparse(_EMBEDDED))),
    "tinystories": Study(claims=_first_paper("T", {"local": ("local-k8", "local-k2"), "global": ("global-k8",)})),
    "sst2": _safr(SAFR),
    "safr_search": _safr(),
    "imdb": _safr(),
    "recipes": Study(suites=frozenset({"perplexity", "leakage"}), shown=(
        "loss", "loss ablated", "live neurons", "live channels", "leaked nats")),
}
"""Studies by the name of the sweep's folder, without ``claims_``."""


def study_of(folder: Path) -> tuple[str, Study]:
    """The name of a folder's study, and the study."""
    name = folder.resolve().name.removeprefix("claims_")
    if name not in STUDIES:
        raise ConfigError(f"{folder} is no folder of a study; its name must be one of {', '.join(STUDIES)}, with or "
                          "without claims_ before it")
    return name, STUDIES[name]


def local_against_global(rows: Sequence[Row]) -> Iterator[Row]:
    """A row for each pair of local and global runs of equal k and seed: the figures are differences from each one's own
    baseline of equal loss."""
    there = {(row["variant"], row["seed"]): row for row in rows if row.get("equal") is not None}
    for (variant, seed), local in there.items():
        other = there.get((variant.replace("local", "global"), seed))
        if not re.fullmatch(r"local-k\d+", variant) or other is None:
            continue
        sides = []
        for row in (local, other):
            run, equal = row["run"], row["equal"]
            known = None not in (run["edges"], equal["edges"])
            sides.append({"edges": run["edges"] - equal["edges"] if known else None,
                          "edges of baseline": equal["edges"], "loss": abs(run["loss"] - equal["loss"]),
                          "answers": min(run["answers"], equal["answers"])})
        apart = max(side["loss"] for side in sides)
        yield {"variant": variant.replace("local", LOCAL_GLOBAL), "seed": seed, "run": sides[0] | {"loss": apart},
               "equal": sides[1] | {"loss": 0.0}}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compared:
    """What one test is of."""

    claim: Claim
    models: str
    pairs: Mapping[int, tuple[float, float, float]]
    """(the models' figure, the reference's, what effects are relative to) of each seed, means over the variants."""
    left_out: int
    """Pairs that do not count, by the rules of docs/claims.md."""

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
    left_out = 0
    for row in rows:
        if row["variant"] not in variants or row.get(claim.against) is None:
            continue
        ours, theirs = row["run"], row[claim.against]
        apart = claim.against == "equal" and abs(ours["loss"] - theirs["loss"]) > TOLERANCE
        unable = claim.competent and min(ours["answers"], theirs["answers"]) < COMPETENT
        values = ours.get(claim.figure), theirs.get(claim.figure), theirs.get(claim.scale or claim.figure)
        if apart or unable or None in values:
            left_out += 1
            continue
        by_seed.setdefault(row["seed"], []).append(values)
    whole = {seed: tuple(np.mean(x, axis=0).tolist()) for seed, x in sorted(by_seed.items())}
    return Compared(claim=claim, models=models, pairs=whole, left_out=left_out)


def smallest(differences: Sequence[float]) -> float:
    """The smallest true difference that a paired t-test of so many finds in 80 % of cases, two-sided at 5 %, with the
    standard deviation that these have.

    >>> round(smallest([-1.0, 0.0, 1.0, 0.0, 0.5]), 2)
    1.25
    """
    from scipy import special
    from scipy.stats import nct

    n = len(differences)
    critical = float(special.stdtrit(n - 1, 0.975))

    def power(effect: float) -> float:
        return float(1 - nct.cdf(critical, n - 1, effect) + nct.cdf(-critical, n - 1, effect))

    low, high = 0.0, 1.0
    while power(high) < POWER:  # far beyond what is needed nct.cdf is not a number
        low, high = high, 1.5 * high
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if power(middle) > POWER else (middle, high)
    return high * float(np.std(differences, ddof=1)) / math.sqrt(n)


def verdict(claim: Claim, difference: Estimate, p: float | None, scale: float) -> str:
    """By the rules of docs/claims.md; ``scale`` is what the published effect is relative to."""
    size = claim.published if claim.absolute else claim.published * scale
    value, (low, high) = float(difference), difference.interval or (-math.inf, math.inf)
    if claim.kind != "effect":
        below, above = ("holds", "does not hold") if claim.kind == "at most" else ("does not hold", "holds")
        return below if high < size else above if low > size else "undecided"
    significant = p is not None and p < 0.05
    if significant and value * size > 0:
        return "holds"
    beyond = low > size / 2 if size < 0 else high < size / 2
    return "does not hold" if beyond or significant else "undecided"


def corrected(tested: Sequence[Compared]) -> list[tuple[Compared, Estimate, float | None]]:
    """Each with its difference and its p after Holm's correction over all of them."""
    found = [(x, *x.test()) for x in tested]
    after = iter(stats.holm([p for _, _, p in found if p is not None]))
    return [(x, difference, None if p is None else next(after)) for x, difference, p in found]


def primary(rows: Sequence[Row], study: Study) -> list[tuple[Compared, Estimate, float | None]]:
    """The comparisons that have verdicts; each letter of claims' names is a family that is corrected together."""
    rows = [*rows, *local_against_global(rows)]
    out = []
    for letter in dict.fromkeys(claim.name[0] for claim in study.claims):
        some = [compared(rows, claim, models, variants) for claim in study.claims if claim.name[0] == letter
                for models, variants in claim.groups.items()]
        out += corrected([x for x in some if len(x.pairs) >= LEAST_PAIRS])
    return out


def _line(of: tuple[Compared, Estimate, float | None], with_verdict: bool) -> tuple[Any, ...]:
    x, difference, p = of
    ours, theirs, scale = (float(np.mean(side)) for side in zip(*x.pairs.values(), strict=True))
    return (x.models, x.claim.figure + (" (last step)" if x.claim.against == "last" else ""), theirs, ours, difference,
            len(x.pairs), x.left_out, smallest(x.differences), "" if p is None else f"{p:.4f}",
            verdict(x.claim, difference, p, scale) if with_verdict else "")


COLUMNS = ("models", "measure", "reference", "theirs", "difference", "seeds", "pairs left out", "80 % power from",
           "p, Holm", "verdict")


def summary(rows: Sequence[Row], study: Study) -> Grid:
    """All primary comparisons."""
    lines = tuple((x[0].claim.name, x[0].claim.says, *_line(x, True)) for x in primary(rows, study))
    return Grid(title="", caption="", columns=("claim", "says", *COLUMNS), rows=lines)


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
    return Grid(title="", caption="", columns=COLUMNS, rows=tuple(lines))


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
    return (models, "edges at equal logit difference", "", "", Estimate(value, value - half, value + half), len(seeds),
            edges.left_out, "", "", "")


def cells(rows: Sequence[Row], study: Study) -> Grid:
    """Every cell: means over seeds with Student's intervals."""
    out = []
    for name in dict.fromkeys(row["variant"] for row in rows):
        of = [row["run"] for row in rows if row["variant"] == name]
        values = [[x[figure] for x in of if x.get(figure) is not None] for figure in study.shown]
        out.append((name, len(of), *(stats.student(x) if x else "" for x in values)))
    return Grid(title="", caption="", columns=("runs", "seeds", *study.shown), rows=tuple(out))


def all_tables(rows: Sequence[Row], study: Study) -> dict[str, Grid]:
    """Tables by name: ``summary``, one of each claim, ``cells``."""
    of_claims = {claim.name: claim_table(rows, study, claim) for claim in study.claims}
    found = {"summary": summary(rows, study)} | of_claims if study.claims else {}
    return found | {"cells": cells(rows, study)}


def tables(options: Options) -> None:
    """Prints every table; with ``write`` keeps them."""
    name, study = study_of(options.folder)
    rows = collect(options.folder, study)
    if options.write:
        record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
        record[name] = {"runs": rows, "made": dataclasses.asdict(provenance(jax.devices()))}
        write_json(RECORD, record)
    text = DOCS.read_text()
    for table, grid in all_tables(rows, study).items():
        shown = markdown(grid)
        print(f"{table}\n\n{shown}\n")
        text = re.sub(rf"(<!-- {name} {table} -->\n).*?(<!-- end -->)",
                      lambda found, shown=shown: f"{found[1]}{shown}\n{found[2]}", text, flags=re.DOTALL)
    if options.write:
        write(DOCS, text)


if __name__ == "__main__":
    def main() -> None:
        options = tyro.cli(Options, config=(tyro.conf.FlagCreatePairsOff,))
        {"measure": measure, "tables": tables}[options.what](options)

    sys.exit(guarded(main, ends=True))

"""The papers' claims: measures what no suite does of a sweep's runs, and makes the tables of docs/claims.md.

    jaxablate sweep claims_embedded --workdir runs/claims_embedded --jobs 2
    python -m benchmarks.claims measure --folder runs/claims_embedded --jobs 2
    python -m benchmarks.claims tables --folder runs/claims_embedded --write
    python -m benchmarks.claims mix --folder data/claims --source data/TinyStories-train.txt

``measure`` goes over the runs that are trained and scored. For each gated one it finds the checkpoint of equal loss of
the baseline with the same seed, makes a working directory of that checkpoint alone (FOLDER/matched/seed-0/step-1500),
scores it, and trains autoencoders on both. What is there is not measured again, so it may be stopped and started.
Figures of each run come from its ``results.json``; ``tables --write`` keeps them in claims.json and the tables in the
docs. ``mix`` writes stories with short indirect-object stories between them, so that models of them can do the task.
"""

import dataclasses
import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np
import tyro

from jaxablate import stats
from jaxablate.circuits.ioi import ioi
from jaxablate.circuits.tasks import END_OF_TEXT
from jaxablate.commands import score
from jaxablate.commands.match import clean_loss, measured_losses, nearest
from jaxablate.exits import guarded
from jaxablate.files import write, write_json
from jaxablate.provenance import provenance
from jaxablate.reports import results
from jaxablate.reports.panels import Grid
from jaxablate.reports.results import Results
from jaxablate.reports.tables import markdown
from jaxablate.runs.checkpoint import FOLDER, saved_steps
from jaxablate.runs.run import open_run
from jaxablate.stats import Estimate
from jaxablate.suites import perplexity

RECORD = Path(__file__).with_suffix(".json")
DOCS = Path(__file__).parent.parent / "docs" / "claims.md"
BASELINE, MATCHED, LOSSES = "baseline", "matched", "losses.json"
SUITES = ("perplexity", "ioi", "weights", "circuits", "neurons")
"""What a baseline's checkpoint of equal loss is scored by."""
AUTOENCODERS = ("--l1", "0.5", "1", "2", "--seeds", "0", "1", "2", "--steps", "500", "--width", "8",
                "--tokens-per-step", "2048", "--buffer-batches", "32")
EXPLAINED = 0.9
"""Explained variance at which latents are counted."""
TOLERANCE, COMPETENT = 0.02, 0.75
"""Nats between a pair's losses; share of prompts answered by a model whose circuit counts."""
POWER = 0.8
APART, MIX_SEED = 2, 1_000_003
ENDINGS = ("was very happy.", "said thank you and smiled.", "laughed. It was a good day.", "gave a big hug.")
"""Stories between two prompts, the seed that prompts are drawn with, and how they go on."""
PAPER_KS = (1, 2, 4, 8)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Measure a sweep's runs for docs/claims.md, or make its tables."""

    what: Annotated[Literal["measure", "tables", "mix"], tyro.conf.Positional]
    """measure: find checkpoints of equal loss, score them, train autoencoders. tables: print them. mix: write stories
    to train on."""
    folder: Path = Path("runs/claims_embedded")
    """Folder of the sweep; of mixed stories."""
    source: Path = Path("data/TinyStories-train.txt")
    """Stories to mix."""
    jobs: int = 1
    """Processes at once."""
    autoencoders: bool = True
    """Train autoencoders, which takes longest."""
    write: bool = False
    """Keep the runs' figures in claims.json and the tables in docs/claims.md."""


# Mixing --------------------------------------------------------------------------------------------------------------


class _Words:
    """A tokenizer of whole words, for which every name is one token."""

    def __init__(self):
        self._ids: dict[str, int] = {}

    def encode(self, text: str) -> list[int]:
        """Numbers of the words, in the order in which they were first met."""
        return [self._ids.setdefault(word, len(self._ids)) for word in text.split()]


def mix(options: Options) -> None:
    """Writes FOLDER/train.txt: after every `APART` stories one that is an indirect-object prompt with its answer; and
    its first 19 twentieths and the rest as search-train.txt and search-valid.txt, to choose settings by.

    The prompts are those of `jaxablate.circuits.ioi` with another seed than any suite has, so templates are the same
    and names are mostly in pairs that no prompt has.
    """
    stories = options.source.read_text().split(END_OF_TEXT)
    prompts = iter(ioi(_Words(), MIX_SEED, len(stories) // APART + 1))
    parts = []
    for i, story in enumerate(stories):
        parts.append(story.strip())
        if i % APART == APART - 1:
            prompt = next(prompts)
            name = prompt.answers[0].strip()
            parts.append(f"{prompt.clean} {name}. {name} {ENDINGS[i // APART % len(ENDINGS)]}")
    parts, rest = [part for part in parts if part], len(parts) - len(parts) // 20
    for name, some in {"train": parts, "search-train": parts[:rest], "search-valid": parts[rest:]}.items():
        path = write(options.folder / f"{name}.txt", "".join(f"{part}\n{END_OF_TEXT}\n" for part in some))
        print(path, f"{len(some):,} stories")


# Measuring -----------------------------------------------------------------------------------------------------------


def finished(folder: Path) -> list[tuple[str, int, Path, Results]]:
    """(variant, seed, working directory, results) of every run that has circuits and neurons, by name."""
    found = []
    for path in sorted(folder.glob(f"*/seed-*/{results.FILE_NAME}")):
        variant, seed = path.parent.parent.name, int(path.parent.name.removeprefix("seed-"))
        measured = results.read(path.parent)
        if variant != MATCHED and {"perplexity", "circuits", "neurons"} <= measured.suites.keys():
            found.append((variant, seed, path.parent, measured))
    return found


def measure(options: Options) -> None:
    """Everything that is lacking, the pairs of equal loss first."""
    runs = finished(options.folder)
    baselines = {seed: path for variant, seed, path, _ in runs if variant == BASELINE}
    workdirs = [path for variant, _, path, _ in runs if variant == BASELINE]
    for variant, seed, path, measured in runs:
        if variant != BASELINE and seed in baselines:
            step = matched_step(options.folder, seed, baselines[seed], loss_of(measured))
            workdirs += [alone(options.folder, seed, baselines[seed], step), path]
    workdirs = list(dict.fromkeys(workdirs))
    with ThreadPoolExecutor(options.jobs) as pool:
        for path, problem in zip(workdirs, pool.map(lambda path: _complete(path, options), workdirs), strict=True):
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


def _complete(path: Path, options: Options) -> str:
    """Scores a working directory and trains its autoencoders where that is lacking; what went wrong, if anything."""
    have = results.read(path).suites if (path / results.FILE_NAME).exists() else {}
    lines = []
    if not set(SUITES) <= have.keys():
        lines.append(("score", str(path), "--missing", "--suites", *SUITES))
    if options.autoencoders and "sae" not in have:
        lines.append(("sae", "--workdir", str(path), *AUTOENCODERS))
    for line in lines:
        done = subprocess.run([sys.executable, "-m", "jaxablate", *line], capture_output=True, text=True, check=False)
        if done.returncode:
            return f"{line[0]} failed: {done.stderr.strip()[-300:]}"
    return ""


# Figures of a run ----------------------------------------------------------------------------------------------------


def figures(path: Path, measured: Results) -> dict[str, float | None]:
    """What is compared, of one run; None where it does not have it."""
    named = {f.name: f.estimate.value for s in measured.suites.values() for f in s.figures}
    out: dict[str, Any] = {"step": measured.step, "loss": loss_of(measured), "loss ablated": _ablated_loss(measured)}
    out |= {ours: named.get(name) for ours, name in {
        "answers": "task accuracy clean", "logit difference": "task logit diff clean",
        "bits above random": "token information neurons clean above random",
        "channel bits above random": "token information attention clean above random",
        "mean |w|": "mean |w| w/o embeddings", "live neurons": "live neurons", "leaked nats": "probe of gates"}.items()}
    out |= _circuits(measured) | _above_shuffled(measured) | _autoencoders(measured) | _kurtosis(path)
    return out


def _ablated_loss(measured: Results) -> float | None:
    rows = measured.suites["perplexity"].details["losses"]
    return next((x["loss"]["value"] for x in rows if x["stream"] == "ablated" and x["end_of_text"]), None)


def _circuits(measured: Results) -> dict[str, float | None]:
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
    groups = measured.suites["neurons"].details["groups"]
    whole = next(g for g in groups if g["kind"] == "neurons clean" and g["layer"] is None)
    bits = next(m for m in whole["measures"] if m["measure"] == "information")
    return {"bits above shuffled": bits["mean"]["value"] - bits["shuffled"]}


def _autoencoders(measured: Results) -> dict[str, float | None]:
    record = measured.suites.get("sae")
    if record is None:
        return {"L0": None, "CE score": None, "L0 extrapolated": None}
    by_seed: dict[int, list[tuple[float, float, float]]] = {}
    for row in record.details["autoencoders"]:
        if row["control"] == "none":
            m = row["measures"]
            point = (m["explained_variance"]["value"], m["l0"]["value"], m["score"]["value"])
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


def _kurtosis(path: Path) -> dict[str, float | None]:
    """Excess kurtosis of all weights in matrices, embeddings and score heads left out."""
    params = open_run(path).params
    parts = [np.asarray(x, np.float64).ravel() for at, x in jax.tree_util.tree_leaves_with_path(params)
             if x.ndim > 1 and not re.search("embed|scores", jax.tree_util.keystr(at))]
    w = np.concatenate(parts)
    w = w - w.mean()
    return {"kurtosis": float((w**4).mean() / (w**2).mean() ** 2 - 3)}


def collect(folder: Path) -> list[dict[str, Any]]:
    """Every run's figures with those of its pair: the baseline's last checkpoint, and its checkpoint of equal loss."""
    runs = finished(folder)
    last = {seed: figures(path, measured) for variant, seed, path, measured in runs if variant == BASELINE}
    equal = {}
    for path in sorted(folder.glob(f"{MATCHED}/seed-*/step-*/{results.FILE_NAME}")):
        measured, seed = results.read(path.parent), int(path.parent.parent.name.removeprefix("seed-"))
        if set(SUITES) <= measured.suites.keys():
            equal[seed, measured.step] = figures(path.parent, measured)
    rows = []
    for variant, seed, path, measured in runs:
        row = {"variant": variant, "seed": seed, "run": last[seed] if variant == BASELINE else figures(path, measured)}
        if variant != BASELINE and seed in last:
            near = [x for (of, _), x in equal.items() if of == seed]
            best = min(near, key=lambda x, loss=row["run"]["loss"]: abs(x["loss"] - loss), default=None)
            row |= {"last": last[seed], "equal": best}
        rows.append(row)
    return rows


# Comparisons ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Claim:
    """A primary comparison of docs/claims.md."""

    name: str
    says: str
    figure: str
    published: float
    """Relative difference from the baseline, or difference where it is `absolute`."""
    against: Literal["equal", "last"] = "equal"
    absolute: bool = False
    competent: bool = False
    """Only of models that do the task."""


CLAIMS = (
    Claim(name="E1", says="circuits are smaller", figure="edges", published=41.9 / 79 - 1, competent=True),
    Claim(name="E2", says="features are more concentrated", figure="L0", published=4.926 / 7.22 - 1),
    Claim(name="E3", says="neurons are more specialised", figure="bits above random", published=0.2),
    Claim(name="E4", says="weights are not sparser", figure="mean |w|", published=0.706 / 0.44 - 1, against="last"),
    Claim(name="E5", says="the cost is small", figure="loss", published=math.log(6.629 / 5.73), against="last",
          absolute=True),
)
"""The published effect of E3 is none: twice the tenth of the baseline below which it does not hold."""


def pairs(rows: Sequence[Mapping[str, Any]], variants: Sequence[str], claim: Claim
          ) -> tuple[dict[int, tuple[float, float]], int]:
    """(figure, the baseline's) by seed, means over the variants whose pair counts; and how many pairs were left out."""
    by_seed: dict[int, list[tuple[float, float]]] = {}
    left_out = 0
    for row in rows:
        if row["variant"] not in variants or row.get(claim.against) is None:
            continue
        ours, theirs = row["run"], row[claim.against]
        apart = claim.against == "equal" and abs(ours["loss"] - theirs["loss"]) > TOLERANCE
        unable = claim.competent and min(ours["answers"], theirs["answers"]) < COMPETENT
        if apart or unable or None in (ours[claim.figure], theirs[claim.figure]):
            left_out += 1
            continue
        by_seed.setdefault(row["seed"], []).append((ours[claim.figure], theirs[claim.figure]))
    whole = {seed: tuple(np.mean(x, axis=0).tolist()) for seed, x in sorted(by_seed.items())}
    return whole, left_out


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
    low, high = 0.0, 100.0
    for _ in range(60):
        middle = (low + high) / 2
        power = 1 - nct.cdf(critical, n - 1, middle) + nct.cdf(-critical, n - 1, middle)
        low, high = (low, middle) if power > POWER else (middle, high)
    return high * float(np.std(differences, ddof=1)) / math.sqrt(n)


def verdict(claim: Claim, difference: Estimate, p: float | None, baseline: float) -> str:
    """By the rules of docs/claims.md."""
    size = claim.published if claim.absolute else claim.published * baseline
    value, (low, high) = float(difference), difference.interval or (-math.inf, math.inf)
    if claim.name == "E5":
        return "holds" if high < size else "does not hold" if low > size else "undecided"
    significant = p is not None and p < 0.05
    if significant and value * size > 0:
        return "holds"
    beyond = low > size / 2 if size < 0 else high < size / 2
    return "does not hold" if beyond or significant else "undecided"


def comparison(rows: Sequence[Mapping[str, Any]], claims: Sequence[Claim] = CLAIMS) -> Grid:
    """The primary comparisons: each claim for every kind of model that there is, and local against global scores."""
    tested = [x for x in _compared(rows, claims) if len(x.by_seed) >= 3]
    results = [stats.t_test(*zip(*x.by_seed.values(), strict=True), paired=True) for x in tested]
    corrected = iter(stats.holm([p for _, p in results if p is not None]))
    out = []
    for x, (difference, p) in zip(tested, results, strict=True):
        ours, theirs = (float(np.mean(side)) for side in zip(*x.by_seed.values(), strict=True))
        after = None if p is None else next(corrected)
        at_least = smallest([a - b for a, b in x.by_seed.values()])
        out.append((x.claim.name, x.claim.says, f"{x.claim.figure}, {x.models}", theirs, ours, difference,
                    len(x.by_seed), x.left_out, at_least, "" if after is None else f"{after:.4f}",
                    verdict(x.claim, difference, after, x.baseline)))
    return Grid(title="", caption="", rows=tuple(out), columns=(
        "claim", "says", "measure, models", "reference", "theirs", "difference", "seeds", "pairs left out",
        "80 % power from", "p, Holm", "verdict"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Compared:
    """What one test is of."""

    claim: Claim
    models: str
    by_seed: Mapping[int, tuple[float, float]]
    """(the models' figure, the reference's) of each seed."""
    left_out: int
    baseline: float
    """The baseline's figure, which published effects are relative to."""


def _compared(rows: Sequence[Mapping[str, Any]], claims: Sequence[Claim]) -> Iterator[_Compared]:
    groups = {scores: [f"{scores}-k{k}" for k in PAPER_KS] for scores in ("local", "global")}
    groups["sparse"] = [row["variant"] for row in rows if row["variant"].startswith("sparse-")]
    for claim in claims:
        for models, variants in groups.items():
            by_seed, left_out = pairs(rows, variants, claim)
            # Weight-sparse models have no published effect: a tenth of the baseline's figure is what counts.
            of_models = claim if models != "sparse" else dataclasses.replace(
                claim, name=claim.name.replace("E", "W"), published=math.copysign(0.2, claim.published))
            if models != "sparse" or claim.name in ("E1", "E2", "E3"):
                yield _Compared(claim=of_models, models=models, by_seed=by_seed, left_out=left_out,
                                baseline=float(np.mean([b for _, b in by_seed.values()])) if by_seed else math.nan)
    claim = Claim(name="E6", says="local scores make smaller circuits than global ones", figure="edges",
                  published=39.0 / 44.8 - 1, competent=True)
    by_k = [[pairs(rows, [f"{scores}-k{k}"], claim) for scores in ("local", "global")] for k in PAPER_KS]
    found: dict[int, list[tuple[float, float]]] = {}
    for (local, _), (overall, _) in by_k:
        for seed in local.keys() & overall.keys():
            found.setdefault(seed, []).append((local[seed][0] - local[seed][1], overall[seed][0] - overall[seed][1]))
    yield _Compared(claim=claim, models="local against global",
                    by_seed={seed: tuple(np.mean(x, axis=0).tolist()) for seed, x in sorted(found.items())},
                    left_out=sum(left for of_k in by_k for _, left in of_k),
                    baseline=float(np.mean([b for of_k in by_k for by_seed, _ in of_k for _, b in by_seed.values()]
                                           or [math.nan])))


SHOWN = ("loss", "loss ablated", "answers", "edges", "edges tau 0.1", "edges tau 0.01", "CPR", "CMD", "edges by masks",
         "L0", "CE score", "bits above random", "mean |w|", "kurtosis", "leaked nats")


def cells(rows: Sequence[Mapping[str, Any]]) -> Grid:
    """Every cell: means over seeds with Student's intervals."""
    names = list(dict.fromkeys(row["variant"] for row in rows))
    out = []
    for name in names:
        of = [row["run"] for row in rows if row["variant"] == name]
        values = [[x[figure] for x in of if x[figure] is not None] for figure in SHOWN]
        out.append((name, len(of), *(stats.student(x) if x else "" for x in values)))
    return Grid(title="", caption="", columns=("runs", "seeds", *SHOWN), rows=tuple(out))


def differences(rows: Sequence[Mapping[str, Any]]) -> Grid:
    """Every gated cell minus its pairs of equal loss."""
    out = []
    for name in dict.fromkeys(row["variant"] for row in rows if row["variant"] != BASELINE):
        of = [row for row in rows if row["variant"] == name and row.get("equal") is not None
              and abs(row["run"]["loss"] - row["equal"]["loss"]) <= TOLERANCE]
        line: list[Any] = [name, len(of)]
        for figure in ("loss", *SHOWN[2:-1]):
            both = [(row["run"][figure], row["equal"][figure]) for row in of]
            both = [(a, b) for a, b in both if a is not None and b is not None]
            line.append(stats.student([a - b for a, b in both]) if both else "")
        out.append(tuple(line))
    return Grid(title="", caption="", columns=("runs", "pairs", "loss", *SHOWN[2:-1]), rows=tuple(out))


TABLES: Mapping[str, Callable[[Sequence[Mapping[str, Any]]], Grid]] = {
    "claims": comparison, "cells": cells, "differences": differences}


def tables(options: Options) -> None:
    """Prints every table; with ``write`` keeps them."""
    if options.write:
        record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
        made = dataclasses.asdict(provenance(jax.devices()))
        record[options.folder.name] = {"runs": collect(options.folder), "made": made}
        write_json(RECORD, record)
    rows = json.loads(RECORD.read_text())[options.folder.name]["runs"] if options.write else collect(options.folder)
    text = DOCS.read_text()
    for name, table in TABLES.items():
        shown = markdown(table(rows))
        print(f"{name}\n\n{shown}\n")
        text = re.sub(rf"(<!-- {options.folder.name} {name} -->\n).*?(<!-- end -->)",
                      lambda found, shown=shown: f"{found[1]}{shown}\n{found[2]}", text, flags=re.DOTALL)
    if options.write:
        write(DOCS, text)


if __name__ == "__main__":
    def main() -> None:
        options = tyro.cli(Options, config=(tyro.conf.FlagCreatePairsOff,))
        {"measure": measure, "tables": tables, "mix": mix}[options.what](options)

    sys.exit(guarded(main, ends=True))

"""The figures that are compared, of each run of a sweep and of its pair, out of ``results.json`` and graphs' index."""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.claims.studies import Study
from jaxablate.commands.match import clean_loss
from jaxablate.reports import results
from jaxablate.reports.neuron_records import INDEX
from jaxablate.reports.results import Results
from jaxablate.runs.run import open_run
from jaxablate.training.metrics import METRICS, read_metrics

MATCHED, GRAPHS = "matched", "neurons/graphs"
SUITES = ("perplexity", "weights", "circuits", "neurons")
"""What a baseline's checkpoint of equal loss is scored by."""
MATCH_K = 8
"""k of the rate at which neurons and channels fire, in all runs alike."""
EXPLAINED = 0.9
"""Explained variance at which latents are counted."""


def finished(folder: Path, suites: Iterable[str]) -> list[tuple[str, int, Path, Results]]:
    """(variant, seed, working directory, results) of every run that has these suites, by name."""
    found = []
    for path in sorted(folder.glob(f"*/seed-*/{results.FILE_NAME}")):
        variant, seed = path.parent.parent.name, int(path.parent.name.removeprefix("seed-"))
        measured = results.read(path.parent)
        if variant != MATCHED and set(suites) <= measured.suites.keys():
            found.append((variant, seed, path.parent, measured))
    return found


def loss_of(measured: Results) -> float:
    """Clean validation loss, nats a token."""
    return float(clean_loss(measured) or math.nan)


NAMED = {
    "answers": "task accuracy clean", "logit difference": "task logit diff clean",
    "bits above random": "token information neurons clean above random",
    "channel bits above random": "token information attention clean above random",
    "mean |w|": "mean |w| w/o embeddings", "live neurons": "live neurons", "live channels": "live attention",
    "leaked nats": "probe of gates", "accuracy": "accuracy", "SRS": "SRS", "importance part": "SRS importance part",
    "interaction part": "SRS interaction part", "capacity of important": "mean capacity of important tokens",
    "capacity of others": "mean capacity of other tokens",
}
"""Figures of ``results.json``, by what tables here call them."""


def figures(path: Path, measured: Results) -> dict[str, float | None]:
    """What is compared, of one run; None where it does not have it."""
    named = {f.name: f.estimate.value for s in measured.suites.values() for f in s.figures}
    out: dict[str, Any] = {"step": measured.step, "minutes": minutes(path)}
    out |= {ours: named.get(name) for ours, name in NAMED.items()}
    if "neurons" in measured.suites:
        alike = fires_alike(measured)
        out |= _above_shuffled(measured) if alike else {name: None for name in out if "bits above" in name}
    if "perplexity" in measured.suites:
        out |= {"loss": loss_of(measured), "loss ablated": _ablated_loss(measured)}
        out |= _circuits(measured) | _autoencoders(measured) | _graphs(path)
        out |= _kurtosis(path)
    if "superposition" in measured.suites:
        site = measured.suites["superposition"].details["sites"][0]
        out["capacity"] = site["represented"]["value"]  # over texts, as the two others are
    return out


def minutes(path: Path) -> float | None:
    """Minutes of training, at the median speed of the run's log; None without a log."""
    if not (path / METRICS).exists():
        return None
    rows = read_metrics(path, "train")
    train = json.loads((path / "config.json").read_text())["train"]
    units = train["batch_size"] * train.get("sequence_length", 1)
    speeds = [value for row in rows for name, value in row.items() if name.endswith("_per_second")]
    return rows[-1]["step"] * units / float(np.median(speeds)) / 60 if speeds else None


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


def fires_alike(measured: Results) -> bool:
    """Whether neurons and channels were measured at the rate of `MATCH_K`; a record that says nothing took the model's
    own k."""
    model = measured.config["model"]
    own = {"neurons": model["k_neurons"], "attention": model["k_attention"]}
    given = measured.suites["neurons"].options.get("match_k") or own
    return all(np.all(np.asarray(k) == MATCH_K) for k in given.values())


def _above_shuffled(measured: Results) -> dict[str, float | None]:
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
"""A run: its ``variant``, ``seed``, the ``date`` of its figures where that is known, the figures (``run``), and those
of its pair: the baseline's ``last`` checkpoint, and its checkpoint of ``equal`` loss."""


def collect(folder: Path, study: Study, recorded: Iterable[Row] = ()) -> list[Row]:
    """Every run's figures with those of its pair; a baseline that the folder does not have is the recorded one."""
    runs = finished(folder, study.suites)
    last = {row["seed"]: row["run"] for row in recorded if row["variant"] == study.baseline}
    last |= {seed: figures(path, measured) for variant, seed, path, measured in runs if variant == study.baseline}
    equal = {}
    for path in sorted(folder.glob(f"{MATCHED}/seed-*/step-*/{results.FILE_NAME}")):
        measured, seed = results.read(path.parent), int(path.parent.parent.name.removeprefix("seed-"))
        if set(SUITES) <= measured.suites.keys():
            equal[seed, measured.step] = figures(path.parent, measured)
    rows = []
    for variant, seed, path, measured in runs:
        is_baseline = variant == study.baseline
        date = max(record.provenance.date for record in measured.suites.values())
        row = {"variant": variant, "seed": seed, "date": date,
               "run": last[seed] if is_baseline else figures(path, measured)}
        if not is_baseline and seed in last:
            near = [(abs(x["loss"] - row["run"]["loss"]), i, x) for i, ((of, _), x) in enumerate(equal.items())
                    if of == seed]
            row |= {"last": last[seed], "equal": min(near)[-1] if near else None}
        rows.append(row)
    return rows


def joined(rows: Iterable[Row], recorded: Iterable[Row]) -> list[Row]:
    """Rows of a folder, and recorded ones of runs that it does not have, or has with fewer figures, by name.

    >>> [old, new] = [{"variant": "local-k8", "seed": 0, "run": {"loss": x}} for x in (0.6, 0.7)]
    >>> joined([new], [old]) == [new] and joined([new | {"run": {"loss": None}}], [old]) == [old]
    True
    """
    found = {(row["variant"], row["seed"]): row for row in recorded}
    for row in rows:
        name = row["variant"], row["seed"]
        if name not in found or _number_of_figures(row) >= _number_of_figures(found[name]):
            found[name] = row
    return [found[name] for name in sorted(found)]


def _number_of_figures(row: Row) -> int:
    return sum(value is not None for part in ("run", "last", "equal") for value in (row.get(part) or {}).values())

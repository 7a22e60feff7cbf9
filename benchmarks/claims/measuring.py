"""What a sweep's finished runs lack: checkpoints of equal loss, their scores, autoencoders, graphs of neurons."""

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from benchmarks.claims.runs import GRAPHS, MATCH_K, MATCHED, SUITES, finished, fires_alike, loss_of
from benchmarks.claims.studies import Study, study_of
from jaxablate.commands import score
from jaxablate.commands.match import measured_losses, nearest
from jaxablate.commands.sweep import cores
from jaxablate.files import write_json
from jaxablate.reports import results
from jaxablate.reports.neuron_records import INDEX
from jaxablate.runs.checkpoint import FOLDER, saved_steps
from jaxablate.runs.run import open_run
from jaxablate.suites import perplexity
from jaxablate.training import large_pages

LOSSES = "losses.json"
AUTOENCODERS = ("--l1", "0.5", "1", "2", "--seeds", "0", "1", "2", "--steps", "500", "--width", "8",
                "--tokens-per-step", "2048", "--buffer-batches", "32")


def measure(folder: Path, jobs: int) -> None:
    """Everything that is lacking, the pairs of equal loss first."""
    study = study_of(folder)[1]
    runs = finished(folder, study.suites)
    baselines = {seed: path for variant, seed, path, _ in runs if variant == study.baseline}
    workdirs = [path for variant, _, path, _ in runs if variant == study.baseline]
    for variant, seed, path, measured in runs:
        if variant != study.baseline and seed in baselines:
            step = matched_step(folder, seed, baselines[seed], loss_of(measured))
            workdirs += [alone(folder, seed, baselines[seed], step), path]
    workdirs = list(dict.fromkeys(workdirs))
    slots = iter(range(jobs))
    with ThreadPoolExecutor(jobs, initializer=lambda: _take_cores(next(slots), jobs)) as pool:
        for path, problem in zip(workdirs, pool.map(partial(_complete, study), workdirs), strict=True):
            print(path, problem or "is measured", flush=True)


def _take_cores(slot: int, jobs: int) -> None:
    """This thread's part of the cores, which the processes that it starts inherit."""
    if part := cores(slot, jobs):
        os.sched_setaffinity(0, part)


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


def _complete(study: Study, path: Path) -> str:
    """Scores a working directory, trains its autoencoders, makes its graphs, where that is lacking; what went wrong, if
    anything."""
    measured = results.read(path) if (path / results.FILE_NAME).exists() else None
    have = {} if measured is None else measured.suites
    lines = []
    if measured is None or not set(SUITES) <= have.keys():
        lines.append(("score", str(path), "--missing", "--match-k", str(MATCH_K), "--circuit-streams",
                      *study.circuit_streams, "--suites", *SUITES))
    if measured is not None and "neurons" in have and not fires_alike(measured):
        lines.append(("score", str(path), "--suites", "neurons", "--match-k", str(MATCH_K)))
    if "sae" not in have:
        lines.append(("sae", "--workdir", str(path), *AUTOENCODERS))
    if not (path / GRAPHS / INDEX).exists():
        lines.append(("neurons", "--workdir", str(path)))
    variables = {**os.environ, **large_pages.lacking(os.environ)}
    for line in lines:
        done = subprocess.run([sys.executable, "-m", "jaxablate", *line], capture_output=True, text=True, check=False,
                              env=variables)
        if done.returncode:
            return f"{line[0]} failed: {done.stderr.strip()[-300:]}"
    return ""

"""Scores a working directory: restores a checkpoint, runs the suites that fit it, keeps ``results.json``.

What it knows of training and data is in ``subjects.py``.
"""

import dataclasses
import difflib
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax

from jaxablate.config import RunConfig
from jaxablate.errors import CheckpointError, ConfigError, TooLittleDataError
from jaxablate.evaluation.autoencoders import suite as sae
from jaxablate.evaluation.circuits import suite as circuits
from jaxablate.evaluation.classifier import classification, explanations, importance, superposition
from jaxablate.evaluation.language import gates, ioi, leakage, perplexity, samples, weights
from jaxablate.evaluation.neurons import suite as neurons
from jaxablate.evaluation.settings import ScoreSettings
from jaxablate.evaluation.subjects import open_checkpoint
from jaxablate.evaluation.suite import ClassifierSubject, Subject, Suite
from jaxablate.provenance import provenance
from jaxablate.reports import results as files
from jaxablate.reports.html import write_report
from jaxablate.reports.results import Results, SuiteRecord
from jaxablate.training.workdir import read_config, require_x64

SUITES: tuple[Suite, ...] = (
    perplexity.SUITE, ioi.SUITE, gates.SUITE, weights.SUITE, samples.SUITE, circuits.SUITE,
    neurons.SUITE, leakage.SUITE, sae.SUITE,
    classification.SUITE, superposition.SUITE, importance.SUITE, explanations.SUITE,
)  # fmt: skip
"""Every suite, in the order of tables and reports. A new one needs its line here and nothing else."""


def score(settings: ScoreSettings, say: Callable[[str], None] = lambda line: None) -> Results:
    """Runs suites on a checkpoint and keeps their figures in ``results.json`` and ``report.html``.

    The file is written after each suite, so what is measured is kept whatever happens to a later one. Figures of other
    suites stay where they are of the same checkpoint.

    Args:
      settings: what to score.
      say: receives lines of progress.

    Returns:
      All results of the checkpoint, earlier ones included.

    Raises:
      ConfigError, CheckpointError, DataError: see the message.
    """
    settings.check()
    config = read_config(settings.workdir)
    require_x64(config)
    chosen = choose(settings.suites, config, settings.workdir, say)
    subject, results = open_checkpoint(settings, config)
    results = files.merge(_earlier(settings.workdir, say), results)
    for suite in chosen:
        say(f"{suite.name} ...")
        try:
            record = run_suite(suite, subject, settings)
        except TooLittleDataError as e:
            if settings.suites:
                raise
            say(f"{suite.name} is left out: {e}")
            continue
        results = with_record(results, record)
        files.write(settings.workdir, results)
    write_report(settings.workdir, results)
    return results


def choose(names: Sequence[str], config: RunConfig, workdir: Path, say: Callable[[str], None] = lambda line: None
           ) -> list[Suite]:
    """Suites by name, or all that fit.

    Raises:
      ConfigError: a name is unknown (the nearest is named), or a suite that was asked for does not fit, or lacks what
        it measures (says why).
    """
    known = {suite.name: suite for suite in SUITES}
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ConfigError(f"unknown suite {name!r}; {hint}There are {', '.join(known)}")
        reason = known[name].reason_against(config)
        if reason:
            raise ConfigError(f"suite {name!r} does not fit: {reason}; leave it out of --suites")
        if (missing := known[name].lacks(workdir)) is not None:
            raise ConfigError(f"suite {name!r} has nothing to measure: {missing}")
    if names:
        return [known[name] for name in dict.fromkeys(names)]
    chosen = []
    for suite in (suite for suite in SUITES if suite.task == config.task):
        reason = suite.unfit(config) or suite.lacks(workdir)
        if reason is None:
            chosen.append(suite)
        else:
            say(f"{suite.name} is left out: {reason}")
    return chosen


def run_suite(suite: Suite, subject: Subject | ClassifierSubject, settings: ScoreSettings) -> SuiteRecord:
    """One suite with its conditions and wall time."""
    conditions = provenance(jax.devices())
    start = time.perf_counter()
    result, options = suite.run(subject)
    seconds = time.perf_counter() - start
    if settings.max_batches is not None:
        options = {**options, "max_batches": settings.max_batches}
    return SuiteRecord(
        suite=suite.name, about=suite.about, provenance=conditions, options=options, wall_seconds=round(seconds, 3),
        figures=tuple(result.headline()), panels=tuple(result.panels()), details=dataclasses.asdict(result),
    )


def _earlier(workdir: Path, say: Callable[[str], None]) -> Results | None:
    """What ``results.json`` holds; a file that cannot be read is set aside, not lost."""
    if not (workdir / files.FILE_NAME).exists():
        return None
    try:
        return files.read(workdir)
    except CheckpointError as e:
        aside = workdir / f"{files.FILE_NAME}.unreadable"
        (workdir / files.FILE_NAME).replace(aside)
        say(f"{e}; it was renamed to {aside.name} and a new one is begun")
        return None


def with_record(results: Results, record: SuiteRecord) -> Results:
    """Results with one more record, suites in the order of `SUITES`."""
    records = {**results.suites, record.suite: record}
    order = [s.name for s in SUITES if s.name in records]
    order += [name for name in records if name not in order]
    return dataclasses.replace(results, suites={name: records[name] for name in order})

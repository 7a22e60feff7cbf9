"""``jaxablate score``: opens a checkpoint, runs the suites that fit it, keeps ``results.json`` and ``report.html``."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import jax
import tyro
from rich.console import Console

from jaxablate.commands import base
from jaxablate.config import RunConfig, to_dict
from jaxablate.errors import ConfigError, FileError, TooLittleDataError
from jaxablate.provenance import provenance
from jaxablate.reports import results as files
from jaxablate.reports.explorer import FILE_NAME, write_attachment, write_explorer
from jaxablate.reports.results import Results, SuiteRecord
from jaxablate.reports.tables import first_passages, score_table
from jaxablate.runs.run import Run, open_run
from jaxablate.runs.workdir import read_config
from jaxablate.suites import SUITES, Suite
from jaxablate.suites.suite import attachments

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreSettings(base.RunSettings):
    """Measure a checkpoint: results.json, report.html and a table."""

    suites: Annotated[tuple[str, ...], tyro.conf.arg(
        help=f"Suites to run, of {', '.join(SUITES.names())}; none given runs every one that fits the model.")] = ()
    max_batches: int | None = None
    """Read only so many batches of each split, for a quick look: of a language model's text the first ones, of labelled
    texts, whose batches come by length, some from the shortest to the longest."""

    def __post_init__(self):
        super().__post_init__()
        base.require_at_least(self, 1, "max_batches")

    def open(self) -> Run:
        """The checkpoint."""
        return open_run(self.workdir, self.checkpoint, batch_size=self.batch_size, max_batches=self.max_batches,
                        seed=self.seed)

    def run(self, console: Console) -> None:
        """Runs the suites and prints their figures."""
        results = score(self, partial(base.say, console))
        asked = {name: record for name, record in results.suites.items() if name in self.suites or not self.suites}
        shown = dataclasses.replace(results, suites=asked)
        console.print(score_table(shown, f"{self.workdir} at step {results.step:,}"))
        for passage in first_passages(shown):
            console.print(passage)
        base.say_paths(console, (self.workdir / files.FILE_NAME, self.workdir / FILE_NAME))


parse = partial(base.parse, ScoreSettings)


def score(settings: ScoreSettings | str | Path, say: Say = lambda line: None, **options: Any) -> Results:
    """Runs suites on a checkpoint and keeps their figures in ``results.json`` and ``report.html``.

    ``score("runs/mine", suites=("perplexity",))`` is ``jaxablate score --workdir runs/mine --suites perplexity``: the
    options beside the path of a working directory are fields of `ScoreSettings`. ``say`` receives lines of progress.

    The file is written after each suite, so what is measured is kept whatever happens to a later one. Figures of other
    suites stay where they are of the same checkpoint.

    Returns:
      All results of the checkpoint, earlier ones included.

    Raises:
      ConfigError, CheckpointError, DataError: see the message.
    """
    if not isinstance(settings, ScoreSettings):
        settings = ScoreSettings(workdir=Path(settings), **options)
    config = read_config(settings.workdir)
    chosen = choose(settings.suites, config, settings.workdir, say)
    run = settings.open()
    results = files.merge(_earlier(settings.workdir, say), empty_results(run))
    for suite in chosen:
        say(f"{suite.name} ...")
        try:
            record, found = run_suite(suite, run, settings.max_batches)
        except TooLittleDataError as e:
            if settings.suites:
                raise
            say(f"{suite.name} is left out: {e}")
            continue
        for what, reason in record.details.get("passed_over", ()):
            say(f"{suite.name}: {what} is passed over: {reason}")
        for name, attachment in found.items():
            write_attachment(settings.workdir, name, attachment)
        results = with_record(results, record)
        files.write(settings.workdir, results)
    write_explorer([settings.workdir], settings.workdir / FILE_NAME)
    return results


def choose(names: Sequence[str], config: RunConfig, workdir: Path, say: Say = lambda line: None) -> list[Suite]:
    """Suites by name, or all that fit.

    Raises:
      ConfigError: a name is unknown (the nearest is named), or a suite that was asked for does not fit, or lacks what
        it measures (says why).
    """
    for name in names:
        if (reason := SUITES[name].reason_against(config)) is not None:
            raise ConfigError(f"suite {name!r} does not fit: {reason}; leave it out of --suites")
        if (missing := SUITES[name].lacks(workdir)) is not None:
            raise ConfigError(f"suite {name!r} has nothing to measure: {missing}")
    if names:
        return [SUITES[name] for name in dict.fromkeys(names)]
    chosen = []
    for suite in (suite for suite in SUITES if suite.task == config.task):
        reason = suite.unfit(config) or suite.lacks(workdir)
        if reason is None:
            chosen.append(suite)
        else:
            say(f"{suite.name} is left out: {reason}")
    return chosen


def empty_results(run: Run) -> Results:
    """The results of a checkpoint before any suite."""
    data = run.splits["valid" if run.config.task == "language" else "test"]
    return Results(config=to_dict(run.config), seed=run.config.train.seed, step=run.step, params_digest=run.digest,
                   data_hash=data.data_hash, parameters=run.n_parameters)


def run_suite(suite: Suite, run: Run, max_batches: int | None = None) -> tuple[SuiteRecord, Mapping[str, Any]]:
    """One suite with its conditions and wall time, and what it attaches for the explorer."""
    conditions = provenance(jax.devices())
    start = time.perf_counter()
    result, options = suite.run(run)
    seconds = time.perf_counter() - start
    if max_batches is not None:
        options = {**options, "max_batches": max_batches}
    details = {name: value for name, value in dataclasses.asdict(result).items() if name != "attachments"}
    record = SuiteRecord(
        suite=suite.name, about=suite.about, provenance=conditions, options=options, wall_seconds=round(seconds, 3),
        figures=tuple(result.headline()), panels=tuple(result.panels()), details=details,
    )
    return record, attachments(result)


def with_record(results: Results, record: SuiteRecord) -> Results:
    """Results with one more record, suites in the order of `SUITES`."""
    records = {**results.suites, record.suite: record}
    order = [s.name for s in SUITES if s.name in records]
    order += [name for name in records if name not in order]
    return dataclasses.replace(results, suites={name: records[name] for name in order})


def _earlier(workdir: Path, say: Say) -> Results | None:
    """What ``results.json`` holds; a file that cannot be read is set aside, not lost."""
    if not (workdir / files.FILE_NAME).exists():
        return None
    try:
        return files.read(workdir)
    except FileError as e:
        aside = workdir / f"{files.FILE_NAME}.unreadable"
        (workdir / files.FILE_NAME).replace(aside)
        say(f"{e}; it was renamed to {aside.name} and a new one is begun")
        return None

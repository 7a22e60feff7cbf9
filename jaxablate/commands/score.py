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

from jaxablate.commands import base, usage
from jaxablate.config import RunConfig, to_dict
from jaxablate.errors import CheckpointError, ConfigError, FileError, JaxablateError, TooLittleDataError
from jaxablate.provenance import provenance
from jaxablate.reports import results as files
from jaxablate.reports.explorer import FILE_NAME, write_attachment, write_explorer
from jaxablate.reports.results import Results, SuiteRecord
from jaxablate.reports.tables import first_passages, score_table
from jaxablate.runs.run import Run, open_run
from jaxablate.runs.workdir import CONFIG, read_config
from jaxablate.suites import SUITES, Suite
from jaxablate.suites.suite import attachments
from jaxablate.types import STREAMS, Stream

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreSettings(base.RunSettings):
    """Measure a checkpoint: results.json, report.html and a table."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Working directories, one after another; other files that a ``runs/*`` matches are passed over."""
    workdir: Path | None = None
    """The same for one working directory."""
    missing: bool = False
    """Run only suites that results.json does not have of this checkpoint yet."""
    suites: Annotated[tuple[str, ...], tyro.conf.arg(metavar="SUITE")] = ()
    """Suites to run, of those below; none given runs every one that fits the model."""
    max_batches: int | None = None
    """Read only so many batches of each split, for a quick look: of a language model's text the first ones, of labelled
    texts, whose batches come by length, some from the shortest to the longest."""
    match_k: Annotated[int | None, tyro.conf.arg(metavar="K")] = None
    """Neurons and channels fire as often as in a model with K winners (suites neurons, units). Default: the model's own
    number of winners; where runs that are compared differ in it, give one K to all of them."""
    circuit_streams: tuple[Stream, ...] = STREAMS
    """Streams of a gated model that the suite circuits searches, which takes longer than all others."""

    def __post_init__(self):
        super().__post_init__()
        base.require_at_least(self, 1, "max_batches")
        base.require_at_least(self, 1, "match_k")
        if "clean" not in self.circuit_streams:
            raise ConfigError("circuit_streams must have clean, the one stream that every model has")
        if (self.workdir is None) == (not self.runs):
            raise ConfigError("give the working directories to score, by name or by --workdir: jaxablate score "
                              "runs/mine")

    @property
    def folder(self) -> Path:
        """The working directory, where there is one.

        Raises:
          ConfigError: there are several.
        """
        if len(self.runs) > 1:
            raise ConfigError(f"{len(self.runs)} working directories are given where one is scored")
        (folder,) = self.runs or (self.workdir,)
        assert folder is not None  # refused when made
        return folder

    def open(self) -> Run:
        """The checkpoint."""
        return open_run(self.folder, self.checkpoint, batch_size=self.batch_size, max_batches=self.max_batches,
                        seed=self.seed, match_k=self.match_k, circuit_streams=self.circuit_streams)

    def run(self, console: Console) -> None:
        """Scores one run after another and prints their figures; one that cannot be scored does not stop the others.

        Raises:
          CheckpointError: some of several runs could not be scored.
        """
        folders = self._folders(console)
        failed: list[Path] = []
        before = None
        for folder in folders:
            try:
                model = read_config(folder).model
                if before not in (None, model):
                    jax.clear_caches()  # a process can hold the compiled programs of a few models
                before = model
                dataclasses.replace(self, workdir=folder, runs=())._run(console)
            except JaxablateError as error:
                if len(folders) == 1:
                    raise
                failed.append(folder)
                console.print(f"{folder} is not scored: {error}", style="yellow", highlight=False, soft_wrap=True)
        if failed:
            raise CheckpointError(f"{len(failed)} of {len(folders)} runs could not be scored: "
                                  f"{', '.join(map(str, failed))}; the reasons are above")

    def _folders(self, console: Console) -> list[Path]:
        """The working directories to score.

        Raises:
          CheckpointError: a path does not exist, or none is a working directory.
        """
        if self.workdir is not None:
            return [self.workdir]
        folders = []
        for path in dict.fromkeys(self.runs):
            if not path.exists():
                raise CheckpointError(f"{path} does not exist; give working directories of training runs")
            if (path / CONFIG).exists():
                folders.append(path)
            else:
                base.say(console, f"{path} is no working directory and is passed over")
        if not folders:
            raise CheckpointError("none of the paths is a working directory; give those of training runs")
        return folders

    def _run(self, console: Console) -> None:
        """Runs the suites of one run and prints their figures."""
        results = score(self, partial(base.say, console))
        asked = {name: record for name, record in results.suites.items() if name in self.suites or not self.suites}
        shown = dataclasses.replace(results, suites=asked)
        console.print(score_table(shown, f"{self.folder} at step {results.step:,}"))
        for passage in first_passages(shown):
            console.print(passage)
        base.say_paths(console, (self.folder / files.FILE_NAME, self.folder / FILE_NAME))


parse = partial(base.parse, ScoreSettings, sections=lambda: {"suites": usage.parts(SUITES)})


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
    workdir = settings.folder
    config = read_config(workdir)
    chosen = choose(settings.suites, config, workdir, say)
    run = settings.open()
    earlier, results = _earlier(workdir, say), empty_results(run)
    if earlier is not None and not earlier.same_checkpoint(results):
        say(f"{files.FILE_NAME} was of another checkpoint, step {earlier.step}, and is begun anew for step {run.step}")
    results = files.merge(earlier, results)
    if settings.missing:
        chosen = [suite for suite in chosen if not is_scored(results, suite.name)]
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
            write_attachment(workdir, name, attachment)
        results = with_record(results, record)
        files.write(workdir, results)
    write_explorer([workdir], workdir / FILE_NAME)
    return results


def is_scored(results: Results, suite: str) -> bool:
    """Whether results have a suite, and not only a quick look at a few batches."""
    return suite in results.suites and results.suites[suite].options.get("max_batches") is None


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

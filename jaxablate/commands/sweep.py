"""``jaxablate sweep``: trains and scores every cell of a grid, each in a process of its own.

What a cell's working directory holds is all that is known of it: a cell that is trained and scored is passed over, one
that was stopped goes on. So the same command may be called again after whatever has ended it, and by several machines.

    DIR/local-k4/seed-0/       a working directory, with the output of its process in log.txt
    DIR/table.*, report.html   the comparison of all runs
"""

import contextlib
import dataclasses
import difflib
import fnmatch
import os
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import jax
import tyro
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from jaxablate import files
from jaxablate.commands import base, usage
from jaxablate.commands.score import ScoreSettings, is_scored, score
from jaxablate.commands.train import load_config
from jaxablate.config import RunConfig
from jaxablate.config.checks import require
from jaxablate.errors import ConfigError, JaxablateError, TrainingError
from jaxablate.exits import FOLLOWED, Terminated, follow_parent
from jaxablate.reports import compare as comparisons
from jaxablate.reports import results
from jaxablate.reports.compare import ScoredRun
from jaxablate.reports.differences import terminal_view
from jaxablate.reports.explorer import FILE_NAME as PAGE
from jaxablate.reports.explorer import write_explorer
from jaxablate.reports.panels import Grid
from jaxablate.reports.tables import terminal
from jaxablate.runs.checkpoint import FOLDER, damage, saved_steps, stored_progress
from jaxablate.runs.workdir import METRICS, check_workdir
from jaxablate.suites import SUITES
from jaxablate.sweep import Cell, Sweep
from jaxablate.training import large_pages
from jaxablate.training.loop import is_finished, steps_of, train
from jaxablate.training.progress import Seldom, duration

LOG = "log.txt"
MOST_JOBS = 1024
MOST_FIGURES = 16
"""Figures that the table on a terminal has; of more, those that each suite has first."""
_POLL_SECONDS, _LOOK_SECONDS = 0.25, 1.0
_GPUS = "CUDA_VISIBLE_DEVICES"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepSettings(base.Settings):
    """Train and score every run of a grid; what is done is passed over, what was stopped goes on."""

    file: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME|FILE")]
    """A shipped sweep by name (paper_table), a Python file with get_sweep(), or a TOML file."""
    workdir: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder of the runs, their table and their page; by default runs/NAME."""
    jobs: int = 1
    """Runs at once, each in a process of its own; GPUs are shared out among them."""
    array: Annotated[int | None, tyro.conf.arg(metavar="I")] = None
    """Do the I-th run alone, counted from 0, in this process: the index of a job array of SLURM or Kubernetes."""
    only: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME")] = ()
    """Runs by name, also by pattern ('local-*'), in place of all."""
    config: Annotated[str | None, tyro.conf.arg(metavar="NAME|FILE.py")] = None
    """Begin with this configuration in place of the sweep's."""
    set: Annotated[tuple[str, ...], tyro.conf.arg(metavar="SETTING=VALUE")] = ()
    """Change settings of all runs: --set train.steps=200 train.batch_size=4."""
    dry_run: bool = False
    """List the runs and how far each is; do nothing."""

    def __post_init__(self):
        super().__post_init__()
        base.require_at_least(self, 1, "jobs")
        base.require_at_least(self, 0, "array")
        require(self.jobs <= MOST_JOBS, f"jobs={self.jobs} must be at most {MOST_JOBS:,}")
        if self.array is not None and self.jobs > 1:
            raise ConfigError(f"--array {self.array} does one run and --jobs {self.jobs} several; give one of the two")

    @property
    def compiles(self) -> bool:
        return self.array is not None

    @property
    def folder(self) -> Path:
        """Where the runs go."""
        return self.workdir or Path("runs") / Path(self.file).stem

    def run(self, console: Console) -> None:
        """Lists the runs, does one, or does all and shows their table.

        Raises:
          ConfigError: the sweep or one of its runs is not right, or there is no such run.
          CheckpointError: a folder holds another run.
          TrainingError: some runs failed; the others are done, and in the table.
        """
        tasks = self.tasks()
        if self.dry_run:
            console.print(terminal(listing(tasks, self.folder)))
        elif self.array is not None:
            if self.array >= len(tasks):
                raise ConfigError(f"--array {self.array} must be below {len(tasks)}, the number of runs; choose "
                                  f"0..{len(tasks) - 1}")
            do(tasks[self.array], partial(base.say, console))
        else:
            self._all(tasks, console)

    def tasks(self) -> tuple["CellTask", ...]:
        """What is to do, checked: nothing has been written yet."""
        sweep, config = load_sweep(self.file, self.config, assignments(self.set))
        for name in sweep.suites:
            SUITES[name]
        tasks = tuple(CellTask(cell, self.folder / cell.name, sweep.suites) for cell in sweep.cells(config))
        for name in sweep.suites:
            reasons = [SUITES[name].reason_against(task.cell.config) for task in tasks]
            if None not in reasons:
                raise ConfigError(f"suite {name!r} fits no run of the sweep: {reasons[0]}; leave it out of suites")
        for task in tasks:
            check_workdir(task.workdir, task.cell.config)
        chosen = [task for task in tasks if not self.only or _matches(task.cell.name, self.only)]
        for pattern in self.only:
            if not any(_matches(task.cell.name, (pattern,)) for task in tasks):
                near = difflib.get_close_matches(pattern, [task.cell.name for task in tasks], n=1)
                hint = f"did you mean {near[0]!r}?" if near else "see --dry-run for their names"
                raise ConfigError(f"--only {pattern!r:.80} is no run of the sweep; {hint}")
        return tuple(chosen)

    def _all(self, tasks: Sequence["CellTask"], console: Console) -> None:
        line = ["sweep", self.file, "--workdir", str(self.folder), "--array", "0"]
        line += ["--config", self.config] if self.config is not None else []
        line += ["--set", *self.set] if self.set else []
        with base.terminable("stopped; the same command goes on"):
            failed = do_all(tasks, self.jobs, lambda task: [*line, "--only", task.cell.name], console)
        scored = [task for task in tasks if (task.workdir / results.FILE_NAME).exists()]
        if scored:
            _conclude([task.workdir for task in scored], self.folder, console)
        if failed:
            raise failure(failed, len(tasks))


parse = partial(base.parse, SweepSettings, sections=lambda: {"shipped sweeps": base.shipped_about("configs/sweeps"),
                                                             "suites": usage.parts(SUITES)})


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


# The file ------------------------------------------------------------------------------------------------------------


def load_sweep(path: str, config: str | None = None, settings: Mapping[str, Any] | None = None
               ) -> tuple[Sweep, RunConfig]:
    """A sweep by the name of a shipped one or from a file, and the configuration that it begins with.

    Args:
      path: name, Python file or TOML file.
      config: a configuration in place of the sweep's.
      settings: further settings of all runs.

    Raises:
      ConfigError: the file is missing or broken, or a field is not right; the message names the file.
    """
    found = base.find_file(path, base.shipped("configs/sweeps"), "sweep", "get_sweep")

    def checked(sweep: Any) -> Sweep:
        if not isinstance(sweep, Sweep):
            raise ConfigError(f"get_sweep() must return a jaxablate.sweep.Sweep, not a {type(sweep).__name__}")
        return sweep

    try:
        if found.suffix == ".toml":
            sweep = _from_toml(found)
        elif found.suffix == ".py":
            sweep = base.call_file(found, "get_sweep", checked, "sweep")
        else:
            raise ConfigError("it is neither Python nor TOML; its name must end in .py or .toml")
        sweep = dataclasses.replace(sweep, config=config or sweep.config,
                                    settings={**sweep.settings, **(settings or {})})
    except ConfigError as error:
        raise ConfigError(str(error) if str(found) in str(error) else f"sweep {found}: {error}") from error
    if not isinstance(sweep.config, str):
        return sweep, sweep.config
    shipped = base.shipped("configs")
    beside = sweep.config if config or sweep.config in shipped else found.parent / sweep.config
    return sweep, load_config(beside, "--config" if config else f"sweep {found}: config")


def _from_toml(path: Path) -> Sweep:
    try:
        values = tomllib.loads(files.read_bytes(path, most=1 << 20).decode())
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"it cannot be read as TOML ({reason}); mend it") from error
    names = [field.name for field in dataclasses.fields(Sweep)]
    for name in values:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(names)}"
            raise ConfigError(f"it has the unknown key {name!r:.80}; {hint}")
    if "config" not in values:
        raise ConfigError("it has no config; name the configuration that all runs begin with")
    return Sweep(**values)


def assignments(texts: Sequence[str]) -> dict[str, Any]:
    """``train.steps=200`` as a setting and its value: a number, true, false, null, a list, or else a word."""
    out = {}
    for text in texts:
        name, is_one, value = text.partition("=")
        if not is_one:
            raise ConfigError(f"--set {text!r:.80} is no SETTING=VALUE; write for example train.steps=200")
        try:
            parsed = tomllib.loads(f"value = {value}")
        except (ValueError, RecursionError):
            parsed = {}
        out[name.strip().replace("-", "_")] = parsed["value"] if set(parsed) == {"value"} else (
            None if value == "null" else value)
    return out


# One cell ------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class CellTask:
    """A cell, where it lies, and the suites that the sweep asks for (none given: all that fit)."""

    cell: Cell
    workdir: Path
    asked: tuple[str, ...]

    @property
    def suites(self) -> tuple[str, ...]:
        """Suites that score this cell."""
        named = [SUITES[name] for name in self.asked] or [s for s in SUITES if s.lacks(self.workdir) is None]
        return tuple(suite.name for suite in named if suite.reason_against(self.cell.config) is None)

    def unscored(self) -> tuple[str, ...]:
        """Those of them whose figures are not there of the newest checkpoint (of a classifier: of one that is kept)."""
        if not (self.workdir / results.FILE_NAME).exists():
            return self.suites
        try:
            found = results.read(self.workdir)
        except JaxablateError:  # `score` sets it aside
            return self.suites
        steps = saved_steps(self.workdir / FOLDER)
        if found.step not in (steps[-1:] if self.cell.config.task == "language" else steps):
            return self.suites
        return tuple(name for name in self.suites if not is_scored(found, name))

    def has_page(self) -> bool:
        """Whether the page of the run is there and no older than its results."""
        page, found = self.workdir / PAGE, self.workdir / results.FILE_NAME
        return page.exists() and page.stat().st_mtime_ns >= found.stat().st_mtime_ns

    def state(self) -> tuple[bool, str]:
        """Whether nothing is left to do, and how far the cell is in words."""
        if is_finished(self.workdir, self.cell.config):
            left = self.unscored()
            if left:
                return False, f"trained, {len(left)} of {len(self.suites)} suites to score"
            return (True, "done") if self.has_page() else (False, "scored, its page to write")
        stored = stored_progress(self.workdir)
        if stored is None:
            return False, "not begun" if not (self.workdir / METRICS).exists() else "begun"
        steps = steps_of(self.cell.config, stored[1].get("facts", {}))
        return False, f"step {stored[0]:,}" + (f" of {steps:,}" if steps else "")


def listing(tasks: Sequence[CellTask], folder: Path) -> Grid:
    """All cells with the index that ``--array`` takes and how far they are."""
    rows = tuple((str(i), task.cell.name, task.state()[1]) for i, task in enumerate(tasks))
    return Grid(title=f"{len(tasks)} runs in {folder}", caption="", columns=("index", "run", "state"), rows=rows)


def do(task: CellTask, say: base.Say) -> None:
    """Trains and scores one cell, as far as that is not done; another process that is at it is awaited first, and the
    one that started this one, where it is a sweep, is followed in its end.

    Raises:
      SystemExit: a signal has stopped it; what was reached is saved.
    """
    follow_parent()
    config, workdir = task.cell.config, task.workdir
    if "float64" in (config.model.param_dtype, config.model.compute_dtype):
        jax.config.update("jax_enable_x64", True)
    with files.lock(workdir / ".sweep.lock", waiting=lambda: say(f"waiting for another process at {task.cell.name}")):
        stored = stored_progress(workdir)
        whole = stored is not None and damage(workdir / FOLDER / str(stored[0])) is None
        if not (whole and is_finished(workdir, config)) and train(config, workdir).signalled:
            raise SystemExit(143)
        if task.unscored() or not task.has_page():
            score(ScoreSettings(workdir=workdir, suites=task.suites if task.asked else (), missing=True), say)
    say(f"{task.cell.name} is done")


# All cells -----------------------------------------------------------------------------------------------------------


def do_all(tasks: Sequence[CellTask], jobs: int, line: Callable[[CellTask], Sequence[str]], console: Console
           ) -> list[tuple[CellTask, str]]:
    """Does every cell that is not done, ``jobs`` at once, and shows a line of each; returns those that failed, and why.

    ``line`` gives a cell's command line. A signal stops the cells, which save what they have, and is raised again when
    they have ended; a second one does not wait.
    """
    waiting = [task for task in tasks if not task.state()[0]]
    jobs = max(1, min(jobs, len(waiting)))
    if len(waiting) < len(tasks):
        base.say(console, f"{len(tasks) - len(waiting)} of {len(tasks)} runs are done already")
    failed: list[tuple[CellTask, str]] = []
    running: dict[int, Running] = {}
    board = Board(len(tasks), len(tasks) - len(waiting), jobs, console)
    try:
        with board.shown(running, waiting):
            while waiting or running:
                for slot in range(jobs):
                    if waiting and slot not in running:
                        task = waiting.pop(0)
                        log = task.workdir / LOG
                        before = log.stat().st_size if log.exists() else 0
                        process = start(line(task), log, environment(slot, jobs, os.environ), cores(slot, jobs))
                        running[slot] = Running(task, process, before)
                        board.begun(running[slot])
                time.sleep(_POLL_SECONDS)
                board.going()
                for slot, one in list(running.items()):
                    if one.process.poll() is None:
                        continue
                    one.process.stdin.close()
                    del running[slot]
                    reason = None if one.process.returncode == 0 else why(one)
                    board.ended(one, reason)
                    if reason is not None:
                        failed.append((one.task, reason))
    except (KeyboardInterrupt, Terminated):
        _stop(running.values(), console)
        raise
    return failed


def start(line: Sequence[str], log: Path, variables: Mapping[str, str],
          on_cores: Collection[int] = ()) -> subprocess.Popen[bytes]:
    """Starts ``jaxablate`` with a command line, its output added to a file, on some cores of the machine where they are
    given; it ends when this process does."""
    log.parent.mkdir(parents=True, exist_ok=True)
    variables = {**variables, **large_pages.lacking(variables), FOLLOWED: "yes"}
    with log.open("ab") as out:
        process = subprocess.Popen([sys.executable, "-m", "jaxablate", *line], stdin=subprocess.PIPE, stdout=out,
                                   stderr=subprocess.STDOUT, env=variables, start_new_session=True)
    if on_cores:
        with contextlib.suppress(OSError):  # it has ended already
            os.sched_setaffinity(process.pid, on_cores)
    return process


def cores(slot: int, jobs: int, usable: Collection[int] | None = None) -> list[int]:
    """Cores of the process in one of ``jobs`` slots: its part of those that this process may use; none where nothing is
    to be shared out, or there are fewer than jobs, or the system does not let a process choose.

    Left alone each process has a thread for every core of the machine, and they take the cores from one another.

    >>> cores(0, 2, range(5)), cores(1, 2, range(5)), cores(0, 1, range(5)), cores(0, 6, range(5))
    ([0, 1], [2, 3, 4], [], [])
    """
    if usable is None:
        usable = os.sched_getaffinity(0) if hasattr(os, "sched_setaffinity") else ()
    first, end = (i * len(usable) // jobs for i in (slot, slot + 1))
    return sorted(usable)[first:end] if jobs > 1 and jobs <= len(usable) else []


def environment(slot: int, jobs: int, variables: Mapping[str, str], gpus: Sequence[str] | None = None
                ) -> dict[str, str]:
    """Variables of the process in one of ``jobs`` slots: its part of the GPUs, or one that it has to share.

    >>> environment(1, 2, {}, ["0", "1", "2", "3"])
    {'CUDA_VISIBLE_DEVICES': '1,3'}
    >>> environment(2, 3, {}, ["0", "1"])
    {'CUDA_VISIBLE_DEVICES': '0', 'XLA_PYTHON_CLIENT_PREALLOCATE': 'false'}
    """
    if gpus is None:
        named = variables.get(_GPUS)
        found = Path("/proc/driver/nvidia/gpus")
        count = len(list(found.iterdir())) if found.is_dir() else 0
        gpus = [str(i) for i in range(count)] if named is None else [part for part in named.split(",") if part]
    if jobs == 1 or not gpus:
        return dict(variables)
    if jobs <= len(gpus):
        return {**variables, _GPUS: ",".join(gpus[slot::jobs])}
    shared = {"XLA_PYTHON_CLIENT_PREALLOCATE": variables.get("XLA_PYTHON_CLIENT_PREALLOCATE", "false")}
    return {**variables, _GPUS: gpus[slot % len(gpus)], **shared}


def failure(failed: Sequence[tuple[CellTask, str]], count: int) -> TrainingError:
    """The error that tells of the cells that failed, of so many."""
    reasons = "; ".join(f"{task.cell.name}: {reason}" for task, reason in failed[:3])
    more = f"; and {len(failed) - 3} more" if len(failed) > 3 else ""
    return TrainingError(f"{len(failed)} of {count} runs failed ({reasons}{more}); the same command tries them again, "
                         f"{LOG} of each says more")


def why(one: "Running") -> str:
    """Why a cell's process has failed, by the last lines that it has logged."""
    try:
        with (one.task.workdir / LOG).open("rb") as file:
            file.seek(max(one.logged_before, file.seek(0, os.SEEK_END) - 20_000))
            lines = file.read().decode(errors="replace").strip().splitlines()
    except OSError:
        lines = []
    errors = [line for line in lines if line.startswith("error: ")]
    code = one.process.returncode
    if code < 0:
        return f"ended by signal {-code}"
    return (errors or lines or [f"exit code {code}"])[-1].removeprefix("error: ")[:300]


def _stop(running: "Sequence[Running] | Any", console: Console) -> None:
    """Asks the cells to save and leave, and waits for them; another signal ends them at once."""
    left = list(running)
    if left:
        base.say(console, f"stopping: {len(left)} runs finish their step and save it; once more ends them at once")
    try:
        for one in left:
            one.process.terminate()
        for one in left:
            one.process.wait()
    except (KeyboardInterrupt, Terminated):
        for one in left:
            one.process.kill()
        raise


# What is shown -------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Running:
    """A cell whose process runs."""

    task: CellTask
    process: Any
    logged_before: int
    """Bytes that its log had when it began."""
    began: float = dataclasses.field(default_factory=time.monotonic)
    first: tuple[int, float] | None = None
    """The first step that was seen, and when: speed counts from there."""
    seldom: Seldom | None = None
    seen: str = ""
    """What it was doing when it was looked at last."""
    scored: tuple[int, str] = (0, "")
    """When the results that were looked at last were written, and what was seen of them."""

    def look(self) -> tuple[str, int | None, float | None]:
        """What the cell is doing, its step, and seconds that training is likely to take still."""
        config = self.task.cell.config
        last = files.last_jsonl(self.task.workdir / METRICS)
        stored = stored_progress(self.task.workdir)
        steps = steps_of(config, stored[1].get("facts", {}) if stored else {})
        if stored is not None and is_finished(self.task.workdir, config):
            return self._scoring(), None, None
        if last is None:
            return "starting", None, None
        step, now = last["step"], time.monotonic()
        self.first = self.first or (step, now)
        rate = (step - self.first[0]) / (now - self.first[1]) if now > self.first[1] else 0
        loss = next((f"  {short} {last[name]:.4f}" for name, short in (("loss_clean", "clean"), ("loss", "loss"))
                     if isinstance(last.get(name), float)), "")
        return (f"step {step:,}" + (f"/{steps:,}" if steps else "") + loss, step,
                (steps - step) / rate if steps and rate else None)

    def _scoring(self) -> str:
        path = self.task.workdir / results.FILE_NAME
        written = path.stat().st_mtime_ns if path.exists() else 1
        if written != self.scored[0]:  # they may be large
            suites = self.task.suites
            done = len(suites) - len(self.task.unscored())
            self.scored = written, f"scoring, {done} of {len(suites)} suites done"
        return self.scored[1]


class Board:
    """Shows how the cells get on: on a terminal a line for each that runs, elsewhere lines now and then.

    Args:
      count: cells of the sweep.
      done: of which so many are done.
      jobs: cells at once.
      console: where to draw.
    """

    def __init__(self, count: int, done: int, jobs: int, console: Console):
        self._count, self._done, self._jobs, self._console = count, done, jobs, console
        self._seconds: list[float] = []
        self._running: Mapping[int, Running] = {}
        self._waiting: Sequence[CellTask] = ()
        self._live = Live(console=console, transient=True, auto_refresh=False)
        self._looked = time.monotonic()

    @contextlib.contextmanager
    def shown(self, running: Mapping[int, Running], waiting: Sequence[CellTask]) -> Iterator[None]:
        """Draws while the block runs; the arguments are looked at again and again."""
        self._running, self._waiting = running, waiting
        if not self._console.is_terminal:
            yield
            return
        with self._live:
            yield

    def begun(self, one: Running) -> None:
        """Tells that a cell has begun."""
        if not self._console.is_terminal:
            self._say(f"{one.task.cell.name} begins; its output is in {one.task.workdir / LOG}")

    def going(self) -> None:
        """Shows how far the cells are, about once a second."""
        if time.monotonic() - self._looked < _LOOK_SECONDS:
            return
        self._looked = time.monotonic()
        if self._console.is_terminal:
            self._live.update(self._picture(), refresh=True)
            return
        for one in self._running.values():
            what, step, left = one.look()
            one.seldom = one.seldom or Seldom(steps_of(one.task.cell.config, {}))
            changed, one.seen = one.seen not in ("", what), what
            if one.seldom.due(step) if step is not None else changed:
                self._say(f"{one.task.cell.name}: {what}" + (f"  {duration(left)} left" if left else ""))

    def ended(self, one: Running, reason: str | None) -> None:
        """Tells that a cell is done, or why it failed."""
        seconds = time.monotonic() - one.began
        if reason is None:
            self._done += 1
            self._seconds.append(seconds)
            self._say(f"{one.task.cell.name} is done, in {duration(seconds)}  ({self._done} of {self._count}"
                      f"{self._left()})")
        else:
            self._console.print(f"{one.task.cell.name} failed: {reason}", style="yellow", highlight=False,
                                soft_wrap=not self._console.is_terminal)

    def _left(self) -> str:
        """The time that all of the sweep takes still, judged by what its cells took."""
        waiting = len(self._waiting) + len(self._running)
        if not self._seconds or not waiting:
            return ""
        rounds = waiting / self._jobs
        return f", about {duration(rounds * sum(self._seconds) / len(self._seconds))} left"

    def _picture(self) -> Group:
        lines = Table.grid(padding=(0, 2))
        lines.add_column(overflow="fold", ratio=1)
        lines.add_column(no_wrap=True)
        lines.add_column(no_wrap=True, justify="right")
        for one in self._running.values():
            what, _, left = one.look()
            lines.add_row(Text(one.task.cell.name), Text(what), Text(f"{duration(left)} left" if left else ""))
        state = f"{self._done} of {self._count} runs are done, {len(self._running)} run{self._left()}"
        return Group(lines, Text(state, style="dim"))

    def _say(self, line: str) -> None:
        self._console.print(line, highlight=False, soft_wrap=not self._console.is_terminal)


def _conclude(workdirs: Sequence[Path], folder: Path, console: Console) -> None:
    """Prints a table of all runs that are scored, and writes all of their figures and the page that shows them."""
    runs = [ScoredRun(name=str(workdir), results=results.read(workdir)) for workdir in workdirs]
    comparison = comparisons.compare(runs)
    count = len(comparison.columns)
    shown = comparison if count <= MOST_FIGURES else comparisons.compare([_first(run) for run in runs])
    console.print(terminal_view(shown, console.width))
    if shown is not comparison:
        base.say(console, f"The first figures of each suite; all {count} are in {folder / 'table.md'}.")
    paths = comparisons.write(comparison, f"{folder / 'table'}")
    base.say_paths(console, [*paths, write_explorer(workdirs, folder / PAGE)])


def _first(run: ScoredRun) -> ScoredRun:
    """A run with two figures of each suite."""
    suites = {name: dataclasses.replace(record, figures=record.figures[:2])
              for name, record in run.results.suites.items()}
    return dataclasses.replace(run, results=dataclasses.replace(run.results, suites=suites))

"""``jaxablate match``: a run beside the checkpoint of a baseline whose validation loss is nearest."""

import collections
import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from rich.console import Console

from jaxablate import files
from jaxablate.commands import base, score
from jaxablate.config import Config
from jaxablate.errors import CheckpointError, ConfigError, DataError, FileError, JaxablateError
from jaxablate.reports import explorer, matched, results
from jaxablate.reports.matched import Matched, MatchedRow, Side
from jaxablate.reports.panels import from_json
from jaxablate.reports.results import Results
from jaxablate.runs.checkpoint import FOLDER, damage, saved_steps
from jaxablate.runs.run import Run, open_run, require_language_model
from jaxablate.runs.workdir import METRICS, read_run
from jaxablate.stats import Estimate
from jaxablate.suites import perplexity
from jaxablate.suites.suite import Suite

Say = Callable[[str], None]
LOSS = "validation loss clean"
MEASURE_ALL = 8
"""Up to so many checkpoints of the baseline are all measured; of more, those that bisection asks for."""
CHECKPOINTS = 50
"""How many checkpoints of a run a user is advised to keep where those that there are do not suffice."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MatchSettings(base.RunSettings):
    """Compare a gated model with that checkpoint of a baseline whose validation loss is nearest: fewer features or
    edges may only mean a worse model."""

    baseline: Path
    """Working directory of the run whose checkpoints are searched; trained on the same data."""
    suites: tuple[str, ...] = ()
    """Suites to compare by, for example circuits weights; none given takes every one that fits both."""
    tolerance: float = 0.02
    """Nats a token by which the two validation losses may differ; beyond it the table says so."""
    out: Path | None = None
    """Folder of the tables and of the baseline's results; by default matched in the working directory."""

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.tolerance < math.inf:
            raise ConfigError(f"tolerance={self.tolerance:g} must be a number above 0, in nats a token")
        if self.workdir.resolve() == self.baseline.resolve():
            raise ConfigError(f"--workdir and --baseline are both {self.workdir}; give another run as --baseline")
        if (self.folder / "config.json").exists():
            raise ConfigError(f"{self.folder} is a working directory, whose results would be overwritten; choose "
                              "another --out")

    @property
    def folder(self) -> Path:
        """Where the tables go."""
        return self.out or self.workdir / "matched"

    def run(self, console: Console) -> None:
        """Finds the baseline's checkpoint of equal loss, prints both side by side and where the files are."""
        comparison, paths = match(self, partial(base.say, console))
        console.print(matched.terminal_view(comparison, console.width))
        base.say_paths(console, paths)


parse = partial(base.parse, MatchSettings)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """An opened checkpoint and what has been measured of it so far, over the whole split."""

    workdir: Path
    run: Run
    results: Results

    @property
    def loss(self) -> Estimate:
        """Clean loss over the whole split, from the suite ``perplexity``.

        Raises:
          CheckpointError: it is not finite.
        """
        if (loss := clean_loss(self.results)) is None:
            raise CheckpointError(f"{self.workdir} at step {self.run.step:,} has no finite validation loss to compare "
                                  "by; choose another checkpoint")
        return loss

    @property
    def side(self) -> Side:
        """What the comparison says of it."""
        return Side(name=explorer.run_name(self.workdir), step=self.run.step, summary=explorer.summary(self.results),
                    loss=self.loss)


def match(settings: MatchSettings, say: Say = lambda line: None) -> tuple[Matched, tuple[Path, ...]]:
    """Finds the baseline's checkpoint of nearest loss, measures both, and writes tables and the baseline's results.

    What is measured of the run itself goes into its own ``results.json``, unless that is of another checkpoint.
    ``say`` receives lines of progress. Returns the comparison, and the files it was written to.

    Raises:
      ConfigError: a run is none of a language model, or a suite does not fit one of them.
      DataError: the runs have other data or another tokenizer.
      CheckpointError: a run cannot be read.
      FileError: the files cannot be written.
    """
    configs = [require_language_model(path, "match compares") for path in (settings.workdir, settings.baseline)]
    check_same_data(settings.workdir, settings.baseline)
    suites = fitting_suites(settings, configs, say)
    steps = undamaged_steps(settings.baseline, say)
    stored = stored_results(settings.workdir, say)
    model = _open(settings, settings.workdir, settings.checkpoint, [stored], say)
    baseline, losses = _nearest(settings, steps, float(model.loss), say)
    same = stored is None or stored.same_checkpoint(model.results)
    if not same:
        say(f"{settings.workdir / results.FILE_NAME} is of another checkpoint and stays as it is")
    required = bool(settings.suites)
    model = _completed(model, [perplexity.SUITE, *suites], settings.workdir if same else None, say, required)
    baseline = _completed(baseline, suites, None, say, required)
    if same:
        explorer.write_explorer([settings.workdir], settings.workdir / explorer.FILE_NAME)
    both = [s.name for s in suites if s.name in model.results.suites and s.name in baseline.results.suites]
    rows, lacking = matched.match_rows(model.results, baseline.results, both)
    first = MatchedRow(suite="loss", name=LOSS, unit="nats", better="down", model=model.loss, baseline=baseline.loss)
    notes = _how_to_get_nearer(settings, configs[1], float(model.loss), losses)
    if lacking:
        counts = ", ".join(f"{count} of {suite}" for suite, count in collections.Counter(lacking).items())
        notes.append(f"figures that only one of the two has are left out: {counts}")
    comparison = Matched(model=model.side, baseline=baseline.side, tolerance=settings.tolerance, rows=(first, *rows),
                         notes=tuple(notes))
    return comparison, _write(settings.folder, comparison, model, baseline)


def check_same_data(workdir: Path, baseline: Path) -> None:
    """Raises DataError where two runs were not trained and validated on the same tokens of the same tokenizer."""
    a, b = read_run(workdir) or {}, read_run(baseline) or {}
    differing = [(of, name, value, b[of][name]) for of in ("tokenizer", "data_hash")
                 for name, value in a.get(of, {}).items() if b.get(of, {}).get(name, value) != value]
    for of, name, value, other in differing:
        if of == "tokenizer":
            raise DataError(f"{baseline} has another tokenizer ({name} {other[:24]}) than {workdir} ({value[:24]}), so "
                            "their losses are in different units; give a --baseline with the same one")
        raise DataError(f"{baseline} has other {name} data (hash {other[:12]}) than {workdir} ({value[:12]}); "
                        "give a --baseline of the same data")


def fitting_suites(settings: MatchSettings, configs: Sequence[Config], say: Say) -> list[Suite]:
    """The suites asked for, or all that fit both runs.

    Raises:
      ConfigError: a name is unknown, or the suite does not fit one of the runs or lacks what it measures.
    """
    pairs = zip((settings.workdir, settings.baseline), configs, strict=True)
    model, baseline = (score.choose(settings.suites, config, path, lambda line, path=path: say(f"{path}: {line}"))
                       for path, config in pairs)
    return [suite for suite in model if suite in baseline]


def clean_loss(measured: Results) -> Estimate | None:
    """Clean loss over the whole split, with end of text, that the suite ``perplexity`` measured; None where results
    from a file do not have it."""
    record = measured.suites.get("perplexity")
    losses = None if record is None else record.details.get("losses")
    for x in losses if isinstance(losses, list | tuple) else ():
        if isinstance(x, Mapping) and x.get("stream") == "clean" and x.get("end_of_text") is True:
            loss = x.get("loss")
            try:
                loss = loss if isinstance(loss, Estimate) else from_json(loss, Estimate)
            except ValueError:
                continue
            return loss if loss.value is not None else None
    return None


def undamaged_steps(workdir: Path, say: Say) -> list[int]:
    """Steps of a run's undamaged checkpoints, ascending.

    Raises:
      CheckpointError: there is none.
    """
    folder, steps = workdir / FOLDER, []
    for step in saved_steps(folder):
        if (reason := damage(folder / str(step))) is None:
            steps.append(step)
        else:
            say(f"checkpoint {step} of {workdir} is passed over: {reason}")
    if not steps:
        raise CheckpointError(f"{folder} holds no undamaged checkpoint; train the baseline first, or check --baseline")
    return steps


def stored_results(folder: Path, say: Say) -> Results | None:
    """What a folder's ``results.json`` holds; None where there is none that can be read."""
    try:
        return results.read(folder) if (folder / results.FILE_NAME).exists() else None
    except FileError as error:
        say(f"{error}; nothing of it is used")
        return None


def _open(settings: MatchSettings, workdir: Path, step: str, stored: Sequence[Results | None], say: Say) -> Checkpoint:
    """A checkpoint with its loss, and with the suites that stored results of it hold of the whole split."""
    run = open_run(workdir, step, batch_size=settings.batch_size, seed=settings.seed)
    merged = score.empty_results(run)
    for old in stored:
        merged = results.merge(old, merged)
    suites = {name: record for name, record in merged.suites.items() if "max_batches" not in record.options}
    if clean_loss(merged) is None:
        suites.pop("perplexity", None)
    checkpoint = Checkpoint(workdir=workdir, run=run, results=dataclasses.replace(merged, suites=suites))
    checkpoint = _completed(checkpoint, [perplexity.SUITE], None, say, required=True)
    say(f"{workdir} at step {run.step:,}: {LOSS} {float(checkpoint.loss):.4f}")
    return checkpoint


def _completed(checkpoint: Checkpoint, suites: Sequence[Suite], folder: Path | None, say: Say, required: bool
               ) -> Checkpoint:
    """The checkpoint with those suites run that it lacks, kept in a folder's ``results.json`` after each.

    A suite that cannot measure this checkpoint is left out with a line, or, where it is required, raises.
    """
    run = checkpoint.run
    for suite in suites:
        if suite.name not in checkpoint.results.suites:
            say(f"{suite.name} of {checkpoint.workdir} at step {run.step:,} ...")
            try:
                record, _ = score.run_suite(suite, run)
            except JaxablateError as error:
                if required:
                    raise
                say(f"{suite.name} is left out: {error}")
                continue
            checkpoint = dataclasses.replace(checkpoint, results=score.with_record(checkpoint.results, record))
        if folder is not None:
            results.write(folder, results.merge(stored_results(folder, say), checkpoint.results))
    return checkpoint


def _nearest(settings: MatchSettings, steps: Sequence[int], target: float, say: Say
             ) -> tuple[Checkpoint, dict[int, float]]:
    """The baseline's checkpoint whose loss is nearest to the target, and the losses of those that were measured."""
    stored = [stored_results(folder, say) for folder in (settings.baseline, settings.folder)]
    measured: dict[int, Results] = {}

    def loss_of(step: int) -> float:
        checkpoint = _open(settings, settings.baseline, str(step), stored, say)
        measured[step] = checkpoint.results
        return float(checkpoint.loss)

    losses = measured_losses(steps, loss_of, target)
    step = nearest(losses, target)
    return _open(settings, settings.baseline, str(step), [measured[step]], lambda line: None), losses


def measured_losses(steps: Sequence[int], loss_of: Callable[[int], float], target: float, *, most: int = MEASURE_ALL
                    ) -> dict[int, float]:
    """Losses by step, ascending, of the checkpoints that can be nearest to a target; each is measured once.

    Up to ``most`` are all measured. More are bisected, which takes the loss to fall from step to step; where it does
    not, the checkpoint found is near the target, and others may be as near.

    >>> sorted(measured_losses(range(100), lambda step: 100.0 - step, 30.2))
    [0, 49, 61, 67, 68, 69, 70, 74, 99]
    """
    if len(steps) <= most:
        return {step: loss_of(step) for step in steps}
    low, high = 0, len(steps) - 1
    losses = {steps[i]: loss_of(steps[i]) for i in (low, high)}
    while high - low > 1 and losses[steps[low]] > target > losses[steps[high]]:
        middle = (low + high) // 2
        losses[steps[middle]] = loss_of(steps[middle])
        low, high = (middle, high) if losses[steps[middle]] > target else (low, middle)
    return dict(sorted(losses.items()))


def nearest(losses: Mapping[int, float], target: float) -> int:
    """Step whose loss is nearest to the target; the later one of two that are equally near.

    >>> nearest({10: 2.0, 20: 1.4, 30: 1.2}, 1.5)
    20
    """
    return min(losses, key=lambda step: (abs(losses[step] - target), -step))


def passed(curve: Sequence[tuple[int, float]], target: float) -> int | None:
    """Step at which a curve of (step, loss) first falls to a target, between its points; None where it never does.

    >>> passed([(100, 3.0), (200, 2.0), (300, 1.0)], 1.5)
    250
    """
    for (a, before), (b, after) in itertools.pairwise(curve):
        if before > target >= after:
            return round(a + (b - a) * (before - target) / (before - after))
    return None


def _how_to_get_nearer(settings: MatchSettings, config: Config, target: float, losses: Mapping[int, float]
                       ) -> list[str]:
    """A line where no checkpoint is within the tolerance."""
    if min(abs(x - target) for x in losses.values()) <= settings.tolerance:
        return []
    listed = ", ".join(f"{loss:.4f} at step {step:,}" for step, loss in losses.items())
    if target < min(losses.values()):
        return [f"all measured checkpoints of the baseline are worse ({listed}); train it longer, or take an earlier "
                "--checkpoint of the model"]
    every = max(1, config.train.steps // CHECKPOINTS)
    log = explorer.read_history(settings.baseline / METRICS)
    curve = {e["step"]: e["loss_clean"] for e in log
             if e.get("split") == "valid" and isinstance(e.get("loss_clean"), int | float)}
    step = passed(sorted(curve.items()), target)
    where = "" if step is None else f"; its log passes the model's loss near step {step:,}"
    return [f"the baseline's checkpoints have losses {listed}{where}. Keep more of them: train it again from its start "
            f"into another --workdir with --train.checkpoint-every {every} --train.keep-last {CHECKPOINTS} (the same "
            "seed gives the same losses; the run may be stopped and resumed), then give that as --baseline"]


def _write(folder: Path, comparison: Matched, model: Checkpoint, baseline: Checkpoint) -> tuple[Path, ...]:
    """Tables, an explorer of both, and the baseline's results at the matched step with an explorer of their own."""
    tables = [files.write(folder / f"table{suffix}", text, otherwise="choose another --out")
              for suffix, text in matched.texts(comparison).items()]
    name = f"{explorer.run_name(baseline.workdir)}, matched"
    runs = [_shown(model), dataclasses.replace(_shown(baseline), name=name)]
    notes = (comparison.verdict, matched.EXPLANATION, *comparison.notes)
    return (*tables, explorer.write_runs(runs, folder / "table.html", notes),
            results.write(folder, baseline.results), explorer.write_runs(runs[1:], folder / explorer.FILE_NAME))


def _shown(checkpoint: Checkpoint) -> explorer.ShownRun:
    """A checkpoint for the explorer, with the log up to its step."""
    log = explorer.read_history(checkpoint.workdir / METRICS)
    return explorer.ShownRun(name=explorer.run_name(checkpoint.workdir), results=checkpoint.results,
                             history=[e for e in log if e["step"] <= checkpoint.run.step],
                             record=read_run(checkpoint.workdir) or {})

"""``eval.py match``: a run beside the checkpoint of a baseline whose validation loss is nearest."""

import collections
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxablate import files as files_
from jaxablate import stats
from jaxablate.commands import score as runner
from jaxablate.commands.match_nearest import measured_losses, nearest, passed
from jaxablate.commands.match_settings import MatchSettings
from jaxablate.commands.score import ScoreSettings
from jaxablate.config import Config
from jaxablate.errors import CheckpointError, DataError, FileError, JaxablateError
from jaxablate.reports import html
from jaxablate.reports import results as files
from jaxablate.reports.comparison_page import matched_texts, write_tables
from jaxablate.reports.matched import Matched, MatchedRow, Side, match_rows
from jaxablate.reports.results import Results
from jaxablate.runs.checkpoint import FOLDER, damage, saved_steps
from jaxablate.runs.run import Run, require_language_model
from jaxablate.runs.workdir import METRICS, read_run
from jaxablate.stats import Estimate
from jaxablate.suites import perplexity
from jaxablate.suites.suite import Suite

Say = Callable[[str], None]
LOSS = "validation loss clean"
CHECKPOINTS = 50
"""How many checkpoints of a run a user is told to keep where those that there are do not suffice."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MatchReport:
    """What `match` found and wrote."""

    matched: Matched
    files: tuple[Path, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """One opened checkpoint and what is known of it so far."""

    workdir: Path
    settings: ScoreSettings
    subject: Run
    results: Results

    @property
    def loss(self) -> Estimate:
        """Clean loss over the whole split, from the suite ``perplexity``."""
        losses = self.results.suites["perplexity"].details["losses"]
        # A dictionary after a trip through the file, else a dataclass as a dictionary: the same.
        return stats.from_json(next(x["loss"] for x in losses if x["stream"] == "clean" and x["end_of_text"]))


def match(settings: MatchSettings, say: Say = lambda line: None) -> MatchReport:
    """Finds the baseline's checkpoint of nearest loss, measures both, and writes tables and the baseline's results.

    What is measured of the run itself goes into its own ``results.json``, unless that is of another checkpoint.

    Args:
      settings: which runs, suites, where to.
      say: receives lines of progress.

    Raises:
      ConfigError: a value is out of range, a run is none of a language model, or a suite does not fit one of them.
      DataError: the runs have other data or another tokenizer.
      CheckpointError: a run cannot be read, or the files cannot be written.
    """
    settings.check()
    configs = [require_language_model(path, "match compares") for path in (settings.workdir, settings.baseline)]
    check_same_data(settings.workdir, settings.baseline)
    suites = fitting_suites(settings, configs, say)
    steps = whole_steps(settings.baseline, say)
    folder = settings.folder()
    stored = stored_results(settings.workdir, say)
    model = _with_loss(_open(settings.of(settings.workdir), configs[0], stored), say)
    baseline, losses = _nearest(settings, configs[1], steps, model.loss.value, stored_results(folder, say), say)
    keeps = stored is None or stored.same_checkpoint(model.results)
    if not keeps:
        say(f"{settings.workdir / files.FILE_NAME} is of another checkpoint and stays as it is")
    required = bool(settings.suites)
    model = _completed(model, [perplexity.SUITE, *suites], settings.workdir if keeps else None, say, required)
    baseline = _completed(baseline, suites, None, say, required)
    if keeps:
        html.write_report(settings.workdir, files.read(settings.workdir))
    both = [s.name for s in suites if s.name in model.results.suites and s.name in baseline.results.suites]
    rows, lacking = match_rows(model.results, baseline.results, both)
    matched = Matched(
        model=_side(model), baseline=_side(baseline), tolerance=settings.tolerance,
        rows=(MatchedRow(suite="loss", name=LOSS, unit="nats", better="down", model=model.loss,
                         baseline=baseline.loss), *rows),
        notes=(*_how_to_get_nearer(settings, configs[1], model.loss.value, losses), *_left_out(lacking)))
    return MatchReport(matched=matched, files=tuple(write_files(folder, matched, baseline)))


def check_same_data(workdir: Path, baseline: Path) -> None:
    """Raises DataError where two runs were not trained and validated on the same tokens of the same tokenizer."""
    a, b = read_run(workdir), read_run(baseline)
    for name, value in a.get("tokenizer", {}).items():
        other = b.get("tokenizer", {}).get(name, value)
        if other != value:
            raise DataError(f"{baseline} has another tokenizer ({name} {other[:24]}) than {workdir} ({value[:24]}), so "
                            "their losses are in different units; give a --baseline with the same one")
    for split, value in a.get("data_hash", {}).items():
        other = b.get("data_hash", {}).get(split, value)
        if other != value:
            raise DataError(f"{baseline} has other {split} data (hash {other[:12]}) than {workdir} ({value[:12]}); "
                            "give a --baseline of the same data")


def fitting_suites(settings: MatchSettings, configs: list[Config], say: Say) -> list[Suite]:
    """Suites by name, or all that fit both runs.

    Raises:
      ConfigError: a name is unknown, or the suite does not fit one of the runs or lacks what it measures.
    """
    pairs = list(zip((settings.workdir, settings.baseline), configs, strict=True))
    chosen = [runner.choose(settings.suites, config, workdir, lambda line, workdir=workdir: say(f"{workdir}: {line}"))
              for workdir, config in pairs]
    return [suite for suite in chosen[0] if suite in chosen[1]]


def whole_steps(workdir: Path, say: Say) -> list[int]:
    """Steps of a run's undamaged checkpoints, ascending.

    Raises:
      CheckpointError: there is none.
    """
    folder = workdir / FOLDER
    steps = []
    for step in saved_steps(folder):
        if (reason := damage(folder / str(step))) is None:
            steps.append(step)
        else:
            say(f"checkpoint {step} of {workdir} is passed over: {reason}")
    if not steps:
        raise CheckpointError(f"{folder} holds no whole checkpoint; train the baseline first, or check --baseline")
    return steps


def stored_results(folder: Path, say: Say) -> Results | None:
    """What a folder's ``results.json`` holds; None where there is none that can be read."""
    if not (folder / files.FILE_NAME).exists():
        return None
    try:
        return files.read(folder)
    except FileError as e:
        say(f"{e}; nothing of it is used")
        return None


def write_files(folder: Path, matched: Matched, baseline: Checkpoint) -> list[Path]:
    """Tables, and the baseline's results and report at the matched step.

    Raises:
      CheckpointError: the folder cannot be made or written to.
    """
    tables = write_tables(folder / "table", matched_texts(matched))
    history = [e for e in html.read_history(baseline.workdir / METRICS) if e["step"] <= baseline.results.step]
    report = folder / html.FILE_NAME
    files_.write(report, html.page(baseline.results, history, f"{html.run_name(baseline.workdir)}, matched"))
    return [*tables, files.write(folder, baseline.results), report]


def _open(settings: ScoreSettings, config: Config, *stored: Results | None) -> Checkpoint:
    """A checkpoint, with the suites that stored results of the same checkpoint hold of the whole split."""
    subject, results = open_checkpoint(settings, config)
    for old in stored:
        results = files.merge(old, results)
    whole = {name: x for name, x in results.suites.items() if "max_batches" not in x.options}
    return Checkpoint(workdir=settings.workdir, settings=settings, subject=subject,
                      results=dataclasses.replace(results, suites=whole))


def _with_loss(opened: Checkpoint, say: Say) -> Checkpoint:
    opened = _completed(opened, [perplexity.SUITE], None, say, required=True)
    say(f"{opened.workdir} at step {opened.results.step:,}: {LOSS} {opened.loss.value:.4f}")
    return opened


def _completed(opened: Checkpoint, suites: list[Suite], folder: Path | None, say: Say, required: bool) -> Checkpoint:
    """With those suites run that it lacks, kept in a folder's ``results.json`` after each.

    A suite that cannot measure this checkpoint is left out with a line, or, where it is required, raises.
    """
    for suite in suites:
        if suite.name not in opened.results.suites:
            say(f"{suite.name} of {opened.workdir} at step {opened.results.step:,} ...")
            try:
                record = runner.run_suite(suite, opened.subject, opened.settings)
            except JaxablateError as e:
                if required:
                    raise
                say(f"{suite.name} is left out: {e}")
                continue
            opened = dataclasses.replace(opened, results=runner.with_record(opened.results, record))
        if folder is not None:
            files.write(folder, files.merge(stored_results(folder, say), opened.results))
    return opened


def _nearest(settings: MatchSettings, config: Config, steps: list[int], target: float, earlier: Results | None, say: Say
             ) -> tuple[Checkpoint, dict[int, float]]:
    """The baseline's checkpoint whose loss is nearest to the target, and the losses of those that were measured."""
    own = stored_results(settings.baseline, say)
    found: dict[int, Results] = {}

    def opened(step: int) -> Checkpoint:
        return _open(settings.of(settings.baseline, str(step)), config, own, earlier, found.get(step))

    def loss_of(step: int) -> float:
        checkpoint = _with_loss(opened(step), say)
        found[step] = checkpoint.results
        return checkpoint.loss.value

    losses = measured_losses(steps, loss_of, target)
    return opened(nearest(losses, target)), losses


def _side(opened: Checkpoint) -> Side:
    return Side(name=html.run_name(opened.workdir), step=opened.results.step, summary=html.summary(opened.results),
                loss=opened.loss)


def _how_to_get_nearer(settings: MatchSettings, config: Config, target: float, losses: dict[int, float]
                       ) -> tuple[str, ...]:
    """A line where no checkpoint is within the tolerance."""
    if min(abs(x - target) for x in losses.values()) <= settings.tolerance:
        return ()
    known = ", ".join(f"{loss:.4f} at step {step:,}" for step, loss in losses.items())
    if target < min(losses.values()):
        return (f"all measured checkpoints of the baseline are worse ({known}); train it longer, or take an earlier "
                "--checkpoint of the model",)
    every = max(1, config.train.steps // CHECKPOINTS)
    step = passed(_curve(settings.baseline), target)
    where = "" if step is None else f"; its log passes the model's loss near step {step:,}"
    return (f"the baseline's checkpoints have losses {known}{where}. Keep more of them: train it again from its start "
            f"into another --workdir with --train.checkpoint-every {every} --train.keep-last {CHECKPOINTS} (the same "
            "seed gives the same losses; the run may be stopped and resumed), then give that as --baseline",)


def _curve(workdir: Path) -> list[tuple[int, float]]:
    history: list[dict[str, Any]] = html.read_history(workdir / METRICS)
    points = {e["step"]: e["loss_clean"] for e in history if e.get("split") == "valid" and "loss_clean" in e}
    return sorted(points.items())


def _left_out(lacking: tuple[str, ...]) -> tuple[str, ...]:
    if not lacking:
        return ()
    of_suite = collections.Counter(lacking)
    return ("figures that only one of the two has are left out: "
            f"{', '.join(f'{count} of {suite}' for suite, count in of_suite.items())}",)

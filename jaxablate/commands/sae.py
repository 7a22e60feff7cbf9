"""``eval.py sae``: trains autoencoders of a run, stores them, and has the suite measure all that are stored.

An interrupted training is the same training: between two rounds everything it goes on from is one file, and the text is
a function of the place where it goes on. See `jobs` for where things lie.
"""

import contextlib
import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxablate import features
from jaxablate.commands import sae_jobs
from jaxablate.commands import score as runner
from jaxablate.commands.sae_jobs import Job
from jaxablate.commands.sae_settings import SaeSettings
from jaxablate.commands.sae_view import Line
from jaxablate.config import Config
from jaxablate.data.pipeline import train_batches
from jaxablate.data.preparation import prepare
from jaxablate.data.progress import progress_report
from jaxablate.data.token_file import TokenFile
from jaxablate.data.tokenizer import load_tokenizer
from jaxablate.errors import CheckpointError, DataError, TrainingError
from jaxablate.files import write, write_error
from jaxablate.models.decoder import SelfAblatingTransformer
from jaxablate.provenance import provenance
from jaxablate.reports.results import Results
from jaxablate.runs.checkpoint import restore_params
from jaxablate.runs.interruption import Interruption
from jaxablate.runs.run import _check_data as check_data
from jaxablate.runs.run import require_language_model
from jaxablate.runs.workdir import hold_workdir

STATE, METRICS, ABOUT = "state.safetensors", "metrics.jsonl", "job.json"
"""Files of a job's folder."""
MOST_OF_TIME = 0.05
"""Part of the time that saving may take; slow disks save less often."""
Say = Callable[[str], None]
ShowProgress = Callable[[int], AbstractContextManager[Line]]
"""Steps of a training -> context of its progress line."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SaeReport:
    """How a call of `autoencoders` ended."""

    trained: tuple[Path, ...]
    """Folders of the autoencoders that this call stored."""
    results: Results | None
    """With the suite's record; None where a signal stopped the training before its end."""
    stopped: str = ""
    """Where a signal stopped it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Opened:
    """A run whose activations autoencoders are trained on."""

    config: Config
    model: SelfAblatingTransformer
    params: Any
    text: TokenFile
    origin: Mapping[str, Any]
    """What an autoencoder's weights depend on, as far as it is of the run."""


def autoencoders(
    settings: SaeSettings, say: Say = lambda line: None,
    show_progress: ShowProgress = lambda steps: contextlib.nullcontext(lambda *figures: None),
) -> SaeReport:
    """Trains what is not stored yet, and measures everything that is.

    Args:
      settings: which run, sites, coefficients, seeds, and how long.
      say: receives lines of progress.
      show_progress: steps -> context of a function that is told of each round.

    Raises:
      ConfigError: a value is out of range, a site does not exist, or the run is none of a language model.
      DataError: the text is not the run's or too short, or activations are not finite.
      CheckpointError: the run cannot be read, a file cannot be written, or another process trains the same.
      TrainingError: a loss was not finite.
    """
    settings.check()
    opened = open_run(settings)
    jobs = sae_jobs.plan(settings, opened.config.model, opened.config.train.sequence_length, opened.origin)
    folder, stored = settings.workdir / sae_jobs.FOLDER, []
    for whole in jobs:
        # One that was interrupted goes on as it was, also where others were asked for beside it then.
        for job in [*_interrupted(folder, whole), whole]:
            job = job.without_stored(folder) if job is whole else job
            if not job.runs:
                continue
            done = _train_job(job, opened, settings, folder, say, show_progress)
            if isinstance(done, str):
                return SaeReport(trained=tuple(stored), results=None, stopped=done)
            stored += done
    asked = sum(len(job.runs) for job in jobs)
    if len(stored) < asked:
        say(f"{asked - len(stored)} of {asked} autoencoders were stored already")
    return SaeReport(trained=tuple(stored), results=runner.score(settings.of_score(), say))


def open_run(settings: SaeSettings) -> Opened:
    """Checkpoint and training text of a run.

    Raises:
      ConfigError, DataError, CheckpointError: as `autoencoders` says.
    """
    config = require_language_model(settings.workdir, "autoencoders are trained on")
    model = SelfAblatingTransformer(config.model)
    for name in settings.sites:
        features.find_site(config.model, name)
    params, step = restore_params(settings.workdir, step=settings.step_for(config))
    with progress_report() as report:
        data = prepare(config.data, report=report)
    text, tokenizer = data.train, load_tokenizer(settings.workdir / "tokenizer")
    check_data(settings.workdir, tokenizer, data.tokenizer, {"train": text.data_hash}, config.data.cache_dir)
    origin = {"model": features.fingerprint(params), "model_step": int(step), "data": text.data_hash,
              "control": settings.control, "control_seed": settings.data_seed}
    return Opened(config=config, model=model, params=params, text=text, origin=origin)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Source:
    """What a job's autoencoders are trained on."""

    activations: Callable[[Any, jax.Array], jax.Array]
    params: Any
    tokens: Callable[[int], Iterator[np.ndarray]]
    model_params: Any
    """Of the decoder whose activations they are, or have the moments of."""


def _source(job: Job, opened: Opened) -> _Source:
    names, seed = features.sites_of(job.runs), job.settings.seed
    reader, params = features.reader(opened.model, names), opened.params
    rows, length = job.windows

    def text(start: int) -> Iterator[np.ndarray]:
        batches = train_batches(opened.text, batch_size=rows, sequence_length=length, seed=seed, start_step=start)
        with contextlib.closing(batches):
            for batch in batches:
                yield batch["inputs"]

    if job.origin["control"] == "random-weights":
        params = sae_jobs.random_params(opened.model, job.origin["control_seed"])
    if job.origin["control"] != "gaussian":
        return _Source(activations=reader, params=params, tokens=text, model_params=params)
    count = job.settings.buffer_batches * job.settings.batch_tokens // (rows * length)
    moments = features.moments(reader, params, islice(text(0), count))
    gaussian = features.GaussianActivations(names, seed)
    return _Source(activations=gaussian, params=moments, tokens=features.blanks(job.windows), model_params=params)


def _interrupted(folder: Path, asked: Job) -> Iterator[Job]:
    """Jobs with a saved state all of whose autoencoders are among those asked for."""
    by_name = {asked.name(run): run for run in asked.runs}
    for path in sorted((folder / "jobs").glob(f"*/{STATE}")):
        try:
            names = json.loads(path.with_name(ABOUT).read_text())["autoencoders"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if all(name in by_name for name in names):
            yield dataclasses.replace(asked, runs=tuple(by_name[name] for name in names))


def _train_job(
    job: Job, opened: Opened, settings: SaeSettings, folder: Path, say: Say, show_progress: ShowProgress
) -> list[Path] | str:
    """Folders of the trained autoencoders, or where a signal stopped the training."""
    where = folder / "jobs" / job.digest
    with _held(where):
        source, state = _source(job, opened), None
        if (where / STATE).exists():
            state = _restored(where / STATE, job)
        first = 0 if state is None else int(state.step)
        say(_banner(job, opened, first))
        with show_progress(job.settings.steps) as line, _Rounds(job, where, settings, line, first) as rounds, (
            Interruption()) as interruption:
            done = features.train(source.activations, source.params, source.tokens, job.runs, job.config, job.settings,
                                  state=state, progress=rounds, stop=lambda: interruption.name is not None)
            if int(done.state.step) < job.settings.steps:
                rounds.save(done.state)
                return f"step {int(done.state.step):,} of {job.settings.steps:,}"
        stored = _store(job, done, source, opened, folder)
        (where / STATE).unlink(missing_ok=True)
    return stored


def _store(job: Job, done: features.Trained, source: _Source, opened: Opened, folder: Path) -> list[Path]:
    """Writes the autoencoders of a finished job."""
    conditions, out = provenance(jax.devices()), []
    sites, densities = features.sites_of(job.runs), features.buffer_density(done, job.config)
    for run, sae, scale, density in zip(done.runs, done.autoencoders, done.scales, densities, strict=True):
        at = sites.index(run.site)
        moments = jax.tree.map(lambda x, at=at: x[at : at + 1], source.params)
        out.append(features.save_autoencoder(
            folder / job.name(run), sae, job.config, run.site, opened.config.model, params=source.model_params,
            density=density, moments=moments if job.origin["control"] == "gaussian" else None,
            details={"identity": job.identity(run), "scale": scale, "trained": conditions.date,
                     "revision": conditions.revision, "device": conditions.device}))
    return out


def _restored(path: Path, job: Job) -> features.TrainState:
    try:
        return features.load_state(path, job.runs, job.config, job.settings)
    except DataError as error:
        raise CheckpointError(f"{error}; delete {path} to start anew") from error


def _banner(job: Job, opened: Opened, first: int) -> str:
    s, c = job.settings, job.config
    many = f"{len(job.runs)} autoencoders" if len(job.runs) > 1 else "an autoencoder"
    what = {"none": "", "gaussian": ", on Gaussian vectors of their mean and covariance",
            "random-weights": ", of the model with random weights"}[job.origin["control"]]
    begin = f"goes on from step {first:,}" if first else "starts"
    return (f"training {many} {c.d_in:,} -> {c.d_sae:,} at {', '.join(features.sites_of(job.runs))}{what}: {s.steps:,} "
            f"steps of {s.batch_tokens:,} tokens; the text has {opened.text.n_tokens:,}, of which {s.tokens:,} are "
            f"drawn; {begin}")


class _Rounds:
    """What is done after each round: figures are checked, written and shown, and now and then the state is saved."""

    def __init__(self, job: Job, folder: Path, settings: SaeSettings, line: Line, first: int):
        self._job, self._folder, self._line = job, folder, line
        self._every, self._first, self._began = settings.save_every, first, None

    def __enter__(self) -> "_Rounds":
        about = {"autoencoders": [self._job.name(run) for run in self._job.runs],
                 "identities": [self._job.identity(run) for run in self._job.runs]}
        write(self._folder / ABOUT, (json.dumps(about, indent=1) + "\n").encode())
        _drop_after(self._folder / METRICS, self._first)
        self._file = (self._folder / METRICS).open("a")
        self._saved = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __call__(self, state: features.TrainState, metrics: features.StepMetrics) -> None:
        step = int(state.step)
        means = {name: np.mean(values, axis=0) for name, values in metrics._asdict().items()}
        means |= {name: getattr(metrics, name)[-1] for name in ("dead", "learning_rate", "l1_coefficient")}
        self._refuse_nonfinite(step, means)
        try:
            for i, run in enumerate(self._job.runs):
                values = {name: float(value[i]) for name, value in means.items()}
                self._file.write(json.dumps({"step": step, **dataclasses.asdict(run), "figures": values}) + "\n")
            self._file.flush()
        except OSError as error:
            raise write_error(self._folder / METRICS, error, "choose another --workdir") from error
        self._line(step, means, self._rate(step))
        if time.monotonic() - self._saved >= self._every and step < self._job.settings.steps:
            self.save(state)

    def save(self, state: features.TrainState) -> None:
        """Writes what the training goes on from."""
        start = time.monotonic()
        features.save_state(self._folder / STATE, state, self._job.runs, self._job.config, self._job.settings)
        self._saved = time.monotonic()
        self._every = max(self._every, (self._saved - start) / MOST_OF_TIME)

    def _rate(self, step: int) -> float | None:
        """Steps a second since the first round, in which everything is compiled."""
        now = time.monotonic()
        if self._began is None:
            self._began = step, now
            return None
        return (step - self._began[0]) / (now - self._began[1])

    def _refuse_nonfinite(self, step: int, means: Mapping[str, np.ndarray]) -> None:
        for run, loss, norm in zip(self._job.runs, means["loss"], means["grad_norm"], strict=True):
            if not (math.isfinite(loss) and math.isfinite(norm)):
                (self._folder / STATE).unlink(missing_ok=True)  # from there it would come to this again
                raise TrainingError(f"{self._job.name(run)} had loss={loss} before step {step:,}; a lower "
                                    f"--learning-rate than {self._job.settings.learning_rate:g} may help")


@contextlib.contextmanager
def _held(where: Path) -> Iterator[None]:
    """Makes a job's folder and keeps other processes out of it; it is gone again if nothing comes of it."""
    with hold_workdir(where):
        try:
            yield
        finally:
            log = where / METRICS
            if not (where / STATE).exists() and not (log.exists() and log.stat().st_size):
                for name in (ABOUT, METRICS, ".lock"):
                    (where / name).unlink(missing_ok=True)
                with contextlib.suppress(OSError):
                    for path in (where, where.parent, where.parent.parent):
                        path.rmdir()  # stays where it holds anything


def _drop_after(path: Path, step: int) -> None:
    """Rewrites the log without the lines of later steps, which will come again, and without half a line."""
    kept = []
    for text in path.read_text().splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError):
            kept += [text + "\n"] if json.loads(text)["step"] <= step else []
    write(path, "".join(kept).encode())

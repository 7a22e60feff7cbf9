"""``jaxablate sae``: trains autoencoders of a run, stores them, and has the suite measure all that are stored.

Everything that decides an autoencoder's weights goes into a digest, which its folder's name ends with. So the same
command finds what it has stored, and another one never writes over it.

    WORKDIR/autoencoders/NAME/             one autoencoder, as SAELens stores it
    WORKDIR/autoencoders/jobs/DIGEST/      job.json; metrics.jsonl; state.safetensors while it is not finished

An interrupted training is the same training: between two rounds everything it goes on from is one file, and the text is
a function of the place where it goes on.
"""

import contextlib
import dataclasses
import datetime
import math
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

import jax
import numpy as np
import tyro
from rich.console import Console
from rich.live import Live

from jaxablate import features, files
from jaxablate.commands import base
from jaxablate.commands.score import ScoreSettings, score
from jaxablate.config import ModelConfig
from jaxablate.data.pipeline import train_batches
from jaxablate.errors import CheckpointError, ConfigError, DataError, FileError, TrainingError
from jaxablate.features import AutoencoderConfig, SaeRun, SaeTrainConfig, find_site
from jaxablate.features.config import PRESETS, Preset
from jaxablate.features.files import CONFIG, FOLDER, identity_digest
from jaxablate.features.sae import ARCHITECTURES, Architecture, plain
from jaxablate.features.sites import Activations, random_params
from jaxablate.features.training import TokenBatches, sites_of
from jaxablate.provenance import provenance
from jaxablate.reports import tables
from jaxablate.reports.panels import Grid
from jaxablate.reports.results import Results
from jaxablate.runs.interruption import Interruption
from jaxablate.runs.run import Run, require_language_model
from jaxablate.sharding import data_mesh, require_room
from jaxablate.training.progress import Seldom, picture
from jaxablate.types import Params

STATE, METRICS, ABOUT = "state.safetensors", "metrics.jsonl", "job.json"
"""Files of a job's folder."""
MOST_OF_TIME = 0.05
"""Part of the time that saving may take; slow disks save less often."""
PAPER_L1 = 5.0
_WINDOW_TOKENS = 4096
"""About as many tokens has a token batch."""
_OTHERWISE = "choose another --workdir"
Line = Callable[[int, Mapping[str, np.ndarray], float | None], None]
"""Shows one round: the steps made, figures [autoencoders] by name, and steps a second where they are known."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SaeSettings(base.RunSettings):
    """Train sparse autoencoders on a language model's activations, store them, and measure all that are stored."""

    sites: tuple[str, ...] = ()
    """Where, for example clean.layer_6.mlp_out; the paper's by default, the MLP output of the second to last block."""
    l1: tuple[float, ...] = ()
    """L1 coefficients, of architecture standard; 5 by default, the paper's."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of the weights. Sites x coefficients x seeds are trained together, on the same activations."""
    control: Literal["none", "gaussian", "random-weights"] = "none"
    """Train on something without features instead. gaussian: vectors with the site's mean and covariance.
    random-weights: the same model with weights as they are drawn. Such an autoencoder is stored beside the others."""
    preset: Preset = "quick"
    """quick: 4,000 steps at a learning rate of 3e-3. paper: its 100,000 steps at 1e-5, as SAELens 5.1.0 makes them; in
    fewer steps at a rate that goes as far."""
    steps: int | None = None
    """Optimiser steps; by default the preset's."""
    learning_rate: float | None = None
    """Learning rate of Adam; by default the preset's."""
    architecture: str = "standard"
    """standard: ReLU and L1. topk: the k largest latents of each token. batchtopk: k a token on average. Or the name of
    one that another package registered."""
    k: float | None = None
    """Active latents a token, of topk and batchtopk; 32 by default."""
    decoder: Literal["unit", "free"] = "unit"
    """unit: decoder vectors of norm 1. free: any norm, which weighs the penalty."""
    width: int = 16
    """Latents, as a multiple of the site's width."""
    tokens_per_step: int = 4096
    """Tokens of an optimiser step."""
    buffer_batches: int = 64
    """Steps' worth of activations that are mixed, an even number; it takes 4 bytes x this x tokens per step x width for
    each site."""
    warmup: float = 0.0
    """First part of the steps in which the learning rate rises."""
    decay: float = 0.2
    """Last part of the steps in which it falls to 0."""
    l1_warmup: float = 0.05
    """First part of the steps in which the L1 coefficient rises."""
    seed: Annotated[int, tyro.conf.arg(aliases=("--data-seed",))] = 0
    """Decides the order of the training text, its mixing, the draws of a control, and resampling."""
    save_every: float = 60.0
    """Seconds between two savings of what an interrupted training goes on from."""

    def __post_init__(self):
        super().__post_init__()
        base.require_at_least(self, 1, "width", "tokens_per_step", "buffer_batches")
        for name in ("sites", "l1", "seeds"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ConfigError(f"--{name} {' '.join(map(str, values))} has a value twice; give each once")
        if not self.seeds or min(self.seeds) < 0:
            raise ConfigError("--seeds must have one seed or more, and no seed may be negative")
        if not self.save_every > 0:
            raise ConfigError(f"save_every={self.save_every:g} must be above 0 seconds")
        if self.kind.training is None:
            raise ConfigError(f"architecture={self.architecture!r} can be used but not trained; choose another")
        for flag, idle in {"--k": self.k is not None and not self.kind.uses_k,
                           "--l1": bool(self.l1) and self.kind.penalty is None}.items():
            if idle:
                raise ConfigError(f"no effect beside --architecture {self.architecture}: {flag}; leave it out, or "
                                  "choose another --architecture")
        self.training(self.buffer_batches)
        for l1 in self.coefficients:
            SaeRun("", l1)

    def run(self, console: Console) -> None:
        """Trains what is missing, showing how far it is, and prints the stored autoencoders' figures."""
        trained, results = autoencoders(self, console)
        losses, reconstructions = (p for p in results.suites["sae"].panels[:2] if isinstance(p, Grid))
        rows = tuple((*left[:6], right[4], left[-1])
                     for left, right in zip(losses.rows, reconstructions.rows, strict=True))
        columns = (*losses.columns[:6], reconstructions.columns[4], losses.columns[-1])
        console.print(tables.terminal(Grid(title=f"autoencoders of {self.workdir}", columns=columns, rows=rows,
                                           caption="In brackets: 95 % intervals over stories or windows.")))
        base.say_paths(console, [*trained, self.workdir / "report.html"])

    @property
    def kind(self) -> Architecture:
        """The registered architecture."""
        return ARCHITECTURES[self.architecture]

    @property
    def coefficients(self) -> tuple[float, ...]:
        """L1 coefficients, the default filled in; 0 where there is no such penalty."""
        return (self.l1 or (PAPER_L1,)) if self.kind.penalty is not None else (0.0,)

    def training(self, buffer_batches: int) -> SaeTrainConfig:
        """Length and pace, with a buffer of so many steps."""
        preset = PRESETS[self.preset]
        return SaeTrainConfig(
            steps=preset["steps"] if self.steps is None else self.steps,
            learning_rate=preset["learning_rate"] if self.learning_rate is None else self.learning_rate,
            warmup=self.warmup, decay=self.decay, l1_warmup=self.l1_warmup, batch_tokens=self.tokens_per_step,
            buffer_batches=buffer_batches, seed=self.seed,
        )

    def score(self) -> ScoreSettings:
        """How the stored autoencoders are measured."""
        return ScoreSettings(workdir=self.workdir, checkpoint=self.checkpoint, suites=("sae",),
                             batch_size=self.batch_size, seed=self.seed)


parse = partial(base.parse, SaeSettings)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """Autoencoders of one width that one pass over the model's activations trains."""

    runs: tuple[SaeRun, ...]
    config: AutoencoderConfig
    settings: SaeTrainConfig
    windows: tuple[int, int]
    """[W, T] of a token batch; it divides half the buffer."""
    origin: Mapping[str, Any]
    """JSON-able: what else decides the weights: model, data, control."""

    def identity(self, run: SaeRun) -> dict[str, Any]:
        """All that decides one autoencoder's weights, for its cfg.json."""
        return {"run": dataclasses.asdict(run), "config": plain(self.config),
                "settings": dataclasses.asdict(self.settings), "windows": list(self.windows), **self.origin}

    def name(self, run: SaeRun) -> str:
        """Name of an autoencoder's folder, for example ``clean.layer_6.mlp_out-l1-5-seed-0-1f6c09ab``."""
        kind = re.sub(r"[^a-z0-9.+-]+", "-", self.config.kind.label(self.config, run.l1).lower())
        control = [] if self.origin["control"] == "none" else [self.origin["control"]]
        return "-".join([run.site, kind, *control, f"seed-{run.seed}", identity_digest(self.identity(run))])

    @property
    def digest(self) -> str:
        """Digest of the identities of all its autoencoders."""
        return identity_digest([self.identity(run) for run in self.runs])

    def without_stored(self, folder: Path) -> "Job":
        """The job without the autoencoders that the folder has already."""
        left = tuple(run for run in self.runs if not (folder / self.name(run) / CONFIG).is_file())
        return dataclasses.replace(self, runs=left)


def autoencoders(settings: SaeSettings, console: Console) -> tuple[list[Path], Results]:
    """Trains what is not stored yet, and measures everything that is.

    Returns:
      Folders of the autoencoders that this call stored, and the run's results with the suite's record.

    Raises:
      ConfigError: a site does not exist, or the run is none of a language model.
      DataError: the text is not the run's or too short, or activations are not finite.
      CheckpointError: the run cannot be read.
      FileError: a file cannot be written, or another process trains the same.
      TrainingError: a loss was not finite.
      SystemExit: with code 130 (Ctrl-C) or 143 (SIGTERM), a signal stopped the training, which the same call goes on
        with.
    """
    config = require_language_model(settings.workdir, "autoencoders are trained on")
    for name in settings.sites:
        find_site(config.model, name)
    run = settings.open()
    origin = {"model": features.fingerprint(run.params), "model_step": run.step,
              "data": run.splits["train"].data_hash, "control": settings.control, "control_seed": settings.seed}
    jobs = plan(settings, config.model, config.train.sequence_length, origin)
    for job in jobs:
        _check_room(job)
    folder, trained = settings.workdir / FOLDER, []
    for asked in jobs:
        # One that was interrupted goes on as it was, also where others were asked for beside it then.
        for job in [*_interrupted(folder, asked), asked]:
            job = job.without_stored(folder) if job is asked else job
            if job.runs:
                trained += _train_job(job, run, settings, folder, console)
    count = sum(len(job.runs) for job in jobs)
    if len(trained) < count:
        base.say(console, f"{count - len(trained)} of {count} autoencoders were stored already")
    return trained, score(settings.score(), partial(base.say, console))


def plan(settings: SaeSettings, model: ModelConfig, length: int, origin: Mapping[str, Any]) -> list[Job]:
    """The jobs of a command, one for each width of its sites; a sequence has `length` tokens.

    Raises:
      ConfigError: a site does not exist, or a number does not fit the width.
    """
    places = [find_site(model, name) for name in settings.sites or (features.paper_site(model),)]
    # Whole sequences of the text must fill half the buffer, so it has a multiple of the steps that they make up.
    unit = length // math.gcd(length, settings.tokens_per_step)
    training = settings.training(2 * max(settings.buffer_batches // 2 // unit, 1) * unit)
    # A token batch has the most sequences that divide half the buffer, within a limit.
    sequences = training.round_steps * training.batch_tokens // length
    rows = next(rows for rows in range(max(_WINDOW_TOKENS // length, 1), 0, -1) if sequences % rows == 0)
    jobs = []
    for width in dict.fromkeys(place.width for place in places):
        runs = tuple(SaeRun(place.name, l1, seed) for place in places if place.width == width
                     for l1 in settings.coefficients for seed in settings.seeds)
        config = AutoencoderConfig(
            d_in=width, d_sae=settings.width * width, architecture=settings.architecture,
            k=32 if settings.k is None else settings.k, decoder=settings.decoder,
            project_gradient=PRESETS[settings.preset]["project_gradient"],
        )
        jobs.append(Job(runs=runs, config=config, settings=training, windows=(rows, length), origin=origin))
    return jobs


class _About(TypedDict):
    """Fields of a job's record that are read again; it has more."""

    autoencoders: list[str]


def _check_room(job: Job) -> None:
    """Raises ConfigError where a device cannot hold the weights, what Adam keeps of them, and the buffer."""
    config, settings = job.config, job.settings
    weights = 4 * 2 * config.d_in * config.d_sae * len(job.runs)  # its gradient and two moments are as large
    buffer = 4 * config.d_in * settings.buffer_batches * settings.batch_tokens * len(sites_of(job.runs))
    require_room(4 * weights + buffer, f"{len(job.runs)} autoencoders of {config.d_sae:,} latents and the activations "
                 f"of {settings.buffer_batches:,} steps", "choose a smaller --width, --buffer-batches or "
                 "--tokens-per-step, or fewer at once")


def _interrupted(folder: Path, asked: Job) -> Iterator[Job]:
    """Jobs with a saved state all of whose autoencoders are among those asked for."""
    by_name = {asked.name(run): run for run in asked.runs}
    for path in sorted((folder / "jobs").glob(f"*/{STATE}")):
        try:
            about = files.read_json(path.with_name(ABOUT), _About, what="a job's record", fix="")
        except (OSError, FileError):
            continue
        names = about["autoencoders"]
        if all(name in by_name for name in names):
            yield dataclasses.replace(asked, runs=tuple(by_name[name] for name in names))


def _source(job: Job, run: Run) -> tuple[Params, tuple[Activations, Any, TokenBatches]]:
    """Parameters of the decoder; and what `features.train` takes: activations, their parameters, and the text."""
    if job.origin["control"] == "random-weights":
        params = random_params(run.model, job.origin["control_seed"])
    else:  # on one device, where the run's are on all of them; training takes them to those that share it
        params = jax.device_put(jax.device_get(run.params))
    names, seed = sites_of(job.runs), job.settings.seed
    reader = features.reader(run.model, names)
    rows, length = job.windows

    def text(start: int) -> Iterator[np.ndarray]:
        batches = train_batches(run.splits["train"].tokens, batch_size=rows, sequence_length=length, seed=seed,
                                start_step=start)
        with contextlib.closing(batches):
            for batch in batches:
                yield batch["inputs"]

    if job.origin["control"] != "gaussian":
        return params, (reader, params, text)
    count = job.settings.buffer_batches * job.settings.batch_tokens // (rows * length)
    moments = features.moments(reader, params, islice(text(0), count))
    gaussian = features.GaussianActivations(names, seed)
    return params, (gaussian, moments, gaussian.batches(job.windows))


def _train_job(job: Job, run: Run, settings: SaeSettings, folder: Path, console: Console) -> list[Path]:
    """Trains a job's autoencoders and returns the folders that they are stored in."""
    where = folder / "jobs" / job.digest
    with _held(where):
        (model_params, source), state = _source(job, run), None
        if (where / STATE).exists():
            try:
                state = features.load_state(where / STATE, job.runs, job.config, job.settings)
            except DataError as error:
                raise CheckpointError(f"{error}; delete {where / STATE} to start anew") from error
        first = 0 if state is None else int(state.step)
        base.say(console, _banner(job, run.splits["train"].tokens.n_tokens, first))
        with training_line(console, job.settings.steps) as line, _Rounds(job, where, settings, line, first) as rounds, (
                Interruption()) as interruption, warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            result = features.train(*source, job.runs, job.config, job.settings, state=state, progress=rounds,
                                    mesh=data_mesh(job.windows[0], job.settings.batch_tokens),
                                    stop=lambda: interruption.name is not None)
            if int(result.state.step) < job.settings.steps:
                rounds.save(result.state)
                print(f"stopped at step {int(result.state.step):,} of {job.settings.steps:,}; the same command goes "
                      "on from there", file=sys.stderr)
                raise SystemExit(143 if interruption.name == "SIGTERM" else 130)
        for warning in warned:
            base.say(console, f"warning: {warning.message}")
        moments = source[1] if job.origin["control"] == "gaussian" else None
        paths = _store(job, result, run, model_params, moments, folder)
        (where / STATE).unlink(missing_ok=True)
    return paths


def _store(job: Job, result: features.TrainResult, run: Run, model_params: Params, moments: features.Moments | None,
           folder: Path) -> list[Path]:
    """Writes the autoencoders of a finished job."""
    conditions, paths = provenance(jax.devices()), []
    for sae_run, sae, scale in zip(result.runs, result.autoencoders, result.scales, strict=True):
        at = sites_of(job.runs).index(sae_run.site)
        paths.append(features.save(
            folder / job.name(sae_run), sae, sae_run.site, model=run.model.config, params=model_params,
            density=features.reconstruction(sae, result.vectors(sae_run)).density,
            moments=jax.tree.map(lambda x, at=at: x[at : at + 1], moments),
            details={"identity": job.identity(sae_run), "scale": scale, "trained": conditions.date,
                     "revision": conditions.revision, "device": conditions.device}))
    return paths


def _banner(job: Job, text_tokens: int, first: int) -> str:
    s, c = job.settings, job.config
    many = f"{len(job.runs)} autoencoders" if len(job.runs) > 1 else "an autoencoder"
    what = {"none": "", "gaussian": ", on Gaussian vectors of their mean and covariance",
            "random-weights": ", of the model with random weights"}[job.origin["control"]]
    begin = f"goes on from step {first:,}" if first else "starts"
    return (f"training {many} {c.d_in:,} -> {c.d_sae:,} at {', '.join(sites_of(job.runs))}{what}: {s.steps:,} steps of "
            f"{s.batch_tokens:,} tokens; the text has {text_tokens:,}, of which {s.tokens:,} are drawn; {begin}")


class _Rounds:
    """What is done after each round: figures are checked, written and shown, and now and then the state is saved."""

    def __init__(self, job: Job, folder: Path, settings: SaeSettings, line: Line, first: int):
        self._job, self._folder, self._line = job, folder, line
        self._every, self._first = settings.save_every, first
        self._began: tuple[int, float] | None = None

    def __enter__(self) -> "_Rounds":
        about = {"autoencoders": [self._job.name(run) for run in self._job.runs],
                 "identities": [self._job.identity(run) for run in self._job.runs]}
        for name in (ABOUT, METRICS, STATE):
            files.remove_partials(self._folder / name)
        files.write_json(self._folder / ABOUT, about, indent=1, otherwise=_OTHERWISE)
        rounds = math.ceil(self._first / self._job.settings.round_steps)
        self._log = files.JsonLines(self._folder / METRICS, upto=self._first, otherwise=_OTHERWISE,
                                    state={"lines": rounds * len(self._job.runs)})
        self._saved = time.monotonic()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with contextlib.suppress(*([] if kind is None else [FileError])):  # the error that ended it is the one to tell
            self._log.close()

    def __call__(self, state: features.TrainState, metrics: features.StepMetrics) -> None:
        step = int(state.step)
        means = {name: np.mean(values, axis=0) for name, values in metrics._asdict().items()}
        means |= {name: getattr(metrics, name)[-1] for name in ("dead", "learning_rate", "l1_coefficient")}
        self._refuse_nonfinite(step, means)
        for i, run in enumerate(self._job.runs):
            values = {name: float(value[i]) for name, value in means.items()}
            self._log.add({"step": step, **dataclasses.asdict(run), "figures": values})
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
                                    f"--learning-rate than {self._job.settings.rate:g} may help")


@contextlib.contextmanager
def _held(where: Path) -> Iterator[None]:
    """Makes a job's folder and keeps other processes out of it; it is gone again if nothing comes of it."""
    busy = f"another process is training in {where}; wait for it or stop it"
    with files.lock(where / ".lock", busy=busy, otherwise=_OTHERWISE):
        try:
            yield
        finally:
            log = where / METRICS
            with contextlib.suppress(OSError):
                if not (where / STATE).exists() and not (log.exists() and log.stat().st_size):
                    for name in (ABOUT, METRICS, ".lock"):
                        (where / name).unlink(missing_ok=True)
                    for path in (where, where.parent, where.parent.parent):
                        path.rmdir()  # stays where it holds anything


@contextlib.contextmanager
def training_line(console: Console, steps: int) -> Iterator[Line]:
    """A live picture of step, figures, speed and the time left, which goes when the block ends; where the console is no
    terminal, lines now and then."""
    seldom = Seldom(steps)
    live = Live(picture(steps, 0, "compiling"), console=console, transient=True, refresh_per_second=4)

    def show(step: int, figures: Mapping[str, np.ndarray], rate: float | None) -> None:
        text = line(step, steps, figures, rate)
        if console.is_terminal:
            live.update(picture(steps, step, text))
        elif seldom.due(step):
            console.print(text, highlight=False, soft_wrap=True)

    with live if console.is_terminal else contextlib.nullcontext():
        yield show


def line(step: int, steps: int, figures: Mapping[str, np.ndarray], rate: float | None) -> str:
    """One line of progress; of several autoencoders the least and the greatest figure.

    >>> figures = {"loss": np.array([30.0, 8.0]), "l0": np.array([3.2, 31.0]),
    ...            "explained_variance": np.array([0.5, 0.75]), "dead": np.array([4, 0])}
    >>> line(64, 4000, figures, 8.0)
    'step 64/4000  loss 8..30  L0 3.2..31  explained variance 0.5..0.75  dead 0..4  8.0 steps/s  0:08:12 left'
    """
    parts = [f"step {step}/{steps}"]
    for label, name in {"loss": "loss", "L0": "l0", "explained variance": "explained_variance", "dead": "dead"}.items():
        low, high = f"{np.min(figures[name]):.3g}", f"{np.max(figures[name]):.3g}"
        parts.append(f"{label} {low}" if low == high else f"{label} {low}..{high}")
    if rate is not None:
        left = datetime.timedelta(seconds=round((steps - step) / rate))
        parts += [f"{rate:.1f} steps/s", f"{left} left"]
    return "  ".join(parts)

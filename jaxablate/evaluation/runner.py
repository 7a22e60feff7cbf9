"""Scores a working directory: restores a checkpoint, runs the suites that fit it, keeps ``results.json``.

The only file of this room that knows of training and data.
"""

import dataclasses
import difflib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxablate.config import Config, DataConfig, MeshConfig, to_dict
from jaxablate.data import corpus
from jaxablate.data.pipeline import validation_batches
from jaxablate.data.prepare import PreparedData, prepare
from jaxablate.data.progress import progress_report
from jaxablate.data.tokenizer import Tokenizer, load_tokenizer
from jaxablate.errors import CheckpointError, ConfigError, DataError
from jaxablate.evaluation import gates, ioi, perplexity, samples, weights
from jaxablate.evaluation.settings import ScoreSettings
from jaxablate.evaluation.suite import Batch, Subject, Suite
from jaxablate.models.decoder import SelfAblatingTransformer
from jaxablate.provenance import provenance
from jaxablate.reports import results as files
from jaxablate.reports.html import write_report
from jaxablate.reports.results import Results, SuiteRecord
from jaxablate.sharding import batch_parts, batch_sharding, make_mesh, replicated
from jaxablate.training.checkpoint import restore_params
from jaxablate.training.workdir import read_config, read_run, require_x64

SUITES: tuple[Suite, ...] = (perplexity.SUITE, ioi.SUITE, gates.SUITE, weights.SUITE, samples.SUITE)
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
    chosen = choose(settings.suites, config, say)
    subject, results = open_checkpoint(settings, config)
    results = files.merge(_earlier(settings.workdir, say), results)
    for suite in chosen:
        say(f"{suite.name} ...")
        record = run_suite(suite, subject, settings)
        results = _with(results, record)
        files.write(settings.workdir, results)
    write_report(settings.workdir, results)
    return results


def choose(names: Sequence[str], config: Config, say: Callable[[str], None] = lambda line: None) -> list[Suite]:
    """Suites by name, or all that fit.

    Raises:
      ConfigError: a name is unknown (the nearest is named), or a suite that was asked for does not fit (says why).
    """
    known = {suite.name: suite for suite in SUITES}
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ConfigError(f"unknown suite {name!r}; {hint}There are {', '.join(known)}")
        reason = known[name].unfit(config)
        if reason:
            raise ConfigError(f"suite {name!r} does not fit: {reason}; leave it out of --suites")
    if names:
        return [known[name] for name in dict.fromkeys(names)]
    for suite in SUITES:
        if (reason := suite.unfit(config)) is not None:
            say(f"{suite.name} is left out: {reason}")
    return [suite for suite in SUITES if suite.unfit(config) is None]


def open_checkpoint(settings: ScoreSettings, config: Config) -> tuple[Subject, Results]:
    """Parameters and data of a run, and its results without any suite.

    Raises:
      CheckpointError: no checkpoint can be restored.
      DataError: the data cannot be prepared, or its tokens are not the model's.
    """
    params, step = restore_params(settings.workdir, step=settings.step)
    with progress_report() as report:
        data = prepare(config.data, report=report)
    tokenizer = load_tokenizer(settings.workdir / "tokenizer")
    _check_data(settings.workdir, config.data, data, tokenizer)
    mesh = make_mesh(MeshConfig())
    params = jax.device_put(params, replicated(mesh))
    rows = settings.batch_size or config.train.batch_size
    options = {"batch_size": rows + -rows % batch_parts(mesh), "max_batches": settings.max_batches,
               "sequence_length": config.train.sequence_length}

    def batches() -> Iterator[Batch]:
        return (jax.device_put(batch, batch_sharding(mesh)) for batch in validation_batches(data.valid, **options))

    model = SelfAblatingTransformer(config.model)
    subject = Subject(config=config, model=model, params=params, tokenizer=tokenizer, batches=batches,
                      seed=settings.seed, **_known_facts(config.data))
    return subject, _empty_results(config, params, step, data.valid.data_hash)


def _check_data(workdir: Path, config: DataConfig, data: PreparedData, tokenizer: Tokenizer) -> None:
    """Refuses data that is not the run's: its figures would stand beside those of other data."""
    if tokenizer.fingerprint() != data.tokenizer.fingerprint():
        raise DataError(f"the data in {config.cache_dir!r} was made with another tokenizer than the run's; "
                        "prepare it again from the text the run was trained on")
    now = data.valid.data_hash
    then = read_run(workdir).get("data_hash", {}).get("valid", now)
    if now != then:
        raise DataError(f"the validation tokens in {config.cache_dir!r} are not the run's (hash {now[:12]}, then "
                        f"{then[:12]}); bring the text back as it was")


def _known_facts(data: DataConfig) -> dict[str, Callable[..., Any]]:
    """What is known of the data beyond its tokens: for the embedded corpus, its prompts and its entropy."""
    if data.source != "embedded":
        return {}
    valid = data.embedded_seed, corpus.VALID_START, data.embedded_valid_stories
    return {"ioi_prompts": corpus.ioi_prompts, "loss_floor": lambda: corpus.entropy_floor(*valid)}


def run_suite(suite: Suite, subject: Subject, settings: ScoreSettings) -> SuiteRecord:
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


def _empty_results(config: Config, params: Any, step: int, data_hash: str) -> Results:
    leaves = {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(params)}
    return Results(config=to_dict(config), seed=config.train.seed, step=int(step), params_digest=files.digest(leaves),
                   data_hash=data_hash, parameters=sum(x.size for x in leaves.values()))


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


def _with(results: Results, record: SuiteRecord) -> Results:
    """Results with one more record, suites in the order of `SUITES`."""
    records = {**results.suites, record.suite: record}
    order = [s.name for s in SUITES if s.name in records]
    order += [name for name in records if name not in order]
    return dataclasses.replace(results, suites={name: records[name] for name in order})

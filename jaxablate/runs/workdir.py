"""The working directory of a run: who may use it, and what is on record in it.

``config.json`` is the configuration and ``run.json`` the conditions of the run; ``metrics.jsonl``, ``tensorboard/``,
``tokenizer/``, ``checkpoints/`` and ``profile/`` hold what their names say.
"""

import contextlib
import logging
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypedDict

import jax
from jax.sharding import Mesh

from jaxablate import files
from jaxablate.config import CONTINUABLE, RunConfig, differences, run_from_dict, to_dict
from jaxablate.errors import CheckpointError, ConfigError, FileError
from jaxablate.provenance import provenance

logger = logging.getLogger(__name__)

CONFIG = "config.json"
RUN = "run.json"
METRICS = "metrics.jsonl"
OTHERWISE = "choose another --workdir"
"""What a user may do who cannot write a working directory, for messages."""


def read_config(workdir: str | Path) -> RunConfig:
    """Configuration that a run is stored with.

    Raises:
      ConfigError: the directory's name is none that can be used (`files.check_path`).
      CheckpointError: the directory has none, or it has settings that this version does not know.
      FileError: it cannot be read.
    """
    files.check_path(workdir, "workdir")
    path = Path(workdir) / CONFIG
    try:
        return run_from_dict(files.read_json(path, what="a configuration", fix=f"restore it, or {OTHERWISE}"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist; {workdir} is not the --workdir of a training run") from error
    except ConfigError as error:
        raise CheckpointError(f"{path} cannot be read ({error}); restore it, or {OTHERWISE}") from error


class _Record(TypedDict):
    """Fields that every ``run.json`` has; it has more."""

    parameters: int
    data_hash: dict[str, str]
    tokenizer: dict[str, str]
    resumed: list[dict[str, Any]]


_CONDITIONS = ("started", "revision", "versions", "device", "mesh", "processes")
"""When, where and with what a run began; a record that was made anew has none of them."""


def read_run(workdir: str | Path) -> dict[str, Any] | None:
    """The record of a run's conditions and data, as `record_run` writes it; None where there is none.

    Raises:
      FileError: it cannot be read or is no such record.
    """
    path, fix = Path(workdir) / RUN, "restore it, or delete it to go on without what it says"
    try:
        files.read_json(path, _Record, what="a run's record", fix=fix)
        record = files.read_json(path, what="a run's record", fix=fix)
    except FileNotFoundError:
        return None
    gone = [name for name in _CONDITIONS if name not in record]
    if gone and len(gone) < len(_CONDITIONS):
        raise FileError(f"{path} has no {gone[0]!r} beside the other conditions of the run; {fix}")
    return record


def check_workdir(workdir: str | Path, config: RunConfig) -> None:
    """Refuses a directory that is another run's or that cannot be written; leaves nothing behind.

    Raises:
      ConfigError: its name is none that can be used (`files.check_path`).
      CheckpointError: it holds a run with another configuration, or none.
      FileError: it is a file, or cannot be written.
    """
    files.check_path(workdir, "workdir")
    workdir = Path(workdir)
    try:
        existing = next(p for p in (workdir.absolute(), *workdir.absolute().parents) if p.exists())
        with tempfile.TemporaryFile(dir=existing) as probe:
            probe.write(b"probe")
    except OSError as error:
        raise files.write_error(workdir, error, OTHERWISE) from error
    if (workdir / CONFIG).exists():
        changed = differences(read_config(workdir), config, ignore=CONTINUABLE)
        if changed:
            raise CheckpointError(
                f"{workdir} holds a run with another configuration ({'; '.join(changed)}); "
                "give the stored settings to continue it, or another --workdir"
            )
    elif any((workdir / name).exists() for name in (RUN, METRICS)) or any(workdir.glob("checkpoints/*")):
        raise CheckpointError(f"{workdir} holds a run without its {CONFIG}; restore it, or {OTHERWISE}")


@contextlib.contextmanager
def hold_workdir(workdir: Path) -> Iterator[None]:
    """Makes the directory and keeps other training processes out of it. A killed process leaves no lock.

    Of several processes that train together the first one holds it.

    Raises:
      FileError: it cannot be made or locked, or another process is training in it.
    """
    if jax.process_index() > 0:
        yield
        return
    busy = f"another process is training in {workdir}; wait for it or stop it"
    with files.lock(workdir / ".lock", busy=busy, otherwise=OTHERWISE):
        yield


def record_run(workdir: Path, config: RunConfig, mesh: Mesh, facts: Mapping[str, Any], step: int, *,
               before: Mapping[str, Any]) -> None:
    """Writes ``config.json`` and ``run.json``; a continued run keeps its first record and adds to ``resumed``.

    ``facts`` are the same at every start: data hashes, tokenizer, number of parameters. ``before`` are those of the
    checkpoint that is continued, for where ``run.json`` is gone: a warning says so, and the new one does not say when
    the run began. The directory is held by `hold_workdir`.

    Raises:
      CheckpointError: the stored run has other data, or its record lacks what it must say of it.
      FileError: a file cannot be written.
    """
    here = provenance(list(mesh.devices.flat))
    now = {"started": here.date, "revision": here.revision, "versions": here.versions, "device": here.device,
           "mesh": dict(mesh.shape), "processes": jax.process_count()}
    record = read_run(workdir)
    then = before if record is None else record
    for name, value in facts.items():
        if record is not None and name not in record and (name in before or not before):
            raise CheckpointError(f"{workdir / RUN} has no {name!r}; restore it, or delete it to go on without what it "
                                  "says")
        if then.get(name, value) != value:
            doubt = f", or delete {RUN}, which the checkpoint contradicts" if before.get(name) == value else ""
            raise CheckpointError(
                f"{workdir} was trained with {name}={then[name]}, now it is {value}; "
                f"bring the data back as it was, or choose another --workdir{doubt}"
            )
    if record is None and step:
        record = dict(facts)
        logger.warning("%s is gone; when and where the run began is no longer known", workdir / RUN)
    if record is None:
        record = now | dict(facts) | {"resumed": []}
    else:
        record.setdefault("resumed", []).append(now | {"step": step})
    if jax.process_index() == 0:
        for name in (CONFIG, RUN, METRICS):
            files.remove_partials(workdir / name)
        files.write_json(workdir / CONFIG, to_dict(config), otherwise=OTHERWISE)
        files.write_json(workdir / RUN, record, otherwise=OTHERWISE)


def require_x64(config: RunConfig) -> None:
    """Refuses float64 where JAX would quietly compute in float32.

    Raises:
      ConfigError: the model wants float64 and ``jax_enable_x64`` is off.
    """
    wanted = "float64" in (config.model.param_dtype, config.model.compute_dtype)
    if wanted and not jax.config.read("jax_enable_x64"):
        raise ConfigError("the model's float64 needs jax_enable_x64; set the environment variable JAX_ENABLE_X64=1")

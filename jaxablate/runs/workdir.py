"""The working directory of a run: who may use it, and what is on record in it.

``config.json`` is the configuration and ``run.json`` the conditions of the run; ``metrics.jsonl``, ``tensorboard/``,
``tokenizer/`` and ``checkpoints/`` hold what their names say.
"""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from jaxablate import files
from jaxablate.config import CONTINUABLE, RunConfig, differences, run_from_dict, to_dict
from jaxablate.errors import CheckpointError, ConfigError
from jaxablate.provenance import provenance

CONFIG = "config.json"
RUN = "run.json"
METRICS = "metrics.jsonl"
OTHERWISE = "choose another --workdir"
"""What a user may do who cannot write a working directory, for messages."""


def read_config(workdir: str | Path) -> RunConfig:
    """Configuration that a run is stored with.

    Raises:
      CheckpointError: the directory has none, or it has settings that this version does not know.
      FileError: it cannot be read.
    """
    path = Path(workdir) / CONFIG
    try:
        return run_from_dict(files.read_json(path, what="a configuration", fix=f"restore it, or {OTHERWISE}"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist; {workdir} is not the --workdir of a training run") from error
    except ConfigError as error:
        raise CheckpointError(f"{path} cannot be read ({error}); restore it, or {OTHERWISE}") from error


def read_run(workdir: str | Path) -> dict[str, Any]:
    """The record of a run's conditions and data, as `record_run` writes it; empty where there is none yet.

    Raises:
      FileError: it cannot be read.
    """
    path = Path(workdir) / RUN
    try:
        return files.read_json(path, what="a run's record", fix=f"restore it, or {OTHERWISE}")
    except FileNotFoundError:
        return {}


def check_workdir(workdir: str | Path, config: RunConfig) -> None:
    """Refuses a directory that is another run's or that cannot be written; leaves nothing behind.

    Raises:
      CheckpointError: it holds a run with another configuration, or none.
      FileError: it is a file, or cannot be written.
    """
    workdir = Path(workdir)
    existing = next(p for p in (workdir.absolute(), *workdir.absolute().parents) if p.exists())
    try:
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


def record_run(workdir: Path, config: RunConfig, mesh: Mesh, facts: dict[str, Any], step: int) -> None:
    """Writes ``config.json`` and ``run.json``; a continued run keeps its first record and adds to ``resumed``.

    ``facts`` are the same at every start: data hashes, tokenizer, number of parameters. The directory is held by
    `hold_workdir`.

    Raises:
      CheckpointError: the stored run has other data.
      FileError: a file cannot be written.
    """
    here = provenance(list(mesh.devices.flat))
    now = {"started": here.date, "revision": here.revision, "versions": here.versions, "device": here.device,
           "mesh": dict(mesh.shape), "processes": jax.process_count()}
    record = read_run(workdir)
    if record:
        for name, value in facts.items():
            if record.get(name, value) != value:
                raise CheckpointError(
                    f"{workdir} was trained with {name}={record[name]}, now it is {value}; "
                    "bring the data back as it was, or choose another --workdir"
                )
        record.setdefault("resumed", []).append(now | {"step": step})
    else:
        record = now | facts | {"resumed": []}
    if jax.process_index() == 0:
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

"""The working directory of a run: who may use it, and what is on record in it.

``config.json`` the configuration; ``run.json`` under which conditions it ran; ``metrics.jsonl``, ``tensorboard/``,
``tokenizer/``, ``checkpoints/``.
"""

import contextlib
import fcntl
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from jaxablate.config import CONTINUABLE, RunConfig, differences, run_from_dict, to_dict
from jaxablate.errors import CheckpointError, ConfigError
from jaxablate.provenance import provenance

CONFIG = "config.json"
RUN = "run.json"
METRICS = "metrics.jsonl"


def read_config(workdir: str | Path) -> RunConfig:
    """Configuration that a run is stored with.

    Raises:
      CheckpointError: there is none, or it cannot be read.
    """
    path = Path(workdir) / CONFIG
    try:
        return run_from_dict(json.loads(path.read_text()))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist; {workdir} is not the --workdir of a training run") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); restore it, or choose another --workdir") from error


def read_run(workdir: str | Path) -> dict[str, Any]:
    """The record of a run's conditions and data, see `record_run`; empty where there is none yet.

    Raises:
      CheckpointError: it cannot be read.
    """
    path = Path(workdir) / RUN
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); restore it, or choose another --workdir") from error


def check_workdir(workdir: str | Path, config: RunConfig) -> None:
    """Refuses a directory that is another run's or that cannot be written; leaves nothing behind.

    Raises:
      CheckpointError: it holds another configuration, is a file, or cannot be written.
    """
    workdir = Path(workdir)
    existing = next(p for p in (workdir.absolute(), *workdir.absolute().parents) if p.exists())
    try:
        with tempfile.TemporaryFile(dir=existing) as probe:
            probe.write(b"probe")
    except OSError as error:
        raise CheckpointError(unwritable(workdir, error)) from error
    if (workdir / CONFIG).exists():
        changed = differences(read_config(workdir), config, ignore=CONTINUABLE)
        if changed:
            raise CheckpointError(
                f"{workdir} holds a run with another configuration ({'; '.join(changed)}); "
                "give the stored settings to continue it, or another --workdir"
            )
    elif any((workdir / name).exists() for name in (RUN, METRICS)) or any(workdir.glob("checkpoints/*")):
        raise CheckpointError(f"{workdir} holds a run without its {CONFIG}; restore it, or choose another --workdir")


@contextlib.contextmanager
def hold_workdir(workdir: Path) -> Iterator[None]:
    """Makes the directory and keeps other training processes out of it; a killed process leaves no lock.

    Raises:
      CheckpointError: it cannot be made, or another process is training in it.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = open(workdir / ".lock", "w")  # noqa: SIM115 (closed below, and by the end of the process)
    except OSError as error:
        raise CheckpointError(unwritable(workdir, error)) from error
    with lock:
        if jax.process_index() == 0:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise CheckpointError(f"another process is training in {workdir}; wait for it or stop it") from error
            except OSError as error:
                raise CheckpointError(
                    f"cannot lock {workdir} ({error.strerror}); choose a --workdir on a file system with locks"
                ) from error
        yield


def record_run(workdir: Path, config: RunConfig, mesh: Mesh, facts: dict[str, Any], step: int) -> None:
    """Writes ``config.json`` and ``run.json``; a continued run keeps its first record and adds to ``resumed``.

    Args:
      workdir: exists and is held.
      config: as given now.
      mesh: in use now.
      facts: of the run, the same at every start: data hashes, tokenizer, number of parameters.
      step: updates made so far.

    Raises:
      CheckpointError: the stored run has other data, or a file cannot be written.
    """
    now = _conditions(mesh)
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
        write_json(workdir / CONFIG, to_dict(config))
        write_json(workdir / RUN, record)


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file whole or not at all.

    Raises:
      CheckpointError: it cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(json.dumps(value, indent=2) + "\n")
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise CheckpointError(unwritable(path, error)) from error


def unwritable(path: str | Path, error: OSError) -> str:
    """One line that says why a path cannot be written."""
    return f"cannot write {path} ({error.strerror or error}); make it writable, or choose another --workdir"


def _conditions(mesh: Mesh) -> dict[str, Any]:
    now = provenance(list(mesh.devices.flat))
    return {
        "started": now.date,
        "revision": now.revision,
        "versions": now.versions,
        "device": now.device,
        "mesh": dict(mesh.shape),
        "processes": jax.process_count(),
    }


def require_x64(config: RunConfig) -> None:
    """Refuses float64 where JAX would quietly compute in float32.

    Raises:
      ConfigError: the model wants float64 and ``jax_enable_x64`` is off.
    """
    wanted = "float64" in (config.model.param_dtype, config.model.compute_dtype)
    if wanted and not jax.config.jax_enable_x64:
        raise ConfigError("the model's float64 needs jax_enable_x64; set the environment variable JAX_ENABLE_X64=1")

"""Checkpoints by Orbax: written in the background, sealed when complete, restored on any devices.

``checkpoints/<step>/`` holds what Orbax wrote (``params``, ``optimizer``, ``progress``) and, last of all, ``seal.json``
with the size and checksum of each of its files. A folder without a seal is no checkpoint: it was being written when the
process died. One whose seal does not fit has been damaged since. Older checkpoints are removed only once a newer one is
sealed, so from the first seal on a good one exists at every moment; a run killed before it starts again at step 0.

Orbax's own managers delete old steps before anything has looked at the new one, and leave a flipped bit in array data
unnoticed (zstd frames carry no checksum); hence seals, and `orbax.checkpoint.AsyncCheckpointer` underneath.
"""

import concurrent.futures
import contextlib
import dataclasses
import errno
import json
import logging
import math
import os
import re
import shutil
import sys
import threading
import traceback
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import flax.traverse_util
import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxablate import files
from jaxablate.errors import CheckpointError, FileError
from jaxablate.runs.interruption import lost_process
from jaxablate.sharding import path_name
from jaxablate.types import Params

log = logging.getLogger(__name__)

FOLDER = "checkpoints"
SEAL = "seal.json"
_ARRAYS = "manifest.ocdbt"
"""The file by which TensorStore finds the arrays of a folder."""

State = Any
"""What a run changes: a Flax struct with `step`, `params`, `opt_state` and `key`."""


class Checkpoints:
    """The checkpoints of one run, for the process that writes them; besides the newest ones the best is kept.

    Raises:
      ConfigError: the working directory's name is none that can be used (`files.check_path`).
      CheckpointError: the folder cannot be written.
    """

    def __init__(self, workdir: str | Path, keep_last: int):
        self.folder = _folder(workdir)
        self.keep_last = keep_last
        with _readable_errors(f"checkpoint folder {self.folder}"):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._remove_unfinished()
        _quieten_orbax()
        # Folders are made before arrays are copied: threads of Orbax would wait twenty minutes for one that cannot be.
        at_once = ocp.options.AsyncOptions(create_directories_asynchronously=False)
        handler = ocp.CompositeCheckpointHandler(composite_options=ocp.CompositeOptions(async_options=at_once))
        self._orbax = ocp.AsyncCheckpointer(handler, async_options=at_once)
        self._failed = False
        self._thread = concurrent.futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="seal")
        self._pending: concurrent.futures.Future[None] | None = None
        self._pending_step = 0

    def save(self, state: State, progress: Mapping[str, Any], valid_loss: float | None = None) -> None:
        """Starts saving and returns as soon as the arrays may be overwritten.

        ``progress`` is the JSON-able rest of the run, such as the data cursor. ``valid_loss`` decides which checkpoint
        is the best; None where it was not measured at this step.

        Raises:
          CheckpointError: the previous save failed, or this one cannot start.
        """
        self.wait()
        step = self._pending_step = int(state.step)
        arrays = {"params": state.params, "optimizer": _without_params(state)}
        with self._saving(step):
            items: dict[str, Any] = {name: ocp.args.StandardSave(tree) for name, tree in arrays.items()}
            items["progress"] = ocp.args.JsonSave(dict(progress))
            self._require_space(arrays)
            _uninterrupted(self._orbax.save, self.folder / str(step), args=ocp.args.Composite(**items), force=True)
        self._pending = self._thread.submit(self._finish, step, valid_loss, _describe(arrays))

    def check(self) -> None:
        """Raises CheckpointError where a save in the background has failed, without waiting for it."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Waits until the last save is sealed.

        Raises:
          CheckpointError: it failed; the message names the last good checkpoint.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            with self._saving(self._pending_step):
                pending.result()

    def restore(self, abstract: State) -> tuple[State, dict[str, Any]] | None:
        """Newest good checkpoint, for a state of shapes and on the devices that its shardings name.

        Returns:
          (state, progress), or None where the run has no checkpoint yet. Folders without a seal and damaged
          checkpoints are passed over with a warning.

        Raises:
          CheckpointError: there are checkpoints but none is good, or the good one does not fit the target.
        """
        target = {"params": abstract.params, "optimizer": _without_params(abstract)}
        for step in reversed(saved_steps(self.folder)):
            restored = _try_restore(self.folder / str(step), target)
            if restored is not None:
                return abstract.replace(params=restored["params"], **restored["optimizer"]), restored["progress"]
        if _any_sealed(self.folder):
            raise CheckpointError(f"no checkpoint in {self.folder} can be read; move it away to start the run again")
        return None

    def last_good(self) -> str:
        """A clause that names the newest good checkpoint, for messages."""
        good = [step for step in saved_steps(self.folder) if damage(self.folder / str(step)) is None]
        if not good:
            return "there is no good checkpoint yet"
        return f"the last good checkpoint is {self.folder / str(good[-1])}"

    def close(self) -> None:
        """Waits, then frees the threads.

        Raises:
          CheckpointError: the last save failed.
        """
        with contextlib.ExitStack() as stack:
            stack.enter_context(files.closing(self._close_orbax))
            stack.callback(self._thread.shutdown)
            self.wait()

    def _close_orbax(self) -> None:
        try:
            self._orbax.close()
        except OSError:
            if not self._failed:  # else a thread tells once more of the save that failed
                raise

    @contextlib.contextmanager
    def _saving(self, step: int) -> Iterator[None]:
        try:
            with _readable_errors(f"checkpoint {step} in {self.folder}"):
                yield
        except CheckpointError as error:
            self._failed = True
            self._remove_unfinished()
            raise CheckpointError(f"{error}; {self.last_good()}") from error

    def _require_space(self, arrays: Any) -> None:
        """Refuses before Orbax begins: when it meets a full disk itself, its threads fill the screen."""
        leaves = (x for x in jax.tree.leaves(arrays) if not jax.numpy.issubdtype(x.dtype, jax.dtypes.prng_key))
        needed = 1.05 * sum(x.nbytes for x in leaves) + 2**16
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise OSError(errno.ENOSPC, f"No space left on device: {needed:,.0f} bytes needed, {free:,} free")

    def _finish(self, step: int, valid_loss: float | None, arrays: dict[str, str]) -> None:
        self._orbax.wait_until_finished()
        if jax.process_index() == 0:
            write_seal(self.folder / str(step), step, valid_loss, arrays)
            self._prune(step)

    def _prune(self, newest: int) -> None:
        """Removes all but the last ones up to the one just sealed, and the best one.

        A later step that is there was passed over when the run was restored, so it is damaged even where its seal is
        not; it must not take the place of a good one.
        """
        seals = {step: read_seal(self.folder / str(step)) for step in saved_steps(self.folder)}
        good = [step for step, seal in seals.items() if seal is not None and step <= newest]
        best = next((step for step in _by_loss(seals) if step <= newest), None)
        for step in seals.keys() - {*good[-self.keep_last :], best}:
            old = self.folder / str(step)
            try:
                old.unlink() if old.is_symlink() else shutil.rmtree(old)
            except OSError as error:  # the new one is sealed all the same
                log.warning("old checkpoint %s cannot be removed (%s)", old, error.strerror or error)

    def _remove_unfinished(self) -> None:
        """Removes what a killed or failed save has left; a damaged checkpoint stays until a new one is sealed."""
        if jax.process_index() == 0:
            for left in self.folder.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(left, ignore_errors=True)


def restore_params(workdir: str | Path, *, step: int | Literal["best", "best or last"] | None = None,
                   shardings: Any = None) -> tuple[Params, int]:
    """Parameters alone, on whatever devices are here.

    Args:
      workdir: working directory of a run.
      step: None for the newest, "best" for the lowest validation loss (of a classifier: one minus the accuracy), "best
        or last" for that or, where none was measured yet, the newest, or a number. A number is taken as it is; the
        others pass over damaged checkpoints with a warning.
      shardings: tree of shardings for the parameters; None puts all on the first device.

    Returns:
      (parameter tree of nested dicts, its step).

    Raises:
      CheckpointError: no such checkpoint, or none that is good.
    """
    folder = _folder(workdir)
    for number in _candidates(folder, step):
        seal = read_seal(folder / str(number))
        target = {} if seal is None else {"params": _params_target(seal, shardings)}
        restored = _try_restore(folder / str(number), target)
        if restored is not None:
            return restored["params"], number
    if isinstance(step, int):
        raise CheckpointError(f"checkpoint {step} in {folder} is damaged; there are also {_listed(folder)}")
    if not _any_sealed(folder):
        raise CheckpointError(f"no checkpoint in {folder} is whole yet; train on with the command that began the run")
    raise CheckpointError(f"no checkpoint in {folder} can be read")


def trained_config(workdir: str | Path, step: int) -> dict[str, Any] | None:
    """The configuration as a checkpoint holds it, a classifier's vocabulary size filled in; None where it has none."""
    try:
        progress = files.read_json(_folder(workdir) / str(step) / "progress" / "metadata", what="a run's progress",
                                   fix="take another --checkpoint")
    except FileNotFoundError:
        return None
    return progress.get("config")


def stored_progress(workdir: str | Path) -> tuple[int, dict[str, Any]] | None:
    """Step of a run's newest sealed checkpoint, and the rest of the run that was saved with it (`Checkpoints.save`).

    Reads two small files and none of the arrays, so damage to these is not seen. None where there is none yet.
    """
    folder = _folder(workdir)
    for step in reversed(saved_steps(folder)):
        if read_seal(folder / str(step)) is not None:
            with contextlib.suppress(FileError, OSError):
                path = folder / str(step) / "progress" / "metadata"
                return step, files.read_json(path, what="a run's progress", fix="")
    return None


def saved_steps(folder: Path) -> list[int]:
    """Steps that have a folder of their name, ascending, damaged ones and those without a seal included."""
    if not folder.is_dir():
        return []
    return sorted(int(p.name) for p in folder.iterdir() if _STEP.fullmatch(p.name) and p.is_dir())


_STEP = re.compile("0|[1-9][0-9]{0,17}")


def _any_sealed(folder: Path) -> bool:
    return any((folder / str(step) / SEAL).exists() for step in saved_steps(folder))


def _folder(workdir: str | Path) -> Path:
    """Where the checkpoints are. Orbax cuts `..` out of a path's text, which names another folder behind a link."""
    files.check_path(workdir, "workdir")
    path = Path(workdir).absolute()
    return (path.resolve() if ".." in path.parts else path) / FOLDER


# Seals ---------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seal:
    """What a checkpoint was when it was complete."""

    step: int
    """Updates that led to it."""
    valid_loss: float | None
    """Validation loss measured at this very step, or None."""
    arrays: dict[str, str]
    """``"params/ln_f/scale" -> "float32[128]"`` for every array."""
    files: dict[str, tuple[int, int]]
    """Path inside the folder -> (bytes, CRC-32)."""


def write_seal(folder: Path, step: int, valid_loss: float | None, arrays: dict[str, str]) -> None:
    """Seals a checkpoint whose files are all written; a loss that is not finite counts as not measured.

    Raises:
      CheckpointError: its arrays are not where they belong.
      FileError: the seal cannot be written.
    """
    for name in {path.split("/")[0] for path in arrays}:
        if not (folder / name / _ARRAYS).is_file():
            raise CheckpointError(f"{folder / name} holds no arrays: they were written elsewhere, or are gone already")
    contents = sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(SEAL))
    checksums = {str(p.relative_to(folder)): (p.stat().st_size, files.crc32(p)) for p in contents}
    loss = valid_loss if valid_loss is not None and math.isfinite(valid_loss) else None
    seal = dataclasses.asdict(Seal(step=step, valid_loss=loss, arrays=arrays, files=checksums))
    files.write_json(folder / SEAL, {"crc": _crc_of(seal), "seal": seal}, indent=None)


def read_seal(folder: Path) -> Seal | None:
    """The seal, or None where it is missing, not what was written, or that of a folder with another name."""
    try:
        stored = files.read_json(folder / SEAL, what="a seal", fix="")
        seal = stored["seal"]
        if stored["crc"] != _crc_of(seal) or str(seal["step"]) != folder.name:
            return None
        return Seal(**seal | {"files": {name: tuple(value) for name, value in seal["files"].items()}})
    except (OSError, FileError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, or None; reads every byte of it once."""
    seal = read_seal(folder)
    if seal is None:
        return f"its {SEAL} is missing or damaged (the save never finished, or its file or name was changed)"
    for name, (size, crc) in seal.files.items():
        path = folder / name
        try:
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != size:
                return f"{name} has {path.stat().st_size} bytes of {size}"
            if files.crc32(path) != crc:
                return f"the content of {name} has changed"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
    return None


def _crc_of(seal: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(seal, sort_keys=True).encode())


def _by_loss(seals: Mapping[int, Seal | None]) -> list[int]:
    """Steps whose validation loss was measured, the lowest first, of equal ones the latest first."""
    losses = {step: seal.valid_loss for step, seal in seals.items() if seal is not None}
    measured = [(loss, -step) for step, loss in losses.items() if loss is not None]
    return [-negative for _, negative in sorted(measured)]


# Reading -------------------------------------------------------------------------------------------------------------


def _candidates(folder: Path, step: int | str | None) -> list[int]:
    """Steps in the order in which they are tried."""
    steps = saved_steps(folder)
    if not steps:
        raise CheckpointError(f"{folder} holds no checkpoint; train first, or check --workdir")
    if step is None:
        return steps[::-1]
    if isinstance(step, int):
        if step not in steps:
            raise CheckpointError(f"{folder} holds no checkpoint of step {step}; choose one of {_listed(folder)}")
        return [step]
    measured = _by_loss({s: read_seal(folder / str(s)) for s in steps})
    if not measured and step == "best or last":
        return steps[::-1]
    if not measured:
        raise CheckpointError(f"no checkpoint in {folder} has a validation loss yet; take the newest one instead")
    return measured


def _listed(folder: Path) -> str:
    return ", ".join(map(str, saved_steps(folder)))


def _without_params(state: State) -> dict[str, Any]:
    return {"step": state.step, "opt_state": state.opt_state, "key": state.key}


def _describe(tree: Any) -> dict[str, str]:
    """Path of every array -> its type and shape, as seals list them."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_name(path): f"{x.dtype}[{','.join(map(str, x.shape))}]" for path, x in leaves}


def _params_target(seal: Seal, shardings: Any) -> Any:
    """Nested dict of shapes as the seal lists them."""
    single = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    placed = {}
    if shardings is not None:
        placed = {path_name(path): s for path, s in jax.tree_util.tree_leaves_with_path(shardings)}
    flat = {}
    for path, text in seal.arrays.items():
        kind, _, name = path.partition("/")
        if kind == "params":
            dtype, shape = text.rstrip("]").split("[")
            dims = tuple(int(n) for n in shape.split(",") if n)
            flat[name] = jax.ShapeDtypeStruct(dims, np.dtype(dtype), sharding=placed.get(name, single))
    return flax.traverse_util.unflatten_dict(flat, sep="/")


def _try_restore(folder: Path, target: dict[str, Any]) -> dict[str, Any] | None:
    """Restored items, or None with a warning where the checkpoint is damaged."""
    reason = damage(folder)
    if reason is None:
        _check_fit(folder, target)
        items: dict[str, Any] = {name: ocp.args.StandardRestore(tree) for name, tree in target.items()}
        items["progress"] = ocp.args.JsonRestore()
        try:
            with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
                return dict(_uninterrupted(reader.restore, folder, args=ocp.args.Composite(**items)).items())
        except (OSError, ValueError, KeyError, TypeError) as error:
            if _in_other_processes(error):
                raise
            reason = _first_line(error)
    log.warning("checkpoint %s cannot be used: %s; falling back to the one before it", folder, reason)
    return None


def _in_other_processes(error: BaseException) -> bool:
    """Whether Orbax failed because another process of the run has ended, which says nothing of the checkpoint."""
    return jax.process_count() > 1 and lost_process(error) is not None


def _uninterrupted(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Calls Orbax in a thread, and waits for it also where a signal is raised here meanwhile.

    A signal raised in the main thread within an event loop of Orbax closes it while TensorStore's threads still report
    to it, and each of them prints a traceback that nobody can catch.
    """
    wide = jax.dtypes.canonicalize_dtype(np.float64) == np.float64  # a thread begins with what holds for the process

    def call() -> Any:
        with jax.enable_x64(wide):
            return function(*args, **kwargs)

    with concurrent.futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="orbax") as thread:
        return thread.submit(call).result()


def _check_fit(folder: Path, target: dict[str, Any]) -> None:
    """Refuses a checkpoint whose arrays are not those of the target, in one line that names the first."""
    seal = read_seal(folder)
    stored = {} if seal is None else {k: v for k, v in seal.arrays.items() if k.split("/")[0] in target}
    wanted = _describe(target)
    wrong = [k for k in sorted(stored.keys() | wanted.keys()) if stored.get(k) != wanted.get(k)]
    if wrong:
        name = wrong[0]
        more = f" ({len(wrong) - 1} more arrays differ)" if len(wrong) > 1 else ""
        raise CheckpointError(
            f"checkpoint {folder} does not fit the model: {name} is {stored.get(name, 'absent')} there and "
            f"{wanted.get(name, 'absent')} here{more}; use the configuration it was trained with"
        )


def _first_line(error: BaseException) -> str:
    """First line of the deepest cause: Orbax hides a shape mismatch behind a handler it could not find."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__


@contextlib.contextmanager
def _readable_errors(what: str) -> Iterator[None]:
    """Failures of the file system, also those TensorStore reports as ValueError, become one CheckpointError.

    The end of another process, which Orbax meets where it waits for all of them, is none of them.
    """
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        if _in_other_processes(error):
            raise
        text = f"{_first_line(error)} {error}"
        if any(sign in text for sign in _FULL):
            message = f"cannot write {what}: no space left on the device; free some, then the same command continues"
        else:
            message = f"cannot write {what}: {_first_line(error)}; make it writable, or choose another --workdir"
        raise CheckpointError(message) from error


_FULL = (*(os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)), "RESOURCE_EXHAUSTED")
"""What errors of a full disk say, by whatever way they came."""


def _quieten_orbax() -> None:
    """Drops, from now on, what Orbax logs and what happens in its threads once a save has failed or was interrupted.

    A failed save logs four tracebacks and raises what we report. It also closes the event loop in which arrays are
    still being written: as each is done, TensorStore finds its loop closed, which Python prints as an exception that
    nobody can catch. Threads of an interrupted save may come to that after all else has ended. What had not begun to be
    written is warned of.
    """
    warnings.filterwarnings("ignore", r"coroutine '\w*serialize.* was never awaited", RuntimeWarning)
    for module, name in ((sys, "unraisablehook"), (threading, "excepthook")):
        hook = getattr(module, name)
        if getattr(hook, "__module__", None) != __name__:
            setattr(module, name, _but_for_orbax(hook))
    for name in ("absl", "asyncio", "concurrent.futures"):
        logging.getLogger(name).addFilter(_reports_nothing_of_orbax)


def _but_for_orbax(hook: Callable[[Any], object]) -> Callable[[Any], None]:
    def pass_on(problem: Any) -> None:
        if not _of_orbax(problem.exc_value, getattr(problem, "object", None), getattr(problem, "thread", None)):
            hook(problem)

    return pass_on


def _reports_nothing_of_orbax(record: logging.LogRecord) -> bool:
    return not _of_orbax(record.exc_info[1] if record.exc_info else None, record.getMessage(), record.pathname)


def _of_orbax(error: BaseException | None, *about: Any) -> bool:
    """Whether an exception that nobody caught, or what is said of it, comes from an event loop of Orbax."""
    text = " ".join(map(repr, about))
    if error is not None:
        text += "".join(traceback.format_exception(error))
    return any(sign in text for sign in ("orbax/checkpoint", "orbax-checkpoint", "tensorstore", "OCDBT",
                                         "Event loop is closed"))

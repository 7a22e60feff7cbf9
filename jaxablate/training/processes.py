"""Several processes that train one model: joining them, and ending all of them where one ends.

A process in the middle of a step waits for the others, and JAX lets one that is about to end wait for them, too. So a
process that meets an error of its own ends at once, without JAX's leave-taking, and the others notice: a collective
operation fails, or the coordination service misses its heartbeat. Each then says one line and ends as well, within
half a minute. Started again, all go on from the last checkpoint that is sealed.
"""

import contextlib
import ctypes
import functools
import importlib
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import jax
from jax.experimental import multihost_utils

from jaxablate.errors import ConfigError, TrainingError
from jaxablate.exits import guarded
from jaxablate.runs.interruption import lost_process

HEARTBEAT_SECONDS = 20
"""A process that was not heard of for so long counts as dead. JAX takes 100."""
UNWINDING_SECONDS = 10.0
"""After an error a process may take so long to close its files; what it waits for may be another process."""
_OTHERS_SECONDS = 1.0
"""A process that has told its error stays so long, so that others with the same error tell theirs."""
_ENDED = ("another process of this training has ended or cannot be reached, so this one ends, too{}; its own messages "
          "say why. The same command in all processes goes on from the last checkpoint")

_joined = False
_ending = threading.Lock()


def together(work: Callable[[], object], *, join_seconds: int) -> None:
    """Joins the other processes of a cluster, does the work and parts from them.

    After an error, a signal, or the end of another process this process ends: one line, and the exit code of
    `jaxablate.exits.guarded`.
    """
    global _joined
    try:
        _join(join_seconds)
        _joined = True
        work()
        jax.distributed.shutdown()
    except BaseException as error:
        if not jax.distributed.is_initialized():  # there is no cluster, so nobody waits for this process
            raise
        _end(error)
    finally:
        _joined = False


@contextlib.contextmanager
def unwinding() -> Iterator[None]:
    """Ends the process where the block raises and what is around it does not close within `UNWINDING_SECONDS`.

    Only a process that `together` has joined with others; any other one may wait as long as it likes.
    """
    try:
        yield
    except BaseException as error:
        if _joined:
            late = threading.Timer(UNWINDING_SECONDS, _end, [error])
            late.daemon = True
            late.start()
        raise


def _join(seconds: int) -> None:
    if "JAX_LOGGING_LEVEL" not in os.environ:  # the C++ side logs each process that is lost in several lines
        jax.config.update("jax_logging_level", "CRITICAL")
    _take_over_fatal_errors()
    failed: list[Exception] = []
    connected, late = threading.Event(), time.monotonic() + seconds

    def initialize() -> None:
        try:
            with _lost_is_told():
                jax.distributed.initialize(initialization_timeout=seconds, heartbeat_timeout_seconds=HEARTBEAT_SECONDS)
            connected.set()
            # Now all are at the same point. Later one may compile for longer than another waits for a connection.
            multihost_utils.sync_global_devices("joined")
        except Exception as error:
            failed.append(error)

    # The main thread stays free for signals.
    thread = threading.Thread(target=initialize, daemon=True)
    thread.start()
    while thread.is_alive() and (connected.is_set() or time.monotonic() < late):  # JAX takes up to twice the time
        thread.join(0.1)
    if failed or not connected.is_set():
        reason = (str(failed[0]).splitlines() or [""])[0] if failed else ""
        reason = f"no answer in {seconds} s" if not reason or "bad_cast" in reason or "DEADLINE" in reason else reason
        raise ConfigError(
            f"--distributed could not join the other processes ({reason}); start them all within --join-seconds, under "
            "SLURM, Open MPI, Kubernetes or Cloud TPU, or leave --distributed out"
        ) from None


@contextlib.contextmanager
def _lost_is_told() -> Iterator[None]:
    """Lets JAX call `_lost`, where it would log and abort, when the coordination service reports an error."""
    library: Any = importlib.import_module("jax._src.distributed")._jax
    make = library.get_distributed_runtime_client
    library.get_distributed_runtime_client = functools.partial(make, missed_heartbeat_callback=_lost)
    try:
        yield
    finally:
        library.get_distributed_runtime_client = make


def _lost(*_status: Any) -> NoReturn:
    _end(TrainingError(_ENDED.format("")))


def _take_over_fatal_errors() -> None:
    """Calls `_lost` where the C++ side is about to abort because it cannot hand an error to `_lost` as a value.

    That is so up to jaxlib 0.10 at least: the status of the error has no Python type, so the call fails with
    `std::bad_cast`. Other fatal errors end as they did.
    """
    try:
        library = ctypes.CDLL("libstdc++.so.6")
        set_handler, current = library._ZSt13set_terminatePFvvE, library.__cxa_current_exception_type
    except (OSError, AttributeError):  # not on Linux: JAX's own lines are printed
        return
    handler = ctypes.CFUNCTYPE(None)
    set_handler.argtypes, set_handler.restype, current.restype = [handler], ctypes.c_void_p, ctypes.c_void_p

    def terminate() -> None:
        kind = current()
        # A std::type_info is a pointer to its methods and one to its name.
        name = ctypes.c_char_p.from_address(kind + ctypes.sizeof(ctypes.c_void_p)).value if kind else None
        if name == b"St8bad_cast":
            _lost()
        handler(before)()

    _handlers.append(handler(terminate))
    before = set_handler(_handlers[-1])


_handlers: list[Any] = []
"""Kept for as long as the process lives."""


def _end(error: BaseException) -> NoReturn:
    """Tells an error in one line, once, and ends the process without waiting for anything.

    Other threads run on meanwhile. What they meet is of the same cause, and they no longer log it.
    """
    if not _ending.acquire(blocking=False):
        time.sleep(60)  # another thread is at it
    logging.disable()
    code: Any = 1
    try:
        code = guarded(functools.partial(_raise, _clear(error)))
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
    time.sleep(_OTHERS_SECONDS)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _raise(error: BaseException) -> NoReturn:
    raise error


def _clear(error: BaseException) -> BaseException:
    """What a failed collective operation means."""
    text = str(error)
    if type(error) is RuntimeError and "bad_cast" in text:  # what `_lost` was to be told, in the main thread
        return TrainingError(_ENDED.format(""))
    reason = lost_process(error)
    return error if reason is None else TrainingError(_ENDED.format(f" ({reason:.200})" if reason else ""))

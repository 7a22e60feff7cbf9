"""How a program ends: with an exit code, and one line for an error, Ctrl-C or SIGTERM."""

import _thread
import contextlib
import io
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import CodeType, FrameType

from jaxablate.errors import JaxablateError


def guarded(run: Callable[[], object], *, ends: bool = False) -> int:
    """Exit code of a program's work: 0, or 2 after an error of the user or the machine told in one line.

    Ctrl-C is told in a line and gives 130, SIGTERM where nothing else takes it gives 143. A reader of the output that
    went away gives 141, without a line. Any other exception is a fault of the program and is raised.

    Args:
      run: the work.
      ends: whether the process ends with it. Then, once it is done, Ctrl-C ends the process without a word: where the
        interpreter waits for threads and calls what `atexit` has, Python would print a traceback and go on.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a character that the terminal does not know is no error
            stream.reconfigure(errors="backslashreplace")
    try:
        with _stoppable(ends):
            run()
    except JaxablateError as error:
        return _tell(f"error: {error}", 2)
    except BrokenPipeError:
        return 141
    except OSError as error:
        of = f"{error.filename}: " if error.filename is not None else ""
        return _tell(f"error: {of}{error.strerror or error}", 2)
    except (MemoryError, RuntimeError) as error:
        # JAX has one class for all errors of the machine, and says of which kind one is.
        if not isinstance(error, MemoryError) and not str(error).startswith("RESOURCE_EXHAUSTED"):
            raise
        reason = f" ({str(error).splitlines()[0]:.200})" if str(error) else ""
        return _tell(f"error: out of memory{reason}; use a machine with more, or less data at once", 2)
    except KeyboardInterrupt:
        return _tell("stopped by Ctrl-C", 130)
    except Terminated:
        return _tell("stopped by SIGTERM", 143)
    return 0


class Terminated(BaseException):
    """SIGTERM came while `guarded` runs a program's work, and nothing else took it."""


@contextlib.contextmanager
def _stoppable(ends: bool) -> Iterator[None]:
    """Raises `Terminated` where SIGTERM comes and would end the process without a word, KeyboardInterrupt at Ctrl-C.

    Neither is lost where it is raised in what Python calls and whose errors it only prints, such as a callback of the
    garbage collector: the signal is sent again. Nor is it raised while such an error is being printed, or where it
    would leave a lock taken for ever (`_LOCKING`), unless the program stands still there.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def take(number: int, frame: FrameType | None) -> None:
        nonlocal stood  # while the signal is sent again
        if frame is not None and frame.f_globals.get("__name__") in _LOCKING:
            if stood is None or not again or stood[:2] != (frame.f_code, frame.f_lasti):
                stood = frame.f_code, frame.f_lasti, time.monotonic()
            if time.monotonic() - stood[2] < _STILL_SECONDS:
                send_again(number)
                return
        while frame is not None:
            if frame.f_code is getattr(sys.unraisablehook, "__code__", None):
                send_again(number)
                return
            frame = frame.f_back
        again.clear()
        raise KeyboardInterrupt if number == signal.SIGINT else Terminated

    def send_again(number: int) -> None:
        again.append(number)
        if len(again) == 1:  # not by `threading`, whose locks may be taken here already
            _thread.start_new_thread(send, ())

    def send() -> None:
        # Until it is taken: Python lets this thread run just where the main one no longer looks for signals and may go
        # to sleep, from which only the next one wakes it.
        process = os.getpid()
        while True:
            time.sleep(0.01)
            if not again:
                return
            number = again[-1]
            elsewhere = signal.getsignal(number) is not take  # once is enough for who has taken over since
            os.kill(process, number)
            if elsewhere:
                again.clear()
                return

    def unraisable(what: "sys.UnraisableHookArgs") -> None:
        if not over and isinstance(what.exc_value, KeyboardInterrupt | Terminated):
            send_again(signal.SIGINT if isinstance(what.exc_value, KeyboardInterrupt) else signal.SIGTERM)
        else:
            hook(what)

    over = False
    again: list[int] = []
    stood: tuple[CodeType, int, float] | None = None
    hook, sys.unraisablehook = sys.unraisablehook, unraisable
    defaults = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
    taken = [number for number, default in defaults.items() if signal.getsignal(number) == default]
    for number in taken:
        signal.signal(number, take)
    try:
        yield
    finally:
        again.clear()
        for number in taken:
            signal.signal(number, signal.SIG_DFL if ends else defaults[number])
        over = True
        if sys.unraisablehook is unraisable:  # otherwise another one was put before it, and calls it
            sys.unraisablehook = hook


FOLLOWED = "JAXABLATE_FOLLOWED"
"""Variable by which a parent says that standard input is a pipe that it holds open as long as it lives."""


def follow_parent() -> None:
    """Sends this process SIGTERM when the one that started it has ended, however that ended, where it asked for that.

    A process that is killed takes nobody with it; but a pipe that it held open is at its end then.
    """
    if os.environ.pop(FOLLOWED, None) is None:
        return

    def wait() -> None:
        with contextlib.suppress(OSError):
            os.read(0, 1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True, name="follow").start()


_LOCKING = frozenset({"threading", "queue", "concurrent.futures._base", "concurrent.futures.thread", "logging",
                      "importlib._bootstrap"})
"""Modules of Python whose functions take a lock, or wake who waits for one, in several steps.

An exception between two of them, such as a signal's, leaves the lock taken or nobody woken, and whoever comes next
waits for ever. Python raises none as ``with`` takes a lock of its own, but does in `threading.Condition.__enter__`.
"""
_STILL_SECONDS = 0.1
"""A program that is found at one instruction of these for so long waits there, which may be interrupted."""


def _tell(line: str, code: int) -> int:
    from jaxablate.terminal import printable  # Rich, which only programs need

    with contextlib.suppress(OSError, ValueError):  # standard error may be closed, too
        print(printable(" ".join(line.split())), file=sys.stderr)
    return code

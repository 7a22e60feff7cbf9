"""How a program ends: with an exit code, and one line for an error, Ctrl-C or SIGTERM."""

import atexit
import contextlib
import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator

from jaxablate.errors import JaxablateError


def guarded(run: Callable[[], object]) -> int:
    """Exit code of a program's work: 0, or 2 after an error of the user or the machine told in one line.

    Ctrl-C is told in a line and gives 130, SIGTERM where nothing else takes it gives 143. A reader of the output that
    went away gives 141, without a line. Any other exception is a fault of the program and is raised.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a character that the terminal does not know is no error
            stream.reconfigure(errors="backslashreplace")
    try:
        with _stoppable():
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
    finally:
        _leave_quietly()
    return 0


class Terminated(BaseException):
    """SIGTERM came while `guarded` runs a program's work, and nothing else took it."""


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """Raises `Terminated` where SIGTERM comes and would end the process without a word.

    Neither that nor KeyboardInterrupt is lost where it is raised in what Python calls and whose errors it only prints,
    such as a callback of the garbage collector: the signal is sent again.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_number: int, _frame: object) -> None:
        raise Terminated

    def unraisable(what: "sys.UnraisableHookArgs") -> None:
        if isinstance(what.exc_value, KeyboardInterrupt | Terminated):
            number = signal.SIGINT if isinstance(what.exc_value, KeyboardInterrupt) else signal.SIGTERM
            sent = False
            while not sent:  # on a busy machine it may come while this hook still runs, where it would be lost again
                with contextlib.suppress(KeyboardInterrupt, Terminated):
                    threading.Timer(0.01, os.kill, [os.getpid(), number]).start()
                    sent = True
        else:
            hook(what)

    hook, sys.unraisablehook = sys.unraisablehook, unraisable
    takes = signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    if takes:
        signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        sys.unraisablehook = hook
        if takes:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _leave_quietly() -> None:
    """Lets another Ctrl-C end the process without a traceback while the interpreter is ending.

    It first waits for threads, where Python would print KeyboardInterrupt and go on, and then calls what `atexit` has.
    """
    atexit.unregister(_end_at_ctrl_c)
    atexit.register(_end_at_ctrl_c)  # what is registered last is called first
    if not isinstance(sys.unraisablehook, _WaitForThreads):
        sys.unraisablehook = _WaitForThreads(sys.unraisablehook)


class _WaitForThreads:
    """Hook for errors that Python only prints: where Ctrl-C ends its waiting for threads, the process ends, too."""

    def __init__(self, hook: Callable[["sys.UnraisableHookArgs"], object]):
        self._hook = hook

    def __call__(self, what: "sys.UnraisableHookArgs") -> None:
        # Python 3.13 names no object, but says what it did.
        waiting = what.object is threading or "threading shutdown" in (what.err_msg or "")
        if waiting and isinstance(what.exc_value, KeyboardInterrupt):
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        self._hook(what)


def _end_at_ctrl_c() -> None:
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _tell(line: str, code: int) -> int:
    from jaxablate.terminal import printable  # Rich, which only programs need

    with contextlib.suppress(OSError, ValueError):  # standard error may be closed, too
        print(printable(" ".join(line.split())), file=sys.stderr)
    return code

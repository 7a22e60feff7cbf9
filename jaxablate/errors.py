"""Errors a user can act on.

Every one names *what* is wrong, the *value* met, the *limit* and the *fix*. The commands print the message on one line
and exit with code 2 (`guarded`).
"""

import contextlib
import io
import signal
import sys
import threading
from collections.abc import Callable, Iterator


class JaxablateError(Exception):
    """Base of every error that a user, not a bug, can cause."""


class ConfigError(JaxablateError, ValueError):
    """A setting is out of range, unknown, or does not fit the others."""


class DataError(JaxablateError, ValueError):
    """A data file is missing, empty, corrupt, or does not fit the model."""


class TooLittleDataError(DataError):
    """A measure needs more text than there is. `score` leaves the suite out where it was not asked for by name."""


class CheckpointError(JaxablateError, RuntimeError):
    """A checkpoint or working directory cannot be written, read, or does not fit the run."""


class TrainingError(JaxablateError, RuntimeError):
    """Training cannot go on, for example because the loss is no longer finite."""


class FileError(JaxablateError, RuntimeError):
    """A file or folder cannot be read or written, or another process is using it."""


def guarded(run: Callable[[], object]) -> int:
    """Exit code of a program's work: 0, or 2 after an error of the user or the machine told in one line.

    Ctrl-C is told in a line and gives 130, SIGTERM where nothing else takes it gives 143. A reader of the output that
    went away gives 141, without a line. Any other exception is a fault of the program and is raised.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a character that the terminal does not know is no error
            stream.reconfigure(errors="backslashreplace")
    try:
        with _terminated():
            run()
    except JaxablateError as error:
        return _tell(f"error: {error}", 2)
    except BrokenPipeError:
        return 141
    except OSError as error:
        of = f"{error.filename}: " if error.filename is not None else ""
        return _tell(f"error: {of}{error.strerror or error}", 2)
    except MemoryError as error:
        reason = f" ({error})" if str(error) else ""
        return _tell(f"error: out of memory{reason}; use a machine with more, or less data at once", 2)
    except KeyboardInterrupt:
        return _tell("stopped by Ctrl-C", 130)
    except _Terminated:
        return _tell("stopped by SIGTERM", 143)
    return 0


class _Terminated(BaseException):
    """SIGTERM came."""


@contextlib.contextmanager
def _terminated() -> Iterator[None]:
    """Raises `_Terminated` where SIGTERM comes and would end the process without a word."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return

    def stop(_number: int, _frame: object) -> None:
        raise _Terminated

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _tell(line: str, code: int) -> int:
    from jaxablate.terminal import printable  # Rich, which only programs need

    with contextlib.suppress(OSError, ValueError):  # standard error may be closed, too
        print(printable(" ".join(line.split())), file=sys.stderr)
    return code

"""Runs commands in processes of their own that start in a moment: a parent that has imported everything forks them.

Starting Python and importing JAX takes seconds, a fork of a process that has done so milliseconds. The parent
(``python -m faults.launcher``) never starts a JAX backend nor a thread, so a child is what a fresh process would
be after its imports, and ends through the interpreter's own exit. Signals go to the child at moments that are asked
for, and are real.

A request is one line of JSON on standard input, the answer one on standard output; `Launcher` is the other side.
"""

import contextlib
import dataclasses
import gc
import glob
import importlib
import json
import os
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parent.parent
LIMIT = 60.0
"""Seconds after which a command counts as hanging."""
KEPT = 100_000
"""Characters that are kept of the end of each stream."""
PRELOADED = ("jaxablate.commands.train", "jaxablate.commands.score", "jaxablate.commands.compare",
             "jaxablate.commands.match", "jaxablate.commands.circuit", "jaxablate.commands.sae",
             "jaxablate.commands.neurons", "jaxablate.commands.neuron_graphs", "jaxablate.commands.explain",
             "jaxablate.data.__main__", "jaxablate.training.loop", "jaxablate.interop", "tensorboardX")
_ENTRIES = {"jaxablate": "jaxablate.commands.main", "jaxablate.data": "jaxablate.data.__main__"}
_POLL = 0.001


@dataclasses.dataclass(frozen=True, kw_only=True)
class Moment:
    """When something happens to a running command, and what: a signal, or a disk that fills."""

    after: float = 0.0
    """Seconds after the start, or after a file appeared."""
    appears: str | None = None
    """Pattern of files, relative to the folder; the clock of ``after`` starts when a new one matches."""
    signal: int | None = None
    fill: str | None = None
    """A file that takes all the space of its disk but ``leave`` bytes."""
    leave: int = 0

    def __str__(self) -> str:
        what = f"fill the disk but {self.leave} bytes" if self.signal is None else signal.Signals(self.signal).name
        where = f" after {self.appears} appears" if self.appears else ""
        return f"{what} at {self.after:.3f} s{where}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a command ended."""

    code: int
    """Exit code, or minus the number of the signal that ended it."""
    out: str
    err: str
    seconds: float
    cpu: float
    """Seconds of processors."""
    peak: int
    """Most memory that it held at once, in bytes."""
    hung: bool
    """Whether it was ended because the limit was over."""
    happened: int
    """Moments that came before the end."""


class Launcher:
    """Starts commands by a process that has imported all they need; a context that ends with it.

    Args:
      environment: variables of all commands, besides those of this process.
      preloaded: modules that are imported once, before all commands.
    """

    def __init__(self, environment: Mapping[str, str], preloaded: Sequence[str] = PRELOADED):
        self._environment, self._preloaded = {**os.environ, **environment}, preloaded
        self._parent: subprocess.Popen[str] | None = None

    def __enter__(self) -> "Launcher":
        self._parent = subprocess.Popen(
            [sys.executable, "-m", "faults.launcher", *self._preloaded], cwd=TESTS, env=self._environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._parent is not None and self._parent.stdin is not None and self._parent.stdout is not None
        self._parent.stdin.close()
        try:
            self._parent.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._parent.kill()
            self._parent.wait()
        self._parent.stdout.close()

    def run(self, line: Sequence[str], folder: Path, *, moments: Sequence[Moment] = (), file_size: int | None = None,
            limit: float = LIMIT, idle: bool = False, fresh: bool = False,
            environment: Mapping[str, str] | None = None) -> Outcome:
        """Runs a command to its end.

        Args:
          line: the module that is the program (``jaxablate``, ``jaxablate.data``, or any with a function ``main``), and
            its arguments.
          folder: where it runs.
          moments: what happens to it meanwhile, each after the one before it.
          file_size: most bytes that it may write into a file (RLIMIT_FSIZE).
          limit: seconds after which it hangs and is ended; ``idle`` counts them anew after each output.
          fresh: by a new interpreter in place of a fork.
          environment: further variables.
        """
        assert self._parent is not None and self._parent.stdin is not None and self._parent.stdout is not None
        request = {"line": list(line), "folder": str(folder), "moments": [dataclasses.asdict(m) for m in moments],
                   "file_size": file_size, "limit": limit, "idle": idle, "fresh": fresh,
                   "environment": dict(environment or {})}
        self._parent.stdin.write(json.dumps(request) + "\n")
        self._parent.stdin.flush()
        answer = self._parent.stdout.readline()
        if not answer:
            raise RuntimeError(f"the launcher ended with {self._parent.wait()} at {' '.join(line)}")
        return Outcome(**json.loads(answer))


def main() -> int:
    """Serves requests until standard input ends; in a child, runs the command that was asked for.

    Arguments are the modules to import before all else.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever imports print is no answer
    for name in sys.argv[1:]:
        importlib.import_module(name)
    threads = len(os.listdir("/proc/self/task"))
    if threads > 1:
        print(f"the launcher has {threads} threads after its imports: its children would not be sound", file=sys.stderr)
        return 1
    gc.freeze()  # children need not look through what was imported again and again
    for text in iter(sys.stdin.readline, ""):
        request = json.loads(text)
        seen = _matching(request["folder"], [Moment(**moment) for moment in request["moments"]])
        streams = [os.pipe(), os.pipe()]
        ready = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(answers.fileno())
            return _command(request, [write for _, write in streams], ready[1])
        for _, write in (*streams, ready):
            os.close(write)
        os.read(ready[0], 1)
        os.close(ready[0])
        outcome = _watch(pid, [read for read, _ in streams], request, seen)
        print(json.dumps(dataclasses.asdict(outcome)), file=answers, flush=True)
    return 0


def _command(request: dict[str, Any], streams: Sequence[int], ready: int) -> int:
    """The child: a session's standard streams, signals and limits, then the program."""
    os.setpgid(0, 0)
    null = os.open(os.devnull, os.O_RDONLY)
    for number, source in enumerate((null, *streams)):
        os.dup2(source, number)
    # What Python found out of the parent's streams, such as that a file can be sought in, is not so of these.
    sys.stdin = sys.__stdin__ = open(0, closefd=False)  # noqa: SIM115 (closed by the end of the process)
    sys.stdout = sys.__stdout__ = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.__stderr__ = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.update(request["environment"])
    tempfile.tempdir = None
    os.chdir(request["folder"])
    if request["file_size"] is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["file_size"], request["file_size"]))
    module, *arguments = request["line"]
    if request["fresh"]:
        os.write(ready, b".")
        os.execv(sys.executable, [sys.executable, "-m", module, *arguments])
    program = importlib.import_module(_ENTRIES.get(module, module)).main
    sys.argv = [module, *arguments]
    os.write(ready, b".")
    os.close(ready)
    return program(arguments, **{"ends": True} if module in _ENTRIES else {})


def _watch(pid: int, streams: Sequence[int], request: dict[str, Any], seen: set[str]) -> Outcome:
    """Lets moments come, collects what is printed, and waits for the end; files that were ``seen`` are not new."""
    began = heard = time.monotonic()
    handle = os.pidfd_open(pid)
    poll = select.poll()
    for number in (*streams, handle):
        poll.register(number, select.POLLIN)
    poll.register(0, select.POLLHUP)  # the other side is gone
    texts = dict.fromkeys(streams, b"")
    open_streams, moments = set(streams), [Moment(**m) for m in request["moments"]]
    clock: float | None = None
    happened, hung = 0, False
    while True:
        now = time.monotonic()
        while happened < len(moments):
            moment = moments[happened]
            if clock is None and (moment.appears is None or _matching(request["folder"], [moment]) - seen):
                clock = began if moment.appears is None and happened == 0 else now
            if clock is None or now < clock + moment.after:
                break
            _happen(moment, handle)
            clock, happened = now, happened + 1
            seen = _matching(request["folder"], moments)
        if now - (heard if request["idle"] else began) > request["limit"]:
            hung = True
            break
        ended = False
        for number, event in poll.poll(_POLL * 1e3 if happened < len(moments) else 200):
            if number == 0 and event & (select.POLLHUP | select.POLLERR):
                _end_group(pid)
                os._exit(1)
            if number == handle:
                ended = True
            elif number in open_streams:
                if part := os.read(number, 1 << 16):
                    texts[number], heard = (texts[number] + part)[-KEPT:], now
                else:
                    open_streams.discard(number)
                    poll.unregister(number)
        if ended:
            break
    if hung:
        os.kill(pid, signal.SIGABRT)  # an enabled faulthandler tells where it stands
        time.sleep(0.2)
        _end_group(pid)
    _, status, usage = os.wait4(pid, 0)
    seconds = time.monotonic() - began
    _end_group(pid)
    for number in open_streams:
        os.set_blocking(number, False)
        with contextlib.suppress(BlockingIOError):
            while part := os.read(number, 1 << 16):
                texts[number] = (texts[number] + part)[-KEPT:]
    for number in (*streams, handle):
        os.close(number)
    out, err = (texts[number].decode(errors="replace") for number in streams)
    return Outcome(code=os.waitstatus_to_exitcode(status), out=out, err=err, seconds=seconds,
                   cpu=usage.ru_utime + usage.ru_stime, peak=usage.ru_maxrss * 1024, hung=hung, happened=happened)


def _matching(folder: str, moments: Sequence[Moment]) -> set[str]:
    return {path for m in moments if m.appears for path in glob.iglob(os.path.join(folder, m.appears),
                                                                     include_hidden=True)}


def _happen(moment: Moment, handle: int) -> None:
    if moment.signal is not None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(handle, moment.signal)
    if moment.fill is not None:
        state = os.statvfs(os.path.dirname(moment.fill))
        size = state.f_bavail * state.f_frsize - moment.leave
        with open(moment.fill, "wb") as file, contextlib.suppress(OSError):
            if size > 0:
                os.posix_fallocate(file.fileno(), 0, size)


def _end_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())

"""Stopping in good order when the machine is taken away or the user presses Ctrl-C."""

import re
import signal
from types import FrameType
from typing import Any

import jax


class Interruption:
    """While this context is open, SIGTERM and SIGINT only ask: the loop finishes its step, saves, and leaves.

    A second signal of the same kind does what it always did, so that Ctrl-C twice stops at once. With several
    processes no signal is taken here: the JAX coordination service catches SIGTERM, by a handler that one of Python's
    would replace, and picks a step that all of them have yet to reach.
    """

    _signals = (signal.SIGTERM, signal.SIGINT)

    def __init__(self):
        self.name: str | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interruption":
        if jax.process_count() > 1:
            return self
        for number in self._signals:
            self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def requested(self, step: int) -> bool:
        """Whether to stop after this step; with several processes the same answer in all of them."""
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            if multihost_utils.reached_preemption_sync_point(step):
                self.name = self.name or "SIGTERM"
        return self.name is not None

    def _ask(self, number: int, _frame: FrameType | None) -> None:
        self.name = signal.Signals(number).name
        signal.signal(number, self._before[number])


def lost_process(error: BaseException) -> str | None:
    """What JAX says where an operation of several processes fails because one of them has ended; None at other errors.

    Such an operation raises JAX's own error or, where it is waited for at once, a ValueError, which libraries may have
    wrapped. Both begin with the name of a status, as those of TensorStore do, which name a file.
    """
    cause: BaseException | None = error
    while cause is not None:
        line = (str(cause).splitlines() or [""])[0]
        if isinstance(cause, jax.errors.JaxRuntimeError) and not line.startswith("RESOURCE_EXHAUSTED"):
            return line
        if type(cause) is ValueError and _STATUS.match(line) and not _OF_A_FILE.search(str(cause)):
            return line
        cause = cause.__cause__
    return None


_STATUS = re.compile("(UNKNOWN|INTERNAL|UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|CANCELLED): ")
_OF_A_FILE = re.compile("os_error_code|tensorstore|OCDBT")

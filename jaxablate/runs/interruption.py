"""Stopping in good order when the machine is taken away or the user presses Ctrl-C."""

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

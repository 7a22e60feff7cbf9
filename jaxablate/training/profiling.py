"""A profile of some steps, for TensorBoard and XProf: what the host and the devices do when."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

import jax

FOLDER = "profile"
"""Where it is, in a working directory."""
SKIPPED = 3
"""Steps of a start that are not recorded: the first one compiles, and the next ones fill the pipeline."""

logger = logging.getLogger(__name__)


class Profile:
    """Records ``steps`` steps of a run, after the first `SKIPPED` ones of this start; with 0 nothing is done.

    Each step that is dispatched while it records is an event named ``train`` with its number. It ends when the metrics
    of its last step have come, so the devices have done all of them. A profile that cannot be written is warned of, and
    the run goes on.

    Args:
      workdir: the files go into `FOLDER` in it, one folder a profile.
      steps: how many.
      first: the first step that this start makes, counted from 1.
    """

    def __init__(self, workdir: Path, steps: int, first: int):
        self._folder, self._first, self._last = workdir / FOLDER, first + SKIPPED, first + SKIPPED + steps - 1
        self._wanted, self._recording = steps > 0, False

    @contextlib.contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Around the dispatch of a step."""
        if self._wanted and number == self._first:
            self._wanted = False
            with self._told():
                options = jax.profiler.ProfileOptions()
                options.python_tracer_level = 0  # an event for every call in Python would slow the host down
                jax.profiler.start_trace(str(self._folder), profiler_options=options)
                self._recording = True
        if self._recording and number <= self._last:
            with jax.profiler.StepTraceAnnotation("train", step_num=number):
                yield
        else:
            yield

    def done(self, number: int) -> None:
        """Says that the metrics of a step have come."""
        if number >= self._last:
            self.close()

    def close(self) -> None:
        """Ends the profile, if it records."""
        if self._recording:
            self._recording = False
            with self._told():
                jax.profiler.stop_trace()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError) as error:  # JAX has the latter for all that fails in its own library
            logger.warning("the profile cannot be written to %s (%s)", self._folder, str(error).partition("\n")[0])

"""What a run learns from what, and how its progress is judged: the part in which kinds of runs differ."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jaxablate.config import RunConfig
from jaxablate.data.ids import Tokenizer
from jaxablate.data.pipeline import TrainBatches
from jaxablate.types import Batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pace:
    """Length of a run, and how often it is logged, measured and saved, in steps."""

    steps: int
    """Updates at most."""
    log_every: int
    eval_every: int
    checkpoint_every: int
    patience: int = 0
    """Evaluations without a new best one after which the run is finished; 0 never ends it early."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """A run with its data at hand."""

    config: RunConfig
    """The run's settings; a classifier's vocabulary size is resolved."""
    pace: Pace
    tokenizer: Tokenizer
    """Saved beside the checkpoints."""
    facts: Mapping[str, Any]
    """Data hashes and sizes, recorded with the run: the same at every start."""
    train_batches: Callable[[], TrainBatches]
    """Opens the training data; the iterator has a cursor."""
    valid_batches: Callable[[], Iterator[Batch]]
    """Opens the part of the validation data that a periodic evaluation reads."""
    valid_loss: Callable[[Mapping[str, float]], float]
    """Metrics of an evaluation -> the number that ranks checkpoints, lower is better."""
    about: str
    """The model in a few words."""
    unit: str
    """What speed is counted in: ``tokens`` or ``texts``."""
    units_per_step: int
    flops_per_step: float | None = None
    """Floating-point operations of a step; None where they vary."""


@dataclasses.dataclass
class EarlyStopping:
    """Counts evaluations since the best one.

    Its state goes into checkpoints, so that a restart stops where the uninterrupted run would have.
    """

    patience: int
    """Evaluations without a better one after which `over` is true; 0 never is."""
    best: float | None = None
    """Lowest validation loss so far."""
    since: int = 0
    """Evaluations since that one."""

    def update(self, valid_loss: float) -> None:
        """Takes one evaluation; an equal one is no better."""
        if self.best is None or valid_loss < self.best:
            self.best, self.since = valid_loss, 0
        else:
            self.since += 1

    @property
    def over(self) -> bool:
        """Whether the run should end."""
        return 0 < self.patience <= self.since

    def get_state(self) -> dict[str, Any]:
        """JSON-able state."""
        return {"best": self.best, "since": self.since}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Inverse of `get_state`; an empty state is that of a run without evaluations."""
        self.best, self.since = state.get("best"), state.get("since", 0)

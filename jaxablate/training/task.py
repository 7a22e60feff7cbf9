"""What a run learns from what, and how its progress is judged: the part in which kinds of runs differ."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np

from jaxablate.config import RunConfig
from jaxablate.data.pipeline import TrainBatches
from jaxablate.training.state import InitParams
from jaxablate.training.step import LossFunction


class Saved(Protocol):
    """A tokenizer or vocabulary."""

    name: str

    def fingerprint(self) -> str: ...

    def save(self, folder: Any) -> None: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Learner:
    """A model with its loss.

    Attributes:
      init_params: draws the parameters.
      train_loss: of a training batch, with a key to draw from.
      eval_loss: of a validation batch; draws nothing.
      counted: name of the batch's array whose sum is the number of things that `eval_loss`'s metrics are means over.
      weighed: the same for `train_loss`; None where all rows of a batch count alike.
    """

    init_params: InitParams
    train_loss: LossFunction
    eval_loss: LossFunction
    counted: str
    weighed: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pace:
    """Length of a run, and how often it is logged, measured and saved, in steps.

    Attributes:
      steps: at most.
      log_every, eval_every, checkpoint_every: intervals.
      patience: evaluations without a new best one after which the run is finished; 0 never ends it early.
    """

    steps: int
    log_every: int
    eval_every: int
    checkpoint_every: int
    patience: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """A run with its data at hand.

    Attributes:
      config: of the run.
      pace: resolved to steps.
      tokenizer: saved beside the checkpoints.
      facts: recorded with the run, the same at every start: data hashes and sizes.
      train_batches: opens the training data; the iterator has a cursor.
      valid_batches: opens the part of the validation data that a periodic evaluation reads.
      valid_loss: metrics of an evaluation -> the number that ranks checkpoints, lower is better.
      about: the model in a few words.
      unit: what speed is counted in.
      units_per_step: of them in a step.
      flops_per_step: arithmetic of a step; None where it varies.
    """

    config: RunConfig
    pace: Pace
    tokenizer: Saved
    facts: Mapping[str, Any]
    train_batches: Callable[[], TrainBatches]
    valid_batches: Callable[[], Iterator[Mapping[str, np.ndarray]]]
    valid_loss: Callable[[Mapping[str, float]], float]
    about: str
    unit: str
    units_per_step: int
    flops_per_step: float | None = None

"""When a run that no longer gets better is over."""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass
class EarlyStopping:
    """Counts evaluations since the best one; its state goes into checkpoints, so that a restart stops where the
    uninterrupted run would have.

    Attributes:
      patience: evaluations without a better one after which `over` is true; 0 never is.
      best: lowest validation loss so far, or None.
      since: evaluations since that one.
    """

    patience: int
    best: float | None = None
    since: int = 0

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
        """JSON-able."""
        return {"best": self.best, "since": self.since}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Inverse of `get_state`; an empty state is that of a run without evaluations."""
        self.best, self.since = state.get("best"), state.get("since", 0)

"""Settings of ``eval.py explain``; kept apart from the runner so that a command line needs no JAX to be parsed."""

import dataclasses
from pathlib import Path
from typing import Literal

from jaxablate.config import RunConfig
from jaxablate.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExplainSettings:
    """Show what a text classifier makes of one text: neurons of each token, tokens that share them."""

    workdir: Path
    """Working directory of a training run of a text classifier."""
    text: str
    """In the form of the training texts; words are separated by spaces."""
    before: Path | None = None
    """Another run with the same vocabulary, shown beside it: for example the one without regularisers."""
    checkpoint: str = "auto"
    """best (by accuracy on the development split), last, a step, or auto, as in `score`; of both runs."""
    layer: int = -1
    """Whose neurons and attention, counted from 0; -1 is the last."""
    stream: Literal["clean", "ablated"] = "clean"
    """Of a gated model."""
    out: Path | None = None
    """Folder of the files; by default explanation/WORDS-HASH in the working directory."""

    def check(self) -> None:
        """Raises ConfigError for a value out of range."""
        if not self.text.strip():
            raise ConfigError("text is empty; give at least one word")
        self._of_score.check()

    def step_for(self, config: RunConfig) -> int | Literal["best", "best or last"] | None:
        """The checkpoint of a run as the restoring function takes it."""
        return self._of_score.step_for(config)

    @property
    def _of_score(self) -> "ScoreSettings":
        from jaxablate.commands.score import ScoreSettings

        return ScoreSettings(workdir=self.workdir, checkpoint=self.checkpoint)

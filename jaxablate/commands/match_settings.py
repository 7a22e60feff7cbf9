"""Settings of ``eval.py match``; kept apart from the runner so that a command line needs no JAX to be parsed."""

import dataclasses
import math
from pathlib import Path

from jaxablate.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class MatchSettings:
    """Compare a gated model with that checkpoint of a baseline whose validation loss is nearest: fewer features or
    edges may only mean a worse model."""

    workdir: Path
    """Working directory of the language model in question."""
    baseline: Path
    """Working directory of the run whose checkpoints are searched; trained on the same data."""
    suites: tuple[str, ...] = ()
    """Suites to compare by, for example circuits weights; none given takes every one that fits both."""
    checkpoint: str = "auto"
    """Of the model in question: last, best (by validation loss), a step, or auto, as in `score`."""
    tolerance: float = 0.02
    """Nats a token by which the two validation losses may differ; beyond it the table says so."""
    batch_size: int | None = None
    """Sequences at once; the default is that of training."""
    seed: int = 0
    """Of resampling, of prompts that are drawn, and of sampled text."""
    out: Path | None = None
    """Folder of the tables and of the baseline's results; by default matched in the working directory."""

    def check(self) -> None:
        """Raises ConfigError for a value out of range.

        Not done when made: the command line's parser would dress the message up as its own.
        """
        if not 0 < self.tolerance < math.inf:
            raise ConfigError(f"tolerance={self.tolerance:g} must be a number above 0, in nats a token")
        if self.workdir.resolve() == self.baseline.resolve():
            raise ConfigError(f"--workdir and --baseline are both {self.workdir}; give another run as --baseline")
        if (self.folder() / "config.json").exists():
            raise ConfigError(f"{self.folder()} is a working directory, whose results would be overwritten; choose "
                              "another --out")
        self.of(self.workdir).check()

    def folder(self) -> Path:
        """Where files go."""
        return self.out or self.workdir / "matched"

    def of(self, workdir: Path, checkpoint: str | None = None) -> "ScoreSettings":
        """These settings as those of `score` for one of the runs, with a checkpoint of its own where one is given."""
        from jaxablate.commands.score import ScoreSettings

        return ScoreSettings(workdir=workdir, checkpoint=checkpoint or self.checkpoint, batch_size=self.batch_size,
                             seed=self.seed)

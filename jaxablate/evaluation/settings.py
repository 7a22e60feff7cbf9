"""Settings of ``eval.py score``; kept apart from the runner so that a command line needs no JAX to be parsed."""

import dataclasses
from pathlib import Path

from jaxablate.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreSettings:
    """Measure a checkpoint: results.json, report.html and a table."""

    workdir: Path
    """Working directory of a training run."""
    suites: tuple[str, ...] = ()
    """Suites to run, for example perplexity gates; none given runs every one that fits the model."""
    checkpoint: str = "last"
    """last, best (by validation loss), or a step."""
    batch_size: int | None = None
    """Sequences at once; the default is that of training. No figure depends on it beyond rounding."""
    max_batches: int | None = None
    """Read only the first so many batches of the validation split, for a quick look."""
    seed: int = 0
    """Of resampling, of prompts that are drawn, and of sampled text."""

    def check(self) -> None:
        """Raises ConfigError for a value out of range.

        Not done when made: the command line's parser would dress the message up as its own.
        """
        for name in ("batch_size", "max_batches"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}={value} must be at least 1")
        if self.seed < 0:
            raise ConfigError(f"seed={self.seed} must not be negative")
        if self.checkpoint not in ("last", "best") and not self.checkpoint.isdecimal():
            raise ConfigError(f"checkpoint={self.checkpoint!r} must be last, best or a step")

    @property
    def step(self) -> int | str | None:
        """The checkpoint as the restoring function takes it: None for the last, "best", or a step."""
        if self.checkpoint == "last":
            return None
        return "best" if self.checkpoint == "best" else int(self.checkpoint)

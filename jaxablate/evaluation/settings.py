"""Settings of ``eval.py score``; kept apart from the runner so that a command line needs no JAX to be parsed."""

import dataclasses
from pathlib import Path
from typing import Literal

from jaxablate.config import ClassificationConfig, RunConfig
from jaxablate.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreSettings:
    """Measure a checkpoint: results.json, report.html and a table."""

    workdir: Path
    """Working directory of a training run."""
    suites: tuple[str, ...] = ()
    """Suites to run, for example perplexity gates; none given runs every one that fits the model."""
    checkpoint: str = "auto"
    """last, best (by validation loss, or accuracy on the development split), or a step. auto: the last of a language
    model; the best of a classifier, or the last one where padding is as in the paper, whose code kept no other."""
    batch_size: int | None = None
    """Sequences at once; the default is that of training. No figure depends on it beyond rounding."""
    max_batches: int | None = None
    """Read only so many batches of each split, for a quick look: of a language model's text the first ones, of labelled
    texts, whose batches come by length, some from the shortest to the longest."""
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
        if self.checkpoint not in ("auto", "last", "best") and not self.checkpoint.isdecimal():
            raise ConfigError(f"checkpoint={self.checkpoint!r} must be auto, last, best or a step")

    def step_for(self, config: RunConfig) -> int | Literal["best", "best or last"] | None:
        """The checkpoint of a run as the restoring function takes it."""
        if self.checkpoint == "auto":
            early_stopped = isinstance(config, ClassificationConfig) and config.model.padding == "masked"
            return "best or last" if early_stopped else None
        if self.checkpoint in ("last", "best"):
            return "best" if self.checkpoint == "best" else None
        return int(self.checkpoint)

"""Settings of ``eval.py sae``; kept apart from the runner so that a command line needs no JAX to be parsed."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from jaxablate.config import RunConfig
from jaxablate.errors import ConfigError

Control = Literal["none", "gaussian", "random-weights"]
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "quick": {"steps": 4000, "learning_rate": 3e-3, "project_gradient": True},
    "paper": {"steps": 100_000, "learning_rate": 1e-5, "project_gradient": False},
}
"""What --preset decides where a flag does not."""
PAPER_L1 = 5.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class SaeSettings:
    """Train sparse autoencoders on a language model's activations, store them, and measure all that are stored."""

    workdir: Path
    """Working directory of a training run of a language model."""
    checkpoint: str = "auto"
    """last, best (by validation loss), a step, or auto, as in `score`."""
    sites: tuple[str, ...] = ()
    """Where, for example clean.layer_6.mlp_out; the paper's by default, the MLP output of the second to last block."""
    l1: tuple[float, ...] = ()
    """L1 coefficients, of architecture standard; 5 by default, the paper's."""
    seeds: tuple[int, ...] = (0,)
    """Of the weights at the start. Sites x coefficients x seeds are trained together, on the same activations."""
    control: Control = "none"
    """Train on something without features instead. gaussian: vectors with the site's mean and covariance.
    random-weights: the same model with weights as they are drawn. Such an autoencoder is stored beside the others."""
    preset: Literal["quick", "paper"] = "quick"
    """quick: 4,000 steps at a learning rate of 3e-3. paper: its 100,000 steps at 1e-5, as SAELens 5.1.0 makes them."""
    steps: int | None = None
    """Optimiser steps; by default the preset's."""
    learning_rate: float | None = None
    """Of Adam; by default the preset's."""
    architecture: Literal["standard", "topk", "batchtopk"] = "standard"
    """standard: ReLU and L1. topk: the k largest latents of each token. batchtopk: k a token on average."""
    k: float | None = None
    """Active latents a token, of topk and batchtopk; 32 by default."""
    decoder: Literal["unit", "free"] = "unit"
    """unit: decoder vectors of norm 1. free: any norm, which weighs the penalty."""
    width: int = 16
    """Latents, as a multiple of the site's width."""
    tokens_per_step: int = 4096
    """Tokens of an optimiser step."""
    buffer_batches: int = 64
    """Steps' worth of activations that are mixed, an even number; it takes 4 bytes x this x tokens per step x width for
    each site."""
    warmup: float = 0.0
    """First part of the steps in which the learning rate rises."""
    decay: float = 0.2
    """Last part of the steps in which it falls to 0."""
    l1_warmup: float = 0.05
    """First part of the steps in which the L1 coefficient rises."""
    data_seed: int = 0
    """Decides the order of the training text, its mixing, and the draws of a control."""
    save_every: float = 60.0
    """Seconds between two savings of what an interrupted training goes on from."""
    batch_size: int | None = None
    """Sequences at once when autoencoders are measured; the default is that of the model's training."""

    def check(self) -> None:
        """Raises ConfigError for a value out of range, or an option that has no effect beside another.

        Not done when made: the command line's parser would dress the message up as its own.
        """
        for name in ("width", "tokens_per_step", "steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}={value} must be at least 1")
        if self.buffer_batches < 2 or self.buffer_batches % 2:
            raise ConfigError(f"buffer_batches={self.buffer_batches} must be an even number of at least 2")
        for name in ("sites", "l1", "seeds"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ConfigError(f"--{name} {' '.join(map(str, values))} has a value twice; give each once")
        if not self.seeds or min(self.seeds) < 0 or self.data_seed < 0:
            raise ConfigError("--seeds must have one seed or more, and no seed may be negative")
        if not self.save_every > 0:
            raise ConfigError(f"save_every={self.save_every:g} must be above 0 seconds")
        self._check_numbers()
        self._check_together()
        self.of_score().check()

    def _check_numbers(self) -> None:
        rate = self.chosen("learning_rate")
        if not 0 < rate < math.inf:
            raise ConfigError(f"learning_rate={rate:g} must be a number above 0; the paper takes 1e-5")
        for value in self.l1:
            if not 0 <= value < math.inf:
                raise ConfigError(f"l1={value:g} must be a number of at least 0; the paper takes {PAPER_L1:g}")
        for name in ("warmup", "decay", "l1_warmup"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}={getattr(self, name):g} must be a part in 0..1")

    def _check_together(self) -> None:
        standard = self.architecture == "standard"
        idle = [flag for flag, given in (("--k", standard and self.k is not None), ("--l1", not standard and self.l1))
                if given]
        if idle:
            raise ConfigError(f"no effect beside --architecture {self.architecture}: {idle[0]}; leave it out, or "
                              f"choose another --architecture")

    def chosen(self, name: str) -> Any:
        """A setting that a preset decides where it is not given: steps, learning_rate, project_gradient."""
        given = getattr(self, name, None)
        return PRESETS[self.preset][name] if given is None else given

    @property
    def coefficients(self) -> tuple[float, ...]:
        """L1 coefficients, the default filled in; 0 where there is no such penalty."""
        if self.architecture != "standard":
            return (0.0,)
        return self.l1 or (PAPER_L1,)

    @property
    def chosen_k(self) -> float:
        """Active latents a token, the default filled in."""
        return 32 if self.k is None else self.k

    def of_score(self) -> "ScoreSettings":
        """How the stored autoencoders are measured."""
        from jaxablate.commands.score import ScoreSettings

        return ScoreSettings(workdir=self.workdir, checkpoint=self.checkpoint, suites=("sae",),
                             batch_size=self.batch_size, seed=self.data_seed)

    def step_for(self, config: RunConfig) -> int | Literal["best", "best or last"] | None:
        """The checkpoint of a run as the restoring function takes it."""
        return self.of_score().step_for(config)

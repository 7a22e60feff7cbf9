"""Settings of ``eval.py neurons``; kept apart from the runner so that a command line needs no JAX to be parsed."""

import dataclasses
import re
from pathlib import Path
from typing import Literal

from jaxablate.config import RunConfig
from jaxablate.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class NeuronSettings:
    """Make a graph of what fires each neuron of a language model (Neuron to Graph), search them, show them."""

    workdir: Path
    """Working directory of a training run of a language model."""
    search: str | None = None
    """Say which neurons fire at the end of this text, by the graphs that were made; " dog" with its space is one token
    of most tokenizers."""
    show: tuple[str, ...] = ()
    """Print these neurons (layer.number, for example 3.17) and write a page of them, from graphs that were made."""
    checkpoint: str = "auto"
    """last, best (by validation loss), a step, or auto, as in `score`."""
    units: Literal["neurons", "channels"] = "neurons"
    """neurons: of the MLPs, after the activation function. channels: of the concatenated heads of attention."""
    stream: Literal["clean", "ablated"] = "clean"
    """ablated: what the gates let through, of a model with gates."""
    examples: int = 20
    """Top examples of each neuron, each of another window of the training text."""
    build: int = 20
    """How many of them a graph is made from."""
    context: int = 24
    """Tokens of an example, the one at which the neuron is strong included."""
    tokens: int = 400_000
    """Tokens of training text in which examples are looked for."""
    score_tokens: int = 200_000
    """At most so many tokens of validation text on which graphs are scored."""
    importance: float = 0.4
    """Share of the activation that must be lost without a context token for it to be in the graph."""
    candidates: int = 8
    """Tokens of most similar embeddings that are tried in the place of each token of a pattern."""
    seed: int = 0
    """Of random replacements and intervals."""
    batch_size: int = 16
    """Windows computed at once when text is read."""
    out: Path | None = None
    """Folder of the graphs; by default neurons/graphs in the working directory, with the names of stream and units
    where they are not the default."""

    def check(self) -> None:
        """Raises ConfigError for a value out of range, or options that exclude each other.

        Not done when made: the command line's parser would dress the message up as its own.
        """
        for name in ("examples", "build", "context", "tokens", "score_tokens", "candidates", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")
        if self.build > self.examples:
            raise ConfigError(f"build={self.build} examples of {self.examples} cannot be used; raise --examples or "
                              "lower --build")
        if not 0 < self.importance < 1:
            raise ConfigError(f"importance={self.importance:g} must be between 0 and 1")
        if self.search is not None and self.show:
            raise ConfigError("--search and --show are two commands; give one of them")
        if self.search is not None and not self.search:
            raise ConfigError('--search "" has no text; give some, for example --search " dog"')
        for name in self.show:
            if not re.fullmatch(r"\d+\.\d+", name):
                raise ConfigError(f"{name!r} names no neuron; give layer.number, for example 3.17")
        self._of_score.check()

    def folder(self) -> Path:
        """Where graphs lie.

        >>> NeuronSettings(workdir=Path("runs/x"), stream="ablated").folder().name
        'graphs-ablated'
        """
        if self.out is not None:
            return self.out
        other = [x for x in (self.stream, self.units) if x not in ("clean", "neurons")]
        return self.workdir / "neurons" / "-".join(["graphs", *other])

    def command(self) -> str:
        """The command line that makes these graphs."""
        flags = [f"--{name} {value}" for name, value, default in
                 (("stream", self.stream, "clean"), ("units", self.units, "neurons"), ("out", self.out, None))
                 if value != default]
        return " ".join(["python eval.py neurons --workdir", str(self.workdir), *flags])

    def step_for(self, config: RunConfig) -> int | Literal["best", "best or last"] | None:
        """The checkpoint of a run as the restoring function takes it."""
        return self._of_score.step_for(config)

    @property
    def _of_score(self) -> "ScoreSettings":
        from jaxablate.commands.score import ScoreSettings

        return ScoreSettings(workdir=self.workdir, checkpoint=self.checkpoint, seed=self.seed)

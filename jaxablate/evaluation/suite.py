"""What a suite is, and what it is given."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import jax
import numpy as np

from jaxablate.config import ClassificationConfig, Config, RunConfig
from jaxablate.neurons.facts import Facts
from jaxablate.reports.panels import Panel
from jaxablate.reports.results import Figure

STREAMS = ("clean", "ablated")
"""Residual streams in the order of every table. (Dicts that come out of `jax.jit` have their keys sorted.)"""

Params = Mapping[str, Any]
Batch = Mapping[str, jax.Array | np.ndarray]
"""Of a language model: inputs, targets int32 [B, T] and mask float32 [B, T], 1 where the target counts. Of a text
classifier: tokens int32 [B, L], mask float32 [B, L], labels int32 [B], weight float32 [B], 0 for a row that is no text,
and index int32 [B], the text's place in its split."""


def final_states(output: Any) -> dict[str, jax.Array]:
    """Last hidden states [B, T, D] by stream, of the streams that a model's output has."""
    states = {"clean": output.final_clean, "ablated": output.final_ablated}
    return {name: x for name, x in states.items() if x is not None}


class Tokenizer(Protocol):
    """The part of ``jaxablate.data.tokenizer.Tokenizer`` that suites use."""

    eot_id: int
    vocab_size: int

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: list[int]) -> str: ...


class Vocabulary(Protocol):
    """The part of ``jaxablate.data.sentiment.vocabulary.Vocabulary`` that suites use."""

    vocab_size: int
    pad_id: int
    unk_id: int | None

    def words(self, ids: Sequence[int]) -> list[str]: ...


class SuiteResult(Protocol):
    """A frozen dataclass of plain values, with these two views."""

    def headline(self) -> tuple[Figure, ...]:
        """The few numbers that stand in tables and comparisons."""

    def panels(self) -> tuple[Panel, ...]:
        """What the report shows besides."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Subject:
    """One checkpoint under evaluation, with the data it is evaluated on."""

    config: Config
    model: Any
    params: Params
    tokenizer: Tokenizer
    batches: Callable[[], Iterator[Batch]]
    """Starts the validation split from its beginning: every token after the first is a target once, in file order."""
    seed: int = 0
    """Of resampling, of drawn prompts and of sampled text."""
    ioi_prompts: Callable[[int, int], Sequence[Any]] | None = None
    """(seed, count) -> indirect-object prompts in the language of the data; None where the data has none."""
    loss_floor: Callable[[], float] | None = None
    """Nats a token that no model of the data can beat; None where it is not known."""
    facts: Callable[[], Facts] | None = None
    """Recorded facts of every token of the validation split, in file order; None where the data has none."""
    workdir: Path | None = None
    """Of the run, for suites that measure what is stored beside the model; None where there is none."""

    @property
    def streams(self) -> tuple[str, ...]:
        """The residual streams the model has."""
        return STREAMS if self.config.model.gated else STREAMS[:1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassifierSubject:
    """One checkpoint of a text classifier under evaluation, with its splits train, dev and test."""

    config: ClassificationConfig
    model: Any
    params: Params
    vocabulary: Vocabulary
    batches: Callable[[str], Iterator[Batch]]
    """Name of a split -> its texts, each once, from its beginning."""
    texts: Callable[[str], Sequence[str]]
    """Name of a split -> its texts as they were read, in the split's order."""
    seed: int = 0
    """Of resampling and of random rankings."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Suite:
    """A named kind of measurement."""

    name: str
    about: str
    """One line for reports: what it measures, on what."""
    run: Callable[[Any], tuple[SuiteResult, Mapping[str, Any]]]
    """Takes the subject of its task; returns the result and the options it was made with."""
    task: Literal["language", "classification"] = "language"
    """Kind of run it is for, and so of its subject: `Subject` or `ClassifierSubject`."""
    unfit: Callable[[Any], str | None] = lambda config: None
    """Why the suite does not fit a model of this config of its task; None where it does."""
    lacks: Callable[[Path], str | None] = lambda workdir: None
    """What a working directory must hold first, and the command that makes it; None where nothing is missing."""

    def reason_against(self, config: RunConfig) -> str | None:
        """Why the suite cannot measure this run; None where it can."""
        if config.task != self.task:
            kinds = {Config.task: "language models", ClassificationConfig.task: "text classifiers"}
            return f"it measures {kinds[self.task]}"
        return self.unfit(config)

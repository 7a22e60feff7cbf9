"""What a suite is, and the registry of all of them."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import jax

from jaxablate.config import ClassificationConfig, Config, RunConfig
from jaxablate.reports.panels import Panel
from jaxablate.reports.results import Figure
from jaxablate.runs.run import Run


class SuiteResult(Protocol):
    """A frozen dataclass of plain values, with these two views.

    A field ``attachments``, where it has one, maps names to dataclasses that only the explorer shows (`attachments`).
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def headline(self) -> tuple[Figure, ...]:
        """The few numbers that stand in tables and comparisons."""
        ...

    def panels(self) -> tuple[Panel, ...]:
        """What the report shows besides."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Suite:
    """A named kind of measurement."""

    name: str
    about: str
    """One line for reports: what it measures, on what."""
    run: Callable[[Run], tuple[SuiteResult, Mapping[str, Any]]]
    """Takes an opened run; returns the result and the options it was made with."""
    task: Literal["language", "classification"] = "language"
    """Kind of run it is for."""
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


def attachments(result: SuiteResult) -> Mapping[str, Any]:
    """What a suite found for the explorer alone, by name: large, and so not in ``results.json``.

    Each is a dataclass of `reports.schemas` with a field ``params_digest``, the checkpoint it was made from.
    """
    return getattr(result, "attachments", {})


def final_states(output: Any) -> dict[str, jax.Array]:
    """Last hidden states [B, T, D] by stream, of the streams that a model's output has."""
    states = {"clean": output.final_clean, "ablated": output.final_ablated}
    return {name: x for name, x in states.items() if x is not None}

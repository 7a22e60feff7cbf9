"""Frozen configuration dataclasses: validated when made, exact through JSON.

A config file (``configs/*.py``) has one function ``get_config()`` that returns a `Config` (language models) or a
`ClassificationConfig` (text classifiers); the command line changes single fields of it (``--model.k-neurons 4``).
Everything a run depends on is here and is stored beside its checkpoints.
"""

from collections.abc import Mapping
from typing import Any

from jaxablate.config.checks import marked
from jaxablate.config.classification import (
    ClassificationConfig,
    ClassificationObjective,
    ClassifierConfig,
    EpochTrainConfig,
    SentimentDataConfig,
)
from jaxablate.config.families import FAMILIES, family
from jaxablate.config.gated import GatedModelConfig, UnitKind
from jaxablate.config.language import Config, DataConfig, ModelConfig, ObjectiveConfig, TrainConfig
from jaxablate.config.run import MeshConfig, OptimizerConfig, RegularizedObjective
from jaxablate.config.serialization import differences, flatten, from_dict, to_dict
from jaxablate.errors import ConfigError

RunConfig = Config | ClassificationConfig
"""Everything about one run, of either kind."""

INCIDENTAL = marked("incidental", Config, ClassificationConfig)
CONTINUABLE = marked("continuable", Config, ClassificationConfig)
"""Settings, by dotted name, that have no effect on what is learned beyond rounding, and those of them that a run may be
continued with another value of (the data itself is recognised by its hash, wherever it lies)."""

_TASKS: dict[str, type[RunConfig]] = {cls.task: cls for cls in (Config, ClassificationConfig)}

__all__ = [
    "CONTINUABLE", "FAMILIES", "INCIDENTAL",
    "ClassificationConfig", "ClassificationObjective", "ClassifierConfig", "Config", "DataConfig", "EpochTrainConfig",
    "GatedModelConfig", "MeshConfig", "ModelConfig", "ObjectiveConfig", "OptimizerConfig",
    "RegularizedObjective", "RunConfig", "SentimentDataConfig", "TrainConfig", "UnitKind", "differences", "family",
    "flatten", "from_dict", "run_from_dict", "to_dict",
]


def run_from_dict(values: Mapping[str, Any]) -> RunConfig:
    """The run that `to_dict` wrote; one without a ``task`` is a language model's.

    Raises:
      ConfigError: the task or a field is unknown, or a value is bad.
    """
    task = values.get("task", Config.task)
    if not isinstance(task, str) or task not in _TASKS:
        raise ConfigError(f"task={task!r:.80} must be one of {', '.join(_TASKS)}")
    return from_dict(_TASKS[task], values)

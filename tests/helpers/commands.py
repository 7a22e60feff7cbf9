"""The program's commands as a user calls them."""

import io
import pathlib
from collections.abc import Mapping, Sequence

import pytest

from jaxablate.commands.main import main
from jaxablate.neurons import gate_information, specialisation
from jaxablate.registry import Registry
from jaxablate.suites import circuits, explanations, neurons

ROOT = pathlib.Path(__file__).parent.parent.parent


def run_command(*arguments: object) -> None:
    """Runs ``jaxablate ARGUMENTS``, which must succeed: ``run_command("score", "--workdir", folder)``."""
    assert main([str(a) for a in arguments]) == 0


def few_draws(patch: pytest.MonkeyPatch) -> None:
    """Few prompts, random directions, shuffles, updates and methods in every suite of language models, so that all are
    quick; of text classifiers the explorer has short texts too, as those of `helpers.runs` are."""
    patch.setattr(explanations, "SHORTEST", 3)
    patch.setattr(circuits, "METHODS", Registry("method", [circuits.METHODS[name] for name in ("eap-ig", "random")]))
    for module, counts in ((circuits, {"PROMPTS": 6, "BATCHES": 2, "ORDERS": 1, "RANDOM_MODELS": 1, "DRAWS": 20,
                                      "PRUNE_STEPS": 2, "PRUNE_SEEDS": 1}),
                           (neurons, {"DIRECTIONS": 8, "SHUFFLES": 2}),
                           (specialisation, {"DIRECTION_RESAMPLES": 20}),
                           (gate_information, {"SHUFFLES": 2, "UPDATES": 2, "TOKEN_EPOCHS": 2})):
        for name, count in counts.items():
            patch.setattr(module, name, count)


def error_of(capsys: pytest.CaptureFixture, *arguments: object) -> str:
    """Runs ``jaxablate ARGUMENTS``, which must fail as a user's error does, and returns its one line."""
    capsys.readouterr()
    assert main([str(a) for a in arguments]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0]


class Ended:
    """A process of a sweep that has ended, or has never been one."""

    def __init__(self, code: int):
        self.returncode, self.stdin = code, io.BytesIO()

    def poll(self) -> int:
        """Its exit code."""
        return self.returncode


def in_this_process(line: Sequence[str], log: pathlib.Path, variables: Mapping[str, str],
                    on_cores: Sequence[int]) -> Ended:
    """In the place of `jaxablate.commands.sweep.start`: the command, to its end."""
    return Ended(main(list(line)))

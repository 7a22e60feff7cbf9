"""Shapes that functions state (jaxtyping) are checked by beartype while the tests run."""

from collections.abc import Callable, Iterator

import jaxtyping
import pytest
from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeDecorHintException

ROOMS = ("ops", "gating", "regularizers", "objectives", "models.generation", "features", "circuits", "classifier",
         "data.sentiment", "suites.classification", "suites.importance", "suites.superposition")


def install() -> None:
    """Checks every function that states a shape, in the rooms that are imported from now on."""
    jaxtyping.install_import_hook([f"jaxablate.{room}" for room in ROOMS], f"{__name__}.check")


def check(function: Callable) -> Callable:
    """The function with its arguments and results checked if it states an array's shape, otherwise as it is.

    Constructors are left alone, because JAX rebuilds pytrees with leaves that are no arrays.
    """
    shapes = any("jaxtyping" in str(annotation) for annotation in function.__annotations__.values())
    if not shapes or function.__name__ == "__init__":
        return function
    try:
        return beartype(function, conf=BeartypeConf(is_pep484_tower=True))  # an int is a float
    except BeartypeDecorHintException:  # a type beside the shapes that cannot be checked: Self, a plain protocol
        return function


@pytest.fixture
def unchecked_types() -> Iterator[None]:
    """Arguments that contradict the annotations reach the library's own checks, as they do outside of tests."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)

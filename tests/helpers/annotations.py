"""Shapes that functions state (jaxtyping) are checked by beartype while the tests run."""

import functools
import inspect
from collections.abc import Callable, Iterator

import jaxtyping
import pytest
from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeDecorHintException

ROOMS = ("ops", "gating", "regularizers", "objectives", "models.generation", "features", "circuits", "classifier",
         "data.sentiment", "suites.classification", "suites.importance", "suites.superposition")


def install() -> None:
    """Checks every function that states a shape, in the rooms that are imported from now on."""
    jaxtyping.jaxtyped = functools.partial(_wrap, jaxtyping.jaxtyped)
    jaxtyping.install_import_hook([f"jaxablate.{room}" for room in ROOMS], f"{__name__}.check")


def _wrap(jaxtyped: Callable, *, typechecker: Callable) -> Callable:
    """The decorator `jaxtyping.jaxtyped`, but only of functions that `check` does not leave as they are.

    It binds the arguments of every call, which all functions that the import hook decorates would pay for.
    """
    checked = jaxtyped(typechecker=typechecker)
    return lambda part: checked(part) if inspect.isfunction(part) and _states_shapes(part) else part


def _states_shapes(function: Callable) -> bool:
    """Constructors do not count, because JAX rebuilds pytrees with leaves that are no arrays."""
    shapes = any("jaxtyping" in str(annotation) for annotation in function.__annotations__.values())
    return shapes and function.__name__ != "__init__"


def check(function: Callable) -> Callable:
    """The function with its arguments and results checked if it states an array's shape, otherwise as it is."""
    if not _states_shapes(function):
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

"""Files from outside the repository that some tests need, in folders that environment variables name."""

import os
from pathlib import Path

import pytest


def real_data(*parts: str) -> Path:
    """A public data set in JAXABLATE_DATA, as its authors give it; without it the test that asks is skipped."""
    return _external("JAXABLATE_DATA", parts)


def fixture_file(name: str) -> Path:
    """A file of figures that the papers' own code produced, in JAXABLATE_FIXTURES; without it the test is skipped."""
    return _external("JAXABLATE_FIXTURES", (name,))


def _external(variable: str, parts: tuple[str, ...]) -> Path:
    folder = os.environ.get(variable)
    if not folder:
        pytest.skip(f"{variable} is not set")
    path = Path(folder).joinpath(*parts)
    if not path.exists():
        pytest.skip(f"{variable}={folder} has no {'/'.join(parts)}")
    return path

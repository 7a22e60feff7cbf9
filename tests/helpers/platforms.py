"""Code for platforms that this machine does not have."""

from typing import Any

import jax
import pytest


def take_accelerator_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the test ends, what depends on the platform is traced as for an accelerator, and runs here."""

    def default(*args: Any, default: Any, **_platforms: Any) -> Any:
        return default(*args)

    monkeypatch.setattr(jax.lax, "platform_dependent", default)


def lowered(function: Any, *arguments: Any, platform: str) -> str:
    """StableHLO of a function of arrays for a platform that need not be here; arguments may be shapes."""
    anew = jax.jit(lambda *arrays: function(*arrays))  # what was traced of the function before may differ
    return anew.trace(*arguments).lower(lowering_platforms=(platform,)).as_text()

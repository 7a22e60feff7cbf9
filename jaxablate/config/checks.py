"""Checks that config dataclasses make of themselves."""

from typing import Any

from jaxablate.errors import ConfigError


def require(ok: bool, message: str) -> None:
    """Raises ConfigError with the message unless ok."""
    if not ok:
        raise ConfigError(message)


def require_positive(config: Any, *names: str) -> None:
    """Refuses a config in which one of these fields is not positive."""
    for name in names:
        value = getattr(config, name)
        require(value > 0, f"{name}={value} must be positive")


def divisors(n: int) -> str:
    """``1, 2, 4`` for 4."""
    return ", ".join(str(d) for d in range(1, n + 1) if n % d == 0)

"""Comparisons with figures of other programs and machines, whose arithmetic rounds otherwise."""

import numpy as np

STANDARD_ERRORS = 5
"""How far two samples' moments may be apart, in standard errors: one in two million draws is farther."""


def assert_close(actual, expected, *, atol: float | np.ndarray = 0.0, rtol: float = 0.0, ulps: int = 4,
                 figures: type = np.float32, err_msg: str = "") -> None:
    """Asserts |actual - expected| <= max(atol + rtol |expected|, ulps units in the last place of expected).

    Four units is about what processors were seen to differ by in a loss, so no figure is compared more tightly than
    that, whatever else was measured for it. The unit is that of the type in which the figures were computed, which may
    be float32 even where this code runs in float64.
    """
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, f"{err_msg}: shape {actual.shape}, expected {expected.shape}"
    allowed = np.maximum(atol + rtol * abs(expected), ulps * np.spacing(abs(expected).astype(figures)))
    ratio = np.max(abs(actual - expected) / allowed, initial=0.0)
    assert ratio <= 1, f"{err_msg}: off by {ratio:.3g} times what is allowed"


def assert_same_distribution(sample, other) -> None:
    """Asserts that mean and standard deviation of two samples of independent numbers are equal up to chance.

    The standard error of a mean is s / sqrt(n), that of a standard deviation s sqrt((kurtosis - 1) / (4 n)).
    """
    a, b = np.asarray(sample, np.float64).ravel(), np.asarray(other, np.float64).ravel()
    n, spread = a.size * b.size / (a.size + b.size), b.std()
    kurtosis = np.mean(((b - b.mean()) / spread) ** 4)
    assert abs(a.mean() - b.mean()) <= STANDARD_ERRORS * spread / np.sqrt(n)
    assert abs(a.std() - spread) <= STANDARD_ERRORS * spread * np.sqrt((kurtosis - 1) / (4 * n))

"""Which checkpoint of a run has a given loss."""

import itertools
from collections.abc import Callable, Mapping, Sequence

MEASURE_ALL = 8
"""Up to so many checkpoints are all measured; of more, those that bisection asks for."""


def measured_losses(steps: Sequence[int], loss_of: Callable[[int], float], target: float, *, most: int = MEASURE_ALL
                    ) -> dict[int, float]:
    """Losses of the checkpoints that can be nearest to a target.

    Args:
      steps: of the checkpoints, ascending.
      loss_of: measures one; it is asked once for each.
      target: loss that is looked for.
      most: up to so many are all measured. More are bisected, which takes the loss to fall from step to step; where it
        does not, the checkpoint found is near the target, and others may be as near.

    Returns:
      step -> loss, in the order of the steps.

    >>> sorted(measured_losses(range(100), lambda step: 100.0 - step, 30.2))
    [0, 49, 61, 67, 68, 69, 70, 74, 99]
    """
    if len(steps) <= most:
        return {step: loss_of(step) for step in steps}
    low, high = 0, len(steps) - 1
    found = {steps[low]: loss_of(steps[low]), steps[high]: loss_of(steps[high])}
    while high - low > 1 and found[steps[low]] > target > found[steps[high]]:
        middle = (low + high) // 2
        found[steps[middle]] = loss_of(steps[middle])
        low, high = (middle, high) if found[steps[middle]] > target else (low, middle)
    return dict(sorted(found.items()))


def nearest(losses: Mapping[int, float], target: float) -> int:
    """Step whose loss is nearest to the target; the later one of two that are equally near.

    >>> nearest({10: 2.0, 20: 1.4, 30: 1.2}, 1.5)
    20
    """
    return min(losses, key=lambda step: (abs(losses[step] - target), -step))


def passed(curve: Sequence[tuple[int, float]], target: float) -> int | None:
    """Step at which a curve of (step, loss) first falls to a target, between its points; None where it never does.

    >>> passed([(100, 3.0), (200, 2.0), (300, 1.0)], 1.5)
    250
    """
    for (a, before), (b, after) in itertools.pairwise(curve):
        if before > target >= after:
            return round(a + (b - a) * (before - target) / (before - after))
    return None

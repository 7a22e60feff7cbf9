"""Random orders that no library's upgrade changes: Philox-4x64-10 words, sorted."""

import numpy as np

_HELD_OUT_DOMAIN = 0x6A61786163


def permutation(seed: int, domain: int, counter: int, n: int) -> np.ndarray:
    """A random order of 0 .. n - 1: the order of n Philox words, as in `jaxablate.data.pipeline.window_offsets`.

    Args:
      seed: any integer; taken modulo 2^64.
      domain: second word of the key; keeps different uses of a seed apart.
      counter: 0, 1, ...: which order of this seed.
      n: how many.

    Returns:
      Each of 0 .. n - 1 once, int64 [n].

    >>> sorted(permutation(0, 1, 0, 5).tolist())
    [0, 1, 2, 3, 4]
    """
    key = np.array([seed % 2**64, domain], np.uint64)
    return np.argsort(np.random.Philox(key=key, counter=[0, 0, counter, 0]).random_raw(n), kind="stable")


def held_out(seed: int, counter: int, n: int, n_held: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices 0 .. n - 1 in two parts at random, each in rising order.

    Args:
      seed: decides which.
      counter: tells apart the draws of one data set.
      n: how many there are.
      n_held: how many are in the second part.

    Returns:
      Those that stay and those held out.
    """
    order = permutation(seed, _HELD_OUT_DOMAIN, counter, n)
    return np.sort(order[n_held:]), np.sort(order[:n_held])

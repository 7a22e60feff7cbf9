"""What counts alone know of the next token: unigram and bigram losses of a split, each story judged by the others."""

import numpy as np

STRENGTHS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""Weights of the prior that are tried; the best is taken. One number chosen on a whole split gains next to nothing."""


def ngram_losses(current: np.ndarray, following: np.ndarray, story: np.ndarray, vocab_size: int
                 ) -> tuple[np.ndarray, np.ndarray]:
    """Losses of next tokens under counts of the other stories.

    With N the counts over all stories but the token's own,

        unigram   p(n)     = (N(n) + a / V) / (N + a)
        bigram    p(n | c) = (N(c, n) + b p(n)) / (N(c) + b)

    Args:
      current, following: [tokens] ids, a token and the one after it.
      story: [tokens], which story the token is of.
      vocab_size: V.

    Returns:
      Unigram and bigram losses, float64 [tokens], nats.
    """
    kinds = (np.zeros(len(story), np.int64), following, current, current.astype(np.int64) * vocab_size + following)
    size, of_next, of_current, of_pair = (_elsewhere(kind, story) for kind in kinds)
    unigram = _best([(of_next + a / vocab_size) / (size + a) for a in STRENGTHS])
    bigram = _best([(of_pair + b * unigram) / (of_current + b) for b in STRENGTHS])
    return -np.log(unigram), -np.log(bigram)


def _elsewhere(kinds: np.ndarray, story: np.ndarray) -> np.ndarray:
    """For each token how many tokens of other stories are of its kind."""
    _, place, counts = np.unique(kinds, return_inverse=True, return_counts=True)
    local = place.astype(np.int64) * (int(story.max()) + 1) + story
    _, here, own = np.unique(local, return_inverse=True, return_counts=True)
    return (counts[place] - own[here]).astype(np.float64)


def _best(probabilities: list[np.ndarray]) -> np.ndarray:
    return max(probabilities, key=lambda p: np.log(p).sum())

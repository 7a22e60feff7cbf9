r"""How many bits a single gate tells of the next token, given the current one.

For a unit u whose gate fires or not (g = 1 or 0), the current token c and the next token n,

    I(g; n | c) = sum over c of p(c) sum over n, g of p(n, g | c) log2 [p(n, g | c) / (p(n | c) p(g | c))]

over current tokens seen at least `MIN_COUNT` times in the sample. The plug-in value is never negative and so too
large. What it is where gate and next token are independent given the current one is measured by shuffling the next
tokens among the occurrences of each current token. The mean over shuffles is subtracted, and a unit counts as telling
where its value is above that of every shuffle (with `SHUFFLES` = 19 shuffles, 1 unit in 20 does by chance).
"""

import dataclasses

import numpy as np

from jaxablate.errors import TooLittleDataError
from jaxablate.neurons.leakage import GateSample

MIN_COUNT = 50
"""Occurrences of a current token in the sample below which its next tokens say too little."""
MIN_TOKENS = 1_000
SHUFFLES = 19


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnitInformation:
    """The units of one kind and layer, float64 [U] each, in bits.

    Attributes:
      kind, layer: which units.
      plug_in: I(g; n | c) of the sample.
      null: its mean over shuffles.
      telling: bool, whether the plug-in is above the value of every shuffle.
      entropy: H(g | c), the most that `plug_in` could be.
    """

    kind: str
    layer: int
    plug_in: np.ndarray
    null: np.ndarray
    telling: np.ndarray
    entropy: np.ndarray

    @property
    def information(self) -> np.ndarray:
        """plug_in - null: unbiased about 0 where there is none, so it may be negative."""
        return self.plug_in - self.null


def frequent_tokens(sample: GateSample, *, least: int = MIN_COUNT) -> GateSample:
    """The part of a sample whose current tokens occur at least so often in it.

    Raises:
      DataError: fewer than `MIN_TOKENS` tokens are left.
    """
    _, place, counts = np.unique(sample.current, return_inverse=True, return_counts=True)
    kept = counts[place] >= least
    if kept.sum() < MIN_TOKENS:
        raise TooLittleDataError(
            f"information about the next token needs at least {MIN_TOKENS:,} tokens whose id occurs {least} times or "
            f"more, the sample of {len(kept):,} has {int(kept.sum()):,}; read more of the split (--max-batches) or "
            "take a longer one")
    return sample.take(kept)


def unit_information(sample: GateSample, kind: str, layer: int, *, shuffles: int = SHUFFLES, seed: int = 0
                     ) -> UnitInformation:
    """Information of each unit's gate about the next token given the current one.

    Args:
      sample: of `frequent_tokens`.
      kind: attention or neurons.
      layer: which.
      shuffles: of the next tokens within each current token.
      seed: of the shuffles.
    """
    pairs = np.lexsort((sample.following, sample.current))
    bits = sample.fires(kind, layer)[pairs]
    current, following = sample.current[pairs], sample.following[pairs]
    tokens = np.flatnonzero(np.diff(current, prepend=current[:1] - 1))
    both = np.flatnonzero(np.diff(current, prepend=current[:1] - 1) | np.diff(following, prepend=following[:1] - 1))
    given, _ = _entropy_bits(bits, tokens)
    rng = np.random.default_rng((seed, layer, kind == "neurons"))
    plug_in = given - _entropy_bits(bits, both)[0]
    null = np.stack([given - _entropy_bits(bits[_within(current, rng)], both)[0] for _ in range(shuffles)])
    return UnitInformation(kind=kind, layer=layer, plug_in=plug_in, null=null.mean(axis=0),
                           telling=plug_in > null.max(axis=0) + 1e-12, entropy=given)


def _entropy_bits(bits: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Entropy of each unit's bit given the group, [U] bits, and the groups' sizes; groups are adjoining rows."""
    sizes = np.diff(starts, append=len(bits))
    fired = np.add.reduceat(bits, starts, axis=0, dtype=np.int32)
    table = np.arange(sizes.max() + 1, dtype=np.float64)
    table[1:] *= np.log2(table[1:])  # x log2 x of every count
    total = table[sizes].sum() - table[fired].sum(axis=0) - table[sizes[:, None] - fired].sum(axis=0)
    return total / len(bits), sizes


def _within(groups: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random order of the rows within each group; groups [n] are sorted."""
    return np.lexsort((rng.random(len(groups)), groups))

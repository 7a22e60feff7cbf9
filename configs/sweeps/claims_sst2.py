"""The second paper's claims on SST-2: every pair of lambdas, ten seeds each (docs/claims.md).

    jaxablate sweep claims_sst2 --workdir runs/claims_sst2 --jobs 2

100 runs of `configs/sst2.py` with a patience of 10 epochs, the published pairs first.
"""

from jaxablate.sweep import Sweep


def get_sweep() -> Sweep:
    """Importance and interaction at 1, 0.1 and 0.01, each alone and both, beside neither."""
    lambdas = [(0.0, 0.0), *[pair for x in (1.0, 0.1, 0.01) for pair in ((x, 0.0), (0.0, x), (x, x))]]
    return Sweep(
        config="sst2",
        grid={"lambdas": {f"{a:g}-{b:g}": {"objective.importance": a, "objective.interaction": b} for a, b in lambdas}},
        seeds=tuple(range(10)),
        settings={"train.patience": 10},
        suites=("classification", "superposition"),
    )

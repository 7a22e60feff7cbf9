"""SAFR on movie reviews, with lambdas scaled to their length: three seeds each (docs/claims.md).

    jaxablate sweep claims_imdb --workdir runs/claims_imdb --jobs 2

6 runs of `configs/imdb.py`, four epochs each. At the start the importance loss is 6.1 for a review and 1.4 for a
sentence of SST-2 (docs/safr.md): lambdas of 0.23 weigh there as 1 does here.
"""

from jaxablate.sweep import Sweep


def get_sweep() -> Sweep:
    """Neither term, and both."""
    lambdas = {f"{x:g}-{x:g}": {"objective.importance": x, "objective.interaction": x} for x in (0.0, 0.23)}
    return Sweep(
        config="imdb",
        grid={"lambdas": lambdas},
        seeds=(0, 1, 2),
        settings={"train.epochs": 4},
        suites=("classification", "superposition"),
    )

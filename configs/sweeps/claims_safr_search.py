"""Is there a setting in which both parts of SAFR's score rise, without emptying the other words? (docs/claims.md)

    python -m benchmarks.claims.data hold-out --folder data/claims_trees --source data/trees
    jaxablate sweep claims_safr_search --workdir runs/claims_safr_search --jobs 2

30 runs of `configs/sst2.py` on its training sentences alone, a tenth of them for early stopping; the development
sentences are what is scored.
"""

from jaxablate.sweep import Sweep


def get_sweep() -> Sweep:
    """More weight on the interaction term, less on the importance term; the importance term on neurons."""
    lambdas = [(0, 0), (1, 1), (0.1, 1), (0.03, 1), (0, 10), (0.1, 10), (0.03, 10), (0.1, 100)]
    settings = {f"{a:g}-{b:g}": {"objective.importance": a, "objective.interaction": b} for a, b in lambdas}
    on_neurons = {f"neurons-{a:g}-{b:g}": {"objective.importance": a, "objective.interaction": b,
                                           "objective.importance_site": "neurons"} for a, b in ((0.1, 1), (0.1, 10))}
    return Sweep(
        config="sst2",
        grid={"lambdas": settings | on_neurons},
        seeds=(100, 101, 102),
        settings={"train.patience": 5, "data.path": "data/claims_trees"},
        suites=("classification", "superposition"),
    )

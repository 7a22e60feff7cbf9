"""SAFR with VMASK's own information term, and together with gates, on SST-2: three seeds each (docs/claims.md).

    jaxablate sweep claims_safr_more --workdir runs/claims_sst2 --jobs 2

12 runs of `configs/sst2.py` with a patience of 10 epochs, into the folder of `claims_sst2`, whose runs without
regularisers they are compared with.
"""

from jaxablate.sweep import Sweep


def get_sweep() -> Sweep:
    """The information term without and with SAFR's; local gates without and with SAFR's."""
    gates = {"model.ablation": "local", "model.k_attention": 32, "model.k_neurons": 64}
    variants = {}
    for name, lambdas in (("0-0", 0.0), ("1-1", 1.0)):
        regularizers = {"objective.importance": lambdas, "objective.interaction": lambdas}
        variants[f"information-{name}"] = regularizers | {"objective.information": 1.0}
        variants[f"gates-{name}"] = regularizers | gates
    return Sweep(
        config="sst2",
        grid={"variant": variants},
        seeds=(0, 1, 2),
        settings={"train.patience": 10},
        suites=("classification", "superposition", "importance"),
    )

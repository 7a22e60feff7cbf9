"""Weight-sparse training beside the papers' methods on the embedded corpus: five seeds each (docs/claims.md).

    jaxablate sweep claims_sparse --workdir runs/claims_embedded --jobs 2

20 runs of `configs/quickstart.py` without gates, into the folder of `claims_embedded`, whose baselines they are
compared with.
"""

from jaxablate.sweep import Sweep


def get_sweep() -> Sweep:
    """A half to a twentieth of every weight matrix left (Gao et al. 2025)."""
    return Sweep(
        config="quickstart",
        grid={"variant": {f"sparse-{part}": {"optimizer.nonzero_fraction": part} for part in (0.5, 0.2, 0.1, 0.05)}},
        seeds=(0, 1, 2, 3, 4),
        settings={"model.ablation": "none"},
        suites=("perplexity", "ioi", "weights", "circuits", "neurons"),
    )

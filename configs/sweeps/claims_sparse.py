"""Weight-sparse training beside the papers' methods on the embedded corpus: five seeds each (docs/claims.md).

    jaxablate sweep claims_sparse --workdir runs/claims_embedded --jobs 2

25 runs of `configs/quickstart.py` without gates, into the folder of `claims_embedded`, whose baselines they are
compared with.
"""

from jaxablate.sweep import Sweep


def get_sweep() -> Sweep:
    """A half to a twentieth of every weight matrix left; with a tenth also a quarter of the neurons at a token."""
    parts = {f"sparse-{part}": {"optimizer.nonzero_fraction": part} for part in (0.5, 0.2, 0.1, 0.05)}
    topk = {"topk-sparse-0.1": {"optimizer.nonzero_fraction": 0.1, "model.mlp_top_k": 64}}
    return Sweep(
        config="quickstart",
        grid={"variant": parts | topk},
        seeds=(0, 1, 2, 3, 4),
        settings={"model.ablation": "none"},
        suites=("perplexity", "ioi", "weights", "circuits", "neurons"),
    )

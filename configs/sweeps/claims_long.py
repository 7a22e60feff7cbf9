"""Gates, weight-sparse training and the baseline, trained three times as long: five seeds each (docs/claims.md).

    jaxablate sweep claims_long --workdir runs/claims_long --jobs 2

25 runs of `configs/quickstart.py` with 13,500 steps, after which two weight-sparse models of a trial did the task.
"""

from jaxablate.sweep import Sweep


def get_sweep() -> Sweep:
    """The baseline, which keeps a checkpoint every 300 steps, half and a fifth of the weights, gates with k = 8."""
    dense = {"model.ablation": "none"}
    variants = {
        "baseline": dense | {"train.checkpoint_every": 300, "train.keep_last": 45},
        "sparse-0.5": dense | {"optimizer.nonzero_fraction": 0.5},
        "sparse-0.2": dense | {"optimizer.nonzero_fraction": 0.2},
        "local-k8": {"model.ablation": "local"},
        "global-k8": {"model.ablation": "global"},
    }
    return Sweep(
        config="quickstart",
        grid={"variant": variants},
        seeds=(0, 1, 2, 3, 4),
        settings={"train.steps": 13_500},
        suites=("perplexity", "ioi", "gates", "weights", "circuits", "neurons", "leakage"),
    )

"""The first paper's claims on the embedded corpus: scores and winners, five seeds each (docs/claims.md).

    jaxablate sweep claims_embedded --workdir runs/claims_embedded --jobs 2 --only 'baseline/*'

100 runs of `configs/quickstart.py`, the most telling first. `benchmarks.claims` measures what no suite
does and makes the tables.
"""

from jaxablate.sweep import Sweep

KS = (8, 2, 4, 1, 16)


def get_sweep() -> Sweep:
    """Twenty configurations; the baseline keeps a checkpoint every 100 steps, to be compared at equal loss."""
    variants = {"baseline": {"model.ablation": "none", "train.checkpoint_every": 100, "train.keep_last": 45}}
    gated = [(scores, k) for k in KS for scores in ("local", "global")] + [("both", k) for k in KS]
    variants |= {f"{scores}-k{k}": {"model.ablation": scores, "model.k_attention": k, "model.k_neurons": k}
                 for scores, k in gated}
    weights = [(scores, *weight) for scores in ("local", "global") for weight in (("even", 0.5), ("ablated", 0.1))]
    variants |= {f"{scores}-k8-{name}": {"model.ablation": scores, "objective.clean": clean,
                                         "objective.ablated": 1 - clean} for scores, name, clean in weights}
    return Sweep(
        config="quickstart",
        grid={"variant": variants},
        seeds=(0, 1, 2, 3, 4),
        suites=("perplexity", "ioi", "gates", "weights", "circuits", "neurons", "leakage"),
    )

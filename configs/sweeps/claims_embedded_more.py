"""A second look at what five seeds left undecided: seeds 5 to 9 of the published cells (docs/claims.md).

    jaxablate sweep claims_embedded_more --workdir runs/claims_embedded --jobs 2

45 runs of `configs/quickstart.py`, as in `claims_embedded.py` and into the same folder.
"""

from jaxablate.sweep import Sweep


def get_sweep() -> Sweep:
    """The baseline with its checkpoints, local and global scores with the published numbers of winners."""
    variants = {"baseline": {"model.ablation": "none", "train.checkpoint_every": 100, "train.keep_last": 45}}
    variants |= {f"{scores}-k{k}": {"model.ablation": scores, "model.k_attention": k, "model.k_neurons": k}
                 for k in (8, 2, 4, 1) for scores in ("local", "global")}
    return Sweep(
        config="quickstart",
        grid={"variant": variants},
        seeds=(5, 6, 7, 8, 9),
        suites=("perplexity", "ioi", "gates", "weights", "circuits", "neurons", "leakage"),
    )

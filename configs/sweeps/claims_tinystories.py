"""The first paper's claims on TinyStories mixed with indirect-object stories: three seeds each (docs/claims.md).

    python -m benchmarks.claims.data --folder data/claims --source data/TinyStories-train.txt
    jaxablate sweep claims_tinystories --workdir runs/claims_tinystories --jobs 2

12 runs of `configs/tinystories_small.py`, twice as long. They read data/claims/train.txt and
data/TinyStories-valid.txt. Circuits, of the clean stream, are searched when pairs are measured.
"""

from jaxablate.sweep import Sweep


def get_sweep() -> Sweep:
    """The baseline, which keeps its checkpoints, local scores with k = 8 and 2, global ones with k = 8."""
    gated = {f"{scores}-k{k}": {"model.ablation": scores, "model.k_attention": k, "model.k_neurons": k}
             for scores, k in (("local", 8), ("global", 8), ("local", 2))}
    baseline = {"model.ablation": "none", "train.checkpoint_every": 100, "train.keep_last": 30}
    return Sweep(
        config="tinystories_small",
        grid={"variant": {"baseline": baseline, **gated}},
        seeds=(0, 1, 2),
        settings={"train.steps": 3000, "data.train_path": "data/claims/train.txt",
                  "data.valid_path": "data/TinyStories-valid.txt"},
        suites=("perplexity", "gates", "weights", "neurons", "leakage"),
    )

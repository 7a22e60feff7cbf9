"""The first paper's table (Ferrao et al. 2025): scores local and global, k of 8 to 1, and the baseline, three seeds.

    jaxablate sweep paper_table --dry-run
    jaxablate sweep paper_table --jobs 8
    sbatch --array=0-26 --wrap 'jaxablate sweep paper_table --array "$SLURM_ARRAY_TASK_ID"'

27 runs of `configs/tinystories.py`, whose header has the data and the time of a run; the published figures are in
docs/papers.md. A quick look at all of it on the embedded corpus, in a folder of its own:

    jaxablate sweep paper_table --workdir runs/quick_table --config quickstart --set train.steps=200

The paper's L0 and CE score are of autoencoders, which `jaxablate sae` trains for each run.
"""

from jaxablate.sweep import Sweep


def get_sweep() -> Sweep:
    """Nine configurations, three seeds each; what the paper's table has of perplexity, edges and weights."""
    gated = {f"{scores}-k{k}": {"model.ablation": scores, "model.k_attention": k, "model.k_neurons": k}
             for scores in ("local", "global") for k in (8, 4, 2, 1)}
    return Sweep(
        config="tinystories",
        grid={"variant": {"baseline": {"model.ablation": "none"}, **gated}},
        seeds=(0, 1, 2),
        suites=("perplexity", "circuits", "weights", "gates"),
    )

"""What makes gating cheap, and what keeps the mask from telling: a search of settings (docs/claims.md).

    python -m benchmarks.claims.data --folder data/claims --source data/TinyStories-train.txt
    jaxablate sweep claims_recipes --workdir runs/claims_recipes --jobs 2

18 runs of `configs/tinystories_small.py`, half as long as those of `claims_tinystories`, on stories that no reported
figure is of, with seed 100; what is chosen is trained whole, with the seeds and the split of the other sweeps.
"""

from jaxablate.sweep import Sweep

MOSTLY_CLEAN = {"objective.clean": 0.9, "objective.ablated": 0.1}


def get_sweep() -> Sweep:
    """The baseline, local scores with k = 8 as the paper trains them, each change alone, and some together."""
    changes = {
        "paper": {},
        "mostly-clean": MOSTLY_CLEAN,
        "ablated-later": {"objective.ablated_anneal": 0.5},
        "closing": {"objective.gate_anneal": 0.3},
        "closing-long": {"objective.gate_anneal": 0.6},
        "detached-clean": {"model.detach_clean": True},
        "detached-scores": {"model.detach_scores": True},
        "normalized": {"model.score_input": "normalized"},
        "earlier": {"model.score_lag": 1},
        "sharp": {"model.temperature_attention": 0.3, "model.temperature_neurons": 0.3},
        "smooth": {"model.temperature_attention": 3.0, "model.temperature_neurons": 3.0},
        "random": {"objective.random_gates": 0.2},
        "information": {"objective.gate_information": 0.01},
        "information-more": {"objective.gate_information": 0.1},
        "closing-mostly-clean": {"objective.gate_anneal": 0.3, **MOSTLY_CLEAN},
        "closing-detached": {"objective.gate_anneal": 0.3, "model.detach_clean": True},
        "normalized-closing-mostly-clean": {"model.score_input": "normalized", "objective.gate_anneal": 0.3,
                                            **MOSTLY_CLEAN},
    }
    return Sweep(
        config="tinystories_small",
        grid={"recipe": {"baseline": {"model.ablation": "none"}, **changes}},
        seeds=(100,),
        settings={"train.steps": 1500, "data.train_path": "data/claims/search-train.txt",
                  "data.valid_path": "data/claims/search-valid.txt"},
        suites=("perplexity", "gates", "leakage"),
    )

"""Makes tests/golden, the compact part of the parity figures: python tests/make_golden.py FOLDER_OF_THE_FULL_SET"""

import argparse
import json
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).parent / "golden"

# Together: every kind of score and gate, both losses' extras, and windows.
MODELS = (
    "sat_both_hard_k1",
    "sat_global_soft_ka3_kn7_mixed",
    "sat_local_hard_k4_altwindow5",
)
GRADIENTS_OF = ("wte", "wpe", "ln_f", ".h.1.", "ablations_head")
"""Gradients kept: of the shared matrices and of one block. They need those of the other blocks to be right."""
TOP_K_SIZE = (8, 3)
TOP_K_WIDTHS = ((1.0, None), (0.1, 1e-6))
"""Temperature and eps."""
AUTOENCODER_STEPS = 3


def compact_model(stored: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All but the gradients of the other blocks and the figures no test reads."""
    unused = ("topk_gap_min_", "reference_loss_shape", "adamw_losses_clean", "adamw_losses_ablated", "adamw_losses_rec")
    return {
        name: values
        for name, values in stored.items()
        if not name.startswith(unused) and name != "param/lm_head.weight"
        if not name.startswith("grad/") or any(part in name for part in GRADIENTS_OF)
    }


def compact_classifier(stored: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All but what repeats another array of the file."""
    return {name: values for name, values in stored.items() if not name.endswith(("/attn_correlation", "/embed"))}


def compact_circuits(stored: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All but the ablation heads, which circuits of the clean stream do not use, and the matrix that is there twice."""
    return {name: values for name, values in stored.items()
            if "ablation_head" not in name and name != "param/lm_head.weight"}


def compact_autoencoder(stored: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The first steps' activations, so without what is left at the end of all steps."""
    last = ("final", "dead_steps_since_fired")
    kept = {name: values for name, values in stored.items() if not name.startswith(last)}
    return kept | {"x_raw": stored["x_raw"][:AUTOENCODER_STEPS]}


def compact_top_k(stored: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every case at one size, once with the default eps and once with an eps of its own where it has both."""
    index = [case for case in json.loads(str(stored["index_json"])) if (case["n"], case["k"]) == TOP_K_SIZE]
    index = [case for case in index if (case["temperature"], case["eps"]) in TOP_K_WIDTHS]
    names = ("x", "ct", "soft", "soft_vjp", "hard", "gap")
    kept = {f"{case['key']}/{name}": stored[f"{case['key']}/{name}"] for case in index for name in names}
    return {"index_json": np.array(json.dumps(index))} | kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="folder with the full set of figures")
    folder = parser.parse_args().folder
    kept = [(name, compact_model) for name in MODELS] + [("topk", compact_top_k), ("safr_small", compact_classifier)]
    kept += [("acdc_padded", compact_circuits), ("sae_small", compact_autoencoder)]
    for name, compact in kept:
        with np.load(folder / f"{name}.npz") as stored:
            np.savez_compressed(GOLDEN / f"{name}.npz", **compact({key: stored[key] for key in stored.files}))


if __name__ == "__main__":
    main()

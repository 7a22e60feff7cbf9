"""Makes tests/golden/saelens.npz by SAELens itself: python tests/make_golden_saelens.py (needs sae-lens; 6.54.12).

Small random autoencoders of every kind, as SAELens saves them, with the latents and reconstructions that it gives
itself: of a training run's folder, those of what it saves for inference, a scale of activations folded in first.
"""

import json
import tempfile
from pathlib import Path

import numpy as np
import sae_lens
import safetensors.numpy
import torch

GOLDEN = Path(__file__).parent / "golden" / "saelens.npz"
D, S, N = 8, 20, 12
SIZES = {"d_in": D, "d_sae": S, "device": "cpu"}
SCALE, AVERAGE = 0.37, {"normalize_activations": "expected_average_only_in"}
WHITE, UNCENTRED = {"normalize_activations": "covariance_whitening"}, {"apply_b_dec_to_input": False}
INFERENCE = {  # kind -> (class, settings beside the sizes)
    "standard": ("StandardSAE", {}),
    "standard_uncentred": ("StandardSAE", {"apply_b_dec_to_input": False}),
    "standard_layer_norm": ("StandardSAE", {"normalize_activations": "layer_norm"}),
    "topk_constant_norm": ("TopKSAE", {"k": 3, "normalize_activations": "constant_norm_rescale"}),
    "topk": ("TopKSAE", {"k": 3}),
    "topk_rescaled": ("TopKSAE", {"k": 3, "rescale_acts_by_decoder_norm": True}),
    "jumprelu_layer_norm": ("JumpReLUSAE", {"normalize_activations": "layer_norm"}),
    "gated": ("GatedSAE", {}),
    "gated_constant_norm": ("GatedSAE", {"normalize_activations": "constant_norm_rescale"}),
}
TRAINING = {
    "training_standard": ("StandardTrainingSAE", {}),
    "training_topk": ("TopKTrainingSAE", {"k": 3}),
    "training_jumprelu": ("JumpReLUTrainingSAE", {}),
    "training_gated": ("GatedTrainingSAE", {}),
    "training_batchtopk": ("BatchTopKTrainingSAE", {"k": 2.5}),
    "training_batchtopk_scaled": ("BatchTopKTrainingSAE", {"k": 3, **AVERAGE}),
    "training_batchtopk_unscaled_norms": ("BatchTopKTrainingSAE", {"k": 3, "rescale_acts_by_decoder_norm": False}),
    "training_topk_scaled": ("TopKTrainingSAE", {"k": 3, **AVERAGE}),
    "training_standard_whitened": ("StandardTrainingSAE", WHITE | UNCENTRED),
    "training_topk_whitened": ("TopKTrainingSAE", {"k": 3, **WHITE}),
    "training_gated_whitened": ("GatedTrainingSAE", WHITE | UNCENTRED),
    "training_matryoshka": ("MatryoshkaBatchTopKTrainingSAE", {"k": 3, "matryoshka_widths": [5, 10, S]}),
}


def made(name: str, settings: dict):
    """An autoencoder of SAELens with weights that are all off their defaults."""
    cls = getattr(sae_lens, name)
    metadata = sae_lens.saes.sae.SAEMetadata(hook_name="blocks.1.hook_resid_pre", model_name="none")
    sae = cls(getattr(sae_lens, f"{name}Config")(**SIZES, metadata=metadata, **settings))
    with torch.no_grad():
        for key, value in [*sae.named_parameters(), *sae.named_buffers()]:
            random = torch.randn_like(value)
            if "threshold" in key:
                value.copy_(random.abs())
            else:
                value.copy_({"W_enc": 0.5, "W_dec": torch.linspace(0.3, 1.3, S)[:, None]}.get(key, 0.2) * random)
    return sae


def stored(folder: Path) -> dict[str, np.ndarray]:
    weights = safetensors.numpy.load_file(folder / "sae_weights.safetensors")
    return {"cfg_json": np.array((folder / "cfg.json").read_text())} | {f"weights/{k}": v for k, v in weights.items()}


def main() -> None:
    torch.manual_seed(0)
    x = torch.randn(N, D) * 2 + 0.5
    arrays = {"x": x.numpy()}
    for kind, (name, settings) in (INFERENCE | TRAINING).items():
        with tempfile.TemporaryDirectory() as folder:
            sae, opened = made(name, settings), Path(folder) / "opened"
            sae.save_model(folder)
            arrays |= {f"{kind}/{key}": value for key, value in stored(Path(folder)).items()}
            if kind in TRAINING:
                if sae.cfg.normalize_activations == "expected_average_only_in":
                    arrays[f"{kind}/scaler_json"] = np.array(json.dumps({"scaling_factor": SCALE}))
                    sae.fold_activation_norm_scaling_factor(SCALE)
                if sae.cfg.normalize_activations == "covariance_whitening":
                    matrix = torch.randn(D, D, dtype=torch.float64) + 3 * torch.eye(D)
                    whitening = {"mean": torch.randn(D, dtype=torch.float64), "matrix": matrix,
                                 "inverse_matrix": torch.linalg.inv(matrix).contiguous()}
                    arrays |= {f"{kind}/whitening/{key}": value.numpy() for key, value in whitening.items()}
                    sae.fold_activation_whitening(*whitening.values())
                sae.save_inference_model(opened)
            else:
                sae.save_model(opened)
            with torch.no_grad():
                opened = sae_lens.SAE.load_from_disk(opened)
                arrays[f"{kind}/latents"], arrays[f"{kind}/out"] = opened.encode(x).numpy(), opened(x).numpy()
    np.savez_compressed(GOLDEN, **arrays)


if __name__ == "__main__":
    main()

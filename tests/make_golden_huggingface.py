"""Makes tests/golden/huggingface.npz by transformers itself: python tests/make_golden_huggingface.py (needs torch and
transformers; 5.24.0).

Small random decoders of every family and of what a family may differ in, each parameter off its default, as
``save_pretrained`` writes them, with logits, hidden states and attention on random tokens.
"""

import tempfile
from pathlib import Path

import numpy as np
import safetensors.numpy
import torch
import transformers as hf

GOLDEN = Path(__file__).parent / "golden" / "huggingface.npz"
COMMON = {"vocab_size": 29, "bos_token_id": 1, "eos_token_id": 1, "attn_implementation": "eager"}
ROTARY = COMMON | {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 20,
                   "max_position_embeddings": 16}
GROUPED = ROTARY | {"num_key_value_heads": 2}
MODELS = {
    "gpt_neo": ("GPTNeo", COMMON | {
        "hidden_size": 16, "num_layers": 3, "num_heads": 2, "window_size": 3, "max_position_embeddings": 16,
        "attention_types": [[["global", "local"], 1], [["local"], 1]], "layer_norm_epsilon": 1e-3,
        "activation_function": "relu"}),
    "gpt2": ("GPT2", COMMON | {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16, "n_inner": 20,
                               "scale_attn_weights": True, "layer_norm_epsilon": 1e-4}),
    "gpt_neox": ("GPTNeoX", ROTARY | {"hidden_act": "gelu", "rope_parameters": {
        "rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5}}),
    "gpt_neox_sequential": ("GPTNeoX", ROTARY | {"use_parallel_residual": False, "attention_bias": False,
                                                 "num_attention_heads": 2,
                                                 "tie_word_embeddings": True}),
    "llama": ("Llama", GROUPED | {"head_dim": 6, "attention_bias": True, "mlp_bias": True, "rms_norm_eps": 1e-4,
                                  "rope_parameters": {"rope_type": "default", "rope_theta": 100.0}}),
    "qwen2": ("Qwen2", GROUPED | {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1,
                                  "tie_word_embeddings": False}),
    "gemma2": ("Gemma2", GROUPED | {"head_dim": 6, "query_pre_attn_scalar": 5, "sliding_window": 4,
                                    "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}),
}


def made(name: str, settings: dict) -> torch.nn.Module:
    """A model with random parameters of a size at which every part of it shows in the logits."""
    torch.manual_seed(0)
    head = "LMHeadModel" if name == "GPT2" else "ForCausalLM"
    model = getattr(hf, name + head)(getattr(hf, f"{name}Config")(**settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    return model


def main() -> None:
    """Writes the file."""
    rng, out = np.random.default_rng(0), {}
    for name, (family, settings) in MODELS.items():
        model, tokens = made(family, settings), rng.integers(0, COMMON["vocab_size"], (2, 12))
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            out[f"{name}/config_json"] = np.array((Path(folder) / "config.json").read_text())
            weights = safetensors.numpy.load_file(Path(folder) / "model.safetensors")
        with torch.no_grad():
            seen = model(torch.from_numpy(tokens), output_hidden_states=True, output_attentions=True)
        out |= {f"{name}/weights/{key}": value for key, value in weights.items()}
        out |= {f"{name}/input_ids": tokens.astype(np.int32), f"{name}/logits": seen.logits.numpy()}
        out |= {f"{name}/hidden_states/{i}": x.numpy() for i, x in enumerate(seen.hidden_states)}
        out |= {f"{name}/attentions/{i}": x.numpy() for i, x in enumerate(seen.attentions)}
    np.savez_compressed(GOLDEN, **out)


if __name__ == "__main__":
    main()

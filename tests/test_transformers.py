"""Folders that this program writes, opened by transformers itself: ``pip install 'jaxablate[interop]'``."""

import dataclasses

import jax
import numpy as np
import pytest
from helpers.huggingface import golden_folder, names
from helpers.tolerance import assert_close
from helpers.weights import drawn_params

from jaxablate.config import ModelConfig, family
from jaxablate.interop import from_huggingface, to_huggingface
from jaxablate.models.decoder import SelfAblatingTransformer

torch = pytest.importorskip("torch", reason="torch is in the extra interop")
transformers = pytest.importorskip("transformers", reason="transformers is in the extra interop")
TOKENS = np.random.default_rng(0).integers(0, 29, (2, 11)).astype(np.int32)


def assert_same_logits(config, params, folder):
    """Transformers' logits of a folder are ours of the clean stream, and it has loaded every tensor."""
    plain = dataclasses.replace(config, ablation="none")
    expected = SelfAblatingTransformer(plain).apply({"params": params}, TOKENS, method="clean").logits
    model, told = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(told[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        got = model.eval()(torch.from_numpy(TOKENS.astype(np.int64))).logits.numpy()
    assert_close(got, expected, atol=1e-5)
    return model


@pytest.mark.parametrize("name", names())
def test_an_exported_model_of_every_family_has_the_same_logits(name, tmp_path):
    config, params = from_huggingface(golden_folder(name, tmp_path)[0])
    to_huggingface(config, params, tmp_path / "out")
    assert_same_logits(config, params, tmp_path / "out")


@pytest.mark.parametrize("fields", [
    {"scale_attention": True}, {"scale_attention": True, "attention_layers": ("global", "local"), "window_size": 3},
    {"positions": "rotary", "scale_attention": True},
])
def test_the_clean_stream_of_a_self_ablating_model_has_the_same_logits(fields, tmp_path):
    config = ModelConfig(vocab_size=29, context_length=16, d_model=12, n_layers=2, n_heads=3, k_attention=2,
                         k_neurons=3, **fields)
    params = drawn_params(SelfAblatingTransformer(config), TOKENS)
    to_huggingface(config, params, tmp_path / "out")
    assert_same_logits(config, params, tmp_path / "out")


def test_a_trained_llamas_text_goes_on_as_here(tmp_path):
    from jaxablate.models.generation import generate

    config = family("llama", vocab_size=29, context_length=16, d_model=16, n_layers=2, n_heads=4, kv_heads=2,
                    k_attention=4, k_neurons=6)
    params = jax.device_get(drawn_params(SelfAblatingTransformer(config), TOKENS))
    to_huggingface(config, params, tmp_path / "out", settings={"eos_token_id": None})
    model = assert_same_logits(config, params, tmp_path / "out")
    theirs = model.generate(torch.from_numpy(TOKENS[:, :5].astype(np.int64)), max_new_tokens=6, do_sample=False)
    ours = generate(SelfAblatingTransformer(config), params, TOKENS[:, :5], steps=6, temperature=0)
    np.testing.assert_array_equal(theirs.numpy(), ours)

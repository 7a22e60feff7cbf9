"""Decoders that transformers wrote: its logits, hidden states and attention, and the folder back again bit for bit.

Figures of transformers 5.24.0: tests/golden/huggingface.npz, and the folders under ``hf`` in JAXABLATE_FIXTURES.
"""

import dataclasses
import functools
import json
import os
import pathlib

import jax
import numpy as np
import pytest
import safetensors.numpy
from helpers.huggingface import golden_folder, names
from helpers.tolerance import assert_close

from jaxablate.circuits import PromptPairs, problem
from jaxablate.interop import from_huggingface, to_huggingface
from jaxablate.interop.huggingface import kept_settings
from jaxablate.models.decoder import SelfAblatingTransformer
from jaxablate.ops.attention import attention_weights, repeat_heads

pytestmark = pytest.mark.parity
NAMES = names()
FOLDERS = sorted(pathlib.Path(os.environ.get("JAXABLATE_FIXTURES", "nowhere")).glob("hf/*/expected.npz"))
ALL = [*NAMES, *(pytest.param(path.parent, id=f"hf-{path.parent.name}") for path in FOLDERS)]

SAID_OTHERWISE = {"attention_types", "max_window_layers", "rope_theta", "rotary_emb_base", "rotary_pct"}
"""Settings that others say as well, or that earlier versions of transformers read."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """(folder, figures) of a model: of the golden ones made once."""

    @functools.cache
    def opened(where):
        if isinstance(where, pathlib.Path):
            with np.load(where / "expected.npz") as stored:
                return where, dict(stored)
        return golden_folder(where, tmp_path_factory.mktemp(where))

    return opened


@functools.lru_cache(maxsize=1)
def clean(folder, dtype):
    """Logits, the stream before each block and after the final norm, and attention of each layer, on the figures'
    tokens."""
    config, params = from_huggingface(folder, param_dtype=dtype, compute_dtype=dtype)
    model = SelfAblatingTransformer(config)

    @jax.jit
    def run(params, tokens):
        out = model.apply({"params": params}, tokens, method="clean")
        attention = [attention_weights(
            layer.query, repeat_heads(layer.key, config.n_heads), window=config.layer_window(i),
            scale=config.attention_scale, cap=config.attention_cap) for i, layer in enumerate(out.layers)]
        return out.logits, [*(layer.resid_pre for layer in out.layers), out.final], attention

    return lambda tokens: jax.device_get(run(params, tokens.astype(np.int32)))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("where", ALL)
def test_logits_hidden_states_and_attention_are_transformers(where, dtype, folders):
    folder, expected = folders(where)
    with jax.enable_x64(dtype == "float64"):
        logits, hidden, attention = clean(folder, dtype)(expected["input_ids"])
    assert logits.dtype == dtype
    assert_close(logits, expected["logits"], atol=1e-5, err_msg="logits")
    for i, x in enumerate(hidden):
        assert_close(x, expected[f"hidden_states/{i}"], atol=1e-5, err_msg=f"hidden_states/{i}")
    for i, x in enumerate(attention):
        assert_close(x, expected[f"attentions/{i}"], atol=2e-6, err_msg=f"attentions/{i}")
    if "token_logprobs" in expected:
        log_p = np.asarray(jax.nn.log_softmax(logits[:, :-1], axis=-1))
        of_next = np.take_along_axis(log_p, expected["input_ids"][:, 1:, None], axis=-1)[..., 0]
        assert_close(of_next, expected["token_logprobs"], atol=1e-5, err_msg="token_logprobs")


@pytest.mark.parametrize("where", ALL)
def test_circuits_run_on_what_transformers_computes(where, folders):
    """Prompts of several lengths in one batch, so with padding, and read at their last tokens."""
    folder, expected = folders(where)
    tokens = expected["input_ids"]
    ids = [row[:n].tolist() for row, n in zip(tokens, (tokens.shape[1], 5, 9), strict=False)]
    prompts = PromptPairs.from_ids(ids, ids, [[1]] * len(ids), [[2]] * len(ids), name="figures")
    logits = problem(*from_huggingface(folder), prompts).logits
    assert_close(logits, np.stack([expected["logits"][i, len(row) - 1] for i, row in enumerate(ids)]), atol=1e-5)


@pytest.mark.parametrize("where", ALL)
def test_float32_is_float64_up_to_rounding(where, folders):
    folder, expected = folders(where)
    narrow = clean(folder, "float32")(expected["input_ids"])[0]
    with jax.enable_x64():
        wide = clean(folder, "float64")(expected["input_ids"])[0]
    assert_close(narrow, wide, atol=1e-5)


@pytest.mark.parametrize("where", ALL)
def test_import_export_import_is_bit_identical(where, folders, tmp_path):
    folder, _ = folders(where)
    config, params = from_huggingface(folder)
    to_huggingface(config, params, tmp_path / "out", settings=kept_settings(folder))
    assert not (tmp_path / "out" / "jaxablate").exists()  # the folder alone says all
    again, back = from_huggingface(tmp_path / "out")
    assert again == config
    jax.tree.map(np.testing.assert_array_equal, back, params)
    theirs, ours = (safetensors.numpy.load_file(f / "model.safetensors") for f in (folder, tmp_path / "out"))
    assert theirs.keys() == ours.keys()
    for name, x in theirs.items():
        np.testing.assert_array_equal(ours[name], x, err_msg=name)
    theirs, ours = (json.loads((f / "config.json").read_text()) for f in (folder, tmp_path / "out"))
    assert {name for name in theirs | ours if theirs.get(name) != ours.get(name)} <= SAID_OTHERWISE


@pytest.mark.parametrize("where", NAMES)
def test_a_self_ablating_model_of_a_family_comes_back_whole(where, folders, tmp_path):
    folder, _ = folders(where)
    config = dataclasses.replace(from_huggingface(folder)[0], ablation="both", k_attention=3, k_neurons=(4,) * 3
                                 if where == "gpt_neo" else 4, temperature_neurons=2.0)
    tokens = np.zeros((1, 2), np.int32)
    shapes = jax.eval_shape(SelfAblatingTransformer(config).init, jax.random.key(0), tokens)["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)
    to_huggingface(config, params, tmp_path / "out")
    again, back = from_huggingface(tmp_path / "out")
    assert again == config
    jax.tree.map(np.testing.assert_array_equal, back, params)

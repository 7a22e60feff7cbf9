"""Folders of Hugging Face: several files, narrow types, meshes, and one clear line for whatever is amiss."""

import dataclasses
import json
import shutil
import struct

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from helpers.huggingface import change_settings, change_weights, golden_folder
from helpers.weights import drawn_params

from jaxablate.config import MeshConfig, ModelConfig
from jaxablate.errors import CheckpointError, ConfigError, JaxablateError
from jaxablate.interop import from_huggingface, to_huggingface
from jaxablate.models.decoder import SelfAblatingTransformer
from jaxablate.sharding import make_mesh, param_shardings

INDEX = "model.safetensors.index.json"


@pytest.fixture
def llama(tmp_path):
    return golden_folder("llama", tmp_path)[0]


@pytest.fixture
def gpt2(tmp_path):
    return golden_folder("gpt2", tmp_path)[0]


def in_shards(folder):
    """The folder with its tensors in two files and an index."""
    weights = safetensors.numpy.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    listed = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(weights)}
    for file in set(listed.values()):
        safetensors.numpy.save_file({n: x for n, x in weights.items() if listed[n] == file}, folder / file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": listed}))
    return folder


def assert_same(params, others):
    jax.tree.map(np.testing.assert_array_equal, params, others)


def test_several_files_are_one_model(llama):
    whole = from_huggingface(llama)
    config, params = from_huggingface(in_shards(llama))
    assert config == whole[0]
    assert_same(params, whole[1])


def test_narrow_types_become_float32_and_wide_ones_stay(llama):
    _, params = from_huggingface(llama)
    weights = safetensors.numpy.load_file(llama / "model.safetensors")
    for dtype in (np.float16, ml_dtypes.bfloat16, np.float64):
        safetensors.numpy.save_file({n: x.astype(dtype) for n, x in weights.items()}, llama / "model.safetensors")
        config, read = from_huggingface(llama)
        assert config.param_dtype == ("float64" if dtype is np.float64 else "float32")
        assert_same(read, jax.tree.map(lambda x: x.astype(dtype).astype(config.param_dtype), params))  # noqa: B023
    assert from_huggingface(llama, param_dtype="float32")[1]["ln_f"]["scale"].dtype == np.float32


def test_parameters_land_on_the_mesh_as_training_lays_them(llama):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    _, params = from_huggingface(llama)
    _, placed = from_huggingface(llama, mesh=mesh)
    assert_same(jax.tree.map(lambda x: x.sharding, placed), param_shardings(mesh, params))
    assert_same(jax.device_get(placed), params)


def test_names_without_prefix_and_buffers_of_earlier_versions_are_known(gpt2):
    config, params = from_huggingface(gpt2)
    weights = safetensors.numpy.load_file(gpt2 / "model.safetensors")
    weights = {n.removeprefix("transformer."): x for n, x in weights.items()}
    weights |= {"h.0.attn.bias": np.ones((1, 1, 4, 4), bool), "h.1.attn.masked_bias": np.full((), -1e4, np.float32),
                "lm_head.weight": weights["wte.weight"]}
    safetensors.numpy.save_file(weights, gpt2 / "model.safetensors")
    again, read = from_huggingface(gpt2)
    assert again == config
    assert_same(read, params)


def test_rotary_settings_of_earlier_versions_mean_the_same(tmp_path):
    folder = golden_folder("gpt_neox", tmp_path)[0]
    config, _ = from_huggingface(folder)
    change_settings(folder, rope_parameters=..., rotary_pct=0.5, rotary_emb_base=500)
    assert from_huggingface(folder)[0] == config
    change_settings(folder, rope_scaling={"type": "linear", "factor": 2.0})
    with pytest.raises(ConfigError, match=r"rope_scaling of .* has type='linear', which is not supported; only 'defa"):
        from_huggingface(folder)


SCALED = {"rope_type": "llama3", "factor": 8.0, "rope_theta": 5e5}


@pytest.mark.parametrize(("changes", "message"), [
    ({"model_type": "mistral"}, r"family 'mistral', which is not supported; the nearest that is is"),
    ({"model_type": ...}, "has no model_type"),
    ({"rope_parameters": SCALED}, "rope_parameters of .* has rope_type='llama3', which is not supported"),
    ({"rope_parameters": "x"}, "rope_parameters='x', which must be of type dict or null"),
    ({"hidden_act": "mish"}, "hidden_act='mish', which is not supported; choose one of gelu_new"),
    ({"rms_norm_eps": "small"}, "rms_norm_eps='small', which must be of type float"),
    ({"hidden_size": ...}, "has no hidden_size, which this family needs"),
    ({"num_hidden_layers": 10**9}, "n_layers=1000000000 must be at most"),
    ({"num_attention_heads": True}, "num_attention_heads=True, which must be of type int"),
    ({"num_key_value_heads": 3}, "kv_heads=3 must divide n_heads=4"),
    ({"quantization_config": {"bits": 4}}, "does not know what they do: quantization_config="),
    ({"query_pre_attn_scalar": 8}, "does not know what they do: query_pre_attn_scalar=8"),
])
def test_settings_that_are_not_computed_are_refused_by_name(changes, message, llama):
    change_settings(llama, **changes)
    with pytest.raises(ConfigError, match=message):
        from_huggingface(llama)


@pytest.mark.parametrize(("name", "changes", "message"), [
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True, which is not supported"),
    ("gpt2", {"add_cross_attention": True}, "add_cross_attention=True, which is not supported"),
    ("gpt_neo", {"attention_types": ..., "attention_layers": ...}, "has neither attention_types nor attention_layers"),
    ("gpt_neo", {"attention_types": [[["global"], 3]]}, "but attention_types="),
    ("gpt_neo", {"attention_types": 7, "attention_layers": ...}, "attention_types=7, which must be of type list"),
    ("gpt_neo", {"attention_types": [["ring"], 3], "attention_layers": ...}, "must be a list of pairs"),
    ("gemma2", {"layer_types": ["full_attention"]}, "layer_types=.*, which must be 2 of"),
    ("gemma2", {"sliding_window": None}, "has layers with a window, but sliding_window is null"),
    ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention=True, which is not supported"),
])
def test_settings_of_a_family_are_refused_by_name(name, changes, message, tmp_path):
    folder = golden_folder(name, tmp_path)[0]
    change_settings(folder, **changes)
    with pytest.raises(ConfigError, match=message):
        from_huggingface(folder)


LAST = "model.layers.1.mlp.down_proj.weight"


@pytest.mark.parametrize(("changes", "message"), [
    ({LAST: None}, f"does not fit its config.json; missing: {LAST}"),
    ({"extra": np.zeros(3, np.float32)}, "unexpected: extra"),
    ({LAST: np.transpose}, rf"of another shape: {LAST} is \(20, 16\), expected \(16, 20\)"),
    ({LAST: lambda x: np.where(x == x.max(), np.nan, x)}, f"{LAST} has 1 values that are NaN or infinite"),
    ({LAST: lambda x: x.astype(np.int32)}, f"tensors that are no floats: {LAST} is I32"),
])
def test_weights_that_do_not_fit_are_refused_by_name(changes, message, llama):
    change_weights(llama, **{name: (lambda x, f=f: np.ascontiguousarray(f(x))) if callable(f) else f
                             for name, f in changes.items()})
    with pytest.raises(CheckpointError, match=message):
        from_huggingface(llama)


def test_a_config_that_lies_about_its_weights_is_refused(llama):
    change_settings(llama, num_hidden_layers=3)
    with pytest.raises(CheckpointError, match=r"missing: model\.layers\.2\.input_layernorm"):
        from_huggingface(llama)
    change_settings(llama, num_hidden_layers=2, tie_word_embeddings=True)
    with pytest.raises(CheckpointError, match=r"a lm_head\.weight that is not its model\.embed_tokens\.weight"):
        from_huggingface(llama)


def test_missing_and_hostile_files_are_one_line(llama):
    shards = in_shards(llama)
    listed = json.loads((shards / INDEX).read_text())["weight_map"]
    (shards / "model-00002-of-00002.safetensors").rename(shards / "away")
    with pytest.raises(CheckpointError, match=r"model-00002-of-00002.safetensors does not exist; bring it back"):
        from_huggingface(shards)
    for map_, message in (({"a": "../x.safetensors"}, "no .safetensors file of this folder"), ({}, "no weight_map"),
                          (listed | {"b": "model-00001-of-00002.safetensors"}, "lacks b, which model.safetens")):
        (shards / "away").exists() and shutil.copy(shards / "away", shards / "model-00002-of-00002.safetensors")
        (shards / INDEX).write_text(json.dumps({"weight_map": map_}))
        with pytest.raises(CheckpointError, match=message):
            from_huggingface(shards)
    (shards / INDEX).unlink()
    (shards / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin may run code and is not read"):
        from_huggingface(shards)
    entry = {"x": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}
    header = json.dumps(entry).encode()
    for content in (b"", struct.pack("<Q", 2**63), struct.pack("<Q", len(header)) + header,
                    struct.pack("<Q", 9) + b"[[[[[[[[["):
        (shards / "model.safetensors").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"model.safetensors is no .safetensors file, or is damaged"):
            from_huggingface(shards)
    with pytest.raises(CheckpointError, match=r"config.json does not exist; give a folder"):
        from_huggingface(shards / "nowhere")


def test_only_types_can_be_given_beside_a_folder(llama):
    assert from_huggingface(llama, compute_dtype="bfloat16")[0].compute_dtype == "bfloat16"
    with pytest.raises(ConfigError, match="ablation is settled by the folder"):
        from_huggingface(llama, ablation="local")


def own(**fields):
    """A model of our own and its parameters."""
    config = ModelConfig(**{"vocab_size": 11, "context_length": 8, "d_model": 12, "n_layers": 2, "n_heads": 3,
                            "ablation": "both", "k_attention": 2, "k_neurons": 3} | fields)
    return config, drawn_params(SelfAblatingTransformer(config), np.zeros((1, 2), np.int32))


@pytest.mark.parametrize(("fields", "written"), [
    ({}, "gpt_neo"), ({"scale_attention": True}, "gpt2"),
    ({"scale_attention": True, "attention_layers": ("global", "local"), "window_size": 3, "d_model": 9}, "gpt_neo"),
    ({"positions": "rotary", "scale_attention": True, "param_dtype": "float64", "compute_dtype": "float64"},
     "gpt_neox"),
])
def test_what_a_family_lacks_is_adapted_and_comes_back_bit_for_bit(fields, written, tmp_path):
    """Score heads, gates, biases that are zero there, and scales that no power of two undoes."""
    with jax.enable_x64("param_dtype" in fields):
        config, params = own(**fields)
    assert to_huggingface(config, params, tmp_path / "out") == written
    again, back = from_huggingface(tmp_path / "out")
    assert again == config
    assert_same(back, params)
    plain = dataclasses.replace(config, ablation="none", param_dtype="float32", compute_dtype="float32")
    shutil.rmtree(tmp_path / "out" / "jaxablate")  # as others see it
    theirs, weights = from_huggingface(tmp_path / "out", param_dtype="float32", compute_dtype="float32")
    tokens = np.array([[1, 5, 2, 9, 3]], np.int32)
    clean = [SelfAblatingTransformer(c).apply({"params": p}, tokens, method="clean").logits
             for c, p in ((plain, jax.tree.map(np.float32, params)), (theirs, weights))]
    np.testing.assert_allclose(clean[0], clean[1], atol=2e-5)


def test_what_no_family_computes_is_named_and_nothing_is_written(tmp_path):
    config, params = own(post_norms=True)
    with pytest.raises(ConfigError, match=r"nearest is gpt\w*, which does not have .*post_norms=True"):
        to_huggingface(config, params, tmp_path / "out")
    with pytest.raises(CheckpointError, match="missing: ln_f/scale"):
        to_huggingface(own()[0], {**own()[1], "ln_f": {"bias": own()[1]["ln_f"]["bias"]}}, tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("damage", "message"), [
    (lambda f: (f / "jaxablate" / "model.json").unlink(), "model.json does not exist; restore it, or remove"),
    (lambda f: (f / "jaxablate" / "model.json").write_text("{}"), "is of another model than"),
    (lambda f: (f / "jaxablate" / "weights.safetensors").unlink(), "weights.safetensors does not exist"),
    (lambda f: safetensors.numpy.save_file({}, f / "jaxablate" / "weights.safetensors"),
     "missing: attention_scores/bias"),
])
def test_a_damaged_folder_of_ours_is_refused(damage, message, tmp_path):
    to_huggingface(*own(), tmp_path / "out")
    damage(tmp_path / "out")
    with pytest.raises(JaxablateError, match=message):
        from_huggingface(tmp_path / "out")

"""Checkpoints of the papers' code: read from every kind of file, written back exactly, refused with one clear line."""

import functools
import json
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy

from jaxablate.config import ModelConfig, ObjectiveConfig
from jaxablate.errors import CheckpointError, ConfigError
from jaxablate.interop import objective_from_reference, transformer_from_reference, transformer_to_reference
from jaxablate.models.decoder import SelfAblatingTransformer

SETTINGS = {"num_heads": 2, "k_attention": 3, "k_neurons": 5, "ablation_processing": "soft-top-K-version-1"}
HEADS = {"n_heads": 2, "k_attention": 3, "k_neurons": 5}


def config(**fields) -> ModelConfig:
    defaults = {"vocab_size": 7, "context_length": 5, "d_model": 4, "d_mlp": 6, "n_layers": 2, "ablation": "both"}
    return ModelConfig(**(defaults | HEADS | fields))


@functools.cache
def shapes(config: ModelConfig):
    """The tree that the model itself makes."""
    tokens = np.zeros((1, 2), np.int32)
    return jax.eval_shape(SelfAblatingTransformer(config).init, jax.random.key(0), tokens)["params"]


def parameters(config: ModelConfig, dtype="float32"):
    """Distinct numbers in the tree of the model, so that no two arrays can be taken for each other."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(dtype), shapes(config))


@pytest.fixture
def state_dict():
    return transformer_to_reference(config(), parameters(config()))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("ablation", ["none", "local", "global", "both"])
def test_the_models_own_tree_goes_there_and_back(ablation, dtype):
    made = config(ablation=ablation)
    params = parameters(made, dtype)
    state_dict = transformer_to_reference(made, params)
    read, back = transformer_from_reference(state_dict, attention_layers=("global",), **HEADS)
    assert (read.ablation, read.param_dtype, read.compute_dtype) == (ablation, dtype, dtype)
    assert (read.vocab_size, read.context_length, read.d_model, read.d_mlp, read.n_layers) == (7, 5, 4, 6, 2)
    jax.tree.map(np.testing.assert_array_equal, back, params)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(back)} == {dtype}


def test_linear_weights_are_transposed_and_heads_are_blocks_of_rows(state_dict):
    query = np.arange(16, dtype=np.float32).reshape(4, 4)
    state_dict["transformer.h.1.attn.attention.q_proj.weight"] = query
    state_dict["transformer.h.1.attn.attention.out_proj.weight"] = query
    _, params = transformer_from_reference(state_dict, **HEADS)
    attention = params["layer_1"]["attention"]
    x = np.array([1.0, 2.0, -1.0, 0.5], np.float32)
    np.testing.assert_array_equal(np.einsum("d,dnh->nh", x, attention["query"]["kernel"]).ravel(), query @ x)
    np.testing.assert_array_equal(np.einsum("nh,nhd->d", x.reshape(2, 2), attention["out"]["kernel"]), query @ x)


def test_npz_with_settings_needs_nothing_else(tmp_path, state_dict):
    path = tmp_path / "model.npz"
    prefixed = {f"param/{name}": array for name, array in state_dict.items()}
    np.savez(path, **prefixed, input_ids=np.zeros(3, int), config_json=json.dumps(SETTINGS))
    read, params = transformer_from_reference(path)
    assert (read.n_heads, read.k_attention, read.k_neurons, read.gate) == (2, 3, 5, "soft")
    jax.tree.map(np.testing.assert_array_equal, params, parameters(config()))


def test_npz_of_plain_names(tmp_path, state_dict):
    np.savez(tmp_path / "model.npz", **state_dict)
    _, params = transformer_from_reference(tmp_path / "model.npz", **HEADS)
    jax.tree.map(np.testing.assert_array_equal, params, parameters(config()))


@pytest.mark.parametrize("absent", ["lm_head.weight", "transformer.wte.weight"])
def test_safetensors_holds_the_tied_matrix_once(tmp_path, state_dict, absent):
    del state_dict[absent]
    metadata = {"config_json": json.dumps(SETTINGS)}
    safetensors.numpy.save_file(state_dict, tmp_path / "model.safetensors", metadata=metadata)
    read, params = transformer_from_reference(tmp_path / "model.safetensors", k_neurons=2)
    assert (read.k_attention, read.k_neurons) == (3, 2)
    jax.tree.map(np.testing.assert_array_equal, params, parameters(config()))


@pytest.mark.parametrize(("name", "wrapped"), [
    ("model.pt", None), ("model.pth", "model_state_dict"), ("model.pt", "state_dict"), ("ckpt.pt", "model"),
    ("pytorch_model.bin", None)])
def test_torch_file(tmp_path, state_dict, name, wrapped):
    torch = pytest.importorskip("torch", reason="torch is an extra")
    tensors = {name: torch.tensor(array) for name, array in state_dict.items()}
    torch.save(tensors if wrapped is None else {wrapped: tensors, "step": 3, "config": {"lr": 0.1}}, tmp_path / name)
    _, params = transformer_from_reference(tmp_path / name, **HEADS)
    jax.tree.map(np.testing.assert_array_equal, params, parameters(config()))
    _, in_memory = transformer_from_reference(tensors, **HEADS)
    jax.tree.map(np.testing.assert_array_equal, in_memory, params)


def test_mask_buffers_of_older_files_are_no_weights(tmp_path, state_dict):
    buffers = {"transformer.h.0.attn.attention.bias": np.ones((1, 1, 5, 5), bool),
               "transformer.h.0.attn.attention.masked_bias": np.array(-1e9, np.float32)}
    safetensors.numpy.save_file(state_dict | buffers, tmp_path / "model.safetensors")
    for source in (state_dict | buffers, tmp_path / "model.safetensors"):
        _, params = transformer_from_reference(source, **HEADS)
        jax.tree.map(np.testing.assert_array_equal, params, parameters(config()))


def test_torch_half_precision_becomes_float32(state_dict):
    torch = pytest.importorskip("torch", reason="torch is an extra")
    halves = {name: torch.nn.Parameter(torch.tensor(array).bfloat16()) for name, array in state_dict.items()}
    read, params = transformer_from_reference(halves, **HEADS)
    assert read.param_dtype == "float32"
    np.testing.assert_array_equal(params["ln_f"]["scale"], halves["transformer.ln_f.weight"].detach().float().numpy())


def test_torch_file_that_could_run_code_is_refused(tmp_path):
    torch = pytest.importorskip("torch", reason="torch is an extra")
    torch.save({"weights": torch.zeros(2), "model": torch.nn.Linear(2, 2)}, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"model\.pt is damaged, or holds more than weights") as error:
        transformer_from_reference(tmp_path / "model.pt", n_heads=2)
    assert "\n" not in str(error.value)


def test_torch_file_without_torch_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "model.pth").write_bytes(b"anything")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(CheckpointError, match=r"needs PyTorch; pip install 'jaxablate\[torch\]'"):
        transformer_from_reference(tmp_path / "model.pth", n_heads=2)


@pytest.mark.parametrize("name", ["model.npz", "model.safetensors"])
@pytest.mark.parametrize("content", [b"", b"not a checkpoint at all, only some text", b"PK\x03\x04 cut off"])
def test_damaged_file_is_one_clear_line(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{name} is no .* or is damaged") as error:
        transformer_from_reference(tmp_path / name, n_heads=2)
    assert "\n" not in str(error.value)


def test_truncated_npz_is_one_clear_line(tmp_path, state_dict):
    np.savez(tmp_path / "whole.npz", **state_dict)
    content = (tmp_path / "whole.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=r"cut\.npz is no .* or is damaged"):
        transformer_from_reference(tmp_path / "cut.npz", **HEADS)


def test_pickled_npz_is_refused(tmp_path):
    np.savez(tmp_path / "model.npz", x=np.array([{"a": 1}], dtype=object))
    with pytest.raises(CheckpointError, match="no .npz file of plain arrays"):
        transformer_from_reference(tmp_path / "model.npz", n_heads=2)


def test_unknown_or_missing_file_is_refused(tmp_path):
    (tmp_path / "model.ckpt").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"model\.ckpt .* ending in \.npz, \.safetensors, \.pt, \.pth"):
        transformer_from_reference(tmp_path / "model.ckpt")
    with pytest.raises(CheckpointError, match="does not exist"):
        transformer_from_reference(tmp_path / "absent.npz")


def test_one_error_names_every_wrong_array(state_dict):
    del state_dict["transformer.h.0.ln_1.bias"], state_dict["neuron_ablations_head.bias"]
    state_dict["transformer.h.1.mlp.c_proj.bias"] = np.zeros(3, np.float32)
    state_dict["transformer.h.1.attn.masked"] = np.zeros(3, np.float32)
    with pytest.raises(CheckpointError) as error:
        transformer_from_reference(state_dict, **HEADS)
    message = str(error.value)
    assert "missing: transformer.h.0.ln_1.bias, neuron_ablations_head.bias;" in message
    assert "unexpected: transformer.h.1.attn.masked;" in message
    assert "transformer.h.1.mlp.c_proj.bias is (3,), expected (4,)" in message


@pytest.mark.parametrize("name", ["transformer.wpe.weight", "transformer.h.0.mlp.c_fc.weight"])
def test_missing_array_that_tells_a_size(state_dict, name):
    del state_dict[name]
    with pytest.raises(CheckpointError, match=f"missing: {name}$"):
        transformer_from_reference(state_dict, **HEADS)


def test_a_layer_left_out_is_named(state_dict):
    cut = {name: array for name, array in state_dict.items() if not name.startswith("transformer.h.0.")}
    with pytest.raises(CheckpointError, match=r"missing: transformer\.h\.0\.ln_1\.weight, "):
        transformer_from_reference(cut, **HEADS)


def test_vector_where_a_matrix_belongs(state_dict):
    state_dict["transformer.wpe.weight"] = np.zeros(5, np.float32)
    with pytest.raises(CheckpointError, match=r"number of axes: .*transformer\.wpe\.weight \(5,\)"):
        transformer_from_reference(state_dict, **HEADS)


def test_entries_that_are_no_weights_are_named(state_dict):
    state_dict |= {"step": np.array(3), "optimizer": {"lr": 0.1}}
    with pytest.raises(CheckpointError, match="not arrays of real numbers: optimizer, step"):
        transformer_from_reference(state_dict, **HEADS)


def test_two_different_copies_of_the_tied_matrix_are_refused(state_dict):
    state_dict["lm_head.weight"] = state_dict["lm_head.weight"] + 1
    with pytest.raises(CheckpointError, match="must be one tied matrix, but they differ"):
        transformer_from_reference(state_dict, **HEADS)


@pytest.mark.parametrize("absent", ["n_heads", "k_attention", "k_neurons"])
def test_what_no_shape_shows_must_be_given(state_dict, absent):
    given = {name: value for name, value in HEADS.items() if name != absent}
    with pytest.raises(ConfigError, match=rf"{absent} cannot be read off the arrays; give {absent}=\.\.\."):
        transformer_from_reference(state_dict, **given)


def test_a_baseline_needs_heads_only():
    made = config(ablation="none", d_model=12, d_mlp=None)
    state_dict = transformer_to_reference(made, parameters(made))
    read, _ = transformer_from_reference(state_dict, n_heads=2, attention_layers=("global", "local"))
    assert (read.ablation, read.gated, read.attention_layers) == ("none", False, ("global", "local"))


def test_the_windows_of_what_may_be_any_gpt_neo_must_be_given():
    """Its arrays are the same whatever its layers see; layers said to be global were off by 0.97 of the logits."""
    made = config(ablation="none")
    state_dict = transformer_to_reference(made, parameters(made))
    with pytest.raises(ConfigError, match="attention_layers cannot be read off the arrays; give attention_layers="):
        transformer_from_reference(state_dict, n_heads=2)


def test_settings_of_a_gpt_neo_that_change_what_it_computes():
    made = config(ablation="none")
    state_dict = transformer_to_reference(made, parameters(made))
    theirs = {"num_heads": 2, "attention_layers": ["global", "local"], "window_size": 3, "layer_norm_epsilon": 1e-3,
              "activation_function": "relu"}
    read, _ = transformer_from_reference(state_dict, reference_config=theirs)
    assert (read.layer_norm_eps, read.activation, read.window_size) == (1e-3, "relu", 3)
    read, _ = transformer_from_reference(state_dict, reference_config=theirs | {"activation_function": "gelu_new"})
    assert read.activation == "gelu_tanh"
    for unknown in ("quick_gelu", ["relu"], 3):
        with pytest.raises(ConfigError, match="activation_function=.* is unknown; choose one of 'gelu_new', "):
            transformer_from_reference(state_dict, reference_config=theirs | {"activation_function": unknown})


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_named(state_dict, value):
    name = "transformer.h.0.mlp.c_fc.weight"
    state_dict[name] = np.where(np.arange(state_dict[name].size).reshape(state_dict[name].shape) == 3, value,
                                state_dict[name])
    with pytest.raises(CheckpointError, match=f"numbers are NaN or infinite in {name}; the weights are damaged"):
        transformer_from_reference(state_dict, **HEADS)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"n_heads": 3}, "n_heads=3 must divide d_model=4"),
        ({"k_attention": 4}, "k_attention=4 must be below the 4 attention channels"),
        ({"d_mlp": 5}, "settings contradict the arrays: d_mlp=5, in the arrays 6"),
        ({"n_head": 2}, "no field 'n_head'; did you mean 'n_heads'"),
        ({"reference_config": {"hidden_size": 8, "num_layers": 3}}, "d_model=8, in the arrays 4; n_layers=3, in the"),
        ({"reference_config": {"ablation_processing": "top-K"}}, "ablation_processing='top-K' is unknown; choose"),
        ({"reference_config": {"ablation_mask_level": "some"}}, "ablation_mask_level='some' is unknown"),
    ],
)
def test_settings_that_do_not_fit(state_dict, given, message):
    with pytest.raises(ConfigError, match=message):
        transformer_from_reference(state_dict, **(HEADS | given))


def test_settings_in_the_references_words(state_dict):
    reference = SETTINGS | {
        "attention_layers": ["global", "local"],
        "window_size": 3,
        "temperature_attention": 0.1,
        "temperature_neurons": 0.3,
        "top_k_epsilon": 1e-6,
        "has_layer_by_layer_ablation_mask": True,
        "has_overall_ablation_mask": True,
        "mlp_hidden_size": None,
        "seed": 5,
    }
    read, _ = transformer_from_reference(state_dict, reference_config=reference, window_size=4)
    assert read.attention_layers == ("global", "local")
    assert (read.window_size, read.temperature_attention, read.temperature_neurons) == (4, 0.1, 0.3)
    assert (read.gate_eps, read.gate, read.ablation) == (1e-6, "soft", "both")


def test_ablation_that_the_settings_deny_leaves_its_heads_unexpected(state_dict):
    with pytest.raises(CheckpointError, match="unexpected: .*attention_ablations_head.weight"):
        transformer_from_reference(state_dict, reference_config=SETTINGS | {"ablation_mask_level": "layer-by-layer"})


def test_written_tree_is_checked():
    params = parameters(config())
    params["layer_0"]["mlp"]["up"]["extra"] = params["layer_0"]["mlp"]["up"].pop("bias")
    with pytest.raises(CheckpointError, match="missing: layer_0/mlp/up/bias; unexpected: layer_0/mlp/up/extra"):
        transformer_to_reference(config(), params)


def test_objective():
    settings = {"loss_coeff_base": 0.7, "loss_coeff_ablated": 0.3, "reconstruction_coeff": 0.25}
    assert objective_from_reference(settings) == ObjectiveConfig(clean=0.7, ablated=0.3, reconstruction=0.0)
    with_term = objective_from_reference(settings | {"reconstruction_loss_type": "MSE"})
    assert with_term == ObjectiveConfig(clean=0.7, ablated=0.3, reconstruction=0.25)
    with pytest.raises(ConfigError, match="reconstruction_loss_type='L1' is unknown"):
        objective_from_reference(settings | {"reconstruction_loss_type": "L1"})
    with pytest.raises(ConfigError, match="lack loss_coeff_ablated;"):
        objective_from_reference({"loss_coeff_base": 1.0})

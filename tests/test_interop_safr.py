"""SAFR classifiers of the paper's code: read from every kind of file, written back exactly, refused with one line."""

import functools
import json

import jax
import numpy as np
import pytest
import safetensors.numpy

from jaxablate.config import ClassificationObjective, ClassifierConfig
from jaxablate.errors import CheckpointError, ConfigError
from jaxablate.interop import (
    classification_objective_from_reference,
    classifier_from_reference,
    classifier_to_reference,
)
from jaxablate.models.classifier import SafrClassifier, sinusoids

SETTINGS = {"num_heads": 2, "dropout": 0.25, "mask_hidden_dim": 3, "importance_lambda": 1.0, "seed": 7}


def config(**fields) -> ClassifierConfig:
    sizes = {"vocab_size": 7, "max_length": 5, "d_model": 4, "n_layers": 2, "d_mlp": 6, "n_classes": 3}
    return ClassifierConfig(**sizes | {"n_heads": 2, "vmask_width": 3, "padding": "paper"} | fields)


@functools.cache
def shapes():
    """The tree that the model itself makes."""
    model, tokens = SafrClassifier(config()), np.zeros((1, 2), np.int32)
    return jax.eval_shape(model.init, jax.random.key(0), tokens, np.ones((1, 2), np.float32))["params"]


def parameters(dtype="float32"):
    """Distinct numbers in the tree of the model, so that no two arrays can be taken for each other."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(dtype), shapes())


@pytest.fixture
def state_dict():
    return classifier_to_reference(config(), parameters())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_models_own_tree_goes_there_and_back(dtype):
    read, back = classifier_from_reference(classifier_to_reference(config(), parameters(dtype)), n_heads=2)
    assert read == config(param_dtype=dtype, compute_dtype=dtype)
    jax.tree.map(np.testing.assert_array_equal, back, parameters(dtype))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(back)} == {dtype}


def test_linear_weights_are_transposed_and_heads_are_blocks_of_rows(state_dict):
    query = np.arange(16, dtype=np.float32).reshape(4, 4)
    state_dict["layers.1.attention.query.weight"] = state_dict["layers.1.attention.out.weight"] = query
    _, params = classifier_from_reference(state_dict, n_heads=2)
    attention, x = params["layer_1"]["attention"], np.array([1.0, 2.0, -1.0, 0.5], np.float32)
    np.testing.assert_array_equal(np.einsum("d,dnh->nh", x, attention["query"]["kernel"]).ravel(), query @ x)
    np.testing.assert_array_equal(np.einsum("nh,nhd->d", x.reshape(2, 2), attention["out"]["kernel"]), query @ x)
    np.testing.assert_array_equal(params["vmask"]["hidden"]["kernel"], state_dict["vmask.linear_layer.weight"].T)
    assert state_dict["pos_encoder.pe"].shape == (1, 5, 4)


def test_npz_with_settings_needs_nothing_else(tmp_path, state_dict):
    prefixed = {f"param/{name}": array for name, array in state_dict.items()}
    np.savez(tmp_path / "model.npz", **prefixed, tokens=np.zeros(3, int), config_json=json.dumps(SETTINGS))
    read, params = classifier_from_reference(tmp_path / "model.npz")
    assert (read.n_heads, read.dropout, read.padding) == (2, 0.25, "paper")
    jax.tree.map(np.testing.assert_array_equal, params, parameters())


def test_safetensors_with_overrides(tmp_path, state_dict):
    metadata = {"config_json": json.dumps(SETTINGS)}
    safetensors.numpy.save_file(state_dict, tmp_path / "model.safetensors", metadata=metadata)
    read, params = classifier_from_reference(tmp_path / "model.safetensors", padding="masked", n_heads=4, dropout=0.0)
    assert (read.n_heads, read.dropout, read.padding) == (4, 0.0, "masked")
    assert params["layer_0"]["attention"]["query"]["bias"].shape == (4, 1)


def test_torch_file(tmp_path, state_dict):
    torch = pytest.importorskip("torch", reason="torch is an extra")
    torch.save({name: torch.tensor(array) for name, array in state_dict.items()}, tmp_path / "model.pt")
    _, params = classifier_from_reference(tmp_path / "model.pt", n_heads=2)
    jax.tree.map(np.testing.assert_array_equal, params, parameters())


def test_one_error_names_every_wrong_array(state_dict):
    del state_dict["layers.0.norm1.bias"], state_dict["vmask.hidden2p.weight"]
    state_dict["layers.1.ff.linear2.bias"] = np.zeros(3, np.float32)
    state_dict["layers.1.attention.scale"] = np.zeros(3, np.float32)
    with pytest.raises(CheckpointError) as error:
        classifier_from_reference(state_dict, n_heads=2)
    message = str(error.value)
    assert "missing: vmask.hidden2p.weight, layers.0.norm1.bias;" in message
    assert "unexpected: layers.1.attention.scale;" in message
    assert "layers.1.ff.linear2.bias is (3,), expected (4,)" in message and "\n" not in message


TELLING = ["embedding.weight", "pos_encoder.pe", "vmask.linear_layer.weight", "layers.0.ff.linear1.weight", "fc.weight"]


@pytest.mark.parametrize("name", TELLING)
def test_an_array_that_tells_a_size_is_missing_or_of_other_axes(state_dict, name):
    array = state_dict.pop(name)
    with pytest.raises(CheckpointError, match=f"missing: {name}$"):
        classifier_from_reference(state_dict, n_heads=2)
    with pytest.raises(CheckpointError, match=rf"another number of axes: {name}"):
        classifier_from_reference(state_dict | {name: array.ravel()}, n_heads=2)


def test_a_layer_left_out_is_named(state_dict):
    cut = {name: array for name, array in state_dict.items() if not name.startswith("layers.0.a")}
    with pytest.raises(CheckpointError, match=r"missing: layers\.0\.attention\.query\.weight, "):
        classifier_from_reference(cut, n_heads=2)


def test_the_number_of_heads_must_be_given(state_dict):
    message = r"n_heads cannot be read off the arrays; give n_heads=\.\.\. \(d_model=4\), or reference_config"
    with pytest.raises(ConfigError, match=message):
        classifier_from_reference(state_dict)
    read, _ = classifier_from_reference(state_dict, reference_config=SETTINGS)
    assert read.n_heads == 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"n_heads": 3}, "n_heads=3 must divide d_model=4"),
        ({"n_head": 2}, "no field 'n_head'; did you mean 'n_heads'"),
        ({"d_mlp": 5}, "settings contradict the arrays: d_mlp=5, in the arrays 6"),
        ({"reference_config": {"d_model": 8, "num_layers": 3}}, "n_layers=3, in the arrays 2"),
        ({"padding": "left"}, "padding='left' must be one of 'masked', 'paper'"),
    ],
)
def test_settings_that_do_not_fit(state_dict, given, message):
    with pytest.raises(ConfigError, match=message):
        classifier_from_reference(state_dict, **{"n_heads": 2} | given)


@pytest.mark.parametrize("shift", [0.01, np.nan])
def test_another_position_table_is_refused(state_dict, shift):
    state_dict["pos_encoder.pe"] = state_dict["pos_encoder.pe"] + shift
    with pytest.raises(CheckpointError, match=r"pos_encoder\.pe is not the sinusoidal table"):
        classifier_from_reference(state_dict, n_heads=2)
    np.testing.assert_allclose(sinusoids(3, 4)[2], [np.sin(2), np.cos(2), np.sin(0.02), np.cos(0.02)], rtol=1e-12)


def test_what_the_papers_code_has_no_place_for_is_named():
    gates = {"attention_scores": {"kernel": np.zeros((4, 4), np.float32)}}
    params = parameters()
    with pytest.raises(CheckpointError, match="unexpected: layer_0/attention_scores/kernel"):
        classifier_to_reference(config(), params | {"layer_0": params["layer_0"] | gates})
    plain = {name: tree for name, tree in params.items() if name != "vmask"}
    with pytest.raises(CheckpointError, match="missing: vmask/hidden/kernel, "):
        classifier_to_reference(config(vmask=False), plain)


def test_objective():
    settings = SETTINGS | {"interaction_lambda": 0.5}
    expected = ClassificationObjective(importance=1.0, interaction=0.5)
    assert classification_objective_from_reference(settings) == expected
    with pytest.raises(ConfigError, match="the reference's settings lack interaction_lambda; give all of"):
        classification_objective_from_reference(SETTINGS)

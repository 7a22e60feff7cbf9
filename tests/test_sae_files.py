"""Autoencoders and training states on disk: SAELens's layout, round trips, what is refused."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import safetensors.numpy

from jaxablate.config import ModelConfig
from jaxablate.errors import ConfigError, DataError
from jaxablate.features import (
    AutoencoderConfig,
    Moments,
    SaeRun,
    SaeTrainConfig,
    SparseAutoencoder,
    find_site,
    fingerprint,
    load,
    save,
    train,
)
from jaxablate.features.files import export, load_state, save_state
from jaxablate.features.saelens import hook_name, site_name
from jaxablate.features.sites import sites

MODEL = ModelConfig(vocab_size=13, context_length=8, d_model=8, n_layers=2, n_heads=2, d_mlp=12, k_attention=3,
                    k_neurons=4)
SITE = "clean.layer_1.mlp_out"
PARAMS = {"embed": np.ones((3, 2), np.float32), "bias": np.zeros(2, np.float32)}


def made(**changes):
    config, rng = AutoencoderConfig(**{"d_in": 8, "d_sae": 16, "k": 4, **changes}), np.random.default_rng(0)
    weights = (rng.standard_normal(shape, np.float32) * np.float32(0.3) for shape in ((8, 16), 16, (16, 8), 8))
    return SparseAutoencoder(*weights, np.full(16, 0.5 * config.kind.has_threshold, np.float32), config)


def saved(folder, **changes):
    sae = made(**changes)
    save(folder, sae, SITE, model=MODEL, params=PARAMS, density=np.linspace(0, 1, 16), details={"seed": 3})
    return sae


@pytest.mark.parametrize("changes", [{}, {"decoder": "free", "center": True}, {"architecture": "topk"},
                                     {"normalize": "layer_norm"}, {"normalize": "constant_norm"},
                                     {"architecture": "batchtopk", "k": 2.5}], ids=str)
def test_round_trip(tmp_path, changes):
    sae = saved(tmp_path / "sae", **changes)
    found = load(tmp_path / "sae", MODEL, PARAMS)
    assert (found.sae.config, found.name, found.details) == (sae.config, SITE, {"seed": 3})
    jax.tree.map(np.testing.assert_array_equal, found.sae, sae)
    np.testing.assert_allclose(found.density, np.linspace(0, 1, 16), atol=1e-6)
    assert sorted(path.name for path in (tmp_path / "sae").iterdir()) == [
        "cfg.json", "sae_weights.safetensors", "sparsity.safetensors"]


def test_the_layout_is_that_of_saelens(tmp_path):
    sae = saved(tmp_path)
    settings = json.loads((tmp_path / "cfg.json").read_text())
    needed = {  # every field without a default of SAELens 5's SAEConfig
        "architecture", "d_in", "d_sae", "activation_fn_str", "apply_b_dec_to_input", "finetuning_scaling_factor",
        "context_size", "model_name", "hook_name", "hook_layer", "hook_head_index", "prepend_bos", "dataset_path",
        "dataset_trust_remote_code", "normalize_activations", "dtype", "device", "sae_lens_training_version",
    }
    assert needed <= settings.keys()
    assert (settings["architecture"], settings["hook_name"], settings["hook_layer"]) == (
        "standard", "blocks.1.hook_mlp_out", 1)
    weights = safetensors.numpy.load_file(tmp_path / "sae_weights.safetensors")
    assert {name: a.shape for name, a in weights.items()} == {
        "W_enc": (8, 16), "b_enc": (16,), "W_dec": (16, 8), "b_dec": (8,)}
    x = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32)
    out = np.maximum(x @ weights["W_enc"] + weights["b_enc"], 0) @ weights["W_dec"] + weights["b_dec"]
    np.testing.assert_allclose(jax.jit(sae.__call__)(x), out, rtol=1e-5, atol=1e-5)


def test_batchtopk_is_a_jumprelu_there(tmp_path):
    saved(tmp_path, architecture="batchtopk")
    settings = json.loads((tmp_path / "cfg.json").read_text())
    weights = safetensors.numpy.load_file(tmp_path / "sae_weights.safetensors")
    assert settings["architecture"] == "jumprelu" and weights["threshold"].tolist() == [0.5] * 16
    settings.pop("jaxablate")
    (tmp_path / "cfg.json").write_text(json.dumps(settings))
    found = load(tmp_path, MODEL)
    assert found.sae.config.architecture == "jumprelu" and found.sae.threshold.tolist() == [0.5] * 16


def test_what_saelens_wrote_is_read(tmp_path):
    """Flat settings up to version 5; the hook under `metadata` and k at the top in later ones."""
    sae = saved(tmp_path, architecture="topk")
    flat = json.loads((tmp_path / "cfg.json").read_text())
    flat.pop("jaxablate")
    (tmp_path / "cfg.json").write_text(json.dumps(flat))
    found = load(tmp_path, MODEL, PARAMS)
    assert (found.name, found.sae.config.architecture, found.sae.config.k) == (SITE, "topk", 4)
    nested = {"architecture": "topk", "k": 4, "d_in": 8, "d_sae": 16, "apply_b_dec_to_input": False,
              "metadata": {"hook_name": "blocks.0.hook_resid_post"}}
    (tmp_path / "cfg.json").write_text(json.dumps(nested))
    found = load(tmp_path)
    assert (found.name, found.sae.config.k) == ("clean.layer_0.resid_post", 4)
    np.testing.assert_array_equal(found.sae.W_dec, sae.W_dec)
    (tmp_path / "cfg.json").write_text(json.dumps(nested | {"metadata": {"hook_name": "hook_embed"}}))
    assert load(tmp_path).name == "hook_embed"
    with pytest.raises(ConfigError, match="site 'hook_embed' does not exist"):
        load(tmp_path, MODEL)


def test_settings_of_earlier_versions_are_those_of_today(tmp_path):
    """Files and digests that know no `normalize` stay what they are."""
    saved(tmp_path)
    settings = json.loads((tmp_path / "cfg.json").read_text())
    assert "normalize" not in settings["jaxablate"]["config"] and settings["normalize_activations"] == "none"


def test_a_name_of_ones_own_needs_no_model(tmp_path):
    sae = made(architecture="topk")
    folder = save(tmp_path / "mine", sae, "layer 3 of my model", density=np.full(16, 0.25))
    found = load(folder)
    assert found.name == "layer 3 of my model" and found.fingerprint is None and found.sae.config == sae.config
    jax.tree.map(np.testing.assert_array_equal, found.sae, sae)
    assert json.loads((folder / "cfg.json").read_text())["hook_name"] == "layer 3 of my model"


def test_arrays_of_any_layout_in_memory_are_written_as_they_are(tmp_path):
    """The library that writes them takes the bytes as they lie."""
    sae = made()
    sae = dataclasses.replace(sae, W_enc=np.asfortranarray(sae.W_enc), W_dec=np.asfortranarray(sae.W_dec))
    root = np.random.default_rng(0).normal(size=(1, 8, 8)).astype(np.float32)
    found = load(save(tmp_path, sae, "mine", moments=Moments(np.zeros((1, 8), np.float32), np.asfortranarray(root))))
    np.testing.assert_array_equal(found.sae.W_enc, sae.W_enc)
    np.testing.assert_array_equal(found.moments.root, root)


def test_every_site_has_a_hook_name():
    names = [hook_name(site) for site in sites(MODEL)]
    assert len(set(names)) == len(names)
    assert [site_name({"hook_name": name}) for name in names] == [site.name for site in sites(MODEL)]
    assert hook_name(find_site(MODEL, "ablated.layer_0.head_out")) == "ablated.blocks.0.attn.hook_z"


@pytest.mark.parametrize("theirs", [False, True])
def test_float64_stays_where_jax_has_it_and_is_told_where_not(tmp_path, theirs):
    sae = made(dtype="float64")
    names = "W_enc", "b_enc", "W_dec", "b_dec"
    weights = {name: np.asarray(getattr(sae, name), np.float64) + 1e-12 for name in names}
    save(tmp_path, dataclasses.replace(sae, **weights), "mine")
    if theirs:
        settings = json.loads((tmp_path / "cfg.json").read_text())
        (tmp_path / "cfg.json").write_text(json.dumps({k: v for k, v in settings.items() if k != "jaxablate"}))
    with jax.enable_x64(True):
        found = load(tmp_path).sae
        assert found.config.dtype == found.W_enc.dtype == "float64"
        np.testing.assert_array_equal(found.W_enc, weights["W_enc"])
    with pytest.warns(UserWarning, match="is of float64 and becomes float32; jax_enable_x64 keeps it as it is"):
        found = load(tmp_path).sae
    assert found.config.dtype == found.W_enc.dtype == "float32"


def test_autoencoders_go_with_an_exported_model(tmp_path):
    """Those of its own sites, under the hooks and the name by which SAELens finds the model."""
    inside = tmp_path / "run" / "autoencoders"
    sae = made(architecture="topk")
    options = {"model": MODEL, "params": PARAMS}
    save(inside / "a", sae, SITE, **options, density=np.full(16, 0.5), details={"seed": 3})
    save(inside / "ablated", sae, "ablated.layer_1.mlp_out", **options)
    save(inside / "control", sae, SITE, **options, details={"identity": {"control": "gaussian"}})
    save(inside / "other", sae, SITE, model=MODEL, params={"other": np.zeros(2)})
    written, left_out = export(tmp_path / "run", tmp_path / "hf" / "autoencoders", MODEL, PARAMS, "out/hf")
    assert written == [tmp_path / "hf" / "autoencoders" / "a"] == list((tmp_path / "hf" / "autoencoders").iterdir())
    why = dict(left_out)
    assert "no ablated.layer_1.mlp_out" in why["ablated"] and "a control, gaussian" in why["control"]
    assert "belongs to another model" in why["other"] and len(why) == 3
    found, settings = load(written[0], MODEL, PARAMS), json.loads((written[0] / "cfg.json").read_text())
    jax.tree.map(np.testing.assert_array_equal, found.sae, sae)
    assert (settings["model_name"], settings["hook_name"]) == ("out/hf", "blocks.1.hook_mlp_out")
    assert found.details == {"seed": 3} and found.density.mean() == pytest.approx(0.5)


def test_another_model_or_width_is_refused(tmp_path):
    saved(tmp_path)
    other = PARAMS | {"bias": np.ones(2, np.float32)}
    assert fingerprint(other) != fingerprint(PARAMS)
    with pytest.raises(ConfigError, match="belongs to another model: its parameters have fingerprint"):
        load(tmp_path, MODEL, other)
    with pytest.raises(ConfigError, match=r"width 8, clean.layer_1.mlp_out of this model has 16; it belongs"):
        load(tmp_path, dataclasses.replace(MODEL, d_model=16))
    with pytest.raises(ConfigError, match="site 'clean.layer_1.mlp_out' does not exist; nearest"):
        load(tmp_path, dataclasses.replace(MODEL, n_layers=1))
    with pytest.raises(ConfigError, match="width 8, clean.layer_1.mlp_post of this model has 12"):
        save(tmp_path / "new", made(), "clean.layer_1.mlp_post", model=MODEL)
    assert not (tmp_path / "new").exists()


def test_damaged_files_are_refused(tmp_path):
    sae = saved(tmp_path)
    with pytest.raises(DataError, match="W_enc of the autoencoder at .* are NaN or infinite; nothing was written"):
        save(tmp_path / "new", sae.replace(W_enc=sae.W_enc * np.nan), SITE)
    assert not (tmp_path / "new").exists()
    with pytest.raises(DataError, match="holds no autoencoder: cfg.json cannot be read"):
        load(tmp_path / "nowhere")
    weights = (tmp_path / "sae_weights.safetensors").read_bytes()
    (tmp_path / "sae_weights.safetensors").write_bytes(weights[:100])
    with pytest.raises(DataError, match="cannot be read or is damaged"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("message", "change"),
    [
        (r"Expected `bool \| null`, got `str`", {"rescale_acts_by_decoder_norm": "yes"}),
        (r"Expected `object \| null`, got `array` - at `\$\.metadata`", {"metadata": ["x"]}),
        (r"Expected `str \| null`, got `float` - at `\$\.jaxablate\.model`", {"jaxablate": {"model": 3.7}}),
        ("W_enc has shape \\(8, 16\\), cfg.json says \\(9, 16\\)", {"d_in": 9}),
        ("lacks a setting or has an unknown one: 'd_sae'", {"d_sae": None}),
    ],
)
def test_settings_of_another_kind_are_refused(tmp_path, message, change):
    saved(tmp_path)
    settings = json.loads((tmp_path / "cfg.json").read_text())
    del settings["jaxablate"]
    settings |= change
    settings = {name: value for name, value in settings.items() if value is not None or name != "d_sae"}
    (tmp_path / "cfg.json").write_text(json.dumps(settings))
    with pytest.raises(DataError, match=message):
        load(tmp_path)


# --- training states ---

RUNS = (SaeRun("a", l1=1.0), SaeRun("a", l1=0.1, seed=4))
SETTINGS = SaeTrainConfig(steps=6, batch_tokens=16, buffer_batches=4, learning_rate=1e-2)
SAE = AutoencoderConfig(d_in=8, d_sae=16)


def activations(params, tokens):
    return params[tokens][:, :, None]


def tokens(start):
    return (np.random.default_rng(i).integers(0, 11, (4, 8)) for i in range(start, 100))


pytestmark = pytest.mark.filterwarnings("ignore:the autoencoder at a")  # six steps teach it little


def run(**options):
    table = np.random.default_rng(9).standard_normal((11, 8), np.float32)
    return train(activations, table, tokens, RUNS, SAE, SETTINGS, **options)


@pytest.fixture(scope="module")
def stopped():
    """The state after one round."""
    return run(stop=lambda: True).state


def test_a_run_goes_on_from_a_file(tmp_path):
    path = tmp_path / "state.safetensors"

    def save(state, _):
        if int(state.step) == 2:
            save_state(path, state, RUNS, SAE, SETTINGS)

    whole = run(progress=save)
    again = run(state=load_state(path, RUNS, SAE, SETTINGS))
    jax.tree.map(np.testing.assert_array_equal, again.state, whole.state)


def test_a_flipped_bit_in_a_state_is_not_gone_on_with(stopped, tmp_path):
    path = tmp_path / "state.safetensors"
    save_state(path, stopped, RUNS, SAE, SETTINGS)
    content = bytearray(path.read_bytes())
    content[-5] ^= 16
    path.write_bytes(content)
    with pytest.raises(DataError, match="is damaged: its arrays are not those that were saved"):
        load_state(path, RUNS, SAE, SETTINGS)


def test_a_state_of_other_settings_is_refused(stopped, tmp_path):
    path = tmp_path / "state.safetensors"
    save_state(path, stopped, RUNS, SAE, SETTINGS)
    slower = dataclasses.replace(SETTINGS, learning_rate=1e-3)
    with pytest.raises(DataError, match="other runs or settings: learning_rate=0.01 there, 0.001 here"):
        load_state(path, RUNS, SAE, slower)
    with pytest.raises(DataError, match="other runs or settings: runs="):
        load_state(path, RUNS[:1], SAE, SETTINGS)
    with pytest.raises(DataError, match="cannot be read or is damaged"):
        load_state(tmp_path / "nothing.safetensors", RUNS, SAE, SETTINGS)

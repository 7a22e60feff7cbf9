"""Autoencoders that SAELens wrote: its latents and reconstructions, or a refusal that says what is missing.

Figures of SAELens 6.54.12: tests/golden/saelens.npz, and the folders under ``saelens6`` in JAXABLATE_FIXTURES.
"""

import importlib
import json
import os
import pathlib
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from helpers.tolerance import assert_close

from jaxablate.errors import ConfigError, DataError
from jaxablate.features import evaluate, load, reconstruction, save
from jaxablate.features.saelens import FOREIGN

pytestmark = pytest.mark.parity
GOLDEN = pathlib.Path(__file__).parent / "golden" / "saelens.npz"
KINDS = sorted({name.split("/")[0] for name in np.load(GOLDEN).files} - {"x"})
FOLDERS = sorted(pathlib.Path(os.environ.get("JAXABLATE_FIXTURES", "nowhere")).glob("saelens6/*/cfg.json"))
ALL = [*KINDS, *(pytest.param(path.parent, id=f"saelens6-{path.parent.name}") for path in FOLDERS)]


def opened(where, folder):
    """Folder of an autoencoder, vectors [n, D], SAELens's latents [n, S] and reconstructions [n, D]."""
    if isinstance(where, pathlib.Path):
        with np.load(where / "expected.npz") as expected:
            return where, expected["x"], expected["z"], expected["y"]
    with np.load(GOLDEN) as stored:
        own = {name.removeprefix(f"{where}/"): stored[name] for name in stored.files if name.startswith(f"{where}/")}
        x = stored["x"]
    for part, file in {"weights": "sae_weights", "whitening": "activation_whitening"}.items():
        arrays = {name.removeprefix(f"{part}/"): value for name, value in own.items() if name.startswith(f"{part}/")}
        if arrays:
            safetensors.numpy.save_file(arrays, folder / f"{file}.safetensors")
    for name in ("cfg", "scaler"):
        if f"{name}_json" in own:
            (folder / {"scaler": "activation_scaler"}.get(name, name)).with_suffix(".json").write_text(
                str(own[f"{name}_json"]))
    return folder, x, own["latents"], own["out"]


def edited(folder, **changes):
    settings = json.loads((folder / "cfg.json").read_text()) | changes
    (folder / "cfg.json").write_text(json.dumps({name: value for name, value in settings.items() if value is not ...}))


@pytest.mark.parametrize("where", ALL)
def test_latents_and_reconstructions_are_saelenss(where, tmp_path):
    folder, x, latents, out = opened(where, tmp_path)
    settings = json.loads((folder / "cfg.json").read_text())
    if (name := settings["architecture"]) in FOREIGN:
        with pytest.raises(DataError, match=f"architecture='{name}' cannot be read: it"):
            load(folder)
        return
    sae = load(folder).sae
    found = sae.encode(x)
    np.testing.assert_array_equal(np.asarray(found) > 0, latents > 0)
    assert_close(found, latents, atol=1e-5)
    # Both programs' float32 is compared with our float64: the two roundings together are more than either.
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda a: jnp.asarray(np.asarray(a, np.float64)), sae)
        exact = np.asarray(wide(jnp.asarray(x, jnp.float64)))
        assert exact.dtype == np.float64
    for computed in (out, sae(x), sae.decode(found, x)):
        assert_close(computed, exact, atol=1e-5)


@pytest.mark.parametrize("where", ALL)
def test_what_was_opened_is_written_as_the_same_function(where, tmp_path):
    """Without our own key, so that it is read as SAELens reads it."""
    folder, x, _, _ = opened(where, tmp_path)
    first = load(folder)
    again = save(tmp_path / "again", first.sae, first.name, density=np.full(first.sae.config.d_sae, 0.5))
    edited(again, jaxablate=...)
    second = load(again)
    assert (second.name, second.density is None) == (first.name, False)
    np.testing.assert_array_equal(second.sae.encode(x), first.sae.encode(x))
    np.testing.assert_array_equal(second.sae(x), first.sae(x))


def test_a_gated_autoencoder_and_a_jumprelu_are_the_same_kind_here(tmp_path):
    folder, *_ = opened("gated", tmp_path)
    assert load(folder).sae.config.architecture == "jumprelu"
    assert json.loads((save(tmp_path / "ours", load(folder).sae, "x") / "cfg.json").read_text())["architecture"] == (
        "jumprelu")


def test_norms_of_a_rescaled_topk_are_in_the_encoder(tmp_path):
    """Ranks are those of norm-scaled values: without them other latents win."""
    folder, x, latents, _ = opened("topk_rescaled", tmp_path)
    np.testing.assert_allclose(np.linalg.norm(load(folder).sae.W_dec, axis=1), 1, rtol=1e-6)
    edited(folder, rescale_acts_by_decoder_norm=False)
    assert ((np.asarray(load(folder).sae.encode(x)) > 0) != (latents > 0)).any()


def test_norms_of_what_saelens_does_not_rescale_stay(tmp_path):
    """It reads that setting of topk and batchtopk alone."""
    folder, x, latents, _ = opened("jumprelu_layer_norm", tmp_path)
    edited(folder, rescale_acts_by_decoder_norm=True)
    assert_close(load(folder).sae.encode(x), latents, atol=1e-5)


def test_a_training_run_without_its_scale_is_refused(tmp_path):
    folder, *_ = opened("training_topk_scaled", tmp_path)
    scaler = folder / "activation_scaler.json"
    for wrong in ({"scaling_factor": 0.0}, {"scaling_factor": "x"}):
        scaler.write_text(json.dumps(wrong))
        with pytest.raises(DataError, match="activation_scaler.json"):
            load(folder)
    scaler.unlink()
    with pytest.raises(DataError, match="the folder has no activation_scaler.json that says how; add it, or fold"):
        load(folder)


def test_a_training_run_without_its_whitening_is_refused(tmp_path):
    folder, *_ = opened("training_topk_whitened", tmp_path)
    path = folder / "activation_whitening.safetensors"
    arrays = safetensors.numpy.load_file(path)
    safetensors.numpy.save_file(arrays | {"mean": np.zeros(3)}, path)
    with pytest.raises(DataError, match="activation_whitening.safetensors: mean has shape"):
        load(folder)
    path.unlink()
    with pytest.raises(DataError, match="no activation_whitening.safetensors that says how; .*fold_activation_white"):
        load(folder)


@pytest.mark.parametrize(("kind", "changes", "message"), [
    *(("standard", {"architecture": name}, f"architecture='{name}' cannot be read: it.*; standard, topk, .*gated") for
      name in FOREIGN),
    ("standard", {"architecture": "crosscoder"}, "architecture='crosscoder' cannot be read; standard"),
    ("standard", {"normalize_activations": "other"}, "normalize_activations='other' cannot be read; none, layer_norm"),
    ("standard", {"activation_fn_str": "tanh-relu"}, "the activation function 'tanh-relu' of a standard autoencoder"),
    ("jumprelu_layer_norm", {"activation_fn": "topk"}, "the activation function 'topk' of a jumprelu autoencoder"),
    ("jumprelu_layer_norm", {"architecture": "standard"}, "a standard autoencoder has no use for 'threshold'; it has"),
    ("gated", {"architecture": "jumprelu"}, "no use for 'b_gate', 'b_mag', 'r_mag'"),
    ("standard", {"architecture": "gated"}, "no use for 'b_enc'"),
    ("topk", {"k": ...}, "lacks a setting or has an unknown one: 'k'"),
    ("standard", {"reshape_activations": "other"}, "reshape_activations='other' cannot be read"),
])
def test_what_cannot_be_opened_is_refused_by_its_name(kind, changes, message, tmp_path):
    folder, *_ = opened(kind, tmp_path)
    edited(folder, **changes)
    with pytest.raises(DataError, match=message) as error:
        load(folder)
    assert "\n" not in str(error.value)


def test_flat_settings_of_earlier_versions(tmp_path):
    """Version 2 has hook_point, its topk is a standard autoencoder of another activation function."""
    folder, x, latents, _ = opened("topk", tmp_path)
    edited(folder, architecture=..., k=..., metadata=..., hook_point="blocks.1.hook_resid_pre",
           activation_fn_str="topk", activation_fn_kwargs={"k": 3}, normalize_activations=False)
    found = load(folder)
    assert (found.name, found.sae.config.architecture) == ("clean.layer_1.resid_pre", "topk")
    assert_close(found.sae.encode(x), latents, atol=1e-5)


def test_factors_of_a_fine_tuning_multiply_latents(tmp_path):
    folder, x, latents, out = opened("standard", tmp_path)
    path = folder / "sae_weights.safetensors"
    weights = safetensors.numpy.load_file(path)
    for name in ("scaling_factor", "finetuning_scaling_factor"):
        safetensors.numpy.save_file(weights | {name: np.ones(20, np.float32)}, path)
        assert_close(load(folder).sae(x), out, atol=1e-5)
        factor = np.linspace(0.5, 2, 20, dtype=np.float32)
        safetensors.numpy.save_file(weights | {name: factor}, path)
        with pytest.raises(DataError, match="factors of a fine-tuning, but cfg.json says that there was none"):
            load(folder)
        edited(folder, finetuning_scaling_factor=True)
        assert_close(load(folder).sae(x), (latents * factor) @ weights["W_dec"] + weights["b_dec"], atol=1e-5)
        edited(folder, finetuning_scaling_factor=...)


@pytest.mark.parametrize(("kind", "name", "value"), [
    ("gated", "r_mag", 1e30), ("training_topk", "W_dec", 3e38), ("training_batchtopk", "topk_threshold", 1e300)])
def test_what_overflows_when_it_is_folded_is_refused(kind, name, value, tmp_path):
    folder, *_ = opened(kind, tmp_path)
    path = folder / "sae_weights.safetensors"
    weights = safetensors.numpy.load_file(path)
    safetensors.numpy.save_file(weights | {name: np.full_like(weights[name], value)}, path)
    with pytest.raises(DataError, match="would not be finite in float32; the file is damaged"):
        load(folder)


def test_a_logarithm_of_thresholds(tmp_path):
    folder, x, latents, _ = opened("training_jumprelu", tmp_path)
    path = folder / "sae_weights.safetensors"
    weights = safetensors.numpy.load_file(path)
    weights["log_threshold"] = np.log(weights.pop("threshold"))
    safetensors.numpy.save_file(weights, path)
    assert_close(load(folder).sae.encode(x), latents, atol=1e-5)


def test_latents_below_a_negative_threshold_stay_at_zero(tmp_path):
    folder, x, _, _ = opened("jumprelu_layer_norm", tmp_path)
    path = folder / "sae_weights.safetensors"
    weights = safetensors.numpy.load_file(path)
    safetensors.numpy.save_file(weights | {"threshold": np.full(20, -1, np.float32)}, path)
    assert np.min(load(folder).sae.encode(x)) == 0


def test_normalised_vectors_need_their_own_scale_back(tmp_path):
    folder, x, latents, out = opened("standard_layer_norm", tmp_path)
    sae = load(folder).sae
    with pytest.raises(ConfigError, match="normalize='layer_norm': each vector has a scale .*decode.latents, x"):
        sae.decode(latents)
    with pytest.raises(ConfigError, match="takes every scale of the activations away"):
        sae.fold_scale(2.0)
    folded = sae.fold_decoder_norm()
    np.testing.assert_allclose(np.linalg.norm(folded.W_dec, axis=1), 1, rtol=1e-6)
    assert_close(folded(x), out, atol=1e-5)


def test_measures_of_an_autoencoder_of_normalised_vectors(tmp_path):
    folder, x, latents, out = opened("standard_layer_norm", tmp_path)
    sae = load(folder).sae
    variance = ((x - x.mean(0)) ** 2).sum()
    expected = 1 - ((x - out) ** 2).sum() / variance
    assert reconstruction(sae, x).explained_variance == pytest.approx(expected, rel=1e-5)
    batch = {"inputs": np.arange(len(x))[None], "mask": np.ones((1, len(x)), np.float32)}
    measures, = evaluate(lambda table, rows: table[rows][:, :, None], x, lambda: [batch], [("mine", sae)], min_tokens=1)
    assert measures.estimates["explained_variance"].value == pytest.approx(expected, rel=1e-5)
    assert measures.estimates["l0"].value == pytest.approx((latents > 0).sum(1).mean())


def test_saelens_itself_opens_what_is_written_here(tmp_path):
    """Where it is installed: pip install sae-lens."""
    with warnings.catch_warnings(action="ignore"):
        sae_lens = pytest.importorskip("sae_lens", reason="SAELens is not installed, and not needed but here")
    torch = importlib.import_module("torch")
    for kind in KINDS:
        (tmp_path / kind).mkdir()
        folder, x, _, _ = opened(kind, tmp_path / kind)
        ours = load(folder)
        written = save(tmp_path / kind / "ours", ours.sae, "clean.layer_1.resid_pre")
        with torch.no_grad():
            theirs = sae_lens.SAE.load_from_disk(written)
            latents, out = theirs.encode(torch.tensor(x)).numpy(), theirs(torch.tensor(x)).numpy()
        assert theirs.cfg.metadata.hook_name == "clean.layer_1.resid_pre"
        np.testing.assert_array_equal(latents > 0, np.asarray(ours.sae.encode(x)) > 0)
        assert_close(latents, ours.sae.encode(x), atol=1e-5, err_msg=kind)
        assert_close(out, ours.sae(x), atol=1e-5, err_msg=kind)

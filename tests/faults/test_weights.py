"""Weights that are damaged, foreign or hostile are refused in one line, at once and in little memory."""

import io
import json
import random
import struct
import tracemalloc
import zipfile

import jax
import numpy as np
import pytest
import safetensors.numpy

from faults import damage
from faults.hostile import JSON
from jaxablate import files
from jaxablate.errors import CheckpointError, ConfigError, DataError, FileError
from jaxablate.features import AutoencoderConfig, SparseAutoencoder, load, save
from jaxablate.interop import (
    classification_objective_from_reference,
    classifier_from_reference,
    objective_from_reference,
    transformer_from_reference,
)


def npy(header):
    """A .npy file whose header says anything."""
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header


def zipped(members, method=zipfile.ZIP_STORED):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return out.getvalue()


def array(values):
    out = io.BytesIO()
    np.save(out, values)
    return out.getvalue()


def patched(content, offsets, value):
    """A zip of one member with a field of its local and of its central header changed."""
    out = bytearray(content)
    for signature, offset in zip((b"PK\x03\x04", b"PK\x01\x02"), offsets, strict=True):
        at = content.index(signature) + offset
        out[at : at + len(value)] = value
    return bytes(out)


STORED = zipped({"a.npy": array(np.arange(9.0))})
DEFLATED = zipped({"a.npy": array(np.arange(999.0))}, zipfile.ZIP_DEFLATED)
SHAPE = b"{'descr': '<f4', 'fortran_order': False, 'shape': (%s,)}\n"
FOREIGN_NPZ = {
    "damaged deflate": DEFLATED[:80] + b"\xff" * 60 + DEFLATED[140:],
    "one array": array(np.arange(9.0)),
    "giant shape": zipped({"a.npy": npy(SHAPE % b"99999999999")}),
    "shape beyond 64 bits": zipped({"a.npy": npy(SHAPE % b"4294967296, 4294967296, 4294967296")}),
    "negative shape": zipped({"a.npy": npy(SHAPE % b"-5")}),
    "broken header": zipped({"a.npy": npy(b"{'descr': '<f4', 'fortran_order': (((\n")}),
    "code in the header": zipped({"a.npy": npy(b"__import__('os').getpid()\n")}),
    "nested header": zipped({"a.npy": npy(b"(" * 9000 + b"\n")}),
    "no npy inside": zipped({"a": b"some text"}),
    "encrypted": patched(STORED, (6, 8), b"\x01"),
    "unknown compression": patched(STORED, (8, 10), b"\x63"),
    "bomb": None,  # made where it is needed: packing takes a second, and every worker collects all tests
    "pickle": b"\x80\x04cposix\nsystem\n(S'touch /tmp/executed'\ntR.",
}


@pytest.mark.parametrize("kind", FOREIGN_NPZ)
def test_npz_files_of_every_other_kind(tmp_path, kind):
    """zlib.error, TypeError, MemoryError, TokenError, RuntimeError and NotImplementedError came out as they are."""
    path = tmp_path / "m.npz"
    bomb = {"0.npy": npy(SHAPE % b"67108764") + bytes(1 << 28)}
    path.write_bytes(FOREIGN_NPZ[kind] or zipped(bomb, zipfile.ZIP_BZIP2))
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match="m.npz is no .npz file of plain arrays, or is damaged") as error:
            transformer_from_reference(path, n_heads=2)
        assert len(str(error.value).splitlines()) == 1 and tracemalloc.get_traced_memory()[1] < 1 << 24
    finally:
        tracemalloc.stop()


def test_an_array_that_compresses_well_is_read(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", a=np.zeros(1 << 20, np.float32), b=np.array("text"))
    stored = files.read_npz(tmp_path / "a.npz")
    assert stored["a"].shape == (1 << 20,) and str(stored["b"]) == "text"


def tensors(header, data=b""):
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def test_a_tensor_of_a_type_that_numpy_has_not_is_named(tmp_path):
    """A float8 tensor raised AttributeError."""
    path = tmp_path / "m.safetensors"
    path.write_bytes(tensors({"x": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}}, b"ab"))
    with pytest.raises(CheckpointError, match=r"x is of type F8_E4M3, which NumPy has not; save it as F32"):
        transformer_from_reference(path, n_heads=2)


@pytest.mark.parametrize("settings", [x.decode("utf-8", "replace") for x in JSON])
def test_settings_beside_the_weights_that_are_no_settings(tmp_path, settings):
    """Deeply nested settings raised RecursionError."""
    safetensors.numpy.save_file({"x": np.zeros(2)}, tmp_path / "m.safetensors", metadata={"config_json": settings})
    with pytest.raises((CheckpointError, ConfigError)) as error:
        transformer_from_reference(tmp_path / "m.safetensors", n_heads=2)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["ablation_processing", "ablation_mask_level", "num_heads", "hidden_size",
                                  "attention_layers", "has_overall_ablation_mask", "top_k_epsilon"])
@pytest.mark.parametrize("value", [[], {}, "x", -1, 3.5], ids=str)
def test_settings_of_another_kind(name, value):
    """A list where a word belongs raised TypeError."""
    with pytest.raises((ConfigError, CheckpointError)):
        transformer_from_reference({"x": np.zeros(2)}, n_heads=2, reference_config={name: value})


@pytest.mark.parametrize("value", [[], "x", None, {}, 10**400], ids=lambda x: str(x)[:9])
def test_coefficients_of_another_kind(value):
    with pytest.raises(ConfigError, match="loss_coeff_base="):
        objective_from_reference({"loss_coeff_base": value, "loss_coeff_ablated": 0.1})
    with pytest.raises(ConfigError, match="importance_lambda="):
        classification_objective_from_reference({"importance_lambda": value, "interaction_lambda": 0.1})


@pytest.mark.parametrize(("read", "name"), [(transformer_from_reference, "transformer.h.{}.x"),
                                            (classifier_from_reference, "layers.{}.x")])
@pytest.mark.parametrize("number", ["1000000000", "999999999", "9" * 5000, "12"])
def test_the_number_of_a_layer_in_a_name_asks_for_no_memory(read, name, number):
    """A file of 1 KB with an array of layer 10^9 took all memory and did not end."""
    with pytest.raises(CheckpointError, match="does not fit") as error:
        read({name.format(number): np.zeros(2)}, n_heads=2)
    assert len(str(error.value)) < 5000


def test_the_names_in_an_error_are_few():
    with pytest.raises(CheckpointError, match="more") as error:
        transformer_from_reference({f"x{i}": np.zeros(2) for i in range(10_000)}, n_heads=2)
    assert len(str(error.value)) < 10_000


# --- autoencoders ---


@pytest.fixture
def folder(tmp_path):
    rng, config = np.random.default_rng(0), AutoencoderConfig(d_in=4, d_sae=8)
    shapes = (4, 8), 8, (8, 4), 4, 8
    sae = SparseAutoencoder(*(rng.standard_normal(shape, np.float32) for shape in shapes), config)
    return save(tmp_path / "sae", sae, "a", density=np.full(8, 0.25), details={"seed": 3})


@pytest.mark.parametrize("change", [
    {"jaxablate": {"model": 3.7}}, {"metadata": ["x"]}, {"activation_fn_kwargs": ["x"]}, {"jaxablate": []},
    {"jaxablate": {"site": []}}, {"jaxablate": {"details": 5}}, {"architecture": []}, {"d_in": "8"}, {"d_sae": 1e9},
    {"d_sae": 10**12}, {"jaxablate": {"config": {"dtype": []}}}, {"jaxablate": {"config": {"d_in": None}}},
    {"jaxablate": {"config": {"architecture": ["topk"]}}}, {"jaxablate": {"config": {"k": "x", "d_in": 4}}},
    {"jaxablate": {"config": {"d_sae": 10**30}}}, {"normalize_activations": ["x"]}, {"hook_name": []},
    {"metadata": {"hook_name": 5}}, {"apply_b_dec_to_input": "yes"}, {"jaxablate": {"config": {"unknown": 1}}},
], ids=str)
def test_settings_of_an_autoencoder_of_another_kind(folder, change):
    """TypeError and AttributeError came out of eleven of these."""
    settings = json.loads((folder / "cfg.json").read_text())
    change = {name: {**settings["jaxablate"], **value} if name == "jaxablate" and isinstance(value, dict) else value
              for name, value in change.items()}
    if "jaxablate" not in change:
        del settings["jaxablate"]
    (folder / "cfg.json").write_text(json.dumps(settings | change))
    with pytest.raises((DataError, ConfigError)) as error:
        load(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", JSON, ids=lambda x: ascii(x[:9]))
def test_a_file_in_the_place_of_an_autoencoders_settings(folder, content):
    (folder / "cfg.json").write_bytes(content)
    with pytest.raises(DataError, match=r"cfg\.json"):
        load(folder)


@pytest.mark.parametrize("sparsity", [np.zeros(3), np.full(8, np.nan), np.full(8, 400.0), np.zeros((8, 1))], ids=str)
def test_densities_of_another_kind(folder, sparsity):
    safetensors.numpy.save_file({"sparsity": sparsity}, folder / "sparsity.safetensors")
    with pytest.raises(DataError, match=r"sparsity\.safetensors"):
        load(folder)


def test_damage_to_any_file_of_an_autoencoder_is_one_line_or_harmless(folder):
    """Settings, weights and densities cut, zeroed, flipped, emptied, exchanged. Other weights are never taken for those
    that were saved, which a flipped bit made of them."""
    whole, saved = {path.name: path.read_bytes() for path in folder.iterdir()}, load(folder)
    for case in damage.cases(folder, 0, 200):
        case.apply(folder)
        if damage.refusal(lambda: load(folder), DataError, ConfigError) is None and case.file != "cfg.json":
            found = load(folder)
            jax.tree.map(np.testing.assert_array_equal, found.sae, saved.sae)
            assert found.density is None or np.array_equal(found.density, saved.density), case
        (folder / case.file).write_bytes(whole[case.file])


def test_damage_to_weights_is_one_line_or_harmless(tmp_path):
    rng, arrays = random.Random(0), {"embedding.weight": np.ones((3, 4), np.float32), "x": np.zeros(2)}
    np.savez(tmp_path / "a.npz", **arrays)
    np.savez_compressed(tmp_path / "b.npz", **arrays)
    safetensors.numpy.save_file(arrays, tmp_path / "a.safetensors", metadata={"config_json": '{"num_heads": 2}'})
    for path in sorted(tmp_path.iterdir()):
        whole = path.read_bytes()
        for _ in range(150):
            path.write_bytes(damage.damaged(path.name, whole, rng).content or b"")
            read = files.read_npz if path.suffix == ".npz" else files.read_safetensors
            damage.refusal(lambda read=read, path=path: read(path), FileError)
        path.unlink()

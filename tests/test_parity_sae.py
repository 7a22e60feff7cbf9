"""Autoencoder training step by step against figures of SAELens 5.1.0 (origin: tests/golden/README.md).

The figures were made in float32; run in float64 they show float32's rounding alone.
"""

import functools
import json
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.tolerance import assert_close, assert_same_distribution

from jaxablate.features import AutoencoderConfig, SaeState, SaeTrainConfig, SparseAutoencoder, train_step
from jaxablate.features import sae as ae

pytestmark = [pytest.mark.parity, pytest.mark.parametrize("dtype", ["float32", "float64"])]
WEIGHTS = ("W_enc", "b_enc", "W_dec", "b_dec")
CHUNK = 8
"""Tokens of a chunk: four chunks a batch, so that their sums are tested too."""


class Run(NamedTuple):
    """One file, and the same steps by this code."""

    expected: dict[str, np.ndarray]
    config: AutoencoderConfig
    metrics: dict[str, np.ndarray]
    start: SparseAutoencoder
    state: SaeState
    latents: np.ndarray
    out: np.ndarray


def configs(theirs: dict, dtype: str) -> tuple[AutoencoderConfig, SaeTrainConfig]:
    unit = theirs["normalize_sae_decoder"]
    assert unit != theirs["scale_sparsity_penalty_by_decoder_norm"] and theirs["lp_norm"] == 1
    config = AutoencoderConfig(
        d_in=theirs["d_in"], d_sae=theirs["d_sae"], decoder="unit" if unit else "free", project_gradient=False,
        init="positive" if theirs["decoder_heuristic_init"] else "kaiming", center=theirs["apply_b_dec_to_input"],
        dtype=dtype,
    )
    steps = theirs["total_training_steps"]
    train = SaeTrainConfig(
        steps=steps, batch_tokens=theirs["train_batch_size_tokens"], learning_rate=theirs["lr"],
        warmup=theirs["lr_warm_up_steps"] / steps, decay=theirs["lr_decay_steps"] / steps,
        l1_warmup=theirs["l1_warm_up_steps"] / steps, beta1=theirs["adam_beta1"], beta2=theirs["adam_beta2"],
        chunk=CHUNK,
    )
    return config, train


@functools.cache
def run(path: Path, dtype: str) -> Run:
    with np.load(path) as stored:
        expected = {name: stored[name] for name in stored.files}
    theirs = json.loads(str(expected["config_json"]))
    with jax.enable_x64(dtype == "float64"):
        config, train = configs(theirs, dtype)
        weights = {name: expected[f"init/{name}"].astype(dtype) for name in WEIGHTS}
        sae = SparseAutoencoder(**weights, threshold=np.zeros(config.d_sae, dtype), config=config)
        zeros = jax.tree.map(np.zeros_like, sae)
        first = zeros if train.beta1 > 0 else None
        state = SaeState(sae, first, zeros, np.zeros(config.d_sae, np.int32))
        xs = expected["x_raw"].astype(dtype) * expected["norm_scaling_factor"].astype(dtype)

        def step(state, part):
            return train_step(state, *part, jnp.asarray(theirs["l1_coefficient"], dtype), train)

        @jax.jit
        def steps(state, xs):
            latents = state.sae.encode(xs[0])
            return *jax.lax.scan(step, state, (xs, jnp.arange(len(xs)))), latents, state.sae.decode(latents)

        last, metrics, latents, out = jax.device_get(steps(state, xs))
        return Run(expected, config, metrics._asdict(), sae, last, latents, out)


def skip_if_compact(r: Run) -> None:
    if len(r.expected["x_raw"]) < len(r.expected["loss"]):
        pytest.skip("this compact file holds the first steps only; the full set has what all of them lead to")


def test_losses_of_every_step(sae_file, dtype):
    r = run(sae_file, dtype)
    for theirs, ours in {"loss": "loss", "mse_loss": "mse", "l1_loss": "l1", "grad_norm": "grad_norm"}.items():
        count = len(r.metrics[ours])
        rtol = 1e-6 if dtype == "float32" else 3e-7
        assert_close(r.metrics[ours], r.expected[theirs][:count], rtol=rtol, err_msg=theirs)


def test_active_latents_of_every_step(sae_file, dtype):
    r = run(sae_file, dtype)
    assert_close(r.metrics["l0"], r.expected["l0"][: len(r.metrics["l0"])])


def test_schedules(sae_file, dtype):
    r = run(sae_file, dtype)
    for theirs, ours in {"lr": "learning_rate", "l1_coefficient": "l1_coefficient"}.items():
        expected = r.expected[theirs][: len(r.metrics[ours])]
        assert_close(r.metrics[ours], expected, err_msg=theirs)


def test_explained_variance_as_saelens_computes_it(sae_file, dtype):
    r = run(sae_file, dtype)
    found = r.metrics["explained_variance_saelens"]
    assert_close(found, r.expected["explained_variance"][: len(found)], rtol=1e-6, atol=1e-6)


def test_explained_variance_proper(sae_file, dtype):
    r = run(sae_file, dtype)
    x = r.expected["x_raw"].astype(np.float64) * r.expected["norm_scaling_factor"]
    variance = ((x - x.mean(1, keepdims=True)) ** 2).sum((1, 2))
    count = len(r.metrics["explained_variance"])
    expected = 1 - r.expected["mse_loss"][:count] * x.shape[1] / variance
    assert_close(r.metrics["explained_variance"], expected, rtol=1e-6, atol=1e-6)


def test_first_forward_pass(sae_file, dtype):
    r = run(sae_file, dtype)
    assert_close(r.latents, r.expected["step0_feature_acts"], atol=3e-6)
    assert_close(r.out, r.expected["step0_sae_out"], atol=1e-5)


def test_dead_counters(sae_file, dtype):
    r = run(sae_file, dtype)
    skip_if_compact(r)
    np.testing.assert_array_equal(r.state.since_fired, r.expected["dead_steps_since_fired"])


def test_final_and_folded_weights(sae_file, dtype):
    r = run(sae_file, dtype)
    skip_if_compact(r)
    folded = r.state.sae.fold_scale(float(r.expected["norm_scaling_factor"]))
    for name in WEIGHTS:
        atol = 2e-6 if dtype == "float32" else 3e-7
        assert_close(getattr(r.state.sae, name), r.expected[f"final/{name}"], atol=atol, err_msg=name)
        assert_close(getattr(folded, name), r.expected[f"final_folded/{name}"], atol=1.5 * atol, err_msg=name)


def test_init_has_the_distribution_of_theirs(sae_file, dtype):
    r = run(sae_file, dtype)
    with jax.enable_x64(dtype == "float64"):
        ours = jax.device_get(jax.jit(ae.init, static_argnums=1)(jax.random.key(0), r.config))
    assert np.ptp(ours.b_enc) == np.ptp(ours.b_dec) == 0
    for name in ("W_enc", "W_dec"):
        found, expected = np.asarray(getattr(ours, name)), r.expected[f"init/{name}"]
        assert found.shape == expected.shape and found.dtype == dtype
        assert_same_distribution(found, expected)
    sizes = np.linalg.norm(r.expected["init/W_dec"], axis=1)
    assert_close(np.linalg.norm(ours.W_dec, axis=1), sizes, rtol=1e-6)


def test_scale_gives_the_mean_norm(sae_file, dtype):
    r = run(sae_file, dtype)
    skip_if_compact(r)
    x = r.expected["x_raw"]
    with jax.enable_x64(dtype == "float64"):
        found = jax.jit(ae.activation_scale)(x.reshape(-1, x.shape[-1]).astype(dtype))
    assert_close(found, r.expected["norm_scaling_factor"], rtol=1e-6)

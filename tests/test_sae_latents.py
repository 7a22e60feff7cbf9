"""Latents as units: where they are strongest, and which tokens they promote."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxablate import features, neurons
from jaxablate.errors import ConfigError

S, D, V = 6, 4, 9
TABLE = np.random.default_rng(0).normal(size=(V, D)).astype(np.float32)
SAE = features.SparseAutoencoder(
    *(jnp.asarray(np.random.default_rng(1).normal(size=shape), jnp.float32) for shape in ((D, S), S, (S, D), D)),
    threshold=np.zeros(S, np.float32), config=features.AutoencoderConfig(d_in=D, d_sae=S))


def one_site(params, tokens):
    return params[tokens][:, :, None]


def test_strongest_windows_of_latents():
    """The reader of a model and an autoencoder goes where the reader of neurons does."""
    rows = np.random.default_rng(2).integers(0, V, (5, 7))
    batches = [{"inputs": rows, "mask": np.ones(rows.shape, np.float32)}]
    found = neurons.top_examples(features.LatentReader(one_site), (TABLE, SAE), batches, vocab_size=V, eot_id=-1,
                                 examples=2, context=3)
    latents = np.asarray(SAE.encode(TABLE[rows]))  # [5, 7, S]
    np.testing.assert_allclose(found.activations[0], -np.sort(-latents.max(1), axis=0)[:2].T, rtol=1e-6)
    row, unit = found.windows[0, 3, 0], 3
    last = found.contexts[0, unit, 0, -1]
    assert last == rows[row][latents[row, :, unit].argmax()]
    assert features.LatentReader(one_site) == features.LatentReader(one_site)


def test_several_sites_are_no_units_of_one_autoencoder():
    def two(params, tokens):
        return params[tokens][:, :, None].repeat(2, axis=2)

    with pytest.raises(ConfigError, match=r"\(1, 3, 2, 4\), not \[B, T, 1, D\]; read the one site"):
        jax.eval_shape(features.LatentReader(two), (TABLE, SAE), np.zeros((1, 3), np.int32))


@pytest.mark.parametrize("at_once", [1 << 24, 2 * V])
def test_promoted_tokens(at_once, monkeypatch):
    monkeypatch.setattr("jaxablate.features.latents._AT_ONCE", at_once)
    tokens, values = features.promoted(SAE, TABLE, 3)
    logits = np.asarray(SAE.W_dec, np.float64) @ TABLE.T
    np.testing.assert_array_equal(tokens, np.argsort(-logits, axis=1)[:, :3])
    expected = np.take_along_axis(logits - logits.mean(1, keepdims=True), tokens, axis=1)
    np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-5)
    against, _ = features.promoted(SAE, -TABLE, 1)
    np.testing.assert_array_equal(against[:, 0], logits.argmin(1))


@pytest.mark.parametrize(("table", "k", "message"), [
    (TABLE[:, :3], 1, r"shape \(9, 3\), not \[V, 4\]"), (TABLE, 10, r"k=10 must be in 1\.\.9"), (TABLE, 0, "k=0 must"),
])
def test_what_promotes_nothing_is_said(unchecked_types, table, k, message):
    with pytest.raises(ConfigError, match=message):
        features.promoted(SAE, table, k)

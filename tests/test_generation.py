"""Cached generation against the full model."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.weights import drawn_params

from jaxablate.config import ModelConfig
from jaxablate.errors import ConfigError
from jaxablate.models.decoder import SelfAblatingTransformer
from jaxablate.models.generation import _choose, generate


@functools.cache
def _model(ablation="local", **kwargs):
    shape = {"vocab_size": 31, "context_length": 16, "d_model": 16, "n_layers": 2, "n_heads": 2}
    config = ModelConfig(**shape, ablation=ablation, k_attention=3, k_neurons=5, **kwargs)
    model = SelfAblatingTransformer(config)
    tokens = np.random.default_rng(1).integers(0, 31, (2, 5), np.int32)
    return model, drawn_params(model, tokens), jnp.asarray(tokens)


@functools.partial(jax.jit, static_argnames=("model", "clean"))
def _full(model, params, tokens, clean=False):
    return model.apply({"params": params}, tokens, **({"method": model.clean} if clean else {}))


@pytest.mark.parametrize(("ablation", "stream"), [("none", "clean"), ("local", "ablated"), ("both", "ablated")])
def test_greedy_continuation_is_the_argmax_of_the_full_pass(ablation, stream):
    model, params, prompt = _model(ablation, attention_layers=("global", "local"), window_size=3)
    out = generate(model, params, prompt, steps=6, stream=stream, temperature=0)
    full, out = _full(model, params, out), np.asarray(out)
    logits = np.asarray(full.logits_clean if stream == "clean" else full.logits_ablated)
    np.testing.assert_array_equal(out[:, :5], prompt)
    np.testing.assert_array_equal(out[:, 5:], logits[:, 4:-1].argmax(-1))


def test_sampling_is_seeded_and_top_1_is_greedy():
    model, params, prompt = _model()
    sample = [generate(model, params, prompt, steps=8, key=jax.random.key(s)) for s in (0, 0, 1)]
    np.testing.assert_array_equal(sample[0], sample[1])
    assert np.any(np.asarray(sample[0]) != np.asarray(sample[2]))
    top_1 = generate(model, params, prompt, steps=8, top_k=1, key=jax.random.key(3))
    np.testing.assert_array_equal(top_1, generate(model, params, prompt, steps=8, temperature=0))


def test_top_k_are_k_tokens_also_where_logits_tie():
    """All that tied with the k-th were kept, so that top_k=1 was not greedy; of bfloat16 logits many tie."""
    logits, keys = jnp.array([[1.0, 5.0, 5.0, 5.0], [2.0, 2.0, 2.0, 2.0]]), jax.random.split(jax.random.key(0), 60)
    for k, kept in ((1, [{1}, {0}]), (2, [{1, 2}, {0, 1}]), (4, [{0, 1, 2, 3}] * 2)):
        drawn = jax.jit(jax.vmap(lambda key, k=k: _choose(logits, key, jnp.float32(2.0), False, k)))(keys)
        assert [set(np.unique(row).tolist()) for row in np.asarray(drawn).T] == kept


def test_the_temperature_may_be_traced():
    """It was a TracerBoolConversionError; a traced 0 is greedy as any other."""
    model, params, prompt = _model("none")

    @jax.jit
    def sampled(temperature):
        return generate(model, params, prompt, steps=4, temperature=temperature, key=jax.random.key(2))

    for temperature in (0.7, 0.0):
        expected = generate(model, params, prompt, steps=4, temperature=temperature, key=jax.random.key(2))
        np.testing.assert_array_equal(sampled(temperature), expected)


def test_a_prompt_of_one_token():
    model, params, prompt = _model()
    out = generate(model, params, prompt[:, :1], steps=3, temperature=0)
    logits = np.asarray(_full(model, params, out, clean=True).logits)
    np.testing.assert_array_equal(np.asarray(out)[:, 1:], logits[:, :-1].argmax(-1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 12, "temperature": 0}, "generate at most 11 tokens"),
        ({"steps": 2, "stream": "gated", "temperature": 0}, "clean and ablated"),
        ({"steps": 2}, "PRNG key"),
        ({"steps": 2, "temperature": -1}, "0 is greedy"),
        ({"steps": 2, "top_k": 99, "temperature": 0}, "1..31"),
    ],
)
def test_bad_requests_say_the_fix(unchecked_types, options, message):
    model, params, prompt = _model()
    with pytest.raises(ConfigError, match=message):
        generate(model, params, prompt, **options)

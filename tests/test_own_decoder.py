"""A decoder that is not of this package, as its author would write it: RMS norm, rotary positions, gated MLP.

Everything that takes a Problem takes it. It is compared with the same model written as one plain function.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import toy_circuits

from jaxablate import circuits
from jaxablate.circuits import Graph, PromptPairs, acdc, eap, eap_ig, effects, node_eap
from jaxablate.circuits.patching import patched_final
from jaxablate.errors import ConfigError, DataError

D, N, H, F, L, V = 12, 2, 6, 10, 2, 17


def rms_norm(x, scale):
    return x / jnp.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * scale


def rotate(x, positions):
    """[..., n, T, H] turned by angles that grow with the position [n, T]."""
    angle = positions[..., None] * (10.0 ** -jnp.arange(x.shape[-1] // 2)).astype(x.dtype)
    a, b = jnp.split(x, 2, axis=-1)
    cos, sin = jnp.cos(angle).astype(x.dtype), jnp.sin(angle).astype(x.dtype)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)


@dataclasses.dataclass(frozen=True)
class Rotary(circuits.Decoder):
    """The steps of `circuits.Decoder`."""

    dtype: str = "float32"

    graph = Graph(n_layers=L, n_heads=N)
    sizes = (D, F, H)

    def in_type(self, dtype):
        return dataclasses.replace(self, dtype=dtype)

    def embed(self, params, inputs):
        return params["embed"][inputs.tokens]

    def block(self, params, index):
        return params["blocks"][index]

    def visible(self, valid, index):
        t = valid.shape[-1]
        return jnp.tril(jnp.ones((t, t), bool)) & valid[:, None, :]

    def read(self, weights, x):
        return rms_norm(x, weights["norm_1"])

    def project(self, weights, port, normed, positions, head=None):
        kernel = weights["qkv"][port]
        if head is None:
            one = normed.shape[0] == 1
            x = jnp.einsum("...d,ndh->n...h" if one else "n...d,ndh->n...h", normed[0] if one else normed, kernel)
        else:
            x = normed @ kernel[head]
        return rotate(x, positions) if port < 2 else x

    def attend(self, q, k, v, visible):
        scores = jnp.where(visible, q @ k.swapaxes(-1, -2) / H**0.5, -1e30)
        return jax.nn.softmax(scores, axis=-1) @ v

    def write(self, weights, channels, head=None):
        out = weights["out"]
        return jnp.einsum("n...h,nhd->n...d", channels, out) if head is None else channels @ out[head]

    def bias(self, weights):
        return jnp.zeros(D, self.dtype)

    def combine(self, weights, channels):
        return self.write(weights, channels).sum(0)

    def neurons(self, weights, x):
        x = rms_norm(x, weights["norm_2"])
        return jax.nn.silu(x @ weights["gate"]) * (x @ weights["up"])

    def write_neurons(self, weights, neurons):
        return neurons @ weights["down"]

    def final_norm(self, params, x):
        return rms_norm(x, params["norm"])

    def unembedding(self, params):
        return params["table"]

    def last_gates(self, params, inputs):
        raise ConfigError("this model has no ablated stream")


def plain(params, tokens):
    """[V] logits of the last of the tokens [T]: the model in one go, without padding."""
    t, x = len(tokens), params["embed"][np.array(tokens)]
    for w in params["blocks"]:
        q, k, v = jnp.einsum("td,pndh->pnth", rms_norm(x, w["norm_1"]), w["qkv"])
        scores = jnp.einsum("nqh,nkh->nqk", *(rotate(y, jnp.arange(t)) for y in (q, k))) / H**0.5
        attention = jax.nn.softmax(jnp.where(np.tri(t, dtype=bool), scores, -jnp.inf), axis=-1)
        x = x + jnp.einsum("nqk,nkh,nhd->qd", attention, v, w["out"])
        normed = rms_norm(x, w["norm_2"])
        x = x + (jax.nn.silu(normed @ w["gate"]) * (normed @ w["up"])) @ w["down"]
    return rms_norm(x[-1], params["norm"]) @ params["table"].T


@functools.cache
def weights():
    rng = np.random.default_rng(0)

    def draw(*shape):
        return (rng.standard_normal(shape) / 3).astype(np.float32)

    blocks = [{"norm_1": 1 + draw(D), "norm_2": 1 + draw(D), "qkv": draw(3, N, D, H), "out": draw(N, H, D),
               "gate": draw(D, F), "up": draw(D, F), "down": draw(F, D)} for _ in range(L)]
    return {"embed": 2 * draw(V, D), "blocks": blocks, "norm": 1 + draw(D), "table": draw(V, D)}


def pairs():
    return toy_circuits.pairs(V, seed=1)


@functools.cache
def task(metric="logit_difference"):
    return circuits.problem(Rotary(), weights(), pairs(), metric=metric)


@functools.cache
def metric_of():
    """(patched [E]) -> mean metric, compiled."""
    batch = next(task().batches())[0]
    return jax.jit(lambda patched: batch.target.values(patched_final(
        batch.decoder, batch.params, batch.inputs, patched, batch.replacement)) @ batch.weight)


def test_the_run_by_steps_is_the_model_and_everything_patched_is_the_corrupt_one():
    problem, batch = task(), next(task().batches())[0]
    everything = jnp.ones(problem.graph.n_edges)
    patched = patched_final(batch.decoder, batch.params, batch.inputs, everything, batch.replacement)
    table, p = np.asarray(weights()["table"]), pairs()
    for i, n in enumerate(p.lengths):
        np.testing.assert_allclose(problem.logits[i], plain(weights(), p.clean[i, -n:]), atol=2e-5)
        np.testing.assert_allclose(patched[i] @ table.T, plain(weights(), p.corrupt[i, -n:]), atol=2e-5)


def test_scores_are_finite_differences_and_effects_are_patched_runs():
    metric, n = metric_of(), task().graph.n_edges
    clean, scores, exact = float(metric(jnp.zeros(n))), eap(task()), effects(task())
    some = np.argsort(-abs(scores))[:6]
    for edge in some:
        step = np.zeros(n, np.float32)
        step[edge] = 1
        one, two = (float(metric(step * h)) - float(metric(-step * h)) for h in (0.01, 0.02))
        assert scores[edge] == pytest.approx((8 * one - two) / 0.12, rel=2e-3, abs=1e-3)
        assert exact[edge] == pytest.approx(float(metric(step)) - clean, abs=1e-5)
    np.testing.assert_allclose(np.bincount(task().graph.edge_source, scores), node_eap(task()), atol=1e-5)
    assert np.isfinite(eap_ig(task(), steps=2)).all()


@pytest.mark.parametrize("tau", [0.02, 0.002])
def test_the_search_makes_the_decisions_of_the_sequential_definition(tau):
    batch, graph = next(task("kl").batches())[0], task().graph
    divergence = jax.jit(lambda patched: batch.target.values(patched_final(
        batch.decoder, batch.params, batch.inputs, patched, batch.replacement)) @ batch.weight)
    patched, now = np.zeros(graph.n_edges, np.float32), 0.0
    for edge in range(graph.n_edges):
        patched[edge] = 1
        after = float(divergence(patched))
        if after - now < tau:
            now = after
        else:
            patched[edge] = 0
    run = acdc(task(), (tau,)).runs[tau]
    assert run.min_margin > 1e-4 and 0 < run.n_kept < graph.n_edges
    np.testing.assert_array_equal(run.kept, patched == 0)


def missing(self):
    raise AttributeError


class Forgetful(Rotary):
    combine = property(missing)


class Derived(circuits.Decoder):
    """It derives from the protocol and writes nothing."""

    graph, sizes = Rotary.graph, Rotary.sizes


class Unhashable(Rotary):
    __hash__ = None


class Contradicting(Rotary):
    def combine(self, weights, channels):
        return 2 * super().combine(weights, channels)


class OneHeadOff(Rotary):
    def project(self, weights, port, normed, positions, head=None):
        return super().project(weights, port, normed, positions, None if head is None else (head + 1) % N)


class Narrow(Rotary):
    def final_norm(self, params, x):
        return super().final_norm(params, x)[..., :-1]


class Failing(Rotary):
    def attend(self, q, k, v, visible):
        raise KeyError("rope")


@pytest.mark.parametrize(("decoder", "message"), [
    (Forgetful(), "Forgetful lacks combine of the Decoder protocol"),
    (Derived(), "Derived lacks in_type, embed, block, visible"),
    (Contradicting(), "combine and the sum of write and bias of block 0 differ"),
    (OneHeadOff(), "of all heads of block 0 and of each head differ"),
    (Narrow(), "final_norm gives shape (3, 11), not (3, 12)"),
    (Failing(), "Failing fails on 3 prompts of 5 positions (KeyError: 'rope')"),
], ids=lambda x: "" if isinstance(x, str) else type(x).__name__)
def test_a_decoder_that_cannot_be_right_is_refused_by_the_step(decoder, message):
    with pytest.raises(ConfigError) as error:
        circuits.problem(decoder, weights(), pairs())
    assert message in str(error.value)


def test_what_does_not_fit_the_decoder_is_refused():
    for decoder, options, message in ((Unhashable(), {}, "cannot be hashed"),
                                      (Rotary(), {"stream": "ablated"}, "no ablated stream")):
        with pytest.raises(ConfigError, match=message):
            circuits.problem(decoder, weights(), pairs(), **options)
    with pytest.raises(DataError, match="token 99 is beyond the model's 17 tokens"):
        circuits.problem(Rotary(), weights(), PromptPairs.from_ids([[99]], [[1]], [[1]], [[2]], name="x"))
    with pytest.raises(ConfigError, match="ModelConfig, a Decoder or an opened run, not function"):
        circuits.problem(plain, weights(), pairs())

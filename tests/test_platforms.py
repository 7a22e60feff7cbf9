"""The code that a platform gets is chosen by what it is compiled for, not by the machine that compiles it."""

import functools
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.platforms import lowered, take_accelerator_code

from jaxablate import features, gating, regularizers
from jaxablate.circuits import PromptPairs, problem
from jaxablate.circuits.patching import patched_final, source_run
from jaxablate.config import ClassificationConfig, ClassifierConfig, Config, MeshConfig, ModelConfig, TrainConfig
from jaxablate.features import AutoencoderConfig
from jaxablate.features import metrics as sae_metrics
from jaxablate.features import step as sae_step
from jaxablate.features.sae import init, over_all
from jaxablate.models.decoder import SelfAblatingTransformer
from jaxablate.models.generation import generate
from jaxablate.ops import attention, cross_entropy, order_statistics
from jaxablate.ops.capacity import alignment, capacity
from jaxablate.ops.normalization import layer_norm
from jaxablate.sharding import make_mesh
from jaxablate.training.classification import classification_learner
from jaxablate.training.language import language_learner
from jaxablate.training.program import compile_program

PLATFORMS = ("cpu", "cuda", "tpu")
MODEL = SelfAblatingTransformer(ModelConfig(vocab_size=30, context_length=16, d_model=8, n_layers=2, n_heads=2,
                                            ablation="both", k_attention=3, k_neurons=17, window_size=4))
TOKENS = jax.ShapeDtypeStruct((64, 16), jnp.int32)


def of(*shape: int, dtype: type = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def total(function):
    """The sum of all that a function returns, for its gradient."""
    return lambda *arrays: sum(jnp.sum(x) for x in jax.tree.leaves(function(*arrays)))


def params_of(model, *arrays):
    return jax.eval_shape(model.init, jax.random.key(0), *arrays)["params"]


def autoencoder(architecture: str):
    config = AutoencoderConfig(d_in=8, d_sae=16, k=4, architecture=architecture)
    return jax.eval_shape(lambda: init(jax.random.key(0), config))


ROWS, HEADS, MASK = of(4, 40), of(2, 9, 2, 4), of(2, 5)
HIDDEN, EMBEDDING = of(64, 16, 8), of(30, 8)
FUNCTIONS = {
    **{f"{gate.__name__} {k}": lambda gate=gate, k=k: (jax.value_and_grad(total(functools.partial(gate, k=k))), ROWS)
       for gate in (gating.k_wta, gating.soft_top_k, gating.hard_top_k) for k in (3, 17)},
    "softmax surrogate": lambda: (functools.partial(gating.soft_top_k, k=3, surrogate="softmax"), ROWS),
    "thresholds": lambda: (functools.partial(order_statistics.thresholds, k=3), ROWS),
    "causal_attention": lambda: (jax.grad(total(attention.causal_attention), argnums=(0, 1, 2)), *[HEADS] * 3),
    "two_stream_attention": lambda: (jax.grad(total(functools.partial(attention.two_stream_attention, window=3)),
                                              argnums=tuple(range(5))), *[HEADS] * 5),
    "attention_weights": lambda: (attention.attention_weights, HEADS, HEADS),
    "masked_attention": lambda: (attention.masked_attention, of(2, 5, 4), of(2, 5, 4), of(2, 5, 4),
                                 jax.ShapeDtypeStruct((2, 5, 5), bool)),
    "visible_keys": lambda: (attention.visible_keys, jax.ShapeDtypeStruct((2, 5), bool)),
    "linear_cross_entropy": lambda: (jax.grad(lambda h, e, t: cross_entropy.linear_cross_entropy((h,), e, t)[0],
                                              argnums=(0, 1)), HIDDEN, EMBEDDING, TOKENS),
    "per_token_cross_entropy": lambda: (cross_entropy.per_token_cross_entropy, HIDDEN, EMBEDDING, TOKENS),
    "layer_norm": lambda: (jax.grad(total(functools.partial(layer_norm, eps=1e-5))), of(3, 8), of(8), of(8)),
    "capacity": lambda: (capacity, of(2, 5, 8)),
    "alignment": lambda: (alignment, of(2, 5, 8)),
    "polysemanticity": lambda: (jax.grad(regularizers.polysemanticity), of(2, 5, 8), MASK),
    "interference": lambda: (jax.grad(regularizers.interference), of(2, 2, 5, 5), MASK),
    "information": lambda: (jax.grad(regularizers.information), of(2, 5, 2), MASK),
    "reconstruction": lambda: (jax.grad(regularizers.reconstruction), of(2, 5, 8), of(2, 5, 8)),
    "generate": lambda: (functools.partial(generate, MODEL, steps=3, stream="ablated", temperature=0),
                         params_of(MODEL, TOKENS), jax.ShapeDtypeStruct((2, 4), jnp.int32)),
    "reader": lambda: (features.reader(MODEL, ["clean.layer_1.mlp_out"]), params_of(MODEL, TOKENS), TOKENS),
    **{f"{name} autoencoder": lambda name=name: (jax.value_and_grad(total(features.SparseAutoencoder.__call__)),
                                                 autoencoder(name), of(6, 8))
       for name in ("standard", "topk", "batchtopk", "jumprelu")},
    "autoencoder's gradient": lambda: (features.gradient, autoencoder("topk"), of(64, 8)),
}
"""Name -> (a function of arrays, shapes to lower it for)."""


@pytest.mark.parametrize("name", FUNCTIONS)
def test_public_functions_lower_for_every_platform_from_a_cpu_host(name):
    function, *arrays = FUNCTIONS[name]()
    assert all("func.func public @main" in lowered(function, *arrays, platform=platform) for platform in PLATFORMS)


CHOICES = {
    # A branch on values on CPU, inside of the two that lowering leaves around a platform's code.
    "thresholds": ("thresholds", r"(?s)(stablehlo\.case.*){3}", None),
    # What the forward pass kept is read on CPU, and made again elsewhere.
    "attention": ("causal_attention", None, r"stablehlo\.optimization_barrier"),
    # 512 tokens at a time on CPU, all 1,024 elsewhere.
    "cross-entropy": ("linear_cross_entropy", r"tensor<64x8x30xf32>", r"tensor<64x16x30xf32>"),
    "losses": ("per_token_cross_entropy", r"tensor<64x8x30xf32>", r"tensor<64x16x30xf32>"),
    "reader": ("reader", r"tensor<32x16x8xf32>", None),
    # 16 tokens at a time on CPU, with the number of latents of the test below.
    "autoencoder": ("autoencoder's gradient", r"tensor<16x16xf32>", r"tensor<64x16xf32>"),
}


@pytest.mark.parametrize("choice", CHOICES)
def test_what_depends_on_the_platform_is_the_targets(monkeypatch, choice):
    monkeypatch.setattr(sae_step, "_CHUNK_LATENTS", 256)
    name, on_cpu, elsewhere = CHOICES[choice]
    function, *arrays = FUNCTIONS[name]()
    text = {platform: lowered(function, *arrays, platform=platform) for platform in PLATFORMS}
    for platform in PLATFORMS:
        assert on_cpu is None or bool(re.search(on_cpu, text[platform])) == (platform == "cpu"), platform
        assert elsewhere is None or bool(re.search(elsewhere, text[platform])) == (platform != "cpu"), platform


def test_several_autoencoders_are_taken_one_after_another_on_cpu_only():
    def squares(x):
        return over_all(lambda row: row * row)(x)

    loops = {platform: "stablehlo.while" in lowered(squares, of(3, 8), platform=platform) for platform in PLATFORMS}
    assert loops == {"cpu": True, "cuda": False, "tpu": False}


def test_logits_of_edits_are_in_larger_chunks_on_accelerators(monkeypatch):
    monkeypatch.setattr(sae_metrics, "_CPU_CHUNK", 4)
    losses = functools.partial(sae_metrics._edit_losses, ModelConfig())
    text = {platform: lowered(losses, EMBEDDING, of(2, 8, 8), of(3, 2, 8, 8), jax.ShapeDtypeStruct((2, 8), jnp.int32),
                              platform=platform) for platform in PLATFORMS}
    assert {platform: "tensor<4x30xf32>" in x for platform, x in text.items()} == {"cpu": True, "cuda": False,
                                                                                  "tpu": False}


def test_the_code_for_accelerators_computes_the_same(monkeypatch):
    """It is run here, in place of CPU's: what the choices change are orders of sums."""
    rng = np.random.default_rng(0)
    monkeypatch.setattr(sae_step, "_CHUNK_LATENTS", 256)

    def results():
        out = {}
        for name in sorted({name for name, *_ in CHOICES.values()}):
            function, *shapes = FUNCTIONS[name]()
            arrays = jax.tree.map(lambda s: rng.standard_normal(s.shape, np.float32) if s.dtype == jnp.float32 else
                                  rng.integers(0, 30, s.shape, np.int32), shapes)
            out[name] = jax.jit(lambda *a, function=function: function(*a))(*arrays)
        return out

    here, rng = results(), np.random.default_rng(0)
    take_accelerator_code(monkeypatch)
    jax.clear_caches()  # what was traced for CPU is not to be used again
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), here, results())


def test_no_code_asks_what_machine_it_is_on_while_it_is_traced():
    package = pathlib.Path(gating.__file__).parent
    assert not [path.name for path in package.rglob("*.py") if "default_backend" in path.read_text()]


@pytest.mark.parametrize("kind", ["language", "classification"])
def test_training_steps_lower_for_every_platform(kind):
    mesh = make_mesh(MeshConfig(data=1))
    if kind == "language":
        config = Config(model=MODEL.config, train=TrainConfig(batch_size=64, sequence_length=16))
        learner = language_learner(config, mesh)
        batch = {"inputs": TOKENS, "targets": TOKENS}
    else:
        model = ClassifierConfig(vocab_size=30, max_length=16, d_model=8, n_heads=2, vmask_width=4)
        learner = classification_learner(ClassificationConfig(model=model), mesh)
        batch = {"tokens": TOKENS, "mask": of(64, 16), "weight": of(64), "labels": of(64, dtype=jnp.int32)}
    program = compile_program(learner, optax.adamw(1e-3), optax.constant_schedule(1e-3), mesh)
    traced = program.step.trace(program.abstract, batch)
    assert all("@main" in traced.lower(lowering_platforms=(platform,)).as_text() for platform in PLATFORMS)


def test_patched_runs_of_circuits_lower_for_every_platform():
    params = jax.tree.map(lambda s: jnp.zeros(s.shape), params_of(MODEL, TOKENS))
    task = problem(MODEL.config, params, PromptPairs.from_ids([[1, 2]], [[1, 3]], [[1]], [[2]], name="toy"))
    mask = of(task.graph.n_edges)
    for platform in PLATFORMS:
        arrays = task.params, task.inputs
        replacement = jax.eval_shape(functools.partial(source_run, task.decoder), *arrays).sources
        gradient = jax.grad(total(functools.partial(patched_final, task.decoder)), argnums=2)
        assert "@main" in lowered(gradient, *arrays, mask, replacement, platform=platform)

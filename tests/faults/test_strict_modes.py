"""JAX's strict modes, parameters that are NumPy arrays, and lists: nothing relies on silent promotion or conversion."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxablate import gating
from jaxablate.config import (
    ClassificationObjective,
    ClassifierConfig,
    MeshConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
)
from jaxablate.models.classifier import SafrClassifier
from jaxablate.models.decoder import SelfAblatingTransformer
from jaxablate.models.generation import generate
from jaxablate.objectives import classification_loss, language_model_loss
from jaxablate.ops.attention import attention_weights, causal_attention, masked_attention, visible_keys
from jaxablate.ops.capacity import alignment, capacity
from jaxablate.ops.cross_entropy import linear_cross_entropy, per_token_cross_entropy
from jaxablate.ops.normalization import layer_norm
from jaxablate.regularizers import information, interference, polysemanticity, reconstruction
from jaxablate.sharding import make_mesh
from jaxablate.training.optimizer import learning_rate_schedule, make_optimizer
from jaxablate.training.program import Learner, compile_program

TOKENS, WHOLE = np.arange(12, dtype=np.int32).reshape(3, 4) % 11, np.ones((3, 4), np.float32)
STREAM = np.linspace(-1, 1, 48, dtype=np.float32).reshape(3, 4, 4)
HEADS = STREAM.reshape(3, 4, 2, 2)
TABLE = np.linspace(-1, 1, 44, dtype=np.float32).reshape(11, 4)


@functools.cache
def decoder(compute_dtype="float32"):
    model = SelfAblatingTransformer(ModelConfig(
        vocab_size=11, context_length=8, d_model=8, n_layers=2, n_heads=2, ablation="both", k_attention=2, k_neurons=3,
        attention_layers=("global", "local"), window_size=2, compute_dtype=compute_dtype))
    return model, jax.eval_shape(model.init, jax.random.key(0), jnp.asarray(TOKENS))["params"]


@functools.cache
def classifier(padding="masked"):
    model = SafrClassifier(ClassifierConfig(vocab_size=11, max_length=8, d_model=8, n_heads=2, vmask_width=4,
                                            ablation="local", k_attention=2, k_neurons=3, padding=padding))
    return model, jax.eval_shape(model.init, jax.random.key(0), jnp.asarray(TOKENS), jnp.asarray(WHOLE))["params"]


LANGUAGE = ObjectiveConfig(reconstruction=0.1, importance=0.1, interaction=0.1)
CLASSES = ClassificationObjective(information=0.1)
BATCH = {"tokens": TOKENS, "mask": WHOLE, "labels": np.zeros(3, np.int32), "weight": np.ones(3, np.float32)}


def _language_gradient(compute_dtype):
    model, params = decoder(compute_dtype)
    return jax.grad(lambda p, x, m: language_model_loss(model, p, x, x, LANGUAGE, m), has_aux=True), (
        params, TOKENS, WHOLE)


def _classes_gradient(padding):
    model, params = classifier(padding)
    keys = {"vmask": jax.random.key(0), "dropout": jax.random.key(1)}
    return jax.grad(lambda p, b: classification_loss(model, p, b, CLASSES, train=True, rngs=keys), has_aux=True), (
        params, BATCH)


def _step(model, params, loss, batch, **how):
    settings = OptimizerConfig(learning_rate=1e-2, warmup_steps=2)
    learner = Learner(init_params=lambda key: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), params),
                      train_loss=lambda *arguments: loss(*arguments[:3]), eval_loss=loss, parts=lambda batch: 3, **how)
    program = compile_program(learner, make_optimizer(settings, 10), learning_rate_schedule(settings, 10),
                              make_mesh(MeshConfig(data=1)))
    return program.step, (program.abstract, batch)


def _language_step():
    model, params = decoder()
    return _step(model, params, lambda p, b, key: language_model_loss(model, p, b["x"], b["x"], LANGUAGE),
                 {"x": TOKENS}, counted="x")


def _classes_step():
    model, params = classifier()
    return _step(model, params, lambda p, b, key: classification_loss(
        model, p, b, CLASSES, train=True, rngs={"vmask": key, "dropout": key}), BATCH, counted="weight",
        weighed="weight")


def _generation():
    model, params = decoder()
    return lambda p: generate(model, p, TOKENS, steps=2, stream="ablated", key=jax.random.key(0), top_k=3), (params,)


def _sum_of(function):
    return jax.value_and_grad(lambda *a: jnp.sum(function(*a)))


CASES = {
    "language model": lambda: _language_gradient("float32"), "bfloat16": lambda: _language_gradient("bfloat16"),
    "classifier": lambda: _classes_gradient("masked"), "as released": lambda: _classes_gradient("paper"),
    "step of a language model": _language_step, "step of a classifier": _classes_step, "generation": _generation,
    "cross-entropy": lambda: (_sum_of(lambda h, e, m: linear_cross_entropy((h,), e, TOKENS, m)[0]),
                              (STREAM, TABLE, WHOLE)),
    "by token": lambda: (per_token_cross_entropy, (STREAM, TABLE, TOKENS)),
    "attention": lambda: (_sum_of(causal_attention), (HEADS, HEADS, HEADS)),
    "weights": lambda: (functools.partial(attention_weights, window=2), (HEADS, HEADS, HEADS)),
    "masked attention": lambda: (lambda q, valid: masked_attention(q, q, q, visible_keys(valid), scale=0.5),
                                 (STREAM, WHOLE > 0)),
    "norm": lambda: (_sum_of(layer_norm), (STREAM, STREAM[0, 0], STREAM[0, 0])),
    "gates": lambda: (_sum_of(lambda x: gating.k_wta(x, 2) + gating.soft_top_k(x, 3, surrogate="softmax")), (STREAM,)),
    "many winners": lambda: (lambda x: gating.hard_top_k(x, 17), (np.tile(STREAM, 8),)),
    "terms": lambda: (_sum_of(lambda x, a: polysemanticity(x, WHOLE > 0) + information(x[..., :2], np.int32(WHOLE))
                              + interference(a, WHOLE) + reconstruction(x, x)), (STREAM, STREAM[:, None])),
    "space": lambda: (_sum_of(lambda x: capacity(x, WHOLE).sum() + alignment(x)), (STREAM,)),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_nothing_is_promoted_silently(case):
    """JAX_NUMPY_RANK_PROMOTION=raise or JAX_NUMPY_DTYPE_PROMOTION=strict could not be used for training."""
    function, arguments = case()
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        jax.eval_shape(function, *arguments)


def test_parameters_may_be_numpy_arrays():
    """They were indexed by a traced array, which NumPy cannot do."""
    model, shapes = decoder()
    params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    jax.eval_shape(lambda: language_model_loss(model, params, TOKENS, TOKENS, LANGUAGE))
    model, shapes = classifier()
    params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    jax.eval_shape(lambda: classification_loss(model, params, BATCH, CLASSES))
    loss = jax.jit(lambda: (*linear_cross_entropy((STREAM,), TABLE, TOKENS), per_token_cross_entropy(
        STREAM, TABLE, TOKENS), causal_attention(HEADS, HEADS, HEADS), layer_norm(STREAM, STREAM[0, 0], STREAM[0, 0])))
    assert all(jnp.isfinite(x).all() for x in loss())


def test_lists_are_arrays(unchecked_types):
    given, lists = (STREAM, TABLE, TOKENS, WHOLE), [x.tolist() for x in (STREAM, TABLE, TOKENS, WHOLE)]

    def all_of(x, table, tokens, mask):
        return (linear_cross_entropy((x,), table, tokens, mask)[0], polysemanticity(x, mask), gating.k_wta(x, 2),
                reconstruction(x, x), capacity(x, mask))

    for got, expected in zip(*(jax.jit(lambda x=x: all_of(*x))() for x in (lists, given)), strict=True):
        np.testing.assert_array_equal(got, expected)

"""A model with its layers scanned, and both its streams in the same products, is the model that is taken apart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.weights import drawn_params

from jaxablate.config import MeshConfig, ModelConfig, ObjectiveConfig
from jaxablate.errors import ConfigError
from jaxablate.models.decoder import Gates, SelfAblatingTransformer
from jaxablate.models.stacking import layer_groups, stack_layers, unstack_layers
from jaxablate.objectives import language_model_loss
from jaxablate.sharding import BATCH_AXES, batch_sharding, by_device, gather, make_mesh, param_shardings

ALIKE = (((0, 1, 2, 3),),)
ALTERNATING = (((0, 2), (1, 3)),)
RUNS = (((0, 1),), ((2, 3),))
RNG = np.random.default_rng(0)
TOKENS, TARGETS = RNG.integers(0, 30, (2, 2, 9))


def model(**changes) -> SelfAblatingTransformer:
    shape = {"vocab_size": 30, "context_length": 16, "d_model": 8, "n_layers": 4, "n_heads": 2, "k_attention": 3,
             "k_neurons": 5, "param_dtype": "float64", "compute_dtype": "float64"}
    return SelfAblatingTransformer(ModelConfig(**shape | changes))


@pytest.mark.parametrize(("kinds", "groups"), [
    ("aaaa", ALIKE), ("abab", ALTERNATING), ("aabb", RUNS), ("a", (((0,),),)),
    ("abcabc", (((0, 3), (1, 4), (2, 5)),)), ("aba", (((0,),), ((1,),), ((2,),))),
])
def test_layers_are_grouped_by_the_shortest_period_else_by_runs(kinds, groups):
    assert layer_groups(list(kinds)) == groups


@pytest.mark.parametrize("groups", [ALIKE, ALTERNATING, RUNS])
def test_stacking_and_unstacking_are_inverse(groups):
    params = drawn_params(model(param_dtype="float32", compute_dtype="float32"), TOKENS)
    back = unstack_layers(stack_layers(params, groups), groups)
    jax.tree.map(np.testing.assert_array_equal, params, back)


TWO, RUNS_OF_THREE = (((0, 1),),), (((0, 1),), ((2,),))
CASES = {
    "local": ({"n_layers": 2, "mlp_top_k": 20}, {"groups": TWO}, {"gate_information": 0.1}),
    "written out": ({"n_layers": 2}, {"groups": TWO, "unroll": True}, {}),
    "both, recomputed": ({"n_layers": 2, "ablation": "both", "remat": "blocks"}, {"groups": TWO}, {}),
    "none": ({"n_layers": 2, "ablation": "none"}, {"groups": TWO}, {}),
    "windows": ({"attention_layers": ("global", "local"), "window_size": 3}, {"groups": ALTERNATING}, {}),
    "winners and regularisers": ({"n_layers": 3, "k_neurons": (5, 5, 9)}, {"groups": RUNS_OF_THREE},
                                 {"importance": 0.3, "interaction": 0.2, "regularized_layers": (2,)}),
}


@pytest.mark.parametrize("case", CASES)
def test_scanned_layers_give_the_loss_and_gradient_of_those_one_by_one(case):
    changes, layout, objective = CASES[case]
    with jax.enable_x64(True):
        plain = model(**changes)
        scanned, groups = SelfAblatingTransformer(plain.config, **layout), layout["groups"]
        loss = ObjectiveConfig(reconstruction=0.2, **objective)

        @jax.jit
        def both(params):
            def of(net):
                return jax.value_and_grad(lambda p: language_model_loss(net, p, TOKENS, TARGETS, loss), has_aux=True)

            (_, metrics), grads = of(plain)(params)
            (_, other), stacked = of(scanned)(stack_layers(params, groups))
            return (metrics, grads), (other, unstack_layers(stacked, groups))

        expected, got = both(jax.tree.map(jnp.asarray, drawn_params(plain, TOKENS)))
    assert jax.tree.structure(expected) == jax.tree.structure(got)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12), expected, got)


@pytest.mark.parametrize("ablation", ["local", "none"])
def test_streams_together_are_the_streams_one_after_another(ablation):
    """All activations, with gates that are given to a model without any, and with its own."""
    with jax.enable_x64(True):
        net = model(ablation=ablation)
        params = drawn_params(net, TOKENS)
        given = Gates(*(RNG.integers(0, 2, (2, 9, 4, units)).astype(float) for units in (8, 32)))
        gates = None if ablation == "local" else given
        scanned = SelfAblatingTransformer(net.config, groups=ALTERNATING)
        apart = jax.jit(lambda p: net.apply({"params": p}, TOKENS, gates=gates))(params)
        stacked = stack_layers(params, ALTERNATING)
        together = jax.jit(lambda p: scanned.apply({"params": p}, TOKENS, gates=gates))(stacked)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12), together, apart)


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_layers_gathered_one_at_a_time_on_a_mesh_are_those_of_one_device(dtype):
    """Parameters in parts on fsdp, heads, neurons and scores on tensor; in bfloat16, where sums in another order would
    choose other winners, without gates, and without tensor: the CPU compiler aborts where a sum over some axes of a
    mesh is in bfloat16 and others are left to the partitioner."""
    tokens, targets = RNG.integers(0, 30, (2, 4, 10))
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2 if dtype == "float64" else 1))
    param_dtype = "float64" if dtype == "float64" else "float32"
    with jax.enable_x64(dtype == "float64"):
        ablation = "local" if dtype == "float64" else "none"
        objective = ObjectiveConfig(gate_information=0.0 if ablation == "none" else 0.1)
        plain = model(n_layers=2, ablation=ablation, param_dtype=param_dtype, compute_dtype=dtype)
        scanned = SelfAblatingTransformer(plain.config, groups=TWO, mesh=mesh)
        params = jax.tree.map(jnp.asarray, drawn_params(plain, tokens))
        stacked = stack_layers(params, TWO)

        def gradient(net, split):
            def loss(params, rows):
                if net is plain:
                    return language_model_loss(net, params, *rows, objective)
                others = {name: value for name, value in params.items() if not name.startswith("layers_")}
                return language_model_loss(net, params | gather(mesh, others), *rows, objective,
                                           batch_axes=BATCH_AXES)

            loss = loss if net is plain else by_device(mesh, loss)
            options = {} if split is None else {"in_shardings": (split, batch_sharding(mesh))}
            return jax.jit(jax.value_and_grad(loss, has_aux=True), **options)

        (_, expected), grads = gradient(plain, None)(params, (tokens, targets))
        (_, got), others = gradient(scanned, param_shardings(mesh, stacked))(stacked, (tokens, targets))
    tolerance = 1e-10 if dtype == "float64" else 0.02
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance),
                 (expected, grads), (got, unstack_layers(others, TWO)))


def test_an_edit_of_scanned_layers_is_refused():
    net = SelfAblatingTransformer(model(param_dtype="float32", compute_dtype="float32").config, groups=ALIKE)
    with pytest.raises(ConfigError, match="by layer"):
        net.apply({"params": {}}, TOKENS, edit=lambda site, x: x)

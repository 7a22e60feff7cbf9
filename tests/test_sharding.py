"""Partition rules, meshes, and the same numbers on one, two and eight devices."""

import dataclasses
import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.weights import drawn_state
from jax.sharding import PartitionSpec as P

from jaxablate.config import Config, MeshConfig, ModelConfig, ObjectiveConfig, OptimizerConfig, TrainConfig
from jaxablate.errors import ConfigError
from jaxablate.models.decoder import SelfAblatingTransformer
from jaxablate.sharding import batch_sharding, check_batch, make_mesh, param_shardings, partition_spec
from jaxablate.training.language import language_learner
from jaxablate.training.loop import make_program
from jaxablate.training.optimizer import learning_rate_schedule, make_optimizer
from jaxablate.training.program import compile_program

COMPILATIONS = []
"""Durations of the backend's compilations (or reads of the compilation cache) so far."""
jax.monitoring.register_event_duration_secs_listener(
    lambda event, seconds, **_: COMPILATIONS.append(seconds) if event.endswith("backend_compile_duration") else None
)

MESHES = {
    "tensor 2": MeshConfig(data=1, tensor=2),
    "data 8": MeshConfig(data=8),
    "data 2 fsdp 2 tensor 2": MeshConfig(data=2, fsdp=2, tensor=2),
}
"""Each axis split and not, on two and eight devices; ``fsdp`` alone is the gated model's."""


def tiny(ablation, **changes):
    shape = {"vocab_size": 64, "context_length": 8, "d_model": 16, "n_layers": 1, "n_heads": 2}
    return ModelConfig(**shape | changes, ablation=ablation, k_attention=3, k_neurons=4)


GATED = tiny("both", param_dtype="float64", compute_dtype="float64")


@functools.cache
def program(config, mesh_config, accumulation_steps=1):
    """The compiled functions of a tiny model on a mesh."""
    mesh, settings = make_mesh(mesh_config), OptimizerConfig(learning_rate=1e-2)
    whole = Config(model=config, objective=ObjectiveConfig(reconstruction=0.1), optimizer=settings,
                   mesh=dataclasses.replace(mesh_config, vocab_multiple=1),
                   train=TrainConfig(batch_size=16, sequence_length=8, accumulation_steps=accumulation_steps))
    return compile_program(language_learner(whole, mesh), make_optimizer(settings, 10),
                           learning_rate_schedule(settings, 10), mesh)


@functools.cache
def run(config, mesh_config, accumulation_steps=1):
    """Metrics of the first steps, and the final parameters on the host; the step must compile once only."""
    compiled_for_mesh = program(config, mesh_config, accumulation_steps)
    state, mesh = drawn_state(compiled_for_mesh), compiled_for_mesh.mesh
    rng, metrics, compiled = np.random.default_rng(0), [], []
    for _ in range(4):
        tokens = rng.integers(0, config.vocab_size, (16, 9), dtype=np.int32)
        batch = jax.device_put({"inputs": tokens[:, :-1], "targets": tokens[:, 1:]}, batch_sharding(mesh))
        state, values = compiled_for_mesh.step(state, batch)
        metrics.append({name: float(value) for name, value in values.items()})
        compiled.append(len(COMPILATIONS))
    assert compiled[-1] == compiled[0], "a later step compiled anew"
    return metrics, jax.device_get(state.params)


def assert_same(got, expected):
    (losses, params), (other_losses, others) = got, expected
    for one, other in zip(losses, other_losses, strict=True):
        assert one == pytest.approx(other, abs=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), params, others)


@pytest.mark.parametrize("mesh", MESHES.values(), ids=MESHES)
def test_baseline_trains_the_same_on_every_mesh(mesh):
    assert_same(run(tiny("none"), mesh), run(tiny("none"), MeshConfig(data=1)))


@pytest.mark.parametrize("mesh", [MeshConfig(data=1, fsdp=8), MESHES["data 2 fsdp 2 tensor 2"]], ids=["8", "2x2x2"])
def test_gated_model_trains_the_same_in_float64(mesh):
    # float32 losses may part: where two scores nearly tie, the last bit of a sum decides which one wins.
    with jax.enable_x64(True):
        (expected, _), (losses, _) = run(GATED, MeshConfig(data=1)), run(GATED, mesh)
    for got, want in zip(losses, expected, strict=True):
        assert got == pytest.approx(want, abs=1e-7, rel=1e-6)


def test_accumulated_gradient_is_the_full_batch_gradient():
    got = run(tiny("none"), MESHES["data 2 fsdp 2 tensor 2"], accumulation_steps=4)
    assert_same(got, run(tiny("none"), MeshConfig(data=1)))


def test_bytes_per_device_fall_as_fsdp_grows():
    held = []
    for size in (1, 2, 4, 8):
        abstract = program(tiny("local"), MeshConfig(data=1, fsdp=size)).abstract
        leaves = jax.tree.leaves((abstract.params, abstract.opt_state))
        held.append(sum(np.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves))
    assert all(b < 0.6 * a for a, b in itertools.pairwise(held)), held


def test_fsdp_gathers_parameters_and_never_activations():
    with jax.enable_x64(True):
        fsdp = program(GATED, MeshConfig(data=1, fsdp=8))
        tokens = jax.device_put(np.zeros((16, 8), np.int32), batch_sharding(fsdp.mesh))
        text = fsdp.step.lower(fsdp.abstract, {"inputs": tokens, "targets": tokens}).compile().as_text()
    gathered = re.findall(r"= \w+\[([\d,]+)\]\S* all-gather\(", text)
    shapes = [tuple(map(int, dims.split(","))) for dims in gathered]
    assert (16, 64) in shapes, "the embedding is not gathered: is it sharded at all?"
    # The cross-entropy's scatter gathers its indices: at most 4 numbers a token, where an activation has 16 or more.
    per_token = [np.prod(shape) / (16 * 8) for shape in shapes if shape[:2] == (16, 8)]
    assert max(per_token, default=0) <= 4, shapes


def test_a_vocabulary_that_no_axis_divides_is_padded_while_it_trains():
    """Nobody but the step sees it, and each device has its part of the vocabulary and of the logits alone."""
    ends = []
    for mesh in (MeshConfig(data=1, vocab_multiple=1), MeshConfig(data=1, tensor=2, vocab_multiple=9)):
        config = Config(model=tiny("none", vocab_size=61), mesh=mesh,
                        train=TrainConfig(batch_size=16, sequence_length=8, accumulation_steps=1))
        padded = make_program(config, make_mesh(mesh), 10)
        state, rng, losses = drawn_state(padded), np.random.default_rng(0), []
        rows = jax.ShapeDtypeStruct((16, 8), jnp.int32)
        step = padded.step.lower(padded.abstract, {"inputs": rows, "targets": rows}).compile()
        for _ in range(4):
            tokens = rng.integers(0, 61, (16, 9), dtype=np.int32)
            batch = jax.device_put({"inputs": tokens[:, :-1], "targets": tokens[:, 1:]}, batch_sharding(padded.mesh))
            state, values = step(state, batch)
            losses.append({name: float(value) for name, value in values.items()})
        ends.append((losses, jax.device_get(padded.unpacked(state).params)))
    assert_same(*ends)
    assert padded.n_parameters == sum(x.size for x in jax.tree.leaves(ends[0][1]))
    table = padded.abstract.params["embed"]["embedding"]
    assert (table.shape, table.sharding.shard_shape(table.shape)) == ((72, 16), (36, 16))
    np.testing.assert_array_equal(state.params["embed"]["embedding"][61:], 0)
    assert "f32[16,8,36]" in step.as_text()
    assert not re.search(r"\[(\d+,)*(61|72)(,\d+)*\]", step.as_text())


def test_every_parameter_of_every_variant_has_a_rule():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    for ablation in ("none", "local", "global", "both"):
        model = SelfAblatingTransformer(tiny(ablation))
        shapes = jax.eval_shape(lambda m=model: m.init(jax.random.key(0), jnp.zeros((1, 8), jnp.int32)))["params"]
        sizes = jax.tree.leaves(shapes)
        specs = jax.tree.leaves(param_shardings(mesh, shapes))
        whole = [a.shape for a, s in zip(sizes, specs, strict=True) if a.ndim > 1 and s.is_fully_replicated]
        assert whole == [], "matrices that no axis splits"


@pytest.mark.parametrize(
    ("path", "spec"),
    [
        ("layer_0/attention/query/kernel", P("fsdp", "tensor", None)),
        ("layer_11/mlp/down/bias", P()),
        ("layer_1/attention_scores/kernel", P("fsdp", "tensor")),
        ("neuron_scores/bias", P("tensor")),
        ("embed/embedding", P("tensor", "fsdp")),
        ("pos_embed/embedding", P(None, "fsdp")),
    ],
)
def test_partition_rules(path, spec):
    assert partition_spec(path) == spec


@pytest.mark.parametrize("path", ["layer_0/adapter/kernel", "xmlp/up/kernel", "mlp/up/kernel/extra"])
def test_a_path_without_a_rule_is_an_error(path):
    with pytest.raises(ConfigError, match=f"no partition rule matches parameter '{path}'"):
        partition_spec(path)


def test_a_dimension_that_does_not_divide_is_replicated():
    mesh = make_mesh(MeshConfig(data=1, fsdp=2, tensor=4))
    shapes = {"embed": {"embedding": jax.ShapeDtypeStruct((7, 16), jnp.float32)}}
    assert param_shardings(mesh, shapes)["embed"]["embedding"].spec == P(None, "fsdp")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (MeshConfig(fsdp=3), "mesh.fsdp=3 times mesh.tensor=1 must divide the 8 devices"),
        (MeshConfig(data=4, fsdp=4), "needs 16 devices but there are 8"),
    ],
)
def test_a_mesh_that_does_not_fit_says_so(config, message):
    with pytest.raises(ConfigError, match=message):
        make_mesh(config)


def test_a_batch_that_does_not_split_says_so():
    with pytest.raises(ConfigError, match=r"12 rows .* must be a multiple of 8"):
        check_batch(make_mesh(MeshConfig()), 12)

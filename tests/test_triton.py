"""Kernels for GPUs give what the plain code gives, run by Pallas's interpreter, and are taken for one GPU alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas
from jax.sharding import AbstractMesh, AxisType

from jaxablate import gating, regularizers
from jaxablate.ops import triton
from jaxablate.ops.attention import packed_attention
from jaxablate.ops.normalization import layer_norm

RNG = np.random.default_rng(0)


def draw(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape, np.float32)


# Widths that are no powers of two, scores that tie, rows that do not fill a block.
TIED = np.round(draw(2, 6, 40), 1)
CASES = {
    "repeated maxima": (functools.partial(gating.k_wta, k=3), TIED),
    "bisection": (functools.partial(gating.k_wta, k=20), TIED),
    "softmax": (functools.partial(gating.soft_top_k, k=3, surrogate="softmax"), draw(3, 12)),
    "infinite scores": (functools.partial(gating.soft_top_k, k=3), np.where(TIED > 1, -np.inf, TIED)),
    "layer_norm": (layer_norm, draw(2, 6, 24), draw(24), draw(24)),
    "reconstruction": (lambda a, b: regularizers.reconstruction(a, b)[None], draw(2, 6, 24), draw(2, 6, 24)),
    "attention of one stream": (packed_attention, draw(1, 1, 128, 3, 2, 8)),
    "attention of two streams": (functools.partial(packed_attention, window=70, scale=0.7), draw(2, 1, 128, 3, 1, 32)),
    "vectors": (lambda x: jnp.stack([2 * row for part in triton.vectors(x) for row in part]), draw(2, 3, 128)),
}


@pytest.fixture
def kernels(monkeypatch):
    """Takes the kernels, without a GPU."""
    monkeypatch.setattr(triton, "_enabled", lambda: True)
    monkeypatch.setattr(triton, "_options", lambda warps: {"interpret": True})
    jax.clear_caches()
    yield
    jax.clear_caches()


@pytest.mark.parametrize("case", CASES)
def test_kernels_give_values_and_derivatives_of_the_plain_code(case, kernels, monkeypatch):
    function, *arrays = CASES[case]
    weights = draw(*jax.eval_shape(function, *arrays).shape)
    calls, call = [], pallas.pallas_call
    monkeypatch.setattr(pallas, "pallas_call", lambda *args, **options: calls.append(1) or call(*args, **options))

    def both():
        jax.clear_caches()
        out, back = jax.vjp(function, *map(jnp.asarray, arrays))
        return out, back(jnp.asarray(weights))

    got, made = both(), len(calls)
    monkeypatch.setattr(triton, "_enabled", lambda: False)
    expected = both()
    assert made > 0 and len(calls) == made
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), got, expected)


@pytest.mark.parametrize(("devices", "platform", "taken"), [(1, "gpu", True), (1, "tpu", False), (8, "gpu", False)])
def test_kernels_are_for_one_gpu(devices, platform, taken):
    device = jax.sharding.AbstractDevice(device_kind="any", num_cores=1, platform=platform)
    mesh = AbstractMesh((devices,), ("data",), (AxisType.Auto,), abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
        jaxpr = str(jax.make_jaxpr(jax.grad(lambda x: gating.k_wta(x, 3).sum()))(draw(4, 32)))
    assert ("pallas_call" in jaxpr) == taken
    assert "pallas_call" not in str(jax.make_jaxpr(functools.partial(gating.k_wta, k=3))(draw(4, 32)))

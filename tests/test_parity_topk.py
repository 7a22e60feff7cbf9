"""k-winner-take-all gates against figures of the papers' own top-k functions (origin: tests/golden/README.md)."""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxablate.gating import hard_top_k, k_wta, soft_top_k

pytestmark = pytest.mark.parity

_DEFAULT_EPS = 1e-12


@dataclasses.dataclass(frozen=True)
class Case:
    """One array of scores: the reference's figures (`x`, `ct`, `soft`, `soft_vjp`, `hard`, `gap`) and ours."""

    index: dict[str, Any]
    expected: dict[str, np.ndarray]
    ours: dict[str, np.ndarray]

    @property
    def key(self) -> str:
        return self.index["key"]

    @property
    def gap(self) -> np.ndarray:
        return self.expected["gap"][..., None]

    @property
    def width(self) -> np.ndarray:
        """T of each row, the denominator of the gate."""
        return self.index["temperature"] * self.gap + (self.index["eps"] or _DEFAULT_EPS)

    @property
    def machine_eps(self) -> float:
        return float(np.finfo(self.index["dtype"]).eps)


@functools.cache
def cases(path: Path) -> list[Case]:
    with np.load(path) as stored:
        arrays = {name: stored[name] for name in stored.files}
    found = []
    for index in json.loads(str(arrays["index_json"])):
        names = ("x", "ct", "soft", "soft_vjp", "hard", "gap")
        expected = {name: arrays[f"{index['key']}/{name}"] for name in names}
        with jax.enable_x64(index["dtype"] == "float64"):
            found.append(Case(index, expected, _ours(index, expected["x"], expected["ct"])))
    assert found
    return found


def _ours(index: dict[str, Any], x: np.ndarray, ct: np.ndarray) -> dict[str, np.ndarray]:
    """Fewer than six rows are repeated up to six, and the width is an argument, so that most cases share a program."""
    rows = len(x)
    if x.ndim == 2:
        x, ct = (np.resize(array, (6, array.shape[1])) for array in (x, ct))
    width = {"temperature": index["temperature"], "eps": index["eps"] or _DEFAULT_EPS}
    return {name: np.asarray(gate)[:rows] for name, gate in _gates(x, ct, index["k"], width).items()}


@functools.partial(jax.jit, static_argnames="k")
def _gates(x, ct, k, width):
    soft, soft_vjp = jax.vjp(lambda x: soft_top_k(x, k, **width), x)
    kwta, kwta_vjp = jax.vjp(lambda x: k_wta(x, k, **width), x)
    vjps = {"soft_vjp": soft_vjp(ct)[0], "kwta_vjp": kwta_vjp(ct)[0]}
    return {"soft": soft, "kwta": kwta, "hard": hard_top_k(x, k), **vjps}


def test_soft(topk_file):
    for case in cases(topk_file):
        atol = 2e-6 if case.index["dtype"] == "float32" else 1e-12
        assert case.ours["soft"].dtype == case.index["dtype"], case.key
        np.testing.assert_allclose(case.ours["soft"], case.expected["soft"], rtol=0, atol=atol, err_msg=case.key)


def test_hard(topk_file):
    """Equal where the k-th and (k+1)-th score differ; elsewhere k ones, all larger scores among them."""
    for case in cases(topk_file):
        x, hard, k = case.expected["x"], case.ours["hard"], case.index["k"]
        differ = np.broadcast_to(case.gap > 0, x.shape)
        np.testing.assert_array_equal(hard[differ], case.expected["hard"][differ], err_msg=case.key)
        assert (hard.sum(-1) == k).all(), case.key
        kth = np.sort(x, axis=-1)[..., -k, None]
        assert (hard[x > kth] == 1).all() and (hard[x < kth] == 0).all(), case.key
        np.testing.assert_array_equal(case.ours["kwta"], hard, err_msg=case.key)


def test_vector_jacobian_product(topk_file):
    """J^T ct of the soft gate, within what rounding of x does to it: eps * |x| / T of the largest term.

    Equal scores share the derivative by a sort's whim: their sum is compared. Rows with gap 0 are not.
    """
    for case in cases(topk_file):
        x, ct, vjp = case.expected["x"], case.expected["ct"], case.ours["soft_vjp"]
        assert np.isfinite(vjp).all(), case.key
        same = (x[..., :, None] == x[..., None, :]).astype(x.dtype)
        difference = np.einsum("...ij,...j->...i", same, vjp - case.expected["soft_vjp"])
        largest = abs(ct).max(-1, keepdims=True) * case.index["k"] / case.width
        rounding = case.machine_eps * (1 + abs(x).max(-1, keepdims=True) / case.width)
        allowed = np.where(case.gap > 0, rounding * largest, np.inf)
        assert (abs(difference) <= allowed).all(), (case.key, (abs(difference) / allowed).max())


def test_straight_through_has_the_soft_gates_derivative(topk_file):
    for case in cases(topk_file):
        np.testing.assert_array_equal(case.ours["kwta_vjp"], case.ours["soft_vjp"], err_msg=case.key)

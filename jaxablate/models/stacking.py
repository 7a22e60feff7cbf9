"""Layers that are alike, with their parameters stacked, so that a compiled program has each kind of layer once.

Parameters have two layouts. By layer is the one of checkpoints, exports and every tool: ``layer_0/...``,
``layer_1/...``. Stacked is the one in which accelerators train: ``layers_0/...`` holds, along a new first axis, the
parameters of layer 0 and of those that a scan takes in its place, some of them joined. Code and time to compile then do
not grow with depth, and the optimiser has a few large arrays in place of many small ones.
"""

import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxablate.ops import triton
from jaxablate.types import Params

_PROJECTIONS = ("query", "key", "value")
_VECTORS = (("ln_1", "scale"), ("ln_1", "bias"), ("ln_2", "scale"), ("ln_2", "bias"), ("attention", "out", "bias"),
            ("mlp", "down", "bias"))

Columns = tuple[tuple[int, ...], ...]
"""Layers that are scanned together: step t of the scan applies layer t of each column, one column after another."""


def layer_groups(kinds: Sequence[Hashable]) -> tuple[Columns, ...]:
    """Layers of these kinds, in order, as scans over layers of the same kind.

    One scan over a period that repeats, where there is one; else one over each run of layers of the same kind.

    >>> layer_groups(["a"] * 4)
    (((0, 1, 2, 3),),)
    >>> layer_groups(["a", "b", "a", "b"])
    (((0, 2), (1, 3)),)
    >>> layer_groups(["a", "a", "b"])
    (((0, 1),), ((2,),))
    """
    n = len(kinds)
    for period in range(1, n // 2 + 1):
        if n % period == 0 and all(kinds[i] == kinds[i % period] for i in range(n)):
            return (tuple(tuple(range(first, n, period)) for first in range(period)),)
    starts = [i for i in range(n) if i == 0 or kinds[i] != kinds[i - 1]]
    return tuple((tuple(range(start, stop)),) for start, stop in zip(starts, [*starts[1:], n], strict=True))


def stack_layers(params: Params, groups: Sequence[Columns]) -> Params:
    """Parameters by layer -> stacked."""
    out = {name: value for name, value in params.items() if not re.fullmatch(r"layer_\d+", name)}
    for column in (column for columns in groups for column in columns):
        layers = [_joined(params[f"layer_{i}"]) for i in column]
        out[stack_name(column)] = jax.tree.map(lambda *x: jnp.stack(x), *layers)
    return out


def unstack_layers(params: Params, groups: Sequence[Columns]) -> Params:
    """The inverse of `stack_layers`."""
    out = {name: value for name, value in params.items() if not re.fullmatch(r"layers_\d+", name)}
    for column in (column for columns in groups for column in columns):
        for step, i in enumerate(column):
            out[f"layer_{i}"] = _apart(jax.tree.map(lambda x, step=step: x[step], params[stack_name(column)]))
    return out


def _joined(layer: Params) -> Params:
    """A layer with its arrays of the same kind as one: the kernels of queries, keys and values [D, 3, N, H], or where
    K heads share them those of keys and values [D, 2, K, H], their biases likewise, and, where a layer has all of them,
    the vectors [D] that no device has a part of, [6, D]."""
    layer = {name: dict(value) for name, value in layer.items()}
    attention = layer["attention"]
    alike = attention["query"]["kernel"].shape == attention["key"]["kernel"].shape
    joined, names = ("qkv", _PROJECTIONS) if alike else ("kv", _PROJECTIONS[1:])
    parts = [attention.pop(name) for name in names]
    attention[joined] = {name: jnp.stack([part[name] for part in parts], axis=x.ndim - 2)
                         for name, x in parts[0].items()}
    if not all(_has(layer, path) for path in _VECTORS):
        return layer
    vectors = [_place(layer, path).pop(path[-1]) for path in _VECTORS]
    return {name: value for name, value in layer.items() if value} | {"vectors": jnp.stack(vectors)}


def _apart(layer: Params) -> Params:
    """The inverse of `_joined`; the vectors may also be a list."""
    layer = {name: dict(value) if isinstance(value, Mapping) else value for name, value in layer.items()}
    for joined, names in (("qkv", _PROJECTIONS), ("kv", _PROJECTIONS[1:])):
        for name, x in layer["attention"].pop(joined, {}).items():
            for i, projection in enumerate(names):
                _place(layer, ("attention", projection, name))[name] = x[:, i] if name == "kernel" else x[i]
    if "vectors" in layer:
        vectors = layer.pop("vectors")
        for i, path in enumerate(_VECTORS):
            _place(layer, path)[path[-1]] = vectors[i]
    return layer


def _has(layer: Params, path: Sequence[str]) -> bool:
    for name in path:
        if name not in layer:
            return False
        layer = layer[name]
    return True


def _place(layer: dict[str, Any], path: Sequence[str]) -> dict[str, Any]:
    """The dict that holds a parameter, a copy of the layer's own."""
    for name in path[:-1]:
        layer[name] = dict(layer.get(name, {}))
        layer = layer[name]
    return layer


def stack_name(column: Sequence[int]) -> str:
    """Name of the stacked parameters of a column."""
    return f"layers_{column[0]}"


def over_layers(
    body: Callable[[int, Params, Any, Any], tuple[Any, Any]], params: Params, groups: Sequence[Columns], carry: Any,
    inputs: Sequence[Any], *, unroll: bool = False,
) -> tuple[Any, list[Any]]:
    """``carry, output = body(layer, its parameters, carry, input)`` of one layer after another.

    Args:
      body: its first argument is the first layer of the column, which stands for all of it; parameters are as those
        of one layer in the layout by layer.
      params: stacked.
      groups: as `layer_groups` gives them.
      carry: a tree of arrays that keep their types.
      inputs: a tree of arrays a layer, alike within a group.
      unroll: write the layers out one after another all the same. Only their parameters are stacked then.

    Returns:
      The last carry, and the layers' outputs.
    """
    outputs: list[Any] = [None] * len(inputs)
    for columns in groups:
        stacked = [params[stack_name(column)] for column in columns]

        def step(carry: Any, of_step: Any, columns: Columns = columns) -> tuple[Any, list[Any]]:
            out = []
            for column, (layer_params, given) in zip(columns, of_step, strict=True):
                carry, output = body(column[0], _apart(layer_params), carry, given)
                out.append(output)
            return carry, out

        if unroll:
            by_column = [jax.tree.map(list, x) | ({"vectors": triton.vectors(x["vectors"])} if "vectors" in x else {})
                         for x in stacked]
            for t, layers in enumerate(zip(*columns, strict=True)):
                own = [jax.tree.map(lambda x, parts, t=t: parts[t], x, parts)
                       for x, parts in zip(stacked, by_column, strict=True)]
                carry, out = step(carry, list(zip(own, [inputs[i] for i in layers], strict=True)))
                for i, output in zip(layers, out, strict=True):
                    outputs[i] = output
        else:
            given = [jax.tree.map(lambda *x: jnp.stack(x), *(inputs[i] for i in column)) for column in columns]
            carry, by_column = jax.lax.scan(step, carry, list(zip(stacked, given, strict=True)))
            for column, output in zip(columns, by_column, strict=True):
                for t, i in enumerate(column):
                    outputs[i] = jax.tree.map(lambda x, t=t: x[t], output)
    return carry, outputs

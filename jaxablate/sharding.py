"""Where arrays live: one mesh of named axes, and one table from parameter path to partition.

The mesh always has the three axes ``data``, ``fsdp`` and ``tensor``; an axis of size 1 costs nothing. The batch is
split over ``data`` and ``fsdp`` together. Parameters, and with them both Adam moments, are stored split over ``fsdp``
and ``tensor``; a training step gathers the ``fsdp`` part where it uses a parameter (`gather`), so that the model itself
only ever meets whole or tensor-split weights and every activation keeps its batch split.
"""

import math
import os
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxablate.config import MeshConfig
from jaxablate.config.checks import divisors, require
from jaxablate.errors import ConfigError
from jaxablate.ops.varying import varying_axes

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")

PARTITION_RULES: tuple[tuple[str, P], ...] = (
    (r"embed/embedding", P("tensor", "fsdp")),  # [V, D]: the tied output is vocabulary-parallel
    (r"unembed/kernel", P("tensor", "fsdp")),  # [V, D]: the same where it is not tied
    (r"pos_embed/embedding", P(None, "fsdp")),  # [P, D]
    (r"attention/(query|key|value)/kernel", P("fsdp", "tensor", None)),  # [D, N, H]: heads
    (r"attention/(qkv|kv)/kernel", P("fsdp", None, "tensor", None)),  # [D, 3, N, H]: the same, joined where stacked
    (r"attention/out/kernel", P("tensor", None, "fsdp")),  # [N, H, D]
    (r"attention/(query|key|value)/bias", P("tensor", None)),  # [N, H]
    (r"attention/(qkv|kv)/bias", P(None, "tensor", None)),  # [3, N, H]
    (r"mlp/(up|gate)/kernel", P("fsdp", "tensor")),  # [D, F]: neurons
    (r"mlp/(up|gate)/bias", P("tensor")),
    (r"mlp/down/kernel", P("tensor", "fsdp")),  # [F, D]
    (r"(attention|neuron)_scores/kernel", P("fsdp", "tensor")),  # [D, U] or [D, L*U]: gated units
    (r"(attention|neuron)_scores/bias", P("tensor")),
    (r"(attention/out|mlp/down)/bias", P()),  # [D]: added after the tensor-parallel sum
    (r"ln_(1|2|f|1_post|2_post)/(scale|bias)", P()),
    (r"vectors", P()),  # [6, D]: those of the two lines above, joined where stacked
    (r"(vmask/(hidden|out)|classes)/(kernel|bias)", P()),  # small
)
"""First rule whose expression matches the end of a parameter's path (whole names only) gives its partition."""


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """Mesh with axes ``data``, ``fsdp``, ``tensor`` over the devices, all by default.

    Where the three sizes need fewer devices than there are, the first ones are used.

    Raises:
      ConfigError: the axes need more devices than there are, or the devices cannot be shared out evenly.
    """
    devices = jax.devices() if devices is None else list(devices)
    per_replica = config.fsdp * config.tensor
    require(config.data != -1 or len(devices) % per_replica == 0,
            f"mesh.fsdp={config.fsdp} times mesh.tensor={config.tensor} must divide the {len(devices)} devices here; "
            "choose sizes whose product does, or set mesh.data")
    data = len(devices) // per_replica if config.data == -1 else config.data
    needed = data * per_replica
    require(needed <= len(devices),
            f"mesh data={data} fsdp={config.fsdp} tensor={config.tensor} needs {needed} devices but there are "
            f"{len(devices)}; lower one of the sizes")
    shape = (data, config.fsdp, config.tensor)
    return jax.make_mesh(shape, AXES, devices=devices[:needed], axis_types=(AxisType.Auto,) * len(AXES))


def data_mesh(*counts: int) -> Mesh | None:
    """A mesh that splits rows over as many accelerators as divide all these numbers of rows; None where that is one.

    CPU devices share their cores: there is nothing to gain.
    """
    devices = jax.devices()
    alone = jax.process_count() > 1 or devices[0].platform == "cpu"
    size = 1 if alone else math.gcd(len(devices), *counts)
    return None if size == 1 else make_mesh(MeshConfig(data=size))


def path_name(path: tuple[Any, ...]) -> str:
    """``layer_0/mlp/up/kernel`` for a key path of `jax.tree_util`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def partition_spec(path: str) -> P:
    """Partition that `PARTITION_RULES` gives the parameter of this path; stacked ones have their layers' axis first.

    >>> tuple(partition_spec("layer_3/mlp/up/kernel"))
    ('fsdp', 'tensor')

    Raises:
      ConfigError: no rule matches.
    """
    stacked = (None,) if re.match(r"(.*/)?layers_\d+/", path) else ()
    for pattern, spec in PARTITION_RULES:
        if re.search(rf"(^|/){pattern}$", path):
            return P(*stacked, *spec)
    raise ConfigError(f"no partition rule matches parameter {path!r}; add one to jaxablate.sharding.PARTITION_RULES")


def param_shardings(mesh: Mesh, abstract_tree: Any) -> Any:
    """Sharding of every parameter as it is stored between steps, in the tree of the parameters or of their shapes.

    A dimension that its axis does not divide is replicated instead, since uneven shards would need padding that no
    other topology could read back: 50,257 rows of a vocabulary as a checkpoint has them, not as a step does
    (`MeshConfig.vocab_multiple`).

    Raises:
      ConfigError: a path that no rule matches.
    """
    return _shardings(mesh, abstract_tree, dropped=())


def gather(mesh: Mesh, params: Any) -> Any:
    """Parameters, or a part of them, gathered over ``fsdp`` to be used.

    Within `by_device` the gradient of the gathered ones is summed over the devices and split again in one
    reduce-scatter. Elsewhere the partitioner, left alone, would be free to split activations over D, where the stored
    parameter is split, and to gather the batch instead: gathering by hand settles it.
    """
    if mesh.shape["fsdp"] == 1:
        return params
    if "fsdp" not in jax.sharding.get_abstract_mesh().manual_axes:
        return jax.lax.with_sharding_constraint(params, gathered_shardings(mesh, params))

    def one(path: tuple[Any, ...], x: jax.Array) -> jax.Array:
        spec = partition_spec(path_name(path))
        if "fsdp" not in spec or "fsdp" not in varying_axes(x):  # which it does where its size could be divided
            return x
        # TPUs reduce and scatter along the outermost axis only.
        axis = spec.index("fsdp")
        return jnp.moveaxis(jax.lax.all_gather(jnp.moveaxis(x, axis, 0), "fsdp", axis=0, tiled=True), 0, axis)

    return jax.tree_util.tree_map_with_path(one, params)


def by_device(mesh: Mesh, function: Callable[..., Any]) -> Callable[..., Any]:
    """``function(params, rows, *shared)`` of what each device has: its part of the parameters, of the rows of a batch,
    and all of what is shared.

    A `jax.shard_map` over the axes of the batch, which the function is to sum over until all devices have the same
    results. Gradients are summed where a parameter is gathered (`gather`), and over ``data`` once, at the end. A
    ``tensor`` axis is left to the partitioner.
    """
    manual = set(AXES) if mesh.shape["tensor"] == 1 else set(BATCH_AXES)

    def local(params: Any, rows: Any, *shared: Any) -> Any:
        def varying(path: tuple[Any, ...], x: jax.Array) -> jax.Array:
            once = ("data",) if "fsdp" in partition_spec(path_name(path)) else BATCH_AXES
            return jax.lax.pcast(x, tuple(axis for axis in once if axis not in varying_axes(x)), to="varying")

        return function(jax.tree_util.tree_map_with_path(varying, params), rows, *shared)

    def run(params: Any, rows: Any, *shared: Any) -> Any:
        specs = jax.tree.map(lambda place: P(*(axis if axis in manual else None for axis in place.spec)),
                             param_shardings(mesh, params))
        return jax.shard_map(local, mesh=mesh, in_specs=(specs, P(BATCH_AXES), *[P()] * len(shared)), out_specs=P(),
                             axis_names=manual)(params, rows, *shared)

    return run


def gathered_shardings(mesh: Mesh, abstract_tree: Any) -> Any:
    """Sharding of every parameter while a step uses it: `param_shardings` with the ``fsdp`` axis gathered."""
    return _shardings(mesh, abstract_tree, dropped=("fsdp",))


def over_whole_rows(mesh: Mesh, function: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], jax.Array]:
    """A function of the rows of an array [B, T, U] whose units are split over ``tensor``.

    Its devices take whole rows of some positions each, in place of parts of all rows, whose every sum they would have
    to exchange: one exchange before, one after.
    """
    if mesh.shape["tensor"] == 1:
        return function

    def split(x: jax.Array, *axes: str | None) -> jax.Array:
        here = jax.sharding.get_abstract_mesh()
        if here.manual_axes:  # the batch's are
            return jax.lax.with_sharding_constraint(x, NamedSharding(here, P(None, *axes)))
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P(BATCH_AXES, *axes)))

    def whole(x: jax.Array) -> jax.Array:
        positions = "tensor" if x.shape[1] % mesh.shape["tensor"] == 0 else None
        units = "tensor" if x.shape[2] % mesh.shape["tensor"] == 0 else None
        return split(split(function(split(x, positions)), positions), None, units)

    return whole


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows of a batch over ``data`` and ``fsdp``; every other dimension whole."""
    return NamedSharding(mesh, P(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on each device."""
    return NamedSharding(mesh, P())


def batch_parts(mesh: Mesh) -> int:
    """Into how many parts the rows of a batch are split."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


# Tokens of one part of a batch on one CPU device: 512 was the fastest of 256 to 8,192 at the language model's shape. At
# the classifier's, 256 to 512 were faster than more: the activations of a part stay in the caches.
_CPU_PART_TOKENS = 512


def fitting_parts(mesh: Mesh, rows: int, length: int) -> int:
    """Number of equal parts in which a batch is best taken one after another.

    1 on accelerators; on CPU the least with which each device has equally many rows, about 512 tokens at most.
    """
    if mesh.devices.flat[0].platform != "cpu":
        return 1
    shares = batch_parts(mesh)
    sharable = [n for n in divisors(rows) if (rows // n) % shares == 0]
    fitting = [n for n in sharable if rows // n * length <= _CPU_PART_TOKENS * shares]
    return (fitting or sharable[-1:] or [1])[0]


def require_room(needed: float, what: str, fix: str, devices: Sequence[Any] | None = None) -> None:
    """Refuses arrays that devices of this process cannot hold, each as many bytes, in place of filling the machine.

    By default they are for one device alone. Those without memory of their own share the host's, without swap.

    Raises:
      ConfigError: ``what`` needs more bytes than there are; the message says how to ``fix`` it.
    """
    room = device_memory(devices or jax.local_devices()[:1])
    require(needed <= room, f"{what} need {needed / 1e9:,.1f} GB on a device that has {room / 1e9:,.1f} GB; {fix}")


def device_memory(devices: Sequence[Any]) -> int:
    """Bytes that each of these devices of this process has, or its part of the host's where it has none of its own."""
    return (devices[0].memory_stats() or {}).get("bytes_limit") or host_memory() // len(devices)


def host_memory() -> int:
    """Bytes of this machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def check_batch(mesh: Mesh, rows: int, what: str = "train.batch_size") -> None:
    """Raises ConfigError where the batch axes do not divide the rows taken at once; ``what`` names them in messages."""
    parts = batch_parts(mesh)
    require(rows % parts == 0, f"{rows} rows ({what}) must be a multiple of {parts}, the mesh's "
            f"data={mesh.shape['data']} times fsdp={mesh.shape['fsdp']}; change the batch size or the mesh")


def _shardings(mesh: Mesh, tree: Any, dropped: tuple[str, ...]) -> Any:
    """By `PARTITION_RULES`, without axes that are dropped, of size 1, or do not divide their dimension."""

    def divides(axis: Any, size: int) -> bool:
        return axis is not None and axis not in dropped and mesh.shape[axis] > 1 and size % mesh.shape[axis] == 0

    def one(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        pairs = zip(partition_spec(path_name(path)), leaf.shape, strict=False)
        return NamedSharding(mesh, P(*(axis if divides(axis, size) else None for axis, size in pairs)))

    return jax.tree_util.tree_map_with_path(one, tree)
